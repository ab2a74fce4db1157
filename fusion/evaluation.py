"""The scores of a fitted run on a split: F1 per AU by both definitions, beside trivial predictors."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from extract.au import AU_NAMES
from extract.au.metrics import Confusion, Floats, confusion, trivial_baselines
from extract.devices import pick_device
from extract.errors import StaleError, UsageError
from extract.store import Store
from fusion import sharing
from fusion.admission import before_scoring
from fusion.crop_kinds import without_patch
from fusion.data import Samples
from fusion.device import arithmetic
from fusion.inference import frame_scores, predict_outputs
from fusion.loading import load_samples
from fusion.runs import FittedModel, Run
from fusion.scores import FrameScores
from fusion.selection import (
    FRAMES,
    FeatureSource,
    Selection,
    all_damage_named,
    feature_sources,
    first_difference,
    require_clips,
    select_clips,
    untrained,
)

logger = logging.getLogger("fusion")


@dataclass(frozen=True)
class Scores:
    """Metrics of some predictions. An AU without any annotation is NaN and is left out of means."""

    f1: Floats
    """[12] in [0, 1]."""
    f1_our: Floats
    """[12] in [0, 1]."""
    baselines: Mapping[str, Mapping[str, Floats]]
    """Trivial predictor -> ``f1`` and ``f1_our``, [12] each."""
    annotated: NDArray[np.int64]
    """[12]: frames in which each AU is annotated."""
    positive: NDArray[np.int64]
    """[12]: frames in which it is annotated as active."""

    @property
    def mean_f1(self) -> float:
        """The mean of ``f1``, the challenge's metric."""
        return mean(self.f1)

    def as_json(self) -> dict[str, Any]:
        """Plain values by AU name (``AU01``); NaN becomes None."""
        return {
            "f1": by_name(self.f1),
            "f1_our": by_name(self.f1_our),
            "baselines": {
                name: {metric: by_name(values) for metric, values in found.items()}
                for name, found in self.baselines.items()
            },
            "annotated": dict(zip(AU_NAMES, self.annotated.tolist(), strict=True)),
            "positive": dict(zip(AU_NAMES, self.positive.tolist(), strict=True)),
        }


@dataclass(frozen=True)
class Evaluation:
    """A run's scores on one split, with the facts that a reader needs to judge them."""

    run: str
    features: str
    split: str
    epoch: int
    scores: Scores
    draws: Floats
    """[D] mean F1 of each bootstrap draw over clips; empty for a single clip."""
    clips: int
    frames: int
    """Annotated frames. All of them count, with or without a face."""
    missing: Mapping[str, int]
    """Modality -> number of frames without it."""
    untrained: tuple[str, ...]
    """Instances whose encoder has random weights: the numbers say nothing about the method."""
    drawn: int
    """Number of clips whose pictures a program drew: the numbers say nothing about people."""
    left_out: Mapping[str, str]
    """Clip of the split that is not scored -> why."""
    warnings: tuple[str, ...] = ()
    """What else a reader must know: other crops than in the fit, shared people, leaks that were allowed."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % bootstrap interval over clips of the mean F1; None for a single clip."""
        return interval(self.draws) if len(self.draws) else None

    def as_json(self) -> dict[str, Any]:
        """The same as plain values, for ``--json`` and ``metrics.json``."""
        return {
            "run": self.run,
            "features": self.features,
            "split": self.split,
            "epoch": self.epoch,
            "clips": self.clips,
            "frames": self.frames,
            "missing": dict(self.missing),
            "untrained": list(self.untrained),
            "drawn": self.drawn,
            "left_out": dict(self.left_out),
            "warnings": list(self.warnings),
            "f1_interval_95": None if self.interval is None else list(self.interval),
            **self.scores.as_json(),
        }


