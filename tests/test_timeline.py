from fractions import Fraction

import numpy as np
import pytest

from extract.timeline import Regular, centred_windows, nanoseconds, neighbours, utterances, words_met

STEPS = Regular(Fraction(320, 16_000), Fraction(400, 16_000))


@pytest.mark.parametrize(("samples", "steps"), [(399, 0), (400, 1), (719, 1), (720, 2), (16_000, 49), (160_000, 499)])
def test_one_second_has_49_steps(samples, steps):
    assert STEPS.num_steps(Fraction(samples, 16_000)) == steps


def test_centres_are_those_of_exact_arithmetic():
    start = 2.43
    exact = [Fraction(start) + Fraction(320 * k + 200, 16_000) for k in range(200_000)]
    centres = STEPS.centres_s(200_000, start)
    assert np.abs(centres - np.array([float(c) for c in exact])).max() < 1e-12 * 4_000


def brute_force(centres, at, before, after):
    """By exact fractions of the true times, one window after the other."""
    return [(sum(c < t - before for c in centres), sum(c < t + after for c in centres)) for t in at]


@pytest.mark.parametrize(
    ("start", "rate"),
    [
        (Fraction(0), Fraction(25)),
        (Fraction(0), Fraction(30_000, 1001)),
        (Fraction(243, 100), Fraction(30)),
        (Fraction(1, 80), Fraction(50)),  # every frame's window edge meets a centre
        (Fraction(-7, 44_100), Fraction(24_000, 1001)),
    ],
)
def test_windows_equal_exact_arithmetic(start, rate):
    num_steps, num_frames = 300, 180
    centres = [start + Fraction(320 * k + 200, 16_000) for k in range(num_steps)]
    times = [Fraction(n) / rate for n in range(num_frames)]
    windows = centred_windows(
        np.array([float(c) for c in centres]), np.array([float(t) for t in times]), before_s=2.0, after_s=2.0
    )
    assert windows.tolist() == [list(w) for w in brute_force(centres, times, 2, 2)]


def test_an_edge_that_meets_a_centre_is_in_at_the_start_and_out_at_the_stop():
    centres = STEPS.centres_s(400, 0.0)  # 0.0125, 0.0325, ...
    at = 2.0125 + 0.02 * np.arange(100)  # t - 2 and t + 2 are both centres, but for the rounding of float64
    windows = centred_windows(centres, at, 2.0, 2.0)
    assert windows.tolist() == [[k, k + 200] for k in range(100)]


def test_a_window_inside_a_clip_has_200_steps_and_fewer_at_its_ends():
    centres = STEPS.centres_s(STEPS.num_steps(Fraction(10)), 0.0)
    windows = centred_windows(centres, np.arange(250) / 25, 2.0, 2.0)
    lengths = windows[:, 1] - windows[:, 0]
    inside = (windows[:, 0] > 0) & (windows[:, 1] < len(centres))
    assert (lengths[inside] == 200).all()
    assert inside.sum() > 100
    assert lengths[0] == 100
    assert (windows >= 0).all()


def test_a_time_without_sound_has_an_empty_window():
    windows = centred_windows(STEPS.centres_s(49, 100.0), [0.0, 200.0], 2.0, 2.0)
    assert (windows[:, 0] == windows[:, 1]).all()


def test_centres_that_do_not_increase_are_refused():
    with pytest.raises(ValueError, match="must increase"):
        centred_windows([0.0, 0.0], [0.0], 2.0, 2.0)


def test_neighbours_are_cut_at_the_ends_and_never_wrap():
    assert neighbours(4, 1, 2).tolist() == [[0, 3], [0, 4], [1, 4], [2, 4]]


def test_nanoseconds_round_to_the_nearest():
    assert nanoseconds([1 / 3, 0.1, -0.5]).tolist() == [333_333_333, 100_000_000, -500_000_000]


def test_words_met_is_what_counting_finds():
    """Random spans that overlap and end in any order, at times in any order, some words long, some of no length."""
    random = np.random.default_rng(5)
    for trial in range(30):
        num_words = int(random.integers(0, 25))
        start = np.sort(np.round(random.uniform(0, 30, num_words), 1))
        end = np.round(start + random.choice([0, 0.2, 0.5, 9], num_words), 1)
        at = np.round(random.uniform(-3, 34, 60), 1)
        before, after = [(2.0, 2.0), (0.0, 0.5), (1.0, 0.0)][trial % 3]
        sets, which = words_met(start, end, at, before, after)
        tenths = [np.rint(10 * np.asarray(values)).astype(int) for values in (start, end, at, before, after)]
        s, e, t, b, a = tenths
        for frame in range(60):
            expected = [w for w in range(num_words) if s[w] <= t[frame] + a and e[w] >= t[frame] - b]
            assert sets[which[frame]].tolist() == expected
        assert list(dict.fromkeys(which.tolist())) == list(range(len(sets))), "in the order of first occurrence"


def test_words_met_makes_a_set_per_change_not_per_frame():
    """30 fps, a word every 0.4 s: at most two changes a word."""
    start = np.arange(0, 60, 0.4)
    sets, which = words_met(start, start + 0.3, np.arange(1800) / 30, 2.0, 2.0)
    assert len(which) == 1800
    assert len(sets) <= 2 * len(start) + 1
    assert sets[which[900]].tolist() == [w for w in range(150) if start[w] <= 32 and start[w] + 0.3 >= 28]


def test_words_met_scales_to_an_hour():
    """108,000 frames and 9,000 words: no table of frames by words."""
    start = np.arange(9000) * 0.4
    sets, which = words_met(start, start + 0.3, np.arange(108_000) / 30, 2.0, 2.0)
    assert len(which) == 108_000
    assert max(map(len, sets)) <= 12


@pytest.mark.parametrize(("start", "end"), [([1.0, 0.0], [2.0, 2.0]), ([1.0], [0.5])])
def test_words_out_of_order_are_refused(start, end):
    with pytest.raises(ValueError, match="must not decrease, nor a word end before it starts"):
        words_met(start, end, [0.0], 2.0, 2.0)
    with pytest.raises(ValueError, match="must not decrease, nor a word end before it starts"):
        utterances(start, end, 1.0)


def test_utterances_are_what_counting_finds():
    """A word begins one if it starts more than the pause after every word before it; by whole tenths of a second."""
    random = np.random.default_rng(6)
    cuts = 0
    for trial in range(60):
        num_words = int(random.integers(0, 25))
        start = np.sort(random.integers(0, 300, num_words))
        end = start + random.choice([0, 2, 5, 90], num_words)
        pause = int(random.choice([0, 5, 10, 30]))
        begins = [w for w in range(num_words) if all(start[w] - end[v] > pause for v in range(w))]
        found = utterances(start / 10, end / 10, pause / 10)
        assert found.shape == (len(begins), 2), trial
        assert found[:, 0].tolist() == begins
        assert found[:, 1].tolist() == [*begins[1:], num_words][: len(begins)]
        cuts += len(begins) - 1
    assert cuts > 60
