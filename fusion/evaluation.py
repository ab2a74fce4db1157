"""How good a fitted run is on a split: both F1 definitions per AU, beside predictors that never look."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from extract.au import AUS
from extract.au.metrics import Confusion, Floats, confusion, trivial_baselines
from extract.errors import StaleError, UsageError
from extract.store import Store
from fusion.data import (
    FRAMES,
    FeatureSource,
    Samples,
    Selection,
    feature_sources,
    first_difference,
    load_samples,
    select_clips,
    splits,
)
from fusion.device import arithmetic, resolve_device
from fusion.model import FusionModel
from fusion.runs import FittedModel, Run

NAMES = tuple(f"AU{au}" for au in AUS)


@dataclass(frozen=True)
class Scores:
    """Metrics of some predictions. AUs without a single annotation are NaN, and in no mean."""

    f1: Floats
    """[12] in [0, 1]."""
    f1_our: Floats
    """[12] in [0, 1]."""
    baselines: Mapping[str, Mapping[str, Floats]]
    """Trivial predictor -> ``f1`` and ``f1_our``, [12] each."""
    annotated: NDArray[np.int64]
    """[12]: frames that count for each AU."""
    positive: NDArray[np.int64]
    """[12]: those in which it is active."""

    @property
    def mean_f1(self) -> float:
        """The official metric."""
        return mean(self.f1)

    def as_json(self) -> dict[str, Any]:
        """Plain values by AU name; NaN is null."""
        return {
            "f1": named(self.f1),
            "f1_our": named(self.f1_our),
            "baselines": {
                name: {metric: named(values) for metric, values in found.items()}
                for name, found in self.baselines.items()
            },
            "annotated": dict(zip(NAMES, self.annotated.tolist(), strict=True)),
            "positive": dict(zip(NAMES, self.positive.tolist(), strict=True)),
        }


@dataclass(frozen=True)
class Evaluation:
    """A run's scores on one split, and what a reader must know with them."""

    run: str
    features: str
    split: str
    epoch: int
    scores: Scores
    draws: Floats
    """[D] mean F1 of bootstrap draws over clips; none for a single clip."""
    clips: int
    frames: int
    """Annotated frames: all of them count, with or without a face."""
    missing: Mapping[str, int]
    """Modality -> frames that lack it."""
    untrained: tuple[str, ...]
    """Instances whose encoder has random weights: the numbers say nothing about the method."""
    drawn: int
    """Clips whose pictures a program drew: the numbers say nothing about people."""
    left_out: Mapping[str, str]
    """Clips of the split that are not counted, and why."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % bootstrap interval over clips of the mean F1; None for a single clip."""
        return interval(self.draws) if len(self.draws) else None

    def as_json(self) -> dict[str, Any]:
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
    """Mean F1 of every draw, [draws], when clips are drawn with replacement (Efron 1979).

    Frames of a clip are much alike, so clips are drawn, not frames. Few clips give a rough interval, and clips of the
    same few people one that is too narrow for other people.

    Args:
        labels: [N, 12]: 0, 1 or -1.
        predictions: [N, 12]: 0 or 1.
        clip: [N]: which clip each frame is of.

    Returns:
        [draws] in [0, 1]; [0] where there is one clip only.
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
    """Mean over the AUs that have a value; 0 if none has."""
    found = values[~np.isnan(values)]
    return float(found.mean()) if len(found) else 0.0


def named(values: Floats) -> dict[str, float | None]:
    """By AU name, and their mean."""
    plain = [None if np.isnan(value) else float(value) for value in values]
    return {**dict(zip(NAMES, plain, strict=True)), "mean": mean(values)}


@torch.inference_mode()
def predict_logits(
    model: FusionModel, samples: Samples, device: torch.device, batch_size: int = 256
) -> NDArray[np.float32]:
    """Logits of every sample, [N, 12], in their order. The model is left in eval mode."""
    model.eval()
    logits = np.empty((len(samples), len(AUS)), dtype=np.float32)
    for start in range(0, len(samples), batch_size):
        index = np.arange(start, min(start + batch_size, len(samples)))
        batch = samples.batch(index).to(device)
        logits[index] = model(batch.inputs, len(batch)).cpu().numpy()
    return logits


def evaluate(
    features: str | Path,
    run: str | Path | None = None,
    *,
    split: str = "test",
    device: str = "auto",
    skip_failed: bool = False,
) -> Evaluation:
    """Evaluate ``run`` (the newest under ``runs/`` when None) on ``split`` of the store ``features``, at logit >= 0.

    Raises:
        UsageError: no such run, nothing annotated in the split, or clips in it that the run was fitted on.
        UnfinishedError: clips with unfinished features, unless ``skip_failed``.
        StaleError: the store's features are of another recipe than those that the run was fitted on.
    """
    where = Run(run) if run is not None else Run.newest()
    fitted = where.model()
    store = Store.open(features)
    selection = select_clips(store, split, fitted.config.instances, skip_failed=skip_failed)
    require_clips(store, selection)
    sources = feature_sources(store, selection.clips, (FRAMES, *fitted.config.instances))
    check_features(fitted, sources, f"run {where.path}")
    if split != "train":
        check_unseen(fitted, selection, f"run {where.path}")
    samples = annotated_samples(store, selection, fitted)
    torch_device = resolve_device(device)
    with arithmetic(torch_device):
        logits = predict_logits(fitted.model.to(torch_device), samples, torch_device, fitted.config.training.batch)
    told = (str(where.path), str(features), split)
    return assess(told, fitted.epoch, samples, logits, sources, left_out(selection))


def assess(
    told: tuple[str, str, str],
    epoch: int,
    samples: Samples,
    logits: NDArray[np.float32],
    sources: Mapping[str, FeatureSource],
    absent: Mapping[str, str],
) -> Evaluation:
    """The scores of ``logits`` [N, 12] on ``samples``; ``told`` names run, features and split."""
    run, features, split = told
    labels, predictions = samples.labels.numpy(), logits >= 0
    return Evaluation(
        run=run,
        features=features,
        split=split,
        epoch=epoch,
        scores=score(labels, predictions),
        draws=bootstrap(labels, predictions, samples.clip),
        clips=len(samples.clips),
        frames=len(samples),
        missing=samples.missing(),
        untrained=untrained(sources),
        drawn=len(set(samples.clips) & set(sources[FRAMES].drawn)),
        left_out=absent,
    )


def check_features(fitted: FittedModel, sources: Mapping[str, FeatureSource], whose: str) -> None:
    """Refuse features of another recipe.

    Raises:
        StaleError: names the instance and the first field that differs.
    """
    for instance, recipe in fitted.recipes.items():
        difference = first_difference(recipe, sources[instance].recipe)
        if difference is not None:
            raise StaleError(
                f"instance {instance}: {whose} was fitted on other features than this store holds ({difference}); "
                "extract with the config of the fit, or fit again"
            )


def check_unseen(fitted: FittedModel, selection: Selection, whose: str) -> None:
    """Refuse to test on what was trained on.

    Raises:
        UsageError: names the clips.
    """
    seen = [clip for clip in selection.clips if clip in fitted.clips["train"]]
    if seen:
        raise UsageError(
            f"split {selection.split}: {whose} was trained on {', '.join(seen[:8])} ({len(seen)} in all); "
            "were the splits changed since? Fit again, or name `--split train`"
        )


def annotated_samples(store: Store, selection: Selection, fitted: FittedModel) -> Samples:
    """The annotated frames of the selected clips.

    Raises:
        UsageError: there is none.
        StaleError: rows of another size than the run was fitted on.
    """
    samples = load_samples(store, selection.clips, fitted.config)
    if not len(samples):
        raise UsageError(f"split {selection.split}: not one annotated frame in {len(selection.clips)} clips")
    check_sizes(samples, fitted)
    return samples


def check_sizes(samples: Samples, fitted: FittedModel) -> None:
    """Refuse rows of another size than the run was fitted on, with StaleError."""
    for name, source in samples.sources.items():
        table = samples.tables[source]
        if len(table) and table.shape[1] != fitted.sizes[name]:
            raise StaleError(
                f"modality {name}: {table.shape[1]} values a row, the run was fitted on {fitted.sizes[name]}"
            )


def require_clips(store: Store, selection: Selection) -> None:
    """Refuse a split in which there is nothing to use.

    Raises:
        UsageError: says what there is instead.
    """
    if not selection.clips:
        found = ", ".join(f"{name} {count}" for name, count in sorted(splits(store).items())) or "nothing"
        reason = ""
        if selection.unlabelled or selection.skipped:
            reason = f" ({len(selection.unlabelled)} without labels, {len(selection.skipped)} left out)"
        raise UsageError(
            f"{store.path}: no labelled clip in split {selection.split}{reason}; clips per split: {found}. "
            "Set `split:` and `labels:` in the manifest and run `extract run` again"
        )


def untrained(sources: Mapping[str, FeatureSource]) -> tuple[str, ...]:
    """Instances with random weights."""
    return tuple(instance for instance, source in sources.items() if source.untrained)


def left_out(selection: Selection) -> dict[str, str]:
    """Clip -> why it is not counted."""
    return {**dict.fromkeys(selection.unlabelled, "no labels"), **selection.skipped}
