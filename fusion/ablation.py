"""What each modality is worth: mean F1 without it, in three ways (USC's Table 5 uses the first)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from extract.errors import UsageError
from fusion import published
from fusion.about import About
from fusion.assessment import Decide, doubt, network_alone
from fusion.bootstrap import Interval, VideoBootstrap, VideoCounts
from fusion.config import AnyModality
from fusion.score_sets import check_same_frames
from fusion.scores import FrameScores
from fusion.scoring import mean, score
from fusion.text_tables import columns, percent, signed, span, wrapped

Way: TypeAlias = Literal["zero_input", "missing", "retrained"]
WAYS: Mapping[Way, str] = {
    "zero_input": "its input is zeroed at test time, as in the paper",
    "missing": "it is missing at test time, in the way that the network was trained for",
    "retrained": "the network is trained without it",
}


class ScoreWithout(Protocol):
    """Runs the fitted network without some modalities, on the frames of the whole evaluation."""

    def __call__(self, modalities: tuple[str, ...], how: Literal["zero_input", "missing"], /) -> FrameScores: ...


class RetrainWithout(Protocol):
    """Fits a network without some modalities and runs it on the frames of the whole evaluation."""

    def __call__(self, modalities: tuple[str, ...], /) -> FrameScores: ...


@dataclass(frozen=True)
class Removed:
    """The result without some modalities, in one way."""

    modalities: tuple[str, ...]
    how: Way
    f1: float
    """Mean F1 in [0, 1]."""
    interval: Interval | None
    f1_our: float
    change: float
    """``f1`` minus that of the whole network."""
    change_interval: Interval | None
    """Paired: both on the same draws of source videos."""
    published: float | None
    """USC's mean F1 without these branches; only for ``zero_input``, which is what they did."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "removed": list(self.modalities),
            "how": self.how,
            "f1": self.f1,
            "f1_interval_95": None if self.interval is None else list(self.interval),
            "f1_our": self.f1_our,
            "change": self.change,
            "change_interval_95": None if self.change_interval is None else list(self.change_interval),
            "published": self.published,
        }


@dataclass(frozen=True)
class Ablation:
    """Mean F1 of the whole network and without each group of modalities."""

    about: About
    step: str
    """The step of post-processing whose decisions are scored."""
    f1: float
    """Of the whole network."""
    interval: Interval | None
    f1_our: float
    published: float | None
    """USC's mean F1 of the whole network."""
    removed: tuple[Removed, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            **self.about.facts_json(),
            "step": self.step,
            "f1": self.f1,
            "f1_interval_95": None if self.interval is None else list(self.interval),
            "f1_our": self.f1_our,
            "published": self.published,
            "removed": [one.as_json() for one in self.removed],
            "warnings": self.about.warnings(),
        }

    def rows(self) -> list[dict[str, Any]]:
        """A row per removed group and way, the first of them nothing."""
        whole = Removed((), "zero_input", self.f1, self.interval, self.f1_our, 0.0, None, self.published)
        return [
            {
                "removed": " ".join(one.modalities),
                "how": one.how if one.modalities else "",
                "f1": one.f1,
                "f1_low": one.interval and one.interval[0],
                "f1_high": one.interval and one.interval[1],
                "f1_our": one.f1_our,
                "change": one.change,
                "change_low": one.change_interval and one.change_interval[0],
                "change_high": one.change_interval and one.change_interval[1],
                "published": one.published,
            }
            for one in (whole, *self.removed)
        ]

    def text(self, verbose: bool = False) -> str:
        """A table per way that leads with the dearest modality; intervals of each F1 if ``verbose``."""
        lines = []
        if self.removed:
            dearest = min(self.removed, key=lambda one: one.change)
            lines += wrapped(
                f"mean F1 {percent(self.f1)} % ({doubt(self.interval, self.about.source_videos)}); it changes most "
                f"without {' and '.join(dearest.modalities)}: {signed(dearest.change)}"
            )
        after = "before post-processing" if self.step == "base" else f"after {self.step}"
        lines += wrapped(f"run {self.about.run} (epoch {self.about.epoch}), {self.about.where()}, {after}")
        for warning in self.about.warnings():
            lines += wrapped(warning)
        beside = self.published is not None
        header = ["without", "mean F1", "95 % interval", "change", "95 % interval", "F1_our", "USC published"]
        details = [5] if verbose else []
        for how, meaning in WAYS.items():
            rows = [
                [
                    "nothing",
                    percent(self.f1),
                    span(self.interval),
                    "",
                    "",
                    percent(self.f1_our),
                    percent(self.published),
                ]
            ]
            rows += [
                [
                    " + ".join(one.modalities),
                    percent(one.f1),
                    span(one.interval),
                    signed(one.change),
                    span(one.change_interval, sign=True),
                    percent(one.f1_our),
                    percent(one.published),
                ]
                for one in self.removed
                if one.how == how
            ]
            if len(rows) > 1:
                kept = [
                    0,
                    1,
                    *([2] if verbose else []),
                    3,
                    4,
                    *details,
                    *([6] if beside and how == "zero_input" else []),
                ]
                table = columns([header[place] for place in kept], [[row[place] for place in kept] for row in rows])
                lines += ["", f"{how}: {meaning}", *table]
        if beside:
            note = f"USC published: mean F1 before post-processing, input zeroed; {published.SOURCE}"
            lines += ["", *wrapped(note)]
        return "\n".join(lines)


