"""From the store to batches: features of a split in RAM, and which of their rows belong to each annotated frame.

Only valid rows enter a table. The rows of a window then still lie together, so every window of every kind is one
half-open range of table rows, an empty range means that the modality is missing, and a batch is one gather::

    stored     0 1 2 3 4 5 6          valid    1 1 0 0 1 1 1
    table      0 1 . . 2 3 4          window [1, 5) of the clip = rows [1, 3) of the table
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from extract.au import AUS
from extract.errors import ConfigError, StoreError, UnfinishedError, UsageError
from extract.records import Record
from extract.store import Store
from extract.timeline import centred_windows, neighbours
from fusion.config import AnyModality, ContextModality, FusionConfig, StepsModality, TokensModality

ArrayName: TypeAlias = tuple[str, str]
"""Instance and array."""

FRAMES, LABELS = "frames", "labels"
SHOWN = 8
"""Clips that a message lists before it only counts."""


@dataclass(frozen=True)
class Sequences:
    """One modality's rows for a batch, sequence after sequence. A sample without rows has no sequence."""

    rows: Tensor
    """[R, D], as stored."""
    lengths: Tensor
    """[n] int64, on the CPU, each at least 1; they add up to R."""
    samples: Tensor
    """[n] int64: the sequence's place in the batch, increasing."""

    def to(self, device: torch.device) -> "Sequences":
        """The rows on ``device``; the lengths stay, since kernels are planned from them."""
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
        """The same on ``device``."""
        moved = {name: sequences.to(device) for name, sequences in self.inputs.items()}
        return Batch(moved, self.labels.to(device))


@dataclass(frozen=True)
class Samples:
    """The annotated frames of some clips, N in all, in the order of clip and frame."""

    clips: tuple[str, ...]
    clip: NDArray[np.int64]
    """[N]: index into ``clips``."""
    frame: NDArray[np.int64]
    """[N]: row on the clip's frame clock."""
    labels: Tensor
    """[N, 12] int8."""
    tables: Mapping[ArrayName, Tensor]
    """[R, D]: the valid rows of all clips, flattened, in the number type of the store."""
    sources: Mapping[str, ArrayName]
    """Modality -> its table. Modalities that read one array share it."""
    ranges: Mapping[str, NDArray[np.int64]]
    """Modality -> [N, 2]: the table rows [start, stop) of every sample."""

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: NDArray[np.int64]) -> Batch:
        """The samples of ``index`` [B], in that order."""
        inputs = {name: gather(self.tables[source], self.ranges[name][index]) for name, source in self.sources.items()}
        return Batch(inputs, self.labels[torch.from_numpy(index)])

    def missing(self) -> dict[str, int]:
        """Samples that lack each modality."""
        return {name: int((ranges[:, 0] == ranges[:, 1]).sum()) for name, ranges in self.ranges.items()}


def gather(table: Tensor, ranges: NDArray[np.int64]) -> Sequences:
    """The rows [start, stop) of every entry of ``ranges`` [B, 2], in one selection."""
    lengths = ranges[:, 1] - ranges[:, 0]
    samples = np.flatnonzero(lengths)
    starts, lengths = ranges[samples, 0], lengths[samples]
    begins = np.cumsum(lengths) - lengths  # where each sequence begins in the result
    rows = np.arange(lengths.sum()) + np.repeat(starts - begins, lengths)
    picked = table.index_select(0, torch.from_numpy(rows))
    return Sequences(picked, torch.from_numpy(lengths), torch.from_numpy(samples))


# ---- which clips ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Selection:
    """The clips of a split that can be used, and why others cannot."""

    split: str
    clips: tuple[str, ...]
    unlabelled: tuple[str, ...]
    """Clips for which the manifest names no label file."""
    skipped: Mapping[str, str]
    """Clip -> what is wrong with it: only with ``skip_failed``."""


def select_clips(store: Store, split: str, instances: Iterable[str], *, skip_failed: bool = False) -> Selection:
    """The clips of ``split`` whose labels and ``instances`` are all finished.

    ``empty`` is finished: it means that something is missing in the recording, which the model is told. ``failed``
    and unfinished mean that nothing is known.

    Raises:
        UnfinishedError: some clips are not finished, and ``skip_failed`` is off; the message names them.
    """
    usable, unlabelled, problems, commands = [], [], {}, {}
    for clip in store.clips():
        if store.attributes(clip).get("split") != split:
            continue
        found = []
        for instance in dict.fromkeys((FRAMES, LABELS, *instances)):
            record = store.record(clip, instance)
            if record is None or not record.finished:
                never = record is None and instance == LABELS
                found.append("its labels were never imported" if never else f"{instance} {_unfinished(record)}")
                commands[f"--stage {instance}"] = True
                if record is not None and record.reason == "crashed":
                    commands["--retry"] = True
        if found:
            problems[clip] = ", ".join(found)
        elif not store.has(clip, LABELS, "au"):
            unlabelled.append(clip)
        else:
            usable.append(clip)
    if problems and not skip_failed:
        kept = store.config()
        config = f"-c {kept.name} " if kept and kept.name else ""
        raise UnfinishedError(
            f"{_counted(len(problems), 'clip')} of split {split} cannot be used:\n"
            + "\n".join(_listed([f"  {clip}: {problem}" for clip, problem in problems.items()]))
            + f"\ncompute what is missing with `extract run {config}{' '.join(sorted(commands, reverse=True))}`, "
            "or leave these clips out with --skip-failed"
        )
    return Selection(split, tuple(usable), tuple(unlabelled), problems)


