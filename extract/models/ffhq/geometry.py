"""Where FFHQ's square lies, and what is done to the picture before it is cut out. All in float64, B faces at once.

Coordinates are those of pixels, x right, y down, an integer being a pixel's centre. The constants are those of the
FFHQ data set (Karras et al. 2019); "left" means the image's left.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Whole = int | NDArray[np.int64]

MIN_SIDE_PX = 8.0
"""Least side of a square that is a face; below it, coincident landmarks included, there is nothing to align."""
FAR_PX = 1 << 40
"""Coordinates beyond it are taken for it: farther than any picture reaches, and sums of them are still exact."""


@dataclass(frozen=True)
class Padding:
    """How far the picture is continued, and how softly."""

    left: int
    top: int
    right: int
    bottom: int
    sigma_px: float
    """Of the Gaussian blur that the padding fades into."""


@dataclass(frozen=True)
class Preparation:
    """What happens to one picture, in this order, before the square is resampled."""

    shrunk_wh: tuple[int, int] | None
    """Reduced to this width and height first; ``None``: not."""
    crop: tuple[int, int, int, int]
    """Left, top, right, bottom (right and bottom beyond the last pixel) of what is kept of the (reduced) picture."""
    padding: Padding | None
    quad: NDArray[np.float64]
    """[4, 2], north-west, south-west, south-east, north-east corner in what is left."""

    @property
    def source_wh(self) -> tuple[int, int]:
        """Width and height of the picture that the square is cut from."""
        left, top, right, bottom = self.crop
        pad = self.padding
        if pad is None:
            return right - left, bottom - top
        return right - left + pad.left + pad.right, bottom - top + pad.top + pad.bottom


@dataclass(frozen=True)
class Preparations:
    """``Preparation`` of B pictures, as arrays."""

    valid: NDArray[np.bool_]
    """[B]: which pictures have a square to cut out; the others' numbers mean nothing."""
    picture_wh: NDArray[np.int64]
    """[B, 2]: width and height as they come."""
    reduced_wh: NDArray[np.int64]
    """[B, 2]: width and height after the reduction; those of the picture where it is not reduced."""
    crop: NDArray[np.int64]
    """[B, 4], as in ``Preparation``."""
    pad: NDArray[np.int64]
    """[B, 4]: left, top, right, bottom of the padding; zeros where there is none."""
    sigma_px: NDArray[np.float64]
    """[B]: of the Gaussian blur that the padding fades into; 0 where there is none."""
    quad: NDArray[np.float64]
    """[B, 4, 2], as in ``Preparation``."""

    @property
    def source_wh(self) -> NDArray[np.int64]:
        """[B, 2]: width and height of the pictures that the squares are cut from."""
        return self.crop[:, 2:] - self.crop[:, :2] + self.pad[:, :2] + self.pad[:, 2:]

    @property
    def is_reduced(self) -> NDArray[np.bool_]:
        """[B]"""
        return np.asarray((self.reduced_wh != self.picture_wh).any(axis=1))

    @property
    def is_padded(self) -> NDArray[np.bool_]:
        """[B]"""
        return np.asarray(self.pad.any(axis=1))

    def row(self, i: int) -> Preparation | None:
        """Of picture ``i``; ``None`` where no pixel of it lies in the square's surroundings."""
        if not self.valid[i]:
            return None
        shrunk = tuple(self.reduced_wh[i].tolist()) if self.is_reduced[i] else None
        left, top, right, bottom = self.pad[i].tolist()
        padding = Padding(left, top, right, bottom, float(self.sigma_px[i])) if self.is_padded[i] else None
        return Preparation(shrunk, tuple(self.crop[i].tolist()), padding, self.quad[i])


def oriented_squares(landmarks: NDArray[np.float64]) -> NDArray[np.float64]:
    """The squares around faces: [B, 68, 2] iBUG landmarks -> [B, 4, 2] corners NW, SW, SE, NE.

    Their direction is that of the eyes and, turned by 90 degrees, that from the eyes to the mouth. NaN where the points
    give no direction, or a square of less than ``MIN_SIDE_PX``.
    """
    points = np.asarray(landmarks, np.float64)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # such rows end as NaN
        left_eye, right_eye = points[:, 36:42].mean(axis=1), points[:, 42:48].mean(axis=1)  # [B, 2]
        eyes = (left_eye + right_eye) * 0.5
        across = right_eye - left_eye
        down = (points[:, 48] + points[:, 54]) * 0.5 - eyes
        x = across - _turned(down)
        length = np.hypot(x[:, 0], x[:, 1])
        side = 2 * np.maximum(np.hypot(*across.T) * 2.0, np.hypot(*down.T) * 1.8)  # [B]
        x = x / length[:, None] * (side / 2)[:, None]
        y = _turned(x)
        centre = eyes + down * 0.1
        squares = np.stack([centre - x - y, centre - x + y, centre + x + y, centre + x - y], axis=1)
        there = np.isfinite(points).all(axis=(1, 2)) & (side >= MIN_SIDE_PX) & (length >= 1e-9 * side)
    there &= np.isfinite(squares).all(axis=(1, 2))
    return np.where(there[:, None, None], squares, np.nan)


