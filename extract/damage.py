"""What is wrong with stored arrays: blocks that fail their checksum or are gone, metadata that we did not write."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np

from extract.arrays import FRAME_AXIS, Array, Arrays, chunk_name, is_laid_out_as_ours
from extract.records import Record
from extract.stage import Output


class Damage(NamedTuple):
    """A block whose bytes are not what was written, or that is gone."""

    clip: str
    instance: str
    array: str
    block: int
    """-1: the whole array."""
    message: str

    def __str__(self) -> str:
        block = f", block {self.block}" if self.block >= 0 else ""
        where = f"clip {self.clip}, {self.instance}/{self.array}{block}"
        return f"{where}: {self.message}; `extract verify --repair` recomputes damaged blocks"


@dataclass(frozen=True)
class InstanceCheck:
    """Looks for damage in one instance of one clip."""

    arrays: Arrays
    clip: str
    instance: str

    def everything(self, record: Record) -> list[Damage]:
        """Every block that fails its checksum and, of a finished instance, every block or array that is gone.

        Reads all its bytes.
        """
        found = []
        for array in self.arrays.names(self.clip, self.instance):
            found += self.array(array, record, contents=True)
        return found + self._gone(record)

    def of_metadata(self, record: Record) -> list[Damage]:
        """Arrays whose metadata cannot be read and, of a finished instance, arrays that are gone."""
        layouts = self.arrays.layouts(self.clip, self.instance)
        unreadable = [array for array in self.arrays.names(self.clip, self.instance) if array not in layouts]
        return [self._whole(array, "damaged metadata") for array in unreadable] + self._gone(record)

    def array(self, array: str, record: Record, *, contents: bool) -> list[Damage]:
        """Damage to one array. ``contents`` reads its blocks; else only metadata and the presence of files count."""
        try:
            opened = self.arrays.open(self.clip, self.instance, array)
        except (ValueError, OSError) as error:
            return [self._whole(array, f"damaged metadata ({error})")]
        foreign = record.finished and opened.attrs.get("fingerprint") != record.fingerprint
        if foreign or not is_laid_out_as_ours(opened):
            return [self._whole(array, "its metadata is not what was written")]
        rows, block_rows = opened.shape[0], opened.chunks[0]
        if record.finished and (message := self._wrong_rows(array, record, rows)):
            return [self._whole(array, message)]
        present = set(self.arrays.files.names(f"{self.clip}/{self.instance}/{array}"))
        found = []
        for block in range(math.ceil(rows / block_rows)):
            if chunk_name(block, opened.ndim) not in present:
                if record.finished:
                    found.append(Damage(self.clip, self.instance, array, block, "its file is gone"))
            elif contents and (message := _unreadable(opened, block)):
                found.append(Damage(self.clip, self.instance, array, block, message))
        return found

    def unlike(self, outputs: Iterable[Output], *, whole: bool) -> list[Damage]:
        """Arrays that are not as their stage declares them: a chunk's checksum cannot show that.

        Args:
            whole: each array is one block, which its rows fill.
        """
        found = []
        for output in outputs:
            try:
                opened = self.arrays.open(self.clip, self.instance, output.name)
            except FileNotFoundError:
                found.append(self._whole(output.name, "it is gone"))
                continue
            except (ValueError, OSError):  # ``everything`` reports it
                continue
            sizes, rows = cast(tuple[int, ...], output.sizes), opened.shape[0]
            if opened.shape[1:] != sizes or (output.dtype != "str" and opened.dtype != np.dtype(output.dtype)):
                message = f"rows of {opened.dtype} {opened.shape[1:]}, its stage gives {output.dtype} {sizes}"
                found.append(self._whole(output.name, message))
            elif whole and opened.chunks[0] != max(rows, 1):
                found.append(self._whole(output.name, f"{rows} rows, its block holds {opened.chunks[0]}"))
        return found

    def _wrong_rows(self, array: str, record: Record, rows: int) -> str | None:
        """What is wrong with the number of rows of a finished instance's array."""
        recorded = record.provenance.get("rows")
        if isinstance(recorded, Mapping) and array in recorded:
            return None if rows == recorded[array] else f"{rows} rows, the record says {recorded[array]}"
        # Older records hold the rows of the first array alone. Arrays on one axis are equally long, and the first
        # array lies on one of the axes.
        layouts = self.arrays.layouts(self.clip, self.instance)
        axis = layouts[array].clock if array in layouts else ""
        peers = {layout.rows for layout in layouts.values() if layout.clock == axis}
        if len(peers) > 1 and rows != (record.rows if record.rows in peers else max(peers)):
            return f"{rows} rows, others on its axis have {max(peers)}"
        one_axis = len({layout.clock for layout in layouts.values()}) == 1
        if (one_axis or axis == FRAME_AXIS) and rows != record.rows and record.rows not in peers:
            return f"{rows} rows, the record says {record.rows}"
        return None

    def _gone(self, record: Record) -> list[Damage]:
        recorded = record.provenance.get("rows")
        if not record.finished or not isinstance(recorded, Mapping):
            return []
        held = self.arrays.names(self.clip, self.instance)
        return [self._whole(array, "it is gone") for array in recorded if array not in held]

    def _whole(self, array: str, message: str) -> Damage:
        return Damage(self.clip, self.instance, array, -1, message)


def _unreadable(opened: Array, block: int) -> str | None:
    """Why a block cannot be read; None if its bytes are what was written."""
    block_rows = opened.chunks[0]
    try:
        opened[block * block_rows : (block + 1) * block_rows]
    except (ValueError, RuntimeError, OSError) as error:
        return str(error).splitlines()[0]
    return None
