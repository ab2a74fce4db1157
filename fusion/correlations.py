"""Which action units occur together, in the labels and in what the network says (the paper's Figures 5 and 7)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from extract.au import NUM_EXPRESSIONS, au_name, expression_names
from extract.errors import UsageError
from fusion.pairs import PAPER_PAIRS, equation
from fusion.pearson import Correlation, labels_as_values, pearson
from fusion.postprocess import PostProcess
from fusion.scores import FrameScores
from fusion.temperature import sigmoid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats: TypeAlias = NDArray[np.float64]

SHOWN = 10
"""Pairs that a short table shows, beside the paper's."""


@dataclass(frozen=True)
class Pair:
    """Two action units."""

    first: int
    second: int
    labels: float
    """Correlation of their labels, in [-1, 1]; NaN where it is not defined."""
    predictions: float
    """Of their predicted probabilities, over the same frames."""
    frames: int
    """In which both are annotated."""

    @property
    def paper(self) -> str:
        """The paper's equation between the two, or nothing."""
        for target, sources in PAPER_PAIRS.items():
            if (self.first in sources and self.second == target) or (self.second in sources and self.first == target):
                return equation(target, sources)
        return ""


@dataclass(frozen=True)
class Correlations:
    """Pearson's r over frames, each pair over the frames in which both are annotated."""

    split: str
    clips: int
    source_videos: int
    aus: tuple[int, ...]
    labels: Correlation
    """[A, A]"""
    predictions: Correlation
    """[A, A]: of probabilities, over the frames that count in ``labels``."""
    processed: bool
    """Whether the probabilities are those after post-processing; else the sigmoid of the network's logits."""
    expressions: Correlation | None = None
    """[A, E]: AU labels with each expression's label; None without expression labels."""
    expression_names: tuple[str, ...] = ()

    @property
    def pairs(self) -> list[Pair]:
        """All pairs, the strongest correlation of labels first, whatever its sign; those without one last."""
        found = [
            Pair(
                first=self.aus[i],
                second=self.aus[j],
                labels=float(self.labels.r[i, j]),
                predictions=float(self.predictions.r[i, j]),
                frames=int(self.labels.rows[i, j]),
            )
            for i in range(len(self.aus))
            for j in range(i + 1, len(self.aus))
        ]
        return sorted(found, key=lambda pair: -1.0 if np.isnan(pair.labels) else abs(pair.labels), reverse=True)

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``correlate.json``; what is not defined is None."""
        names = [au_name(number) for number in self.aus]
        found: dict[str, Any] = {
            "split": self.split,
            "clips": self.clips,
            "source_videos": self.source_videos,
            "predictions_after_postprocessing": self.processed,
            "labels": _table(self.labels.r, names, names),
            "frames": _table(self.labels.rows, names, names),
            "predictions": _table(self.predictions.r, names, names),
        }
        if self.expressions is not None:
            found["expressions"] = _table(self.expressions.r, names, self.expression_names)
            found["expression_frames"] = _table(self.expressions.rows, names, self.expression_names)
        return found

    def rows(self) -> list[dict[str, Any]]:
        """One row per pair for ``correlate.csv``, AU with AU, then AU with expression."""
        found = [
            {
                "first": au_name(pair.first),
                "second": au_name(pair.second),
                "r_labels": _or_none(pair.labels),
                "r_predictions": _or_none(pair.predictions),
                "frames": pair.frames,
                "paper": pair.paper,
            }
            for pair in self.pairs
        ]
        if self.expressions is not None:
            for (i, j), value in np.ndenumerate(self.expressions.r):
                found.append({
                    "first": au_name(self.aus[i]),
                    "second": self.expression_names[j],
                    "r_labels": _or_none(float(value)),
                    "r_predictions": None,
                    "frames": int(self.expressions.rows[i, j]),
                    "paper": "",
                })
        return found

    def text(self, verbose: bool = False) -> str:
        """The strongest pair, then the pairs by strength: all if ``verbose``, else ten and the paper's."""
        pairs = self.pairs
        defined = [pair for pair in pairs if not np.isnan(pair.labels)]
        where = f"split {self.split}: {self.clips} clips of {self.source_videos} source videos"
        if not defined:
            lines = [f"no pair of action units varies together in the labels ({where})"]
        else:
            top = defined[0]
            lines = [
                f"strongest of {len(defined)} pairs in the labels: {_pair(top)}, r {_r(top.labels)} over {top.frames} "
                f"frames; in the predictions {_r(top.predictions)}",
                where,
            ]
        of = "after post-processing" if self.processed else "of the network"
        lines += ["", f"{'pair':<14}{'labels':>8}{'predictions':>13}{'frames':>11}   (predictions {of})"]
        for place, pair in enumerate(pairs):
            if verbose or place < SHOWN or pair.paper:
                cells = f"{_r(pair.labels):>8}{_r(pair.predictions):>13}{pair.frames:>11}"
                lines.append(f"{_pair(pair):<14}{cells}   {pair.paper and f'paper: {pair.paper}'}".rstrip())
        if not verbose and len(pairs) > SHOWN:
            lines.append(f"-v: all {len(pairs)} pairs")
        return "\n".join([*lines, *self._expression_lines(verbose)])

    def pictures(self) -> "dict[str, Figure]":
        """``correlate``: labels and predictions side by side; ``correlate_expressions``: AUs by expressions."""
        from fusion.pictures import heatmap, new_figure, styled

        names = [au_name(number) for number in self.aus]
        size = 0.9 + 0.38 * max(len(names), 6)
        found = {}
        with styled():
            figure = new_figure(2 * size + 0.6, size)
            axes = figure.subplots(1, 2)
            of = "after post-processing" if self.processed else "of the network"
            for part, values, title in (
                (axes[0], self.labels.r, f"Labels, split {self.split}"),
                (axes[1], self.predictions.r, f"Probabilities {of}"),
            ):
                heatmap(part, values, names, names)
                part.set_title(title)
            found["correlate"] = figure
            if self.expressions is not None:
                figure = new_figure(1.2 + 0.6 * len(self.expression_names), size)
                part = figure.subplots()
                heatmap(part, self.expressions.r, names, self.expression_names)
                part.set_title(f"Labels of AUs and expressions, split {self.split}")
                found["correlate_expressions"] = figure
        return found

    def _expression_lines(self, verbose: bool) -> list[str]:
        if self.expressions is None:
            return []
        most = len(self.aus) if verbose else 3
        lines = ["", f"{'expression':<14}action units by strength (labels, frames with both)"]
        for column, name in enumerate(self.expression_names):
            r = self.expressions.r[:, column]
            order = [i for i in np.argsort(-np.abs(np.nan_to_num(r)), kind="stable") if not np.isnan(r[i])]
            cells = [f"{au_name(self.aus[i])} {_r(float(r[i]))}" for i in order[:most]] or ["does not vary"]
            lines += [f"{title:<14}{', '.join(part)}" for title, part in _wrapped(name, cells)]
        return lines


