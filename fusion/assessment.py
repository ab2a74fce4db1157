"""An evaluation: scores of a split after each step of post-processing, with intervals over source videos."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from extract.au.metrics import Floats
from fusion import published
from fusion.about import About, counted
from fusion.bootstrap import LEAST_VIDEOS, Interval, VideoBootstrap, VideoCounts
from fusion.heads import TITLES, HeadScores, score_heads
from fusion.postprocess import Step
from fusion.scores import FrameScores
from fusion.scoring import BASELINES, Scores, by_name, mean, score
from fusion.temperature import sigmoid
from fusion.text_tables import au_table, columns, percent, signed, span, wrapped

METRICS = {
    "F1": "f1",
    "F1_our": "f1_our",
    "precision": "precision",
    "recall": "recall",
    "PR-AUC": "average_precision",
    "calibration error": "calibration_error",
}
"""What tables call a metric -> its field."""


Decide: TypeAlias = Callable[[FrameScores], Sequence[Step]]
"""Post-processing: the network alone first, then a step more each time; the last is what the run says."""


def network_alone(scores: FrameScores) -> list[Step]:
    """The only step of a run without post-processing: an AU is active where its logit is >= 0."""
    return [Step("base", sigmoid(scores.logits), (scores.logits >= 0).astype(np.int8))]


@dataclass(frozen=True)
class StepScores:
    """The metrics after one step."""

    name: str
    scores: Scores
    interval: Interval | None
    """95 % interval of the mean F1 over source videos; None for fewer than ``LEAST_VIDEOS``."""
    over_base: tuple[float, Interval | None] | None
    """Mean F1 minus that of the first step, with its paired interval; None for the first step."""
    over_previous: tuple[float, Interval | None] | None
    """The same against the step before."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "step": self.name,
            "f1_interval_95": _plain(self.interval),
            "over_base": _gain_json(self.over_base),
            "over_previous": _gain_json(self.over_previous),
            **{key: value for key, value in self.scores.as_json().items() if key in METRICS.values()},
        }


