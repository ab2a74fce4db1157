"""Several checkpoints as one: for each action unit the best of them alone (SituTech 2022), or the mean of all logits.

The best checkpoint per AU over runs, epochs and folds is chosen on some frames; its score on these very frames
flatters it, the more so the more candidates there are. Beside it stands the nested score: for each fold of source
videos the choice is made on the other folds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from extract.au.metrics import Floats
from extract.errors import UsageError
from extract.inputs.splits import Member, folds
from fusion.about import About, counted
from fusion.assessment import Decide, doubt, network_alone
from fusion.bootstrap import Interval, VideoBootstrap, VideoCounts
from fusion.score_sets import check_same_frames
from fusion.scores import FrameScores
from fusion.scoring import BASELINES, Scores, mean, score
from fusion.text_tables import au_table, columns, percent, span, wrapped

Metric: TypeAlias = Literal["f1_our", "f1"]
METRICS: Mapping[Metric, str] = {"f1_our": "F1_our", "f1": "F1"}
"""What tables call them."""
Decisions: TypeAlias = NDArray[np.int8]


@dataclass(frozen=True)
class Candidate:
    """One checkpoint's scores."""

    name: str
    """As in ``runs/a epoch 7``; different for each."""
    scores: FrameScores


@dataclass(frozen=True)
class Choice:
    """Which of C candidates decides each of A action units."""

    table: Floats
    """[C, A] in [0, 1]: the metric of each candidate; NaN where nobody annotated."""
    winner: NDArray[np.int64]
    """[A]: place of the chosen candidate; the first of equals, and the first of all where nobody annotated."""

    def decisions(self, each: Sequence[Decisions]) -> Decisions:
        """Decisions [N, A] of the chosen candidates alone, of those of each candidate [N, A]."""
        return np.stack([each[winner][:, au] for au, winner in enumerate(self.winner)], axis=1)