def groups_of(modalities: Mapping[str, AnyModality]) -> list[tuple[str, ...]]:
    """What to remove: all modalities that read one instance together (both GH-Feat branches), then each alone."""
    by_instance: dict[str, list[str]] = {}
    for name, modality in modalities.items():
        by_instance.setdefault(modality.instance, []).append(name)
    return [
        group
        for names in by_instance.values()
        for group in ([tuple(names)] if len(names) > 1 else []) + [(name,) for name in names]
    ]


def ablate(
    whole: FrameScores,
    modalities: Mapping[str, AnyModality],
    score_without: ScoreWithout,
    retrain_without: RetrainWithout | None = None,
    *,
    ways: Sequence[Way] = ("zero_input", "missing"),
    groups: Sequence[tuple[str, ...]] | None = None,
    decide: Decide = network_alone,
    leak: str | None = None,
    published_beside: bool = False,
) -> Ablation:
    """Score the network without each group of modalities.

    Args:
        whole: scores of the whole network.
        modalities: those of the run, by name.
        score_without: runs it without some; called for the ways ``zero_input`` and ``missing``.
        retrain_without: fits one without them; needed for the way ``retrained``.
        groups: what to remove; None is ``groups_of(modalities)``.
        decide: the post-processing, the same for all; its last step is scored.
        published_beside: print USC's Table 5 beside; for Aff-Wild2.

    Raises:
        UsageError: an unknown modality, nothing would be left, or the scores are of other frames.
    """
    groups = groups_of(modalities) if groups is None else groups
    for group in groups:
        unknown = [name for name in group if name not in modalities]
        if unknown:
            raise UsageError(f"no modality {', '.join(unknown)} in this run; known: {', '.join(modalities)}")
    about = About.of(whole, leak)
    step = decide(whole)[-1]
    own = VideoCounts.of(whole.labels, step.decisions, whole.source_video)
    bootstrap = VideoBootstrap(own)
    total = score(whole.labels, step.decisions, aus=whole.aus)
    removed = []
    for how in ways:
        for group in groups:
            if how == "retrained":
                if len(group) == len(modalities):
                    continue  # nothing is left to train on
                if retrain_without is None:
                    raise UsageError("retrained: nothing was given to fit networks with")
                found = retrain_without(group)
            else:
                found = score_without(group, how)
            check_same_frames(whole, found, f"{how} without {' and '.join(group)}")
            decisions = decide(found)[-1].decisions
            counts = VideoCounts.of(whole.labels, decisions, whole.source_video)
            scores = score(whole.labels, decisions, aus=whole.aus)
            beside = published.ablation(modalities, group, about.split) if how == "zero_input" else None
            removed.append(
                Removed(
                    group,
                    how,
                    scores.mean_f1,
                    bootstrap.mean_f1(counts),
                    mean(scores.f1_our),
                    scores.mean_f1 - total.mean_f1,
                    bootstrap.gain(counts, own),
                    beside if published_beside else None,
                )
            )
    return Ablation(
        about,
        step.name,
        total.mean_f1,
        bootstrap.mean_f1(own),
        mean(total.f1_our),
        published.ablation(modalities, (), about.split) if published_beside else None,
        tuple(removed),
    )
