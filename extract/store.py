"""The feature store: the only module that knows Zarr.

::

    store.zarr/zarr.json                    attributes {format, schema}
      config.json                           the config of the last run, for later commands
      <clip>/zarr.json                      attributes subject, source_video, split
      <clip>/<instance>/zarr.json           attributes: the record (state, recipe, source, fingerprint ...)
      <clip>/<instance>/<array>/zarr.json   attributes: the fingerprint its blocks were made under
      <clip>/<instance>/<array>/c.7.0       one block = one chunk = one file

A block exists if and only if its file does, so blocks of zeros are written like any other. Records are read and
written as the JSON files that they are: ``status`` over thousands of them needs no array library.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, cast

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from extract import names
from extract.config import SECTIONS, Remembered
from extract.errors import ConfigError, CorruptError, StoreError, UnfinishedError, UsageError
from extract.files import LocalFiles
from extract.stage import Output

CONFIG = "config.json"
"""Beside the root's metadata: the config of the last run."""

FORMAT = "au-fusion"
SCHEMA = 1
BLOCK_BYTES = 8_000_000
"""Target size of the widest array's blocks."""
SMALLEST_BLOCK, LARGEST_BLOCK = 256, 4096
MOST_EXPECTED = 1 << 20
"""Rows that a new array has at most (9.7 hours at 30 fps), before it grows: a header may declare 2^31 frames."""

_OF_AN_ARRAY = re.compile(r"zarr\.json|c(\.\d+)+")
"""What the folder of an array holds: its metadata and its chunks."""

State = Literal["done", "empty", "failed", "partial"]
STATES: tuple[State, ...] = ("done", "empty", "failed", "partial")
FINISHED: tuple[State, ...] = ("done", "empty")


@dataclass(frozen=True)
class Record:
    """What the store says of one instance of one clip: the attributes of its group."""

    state: State
    recipe: Mapping[str, Any]
    """Stage, version, config, weights, precision and the recipes of the inputs, as readable JSON."""
    source: Mapping[str, Any]
    """Source part -> sha256 of its bytes, or the choice itself."""
    fingerprint: str
    """Hash of recipe and source."""
    rows: int = 0
    """Rows of its first array; 0 while partial."""
    reason: str | None = None
    """A key of errors.REASONS, for ``empty`` and ``failed``."""
    message: str | None = None
    cause: str | None = None
    """Of ``failed``: the instance whose failure this one follows from. Written only where there is one."""
    attempts: int = 0
    """Times that work began since a block was last committed, counted on only where the process died of a crash."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What a user should know and no error is: ``truncated_at_s``, padded label rows, filled audio gaps."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Run, time, device, library versions, weights as named, ``untrained``; sizes of the source files."""

    @property
    def finished(self) -> bool:
        return self.state in FINISHED


_KINDS: dict[str, Any] = {
    "state": str,
    "recipe": Mapping,
    "source": Mapping,
    "fingerprint": str,
    "rows": int,
    "reason": str | None,
    "message": str | None,
    "cause": str | None,
    "attempts": int,
    "notes": Mapping,
    "provenance": Mapping,
}
"""What a record's fields hold: JSON of another shape was not written by us."""

_REMEDY = "`extract verify --repair` makes it anew"


class Rows(NamedTuple):
    """An array and which of its rows hold values."""

    values: NDArray[Any]
    valid: NDArray[np.bool_] | None
    """[T] for instances that can lack rows; None where every row holds values."""


class Damage(NamedTuple):
    """A block whose bytes are not what was written, or that is gone."""

    clip: str
    instance: str
    array: str
    block: int
    message: str


