"""F1 by both definitions in use, precision, recall and average precision, and the predictors that need no face.

Labels are 0, 1 or -1 (not annotated). A -1 leaves out its own element; ``fully_annotated`` gives the frames for the
papers' way, which drops a frame with any -1. Everything is counted over all frames given, pooled: never average over
clips. 0/0 is 0, so an AU that is not annotated, or never positive, scores 0. Expression classes are counted as one
column each.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from extract.au import NUM_EXPRESSIONS

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Confusion:
    """Counts per AU, [A] each, as float64 (exact up to 2**53 frames)."""

    true_positive: Floats
    false_positive: Floats
    false_negative: Floats
    true_negative: Floats

    @property
    def annotated(self) -> Floats:
        """Elements that count, [A]."""
        return self.true_positive + self.false_positive + self.false_negative + self.true_negative

    @property
    def prior(self) -> Floats:
        """Share of positives among the annotated, [A] in [0, 1]; 0 where nothing is annotated."""
        return _ratio(self.true_positive + self.false_negative, self.annotated)

    @property
    def precision(self) -> Floats:
        """TP / (TP + FP), [A] in [0, 1]; 0 where nothing was predicted."""
        return _ratio(self.true_positive, self.true_positive + self.false_positive)

    @property
    def recall(self) -> Floats:
        """TP / (TP + FN), [A] in [0, 1]; 0 where nothing was positive."""
        return _ratio(self.true_positive, self.true_positive + self.false_negative)

    @property
    def f1(self) -> Floats:
        """2TP / (2TP + FP + FN), [A] in [0, 1]: the challenge's official metric is its mean over AUs."""
        return _f1(self.true_positive, self.false_positive, self.false_negative)

    @property
    def f1_negative(self) -> Floats:
        """The same with the classes exchanged, [A]."""
        return _f1(self.true_negative, self.false_negative, self.false_positive)

    @property
    def f1_our(self) -> Floats:
        """Mean of both classes' F1, [A] (SituTech's F1_our). Both always count, also a class that never occurs."""
        return (self.f1 + self.f1_negative) / 2


def confusion(labels: ArrayLike, predictions: ArrayLike) -> Confusion:
    """Count ``predictions`` [N, A] (0 or 1) against ``labels`` [N, A] (0, 1, or -1 for not annotated).

    Raises:
        ValueError: other shapes or values.
    """
    truth, guess = np.asarray(labels), np.asarray(predictions)
    if truth.ndim != 2 or truth.shape != guess.shape:
        raise ValueError(f"labels {truth.shape} and predictions {guess.shape}: expected the same [N, A]")
    if not np.isin(truth, (-1, 0, 1)).all():
        raise ValueError(f"labels hold {_others(truth, (-1, 0, 1))}: expected 0, 1 or -1")
    if not np.isin(guess, (0, 1)).all():
        raise ValueError(f"predictions hold {_others(guess, (0, 1))}: expected 0 or 1; apply a threshold first")
    positive, negative, said = truth == 1, truth == 0, guess == 1
    return Confusion(
        true_positive=_count(positive & said),
        false_positive=_count(negative & said),
        false_negative=_count(positive & ~said),
        true_negative=_count(negative & ~said),
    )


def expression_confusion(labels: ArrayLike, predictions: ArrayLike, num_classes: int = NUM_EXPRESSIONS) -> Confusion:
    """Each class against the rest, [C]: macro F1, the challenge's metric, is ``.f1.mean()``.

    A class that occurs in neither counts with F1 0, as scikit-learn's with all classes as ``labels``.

    Args:
        labels: [N], 0 to C - 1, or -1 (not annotated).
        predictions: [N], 0 to C - 1.
        num_classes: C.

    Raises:
        ValueError: other shapes or values.
    """
    truth, guess = np.asarray(labels), np.asarray(predictions)
    if truth.ndim != 1 or truth.shape != guess.shape:
        raise ValueError(f"labels {truth.shape} and predictions {guess.shape}: expected the same [N]")
    classes = np.arange(num_classes)
    for name, values, allowed in (("labels", truth, (-1, *range(num_classes))), ("predictions", guess, classes)):
        if not np.isin(values, allowed).all():
            raise ValueError(f"{name} hold {_others(values, allowed)}: expected classes 0 to {num_classes - 1}")
    columns = np.where(truth[:, None] < 0, -1, truth[:, None] == classes)  # [N, C]
    return confusion(columns, guess[:, None] == classes)


