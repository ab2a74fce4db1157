"""The loop: updates of the network, looks at ``val``, the state that continues both."""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from extract import endings
from extract.adapt.curves import Curves
from extract.adapt.folder import EVENTS, Folder
from extract.adapt.hubert_batches import ReadyUpdate, Recordings, ahead, ready_batch
from extract.adapt.hubert_config import HubertAdaptConfig
from extract.adapt.hubert_crops import updates, whole_batches
from extract.adapt.hubert_loss import LossConfig
from extract.adapt.hubert_network import HubertPretraining
from extract.adapt.processes import Processes
from extract.errors import StaleError, UsageError

logger = logging.getLogger("extract")

BEST = "best.pt"
CHECK_STEPS = 50
"""On a GPU, updates between two looks at the loss: each waits for the device."""
AGREE_STEPS = 10
"""Of several processes, updates between two questions whether to write the state: its writer's clock decides."""
SUMS = ("loss", "correct", "count", "penalty", "norm", "updates")
"""What is added up between two looks: cross-entropy, right steps and steps (hidden ones alone), mean squares times
steps, norms of the gradient."""


@dataclass(frozen=True)
class Progress:
    """Where an adaptation is."""

    doing: str
    """What is being done before the first update; empty from then on."""
    step: int = 0
    steps: int = 0
    loss: float = 0.0
    """Cross-entropy per hidden step, mean since the last look."""
    accuracy: float = 0.0
    sound_s: float = 0.0
    """Seconds of sound per second."""
    val_accuracy: float | None = None
    """At the last look."""


Tell = Callable[[Progress], None]


@dataclass
class State:
    """Where training is; with network and optimiser it determines the rest: all chance is drawn by (seed, step)."""

    step: int = 0
    """Updates done."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One entry per look."""
    sums: list[float] = field(default_factory=lambda: [0.0] * len(SUMS))
    """Of SUMS, since the last look, over all processes."""
    best: int | None = None
    """Step of the least loss on ``val``."""


@dataclass(frozen=True)
class Data:
    """What is trained on, and what is looked at."""

    train: Recordings
    val: Recordings
    majority: int
    """The training clips' most frequent cluster: what a guesser would always say."""


def make_optimizer(network: HubertPretraining, config: HubertAdaptConfig) -> torch.optim.Optimizer:
    """AdamW with two rates: group 0 the encoder and its mask vector, group 1 the head."""
    head = list(network.head.parameters())
    encoder = [*network.encoder.parameters(), network.mask_vector]
    groups = [{"params": encoder, "lr": config.lr}, {"params": head, "lr": config.head_lr}]
    fused = network.mask_vector.device.type == "cuda"
    return torch.optim.AdamW(groups, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, fused=fused)


def rate_factor(step: int, first: int, config: HubertAdaptConfig) -> float:
    """What a rate is multiplied by in update ``step`` (from 0), for a part that learns from update ``first`` on."""
    done = step - first
    if done < config.warmup_steps:
        return max(0, done + 1) / config.warmup_steps
    return (config.steps - step) / (config.steps - first - config.warmup_steps)


def precision_of(config: HubertAdaptConfig, device: torch.device) -> torch.dtype:
    """The arithmetic of the forward pass."""
    if config.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    found: torch.dtype = getattr(torch, config.precision)
    return found


