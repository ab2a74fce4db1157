"""One pass over a clip's frames: decode, compute rows stages in memory, commit blocks.

Groups of rows are in flight side by side. Their results are put into blocks and committed in the order of the rows, so
the store holds what it would hold if they had been computed one after the other.
"""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import numpy as np
from numpy.typing import NDArray

from extract.inputs.crops import Pictures
from extract.running.budget import Budget, Hold
from extract.running.device import LocalEngine
from extract.running.groups import Given, Groups, Outcome, Unit, fetched
from extract.running.nodes import Node
from extract.running.reading import Reading
from extract.running.rows import stored_form
from extract.running.slices import Slice, Slices
from extract.running.tasks import Loop, Scope, Task, all_of, worst
from extract.stage import SourceStage

GROUP_ROWS = 32
"""Rows of a group, where no micro-batch is larger: no micro-batch crosses a group."""
SLICES_HELD = 4
"""Slices of decoded frames that the memory holds."""
SLICES_OF_A_GROUP = 2
"""Of those, one that is computed on and one that is decoded: what a group reserves at most."""
GROUPS_IN_FLIGHT = 4
"""Of one pass: decoded, computed on the CPU, on the GPU, committed."""


@dataclass
class Group:
    """A group of rows on its way."""

    hold: Hold
    """Memory for its frames and what becomes of them."""
    slices: list[Slice] = field(default_factory=list)
    computing: list[Task[dict[str, Outcome]]] = field(default_factory=list)
    """A task for each slice."""
    given: Given = field(default_factory=dict)

    @property
    def stop(self) -> int:
        """Row behind the last."""
        return int(self.slices[-1].rows[-1]) + 1


