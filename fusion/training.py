"""Fit a fusion network to stored features. Read it from top to bottom: load, build, loop, evaluate, save."""

import itertools
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from extract.au.balance import ml_ros, segments, strided
from extract.config import Remembered
from extract.devices import pick_device
from extract.errors import StaleError, UsageError
from extract.store import Store
from fusion.config import FusionConfig, TrainingConfig, load_fusion_config
from fusion.curves import Curves
from fusion.data import Ints, Samples, load_samples, moments
from fusion.device import arithmetic
from fusion.evaluation import Evaluation, assess
from fusion.inference import frame_scores, predict_outputs
from fusion.model import FusionModel
from fusion.runs import EVENTS, FittedModel, Run
from fusion.selection import (
    FRAMES,
    LABELS,
    FeatureSource,
    all_damage_named,
    feature_sources,
    first_difference,
    require_clips,
    select_clips,
    shared_people,
    untrained,
)
from fusion.stepping import TrainStep, graph_wanted, make_optimizer, restore_optimizer, set_rate
from fusion.tasks import Objective, Task, main_scores, num_outputs, tasks_of

logger = logging.getLogger("fusion")

History = list[dict[str, Any]]
"""One entry per finished epoch: ``epoch`` from 1, ``steps`` in all, ``loss``, ``val_loss``, ``val_score`` (the mean of
the tasks' scores, None without that split), ``val_au`` and so on."""

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


@dataclass
class State:
    """Where training is; with the model, the optimiser and the random state it determines the rest."""

    history: History = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    """Of the steps of the epoch that is under way."""
    steps: int = 0
    """In all epochs."""


