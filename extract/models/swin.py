"""Swin Transformer (Liu et al. 2021, arXiv 2103.14030) as timm builds it: sizes, names, loading."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from extract.models import random
from extract.weights.files import Weights
from extract.weights.loading import fill

if TYPE_CHECKING:
    import numpy as np
    import torch
    from timm.models.swin_transformer import SwinTransformer
    from torch import Tensor, nn


@dataclass(frozen=True)
class Architecture:
    """Sizes of one Swin Transformer. Every stage but the first halves the grid and doubles the width."""

    image_px: int
    window: int
    """Side of an attention window, in tokens."""
    width: int
    """Channels after the patch embedding."""
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    mlp_ratio: float
    patch_px: int = 4

    @property
    def num_features(self) -> int:
        return self.width << (len(self.depths) - 1)  # tiny: 768

    @property
    def num_tokens(self) -> int:
        side = self.image_px // (self.patch_px << (len(self.depths) - 1))
        return side * side  # tiny: 7 x 7 = 49


ARCHITECTURES = {
    "tiny": Architecture(224, window=7, width=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24), mlp_ratio=4),
    "small": Architecture(64, window=4, width=32, depths=(1, 1, 2, 1), heads=(1, 2, 4, 8), mlp_ratio=2),
}
"""``tiny`` is the paper's ``swin_tiny_patch4_window7_224``; ``small`` (1.0 M parameters) is the demo's."""


def build(architecture: str) -> "SwinTransformer":
    """The network without a classifier and without numbers (``unfilled``), in eval mode."""
    from timm.models.swin_transformer import SwinTransformer

    from extract.weights.unfilled import unfilled

    sizes = ARCHITECTURES[architecture]
    with unfilled():
        model = SwinTransformer(
            img_size=sizes.image_px,
            patch_size=sizes.patch_px,
            window_size=sizes.window,
            embed_dim=sizes.width,
            depths=sizes.depths,
            num_heads=sizes.heads,
            mlp_ratio=sizes.mlp_ratio,
            num_classes=0,
            drop_path_rate=0,  # of training; else blocks differ in it, and each would be compiled by itself
        )
    return model.eval().requires_grad_(False)


def random_weights(architecture: str) -> "dict[str, np.ndarray[Any, Any]]":
    """Untrained tensors by timm's names."""
    import torch

    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in build(architecture).state_dict().items()}
    return dict(random.draw(shapes, seed=f"swin/{architecture}"))


def load(
    architecture: str, weights: Weights, device: "torch.device | str" = "cpu", precision: "torch.dtype | None" = None
) -> "SwinTransformer":
    """The network with its weights, on ``device`` in ``precision`` (float32 when absent), in eval mode.

    Raises:
        WeightsError: the tensors are not those of this architecture.
    """
    model = build(architecture)
    fill(model, named_like_timm(weights.tensors(device)), weights.spec, device, precision)
    return model


def blocks() -> "tuple[type[nn.Module], ...]":
    """What the network repeats."""
    from timm.models.swin_transformer import SwinTransformerBlock

    return (SwinTransformerBlock,)


def named_like_timm(tensors: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """Drop the ImageNet classifier and derived tables; bring timm's names from before 0.9 up to date.

    The old names count a downsampling to the stage before it (``layers.0.downsample``), the new ones to the stage
    after it; the first stage of the new ones has none, which tells them apart.
    """
    kept = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith("head.") and name.rpartition(".")[2] not in {"relative_position_index", "attn_mask"}
    }
    if "layers.0.downsample.reduction.weight" not in kept:
        return kept
    return {
        re.sub(r"^layers\.(\d+)\.downsample", lambda found: f"layers.{int(found[1]) + 1}.downsample", name): tensor
        for name, tensor in kept.items()
    }
