"""Long recordings through a speech encoder of the wav2vec 2.0 kind, block by block, with the values of the whole."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from extract.models.chunks import Chunk
from extract.models.waveform import Moments

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

BLOCK_STEPS = 1536
"""Steps of a block (30.7 s at 20 ms) of a long recording; the last block has up to twice as many. A multiple of the 256
queries that torch's attention takes together, so that a block's queries are grouped as those of the whole recording."""

LAYER_STEPS_ON_GPU = 10 * BLOCK_STEPS
"""Steps (5 minutes) that go through a transformer layer together on a GPU; half a minute does not fill one. A layer of
x-large takes up to 0.8 GB for them in float16 (the last block is up to twice as long). Attention makes no table of
steps by steps, whatever the number."""

POSITIONS_STEPS = 20 * BLOCK_STEPS
"""The same for the positional convolution (10 minutes). On shorter pieces oneDNN takes other kernels, whose sums are
rounded otherwise: at 3,100 steps than at 1,600 or 4,000."""

BIAS_NUMBERS = 1 << 26
"""Numbers of WavLM's position bias (heads x queries x keys) that are held at once: 268 MB of float32."""


def is_long(num_steps: int) -> bool:
    """Whether a recording is more than one block."""
    return num_steps >= 2 * BLOCK_STEPS


def blocks(num_steps: int, block_steps: int | None = None) -> Iterator[slice]:
    """Consecutive steps, BLOCK_STEPS to a block; the last one takes the rest (up to twice as many)."""
    block_steps = block_steps or BLOCK_STEPS
    starts = range(0, max(num_steps - block_steps, 0) + 1, block_steps)
    for start in starts:
        yield slice(start, num_steps if start == starts[-1] else start + block_steps)


def layer_steps(device: "torch.device") -> int:
    """Steps that go through a transformer layer together."""
    return BLOCK_STEPS if device.type == "cpu" else LAYER_STEPS_ON_GPU


def hop_and_seen(kernels: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, int]:
    """Samples from step to step, and those that one step sees, of convolutions one after another without padding."""
    hop, seen = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        seen += (kernel - 1) * hop
        hop *= stride
    return hop, seen


def hidden_of_long(
    model: Any,  # noqa: ANN401 - transformers' HubertModel, Wav2Vec2Model, WavLMModel or Data2VecAudioModel
    final_norm: "nn.Module",
    wave: "Callable[[int, int], Tensor]",
    num_samples: int,
    chunks: Sequence[Chunk],
) -> "Tensor":
    """``final_norm(model(...).last_hidden_state[0])`` [S, D] of a long recording, block by block.

    No row depends on which block it is in: the convolutions see what they see of the whole recording, and every step
    attends to all others of its chunk. Of a recording that is one chunk, HuBERT's and wav2vec 2.0's values are those of
    the whole at once, to the last bit on a CPU with one thread (tests/stages/test_hubert.py; with more threads torch's
    GELU rounds a few values of the whole recording otherwise). Equal within 1e-5 are: a group norm after the first
    convolution (base), whose mean and variance over all the time are gathered in a pass of their own, in float64;
    WavLM's attention with its position bias; and data2vec's positional convolutions.

    Attention alone is cut: what sees a limited stretch, the positional convolution too, sees it of the whole recording.

    In memory are, besides one block: the hidden states, and the inputs, keys and values of one layer, [S, D] each.

    Args:
        model: as ``keep_layers`` left it.
        wave: float samples [start, stop) of the recording, normalised, on the model's device in its precision.
        chunks: which steps attend to each other; what they keep are all steps, in order.
    """
    encoder: Any = model.encoder
    hidden = front_end(model, wave, num_samples)
    num_steps = len(hidden)
    _add_positions(encoder.pos_conv_embed, hidden)
    if not is_stable(model):
        for block in blocks(num_steps):
            hidden[block] = encoder.layer_norm(hidden[block])
    _through_layers(encoder.layers, hidden, chunks, stable=is_stable(model))
    for block in blocks(num_steps):
        hidden[block] = final_norm(hidden[block])
    return hidden


