"""HuBERT (Hsu et al. 2021, arXiv 2106.07447) as transformers builds it: sizes, names, loading."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from extract.models import random
from extract.weights.files import Weights
from extract.weights.loading import check_config, load_strictly

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn
    from transformers import HubertConfig, HubertModel


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

HOP, SEEN = 320, 400
"""Samples from step to step, and those that one step sees."""

BLOCK_STEPS = 1536
"""Steps of a block (30.7 s) of a long recording; the last block has up to twice as many. A multiple of the 256 queries
that torch's attention takes together, so that a block's queries are grouped as those of the whole recording are."""

POSITIONS_STEPS = 20 * BLOCK_STEPS
"""The same for the positional convolution (10 minutes). On shorter pieces oneDNN takes other kernels, whose sums are
rounded otherwise: at 3,100 steps than at 1,600 or 4,000."""

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


def model_config(architecture: str, *, conv_bias: bool) -> "HubertConfig":
    """transformers' config. Masking, dropout and layer drop are off: left on, training mode masks at random."""
    from transformers import HubertConfig

    sizes = ARCHITECTURES[architecture]
    return HubertConfig(
        hidden_size=sizes.width,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.mlp_width,
        do_stable_layer_norm=sizes.stable_layer_norm,
        feat_extract_norm="layer" if sizes.stable_layer_norm else "group",
        conv_dim=(sizes.conv_width,) * 7,
        conv_bias=conv_bias,
        apply_spec_augment=False,
        mask_time_prob=0.0,
        mask_feature_prob=0.0,
        hidden_dropout=0.0,
        activation_dropout=0.0,
        attention_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
        layerdrop=0.0,
    )


def build(architecture: str, *, conv_bias: bool) -> "HubertModel":
    """The network in eval mode on the meta device: names and shapes, no numbers yet."""
    import torch
    from transformers import HubertModel

    with torch.device("meta"):
        model: HubertModel = HubertModel(model_config(architecture, conv_bias=conv_bias))
    model.train(False)
    return model


def random_weights(architecture: str) -> "dict[str, np.ndarray[Any, Any]]":
    """Untrained tensors by transformers' names."""
    shapes = {name: tuple(tensor.shape) for name, tensor in build(architecture, conv_bias=False).state_dict().items()}
    return dict(random.draw(shapes, seed=f"hubert/{architecture}"))


def load(architecture: str, weights: Weights) -> "HubertModel":
    """The network with its weights, on the CPU, in eval mode.

    Raises:
        WeightsError: tensors or ``config.json`` are not those of this architecture.
    """
    tensors = named_like_transformers(weights.tensors())
    conv_bias = "feature_extractor.conv_layers.0.conv.bias" in tensors  # fairseq has none, some hub files do
    model = build(architecture, conv_bias=conv_bias)
    check_config(weights, architecture, model.config, SHOWN_IN_CONFIG)
    load_strictly(model, {name: tensor.float() for name, tensor in tensors.items()}, weights.spec, assign=True)
    model.requires_grad_(False)
    return model


