"""Intervals over source videos: by brute force, and how often they hold the true value."""

from functools import cache

import numpy as np
import pytest
from sklearn.metrics import f1_score

from fusion.bootstrap import LEAST_VIDEOS, VideoBootstrap, VideoCounts

RATES = np.array([0.139, 0.092, 0.155, 0.251, 0.399, 0.35, 0.253, 0.029, 0.025, 0.029, 0.648, 0.105])
"""How often the twelve AUs occur in Aff-Wild2's validation set."""


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def simulated_videos(random: np.random.Generator, number: int) -> tuple[VideoCounts, VideoCounts]:
    """``number`` recordings before and after a step that repairs some errors.

    Length, rate of each AU, and how well a predictor does on a person and on each AU of a person are random effects.
    """
    shape = (number, len(RATES))
    frames = np.exp(random.normal(np.log(1500), 0.6, number)).astype(int)[:, None] + 50
    positive = random.binomial(frames, sigmoid(np.log(RATES / (1 - RATES)) - 0.3 + random.normal(0, 0.9, shape)))
    person = random.normal(0, 0.4, (number, 1))
    hits = random.binomial(positive, sigmoid(0.5 + person + random.normal(0, 0.5, shape)))
    false = random.binomial(frames - positive, sigmoid(-1.8 - person + random.normal(0, 0.5, shape)))
    more = hits + random.binomial(positive - hits, sigmoid(random.normal(-2, 0.7, shape)))
    fewer = false - random.binomial(false, sigmoid(random.normal(-2, 0.7, shape)))
    annotated = np.broadcast_to(frames, shape).astype(float)
    before = VideoCounts(2.0 * hits, (hits + false + positive).astype(float), annotated)
    return before, VideoCounts(2.0 * more, (more + fewer + positive).astype(float), annotated)


@cache
def true_values() -> tuple[float, float]:
    """Mean F1 after the step, and its gain, in the population: 400,000 recordings, pooled."""
    random = np.random.default_rng(11)
    sums = np.zeros((2, 2, len(RATES)))
    for _ in range(20):
        for step, counts in enumerate(simulated_videos(random, 20_000)):
            sums[step] += counts.twice_hits.sum(axis=0), counts.whole.sum(axis=0)
    before, after = (sums[:, 0] / sums[:, 1]).mean(axis=1)
    return after, after - before


def coverage(number: int, draws: int = 500, resamples: int = 1000, seed: int = 3) -> tuple[float, float]:
    """Share of ``draws`` data sets whose intervals hold the true mean F1 and the true gain."""
    truth, gain = true_values()
    random = np.random.default_rng(seed)
    held = np.zeros(2)
    for _ in range(draws):
        before, after = simulated_videos(random, number)
        bootstrap = VideoBootstrap(after, resamples, seed=int(random.integers(2**32)))
        low, high = bootstrap.mean_f1(after)
        least, most = bootstrap.gain(after, before)
        held += low <= truth <= high, least <= gain <= most
    return tuple(held / draws)


@pytest.mark.parametrize("number", [20, 40])
def test_nominal_95_percent_cover_the_true_value(number):
    for share in coverage(number):
        assert 0.92 <= share <= 0.97


def frames(random, videos=6, per_video=30, aus=3):
    """Labels with gaps, decisions and the video of each frame, in mixed order."""
    video = random.permutation(np.repeat(np.arange(videos) * 3, per_video))
    labels = random.integers(-1, 2, (len(video), aus))
    wrong = random.random(labels.shape) < 0.1 + 0.06 * video[:, None] / 3
    return labels, np.where(wrong, labels != 1, labels == 1), video


def test_counts_per_video_equal_counting():
    labels, decisions, video = frames(np.random.default_rng(0))
    counts = VideoCounts.of(labels, decisions, video)
    for row, number in enumerate(np.unique(video)):
        for au in range(3):
            seen = (video == number) & (labels[:, au] >= 0)
            f1 = f1_score(labels[seen, au], decisions[seen, au])
            assert counts.twice_hits[row, au] / counts.whole[row, au] == pytest.approx(f1, abs=1e-12)
            assert counts.annotated[row, au] == seen.sum()


