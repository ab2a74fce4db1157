"""RoBERTa within utterances, and means: against transformers' network run on whole utterances, frame by frame."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from extract.models import roberta
from extract.stages import roberta as stages_roberta
from extract.stages.roberta import PIECE_TOKENS, Roberta, RobertaConfig
from tests.contract import ClipContract, ClipInputs
from tests.stages.test_roberta import LONG, SMALL, clip, fed, ready, reference, speech

UTTERANCE = SMALL | {"context": "utterance"}

TALK = sorted(
    [
        *speech(12),
        ("wait", 3.05, 9.6),  # somebody else, so that words end in another order than they begin
        ("😀 naïve", 3.1, 3.2),
        *((word, at + 14.5, end + 14.5) for word, at, end in speech(4, seed=1)),
        ("yes", 30.0, 30.4),
        ("yes", 33.0, 33.4),
        ("gone", 60.0, 61.0),
    ],
    key=lambda word: (word[1], word[2]),
)
"""Several utterances, two voices at once, a text that comes again, and one that no frame meets."""
PTS_S = np.arange(0, 36, 0.09)


class TestUtterances(ClipContract):
    def stage(self):
        return Roberta(RobertaConfig(**UTTERANCE))

    def clips(self):
        given = [
            (TALK, PTS_S),
            (speech(2, seed=1), np.cumsum(np.random.default_rng(2).uniform(0.01, 0.1, 40))),
            ([("late", 60.0, 61.0)], np.arange(30) / 30),
            ([("one", 0.0, 0.2)], [0.0]),
            ([("wide 😀 " + "x" * 700, 0.0, 9.0), ("in", 1.0, 1.0)], np.arange(10.0)),
        ]
        return [ClipInputs(clip(words, pts_s), num_frames=len(pts_s)) for words, pts_s in given]


class TestMeanOfUtterances(TestUtterances):
    def stage(self):
        return Roberta(RobertaConfig(**UTTERANCE | {"pool": "mean", "dtype": "float16"}))


class TestMeanOfWindows(TestUtterances):
    def stage(self):
        return Roberta(RobertaConfig(**SMALL | {"pool": "mean"}))


def uttered(words, pause_s):
    """Word numbers of each utterance, by one look at a word after another; times are whole hundredths or finer."""
    found, over = [], None
    for number, (_, start, end) in enumerate(words):
        if over is None or round((start - over) * 1e9) > round(pause_s * 1e9):
            found.append([])
        found[-1].append(number)
        over = end if over is None else max(over, end)
    return found


def by_word(words, pause_s=1.0):
    """Oracle: tokens of each word, of transformers' network run on its whole utterance. A token is a byte."""
    tokens = {}
    for numbers in uttered(words, pause_s):
        states, at = reference([" ".join(words[i][0] for i in numbers)])[0], 0
        for place, i in enumerate(numbers):
            length = len(words[i][0].encode()) + (place > 0)  # the space before a word is the word's
            tokens[i] = states[at : at + length]
            at += length
        assert at == len(states)
    return tokens


def met(words, t):
    return [i for i, (_, begin, end) in enumerate(words) if begin <= t + 2 + 1e-9 and end >= t - 2 - 1e-9]


def test_every_frame_has_the_tokens_of_its_words_out_of_their_utterances():
    tokens = by_word(TALK)
    found = ready(context="utterance").compute(clip(TALK, PTS_S))
    seen = Counter()
    for t, (start, stop) in zip(PTS_S, found.arrays["range"].tolist(), strict=True):
        numbers = met(TALK, t)
        expected = torch.cat([tokens[i] for i in numbers]) if numbers else torch.empty(0, 64)
        rows = found.arrays["token"][start:stop]
        assert rows.shape == expected.shape, t
        assert (rows - expected).norm() <= 1e-5 * expected.norm(), t
        of_utterances = {u for u, members in enumerate(uttered(TALK, 1.0)) if set(members) & set(numbers)}
        seen["over two utterances"] += len(of_utterances) > 1
        seen["with a word left out"] += bool(numbers) and len(numbers) <= numbers[-1] - numbers[0]
        seen["no words"] += not numbers
    assert min(seen[what] for what in ("over two utterances", "with a word left out", "no words")) > 5, seen
    assert found.notes["utterances"] == len(uttered(TALK, 1.0)) == 6


