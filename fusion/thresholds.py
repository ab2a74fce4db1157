"""The threshold of each AU with the best F1, exactly: over all distinct scores, by sorted counts."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from extract.au import AUS

Floats: TypeAlias = NDArray[np.float64]

UNTUNED = 0.5
"""Threshold of an AU that cannot be tuned."""

PAPER_THRESHOLDS = dict(zip(AUS, (0.5, 0.55, 0.5, 0.4, 0.45, 0.45, 0.45, 0.5, 0.5, 0.55, 0.4, 0.5), strict=True))
"""AU number -> the paper's threshold on the smoothed probability, tuned on its own validation split."""


@dataclass(frozen=True)
class Tuned:
    """The best thresholds on some labels, and what they reach there."""

    thresholds: Floats
    """[A]: an AU counts as active where its probability is >= this."""
    f1: Floats
    """[A] in [0, 1]: positive-class F1 on the very labels that were tuned on; 0 without a positive."""
    no_positives: NDArray[np.bool_]
    """[A]: AUs without a single positive, whose threshold stays ``UNTUNED``."""


def best_thresholds(labels: ArrayLike, probabilities: ArrayLike) -> Tuned:
    """The threshold of each AU with the highest positive-class F1.

    Every threshold between two distinct scores is tried, also the one that calls all frames active; the one that calls
    none active has F1 0 and is never best. The threshold lies midway between the lowest score it calls active and the
    next lower one (or 0), so that rounding turns no decision around. Of equally good ones the nearest to 0.5 is taken,
    of two equally near ones the lower.

    Args:
        labels: [N, A]: 0, 1, or -1 for elements that are left out.
        probabilities: [N, A] in [0, 1].

    Raises:
        ValueError: other shapes, or a probability outside [0, 1].
    """
    truth, scores = np.asarray(labels, dtype=np.int8), np.asarray(probabilities, dtype=np.float64)
    if truth.ndim != 2 or truth.shape != scores.shape:
        raise ValueError(f"labels {truth.shape} and probabilities {scores.shape}: expected the same [N, A]")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError("probabilities outside [0, 1], or NaN: expected the sigmoid of logits")
    found = [_best_of_one(truth[:, au], scores[:, au]) for au in range(truth.shape[1])]
    return Tuned(
        thresholds=np.array([threshold for threshold, _ in found]),
        f1=np.array([f1 for _, f1 in found]),
        no_positives=~(truth == 1).any(axis=0),
    )


@dataclass(frozen=True)
class HeldOut:
    """What tuning is worth on source videos that it has not seen, against ``UNTUNED`` on the same frames."""

    untuned: Floats
    """[A]: F1 at ``UNTUNED``."""
    tuned: Floats
    """[A]: F1 where each video is decided by thresholds tuned on others."""
    error: Floats
    """[A]: standard error of their difference, over source videos."""

    @property
    def holds(self) -> NDArray[np.bool_]:
        """[A]: better by more than its standard error (of two models so near, the simpler one: Breiman et al. 1984)."""
        return self.tuned - self.untuned > self.error


def held_out(labels: ArrayLike, probabilities: ArrayLike, video: ArrayLike, groups: int = 5) -> HeldOut:
    """Cross-validate tuning: the source videos are parted into groups, each decided by what is best on the others.

    F1 is that of all frames together. The standard error is the infinitesimal jackknife's: F1 is linearised in each
    video's counts.

    Args:
        labels: [N, A]: 0, 1, or -1.
        probabilities: [N, A] in [0, 1].
        video: [N] integers: the source video of each frame.
        groups: at most; as many as there are videos, if these are fewer.

    Raises:
        ValueError: fewer than two source videos, or as ``best_thresholds``.
    """
    truth, scores = np.asarray(labels, dtype=np.int8), np.asarray(probabilities, dtype=np.float64)
    videos, number = np.unique(np.asarray(video), return_inverse=True)
    if len(videos) < 2:
        raise ValueError(f"{len(videos)} source video(s): expected at least 2, to tune on some and decide others")
    decisions = np.zeros_like(truth, dtype=np.bool_)
    for group in range(min(groups, len(videos))):
        inside = number % min(groups, len(videos)) == group
        decisions[inside] = scores[inside] >= best_thresholds(truth[~inside], scores[~inside]).thresholds
    tuned, tuned_parts = _f1_and_parts(truth, decisions, number)
    untuned, untuned_parts = _f1_and_parts(truth, scores >= UNTUNED, number)
    change = tuned_parts - untuned_parts  # [V, A]; they sum to 0
    error = np.sqrt(len(videos) / (len(videos) - 1) * (change**2).sum(axis=0))
    return HeldOut(untuned, tuned, error)


def _f1_and_parts(truth: NDArray[np.int8], decisions: NDArray[np.bool_], number: NDArray[Any]) -> tuple[Floats, Floats]:
    """F1 [A], 0 without a positive; and each video's part in its error, [V, A]."""
    positive, called = truth == 1, decisions & (truth >= 0)
    hits, size = (
        np.stack([np.bincount(number, weights=column) for column in frames.T], axis=1)  # [V, A]
        for frames in (2.0 * (positive & called), 1.0 * positive + called)
    )
    whole = size.sum(axis=0)
    f1 = np.divide(hits.sum(axis=0), whole, out=np.zeros(len(whole)), where=whole > 0)
    return f1, np.divide(hits - f1 * size, whole, out=np.zeros_like(size), where=whole > 0)


def _best_of_one(truth: NDArray[np.int8], scores: Floats) -> tuple[float, float]:
    annotated = truth >= 0
    every, positive = np.sort(scores[annotated]), np.sort(scores[truth == 1])
    if not len(positive):
        return UNTUNED, 0.0
    first = np.append(0, np.flatnonzero(np.diff(every)) + 1)  # of each distinct score, rising
    upper = every[first]
    called = len(every) - first  # frames at or above it
    hits = len(positive) - np.searchsorted(positive, upper)  # and the positives among them
    # 2TP / (2TP + FP + FN), where TP + FP are the frames called active and TP + FN the positives. Both are whole
    # numbers, so that equal F1 are equal floats.
    f1 = 2 * hits / (called + len(positive))
    lower = np.append(0.0, upper[:-1])
    middle = lower + (upper - lower) / 2
    middle = np.where(middle > lower, middle, upper)  # of two neighbouring floats the middle is one of them
    best = np.flatnonzero(f1 == f1.max())
    nearest = best[np.lexsort((middle[best], np.abs(middle[best] - UNTUNED)))[0]]
    return float(middle[nearest]), float(f1[nearest])