class Store:
    """``<clip>/<instance>/<array>`` below one folder."""

    def __init__(self, path: Path, files: LocalFiles, writable: bool) -> None:
        self.path = path
        self.files = files
        self.writable = writable
        self._arrays = _DurableStore(files) if writable else LocalStore(path, read_only=True)

    @classmethod
    def open(cls, path: str | Path, mode: Literal["r", "a"] = "r") -> "Store":
        """Open a store; ``a`` makes it where there is nothing, or an empty folder.

        Raises:
            StoreError: nothing is there (``r``), the folder is not ours, or its schema is another.
            MachineError: the place cannot be written (``a``).
        """
        if "://" in str(path):
            raise StoreError(f"store {path}: object stores are not read or written by this version; name a folder")
        path = Path(path)
        files = LocalFiles(path)
        if not is_store(path):
            if mode == "r":
                raise StoreError(f"store {path}: nothing is here; `extract run --store {path}` makes one")
            files.create("zarr.json", _group_json({"format": FORMAT, "schema": SCHEMA}))  # another run may be first
        attributes = _attributes(files.read("zarr.json") or b"", f"store {path}")
        found = attributes.get("schema")
        if attributes.get("format") != FORMAT or type(found) is not int:
            if cls.holds_clips_of_ours(path):
                raise CorruptError(f"store {path}: zarr.json is damaged; {_REMEDY}")
            raise StoreError(f"store {path}: a Zarr folder, but not one of ours (format {FORMAT!r} expected)")
        if found != SCHEMA:
            raise StoreError(f"store {path}: schema {found}, this program knows {SCHEMA}; use its own version")
        return cls(path, files, mode == "a")

    @classmethod
    def make_root_anew(cls, path: Path) -> None:
        """Write the root's metadata again, of a store whose clips are there."""
        LocalFiles(path).write("zarr.json", _group_json({"format": FORMAT, "schema": SCHEMA}))

    @classmethod
    def holds_clips_of_ours(cls, path: Path) -> bool:
        """Whether there are records below ``path``, whatever its own metadata says."""
        bare = cls(path, LocalFiles(path), writable=False)
        return any(isinstance(record, Record) for _, _, record in bare.survey())

    # ---- its config ----------------------------------------------------------------------------------------------

    def config(self) -> Remembered | None:
        """The config that the last run into this store had; None in stores made before it was kept.

        It says what the values are meant to be made with; records say what they were made with.

        Raises:
            ConfigError: the file is damaged.
        """
        data = self.files.read(CONFIG)
        if data is None:
            return None
        try:
            found = json.loads(data)
            sections = {name: dict(found[name]) for name in SECTIONS if name in found}
            name = found["name"]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            told = f"store {self.path}: {CONFIG} is damaged; remove it, or name a config with -c"
            raise ConfigError(told) from None
        return Remembered(name if isinstance(name, str) else None, sections)

    def remember(self, config: Remembered) -> None:
        """Keep a run's config for later commands; nothing is written where it is kept already."""
        data = (json.dumps({"name": config.name, **config.sections}, indent=1) + "\n").encode()
        if self.files.read(CONFIG) != data:
            self.files.write(CONFIG, data)

    # ---- clips and records -------------------------------------------------------------------------------------

    def clips(self) -> list[str]:
        """Ids of all clips, sorted."""
        return self._folders("")

    def instances(self, clip: str) -> list[str]:
        """Names of the instances that have a record for ``clip``, sorted."""
        return [name for name in self._folders(clip) if self.files.read(f"{clip}/{name}/zarr.json") is not None]

    def _folders(self, key: str) -> list[str]:
        """Folders directly below ``key`` that can be ours; what is named in no way of ours was put there by others."""
        return [name for name in self.files.folders(key) if names.is_legal(name)]

    def arrays(self, clip: str, instance: str) -> list[str]:
        """Names of the instance's arrays, sorted, finished or not."""
        return [name for name in self._folders(f"{clip}/{instance}") if self.has(clip, instance, name)]

    def attributes(self, clip: str) -> dict[str, Any]:
        """``subject``, ``source_video`` and ``split`` as the manifest of the last run gave them."""
        data = self.files.read(f"{clip}/zarr.json")
        return {} if data is None else _attributes(data, f"clip {clip}")

    def set_attributes(self, clip: str, attributes: Mapping[str, Any]) -> None:
        """Replace a clip's attributes; nothing is written when they are the same."""
        try:
            same = self.attributes(clip) == dict(attributes)
        except CorruptError:
            same = False  # the manifest knows better
        if not same:
            self.files.write(f"{clip}/zarr.json", _group_json(attributes))

    def record(self, clip: str, instance: str) -> Record | None:
        """The record, or None where work never began.

        Raises:
            CorruptError: the record's file is damaged.
        """
        data = self.files.read(f"{clip}/{instance}/zarr.json")
        if data is None:
            return None
        attributes = _attributes(data, f"clip {clip}, instance {instance}")
        if "state" not in attributes:  # a group that Zarr made on the way to an array
            return None
        known = {entry.name for entry in fields(Record)}
        try:
            record = Record(**{key: value for key, value in attributes.items() if key in known})
        except TypeError as error:
            raise CorruptError(f"clip {clip}, instance {instance}: damaged record ({error}); {_REMEDY}") from None
        if told := _amiss(record):
            raise CorruptError(f"clip {clip}, instance {instance}: damaged record ({told}); {_REMEDY}")
        return record

    def survey(self, clips: Iterable[str] | None = None) -> Iterator[tuple[str, str, "Record | CorruptError"]]:
        """(clip, instance, record) of all that was begun; of a damaged record, its error: the others are as good."""
        for clip in self.clips() if clips is None else clips:
            for instance in self._folders(clip):
                try:
                    record = self.record(clip, instance)
                except CorruptError as error:
                    yield clip, instance, error
                else:
                    if record is not None:
                        yield clip, instance, record

    def write_record(self, clip: str, instance: str, record: Record) -> None:
        """Replace the record, whole and durably. ``done`` and ``empty`` come last, after every block."""
        self.files.write(f"{clip}/{instance}/zarr.json", _group_json(_attributes_of(record)))

    def keep_only(self, clip: str, instance: str, fingerprint: str) -> None:
        """Remove an instance's arrays that were made under another fingerprint. Its record must no longer be done."""
        for array in self._folders(f"{clip}/{instance}"):
            data = self.files.read(f"{clip}/{instance}/{array}/zarr.json")
            if data is None:
                continue  # no array
            try:
                kept = _attributes(data, array).get("fingerprint") == fingerprint
            except CorruptError:
                kept = False
            if not kept:
                self._delete_array(clip, instance, array)

    # ---- reading -----------------------------------------------------------------------------------------------

    def has(self, clip: str, instance: str, array: str) -> bool:
        """Whether the array was created."""
        return self.files.path(f"{clip}/{instance}/{array}/zarr.json").is_file()

    def read(self, clip: str, instance: str, array: str) -> Rows:
        """Values and validity of a finished array.

        Raises:
            UnfinishedError: its record is absent, ``partial`` or ``failed``; unwritten blocks are never made up.
            StoreError: a finished instance has no such array (``empty`` without video or sound).
            CorruptError: a block is damaged or gone.
        """
        record = self.record(clip, instance)
        if record is None or not record.finished:
            state = "absent" if record is None else record.state
            why = f" ({record.reason}: {record.message})" if record and record.reason else ""
            raise UnfinishedError(
                f"clip {clip}, {instance}/{array}: {state}{why}; `extract run --clip {clip} --stage {instance}` first"
            )
        if not self.has(clip, instance, array):
            why = f"empty ({record.reason})" if record.state == "empty" else f"{record.state} without that array"
            raise StoreError(f"clip {clip}, {instance}/{array}: nothing to read, {instance} is {why}")
        values = self._read_whole(clip, instance, array, record)
        valid = self._read_whole(clip, instance, "valid", record) if self.has(clip, instance, "valid") else None
        return Rows(values, None if valid is None else valid.astype(np.bool_))

    def _read_whole(self, clip: str, instance: str, array: str, record: Record) -> NDArray[Any]:
        damage = self._damage_of_array(clip, instance, array, record, contents=False)
        if damage:
            raise CorruptError(_mend(damage[0]))
        try:
            return np.asarray(self._open_array(clip, instance, array)[...])
        except (ValueError, OSError) as error:
            raise CorruptError(_mend(Damage(clip, instance, array, -1, str(error)))) from None

    def damage(self, clip: str, instance: str) -> list[Damage]:
        """Every block that fails its checksum and, of a finished instance, that is gone. Reads all its bytes."""
        record = self.record(clip, instance)
        if record is None:
            return []
        found = []
        held = self._folders(f"{clip}/{instance}")
        for array in held:
            found += self._damage_of_array(clip, instance, array, record, contents=True)
        recorded = record.provenance.get("rows")
        if record.finished and isinstance(recorded, Mapping):
            found += [Damage(clip, instance, array, -1, "it is gone") for array in recorded if array not in held]
        return found

    def delete_block(self, damage: Damage) -> None:
        """Remove a damaged block's file; the next run computes it again."""
        if damage.block >= 0:
            opened = self._open_array(damage.clip, damage.instance, damage.array)
            folder = f"{damage.clip}/{damage.instance}/{damage.array}"
            self.files.delete(f"{folder}/{_chunk_name(damage.block, opened.ndim)}")
        else:
            self._delete_array(damage.clip, damage.instance, damage.array)

    def _delete_array(self, clip: str, instance: str, array: str) -> None:
        """Remove an array: a folder of its metadata and chunks and nothing else, the metadata last."""
        try:
            self.files.delete_folder(f"{clip}/{instance}/{array}", _OF_AN_ARRAY, last="zarr.json")
        except UsageError as error:
            raise CorruptError(f"clip {clip}, {instance}/{array}: {error}") from None

    def _damage_of_array(self, clip: str, instance: str, array: str, record: Record, *, contents: bool) -> list[Damage]:
        try:
            opened = self._open_array(clip, instance, array)
        except (ValueError, OSError) as error:
            return [Damage(clip, instance, array, -1, f"damaged metadata ({error})")]
        foreign = record.finished and opened.attrs.get("fingerprint") != record.fingerprint
        if foreign or not self._is_laid_out_as_ours(opened):
            return [Damage(clip, instance, array, -1, "its metadata is not what was written")]
        rows, block_rows = opened.shape[0], opened.chunks[0]
        if record.finished and (told := self._rows_amiss(clip, instance, array, record, opened)):
            return [Damage(clip, instance, array, -1, told)]
        present = set(self.files.names(f"{clip}/{instance}/{array}"))
        found = []
        for block in range(math.ceil(rows / block_rows)):
            if _chunk_name(block, opened.ndim) not in present:
                if record.finished:
                    found.append(Damage(clip, instance, array, block, "its file is gone"))
            elif contents:
                try:
                    opened[block * block_rows : (block + 1) * block_rows]
                except (ValueError, RuntimeError, OSError) as error:
                    found.append(Damage(clip, instance, array, block, str(error).splitlines()[0]))
        return found

    def unlike(self, clip: str, instance: str, outputs: Iterable[Output], *, whole: bool) -> list[Damage]:
        """Arrays that are not as their stage declares them: checksums of chunks say nothing of what is read from them.

        Args:
            whole: each is one block, which its rows fill.
        """
        found = []
        for output in outputs:
            try:
                opened = self._open_array(clip, instance, output.name)
            except FileNotFoundError:
                found.append(Damage(clip, instance, output.name, -1, "it is gone"))
                continue
            except (ValueError, OSError):  # told by ``damage``
                continue
            sizes, rows = cast(tuple[int, ...], output.sizes), opened.shape[0]
            if opened.shape[1:] != sizes or (output.dtype != "str" and opened.dtype != np.dtype(output.dtype)):
                told = f"rows of {opened.dtype} {opened.shape[1:]}, its stage gives {output.dtype} {sizes}"
                found.append(Damage(clip, instance, output.name, -1, told))
            elif whole and opened.chunks[0] != max(rows, 1):
                told = f"{rows} rows, its block holds {opened.chunks[0]}"
                found.append(Damage(clip, instance, output.name, -1, told))
        return found

    def _rows_amiss(
        self, clip: str, instance: str, array: str, record: Record, opened: "zarr.Array[Any]"
    ) -> str | None:
        """What is wrong with the number of rows of a finished instance's array."""
        rows = opened.shape[0]
        recorded = record.provenance.get("rows")
        if isinstance(recorded, Mapping) and array in recorded:
            return None if rows == recorded[array] else f"{rows} rows, the record says {recorded[array]}"
        # Records made before each array's rows were kept: arrays on one axis are equally long, and one axis is the
        # record's.
        lengths = self._lengths(clip, instance)
        axis = lengths.get(array, ("", 0))[0]
        peers = {length for its_axis, length in lengths.values() if its_axis == axis}
        if len(peers) > 1 and rows != (record.rows if record.rows in peers else max(peers)):
            return f"{rows} rows, others on its axis have {max(peers)}"
        one_axis = len({its_axis for its_axis, _ in lengths.values()}) == 1
        if (one_axis or axis == "frame") and rows != record.rows and record.rows not in peers:
            return f"{rows} rows, the record says {record.rows}"
        return None

    def _lengths(self, clip: str, instance: str) -> dict[str, tuple[str, int]]:
        """Array -> (name of its first axis, rows), by the metadata alone."""
        found = {}
        for array in self._folders(f"{clip}/{instance}"):
            try:
                node = json.loads(self.files.read(f"{clip}/{instance}/{array}/zarr.json") or b"")
                found[array] = (str(node["dimension_names"][0]), int(node["shape"][0]))
            except (ValueError, KeyError, TypeError, IndexError, RecursionError):  # told by who opens it
                continue
        return found

    @staticmethod
    def _is_laid_out_as_ours(opened: "zarr.Array[Any]") -> bool:
        """A flipped letter in the metadata may make Zarr look for other files, and read zeros; or read part of each
        row: our chunks hold whole rows. Without its checksum a chunk says nothing."""
        zeros = (0,) * opened.ndim
        named = bool(opened.metadata.encode_chunk_key(zeros) == _chunk_name(0, opened.ndim))
        codecs: Sequence[Any] = getattr(opened.metadata, "codecs", ())
        checked = bool(codecs) and isinstance(codecs[-1], Crc32cCodec)
        return named and checked and opened.chunks[1:] == tuple(max(size, 1) for size in opened.shape[1:])

    # ---- writing -----------------------------------------------------------------------------------------------

    def writer(
        self,
        clip: str,
        instance: str,
        outputs: Sequence[Output],
        *,
        fingerprint: str,
        rows: int,
        block_rows: int,
    ) -> "BlockWriter":
        """Open an instance's arrays for block-wise writing. Existing blocks are kept; ``keep_only`` came before.

        Args:
            outputs: the kept outputs, all on one clock.
            rows: a hint; the arrays grow and are cut to the truth by ``finish``.
            block_rows: grid of new arrays. Arrays that exist keep their own.
        """
        existing: dict[str, zarr.Array[Any]] = {}
        for output in outputs:
            if not self.has(clip, instance, output.name):
                continue
            try:
                existing[output.name] = self._open_array(clip, instance, output.name)
            except ValueError:  # damaged metadata: its blocks cannot be trusted
                self._delete_array(clip, instance, output.name)
        grids = {opened.chunks[0] for opened in existing.values()}
        if len(grids) > 1:
            raise CorruptError(f"clip {clip}, instance {instance}: arrays on different block grids {sorted(grids)}")
        block_rows = grids.pop() if grids else block_rows
        for output in outputs:
            if output.name not in existing:
                expected = min(rows, MOST_EXPECTED)
                existing[output.name] = self._create_array(clip, instance, output, fingerprint, expected, block_rows)
        return BlockWriter(self, clip, instance, existing, block_rows)

    def write_whole(self, clip: str, instance: str, arrays: Mapping[Output, NDArray[Any]], *, fingerprint: str) -> None:
        """Write arrays of one block each: a clip stage's block is the clip."""
        for output, values in arrays.items():
            if self.has(clip, instance, output.name):
                self._delete_array(clip, instance, output.name)
            rows = len(values)
            opened = self._create_array(clip, instance, output, fingerprint, rows, max(rows, 1))
            if rows:
                opened[...] = values

    def _create_array(
        self, clip: str, instance: str, output: Output, fingerprint: str, rows: int, block_rows: int
    ) -> "zarr.Array[Any]":
        if None in output.sizes:
            raise TypeError(f"{instance}.{output.name}: rows of differing sizes cannot be kept")
        sizes = cast(tuple[int, ...], output.sizes)
        compressors = [ZstdCodec(level=3), Crc32cCodec()] if output.compress else [Crc32cCodec()]
        return zarr.create_array(
            self._arrays,
            name=f"{clip}/{instance}/{output.name}",
            shape=(rows, *sizes),
            chunks=(block_rows, *(max(size, 1) for size in sizes)),
            dtype=output.dtype,
            compressors=compressors,
            filters=None,
            fill_value="" if output.dtype == "str" else 0,
            dimension_names=(_axis_name(output), *output.dims),
            chunk_key_encoding={"name": "default", "separator": "."},
            attributes={"fingerprint": fingerprint},
            config={"write_empty_chunks": True},
        )

    def _set_rows(self, clip: str, instance: str, array: str, rows: int) -> "zarr.Array[Any]":
        """Write an array's number of rows into its metadata, and nothing else.

        Zarr's own ``resize`` goes through every block of the old grid that the new one lacks, whether its file exists
        or not: minutes and gigabytes for a grid that a lying header made large.
        """
        key = f"{clip}/{instance}/{array}/zarr.json"
        node = json.loads(self.files.read(key) or b"{}")
        node["shape"][0] = rows
        self.files.write(key, json.dumps(node, indent=2).encode())
        return self._open_array(clip, instance, array)

    def _open_array(self, clip: str, instance: str, array: str) -> "zarr.Array[Any]":
        self.files.path(f"{clip}/{instance}/{array}/zarr.json")  # Zarr reads past our files: no key leads elsewhere
        # Of an array that exists, `config=` is not heeded; the default in force while it is opened is.
        with zarr.config.set({"array.write_empty_chunks": True}):
            mode: Literal["r", "r+"] = "r+" if self.writable else "r"
            try:
                opened = zarr.open_array(self._arrays, path=f"{clip}/{instance}/{array}", mode=mode)
            except (KeyError, TypeError, AttributeError, IndexError, ArithmeticError, RecursionError) as error:
                # Zarr takes its metadata for what Zarr wrote; what breaks in it says where, not what.
                raise ValueError(f"{type(error).__name__}: {error}") from error
        if not isinstance(opened.metadata.attributes, Mapping) or min(opened.chunks, default=0) < 1:
            raise ValueError(f"attributes {opened.metadata.attributes!r:.80}, chunks {opened.chunks}")
        return opened