def correlate(scores: FrameScores, post: PostProcess | None = None) -> Correlations:
    """Correlate the labels of ``scores``, its predictions, and expressions if they are labelled (``targets["expr"]``).

    Args:
        post: take the probabilities after this; None: the sigmoid of the logits.

    Raises:
        UsageError: no frame is annotated, fewer than two AUs, or ``post`` is of other AUs.
    """
    split = str(scores.facts.get("split", "unnamed"))
    if len(scores.aus) < 2:
        raise UsageError(
            f"correlation needs two action units; the scores are of {', '.join(scores.au_names) or 'none'}"
        )
    annotated = scores.labels >= 0
    if not annotated.any():
        raise UsageError(f"split {split}: no annotated frame to correlate; name another with --split")
    labels = labels_as_values(scores.labels)
    probabilities = sigmoid(scores.logits) if post is None else post.probabilities(scores)
    expressions: Correlation | None = None
    names: tuple[str, ...] = ()
    if (expr := scores.targets.get("expr")) is not None and (expr >= 0).any():
        names = _expression_names(scores, expr)
        shown = np.where(expr[:, None] >= 0, expr[:, None] == np.arange(len(names)), np.nan)  # [N, E]
        expressions = pearson(labels, shown)
    return Correlations(
        split=split,
        clips=len(scores.clips),
        source_videos=len(set(scores.source_videos)),
        aus=scores.aus,
        labels=pearson(labels),
        predictions=pearson(np.where(annotated, probabilities, np.nan)),
        processed=post is not None,
        expressions=expressions,
        expression_names=names,
    )


def _expression_names(scores: FrameScores, expr: NDArray[Any]) -> tuple[str, ...]:
    outputs = scores.outputs.get("expr")
    return expression_names(max(int(expr.max()) + 1, NUM_EXPRESSIONS if outputs is None else outputs.shape[1]))


def _table(values: NDArray[Any], rows: Sequence[str], columns: Sequence[str]) -> dict[str, dict[str, float | None]]:
    return {
        row: {column: _or_none(value) for column, value in zip(columns, line, strict=True)}
        for row, line in zip(rows, values.tolist(), strict=True)
    }


def _wrapped(name: str, cells: list[str], most: int = 7) -> list[tuple[str, list[str]]]:
    """The cells in lines of at most ``most``, of which only the first bears the name."""
    return [(name if start == 0 else "", cells[start : start + most]) for start in range(0, len(cells), most)]


def _pair(pair: Pair) -> str:
    return f"{au_name(pair.first)}-{au_name(pair.second)}"


def _r(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.2f}".replace("-0.00", "0.00")


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value