@dataclass(frozen=True)
class Absent:
    """How much one modality matters."""

    modality: str
    frames: int
    """Annotated frames that lack it."""
    without: float | None
    """Mean F1 on these frames; None if there are none."""
    with_it: float | None
    """Mean F1 on the other annotated frames; None if there are none."""
    withheld: float | None = None
    """Mean F1 on all frames when no frame has it; None if that was not tried."""
    cost: tuple[float, Interval | None] | None = None
    """``withheld`` minus the mean F1 with it, with its paired interval."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "modality": self.modality,
            "frames_without": self.frames,
            "f1_on_frames_without": self.without,
            "f1_on_frames_with": self.with_it,
            "f1_withheld": self.withheld,
            "withheld_minus_whole": _gain_json(self.cost),
        }


@dataclass(frozen=True)
class Evaluation(About):
    """A run's scores on one split, with the facts that a reader needs to judge them."""

    steps: tuple[StepScores, ...] = ()
    """The network alone, then each step of post-processing; at least one."""
    au_intervals: tuple[Interval | None, ...] = ()
    """[A]: 95 % intervals of the F1 per AU after the last step."""
    heads: tuple[HeadScores, ...] = ()
    """The further tasks of the run."""
    absent: tuple[Absent, ...] = ()
    """One entry per modality."""
    notices: tuple[str, ...] = ()
    """Sentences that every table of it prints."""
    post: tuple[str, ...] = ()
    """Lines that describe its post-processing."""
    published: bool = False
    """Whether published numbers are printed beside: only where the clips are Aff-Wild2's."""

    @property
    def scores(self) -> Scores:
        """The metrics after the last step: those of what the run says."""
        return self.steps[-1].scores

    @property
    def interval(self) -> Interval | None:
        """95 % interval of the mean F1 over source videos; None for fewer than ``LEAST_VIDEOS``."""
        return self.steps[-1].interval

    @property
    def published_steps(self) -> dict[str, float]:
        """Step -> mean F1 of USC, where asked for and comparable."""
        return published.steps([step.name for step in self.steps], self.split) if self.published else {}

    def warnings(self) -> list[str]:
        """Sentences that weaken the numbers."""
        found = [*super().warnings(), *self.notices]
        if self.scores.without_positive:
            names = ", ".join(self.scores.without_positive)
            found.append(f"never active in this split: {names} (F1 is 0 by definition and counts in the mean)")
        if self.interval is None and self.scores.aus:
            found.append(
                f"no interval: {counted(self.source_videos, 'source video')}; an interval takes {LEAST_VIDEOS} or more"
            )
        return found

    def as_json(self) -> dict[str, Any]:
        """The same as plain values, for ``--json`` and ``metrics.json``. Metrics at the top are the last step's."""
        name, value = self.scores.best_baseline
        found = {
            **self.facts_json(),
            "step": self.steps[-1].name,
            "f1_interval_95": _plain(self.interval),
            **self.scores.as_json(),
            "f1_intervals_95": dict(zip(self.scores.au_names, map(_plain, self.au_intervals), strict=True)),
            "best_baseline": {"name": name, "f1": value},
            "steps": [step.as_json() for step in self.steps],
            "postprocess": list(self.post),
            "tasks": {head.task: head.as_json() for head in self.heads},
            "modalities": [one.as_json() for one in self.absent],
            "warnings": self.warnings(),
        }
        if self.published:
            found["published"] = {
                "source": published.SOURCE,
                "usc_steps": self.published_steps,
                "official_validation": dict(published.OFFICIAL_VALIDATION) if self.split == "test" else {},
            }
        return found

    def rows(self) -> list[dict[str, Any]]:
        """A row per step, trivial predictor and AU (and ``mean``), for CSV."""
        names = self.scores.au_names
        rows = []
        for step in self.steps:
            last = step is self.steps[-1]
            values = {field: by_name(getattr(step.scores, field), names) for field in METRICS.values()}
            ends = [*(self.au_intervals if last else [None] * len(names)), step.interval]
            for place, name in enumerate((*names, "mean")):
                low, high = ends[place] or (None, None)
                rows.append(
                    {"step": step.name, "au": name}
                    | {field: found[name] for field, found in values.items()}
                    | {"f1_low": low, "f1_high": high}
                    | self._counts(place)
                )
        for key, found in self.scores.baselines.items():
            both = {metric: by_name(found[metric], names) for metric in ("f1", "f1_our")}
            for place, name in enumerate((*names, "mean")):
                blank = dict.fromkeys((*METRICS.values(), "f1_low", "f1_high"))
                rows.append(
                    {"step": f"baseline {key}", "au": name}
                    | blank
                    | {metric: values[name] for metric, values in both.items()}
                    | self._counts(place)
                )
        return rows

    def _counts(self, place: int) -> dict[str, int | None]:
        if place == len(self.scores.aus):
            return {"annotated": None, "positive": None}
        return {"annotated": int(self.scores.annotated[place]), "positive": int(self.scores.positive[place])}

    def text(self, verbose: bool = False) -> str:
        """A table of at most 100 columns that leads with the answer; with every metric if ``verbose``."""
        lines = self._answer()
        lines += wrapped(f"run {self.run} (epoch {self.epoch}), {self.where()}")
        for warning in self.warnings():
            lines += wrapped(warning)
        missing = [f"{modality} {count:,}" for modality, count in self.missing.items() if count]
        if missing:
            lines += wrapped(f"frames without a modality, scored all the same: {', '.join(missing)}")
        if self.scores.aus:
            lines += ["", *self._steps_table()] if len(self.steps) > 1 else []
            lines += ["", *self.au_lines(verbose=verbose)]
        for head in self.heads:
            lines += ["", *_head_lines(head)]
        if self.absent and (verbose or any(one.withheld is not None for one in self.absent)):
            lines += ["", *self._absent_table()]
        if verbose:
            lines += ["", *(line for text in self.post for line in wrapped(text))] if self.post else []
            if self.published and self.split == "test":
                lines += ["", f"official validation set, {published.SOURCE}:"]
                lines += columns(("", "mean F1"), [(who, percent(f1)) for who, f1 in published.OFFICIAL_VALIDATION])
        return "\n".join(lines)

    def _answer(self) -> list[str]:
        """The first lines: the result, how sure it is, and what guessing reaches."""
        parts = []
        if self.scores.aus:
            name, value = self.scores.best_baseline
            parts.append(
                f"mean F1 {percent(self.scores.mean_f1)} % ({doubt(self.interval, self.source_videos)}), "
                f"best trivial predictor {percent(value)} ({BASELINES[name]})"
            )
        for head in self.heads:
            metric, value = head.main
            parts.append(f"{TITLES[head.task]}: {'macro F1' if head.task == 'expr' else metric.upper()} {value:.3f}")
        return [line for part in parts for line in wrapped(part)]

    def _steps_table(self) -> list[str]:
        beside = self.published_steps
        header = ["", "mean F1", "95 % interval", "over base", "95 % interval", "F1_our", "USC published"]
        rows = []
        for step in self.steps:
            gain, interval = step.over_base or (None, None)
            rows.append([
                step.name,
                percent(step.scores.mean_f1),
                span(step.interval),
                signed(gain),
                span(interval, sign=True),
                percent(mean(step.scores.f1_our)),
                percent(beside.get(step.name)),
            ])
        shown = len(header) if beside else -1
        return columns(header[:shown], [row[:shown] for row in rows])

    def au_lines(self, *, verbose: bool = False) -> list[str]:
        """Lines of the table with a column per AU; every metric if ``verbose``."""
        scores, names = self.scores, self.scores.au_names
        rows: dict[str, list[str]] = {}

        def add(title: str, values: Floats) -> None:
            rows[title] = [percent(value) for value in by_name(values, names).values()]

        for step in self.steps:
            add(f"F1 {step.name}" if len(self.steps) > 1 else "F1", step.scores.f1)
        if verbose and any(self.au_intervals):
            rows["  from"] = [percent(ends[0] if ends else None) for ends in (*self.au_intervals, self.interval)]
            rows["  to"] = [percent(ends[1] if ends else None) for ends in (*self.au_intervals, self.interval)]
        shown = BASELINES if verbose else [scores.best_baseline[0]]
        for name in shown:
            add(f"  {BASELINES[name]}", scores.baselines[name]["f1"])
        add("F1_our", scores.f1_our)
        shown = BASELINES if verbose else [max(BASELINES, key=lambda name: mean(scores.baselines[name]["f1_our"]))]
        for name in shown:
            # Titles are keys: the second definition's rows need titles of their own.
            rows[f"  {BASELINES[name]} "] = [
                percent(value) for value in by_name(scores.baselines[name]["f1_our"], names).values()
            ]
        if verbose:
            for title, field in list(METRICS.items())[2:]:
                add(title, getattr(scores, field))
            rows["annotated"] = [f"{count}" for count in scores.annotated] + [""]
            rows["positive"] = [f"{count}" for count in scores.positive] + [""]
        else:
            share = np.divide(
                scores.positive, scores.annotated, out=np.full(len(names), np.nan), where=scores.annotated > 0
            )
            rows["positive frames"] = [*(percent(value) for value in share), ""]
        return au_table([*names, "mean"], rows)

    def _absent_table(self) -> list[str]:
        header = ["modality", "frames without", "F1 there", "F1 elsewhere", "F1 withheld", "change", "95 % interval"]
        rows = []
        for one in self.absent:
            change, interval = one.cost or (None, None)
            rows.append([
                one.modality,
                f"{one.frames:,}",
                percent(one.without),
                percent(one.with_it),
                percent(one.withheld),
                signed(change),
                span(interval, sign=True),
            ])
        return columns(header, rows)


