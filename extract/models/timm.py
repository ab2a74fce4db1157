"""Any picture encoder that timm builds: its sizes, known without weights, and its official files."""

import difflib
import functools
import math
from typing import TYPE_CHECKING, Any, Literal

from extract.errors import ConfigError
from extract.models import random
from extract.weights.files import Weights
from extract.weights.loading import fill

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

Pool = Literal["token", "avg", "head"]


def build(architecture: str, image_px: int, *, num_classes: int = 0) -> Any:  # noqa: ANN401 - one of timm's networks
    """The network in eval mode, without numbers (``unfilled``).

    Raises:
        ConfigError: timm has no such architecture, or it takes no pictures of that size.
    """
    import timm

    from extract.weights.unfilled import unfilled

    # What a pretrained model's config could set is passed: classes, channels, size.
    given: dict[str, Any] = {"pretrained": False, "num_classes": num_classes, "in_chans": 3}
    known = timm.list_models()
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known, n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "`timm.list_models()` names them"
        raise ConfigError(f"architecture {architecture!r}: timm {timm.__version__} has none of that name; {hint}")
    with unfilled():
        try:
            model = timm.create_model(architecture, img_size=image_px, **given)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            # Convolutions alone, which take pictures of any size.
            model = timm.create_model(architecture, **given)
    return model.eval().requires_grad_(False)


@functools.cache
def width(architecture: str, image_px: int, pool: Pool) -> int:
    """Features per picture, from a forward pass on the meta device: shapes, no numbers.

    Raises:
        ConfigError: timm has no such architecture, or it does not go with that size or pool.
    """
    import torch

    try:
        with torch.device("meta"):
            model = build(architecture, image_px)
            _refuse_left_over_pixels(model, image_px)
            pictures = torch.empty(1, 3, image_px, image_px)
        with torch.inference_mode():
            feature = pooled(model, model.forward_features(pictures), pool)
    except ConfigError:
        raise
    except Exception as error:  # a thousand networks, each with its own way to refuse a size
        raise ConfigError(
            f"architecture {architecture!r} takes no pictures of {image_px} px with pool {pool}: {error}"
        ) from error
    return int(feature.shape[-1])


def _refuse_left_over_pixels(model: Any, image_px: int) -> None:  # noqa: ANN401 - one of timm's networks
    """Raise ConfigError where patches do not fill the picture: timm would drop its last rows and columns."""
    embed = getattr(model, "patch_embed", None)
    patch_px = getattr(embed, "patch_size", None)
    sides = patch_px if isinstance(patch_px, tuple) else (patch_px,)
    stride = getattr(getattr(embed, "proj", None), "stride", sides)
    if tuple(stride) != (tuple(sides) * 2)[:2]:  # overlapping patches are padded: PVT
        return
    if any(isinstance(side, int) and image_px % side for side in sides):
        whole = image_px // sides[0] * sides[0]
        fitting = [px for px in (whole, whole + sides[0]) if px]
        raise ConfigError(
            f"image_px is {image_px}, which patches of {sides[0]} px do not fill; use {' or '.join(map(str, fitting))}"
        )


def pooled(model: Any, features: "Tensor", pool: Pool) -> "Tensor":  # noqa: ANN401 - one of timm's networks
    """[B, D] of what ``forward_features`` gives: tokens [B, N, C], or a grid [B, C, H, W] or [B, H, W, C].

    Raises:
        ConfigError: the network has no class token, or another form of output.
    """
    if pool == "head":
        found: Tensor = model.forward_head(features, pre_logits=True)
        return found
    prefix = getattr(model, "num_prefix_tokens", None)
    has_token = getattr(model, "cls_token", None) is not None
    if has_token and prefix is None:  # VOLO: what stands where is its own affair
        raise ConfigError(f"pool is {pool}, but where this architecture keeps its class token is unknown; use head")
    prefix = prefix or 0
    if pool == "token":
        if not has_token or not prefix:
            raise ConfigError("pool is token, but this architecture has no class token; use avg or head")
        return features[:, 0]
    shape = tuple(getattr(features, "shape", ()))
    if len(shape) == 3:
        return features[:, prefix:].mean(dim=1)
    channels_at = [axis for axis in (1, 3) if len(shape) == 4 and shape[axis] == model.num_features]
    if len(channels_at) != 1:
        raise ConfigError(
            f"pool is avg, but what this architecture gives is no list of tokens and no grid (shape {shape}); use head"
        )
    return features.mean(dim=(2, 3) if channels_at == [1] else (1, 2))


def random_weights(architecture: str, image_px: int) -> "dict[str, np.ndarray[Any, Any]]":
    """Untrained tensors by timm's names; whole numbers (counts, tables of indices) are the architecture's own."""
    tensors = build(architecture, image_px).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor.is_floating_point()}
    drawn: dict[str, np.ndarray[Any, Any]] = dict(random.draw(shapes, seed=f"timm/{architecture}/{image_px}"))
    return drawn | {name: tensor.numpy() for name, tensor in tensors.items() if name not in shapes}


def load(
    architecture: str,
    image_px: int,
    weights: Weights,
    device: "torch.device | str" = "cpu",
    precision: "torch.dtype | None" = None,
) -> "nn.Module":
    """The network with its weights, on ``device`` in ``precision`` (float32 when absent), in eval mode.

    The file is a state dict by timm's names, as the ``model.safetensors`` of the hub's repositories ``timm/...``. The
    classifier is dropped: the tensors that this architecture has with classes and lacks without. A position embedding
    of another grid is resampled (``fit_positions``).

    Raises:
        WeightsError: the tensors are not those of this architecture.
    """
    model = build(architecture, image_px)
    of_classifier = _classifier(architecture, image_px)
    tensors = {name: tensor for name, tensor in weights.tensors(device).items() if name not in of_classifier}
    fill(model, fit_positions(model, tensors), weights.spec, device, precision)
    loaded: nn.Module = model
    return loaded


@functools.cache
def _classifier(architecture: str, image_px: int) -> frozenset[str]:
    """Names of the tensors that only a network with classes has."""
    import torch

    with torch.device("meta"):
        with_classes, without = (build(architecture, image_px, num_classes=classes) for classes in (2, 0))
    return frozenset(with_classes.state_dict().keys() - without.state_dict().keys())


def fit_positions(model: Any, tensors: "dict[str, Tensor]") -> "dict[str, Tensor]":  # noqa: ANN401 - timm's network
    """``pos_embed`` [1, N, C] of a square grid brought to the grid of ``model``, by timm's own resampling.

    DINOv2's files are of 518 px, 37 x 37 patches; at 224 px there are 16 x 16. Bicubic, antialiased, as timm does it
    when it loads pretrained weights; the class token's and registers' own embeddings stay as they are. Where the
    grids are the same, or the file's is no square, nothing is changed.
    """
    found, own = tensors.get("pos_embed"), getattr(model, "pos_embed", None)
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if found is None or own is None or grid is None or found.ndim != 3 or found.shape == own.shape:
        return tensors
    from timm.layers.pos_embed import resample_abs_pos_embed

    prefix = own.shape[1] - grid[0] * grid[1]  # embeddings of the class token and registers, if they have any
    side = math.isqrt(max(found.shape[1] - prefix, 0))
    if prefix < 0 or side * side != found.shape[1] - prefix:
        return tensors
    resampled = resample_abs_pos_embed(
        found.cpu(),  # the same numbers for every device
        new_size=list(grid),
        old_size=[side, side],
        num_prefix_tokens=prefix,
        interpolation="bicubic",
        antialias=True,
    )
    return tensors | {"pos_embed": resampled}