def brute_force(labels, steps, video, draws, seed):
    """The interval by drawing frames of videos and differentiating numerically: mean F1, or the gain of two steps."""
    numbers = np.unique(video)
    n = len(numbers)

    def value(weights):
        weight = weights[np.searchsorted(numbers, video)]
        found = []
        for decisions in steps:
            f1 = []
            for au in range(labels.shape[1]):
                seen = labels[:, au] >= 0
                truth, guess = labels[seen, au], decisions[seen, au]
                f1.append(f1_score(truth, guess, sample_weight=weight[seen], zero_division=0))
            found.append(np.mean(f1))
        return found[0] - (found[1] if len(found) > 1 else 0)

    def error(weights):
        slope = [(value(weights + h * one) - value(weights - h * one)) / (2 * h) for h in [1e-4] for one in np.eye(n)]
        return np.sqrt(np.sum(weights * np.square(slope)))

    estimate, own = value(np.ones(n)), error(np.ones(n))
    random = np.random.default_rng(seed)
    drawn = random.multinomial(n, np.full(n, 1 / n), size=draws)
    distance = sorted(abs(value(w) - estimate) / error(w.astype(float)) for w in drawn)
    reach = own * distance[int(np.ceil(0.95 * (draws - 1)))]
    return max(estimate - reach, 0), min(estimate + reach, 1)


def test_the_interval_equals_brute_force():
    random = np.random.default_rng(1)
    labels, decisions, video = frames(random)
    other = np.where(random.random(labels.shape) < 0.1, ~decisions, decisions)
    counts, others = (VideoCounts.of(labels, step, video) for step in (decisions, other))
    bootstrap = VideoBootstrap(counts, draws=25, seed=3)
    assert bootstrap.mean_f1(counts) == pytest.approx(brute_force(labels, [decisions], video, 25, 3), abs=1e-5)
    gain = brute_force(labels, [decisions, other], video, 25, 3)
    assert bootstrap.gain(counts, others) == pytest.approx(gain, abs=1e-5)
    one = brute_force(labels[:, 1:2], [decisions[:, 1:2]], video, 25, 3)
    assert bootstrap.f1(counts)[1] == pytest.approx(one, abs=1e-5)


def test_equal_videos_leave_no_doubt():
    labels, decisions, _ = frames(np.random.default_rng(2), videos=1)
    many = (np.tile(labels, (10, 1)), np.tile(decisions, (10, 1)), np.repeat(np.arange(10), 30))
    counts = VideoCounts.of(*many)
    f1 = counts.twice_hits[0] / counts.whole[0]
    assert VideoBootstrap(counts).mean_f1(counts) == pytest.approx([f1.mean()] * 2, abs=1e-12)
    assert VideoBootstrap(counts).gain(counts, counts) == (0.0, 0.0)


def test_the_least_number_of_videos():
    """Draws of one video over and over are infinitely far off: more than one in twenty means no interval."""
    assert min(n for n in range(2, 9) if n * (1 / n) ** n < 0.05) == LEAST_VIDEOS


def test_few_videos_have_no_interval():
    labels, decisions, video = frames(np.random.default_rng(2), videos=4)
    counts = VideoCounts.of(labels, decisions, video)
    low, high = VideoBootstrap(counts).mean_f1(counts)
    assert 0 <= low < high <= 1
    labels[video == 0] = -1  # a video that nobody annotated is none
    counts = VideoCounts.of(labels, decisions, video)
    bootstrap = VideoBootstrap(counts)
    assert bootstrap.number == 3
    assert bootstrap.mean_f1(counts) is bootstrap.gain(counts, counts) is None
    assert bootstrap.f1(counts) == [None] * 3


def test_what_nobody_annotated_is_in_no_mean():
    labels, decisions, video = frames(np.random.default_rng(4))
    alone = VideoCounts.of(labels[:, :2], decisions[:, :2], video)
    labels[:, 2] = -1
    counts = VideoCounts.of(labels, decisions, video)
    bootstrap = VideoBootstrap(counts)
    assert bootstrap.mean_f1(counts) == pytest.approx(VideoBootstrap(alone).mean_f1(alone), abs=1e-12)
    assert bootstrap.f1(counts)[2] is None
