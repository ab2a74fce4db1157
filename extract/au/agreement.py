"""How closely predicted numbers follow annotated ones: valence, arousal, intensities of action units.

Labels below ``lowest`` (``extract.au.LOWEST_AFFECT``, ``LOWEST_INTENSITY``) are not annotated and leave out their own
element. Frames are pooled. Where a coefficient of agreement is 0/0 (a constant, fewer than two samples) it is 0, for no
agreement was shown; an error of nothing is NaN, for 0 would be the best there is.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """Moments of labels y and predictions x over the annotated samples, [D] each, and what follows from them."""

    count: Floats
    label_mean: Floats
    prediction_mean: Floats
    label_variance: Floats
    """Population moments, divided by the count; exactly 0 for a constant."""
    prediction_variance: Floats
    covariance: Floats
    mae: Floats
    """Mean of |x - y|; NaN without annotation."""
    mse: Floats
    """Mean of (x - y)^2; NaN without annotation."""

    @property
    def ccc(self) -> Floats:
        """Concordance correlation coefficient, [D] in [-1, 1] (Lin, Biometrics 45, 1989), population moments.

        2 cov / (var x + var y + (mean x - mean y)^2); the challenge's metric for valence and arousal.
        """
        apart = (self.prediction_mean - self.label_mean) ** 2
        return _coefficient(2 * self.covariance, self.prediction_variance + self.label_variance + apart)

    @property
    def pcc(self) -> Floats:
        """Pearson's correlation coefficient, [D] in [-1, 1]."""
        return _coefficient(self.covariance, np.sqrt(self.prediction_variance * self.label_variance))

    @property
    def icc(self) -> Floats:
        """ICC(3,1), [D] in [-1, 1] (Shrout and Fleiss, Psychological Bulletin 86, 1979): two raters, x and y.

        (BMS - EMS) / (BMS + EMS) of the two-way analysis of variance. With two raters BMS is the sample variance of
        x + y over 2, EMS that of x - y over 2, so it is 2 cov / (var x + var y): a constant offset costs nothing.
        """
        return _coefficient(2 * self.covariance, self.prediction_variance + self.label_variance)


def agreement(labels: ArrayLike, predictions: ArrayLike, lowest: float) -> Agreement:
    """Compare ``predictions`` [N, D] with ``labels`` [N, D].

    Args:
        labels: numbers; below ``lowest`` where not annotated.
        predictions: numbers on the same scale.
        lowest: the least label that is one: -1 for valence and arousal, 0 for intensities.

    Raises:
        ValueError: other shapes; a label that is NaN, or a prediction that is NaN or infinite where it counts.
    """
    y, x = np.asarray(labels, dtype=np.float64), np.asarray(predictions, dtype=np.float64)
    if y.ndim != 2 or y.shape != x.shape:
        raise ValueError(f"labels {y.shape} and predictions {x.shape}: expected the same [N, D]")
    if np.isnan(y).any():
        raise ValueError(f"labels hold NaN: expected numbers, below {lowest:g} where not annotated")
    annotated = y >= lowest
    if not np.isfinite(x[annotated]).all():
        raise ValueError("predictions hold NaN or infinity: expected numbers; did the training diverge?")
    x, y = np.where(annotated, x, 0.0), np.where(annotated, y, 0.0)
    count = annotated.sum(0, dtype=np.float64)
    x_mean, y_mean = _mean(x, count, 0.0), _mean(y, count, 0.0)
    dx, dy = _deviations(x, x_mean, annotated), _deviations(y, y_mean, annotated)
    return Agreement(
        count=count,
        label_mean=y_mean,
        prediction_mean=x_mean,
        label_variance=_mean(dy * dy, count, 0.0),
        prediction_variance=_mean(dx * dx, count, 0.0),
        covariance=_mean(dx * dy, count, 0.0),
        mae=_mean(np.abs(x - y), count, np.nan),
        mse=_mean((x - y) ** 2, count, np.nan),
    )


def _deviations(values: Floats, mean: Floats, annotated: NDArray[np.bool_]) -> Floats:
    """From the mean; 0 where not annotated, and all 0 for a constant, whose mean may be off by a rounding."""
    highest = np.max(values, axis=0, initial=-np.inf, where=annotated)
    lowest = np.min(values, axis=0, initial=np.inf, where=annotated)
    return np.where(annotated & (highest > lowest), values - mean, 0.0)


def _mean(values: Floats, count: Floats, empty: float) -> Floats:
    sums: Floats = values.sum(0)
    return np.divide(sums, count, out=np.full_like(count, empty), where=count > 0)


def _coefficient(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
