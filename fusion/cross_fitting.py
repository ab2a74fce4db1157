"""Cross-validation of a config on a feature store: fits a run per fold, and pools what they say of clips unseen."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from extract.errors import UsageError
from extract.inputs.splits import SPLITS, TEST, TRAIN, VAL, Member, hold_out
from extract.names import suggestion
from extract.store import Store
from fusion import crossval as folds_of_scores
from fusion.analysis import fit_once, require_action_units
from fusion.assessment import Decide
from fusion.config import FusionConfig, load_fusion_config
from fusion.crossval import CrossValidation
from fusion.evaluation import split_scorer
from fusion.post_fitting import fit_post
from fusion.scores import FrameScores
from fusion.selection import FRAMES, LABELS, feature_sources, select_clips

STOPPING = 0.1
"""Share of a fold's training groups that early stopping looks at instead of training on."""


def crossval(
    features: str | Path,
    output: str | Path,
    config: str | FusionConfig | None = None,
    *,
    set: Sequence[str] = (),
    k: int = 5,
    pool: Sequence[str] = (TRAIN, VAL),
    first: str | None = None,
    seed: int = 0,
    device: str = "auto",
    skip_failed: bool = False,
    allow_leak: bool = False,
    allow_other_crops: bool = False,
    published: bool = False,
) -> CrossValidation:
    """Fit ``k`` networks, each on all folds but one, and score that one's clips.

    Each stops early by a tenth of its own training recordings, never by the clips that it is to score. Post-processing
    for a fold is chosen on the other folds' scores.

    Args:
        features: the store.
        output: folder; ``foldK`` in it is fold K's run and ``foldK.npz`` its scores. A finished fold is kept.
        config: as ``fit`` takes it; None is the config that the store was made with, else ``default``.
        set: ``a.b=c`` each, over that config.
        k: number of folds.
        pool: the splits whose clips are parted.
        first: one of them that is fold 1 as it is; its clips must share no person or recording with the others.
        seed: of the folds.
        device: ``auto``, ``cpu`` or ``cuda:N``.
        skip_failed: leave out clips whose features failed or are unfinished.
        allow_leak: accept clips that the features' adapted weights were trained on.
        allow_other_crops: accept crops of another kind than in a fold's fit.
        published: print published numbers beside; for Aff-Wild2.

    Raises:
        UsageError: no such split, too few recordings for ``k`` folds, or what ``fit`` refuses.
        StaleError: a fold in ``output`` was made with other settings, features or clips.
    """
    for name in (*pool, *([first] if first else [])):
        if name not in SPLITS:
            raise UsageError(f"split {name}: no such split; {suggestion(name, SPLITS)}")
    if first is not None and first not in pool:
        raise UsageError(f"--first {first}: its clips are not pooled; add `--pool {first}`")
    store = Store.open(features)
    settings = load_fusion_config(config, set, store.config() if config is None else None)
    require_action_units(settings, "the config")
    of_split = {split: _clips(store, split, settings, skip_failed=skip_failed) for split in pool}
    clips = [clip for found in of_split.values() for clip in found]
    members = {clip: _member(store, clip) for clip in clips}
    labels = {clip: store.read(clip, LABELS, "au").values for clip in clips}
    held_first = of_split[first] if first else ()
    parts = folds_of_scores.plan([*members.values()], labels, k, seed=seed, first=held_first)
    folder = Path(output)

    def fit_fold(train: tuple[str, ...], held_out: tuple[str, ...], name: str) -> FrameScores:
        stopping = hold_out([members[clip] for clip in train], STOPPING, seed)
        splits = {clip: VAL if clip in stopping else TRAIN for clip in train} | dict.fromkeys(held_out, TEST)
        run = folder / name
        fit_once(
            features,
            run,
            settings,
            device=device,
            skip_failed=skip_failed,
            allow_leak=allow_leak,
            splits=splits,
        )
        return split_scorer(
            features,
            run,
            split=TEST,
            device=device,
            skip_failed=skip_failed,
            allow_leak=allow_leak,
            allow_other_crops=allow_other_crops,
            splits=splits,
        ).scores()

    def tune(scores: FrameScores) -> Decide:
        return fit_post(scores, settings.post, scores.labels).steps

    sources = feature_sources(store, clips, (FRAMES, LABELS, *settings.instances))
    made_with: dict[str, Any] = {
        "config": settings.model_dump(mode="json"),
        "seed": seed,
        "fingerprints": {name: dict(source.fingerprints) for name, source in sources.items()},
    }
    return folds_of_scores.crossval(parts, fit_fold, folder, made_with, tune=tune, published=published)


def _clips(store: Store, split: str, config: FusionConfig, *, skip_failed: bool) -> tuple[str, ...]:
    return select_clips(store, split, config.instances, skip_failed=skip_failed, tasks=tuple(config.tasks)).clips


def _member(store: Store, clip: str) -> Member:
    attributes = store.attributes(clip)
    return Member(clip, attributes.get("source_video") or clip, attributes.get("subject"))
