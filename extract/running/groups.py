"""Computing one group of rows: every node in micro-batches of its own, as soon as what feeds it is there.

Micro-batches are cut at fixed row numbers. Which rows share one thus depends on nothing but row numbers, batch size and
validity: neither on what else is in flight, nor on where an earlier run was stopped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from extract.errors import MachineError
from extract.running import transfer
from extract.running.device import LocalEngine
from extract.running.nodes import Node
from extract.running.rows import Piece, Values, as_declared, as_stored, choose, own, stored_form, take
from extract.running.slices import Slice
from extract.running.tasks import Job, Loop, Promise, Scope, Task, all_of, worst
from extract.running.transfer import Fetch
from extract.stage import RowsStage, SourceStage

Given = dict[str, list[Piece]]
"""``instance.array`` -> its rows, in order."""


@dataclass
class Unit:
    """One micro-batch of one node, computed."""

    rows: NDArray[np.int64]
    """Those that hold values."""
    stored: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """The kept ones as the store holds them; empty until they were fetched."""
    fetch: Fetch | None = None
    """On a GPU: what brings them to the host."""
    pieces: Mapping[str, Piece] = field(default_factory=dict)
    """Every output but ``valid``, as the store will give it when the run is continued. Gone when they were fetched:
    what other nodes read of them is theirs, and counts as theirs."""
    fetched: Job[None] | None = None


Outcome = list[Unit] | Exception
"""Of one node for some rows. Of several errors that of the lowest row."""


class Groups:
    """Computes groups of one pass; it keeps nothing of a group."""

    def __init__(self, nodes: Sequence[Node], engine: LocalEngine, loop: Loop, scope: Scope) -> None:
        self._nodes, self._engine, self._loop, self._scope = nodes, engine, loop, scope
        self._computed = [node for node in nodes if not isinstance(node.stage, SourceStage)]
        self._by_name = {node.name: node for node in nodes}
        self.early = self._on_slices()
        self.frames_stay = any(
            isinstance(self._by_name[source].stage, SourceStage)
            for node in self._computed
            if node.name not in self.early
            for source in node.feeds
        )
        """Whether a stage needs the frames of a whole group at once."""
        self._kept_of_sources = {
            f"{node.name}.{output.name}"
            for node in nodes
            if isinstance(node.stage, SourceStage)
            for output in node.prepared.instance.kept
        }
        self._fetched = {node.name: self._wanted_on_host(node) for node in self._computed}

    def _on_slices(self) -> set[str]:
        """Nodes that need not wait for a whole group: sources, and row-by-row stages fed only by such nodes."""
        early: set[str] = set()
        for node in self._nodes:
            row_by_row = isinstance(node.stage, RowsStage) and node.stage.row_by_row
            if isinstance(node.stage, SourceStage) or (row_by_row and set(node.feeds) <= early):
                early.add(node.name)
        return early

    def _wanted_on_host(self, node: Node) -> list[str]:
        """Outputs that the store keeps, or that a stage on the CPU reads."""
        kept = {output.name for output in node.prepared.instance.kept} if node.writer else set()
        for other in self._computed:
            for declared, given in other.from_pass.items():
                source, _, array = given.partition(".")
                if source == node.name and self._engine.device_for(other.stage, declared).type == "cpu":
                    kept.add(array)
        return sorted(kept - {"valid"})

    # ---- a group -------------------------------------------------------------------------------------------------

    async def of_slice(self, part: Slice, given: Given) -> dict[str, Outcome]:
        """What need not wait for the whole group. ``given`` gets it, and the frames where they stay."""
        start = int(part.rows[0])
        known: Given = {name: [piece] for name, piece in part.given.items()}
        wanted = {}
        for node in self._computed:
            if node.name in self.early:
                begins = start - part.group_start
                wanted[node.name] = part.rows[part.needs.rows[node.name][begins : begins + len(part.rows)]]
        outcomes = await self._run([n for n in self._computed if n.name in self.early], wanted, known)
        for name, pieces in known.items():
            if self.frames_stay or name not in part.given:
                given.setdefault(name, []).extend(pieces)
        for name in set(part.given) - self._kept_of_sources:
            del part.given[name]
        return outcomes

    async def of_group(self, last: Slice, given: Given, failed: Mapping[str, Exception]) -> dict[str, Outcome]:
        """What needs the whole group, of which ``last`` is the last slice."""
        rows = np.arange(last.group_start, int(last.rows[-1]) + 1)
        for pieces in given.values():
            pieces.sort(key=lambda piece: int(piece.rows[0]) if len(piece.rows) else 0)
        late = [node for node in self._computed if node.name not in self.early]
        wanted = {node.name: rows[last.needs.rows[node.name][: len(rows)]] for node in late}
        return await self._run(late, wanted, given, failed)

    async def _run(
        self,
        nodes: Sequence[Node],
        wanted: Mapping[str, NDArray[np.int64]],
        given: Given,
        failed: Mapping[str, Exception] | None = None,
    ) -> dict[str, Outcome]:
        tasks: dict[str, Task[Outcome]] = {}
        for node in nodes:
            broken = next((failed[source] for source in node.feeds if failed and source in failed), None)
            feeds = [tasks[source] for source in node.feeds if source in tasks]
            tasks[node.name] = self._loop.spawn(self._node(node, wanted[node.name], feeds, given, broken))
        return dict(zip(tasks, await all_of(tasks.values()), strict=True))

    async def _node(
        self,
        node: Node,
        rows: NDArray[np.int64],
        feeds: Sequence[Task[Outcome]],
        given: Given,
        broken: Exception | None,
    ) -> Outcome:
        for feed in feeds:
            outcome = await feed
            broken = broken or (outcome if isinstance(outcome, Exception) else None)
        if broken or node.error:
            return broken or cast(Exception, node.error)
        pieces = {name: given.get(source, []) for name, source in node.from_pass.items()}
        for declared, source in pieces.items():
            have = np.concatenate([piece.rows for piece in source]) if source else np.empty(0, np.int64)
            rows = np.intersect1d(rows, have, assume_unique=True)
            if self._engine.device_for(node.stage, declared).type == "cpu":
                lost = await _failure_of([piece.fetching for piece in source if piece.fetching is not None])
                if lost is not None:
                    return lost
        lane = "cpu" if self._engine.device_of(node.stage).type == "cpu" else "gpu"
        jobs = []
        for unit in np.unique(rows // node.unit):
            part = rows[rows // node.unit == unit]
            work = partial(compute_unit, self._engine, node, part, pieces, self._fetched[node.name])
            jobs.append(self._loop.run(lane, work, self._scope))
        return await self._collected(node, jobs, given)

    async def _collected(self, node: Node, jobs: Sequence[Job[Unit]], given: Given) -> Outcome:
        failure = await _failure_of(jobs)
        if failure is not None:
            return failure
        units = [await job for job in jobs]
        made = [unit.pieces for unit in units]
        for unit, pieces in zip(units, made, strict=True):
            if unit.fetch is not None:
                unit.fetched = self._loop.run("fetch", partial(fetch_unit, self._engine, node, unit), self._scope)
            else:
                unit.pieces = {}
            for piece in pieces.values():
                piece.fetching = unit.fetched
        for output in node.stage.outputs:
            if output.name != "valid":
                given[f"{node.name}.{output.name}"] = [pieces[output.name] for pieces in made]
        return units


async def fetched(outcome: Outcome) -> Outcome:
    """The outcome when its results are on the host: numbers that do not fit the store show only then."""
    if isinstance(outcome, Exception):
        return outcome
    return await _failure_of([unit.fetched for unit in outcome if unit.fetched is not None]) or outcome


async def _failure_of(promises: Sequence[Promise[Any]]) -> Exception | None:
    """What the first that failed raised, the instance being to blame; None if all went well.

    Raises:
        BaseException: what ends the run.
    """
    failures: list[Exception] = []
    ends: list[BaseException] = []
    for promise in promises:
        try:
            await promise
        except MachineError as error:
            ends.append(error)
        except Exception as error:  # noqa: BLE001 - one instance's failure; the record holds its trace
            failures.append(error)
        except BaseException as error:  # noqa: BLE001 - the run ends
            ends.append(error)
    if ends:
        raise worst(ends)
    return next(iter(failures), None)


# ---- in a lane -----------------------------------------------------------------------------------------------------


def compute_unit(
    engine: LocalEngine,
    node: Node,
    rows: NDArray[np.int64],
    pieces: Mapping[str, Sequence[Piece]],
    fetched: Sequence[str],
) -> Unit:
    """One micro-batch through a stage.

    Raises:
        ClipError: what the stage gave is not what it declares, or does not fit the store.
        MachineError: the device is lost, or its memory full.
    """
    stage = cast("RowsStage[Any]", node.stage)
    device = engine.device_of(stage)
    with engine.guarded(node.name):
        began = engine.mark() if device.type == "cuda" else None
        batch: dict[str, Values] = {
            declared: take(source, rows, engine.device_for(stage, declared)) for declared, source in pieces.items()
        }
        for name, stored in node.from_store.items():
            batch[name] = _from_store(stored.values[rows], engine.device_for(stage, name))
        values = as_declared(stage, stage.compute(batch), len(rows))
        valid = values.pop("valid", None)
        if valid is not None:
            chosen = cast(Tensor, valid).cpu().numpy()
            rows = rows[chosen]
            values = {name: choose(array, chosen) for name, array in values.items()}
        # What the next stage gets is what the store will give it when the run is continued.
        made = {name: Piece(rows, own(as_stored(array, stage, name))) for name, array in values.items()}
        if began is not None:
            # Narrowed there, where it costs nothing; overflow shows as infinity.
            return Unit(rows, fetch=engine.fetch({n: values[n] for n in fetched}, began), pieces=made)
        return Unit(rows, stored=_as_kept(node, values), pieces=made)


def fetch_unit(engine: LocalEngine, node: Node, unit: Unit) -> None:
    """Wait until a micro-batch's results are on the host."""
    with engine.guarded(node.name):
        host, seconds = cast(Fetch, unit.fetch).wait()
        unit.stored = _as_kept(node, host)
    engine.add_computed(seconds)
    for name, values in host.items():
        unit.pieces[name].host = as_stored(values, node.stage, name)
    unit.fetch, unit.pieces = None, {}


def _from_store(values: NDArray[Any], device: torch.device) -> Values:
    rows = torch.from_numpy(values)
    return rows if device.type == "cpu" else transfer.upload(rows, device)


def _as_kept(node: Node, values: Mapping[str, Values]) -> dict[str, NDArray[Any]]:
    if node.writer is None:
        return {}
    kept = [output for output in node.prepared.instance.kept if output.name != "valid"]
    return {output.name: stored_form(values[output.name], output, node.prepared) for output in kept}