def named_like_transformers(tensors: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """Names without the ``hubert.`` of a model with a head, new names for weight norm, no mask vector (unused here)."""
    renamed = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("hubert.")
        name = name.replace("pos_conv_embed.conv.weight_g", "pos_conv_embed.conv.parametrizations.weight.original0")
        name = name.replace("pos_conv_embed.conv.weight_v", "pos_conv_embed.conv.parametrizations.weight.original1")
        renamed[name] = tensor
    renamed.pop("masked_spec_embed", None)
    return renamed


def keep_layers(model: "HubertModel", num_layers: int) -> "nn.Module":
    """Cut the encoder after ``num_layers`` and take its final norm off. Returns that norm (identity if it has none).

    ``model(...).last_hidden_state`` is then the raw output of the last layer kept, in every version of transformers
    (which differ in whether their last hidden state is normed), and the layers after it are not computed.
    """
    from torch import nn

    encoder: Any = model.encoder
    encoder.layers = encoder.layers[:num_layers]
    if not model.config.do_stable_layer_norm:
        return nn.Identity()  # the encoder's layer_norm stands before its first layer here
    norm: nn.Module = encoder.layer_norm
    encoder.layer_norm = nn.Identity()
    return norm


def is_long(num_steps: int) -> bool:
    """Whether a recording is more than one block."""
    return num_steps >= 2 * BLOCK_STEPS


def blocks(num_steps: int, block_steps: int | None = None) -> "Iterator[slice]":
    """Consecutive steps, BLOCK_STEPS to a block; the last one takes the rest (up to twice as many)."""
    block_steps = block_steps or BLOCK_STEPS
    starts = range(0, max(num_steps - block_steps, 0) + 1, block_steps)
    for start in starts:
        yield slice(start, num_steps if start == starts[-1] else start + block_steps)


def hidden_of_long(
    model: "HubertModel", final_norm: "nn.Module", wave: "Callable[[int, int], Tensor]", num_samples: int
) -> "Tensor":
    """``final_norm(model(...).last_hidden_state[0])`` [S, D] of a long recording, block by block.

    No row depends on which block it is in: the convolutions see what they see of the whole recording, and every step
    attends to all others. The values are those of the whole recording at once, to the last bit on a CPU with one
    thread (tests/stages/test_hubert.py; with more threads torch's GELU rounds a few values of the whole recording
    otherwise). The one exception is base's group norm, whose mean and variance over all the time are gathered in a
    pass of their own, in float64: equal within 1e-5.

    In memory are, besides one block: the hidden states, and the keys and values of one layer, [S, D] each.

    Args:
        model: as ``keep_layers`` left it.
        wave: float samples [start, stop) of the recording, normalised, on the model's device in its precision.
    """

    extractor: Any = model.feature_extractor
    encoder: Any = model.encoder
    num_steps = (num_samples - SEEN) // HOP + 1
    first = _first_convolution(extractor, wave, num_samples)
    hidden: Tensor | None = None
    for block in blocks(num_steps):
        rows = first(wave(block.start * HOP, (block.stop - 1) * HOP + SEEN)[None, None])  # [1, C, n / 5]
        for convolution in extractor.conv_layers[1:]:
            rows = convolution(rows)
        rows = model.feature_projection(rows.transpose(1, 2))[0]
        if hidden is None:
            hidden = rows.new_empty((num_steps, rows.shape[-1]))
        hidden[block] = rows
    if hidden is None:
        raise ValueError("no step to compute")
    _add_positions(encoder.pos_conv_embed, hidden)
    stable = bool(model.config.do_stable_layer_norm)
    if not stable:
        for block in blocks(num_steps):
            hidden[block] = encoder.layer_norm(hidden[block])
    for layer in encoder.layers:
        _through_layer(layer, hidden, stable=stable)
    for block in blocks(num_steps):
        hidden[block] = final_norm(hidden[block])
    return hidden


def _first_convolution(
    extractor: Any,  # noqa: ANN401 - transformers' module
    wave: "Callable[[int, int], Tensor]",
    num_samples: int,
) -> "Callable[[Tensor], Tensor]":
    """The first convolution with its norm and activation; a norm over time is given that of the whole recording."""
    from torch import nn

    layer = extractor.conv_layers[0]
    norm = layer.layer_norm
    if not isinstance(norm, nn.GroupNorm):
        whole: Callable[[Tensor], Tensor] = layer
        return whole
    import torch

    (kernel,), (stride,) = layer.conv.kernel_size, layer.conv.stride
    length = (num_samples - kernel) // stride + 1
    moments = Moments()
    for start in range(0, length, _MOMENTS_OF):
        stop = min(start + _MOMENTS_OF, length)
        moments.add(layer.conv(wave(start * stride, (stop - 1) * stride + kernel)[None, None])[0])  # [C, n]
    scale = norm.weight.double() / torch.sqrt(moments.variance + norm.eps)
    shift = norm.bias.double() - scale * moments.mean

    def normed(samples: "Tensor") -> "Tensor":
        rows = layer.conv(samples)
        rows = rows * scale[:, None].to(rows.dtype) + shift[:, None].to(rows.dtype)
        activated: Tensor = layer.activation(rows)
        return activated

    return normed


_MOMENTS_OF = 1 << 15
"""Positions of the first convolution (10 s) whose mean and variance are taken together."""


class Moments:
    """Mean and population variance, in float64, of rows [..., n] that come in pieces (Chan et al. 1983)."""

    def __init__(self) -> None:
        self._num = 0
        self.mean: Any = 0.0
        self.variance: Any = 0.0

    def add(self, piece: "Tensor") -> None:
        import torch

        variance, mean = torch.var_mean(piece.double(), dim=-1, correction=0)
        if not self._num:
            self._num, self.mean, self.variance = piece.shape[-1], mean, variance
            return
        num = self._num + piece.shape[-1]
        share = piece.shape[-1] / num
        apart = mean - self.mean
        self.mean = self.mean + apart * share
        self.variance = self.variance * (1 - share) + variance * share + apart * apart * share * (1 - share)
        self._num = num


def _add_positions(positions: Any, hidden: "Tensor") -> None:  # noqa: ANN401 - transformers' module
    """Add the convolution over the hidden states [S, D] to them, in place; a block is given what its ends see."""
    import torch

    reach = positions.conv.kernel_size[0] // 2
    before = hidden[:0]  # the steps before the block, as they were
    for block in blocks(len(hidden), POSITIONS_STEPS):
        seen = torch.cat([before, hidden[block.start : block.stop + reach]])
        num_before, before = len(before), hidden[max(block.stop - reach, 0) : block.stop].clone()
        hidden[block] += positions(seen[None])[0, num_before : num_before + block.stop - block.start]


def _through_layer(layer: Any, hidden: "Tensor", *, stable: bool) -> None:  # noqa: ANN401 - transformers' module
    """One transformer layer, in place: keys and values of all steps [S, D] first, then block by block."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    attention = layer.attention
    keys, values = torch.empty_like(hidden), torch.empty_like(hidden)
    for block in blocks(len(hidden)):
        rows = layer.layer_norm(hidden[block]) if stable else hidden[block]
        keys[block], values[block] = attention.k_proj(rows), attention.v_proj(rows)

    def heads(rows: "Tensor") -> "Tensor":
        return rows.view(1, len(rows), -1, attention.head_dim).transpose(1, 2)  # [1, heads, n, D / heads]

    for block in blocks(len(hidden)):
        rows = hidden[block]
        queries = attention.q_proj(layer.layer_norm(rows) if stable else rows)
        attended = scaled_dot_product_attention(heads(queries), heads(keys), heads(values), scale=attention.scaling)
        rows = rows + attention.out_proj(attended.transpose(1, 2).reshape(len(rows), -1))
        if stable:
            hidden[block] = rows + layer.feed_forward(layer.final_layer_norm(rows))
        else:
            rows = layer.layer_norm(rows)
            hidden[block] = layer.final_layer_norm(rows + layer.feed_forward(rows))
