"""Speech encoders of the wav2vec 2.0 kind as transformers builds them: four families, whose sizes config.json says.

HuBERT (arXiv 2106.07447), WavLM (2110.13900), wav2vec 2.0 (2006.11477) and data2vec (2202.03555) share convolutions
over the samples, a positional convolution and a transformer; they differ in how they were trained, and in a few details
that transformers' modules know.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from extract.errors import WeightsError
from extract.models import long_speech, random
from extract.models.chunks import Chunk
from extract.models.long_speech import hop_and_seen, is_stable
from extract.models.waveform import EPSILON, FAIRSEQ_EPSILON, Samples, normalised, whole_moments
from extract.timeline import Regular
from extract.weights.files import Weights
from extract.weights.loading import fill

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

Family = Literal["hubert", "wavlm", "wav2vec2", "data2vec"]


@dataclass(frozen=True)
class _Names:
    """What transformers calls a family."""

    model_type: str
    """In ``config.json``."""
    prefix: str
    """Of the encoder's tensors in the file of a model with a head."""


FAMILIES: Mapping[Family, _Names] = {
    "hubert": _Names("hubert", "hubert."),
    "wavlm": _Names("wavlm", "wavlm."),
    "wav2vec2": _Names("wav2vec2", "wav2vec2."),
    "data2vec": _Names("data2vec-audio", "data2vec_audio."),
}

HEADS = ("lm_head.", "quantizer.", "project_hid.", "project_q.", "projector.", "classifier.", "layer_weights")
"""How the names of what stands on top of an encoder begin, in files of pre-training, recognition, classification."""

TOY = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_conv_pos_embedding_groups": 16}
TOY_CONV_WIDTH = 32
"""The network of ``weights: random``, whose ``width`` the config says; nobody published one."""

TRAINING_ONLY = {
    "apply_spec_augment": False,
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
    "hidden_dropout": 0.0,
    "activation_dropout": 0.0,
    "attention_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
    "layerdrop": 0.0,
}
"""Masking, dropout and layer drop are off: left on, training mode masks at random."""


def clock(kernels: Sequence[int], strides: Sequence[int], sample_hz: int) -> Regular:
    """The steps of convolutions over samples: (10, 3, 3, 3, 3, 2, 2) and (5, 2, 2, 2, 2, 2, 2) hop 320 and see 400."""
    hop, seen = hop_and_seen(tuple(kernels), tuple(strides))
    return Regular(hop_s=Fraction(hop, sample_hz), window_s=Fraction(seen, sample_hz))


def toy_config(family: Family, width: int, kernels: Sequence[int], strides: Sequence[int]) -> dict[str, Any]:
    """``config.json`` of a small network, norms before attention and MLP where the family has the choice."""
    found = {
        "model_type": FAMILIES[family].model_type,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "conv_dim": [TOY_CONV_WIDTH] * len(kernels),
        "conv_kernel": list(kernels),
        "conv_stride": list(strides),
        **TOY,
    }
    stable = {} if family == "data2vec" else {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}
    return found | stable


def build(family: Family, config: Mapping[str, Any]) -> Any:  # noqa: ANN401 - transformers' model of the family
    """The network in eval mode on the meta device: names and shapes, no numbers yet.

    Args:
        config: the content of a ``config.json``.
    """
    import torch
    from transformers import (
        Data2VecAudioConfig,
        Data2VecAudioModel,
        HubertConfig,
        HubertModel,
        Wav2Vec2Config,
        Wav2Vec2Model,
        WavLMConfig,
        WavLMModel,
    )

    classes: dict[Family, tuple[Any, Any]] = {
        "hubert": (HubertConfig, HubertModel),
        "wavlm": (WavLMConfig, WavLMModel),
        "wav2vec2": (Wav2Vec2Config, Wav2Vec2Model),
        "data2vec": (Data2VecAudioConfig, Data2VecAudioModel),
    }
    config_type, model_type = classes[family]
    with torch.device("meta"):
        model = model_type(config_type.from_dict({**config, **TRAINING_ONLY}))
    model.train(False)
    return model