def _unfinished(record: Record | None) -> str:
    if record is None:
        return "was never computed"
    if record.state == "failed":
        return f"failed ({record.reason}: {record.message})"
    return "is not finished (an interrupted run)"


def splits(store: Store) -> dict[str, int]:
    """Clips per split, for messages; clips without one count as ``none``."""
    found: dict[str, int] = {}
    for clip in store.clips():
        name = store.attributes(clip).get("split") or "none"
        found[name] = found.get(name, 0) + 1
    return found


def shared_people(store: Store, train: Iterable[str], held_out: Iterable[str]) -> list[str]:
    """Held-out clips that share ``subject`` or ``source_video`` with a training clip: results on them flatter."""
    known: dict[tuple[str, str], str] = {}
    for clip in train:
        for key in ("subject", "source_video"):
            value = store.attributes(clip).get(key)
            if value is not None:
                known.setdefault((key, value), clip)
    found = []
    for clip in held_out:
        attributes = store.attributes(clip)
        for key in ("source_video", "subject"):
            twin = known.get((key, attributes.get(key, "")))
            if twin is not None:
                found.append(f"{clip} shares {key} {attributes[key]!r} with training clip {twin}")
                break
    return found


# ---- which recipes -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FeatureSource:
    """What the store says of one instance, for all clips in use."""

    recipe: Mapping[str, Any]
    """The same for every clip."""
    fingerprints: Mapping[str, str]
    """Clip -> fingerprint."""
    untrained: bool
    """Whether its encoder has random weights."""
    weights: Mapping[str, str]
    """sha256 -> what the extraction's config called these weights, its own and those of its inputs."""
    drawn: tuple[str, ...]
    """Clips whose pictures were drawn by a program that says so in the file."""


def feature_sources(store: Store, clips: Sequence[str], instances: Iterable[str]) -> dict[str, FeatureSource]:
    """The records of ``instances``, checked to hold one recipe each.

    Raises:
        UsageError: two clips were extracted with different recipes; the message says which, and in what.
    """
    found = {}
    for instance in instances:
        records = {clip: record for clip in clips if (record := store.record(clip, instance)) is not None}
        first = next(iter(records))
        for clip, record in records.items():
            difference = first_difference(records[first].recipe, record.recipe)
            if difference is not None:
                raise UsageError(
                    f"instance {instance}: clips {first} and {clip} hold features of different recipes ({difference}); "
                    f"extract them with one config: `extract run --stage {instance} --overwrite`"
                )
        found[instance] = FeatureSource(
            recipe=records[first].recipe,
            fingerprints={clip: record.fingerprint for clip, record in records.items()},
            untrained=any(record.provenance.get("untrained", False) for record in records.values()),
            weights={
                named["sha256"]: named["spec"]
                for record in records.values()
                for named in record.provenance.get("weights", {}).values()
            },
            drawn=tuple(clip for clip, record in records.items() if "drawn" in record.notes),
        )
    return found


