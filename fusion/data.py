"""From the store to batches: a split's features in RAM, and which of their rows belong to each annotated frame.

Only valid rows enter a table. The rows of a window stay adjacent, so a window of any kind is one half-open range of
table rows, an empty range means that the modality is missing, and a batch is one gather::

    stored     0 1 2 3 4 5 6          valid    1 1 0 0 1 1 1
    table      0 1 . . 2 3 4          window [1, 5) of the clip = rows [1, 3) of the table
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from extract.au import AUS
from extract.errors import ConfigError, StoreError
from extract.names import suggestion
from extract.store import Store
from extract.timeline import centred_windows, neighbours
from fusion.config import AnyModality, ContextModality, FusionConfig, StepsModality, TokensModality
from fusion.selection import FRAMES, LABELS

ArrayName: TypeAlias = tuple[str, str]
"""Instance and array."""


@dataclass(frozen=True)
class Sequences:
    """One modality's rows for a batch, sequence after sequence. A sample without rows has no sequence."""

    rows: Tensor
    """[R, D], as stored."""
    lengths: Tensor
    """[n] int64, on the CPU, each at least 1; their sum is R."""
    samples: Tensor
    """[n] int64: the sample that each sequence belongs to, as an index into the batch, increasing."""

    def to(self, device: torch.device) -> "Sequences":
        """A copy with its rows on ``device``; lengths and samples stay on the CPU, where the layout is computed."""
        return Sequences(self.rows.to(device), self.lengths, self.samples.to(device))


@dataclass(frozen=True)
class Batch:
    """B annotated frames."""

    inputs: dict[str, Sequences]
    """By modality."""
    labels: Tensor
    """[B, 12] int8: 0, 1, or -1 where not annotated."""

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Batch":
        """A copy on ``device``."""
        inputs = {name: sequences.to(device) for name, sequences in self.inputs.items()}
        return Batch(inputs, self.labels.to(device))


@dataclass(frozen=True)
class Samples:
    """The annotated frames of some clips, N in all, ordered by clip and frame."""

    clips: tuple[str, ...]
    clip: NDArray[np.int64]
    """[N]: index into ``clips``."""
    frame: NDArray[np.int64]
    """[N]: row on the clip's frame clock."""
    labels: Tensor
    """[N, 12] int8."""
    tables: Mapping[ArrayName, Tensor]
    """[R, D]: the valid rows of all clips, each flattened, in the dtype of the store."""
    sources: Mapping[str, ArrayName]
    """Modality -> the key of its table. Modalities that read the same array share a table."""
    ranges: Mapping[str, NDArray[np.int64]]
    """Modality -> [N, 2]: the range [start, stop) of table rows of each sample."""

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: NDArray[np.int64]) -> Batch:
        """The samples at ``index`` [B], in that order."""
        inputs = {name: gather(self.tables[source], self.ranges[name][index]) for name, source in self.sources.items()}
        return Batch(inputs, self.labels[torch.from_numpy(index)])

    def missing(self) -> dict[str, int]:
        """Modality -> number of samples without it."""
        return {name: int((ranges[:, 0] == ranges[:, 1]).sum()) for name, ranges in self.ranges.items()}


def gather(table: Tensor, ranges: NDArray[np.int64]) -> Sequences:
    """The table rows of each range [start, stop) in ``ranges`` [B, 2], read in one selection."""
    lengths = ranges[:, 1] - ranges[:, 0]
    samples = np.flatnonzero(lengths)
    starts, lengths = ranges[samples, 0], lengths[samples]
    offsets = np.cumsum(lengths) - lengths  # of each sequence in the result
    rows = np.arange(lengths.sum()) + np.repeat(starts - offsets, lengths)
    selected = table.index_select(0, torch.from_numpy(rows))
    return Sequences(selected, torch.from_numpy(lengths), torch.from_numpy(samples))


# ---- tables and windows --------------------------------------------------------------------------------------------