class BlockWriter:
    """Commits blocks of one instance's arrays."""

    def __init__(
        self, store: Store, clip: str, instance: str, arrays: Mapping[str, "zarr.Array[Any]"], block_rows: int
    ) -> None:
        self.block_rows = block_rows
        self._store, self._clip, self._instance = store, clip, instance
        self._arrays = dict(arrays)
        present = []
        for name, opened in arrays.items():
            files = set(store.files.names(f"{clip}/{instance}/{name}"))
            blocks = {name.split(".")[1] for name in files if name.startswith("c.")}
            present.append({int(block) for block in blocks if _chunk_name(int(block), opened.ndim) in files})
        self.blocks: set[int] = set.intersection(*present) if present else set()
        """Blocks whose file exists in every array."""

    def commit(self, block: int, values: Mapping[str, NDArray[Any]]) -> None:
        """Write one block of every array, each durable when this returns. Blocks before the last are whole."""
        start = block * self.block_rows
        for name in self._arrays:
            rows = values[name]
            if self._arrays[name].shape[0] < start + len(rows):
                self._set_rows(name, start + self.block_rows)
            self._arrays[name][start : start + len(rows)] = rows
        self.blocks.add(block)

    def any_valid(self) -> bool:
        """Whether any row holds values; True for arrays without ``valid``. Reads the store."""
        return "valid" not in self._arrays or bool(self.valid().any())

    def valid(self) -> NDArray[np.bool_]:
        """Which rows hold values, for arrays with ``valid``. Reads the store."""
        stored = self._arrays["valid"]
        try:
            return np.asarray(stored[...]).astype(np.bool_)
        except ValueError as error:
            raise CorruptError(f"{stored.path}: {error}; mend it by `extract verify --repair`") from None

    def finish(self, rows: int) -> None:
        """Set the number of rows (metadata only) and remove blocks that lie behind them. Call before the record."""
        for name, opened in self._arrays.items():
            if opened.shape[0] != rows:
                self._set_rows(name, rows)
            folder = f"{self._clip}/{self._instance}/{name}"
            for file in self._store.files.names(folder):
                if file.startswith("c.") and int(file.split(".")[1]) * self.block_rows >= rows:
                    self._store.files.delete(f"{folder}/{file}")

    def _set_rows(self, array: str, rows: int) -> None:
        self._arrays[array] = self._store._set_rows(self._clip, self._instance, array, rows)