class FramePass:
    """Runs the nodes of one pass over one clip.

    Args:
        nodes: in the graph's order, feeding ones first.
        video: the clip's video; None where no node reads pixels or times.
        num_frames: None while the frames instance is not recorded: then decoding says.
        scope: of the clip.
        budget: for decoded frames, and what is cut out of them.
        check: called before every commit; raises when the lease is lost, or the source is another.
        progressed: called after every group with how many of its rows were to do.
        committed: called after blocks were written.
        reading: knows when the decoder last moved on.
        in_flight: groups at once.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        video: Pictures | None,
        num_frames: int | None,
        engine: LocalEngine,
        loop: Loop,
        scope: Scope,
        budget: Budget,
        *,
        check: Callable[[], None],
        progressed: Callable[[int], None],
        committed: Callable[[], None],
        reading: Reading,
        in_flight: int = GROUPS_IN_FLIGHT,
    ) -> None:
        self.nodes = nodes
        self._num_frames = num_frames
        self._loop, self._budget, self._reading, self._in_flight = loop, budget, reading, in_flight
        self._scope = Scope(scope)
        self._scope.on_close.append(budget.wake)
        self._by_name = {node.name: node for node in nodes}
        self._groups = Groups(nodes, engine, loop, self._scope)
        # Blocks smaller than a group (a setting for tests) are committed as soon as larger ones.
        widest = max([GROUP_ROWS, *(node.unit for node in nodes if not isinstance(node.stage, SourceStage))])
        self._group_rows = min([widest, *(node.writer.block_rows for node in nodes if node.writer)])
        pinned = engine.device.type == "cuda"
        self._slices = Slices(nodes, video, num_frames, self._group_rows, pinned=pinned)
        self._slice_bytes = max(budget.total // SLICES_HELD, 1)
        self._frame_bytes = 0
        self._way_bytes = 0
        """What a group's results took beside its frames, the largest so far."""
        self._check, self._progressed, self._committed = check, progressed, committed

    def to_do(self, num_frames: int) -> int:
        """Frames, of so many, in blocks that the store lacks. ``num_frames`` may be a header's, and costs nothing."""
        stored = min(max(node.stored_until for node in self.nodes), num_frames)
        return self._to_do(np.arange(stored)) + num_frames - stored

    def _to_do(self, rows: NDArray[np.int64]) -> int:
        return int(np.any([node.missing(rows) for node in self.nodes], axis=0).sum())

    async def run(self) -> int:
        """Compute and commit. Returns the number of frames; errors of single nodes are left in ``node.error``.

        Raises:
            ClipError: decoding failed, for all nodes.
        """
        under_way: deque[tuple[Task[list[dict[str, Outcome]]], Task[None]]] = deque()
        stop = 0
        errors: list[BaseException] = []
        try:
            retired: Task[None] | None = None
            while not all(node.error for node in self.nodes if node.writer):
                while len(under_way) >= self._in_flight:
                    await under_way[0][1]
                    under_way.popleft()
                group = await self._read_group()
                if group is None:
                    break
                stop = group.stop
                computed = self._loop.spawn(self._compute(group))
                retired = self._loop.spawn(self._retire(group, computed, retired))
                under_way.append((computed, retired))
        except BaseException as error:  # noqa: BLE001 - raised below, when whole groups are committed
            errors.append(error)
        for pair in under_way:
            for task in reversed(pair):
                try:
                    await task
                except BaseException as error:  # noqa: BLE001 - raised below
                    errors.append(error)
        self._scope.close()
        if errors:
            raise worst(errors)
        num_frames = stop if self._num_frames is None else self._num_frames
        await self._commit(num_frames, last=True)
        return num_frames

    # ---- a group on its way --------------------------------------------------------------------------------------

    async def _read_group(self) -> Group | None:
        """Decode a group while its first slices are computed on; None at the end of the clip."""
        group = Group(await self._budget.reserve(self._expected_bytes(), self._scope))
        try:
            while not group.slices or group.stop % self._group_rows:
                if not self._groups.frames_stay and len(group.computing) >= SLICES_OF_A_GROUP:
                    await group.computing[-SLICES_OF_A_GROUP]  # whose frames are gone then
                decode = partial(self._slices.next, self._slice_bytes)
                part = await self._loop.run("decode", decode, self._scope, watch=self._reading.watch())
                if part is None:
                    break
                if part.num_bytes:
                    self._frame_bytes = max(self._frame_bytes, part.num_bytes // len(part.seen))
                group.slices.append(part)
                group.computing.append(self._loop.spawn(self._groups.of_slice(part, group.given)))
        except BaseException:
            with suppress(BaseException):  # only that nothing runs on
                await all_of(group.computing)
            group.hold.release()
            raise
        if not group.slices:
            group.hold.release()
            return None
        return group

    def _expected_bytes(self) -> int:
        """Of the next group, from decoding to its end."""
        at_once = SLICES_OF_A_GROUP * self._slice_bytes
        if self._groups.frames_stay:
            frames = self._frame_bytes * self._group_rows or self._budget.total
        else:
            frames = min(self._frame_bytes * self._group_rows or at_once, at_once)
        return frames + self._way_bytes if self._slices.decodes else 0

    async def _compute(self, group: Group) -> list[dict[str, Outcome]]:
        """What came of each node, slice by slice, and at last of the whole group."""
        try:
            outcomes = await all_of(group.computing)
            if not self._groups.frames_stay:
                group.hold.shrink(self._way_bytes)
            failed = {n: made for one in outcomes for n, made in one.items() if isinstance(made, Exception)}
            outcomes.append(await self._groups.of_group(group.slices[-1], group.given, failed))
            pieces = [piece for pieces in group.given.values() for piece in pieces]
            self._way_bytes = max(self._way_bytes, sum(piece.num_bytes for piece in pieces))
            return outcomes
        finally:
            group.given.clear()
            group.hold.release()

    async def _retire(
        self, group: Group, computing: Task[list[dict[str, Outcome]]], before: "Task[None] | None"
    ) -> None:
        """Put what was computed into blocks, and commit those that are whole, after all earlier groups."""
        if before is not None:
            await before
        outcomes = [{name: await fetched(made) for name, made in one.items()} for one in await computing]
        for node in self.nodes:
            if isinstance(node.stage, SourceStage):
                for part in group.slices:
                    _enter(node, part)
            else:
                self._put(node, [one[node.name] for one in outcomes if node.name in one])
        await self._commit(group.stop, last=False)
        self._progressed(self._to_do(np.arange(group.slices[0].rows[0], group.stop)))

    def _put(self, node: Node, made: Sequence[Outcome]) -> None:
        broken = next((self._by_name[source].error for source in node.feeds if self._by_name[source].error), None)
        failure = next((one for one in made if isinstance(one, Exception)), None)
        node.error = node.error or broken or failure
        if node.error is None:
            for units in made:
                for unit in cast(list[Unit], units):
                    node.put(unit.rows, unit.stored)

    async def _commit(self, stop: int, *, last: bool) -> None:
        due = [node for node in self.nodes if node.is_due(stop, last=last)]
        if due:
            await self._loop.run("write", partial(self._commit_now, due, stop, last=last), None)

    def _commit_now(self, nodes: Sequence[Node], stop: int, *, last: bool) -> None:
        """In the lane that writes."""
        written = [node.commit_until(stop, last=last, check=self._check) for node in nodes]
        if any(written):
            self._committed()


def _enter(node: Node, part: Slice) -> None:
    """Keep the times, or which crops there are."""
    if node.has_valid:  # given crops: a row without a picture is not valid
        kept = [output for output in node.prepared.instance.kept if output.name != "valid"]
        values = {output.name: part.given[f"{node.name}.{output.name}"].values for output in kept}
        node.put(part.seen, {output.name: stored_form(values[output.name], output, node.prepared) for output in kept})
    elif len(part.pts_s):
        node.put(part.rows, {"pts_s": part.pts_s})
