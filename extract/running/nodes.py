"""An instance in a pass: which rows it must compute, and its blocks until they are whole."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from extract.blocks import BlockWriter
from extract.clip_view import Rows
from extract.running.recipes import Prepared
from extract.stage import Stage


@dataclass
class Node:
    """An instance that takes part in a pass."""

    prepared: Prepared
    stage: Stage[Any]
    from_pass: Mapping[str, str]
    """Declared inputs that another node of the pass gives: ``slot.array`` -> ``instance.array``."""
    from_store: Mapping[str, Rows]
    """Declared inputs that the store holds, whole."""
    writer: BlockWriter | None
    """None: no block of it is wanted; it computes for others only."""
    batch: int
    error: Exception | None = None
    """Why it was taken out of the pass; the others continue."""
    _present: frozenset[int] = frozenset()
    _blocks: dict[int, dict[str, NDArray[Any]]] = field(default_factory=dict)
    _next_block: int = 0

    def __post_init__(self) -> None:
        # A snapshot: the decoding thread asks what is needed while the writing lane commits.
        self._present = frozenset(self.writer.blocks) if self.writer else frozenset()

    @property
    def name(self) -> str:
        return self.prepared.instance.name

    @property
    def unit(self) -> int:
        """Micro-batches are cut at multiples of this many rows: none crosses a block or the batch size."""
        most = min(self.batch, self.writer.block_rows) if self.writer else self.batch
        return 1 << (most.bit_length() - 1)

    @property
    def feeds(self) -> list[str]:
        """Nodes of the pass that it reads."""
        return list(dict.fromkeys(given.partition(".")[0] for given in self.from_pass.values()))

    @property
    def has_valid(self) -> bool:
        """Whether it can lack rows."""
        return any(output.name == "valid" for output in self.stage.outputs)

    @property
    def stored_until(self) -> int:
        """Row behind the last one of which the store had a block when the pass began."""
        return (max(self._present) + 1) * self.writer.block_rows if self.writer and self._present else 0

    def missing(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which rows lie in blocks that the store lacked when the pass began."""
        if self.writer is None:
            return np.zeros(len(rows), np.bool_)
        return ~np.isin(rows // self.writer.block_rows, list(self._present))

    def stored_valid(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which rows are valid in every input that comes from the store."""
        valid = np.ones(len(rows), np.bool_)
        for stored in self.from_store.values():
            if stored.valid is not None:
                valid &= stored.valid[rows]
        return valid

    def put(self, rows: NDArray[np.int64], stored: Mapping[str, NDArray[Any]]) -> None:
        """Keep computed rows, as the store holds them, until their block is whole."""
        if self.writer is None:
            return
        for output in self.prepared.instance.kept:
            computed = np.ones(len(rows), np.bool_) if output.name == "valid" else stored[output.name]
            for block in np.unique(rows // self.writer.block_rows).tolist():
                inside = rows // self.writer.block_rows == block
                into = self._block(block)[output.name]
                into[rows[inside] % self.writer.block_rows] = computed[inside]

    def is_due(self, stop: int, *, last: bool) -> bool:
        """Whether ``commit_until`` has anything to do."""
        if self.writer is None or self.error is not None:
            return False
        rows = stop - self._next_block * self.writer.block_rows
        return rows >= self.writer.block_rows or (last and rows > 0)

    def commit_until(self, stop: int, *, last: bool, check: Callable[[], None]) -> bool:
        """Commit the missing blocks that end at or before row ``stop``; at the clip's end also the cut one."""
        written = False
        while self.writer is not None and self.error is None:
            start = self._next_block * self.writer.block_rows
            rows = min(self.writer.block_rows, stop - start)
            if rows <= 0 or (rows < self.writer.block_rows and not last):
                break
            values = self._block(self._next_block)
            if self._next_block not in self._present:
                check()
                self.writer.commit(self._next_block, {name: array[:rows] for name, array in values.items()})
                written = True
            del self._blocks[self._next_block]
            self._next_block += 1
        return written

    def _block(self, block: int) -> dict[str, NDArray[Any]]:
        if block not in self._blocks:
            rows = cast(BlockWriter, self.writer).block_rows
            self._blocks[block] = {
                output.name: np.zeros((rows, *cast(tuple[int, ...], output.sizes)), np.dtype(output.dtype))
                for output in self.prepared.instance.kept
            }
        return self._blocks[block]
