"""HuBERT (Hsu et al. 2021, arXiv 2106.07447) as transformers builds it: sizes, names, loading."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from extract.models import random, speech
from extract.weights.files import Weights
from extract.weights.loading import check_config, fill

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import HubertModel


@dataclass(frozen=True)
class Architecture:
    """Sizes of one HuBERT. All share the convolutions' kernels and strides: 320 samples a step, 400 seen."""

    width: int
    num_layers: int
    heads: int
    mlp_width: int
    stable_layer_norm: bool
    """Norms before attention and MLP, one final norm after the last layer, and a layer norm after every convolution;
    else norms after, no final one, and a group norm after the first convolution only."""
    conv_width: int = 512


ARCHITECTURES = {
    "xlarge": Architecture(1280, num_layers=48, heads=16, mlp_width=5120, stable_layer_norm=True),
    "large": Architecture(1024, num_layers=24, heads=16, mlp_width=4096, stable_layer_norm=True),
    "base": Architecture(768, num_layers=12, heads=12, mlp_width=3072, stable_layer_norm=False),
    "small": Architecture(64, num_layers=2, heads=4, mlp_width=128, stable_layer_norm=True, conv_width=32),
}
"""``small`` is for tests and the demo; nobody published one."""

SHOWN_IN_CONFIG = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "do_stable_layer_norm",
    "layer_norm_eps",
    "feat_proj_layer_norm",
    "feat_extract_norm",
    "feat_extract_activation",
    "conv_dim",
    "conv_kernel",
    "conv_stride",
    "conv_pos_batch_norm",
    "num_conv_pos_embeddings",
    "num_conv_pos_embedding_groups",
)
"""Fields of ``config.json`` that change values and are the same in all files of one architecture."""


def build(architecture: str, *, conv_bias: bool) -> "HubertModel":
    """The network in eval mode on the meta device: names and shapes, no numbers yet."""
    sizes = ARCHITECTURES[architecture]
    config = {
        "hidden_size": sizes.width,
        "num_hidden_layers": sizes.num_layers,
        "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.mlp_width,
        "do_stable_layer_norm": sizes.stable_layer_norm,
        "feat_extract_norm": "layer" if sizes.stable_layer_norm else "group",
        "conv_dim": [sizes.conv_width] * 7,
        "conv_bias": conv_bias,
    }
    model: HubertModel = speech.build("hubert", config)
    return model


def random_weights(architecture: str) -> "dict[str, np.ndarray[Any, Any]]":
    """Untrained tensors by transformers' names."""
    shapes = {name: tuple(tensor.shape) for name, tensor in build(architecture, conv_bias=False).state_dict().items()}
    return dict(random.draw(shapes, seed=f"hubert/{architecture}"))


def load(
    architecture: str, weights: Weights, device: "torch.device | str" = "cpu", precision: "torch.dtype | None" = None
) -> "HubertModel":
    """The network with its weights, on ``device`` in ``precision`` (float32 when absent), in eval mode.

    Raises:
        WeightsError: tensors or ``config.json`` are not those of this architecture.
    """
    tensors = speech.named_like_transformers(weights.tensors(device), prefix="hubert.")
    conv_bias = "feature_extractor.conv_layers.0.conv.bias" in tensors  # fairseq has none, some hub files do
    model = build(architecture, conv_bias=conv_bias)
    check_config(weights, architecture, model.config, SHOWN_IN_CONFIG)
    fill(model, tensors, weights.spec, device, precision)
    model.requires_grad_(False)
    return model
