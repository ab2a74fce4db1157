"""From the store to batches: a split's features in tables, and which of their rows belong to each frame.

Only valid rows enter a table, so the rows of a window stay adjacent, an empty range means that the modality is
missing, and a batch is one gather per modality, where the table lies::

    stored     0 1 2 3 4 5 6          valid    1 1 0 0 1 1 1
    table      0 1 . . 2 3 4          window [1, 5) of the clip = rows [1, 3) of the table

Strided windows are ranges of a list of rows (``Windows.rows``) instead of the table itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from extract.au import AUS
from extract.errors import ConfigError, StoreError
from extract.names import suggestion
from extract.store import Store
from extract.timeline import centred_windows, neighbours, spread
from fusion.config import AnyModality, ContextModality, FusionConfig, StepsModality, TokensModality
from fusion.selection import FRAMES, LABELS
from fusion.tables import Home, choose_home

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
    """[L * B, D] in the type of the store; or, with ``place``, [U, D]: distinct rows."""
    lengths: Tensor
    """[B] int64."""
    shape: tuple[int, int]
    """L, B; L is at least 1."""
    place: Tensor | None = None
    """[L * B] int64: which of the distinct rows lies at each place of the rectangle."""
    times: Tensor | None = None
    """[L, B] float32: seconds between each row and its sample's frame, where an encoder reads them; tokens, which have
    no time of their own, are spread evenly over [-1, 1]."""
    projected: bool = False
    """Whether ``values`` have gone through the projection already."""

    def to(self, device: torch.device) -> "Rows":
        """A copy on ``device``."""
        return replace(
            self,
            values=self.values.to(device, non_blocking=True),
            lengths=self.lengths.to(device, non_blocking=True),
            place=None if self.place is None else self.place.to(device, non_blocking=True),
            times=None if self.times is None else self.times.to(device, non_blocking=True),
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
            values = torch.zeros((rows.numel(), max(1, table.shape[1])), dtype=table.dtype, device=table.device)
            return Rows(values, lengths, (len(rows), len(index)), None, found_times)
        place: Tensor | None = None
        wanted = rows.flatten()
        if distinct:
            # Counted on the host: how many distinct rows there are is a shape.
            on_host, _ = self.window_rows(name, index, torch.from_numpy(index), length)
            once, inverse = np.unique(on_host.numpy(), return_inverse=True)
            wanted, place = (sent(torch.from_numpy(each.reshape(-1)), table.device) for each in (once, inverse))
        values = gather(table, wanted, pinned=self.pinned)
        return Rows(values, lengths, (len(rows), len(index)), place, found_times)

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


# ---- tables and windows --------------------------------------------------------------------------------------------


def load_samples(
    store: Store,
    clips: Sequence[str],
    config: FusionConfig,
    *,
    frames: Literal["annotated", "all"] = "annotated",
    labelled: bool = True,
    device: torch.device | None = None,
) -> Samples:
    """Read frames of ``clips``, and every feature that they need; each array is read once, clip after clip.

    Args:
        frames: the annotated ones, or all.
        labelled: False reads no labels: none is annotated, so ``frames`` must be ``all``.
        device: of the network; decides where ``training.tables: auto`` puts the tables. None: the CPU.

    Raises:
        ConfigError: a modality names an array that does not exist or that has another clock.
        StoreError: arrays of one clip, or of different clips, do not fit together.
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
    aus = label_aus(store, clips) if labelled else AUS
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
        listed = (record.recipe.get("config") or {}).get("aus") if record is not None else None
        found.setdefault(tuple(listed) if listed else AUS, clip)
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
