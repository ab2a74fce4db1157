"""The feature store: clips, their instances and arrays below one folder.

::

    store.zarr/zarr.json                    attributes {format, schema}
      config.json                           the config of the last run, for later commands
      <clip>/zarr.json                      attributes subject, source_video, split
      <clip>/<instance>/zarr.json           attributes: the record (records.py)
      <clip>/<instance>/<array>/            metadata and blocks (arrays.py, the only module that knows Zarr)
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from extract import blocks, names
from extract.arrays import Arrays, chunk_name
from extract.blocks import BlockWriter
from extract.clip_view import ClipView, Rows
from extract.config import SECTIONS, Remembered
from extract.damage import Damage, InstanceCheck
from extract.errors import ConfigError, CorruptError, StoreError, run_command
from extract.files import LocalFiles
from extract.names import suggestion
from extract.records import REMEDY, Record, attributes_in, group_json
from extract.stage import Output

CONFIG = "config.json"
"""Beside the root's metadata: the config of the last run."""

FORMAT = "au-fusion"
SCHEMA = 1


class Store:
    """``<clip>/<instance>/<array>`` below one folder."""

    def __init__(self, path: Path, files: LocalFiles, writable: bool) -> None:
        self.path = path
        self.files = files
        self.writable = writable
        self.arrays = Arrays(files, writable=writable)

    @classmethod
    def open(cls, path: str | Path, mode: Literal["r", "a"] = "r") -> "Store":
        """Open a store; ``a`` creates it where there is nothing, or an empty folder.

        Raises:
            StoreError: nothing is there (``r``), the folder is not ours, or it has another schema.
            MachineError: the place cannot be written (``a``).
        """
        if "://" in str(path):
            raise StoreError(f"store {path}: object stores are not read or written by this version; name a folder")
        path = Path(path)
        files = LocalFiles(path)
        if not is_store(path):
            if mode == "r":
                raise StoreError(f"store {path}: nothing is here; `{run_command(path)}` makes one")
            files.create("zarr.json", group_json({"format": FORMAT, "schema": SCHEMA}))  # another run may be first
        attributes = attributes_in(files.read("zarr.json") or b"", f"store {path}")
        found = attributes.get("schema")
        if attributes.get("format") != FORMAT or type(found) is not int:
            if cls.holds_clips_of_ours(path):
                raise CorruptError(f"store {path}: zarr.json is damaged", REMEDY)
            raise StoreError(f"store {path}: a Zarr folder, but not one of ours (format {FORMAT!r} expected)")
        if found != SCHEMA:
            raise StoreError(f"store {path}: schema {found}, this program knows {SCHEMA}; use its own version")
        return cls(path, files, mode == "a")

    @classmethod
    def make_root_anew(cls, path: Path) -> None:
        """Write the root's metadata again, for a store whose clips are there."""
        LocalFiles(path).write("zarr.json", group_json({"format": FORMAT, "schema": SCHEMA}))

    @classmethod
    def holds_clips_of_ours(cls, path: Path) -> bool:
        """Whether there are records below ``path``, whatever its own metadata says."""
        bare = cls(path, LocalFiles(path), writable=False)
        return any(isinstance(record, Record) for _, _, record in bare.survey())

    # ---- its config ----------------------------------------------------------------------------------------------

    def config(self) -> Remembered | None:
        """The config of the last run into this store; None in stores made before it was kept.

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
            message = f"store {self.path}: {CONFIG} is damaged; remove it, or name a config with -c"
            raise ConfigError(message) from None
        return Remembered(name if isinstance(name, str) else None, sections)

    def remember(self, config: Remembered) -> None:
        """Keep a run's config for later commands; nothing is written if it is already there."""
        data = (json.dumps({"name": config.name, **config.sections}, indent=1) + "\n").encode()
        if self.files.read(CONFIG) != data:
            self.files.write(CONFIG, data)

    # ---- clips and records -------------------------------------------------------------------------------------

    def clips(self) -> list[str]:
        """Ids of all clips, sorted."""
        return names.only_legal(self.files.folders())

    def clip(self, clip: str) -> "ClipView":
        """One clip, to read from.

        Raises:
            StoreError: the store has no such clip.
            ForeignError: a link or a file has its name.
        """
        if not (names.is_legal(clip) and self.files.path(clip).is_dir()):
            known = self.clips()
            hint = f"; {suggestion(clip, known)}" if known else ""
            raise StoreError(f"store {self.path}: no clip {clip!r} is here{hint}")
        return ClipView(self.arrays, clip)

    def instances(self, clip: str) -> list[str]:
        """Names of the instances that have a record for ``clip``, sorted."""
        return ClipView(self.arrays, clip).instances()

    def array_names(self, clip: str, instance: str) -> list[str]:
        """Names of the instance's arrays, sorted, finished or not."""
        return [name for name in self.arrays.names(clip, instance) if self.has(clip, instance, name)]

    def attributes(self, clip: str) -> dict[str, Any]:
        """``subject``, ``source_video`` and ``split`` as the manifest of the last run gave them."""
        data = self.files.read(f"{clip}/zarr.json")
        return {} if data is None else attributes_in(data, f"clip {clip}")

    def set_attributes(self, clip: str, attributes: Mapping[str, Any]) -> None:
        """Replace a clip's attributes; nothing is written when they are the same."""
        try:
            same = self.attributes(clip) == dict(attributes)
        except CorruptError:
            same = False  # the manifest's are whole
        if not same:
            self.files.write_locked(f"{clip}/zarr.json", group_json(attributes))

    def record(self, clip: str, instance: str) -> Record | None:
        """The record, or None where work never began.

        Raises:
            CorruptError: the record's file is damaged.
        """
        return ClipView(self.arrays, clip).record(instance)

    def survey(self, clips: Iterable[str] | None = None) -> Iterator[tuple[str, str, "Record | CorruptError"]]:
        """(clip, instance, record) of everything begun; a damaged record gives its error, so the others are seen."""
        for clip in self.clips() if clips is None else clips:
            for instance in names.only_legal(self.files.folders(clip)):
                try:
                    record = self.record(clip, instance)
                except CorruptError as error:
                    yield clip, instance, error
                else:
                    if record is not None:
                        yield clip, instance, record

    def write_record(self, clip: str, instance: str, record: Record) -> None:
        """Replace the record, whole and durably. ``done`` and ``empty`` come last, after every block."""
        self.files.write(f"{clip}/{instance}/zarr.json", group_json(record.attributes()))

    # ---- reading -----------------------------------------------------------------------------------------------

    def has(self, clip: str, instance: str, array: str) -> bool:
        """Whether the array was created."""
        return self.arrays.has(clip, instance, array)

    def read(self, clip: str, instance: str, array: str) -> Rows:
        """Values, validity and times of a finished array. Errors as of ``ClipView.read``."""
        return ClipView(self.arrays, clip).read(instance, array)

    def layout(self, clip: str, instance: str, array: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and type of a finished array, without reading its values. Errors as of ``ClipView.read``."""
        return ClipView(self.arrays, clip).layout(instance, array)

    # ---- damage ------------------------------------------------------------------------------------------------

    def damage(self, clip: str, instance: str) -> list[Damage]:
        """Every block that fails its checksum and, of a finished instance, that is gone. Reads all its bytes."""
        record = self.record(clip, instance)
        return [] if record is None else InstanceCheck(self.arrays, clip, instance).everything(record)

    def unlike(self, clip: str, instance: str, outputs: Iterable[Output], *, whole: bool) -> list[Damage]:
        """Arrays that are not as their stage declares them; ``whole``: each is one block, which its rows fill."""
        return InstanceCheck(self.arrays, clip, instance).unlike(outputs, whole=whole)

    def delete_block(self, damage: Damage) -> None:
        """Remove a damaged block's file, or the whole array; the next run computes it again."""
        clip, instance, array, block, _ = damage
        if block >= 0:
            opened = self.arrays.open(clip, instance, array)
            self.files.delete(f"{clip}/{instance}/{array}/{chunk_name(block, opened.ndim)}")
        else:
            self.arrays.delete(clip, instance, array)

    # ---- writing -----------------------------------------------------------------------------------------------

    def keep_only(self, clip: str, instance: str, fingerprint: str) -> None:
        """Remove an instance's arrays that were made under another fingerprint. Its record must no longer be done."""
        for array in self.arrays.names(clip, instance):
            data = self.files.read(f"{clip}/{instance}/{array}/zarr.json")
            if data is None:
                continue  # no array
            try:
                kept = attributes_in(data, array).get("fingerprint") == fingerprint
            except CorruptError:
                kept = False
            if not kept:
                self.arrays.delete(clip, instance, array)

    def writer(
        self,
        clip: str,
        instance: str,
        outputs: Sequence[Output],
        *,
        fingerprint: str,
        rows: int,
        block_rows: int,
    ) -> BlockWriter:
        """Open an instance's arrays for block-wise writing. Existing blocks are kept; ``keep_only`` came before.

        Arguments and errors as of ``BlockWriter.open``.
        """
        return BlockWriter.open(
            self.arrays, clip, instance, outputs, fingerprint=fingerprint, rows=rows, block_rows=block_rows
        )

    def write_whole(self, clip: str, instance: str, arrays: Mapping[Output, NDArray[Any]], *, fingerprint: str) -> None:
        """Write arrays of one block each: a clip stage's block is the clip."""
        blocks.write_whole(self.arrays, clip, instance, arrays, fingerprint=fingerprint)


def is_store(path: Path) -> bool:
    """Whether there is a store (True), or nothing yet: no folder, or an empty one (False).

    Raises:
        StoreError: there is something else.
        CorruptError: a store that lost its own metadata.
        MachineError: the place cannot be read.
    """
    files = LocalFiles(path)
    if files.read("zarr.json") is not None:
        return True
    if path.exists() and (not path.is_dir() or files.names() or files.folders()):
        if files.read("zarr.json") is not None:  # another run has just created it
            return True
        if Store.holds_clips_of_ours(path):
            raise CorruptError(f"store {path}: its zarr.json is gone", REMEDY)
        raise StoreError(f"store {path}: there is something else here (no zarr.json); name another --store")
    return False
