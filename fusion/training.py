"""Fit a fusion network to stored features. Read it from top to bottom: load, build, loop, evaluate, save."""

import itertools
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from extract.devices import pick_device
from extract.errors import UsageError
from extract.store import Store
from fusion.admission import before_fit, kinds
from fusion.assessment import Evaluation
from fusion.config import FusionConfig, TrainingConfig
from fusion.curves import Curves
from fusion.data import Ints, Samples, moments
from fusion.device import arithmetic
from fusion.epochs import History, best_epoch, epoch_batches, over, plateau_factor, training_pool
from fusion.evaluation import assess
from fusion.inference import frame_scores, predict_outputs
from fusion.loading import load_samples
from fusion.model import FusionModel
from fusion.post_fitting import fit_post, without_val
from fusion.postprocess import PostProcess
from fusion.resuming import State, choose_config, resume, state_of
from fusion.runs import EVENTS, FittedModel, Run
from fusion.scores import FrameScores
from fusion.selection import (
    FRAMES,
    LABELS,
    FeatureSource,
    all_damage_named,
    feature_sources,
    require_clips,
    select_clips,
    untrained,
)
from fusion.stepping import TrainStep, graph_wanted, make_optimizer, set_rate
from fusion.tasks import Objective, Task, main_scores, num_outputs, tasks_of

logger = logging.getLogger("fusion")

CHECK_STEPS = 50
"""On a GPU, steps between two looks at the losses: each look waits for the device."""


@dataclass(frozen=True)
class Progress:
    """Where a fit is."""

    epoch: int
    max_epochs: int
    step: int
    steps: int
    """Of this epoch."""
    loss: float
    """Mean of the steps since the last report."""
    samples_s: float
    """Samples per second of this epoch so far."""
    val_score: float | None
    """Best score on ``val`` so far."""


@dataclass(frozen=True)
class Split:
    """One split, in tables."""

    name: str
    samples: Samples
    left_out: dict[str, str]
    """Clip that is not used -> why."""


@dataclass(frozen=True)
class Loaded:
    """What a fit trains on."""

    train: Split
    val: Split | None
    sources: Mapping[str, FeatureSource]
    """Instance -> what the store says of it."""

    @property
    def splits(self) -> tuple[Split, ...]:
        """Those that there are, ``val`` first."""
        return (self.train,) if self.val is None else (self.val, self.train)

    @property
    def clips(self) -> dict[str, tuple[str, ...]]:
        """Split -> its clips."""
        return {split.name: split.samples.clips for split in reversed(self.splits)}

    @property
    def sizes(self) -> dict[str, int]:
        """Modality -> values per row."""
        samples = self.train.samples
        return {name: samples.tables[source].shape[1] for name, source in samples.sources.items()}


