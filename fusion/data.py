"""From tables to batches: a split's features, and which of their rows belong to each frame.

Only valid rows enter a table, so the rows of a window stay adjacent, an empty range means that the modality is
missing, and a batch is one gather per modality, where the table lies::

    stored     0 1 2 3 4 5 6          valid    1 1 0 0 1 1 1
    table      0 1 . . 2 3 4          window [1, 5) of the clip = rows [1, 3) of the table

Strided windows are ranges of a list of rows (``Windows.rows``) instead of the table itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusion.tables import Home

ArrayName: TypeAlias = tuple[str, str]
"""Instance and array."""
Ints: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Windows:
    """The rows of one modality that belong to each of N samples."""

    ranges: Ints
    """[N, 2]: half-open ranges; start == stop where the sample lacks the modality."""
    rows: Ints | None = None
    """[P]: the table rows that the ranges count, where windows leave rows out; None: ranges count table rows."""

    @cached_property
    def lengths(self) -> Ints:
        """[N]: rows per sample."""
        return self.ranges[:, 1] - self.ranges[:, 0]

    @cached_property
    def longest(self) -> int:
        """Rows of the longest window; 0 if no sample has the modality."""
        return int(self.lengths.max(initial=0))


@dataclass(frozen=True)
class Rows:
    """One modality's rows of B samples, laid out on a rectangle [L, B], time first.

    Column b holds the window of sample b from the top; what lies below its length is a repetition that no result may
    depend on (a sample without the modality has length 0). One call of an encoder runs the whole rectangle.
    """

    values: Tensor
    """[L * B, D] in the type of the store; or, with ``place``, [U, D]: distinct rows. D is 0 if no clip at all has the
    modality."""
    lengths: Tensor
    """[B] int64."""
    shape: tuple[int, int]
    """L, B; L is at least 1."""
    place: Tensor | None = None
    """[L * B] int64: which of the distinct rows lies at each place of the rectangle."""
    times: Tensor | None = None
    """[L, B] float32: seconds between each row and its sample's frame, where an encoder reads them; tokens, which have
    no time of their own, are spread evenly over [-1, 1]."""
    short: Tensor | None = None
    """[n] int64: the columns that may be shorter than L; all others fill the rectangle. None: any may be short."""
    projected: bool = False
    """Whether ``values`` have gone through the projection already."""
    gates: bool = False
    """Whether they are also gates (``fusion.recurrence``), which only a ``BiGRU`` reads."""

    def to(self, device: torch.device) -> "Rows":
        """A copy on ``device``."""
        return replace(
            self,
            values=self.values.to(device, non_blocking=True),
            lengths=self.lengths.to(device, non_blocking=True),
            place=None if self.place is None else self.place.to(device, non_blocking=True),
            times=None if self.times is None else self.times.to(device, non_blocking=True),
            short=None if self.short is None else self.short.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class Batch:
    """B frames."""

    inputs: dict[str, Rows]
    """By modality."""
    targets: dict[str, Tensor]
    """Task -> labels: ``au`` [B, A] int8 (0, 1, -1 not annotated) and what else is trained on."""
    size: int

    def __len__(self) -> int:
        return self.size

    def to(self, device: torch.device) -> "Batch":
        """A copy on ``device``."""
        return Batch(
            {name: rows.to(device) for name, rows in self.inputs.items()},
            {task: target.to(device, non_blocking=True) for task, target in self.targets.items()},
            self.size,
        )


@dataclass(frozen=True)
class Samples:
    """Frames of some clips, N in all, ordered by clip and frame."""

    clips: tuple[str, ...]
    clip: Ints
    """[N]: index into ``clips``."""
    frame: Ints
    """[N]: row on the clip's frame clock."""
    pts_s: NDArray[np.float64]
    """[N] seconds."""
    targets: Mapping[str, Tensor]
    """Task -> [N] or [N, width]; see ``NOT_ANNOTATED``."""
    aus: tuple[int, ...]
    """Numbers of the action units, in the order of the columns of ``au`` and ``intensity``."""
    tables: Mapping[ArrayName, Tensor]
    """[R, D]: the valid rows of all clips, each flattened, in the dtype of the store, on the device of ``home``."""
    row_times: Mapping[ArrayName, NDArray[np.float64] | None]
    """[R] seconds on the clip's clock, of tables whose rows have a time."""
    sources: Mapping[str, ArrayName]
    """Modality -> the key of its table. Modalities that read the same array share a table."""
    windows: Mapping[str, Windows]
    """By modality."""
    home: Home
    pinned: bool = False
    """Whether batches are gathered into pinned memory, from which a GPU copies without being waited for."""
    placed: "Placed" = field(default_factory=lambda: Placed(), repr=False, compare=False)
    """What has been copied to a GPU."""

    def __len__(self) -> int:
        return len(self.clip)

    @property
    def labels(self) -> Tensor:
        """[N, A] int8: action units."""
        return self.targets["au"]

    @cached_property
    def annotated(self) -> Ints:
        """The samples with a label of any task."""
        return np.flatnonzero(annotated(self.targets))

    def missing(self, samples: Ints | slice = slice(None)) -> dict[str, int]:
        """Modality -> number of samples without it, of all or of some."""
        return {name: int((windows.lengths[samples] == 0).sum()) for name, windows in self.windows.items()}

    def batch(
        self, index: Ints, *, lengths: Mapping[str, int] | None = None, times: bool = False, distinct: bool = False
    ) -> Batch:
        """The samples at ``index`` [B], in that order, gathered from each table in one selection.

        Nothing waits for a GPU: the numbers of the samples are all that is copied there, and rows are counted there.

        Args:
            lengths: modality -> L; None lets each rectangle end with its longest window.
            times: whether ``Rows.times`` is wanted.
            distinct: gather each row once, however many windows hold it.
        """
        here = torch.from_numpy(index)
        at = sent(here, self.home.device)
        return Batch(
            {name: self._rows(name, index, at, (lengths or {}).get(name), times, distinct) for name in self.windows},
            {task: target.index_select(0, here) for task, target in self.targets.items()},
            len(index),
        )

    def _rows(self, name: str, index: Ints, at: Tensor, length: int | None, times: bool, distinct: bool) -> Rows:
        table = self.tables[self.sources[name]]
        rows, lengths = self.window_rows(name, index, at, length)
        found_times = self.times(name, rows, lengths, at) if times else None
        if not len(table):  # no clip has the modality
            values = torch.zeros((rows.numel(), 0), dtype=table.dtype, device=table.device)
            return Rows(values, lengths, (len(rows), len(index)), None, found_times)
        place: Tensor | None = None
        wanted = rows.flatten()
        if distinct:
            # Counted on the host: how many distinct rows there are is a shape.
            on_host, _ = self.window_rows(name, index, torch.from_numpy(index), length)
            once, inverse = np.unique(on_host.numpy(), return_inverse=True)
            wanted, place = (sent(torch.from_numpy(each.reshape(-1)), table.device) for each in (once, inverse))
        values = gather(table, wanted, pinned=self.pinned)
        return Rows(
            values, lengths, (len(rows), len(index)), place, found_times, self.short(name, index, len(rows), at.device)
        )

    def short(self, name: str, index: Ints, length: int, device: torch.device) -> Tensor | None:
        """The columns of a rectangle of ``length`` rows for samples ``index`` that may be shorter (``Rows.short``)."""
        columns = short_columns(self.windows[name].lengths[index], length)
        return None if columns is None else sent(torch.from_numpy(columns), device)

    def window_rows(self, name: str, index: Ints, at: Tensor, length: int | None = None) -> tuple[Tensor, Tensor]:
        """The table rows of a modality's windows on a rectangle [L, B], and their lengths [B]; see ``Rows``.

        Args:
            index: the samples [B].
            at: the same, on the device on which the rows are counted.
            length: L; None: that of the longest window.

        Raises:
            ValueError: a window does not fit.
        """
        windows = self.windows[name]
        longest = int(windows.lengths[index].max(initial=0))
        length = max(1, longest if length is None else length)
        if longest > length:
            raise ValueError(f"a window of {longest} rows does not fit a rectangle of length {length}")
        ranges = self.placed(windows.ranges, at.device).index_select(0, at)  # [B, 2]
        lengths = ranges[:, 1] - ranges[:, 0]
        step = torch.arange(length, device=at.device)[:, None]
        # An empty range may lie behind the last row.
        counted = torch.where(lengths > 0, ranges[:, 0] + torch.minimum(step, lengths - 1), 0)  # [L, B]
        if windows.rows is None:
            return counted, lengths
        if not len(windows.rows):
            return torch.zeros_like(counted), lengths
        return self.placed(windows.rows, at.device)[counted], lengths

    def times(self, name: str, rows: Tensor, lengths: Tensor, at: Tensor) -> Tensor:
        """[L, B] float32: seconds between the table rows [L, B] of a modality and their samples; see ``Rows.times``.

        Args:
            lengths: rows per sample [B]; a sample without any has times of 0.
            at: the samples [B], on the device of ``rows``.
        """
        clock = self.row_times[self.sources[name]]
        if clock is None:
            step = torch.arange(len(rows), device=rows.device, dtype=torch.float64)[:, None]  # [L, 1]
            found = 2 * step / (lengths - 1).clamp(min=1) - 1
            return torch.where(lengths > 1, found, 0.0).float()
        if not len(clock):
            return torch.zeros(rows.shape, device=rows.device)
        found = self.placed(clock, rows.device)[rows] - self.placed(self.pts_s, rows.device)[at]
        return torch.where(lengths > 0, found, 0.0).float()


