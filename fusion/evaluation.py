"""Runs a fitted network over a split, after checking that features and clips are ones that it may be scored on."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from extract.devices import pick_device
from extract.errors import StaleError, UsageError
from extract.store import Store
from fusion import assessment, sharing
from fusion.admission import before_scoring
from fusion.assessment import Evaluation
from fusion.crop_kinds import without_patch
from fusion.data import Samples
from fusion.device import arithmetic
from fusion.inference import frame_scores, predict_outputs
from fusion.loading import load_samples
from fusion.postprocess import check_no_leak, describe
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
class SplitScorer:
    """A fitted network and every frame of a split's clips, checked to go together."""

    run: Run
    fitted: FittedModel
    store: Store
    samples: Samples
    device: torch.device
    facts: Mapping[str, Any]
    """Of its scores; ``warnings`` tells of other crops than in the fit, shared people, leaks that were allowed."""

    def scores(self, without: Mapping[str, str] | None = None) -> FrameScores:
        """Run the network over every frame.

        Args:
            without: modality -> how it is taken away, as ``FusionModel.forward`` has it.
        """
        began = monotonic()
        with arithmetic(self.device):
            model = self.fitted.model.to(self.device)
            batch = self.fitted.config.training.batch
            outputs = predict_outputs(model, self.samples, self.device, batch, without=without)
        logger.debug("%d frames scored in %.1f s", len(self.samples), monotonic() - began)
        facts = {**self.facts, "without": dict(without)} if without else self.facts
        return frame_scores(self.store, self.samples, outputs, self.fitted.tasks, self.fitted.config, facts)


def split_scorer(
    features: str | Path,
    run: str | Path | None = None,
    *,
    split: str = "test",
    device: str = "auto",
    skip_failed: bool = False,
    splits: Mapping[str, str] | None = None,
    allow_other_crops: bool = False,
    strict_splits: bool = False,
    allow_leak: bool = False,
    like: SplitScorer | None = None,
) -> SplitScorer:
    """Read a run and the clips that it is to score. Arguments and errors are those of ``evaluate``.

    Args:
        splits: clip -> split, in place of the store's; other clips are in none.
        like: its tables are used again if this run reads the same arrays of the same clips in the same windows.
    """
    where = Run(run) if run is not None else Run.newest()
    fitted = sharing.fitted_model(where)
    store = Store.open(features)
    instances = fitted.config.instances
    with all_damage_named(store, [split], instances):
        tasks = tuple(fitted.config.tasks)
        selection = select_clips(store, split, instances, skip_failed=skip_failed, tasks=tasks, splits=splits)
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
        if like is not None and like.store.path == store.path and _same_samples(like, fitted, selection):
            samples = like.samples
        else:
            samples = labelled_samples(store, selection, fitted)
    names = (str(where.path), str(features), split)
    facts = {**facts_of(names, fitted.epoch, samples.clips, sources, selection.left_out), "warnings": [*warnings]}
    return SplitScorer(where, fitted, store, samples, pick_device(device), facts)


def _same_samples(like: SplitScorer, fitted: FittedModel, selection: Selection) -> bool:
    """Whether ``labelled_samples`` would read for ``fitted`` what it has read for ``like``."""
    one, other = like.fitted.config, fitted.config
    return (
        like.samples.clips == selection.clips
        and [*one.used.items()] == [*other.used.items()]
        and (one.data, one.tasks, one.training.tables) == (other.data, other.tasks, other.training.tables)
        and like.fitted.sizes == fitted.sizes
    )


def evaluate(
    features: str | Path,
    run: str | Path | None = None,
    *,
    split: str = "test",
    device: str = "auto",
    skip_failed: bool = False,
    withhold: bool = False,
    published: bool = False,
    allow_other_crops: bool = False,
    strict_splits: bool = False,
    allow_leak: bool = False,
) -> Evaluation:
    """Score a fitted run on one split of a feature store: the network alone, and after each step that the run ships.

    Clips or recordings that the steps were selected on are scored by the network alone, unless ``allow_leak``.

    Args:
        features: the store.
        run: folder of the run; None is the newest in ``runs/``.
        split: ``train``, ``val`` or ``test``.
        device: ``auto``, ``cpu`` or ``cuda:N``.
        skip_failed: leave out clips whose features failed or are unfinished.
        withhold: also score without each modality, as if no frame had it; the network runs once more for each.
        published: print published numbers beside; for Aff-Wild2.
        allow_other_crops: accept crops of another kind than in the fit (given against cut); the result says so.
        strict_splits: refuse a subject or source video of the run's own clips, which is otherwise a warning.
        allow_leak: accept clips that the features' adapted weights were trained on, and show what was selected on
            these very clips; every table then says so.

    Raises:
        UsageError: no such run or split, no annotated frame in the split, the run was trained on clips of it, adapted
            weights were, or ``strict_splits`` found shared people.
        UnfinishedError: clips with unfinished features, unless ``skip_failed``.
        StaleError: the run was fitted on features of another recipe, or crops of another kind, than the store holds.
        CorruptError: the run or the store is damaged; the message names every damaged record and block.
    """
    scorer = split_scorer(
        features,
        run,
        split=split,
        device=device,
        skip_failed=skip_failed,
        allow_other_crops=allow_other_crops,
        strict_splits=strict_splits,
        allow_leak=allow_leak,
    )
    scores = scorer.scores()
    if scorer.run.finished:  # an exported folder is left as it is
        scorer.run.save_scores(split, scores)
    modalities = scorer.fitted.config.used if withhold else {}
    withheld = {name: scorer.scores({name: "missing"}) for name in modalities}
    post = scorer.run.postprocess(scorer.fitted.aus) if scores.aus else None
    if post is None:
        return assessment.assess(scores, withheld=withheld, published=published)
    if check_no_leak(post, scores, allow_leak=True) is not None and not allow_leak:
        notice = (
            "the network alone: its post-processing was selected on these clips or recordings, so that its numbers "
            "would flatter it (--allow-leak shows them)"
        )
        return assessment.assess(scores, withheld=withheld, notices=(notice,), published=published)
    return assessment.assess(
        scores,
        post.steps,
        withheld=withheld,
        leak=check_no_leak(post, scores, allow_leak),
        post=tuple(describe(post)),
        published=published,
    )


def assess(
    names: tuple[str, str, str],
    epoch: int,
    scores: FrameScores,
    sources: Mapping[str, FeatureSource],
    left_out: Mapping[str, str],
) -> Evaluation:
    """The metrics of the annotated frames of ``scores``; ``names`` are those of the run, the store and the split."""
    facts = facts_of(names, epoch, scores.clips, sources, left_out)
    return assessment.assess(replace(scores, facts={**scores.facts, **facts}))


def facts_of(
    names: tuple[str, str, str],
    epoch: int,
    clips: Collection[str],
    sources: Mapping[str, FeatureSource],
    left_out: Mapping[str, str],
) -> dict[str, Any]:
    """What a reader must know of scores, as plain values: ``About.of`` reads them back."""
    run, features, split = names
    return {
        "run": run,
        "features": features,
        "split": split,
        "epoch": epoch,
        "untrained": list(untrained(sources)),
        "drawn": len(set(clips) & set(sources[FRAMES].drawn)),
        "left_out": dict(left_out),
    }


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
    samples = load_samples(store, selection.clips, fitted.config, frames="all", aus=fitted.aus)
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