def front_end(
    model: Any,  # noqa: ANN401 - as in hidden_of_long
    wave: "Callable[[int, int], Tensor]",
    num_samples: int,
) -> "Tensor":
    """Convolutions over the samples and the projection behind them [S, D], block by block; as ``hidden_of_long``."""
    extractor: Any = model.feature_extractor
    hop, seen = hop_and_seen(tuple(model.config.conv_kernel), tuple(model.config.conv_stride))
    num_steps = (num_samples - seen) // hop + 1
    first = _first_convolution(extractor, wave, num_samples)
    hidden: Tensor | None = None
    for block in blocks(num_steps):
        rows = first(wave(block.start * hop, (block.stop - 1) * hop + seen)[None, None])  # [1, C, n / 5]
        for convolution in extractor.conv_layers[1:]:
            rows = convolution(rows)
        rows = model.feature_projection(rows.transpose(1, 2))
        rows = (rows[0] if isinstance(rows, tuple) else rows)[0]  # all but HuBERT's also give what they projected
        if hidden is None:
            hidden = rows.new_empty((num_steps, rows.shape[-1]))
        hidden[block] = rows
    if hidden is None:
        raise ValueError("no step to compute")
    return hidden


def is_stable(model: Any) -> bool:  # noqa: ANN401 - as in hidden_of_long
    """Whether norms stand before attention and MLP, and a final one after the last layer. data2vec knows no such."""
    return bool(getattr(model.config, "do_stable_layer_norm", False))


def _first_convolution(
    extractor: Any,  # noqa: ANN401 - transformers' module
    wave: "Callable[[int, int], Tensor]",
    num_samples: int,
) -> "Callable[[Tensor], Tensor]":
    """The first convolution with its norm and activation; a norm over time is given that of the whole recording."""
    from torch import nn

    layer = extractor.conv_layers[0]
    norm = getattr(layer, "layer_norm", None)
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
        # In float32, as torch's own norm: float16 rounds the shift of a recording that is off centre.
        found = rows.float() * scale[:, None].float() + shift[:, None].float()
        activated: Tensor = layer.activation(found.to(rows.dtype))
        return activated

    return normed


_MOMENTS_OF = 1 << 15
"""Positions of the first convolution (10 s) whose mean and variance are taken together."""


