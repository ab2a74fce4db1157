"""Analyses of the scores that a run saved: they never run the network."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from extract.errors import UsageError
from extract.store import Store
from fusion import correlations, tuning
from fusion.loading import read_labels
from fusion.post_fitting import fit_post
from fusion.postprocess import PostProcess
from fusion.runs import FittedModel, Run
from fusion.scores import FrameScores
from fusion.selection import FRAMES
from fusion.smoothing import Unit
from fusion.tuning import At, Tuning


def saved(run: Run, split: str) -> FrameScores:
    """The scores of a split that ``fit`` (val) or ``evaluate`` (any) saved.

    Raises:
        UsageError: they were not saved, or the run has no action units.
        CorruptError: the file is damaged.
    """
    found = run.scores(split)
    if found is None:
        how = "fit with a split val" if split == "val" else f"`fusion evaluate --run {run.path} --split {split}`"
        raise UsageError(f"run {run.path} has no scores of split {split}: {how} saves them")
    if not found.aus:
        raise UsageError(f"run {run.path} predicts no action units ({', '.join(found.outputs)})")
    return found


def tune(
    run: str | Path | None = None,
    *,
    features: str | Path = "store.zarr",
    unit: Unit = "frames",
    sizes: Sequence[float] | None = None,
    at: At = "tuned",
    report: str | None = None,
    apply: bool = False,
    allow_leak: bool = False,
) -> Tuning:
    """Sweep the smoothing window on the saved scores of ``val``, as the paper's Figure 4 does.

    Args:
        run: folder of the run; None is the newest in ``runs/``.
        features: the store; only read to ``apply`` equations mined from training labels.
        unit: of the windows, ``frames`` or ``seconds``.
        sizes: window lengths to try; None: the usual ones.
        at: choose by F1 with each AU's best threshold (``tuned``) or at 0.5 (``half``).
        report: also show this split's scores with what was chosen on ``val``.
        apply: write the chosen window, and the thresholds that go with it, into the run.
        allow_leak: report clips that were chosen on; the table then says so.

    Raises:
        UsageError: scores are missing, or the reported split shares clips or recordings with ``val``.
        CorruptError: a file of the run is damaged.
    """
    where = Run(run) if run is not None else Run.newest()
    val = saved(where, "val")
    config = where.config()
    found = tuning.tune(
        val,
        unit=unit,
        sizes=sizes,
        no_face=config.post.no_face,
        at=at,
        reported=None if report is None else saved(where, report),
        allow_leak=allow_leak,
    )
    if apply:
        in_frames, in_seconds = (int(found.best_size), None) if unit == "frames" else (None, found.best_size)
        settings = config.post.model_copy(update={"smooth": in_frames, "smooth_s": in_seconds, "smooth_by_au": {}})
        labels = train_labels(Store.open(features), where.model()) if settings.resolved().pairs == "mined" else None
        where.save_postprocess(fit_post(val, settings, labels))
    return found


def correlate(run: str | Path | None = None, *, split: str = "val", raw: bool = False) -> correlations.Correlations:
    """Correlate labels and predictions of a split's saved scores, as the paper's Figures 5 and 7 do.

    Args:
        run: folder of the run; None is the newest in ``runs/``.
        split: whose saved scores.
        raw: take the network's own probabilities, before post-processing.

    Raises:
        UsageError: scores are missing or nothing is annotated.
        CorruptError: a file of the run is damaged.
    """
    where = Run(run) if run is not None else Run.newest()
    scores = saved(where, split)
    post: PostProcess | None = None if raw else where.postprocess(scores.aus)
    return correlations.correlate(scores, post)


def train_labels(store: Store, fitted: FittedModel) -> NDArray[np.int8]:
    """[M, A]: labels of every frame of the clips that a run was trained on."""
    parts = [np.empty((0, len(fitted.aus)), dtype=np.int8)]
    for clip in fitted.clips["train"]:
        num_frames = store.layout(clip, FRAMES, "pts_s")[0][0]
        parts.append(read_labels(store, clip, fitted.config, num_frames, fitted.aus)["au"])
    return np.concatenate(parts)