def autocast(config: HubertAdaptConfig, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Within it the forward pass computes in ``config.precision``."""
    precision = precision_of(config, device)
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)


def train_step(
    network: HubertPretraining,
    optimizer: torch.optim.Optimizer,
    ready: ReadyUpdate,
    config: HubertAdaptConfig,
    processes: Processes,
    sums: Tensor,
) -> None:
    """One update: every process adds up the gradients of its batches, all of them together are clipped and applied.

    The gradient is that of the mean over all steps that count, on whatever process they are, so the number of
    processes does not change it.

    Args:
        sums: float64 [len(SUMS)], of this process; added to.
    """
    step = ready.update.step
    head_only = step < config.head_steps
    factors = (rate_factor(step, config.head_steps, config), rate_factor(step, 0, config))
    for group, rate, factor in zip(optimizer.param_groups, (config.lr, config.head_lr), factors, strict=True):
        group["lr"] = rate * factor
    optimizer.zero_grad(set_to_none=True)
    for batch in ready.batches:
        here = batch.to(processes.device)
        with autocast(config, processes.device):
            loss = network(here.wave, [here.clusters], here.mask, loss_config(config), head_only=head_only)
        (loss.total / ready.sample_size).backward()
        part = loss.masked[0]
        # One number after another: on a GPU nothing here waits for it.
        sums[0] += part.loss.detach()
        sums[1] += part.correct
        sums[2] += part.count
        sums[3] += loss.penalty.detach() * part.count
    learning = [p for group in optimizer.param_groups[1 if head_only else 0 :] for p in group["params"]]
    processes.add_up_gradients(learning)
    norm = torch.nn.utils.clip_grad_norm_(learning, config.clip)
    optimizer.step()
    if processes.is_first:
        sums[4] += norm
        sums[5] += 1


def loss_config(config: HubertAdaptConfig) -> LossConfig:
    """What the parts of the loss count."""
    return LossConfig(1.0, config.unmasked, config.penalty)


def train(
    folder: Folder,
    network: HubertPretraining,
    optimizer: torch.optim.Optimizer,
    data: Data,
    config: HubertAdaptConfig,
    processes: Processes,
    state: State,
    tell: Tell,
) -> None:
    """Train to the last update. The state of training, the best network and the log are in the folder afterwards.

    Raises:
        UsageError: the loss is not finite; the last good state stays.
    """
    device = processes.device
    sums = torch.tensor(state.sums, dtype=torch.float64, device=device)
    if not processes.is_first:
        sums.zero_()
    curves = Curves(folder.path / EVENTS) if processes.is_first else None
    network.train()
    began = saved = told = time.monotonic()
    heard_s = 0.0
    stream = ahead(updates(data.train.lengths, config, state.step), data.train, config, processes)
    with contextlib.closing(stream), _kept_when_stopped(folder, network, optimizer, config, state, sums, processes):
        for ready in stream:
            with endings.uninterrupted():  # a stop finds the state between two updates
                train_step(network, optimizer, ready, config, processes, sums)
                state.step += 1
            heard_s += ready.seconds
            last = state.step == config.steps
            looking = state.step % config.eval_steps == 0 or last
            if looking or device.type == "cpu" or state.step % CHECK_STEPS == 0:
                _check_finite(sums, state.step, config)
                now = time.monotonic()
                if now - told > 0.2 or last:
                    told = now
                    tell(_progress(state, sums, config, heard_s / max(now - began, 1e-9)))
            if looking:
                entry = _look(network, optimizer, data, config, processes, state, sums, ready.update.epoch)
                state.history.append(entry)
                if state.best is None or _better(entry, state.history[:-1]):
                    state.best = state.step
                    if processes.is_first:
                        folder.write_by(BEST, lambda file: torch.save(plain_state(network), file))
            due = time.monotonic() - saved > 60 * config.checkpoint_minutes
            asked = processes.number == 1 or state.step % AGREE_STEPS == 0
            if looking or (asked and processes.agree(due)):
                # After the best network: if the process dies in between, this look is taken again, with its result.
                _save(folder, network, optimizer, state, sums, processes)
                saved = time.monotonic()
                if looking and processes.is_first and curves is not None:
                    folder.write_log(state.history)
                    curves.write(state.history[-1])
    if curves is not None:
        curves.close()


def restore(
    folder: Folder, network: HubertPretraining, optimizer: torch.optim.Optimizer, device: torch.device
) -> State:
    """Put everything back as the folder's checkpoint has it; at the start if there is none.

    Raises:
        CorruptError: it is damaged.
        StaleError: it is of another kind of device.
    """
    saved = folder.checkpoint()
    if saved is None:
        return State()
    if saved["device"] != device.type:
        raise StaleError(
            f"{folder.path} was begun on {saved['device']}, not on {device.type}; continue with --device "
            f"{saved['device']}"
        )
    network.load_state_dict(saved["network"])
    optimizer.load_state_dict(saved["optimizer"])
    logger.info("%s continues after update %d of its training", folder.path, saved["step"])
    return State(saved["step"], saved["history"], saved["sums"], saved["best"])


def plain_state(network: HubertPretraining) -> dict[str, Tensor]:
    """All tensors of the network and its head by name."""
    return {name: values.detach() for name, values in network.state_dict().items()}


def look(
    network: HubertPretraining, data: Data, config: HubertAdaptConfig, processes: Processes
) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    """[R, 5] per recording of ``val``: cross-entropy, right steps, steps, steps of the majority cluster, mean squares
    times steps; of hidden steps, sums, the same masks every time."""
    found = torch.zeros(len(data.val.sound), 5, dtype=torch.float64, device=processes.device)
    network.eval()
    with torch.no_grad():
        for batch in processes.own(whole_batches(data.val.lengths, config)):
            here = ready_batch(batch, data.val, config).to(processes.device)
            with autocast(config, processes.device):
                loss = network(here.wave, [here.clusters], here.mask, loss_config(config))
            part = loss.masked[0]
            guessed = (here.clusters[here.mask] == data.majority).sum()
            row = found[batch.crops[0].recording]
            for place, value in enumerate((part.loss, part.correct, part.count, guessed, loss.penalty * part.count)):
                row[place] += value
    network.train()
    return processes.added_up(found).cpu().numpy()


def summary(found: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]") -> dict[str, float | None]:
    """``loss``, ``accuracy``, ``majority`` and ``penalty`` of what ``look`` found, and ``margin_error``: the standard
    error of accuracy - majority over recordings (a ratio estimate; None for one recording)."""
    loss, correct, count, guessed, penalty = found.sum(axis=0)
    if not count:
        return dict.fromkeys(("loss", "accuracy", "majority", "penalty", "margin_error"))
    ahead_of = found[:, 1] - found[:, 3]
    off = ahead_of - (correct - guessed) / count * found[:, 2]
    number = int((found[:, 2] > 0).sum())
    error = math.sqrt(number / (number - 1) * float(np.sum(off**2))) / float(count) if number > 1 else None
    return {
        "loss": float(loss / count),
        "accuracy": float(correct / count),
        "majority": float(guessed / count),
        "penalty": float(penalty / count),
        "margin_error": error,
    }


def _look(
    network: HubertPretraining,
    optimizer: torch.optim.Optimizer,
    data: Data,
    config: HubertAdaptConfig,
    processes: Processes,
    state: State,
    sums: Tensor,
    epoch: int,
) -> dict[str, Any]:
    """An entry of the history; the sums begin anew."""
    loss, correct, count, penalty, norm, number = processes.added_up(sums.clone()).tolist()
    sums.zero_()
    entry: dict[str, Any] = {
        "step": state.step,
        "epoch": epoch,
        "lr": optimizer.param_groups[0]["lr"],
        "head_lr": optimizer.param_groups[1]["lr"],
        "loss": loss / max(count, 1),
        "accuracy": correct / max(count, 1),
        "penalty": penalty / max(count, 1),
        "grad_norm": norm / max(number, 1),
    }
    seen = summary(look(network, data, config, processes))
    return entry | {f"val_{name}": value for name, value in seen.items()}


def _better(entry: dict[str, Any], before: list[dict[str, Any]]) -> bool:
    """Whether this look's loss on ``val`` is the least so far; without that split the last one is the best."""
    if entry["val_loss"] is None:
        return True
    return bool(entry["val_loss"] < min(earlier["val_loss"] for earlier in before))


def _save(
    folder: Folder,
    network: HubertPretraining,
    optimizer: torch.optim.Optimizer,
    state: State,
    sums: Tensor,
    processes: Processes,
) -> None:
    state.sums = processes.added_up(sums.clone()).tolist()
    if processes.is_first:
        folder.save_checkpoint({
            "network": plain_state(network),
            "optimizer": optimizer.state_dict(),
            "device": processes.device.type,
            "step": state.step,
            "history": state.history,
            "sums": state.sums,
            "best": state.best,
        })


@contextlib.contextmanager
def _kept_when_stopped(
    folder: Folder,
    network: HubertPretraining,
    optimizer: torch.optim.Optimizer,
    config: HubertAdaptConfig,
    state: State,
    sums: Tensor,
    processes: Processes,
) -> Iterator[None]:
    """A process that is asked to stop writes the state first; of several, none waits for the others then."""
    try:
        yield
    except KeyboardInterrupt:
        # Where a look is due the state may be halfway through it; the one of before it is there.
        if processes.number == 1 and state.step % config.eval_steps and state.step < config.steps:
            with endings.uninterrupted():
                _save(folder, network, optimizer, state, sums, processes)
        raise


def _check_finite(sums: Tensor, step: int, config: HubertAdaptConfig) -> None:
    if not bool(torch.isfinite(sums).all()):
        lower = " ".join(f"--set adapt.hubert.{name}={getattr(config, name) / 3:.1e}" for name in ("lr", "head_lr"))
        raise UsageError(
            f"training diverged before update {step}: the loss is no number any more; begin anew in another folder "
            f"with smaller steps: {lower}"
        )


def _progress(state: State, sums: Tensor, config: HubertAdaptConfig, sound_s: float) -> Progress:
    loss, correct, count = sums[:3].tolist()
    seen = state.history[-1]["val_accuracy"] if state.history else None
    return Progress("", state.step, config.steps, loss / max(count, 1), correct / max(count, 1), sound_s, seen)
