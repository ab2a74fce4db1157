"""One clip of a store, for reading: records, arrays with their times, tables of frames."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from extract import names
from extract.arrays import FRAME_AXIS, Array, Arrays, Layout
from extract.damage import Damage, InstanceCheck
from extract.errors import CorruptError, StoreError, UnfinishedError, UsageError, run_command
from extract.frame_table import TIMES, FrameTable
from extract.names import suggestion
from extract.records import Record, attributes_in
from extract.stage import VALID

CENTRE = "centre_s"
START, END = "start_s", "end_s"
"""Arrays that hold the times of the rows beside them: the middle of a step, the span of a word."""

OF_AUS = frozenset({"au", "intensity"})
"""Arrays of imported labels with a column per action unit."""

BESIDE = frozenset({VALID.name, CENTRE, START, END})
"""Arrays that say something about the rows of the others."""


@dataclass(frozen=True, eq=False)
class Rows:
    """An array, which of its rows hold values, and when they happen. ``values, valid = rows`` works too."""

    values: NDArray[Any]
    valid: NDArray[np.bool_] | None
    """[T] for instances that can lack rows; None where every row holds values."""
    _read_times: Callable[[], NDArray[np.float64] | None] = field(repr=False)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.values, self.valid))

    @cached_property
    def times_s(self) -> NDArray[np.float64] | None:
        """When each row happens, in seconds on the clip's clock. Read from the store at the first use.

        On the frame clock the frames' presentation times [T]; of steps the stored centres [S]; of words start and end
        [W, 2]; None for rows without stored times (tokens).

        Raises:
            StoreError: the frames in the store are not those that the rows were made from.
        """
        return self._read_times()


@dataclass(frozen=True)
class ClipView:
    """One clip of a store, for reading."""

    arrays: Arrays
    id: str

    def instances(self) -> list[str]:
        """Names of the instances that have a record, finished or not, sorted."""
        files = self.arrays.files
        held = names.only_legal(files.folders(self.id))
        return [name for name in held if files.path(f"{self.id}/{name}/zarr.json").is_file()]

    def record(self, instance: str) -> Record | None:
        """What the store says of an instance; None where work never began.

        Raises:
            CorruptError: the record's file is damaged.
        """
        data = self.arrays.files.read(f"{self.id}/{instance}/zarr.json")
        if data is None:
            return None
        owner = f"clip {self.id}, instance {instance}"
        return Record.from_attributes(attributes_in(data, owner), owner)

    def read(self, instance: str, array: str | None = None) -> Rows:
        """Values, validity and times of a finished array.

        Args:
            array: may be left out where the instance has one array besides validity and times.

        Raises:
            UsageError: ``array`` is left out, and there are several; the message names them.
            UnfinishedError: its record is absent, ``partial`` or ``failed``; values of unwritten blocks are never
                invented.
            StoreError: a finished instance has no such array (``empty`` without video or sound).
            CorruptError: a block is damaged or gone.
        """
        array = self._only_array(instance) if array is None else array
        record = self._finished(instance, f"{instance}/{array}")
        if not self.arrays.has(self.id, instance, array):
            raise StoreError(self._nothing_to_read(instance, array, record))
        values = self._read_whole(instance, array, record)
        can_lack_rows = self.arrays.has(self.id, instance, VALID.name)
        valid = self._read_whole(instance, VALID.name, record).astype(np.bool_) if can_lack_rows else None
        return Rows(values, valid, partial(self._times_s, instance, array, values))

    def layout(self, instance: str, array: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and type of a finished array, without reading its values. Errors as of ``read``."""
        record = self._finished(instance, f"{instance}/{array}")
        if not self.arrays.has(self.id, instance, array):
            raise StoreError(self._nothing_to_read(instance, array, record))
        with self._opened(instance, array, record) as opened:
            return tuple(opened.shape), np.dtype(opened.dtype)

    def frame_table(self, *instances: str) -> FrameTable:
        """Every array on the frame clock that the instances hold, as columns beside the frames' times.

        Raises:
            UsageError: no instance is named, one has no array on the frame clock, or two were made from other frames.
            StoreError: as of ``Store.read``.
        """
        if not instances:
            known = ", ".join(self.instances())
            raise UsageError(f"clip {self.id}: frame_table() needs at least one instance, of {known}")
        columns: dict[str, NDArray[Any]] = {}
        dims: dict[str, tuple[str, ...]] = {}
        aus: dict[str, tuple[int, ...]] = {}
        for instance in instances:
            layouts = self._layouts(instance)
            on_frames = [array for array, layout in layouts.items() if layout.clock == FRAME_AXIS]
            if not on_frames:
                raise UsageError(self._other_clock(instance, layouts))
            record = self._finished(instance, instance)
            pts_s = self._pts_s(instance)
            if not np.array_equal(columns.setdefault(TIMES, pts_s), pts_s):
                others = f"{instance} and {instances[0]} were made from different frames"
                raise UsageError(f"clip {self.id}: {others}; make a frame table of each")
            for array in on_frames:
                if array != TIMES:
                    values = self._read_whole(instance, array, record)
                    self._check_length(instance, array, values, pts_s)
                    columns[f"{instance}.{array}"] = values
                    dims[f"{instance}.{array}"] = layouts[array].dims
                    if array in OF_AUS and values.shape[1:] == (len(record.aus),):
                        aus[f"{instance}.{array}"] = record.aus
        return FrameTable(self.id, columns, dims, aus)

    def _times_s(self, instance: str, array: str, values: NDArray[Any]) -> NDArray[np.float64] | None:
        """``Rows.times_s`` of an array."""
        layouts = self._layouts(instance)
        clock = layouts[array].clock
        beside = [name for name, layout in layouts.items() if layout.clock == clock]
        if clock == FRAME_AXIS:
            times_s = self._pts_s(instance)
        elif CENTRE in beside:
            times_s = self.read(instance, CENTRE).values
        elif START in beside and END in beside:
            times_s = np.stack([self.read(instance, name).values for name in (START, END)], axis=1)
        else:
            return None
        self._check_length(instance, array, values, times_s)
        return times_s

    def _pts_s(self, instance: str) -> NDArray[np.float64]:
        """Times of the frames that ``instance`` was made from: [T] seconds."""
        record = self._finished(instance, instance)
        sure: list[str] = []
        possible: list[str] = []
        for name in self.instances():
            frames = self.record(name) if self.arrays.has(self.id, name, TIMES) else None
            if frames is None or not frames.finished:
                continue
            fits = name == instance or record.comes_from(frames)
            if fits:
                sure.append(name)
            elif fits is None:  # arrays from elsewhere, whose recipe names no inputs
                possible.append(name)
        if sure or len(possible) == 1:
            return self.read((sure or possible)[0], TIMES).values
        if possible:
            problem = f"it may have been made from the frames of {' or '.join(possible)}; read {TIMES} of the right one"
        else:
            problem = f"the store does not hold {TIMES} of the frames it was made from; {self._remake(instance)}"
        raise StoreError(f"clip {self.id}, {instance}: {problem}")

    def _check_length(self, instance: str, array: str, values: NDArray[Any], times_s: NDArray[np.float64]) -> None:
        if len(values) != len(times_s):
            problem = f"{len(values)} rows, expected {len(times_s)}, one for each time"
            raise StoreError(f"clip {self.id}, {instance}/{array}: {problem}; {self._remake(instance)}")

    def _layouts(self, instance: str) -> Mapping[str, Layout]:
        """Array -> layout of a finished instance that holds any."""
        record = self._finished(instance, instance)
        layouts = self.arrays.layouts(self.id, instance)
        damage = InstanceCheck(self.arrays, self.id, instance).of_metadata(record)
        if damage:
            raise CorruptError(str(damage[0]))
        if not layouts:
            raise StoreError(self._nothing_to_read(instance, None, record))
        return layouts

    def _other_clock(self, instance: str, layouts: Mapping[str, Layout]) -> str:
        clocks = " and ".join(sorted({layout.clock for layout in layouts.values()}))
        example = next((name for name in layouts if name not in BESIDE), next(iter(layouts)))
        return (
            f"clip {self.id}: {instance} has one row per {clocks}, a frame table one per frame; read its arrays with "
            f"their own times: `rows = clip.read({instance!r}, {example!r})`, then `rows.times_s`"
        )

    def _remake(self, instance: str) -> str:
        command = run_command(self.arrays.files.root, f"--clip {self.id}", f"--stage {instance}", "--overwrite")
        return f"`{command}` makes it again"

    def _only_array(self, instance: str) -> str:
        held = list(self._layouts(instance))
        choice = [name for name in held if name not in BESIDE]
        if len(choice) != 1:
            raise UsageError(f"clip {self.id}: {instance} holds {', '.join(held)}; name one of them")
        return choice[0]

    def _finished(self, instance: str, what: str) -> Record:
        """The record of a finished instance, or UnfinishedError; ``what`` of it is wanted is for the message."""
        record = self.record(instance)
        if record is not None and record.finished:
            return record
        state = self._absent(instance) if record is None else record.state
        why = f" ({record.reason}: {record.message})" if record and record.reason else ""
        command = run_command(self.arrays.files.root, f"--clip {self.id}", f"--stage {instance}")
        raise UnfinishedError(f"clip {self.id}, {what}: {state}{why}; `{command}` first")

    def _absent(self, instance: str) -> str:
        known = self.instances()
        return f"absent ({suggestion(instance, known)})" if known else "absent"

    def _nothing_to_read(self, instance: str, array: str | None, record: Record) -> str:
        without = "that array" if array else "arrays"
        why = f"empty ({record.reason})" if record.state == "empty" else f"{record.state} without {without}"
        what = f"{instance}/{array}" if array else instance
        return f"clip {self.id}, {what}: nothing to read, {instance} is {why}"

    def _read_whole(self, instance: str, array: str, record: Record) -> NDArray[Any]:
        with self._opened(instance, array, record) as opened:
            return np.asarray(opened[...])

    @contextmanager
    def _opened(self, instance: str, array: str, record: Record) -> Iterator[Array]:
        """An array whose metadata and files fit its record; what fails while it is read is damage."""
        damage = InstanceCheck(self.arrays, self.id, instance).array(array, record, contents=False)
        if damage:
            raise CorruptError(str(damage[0]))
        try:
            yield self.arrays.open(self.id, instance, array)
        except (ValueError, OSError) as error:
            raise CorruptError(str(Damage(self.id, instance, array, -1, str(error)))) from None
