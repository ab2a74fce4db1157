"""Metrics of what a network predicts beside action units: expressions, valence and arousal, AU intensities."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from extract.au import LOWEST_AFFECT, LOWEST_INTENSITY, au_name, expression_names
from extract.au.agreement import agreement
from extract.au.metrics import Floats, expression_confusion
from fusion.scores import FrameScores
from fusion.scoring import mean

TITLES = {"expr": "expressions", "va": "valence and arousal", "intensity": "AU intensities"}


@dataclass(frozen=True)
class HeadScores:
    """Metrics of one task, per column: class, dimension or action unit. NaN where nothing is annotated."""

    task: str
    """``expr``, ``va`` or ``intensity``."""
    columns: tuple[str, ...]
    """[D] names."""
    annotated: NDArray[np.int64]
    """[D] frames; of an expression: all frames with any."""
    metrics: Mapping[str, Floats]
    """Metric -> [D]; the first is the one that the task is judged by."""

    @property
    def main(self) -> tuple[str, float]:
        """The metric that the task is judged by, and its mean over columns."""
        name = next(iter(self.metrics))
        return name, mean(self.metrics[name])

    def as_json(self) -> dict[str, Any]:
        """Plain values by column, and ``mean``; NaN becomes None."""
        found: dict[str, Any] = {"annotated": dict(zip(self.columns, self.annotated.tolist(), strict=True))}
        for name, values in self.metrics.items():
            plain = [None if np.isnan(value) else float(value) for value in values]
            found[name] = {**dict(zip(self.columns, plain, strict=True)), "mean": mean(values)}
        return found

    def rows(self) -> list[dict[str, Any]]:
        """One row per column and metric, and one per metric for their mean; NaN becomes None."""
        frames = dict(zip(self.columns, self.annotated.tolist(), strict=True))
        return [
            {"task": self.task, "column": column, "metric": metric, "value": value, "annotated": frames.get(column)}
            for metric in self.metrics
            for column, value in self.as_json()[metric].items()
        ]


def score_heads(scores: FrameScores) -> tuple[HeadScores, ...]:
    """The metrics of each further task.

    F1 of expressions, whose mean is the macro F1; CCC of valence and arousal, and ICC(3,1) of intensities, both with
    Pearson's correlation and the mean absolute error.
    """
    return tuple(_scored(task, outputs, scores.targets[task], scores.aus) for task, outputs in scores.outputs.items())


def annotated_frames(scores: FrameScores) -> NDArray[np.bool_]:
    """[N]: whether a frame has a label of any task."""
    found: NDArray[np.bool_] = np.any(scores.labels >= 0, axis=1)
    for task, labels in scores.targets.items():
        lowest = LOWEST_AFFECT if task == "va" else 0
        found |= (labels.reshape(len(labels), -1) >= lowest).any(axis=1)
    return found


def _scored(task: str, outputs: NDArray[np.float32], labels: NDArray[Any], aus: Sequence[int]) -> HeadScores:
    if task == "expr":
        counts = expression_confusion(labels, outputs.argmax(axis=1), outputs.shape[1])
        total = int((labels >= 0).sum())
        names = expression_names(outputs.shape[1])
        f1 = counts.f1 if total else np.full(len(names), np.nan)
        return HeadScores(task, names, np.full(len(names), total), {"f1": f1})
    found = agreement(labels, outputs, LOWEST_AFFECT if task == "va" else LOWEST_INTENSITY)
    seen = found.count > 0
    main = {"ccc": found.ccc} if task == "va" else {"icc": found.icc}
    metrics = {**main, "pcc": found.pcc, "mae": found.mae}
    names = ("valence", "arousal") if task == "va" else tuple(map(au_name, aus))
    if len(names) != len(seen):  # intensities of a run without AU occurrence
        names = tuple(f"column {number}" for number in range(len(seen)))
    return HeadScores(
        task,
        names,
        found.count.astype(np.int64),
        {name: np.where(seen, values, np.nan) for name, values in metrics.items()},
    )
