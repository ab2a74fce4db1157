"""RoBERTa (Liu et al. 2019, arXiv 1907.11692) as transformers builds it: sizes, tokens, names, loading.

XLM-R (Conneau et al. 2020, arXiv 1911.02116) is the same network with another vocabulary, for a hundred languages.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from extract.errors import WeightsError
from extract.models import random
from extract.weights.files import Weights
from extract.weights.loading import check_config, fill

if TYPE_CHECKING:
    import numpy as np
    import torch
    from tokenizers import Tokenizer
    from torch import Tensor
    from transformers import RobertaConfig, RobertaModel

BEGIN, PAD, END, UNKNOWN = 0, 1, 2, 3
MARKS = ("<s>", "<pad>", "</s>", "<unk>")
"""What these ids mean in every vocabulary of RoBERTa and XLM-R."""
MAX_TOKENS = 512
"""With ``<s>`` and ``</s>``: there are 514 positions, of which the padding id takes the first two."""
VOCABULARY_FILES = {"byte_bpe": ("vocab.json", "merges.txt"), "unigram": ("tokenizer.json",)}
"""What a folder must hold beside the tensors."""


@dataclass(frozen=True)
class Architecture:
    """Sizes of one RoBERTa."""

    width: int
    num_layers: int
    heads: int
    mlp_width: int
    num_ids: int = 50_265
    vocabulary: Literal["byte_bpe", "unigram"] = "byte_bpe"
    """RoBERTa's pairs of bytes, which spell any text; or XLM-R's pieces of words (SentencePiece), which lack a letter
    now and then."""


ARCHITECTURES = {
    "large": Architecture(1024, num_layers=24, heads=16, mlp_width=4096),
    "base": Architecture(768, num_layers=12, heads=12, mlp_width=3072),
    "small": Architecture(64, num_layers=2, heads=4, mlp_width=128, num_ids=4 + 256),
    "xlmr-large": Architecture(1024, num_layers=24, heads=16, mlp_width=4096, num_ids=250_002, vocabulary="unigram"),
    "xlmr-small": Architecture(64, num_layers=2, heads=4, mlp_width=128, num_ids=4 + 1 + 256, vocabulary="unigram"),
}
"""``small`` and ``xlmr-small`` are for tests and the demo: their tokens are bytes, and for the latter the beginnings of
words."""

SHOWN_IN_CONFIG = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "layer_norm_eps",
    "max_position_embeddings",
    "type_vocab_size",
    "vocab_size",
    "pad_token_id",
)
"""Fields of ``config.json`` that change values and are the same in all files of one architecture."""


def model_config(architecture: str) -> "RobertaConfig":
    """transformers' config, without dropout: left on, training mode would change values at random."""
    from transformers import RobertaConfig

    sizes = ARCHITECTURES[architecture]
    return RobertaConfig(
        vocab_size=sizes.num_ids,
        hidden_size=sizes.width,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.mlp_width,
        max_position_embeddings=MAX_TOKENS + PAD + 1,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def build(architecture: str) -> "RobertaModel":
    """The network in eval mode on the meta device: names and shapes, no numbers yet."""
    import torch
    from transformers import RobertaModel

    with torch.device("meta"):
        model: RobertaModel = RobertaModel(model_config(architecture), add_pooling_layer=False)
    # These two are no weights: without numbers of their own the network could not leave the meta device.
    for name, values in (("position_ids", torch.arange(MAX_TOKENS + PAD + 1)), ("token_type_ids", None)):
        filled = torch.zeros(MAX_TOKENS + PAD + 1, dtype=torch.long) if values is None else values
        model.embeddings.register_buffer(name, filled[None], persistent=False)
    model.train(False)
    return model


def random_weights(architecture: str) -> "dict[str, np.ndarray[Any, Any]]":
    """Untrained tensors by transformers' names."""
    shapes = {name: tuple(tensor.shape) for name, tensor in build(architecture).state_dict().items()}
    return dict(random.draw(shapes, seed=f"roberta/{architecture}"))


def load(
    architecture: str, weights: Weights, device: "torch.device | str" = "cpu", precision: "torch.dtype | None" = None
) -> "RobertaModel":
    """The network with its weights, on ``device`` in ``precision`` (float32 when absent), in eval mode.

    Raises:
        WeightsError: tensors or ``config.json`` are not those of this architecture.
    """
    model = build(architecture)
    check_config(weights, architecture, model.config, SHOWN_IN_CONFIG)
    fill(model, encoder_only(weights.tensors(device)), weights.spec, device, precision)
    model.requires_grad_(False)
    return model


def encoder_only(tensors: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """Names without ``roberta.``; without what is not of the encoder: heads, the pooler, position numbers."""
    named = {name.removeprefix("roberta."): tensor for name, tensor in tensors.items()}
    return {
        name: tensor
        for name, tensor in named.items()
        if not name.startswith(("lm_head.", "pooler.")) and name != "embeddings.position_ids"
    }


def load_tokenizer(architecture: str, weights: Weights) -> "Tokenizer":
    """Text to ids, without ``<s>`` and ``</s>``: the vocabulary lies beside the tensors (``VOCABULARY_FILES``).

    Random weights get a vocabulary of the 256 bytes. The letters ``<s>`` in a text are letters to RoBERTa's vocabulary;
    XLM-R's takes them for its mark, as it does in transformers.

    Raises:
        WeightsError: the files are missing, damaged, or of another size than the network's table.
    """
    sizes = ARCHITECTURES[architecture]
    tokenizer = _byte_bpe(weights) if sizes.vocabulary == "byte_bpe" else _unigram(weights)
    found, expected = tokenizer.get_vocab_size(), sizes.num_ids
    if found != expected:
        raise WeightsError(f"weights {weights.spec!r}: a vocabulary of {found}, expected {expected} for {architecture}")
    return tokenizer


def _byte_bpe(weights: Weights) -> "Tokenizer":
    """RoBERTa's. A text begins without a space, as a sentence does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    if weights.untrained:
        symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
        bpe = models.BPE({name: number for number, name in enumerate([*MARKS, *symbols])}, [])
    else:
        files = _vocabulary_files(weights, "byte_bpe")
        try:
            bpe = models.BPE.from_file(*files)
        except Exception as error:  # the library has no type of its own for a damaged file
            raise WeightsError(f"weights {weights.spec!r}: cannot read its vocabulary: {error}") from error
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _unigram(weights: Weights) -> "Tokenizer":
    """XLM-R's, as ``tokenizer.json`` has it: with the table that unifies letters, which no other file says readably."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    if weights.untrained:
        pieces = [*((mark, 0.0) for mark in MARKS), ("▁", -1.0), *((f"<0x{byte:02X}>", -10.0) for byte in range(256))]
        tokenizer = Tokenizer(models.Unigram(pieces, UNKNOWN, byte_fallback=True))
        parts = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
        return tokenizer
    (file,) = _vocabulary_files(weights, "unigram")
    try:
        tokenizer = Tokenizer.from_file(file)
    except Exception as error:  # likewise
        raise WeightsError(f"weights {weights.spec!r}: cannot read its vocabulary: {error}") from error
    marks = [tokenizer.id_to_token(number) for number in range(len(MARKS))]
    if marks != [*MARKS]:
        raise WeightsError(f"weights {weights.spec!r}: tokenizer.json begins with {marks}, expected {[*MARKS]}")
    # The file may ask for these, which would shorten a text or lengthen it.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _vocabulary_files(weights: Weights, vocabulary: str) -> list[str]:
    folder = weights.path if weights.path is not None and weights.path.is_dir() else None
    names = VOCABULARY_FILES[vocabulary]
    files = [folder / name for name in names] if folder else []
    if not files or not all(file.is_file() for file in files):
        hint = (
            "; where there is only sentencepiece.bpe.model, transformers' "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes it"
        )
        raise WeightsError(
            f"weights {weights.spec!r}: expected a folder with {' and '.join(names)} beside the tensors"
            f"{hint if vocabulary == 'unigram' else ''}"
        )
    return [str(file) for file in files]
