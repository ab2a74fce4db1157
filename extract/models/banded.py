"""Products with matrices whose rows hold a short run of values: resampling and blurring along a line."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 24
"""Output pixels computed together: each needs the input pixels around it, not the whole line. 16 and 32 are slower."""


@dataclass(frozen=True)
class Banded:
    """A matrix [outputs, inputs], or one for each of N planes, cut into blocks of rows without their zeros."""

    blocks: tuple[tuple[int, int, Tensor], ...]
    """First and one past the last input pixel, and the shares [1 or N, outputs of the block, those inputs]."""

    @classmethod
    def of(cls, matrix: NDArray[Any], like: Tensor) -> "Banded":
        """``matrix`` on the device and of the type of ``like``, brought there in one piece."""
        whole = torch.from_numpy(matrix).to(like)
        blocks = []
        for start in range(0, len(matrix), BLOCK):
            rows = matrix[start : start + BLOCK]
            used = np.flatnonzero(rows.any(axis=0))
            first, stop = int(used[0]), int(used[-1]) + 1
            blocks.append((first, stop, whole[None, start : start + BLOCK, first:stop]))
        return cls(tuple(blocks))

    @classmethod
    def sliding(cls, kernels: Tensor, outputs: int) -> "Banded":
        """Output pixel i of plane n is the sum of ``kernels[n]`` ([N, taps]) times the inputs from i on."""
        taps = kernels.shape[1]
        wide = torch.nn.functional.pad(kernels, (BLOCK - 1, BLOCK - 1))
        shares = wide.unfold(1, BLOCK + taps - 1, 1).flip(1)  # [N, BLOCK, BLOCK + taps - 1]
        blocks = []
        for start in range(0, outputs, BLOCK):
            rows = min(BLOCK, outputs - start)
            blocks.append((start, start + rows + taps - 1, shares[:, :rows, : rows + taps - 1]))
        return cls(tuple(blocks))

    @property
    def outputs(self) -> int:
        """Pixels of a line that comes out."""
        return sum(shares.shape[1] for _, _, shares in self.blocks)

    def across(self, planes: Tensor) -> Tensor:
        """Along the last axis: [N, H, inputs] -> [N, H, outputs]."""
        found = planes.new_empty((*planes.shape[:2], self.outputs))
        start = 0
        for a, b, shares in self.blocks:
            stop = start + shares.shape[1]
            torch.bmm(planes[..., a:b], shares.mT.expand(len(planes), -1, -1), out=found[..., start:stop])
            start = stop
        return found

    def down(self, planes: Tensor) -> Tensor:
        """Along the last axis but one: [N, inputs, W] -> [N, outputs, W]."""
        found = planes.new_empty((len(planes), self.outputs, planes.shape[2]))
        start = 0
        for a, b, shares in self.blocks:
            stop = start + shares.shape[1]
            torch.bmm(shares.expand(len(planes), -1, -1), planes[:, a:b], out=found[:, start:stop])
            start = stop
        return found
