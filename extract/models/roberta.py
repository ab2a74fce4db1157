"""RoBERTa (Liu et al. 2019, arXiv 1907.11692) as transformers builds it: sizes, tokens, names, loading."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
"""Ids of ``<s>``, ``<pad>``, ``</s>``, ``<unk>`` in every RoBERTa vocabulary."""
MAX_TOKENS = 512
"""With ``<s>`` and ``</s>``: there are 514 positions, of which the padding id takes the first two."""
VOCABULARY_FILES = ("vocab.json", "merges.txt")


@dataclass(frozen=True)
class Architecture:
    """Sizes of one RoBERTa."""

    width: int
    num_layers: int
    heads: int
    mlp_width: int
    num_ids: int = 50_265


ARCHITECTURES = {
    "large": Architecture(1024, num_layers=24, heads=16, mlp_width=4096),
    "base": Architecture(768, num_layers=12, heads=12, mlp_width=3072),
    "small": Architecture(64, num_layers=2, heads=4, mlp_width=128, num_ids=4 + 256),
}
"""``small`` is for tests and the demo: its tokens are bytes."""

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
    """Byte-level BPE of text to ids, without ``<s>`` and ``</s>``: ``vocab.json`` and ``merges.txt`` of the folder.

    Random weights get a vocabulary of the 256 bytes and no merges. A text begins without a space, as a sentence does.

    Raises:
        WeightsError: the files are missing, damaged, or of another size than the network's table.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    if weights.untrained:
        symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {name: number for number, name in enumerate(["<s>", "<pad>", "</s>", "<unk>", *symbols])}
        bpe = models.BPE(vocabulary, [])
    else:
        folder = weights.path if weights.path is not None and weights.path.is_dir() else None
        files = [folder / name for name in VOCABULARY_FILES] if folder else []
        if not files or not all(file.is_file() for file in files):
            raise WeightsError(
                f"weights {weights.spec!r}: expected a folder with {' and '.join(VOCABULARY_FILES)} beside the tensors"
            )
        try:
            bpe = models.BPE.from_file(str(files[0]), str(files[1]))
        except Exception as error:  # the library has no type of its own for a damaged file
            raise WeightsError(f"weights {weights.spec!r}: cannot read its vocabulary: {error}") from error
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    found, expected = tokenizer.get_vocab_size(), ARCHITECTURES[architecture].num_ids
    if found != expected:
        raise WeightsError(f"weights {weights.spec!r}: a vocabulary of {found}, expected {expected} for {architecture}")
    return tokenizer
