"""Runs a fitted network over a split, after checking that features and clips are ones that it may be scored on."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from time import monotonic

from extract.devices import pick_device
from extract.errors import StaleError, UsageError
from extract.store import Store
from fusion import assessment
from fusion.assessment import Evaluation
from fusion.data import Samples, load_samples
from fusion.device import arithmetic
from fusion.inference import frame_scores, predict_outputs
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
    return assess(names, fitted.epoch, scores, sources, selection.left_out)


def assess(
    names: tuple[str, str, str],
    epoch: int,
    scores: FrameScores,
    sources: Mapping[str, FeatureSource],
    left_out: Mapping[str, str],
) -> Evaluation:
    """The metrics of the annotated frames of ``scores``; ``names`` are those of the run, the store and the split."""
    run, features, split = names
    facts = {
        **scores.facts,
        "run": run,
        "features": features,
        "split": split,
        "epoch": epoch,
        "untrained": list(untrained(sources)),
        "drawn": len(set(scores.clips) & set(sources[FRAMES].drawn)),
        "left_out": dict(left_out),
    }
    return assessment.assess(replace(scores, facts=facts))


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
