"""One pass over a clip's frames: decode, compute rows stages in memory, commit blocks.

Rows are taken in groups of GROUP_ROWS. Within a group each instance computes the rows it is asked for, in micro-batches
cut at fixed row numbers. Which rows share a batch thus depends on nothing but row numbers, batch size and validity: an
interrupted run that is continued gives the same bytes as an unbroken one.

Decoded frames may be large: 32 of 8K are 3 GB. A group therefore arrives in slices of bounded bytes. Stages that
compute row by row work on each slice, and its frames are let go; the others wait until their group is whole.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from extract.errors import ClipError, MachineError
from extract.inputs.crops import Pictures
from extract.running.device import LocalEngine, Reading, ahead
from extract.running.planning import Prepared
from extract.stage import Output, RowsStage, SourceStage, Stage
from extract.store import BlockWriter, Rows

GROUP_ROWS = 32
"""Rows whose micro-batches are cut together: no micro-batch crosses a group."""

SLICES_HELD = 4
"""Slices of decoded frames in memory at once: one computed on, one waiting, one being decoded, and one to spare for
what the stages cut out of the frames."""

Values = Tensor | list[Tensor]


@dataclass
class Node:
    """An instance that takes part in a pass."""

    prepared: Prepared
    stage: Stage[Any]
    from_pass: Mapping[str, str]
    """Declared inputs that another node of the pass gives: ``slot.array`` -> ``instance.array``."""
    from_store: Mapping[str, Rows]
    """Declared inputs that the store holds, whole."""
    writer: BlockWriter | None
    """None: no block of it is wanted; it computes for others only."""
    batch: int
    error: Exception | None = None
    """Why it was taken out of the pass; the others go on."""
    _present: frozenset[int] = frozenset()
    _blocks: dict[int, dict[str, NDArray[Any]]] = field(default_factory=dict)
    _next_block: int = 0

    def __post_init__(self) -> None:
        # A snapshot: the decoding thread asks what is needed while this thread commits.
        self._present = frozenset(self.writer.blocks) if self.writer else frozenset()

    @property
    def name(self) -> str:
        return self.prepared.instance.name

    @property
    def unit(self) -> int:
        """Micro-batches are cut at multiples of this many rows: none crosses a block, a group, or the batch size."""
        most = min(self.batch, GROUP_ROWS, self.writer.block_rows if self.writer else GROUP_ROWS)
        return 1 << (most.bit_length() - 1)

    @property
    def has_valid(self) -> bool:
        """Whether it can lack rows."""
        return any(output.name == "valid" for output in self.stage.outputs)

    def missing(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which rows lie in blocks that the store lacked when the pass began."""
        if self.writer is None:
            return np.zeros(len(rows), np.bool_)
        return ~np.isin(rows // self.writer.block_rows, list(self._present))

    def stored_valid(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which rows are valid in every input that comes from the store."""
        valid = np.ones(len(rows), np.bool_)
        for stored in self.from_store.values():
            if stored.valid is not None:
                valid &= stored.valid[rows]
        return valid

    def put(self, rows: NDArray[np.int64], values: Mapping[str, Values]) -> None:
        """Keep computed rows until their block is whole."""
        if self.writer is None:
            return
        for output in self.prepared.instance.kept:
            computed = np.ones(len(rows), np.bool_)
            if output.name != "valid":
                computed = stored_form(values[output.name], output, self.name)
            for block in np.unique(rows // self.writer.block_rows).tolist():
                inside = rows // self.writer.block_rows == block
                into = self._block(block)[output.name]
                into[rows[inside] % self.writer.block_rows] = computed[inside]

    def commit_until(self, stop: int, *, last: bool, check: Callable[[], None]) -> bool:
        """Commit the missing blocks that end at or before row ``stop``; at the clip's end also the cut one."""
        written = False
        while self.writer is not None and self.error is None:
            start = self._next_block * self.writer.block_rows
            rows = min(self.writer.block_rows, stop - start)
            if rows <= 0 or (rows < self.writer.block_rows and not last):
                break
            values = self._block(self._next_block)
            if self._next_block not in self._present:
                check()
                self.writer.commit(self._next_block, {name: array[:rows] for name, array in values.items()})
                written = True
            del self._blocks[self._next_block]
            self._next_block += 1
        return written

    def _block(self, block: int) -> dict[str, NDArray[Any]]:
        if block not in self._blocks:
            rows = cast(BlockWriter, self.writer).block_rows
            self._blocks[block] = {
                output.name: np.zeros((rows, *cast(tuple[int, ...], output.sizes)), np.dtype(output.dtype))
                for output in self.prepared.instance.kept
            }
        return self._blocks[block]


@dataclass(frozen=True)
class Slice:
    """Consecutive frames of one group, as decoded."""

    rows: NDArray[np.int64]
    pts_s: NDArray[np.float64]
    images: list[Tensor | None]
    """uint8 [H,W,3]; None where no instance needs the pixels."""
    needs: Mapping[str, NDArray[np.bool_]]
    """Instance -> which rows of the group, from its first on, it computes."""


class FramePass:
    """Runs the nodes of one pass over one clip.

    Args:
        nodes: in the graph's order, feeding ones first.
        video: the clip's video; None where no node reads pixels or times.
        num_frames: None while the frames instance is not recorded: then decoding says.
        check: called before every commit; raises when the lease is lost, or the source is another.
        progressed: called with the number of rows after every slice.
        committed: called after blocks were written.
        reading: knows when the decoder last moved on.
        memory_bytes: for decoded frames; at least one frame is held, whatever its size.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        video: Pictures | None,
        num_frames: int | None,
        engine: LocalEngine,
        *,
        check: Callable[[], None],
        progressed: Callable[[int], None],
        committed: Callable[[], None],
        reading: Reading,
        memory_bytes: float,
    ) -> None:
        self.nodes = nodes
        self._video = video
        self._num_frames = num_frames
        self._engine = engine
        self._reading = reading
        self._slice_bytes = memory_bytes / SLICES_HELD
        self._early = self._on_slices()
        self._frames_stay = any(
            isinstance(self._node(given.partition(".")[0]).stage, SourceStage)
            for node in nodes
            if node.name not in self._early
            for given in node.from_pass.values()
        )
        self._given: dict[str, tuple[NDArray[np.int64], Values]] = {}
        # Blocks smaller than a group (a setting for tests) are committed as soon as larger ones.
        self._group_rows = min([GROUP_ROWS, *(node.writer.block_rows for node in nodes if node.writer)])
        self._check, self._progressed, self._committed = check, progressed, committed

    def run(self) -> int:
        """Compute and commit. Returns the number of frames; errors of single nodes are left in ``node.error``.

        Raises:
            ClipError: decoding failed, for all nodes.
        """
        stop, part = 0, None
        with ahead(self._slices(), self._reading) as slices:
            for part in slices:
                stop = int(part.rows[-1]) + 1
                self._compute_slice(part)
                if stop % self._group_rows == 0:
                    self._close_group(part)
                    self._commit(stop, last=False)
                self._progressed(len(part.rows))
                if all(node.error for node in self.nodes if node.writer):
                    break
            else:
                if part is not None and stop % self._group_rows:  # the clip ends inside a group
                    self._close_group(part)
        num_frames = stop if self._num_frames is None else self._num_frames
        self._commit(num_frames, last=True)
        return num_frames

    def _on_slices(self) -> set[str]:
        """Nodes that need not wait for a whole group: sources, and what computes row by row on nothing later."""
        early: set[str] = set()
        for node in self.nodes:
            feeds = {given.partition(".")[0] for given in node.from_pass.values()}
            row_by_row = isinstance(node.stage, RowsStage) and node.stage.row_by_row
            if isinstance(node.stage, SourceStage) or (row_by_row and feeds <= early):
                early.add(node.name)
        return early

    # ---- decoding (in a thread of its own) ---------------------------------------------------------------------

    def _slices(self) -> Iterator[Slice]:
        pixels = self._rows_that_need_pixels()
        if self._video is None or (self._num_frames is not None and not pixels):
            for start in range(0, self._num_frames or 0, self._group_rows):
                rows = np.arange(start, min(start + self._group_rows, self._num_frames or 0))
                yield Slice(rows, np.empty(0), [], self._needs(rows))
            return
        needs: dict[str, NDArray[np.bool_]] = {}

        def wanted(index: int) -> bool:
            nonlocal needs
            if index % self._group_rows == 0:
                needs = self._needs(np.arange(index, self._end_of_group(index)))
            return bool(needs["pixels"][index % self._group_rows])

        pts_s: list[float] = []
        images: list[Tensor | None] = []
        decoded = start = num_bytes = 0
        for frame in self._video.frames(wanted):
            if self._num_frames is not None and frame.index >= self._num_frames:
                raise ClipError("source_changed", f"more than the {self._num_frames} frames recorded decode now")
            pts_s.append(frame.pts_s)
            images.append(None if frame.image is None else torch.from_numpy(frame.image))
            num_bytes += 0 if frame.image is None else frame.image.nbytes
            decoded = frame.index + 1
            if decoded % self._group_rows == 0 or num_bytes >= self._slice_bytes:
                yield Slice(np.arange(start, decoded), np.asarray(pts_s), images, needs)
                start, pts_s, images, num_bytes = decoded, [], [], 0
        if pts_s:
            yield Slice(np.arange(start, decoded), np.asarray(pts_s), images, needs)
        if self._num_frames is not None and decoded < self._num_frames:
            raise ClipError("source_changed", f"{decoded} frames decode now, {self._num_frames} are recorded")

    def _end_of_group(self, start: int) -> int:
        stop = start + self._group_rows
        return stop if self._num_frames is None else min(stop, max(self._num_frames, start + 1))

    def _rows_that_need_pixels(self) -> bool:
        """Whether any frame's pixels are needed; decided at once where the number of frames is known."""
        if self._num_frames is None:
            return True
        return bool(self._needs(np.arange(self._num_frames))["pixels"].any())

    def _needs(self, rows: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
        """Instance -> the rows it must compute: for blocks of its own, and for those that it feeds."""
        needs = {node.name: node.missing(rows) for node in self.nodes}
        pixels = np.zeros(len(rows), np.bool_)
        for node in reversed(self.nodes):
            if isinstance(node.stage, SourceStage):
                if node.has_valid:
                    pixels |= needs[node.name]
                continue
            units = np.unique(rows[needs[node.name]] // node.unit)
            needs[node.name] = np.isin(rows // node.unit, units) & node.stored_valid(rows)
            for given in node.from_pass.values():
                source = given.partition(".")[0]
                needs[source] |= needs[node.name]
                if isinstance(self._node(source).stage, SourceStage):
                    pixels |= needs[node.name]
        return {**needs, "pixels": pixels}

    # ---- computing ---------------------------------------------------------------------------------------------

    def _compute_slice(self, part: Slice) -> None:
        """What need not wait for the group to be whole."""
        if part.rows[0] % self._group_rows == 0:
            self._given.clear()
        for node in self.nodes:
            if isinstance(node.stage, SourceStage):
                self._enter(node, node.stage, part)
            elif node.name in self._early:
                start = int(part.rows[0]) % self._group_rows
                self._compute_node(node, part.rows[part.needs[node.name][start : start + len(part.rows)]])
        if not self._frames_stay:
            for node in self.nodes:
                if isinstance(node.stage, SourceStage):
                    for output in node.stage.outputs:
                        self._given.pop(f"{node.name}.{output.name}", None)

    def _close_group(self, part: Slice) -> None:
        """What takes the whole group, of which ``part`` is the last slice."""
        start = int(part.rows[0]) // self._group_rows * self._group_rows
        rows = np.arange(start, int(part.rows[-1]) + 1)
        for node in self.nodes:
            if node.name not in self._early:
                self._compute_node(node, rows[part.needs[node.name][: len(rows)]])
        self._given.clear()

    def _enter(self, node: Node, stage: SourceStage[Any], part: Slice) -> None:
        """Hand decoded pictures and times on."""
        seen = [i for i, image in enumerate(part.images) if image is not None]
        arrays = stage.arrays([cast(Tensor, part.images[i]) for i in seen])
        for name, values in arrays.items():
            self._give(f"{node.name}.{name}", part.rows[seen], values)
        if node.has_valid:  # given crops: a row without a picture is not valid
            node.put(part.rows[seen], arrays)
        elif len(part.pts_s):
            node.put(part.rows, {"pts_s": torch.from_numpy(part.pts_s)})

    def _compute_node(self, node: Node, rows: NDArray[np.int64]) -> None:
        broken = next((self._node(g.partition(".")[0]).error for g in node.from_pass.values()), None)
        node.error = node.error or broken
        if node.error:
            return
        for source in node.from_pass.values():
            rows = np.intersect1d(rows, self._given[source][0], assume_unique=True)
        try:
            with self._engine.guarded(node.name):
                computed, values = self._compute_rows(node, rows, self._given)
                node.put(computed, values)
        except (MachineError, KeyboardInterrupt):
            raise
        except Exception as error:  # noqa: BLE001 - one instance's failure; the runner records it with its trace
            node.error = error
            return
        for name, array in values.items():
            # What the next stage gets is what the store will give it when the run is continued.
            self._give(f"{node.name}.{name}", computed, _own(_as_stored(array, node.stage, name)))

    def _give(self, name: str, rows: NDArray[np.int64], values: Values) -> None:
        """Keep rows for the nodes that follow, behind those of the group's slices before."""
        if name in self._given:
            before, known = self._given[name]
            rows, values = np.concatenate([before, rows]), _join([known, values])
        self._given[name] = (rows, values)

    def _compute_rows(
        self, node: Node, rows: NDArray[np.int64], given: Mapping[str, tuple[NDArray[np.int64], Values]]
    ) -> tuple[NDArray[np.int64], dict[str, Values]]:
        """The rows that hold values and, for every output but ``valid``, those values."""
        stage = cast("RowsStage[Any]", node.stage)
        device = self._engine.device_of(stage)
        pieces: list[dict[str, Values]] = []
        held: list[NDArray[np.int64]] = []
        for unit in np.unique(rows // node.unit):
            part = rows[rows // node.unit == unit]
            batch: dict[str, Values] = {
                name: _take(*given[source], part, device) for name, source in node.from_pass.items()
            }
            for name, stored in node.from_store.items():
                batch[name] = torch.from_numpy(stored.values[part]).to(device)
            values = as_declared(stage, stage.compute(batch), len(part))
            valid = values.pop("valid", None)
            if valid is not None:
                chosen = cast(Tensor, valid).cpu().numpy()
                part = part[chosen]
                values = {name: _choose(array, chosen) for name, array in values.items()}
            held.append(part)
            pieces.append(values)
        names = [output.name for output in stage.outputs if output.name != "valid"]
        if not pieces:
            return rows, {output.name: _no_rows(output) for output in stage.outputs if output.name in names}
        return np.concatenate(held), {name: _join([piece[name] for piece in pieces]) for name in names}

    def _commit(self, stop: int, *, last: bool) -> None:
        written = [node.commit_until(stop, last=last, check=self._check) for node in self.nodes]
        if any(written):
            self._committed()

    def _node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)


def as_declared(stage: Stage[Any], computed: Mapping[str, Any], num_rows: int | None) -> dict[str, Values]:
    """What a stage gave, if it is what it declared (``valid`` may be absent).

    Raises:
        ClipError: ``broken_promise``: a name, a number of rows, a size or a type is another.
    """
    declared = {output.name: output for output in stage.outputs}
    if set(computed) | {"valid"} != set(declared) | {"valid"} or (set(computed) - set(declared)):
        raise ClipError("broken_promise", f"gave {sorted(computed)}, declares {sorted(declared)}")
    values = {}
    for name, array in computed.items():
        output = declared[name]
        if num_rows is not None and len(array) != num_rows:
            raise ClipError("broken_promise", f"{name}: {len(array)} rows for {num_rows} given")
        is_text = output.dtype == "str"
        if is_text and not (isinstance(array, list) and all(isinstance(row, str) for row in array)):
            raise ClipError("broken_promise", f"{name}: declares text, gave something else")
        for row in array if isinstance(array, list) and not is_text else ():
            _check_form(output, tuple(row.shape), row.dtype)
        if isinstance(array, Tensor):
            _check_form(output, tuple(array.shape[1:]), array.dtype)
        values[name] = array
    return values


def stored_form(values: Values, output: Output, instance: str) -> NDArray[Any]:
    """Values as the store holds them.

    Raises:
        ClipError: ``not_finite`` or ``overflow``.
    """
    tensor = torch.stack(values) if isinstance(values, list) else values
    if not tensor.is_floating_point():
        return tensor.cpu().numpy().astype(output.dtype, copy=False)
    array = tensor.float().cpu().numpy() if tensor.dtype == torch.bfloat16 else tensor.cpu().numpy()
    narrow = array.dtype == np.float16
    if np.isnan(array).any() or (not narrow and not np.isfinite(array).all()):
        raise ClipError("not_finite", f"{output.name}: NaN or infinity among the computed values")
    with np.errstate(over="ignore"):
        stored = array.astype(output.dtype, copy=False)
    if not np.isfinite(stored).all():
        most = float(np.abs(array.astype(np.float64)).max())
        raise ClipError(
            "overflow", f"{output.name}: {most:.4g} does not fit {output.dtype}; --set {instance}.dtype=float32"
        )
    return stored


def _check_form(output: Output, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    fits = len(sizes) == len(output.sizes) and all(
        want in {None, have} for want, have in zip(output.sizes, sizes, strict=True)
    )
    if not fits:
        raise ClipError("broken_promise", f"{output.name}: rows of {sizes}, declares {output.sizes}")
    name = str(dtype).removeprefix("torch.")
    # Models compute wider than the store keeps; the runner narrows and looks for overflow.
    wider = output.dtype == "float16" and name in {"float32", "bfloat16"}
    if name != output.dtype and not wider:
        raise ClipError("broken_promise", f"{output.name}: {name}, declares {output.dtype}")


def _as_stored(values: Values, stage: Stage[Any], name: str) -> Values:
    declared = next(output.dtype for output in stage.outputs if output.name == name)
    if isinstance(values, list) or not values.is_floating_point():
        return values
    return values.to(getattr(torch, declared))


def _own(values: Values) -> Values:
    """Rows that keep no larger picture alive: a patch cut out of a frame is a view of all of it."""
    if not isinstance(values, list):
        return values
    return [row if row.untyped_storage().nbytes() == row.nbytes else row.clone() for row in values]


def _take(have: NDArray[np.int64], values: Values, rows: NDArray[np.int64], device: torch.device) -> Values:
    at = np.searchsorted(have, rows)
    if isinstance(values, list):
        return [values[i].to(device) for i in at]
    return values[torch.from_numpy(at).to(values.device)].to(device)


def _choose(values: Values, chosen: NDArray[np.bool_]) -> Values:
    if isinstance(values, list):
        return [value for value, keep in zip(values, chosen, strict=True) if keep]
    return values[torch.from_numpy(chosen).to(values.device)]


def _join(pieces: list[Values]) -> Values:
    if isinstance(pieces[0], list):
        return [row for piece in pieces for row in piece]
    return torch.cat(cast(list[Tensor], pieces))


def _no_rows(output: Output) -> Values:
    if None in output.sizes:
        return []
    sizes = cast(tuple[int, ...], output.sizes)
    return torch.zeros((0, *sizes), dtype=getattr(torch, output.dtype))