def assess(
    scores: FrameScores,
    decide: Decide = network_alone,
    *,
    withheld: Mapping[str, FrameScores] | None = None,
    leak: str | None = None,
    notices: tuple[str, ...] = (),
    post: tuple[str, ...] = (),
    published: bool = False,
) -> Evaluation:
    """Score every annotated frame after each step of post-processing.

    Args:
        scores: all frames of the clips.
        decide: the post-processing, applied to whole clips before unannotated frames are left out.
        withheld: modality -> scores of the same frames when none of them has it.
        leak: what ``check_no_leak`` said, where a leak was allowed.
        notices: further sentences that every table must print.
        post: lines that describe the post-processing.
        published: print published numbers beside; for Aff-Wild2.

    Raises:
        UsageError: no frame has a label of any task.
    """
    about = About.of(scores, leak)
    labels, video = scores.labels, scores.source_video
    decided = decide(scores)
    counts = [VideoCounts.of(labels, step.decisions, video) for step in decided]
    bootstrap = VideoBootstrap(counts[0])
    steps: list[StepScores] = []
    for number, (step, own) in enumerate(zip(decided, counts, strict=True)):
        found = score(labels, step.decisions, step.probabilities, scores.aus)

        def over(other: int, found: Scores = found, own: VideoCounts = own) -> tuple[float, Interval | None]:
            return found.mean_f1 - steps[other].scores.mean_f1, bootstrap.gain(own, counts[other])

        steps.append(
            StepScores(
                step.name,
                found,
                bootstrap.mean_f1(own),
                over_base=over(0) if number else None,
                over_previous=over(number - 1) if number else None,
            )
        )
    absent = []
    for modality, there in scores.present.items():
        without = _mean_f1(labels[~there], decided[-1].decisions[~there])
        with_it = _mean_f1(labels[there], decided[-1].decisions[there])
        kept_back, cost = None, None
        if withheld and modality in withheld:
            other = withheld[modality]
            other_counts = VideoCounts.of(labels, decide(other)[-1].decisions, video)
            kept_back = score(labels, decide(other)[-1].decisions).mean_f1
            cost = kept_back - steps[-1].scores.mean_f1, bootstrap.gain(other_counts, counts[-1])
        absent.append(Absent(modality, about.missing[modality], without, with_it, kept_back, cost))
    return Evaluation(
        **vars(about),
        steps=tuple(steps),
        au_intervals=tuple(bootstrap.f1(counts[-1])),
        heads=score_heads(scores),
        absent=tuple(absent),
        notices=notices,
        post=post,
        published=published,
    )


def _head_lines(head: HeadScores) -> list[str]:
    """A row per class, dimension or AU."""
    header = [TITLES[head.task], *head.metrics, "annotated"]
    rows = [
        [
            name,
            *("-" if np.isnan(values[place]) else f"{values[place]:.3f}" for values in head.metrics.values()),
            f"{number:,}",
        ]
        for place, (name, number) in enumerate(zip(head.columns, head.annotated.tolist(), strict=True))
    ]
    means = ["mean", *(f"{mean(values):.3f}" for values in head.metrics.values()), ""]
    return columns(header, [*rows, means])


def doubt(interval: Interval | None, source_videos: int) -> str:
    """``95 %: 38.2 to 49.9, 30 source videos``: how sure a mean F1 is."""
    videos = counted(source_videos, "source video")
    return videos if interval is None else f"95 %: {span(interval)}, {videos}"


def _mean_f1(labels: NDArray[np.int8], decisions: NDArray[np.int8]) -> float | None:
    return score(labels, decisions).mean_f1 if (labels >= 0).any() else None


def _plain(interval: Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)


def _gain_json(gain: tuple[float, Interval | None] | None) -> dict[str, Any] | None:
    return None if gain is None else {"f1": gain[0], "interval_95": _plain(gain[1])}
