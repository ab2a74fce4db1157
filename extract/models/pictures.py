"""Pictures made ready for a network: brought to its size and normalised."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Interpolation = Literal["bilinear", "bicubic"]


def resized(images: "Tensor | list[Tensor]", side: int, interpolation: Interpolation) -> "Tensor":
    """uint8 [B, H, W, 3], or a list of [H, W, 3] of several sizes -> float32 [B, 3, side, side] in [0, 1].

    Antialiased. A picture that is not square is squeezed. Bicubic overshoots at edges and is cut to [0, 1], which is
    all that bytes can hold.
    """
    import torch

    if isinstance(images, list):
        return torch.cat([resized(image[None], side, interpolation) for image in images])
    planes = images.permute(0, 3, 1, 2).float() / 255
    size = (side, side)
    planes = torch.nn.functional.interpolate(planes, size=size, mode=interpolation, antialias=True, align_corners=False)
    return planes.clamp(0, 1) if interpolation == "bicubic" else planes


def normalised(planes: "Tensor", mean: Sequence[float], std: Sequence[float]) -> "Tensor":
    """(x - mean) / std, one number per channel; ``planes`` [B, C, H, W]."""
    means, stds = (_on_device(tuple(values), planes.dtype, planes.device) for values in (mean, std))
    return (planes - means) / stds


@functools.cache
def _on_device(values: tuple[float, ...], dtype: "torch.dtype", device: "torch.device") -> "Tensor":
    """[C, 1, 1], copied to the device once: a copy per batch would wait for it."""
    import torch

    with torch.inference_mode(mode=False):
        return torch.tensor(values, dtype=dtype, device=device)[:, None, None]