def random_weights(
    family: Family, width: int, kernels: Sequence[int], strides: Sequence[int]
) -> "dict[str, np.ndarray[Any, Any]]":
    """Untrained tensors of the toy network by transformers' names."""
    model = build(family, toy_config(family, width, kernels, strides))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return dict(random.draw(shapes, seed=f"speech/{family}/{width}"))


def load(
    family: Family,
    weights: Weights,
    width: int,
    kernels: Sequence[int],
    strides: Sequence[int],
    layer: int | Literal["last"],
    device: "torch.device | str" = "cpu",
    precision: "torch.dtype | None" = None,
) -> Any:  # noqa: ANN401 - transformers' model of the family
    """The network that the folder's ``config.json`` describes, with its weights, in eval mode; ``device`` and
    ``precision`` as of ``loading.fill``.

    ``width``, ``kernels`` and ``strides`` are what the stage declared its outputs by, and must be the folder's own;
    ``layer`` must be one of its layers.

    Raises:
        WeightsError: no ``config.json``, or of another family or size; tensors are missing, or are too many.
    """
    if weights.untrained:
        config = toy_config(family, width, kernels, strides)
    else:
        config = _config_of(weights)
        _check(weights, config, family, {"hidden_size": width, "conv_kernel": kernels, "conv_stride": strides})
    try:
        model = build(family, config)
    except Exception as error:  # transformers' classes check in many ways what they are given
        raise WeightsError(
            f"weights {weights.spec!r}: transformers builds no {family} from its config.json: {error}"
        ) from error
    num_layers = len(model.encoder.layers)
    if layer != "last" and layer > num_layers:
        raise WeightsError(f"weights {weights.spec!r} have layers 0 to {num_layers}, the config says layer {layer}")
    tensors = named_like_transformers(weights.tensors(device), prefix=FAMILIES[family].prefix)
    for name in [name for name in tensors if name.startswith(HEADS)]:
        del tensors[name]
    fill(model, tensors, weights.spec, device, precision)
    model.requires_grad_(False)
    return model


def _config_of(weights: Weights) -> dict[str, Any]:
    found = weights.read_json("config.json")
    if found is None:
        raise WeightsError(
            f"weights {weights.spec!r}: there is no config.json, which says the sizes of the network; name the folder "
            "that holds it beside the tensors"
        )
    return found


def _check(weights: Weights, config: Mapping[str, Any], family: Family, declared: Mapping[str, Any]) -> None:
    """Raise WeightsError where ``config.json`` is not what the stage's config says, or has what this cannot compute."""
    model_type = config.get("model_type")
    if model_type != FAMILIES[family].model_type:
        known = [name for name, names in FAMILIES.items() if names.model_type == model_type]
        hint = f"set family: {known[0]}" if known else f"expected {FAMILIES[family].model_type!r}"
        raise WeightsError(
            f"weights {weights.spec!r}: config.json is of model type {model_type!r}, the config says {family}; {hint}"
        )
    for field, said in declared.items():
        wanted = list(said) if isinstance(said, Sequence) else said
        if config.get(field) != wanted:
            ours = "width" if field == "hidden_size" else field
            raise WeightsError(
                f"weights {weights.spec!r}: config.json has {field} {config.get(field)!r}, the config says {wanted!r}; "
                f"set {ours}: {config.get(field)!r}, or name other weights"
            )
    if config.get("add_adapter") or config.get("adapter_attn_dim") is not None:
        raise WeightsError(
            f"weights {weights.spec!r}: the network has adapters (add_adapter, adapter_attn_dim of config.json), which "
            "change its steps or attention; stage speech takes encoders without"
        )


def named_like_transformers(tensors: "dict[str, Tensor]", *, prefix: str) -> "dict[str, Tensor]":
    """Names without the prefix of a model with a head, new names for weight norm, no mask vector (unused here)."""
    renamed = {}
    for name, tensor in tensors.items():
        name = name.removeprefix(prefix)
        name = name.replace("pos_conv_embed.conv.weight_g", "pos_conv_embed.conv.parametrizations.weight.original0")
        name = name.replace("pos_conv_embed.conv.weight_v", "pos_conv_embed.conv.parametrizations.weight.original1")
        renamed[name] = tensor
    renamed.pop("masked_spec_embed", None)
    return renamed


