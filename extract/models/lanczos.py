"""Lanczos resampling as two matrix products, equal to Pillow's 8-bit results to the last bit, on any device.

Pillow rounds the weights to 22 bits and the picture to whole levels after each axis. In float64 every product and sum
of such numbers is exact, so the order in which a device adds them cannot matter.
"""

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from extract.models.banded import Banded

LOBES = 3.0
WEIGHT_BITS = 22


@functools.cache
def weights(size: int, into: int) -> NDArray[np.float64]:
    """[into, size]: row i holds the shares of the input pixels in output pixel i, in units of 2**-22.

    Reducing widens the kernel (antialiasing); beyond the edge nothing is counted and the rest weighs more.
    """
    scale = size / into
    wide = max(scale, 1.0)
    centre = (np.arange(into) + 0.5) * scale
    first = np.maximum((centre - LOBES * wide + 0.5).astype(np.int64), 0)
    stop = np.minimum((centre + LOBES * wide + 0.5).astype(np.int64), size)
    pixel = np.arange(size)
    at = (pixel - centre[:, None] + 0.5) / wide
    share = np.where((at >= -LOBES) & (at < LOBES), np.sinc(at) * np.sinc(at / LOBES), 0.0)
    share *= (pixel >= first[:, None]) & (pixel < stop[:, None])
    share /= share.sum(axis=1, keepdims=True)
    in_units: NDArray[np.float64] = np.trunc(share * (1 << WEIGHT_BITS) + np.copysign(0.5, share))
    return in_units


@functools.cache
def _banded(size: int, into: int, device: torch.device) -> Banded:
    return Banded.of(weights(size, into), torch.empty(0, dtype=torch.float64, device=device))


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """uint8 [..., C, H, W] -> uint8 [..., C, height, width], as ``PIL.Image.resize(..., LANCZOS)``."""
    if images.dtype != torch.uint8:
        raise TypeError(f"pictures are {images.dtype}, expected uint8")
    planes = images.double().reshape(-1, *images.shape[-2:])
    if planes.shape[-1] != width:
        planes = _rounded(_banded(planes.shape[-1], width, planes.device).across(planes))
    if planes.shape[-2] != height:
        planes = _rounded(_banded(planes.shape[-2], height, planes.device).down(planes))
    return planes.to(torch.uint8).reshape(*images.shape[:-2], height, width)


def _rounded(sums: Tensor) -> Tensor:
    half = 1 << (WEIGHT_BITS - 1)
    return sums.add_(half).div_(1 << WEIGHT_BITS).floor_().clamp_(0, 255)
