"""Where long recordings are cut: closed forms and brute force over lengths."""

import itertools
from fractions import Fraction

import pytest

from extract.models.chunks import overlapping_chunks
from extract.stages.hubert import HUBERT_STEPS
from extract.stages.speech import OVERLAP_S, USUAL_MAX_S, EncoderConfig

MAX, OVERLAP = HUBERT_STEPS.num_steps(Fraction(USUAL_MAX_S)), 400
HOUR = 180_000


def sizes(chunks):
    return [chunk.seen.stop - chunk.seen.start for chunk in chunks]


def test_the_usual_chunks_in_steps():
    assert MAX == 14_999
    assert Fraction(OVERLAP_S) / HUBERT_STEPS.hop_s == OVERLAP


@pytest.mark.parametrize("num_steps", [0, 1, 400, 14_998, MAX])
def test_up_to_the_most_nothing_is_cut(num_steps):
    (chunk,) = overlapping_chunks(num_steps, MAX, OVERLAP)
    assert chunk.seen == chunk.kept == slice(0, num_steps)


def test_one_step_more_is_two_halves():
    first, second = overlapping_chunks(MAX + 1, MAX, OVERLAP)
    assert (first.seen, second.seen) == (slice(0, 7_700), slice(7_300, 15_000))
    assert (first.kept, second.kept) == (slice(0, 7_500), slice(7_500, 15_000))


def test_the_first_chunks_take_the_steps_that_are_left_over():
    """Part of the recipe: another place of a cut would be other values."""
    chunks = overlapping_chunks(40_001, MAX, OVERLAP)
    assert [chunk.seen for chunk in chunks] == [slice(0, 13_601), slice(13_201, 26_801), slice(26_401, 40_001)]
    assert [chunk.kept for chunk in chunks] == [slice(0, 13_401), slice(13_401, 26_601), slice(26_601, 40_001)]


@pytest.mark.parametrize("max_s", [200, 300, 600])
def test_every_length_from_the_most_to_three_hours(max_s):
    """At most 1.05 passes over each second; even, of at least 100 s, none over the most; every step kept once."""
    most = HUBERT_STEPS.num_steps(Fraction(max_s))
    lengths = {*range(most + 1, most + 1_200), *range(most + 1, 3 * HOUR, 47), *range(50 * 3_600, 3 * HOUR, 50)}
    passes = 0.0
    for num_steps in lengths:
        chunks = overlapping_chunks(num_steps, most, OVERLAP)
        found = sizes(chunks)
        assert max(found) - min(found) <= 1
        assert max(found) <= most
        assert min(found) >= 5_000  # 100 s
        assert chunks[0].seen.start == chunks[0].kept.start == 0
        assert chunks[-1].seen.stop == chunks[-1].kept.stop == num_steps
        for left, right in itertools.pairwise(chunks):
            assert left.seen.stop - right.seen.start == OVERLAP
            assert left.kept.stop == right.kept.start
        passes = max(passes, sum(found) / num_steps)
    # One overlap for every most - overlap steps: 8 s in 192 s, 292 s, 592 s.
    assert 1 + 0.9 * OVERLAP / most < passes < 1 + OVERLAP / (most - OVERLAP) < 1.05


def test_no_chunk_fewer_would_do():
    for num_steps in range(MAX + 1, 5 * MAX, 101):
        fewer = len(overlapping_chunks(num_steps, MAX, OVERLAP)) - 1
        assert num_steps + (fewer - 1) * OVERLAP > fewer * MAX


@pytest.mark.parametrize("overlap", [0, 1, 4, 5])
def test_a_step_is_kept_from_the_chunk_in_which_it_lies_more_deeply(overlap):
    """Brute force: the distance to the nearest end that was cut; the recording's own ends are none."""
    for num_steps in range(1, 80):
        chunks = overlapping_chunks(num_steps, 11, overlap)
        for step in range(num_steps):
            depths = {}
            for number, chunk in enumerate(chunks):
                if chunk.seen.start <= step < chunk.seen.stop:
                    before = step - chunk.seen.start if number else num_steps
                    after = chunk.seen.stop - 1 - step if number < len(chunks) - 1 else num_steps
                    depths[number] = min(before, after)
            deepest = max(depths, key=lambda number: (depths[number], -number))
            (keeper,) = [n for n, chunk in enumerate(chunks) if chunk.kept.start <= step < chunk.kept.stop]
            assert keeper == deepest, (num_steps, step)


@pytest.mark.parametrize(("most", "overlap"), [(10, 5), (10, 6), (10, -1), (0, 0)])
def test_an_overlap_that_puts_a_step_into_three_chunks_is_refused(most, overlap):
    with pytest.raises(ValueError, match=f"an overlap of {overlap} steps in chunks of {most}"):
        overlapping_chunks(100, most, overlap)


def test_settings():
    config = EncoderConfig(normalise=True)
    assert (config.max_s, config.chunks) == (300, "overlapping")
    assert EncoderConfig(normalise=True, max_s=600).of_recipe()["max_s"] == 600
    assert EncoderConfig(normalise=True, chunks="fairseq_100s").of_recipe()["chunks"] == "fairseq_100s"
    # The recipes of stores made before stay as they are; ``SpeechEncoder.outdated`` names the clips that it concerns.
    assert set(config.of_recipe()) == {"layer", "normalise", "dtype"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_s": 199}, "max_s"),
        ({"max_s": 250.5}, "max_s"),
        ({"chunks": "whole"}, "chunks"),
        ({"max_s": 400, "chunks": "fairseq_100s"}, "max_s is 400, but chunks: fairseq_100s cuts every 100 s"),
    ],
)
def test_settings_that_do_not_fit_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        EncoderConfig(normalise=True, **wrong)
