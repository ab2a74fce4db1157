"""XLM-R: the same stage with a SentencePiece vocabulary, against transformers' own network and tokenizer."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaModel,
    XLMRobertaTokenizer,
)

from extract.errors import WeightsError
from extract.models import roberta
from extract.stages.roberta import Roberta, RobertaConfig
from extract.weights.table import TABLE
from tests.contract import ClipContract, ClipInputs
from tests.stages.test_roberta import clip, ready, speech

XLMR = {"weights": "random", "architecture": "xlmr-small", "dtype": "float32"}

SENTENCES = [
    "meine lieben Landsleute, fragt nicht, was euer Land für euch tun kann",
    "ne demandez pas ce que votre pays peut faire pour vous",
    "не спрашивай, что твоя страна может сделать для тебя",
    "不要问 你的国家 能为你 做什么",
    "أيها المواطنون لا تسألوا عما يمكن لبلدكم أن يفعله لكم",
    "ask not what your country can do for you",
]


class TestXlmr(ClipContract):
    def stage(self):
        return Roberta(RobertaConfig(**XLMR))

    def clips(self):
        words = [(word, 0.4 * i, 0.4 * i + 0.3) for i, word in enumerate(" ".join(SENTENCES).split())]
        given = [(words, np.arange(150) / 10), (speech(2), np.arange(50) / 25), ([("x" * 1200, 0.0, 1.0)], [0.5])]
        return [ClipInputs(clip(words, pts_s), num_frames=len(pts_s)) for words, pts_s in given]


class TestXlmrUtterances(TestXlmr):
    def stage(self):
        return Roberta(RobertaConfig(**XLMR | {"context": "utterance", "pool": "mean"}))


def test_large_has_the_published_number_of_parameters():
    """559,890,432 with the pooler (1,049,600), which is not built here."""
    parameters = roberta.build("xlmr-large").parameters()
    assert sum(parameter.numel() for parameter in parameters) == 559_890_432 - 1_049_600


def test_large_is_transformers_xlm_roberta():
    """Names and shapes of a network of theirs that was built from what xlm-roberta-large's config.json says."""
    official = {
        "vocab_size": 250_002,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
    }
    with torch.device("meta"):
        theirs = XLMRobertaModel(XLMRobertaConfig(**official), add_pooling_layer=False)
    ours = roberta.build("xlmr-large")
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert {name: getattr(ours.config, name) for name in official} == official
    assert ours.config.hidden_act == theirs.config.hidden_act


def test_the_row_says_what_the_folder_holds():
    row = TABLE["xlm-roberta-large"]
    assert (row.architecture, row.files) == ("xlmr-large", ("config.json", "tokenizer.json"))
    assert row.source == "https://huggingface.co/FacebookAI/xlm-roberta-large"
    (_, token) = Roberta(RobertaConfig(weights=row.key, architecture="xlmr-large")).outputs
    assert token.sizes == (1024,)


