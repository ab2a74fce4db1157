"""Face pictures aligned as FFHQ's are."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from extract.models.ffhq import with_pillow, with_torch
from extract.models.ffhq.geometry import Preparation, oriented_square, prepare

Method = Literal["torch", "pillow"]


def plan(landmarks: Tensor, height: int, width: int, output_size: int) -> Preparation | None:
    """What the picture goes through; ``None`` where its landmarks ([68, 2], in its pixels) give nothing to align."""
    quad = oriented_square(landmarks.double().cpu().numpy())
    return None if quad is None else prepare(quad, width, height, output_size)


def align(image: Tensor, preparation: Preparation, output_size: int, transform_size: int, method: Method) -> Tensor:
    """Cut out the square.

    Args:
        image: uint8 RGB [H, W, 3].
        output_size: side of the result in pixels; FFHQ's own is 1024.
        transform_size: side of the picture that is sampled and then reduced; FFHQ's own is 4096.
        method: ``pillow`` is the reference, to the bit; ``torch`` computes on the picture's device and agrees within
            one level, in at least 98.5 % of the values exactly.

    Returns:
        uint8 [output_size, output_size, 3] on the device of ``image``.

    Raises:
        ValueError: the picture is no uint8 RGB.
    """
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"the picture is {image.dtype} {tuple(image.shape)}, expected uint8 RGB [H, W, 3]")
    if method == "torch":
        return with_torch.align(image, preparation, output_size, transform_size)
    aligned = with_pillow.align(np.ascontiguousarray(image.cpu().numpy()), preparation, output_size, transform_size)
    return torch.from_numpy(aligned.copy()).to(image.device)
