"""Cross-validation over recordings and people: scores of every clip by a network that saw neither.

``runs/NAME/foldK.npz`` holds the scores of fold K's clips by the network that was fitted on the other folds. A finished
fold is not fitted again. Thresholds for a fold are tuned on the other folds' scores only.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from extract.errors import StaleError, UsageError
from extract.files import LocalFiles
from extract.inputs.splits import Member, by_names, folds
from fusion.assessment import Decide, Evaluation, assess, doubt, network_alone
from fusion.postprocess import Step
from fusion.score_sets import joined, of_clips
from fusion.scores import FrameScores
from fusion.scoring import BASELINES
from fusion.selection import first_difference
from fusion.text_tables import columns, percent, wrapped


class FitFold(Protocol):
    """Fits a network on some clips and scores others.

    Early stopping must look at some of ``train_clips``: a network that was stopped by ``held_out`` has seen them.
    """

    def __call__(self, train_clips: tuple[str, ...], held_out: tuple[str, ...], name: str, /) -> FrameScores: ...


@dataclass(frozen=True)
class Fold:
    """One fold's own result."""

    name: str
    clips: tuple[str, ...]
    evaluation: Evaluation


@dataclass(frozen=True)
class CrossValidation:
    """Scores of every clip by a network that did not see it."""

    pooled: Evaluation
    """Of all clips together: counts are summed before F1 is taken."""
    folds: tuple[Fold, ...]
    scores: FrameScores
    """Of every clip, in the order of the folds."""

    @property
    def mean_and_deviation(self) -> tuple[float, float]:
        """Of the folds' mean F1; the deviation is the sample's (divided by k - 1)."""
        values = [fold.evaluation.scores.mean_f1 for fold in self.folds]
        return float(np.mean(values)), float(np.std(values, ddof=1))

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        mean, deviation = self.mean_and_deviation
        return {
            "pooled": self.pooled.as_json(),
            "folds_f1_mean": mean,
            "folds_f1_deviation": deviation,
            "folds": [
                {"name": fold.name, "held_out": list(fold.clips), **fold.evaluation.as_json()} for fold in self.folds
            ],
        }

    def rows(self) -> list[dict[str, Any]]:
        """Those of every fold's evaluation, then the pooled ones."""
        return [
            {"fold": name, **row}
            for name, evaluation in (
                *((fold.name, fold.evaluation) for fold in self.folds),
                ("pooled", self.pooled),
            )
            for row in evaluation.rows()
        ]

    def text(self, verbose: bool = False) -> str:
        """A table that leads with the pooled F1; the whole evaluation of all clips if ``verbose``."""
        mean, deviation = self.mean_and_deviation
        pooled = self.pooled
        name, baseline = pooled.scores.best_baseline
        lines = wrapped(
            f"mean F1 {percent(pooled.scores.mean_f1)} % ({doubt(pooled.interval, pooled.source_videos)}), best "
            f"trivial predictor {percent(baseline)} ({BASELINES[name]})"
        )
        lines += wrapped(
            f"{len(self.folds)} folds of recordings and people, every clip scored by a network that saw neither; the "
            f"folds' own mean F1 {percent(mean)}, deviation {percent(deviation)}"
        )
        for warning in pooled.warnings():
            lines += wrapped(warning)
        steps = [step.name for step in pooled.steps]
        rows = []
        for title, evaluation in (*((fold.name, fold.evaluation) for fold in self.folds), ("pooled", pooled)):
            rows.append([
                title,
                f"{evaluation.clips:,}",
                f"{evaluation.source_videos:,}",
                f"{evaluation.frames:,}",
                *(percent(step.scores.mean_f1) for step in evaluation.steps),
                percent(evaluation.scores.best_baseline[1]),
            ])
        header = ["", "clips", "source videos", "frames", *(f"F1 {step}" for step in steps), "trivial"]
        lines += ["", *columns(header, rows)]
        if verbose:
            lines += ["", "all clips:", pooled.text(verbose=True)]
        else:
            lines += ["", *pooled.au_lines()]
        return "\n".join(lines)


def plan(
    members: Sequence[Member],
    labels: Mapping[str, NDArray[np.int8]],
    k: int,
    *,
    seed: int = 0,
    first: Sequence[str] = (),
) -> list[tuple[str, ...]]:
    """The clips of each fold, sorted: no recording and no person in two, frames and positives of each AU even.

    Args:
        members: the labelled clips.
        labels: clip -> [T, A]: 0, 1 or -1.
        first: exact names of the clips that are fold 1, such as an official validation set; the others make the rest.

    Raises:
        UsageError: too few recordings or people for ``k`` folds, an unknown name, or ``first`` shares a recording or
            a person with other clips.
    """
    amounts = {
        member.id: (
            float((labels[member.id] >= 0).any(axis=1).sum()),
            *(labels[member.id] == 1).sum(axis=0).astype(float).tolist(),
        )
        for member in members
    }
    if not first:
        return [tuple(sorted(fold)) for fold in folds(members, k, seed, amounts)]
    rest = [member.id for member in members if member.id not in set(first)]
    by_names(members, {"fold1": first, "the other folds": rest})
    others = [member for member in members if member.id in set(rest)]
    made = [set(rest)] if k == 2 else folds(others, k - 1, seed, amounts)
    return [tuple(sorted(first)), *(tuple(sorted(fold)) for fold in made)]