def average_precision(labels: ArrayLike, scores: ArrayLike) -> Floats:
    """Area under the precision-recall curve as a sum of steps, [A] in [0, 1].

    sum over thresholds of (recall - recall of the threshold above) * precision, every distinct score being one, as
    scikit-learn's ``average_precision_score``. A predictor that knows nothing reaches the prior. 0 without a positive.

    Args:
        labels: [N, A], 0, 1 or -1.
        scores: [N, A], greater for more likely: probabilities or logits.

    Raises:
        ValueError: other shapes or values; a score of an annotated element that is NaN.
    """
    truth, score = np.asarray(labels), np.asarray(scores)
    if truth.ndim != 2 or truth.shape != score.shape:
        raise ValueError(f"labels {truth.shape} and scores {score.shape}: expected the same [N, A]")
    if not np.isin(truth, (-1, 0, 1)).all():
        raise ValueError(f"labels hold {_others(truth, (-1, 0, 1))}: expected 0, 1 or -1")
    if np.isnan(score[truth >= 0]).any():
        raise ValueError("scores hold NaN: expected numbers; did the training diverge?")
    columns = [_average_precision(truth[:, a], score[:, a]) for a in range(truth.shape[1])]
    return np.array(columns, dtype=np.float64)


def _average_precision(truth: NDArray[Any], score: NDArray[Any]) -> float:
    annotated = truth >= 0
    order = np.argsort(-score[annotated], kind="stable")
    hits, ranked = np.cumsum((truth[annotated] == 1)[order]), score[annotated][order]
    if len(hits) == 0 or hits[-1] == 0:
        return 0.0
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # of each group of equal scores
    found = hits[last]
    return float((np.diff(found, prepend=0) * found / (last + 1)).sum() / hits[-1])


def f1(labels: ArrayLike, predictions: ArrayLike) -> Floats:
    """Positive-class F1 per AU, [A]; see ``confusion`` for shapes and errors."""
    return confusion(labels, predictions).f1


def f1_our(labels: ArrayLike, predictions: ArrayLike) -> Floats:
    """Mean of both classes' F1 per AU, [A]; see ``confusion`` for shapes and errors."""
    return confusion(labels, predictions).f1_our


def fully_annotated(labels: ArrayLike) -> NDArray[np.bool_]:
    """Frames without a single -1, [N]."""
    annotated: NDArray[np.bool_] = np.all(np.asarray(labels) >= 0, axis=1)
    return annotated


def trivial_baselines(labels: ArrayLike) -> dict[str, dict[str, Floats]]:
    """What predictors reach that never look: name -> {``f1`` [A], ``f1_our`` [A]}.

    ``zeros`` and ``ones`` are constants; ``majority`` says each AU's commoner class (1 on a tie); ``prior`` says 1 at
    random as often as the AU occurs. Its values are those of its expected counts in N frames of prior p (TP = N p p,
    FP = FN = N p (1 - p), TN = N (1 - p) (1 - p)): F1 = p for the positive class and 1 - p for the negative.
    ``majority`` and ``prior`` take their rates from these very labels, so they are as good as such predictors get.
    """
    truth = np.asarray(labels)
    seen = confusion(truth, np.zeros_like(truth))
    p, n = seen.prior, seen.annotated
    counts = {
        "zeros": seen,
        "ones": confusion(truth, np.ones_like(truth)),
        "majority": confusion(truth, np.broadcast_to(p >= 0.5, truth.shape)),
        "prior": Confusion(n * p * p, n * p * (1 - p), n * p * (1 - p), n * (1 - p) * (1 - p)),
    }
    return {name: {"f1": count.f1, "f1_our": count.f1_our} for name, count in counts.items()}


def _f1(hits: Floats, false: Floats, missed: Floats) -> Floats:
    return _ratio(2 * hits, 2 * hits + false + missed)


def _ratio(part: Floats, whole: Floats) -> Floats:
    """Quotient with 0/0 = 0."""
    return np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0)


def _count(hits: NDArray[np.bool_]) -> Floats:
    counts: Floats = hits.sum(axis=0, dtype=np.float64)
    return counts


def _others(values: NDArray[np.generic], allowed: ArrayLike) -> list[object]:
    """Up to five of the values that are not allowed, for a message."""
    found: list[object] = np.unique(values[~np.isin(values, allowed)])[:5].tolist()
    return found
