"""Continuing a run: its config, the state that its checkpoint holds, and what must be as it was."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from extract.config import Remembered
from extract.errors import StaleError
from extract.store import Store
from fusion.config import FusionConfig, load_fusion_config
from fusion.epochs import History
from fusion.model import FusionModel
from fusion.runs import Run
from fusion.selection import FeatureSource, first_difference
from fusion.stepping import restore_optimizer

logger = logging.getLogger("fusion")


@dataclass
class State:
    """Where training is; with the model, the optimiser and the random state it determines the rest."""

    history: History = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    """Of the steps of the epoch that is under way."""
    steps: int = 0
    """In all epochs."""


def choose_config(run: Run, store: Store, config: str | FusionConfig | None, overrides: Sequence[str]) -> FusionConfig:
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


def state_of(
    model: FusionModel,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    state: State,
    clips: Mapping[str, tuple[str, ...]],
    sources: Mapping[str, FeatureSource],
) -> dict[str, Any]:
    """Everything that the rest of training depends on."""
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
        "clips": {split: list(names) for split, names in clips.items()},
        "recipes": {instance: dict(source.recipe) for instance, source in sources.items()},
        "fingerprints": {instance: dict(source.fingerprints) for instance, source in sources.items()},
    }


def resume(
    run: Run,
    clips: Mapping[str, tuple[str, ...]],
    sources: Mapping[str, FeatureSource],
    model: FusionModel,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> State:
    """Restore everything from the checkpoint and return where training was; at the start if there is no checkpoint.

    Raises:
        StaleError: features, labels or the kind of device differ from those that the run was begun with.
    """
    saved = run.checkpoint()
    if saved is None:
        return State()
    now = state_of(model, optimizer, device, State(), clips, sources)
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
