"""A clip's frames as a pass wants them: decoded on request, in slices of bounded bytes that end with a group.

Rows are taken in groups. Decoded frames may be large (32 of 8K are 3 GB), so a group arrives in slices.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from extract.errors import ClipError, MachineError
from extract.inputs.crops import Pictures
from extract.running.nodes import Node
from extract.running.rows import Piece, fixed
from extract.stage import SourceStage


@dataclass(frozen=True)
class Needs:
    """What must be computed of one group of rows, from its first on."""

    rows: Mapping[str, NDArray[np.bool_]]
    """Instance -> which rows it computes."""
    pixels: NDArray[np.bool_]
    """Of which rows the pictures are needed."""


@dataclass(frozen=True)
class Slice:
    """Consecutive frames of one group."""

    rows: NDArray[np.int64]
    pts_s: NDArray[np.float64]
    """Empty where nothing was decoded."""
    given: dict[str, Piece]
    """``instance.array`` of the source stages -> those rows whose pictures are needed. Emptied when they are read."""
    needs: Needs
    """Of its group."""
    group_start: int
    """First row of its group."""
    seen: NDArray[np.int64]
    """Rows whose pictures are there."""
    num_bytes: int = 0
    """Of the pictures."""


class Slices:
    """Decodes on request. Its methods are called by one thread at a time, ``next`` in one that may hang."""

    def __init__(
        self,
        nodes: Sequence[Node],
        video: Pictures | None,
        num_frames: int | None,
        group_rows: int,
        *,
        pinned: bool,
    ) -> None:
        """``pinned``: frames lie in page-locked memory, from where a GPU fetches them by itself."""
        self._nodes, self._video, self._num_frames = nodes, video, num_frames
        self._group_rows, self._pinned = group_rows, pinned
        self._by_name = {node.name: node for node in nodes}
        self.decodes = video is not None
        """Whether there are pictures to hold."""
        self._most_bytes = 0
        self._running = self._slices()

    def next(self, most_bytes: int) -> Slice | None:
        """The next frames, so many bytes or the first frame beyond; None at the end.

        Raises:
            ClipError: they do not decode, or are not as many as recorded.
        """
        self._most_bytes = most_bytes
        return next(self._running, None)

    def _slices(self) -> Iterator[Slice]:
        pixels = self._rows_that_need_pixels()
        if self._video is None or (self._num_frames is not None and not pixels):
            for start in range(0, self._num_frames or 0, self._group_rows):
                rows = np.arange(start, min(start + self._group_rows, self._num_frames or 0))
                yield Slice(rows, np.empty(0), {}, self._needs(rows), start, rows[:0])
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
            del frame
            if decoded % self._group_rows == 0 or num_bytes >= self._most_bytes:
                yield self._slice(start, pts_s, images, needs, num_bytes)
                start, pts_s, images, num_bytes = decoded, [], [], 0
        if pts_s:
            yield self._slice(start, pts_s, images, needs, num_bytes)
        if self._num_frames is not None and decoded < self._num_frames:
            raise ClipError("source_changed", f"{decoded} frames decode now, {self._num_frames} are recorded")

    def _slice(
        self, start: int, pts_s: list[float], images: "list[Tensor | None]", needs: Needs, num_bytes: int
    ) -> Slice:
        rows = np.arange(start, start + len(pts_s))
        seen = [i for i, image in enumerate(images) if image is not None]
        pictures = [cast(Tensor, images[i]) for i in seen]
        images.clear()  # the generator would keep them until the next slice is asked for
        if self._pinned and pictures and all(picture.shape == pictures[0].shape for picture in pictures):
            stacked = _page_locked((len(pictures), *pictures[0].shape))
            pictures = list(torch.stack(pictures, out=stacked).unbind())
        given = {}
        for node in self._nodes:
            if isinstance(node.stage, SourceStage):
                arrays = node.stage.arrays(pictures)
                for output in node.stage.outputs:
                    if output.name in arrays:
                        values = fixed(arrays[output.name], output)
                        given[f"{node.name}.{output.name}"] = Piece(rows[seen], values)
        group_start = start // self._group_rows * self._group_rows
        return Slice(rows, np.asarray(pts_s), given, needs, group_start, rows[seen], num_bytes)

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
        needs = {node.name: node.missing(rows) for node in self._nodes}
        pixels = np.zeros(len(rows), np.bool_)
        for node in reversed(self._nodes):
            if isinstance(node.stage, SourceStage):
                if node.has_valid:
                    pixels |= needs[node.name]
                continue
            units = np.unique(rows[needs[node.name]] // node.unit)
            needs[node.name] = np.isin(rows // node.unit, units) & node.stored_valid(rows)
            for given in node.from_pass.values():
                source = given.partition(".")[0]
                needs[source] |= needs[node.name]
                if isinstance(self._by_name[source].stage, SourceStage):
                    pixels |= needs[node.name]
        return Needs(needs, pixels)


def _page_locked(sizes: tuple[int, ...]) -> Tensor:
    """Bytes that a GPU fetches by itself.

    Raises:
        MachineError: the GPU is lost, or the system gives no such memory: no clip is to blame.
    """
    try:
        return torch.empty(sizes, dtype=torch.uint8, pin_memory=True)
    except RuntimeError as error:
        raise MachineError(f"no page-locked memory for decoded frames: {str(error).splitlines()[0]}") from error