def first_difference(one: object, other: object, path: str = "") -> str | None:
    """Where two JSON values first differ, as ``config.crop: 224 against 112``; None if they are equal."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in dict.fromkeys((*one, *other)):
            here = f"{path}.{key}" if path else str(key)
            difference = first_difference(one.get(key), other.get(key), here)
            if difference is not None:
                return difference
        return None
    return None if one == other else f"{path}: {one!r} against {other!r}"


# ---- tables and windows --------------------------------------------------------------------------------------------


def load_samples(store: Store, clips: Sequence[str], config: FusionConfig, *, labelled: bool = True) -> Samples:
    """Read the annotated frames of ``clips``, and every feature they need, into RAM.

    Args:
        labelled: False takes every frame and reads no labels; they are -1 throughout.

    Raises:
        ConfigError: a modality asks for an array that is not there or lies on another clock.
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
    """The valid rows of one array, clip after clip; knows where the clip read last lies in it."""

    def __init__(self, source: ArrayName) -> None:
        self.instance, self.array = source
        self.parts: list[NDArray[Any]] = []
        self.size = 0
        self.before: NDArray[np.int64] = np.zeros(1, dtype=np.int64)
        """[rows + 1]: where each stored row of the last clip begins in the table; an invalid row takes no place."""

    def read(self, store: Store, clip: str) -> None:
        """Append a clip's rows. An ``empty`` instance without arrays has none."""
        record = store.record(clip, self.instance)
        if record is not None and record.state == "empty" and not store.has(clip, self.instance, self.array):
            self.before = np.full(1, self.size)
            return
        if not store.has(clip, self.instance, self.array):
            provided = record.provenance.get("provided") if record else None
            why = f": the clip brought its own {provided}, without that" if provided else "; see `extract status`"
            raise ConfigError(f"clip {clip}: instance {self.instance} has no array {self.array!r}{why}")
        values, valid = store.read(clip, self.instance, self.array)
        if values.dtype.kind != "f":
            raise ConfigError(f"{self.instance}/{self.array} is of type {values.dtype}; a modality needs real numbers")
        flat = values.reshape(len(values), -1)  # [rows, D]
        if self.parts and flat.shape[1] != self.parts[0].shape[1]:
            raise StoreError(
                f"clip {clip}: {self.instance}/{self.array} has {flat.shape[1]} values a row, "
                f"clips before it {self.parts[0].shape[1]}"
            )
        kept = np.ones(len(flat), dtype=np.bool_) if valid is None else valid
        self.before = self.size + np.concatenate([[0], np.cumsum(kept)])
        self.size = int(self.before[-1])
        if kept.any():
            self.parts.append(flat if kept.all() else flat[kept])

    @property
    def rows(self) -> int:
        """Stored rows of the last clip; 0 if it has no array."""
        return len(self.before) - 1

    def tensor(self) -> Tensor:
        """All rows in one piece. The parts are let go one by one: a split may fill most of the RAM."""
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
    """Table rows [start, stop) of every frame of ``clip``, [T, 2]."""
    if table.rows == 0:
        return np.full((len(pts_s), 2), table.size, dtype=np.int64)
    if isinstance(modality, StepsModality):
        if not store.has(clip, modality.instance, "centre_s"):
            raise ConfigError(
                f"modality {name}: {modality.instance} has no `centre_s`, so it has no steps; is it of kind frame?"
            )
        centre_s = store.read(clip, modality.instance, "centre_s").values  # [S]
        windows = centred_windows(centre_s, pts_s, modality.before_s, modality.after_s)
        expected, what = len(centre_s), "steps"
    elif isinstance(modality, TokensModality):
        if not store.has(clip, modality.instance, "range"):
            raise ConfigError(
                f"modality {name}: {modality.instance} has no `range`, so it has no tokens; is it of kind frame?"
            )
        windows = store.read(clip, modality.instance, "range").values.astype(np.int64)  # [T, 2]
        expected, what = table.rows, "tokens"
        outside = windows.size and (windows.min() < 0 or windows.max() > table.rows)
        if len(windows) != len(pts_s) or outside or (windows[:, 1] < windows[:, 0]).any():
            raise StoreError(
                f"clip {clip}: {modality.instance}/range does not fit {table.rows} tokens, {len(pts_s)} frames"
            )
    else:
        before, after = (modality.before, modality.after) if isinstance(modality, ContextModality) else (0, 0)
        windows = neighbours(len(pts_s), before, after)
        expected, what = len(pts_s), "frames"
    if table.rows != expected:
        raise ConfigError(
            f"modality {name}, kind {modality.kind}: {modality.instance}/{modality.array} of clip {clip} has "
            f"{table.rows} rows, expected one for each of {expected} {what}; is it of another kind?"
        )
    return table.before[windows]


def _joined(parts: list[NDArray[Any]], shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    return np.concatenate([np.empty(shape, dtype=dtype), *parts])


# ---- statistics ----------------------------------------------------------------------------------------------------


def moments(table: Tensor, chunk: int = 4096) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every feature over the rows of ``table`` [R, D]: two float32 [D].

    Added up in float64, ``chunk`` rows at a time (Chan, Golub and LeVeque 1979: merging of means and squared
    deviations). The deviation of a feature that is constant, or nearly so beside its mean, is given as 1: dividing by
    the rounding error of a float16 would make a giant of the first other value that comes.

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
        step = part_mean - mean
        total = seen + len(part)
        squares += (part - part_mean).square().sum(dim=0) + step.square() * (seen * len(part) / total)
        mean += step * (len(part) / total)
        seen = total
    deviation = (squares / seen).sqrt()
    deviation[deviation <= (1e-6 * mean.abs()).clamp(min=torch.finfo(torch.float32).tiny)] = 1.0
    return mean.float(), deviation.float()


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _listed(lines: list[str]) -> list[str]:
    return lines if len(lines) <= SHOWN else [*lines[:SHOWN], f"  and {len(lines) - SHOWN} more"]
