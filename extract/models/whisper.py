"""Whisper (Radford et al. 2022, arXiv 2212.04356) as transformers builds it: sizes, special tokens, names, loading."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from extract.errors import ConfigError, WeightsError
from extract.models import random
from extract.weights.files import Weights
from extract.weights.loading import check_config, fill

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperTokenizer,
    )

SAMPLE_HZ = 16_000
WINDOW_S = 30
"""The network sees so much, always: what is shorter is followed by silence."""
POSITIONS = 1500
"""Of the encoder, 20 ms each."""
MAX_TOKENS = 448
"""Positions of the decoder."""


@dataclass(frozen=True)
class Architecture:
    """Sizes of one Whisper. The MLPs are four times as wide as the rest."""

    width: int
    num_layers: int
    heads: int
    num_decoder_layers: int
    num_mels: int = 80
    num_ids: int = 51_865


ARCHITECTURES = {
    "tiny": Architecture(384, num_layers=4, heads=6, num_decoder_layers=4),
    "base": Architecture(512, num_layers=6, heads=8, num_decoder_layers=6),
    "small": Architecture(768, num_layers=12, heads=12, num_decoder_layers=12),
    "medium": Architecture(1024, num_layers=24, heads=16, num_decoder_layers=24),
    "large-v3": Architecture(1280, num_layers=32, heads=20, num_decoder_layers=32, num_mels=128, num_ids=51_866),
    "large-v3-turbo": Architecture(1280, num_layers=32, heads=20, num_decoder_layers=4, num_mels=128, num_ids=51_866),
    "tiny.en": Architecture(384, num_layers=4, heads=6, num_decoder_layers=4, num_ids=51_864),
    "base.en": Architecture(512, num_layers=6, heads=8, num_decoder_layers=6, num_ids=51_864),
    "small.en": Architecture(768, num_layers=12, heads=12, num_decoder_layers=12, num_ids=51_864),
    "medium.en": Architecture(1024, num_layers=24, heads=16, num_decoder_layers=24, num_ids=51_864),
    "toy": Architecture(32, num_layers=2, heads=4, num_decoder_layers=2, num_ids=267 + 1501),
}
"""``.en``: English only. ``toy`` is for tests, and nobody published one: its text tokens are bytes. Of all ids the last
1,501 are times, 0 to 30 s, which this project does not ask for."""


def sizes_of(architecture: str) -> Architecture:
    """``ARCHITECTURES[architecture]``; ConfigError for another name."""
    if architecture not in ARCHITECTURES:
        raise ConfigError(f"architecture is {architecture!r}, expected one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[architecture]


SHOWN_IN_CONFIG = (
    "d_model",
    "encoder_layers",
    "decoder_layers",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "num_mel_bins",
    "vocab_size",
    "max_source_positions",
    "max_target_positions",
    "activation_function",
    "scale_embedding",
    "tie_word_embeddings",
)
"""Fields of ``config.json`` that change values and are the same in all files of one architecture."""

SHOWN_OF_SOUND = ("feature_size", "sampling_rate", "hop_length", "chunk_length", "n_fft")
"""Fields of ``preprocessor_config.json``, likewise."""


@dataclass(frozen=True)
class Specials:
    """Token ids that are no text, as ``generation_config.json`` has them; a text token's id is below ``end``."""

    end: int
    """``<|endoftext|>``."""
    start: int
    """``<|startoftranscript|>``."""
    no_timestamps: int
    transcribe: int | None
    """None: the model knows English and this one task only."""
    languages: Mapping[str, int]
    """Code (``en``) -> id of its token; empty where ``transcribe`` is None."""
    suppressed: tuple[int, ...]
    """Never chosen: what is written but not spoken, such as brackets and notes, and all beyond ``end``, times too."""
    suppressed_first: tuple[int, ...]
    """Never chosen as the first token."""
    alignment_heads: tuple[tuple[int, int], ...]
    """(layer, head) of the decoder's cross-attention whose weights follow what is being said."""

    @property
    def no_speech(self) -> int:
        """``<|nospeech|>``, whose probability after ``start`` is that of a window without speech."""
        return self.no_timestamps - 1

    def prompt(self, language: str | None) -> tuple[int, ...]:
        """What stands before the text: transcribe what is said in ``language``, without time tokens."""
        if self.transcribe is None or language is None:
            return (self.start, self.no_timestamps)
        return (self.start, self.languages[language], self.transcribe, self.no_timestamps)


TOY_SPECIALS = Specials(
    end=256,
    start=257,
    languages={"en": 258, "de": 259, "zh": 260},
    transcribe=262,  # 261 translates, 263 and 264 begin other prompts, 265 is no_speech
    no_timestamps=266,
    suppressed=tuple(range(257, ARCHITECTURES["toy"].num_ids)),
    suppressed_first=(220, 256),  # a space, and the end
    alignment_heads=((1, 0), (1, 2)),
)


