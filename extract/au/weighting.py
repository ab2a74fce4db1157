"""Weights of the AU losses from how often each AU occurs in the training labels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEAST, MOST = 1.0, 6.0
"""The papers' own weights lie between; without a bound one positive in a million frames would rule the loss."""


@dataclass(frozen=True)
class AutoWeights:
    """What ``auto_pos_weight`` and ``auto_weight`` give."""

    weights: tuple[float, ...]
    """One per AU, in [1, 6]."""
    one_class: tuple[int, ...]
    """Columns of AUs without a positive or without a negative: their weight is 1, for their labels say nothing."""


def auto_pos_weight(labels: ArrayLike) -> AutoWeights:
    """What a positive of each AU counts: sqrt(negatives / positives), from 1 to 6.

    (1 - p) / p would balance the classes wholly; for Aff-Wild2's rarest AUs (p = .026) that is 37, and the score falls
    to many false alarms. Its square root comes to the weights that both papers chose by hand: for the priors of AU15,
    AU23 and AU24 it gives 5.9, 5.5 and 6.1 where they have 6, 6 and 5.

    Args:
        labels: [N, A], 0, 1, or -1 (not annotated).

    Raises:
        ValueError: other shapes or values.
    """
    positives, negatives = _counts(labels)
    return _weights(negatives, positives)


def auto_weight(labels: ArrayLike) -> AutoWeights:
    """What each AU counts, both classes alike: sqrt(commoner class / rarer class), from 1 to 6.

    As ``auto_pos_weight`` for an AU that is mostly absent; one that is mostly present counts more as well.
    """
    positives, negatives = _counts(labels)
    return _weights(np.maximum(positives, negatives), np.minimum(positives, negatives))


def _counts(labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    truth = np.asarray(labels)
    if truth.ndim != 2 or not np.isin(truth, (-1, 0, 1)).all():
        raise ValueError(f"labels {truth.shape}: expected [N, A] of 0, 1 or -1")
    return (truth == 1).sum(0, dtype=np.float64), (truth == 0).sum(0, dtype=np.float64)


def _weights(above: NDArray[np.float64], below: NDArray[np.float64]) -> AutoWeights:
    known = (above > 0) & (below > 0)
    ratio = np.divide(above, below, out=np.ones_like(above), where=known)
    weights = np.clip(np.sqrt(ratio), LEAST, MOST)
    return AutoWeights(tuple(weights.tolist()), tuple(np.flatnonzero(~known).tolist()))
