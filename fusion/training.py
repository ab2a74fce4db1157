"""Fit the fusion network to stored features. Reads from top to bottom: load, build, loop, evaluate, save."""

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from extract.au.losses import TwoPartLoss
from extract.errors import StaleError, UsageError
from extract.store import Store
from fusion.config import FusionConfig, TrainingConfig
from fusion.data import (
    FRAMES,
    LABELS,
    Batch,
    FeatureSource,
    Samples,
    feature_sources,
    first_difference,
    load_samples,
    moments,
    select_clips,
    shared_people,
)
from fusion.device import arithmetic, resolve_device
from fusion.evaluation import (
    Evaluation,
    Scores,
    assess,
    left_out,
    predict_logits,
    require_clips,
    score,
    untrained,
)
from fusion.model import FusionModel
from fusion.runs import FittedModel, Run

logger = logging.getLogger("fusion")

History = list[dict[str, Any]]
"""One entry per finished epoch: ``epoch`` from 1, ``loss``, ``val_f1`` (None without that split)."""


@dataclass(frozen=True)
class Split:
    """One split in RAM."""

    name: str
    samples: Samples
    left_out: dict[str, str]
    """Its clips that are not used, and why."""


def fit(
    features: str | Path,
    output: str | Path | None = None,
    config: FusionConfig | None = None,
    *,
    device: str = "auto",
    skip_failed: bool = False,
) -> list[Evaluation]:
    """Fit on split ``train`` of the store ``features``, stop early by split ``val``, and leave a run.

    The same features, config, machine and number of threads give the same run, interrupted or not.

    Args:
        features: a store.
        output: the run's folder; ``runs/`` and the time when None. An unfinished run there is continued.
        config: None is the config of the run that is continued, else the default.
        device: ``auto``, ``cpu`` or ``cuda:N``.
        skip_failed: leave out clips whose features are failed or unfinished.

    Returns:
        The scores of the best epoch on ``val`` (if there is one) and on ``train``.

    Raises:
        UsageError: nothing to train on, the run is finished already, or the training diverged.
        UnfinishedError: clips with unfinished features, unless ``skip_failed``.
        StaleError: the run was begun with another config or other features.
        MachineError: the disk is full, or the GPU.
    """
    run = Run(output) if output is not None else Run.new()
    config = _config_of(run, config)
    torch_device = resolve_device(device)

    # Load.
    store = Store.open(features)
    train = _load(store, "train", config, skip_failed=skip_failed)
    val = _load(store, "val", config, skip_failed=skip_failed)
    if train is None or len(train.samples) < 2:
        raise UsageError(f"{features}: split train has {len(train.samples) if train else 0} annotated frames")
    clips = {split.name: split.samples.clips for split in (train, val) if split is not None}
    sources = feature_sources(store, [*train.samples.clips, *clips.get("val", ())], (FRAMES, LABELS, *config.instances))
    for warning in shared_people(store, train.samples.clips, clips.get("val", ())):
        logger.warning("warning: %s", warning)
    sizes = {name: train.samples.tables[source].shape[1] for name, source in train.samples.sources.items()}
    for name, size in sizes.items():
        if not size:
            raise UsageError(f"modality {name}: not one row in split train; leave it out: --set modalities.{name}=null")

    # The caller's random state is given back; ours is all in the checkpoint.
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
            logger.info("no split val: all %d epochs are run, and only train F1 is reported", settings.max_epochs)

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
                named = {sha256: spec for source in sources.values() for sha256, spec in source.weights.items()}
                drawn = len(sources[FRAMES].drawn)
                run.save_model(
                    FittedModel(model, config, sizes, recipes, clips, epoch, named, untrained(sources), drawn)
                )
            # Last: what comes before is made again, alike, if it ends here.
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
    """Train for one epoch; the mean loss of its steps."""
    model.train()
    losses = [
        train_step(model, loss, samples.batch(index).to(device), optimizer, settings.clip_norm)
        for index in epoch_batches(len(samples), settings, epoch)
    ]
    return float(torch.stack(losses).double().mean())


def train_step(
    model: FusionModel, loss: TwoPartLoss, batch: Batch, optimizer: torch.optim.Optimizer, clip_norm: float
) -> Tensor:
    """One step of the optimiser; the loss before it, left on its device so that nothing waits for it."""
    optimizer.zero_grad()
    value: Tensor = loss(model(batch.inputs, len(batch)), batch.labels)
    torch.autograd.backward(value)
    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    return value.detach()


def epoch_batches(num_samples: int, settings: TrainingConfig, epoch: int) -> Iterator[NDArray[np.int64]]:
    """Indices of every batch of an epoch, shuffled by (seed, epoch) alone: a resumed epoch is the same.

    The batches of a pass differ by at most one sample: BatchNorm cannot train on a last batch of one.
    """
    shuffler = np.random.default_rng([settings.seed, epoch])
    batches = -(-num_samples // settings.batch)
    passes = -(-settings.min_epoch_steps // batches)
    for _ in range(passes):
        yield from np.array_split(shuffler.permutation(num_samples), batches)


def evaluate_split(model: FusionModel, split: Split, device: torch.device, settings: TrainingConfig) -> Scores:
    """Scores of the network as it is, at logit >= 0."""
    logits = predict_logits(model, split.samples, device, settings.batch)
    return score(split.samples.labels.numpy(), logits >= 0)


def standardise(model: FusionModel, samples: Samples) -> None:
    """Give every branch the mean and deviation of its own rows in the training split."""
    statistics = {source: moments(table) for source, table in samples.tables.items()}
    for name, source in samples.sources.items():
        model.branch(name).standardise_by(*statistics[source])


def best_epoch(history: History) -> int:
    """The first epoch with the best validation F1; the last epoch where there is no such split."""
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
    """A split, or None if it is the validation split and there is none."""
    selection = select_clips(store, name, config.instances, skip_failed=skip_failed)
    absent = left_out(selection)
    for clip, reason in absent.items():
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
    return Split(name, samples, absent) if len(samples) or name == "train" else None


# ---- a run that goes on --------------------------------------------------------------------------------------------


def _config_of(run: Run, wanted: FusionConfig | None) -> FusionConfig:
    """The config to use: that of an unfinished run must be the one asked for, if one is asked for."""
    run.check_ours()
    if run.finished:
        raise UsageError(f"run {run.path} is finished; name another folder with -o, or remove it")
    if not run.started:
        return wanted or FusionConfig()
    begun = run.config()
    difference = None if wanted is None else first_difference(begun.model_dump(), wanted.model_dump())
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
    """Everything that the rest of the training depends on."""
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
    """Put everything back as the checkpoint has it; the epochs done so far, none without a checkpoint.

    Raises:
        StaleError: the features or labels are not those that the run was begun with, or the device is another.
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
    logger.info("run %s: goes on after epoch %d", run.path, len(history))
    return history
