"""From the store to tables and windows: what a split's samples are made of. Each array is read once."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from extract.au import AUS
from extract.errors import ConfigError, StaleError, StoreError
from extract.names import suggestion
from extract.store import Store
from extract.timeline import centred_windows, neighbours, spread
from fusion.config import AnyModality, ContextModality, FusionConfig, StepsModality, TokensModality
from fusion.data import NOT_ANNOTATED, ArrayName, Ints, Samples, Windows, annotated
from fusion.selection import FRAMES, LABELS
from fusion.tables import Home, choose_home


def load_samples(
    store: Store,
    clips: Sequence[str],
    config: FusionConfig,
    *,
    frames: Literal["annotated", "all"] = "annotated",
    labelled: bool = True,
    aus: tuple[int, ...] | None = None,
    device: torch.device | None = None,
) -> Samples:
    """Read frames of ``clips``, and every feature that they need; each array is read once, clip after clip.

    Args:
        frames: the annotated ones, or all.
        labelled: False reads no labels: none is annotated, so ``frames`` must be ``all``.
        aus: the action units that a run was fitted on; None: those of the labels.
        device: of the network; decides where ``training.tables: auto`` puts the tables. None: the CPU.

    Raises:
        ConfigError: a modality names an array that does not exist or that has another clock.
        StoreError: arrays of one clip, or of different clips, do not fit together.
        StaleError: the labels hold other action units than ``aus``.
        CorruptError: stored bytes are damaged.
        MachineError: the features fit nowhere.
    """
    sources = _sources(config)
    tables = {source: _Table(source) for source in sources.values()}
    for clip in clips:
        for table in tables.values():
            table.measure(store, clip)
    num_bytes = sum(table.num_bytes for table in tables.values())
    home = choose_home(config.training.tables, num_bytes, device or torch.device("cpu"))
    for table in tables.values():
        table.allocate(home)

    windows: dict[str, list[Ints]] = {name: [] for name in config.used}
    strided: dict[str, list[Ints]] = {}
    targets: dict[str, list[NDArray[Any]]] = {task: [] for task in config.tasks}
    known = aus
    aus = label_aus(store, clips) if labelled else known or AUS
    if known is not None and aus != known:
        raise StaleError(
            f"{store.path}: the labels hold AUs {', '.join(map(str, aus))}; the run was fitted on "
            f"{', '.join(map(str, known))}. Import the labels with its `labels.aus`, or fit again"
        )
    kept: list[tuple[Ints, Ints, NDArray[np.float64]]] = []
    for number, clip in enumerate(clips):
        pts_s = store.read(clip, FRAMES, "pts_s").values  # [T]
        labels = read_labels(store, clip, config, len(pts_s), aus, labelled=labelled)
        frame = np.arange(len(pts_s))
        if frames == "annotated":
            frame = np.flatnonzero(annotated({task: torch.from_numpy(values) for task, values in labels.items()}))
        for table in tables.values():
            table.read(store, clip)
        for name, modality in config.used.items():
            found = _windows(store, clip, name, modality, pts_s, tables[sources[name]])
            if found.rows is not None:
                before = sum(len(part) for part in strided.setdefault(name, []))
                strided[name].append(found.rows)
                found = Windows(found.ranges + before)
            windows[name].append(found.ranges[frame])
        for task, values in labels.items():
            targets[task].append(values[frame])
        kept.append((np.full(len(frame), number, dtype=np.int64), frame, pts_s[frame]))
    none = np.empty(0, dtype=np.int64)
    return Samples(
        clips=tuple(clips),
        clip=np.concatenate([none, *(number for number, _, _ in kept)]),
        frame=np.concatenate([none, *(frame for _, frame, _ in kept)]),
        pts_s=np.concatenate([np.empty(0), *(pts_s for _, _, pts_s in kept)]),
        targets={task: torch.from_numpy(_joined(parts, _empty_labels(task, aus))) for task, parts in targets.items()},
        aus=aus,
        tables={source: table.tensor() for source, table in tables.items()},
        row_times={source: table.times() for source, table in tables.items()},
        sources=sources,
        windows={
            name: Windows(
                _joined(parts, np.empty((0, 2), dtype=np.int64)),
                np.concatenate([none, *strided[name]]) if name in strided else None,
            )
            for name, parts in windows.items()
        },
        home=home,
        pinned=home.device.type != "cuda" and device is not None and device.type == "cuda",
    )


def label_aus(store: Store, clips: Sequence[str]) -> tuple[int, ...]:
    """The action units that ``labels/au`` of the clips holds, from the recipe of the labels; else the twelve.

    Raises:
        StoreError: two clips hold different ones.
    """
    found: dict[tuple[int, ...], str] = {}
    for clip in clips:
        record = store.record(clip, LABELS)
        found.setdefault(AUS if record is None else record.aus, clip)
    if len(found) > 1:
        (one, first), (other, second) = [*found.items()][:2]
        raise StoreError(f"clips {first} and {second} are labelled for different AUs: {list(one)} and {list(other)}")
    return next(iter(found), AUS)


def read_labels(
    store: Store, clip: str, config: FusionConfig, num_frames: int, aus: tuple[int, ...], *, labelled: bool = True
) -> dict[str, NDArray[Any]]:
    """Task -> labels of every frame, [T] or [T, width]; not annotated where the clip lacks them.

    With ``data.drop_partial_frames`` a frame with any -1 has no AU labels at all.

    Raises:
        StoreError: they do not fit the clip's frames or the AUs.
    """
    found: dict[str, NDArray[Any]] = {}
    for task in config.tasks:
        empty = _empty_labels(task, aus)
        values = np.full((num_frames, *empty.shape[1:]), NOT_ANNOTATED[task], dtype=empty.dtype)
        if labelled and store.has(clip, LABELS, task):
            stored = store.read(clip, LABELS, task).values
            if stored.shape != values.shape:
                width = {"au": f", {len(aus)} AUs", "intensity": f", {len(aus)} AUs", "va": ", 2"}.get(task, "")
                expected = f"{num_frames} frames{width}"
                raise StoreError(f"clip {clip}: labels/{task} is {stored.shape}, expected [{expected}]")
            values = stored.astype(empty.dtype)
            if task == "au" and config.data.drop_partial_frames:
                values[(values < 0).any(axis=1)] = NOT_ANNOTATED["au"]
        found[task] = values
    return found


def _empty_labels(task: str, aus: tuple[int, ...]) -> NDArray[Any]:
    """Labels of no frame, in the shape and type of a task."""
    if task == "expr":
        return np.empty(0, dtype=np.int8)
    if task == "va":
        return np.empty((0, 2), dtype=np.float32)
    return np.empty((0, len(aus)), dtype=np.int8)


def _sources(config: FusionConfig) -> dict[str, ArrayName]:
    return {name: (modality.instance, modality.array) for name, modality in config.used.items()}


class _Table:
    """The valid rows of one array, clip after clip, and where the rows of the clip read last are in it."""

    def __init__(self, source: ArrayName) -> None:
        self.instance, self.array = source
        self.size = 0
        self.before: Ints = np.zeros(1, dtype=np.int64)
        """[rows + 1]: table rows before each stored row of the last clip, and before its end; invalid rows add none."""
        self._rows = 0
        self._width: int | None = None
        self._dtype: np.dtype[Any] = np.dtype(np.float32)
        self._table: Tensor = torch.empty(0, 0)
        self._times: list[NDArray[np.float64] | None] = []

    # ---- what it will hold -------------------------------------------------------------------------------------

    def measure(self, store: Store, clip: str) -> None:
        """Count a clip's rows, from the metadata alone.

        Raises:
            ConfigError: no such array, or one that holds no floating-point numbers.
            StoreError: its rows have another size than those of the clips before.
        """
        if self._lacking(store, clip):
            return
        if not store.has(clip, self.instance, self.array):
            record = store.record(clip, self.instance)
            provided = record.provenance.get("provided") if record else None
            hint = suggestion(self.array, store.array_names(clip, self.instance))
            if provided:
                hint = f"the clip was given {provided}, which come without it; {hint}"
            raise ConfigError(f"clip {clip}: instance {self.instance} has no array {self.array!r}; {hint}")
        shape, dtype = store.layout(clip, self.instance, self.array)
        if dtype.kind != "f":
            raise ConfigError(f"{self.instance}/{self.array} holds {dtype}; a modality needs floating-point numbers")
        width = int(np.prod(shape[1:]))
        if self._width not in {None, width}:
            raise StoreError(
                f"clip {clip}: {self.instance}/{self.array} has {width} values per row, "
                f"the clips before it have {self._width}"
            )
        self._width, self._dtype = width, np.promote_types(dtype, self._dtype) if self._rows else dtype
        self._rows += shape[0]

    @property
    def num_bytes(self) -> int:
        """What the table takes if every row is valid."""
        return self._rows * (self._width or 0) * self._dtype.itemsize

    def allocate(self, home: Home) -> None:
        """Room for every row; pages that invalid rows leave untouched cost no memory."""
        self._table = home.allocate(self._rows, self._width or 0, self._dtype)

    # ---- reading -----------------------------------------------------------------------------------------------

    def read(self, store: Store, clip: str) -> None:
        """Append a clip's valid rows; an ``empty`` instance without arrays has none."""
        if self._lacking(store, clip):
            self.before = np.full(1, self.size)
            return
        stored = store.read(clip, self.instance, self.array)
        flat = stored.values.reshape(len(stored.values), -1)  # [rows, D]
        kept = np.ones(len(flat), dtype=np.bool_) if stored.valid is None else stored.valid
        self.before = self.size + np.concatenate([[0], np.cumsum(kept)])
        start, self.size = self.size, int(self.before[-1])
        if kept.any():
            self._table[start : self.size].copy_(torch.from_numpy(flat if kept.all() else flat[kept]))
        times_s = stored.times_s
        self._times.append(None if times_s is None else times_s[kept])

    def _lacking(self, store: Store, clip: str) -> bool:
        record = store.record(clip, self.instance)
        return (
            record is not None and record.state == "empty" and not store.has(clip, self.instance, self.array)
        )  # fmt: skip

    @property
    def rows(self) -> int:
        """Stored rows of the last clip; 0 if the array does not exist."""
        return len(self.before) - 1

    def tensor(self) -> Tensor:
        """All rows in one tensor."""
        return self._table[: self.size]

    def times(self) -> NDArray[np.float64] | None:
        """[R] seconds; None if the rows of some clip have no time."""
        known = [times for times in self._times if times is not None]
        if len(known) < len(self._times):
            return None
        return np.concatenate([np.empty(0), *known])