FEW = 4
"""Short columns are told apart if they are at most one in so many."""
SHORT_STEP = 16


def short_columns(lengths: Ints, length: int) -> Ints | None:
    """The columns of ``lengths`` [B] that are shorter than ``length``, and a few others; None if most are short.

    Their number is a multiple of 16, so that few different layouts occur.
    """
    count = -(-int((lengths < length).sum()) // SHORT_STEP) * SHORT_STEP
    return np.argsort(lengths, kind="stable")[:count] if count * FEW <= len(lengths) else None


class Placed:
    """Arrays on devices: each is copied once."""

    def __init__(self) -> None:
        self._copies: dict[tuple[int, torch.device], tuple[NDArray[Any], Tensor]] = {}

    def __call__(self, array: NDArray[Any], device: torch.device) -> Tensor:
        """``array`` as a tensor; on the CPU the same memory."""
        if device.type == "cpu":
            return torch.from_numpy(array)
        key = (id(array), device)
        if key not in self._copies:  # which holds the array, so that no other one gets its number
            self._copies[key] = (array, torch.from_numpy(array).to(device))
        return self._copies[key][1]


def sent(values: Tensor, device: torch.device) -> Tensor:
    """``values`` of the CPU on ``device``, without waiting for what a GPU is doing."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values


def gather(table: Tensor, rows: Tensor, *, pinned: bool = False) -> Tensor:
    """The ``rows`` [R] of a table, in one selection where it lies."""
    if table.device.type != "cpu":
        return table.index_select(0, rows)
    shape = (len(rows), table.shape[1])
    if pinned:
        out = torch.empty(shape, dtype=table.dtype, pin_memory=True)
    else:
        # Of NumPy's memory, in huge pages: to touch 200 MB of small ones for the first time takes longer than to copy.
        out = torch.from_numpy(np.empty(shape, dtype=table[:0].numpy().dtype))
    return torch.index_select(table, 0, rows, out=out)


NOT_ANNOTATED: Mapping[str, int] = {"au": -1, "expr": -1, "va": -5, "intensity": -1}
"""Task -> the value that stands for a missing label (ABAW's own, for valence and arousal)."""


def annotated(targets: Mapping[str, Tensor]) -> NDArray[np.bool_]:
    """[N]: which samples have a label of any task."""
    found = [(target != NOT_ANNOTATED[task]).flatten(1).any(dim=1) if target.ndim > 1 else target != NOT_ANNOTATED[task]
             for task, target in targets.items()]  # fmt: skip
    return torch.stack(found).any(dim=0).numpy()


# ---- statistics ----------------------------------------------------------------------------------------------------


def moments(table: Tensor, chunk: int = 4096) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every feature over the rows of ``table`` [R, D]: two float32 [D].

    Sums are float64, over ``chunk`` rows at a time (Chan, Golub and LeVeque 1979: merging means and squared
    deviations). A feature that is constant, or nearly so relative to its mean, gets the deviation 1: divided by the
    rounding error of a float16, the first different value would become huge.

    Raises:
        ValueError: no rows.
    """
    if not len(table):
        raise ValueError("no rows")
    mean = torch.zeros(table.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(mean)
    seen = 0
    for rows in torch.split(table, chunk):
        part = rows.cpu().double()
        part_mean = part.mean(dim=0)
        shift = part_mean - mean
        total = seen + len(part)
        squares += (part - part_mean).square().sum(dim=0) + shift.square() * (seen * len(part) / total)
        mean += shift * (len(part) / total)
        seen = total
    deviation = (squares / seen).sqrt()
    deviation[deviation <= (1e-6 * mean.abs()).clamp(min=torch.finfo(torch.float32).tiny)] = 1.0
    return mean.float(), deviation.float()