def load_samples(store: Store, clips: Sequence[str], config: FusionConfig, *, labelled: bool = True) -> Samples:
    """Read the annotated frames of ``clips``, and every feature that they need, into RAM.

    Args:
        labelled: False takes every frame and reads no labels; all labels are then -1.

    Raises:
        ConfigError: a modality names an array that does not exist or that has another clock.
        StoreError: arrays of one clip, or of different clips, do not fit together.
        CorruptError: stored bytes are damaged.
    """
    tables = {source: _Table(source) for source in _sources(config).values()}
    ranges: dict[str, list[NDArray[np.int64]]] = {name: [] for name in config.used}
    labels, clip_index, frames = [], [], []
    for number, clip in enumerate(clips):
        pts_s = store.read(clip, FRAMES, "pts_s").values  # [T]
        au = np.full((len(pts_s), len(AUS)), -1, dtype=np.int8)  # [T, 12]
        frame = np.arange(len(pts_s))
        if labelled:
            au = _labels(store, clip, len(pts_s))
            annotated = (au >= 0).all(axis=1) if config.data.drop_partial_frames else (au >= 0).any(axis=1)
            frame = np.flatnonzero(annotated)
        for table in tables.values():
            table.read(store, clip)
        for name, modality in config.used.items():
            windows = _windows(store, clip, name, modality, pts_s, tables[modality.instance, modality.array])
            ranges[name].append(windows[frame])
        labels.append(au[frame])
        clip_index.append(np.full(len(frame), number, dtype=np.int64))
        frames.append(frame)
    return Samples(
        clips=tuple(clips),
        clip=_joined(clip_index, (0,), np.int64),
        frame=_joined(frames, (0,), np.int64),
        labels=torch.from_numpy(_joined(labels, (0, len(AUS)), np.int8)),
        tables={source: table.tensor() for source, table in tables.items()},
        sources=_sources(config),
        ranges={name: _joined(windows, (0, 2), np.int64) for name, windows in ranges.items()},
    )


def _labels(store: Store, clip: str, num_frames: int) -> NDArray[np.int8]:
    """``labels/au`` [T, 12]."""
    au = store.read(clip, LABELS, "au").values
    if au.shape != (num_frames, len(AUS)):
        raise StoreError(f"clip {clip}: labels/au is {au.shape}, expected [{num_frames} frames, {len(AUS)} AUs]")
    return au


def _sources(config: FusionConfig) -> dict[str, ArrayName]:
    return {name: (modality.instance, modality.array) for name, modality in config.used.items()}


class _Table:
    """The valid rows of one array, clip after clip, and where the rows of the clip read last are in it."""

    def __init__(self, source: ArrayName) -> None:
        self.instance, self.array = source
        self.parts: list[NDArray[Any]] = []
        self.size = 0
        self.before: NDArray[np.int64] = np.zeros(1, dtype=np.int64)
        """[rows + 1]: table rows before each stored row of the last clip, and before its end; invalid rows add none."""

    def read(self, store: Store, clip: str) -> None:
        """Append a clip's valid rows; an ``empty`` instance without arrays has none."""
        record = store.record(clip, self.instance)
        if record is not None and record.state == "empty" and not store.has(clip, self.instance, self.array):
            self.before = np.full(1, self.size)
            return
        if not store.has(clip, self.instance, self.array):
            provided = record.provenance.get("provided") if record else None
            hint = suggestion(self.array, store.array_names(clip, self.instance))
            if provided:
                hint = f"the clip was given {provided}, which come without it; {hint}"
            raise ConfigError(f"clip {clip}: instance {self.instance} has no array {self.array!r}; {hint}")
        values, valid = store.read(clip, self.instance, self.array)
        if values.dtype.kind != "f":
            raise ConfigError(
                f"{self.instance}/{self.array} holds {values.dtype}; a modality needs floating-point numbers"
            )
        flat = values.reshape(len(values), -1)  # [rows, D]
        if self.parts and flat.shape[1] != self.parts[0].shape[1]:
            raise StoreError(
                f"clip {clip}: {self.instance}/{self.array} has {flat.shape[1]} values per row, "
                f"the clips before it have {self.parts[0].shape[1]}"
            )
        kept = np.ones(len(flat), dtype=np.bool_) if valid is None else valid
        self.before = self.size + np.concatenate([[0], np.cumsum(kept)])
        self.size = int(self.before[-1])
        if kept.any():
            self.parts.append(flat if kept.all() else flat[kept])

    @property
    def rows(self) -> int:
        """Stored rows of the last clip; 0 if the array does not exist."""
        return len(self.before) - 1

    def tensor(self) -> Tensor:
        """All rows in one tensor. Each part is freed once it is copied: a split may fill most of the RAM."""
        if not self.parts:
            return torch.empty(0, 0)
        whole = np.empty((self.size, self.parts[0].shape[1]), dtype=self.parts[0].dtype)
        stop = self.size
        while self.parts:
            part = self.parts.pop()
            whole[stop - len(part) : stop] = part
            stop -= len(part)
        return torch.from_numpy(whole)


