"""From logits to probabilities that mean what they say: the sigmoid, log loss, and a temperature per AU."""

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats: TypeAlias = NDArray[np.float64]

TEMPERATURES = (0.05, 20.0)
"""Range that is searched. One outside it would mean logits that say nothing, or labels that the logits separate."""


def sigmoid(logits: ArrayLike) -> Floats:
    """1 / (1 + exp(-z)) in float64, without overflow."""
    z = np.asarray(logits, dtype=np.float64)
    small = np.exp(-np.abs(z))
    found: Floats = np.where(z >= 0, 1.0, small) / (1.0 + small)
    return found


def negative_log_likelihood(labels: ArrayLike, logits: ArrayLike) -> Floats:
    """Mean of -log p(label) over the annotated frames of each AU, [A]; NaN where none is annotated.

    ``labels`` [N, A] are 0, 1 or -1, ``logits`` [N, A].
    """
    truth, z = np.asarray(labels), np.asarray(logits, dtype=np.float64)
    annotated = truth >= 0
    loss = np.where(annotated, np.logaddexp(0.0, np.where(truth == 1, -z, z)), 0.0)
    return _ratio(loss.sum(axis=0), annotated.sum(axis=0))


def best_temperatures(labels: ArrayLike, logits: ArrayLike) -> Floats:
    """The number of each AU by which its logits must be divided for the least log loss: [A] in ``TEMPERATURES``.

    1 where an AU lacks one of the classes. The log loss has one minimum, as it is convex in the inverse temperature.
    """
    from scipy.optimize import minimize_scalar

    truth, z = np.asarray(labels), np.asarray(logits, dtype=np.float64)
    found = np.ones(truth.shape[1])
    low, high = np.log(TEMPERATURES)
    for au in range(truth.shape[1]):
        annotated = truth[:, au] >= 0
        positive, own = truth[annotated, au] == 1, z[annotated, au]
        if not 0 < positive.sum() < len(positive):
            continue
        signed = np.where(positive, -own, own)

        def loss(log_t: float, signed: Floats = signed) -> float:
            return float(np.logaddexp(0.0, signed * np.exp(-log_t)).mean())

        found[au] = np.exp(minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6}).x)
    return found


def _ratio(part: Floats, whole: NDArray[np.int64]) -> Floats:
    """Quotient with 0/0 = NaN."""
    found: Floats = np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
    return found
