"""Whether probabilities mean what they say: reliability, expected calibration error and Brier score per action unit.

Labels are 0, 1 or -1 (not annotated), which leaves out its own element. Frames are pooled. An AU without annotation has
no error: its value is NaN, not 0, which would be the best there is.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

NUM_BINS = 15
"""As in Guo et al., "On Calibration of Modern Neural Networks", 2017."""


@dataclass(frozen=True)
class Reliability:
    """What a reliability diagram shows, [A, M] each, for M bins of equal width: [0, 1/M), [1/M, 2/M) ... up to 1."""

    count: Floats
    """Annotated frames in each bin."""
    probability: Floats
    """Mean predicted probability of each bin; 0 in an empty one."""
    rate: Floats
    """Share of positives in each bin; 0 in an empty one."""

    @property
    def error(self) -> Floats:
        """Expected calibration error, [A] in [0, 1]: the mean distance of probability and rate, weighted by count.

        Of the probability that the AU is there (Naeini et al. 2015), not of the more likely class: for a rare AU the
        latter would hardly look at its positives. NaN for an AU without annotation.
        """
        distance = (np.abs(self.probability - self.rate) * self.count).sum(1)
        return _quotient(distance, self.count.sum(1), np.nan)


def reliability(labels: ArrayLike, probabilities: ArrayLike, num_bins: int = NUM_BINS) -> Reliability:
    """Count ``probabilities`` [N, A] in [0, 1] against ``labels`` [N, A] (0, 1 or -1) in bins.

    Raises:
        ValueError: other shapes or values.
    """
    truth, guess = _pair(labels, probabilities)
    # Each bin holds its lower edge. By the edges themselves: .29 * 100 is 28.999999999999996.
    edges = np.arange(1, num_bins) / num_bins
    sums = np.zeros((3, truth.shape[1], num_bins))
    for a in range(truth.shape[1]):
        annotated = truth[:, a] >= 0
        p, y = guess[annotated, a], truth[annotated, a] == 1
        places = np.searchsorted(edges, p, side="right")
        for row, weights in enumerate((np.ones_like(p), p, y)):
            sums[row, a] = np.bincount(places, weights, num_bins)
    count, probability, positives = sums
    return Reliability(count, _quotient(probability, count, 0.0), _quotient(positives, count, 0.0))


def brier(labels: ArrayLike, probabilities: ArrayLike) -> Floats:
    """Brier score, [A] in [0, 1]: mean of (probability - label)^2 over the annotated; NaN where there is none.

    Brier 1950 in the binary form (half of the original, which sums over both classes), as scikit-learn's.
    ``labels`` [N, A] 0, 1 or -1; ``probabilities`` [N, A] in [0, 1].

    Raises:
        ValueError: other shapes or values.
    """
    truth, guess = _pair(labels, probabilities)
    annotated = truth >= 0
    squares = np.where(annotated, (guess - (truth == 1)) ** 2, 0.0)
    return _quotient(squares.sum(0), annotated.sum(0, dtype=np.float64), np.nan)


def _pair(labels: ArrayLike, probabilities: ArrayLike) -> tuple[NDArray[Any], Floats]:
    """Both checked; probabilities of elements that are not annotated are 0, whatever they were."""
    truth, guess = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if truth.ndim != 2 or truth.shape != guess.shape:
        raise ValueError(f"labels {truth.shape} and probabilities {guess.shape}: expected the same [N, A]")
    if not np.isin(truth, (-1, 0, 1)).all():
        raise ValueError("labels hold other values than 0, 1 or -1")
    guess = np.where(truth >= 0, guess, 0.0)
    if not ((guess >= 0) & (guess <= 1)).all():
        raise ValueError("probabilities lie outside [0, 1]: expected the sigmoid of the logits")
    return truth, guess


def _quotient(part: Floats, whole: Floats, empty: float) -> Floats:
    return np.divide(part, whole, out=np.full_like(part, empty), where=whole > 0)
