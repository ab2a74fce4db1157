"""Real-ESRGAN (Wang et al. 2021, arXiv 2107.10833): its published files, and its inference from picture to picture.

spandrel builds the networks. What is around them, and decides every last level (padding, tiles, rounding, the final
resize), follows the authors' ``RealESRGANer``.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from extract.errors import WeightsError
from extract.models import random
from extract.weights.files import Weights
from extract.weights.loading import listed

GROWTH = 32
"""Channels that each convolution of a dense block adds, in every published file."""


@dataclass(frozen=True)
class Upscaler:
    """A network and what it does to a picture's size."""

    net: nn.Module
    """float [B, 3, H, W] in [0, 1] -> [B, 3, scale H, scale W], not clamped."""
    scale: int


@dataclass(frozen=True)
class Inference:
    """How ``RealESRGANer`` is set; the defaults are those of its command line."""

    tile: int = 0
    """Side of a tile in pixels of the input; 0: the whole picture at once."""
    tile_pad: int = 10
    """Pixels of the surroundings that a tile sees, where the picture has them."""
    pre_pad: int = 0
    """Pixels mirrored on at the right and at the bottom before, and cut off after."""
    outscale: float | None = None
    """Size of the result over that of the input; another than the network's is reached by Lanczos on the rounded
    picture. ``None``: the network's."""


# ---- files ---------------------------------------------------------------------------------------------------------


def load(weights: Weights) -> Upscaler:
    """The network of an ESRGAN or Compact file, in eval mode, on the CPU, float32.

    Raises:
        WeightsError: no such file, or tensors that do not make one; what is missing or other is listed.
    """
    return from_tensors(weights.tensors(), weights.spec)