def model_config(architecture: str) -> "WhisperConfig":
    """transformers' config; no dropout, masking or layer drop: left on, training mode would change values at random."""
    from transformers import WhisperConfig

    sizes = sizes_of(architecture)
    return WhisperConfig(
        vocab_size=sizes.num_ids,
        num_mel_bins=sizes.num_mels,
        d_model=sizes.width,
        encoder_layers=sizes.num_layers,
        decoder_layers=sizes.num_decoder_layers,
        encoder_attention_heads=sizes.heads,
        decoder_attention_heads=sizes.heads,
        encoder_ffn_dim=4 * sizes.width,
        decoder_ffn_dim=4 * sizes.width,
        max_source_positions=POSITIONS,
        max_target_positions=MAX_TOKENS,
        # Which ids are special is in Specials alone. A padding id would zero a row of the table in training only.
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        decoder_start_token_id=0,
        begin_suppress_tokens=None,
    )


def build(architecture: str) -> "WhisperForConditionalGeneration":
    """The network in eval mode on the meta device: names and shapes, no numbers yet."""
    import torch
    from transformers import WhisperForConditionalGeneration

    with torch.device("meta"):
        model: WhisperForConditionalGeneration = WhisperForConditionalGeneration(model_config(architecture))
    model.train(False)
    return model


def random_weights(architecture: str) -> "dict[str, np.ndarray[Any, Any]]":
    """Untrained tensors by transformers' names."""
    shapes = {name: tuple(tensor.shape) for name, tensor in build(architecture).state_dict().items()}
    del shapes["proj_out.weight"]  # the token table once more
    return dict(random.draw(shapes, seed=f"whisper/{architecture}"))


def load(
    architecture: str, weights: Weights, device: "torch.device | str" = "cpu", precision: "torch.dtype | None" = None
) -> "tuple[WhisperForConditionalGeneration, Specials]":
    """The network with its weights, on ``device`` in ``precision`` (float32 when absent), in eval mode, and its tokens.

    Raises:
        ConfigError: there is no such architecture.
        WeightsError: tensors, ``config.json`` or ``generation_config.json`` are not those of this architecture.
    """
    model = build(architecture)
    check_config(weights, architecture, model.config, SHOWN_IN_CONFIG)
    specials = read_specials(architecture, weights)
    tensors = weights.tensors(device)
    tensors.pop("proj_out.weight", None)  # some files hold the token table twice
    if "model.decoder.embed_tokens.weight" in tensors:
        tensors["proj_out.weight"] = tensors["model.decoder.embed_tokens.weight"]
    fill(model, tensors, weights.spec, device, precision)
    model.proj_out.weight = model.model.decoder.embed_tokens.weight
    model.requires_grad_(False)
    model.generation_config = greedy(specials)
    return model, specials


def read_specials(architecture: str, weights: Weights) -> Specials:
    """The special tokens of ``generation_config.json``; those of ``toy`` for random weights.

    Raises:
        WeightsError: there is no such file, fields are missing, or an id or head is not of this architecture.
    """
    if weights.untrained:
        if architecture != "toy":
            raise WeightsError(
                f"weights {weights.spec!r}: architecture {architecture} has no tokens without its files; "
                "set architecture: toy, or name weights"
            )
        return TOY_SPECIALS
    found = weights.read_json("generation_config.json")
    if found is None:
        raise WeightsError(
            f"weights {weights.spec!r}: there is no generation_config.json, which says the special tokens and the "
            "heads that word times come from; copy that of the model that these weights were tuned from"
        )
    num_ids = sizes_of(architecture).num_ids
    try:
        many, end = found.get("is_multilingual", True), _id(found["eos_token_id"])
        specials = Specials(
            end=end,
            start=_id(found["decoder_start_token_id"]),
            no_timestamps=_id(found["no_timestamps_token_id"]),
            transcribe=_id(found["task_to_id"]["transcribe"]) if many else None,
            languages={name.strip("<|>"): _id(number) for name, number in found["lang_to_id"].items()} if many else {},
            suppressed=tuple(sorted({*map(_id, found.get("suppress_tokens") or ()), *range(end + 1, num_ids)})),
            suppressed_first=tuple(map(_id, found.get("begin_suppress_tokens") or ())),
            alignment_heads=tuple((_id(layer), _id(head)) for layer, head in found["alignment_heads"]),
        )
    except KeyError as error:
        raise WeightsError(
            f"weights {weights.spec!r}: generation_config.json has no field {error}; copy the file of the model that "
            "these weights were tuned from"
        ) from None
    except (TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"weights {weights.spec!r}: generation_config.json is malformed: {error}") from None
    _check(architecture, weights, specials)
    return specials


def _id(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"found {value!r:.60}, expected a whole number")
    return value


