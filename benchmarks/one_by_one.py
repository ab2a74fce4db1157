"""Alignment and crops in the plain way, one picture at a time with torch: what the batched ways are held against.

Blur and median in float32, as their textbook says; every picture's numbers are brought to its device by themselves.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from extract.models import lanczos
from extract.models.banded import Banded
from extract.models.ffhq.geometry import Padding, Preparation, fading

FLOOR_SLACK = 1e-3
TRUNCATE = 4.0


def aligned(image: Tensor, preparation: Preparation, output_size: int, transform_size: int) -> Tensor:
    """uint8 [H, W, 3] -> uint8 [output_size, output_size, 3]."""
    planes = image.permute(2, 0, 1)
    if preparation.shrunk_wh is not None:
        width, height = preparation.shrunk_wh
        planes = lanczos.resize(planes, height, width)
    left, top, right, bottom = preparation.crop
    source = planes[:, top:bottom, left:right].float()
    if preparation.padding is not None:
        source = _padded(source, preparation.padding)
    sampled = _transformed(source, preparation.quad, transform_size)
    if output_size < transform_size:
        sampled = lanczos.resize(sampled, output_size, output_size)
    return sampled.permute(1, 2, 0).contiguous()


def _padded(planes: Tensor, pad: Padding) -> Tensor:
    """[3, H, W]: mirrored, blurred outwards, faded into the median, whole levels again."""
    rows = np.pad(np.arange(planes.shape[1]), (pad.top, pad.bottom), "reflect")
    columns = np.pad(np.arange(planes.shape[2]), (pad.left, pad.right), "reflect")
    planes = planes[:, torch.from_numpy(rows).to(planes.device)][:, :, torch.from_numpy(columns).to(planes.device)]
    height, width = planes.shape[1:]
    mask = torch.from_numpy(fading(width, height, pad)).to(planes)
    down, across = (Banded.of(_blur(size, pad.sigma_px), planes) for size in (height, width))
    planes = planes + (across.across(down.down(planes)) - planes) * (mask * 3 + 1).clamp(0, 1)
    values = planes.flatten(1)
    lower, upper = (values.kthvalue(k, dim=1).values for k in ((values.shape[1] + 1) // 2, values.shape[1] // 2 + 1))
    planes = planes + ((lower + upper)[:, None, None] / 2 - planes) * mask.clamp(0, 1)
    return planes.round().clamp(0, 255)


def _blur(size: int, sigma: float) -> NDArray[np.float64]:
    """[size, size]: a Gaussian blur of a line that is continued by mirroring, the edge pixel repeated."""
    radius = int(TRUNCATE * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    source = np.pad(np.arange(size), radius, "symmetric")
    matrix = np.zeros((size, size))
    taps = np.lib.stride_tricks.sliding_window_view(source, len(kernel))  # [size, taps]
    np.add.at(matrix, (np.arange(size)[:, None], taps), kernel / kernel.sum())
    return matrix


def _transformed(planes: Tensor, quad: NDArray[np.float64], size: int) -> Tensor:
    """[3, H, W] -> uint8 [3, size, size]: bilinear inside the square, cut to whole levels."""
    height, width = planes.shape[1:]
    north_west, south_west, _, north_east = (quad + 0.5) / (width, height) * 2 - 1
    share = (np.arange(size) + 0.5) / size
    across = torch.from_numpy(north_west + share[:, None] * (north_east - north_west)).to(planes)  # [size, xy]
    down = torch.from_numpy(share[:, None] * (south_west - north_west)).to(planes)
    grid = across[None, :] + down[:, None]  # [size, size, xy]
    sampled = functional.grid_sample(planes[None], grid[None], "bilinear", "border", align_corners=False)[0]
    return sampled.add_(FLOOR_SLACK).to(torch.uint8)


def cropped(image: Tensor, at: Tensor) -> Tensor:
    """Bilinear colours of ``image`` (uint8 [H, W, 3]) at points [N, 2] (float64), black outside: uint8 [N, 3]."""
    height, width = image.shape[:2]
    corner = at.floor()
    right, down = (at - corner).float().unbind(dim=-1)
    x0, y0 = corner.clamp(-2, max(height, width) + 1).long().unbind(dim=-1)
    colours = image.reshape(-1, 3)
    total = torch.zeros((len(at), 3), device=image.device)
    for dx, dy, share in (
        (0, 0, (1 - right) * (1 - down)),
        (1, 0, right * (1 - down)),
        (0, 1, (1 - right) * down),
        (1, 1, right * down),
    ):
        x, y = x0 + dx, y0 + dy
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        index = (y * width + x).where(inside, 0)
        total += colours[index] * (share * inside)[:, None]
    return total.round().to(torch.uint8)