def from_tensors(tensors: dict[str, Tensor], spec: str) -> Upscaler:
    """``load``, of tensors by name."""
    from spandrel import ArchRegistry, ArchSupport, ImageModelDescriptor
    from spandrel.architectures.Compact import CompactArch
    from spandrel.architectures.ESRGAN import ESRGANArch

    published = _published_names(tensors)
    if published is not None:
        faults = listed(published, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
        if faults:
            raise WeightsError(f"weights {spec!r} are no whole Real-ESRGAN file: {faults}; get it anew")
    kinds = ArchRegistry()
    kinds.add(*(ArchSupport.from_architecture(kind) for kind in (ESRGANArch(), CompactArch())))
    try:
        found = kinds.load(dict(tensors))
    except Exception as error:  # spandrel meets whatever a file holds
        reason = next(iter(str(error).splitlines()), "its names are of another network")
        raise WeightsError(f"weights {spec!r} are no ESRGAN or Compact file, or a damaged one: {reason}") from error
    if not isinstance(found, ImageModelDescriptor) or found.input_channels != 3 or found.output_channels != 3:
        raise WeightsError(f"weights {spec!r} are of no network for colour pictures")
    if len(found.model.state_dict()) != len(tensors):
        needed = len(found.model.state_dict())
        raise WeightsError(f"weights {spec!r}: {len(tensors)} tensors for a network of {needed}; the rest is unknown")
    return Upscaler(found.model.eval().requires_grad_(False).float(), found.scale)


def _published_names(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]] | None:
    """Names and shapes of the whole network where the names are Real-ESRGAN's own; ``None``: another naming."""
    blocks = [int(found[1]) for name in tensors if (found := re.match(r"body\.(\d+)\.rdb[123]\.", name))]
    flat = [int(found[1]) for name in tensors if (found := re.match(r"body\.(\d+)\.(?:weight|bias)$", name))]
    if blocks:
        first = tensors.get("conv_first.weight", torch.empty(64, 3, 3, 3))
        return rrdb_shapes(*first.shape[:2], num_blocks=max(blocks) + 1)
    if flat:
        first = tensors.get("body.0.weight", torch.empty(64, 3, 3, 3))
        last = tensors.get(f"body.{max(flat)}.weight", torch.empty(48, 64, 3, 3))
        scale = math.isqrt(max(last.shape[0] // 3, 1))
        return srvgg_shapes(first.shape[0], num_convs=max(flat) // 2 - 1, scale=scale)
    return None


def rrdb_shapes(width: int = 64, inputs: int = 3, *, num_blocks: int = 23) -> dict[str, tuple[int, ...]]:
    """Tensors of an RRDBNet. The defaults are x4plus: 702 tensors, 16,697,987 numbers."""
    convs = {"conv_first": (width, inputs), "conv_body": (width, width), "conv_last": (3, width)}
    convs |= dict.fromkeys(("conv_up1", "conv_up2", "conv_hr"), (width, width))
    for block in range(num_blocks):
        for dense in (1, 2, 3):
            for conv in range(1, 6):
                outputs = width if conv == 5 else GROWTH
                convs[f"body.{block}.rdb{dense}.conv{conv}"] = outputs, width + (conv - 1) * GROWTH
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (*sizes, 3, 3) for name, sizes in convs.items()}
    return shapes | {f"{name}.bias": (sizes[0],) for name, sizes in convs.items()}


def srvgg_shapes(width: int = 64, *, num_convs: int = 32, scale: int = 4) -> dict[str, tuple[int, ...]]:
    """Tensors of an SRVGGNetCompact. The defaults are general-x4v3: 101 tensors, 1,213,296 numbers."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(num_convs + 2):
        outputs, inputs = (3 * scale * scale if layer == num_convs + 1 else width), (width if layer else 3)
        shapes[f"body.{2 * layer}.weight"], shapes[f"body.{2 * layer}.bias"] = (outputs, inputs, 3, 3), (outputs,)
        if layer <= num_convs:
            shapes[f"body.{2 * layer + 1}.weight"] = (width,)  # slopes of the PReLU
    return shapes


def random_weights(num_blocks: int = 23) -> "dict[str, NDArray[Any]]":
    """An untrained x4plus; residual branches and the last layer damped, so that levels stay within the picture's."""
    drawn = random.draw(rrdb_shapes(num_blocks=num_blocks), seed="realesrgan")
    drawn["conv_last.weight"] *= np.float32(0.04)
    drawn["conv_last.bias"] += np.float32(0.5)
    return dict(drawn)


def blocks() -> tuple[type[nn.Module], ...]:
    """The blocks that an RRDBNet repeats, in pull and in push form. A Compact network repeats none."""
    from spandrel.architectures.__arch_helpers.block import RRDB

    from extract.models.dense_push import PushedBlock

    return RRDB, PushedBlock


# ---- inference -----------------------------------------------------------------------------------------------------


def enlarge(upscaler: Upscaler, planes: Tensor, settings: Inference) -> Tensor:
    """Pictures of one size through the network: float [B, 3, H, W] in [0, 1] -> float32, ``scale`` times as large.

    Clamped to [0, 1], not rounded. Number type and memory format are those of ``planes``.

    Raises:
        ValueError: the picture is too small to be mirrored as far as ``pre_pad``.
    """
    height, width = planes.shape[-2:]
    if settings.pre_pad >= min(height, width):
        message = f"pre_pad is {settings.pre_pad}, but the picture has {width} x {height} pixels"
        raise ValueError(f"{message}; it can be mirrored by less than its side")
    scale = upscaler.scale
    planes = functional.pad(planes, (0, settings.pre_pad, 0, settings.pre_pad), "reflect")
    # Networks of scale 1 and 2 fold 4 x 4 or 2 x 2 pixels into channels; spandrel's mirror on what is missing for that.
    large = _tiled(upscaler, planes, settings) if settings.tile else upscaler.net(planes)
    return large[..., : height * scale, : width * scale].float().clamp(0, 1)


def _tiled(upscaler: Upscaler, planes: Tensor, settings: Inference) -> Tensor:
    """Cell by cell of a fixed grid, each with its surroundings; no blending."""
    height, width = planes.shape[-2:]
    scale, pad = upscaler.scale, settings.tile_pad
    canvas = planes.new_zeros((len(planes), 3, height * scale, width * scale))
    for top in range(0, height, settings.tile):
        for left in range(0, width, settings.tile):
            bottom, right = min(top + settings.tile, height), min(left + settings.tile, width)
            y, x = max(top - pad, 0), max(left - pad, 0)
            seen = planes[..., y : min(bottom + pad, height), x : min(right + pad, width)]
            large = upscaler.net(seen)
            canvas[..., top * scale : bottom * scale, left * scale : right * scale] = large[
                ..., (top - y) * scale : (bottom - y) * scale, (left - x) * scale : (right - x) * scale
            ]
    return canvas


def upscale(upscaler: Upscaler, images: Tensor, settings: Inference) -> Tensor:
    """uint8 RGB pictures of one size, [B, H, W, 3] -> uint8 [B, H', W', 3] on the same device, in one forward."""
    height, width = images.shape[1:3]
    return brought_to_outscale(levels(upscaler, images, settings), height, width, upscaler.scale, settings)


def levels(upscaler: Upscaler, images: Tensor, settings: Inference) -> Tensor:
    """uint8 [B, H, W, 3] -> uint8 [B, scale H, scale W, 3], all on the device of ``images``.

    Number type and memory format are those of the network's own tensors.
    """
    like = next(upscaler.net.parameters())
    planes = images.permute(0, 3, 1, 2).float().div(255).to(like.dtype)
    planes = planes.contiguous(memory_format=torch.channels_last)
    large = enlarge(upscaler, planes, settings).mul(255).round().to(torch.uint8)
    return large.permute(0, 2, 3, 1).contiguous()


def brought_to_outscale(large: Tensor, height: int, width: int, scale: int, settings: Inference) -> Tensor:
    """uint8 [B, scale height, scale width, 3] as ``outscale`` wants it: as it is, or resized on the CPU."""
    size = resized(height, width, scale, settings)
    if size is None:
        return large
    return torch.from_numpy(np.stack([_lanczos(one, size) for one in large.cpu().numpy()])).to(large.device)


def enhance(upscaler: Upscaler, picture: NDArray[Any], settings: Inference) -> NDArray[Any]:
    """One picture as ``RealESRGANer.enhance`` treats it, but for the order of colours, which is RGB here.

    Args:
        picture: uint8 or uint16; gray [H, W], RGB [H, W, 3] or RGBA [H, W, 4]. Depth is judged by the largest level:
            above 256 it counts as 16 bits. Transparency goes through the network as a gray picture of its own.

    Returns:
        The same kind of picture.
    """
    if picture.ndim not in {2, 3} or (picture.ndim == 3 and picture.shape[2] not in {3, 4}):
        raise ValueError(f"the picture has the shape {picture.shape}, expected [H, W], [H, W, 3] or [H, W, 4]")
    most, kind = (65535, np.dtype(np.uint16)) if picture.max(initial=0) > 256 else (255, np.dtype(np.uint8))
    is_gray, has_alpha = picture.ndim == 2, picture.ndim == 3 and picture.shape[2] == 4
    levels = picture.astype(np.float32) / most
    colours = np.stack([levels] * 3, axis=-1) if is_gray else levels[:, :, :3]
    large = _through(upscaler, colours, settings)
    if is_gray:
        large = cv2.cvtColor(large, cv2.COLOR_RGB2GRAY)
    if has_alpha:
        alpha = _through(upscaler, np.stack([levels[:, :, 3]] * 3, axis=-1), settings)
        large = np.dstack([large, cv2.cvtColor(alpha, cv2.COLOR_RGB2GRAY)])
    rounded: NDArray[Any] = (large * most).round().astype(kind)
    size = resized(picture.shape[0], picture.shape[1], upscaler.scale, settings)
    return rounded if size is None else _lanczos(rounded, size)


def _through(upscaler: Upscaler, colours: NDArray[Any], settings: Inference) -> NDArray[Any]:
    """float32 [H, W, 3] in [0, 1] -> the same, enlarged."""
    like = next(upscaler.net.parameters())
    planes = torch.from_numpy(colours.transpose(2, 0, 1).copy()).to(like)[None]
    with torch.inference_mode():
        large = enlarge(upscaler, planes, settings)[0]
    result: NDArray[Any] = np.ascontiguousarray(large.cpu().numpy().transpose(1, 2, 0))
    return result


def resized(height: int, width: int, scale: int, settings: Inference) -> tuple[int, int] | None:
    """Height and width of the result where that is not what the network gives."""
    if settings.outscale is None or settings.outscale == scale:
        return None
    return int(height * settings.outscale), int(width * settings.outscale)


def _lanczos(picture: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """OpenCV's Lanczos over 8 pixels, which does not widen when it reduces."""
    large: NDArray[Any] = cv2.resize(picture, size[::-1], interpolation=cv2.INTER_LANCZOS4)
    return large