def _check(architecture: str, weights: Weights, specials: Specials) -> None:
    sizes = sizes_of(architecture)
    ids = [specials.end, specials.start, specials.no_timestamps, *specials.languages.values()]
    ids += [*specials.suppressed, *specials.suppressed_first, *filter(None, [specials.transcribe])]
    wrong = sorted({number for number in ids if not 0 <= number < sizes.num_ids})
    if wrong:
        raise WeightsError(
            f"weights {weights.spec!r}: generation_config.json names the tokens {wrong[:5]}, architecture "
            f"{architecture} has 0 to {sizes.num_ids - 1}"
        )
    if specials.transcribe is not None and not specials.languages:
        raise WeightsError(f"weights {weights.spec!r}: generation_config.json names no language in lang_to_id")
    heads = [
        (layer, head)
        for layer, head in specials.alignment_heads
        if not (0 <= layer < sizes.num_decoder_layers and 0 <= head < sizes.heads)
    ]
    if heads or not specials.alignment_heads:
        raise WeightsError(
            f"weights {weights.spec!r}: generation_config.json names the alignment heads {heads or 'none'}, expected "
            f"some of {sizes.num_decoder_layers} layers with {sizes.heads} heads each"
        )


def greedy(specials: Specials) -> "GenerationConfig":
    """transformers' settings for the likeliest token at each step, and no text that is written but not spoken."""
    from transformers import GenerationConfig

    of_tasks: dict[str, Any] = {}
    if specials.transcribe is not None:
        of_tasks = {
            "lang_to_id": {f"<|{code}|>": number for code, number in specials.languages.items()},
            "task_to_id": {"transcribe": specials.transcribe},
        }
    return GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        num_beams=1,
        eos_token_id=specials.end,
        pad_token_id=specials.end,
        bos_token_id=specials.end,
        decoder_start_token_id=specials.start,
        no_timestamps_token_id=specials.no_timestamps,
        is_multilingual=specials.transcribe is not None,
        suppress_tokens=list(specials.suppressed) or None,
        begin_suppress_tokens=list(specials.suppressed_first) or None,
        **of_tasks,
    )


def load_features(architecture: str, weights: Weights) -> "WhisperFeatureExtractor":
    """Of samples, the log-mel energies that the network reads.

    Raises:
        WeightsError: ``preprocessor_config.json`` is of another architecture.
    """
    from transformers import WhisperFeatureExtractor

    num_mels = sizes_of(architecture).num_mels
    features: WhisperFeatureExtractor = WhisperFeatureExtractor(feature_size=num_mels)  # type: ignore[no-untyped-call]
    found = weights.read_json("preprocessor_config.json") or {}
    wrong = [
        f"{name} {found[name]!r}, expected {getattr(features, name)!r}"
        for name in SHOWN_OF_SOUND
        if name in found and found[name] != getattr(features, name)
    ]
    if wrong:
        raise WeightsError(
            f"weights {weights.spec!r}: preprocessor_config.json is not of architecture {architecture}: "
            f"{'; '.join(wrong)}"
        )
    return features


def load_tokenizer(weights: Weights, specials: Specials) -> "WhisperTokenizer":
    """Text of ids below ``specials.end``: the byte-level vocabulary of ``vocab.json``, else of ``tokenizer.json``.

    It only decodes: no merges are read. Random weights get the 256 bytes.

    Raises:
        WeightsError: the files are missing, damaged, or of another size.
    """
    from tokenizers import pre_tokenizers
    from transformers import WhisperTokenizer

    if weights.untrained:
        vocabulary: Any = {symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    else:
        vocabulary = weights.read_json("vocab.json")
        if vocabulary is None:
            model = (weights.read_json("tokenizer.json") or {}).get("model")
            vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if vocabulary is None:
        raise WeightsError(
            f"weights {weights.spec!r}: expected a folder with vocab.json or tokenizer.json beside the tensors"
        )
    text = {}
    for symbol, number in vocabulary.items() if isinstance(vocabulary, dict) else [("", vocabulary)]:
        if not isinstance(number, int) or isinstance(number, bool):
            raise WeightsError(
                f"weights {weights.spec!r}: the vocabulary is malformed at {symbol!r:.40}: found {number!r:.40}, "
                "expected an id for each token"
            )
        if not (symbol.startswith("<|") and symbol.endswith("|>")):  # special
            text[symbol] = number
    found = set(text.values())
    # One token of the multilingual models is an empty text, which some files leave out.
    if len(found) < specials.end - 1 or not found.issubset(range(specials.end)):
        raise WeightsError(
            f"weights {weights.spec!r}: {len(found)} text tokens in the vocabulary, expected 0 to {specials.end - 1}: "
            f"generation_config.json ends a text with token {specials.end}"
        )
    tokenizer: WhisperTokenizer = WhisperTokenizer(vocab=text, merges=[])
    return tokenizer
