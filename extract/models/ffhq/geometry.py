"""Where FFHQ's square lies, and what is done to the picture before it is cut out. All in float64.

Coordinates are those of pixels, x right, y down, an integer being a pixel's centre. The constants are those of the
FFHQ data set (Karras et al. 2019); "left" means the image's left.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_SIDE_PX = 8.0
"""Least side of a square that is a face; below it, coincident landmarks included, there is nothing to align."""


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


def oriented_square(landmarks: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The square around a face: [68, 2] iBUG landmarks -> [4, 2] corners NW, SW, SE, NE.

    Its direction is that of the eyes and, turned by 90 degrees, that from the eyes to the mouth. ``None`` where the
    points give no direction, or a square of less than ``MIN_SIDE_PX``.
    """
    points = np.asarray(landmarks, np.float64)
    if not np.isfinite(points).all():
        return None
    left_eye, right_eye = points[36:42].mean(axis=0), points[42:48].mean(axis=0)
    eyes = (left_eye + right_eye) * 0.5
    across = right_eye - left_eye
    down = (points[48] + points[54]) * 0.5 - eyes
    x = across - np.array([-down[1], down[0]])
    length = np.hypot(*x)
    side = 2 * max(np.hypot(*across) * 2.0, np.hypot(*down) * 1.8)
    if side < MIN_SIDE_PX or length < 1e-9 * side:
        return None
    x = x / length * (side / 2)
    y = np.array([-x[1], x[0]])
    centre = eyes + down * 0.1
    return np.stack([centre - x - y, centre - x + y, centre + x + y, centre + x - y])


def side_px(quad: NDArray[np.float64]) -> float:
    """Length of the upper side."""
    return float(np.hypot(*(quad[3] - quad[0])))


def bounds(quad: NDArray[np.float64]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the smallest upright box of whole coordinates around the square."""
    (left, top), (right, bottom) = np.floor(quad.min(axis=0)), np.ceil(quad.max(axis=0))
    return int(left), int(top), int(right), int(bottom)


def border_px(side: float) -> int:
    """Pixels around the square that are wanted of the picture."""
    return max(int(np.rint(side * 0.1)), 3)


def prepare(quad: NDArray[np.float64], width: int, height: int, output_size: int) -> Preparation | None:
    """What a picture of ``width`` x ``height`` goes through for a result of ``output_size`` pixels.

    ``None`` where no pixel of the picture lies in the square's surroundings.
    """
    side, shrunk_wh = side_px(quad), None
    shrink = int(np.floor(side / output_size * 0.5))
    if shrink > 1:
        width, height = int(np.rint(width / shrink)), int(np.rint(height / shrink))
        shrunk_wh = (width, height)
        quad, side = quad / shrink, side / shrink
    border = border_px(side)

    left, top, right, bottom = bounds(quad)
    crop = max(left - border, 0), max(top - border, 0), min(right + border, width), min(bottom + border, height)
    if crop[2] <= crop[0] or crop[3] <= crop[1]:
        return None
    quad = quad - crop[:2]
    width, height = crop[2] - crop[0], crop[3] - crop[1]

    left, top, right, bottom = bounds(quad)
    need = -left + border, -top + border, right - width + border, bottom - height + border
    if max(need) <= border - 4:
        return Preparation(shrunk_wh, crop, None, quad)
    left, top, right, bottom = (max(by, int(np.rint(side * 0.3))) for by in need)
    return Preparation(shrunk_wh, crop, Padding(left, top, right, bottom, side * 0.02), quad + np.array([left, top]))


def fading(width: int, height: int, pad: Padding) -> NDArray[np.float64]:
    """[height, width]: 1 on the outermost pixels, 0 where the picture begins, negative inside."""
    x, y = np.arange(width), np.arange(height)
    across = 1 - np.minimum(x / pad.left, x[::-1] / pad.right)
    down = 1 - np.minimum(y / pad.top, y[::-1] / pad.bottom)
    return np.asarray(np.maximum(across[None, :], down[:, None]))