def score(labels: ArrayLike, predictions: ArrayLike) -> Scores:
    """Score ``predictions`` [N, 12] (0 or 1) against ``labels`` [N, 12] (0, 1, -1), element by element."""
    counts = confusion(labels, predictions)
    seen = counts.annotated > 0
    baselines = trivial_baselines(labels)
    return Scores(
        f1=np.where(seen, counts.f1, np.nan),
        f1_our=np.where(seen, counts.f1_our, np.nan),
        baselines={
            name: {metric: np.where(seen, values, np.nan) for metric, values in found.items()}
            for name, found in baselines.items()
        },
        annotated=counts.annotated.astype(np.int64),
        positive=(counts.true_positive + counts.false_negative).astype(np.int64),
    )


def bootstrap(
    labels: ArrayLike, predictions: ArrayLike, clip: NDArray[np.int64], draws: int = 2000, seed: int = 0
) -> Floats:
    """Mean F1 of each draw when clips are drawn with replacement (Efron 1979).

    Clips are drawn, not frames, because frames of one clip are alike. A few clips give a rough interval; clips of the
    same few people give one that is too narrow for other people.

    Args:
        labels: [N, 12]: 0, 1 or -1.
        predictions: [N, 12]: 0 or 1.
        clip: [N]: the clip of each frame.

    Returns:
        [draws] in [0, 1]; of length 0 if there is only one clip.
    """
    truth, guess = np.asarray(labels), np.asarray(predictions)
    numbers = np.unique(clip)
    if len(numbers) < 2:
        return np.empty(0)
    each = [confusion(truth[clip == number], guess[clip == number]) for number in numbers]
    random = np.random.default_rng(seed)
    drawn = random.multinomial(len(numbers), np.full(len(numbers), 1 / len(numbers)), size=draws)  # [draws, clips]
    counts = Confusion(
        *(
            drawn @ np.stack([getattr(one, count.name) for one in each])  # [draws, 12]
            for count in fields(Confusion)
        )
    )
    seen = confusion(truth, guess).annotated > 0
    found: Floats = counts.f1[:, seen].mean(axis=1) if seen.any() else np.zeros(draws)
    return found


