"""Writing an instance's arrays, block by block or whole."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from extract.arrays import MOST_EXPECTED, Array, Arrays
from extract.errors import CorruptError
from extract.stage import Output


class BlockWriter:
    """Commits blocks of one instance's arrays. They share one block grid."""

    def __init__(self, arrays: Arrays, clip: str, instance: str, opened: Mapping[str, Array], block_rows: int) -> None:
        self.block_rows = block_rows
        self._arrays, self._clip, self._instance = arrays, clip, instance
        self._opened = dict(opened)
        present = [arrays.blocks(clip, instance, name, array.ndim) for name, array in opened.items()]
        self.blocks: set[int] = set.intersection(*present) if present else set()
        """Blocks whose file exists in every array."""

    @classmethod
    def open(
        cls,
        arrays: Arrays,
        clip: str,
        instance: str,
        outputs: Sequence[Output],
        *,
        fingerprint: str,
        rows: int,
        block_rows: int,
    ) -> "BlockWriter":
        """Open an instance's arrays; those that do not exist, or have damaged metadata, are created.

        Args:
            outputs: the kept outputs, all on one clock.
            fingerprint: of new arrays.
            rows: a hint; ``finish`` sets the true number.
            block_rows: grid of new arrays. Existing arrays keep their own.

        Raises:
            CorruptError: the existing arrays have different grids.
        """
        opened: dict[str, Array] = {}
        for output in outputs:
            if not arrays.has(clip, instance, output.name):
                continue
            try:
                opened[output.name] = arrays.open(clip, instance, output.name)
            except ValueError:  # damaged metadata: its blocks cannot be trusted
                arrays.delete(clip, instance, output.name)
        grids = {array.chunks[0] for array in opened.values()}
        if len(grids) > 1:
            raise CorruptError(f"clip {clip}, instance {instance}: arrays on different block grids {sorted(grids)}")
        block_rows = grids.pop() if grids else block_rows
        for output in outputs:
            if output.name not in opened:
                expected = min(rows, MOST_EXPECTED)
                opened[output.name] = arrays.create(
                    clip, instance, output, fingerprint=fingerprint, rows=expected, block_rows=block_rows
                )
        return cls(arrays, clip, instance, opened, block_rows)

    def commit(self, block: int, values: Mapping[str, NDArray[Any]]) -> None:
        """Write one block of every array; each is durable when this returns. Every block but the last is whole."""
        start = block * self.block_rows
        for name in self._opened:
            rows = values[name]
            if self._opened[name].shape[0] < start + len(rows):
                self._set_rows(name, start + self.block_rows)
            self._opened[name][start : start + len(rows)] = rows
        self.blocks.add(block)

    def any_valid(self) -> bool:
        """Whether any row holds values; True for arrays without ``valid``. Reads the store."""
        return "valid" not in self._opened or bool(self.valid().any())

    def valid(self) -> NDArray[np.bool_]:
        """Which rows hold values, for arrays with ``valid``. Reads the store."""
        stored = self._opened["valid"]
        try:
            return np.asarray(stored[...]).astype(np.bool_)
        except ValueError as error:
            raise CorruptError(f"{stored.path}: {error}; run `extract verify --repair`") from None

    def finish(self, rows: int) -> None:
        """Set the number of rows (metadata only) and remove the blocks beyond them. Call it before the record."""
        for name, array in self._opened.items():
            if array.shape[0] != rows:
                self._set_rows(name, rows)
            folder = f"{self._clip}/{self._instance}/{name}"
            for file in self._arrays.files.names(folder):
                if file.startswith("c.") and int(file.split(".")[1]) * self.block_rows >= rows:
                    self._arrays.files.delete(f"{folder}/{file}")

    def _set_rows(self, array: str, rows: int) -> None:
        self._opened[array] = self._arrays.set_rows(self._clip, self._instance, array, rows)


def write_whole(
    arrays: Arrays, clip: str, instance: str, values: Mapping[Output, NDArray[Any]], *, fingerprint: str
) -> None:
    """Write arrays of one block each, in place of those that exist: a clip stage's block is the clip."""
    for output, rows in values.items():
        if arrays.has(clip, instance, output.name):
            arrays.delete(clip, instance, output.name)
        created = arrays.create(
            clip, instance, output, fingerprint=fingerprint, rows=len(rows), block_rows=max(len(rows), 1)
        )
        if len(rows):
            created[...] = rows