def is_store(path: Path) -> bool:
    """Whether there is a store (True), or nothing yet: no folder, or an empty one (False).

    Raises:
        StoreError: there is something else.
        CorruptError: a store that lost its own metadata.
        MachineError: the place cannot be looked at.
    """
    files = LocalFiles(path)
    if files.read("zarr.json") is not None:
        return True
    if path.exists() and (not path.is_dir() or files.names() or files.folders()):
        if files.read("zarr.json") is not None:  # made by another run just now
            return True
        if Store.holds_clips_of_ours(path):
            raise CorruptError(f"store {path}: its zarr.json is gone; {_REMEDY}")
        raise StoreError(f"store {path}: there is something else here (no zarr.json); name another --store")
    return False


def default_block_rows(outputs: Sequence[Output]) -> int:
    """Rows per block: the power of two from 256 to 4096 that brings the widest array nearest to 8 MB."""
    widest = max(np.dtype(o.dtype).itemsize * math.prod(cast(tuple[int, ...], o.sizes)) for o in outputs)
    rows = 1 << round(math.log2(max(BLOCK_BYTES / widest, 1)))
    return min(max(rows, SMALLEST_BLOCK), LARGEST_BLOCK)


class _DurableStore(LocalStore):
    """Zarr's local store with our writes: its own rename without fsync leaves empty files after a power cut."""

    def __init__(self, files: LocalFiles) -> None:
        super().__init__(files.root)
        self._files = files

    def with_read_only(self, read_only: bool = False) -> "LocalStore":  # type: ignore[override]
        return LocalStore(self.root, read_only=True) if read_only else self

    async def set(self, key: str, value: Buffer) -> None:
        self._files.write(key, value.to_bytes())

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        self._files.create(key, value.to_bytes())

    def set_sync(self, key: str, value: Buffer) -> None:
        self._files.write(key, value.to_bytes())


