"""The alignment on the device that holds the pictures, B at once: gathered, padded and blurred, sampled, reduced.

What shares a batch cannot change a bit of a row. Blur and reduction add whole numbers that float64 holds exactly, in
any order; the median is a selection; everything else is done value by value, in a row's own canvas. The device is
never waited for: where each row's pixels lie is planned on the CPU, and goes up in a few small arrays.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from extract.models import lanczos
from extract.models.ffhq.blur import blurred, kernels, radius_px
from extract.models.ffhq.geometry import Preparations, fading_along
from extract.models.uploads import uploaded

FLOOR_SLACK = 1e-3
"""Added before levels are cut to whole ones: a flat area must not fall by one through float32's rounding."""
SAMPLED_BYTES = 60
"""Per pixel of the transformed picture: where it lies, its colour in float32 and in float64."""
PADDED_BYTES = 160
"""Per pixel of a canvas that is padded: its blur in float64, its mask and median in float32."""


@dataclass(frozen=True)
class Ways:
    """How rows are put together. It changes the speed, and the values as float32 rounds coordinates."""

    canvas_px: int | None
    """Rows lie in squares whose sides are multiples of it, and rows of equal squares go together; ``None``: in canvases
    of just their size, where two rows rarely meet."""
    most_bytes: int
    """Working memory."""


WAYS = {"cpu": Ways(None, 16 << 20), "cuda": Ways(128, 2 << 30)}
"""By type of device. A CPU has no use for many rows at a time, and would blur a canvas's empty rest for nothing."""


def align(
    images: Sequence[Tensor], plan: Preparations, output_size: int, transform_size: int, ways: Ways | None = None
) -> Tensor:
    """B pictures, uint8 [H, W, 3] -> uint8 [B, output_size, output_size, 3] on their device; zeros where not valid."""
    device = images[0].device
    ways = ways or WAYS[device.type]
    pictures = _reduced(images, plan)
    pieces = [torch.zeros((1, output_size, output_size, 3), dtype=torch.uint8, device=device)]
    place, count = np.zeros(len(images), np.int64), 1  # a row that is not valid takes the zeros
    for rows, canvas_wh in groups(plan, transform_size, ways):
        source = _sources(pictures, plan, rows, canvas_wh)
        pieces.append(_sampled(source, plan.quad[rows], output_size, transform_size, ways.most_bytes))
        place[rows] = np.arange(count, count + len(rows))
        count += len(rows)
    return torch.cat(pieces).index_select(0, uploaded(place, device))


def _reduced(images: Sequence[Tensor], plan: Preparations) -> list[Tensor]:
    """The pictures, those of large faces reduced; equal ones together."""
    pictures = list(images)
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i in np.flatnonzero(plan.valid & plan.is_reduced).tolist():
        alike[*plan.picture_wh[i].tolist(), *plan.reduced_wh[i].tolist()].append(i)
    for (_, _, width, height), rows in alike.items():
        planes = torch.stack([images[i] for i in rows]).permute(0, 3, 1, 2)
        for i, picture in zip(rows, lanczos.resize(planes, height, width).permute(0, 2, 3, 1), strict=True):
            pictures[i] = picture
    return pictures


