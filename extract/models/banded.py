"""Products with matrices whose rows hold a short run of values: resampling and blurring along a line."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 32
"""Output pixels computed together: each needs the input pixels around it, not the whole line."""


@dataclass(frozen=True)
class Banded:
    """A matrix [outputs, inputs], cut into blocks of rows without their zeros."""

    blocks: tuple[tuple[int, int, Tensor], ...]
    """First and one past the last input pixel, and the shares [outputs of the block, those inputs]."""

    @classmethod
    def of(cls, matrix: NDArray[Any], like: Tensor) -> "Banded":
        """``matrix`` on the device and of the type of ``like``, brought there in one piece."""
        whole = torch.from_numpy(matrix).to(like)
        blocks = []
        for start in range(0, len(matrix), BLOCK):
            rows = matrix[start : start + BLOCK]
            used = np.flatnonzero(rows.any(axis=0))
            first, stop = int(used[0]), int(used[-1]) + 1
            blocks.append((first, stop, whole[start : start + BLOCK, first:stop]))
        return cls(tuple(blocks))

    def across(self, planes: Tensor) -> Tensor:
        """Along the last axis: [..., H, inputs] -> [..., H, outputs]."""
        return torch.cat([planes[..., a:b] @ shares.mT for a, b, shares in self.blocks], dim=-1)

    def down(self, planes: Tensor) -> Tensor:
        """Along the last axis but one: [..., inputs, W] -> [..., outputs, W]."""
        return torch.cat([shares @ planes[..., a:b, :] for a, b, shares in self.blocks], dim=-2)