def _windows(
    store: Store,
    clip: str,
    name: str,
    modality: AnyModality,
    pts_s: NDArray[np.float64],
    table: _Table,
) -> Windows:
    """The table rows of each frame of ``clip``."""
    num_frames = len(pts_s)
    if table.rows == 0:
        none = np.full((num_frames, 2), table.size, dtype=np.int64)
        return Windows(none * 0, np.empty(0, dtype=np.int64)) if _leaves_out(modality) else Windows(none)
    if isinstance(modality, StepsModality):
        if not store.has(clip, modality.instance, "centre_s"):
            raise ConfigError(
                f"modality {name}: {modality.instance} has no `centre_s` and so no steps; should its kind be frame?"
            )
        centre_s = store.read(clip, modality.instance, "centre_s").values  # [S]
        ranges = centred_windows(centre_s, pts_s, modality.before_s, modality.after_s)
        expected, what = len(centre_s), "step"
    elif isinstance(modality, TokensModality):
        if not store.has(clip, modality.instance, "range"):
            raise ConfigError(
                f"modality {name}: {modality.instance} has no `range` and so no tokens; should its kind be frame?"
            )
        ranges = store.read(clip, modality.instance, "range").values.astype(np.int64)  # [T, 2]
        expected, what = table.rows, "token"
        outside = ranges.size and (ranges.min() < 0 or ranges.max() > table.rows)
        if len(ranges) != num_frames or outside or (ranges[:, 1] < ranges[:, 0]).any():
            raise StoreError(
                f"clip {clip}: {modality.instance}/range does not fit {table.rows} tokens and {num_frames} frames"
            )
    else:
        before, after = (modality.before, modality.after) if isinstance(modality, ContextModality) else (0, 0)
        ranges = neighbours(num_frames, before, after)
        expected, what = num_frames, "frame"
    if table.rows != expected:
        raise ConfigError(
            f"modality {name}, kind {modality.kind}: {modality.instance}/{modality.array} of clip {clip} has "
            f"{table.rows} rows, expected {expected}, one per {what}; is another kind meant?"
        )
    if isinstance(modality, ContextModality) and _leaves_out(modality):
        frames, there = _chosen_frames(modality, pts_s)
        valid = np.diff(table.before) > 0  # [T]
        there &= valid[frames]
        stops = np.cumsum(there.sum(axis=1))
        starts = np.concatenate([[0], stops[:-1]])
        return Windows(np.stack([starts, stops], axis=1), table.before[frames[there]])
    return Windows(table.before[ranges])


def _leaves_out(modality: AnyModality) -> bool:
    """Whether windows leave rows out, so that they are no ranges of the table."""
    return isinstance(modality, ContextModality) and (modality.frames is not None or modality.stride > 1)


def _chosen_frames(modality: ContextModality, pts_s: NDArray[np.float64]) -> tuple[Ints, NDArray[np.bool_]]:
    """[T, n] frame numbers of each frame's window, and which of them exist."""
    if modality.frames is not None and modality.span_s is not None:
        return spread(pts_s, modality.frames, modality.span_s)
    offsets = np.arange(-modality.before * modality.stride, modality.after * modality.stride + 1, modality.stride)
    frames = np.arange(len(pts_s))[:, None] + offsets
    there = (frames >= 0) & (frames < len(pts_s))
    return np.where(there, frames, 0), there


def _joined(parts: list[NDArray[Any]], empty: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([empty, *parts])
