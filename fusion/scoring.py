"""Metrics of decisions and probabilities per action unit, beside predictors that never look at a face."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from extract.au import AUS, au_name
from extract.au.calibration import reliability
from extract.au.metrics import Floats, average_precision, confusion, trivial_baselines

BASELINES = {"zeros": "all zero", "ones": "all one", "majority": "majority", "prior": "random at prior"}
"""Key of a trivial predictor -> what tables call it."""


@dataclass(frozen=True)
class Scores:
    """Metrics of some predictions. An AU without any annotation is NaN and is left out of means."""

    f1: Floats
    """[A] in [0, 1]."""
    f1_our: Floats
    """[A] in [0, 1]: the mean of both classes' F1."""
    precision: Floats
    """[A] in [0, 1]; 0 where nothing was said to be active."""
    recall: Floats
    """[A] in [0, 1]; 0 where nothing is active."""
    average_precision: Floats
    """[A] in [0, 1]: area below precision over recall; NaN without probabilities; 0 where nothing is active."""
    calibration_error: Floats
    """[A] in [0, 1]: expected calibration error; NaN without probabilities."""
    baselines: Mapping[str, Mapping[str, Floats]]
    """Trivial predictor -> ``f1`` and ``f1_our``, [A] each."""
    annotated: NDArray[np.int64]
    """[A]: frames in which each AU is annotated."""
    positive: NDArray[np.int64]
    """[A]: frames in which it is annotated as active."""
    aus: tuple[int, ...] = AUS
    """[A]: numbers of the action units."""

    @property
    def au_names(self) -> tuple[str, ...]:
        return tuple(au_name(number) for number in self.aus)

    @property
    def mean_f1(self) -> float:
        """The mean of ``f1``, the challenge's metric."""
        return mean(self.f1)

    @property
    def best_baseline(self) -> tuple[str, float]:
        """The trivial predictor with the highest mean F1, and that mean."""
        means = {name: mean(found["f1"]) for name, found in self.baselines.items()}
        best = max(means, key=lambda name: means[name])
        return best, means[best]

    @property
    def without_positive(self) -> tuple[str, ...]:
        """AUs that are annotated and never active: their F1 is 0 whatever a network says."""
        return tuple(
            name
            for name, annotated, positive in zip(self.au_names, self.annotated, self.positive, strict=True)
            if annotated and not positive
        )

    def as_json(self) -> dict[str, Any]:
        """Plain values by AU name (``AU01``); NaN becomes None."""
        names = self.au_names
        metrics = ("f1", "f1_our", "precision", "recall", "average_precision", "calibration_error")
        return {
            **{metric: by_name(getattr(self, metric), names) for metric in metrics},
            "baselines": {
                name: {metric: by_name(values, names) for metric, values in found.items()}
                for name, found in self.baselines.items()
            },
            "annotated": dict(zip(names, self.annotated.tolist(), strict=True)),
            "positive": dict(zip(names, self.positive.tolist(), strict=True)),
        }


def score(
    labels: ArrayLike, decisions: ArrayLike, probabilities: ArrayLike | None = None, aus: Sequence[int] = AUS
) -> Scores:
    """Score ``decisions`` [N, A] (0 or 1) against ``labels`` [N, A] (0, 1, -1), element by element.

    Args:
        probabilities: [N, A] in [0, 1], for the metrics that need no threshold.
        aus: numbers of the A columns.

    Raises:
        ValueError: other shapes or values.
    """
    counts = confusion(labels, decisions)
    seen = counts.annotated > 0
    positive = counts.true_positive + counts.false_negative

    def where_seen(values: Floats) -> Floats:
        return np.where(seen, values, np.nan)

    nothing = np.full(len(seen), np.nan)
    return Scores(
        f1=where_seen(counts.f1),
        f1_our=where_seen(counts.f1_our),
        precision=where_seen(counts.precision),
        recall=where_seen(counts.recall),
        average_precision=nothing if probabilities is None else where_seen(average_precision(labels, probabilities)),
        calibration_error=nothing if probabilities is None else reliability(labels, probabilities).error,
        baselines={
            name: {metric: where_seen(values) for metric, values in found.items()}
            for name, found in trivial_baselines(labels).items()
        },
        annotated=counts.annotated.astype(np.int64),
        positive=positive.astype(np.int64),
        aus=tuple(aus),
    )


def mean(values: Floats) -> float:
    """Mean over the AUs that have a value; 0 if none has one."""
    found = values[~np.isnan(values)]
    return float(found.mean()) if len(found) else 0.0


def by_name(values: Floats, names: Sequence[str]) -> dict[str, float | None]:
    """AU name -> value of ``values`` [A], and ``mean``; NaN becomes None."""
    plain = [None if np.isnan(value) else float(value) for value in values]
    return {**dict(zip(names, plain, strict=True)), "mean": mean(values)}