def fit(
    features: str | Path,
    output: str | Path | None = None,
    config: str | FusionConfig | None = None,
    *,
    set: Sequence[str] = (),
    device: str = "auto",
    skip_failed: bool = False,
    strict_splits: bool = False,
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
        strict_splits: refuse people and recordings that lie in several splits instead of warning of them.
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
    config = _choose_config(run, store, config, set)
    torch_device = pick_device(device)
    loaded = load(store, config, torch_device, skip_failed=skip_failed, strict_splits=strict_splits)

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
        state = _resume(run, loaded, model, optimizer, torch_device)
        if not run.started:
            run.begin(config)

        # Loop.
        train(run, loaded, config, tasks, model, objective, optimizer, torch_device, state, progress)

        # Evaluate.
        best = run.model()
        best.model.to(torch_device)
        found = [score_split(run, store, str(features), split, best, loaded.sources, torch_device)
                 for split in loaded.splits]  # fmt: skip

    # Save.
    run.save_metrics({evaluation.split: evaluation.as_json() for evaluation in found})
    return found


def load(
    store: Store, config: FusionConfig, device: torch.device, *, skip_failed: bool = False, strict_splits: bool = False
) -> Loaded:
    """The annotated frames of ``train`` and every frame of ``val``, with their features. Errors as of ``fit``."""
    with all_damage_named(store, ("train", "val"), config.instances):
        train = _load(store, "train", config, device, skip_failed=skip_failed)
        val = _load(store, "val", config, device, skip_failed=skip_failed)
        if train is None or len(train.samples) < 2:
            raise UsageError(f"{store.path}: split train has {len(train.samples) if train else 0} annotated frames")
        split_of = {clip: split.name for split in (train, val) if split is not None for clip in split.samples.clips}
        sources = feature_sources(store, [*split_of], (FRAMES, LABELS, *config.instances))
        shared = shared_people(store, split_of)
        if shared and strict_splits:
            raise UsageError("\n".join([*shared, "change the splits in the manifest, or leave out --strict-splits"]))
        for line in shared:
            logger.warning("%s; expect scores on val that are too high", line)
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
                run.save_checkpoint(_state(model, optimizer, device, state, loaded))
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
        # After the model: if the process dies in between, this epoch runs again with the same result.
        run.save_checkpoint(_state(model, optimizer, device, state, loaded))
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


def score_split(
    run: Run,
    store: Store,
    features: str,
    split: Split,
    best: FittedModel,
    sources: Mapping[str, FeatureSource],
    device: torch.device,
) -> Evaluation:
    """The best epoch's scores on a split. Those of ``val`` are saved for every frame."""
    outputs = predict_outputs(best.model, split.samples, device, best.config.training.batch)
    scores = frame_scores(store, split.samples, outputs, best.tasks, best.config, {"split": split.name})
    if split.name != "train":
        run.save_scores(split.name, scores)
    return assess((str(run.path), features, split.name), best.epoch, scores, sources, split.left_out)


# ---- epochs --------------------------------------------------------------------------------------------------------


def training_pool(samples: Samples, config: FusionConfig) -> Ints:
    """The samples of an epoch before they are shuffled: every ``stride``-th, those with rare AUs repeated by ML-ROS.

    Raises:
        UsageError: fewer than two are left.
    """
    settings = config.data
    pool = strided(samples.clip, samples.frame, settings.stride)
    if settings.ml_ros and "au" in samples.targets:
        drawn = ml_ros(samples.labels.numpy()[pool], settings.ml_ros, config.training.seed)
        logger.info("ML-ROS: %d of %d frames repeated", drawn.clones, len(pool))
        pool = pool[drawn.indices]
    if len(pool) < 2:
        raise UsageError(f"split train: {len(pool)} frames are left by data.stride {settings.stride}")
    return pool


def epoch_batches(samples: Samples, pool: Ints, config: FusionConfig, epoch: int) -> list[Ints]:
    """The samples of each step of an epoch. Their order depends on (seed, epoch) alone, so a resumed epoch is the same.

    The sizes of a pass's batches differ by at most one (``iid``): BatchNorm cannot train on a last batch of one sample.
    """
    settings = config.training
    passes = -(-settings.min_epoch_steps // -(-len(pool) // settings.batch))
    found: list[Ints] = []
    shuffler = np.random.default_rng([settings.seed, epoch])
    for number in range(passes):
        if config.data.sampler == "segments":
            length = min(config.data.segment, settings.batch)
            cut = segments(
                samples.clip[pool], samples.frame[pool], length=length, batch_size=settings.batch,
                seed=settings.seed, epoch=epoch * passes + number,
            )  # fmt: skip
            found += [pool[batch] for batch in cut]
        else:
            found += np.array_split(pool[shuffler.permutation(len(pool))], -(-len(pool) // settings.batch))
    return found[: settings.max_epoch_steps]


def standardise(model: FusionModel, samples: Samples) -> None:
    """Set in every projection the mean and standard deviation of its rows in the training split."""
    statistics = {source: moments(table) for source, table in samples.tables.items()}
    for name, source in samples.sources.items():
        model.projection(name).standardise_by(*statistics[source])


def best_epoch(history: History) -> int:
    """The first epoch with the best score on ``val``; the last epoch if there is no such split."""
    if history[-1]["val_score"] is None:
        return len(history)
    return 1 + int(np.argmax([entry["val_score"] for entry in history]))


def over(history: History, settings: TrainingConfig) -> bool:
    """Whether training has ended."""
    if not history:
        return False
    return len(history) >= settings.max_epochs or len(history) - best_epoch(history) >= settings.patience


PLATEAU_FACTOR, PLATEAU_PATIENCE = 0.8, 5


def plateau_factor(history: History, settings: TrainingConfig) -> float:
    """What the learning rate is multiplied by: .8 for each time that ``val_loss`` has not fallen for 5 epochs.

    As torch's ReduceLROnPlateau(factor=.8, patience=5) with its threshold of 1e-4, relative; worked out from the
    history, so that there is no state to save.
    """
    if settings.schedule == "constant":
        return 1.0
    factor, best, waited = 1.0, math.inf, 0
    for entry in history:
        loss = entry["val_loss"] if entry["val_loss"] is not None else entry["loss"]
        if loss < best * (1 - 1e-4):
            best, waited = loss, 0
        else:
            waited += 1
        if waited > PLATEAU_PATIENCE:
            factor, waited = factor * PLATEAU_FACTOR, 0
    return factor


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


def _load(store: Store, name: str, config: FusionConfig, device: torch.device, *, skip_failed: bool) -> Split | None:
    """A split; None if it is the validation split and nothing in it can be used."""
    selection = select_clips(store, name, config.instances, skip_failed=skip_failed, tasks=tuple(config.tasks))
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
    )


# ---- continuing a run ----------------------------------------------------------------------------------------------


def _choose_config(run: Run, store: Store, config: str | FusionConfig | None, overrides: Sequence[str]) -> FusionConfig:
    """The settings of the fit. A run that is continued keeps its own; if others are asked for, they must be equal."""
    if run.started and config is None and not overrides:
        return run.config()
    remembered = None
    if config is None:
        remembered = store.config()
        logger.info(Remembered.taken(remembered))
    wanted = load_fusion_config(config, overrides, remembered)
    if not run.started:
        return wanted
    begun = run.config()
    difference = first_difference(begun.model_dump(), wanted.model_dump())
    if difference is not None:
        raise StaleError(
            f"run {run.path} was begun with another config ({difference}); continue it without -c and --set, "
            "or name another folder with -o"
        )
    return begun


def _state(
    model: FusionModel, optimizer: torch.optim.Optimizer, device: torch.device, state: State, loaded: Loaded
) -> dict[str, Any]:
    """Everything that the rest of training depends on."""
    sources = loaded.sources
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        },
        "history": state.history,
        "losses": state.losses,
        "steps": state.steps,
        "clips": {split: list(names) for split, names in loaded.clips.items()},
        "recipes": {instance: dict(source.recipe) for instance, source in sources.items()},
        "fingerprints": {instance: dict(source.fingerprints) for instance, source in sources.items()},
    }


def _resume(
    run: Run, loaded: Loaded, model: FusionModel, optimizer: torch.optim.Optimizer, device: torch.device
) -> State:
    """Restore everything from the checkpoint and return where training was; at the start if there is no checkpoint.

    Raises:
        StaleError: features, labels or the kind of device differ from those that the run was begun with.
    """
    saved = run.checkpoint()
    if saved is None:
        return State()
    now = _state(model, optimizer, device, State(), loaded)
    for what in ("clips", "recipes", "fingerprints"):
        difference = first_difference(saved[what], now[what], what)
        if difference is not None:
            raise StaleError(
                f"run {run.path} was begun with other clips, features or labels ({difference}); "
                "name another folder with -o"
            )
    begun = "cpu" if saved["random"]["cuda"] is None else "cuda"
    if begun != device.type:
        raise StaleError(
            f"run {run.path} was begun on {begun}, not on {device.type}; continue it with --device {begun}"
        )
    model.load_state_dict(saved["model"])
    restore_optimizer(optimizer, saved["optimizer"])
    torch.set_rng_state(saved["random"]["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(saved["random"]["cuda"], device)
    state = State(saved["history"], saved["losses"], saved["steps"])
    within = f" and {len(state.losses)} steps of the next" if state.losses else ""
    logger.info("run %s: continues after epoch %d%s", run.path, len(state.history), within)
    return state
