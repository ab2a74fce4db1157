"""A Gaussian blur of each picture of a batch by its own width, to the same bits in any batch and on any device.

Shares are whole multiples of 2**-28 and pictures of 2**-16 between the two axes: float64 holds every product and sum of
such numbers exactly, so the order in which a device adds them cannot matter. The result is as near to the exact blur
as that of SciPy, which keeps float32 between the axes.
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from extract.models.banded import Banded

TRUNCATE = 4.0
"""Half-width of the Gaussian kernel in deviations, SciPy's default."""
SHARE_BITS = 28
LEVEL_BITS = 16
"""Kept of a level's fraction between the axes: 8 + 16 + 28 bits are less than float64's 53."""


def radius_px(sigma_px: NDArray[np.float64]) -> NDArray[np.int64]:
    """Pixels on either side that count."""
    return (TRUNCATE * sigma_px + 0.5).astype(np.int64)


def kernels(sigma_px: NDArray[np.float64], radius: int) -> NDArray[np.float64]:
    """[b] -> [b, 2 radius + 1]: shares in units of 2**-SHARE_BITS, which add up to one.

    ``radius``: the largest of the rows; beyond its own a row has zeros.
    """
    offset = np.arange(-radius, radius + 1)
    share = np.exp(-0.5 * (offset / sigma_px[:, None]) ** 2) * (abs(offset) <= radius_px(sigma_px)[:, None])
    share = np.rint(share / share.sum(axis=1, keepdims=True) * (1 << SHARE_BITS))
    share[:, radius] += (1 << SHARE_BITS) - share.sum(axis=1)  # a flat area stays as it is
    return np.asarray(share)


def blurred(planes: Tensor, kernels: Tensor) -> Tensor:
    """Whole levels [b, 3, H + 2 r, W + 2 r] and shares [b, 2 r + 1] -> float32 [b, 3, H, W]."""
    batch, colours, height, width = planes.shape
    margin = kernels.shape[1] - 1
    kernels = kernels.repeat_interleave(colours, dim=0)
    across, down = (Banded.sliding(kernels, size - margin) for size in (width, height))
    levels = across.across(planes.double().flatten(0, 1))
    levels.mul_(2.0 ** (LEVEL_BITS - SHARE_BITS)).round_()
    levels = down.down(levels).mul_(2.0 ** -(LEVEL_BITS + SHARE_BITS))
    return levels.float().reshape(batch, colours, *levels.shape[1:])