def test_words_in_order_are_stored_once_each():
    """Where nobody talks at once, the array holds the tokens of the words met, and nothing twice."""
    words = [*speech(20), ("gone", 60.0, 61.0)]
    tokens = by_word(words)
    found = ready(context="utterance").compute(clip(words, np.arange(600) / 30)).arrays["token"]
    expected = torch.cat([tokens[i] for i in range(len(words) - 1)])
    assert found.shape == expected.shape
    assert (found - expected).norm() < 1e-5 * expected.norm()


def test_each_utterance_is_read_once_and_none_that_no_frame_meets(monkeypatch):
    stage = ready(context="utterance")
    read, masks = fed(stage, monkeypatch)
    notes = stage.compute(clip(TALK, PTS_S)).notes
    said = {" ".join(TALK[i][0] for i in numbers) for numbers in uttered(TALK, 1.0)} - {"gone"}
    texts = [stage._tokenizer.decode(row.tolist()[1:-1]) for ids in read for row in ids]
    assert sorted(texts) == sorted(said)
    assert len(said) == len(uttered(TALK, 1.0)) - 2  # "yes" twice, and "gone"
    assert (notes["texts"], notes["forwards"]) == (len(said), len(read))
    assert not any((ids == roberta.PAD).any() for ids in read)
    assert masks
    assert all(mask is None for mask in masks)