def fit(
    features: str | Path,
    output: str | Path | None = None,
    config: str | FusionConfig | None = None,
    *,
    set: Sequence[str] = (),
    device: str = "auto",
    skip_failed: bool = False,
    strict_splits: bool = False,
    allow_leak: bool = False,
    splits: Mapping[str, str] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> list[Evaluation]:
    """Fit the network on the split ``train`` of a feature store, stop early by the split ``val``, and write a run.

    The same features, config, machine and number of threads give the same run, whether interrupted or not.

    Args:
        features: the store.
        output: folder of the run; an unfinished run there is continued. None is a new folder in ``runs/``, named
            after the date and time.
        config: a built-in config, a YAML file, or the settings themselves. None is the config of the run that is
            continued, else the one that the store was made with, else ``default``.
        set: ``a.b=c`` each, over that config, as in ``training.lr=1e-4``.
        device: ``auto``, ``cpu`` or ``cuda:N``.
        skip_failed: leave out clips whose features failed or are unfinished.
        strict_splits: refuse a subject or source video that lies in both splits, which is otherwise a warning.
        allow_leak: accept clips of ``val`` that adapted weights were trained on.
        splits: clip -> split, in place of the store's, as cross-validation has them; other clips are left out.
        progress: is told where the fit is, several times a second at most.

    Returns:
        The scores of the best epoch on ``val`` (if there is that split) and on ``train``.

    Raises:
        ConfigError: a setting is invalid, or a modality does not fit the store.
        UsageError: there is nothing to train on, the run is finished already, or training diverged.
        UnfinishedError: clips with unfinished features, unless ``skip_failed``.
        StaleError: the run was begun with another config or other features.
        CorruptError: the store is damaged; the message names every damaged record and block.
        MachineError: the disk or the GPU gave up.
    """
    run = Run(output) if output is not None else Run.new()
    run.check_ours()
    if run.finished:
        raise UsageError(f"run {run.path} is finished; name another folder with -o, or remove it")
    store = Store.open(features)
    config = choose_config(run, store, config, set)
    torch_device = pick_device(device)
    loaded = load(
        store,
        config,
        torch_device,
        skip_failed=skip_failed,
        strict_splits=strict_splits,
        allow_leak=allow_leak,
        splits=splits,
    )

    # The caller's random state is restored afterwards; the state of training is all in the checkpoint.
    with arithmetic(torch_device), torch.random.fork_rng([torch_device] if torch_device.type == "cuda" else []):
        # Build.
        torch.manual_seed(config.training.seed)
        tasks = tasks_of(config, loaded.train.samples.aus)
        model = FusionModel(loaded.sizes, config, num_outputs(tasks))
        if config.model.standardise:
            standardise(model, loaded.train.samples)
        model.to(torch_device)
        labels = loaded.train.samples.targets.get("au")
        objective = Objective(
            tasks, config.loss, loaded.train.samples.aus, None if labels is None else labels.numpy()
        ).to(torch_device)
        optimizer = make_optimizer(model, config.training, torch_device)
        state = resume(run, loaded.clips, loaded.sources, model, optimizer, torch_device)
        if not run.started:
            run.begin(config)

        # Loop.
        train(run, loaded, config, tasks, model, objective, optimizer, torch_device, state, progress)

        # Evaluate.
        best = run.model()
        best.model.to(torch_device)
        scores = {split.name: split_scores(store, split, best, torch_device) for split in loaded.splits}
    found = [
        assess((str(run.path), str(features), split.name), best.epoch, scores[split.name], loaded.sources,
               split.left_out)
        for split in loaded.splits
    ]  # fmt: skip

    # Save.
    if "au" in config.tasks:
        post = post_processing(scores.get("val"), config, loaded.train.samples)
        for notice in post.notices:
            logger.info("post-processing: %s", notice)
        run.save_postprocess(post)
    if "val" in scores:
        run.save_scores("val", scores["val"])
    run.save_metrics({evaluation.split: evaluation.as_json() for evaluation in found})
    return found


def load(
    store: Store,
    config: FusionConfig,
    device: torch.device,
    *,
    skip_failed: bool = False,
    strict_splits: bool = False,
    allow_leak: bool = False,
    splits: Mapping[str, str] | None = None,
) -> Loaded:
    """The annotated frames of ``train`` and every frame of ``val``, with their features. Errors as of ``fit``."""
    with all_damage_named(store, ("train", "val"), config.instances):
        train = _load(store, "train", config, device, skip_failed=skip_failed, splits=splits)
        val = _load(store, "val", config, device, skip_failed=skip_failed, splits=splits)
        if train is None or len(train.samples) < 2:
            raise UsageError(f"{store.path}: split train has {len(train.samples) if train else 0} annotated frames")
        split_of = {clip: split.name for split in (train, val) if split is not None for clip in split.samples.clips}
        sources = feature_sources(store, [*split_of], (FRAMES, LABELS, *config.instances))
        for line in before_fit(store, split_of, sources, strict_splits=strict_splits, allow_leak=allow_leak):
            logger.warning("%s", line)
    loaded = Loaded(train, val, sources)
    for name, size in loaded.sizes.items():
        if not size or not len(train.samples.tables[train.samples.sources[name]]):
            raise UsageError(f"modality {name}: no row in split train; leave it out with --set modalities.{name}=null")
    return loaded


def train(
    run: Run,
    loaded: Loaded,
    config: FusionConfig,
    tasks: Sequence[Task],
    model: FusionModel,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    state: State,
    progress: Callable[[Progress], None] | None = None,
) -> None:
    """Train until the epochs or the patience are over; checkpoint, best model and log are in the run afterwards.

    Raises:
        UsageError: the loss is not finite; the last good checkpoint stays.
    """
    settings, samples = config.training, loaded.train.samples
    pool = training_pool(samples, config)
    step = TrainStep(model, objective, samples, optimizer, settings, device, distinct=config.data.sampler == "segments")
    look = CHECK_STEPS if device.type == "cuda" else 1
    where = f"{samples.home.place} ({samples.home.reason})"
    logger.info(
        "run %s: %d frames of %d clips, on %s; features: %s%s", run.path, len(pool), len(samples.clips), device, where,
        "; steps are CUDA graphs" if graph_wanted(settings, device) else "",
    )  # fmt: skip
    if loaded.val is None:
        logger.info("no split val: all %d epochs run, and only scores on train are reported", settings.max_epochs)
    curves = Curves(run.path / EVENTS)
    while not over(state.history, settings):
        epoch, began, saved = len(state.history) + 1, time.monotonic(), time.monotonic()
        indices = epoch_batches(samples, pool, config, epoch)
        factor = plateau_factor(state.history, settings)
        model.train()
        done, pending = len(state.losses), []
        seen, told = 0, began
        for number, batch in enumerate(step.batches(itertools.islice(indices, done, None)), start=done):
            set_rate(optimizer, settings.lr * factor * min(1.0, (state.steps + 1) / max(1, settings.warmup_steps)))
            pending.append(step(batch))
            state.steps += 1
            seen += len(batch)
            last = number + 1 == len(indices)
            if len(pending) < look and not last:
                continue
            losses = torch.stack(pending).double().tolist()  # waits for the device
            pending.clear()
            _check_finite(losses, number, indices, epoch, samples, run, settings)
            state.losses += losses
            now = time.monotonic()
            if progress is not None and (now - told > 0.2 or last):
                told = now
                best = state.history[best_epoch(state.history) - 1]["val_score"] if state.history else None
                progress(
                    Progress(
                        epoch, settings.max_epochs, number + 1, len(indices), float(np.mean(losses)),
                        seen / max(now - began, 1e-9), best,
                    )
                )  # fmt: skip
            if now - saved > 60 * settings.checkpoint_minutes and not last:
                run.save_checkpoint(state_of(model, optimizer, device, state, loaded.clips, loaded.sources))
                saved = time.monotonic()
        entry: dict[str, Any] = {"epoch": epoch, "steps": state.steps, "lr": settings.lr * factor}
        entry |= {
            "loss": float(np.mean(state.losses)),
            **validate(model, objective, tasks, loaded.val, device, settings),
        }
        state.history.append(entry)
        state.losses = []
        if best_epoch(state.history) == epoch:
            run.save_model(_fitted(model, config, loaded, epoch))
        if settings.keep_epochs:
            run.save_epoch(_fitted(model, config, loaded, epoch))
        # After the model: if the process dies in between, this epoch runs again with the same result.
        run.save_checkpoint(state_of(model, optimizer, device, state, loaded.clips, loaded.sources))
        run.save_log(state.history)
        curves.write(entry)
        _report_epoch(state.history, settings, time.monotonic() - began, seen)
    curves.close()


def validate(
    model: FusionModel,
    objective: Objective,
    tasks: Sequence[Task],
    val: Split | None,
    device: torch.device,
    settings: TrainingConfig,
) -> dict[str, float | None]:
    """``val_loss``, ``val_score`` and each task's score on the annotated frames of ``val``; None without that split."""
    names = ["val_loss", "val_score", *(f"val_{task.name}" for task in tasks)]
    if val is None:
        return dict.fromkeys(names)
    index = val.samples.annotated
    outputs = predict_outputs(model, val.samples, device, settings.batch, index=index)
    targets = {task: labels[torch.from_numpy(index)] for task, labels in val.samples.targets.items()}
    with torch.no_grad():
        on_device = {task: labels.to(device) for task, labels in targets.items()}
        loss = float(objective(torch.from_numpy(outputs).to(device), on_device))
    scores = main_scores(tasks, outputs, {task: labels.numpy() for task, labels in targets.items()})
    known = [score for score in scores.values() if not math.isnan(score)]
    mean = float(np.mean(known)) if known else 0.0
    return dict(zip(names, [loss, mean, *(None if math.isnan(s) else s for s in scores.values())], strict=True))


def split_scores(store: Store, split: Split, best: FittedModel, device: torch.device) -> FrameScores:
    """The outputs of the best epoch for the frames of a split."""
    outputs = predict_outputs(best.model, split.samples, device, best.config.training.batch)
    return frame_scores(store, split.samples, outputs, best.tasks, best.config, {"split": split.name})


def post_processing(val: FrameScores | None, config: FusionConfig, train: Samples) -> PostProcess:
    """What the config says of smoothing, thresholds and the rest, chosen on ``val`` where there is that split."""
    if val is None:
        return without_val(config.post, train.aus)
    return fit_post(val, config.post, train.labels.numpy())


def standardise(model: FusionModel, samples: Samples) -> None:
    """Set in every projection the mean and standard deviation of its rows in the training split."""
    statistics = {source: moments(table) for source, table in samples.tables.items()}
    for name, source in samples.sources.items():
        model.projection(name).standardise_by(*statistics[source])


def _check_finite(
    losses: Sequence[float],
    number: int,
    indices: Sequence[Ints],
    epoch: int,
    samples: Samples,
    run: Run,
    settings: TrainingConfig,
) -> None:
    """Raise UsageError if one of the last losses, up to step ``number``, is NaN or infinite."""
    bad = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), None)
    if bad is None:
        return
    step = number + 1 - len(losses) + bad
    clips = [samples.clips[clip] for clip in np.unique(samples.clip[indices[step]])]
    more = f" and {len(clips) - 8} more" if len(clips) > 8 else ""
    kept = f"; the checkpoint before it is kept in {run.path}" if run.has_checkpoint else ""
    raise UsageError(
        f"epoch {epoch}, step {step + 1}: the loss is {losses[bad]}. Its {len(indices[step])} frames are of clips "
        f"{', '.join(clips[:8])}{more}{kept}. Lower fusion.training.lr ({settings.lr}), and name another folder with -o"
    )