def _windows(
    store: Store,
    clip: str,
    name: str,
    modality: AnyModality,
    pts_s: NDArray[np.float64],
    table: _Table,
) -> NDArray[np.int64]:
    """The range [start, stop) of table rows of each frame of ``clip``, [T, 2]."""
    if table.rows == 0:
        return np.full((len(pts_s), 2), table.size, dtype=np.int64)
    if isinstance(modality, StepsModality):
        if not store.has(clip, modality.instance, "centre_s"):
            raise ConfigError(
                f"modality {name}: {modality.instance} has no `centre_s` and so no steps; should its kind be frame?"
            )
        centre_s = store.read(clip, modality.instance, "centre_s").values  # [S]
        windows = centred_windows(centre_s, pts_s, modality.before_s, modality.after_s)
        expected, what = len(centre_s), "step"
    elif isinstance(modality, TokensModality):
        if not store.has(clip, modality.instance, "range"):
            raise ConfigError(
                f"modality {name}: {modality.instance} has no `range` and so no tokens; should its kind be frame?"
            )
        windows = store.read(clip, modality.instance, "range").values.astype(np.int64)  # [T, 2]
        expected, what = table.rows, "token"
        outside = windows.size and (windows.min() < 0 or windows.max() > table.rows)
        if len(windows) != len(pts_s) or outside or (windows[:, 1] < windows[:, 0]).any():
            raise StoreError(
                f"clip {clip}: {modality.instance}/range does not fit {table.rows} tokens and {len(pts_s)} frames"
            )
    else:
        before, after = (modality.before, modality.after) if isinstance(modality, ContextModality) else (0, 0)
        windows = neighbours(len(pts_s), before, after)
        expected, what = len(pts_s), "frame"
    if table.rows != expected:
        raise ConfigError(
            f"modality {name}, kind {modality.kind}: {modality.instance}/{modality.array} of clip {clip} has "
            f"{table.rows} rows, expected {expected}, one per {what}; is another kind meant?"
        )
    return table.before[windows]


def _joined(parts: list[NDArray[Any]], shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    return np.concatenate([np.empty(shape, dtype=dtype), *parts])


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
        part = rows.double()
        part_mean = part.mean(dim=0)
        shift = part_mean - mean
        total = seen + len(part)
        squares += (part - part_mean).square().sum(dim=0) + shift.square() * (seen * len(part) / total)
        mean += shift * (len(part) / total)
        seen = total
    deviation = (squares / seen).sqrt()
    deviation[deviation <= (1e-6 * mean.abs()).clamp(min=torch.finfo(torch.float32).tiny)] = 1.0
    return mean.float(), deviation.float()