def keep_layers(
    model: Any,  # noqa: ANN401 - transformers' model of the family
    layer: int | Literal["last"],
) -> "nn.Module":
    """Cut the encoder after ``layer`` and take its final norm off. Returns that norm (identity if it has none).

    ``model(...).last_hidden_state`` is then the raw output of the last layer kept, in every version of transformers
    (which differ in whether their last hidden state is normed), and the layers after it are not computed.
    """
    from torch import nn

    encoder: Any = model.encoder
    encoder.layers = encoder.layers[: None if layer == "last" else layer]
    if not is_stable(model):
        return nn.Identity()  # the encoder's layer_norm stands before its first layer here
    norm: nn.Module = encoder.layer_norm
    encoder.layer_norm = nn.Identity()
    return norm


def hidden_states(
    model: Any,  # noqa: ANN401 - transformers' model of the family
    final_norm: "nn.Module",
    samples: Samples,
    num_steps: int,
    *,
    normalise: bool,
    precision: "torch.dtype",
    chunks: Sequence[Chunk] | None = None,
) -> "Tensor":
    """Hidden states [S, D] of a whole recording, of the last layer that ``keep_layers`` left.

    A recording of more than a minute goes through in blocks, with the same values (``long_speech.hidden_of_long``).

    Args:
        samples: [n] in [-1, 1], at the rate that the network was trained on.
        num_steps: those of ``clock``, at least one.
        normalise: bring the whole recording to mean 0 and variance 1 first.
        precision: what the network computes in.
        chunks: which steps attend to each other; None: all.
    """
    wave = _wave(samples, EPSILON if normalise else None, precision)
    return _hidden(model, final_norm, wave, len(samples), num_steps, chunks)


def hidden_states_of_pieces(
    model: Any,  # noqa: ANN401 - transformers' model of the family
    final_norm: "nn.Module",
    samples: Samples,
    piece_samples: int,
    *,
    normalise: bool,
    precision: "torch.dtype",
) -> "Tensor":
    """The same, but each piece of the recording goes through the network by itself, convolutions and all.

    As fairseq's ``dump_hubert_feature`` does it with pieces of 1,600,000 samples: the whole recording is normalised
    with epsilon 1e-5, and the steps of all pieces stand one after another. A step whose samples lie in two pieces does
    not exist: ``Regular(..., piece_s)`` is the clock.

    Args:
        samples: [n], at least one step long; the last piece may have none.
    """
    import torch

    wave = _wave(samples, FAIRSEQ_EPSILON if normalise else None, precision)
    hop, seen = hop_and_seen(tuple(model.config.conv_kernel), tuple(model.config.conv_stride))
    found = []
    for first in range(0, len(samples) - seen + 1, piece_samples):
        length = min(piece_samples, len(samples) - first)
        of_piece = partial(_shifted, wave, first)
        found.append(_hidden(model, final_norm, of_piece, length, (length - seen) // hop + 1, None))
    return torch.cat(found)


Wave = Callable[[int, int], "Tensor"]
"""Samples [start, stop) as the network takes them."""


def _wave(samples: Samples, epsilon: float | None, precision: "torch.dtype") -> Wave:
    """The recording in ``precision``; with ``epsilon`` the whole of it brought to mean 0 and variance 1."""
    moments = None if epsilon is None else whole_moments(samples)

    def wave(start: int, stop: int) -> "Tensor":
        part = samples[start:stop]
        return (part if moments is None or epsilon is None else normalised(part, moments, epsilon)).to(precision)

    return wave


def _shifted(wave: Wave, by: int, start: int, stop: int) -> "Tensor":
    return wave(by + start, by + stop)


def _hidden(
    model: Any,  # noqa: ANN401 - transformers' model of the family
    final_norm: "nn.Module",
    wave: Wave,
    num_samples: int,
    num_steps: int,
    chunks: Sequence[Chunk] | None,
) -> "Tensor":
    if long_speech.is_long(num_steps):
        every = slice(0, num_steps)
        return long_speech.hidden_of_long(model, final_norm, wave, num_samples, chunks or [Chunk(every, every)])
    hidden: Tensor = final_norm(model(wave(0, num_samples)[None]).last_hidden_state[0])
    return hidden
