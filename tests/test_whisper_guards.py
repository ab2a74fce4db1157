"""No words where nobody speaks, and words where and when they are spoken: answers that the test decides."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from extract.inputs.transcripts import Word
from extract.recognition import whisper as engine_module
from extract.recognition.whisper import (
    LONGEST_WORD_S,
    is_invented,
    with_time,
    without_pauses,
)
from tests.toy_whisper import HZ, JFK, MUSIC_INVENTIONS, SILENCE_INVENTIONS, Answer, babbler, music, noise, stub, whole


@pytest.fixture
def toy(tmp_path):
    return babbler(tmp_path)


@pytest.fixture
def unguarded(monkeypatch):
    """Random weights babble: guards off, so that words are compared and not nothing with nothing."""
    monkeypatch.setattr(engine_module, "is_invented", lambda *_: False)
    monkeypatch.setattr(engine_module, "is_repetitive", lambda _: False)


# ---- no words where nobody speaks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", SILENCE_INVENTIONS.values(), ids=SILENCE_INVENTIONS)
def test_a_minute_of_silence_has_no_words(tmp_path, answer, monkeypatch):
    made = stub(tmp_path, lambda _: answer)
    heard = whole(made.engine, torch.zeros(60 * HZ), gate=False)
    assert len(made.given) >= 2  # the stub was asked: no gate kept the silence from it
    assert heard.words == ()
    assert sum(heard.notes.get(name, 0) for name in ("no_speech_pieces", "repetitive_pieces")) == len(made.given)
    for guard in ("is_invented", "is_repetitive"):
        monkeypatch.setattr(engine_module, guard, lambda *_: False)
    monkeypatch.setattr(engine_module, "LONGEST_WORD_S", math.inf)
    invented = made.engine.recognise([torch.zeros(30 * HZ)])[0]
    assert invented.words or set(answer.text) <= set(" .")  # the guards, not the stub, left them out


@pytest.mark.parametrize("answer", MUSIC_INVENTIONS.values(), ids=MUSIC_INVENTIONS)
def test_a_minute_of_music_has_no_words(tmp_path, answer):
    made = stub(tmp_path, lambda _: answer)
    heard = whole(made.engine, music(60), gate=True)  # which lets music through
    assert len(made.given) >= 2
    assert heard.words == ()
    assert sum(heard.notes.get(name, 0) for name in ("no_speech_pieces", "repetitive_pieces")) == len(made.given)


def test_confident_words_over_music_are_longer_than_words_are(tmp_path):
    """Two words in 30 s that nothing else gives away."""
    made = stub(tmp_path, lambda _: Answer(" Thank you.", 0.2, -0.3))
    heard = whole(made.engine, music(30), gate=False)
    assert heard.words == ()
    assert heard.notes["words_too_long"] == 2


@pytest.mark.parametrize(
    "answer",
    [
        JFK,
        replace(JFK, no_speech=0.9),  # confident, at length: Whisper's rule keeps it
        replace(JFK, log_probability=-1.3, no_speech=0.2),  # mumbled
        Answer(" Yes.", 0.3, -0.5),
        Answer(" No. No. No. No.", 0.1, -0.2),
        Answer(" you", 0.55, -0.4),
    ],
)
def test_what_is_spoken_is_kept(tmp_path, answer):
    num_words = len(answer.text.split())
    ids = len(stub(tmp_path / "first", lambda _: answer).ids(answer.text))
    made = stub(tmp_path / "second", lambda _: replace(answer, starts=range(0, 12 * (ids + 1), 12)))
    (heard,) = made.engine.recognise([noise(0.24 * ids + 0.5)])
    assert [word.text for word in heard.words] == answer.text.split()
    assert len(heard.words) == num_words
    assert heard.notes == {"language_en": 1}


def test_silence_between_two_speakers_stays_silent(tmp_path):
    """The answer goes by the sound: a piece's guard does not reach into the next piece."""
    made = stub(tmp_path, lambda mel: SILENCE_INVENTIONS["zeros"] if mel.std() < 1e-6 else replace(JFK, starts=None))
    spoken, silent = noise(20), torch.zeros(20 * HZ)
    first, second, third = made.engine.recognise([spoken, silent, spoken])
    assert first.words == third.words != ()
    assert second.words == ()
    assert second.notes == {"language_en": 1, "no_speech_pieces": 1}


@pytest.mark.parametrize(
    ("no_speech", "mean", "num_tokens", "expected"),
    [
        (0.61, -1.01, 40, True),  # the published rule
        (0.61, -0.99, 40, False),
        (0.59, -1.01, 40, False),
        (0.61, -0.1, 7, True),  # few tokens
        (0.61, -0.1, 8, False),
        (0.59, -0.1, 1, False),
        (0.31, -1.51, 40, True),  # unlikely
        (0.31, -1.49, 40, False),
        (0.29, -1.51, 40, False),
    ],
)
def test_the_rules_for_invented_texts(no_speech, mean, num_tokens, expected):
    assert is_invented(no_speech, mean, num_tokens) is expected


# ---- times ---------------------------------------------------------------------------------------------------------