def _add_positions(positions: Any, hidden: "Tensor") -> None:  # noqa: ANN401 - transformers' module
    """Add the convolution over the hidden states [S, D] to them, in place; a block is given what its ends see."""
    import torch

    # data2vec has several convolutions, one after another; what one sees, they see together.
    layers = getattr(positions, "layers", [positions])
    reach = sum(layer.conv.kernel_size[0] // 2 for layer in layers)
    before = hidden[:0]  # the steps before the block, as they were
    for block in blocks(len(hidden), POSITIONS_STEPS):
        seen = torch.cat([before, hidden[block.start : block.stop + reach]])
        num_before, before = len(before), hidden[max(block.stop - reach, 0) : block.stop].clone()
        hidden[block] += positions(seen[None])[0, num_before : num_before + block.stop - block.start]


class _PositionBias:
    """What WavLM adds to the attention of step q to step k: a number for k - q, scaled by a gate that q opens."""

    def __init__(self, first_attention: Any, num_steps: int) -> None:  # noqa: ANN401 - transformers' module
        import torch

        ahead = first_attention.compute_bias(1, num_steps)[:, 0]  # [heads, S] of k - q = 0, 1, ...
        behind = first_attention.compute_bias(num_steps, 1)[:, :, 0]  # [heads, S] of k - q = 0, -1, ...
        self._by_distance = torch.cat([behind[:, 1:].flip(1), ahead], dim=1)  # [heads, 2 S - 1], rising
        self._num_steps = num_steps
        self.queries_at_once = max(1, BIAS_NUMBERS // (len(ahead) * num_steps))

    def of(self, attention: Any, rows: "Tensor", start: int) -> "Tensor":  # noqa: ANN401 - transformers' module
        """[heads, n, S] for the n steps from ``start`` on; ``rows`` [n, D]: what the queries are made of."""
        import torch

        stop = start + len(rows)
        windows = self._by_distance.unfold(1, self._num_steps, 1)  # [heads, S, S], a view; row i begins at distance i
        bias = windows[:, self._num_steps - stop : self._num_steps - start].flip(1)
        states = rows.view(len(rows), -1, attention.head_dim).transpose(0, 1)  # [heads, n, D / heads]
        gates = torch.sigmoid(attention.gru_rel_pos_linear(states).unflatten(-1, (2, 4)).sum(-1))
        update, reset = gates.chunk(2, dim=-1)  # [heads, n, 1] each
        scaled: Tensor = (update * (reset * attention.gru_rel_pos_const[0] - 1) + 2) * bias
        return scaled


def _through_layers(layers: Any, hidden: "Tensor", chunks: Sequence[Chunk], *, stable: bool) -> None:  # noqa: ANN401
    """All transformer layers, in place, one chunk after the other."""
    import torch

    shared = hidden[:0]  # steps of a chunk that the one before it has replaced, as they were
    for number, chunk in enumerate(chunks):
        rows = torch.cat([shared, hidden[chunk.seen.start + len(shared) : chunk.seen.stop]])
        if number + 1 < len(chunks):
            shared = hidden[chunks[number + 1].seen.start : chunk.kept.stop].clone()
        bias = None
        if len(layers) and hasattr(layers[0].attention, "compute_bias"):  # WavLM
            bias = _PositionBias(layers[0].attention, len(rows))
        for layer in layers:
            _through_layer(layer, rows, bias, stable=stable)
        hidden[chunk.kept] = rows[chunk.kept.start - chunk.seen.start : chunk.kept.stop - chunk.seen.start]


def _through_layer(
    layer: Any,  # noqa: ANN401 - transformers' module
    hidden: "Tensor",
    bias: _PositionBias | None,
    *,
    stable: bool,
) -> None:
    """One transformer layer, in place: keys and values of all steps [S, D] first, then block by block."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    attention = layer.attention
    keys, values = torch.empty_like(hidden), torch.empty_like(hidden)
    at_once = layer_steps(hidden.device)
    for block in blocks(len(hidden), at_once):
        rows = layer.layer_norm(hidden[block]) if stable else hidden[block]
        keys[block], values[block] = attention.k_proj(rows), attention.v_proj(rows)

    def heads(rows: "Tensor") -> "Tensor":
        return rows.view(1, len(rows), -1, attention.head_dim).transpose(1, 2)  # [1, heads, n, D / heads]

    def attended(rows: "Tensor", mask: "Tensor | None") -> "Tensor":
        queries = heads(attention.q_proj(rows))
        found = scaled_dot_product_attention(
            queries, heads(keys), heads(values), attn_mask=mask, scale=attention.scaling
        )
        return found.transpose(1, 2).reshape(len(rows), -1)  # [n, D]

    for block in blocks(len(hidden), at_once):
        rows = hidden[block]
        normed = layer.layer_norm(rows) if stable else rows
        if bias is None:
            found = attended(normed, None)
        else:
            starts = range(0, len(rows), bias.queries_at_once)
            pieces = zip(starts, normed.split(bias.queries_at_once), strict=True)
            found = torch.cat([attended(p, bias.of(attention, p, block.start + at)[None]) for at, p in pieces])
        rows = rows + attention.out_proj(found)
        if stable:
            hidden[block] = rows + layer.feed_forward(layer.final_layer_norm(rows))
        else:
            rows = layer.layer_norm(rows)
            hidden[block] = layer.final_layer_norm(rows + layer.feed_forward(rows))
