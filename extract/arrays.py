"""Arrays in blocks: the only module that knows Zarr.

::

    <clip>/<instance>/<array>/zarr.json   attributes: the fingerprint its blocks were made under
    <clip>/<instance>/<array>/c.7.0       one block = one chunk = one file

A block exists if and only if its file does, so blocks of zeros are written like any other. Each array is told so by
its own config: Zarr's global one is shared by all threads, and one thread that leaves it would turn it off for another.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from extract import names
from extract.errors import CorruptError, UsageError
from extract.files import LocalFiles
from extract.stage import Output
from extract.timeline import FrameClock

BLOCK_BYTES = 8_000_000
"""Target size of the widest array's blocks."""
SMALLEST_BLOCK, LARGEST_BLOCK = 256, 4096
MOST_EXPECTED = 1 << 20
"""Rows that a new array has at most (9.7 hours at 30 fps), before it grows: a header may declare 2^31 frames."""

_FILES = re.compile(r"zarr\.json|c(\.\d+)+")
"""What the folder of an array holds: its metadata and its chunks."""

FRAME_AXIS = FrameClock.axis
"""Name of the first axis of every array on the frame clock."""

Array: TypeAlias = "zarr.Array[Any]"


class Layout(NamedTuple):
    """An array as its metadata describes it."""

    clock: str
    """Name of the first axis: ``frame``, ``step``, ``word``, ``token`` ..."""
    dims: tuple[str, ...]
    """Names of the axes after the first."""
    rows: int


class Arrays:
    """The arrays below a store's folder.

    Args:
        files: the store's folder.
        writable: whether arrays may be created and written.
    """

    def __init__(self, files: LocalFiles, *, writable: bool) -> None:
        self.files = files
        self._mode: Literal["r", "r+"] = "r+" if writable else "r"
        self._zarr = DurableStore(files) if writable else LocalStore(files.root, read_only=True)

    def names(self, clip: str, instance: str) -> list[str]:
        """Folders of an instance that can be its arrays, sorted."""
        return names.only_legal(self.files.folders(f"{clip}/{instance}"))

    def has(self, clip: str, instance: str, array: str) -> bool:
        """Whether the array was created."""
        return self.files.path(f"{clip}/{instance}/{array}/zarr.json").is_file()

    def layouts(self, clip: str, instance: str) -> dict[str, Layout]:
        """Array -> its layout. An array with damaged metadata is left out: whoever opens it reports it."""
        found = {}
        for array in self.names(clip, instance):
            try:
                node = json.loads(self.files.read(f"{clip}/{instance}/{array}/zarr.json") or b"")
                clock, *dims = map(str, node["dimension_names"])
                found[array] = Layout(clock, tuple(dims), int(node["shape"][0]))
            except (ValueError, KeyError, TypeError, IndexError, RecursionError):
                continue
        return found

    def blocks(self, clip: str, instance: str, array: str, ndim: int) -> set[int]:
        """Blocks of an array whose file exists."""
        files = set(self.files.names(f"{clip}/{instance}/{array}"))
        numbers = {int(name.split(".")[1]) for name in files if name.startswith("c.")}
        return {block for block in numbers if chunk_name(block, ndim) in files}

    def open(self, clip: str, instance: str, array: str) -> Array:
        """Open an array that exists.

        Raises:
            FileNotFoundError: it does not.
            ValueError: its metadata is damaged.
        """
        key = f"{clip}/{instance}/{array}"
        self.files.path(f"{key}/zarr.json")  # Zarr goes past our files: this refuses keys that lead elsewhere
        try:
            opened = zarr.open_array(self._zarr, path=key, mode=self._mode)
        except (KeyError, TypeError, AttributeError, IndexError, ArithmeticError, RecursionError) as error:
            # Zarr assumes that Zarr wrote the metadata; the exception says where its code broke, not what is wrong.
            raise ValueError(f"{type(error).__name__}: {error}") from error
        if not isinstance(opened.metadata.attributes, Mapping) or min(opened.chunks, default=0) < 1:
            raise ValueError(f"attributes {opened.metadata.attributes!r:.80}, chunks {opened.chunks}")
        return cast(Array, opened.with_config({"write_empty_chunks": True}))  # open_array ignores its ``config``

    def create(
        self, clip: str, instance: str, output: Output, *, fingerprint: str, rows: int, block_rows: int
    ) -> Array:
        """Create an array without blocks."""
        if None in output.sizes:
            raise TypeError(f"{instance}.{output.name}: rows of differing sizes cannot be kept")
        sizes = cast(tuple[int, ...], output.sizes)
        compressors = [ZstdCodec(level=3), Crc32cCodec()] if output.compress else [Crc32cCodec()]
        return zarr.create_array(
            self._zarr,
            name=f"{clip}/{instance}/{output.name}",
            shape=(rows, *sizes),
            chunks=(block_rows, *(max(size, 1) for size in sizes)),
            dtype=output.dtype,
            compressors=compressors,
            filters=None,
            fill_value="" if output.dtype == "str" else 0,
            dimension_names=(output.clock.axis, *output.dims),
            chunk_key_encoding={"name": "default", "separator": "."},
            attributes={"fingerprint": fingerprint},
            config={"write_empty_chunks": True},
        )

    def set_rows(self, clip: str, instance: str, array: str, rows: int) -> Array:
        """Write an array's number of rows into its metadata, and nothing else; returns it opened anew.

        Zarr's own ``resize`` visits every block of the old grid that the new one lacks, whether its file exists or
        not: minutes and gigabytes where a lying header made the grid large.
        """
        key = f"{clip}/{instance}/{array}/zarr.json"
        node = json.loads(self.files.read(key) or b"{}")
        node["shape"][0] = rows
        self.files.write(key, json.dumps(node, indent=2).encode())
        return self.open(clip, instance, array)

    def delete(self, clip: str, instance: str, array: str) -> None:
        """Remove an array: a folder with its metadata and chunks and nothing else, the metadata last."""
        try:
            self.files.delete_folder(f"{clip}/{instance}/{array}", _FILES, last="zarr.json")
        except UsageError as error:
            raise CorruptError(f"clip {clip}, {instance}/{array}: {error}") from None


class DurableStore(LocalStore):
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


def chunk_name(block: int, ndim: int) -> str:
    """File name of a block of an array with ``ndim`` axes: ``c.7.0``."""
    return ".".join(["c", str(block), *["0"] * (ndim - 1)])


def is_laid_out_as_ours(opened: Array) -> bool:
    """Whether chunks hold whole rows, are named as ours are and carry a checksum.

    One flipped letter in the metadata can make Zarr look for other files and read zeros, or read part of each row. A
    chunk without its checksum proves nothing.
    """
    zeros = (0,) * opened.ndim
    named = bool(opened.metadata.encode_chunk_key(zeros) == chunk_name(0, opened.ndim))
    codecs: Sequence[Any] = getattr(opened.metadata, "codecs", ())
    checked = bool(codecs) and isinstance(codecs[-1], Crc32cCodec)
    return named and checked and opened.chunks[1:] == tuple(max(size, 1) for size in opened.shape[1:])


def default_block_rows(outputs: Sequence[Output]) -> int:
    """Rows per block: the power of two from 256 to 4096 that brings the widest array nearest to 8 MB."""
    widest = max(np.dtype(o.dtype).itemsize * math.prod(cast(tuple[int, ...], o.sizes)) for o in outputs)
    rows = 1 << round(math.log2(max(BLOCK_BYTES / widest, 1)))
    return min(max(rows, SMALLEST_BLOCK), LARGEST_BLOCK)