def test_words_lie_where_their_tokens_attention_lies(tmp_path):
    """Closed form: token k is spoken from position starts[k] to starts[k + 1], 20 ms each."""
    text = " And so my fellow Americans, ask"
    made = stub(tmp_path, lambda _: Answer(text, 0.01, -0.1, starts=tuple(starts)))
    ids = made.ids(text)
    starts = np.cumsum([0, *np.random.default_rng(0).integers(5, 30, len(ids))]).tolist()
    (heard,) = made.engine.recognise([noise(starts[-1] * 0.02 + 1)])
    spelled = [made.tokenizer.decode([token]) for token in ids]
    begins = [number for number, token in enumerate(spelled) if token.startswith(" ")]
    expected = [
        (word, 0.02 * starts[first], 0.02 * starts[last])
        for word, first, last in zip(text.split(), begins, [*begins[1:], len(ids)], strict=True)
    ]
    assert any(last - first > 1 for first, last in itertools.pairwise(begins))  # words of several tokens
    assert [word.text for word in heard.words] == [word for word, _, _ in expected]
    found = [(word.start_s, word.end_s) for word in heard.words]
    assert found == [pytest.approx(times) for _, *times in expected]


def test_languages_without_spaces_have_words_of_one_letter(tmp_path):
    made = stub(tmp_path, lambda _: Answer("你好", 0.01, -0.1, language="zh", starts=range(0, 35, 5)))
    (heard,) = made.engine.recognise([noise(2)])
    assert [word.text for word in heard.words] == ["你", "好"]  # three bytes, three tokens each
    assert [(word.start_s, word.end_s) for word in heard.words] == [(0, pytest.approx(0.3)), (pytest.approx(0.3), 0.6)]
    assert (heard.language, heard.notes) == ("zh", {"language_zh": 1})


def test_what_has_no_letter_is_no_word(tmp_path):
    made = stub(tmp_path, lambda _: Answer(" ask ♪ ... not.", 0.01, -0.1, starts=range(0, 400, 10)))
    (heard,) = made.engine.recognise([noise(5)])
    assert [word.text for word in heard.words] == ["ask", "not."]


def test_pauses_belong_to_no_word():
    sound = torch.cat([noise(1, level=1e-3), noise(0.5), noise(1, level=1e-3), noise(0.5), noise(1, level=1e-3)])
    words = [Word("one", 0.0, 1.6), Word("two", 1.6, 4.0)]
    (one, two), dropped = without_pauses(words, sound)
    assert (one.start_s, one.end_s) == (pytest.approx(1.0, abs=0.04), pytest.approx(1.5, abs=0.04))
    assert (two.start_s, two.end_s) == (pytest.approx(2.5, abs=0.04), pytest.approx(3.0, abs=0.04))
    assert dropped == 0


def test_a_pause_need_not_be_as_quiet_as_digital_silence():
    """A tenth is zeros; the pause has the hiss of a tape, 40 dB below the voice."""
    sound = torch.cat([torch.zeros(HZ // 2), noise(2), noise(1, level=1e-3), noise(2, seed=1)])
    (word,), _ = without_pauses([Word("ask", 2.5, 4.0)], sound)
    assert (word.start_s, word.end_s) == (pytest.approx(3.5, abs=0.04), 4.0)


def test_quiet_sounds_belong_to_their_word():
    """The end of "this" is 20 dB below its vowel; the pauses are 40 dB below."""
    sound = torch.cat([noise(1, level=1e-3), noise(1), noise(0.4, level=1e-2), noise(1, level=1e-3)])
    (word,), _ = without_pauses([Word("this", 0.5, 3.0)], sound)
    assert (word.start_s, word.end_s) == (pytest.approx(1.0, abs=0.04), pytest.approx(2.4, abs=0.04))


def test_a_word_keeps_the_stretch_with_most_sound():
    """The end of the word before stands before the pause, and is not taken for this word."""
    sound = torch.cat([noise(0.1), noise(1, level=1e-4), noise(0.5)])
    (word,), _ = without_pauses([Word("ask", 0.0, 1.6)], sound)
    assert (word.start_s, word.end_s) == (pytest.approx(1.1, abs=0.04), pytest.approx(1.6))


@pytest.mark.parametrize("level", [0.0, 1e-4, 0.5])
def test_where_loud_and_quiet_are_alike_nothing_is_cut(level):
    words = [Word("one", 0.5, 1.0), Word("two", 1.0, 2.0)]
    kept, dropped = without_pauses(words, noise(3, level=level))
    assert (list(kept), dropped) == (words, 0)


def test_words_of_many_seconds_are_left_out():
    words = [Word("no", 0.0, LONGEST_WORD_S + 0.1), Word("yes", LONGEST_WORD_S + 0.1, 2 * LONGEST_WORD_S)]
    kept, dropped = without_pauses(words, noise(12))
    assert ([word.text for word in kept], dropped) == (["yes"], 1)


def test_a_lost_short_word_gets_the_shortest_time_and_a_row_of_them_none():
    timed = [("If", 0.0, 0.4), ("the", 0.4, 0.4), ("end", 0.4, 1.0), ("was", 1.0, 1.0), ("not", 1.0, 1.0)]
    words, dropped = with_time([Word(*word) for word in timed])
    assert [(word.text, word.start_s, word.end_s) for word in words] == [
        ("If", 0.0, 0.4),
        ("the", pytest.approx(0.38), 0.4),
        ("end", 0.4, 1.0),
    ]
    assert dropped == 2
    assert with_time([Word("first", 0.0, 0.0)]) == ([], 1)  # no time to give


@pytest.mark.usefixtures("unguarded")
@pytest.mark.parametrize("samples", [1, 100, 319, 320, 1_000, 5_000, 16_000, 100_001, 480_000])
def test_times_are_within_the_piece_and_in_order(toy, samples):
    (heard,) = toy.recognise([noise(samples / HZ, seed=samples)])
    assert all(0 <= word.start_s < word.end_s <= samples / HZ for word in heard.words)
    starts = [word.start_s for word in heard.words]
    assert starts == sorted(starts)
    assert all(word.text == " ".join(word.text.split()) != "" for word in heard.words)
