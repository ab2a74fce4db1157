import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, RobertaModel
from transformers import RobertaConfig as TransformersConfig

from extract.errors import WeightsError
from extract.models import roberta
from extract.stages import roberta as stages_roberta
from extract.stages.roberta import PIECE_TOKENS, Roberta, RobertaConfig
from tests.contract import ClipContract, ClipInputs, context

SMALL = {"weights": "random", "architecture": "small", "dtype": "float32"}


def ready(**config):
    stage = Roberta(RobertaConfig(**(SMALL | config)))
    stage.setup(context(stage))
    return stage


def clip(words, pts_s):
    """``words``: (text, start_s, end_s) each, in the order in which they begin."""
    times = np.array([word[1:] for word in words], dtype=np.float64).reshape(-1, 2)
    return {
        "transcribe.text": [word[0] for word in words],
        "transcribe.start_s": torch.from_numpy(times[:, 0].copy()),
        "transcribe.end_s": torch.from_numpy(times[:, 1].copy()),
        "frames.pts_s": torch.as_tensor(np.asarray(pts_s, dtype=np.float64)),
    }


def speech(duration_s, words_per_s=2.5, seed=0):
    """Words one after another, with a pause now and then."""
    random = np.random.default_rng(seed)
    vocabulary = ["bin", "blue", "at", "now", "please", "white", "by", "seven", "again", "lay"]
    words, at = [], 0.3
    while at < duration_s - 0.5:
        length = float(random.uniform(0.15, 0.6 / words_per_s * 1.6))
        words.append((str(random.choice(vocabulary)), at, at + length))
        at += length + (float(random.uniform(0.5, 1.5)) if random.random() < 0.1 else 0.05)
    return words


class TestRoberta(ClipContract):
    def stage(self):
        return Roberta(RobertaConfig(**SMALL))

    def clips(self):
        given = [
            (speech(4), np.arange(100) / 25),
            (speech(2, seed=1), np.cumsum(np.random.default_rng(2).uniform(0.01, 0.1, 40))),
            ([("late", 60.0, 61.0)], np.arange(30) / 30),
            ([("one", 0.0, 0.2)], [0.0]),
            ([("wide 😀 " + "x" * 700, 0.0, 9.0), ("in", 1.0, 1.0)], np.arange(10.0)),
        ]
        return [ClipInputs(clip(words, pts_s), num_frames=len(pts_s)) for words, pts_s in given]


class TestHalf(TestRoberta):
    def stage(self):
        return Roberta(RobertaConfig(**SMALL | {"dtype": "float16", "before_s": 0.5, "after_s": 0.0}))


def reference(texts):
    """Oracle: transformers' own network in float32, each text alone between <s> and </s>."""
    sizes = roberta.ARCHITECTURES["small"]
    config = TransformersConfig(
        vocab_size=sizes.num_ids,
        hidden_size=sizes.width,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.mlp_width,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )
    model = RobertaModel(config, add_pooling_layer=False).eval()
    drawn = {name: torch.from_numpy(values) for name, values in roberta.random_weights("small").items()}
    model.load_state_dict(drawn)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found = []
    for text in texts:
        symbols = "".join(piece for piece, _ in byte_level.pre_tokenize_str(text))
        ids = torch.tensor([[0, *(4 + alphabet.index(symbol) for symbol in symbols), 2]])
        with torch.inference_mode():
            found.append(model(ids).last_hidden_state[0, 1:-1])
    return found


def test_every_frame_has_the_tokens_of_its_words():
    """Against counting: for each frame, the words that meet its window, encoded alone by transformers."""
    words, pts_s = speech(6), np.arange(150) / 25
    found = ready().compute(clip(words, pts_s)).arrays
    expected: dict[str, torch.Tensor] = {}
    for t, (start, stop) in zip(pts_s, found["range"].tolist(), strict=True):
        text = " ".join(word for word, begin, end in words if begin <= t + 2 + 1e-9 and end >= t - 2 - 1e-9)
        if text not in expected:
            expected[text] = reference([text])[0]
        tokens = found["token"][start:stop]
        assert tokens.shape == expected[text].shape
        assert (tokens - expected[text]).norm() / expected[text].norm() < 1e-5
    assert len(expected) > 10
    assert len(found["token"]) == sum(len(tokens) for tokens in expected.values())


