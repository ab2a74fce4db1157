"""The alignment by Pillow and SciPy, one picture at a time: the reference."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from extract.models.ffhq.geometry import Padding, Preparation, fading


def align(
    image: NDArray[np.uint8], preparation: Preparation, output_size: int, transform_size: int
) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] -> uint8 [output_size, output_size, 3]."""
    picture = Image.fromarray(image)
    if preparation.shrunk_wh is not None:
        picture = picture.resize(preparation.shrunk_wh, Image.Resampling.LANCZOS)
    picture = picture.crop(preparation.crop)
    if preparation.padding is not None:
        picture = Image.fromarray(_padded(np.asarray(picture), preparation.padding))
    corners = (preparation.quad + 0.5).ravel().tolist()
    size = (transform_size, transform_size)
    picture = picture.transform(size, Image.Transform.QUAD, corners, Image.Resampling.BILINEAR)
    if output_size < transform_size:
        picture = picture.resize((output_size, output_size), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _padded(image: NDArray[np.uint8], pad: Padding) -> NDArray[np.uint8]:
    """Mirrored on all sides, blurred towards the outer edge, faded there into the median colour."""
    wide = ((pad.top, pad.bottom), (pad.left, pad.right), (0, 0))
    mirrored: NDArray[Any] = np.pad(image.astype(np.float32), wide, "reflect")
    mask = fading(mirrored.shape[1], mirrored.shape[0], pad)[:, :, None]
    blurred = gaussian_filter(mirrored, (pad.sigma_px, pad.sigma_px, 0))
    mirrored += (blurred - mirrored) * np.clip(mask * 3 + 1, 0, 1)
    mirrored += (np.median(mirrored, axis=(0, 1)) - mirrored) * np.clip(mask, 0, 1)
    levels: NDArray[np.uint8] = np.clip(np.rint(mirrored), 0, 255).astype(np.uint8)
    return levels