def _attributes_of(record: Record) -> dict[str, Any]:
    attributes = asdict(record)
    if record.cause is None:  # records without a cause have the bytes that they always had
        del attributes["cause"]
    return attributes


def _chunk_name(block: int, ndim: int) -> str:
    return ".".join(["c", str(block), *["0"] * (ndim - 1)])


def _axis_name(output: Output) -> str:
    clock = output.clock
    return getattr(clock, "axis", None) or {"FrameClock": "frame", "Regular": "step"}[type(clock).__name__]


def _group_json(attributes: Mapping[str, Any]) -> bytes:
    node = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    return (json.dumps(node, indent=1, allow_nan=False) + "\n").encode()


def _attributes(data: bytes, whose: str) -> dict[str, Any]:
    try:
        node = json.loads(data, parse_constant=_no_json)
        attributes = node.get("attributes", {})
    except (ValueError, AttributeError, RecursionError):
        raise CorruptError(f"{whose}: zarr.json is damaged; {_REMEDY}") from None
    if not isinstance(attributes, dict):
        raise CorruptError(f"{whose}: zarr.json is damaged; {_REMEDY}")
    return attributes


def _no_json(constant: str) -> NoReturn:
    """Python reads NaN and Infinity, which JSON does not have; a fingerprint of them cannot be made."""
    raise ValueError(f"{constant} is no JSON")