def test_each_text_is_read_once_and_seldom():
    """Counted: on speech at 30 fps at most one text for seven frames, and the network runs less often still."""
    stage = ready()
    read = []
    forward = stage._model.forward
    stage._model.forward = lambda ids, **rest: read.append(ids) or forward(ids, **rest)
    frames = np.arange(60 * 30) / 30
    result = stage.compute(clip(speech(60), frames))
    texts = [tuple(row.tolist()) for ids in read for row in ids]
    assert len(texts) == len(set(texts)) == result.notes["texts"]
    assert len(read) == result.notes["forwards"]
    assert len(texts) <= len(frames) / 7
    assert len(read) < len(texts) / 2


def fed(stage, monkeypatch):
    """The ids of every forward, and the masks that attention was given."""
    read, masks = [], []
    forward, attend = stage._model.forward, torch.nn.functional.scaled_dot_product_attention

    def masked(*given, attn_mask=None, **more):
        masks.append(attn_mask)
        return attend(*given, attn_mask=attn_mask, **more)

    monkeypatch.setattr(stage._model, "forward", lambda ids: read.append(ids.clone()) or forward(ids))
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", masked)
    return read, masks


LETTERS = np.random.default_rng(3).integers(ord("a"), ord("z"), (200, 4))
LONG = clip(
    [("".join(map(chr, word)), 0.3 * i, 0.3 * i + 0.2) for i, word in enumerate(LETTERS)] + [("x" * 1200, 70.0, 70.1)],
    np.arange(75 * 30) / 30,
)
"""Words of four letters, so that many texts are of one length, and one that takes three pieces."""