def crossval(
    parts: Sequence[Sequence[str]],
    fit_fold: FitFold,
    folder: str | Path,
    settings: Mapping[str, Any],
    *,
    tune: Callable[[FrameScores], Decide] | None = None,
    published: bool = False,
) -> CrossValidation:
    """Fit a network per fold on all others, score it on its own clips, and pool the scores.

    Args:
        parts: the clips of each fold, from ``plan``.
        fit_fold: fits and scores; called only for folds that are not finished in ``folder``.
        folder: where each fold's scores are kept.
        settings: plain values that decide the result; a fold made with others is refused.
        tune: from scores to the post-processing that is tuned on them; for a fold it gets the other folds' scores.
            None is the network alone.

    Raises:
        StaleError: a fold in ``folder`` was made of other clips or with other settings.
        CorruptError: a fold's scores are damaged.
        UsageError: fewer than two folds, ``fit_fold`` scored other clips, or no frame is annotated.
    """
    if len(parts) < 2:
        raise UsageError(f"{len(parts)} fold: cross-validation takes two or more")
    held = [tuple(part) for part in parts]
    every: list[FrameScores] = []
    for number, clips in enumerate(held, 1):
        train = tuple(clip for other in held for clip in other if other is not clips)
        every.append(_fold(f"fold{number}", train, clips, fit_fold, Path(folder), settings))
    evaluations: list[Evaluation] = []
    steps: list[Sequence[Step]] = []
    for number, scores in enumerate(every):
        others = joined(
            [one for place, one in enumerate(every) if place != number], {**scores.facts, "split": "others"}
        )
        decide = network_alone if tune is None else tune(others)
        steps.append(decide(scores))
        evaluations.append(assess(scores, lambda _, found=steps[-1]: found))  # type: ignore[misc]
    left_out = {clip: why for one in every for clip, why in dict(one.facts.get("left_out", {})).items()}
    untrained = sorted({name for one in every for name in one.facts.get("untrained", ())})
    facts = {
        **every[0].facts,
        "run": str(folder),
        "split": f"all {len(every)} folds",
        "untrained": untrained,
        "drawn": sum(int(one.facts.get("drawn", 0)) for one in every),
        "left_out": left_out,
    }
    facts.pop(FACT, None)
    scores = joined(every, facts)
    pooled = assess(scores, lambda _: _pooled(steps), published=published)
    return CrossValidation(
        pooled,
        tuple(
            Fold(f"fold{number}", clips, evaluation)
            for number, (clips, evaluation) in enumerate(zip(held, evaluations, strict=True), 1)
        ),
        scores,
    )


FACT = "crossval"
"""Key of a fold's scores' facts: the clips and settings that it was made of."""


def _fold(
    name: str,
    train: tuple[str, ...],
    held_out: tuple[str, ...],
    fit_fold: FitFold,
    folder: Path,
    settings: Mapping[str, Any],
) -> FrameScores:
    """The fold's scores: those in ``folder`` if they are what is wanted, else newly fitted ones, kept there."""
    # Through JSON, as the facts of a file come back: tuples are lists there.
    wanted = json.loads(json.dumps({"settings": settings, "train": sorted(train), "held_out": sorted(held_out)}))
    path = folder / f"{name}.npz"
    if path.is_file():
        kept = FrameScores.read(path)
        difference = first_difference(kept.facts.get(FACT), wanted)
        if difference is not None:
            raise StaleError(
                f"{path}: the fold was made otherwise than asked now ({difference}); name another folder with -o, or "
                "remove this one to fit all folds again"
            )
        return kept
    found = fit_fold(train, held_out, name)
    if set(found.clips) != set(held_out):
        raise UsageError(
            f"{name}: scores of {len(found.clips)} clips, expected the {len(held_out)} that were held out; "
            f"for example {min(set(found.clips) ^ set(held_out))}"
        )
    found = replace(of_clips(found, held_out), facts={**found.facts, "fold": name, FACT: wanted})
    LocalFiles(folder).write(path.name, found.as_bytes())
    return found


def _pooled(steps: Sequence[Sequence[Step]]) -> list[Step]:
    """Every fold's own steps, one under the other."""
    return [
        Step(
            step[0].name,
            np.concatenate([one.probabilities for one in step]),
            np.concatenate([one.decisions for one in step]),
        )
        for step in zip(*steps, strict=True)
    ]
