"""Pieces put together on the clip's clock, and the guards against words that nobody said."""

import math

import pytest

from extract.inputs.transcripts import Word
from extract.recognition.pieces import Piece
from extract.recognition.words import Heard, guarded, is_no_speech, is_repetitive, merge

HZ = 16_000


def piece(start_s, stop_s):
    return Piece(round(start_s * HZ), round(stop_s * HZ))


def test_pieces_are_moved_to_their_place_and_sorted():
    heard = [
        Heard((Word("b", 1.0, 1.5), Word("a", 0.25, 0.5)), "en", {"spread_words": 2}),
        Heard((), None),
        Heard((Word("  c  d ", 0.0, 2.0), Word(" \n", 0.5, 0.75)), "de", {"spread_words": 1}),
    ]
    merged = merge([piece(1, 4), piece(5, 6), piece(10, 12)], heard, HZ, start_s=-0.25)
    assert merged.words == (Word("a", 1.0, 1.25), Word("b", 1.75, 2.25), Word("c d", 9.75, 11.75))
    assert merged.language == "en"  # of two words; of one
    assert merged.notes == {"spread_words": 3}


@pytest.mark.parametrize(
    ("said", "stored"),
    [
        (Word("w", 0.5, 0.25), (0.5, 0.5)),  # ends before it starts
        (Word("w", -1.0, 0.5), (0.0, 0.5)),  # before its piece
        (Word("w", 1.5, 9.0), (1.5, 2.0)),  # behind its end
        (Word("w", 7.0, 9.0), (2.0, 2.0)),
        (Word("w", math.nan, 1.0), None),
        (Word("w", 0.0, math.inf), None),
    ],
)
def test_engines_are_not_trusted_with_times(said, stored):
    merged = merge([piece(3, 5)], [Heard((said,))], HZ, start_s=0.0)
    assert [(word.start_s - 3, word.end_s - 3) for word in merged.words] == ([stored] if stored else [])
    assert merged.notes == {"mended_times": 1}


def test_one_answer_per_piece():
    with pytest.raises(ValueError, match="zip"):
        merge([piece(0, 1), piece(1, 2)], [Heard(())], HZ, 0.0)


LOOPS = [
    "you you you you you you",
    "Thank you. " * 10,
    "No, no NO! no no... No",
    "and so it goes on and " * 6,
    f"{'lalalalala ' * 3}{'lalalalalala ' * 3}{'lalalalalalala ' * 6}",
]
SPEECH = [
    "",
    "no no no no",
    "And so my fellow Americans ask not what your country can do for you ask what you can do for your country",
    "bin blue at f two now",
    "row row row your boat gently down the stream merrily merrily merrily merrily life is but a dream",
]


def heard(text, **notes):
    return Heard(tuple(Word(word, i, i + 1) for i, word in enumerate(text.split())), "en", notes)


@pytest.mark.parametrize("text", LOOPS)
def test_loops_are_left_out(text):
    assert is_repetitive(text.split())
    assert guarded(heard(text, spread_words=1)) == Heard((), "en", {"spread_words": 1, "repetitive_pieces": 1})


@pytest.mark.parametrize("text", SPEECH)
def test_people_may_repeat_themselves(text):
    assert not is_repetitive(text.split())
    assert guarded(heard(text)) == heard(text)


@pytest.mark.parametrize(
    ("no_speech", "log_probability", "is_none"),
    [(0.9, -1.5, True), (0.9, -0.5, False), (0.3, -1.5, False), (0.6, -1.5, False), (0.9, -1.0, False)],
)
def test_a_piece_is_silence_by_both_numbers_of_whispers_rule(no_speech, log_probability, is_none):
    assert is_no_speech(no_speech, log_probability) == is_none