def _report_epoch(history: History, settings: TrainingConfig, seconds: float, seen: int) -> None:
    entry = history[-1]
    text = f"epoch {entry['epoch']}/{settings.max_epochs}: loss {entry['loss']:.4f}"
    if entry["val_score"] is not None:
        number = best_epoch(history)
        name = "score" if entry.keys() & {"val_expr", "val_va", "val_intensity"} else "F1"
        best = 100 * history[number - 1]["val_score"]
        text += f", val {name} {100 * entry['val_score']:.1f} (best {best:.1f}, epoch {number})"
    logger.info("%s, %.1f s, %.0f samples/s", text, seconds, seen / max(seconds, 1e-9))


def _load(
    store: Store,
    name: str,
    config: FusionConfig,
    device: torch.device,
    *,
    skip_failed: bool,
    splits: Mapping[str, str] | None = None,
) -> Split | None:
    """A split; None if it is the validation split and nothing in it can be used."""
    tasks = tuple(config.tasks)
    selection = select_clips(store, name, config.instances, skip_failed=skip_failed, tasks=tasks, splits=splits)
    for clip, reason in selection.left_out.items():
        logger.warning("split %s: clip %s is left out: %s", name, clip, reason)
    if name == "train":
        require_clips(store, selection)
    elif not selection.clips:
        return None
    began = time.monotonic()
    frames: Any = "annotated" if name == "train" else "all"
    samples = load_samples(store, selection.clips, config, frames=frames, device=device)
    megabytes = sum(table.nbytes for table in samples.tables.values()) / 1e6
    seconds = time.monotonic() - began
    logger.debug("split %s: %d clips, %.0f MB, read in %.1f s", name, len(selection.clips), megabytes, seconds)
    return Split(name, samples, selection.left_out) if len(samples.annotated) or name == "train" else None


def _fitted(model: FusionModel, config: FusionConfig, loaded: Loaded, epoch: int) -> FittedModel:
    sources = loaded.sources
    return FittedModel(
        model=model,
        config=config,
        sizes=loaded.sizes,
        recipes={instance: sources[instance].recipe for instance in (FRAMES, *config.instances)},
        clips=loaded.clips,
        epoch=epoch,
        weights={sha256: spec for source in sources.values() for sha256, spec in source.weights.items()},
        untrained=untrained(sources),
        drawn=len(sources[FRAMES].drawn),
        aus=loaded.train.samples.aus,
        crops=kinds(sources),
    )