def _amiss(record: Record) -> str | None:
    """What of a record was not written by us, for the message; None if all of it has the right form."""
    for name, kind in _KINDS.items():
        value = getattr(record, name)
        if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, int) and value < 0):
            return f"{name} {value!r:.80}"
    if record.state not in STATES:
        return f"state {record.state!r}"
    for name, fits in _PROVENANCE.items():
        part = record.provenance.get(name, {})
        if not isinstance(part, Mapping) or not all(map(fits, part.values())):
            return f"provenance.{name} {part!r:.80}"
    return None


def _are_file_stamps(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(file, list) and [type(entry) for entry in file] == [int, int, str] for file in value
    )


def _is_weights_name(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(value.get(key), str) for key in ("spec", "sha256"))


_PROVENANCE: dict[str, Callable[[object], bool]] = {
    "files": _are_file_stamps,
    "weights": _is_weights_name,
    "rows": lambda value: type(value) is int and value >= 0,
}
"""Parts of the provenance that are read again: what each of their entries is."""


def _mend(damage: Damage) -> str:
    where = f"clip {damage.clip}, {damage.instance}/{damage.array}"
    block = f", block {damage.block}" if damage.block >= 0 else ""
    return f"{where}{block}: {damage.message}; `extract verify --repair` computes damaged blocks again"