@dataclass(frozen=True)
class Way:
    """One way to make a single prediction of the candidates."""

    name: str
    split: str
    scores: Scores
    interval: Interval | None
    source_videos: int
    flatters: bool
    """Whether something was chosen on the very frames of these numbers."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        found = self.scores.as_json()
        return {
            "way": self.name,
            "split": self.split,
            "flatters": self.flatters,
            "f1_interval_95": None if self.interval is None else list(self.interval),
            "f1": found["f1"],
            "f1_our": found["f1_our"],
        }


@dataclass(frozen=True)
class Ensemble:
    """The choice, and what it and its alternatives reach."""

    about: About
    """Of the frames that the choice was made on."""
    metric: Metric
    names: tuple[str, ...]
    """[C] of the candidates."""
    choice: Choice
    ways: tuple[Way, ...]
    num_folds: int
    """Of source videos, for the nested score; 0 if there are too few."""

    def way(self, name: str, split: str | None = None) -> Way | None:
        """The way of that name; of the last split given, unless told."""
        found = [way for way in self.ways if way.name == name and split in {None, way.split}]
        return found[-1] if found else None

    @property
    def chosen(self) -> dict[str, str]:
        """AU name -> candidate."""
        names = self.ways[0].scores.au_names
        return {au: self.names[winner] for au, winner in zip(names, self.choice.winner, strict=True)}

    def warnings(self) -> list[str]:
        """Sentences that weaken the numbers."""
        found = self.about.warnings()
        if self.about.split == "val":
            found.append("the epochs of the candidates were chosen on split val: all its numbers flatter a little")
        if not self.num_folds:
            found.append(f"no nested score: {counted(self.about.source_videos, 'source video')}; it takes 2 or more")
        return found

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        names = self.ways[0].scores.au_names
        return {
            **self.about.facts_json(),
            "metric": self.metric,
            "candidates": list(self.names),
            "chosen": self.chosen,
            "table": [
                {"candidate": name, **{au: _plain(value) for au, value in zip(names, row, strict=True)}}
                for name, row in zip(self.names, self.choice.table, strict=True)
            ],
            "folds": self.num_folds,
            "ways": [way.as_json() for way in self.ways],
            "warnings": self.warnings(),
        }

    def rows(self) -> list[dict[str, Any]]:
        """A row per way and AU (and ``mean``)."""
        rows = []
        for way in self.ways:
            names = (*way.scores.au_names, "mean")
            f1 = (*way.scores.f1, way.scores.mean_f1)
            f1_our = (*way.scores.f1_our, mean(way.scores.f1_our))
            for name, one, our in zip(names, f1, f1_our, strict=True):
                low, high = (way.interval or (None, None)) if name == "mean" else (None, None)
                rows.append({
                    "way": way.name,
                    "split": way.split,
                    "flatters": way.flatters,
                    "au": name,
                    "candidate": self.chosen.get(name) if way.name == PER_AU else None,
                    "f1": _plain(one),
                    "f1_low": low,
                    "f1_high": high,
                    "f1_our": _plain(our),
                })
        return rows

    def text(self, verbose: bool = False) -> str:
        """A table that leads with the honest score; every candidate's metric per AU if ``verbose``."""
        best = next((way for way in reversed(self.ways) if not way.flatters and way.name in {PER_AU, NESTED}), None)
        lines = []
        if best is not None:
            name, baseline = best.scores.best_baseline
            lines += wrapped(
                f"mean F1 {percent(best.scores.mean_f1)} % ({doubt(best.interval, best.source_videos)}), {best.name}, "
                f"on {best.split}; best trivial predictor {percent(baseline)} ({BASELINES[name]})"
            )
        title = METRICS[self.metric]
        lines += wrapped(f"{counted(len(self.names), 'candidate')}, chosen by {title} on {self.about.where()}")
        for warning in self.warnings():
            lines += wrapped(warning)
        rows = [
            [
                way.name,
                way.split,
                percent(way.scores.mean_f1),
                span(way.interval),
                percent(mean(way.scores.f1_our)),
                "chosen on these frames" if way.flatters else "",
            ]
            for way in self.ways
        ]
        lines += ["", *columns(["", "split", "mean F1", "95 % interval", "F1_our", "flatters"], rows)]
        names = self.ways[0].scores.au_names
        letters = {place: f"c{place + 1}" for place in range(len(self.names))}
        f1 = {
            f"{title} of chosen": [
                *(percent(self.choice.table[winner, au]) for au, winner in enumerate(self.choice.winner)),
                percent(mean(self.choice.table[self.choice.winner, np.arange(len(names))])),
            ],
            "chosen": [*(letters[winner] for winner in self.choice.winner), ""],
        }
        if verbose:
            f1 |= {
                f"{title} {letters[place]}": [*map(percent, row), percent(mean(row))]
                for place, row in enumerate(self.choice.table)
            }
        lines += ["", *au_table([*names, "mean"], f1), ""]
        shown = range(len(self.names)) if verbose else sorted(set(self.choice.winner.tolist()))
        lines += [line for place in shown for line in wrapped(f"{letters[place]}: {self.names[place]}", "    ")]
        return "\n".join(lines)


PER_AU, NESTED, SINGLE, MEAN = "best per AU", "best per AU, nested", "best single candidate", "mean of logits"


def choose(labels: NDArray[np.int8], each: Sequence[Decisions], metric: Metric = "f1_our") -> Choice:
    """The candidate with the highest metric for each AU.

    Args:
        labels: [N, A]: 0, 1 or -1.
        each: decisions [N, A] of each candidate.
    """
    table = np.stack([getattr(score(labels, decisions), metric) for decisions in each])
    return Choice(table, np.nan_to_num(table, nan=-1.0).argmax(axis=0))


def mean_of_logits(scores: Sequence[FrameScores]) -> FrameScores:
    """The same frames with the mean of all logits."""
    mean_logits = np.stack([one.logits for one in scores]).mean(axis=0, dtype=np.float64).astype(np.float32)
    return replace(scores[0], logits=mean_logits)


