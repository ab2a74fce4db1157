"""The alignment on the device that holds the picture: padding and blur, ``grid_sample``, Lanczos.

Every picture has its own size and padding, so they go one by one: what shares a batch cannot change a value.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from extract.models import lanczos
from extract.models.banded import Banded
from extract.models.ffhq.geometry import Padding, Preparation, fading

TRUNCATE = 4.0
"""Half-width of the Gaussian kernel in deviations, SciPy's default."""
FLOOR_SLACK = 1e-3
"""Added before levels are cut to whole ones: a flat area must not fall by one through float32's rounding."""


def align(image: Tensor, preparation: Preparation, output_size: int, transform_size: int) -> Tensor:
    """uint8 [H, W, 3] -> uint8 [output_size, output_size, 3] on the same device."""
    planes = image.permute(2, 0, 1)
    if preparation.shrunk_wh is not None:
        width, height = preparation.shrunk_wh
        planes = lanczos.resize(planes, height, width)
    left, top, right, bottom = preparation.crop
    source = planes[:, top:bottom, left:right].float()
    if preparation.padding is not None:
        source = _padded(source, preparation.padding)
    sampled = _sample(source, preparation.quad, transform_size)
    if output_size < transform_size:
        sampled = lanczos.resize(sampled, output_size, output_size)
    return sampled.permute(1, 2, 0).contiguous()


def _padded(planes: Tensor, pad: Padding) -> Tensor:
    """As ``with_pillow``: [3, H, W] levels, float32, whole ones again in the end."""
    rows = mirror(planes.shape[1], pad.top, pad.bottom, repeat_edge=False)
    columns = mirror(planes.shape[2], pad.left, pad.right, repeat_edge=False)
    planes = planes[:, torch.from_numpy(rows).to(planes.device)][:, :, torch.from_numpy(columns).to(planes.device)]
    height, width = planes.shape[1:]
    mask = torch.from_numpy(fading(width, height, pad)).to(planes)
    down, across = (Banded.of(blur_matrix(size, pad.sigma_px), planes) for size in (height, width))
    planes = planes + (across.across(down.down(planes)) - planes) * (mask * 3 + 1).clamp(0, 1)
    planes = planes + (medians(planes.flatten(1))[:, None, None] - planes) * mask.clamp(0, 1)
    return planes.round().clamp(0, 255)


def _sample(planes: Tensor, quad: NDArray[np.float64], size: int) -> Tensor:
    """[3, H, W] -> uint8 [3, size, size]: bilinear inside the square, cut to whole levels.

    The padding leaves no corner of the square outside the picture, so there is no outside to colour.
    """
    height, width = planes.shape[1:]
    north_west, south_west, _, north_east = (quad + 0.5) / (width, height) * 2 - 1  # -1 and 1 are the outer edges
    share = (np.arange(size) + 0.5) / size
    across = torch.from_numpy(north_west + share[:, None] * (north_east - north_west)).to(planes)  # [size, xy]
    down = torch.from_numpy(share[:, None] * (south_west - north_west)).to(planes)
    grid = across[None, :] + down[:, None]  # [size, size, xy]
    sampled = functional.grid_sample(planes[None], grid[None], "bilinear", "border", align_corners=False)[0]
    return sampled.add_(FLOOR_SLACK).to(torch.uint8)


def medians(rows: Tensor) -> Tensor:
    """Of each row, [C, n] -> [C]: the mean of the two in the middle where n is even, as NumPy has it."""
    n = rows.shape[1]
    lower, upper = (rows.kthvalue(k, dim=1).values for k in ((n + 1) // 2, n // 2 + 1))
    return (lower + upper) / 2


def mirror(size: int, before: int, after: int, *, repeat_edge: bool) -> NDArray[np.int64]:
    """Pixel numbers of a line of ``size`` continued by mirroring, as often as it takes."""
    at = np.arange(-before, size + after)
    if repeat_edge:  # ... b a | a b c | c b ...
        at = at % (2 * size)
        return np.minimum(at, 2 * size - 1 - at)
    period = max(2 * size - 2, 1)  # ... c b | a b c | b a ...
    at = at % period
    return np.minimum(at, period - at) if size > 1 else at


def blur_matrix(size: int, sigma: float) -> NDArray[np.float64]:
    """[size, size]: a Gaussian blur of a line that is continued by mirroring, the edge pixel repeated."""
    radius = int(TRUNCATE * sigma + 0.5)
    offset = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offset / sigma) ** 2)
    kernel /= kernel.sum()
    source = mirror(size, radius, radius, repeat_edge=True)
    matrix = np.zeros((size, size))
    taps = np.lib.stride_tricks.sliding_window_view(source, len(kernel))  # [size, taps]
    np.add.at(matrix, (np.arange(size)[:, None], taps), kernel)
    return matrix
