"""Pictures of evaluations: F1 per action unit with its trivial predictor, the mean after each step, ensembles."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from fusion.assessment import Evaluation
from fusion.bootstrap import Interval
from fusion.ensemble import Ensemble
from fusion.pictures import bar_style, new_figure, save_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_evaluation(evaluation: Evaluation, folder: str | Path, name: str = "evaluation") -> list[Path]:
    """Write ``name.png`` and ``name.svg`` into ``folder``; whiskers are 95 % intervals over source videos.

    A run without action units has no picture: nothing is written.

    Raises:
        MachineError: the disk is full, read-only or gone.
    """
    scores, steps = evaluation.scores, evaluation.steps
    if not scores.aus:
        return []
    with styled():
        figure = new_figure(9.0, 3.4)
        per_au, means = figure.subplots(1, 2, width_ratios=(3, 1), sharey=True)
        best = np.max([found["f1"] for found in scores.baselines.values()], axis=0)
        _bars(per_au, scores.au_names, scores.f1, evaluation.au_intervals, best, f"F1 {steps[-1].name}")
        per_au.set_title(f"F1 per action unit, split {evaluation.split}")
        per_au.set_ylim(0, 1)
        _bars(
            means,
            [step.name for step in steps],
            [step.scores.mean_f1 for step in steps],
            [step.interval for step in steps],
            [scores.best_baseline[1]] * len(steps),
            "mean F1",
        )
        means.set_title("Mean F1")
        figure.legend(*per_au.get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return save_figure(figure, folder, name)


def draw_ensemble(ensemble: Ensemble, folder: str | Path, name: str = "ensemble") -> list[Path]:
    """Write ``name.png`` and ``name.svg``: mean F1 of each way to use the candidates, and the best trivial predictor.

    A star marks what was chosen on the very frames of its number. Raises as ``draw_evaluation``.
    """
    with styled():
        figure = new_figure(9.0, 3.4)
        axes = figure.subplots()
        _bars(
            axes,
            [f"{way.name}{' *' if way.flatters else ''}\n{way.split}" for way in ensemble.ways],
            [way.scores.mean_f1 for way in ensemble.ways],
            [way.interval for way in ensemble.ways],
            [way.scores.best_baseline[1] for way in ensemble.ways],
            "mean F1",
        )
        axes.set_ylim(0, 1)
        axes.set_title("Mean F1 of the candidates together (*: chosen on these frames)")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return save_figure(figure, folder, name)


def _bars(
    axes: "Axes",
    names: Sequence[str],
    values: ArrayLike,
    intervals: Sequence[Interval | None],
    baseline: ArrayLike,
    label: str,
) -> None:
    """A bar per name with its interval, and a marker at its baseline. What is not there (NaN) has no bar."""
    place = np.arange(len(names))
    heights = np.asarray(values, dtype=np.float64)
    style: dict[str, Any] = {**bar_style(3), "hatch": ""}  # one group only: whiskers are clearer on plain bars
    axes.bar(place, np.nan_to_num(heights), 0.7, label=label, **style)
    for x, height, interval in zip(place, heights, intervals, strict=True):
        if interval is not None:
            low, high = interval
            reach = [[max(height - low, 0.0)], [max(high - height, 0.0)]]
            axes.errorbar(x, height, reach, color="black", capsize=2.5, linewidth=1)
    axes.hlines(baseline, place - 0.45, place + 0.45, color="black", linewidth=2.4, label="best trivial predictor")
    axes.set_xticks(place, names, rotation=60)
    axes.grid(axis="x", visible=False)
