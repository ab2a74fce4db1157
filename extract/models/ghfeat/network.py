"""GH-Feat's encoder as its authors' TensorFlow graph computes it: ResNet, feature pyramid, alignment, three heads.

Facts and names: Xu et al. 2021 (arXiv 2007.10379) and the layout of the released weights. What differs from a
torchvision ResNet, and is visible in every value: TensorFlow's one-sided padding, biases before the norms, a leaky
stem, a fifth stage, and a feature pyramid that is pooled to one size before it is fused.
"""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from extract.models import random
from extract.models.ghfeat.levels import num_values
from extract.weights.loading import load_strictly

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

BN_EPS = 1e-5
LEAK = 0.2


@dataclass(frozen=True)
class Architecture:
    """Sizes of one encoder."""

    depth: int
    """18, 34: basic blocks; 50, 101: bottlenecks."""
    image_px: int
    """Side of the picture, a multiple of 64: five halvings before the smallest of the three maps."""
    width: int = 64
    """Channels after the stem."""
    pyramid: int = 512
    """Channels of the feature pyramid."""
    level: int = 1024
    """Places of one of the 14 levels."""

    @property
    def units(self) -> tuple[int, ...]:
        """Blocks of the stages 1 to 4."""
        return {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[self.depth]

    @property
    def bottleneck(self) -> bool:
        return self.depth >= 50

    @property
    def num_values(self) -> int:
        """Distinct values of a code."""
        return num_values(self.level)  # 9,984


ARCHITECTURES = {
    "resnet50-256": Architecture(50, 256),
    "resnet18-256": Architecture(18, 256),
    "small": Architecture(18, 64, width=16, pyramid=32, level=64),
}
"""``resnet50-256`` is the released encoder (151.8 M parameters), ``small`` (0.5 M) the demo's."""


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Pixels that TensorFlow's ``SAME`` adds before and after: ceil(size / stride) come out, the odd one goes after."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class SameConv(nn.Conv2d):
    """Convolution with TensorFlow's ``SAME`` padding, zeros."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', ceil(H / stride), ceil(W / stride)]."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        top, bottom = same_padding(input.shape[-2], kernel, stride)
        left, right = same_padding(input.shape[-1], kernel, stride)
        if top == bottom and left == right:
            return functional.conv2d(input, self.weight, self.bias, stride, (top, left))
        return functional.conv2d(functional.pad(input, (left, right, top, bottom)), self.weight, self.bias, stride)


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=BN_EPS)


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, 1x1; biases before the norms, none in the shortcut."""

    def __init__(self, inputs: int, hidden: int, outputs: int, stride: int, *, skip: bool) -> None:
        super().__init__()
        self.conv_a, self.norm_a = SameConv(inputs, hidden, 1), _norm(hidden)
        self.conv_b, self.norm_b = SameConv(hidden, hidden, 3, stride), _norm(hidden)
        self.conv_c, self.norm_c = SameConv(hidden, outputs, 1), _norm(outputs)
        self.conv_skip: nn.Module = SameConv(inputs, outputs, 1, stride, bias=False) if skip else nn.Identity()
        self.norm_skip: nn.Module = _norm(outputs) if skip else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H / stride, W / stride]."""
        y = functional.relu(self.norm_a(self.conv_a(x)))
        y = functional.relu(self.norm_b(self.conv_b(y)))
        y = self.norm_c(self.conv_c(y))
        shortcut: Tensor = self.norm_skip(self.conv_skip(x))
        result: Tensor = functional.relu(y + shortcut)
        return result


class Basic(nn.Module):
    """Two 3x3, the first with the stride. Here the norm follows the leaky activation, and none follows the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, skip: bool) -> None:
        super().__init__()
        self.conv_a, self.norm_a = SameConv(inputs, outputs, 3, stride), _norm(outputs)
        self.conv_b, self.norm_b = SameConv(outputs, outputs, 3), _norm(outputs)
        self.conv_skip: nn.Module = SameConv(inputs, outputs, 1, stride, bias=False) if skip else nn.Identity()
        self.norm_skip: nn.Module = _norm(outputs) if skip else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H / stride, W / stride]."""
        y = self.norm_a(functional.leaky_relu(self.conv_a(x), LEAK))
        y = self.norm_b(functional.leaky_relu(self.conv_b(y), LEAK))
        shortcut: Tensor = self.norm_skip(self.conv_skip(x))
        result: Tensor = y + shortcut
        return result


BLOCKS = (Bottleneck, Basic)
"""What the stages repeat."""


class Stem(nn.Module):
    """7x7 with stride 2, norm, leaky activation, 3x3 maximum with stride 2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv: nn.Conv2d = SameConv(3, width, 7, 2, bias=False)
        self.norm: nn.Module = _norm(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, C, H / 4, W / 4]."""
        x = functional.leaky_relu(self.norm(self.conv(x)), LEAK)
        # Windows that reach over the end see what is there: SAME's -inf after, none before.
        pooled: Tensor = functional.max_pool2d(x, 3, 2, ceil_mode=True)
        return pooled


class Pyramid(nn.Module):
    """Feature pyramid over the last three maps (Lin et al. 2017), top down by pixel replication."""

    def __init__(self, inputs: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(SameConv(channels, width, 3) for channels in inputs)
        self.smooth = nn.ModuleList(SameConv(width, width, 3) for _ in inputs)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Finest first, each half as large as the one before; the same of the results."""
        merged = [conv(x) for conv, x in zip(self.lateral, maps, strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + functional.interpolate(merged[i], scale_factor=2.0, mode="nearest")
        return [conv(x) for conv, x in zip(self.smooth, merged, strict=True)]


class Alignment(nn.Module):
    """Spatial alignment module: all maps averaged down to the coarsest grid, fused, the coarsest added to the rest."""

    def __init__(self, num_maps: int, width: int) -> None:
        super().__init__()
        self.fuse = nn.ModuleList(SameConv(width, width, 3) for _ in range(num_maps))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Finest first -> as many maps [B, C, 4, 4]."""
        last = len(maps) - 1
        pooled = [functional.avg_pool2d(x, 1 << (last - i)) for i, x in enumerate(maps)]
        fused = [conv(x) for conv, x in zip(self.fuse, pooled, strict=True)]
        return [x + fused[-1] for x in fused[:-1]] + fused[-1:]


class Head(nn.Module):
    """One dense layer and its norm, no activation."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.fc: nn.Linear = nn.Linear(inputs, outputs)
        self.norm: nn.Module = nn.BatchNorm1d(outputs, eps=BN_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, 4, 4] -> [B, outputs]; channels vary slowest in the flattened input."""
        result: Tensor = self.norm(self.fc(x.flatten(1)))
        return result


class Encoder(nn.Module):
    """Picture -> the distinct values of its 14 levels."""

    def __init__(self, sizes: Architecture) -> None:
        super().__init__()
        self.sizes = sizes
        self.stem = Stem(sizes.width)
        stages = []
        channels = sizes.width
        for number, units in enumerate(sizes.units):
            hidden = sizes.width << number
            outputs = hidden * 4 if sizes.bottleneck else hidden
            blocks: list[nn.Module] = []
            for unit in range(units):
                stride = 2 if unit == 0 and number else 1
                if sizes.bottleneck:
                    blocks.append(Bottleneck(channels, hidden, outputs, stride, skip=unit == 0))
                else:
                    blocks.append(Basic(channels, outputs, stride, skip=unit == 0))
                channels = outputs
            stages.append(nn.Sequential(*blocks))
        hidden = sizes.width << 3
        stages.append(nn.Sequential(Bottleneck(channels, hidden, hidden * 4, 2, skip=True)))
        self.stages = nn.ModuleList(stages)
        wide = 4 if sizes.bottleneck else 1
        self.fpn = Pyramid((sizes.width * 4 * wide, sizes.width * 8 * wide, hidden * 4), sizes.pyramid)
        self.sam = Alignment(3, sizes.pyramid)
        seen = sizes.pyramid * (sizes.image_px // 64) ** 2  # 512 * 4 * 4 = 8192
        level = sizes.level
        low = sizes.num_values - 8 * level  # 1792
        self.heads = nn.ModuleList(Head(seen, outputs) for outputs in (4 * level, 4 * level, low))

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W], RGB in [-1, 1] -> [B, 9984]; ``levels.unfold`` makes 14 x 1024 of it."""
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        fused = self.sam(self.fpn(maps[2:]))  # finest first
        return torch.cat([head(x) for head, x in zip(self.heads, reversed(fused), strict=True)], dim=1)

    def fold(self) -> "Encoder":
        """Put every norm that directly follows a linear layer into that layer; what is left changes by rounding only.

        The basic blocks' norms follow an activation and stay.
        """
        for block in self.modules():
            parts = {Stem: ("",), Bottleneck: ("_a", "_b", "_c", "_skip"), Basic: ("_skip",)}.get(type(block), ())
            for part in parts:
                norm = getattr(block, f"norm{part}")
                if isinstance(norm, nn.BatchNorm2d):
                    setattr(block, f"conv{part}", fuse_conv_bn_eval(getattr(block, f"conv{part}"), norm))
                    setattr(block, f"norm{part}", nn.Identity())
            if isinstance(block, Head) and isinstance(block.norm, nn.BatchNorm1d):
                block.fc, block.norm = fuse_linear_bn_eval(block.fc, block.norm), nn.Identity()
        return self


def build(architecture: str) -> Encoder:
    """The network without values (meta device), in eval mode; ``load`` fills it."""
    with torch.device("meta"):
        return Encoder(ARCHITECTURES[architecture]).eval().requires_grad_(False)


def shapes(architecture: str) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, without torch's own counters."""
    return {name: tuple(tensor.shape) for name, tensor in _wanted(build(architecture)).items()}


def random_weights(architecture: str) -> "dict[str, np.ndarray[Any, Any]]":
    """Untrained tensors by name, the last layer of each block and the heads damped so that no value overflows."""
    drawn = random.draw(shapes(architecture), seed=f"ghfeat/{architecture}")
    return {name: values / 2 if ".conv_c." in name or ".fc." in name else values for name, values in drawn.items()}


def from_tensors(architecture: str, tensors: "dict[str, Tensor]", spec: str) -> Encoder:
    """The folded network, where the tensors are, in eval mode.

    Raises:
        WeightsError: the tensors are not those of this architecture; what is missing or other is listed.
    """
    model = build(architecture)
    counters = {name: torch.zeros((), dtype=torch.long) for name in model.state_dict() if _is_counter(name)}
    load_strictly(model, {**counters, **{n: t for n, t in tensors.items() if not _is_counter(n)}}, spec, assign=True)
    return model.requires_grad_(False).fold()


def _wanted(model: Encoder) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if not _is_counter(name)}


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")