@pytest.mark.parametrize("config", [{}, {"pool": "mean"}, {"context": "window", "pool": "mean"}])
def test_values_do_not_depend_on_what_is_read_together(monkeypatch, config):
    """Utterances of three words of four letters, so that many texts are of one length."""
    letters = np.random.default_rng(5).integers(ord("a"), ord("z"), (90, 4))
    words = [
        ("".join(map(chr, word)), 0.4 * i + 1.5 * (i // 3), 0.4 * i + 1.5 * (i // 3) + 0.4)
        for i, word in enumerate(letters)
    ]
    stage, given = ready(**{"context": "utterance"} | config), clip(words, np.arange(800) / 10)
    stage.batch = 1 << 20
    read, _ = fed(stage, monkeypatch)
    together = stage.compute(given).arrays
    assert max(len(ids) for ids in read) >= 30
    monkeypatch.setattr(stages_roberta, "TOKENS_AT_ONCE", 1)
    read.clear()
    alone = stage.compute(given).arrays
    assert {len(ids) for ids in read} == {1}
    assert torch.equal(together["range"], alone["range"])
    (name,) = set(alone) - {"range"}
    apart = (together[name] - alone[name]).norm(dim=1) / alone[name].norm(dim=1)
    assert apart.max() < 1e-5


def test_an_utterance_over_the_limit_is_read_in_even_pieces():
    """1,000 words of 5 bytes with their space: 4,999 tokens in 10 pieces of 499 or 500, none longer than 510."""
    words = [(f"{i:04d}", 0.1 * i, 0.1 * i + 0.1) for i in range(1000)]
    text = " ".join(word for word, _, _ in words)
    found = ready(context="utterance", before_s=0.25, after_s=0.0).compute(clip(words, [0.25, 50.05, 99.95])).arrays
    edges = [4999 * i // 10 for i in range(11)]
    assert max(np.diff(edges)) <= PIECE_TOKENS
    states = torch.cat(reference([text[a:b] for a, b in itertools.pairwise(edges)]))
    for t, (start, stop) in zip([0.25, 50.05, 99.95], found["range"].tolist(), strict=True):
        numbers = [i for i, (_, a, b) in enumerate(words) if a <= t + 1e-9 and b >= t - 0.25 - 1e-9]
        expected = states[max(0, 5 * numbers[0] - 1) : 5 * numbers[-1] + 4]
        assert found["token"][start:stop].shape == expected.shape
        assert (found["token"][start:stop] - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize(("pause_s", "start_s", "utterances"), [(1.0, 2.5, 1), (1.0, 2.500000001, 2), (0.0, 1.6, 2)])
def test_a_pause_is_longer_than_pause_s_and_counted_to_the_nanosecond(pause_s, start_s, utterances):
    words = [("a", 0.0, 1.5), ("b", 0.5, 0.6), ("c", start_s, 3.0)]
    notes = ready(context="utterance", pause_s=pause_s).compute(clip(words, [1.0])).notes
    assert notes["utterances"] == utterances


def test_context_is_the_utterance_and_not_the_window():
    """The same words in the window, others in the utterance: other values; cut off by a pause, the same."""
    once = [("bin", 10.0, 10.4), ("blue", 10.4, 10.8)]
    near = [("lay", 7.0, 7.5), *once]
    joined = [("lay", 7.0, 7.9), ("down", 7.9, 7.99), ("then", 9.0, 9.1), *once]
    stage = ready(context="utterance", before_s=0.5, after_s=0.5)
    plain, apart, more = (stage.compute(clip(words, [10.2])).arrays["token"] for words in (once, near, joined))
    assert torch.equal(plain, apart)
    assert len(more) == len(plain) + 1  # "bin" begins with its space
    assert (more[1:] - plain).norm() > 1e-2 * plain.norm()


@pytest.mark.parametrize("context", ["window", "utterance"])
def test_a_mean_is_the_mean_of_the_frames_tokens(context):
    given = clip(TALK, PTS_S)
    tokens, means = (ready(context=context, pool=pool).compute(given).arrays for pool in ("tokens", "mean"))
    assert set(means) == {"range", "feature"}
    rows = {}
    for (start, stop), (row, end) in zip(tokens["range"].tolist(), means["range"].tolist(), strict=True):
        assert end - row == (stop > start)
        if stop > start:
            expected = tokens["token"][start:stop].double().mean(dim=0)
            assert (means["feature"][row].double() - expected).norm() < 1e-6 * expected.norm()
            assert rows.setdefault((start, stop), row) == row
    assert len(rows) == len(means["feature"]) == len(set(rows.values()))
    assert (means["range"][:, 0] == means["range"][:, 1]).any()


def test_a_pooled_long_window_is_the_mean_over_all_its_pieces():
    tokens, means = (ready(pool=pool).compute(LONG).arrays for pool in ("tokens", "mean"))
    lengths = tokens["range"][:, 1] - tokens["range"][:, 0]
    t = int(lengths.argmax())
    assert lengths[t] > 2 * PIECE_TOKENS
    expected = tokens["token"][slice(*tokens["range"][t].tolist())].mean(dim=0)
    assert torch.allclose(means["feature"][means["range"][t, 0]], expected, atol=1e-6)


def test_a_pause_without_utterances_is_refused():
    with pytest.raises(ValidationError, match="pause_s is 2, but context is window; pauses matter to context: utter"):
        RobertaConfig(pause_s=2.0)
    assert RobertaConfig(pause_s=2.0, context="utterance").pause_s == 2.0


def test_stores_made_before_these_settings_stay_up_to_date():
    """At their defaults they are in no recipe; a value of their own is."""
    fields = {"weights": "roberta-large", "architecture": "large", "before_s": 2.0, "after_s": 2.0, "dtype": "float16"}
    assert RobertaConfig().of_recipe() == fields
    assert RobertaConfig(context="utterance").of_recipe() == fields | {"context": "utterance"}
    assert RobertaConfig(pool="mean").of_recipe() == fields | {"pool": "mean"}
    assert RobertaConfig(context="utterance", pause_s=0.5).of_recipe()["pause_s"] == 0.5


def test_mean_and_tokens_are_declared_apart():
    span, feature = Roberta(RobertaConfig(pool="mean")).outputs
    assert (span.name, span.sizes, feature.name, feature.sizes) == ("range", (2,), "feature", (1024,))
    assert (feature.clock.axis, feature.dtype) == ("text", "float16")