def nested_decisions(
    scores: FrameScores, each: Sequence[Decisions], metric: Metric, num_folds: int, seed: int = 0
) -> Decisions:
    """Decisions [N, A] where each fold of annotated source videos is decided by the choice on the other folds."""
    names = np.array(scores.source_videos)[scores.clip]  # [N]
    videos = np.unique(names[(scores.labels >= 0).any(axis=1)]).tolist()
    found = each[0].copy()  # what nobody annotated counts nowhere
    for fold in folds([Member(video, video) for video in videos], num_folds, seed):
        held = np.isin(names, sorted(fold))
        choice = choose(scores.labels[~held], [decisions[~held] for decisions in each], metric)
        found[held] = choice.decisions([decisions[held] for decisions in each])
    return found


def ensemble(
    candidates: Sequence[Candidate],
    elsewhere: Sequence[Candidate] = (),
    *,
    metric: Metric = "f1_our",
    decide: Decide = network_alone,
    num_folds: int = 5,
    seed: int = 0,
    leak: str | None = None,
) -> Ensemble:
    """Choose the best candidate per AU, and score that beside the best single one and the mean of logits.

    Args:
        candidates: all on the same frames, those of the split that is chosen on.
        elsewhere: the same candidates in the same order on another split, to score the choice there.
        metric: what the choice maximises: SituTech's F1_our, or the F1 of the positive class.
        decide: post-processing, the same for all; its last step decides.
        num_folds: of source videos for the nested score; fewer if there are fewer videos.
        seed: of the folds.

    Raises:
        UsageError: no candidate, two of one name, other frames than the first one's, or no annotated frame.
    """
    if not candidates:
        raise UsageError("no candidate to choose from; name one run or more")
    names = tuple(candidate.name for candidate in candidates)
    if len(set(names)) < len(names):
        raise UsageError(f"candidates of one name: {', '.join(sorted({n for n in names if names.count(n) > 1}))}")
    if elsewhere and tuple(candidate.name for candidate in elsewhere) != names:
        raise UsageError("the candidates of the other split are not those that the choice is made of")
    for group in (candidates, elsewhere):
        for candidate in group[1:]:
            check_same_frames(group[0].scores, candidate.scores, f"candidate {candidate.name}")
    first = candidates[0].scores
    about = About.of(first, leak)
    each = [_decided(candidate.scores, decide) for candidate in candidates]
    choice = choose(first.labels, each, metric)
    single = int(np.argmax([mean(row) for row in choice.table]))
    both = [candidate.scores for candidate in candidates]
    split = about.split
    used_folds = min(num_folds, about.source_videos) if about.source_videos > 1 else 0
    ways = [_way(PER_AU, split, first, choice.decisions(each), flatters=True)]
    if used_folds:
        nested = nested_decisions(first, each, metric, used_folds, seed)
        ways.append(_way(NESTED, split, first, nested, flatters=False))
    ways.append(_way(SINGLE, split, first, each[single], flatters=len(names) > 1))
    ways.append(_way(MEAN, split, first, _decided(mean_of_logits(both), decide), flatters=False))
    if elsewhere:
        other = elsewhere[0].scores
        where = About.of(other).split
        theirs = [_decided(candidate.scores, decide) for candidate in elsewhere]
        mean_there = _decided(mean_of_logits([candidate.scores for candidate in elsewhere]), decide)
        ways += [
            _way(PER_AU, where, other, choice.decisions(theirs), flatters=False),
            _way(SINGLE, where, other, theirs[single], flatters=False),
            _way(MEAN, where, other, mean_there, flatters=False),
        ]
    return Ensemble(about, metric, names, choice, tuple(ways), used_folds)


def _decided(scores: FrameScores, decide: Decide) -> Decisions:
    return decide(scores)[-1].decisions


def _way(name: str, split: str, scores: FrameScores, decisions: Decisions, *, flatters: bool) -> Way:
    counts = VideoCounts.of(scores.labels, decisions, scores.source_video)
    bootstrap = VideoBootstrap(counts)
    found = score(scores.labels, decisions, aus=scores.aus)
    return Way(name, split, found, bootstrap.mean_f1(counts), bootstrap.number, flatters)


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
