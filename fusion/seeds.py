"""Several runs that differ by their seed only: mean and deviation over seeds, beside the intervals over videos."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from extract.au.metrics import Floats
from extract.errors import UsageError
from extract.store import Store
from fusion.assessment import Evaluation
from fusion.bootstrap import Interval
from fusion.config import FusionConfig
from fusion.evaluation import evaluate
from fusion.runs import Run
from fusion.scoring import BASELINES
from fusion.text_tables import au_table, columns, percent, span, wrapped
from fusion.training import Progress, fit


@dataclass(frozen=True)
class OverSeeds:
    """The evaluations of S runs on the same frames."""

    evaluations: tuple[Evaluation, ...]

    @property
    def steps(self) -> tuple[str, ...]:
        return tuple(step.name for step in self.evaluations[0].steps)

    @property
    def f1(self) -> Floats:
        """[S, steps, A] in [0, 1]; NaN where nobody annotated."""
        return np.array([[step.scores.f1 for step in one.steps] for one in self.evaluations])

    @property
    def mean_f1(self) -> Floats:
        """[S, steps]: mean F1 of each run after each step."""
        return np.array([[step.scores.mean_f1 for step in one.steps] for one in self.evaluations])

    def as_json(self) -> dict[str, Any]:
        """Plain values; deviations are of the sample (divided by S - 1)."""
        mean, deviation = self.mean_f1.mean(axis=0), self.mean_f1.std(axis=0, ddof=1)
        return {
            "runs": [one.run for one in self.evaluations],
            "split": self.evaluations[0].split,
            "steps": [
                {"step": name, "f1_mean": float(mean[place]), "f1_deviation": float(deviation[place])}
                for place, name in enumerate(self.steps)
            ],
            "evaluations": [one.as_json() for one in self.evaluations],
        }

    def rows(self) -> list[dict[str, Any]]:
        """A row per run and step."""
        return [
            {
                "run": one.run,
                "step": step.name,
                "f1": step.scores.mean_f1,
                "f1_low": step.interval and step.interval[0],
                "f1_high": step.interval and step.interval[1],
            }
            for one in self.evaluations
            for step in one.steps
        ]

    def text(self, verbose: bool = False) -> str:
        """Mean and deviation over seeds, beside the interval over videos; every run if ``verbose``."""
        first, last = self.evaluations[0], self.mean_f1[:, -1]
        name, baseline = first.scores.best_baseline
        lines = wrapped(
            f"mean F1 {percent(last.mean())} %, deviation {percent(last.std(ddof=1))} over {len(last)} seeds, "
            f"best trivial predictor {percent(baseline)} ({BASELINES[name]})"
        )
        lines += wrapped(
            f"{first.where()}; the deviation is of training alone, the intervals are of which recordings were drawn"
        )
        for warning in dict.fromkeys(warning for one in self.evaluations for warning in one.warnings()):
            lines += wrapped(warning)
        header = ["", "mean F1", "deviation", "least", "most", "95 % interval, mean of the runs'"]
        lines += [
            "",
            *columns(
                header,
                [
                    [
                        step,
                        percent(values.mean()),
                        percent(values.std(ddof=1)),
                        percent(values.min()),
                        percent(values.max()),
                        span(self._interval(place)),
                    ]
                    for place, (step, values) in enumerate(zip(self.steps, self.mean_f1.T, strict=True))
                ],
            ),
        ]
        per_au = self.f1[:, -1]
        rows = {
            f"F1 {self.steps[-1]}": [*map(percent, per_au.mean(axis=0)), percent(last.mean())],
            "  deviation": [*map(percent, per_au.std(axis=0, ddof=1)), percent(last.std(ddof=1))],
        }
        lines += ["", *au_table([*first.scores.au_names, "mean"], rows)]
        if verbose:
            runs = [[one.run, percent(one.scores.mean_f1), span(one.interval)] for one in self.evaluations]
            lines += ["", *columns(["run", "mean F1", "95 % interval"], runs)]
        return "\n".join(lines)

    def _interval(self, step: int) -> Interval | None:
        """The runs' intervals, end by end: how sure one run is, not how sure their mean is."""
        ends = [one.steps[step].interval for one in self.evaluations]
        known = [interval for interval in ends if interval is not None]
        if len(known) < len(ends):
            return None
        low, high = np.mean(known, axis=0)
        return float(low), float(high)


def over_seeds(evaluations: Sequence[Evaluation]) -> OverSeeds:
    """The table over seeds of runs on the same split.

    Raises:
        UsageError: fewer than two runs, or runs on other frames, steps or action units.
    """
    if len(evaluations) < 2:
        raise UsageError(f"{len(evaluations)} run: a deviation over seeds takes two or more (`--seeds 5`)")
    first = evaluations[0]
    for one in evaluations[1:]:
        for what, found, expected in (
            ("split", one.split, first.split),
            ("frames", one.frames, first.frames),
            ("clips", one.clips, first.clips),
            ("action units", one.scores.aus, first.scores.aus),
            ("steps", [step.name for step in one.steps], [step.name for step in first.steps]),
        ):
            if found != expected:
                raise UsageError(f"run {one.run}: {what} {found}, run {first.run} has {expected}; evaluate both alike")
    return OverSeeds(tuple(evaluations))


def fit_seeds(
    features: str | Path,
    seeds: int,
    output: str | Path | None = None,
    config: str | FusionConfig | None = None,
    *,
    set: Sequence[str] = (),
    device: str = "auto",
    skip_failed: bool = False,
    strict_splits: bool = False,
    allow_leak: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> OverSeeds:
    """Fit runs that differ by their seed only, ``OUTPUT_seed0`` and so on, and score them on ``test``, else on ``val``.

    A finished run is not fitted again, an unfinished one is continued. Arguments and errors are those of ``fit``.

    Args:
        seeds: number of runs; their seeds are 0, 1, ...
    """
    begun = Path(output) if output is not None else Run.new().path
    runs = [begun.with_name(f"{begun.name}_seed{seed}") for seed in range(seeds)]
    for seed, run in enumerate(runs):
        if not Run(run).finished:
            fit(
                features,
                run,
                config,
                set=[*set, f"training.seed={seed}"],
                device=device,
                skip_failed=skip_failed,
                strict_splits=strict_splits,
                allow_leak=allow_leak,
                progress=progress,
            )
    store = Store.open(features)
    splits = {store.attributes(clip).get("split") for clip in store.clips()}
    split = next((name for name in ("test", "val") if name in splits), "train")
    return over_seeds([
        evaluate(features, run, split=split, device=device, skip_failed=skip_failed, allow_leak=allow_leak)
        for run in runs
    ])