# ---- folders as the hub has them ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vocabulary() -> list[tuple[str, float]]:
    """Pieces that a unigram model learned from a few sentences, in XLM-R's order: its four marks, pieces, the mask."""
    learning = Tokenizer(models.Unigram())
    learning.normalizer = normalizers.NFKC()
    learning.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    trainer = trainers.UnigramTrainer(vocab_size=160, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    learning.train_from_iterator(SENTENCES, trainer)
    learned = json.loads(learning.to_str())["model"]["vocab"]
    return [
        *((mark, 0.0) for mark in roberta.MARKS),
        *((piece, score) for piece, score in learned if piece != "<unk>"),
        ("<mask>", 0.0),
    ]


@pytest.fixture
def hub(tmp_path, monkeypatch, vocabulary) -> Path:
    """XLM-R's folder, written by transformers, language model head and pooler included; it asks for cut texts."""
    tokenizer = XLMRobertaTokenizer(vocab=vocabulary, model_max_length=512)
    backend = tokenizer.backend_tokenizer
    # Stands for the table of letters in the published file: it changes how many letters there are, too.
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("\u200b", "")])
    backend.enable_truncation(8)
    backend.enable_padding(length=12)
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "XLMRobertaTokenizer"}))
    sizes = roberta.Architecture(32, num_layers=1, heads=2, mlp_width=48, num_ids=len(vocabulary), vocabulary="unigram")
    monkeypatch.setitem(roberta.ARCHITECTURES, "xlmr-small", sizes)
    config = roberta.model_config("xlmr-small").to_dict() | {"model_type": "xlm-roberta"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    drawn = {f"roberta.{name}": torch.from_numpy(v) for name, v in roberta.random_weights("xlmr-small").items()}
    more = {"lm_head.bias": 3, "lm_head.dense.weight": 4, "roberta.embeddings.position_ids": 5}
    torch.save(drawn | {name: torch.zeros(n) for name, n in more.items()}, tmp_path / "pytorch_model.bin")
    return tmp_path


def official(folder: Path):
    """transformers' tokenizer of the file, which cuts and fills nothing, and its network with the same weights."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    model = XLMRobertaModel(XLMRobertaConfig.from_pretrained(folder), add_pooling_layer=False).eval()
    model.load_state_dict({name: torch.from_numpy(v) for name, v in roberta.random_weights("xlmr-small").items()})
    return tokenizer, model


TEXTS = [*SENTENCES, "ﬁn ①② euer\u200bLand", "\uff26ür  dich", "naïve 😀 café", "ḟ"]


def test_hub_folders_load_and_read_as_transformers_does(hub):
    tokenizer, model = official(hub)
    stage = ready(weights=str(hub), architecture="xlmr-small")
    for text in [*TEXTS, "</s> Land <mask> für"]:
        ids = tokenizer(text, truncation=False)["input_ids"]
        with torch.inference_mode():
            expected = model(torch.tensor([ids])).last_hidden_state[0, 1:-1]
        found = stage.compute(clip([(text, 0.0, 1.0)], [0.0]))
        assert found.arrays["token"].shape == expected.shape, text
        assert (found.arrays["token"] - expected).norm() / expected.norm() < 1e-5, text
        assert found.notes["unknown_tokens"] == ids.count(3), text
        assert found.notes["language"] == "multilingual"
    assert len(tokenizer(SENTENCES[0])["input_ids"]) > 12
    assert tokenizer("😀")["input_ids"].count(3) == 1


@pytest.mark.parametrize("text", TEXTS)
def test_each_word_has_its_own_tokens(hub, text):
    """Utterances: a window on one word gives as many rows as transformers makes of that word alone."""
    tokenizer, model = official(hub)
    stage = ready(weights=str(hub), architecture="xlmr-small", context="utterance", before_s=0, after_s=0)
    words = text.split()
    spoken = [(word, i, i + 0.5) for i, word in enumerate(words)]
    found = stage.compute(clip(spoken, np.arange(len(words)))).arrays
    with torch.inference_mode():
        whole = model(torch.tensor([tokenizer(" ".join(words))["input_ids"]])).last_hidden_state[0, 1:-1]
    at = 0
    for word, (start, stop) in zip(words, found["range"].tolist(), strict=True):
        length = len(tokenizer(word)["input_ids"]) - 2
        assert stop - start == length, word
        assert torch.allclose(found["token"][start:stop], whole[at : at + length], atol=1e-5), word
        at += length
    assert at == len(whole)


def test_words_that_have_no_letters_left_are_no_words(hub):
    """The table of letters drops some; a clip of nothing else says so, and a frame of nothing else has no rows."""
    nothing, something = ("\u200b", 0.0, 0.1), ("Land", 9.0, 9.1)
    for context in ("window", "utterance"):
        stage = ready(weights=str(hub), architecture="xlmr-small", context=context)
        assert stage.compute(clip([nothing], [0.0])).empty == "no_words"
        for pool, name in (("tokens", "token"), ("mean", "feature")):
            stage = ready(weights=str(hub), architecture="xlmr-small", context=context, pool=pool)
            found = stage.compute(clip([nothing, something], [0.0, 9.0])).arrays
            (first, stop), (start, end) = found["range"].tolist()
            assert first == stop
            assert end - start == len(found[name]) > 0


def test_ids_are_those_of_transformers_own_class(hub):
    """Which takes the pieces alone from the file, and builds the rest by itself."""
    tokenizer = AutoTokenizer.from_pretrained(hub)
    assert type(tokenizer) is XLMRobertaTokenizer
    stage = ready(weights=str(hub), architecture="xlmr-small")
    for text in SENTENCES:
        ids = stage._tokenizer.encode(text, add_special_tokens=False).ids
        assert [0, *ids, 2] == tokenizer(text, truncation=False, padding=False)["input_ids"]


def test_a_folder_without_its_vocabulary_is_refused_with_the_command(hub):
    (hub / "tokenizer.json").rename(hub / "sentencepiece.bpe.model")
    told = r"expected a folder with tokenizer\.json beside the tensors; where there is only sentencepiece\.bpe\.model"
    with pytest.raises(WeightsError, match=told):
        ready(weights=str(hub), architecture="xlmr-small")


def test_a_damaged_vocabulary_is_refused(hub):
    (hub / "tokenizer.json").write_text("{}")
    with pytest.raises(WeightsError, match="cannot read its vocabulary"):
        ready(weights=str(hub), architecture="xlmr-small")


def test_a_vocabulary_of_another_model_is_refused(hub, vocabulary):
    XLMRobertaTokenizer(vocab=vocabulary[:-2]).backend_tokenizer.save(str(hub / "tokenizer.json"))
    found = len(vocabulary) - 1  # the mask is added again
    with pytest.raises(WeightsError, match=f"a vocabulary of {found}, expected {len(vocabulary)} for xlmr-small"):
        ready(weights=str(hub), architecture="xlmr-small")


def test_a_vocabulary_in_another_order_is_refused(hub, vocabulary):
    turned = [vocabulary[1], vocabulary[0], *vocabulary[2:]]
    Tokenizer(models.Unigram(turned, 3)).save(str(hub / "tokenizer.json"))
    told = r"tokenizer.json begins with \['<pad>', '<s>', '</s>', '<unk>'\], expected \['<s>', '<pad>'"
    with pytest.raises(WeightsError, match=told):
        ready(weights=str(hub), architecture="xlmr-small")


def test_weights_of_the_english_network_are_refused(hub):
    config = json.loads((hub / "config.json").read_text()) | {"vocab_size": 50_265}
    (hub / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="not of architecture xlmr-small: vocab_size 50265, expected"):
        ready(weights=str(hub), architecture="xlmr-small")
