"""Fit the fusion network to stored features. Read it from top to bottom: load, build, loop, evaluate, save."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from extract.au.losses import TwoPartLoss
from extract.config import Remembered
from extract.devices import pick_device
from extract.errors import StaleError, UsageError
from extract.store import Store
from fusion.admission import before_fit, kinds
from fusion.config import FusionConfig, TrainingConfig, load_fusion_config
from fusion.data import Batch, Samples, load_samples, moments
from fusion.device import arithmetic
from fusion.evaluation import Evaluation, Scores, assess, predict_logits, score
from fusion.model import FusionModel
from fusion.runs import FittedModel, Run
from fusion.selection import (
    FRAMES,
    LABELS,
    FeatureSource,
    all_damage_named,
    feature_sources,
    first_difference,
    require_clips,
    select_clips,
    untrained,
)

logger = logging.getLogger("fusion")

History = list[dict[str, Any]]
"""One entry per finished epoch: ``epoch`` from 1, ``loss``, ``val_f1`` (None without that split)."""


@dataclass(frozen=True)
class Split:
    """One split in RAM."""

    name: str
    samples: Samples
    left_out: dict[str, str]
    """Clip that is not used -> why."""


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

    # Load.
    with all_damage_named(store, ("train", "val"), config.instances):
        train = _load(store, "train", config, skip_failed=skip_failed)
        val = _load(store, "val", config, skip_failed=skip_failed)
        if train is None or len(train.samples) < 2:
            raise UsageError(f"{features}: split train has {len(train.samples) if train else 0} annotated frames")
        clips = {split.name: split.samples.clips for split in (train, val) if split is not None}
        split_of = {clip: split for split, names in clips.items() for clip in names}
        sources = feature_sources(store, [*split_of], (FRAMES, LABELS, *config.instances))
        for line in before_fit(store, split_of, sources, strict_splits=strict_splits, allow_leak=allow_leak):
            logger.warning("%s", line)
    sizes = {name: train.samples.tables[source].shape[1] for name, source in train.samples.sources.items()}
    for name, size in sizes.items():
        if not size:
            raise UsageError(f"modality {name}: no row in split train; leave it out with --set modalities.{name}=null")

    # The caller's random state is restored afterwards; the state of training is all in the checkpoint.
    with arithmetic(torch_device), torch.random.fork_rng([torch_device] if torch_device.type == "cuda" else []):
        # Build.
        torch.manual_seed(config.training.seed)
        model = FusionModel(sizes, config)
        standardise(model, train.samples)
        model.to(torch_device)
        loss = TwoPartLoss(config.loss.pos_weight, config.loss.soft_margin_weight).to(torch_device)
        settings = config.training
        optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
        history = _resume(run, sources, clips, model, optimizer, torch_device)
        if not run.started:
            run.begin(config)
        logger.info(
            "run %s: %d frames of %d clips, on %s", run.path, len(train.samples), len(clips["train"]), torch_device
        )
        if val is None:
            logger.info("no split val: all %d epochs run, and only F1 on train is reported", settings.max_epochs)

        # Loop.
        while not _over(history, settings):
            epoch, began = len(history) + 1, time.monotonic()
            mean_loss = train_epoch(model, loss, train.samples, optimizer, settings, epoch, torch_device)
            if not np.isfinite(mean_loss):
                raise UsageError(f"epoch {epoch}: the loss is {mean_loss}; lower fusion.training.lr ({settings.lr})")
            val_f1 = None if val is None else evaluate_split(model, val, torch_device, settings).mean_f1
            history.append({"epoch": epoch, "loss": mean_loss, "val_f1": val_f1})
            if best_epoch(history) == epoch:
                recipes = {instance: sources[instance].recipe for instance in (FRAMES, *config.instances)}
                weights = {sha256: spec for source in sources.values() for sha256, spec in source.weights.items()}
                drawn = len(sources[FRAMES].drawn)
                described = (recipes, clips, epoch, weights, untrained(sources), drawn, kinds(sources))
                run.save_model(FittedModel(model, config, sizes, *described))
            # After the model: if the process dies in between, this epoch runs again with the same result.
            run.save_checkpoint(_state(model, optimizer, torch_device, history, sources, clips))
            run.save_log(history)
            _report_epoch(history, settings, time.monotonic() - began)

        # Evaluate.
        best = run.model()
        best.model.to(torch_device)
        found = [
            assess(
                (str(run.path), str(features), split.name),
                best.epoch,
                split.samples,
                predict_logits(best.model, split.samples, torch_device, settings.batch),
                sources,
                split.left_out,
            )
            for split in (val, train)
            if split is not None
        ]

    # Save.
    run.save_metrics({evaluation.split: evaluation.as_json() for evaluation in found})
    return found


def train_epoch(
    model: FusionModel,
    loss: TwoPartLoss,
    samples: Samples,
    optimizer: torch.optim.Optimizer,
    settings: TrainingConfig,
    epoch: int,
    device: torch.device,
) -> float:
    """Train for one epoch and return the mean loss of its steps."""
    model.train()
    losses = [
        train_step(model, loss, samples.batch(index).to(device), optimizer, settings.clip_norm)
        for index in epoch_batches(len(samples), settings, epoch)
    ]
    return float(torch.stack(losses).double().mean())


def train_step(
    model: FusionModel, loss: TwoPartLoss, batch: Batch, optimizer: torch.optim.Optimizer, clip_norm: float
) -> Tensor:
    """Take one optimizer step and return the loss before it, still on its device so that nothing waits for it."""
    optimizer.zero_grad()
    value: Tensor = loss(model(batch.inputs, len(batch)), batch.labels)
    torch.autograd.backward(value)
    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    return value.detach()


def epoch_batches(num_samples: int, settings: TrainingConfig, epoch: int) -> Iterator[NDArray[np.int64]]:
    """Indices of each batch of an epoch, shuffled by (seed, epoch) alone so that a resumed epoch is the same.

    The sizes of a pass's batches differ by at most one: BatchNorm cannot train on a last batch of one sample.
    """
    shuffler = np.random.default_rng([settings.seed, epoch])
    batches = -(-num_samples // settings.batch)
    passes = -(-settings.min_epoch_steps // batches)
    for _ in range(passes):
        yield from np.array_split(shuffler.permutation(num_samples), batches)


def evaluate_split(model: FusionModel, split: Split, device: torch.device, settings: TrainingConfig) -> Scores:
    """Scores of the network in its present state, at logit >= 0."""
    logits = predict_logits(model, split.samples, device, settings.batch)
    return score(split.samples.labels.numpy(), logits >= 0)


def standardise(model: FusionModel, samples: Samples) -> None:
    """Set in every branch the mean and standard deviation of its rows in the training split."""
    statistics = {source: moments(table) for source, table in samples.tables.items()}
    for name, source in samples.sources.items():
        model.branch(name).standardise_by(*statistics[source])


def best_epoch(history: History) -> int:
    """The first epoch with the best validation F1; the last epoch if there is no validation split."""
    if history[-1]["val_f1"] is None:
        return len(history)
    return 1 + int(np.argmax([entry["val_f1"] for entry in history]))


def _over(history: History, settings: TrainingConfig) -> bool:
    if not history:
        return False
    return len(history) >= settings.max_epochs or len(history) - best_epoch(history) >= settings.patience


def _report_epoch(history: History, settings: TrainingConfig, seconds: float) -> None:
    entry = history[-1]
    text = f"epoch {entry['epoch']}/{settings.max_epochs}: loss {entry['loss']:.4f}"
    if entry["val_f1"] is not None:
        best = best_epoch(history)
        text += f", val F1 {100 * entry['val_f1']:.1f} (best {100 * history[best - 1]['val_f1']:.1f}, epoch {best})"
    logger.info("%s, %.1f s", text, seconds)


def _load(store: Store, name: str, config: FusionConfig, *, skip_failed: bool) -> Split | None:
    """A split in RAM; None if it is the validation split and nothing in it can be used."""
    selection = select_clips(store, name, config.instances, skip_failed=skip_failed)
    for clip, reason in selection.left_out.items():
        logger.warning("split %s: clip %s is left out: %s", name, clip, reason)
    if name == "train":
        require_clips(store, selection)
    elif not selection.clips:
        return None
    began = time.monotonic()
    samples = load_samples(store, selection.clips, config)
    megabytes = sum(table.nbytes for table in samples.tables.values()) / 1e6
    seconds = time.monotonic() - began
    logger.debug("split %s: %d clips, %.0f MB, read in %.1f s", name, len(selection.clips), megabytes, seconds)
    return Split(name, samples, selection.left_out) if len(samples) or name == "train" else None


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
    model: FusionModel,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    history: History,
    sources: Mapping[str, FeatureSource],
    clips: Mapping[str, tuple[str, ...]],
) -> dict[str, Any]:
    """Everything that the rest of training depends on."""
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        },
        "epoch": len(history),
        "history": history,
        "clips": {split: list(names) for split, names in clips.items()},
        "recipes": {instance: dict(source.recipe) for instance, source in sources.items()},
        "fingerprints": {instance: dict(source.fingerprints) for instance, source in sources.items()},
    }


def _resume(
    run: Run,
    sources: Mapping[str, FeatureSource],
    clips: Mapping[str, tuple[str, ...]],
    model: FusionModel,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> History:
    """Restore everything from the checkpoint and return the epochs so far; none if there is no checkpoint.

    Raises:
        StaleError: features, labels or the kind of device differ from those that the run was begun with.
    """
    state = run.checkpoint()
    if state is None:
        return []
    now = _state(model, optimizer, device, [], sources, clips)
    for what in ("clips", "recipes", "fingerprints"):
        difference = first_difference(state[what], now[what], what)
        if difference is not None:
            raise StaleError(
                f"run {run.path} was begun with other clips, features or labels ({difference}); "
                "name another folder with -o"
            )
    begun = "cpu" if state["random"]["cuda"] is None else "cuda"
    if begun != device.type:
        raise StaleError(
            f"run {run.path} was begun on {begun}, not on {device.type}; continue it with --device {begun}"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"]["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["random"]["cuda"], device)
    history: History = state["history"]
    logger.info("run %s: continues after epoch %d", run.path, len(history))
    return history