@pytest.mark.parametrize("budget", [1, 200, 700, 1 << 14])
def test_as_many_texts_of_one_length_go_together_as_fit(monkeypatch, budget):
    """Nothing is padded, so nothing is masked; equal to one text at a time within 1e-5. As on a GPU: no other limit."""
    stage = ready()
    monkeypatch.setattr(stages_roberta, "TOKENS_AT_ONCE", budget)
    stage.batch = 1 << 20
    read, masks = fed(stage, monkeypatch)
    found = stage.compute(LONG)
    assert all(not (ids == roberta.PAD).any() for ids in read)
    assert masks
    assert all(mask is None for mask in masks)
    num_texts = Counter(ids.shape[1] for ids in read for _ in ids)
    assert len(read) == sum(-(-count // max(1, budget // length)) for length, count in num_texts.items())
    assert all(ids.numel() <= budget or len(ids) == 1 for ids in read)
    assert num_texts[PIECE_TOKENS + 2] == 2
    assert max(num_texts.values()) > 100
    if budget > 1:
        monkeypatch.setattr(stages_roberta, "TOKENS_AT_ONCE", 1)
        alone = stage.compute(LONG)
        assert torch.equal(found.arrays["range"], alone.arrays["range"])
        apart = (found.arrays["token"] - alone.arrays["token"]).norm(dim=1) / alone.arrays["token"].norm(dim=1)
        assert apart.max() < 1e-5


def as_before(stage, texts):
    """The loop as it was when the first stores were made: 32 texts of a length, in the order in which they come."""
    pieces = [text[at : at + PIECE_TOKENS] for text in texts for at in range(0, len(text), PIECE_TOKENS)]
    hidden, by_length = {}, defaultdict(list)
    for i, piece in enumerate(pieces):
        by_length[len(piece)].append(i)
    with torch.inference_mode():
        for members in by_length.values():
            for at in range(0, len(members), 32):
                ids = torch.tensor([[0, *pieces[i], 2] for i in members[at : at + 32]])
                states = stage._model(ids).last_hidden_state[:, 1:-1]
                hidden.update(zip(members[at : at + 32], states, strict=True))
    return torch.cat([hidden[i] for i in range(len(pieces))])


def test_on_a_cpu_the_bytes_are_those_of_stores_made_before(monkeypatch):
    stage, given = ready(), []
    encode = stage._encode
    monkeypatch.setattr(stage, "_encode", lambda texts: given.append(texts) or encode(texts))
    read, _ = fed(stage, monkeypatch)
    found = stage.compute(LONG).arrays["token"]
    (texts,) = given
    assert max(Counter(map(len, texts)).values()) > max(map(len, read)) == 32
    assert torch.equal(found, as_before(stage, texts))


def test_words_that_come_again_are_not_read_again():
    once = [("yes", 0.0, 0.5)]
    again = [*once, ("yes", 20.0, 20.5), ("yes", 40.0, 40.5)]
    pts_s = np.arange(0, 45, 0.5)
    one, three = ready().compute(clip(once, pts_s)), ready().compute(clip(again, pts_s))
    assert torch.equal(one.arrays["token"], three.arrays["token"])
    spoken = three.arrays["range"].tolist()
    assert spoken[0] == spoken[41] == spoken[81] == [0, 3]
    assert spoken[10] == [0, 0]


def test_windows_are_exact_for_a_variable_frame_rate():
    """A word from 5 to 6 s meets the closed window of t from 3 to 8 s; a nanosecond more and it does not."""
    pts_s = [2.999999999, 3.0, 4.7, 8.0, 8.000000001]
    ranges = ready().compute(clip([("now", 5.0, 6.0)], pts_s)).arrays["range"].tolist()
    assert ranges == [[0, 0], [0, 3], [0, 3], [0, 3], [0, 0]]


def test_more_text_than_the_network_reads_is_read_in_pieces():
    """1,300 bytes: 510 + 510 + 280 tokens, each piece between <s> and </s>, one after another."""
    text = "".join(chr(ord("a") + i % 26) for i in range(1300))
    found = ready().compute(clip([(text, 0.0, 1.0)], [0.0])).arrays
    assert found["range"].tolist() == [[0, 1300]]
    expected = torch.cat(reference([text[:PIECE_TOKENS], text[PIECE_TOKENS : 2 * PIECE_TOKENS], text[1020:]]))
    assert (found["token"] - expected).norm() / expected.norm() < 1e-5


def test_words_that_no_frame_meets_are_empty_and_counted():
    result = ready().compute(clip([("late", 60.0, 61.0)], [0.0, 1.0]))
    assert (result.empty, dict(result.arrays)) == ("no_words", {})
    assert result.notes == {"words": 1, "words_never_met": 1, "word_sets": 1}


@pytest.mark.parametrize(("architecture", "width"), [("large", 1024), ("base", 768), ("small", 64)])
def test_width_is_known_without_weights(architecture, width):
    span, token = Roberta(RobertaConfig(architecture=architecture)).outputs
    assert (token.sizes, token.dtype, span.sizes, span.dtype) == ((width,), "float16", (2,), "int32")


def test_large_has_the_published_number_of_parameters():
    """355,359,744 with the pooler (1,049,600), which is not built here."""
    parameters = roberta.build("large").parameters()
    assert sum(parameter.numel() for parameter in parameters) == 355_359_744 - 1_049_600


MERGES = [("Ġ", "b"), ("i", "n"), ("Ġb", "in"), ("l", "u"), ("lu", "e"), ("Ġb", "lue")]


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """A folder as the hub has it: prefix, language model head and pooler, vocabulary with merges, config."""
    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(merge) for merge in MERGES)]
    vocabulary = {name: i for i, name in enumerate(["<s>", "<pad>", "</s>", "<unk>", *symbols, "<mask>"])}
    sizes = roberta.Architecture(32, num_layers=1, heads=2, mlp_width=48, num_ids=len(vocabulary))
    monkeypatch.setitem(roberta.ARCHITECTURES, "base", sizes)
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(merge) for merge in MERGES) + "\n")
    tensors = {f"roberta.{name}": torch.from_numpy(v) for name, v in roberta.random_weights("base").items()}
    more = {"lm_head.bias": 3, "roberta.pooler.dense.weight": 4, "roberta.embeddings.position_ids": 5}
    torch.save(tensors | {name: torch.zeros(n) for name, n in more.items()}, tmp_path / "pytorch_model.bin")
    config = roberta.model_config("base").to_dict() | {"model_type": "roberta"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


TEXTS = ["bin blue", "Bin blue at F two now", "naïve 😀  café", " bin", "<s> is text", "don't"]


def test_hub_folders_load_and_read_as_transformers_does(hub):
    tokenizer = AutoTokenizer.from_pretrained(hub)
    stage = ready(weights=str(hub), architecture="base")
    model = RobertaModel(roberta.model_config("base"), add_pooling_layer=False).eval()
    model.load_state_dict({name: torch.from_numpy(v) for name, v in roberta.random_weights("base").items()})
    for text in TEXTS:
        if "<s>" in text:  # transformers takes these letters for its own mark; spoken, they are letters
            continue
        ids = tokenizer(text)["input_ids"]
        assert stage._tokenizer.encode(text, add_special_tokens=False).ids == ids[1:-1], text
        with torch.inference_mode():
            expected = model(torch.tensor([ids])).last_hidden_state[0, 1:-1]
        found = stage.compute(clip([(text, 0.0, 1.0)], [0.0])).arrays["token"]
        assert (found - expected).norm() / expected.norm() < 1e-5, text
    assert stage._tokenizer.encode("bin blue bin").tokens == ["b", "in", "Ġblue", "Ġbin"]
    assert len(stage._tokenizer.encode("<s>").ids) == 3


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_folder_without_its_vocabulary_is_refused(hub, name):
    (hub / name).unlink()
    with pytest.raises(WeightsError, match=r"expected a folder with vocab\.json and merges\.txt beside the tensors"):
        ready(weights=str(hub), architecture="base")


def test_a_damaged_vocabulary_is_refused(hub):
    (hub / "merges.txt").write_text("#version: 0.2\nno pair at all here\n")
    with pytest.raises(WeightsError, match="cannot read its vocabulary"):
        ready(weights=str(hub), architecture="base")


def test_a_vocabulary_of_another_model_is_refused(hub):
    whole = json.loads((hub / "vocab.json").read_text())
    del whole["<mask>"]
    (hub / "vocab.json").write_text(json.dumps(whole))
    with pytest.raises(WeightsError, match="a vocabulary of 266, expected 267 for base"):
        ready(weights=str(hub), architecture="base")


def test_a_config_of_another_model_is_refused(hub):
    config = json.loads((hub / "config.json").read_text()) | {"num_attention_heads": 4, "layer_norm_eps": 1e-12}
    (hub / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="not of architecture base: num_attention_heads 4, expected 2; layer_norm"):
        ready(weights=str(hub), architecture="base")


def test_tensors_that_do_not_fit_are_refused(hub):
    tensors = torch.load(hub / "pytorch_model.bin")
    tensors["classifier.weight"] = torch.zeros(2)
    torch.save(tensors, hub / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"1 unexpected \(classifier.weight\)"):
        ready(weights=str(hub), architecture="base")


def test_training_mode_would_change_nothing():
    """Dropout is off in the config, not only by eval mode."""
    inputs = clip(speech(2), np.arange(50) / 25)
    stage = ready()
    expected = stage.compute(inputs).arrays["token"]
    stage._model.train()
    assert torch.equal(stage.compute(inputs).arrays["token"], expected)