def _turned(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """By 90 degrees, x towards y: [B, 2] -> [B, 2]."""
    return np.stack([-vectors[:, 1], vectors[:, 0]], axis=1)


def oriented_square(landmarks: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Of one face: [68, 2] -> [4, 2], or ``None`` where there is no square."""
    (square,) = oriented_squares(np.asarray(landmarks)[None])
    return None if np.isnan(square).any() else square


def side_px(quad: NDArray[np.float64]) -> NDArray[np.float64]:
    """Length of the upper side: [..., 4, 2] -> [...]."""
    upper = quad[..., 3, :] - quad[..., 0, :]
    return np.asarray(np.hypot(upper[..., 0], upper[..., 1]))


def bounds(quad: NDArray[np.float64]) -> NDArray[np.int64]:
    """Smallest upright box of whole coordinates around the square: [..., 4, 2] -> left, top, right, bottom [..., 4]."""
    low, high = np.floor(quad.min(axis=-2)), np.ceil(quad.max(axis=-2))
    return _whole(np.concatenate([low, high], axis=-1))


def border_px(side: NDArray[np.float64] | float) -> NDArray[np.int64]:
    """Pixels around the square that are wanted of the picture."""
    return _whole(np.maximum(np.rint(np.multiply(side, 0.1)), 3))


def _whole(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Whole numbers, within ``FAR_PX``; 0 for NaN, whose row has no square."""
    return np.nan_to_num(np.clip(values, -FAR_PX, FAR_PX)).astype(np.int64)


def prepare_all(squares: NDArray[np.float64], picture_wh: NDArray[np.int64], output_size: int) -> Preparations:
    """What pictures of ``picture_wh`` ([B, 2], width and height) go through for results of ``output_size`` pixels.

    ``squares``: [B, 4, 2] in their pixels, NaN where there is none. Not valid where there is none, and where no pixel
    of the picture lies in its surroundings.
    """
    shrink = np.floor(side_px(squares) / output_size * 0.5)
    shrink = np.where(shrink > 1, shrink, 1.0)  # [B]; NaN is not above 1
    wh = _whole(np.rint(picture_wh / shrink[:, None]))
    reduced_wh, quad, side = wh, squares / shrink[:, None, None], side_px(squares) / shrink
    border = border_px(side)[:, None]  # [B, 1]

    box = bounds(quad)
    crop = np.concatenate([np.maximum(box[:, :2] - border, 0), np.minimum(box[:, 2:] + border, wh)], axis=1)
    valid = np.asarray((crop[:, 2:] > crop[:, :2]).all(axis=1) & np.isfinite(squares).all(axis=(1, 2)))
    quad = quad - crop[:, None, :2]
    wh = crop[:, 2:] - crop[:, :2]

    box = bounds(quad)
    need = np.concatenate([-box[:, :2] + border, box[:, 2:] - wh + border], axis=1)
    padded = need.max(axis=1, keepdims=True) > border - 4  # [B, 1]
    pad = np.where(padded, np.maximum(need, _whole(np.rint(side * 0.3))[:, None]), 0)
    sigma_px = np.where(padded[:, 0], side * 0.02, 0.0)
    return Preparations(valid, picture_wh, reduced_wh, crop, pad, sigma_px, quad + pad[:, None, :2])


def prepare(quad: NDArray[np.float64], width: int, height: int, output_size: int) -> Preparation | None:
    """Of one picture of ``width`` x ``height``; ``None`` where no pixel of it lies in the square's surroundings."""
    return prepare_all(quad[None], np.array([[width, height]]), output_size).row(0)


def fading(width: int, height: int, pad: Padding) -> NDArray[np.float64]:
    """[height, width]: 1 on the outermost pixels, 0 where the picture begins, negative inside."""
    across = fading_along(width, pad.left, pad.right, width)
    down = fading_along(height, pad.top, pad.bottom, height)
    return np.asarray(np.maximum(across[None, :], down[:, None]))


def fading_along(size: Whole, before: Whole, after: Whole, length: int) -> NDArray[np.float64]:
    """``fading`` along the first ``length`` pixels of a line of ``size``, padded by ``before`` and ``after``.

    Of N lines at once where these are [N, 1]: [N, length]. Beyond the line's end it is above 1.
    """
    at = np.arange(length)
    return np.asarray(1 - np.minimum(at / before, (size - 1 - at) / after))
