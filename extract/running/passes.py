"""One pass over a clip's frames: decode, compute rows stages in memory, commit blocks.

Rows are taken in groups of GROUP_ROWS. Within a group each instance computes the rows it is asked for, in micro-batches
cut at fixed row numbers. Which rows share a batch thus depends on nothing but row numbers, batch size and validity: an
interrupted run that is continued gives the same bytes as an unbroken one.

Decoded frames may be large: 32 of 8K are 3 GB. A group therefore arrives in slices of bounded bytes. Stages that
compute row by row work on each slice, and its frames are let go; the others wait until their group is whole.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from extract.errors import ClipError, MachineError
from extract.inputs.crops import Pictures
from extract.running.device import LocalEngine, Reading, ahead
from extract.running.nodes import GROUP_ROWS, Node
from extract.running.rows import Values, as_declared, as_stored, choose, fixed, join, no_rows, own, take
from extract.stage import RowsStage, SourceStage

SLICES_HELD = 4
"""Slices of decoded frames in memory at once: one computed on, one waiting, one being decoded, and one to spare for
what the stages cut out of the frames."""


@dataclass(frozen=True)
class Slice:
    """Consecutive frames of one group, as decoded."""

    rows: NDArray[np.int64]
    pts_s: NDArray[np.float64]
    images: list[Tensor | None]
    """uint8 [H,W,3]; None where no instance needs the pixels."""
    needs: "Needs"
    """Of its group."""


@dataclass(frozen=True)
class Needs:
    """What must be computed of one group of rows, from its first on."""

    rows: Mapping[str, NDArray[np.bool_]]
    """Instance -> which rows it computes."""
    pixels: NDArray[np.bool_]
    """Of which rows the pictures are needed."""


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
        """Nodes that need not wait for a whole group: sources, and row-by-row stages fed only by such nodes."""
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
        needs = Needs({}, np.zeros(0, np.bool_))

        def wanted(index: int) -> bool:
            nonlocal needs
            if index % self._group_rows == 0:
                needs = self._needs(np.arange(index, self._end_of_group(index)))
            return bool(needs.pixels[index % self._group_rows])

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
        return bool(self._needs(np.arange(self._num_frames)).pixels.any())

    def _needs(self, rows: NDArray[np.int64]) -> Needs:
        """What each instance must compute: for blocks of its own, and for those that it feeds."""
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
        return Needs(needs, pixels)

    # ---- computing ---------------------------------------------------------------------------------------------

    def _compute_slice(self, part: Slice) -> None:
        """Compute what need not wait for the whole group."""
        if part.rows[0] % self._group_rows == 0:
            self._given.clear()
        for node in self.nodes:
            if isinstance(node.stage, SourceStage):
                self._enter(node, node.stage, part)
            elif node.name in self._early:
                start = int(part.rows[0]) % self._group_rows
                self._compute_node(node, part.rows[part.needs.rows[node.name][start : start + len(part.rows)]])
        if not self._frames_stay:
            for node in self.nodes:
                if isinstance(node.stage, SourceStage):
                    for output in node.stage.outputs:
                        self._given.pop(f"{node.name}.{output.name}", None)

    def _close_group(self, part: Slice) -> None:
        """Compute what needs the whole group, of which ``part`` is the last slice."""
        start = int(part.rows[0]) // self._group_rows * self._group_rows
        rows = np.arange(start, int(part.rows[-1]) + 1)
        for node in self.nodes:
            if node.name not in self._early:
                self._compute_node(node, rows[part.needs.rows[node.name][: len(rows)]])
        self._given.clear()

    def _enter(self, node: Node, stage: SourceStage[Any], part: Slice) -> None:
        """Pass decoded pictures and times on."""
        seen = [i for i, image in enumerate(part.images) if image is not None]
        given = stage.arrays([cast(Tensor, part.images[i]) for i in seen])
        arrays = {o.name: fixed(given[o.name], o) for o in stage.outputs if o.name in given}
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
            self._give(f"{node.name}.{name}", computed, own(as_stored(array, node.stage, name)))

    def _give(self, name: str, rows: NDArray[np.int64], values: Values) -> None:
        """Keep rows for later nodes, after those of the group's earlier slices."""
        if name in self._given:
            before, known = self._given[name]
            rows, values = np.concatenate([before, rows]), join([known, values])
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
                name: take(*given[source], part, device) for name, source in node.from_pass.items()
            }
            for name, stored in node.from_store.items():
                batch[name] = torch.from_numpy(stored.values[part]).to(device)
            values = as_declared(stage, stage.compute(batch), len(part))
            valid = values.pop("valid", None)
            if valid is not None:
                chosen = cast(Tensor, valid).cpu().numpy()
                part = part[chosen]
                values = {name: choose(array, chosen) for name, array in values.items()}
            held.append(part)
            pieces.append(values)
        names = [output.name for output in stage.outputs if output.name != "valid"]
        if not pieces:
            return rows, {output.name: no_rows(output) for output in stage.outputs if output.name in names}
        return np.concatenate(held), {name: join([piece[name] for piece in pieces]) for name in names}

    def _commit(self, stop: int, *, last: bool) -> None:
        written = [node.commit_until(stop, last=last, check=self._check) for node in self.nodes]
        if any(written):
            self._committed()

    def _node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)