def groups(plan: Preparations, transform_size: int, ways: Ways) -> Iterator[tuple[NDArray[np.int64], tuple[int, int]]]:
    """Rows that are computed together, and the width and height of their canvas."""
    canvas_wh = plan.source_wh
    if ways.canvas_px is not None:
        side = -(-canvas_wh.max(axis=1, keepdims=True) // ways.canvas_px) * ways.canvas_px
        canvas_wh = np.repeat(side, 2, axis=1)
    alike: dict[tuple[int, int, bool], list[int]] = defaultdict(list)
    for i in np.flatnonzero(plan.valid).tolist():
        alike[int(canvas_wh[i, 0]), int(canvas_wh[i, 1]), bool(plan.is_padded[i])].append(i)
    for (width, height, is_padded), rows in alike.items():
        each = transform_size * transform_size * SAMPLED_BYTES + width * height * (PADDED_BYTES if is_padded else 24)
        most = max(1, ways.most_bytes // each)
        for start in range(0, len(rows), most):
            yield np.array(rows[start : start + most]), (width, height)


def _sources(
    pictures: Sequence[Tensor], plan: Preparations, rows: NDArray[np.int64], canvas_wh: tuple[int, int]
) -> Tensor:
    """What squares are cut from: whole levels, float32 [b, 3, H, W], each at the upper left of its canvas."""
    pixels = [pictures[i].reshape(-1, 3) for i in rows.tolist()]
    offset = np.cumsum([0, *(len(one) for one in pixels[:-1])])[:, None]
    flat = torch.cat(pixels)
    radius = int(radius_px(plan.sigma_px[rows]).max())
    column, row = (_taken(plan, rows, axis, size, radius) for axis, size in enumerate(canvas_wh))
    row = offset + row * plan.reduced_wh[rows, :1]
    at = uploaded(row, flat.device)[:, :, None] + uploaded(column, flat.device)[:, None, :]  # [b, H + 2 r, W + 2 r]
    planes = flat.index_select(0, at.flatten()).reshape(*at.shape, 3).permute(0, 3, 1, 2).contiguous().float()
    return _padded(planes, plan, rows, radius) if radius else planes


def _taken(plan: Preparations, rows: NDArray[np.int64], axis: int, size: int, radius: int) -> NDArray[np.int64]:
    """[b, size + 2 radius]: the column (``axis`` 0) or row (1) of the picture that each of a canvas's comes from.

    Around the padded picture lies, ``radius`` wide, what the blur reads there: it mirrors with the edge pixel repeated,
    the padding without.
    """
    first, stop = plan.crop[rows, axis, None], plan.crop[rows, axis + 2, None]
    whole = plan.source_wh[rows, axis, None]
    at = np.minimum(np.arange(-radius, size + radius), whole + radius - 1)  # beyond it the canvas is empty
    at = mirror(at, whole, repeat_edge=True) - plan.pad[rows, axis, None]
    return np.asarray(first + mirror(at, stop - first, repeat_edge=False))


def mirror(at: NDArray[np.int64], size: NDArray[np.int64], *, repeat_edge: bool) -> NDArray[np.int64]:
    """Pixel number, of a line of ``size``, at each place of the line continued by mirroring, as often as it takes."""
    if repeat_edge:  # ... b a | a b c | c b ...
        at = at % (2 * size)
        return np.asarray(np.minimum(at, 2 * size - 1 - at))
    period = np.maximum(2 * size - 2, 1)  # ... c b | a b c | b a ...
    at = at % period
    return np.asarray(np.where(size > 1, np.minimum(at, period - at), 0))


def _padded(planes: Tensor, plan: Preparations, rows: NDArray[np.int64], radius: int) -> Tensor:
    """As ``with_pillow``: mirrored levels [b, 3, H + 2 r, W + 2 r] -> whole levels [b, 3, H, W], float32."""
    device = planes.device
    inner = planes[..., radius:-radius, radius:-radius]
    height, width = inner.shape[2:]
    sizes, pad = plan.source_wh[rows], plan.pad[rows, :, None]
    across = fading_along(sizes[:, :1], pad[:, 0], pad[:, 2], width).astype(np.float32)
    down = fading_along(sizes[:, 1:], pad[:, 1], pad[:, 3], height).astype(np.float32)
    mask = torch.maximum(uploaded(across, device)[:, None, None, :], uploaded(down, device)[:, None, :, None])
    levels = blurred(planes, uploaded(kernels(plan.sigma_px[rows], radius), device))
    levels.sub_(inner).mul_((mask * 3 + 1).clamp_(0, 1)).add_(inner)
    known, count = levels, uploaded(sizes.prod(axis=1), device)[:, None]
    if (sizes != (width, height)).any():  # else no canvas has an empty rest
        right, below = (uploaded(np.arange(n) >= sizes[:, axis, None], device) for axis, n in ((0, width), (1, height)))
        known = levels.masked_fill(right[:, None, None, :] | below[:, None, :, None], torch.nan)
    middle = medians(known.flatten(2), count)[:, :, None, None]
    levels += (middle - levels).mul_(mask.clamp_(0, 1))
    return levels.round_().clamp_(0, 255)


def medians(values: Tensor, count: Tensor) -> Tensor:
    """Of float32 [b, C, n], ``count`` [b, 1] of which are numbers, the rest NaN -> [b, C].

    The mean of the two in the middle where ``count`` is even, as NumPy has it.
    """
    lower = values.nanmedian(dim=2).values
    not_above = (values <= lower[..., None]).sum(dim=2)
    above = torch.where(values > lower[..., None], values, torch.inf).amin(dim=2)
    upper = torch.where(not_above > count // 2, lower, above)
    return (lower + upper) / 2


def _sampled(
    planes: Tensor, quads: NDArray[np.float64], output_size: int, transform_size: int, most_bytes: int
) -> Tensor:
    """[b, 3, H, W] -> uint8 [b, output_size, output_size, 3]: bilinear inside the square, cut to whole levels, reduced.

    Strip by strip, which bounds the memory. The padding leaves no corner of a square outside its
    picture, so there is no outside to colour.
    """
    height, width = planes.shape[2:]
    corners = (quads + 0.5) / (width, height) * 2 - 1  # -1 and 1 are the outer edges of the canvas
    north_west, south_west, north_east = corners[:, 0, None], corners[:, 1, None], corners[:, 3, None]  # [b, 1, xy]
    share = ((np.arange(transform_size) + 0.5) / transform_size)[:, None]
    across = uploaded((north_west + share * (north_east - north_west)).astype(np.float32), planes.device)
    down = uploaded((share * (south_west - north_west)).astype(np.float32), planes.device)  # [b, transform_size, xy]
    is_reduced = output_size < transform_size
    high = max(1, most_bytes // (SAMPLED_BYTES * len(planes) * transform_size))
    strips = []
    for start in range(0, transform_size, high):
        grid = across[:, None, :] + down[:, start : start + high, None]  # [b, high, transform_size, xy]
        levels = functional.grid_sample(planes, grid, "bilinear", "border", align_corners=False)
        levels = levels.add_(FLOOR_SLACK).to(torch.uint8)
        strips.append(lanczos.resize(levels, levels.shape[2], output_size) if is_reduced else levels)
    whole = torch.cat(strips, dim=2)
    if is_reduced:
        whole = lanczos.resize(whole, output_size, output_size)
    return whole.permute(0, 2, 3, 1)
