"""Runs a fitted network over a split, after checking that features and clips are ones that it may be scored on."""

import logging
from collections.abc import Mapping
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from numpy.typing import NDArray

from extract.au import AUS
from extract.devices import pick_device
from extract.errors import StaleError, UsageError
from extract.store import Store
from fusion import assessment
from fusion.assessment import Evaluation as Evaluation
from fusion.data import Samples, load_samples
from fusion.device import arithmetic
from fusion.model import FusionModel
from fusion.runs import FittedModel, Run
from fusion.scores import FrameScores
from fusion.scoring import Scores as Scores
from fusion.scoring import score as score
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


@torch.inference_mode()
def predict_logits(
    model: FusionModel, samples: Samples, device: torch.device, batch_size: int = 256
) -> NDArray[np.float32]:
    """Logits of every sample, [N, 12], in the order of ``samples``. The model is left in eval mode."""
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
    """Score a fitted run on one split of a feature store; an AU counts as active where its logit is >= 0.

    Args:
        features: the store.
        run: folder of the run; None is the newest in ``runs/``.
        split: ``train``, ``val`` or ``test``.
        device: ``auto``, ``cpu`` or ``cuda:N``.
        skip_failed: leave out clips whose features failed or are unfinished.

    Raises:
        UsageError: no such run or split, no annotated frame in the split, or the run was trained on clips of it.
        UnfinishedError: clips with unfinished features, unless ``skip_failed``.
        StaleError: the run was fitted on features of another recipe than the store holds.
        CorruptError: the run or the store is damaged; the message names every damaged record and block.
    """
    began = monotonic()
    where = Run(run) if run is not None else Run.newest()
    fitted = where.model()
    store = Store.open(features)
    instances = fitted.config.instances
    with all_damage_named(store, [split], instances):
        selection = select_clips(store, split, instances, skip_failed=skip_failed)
        require_clips(store, selection)
        sources = feature_sources(store, selection.clips, (FRAMES, *instances))
        check_features(fitted, sources, f"run {where.path}")
        if split != "train":
            check_unseen(fitted, selection, f"run {where.path}")
        samples = annotated_samples(store, selection, fitted)
    torch_device = pick_device(device)
    with arithmetic(torch_device):
        logits = predict_logits(fitted.model.to(torch_device), samples, torch_device, fitted.config.training.batch)
    logger.debug(
        "%d frames of %d clips read and scored in %.1f s", len(samples), len(samples.clips), monotonic() - began
    )
    names = (str(where.path), str(features), split)
    return assess(names, fitted.epoch, samples, logits, sources, selection.left_out)


def assess(
    names: tuple[str, str, str],
    epoch: int,
    samples: Samples,
    logits: NDArray[np.float32],
    sources: Mapping[str, FeatureSource],
    left_out: Mapping[str, str],
) -> Evaluation:
    """The scores of ``logits`` [N, 12] on ``samples``; ``names`` are those of the run, the store and the split."""
    run, features, split = names
    store = Store.open(features)
    return assessment.assess(
        FrameScores(
            clips=samples.clips,
            source_videos=tuple(store.attributes(clip).get("source_video") or clip for clip in samples.clips),
            clip=samples.clip,
            frame=samples.frame,
            pts_s=np.zeros(len(samples)),
            present={name: ranges[:, 0] < ranges[:, 1] for name, ranges in samples.ranges.items()},
            face=np.ones(len(samples), dtype=np.bool_),
            logits=logits,
            labels=samples.labels.numpy(),
            facts={
                "run": run,
                "features": features,
                "split": split,
                "epoch": epoch,
                "untrained": list(untrained(sources)),
                "drawn": len(set(samples.clips) & set(sources[FRAMES].drawn)),
                "left_out": dict(left_out),
            },
        )
    )


def check_features(fitted: FittedModel, sources: Mapping[str, FeatureSource], whose: str) -> None:
    """Refuse features of another recipe than the run's.

    Raises:
        StaleError: the message names the instance and the first field that differs.
    """
    for instance, recipe in fitted.recipes.items():
        difference = first_difference(recipe, sources[instance].recipe)
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


def annotated_samples(store: Store, selection: Selection, fitted: FittedModel) -> Samples:
    """The annotated frames of the selected clips.

    Raises:
        UsageError: no frame is annotated.
        StaleError: rows have another size than the run was fitted on.
    """
    samples = load_samples(store, selection.clips, fitted.config)
    if not len(samples):
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