def interval(draws: Floats) -> tuple[float, float]:
    """Low and high end of the middle 95 % of bootstrap draws (percentile method)."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def mean(values: Floats) -> float:
    """Mean over the AUs that have a value; 0 if none has one."""
    found = values[~np.isnan(values)]
    return float(found.mean()) if len(found) else 0.0


def by_name(values: Floats) -> dict[str, float | None]:
    """AU name -> value of ``values`` [12], and ``mean``; NaN becomes None."""
    plain = [None if np.isnan(value) else float(value) for value in values]
    return {**dict(zip(AU_NAMES, plain, strict=True)), "mean": mean(values)}


def evaluate(
    features: str | Path,
    run: str | Path | None = None,
    *,
    split: str = "test",
    device: str = "auto",
    skip_failed: bool = False,
    allow_other_crops: bool = False,
    strict_splits: bool = False,
    allow_leak: bool = False,
) -> Evaluation:
    """Score a fitted run on one split of a feature store; an AU counts as active where its logit is >= 0.

    Args:
        features: the store.
        run: folder of the run; None is the newest in ``runs/``.
        split: ``train``, ``val`` or ``test``.
        device: ``auto``, ``cpu`` or ``cuda:N``.
        skip_failed: leave out clips whose features failed or are unfinished.
        allow_other_crops: accept crops of another kind than in the fit (given against cut); the result says so.
        strict_splits: refuse a subject or source video of the run's own clips, which is otherwise a warning.
        allow_leak: accept clips that the features' adapted weights were trained on; the result says so.

    Raises:
        UsageError: no such run or split, no annotated frame in the split, the run was trained on clips of it, adapted
            weights were, or ``strict_splits`` found shared people.
        UnfinishedError: clips with unfinished features, unless ``skip_failed``.
        StaleError: the run was fitted on features of another recipe, or crops of another kind, than the store holds.
        CorruptError: the run or the store is damaged; the message names every damaged record and block.
    """
    began = monotonic()
    where = Run(run) if run is not None else Run.newest()
    fitted = sharing.fitted_model(where)
    store = Store.open(features)
    instances = fitted.config.instances
    with all_damage_named(store, [split], instances):
        selection = select_clips(store, split, instances, skip_failed=skip_failed)
        require_clips(store, selection)
        sources = feature_sources(store, selection.clips, (FRAMES, *instances))
        check_features(fitted, sources, f"run {where.path}")
        if split != "train":
            check_unseen(fitted, selection, f"run {where.path}")
        warnings = before_scoring(
            fitted,
            store,
            selection,
            sources,
            f"run {where.path}",
            allow_other_crops=allow_other_crops,
            strict_splits=strict_splits,
            allow_leak=allow_leak,
        )
        samples = labelled_samples(store, selection, fitted)
    torch_device = pick_device(device)
    with arithmetic(torch_device):
        model = fitted.model.to(torch_device)
        outputs = predict_outputs(model, samples, torch_device, fitted.config.training.batch)
    scores = frame_scores(store, samples, outputs, fitted.tasks, fitted.config, {"split": split})
    logger.debug(
        "%d frames of %d clips read and scored in %.1f s", len(samples), len(samples.clips), monotonic() - began
    )
    names = (str(where.path), str(features), split)
    found = assess(names, fitted.epoch, scores, sources, selection.left_out)
    return replace(found, warnings=tuple(warnings))


def assess(
    names: tuple[str, str, str],
    epoch: int,
    scores: FrameScores,
    sources: Mapping[str, FeatureSource],
    left_out: Mapping[str, str],
) -> Evaluation:
    """The metrics of the annotated frames of ``scores``; ``names`` are those of the run, the store and the split."""
    run, features, split = names
    use = (scores.labels >= 0).any(axis=1)
    labels, predictions = scores.labels[use], scores.logits[use] >= 0
    return Evaluation(
        run=run,
        features=features,
        split=split,
        epoch=epoch,
        scores=score(labels, predictions),
        draws=bootstrap(labels, predictions, scores.clip[use]),
        clips=len(scores.clips),
        frames=int(use.sum()),
        missing={name: int((~there[use]).sum()) for name, there in scores.present.items()},
        untrained=untrained(sources),
        drawn=len(set(scores.clips) & set(sources[FRAMES].drawn)),
        left_out=left_out,
    )


def check_features(fitted: FittedModel, sources: Mapping[str, FeatureSource], whose: str) -> None:
    """Refuse features of another recipe than the run's.

    Raises:
        StaleError: the message names the instance and the first field that differs.
    """
    for instance, recipe in fitted.recipes.items():
        difference = first_difference(without_patch(recipe), without_patch(sources[instance].recipe))
        if difference is not None:
            raise StaleError(
                f"instance {instance}: {whose} was fitted on other features than the store holds ({difference}); "
                "extract with the config of the fit, or fit again"
            )


def check_unseen(fitted: FittedModel, selection: Selection, whose: str) -> None:
    """Refuse to score a run on clips that it was trained on.

    Raises:
        UsageError: the message names the clips.
    """
    seen = [clip for clip in selection.clips if clip in fitted.clips["train"]]
    if seen:
        raise UsageError(
            f"split {selection.split}: {whose} was trained on {', '.join(seen[:8])} ({len(seen)} in all); "
            "did the splits change after the fit? Fit again, or use `--split train`"
        )


def labelled_samples(store: Store, selection: Selection, fitted: FittedModel) -> Samples:
    """Every frame of the selected clips, with its labels.

    Raises:
        UsageError: no frame is annotated.
        StaleError: rows have another size than the run was fitted on.
    """
    samples = load_samples(store, selection.clips, fitted.config, frames="all")
    if not len(samples.annotated):
        raise UsageError(f"split {selection.split}: no annotated frame in {len(selection.clips)} clips")
    check_sizes(samples, fitted)
    return samples


def check_sizes(samples: Samples, fitted: FittedModel) -> None:
    """Raise StaleError for rows of another size than the run was fitted on."""
    for name, source in samples.sources.items():
        table = samples.tables[source]
        if len(table) and table.shape[1] != fitted.sizes[name]:
            raise StaleError(
                f"modality {name}: {table.shape[1]} values per row, the run was fitted on {fitted.sizes[name]}"
            )
