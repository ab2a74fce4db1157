"""What a network predicts: action units, and beside them expressions, valence and arousal, AU intensities.

The outputs of all tasks stand side by side in one tensor [B, W]. Every task is masked on its own: frames without its
label add nothing to its loss, and nothing to the gradient of the others.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from extract.au import AUS, LOWEST_AFFECT, LOWEST_INTENSITY, au_name
from extract.au.agreement import agreement
from extract.au.losses import (
    POS_WEIGHT,
    SOFT_MARGIN_WEIGHT,
    AsymmetricLoss,
    ConcordanceLoss,
    ExpressionLoss,
    SquaredErrorLoss,
    TwoPartLoss,
)
from extract.au.metrics import confusion, expression_confusion
from extract.au.weighting import auto_pos_weight, auto_weight
from extract.errors import ConfigError
from fusion.config import FusionConfig, LossConfig

logger = logging.getLogger("fusion")


@dataclass(frozen=True)
class Task:
    """One task of a network."""

    name: str
    """``au``, ``expr``, ``va`` or ``intensity``."""
    columns: slice
    """Its outputs."""
    weight: float
    """Of its loss."""

    @property
    def width(self) -> int:
        """Number of its outputs."""
        return self.columns.stop - self.columns.start  # type: ignore[no-any-return]


def tasks_of(config: FusionConfig, aus: Sequence[int]) -> tuple[Task, ...]:
    """The tasks of a config, in its order, for labels of ``aus``."""
    widths = {"au": len(aus), "expr": config.data.expressions, "va": 2, "intensity": len(aus)}
    found, start = [], 0
    for name, weight in config.tasks.items():
        found.append(Task(name, slice(start, start + widths[name]), weight))
        start += widths[name]
    return tuple(found)


def num_outputs(tasks: Sequence[Task]) -> int:
    """W."""
    return sum(task.width for task in tasks)


class Objective(nn.Module):
    """The weighted sum of the losses of all tasks.

    Args:
        tasks: of the network.
        config: of the loss of the action units.
        aus: their numbers.
        labels: [N, A] of the training split, for weights ``auto``.

    Raises:
        ConfigError: weights do not fit the AUs.
    """

    def __init__(
        self, tasks: Sequence[Task], config: LossConfig, aus: Sequence[int], labels: NDArray[np.int8] | None = None
    ) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.losses = nn.ModuleDict()
        for task in tasks:
            match task.name:
                case "au":
                    self.losses["au"] = _au_loss(config, aus, labels)
                case "expr":
                    self.losses["expr"] = ExpressionLoss()
                case "va":
                    self.losses["va"] = ConcordanceLoss()
                case _:
                    self.losses[task.name] = SquaredErrorLoss()

    def forward(self, outputs: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """A scalar, for ``outputs`` [B, W] and task -> labels."""
        parts = [
            task.weight * self.losses[task.name](outputs[:, task.columns], targets[task.name]) for task in self.tasks
        ]
        return torch.stack(parts).sum()


def _au_loss(config: LossConfig, aus: Sequence[int], labels: NDArray[np.int8] | None) -> nn.Module:
    if config.kind == "asymmetric":
        return AsymmetricLoss(len(aus), config.gamma_neg, config.gamma_pos, config.shift, config.label_smoothing)
    return TwoPartLoss(
        _weights("pos_weight", config.pos_weight, POS_WEIGHT, aus, labels),
        _weights("soft_margin_weight", config.soft_margin_weight, SOFT_MARGIN_WEIGHT, aus, labels),
        config.label_smoothing,
    )


def _weights(
    name: str,
    wanted: str | tuple[float, ...],
    paper: tuple[float, ...],
    aus: Sequence[int],
    labels: NDArray[np.int8] | None,
) -> tuple[float, ...]:
    """One weight per AU."""
    if wanted == "none":
        return (1.0,) * len(aus)
    if wanted == "auto":
        if labels is None:
            raise ConfigError(f"loss.{name}: auto needs the labels of the training split")
        found = auto_pos_weight(labels) if name == "pos_weight" else auto_weight(labels)
        if found.one_class:
            names = ", ".join(au_name(aus[column]) for column in found.one_class)
            logger.warning("split train: %s always or never occurs; its weight in the loss is 1", names)
        logger.info("loss.%s: %s", name, ", ".join(f"{weight:.2f}" for weight in found.weights))
        return found.weights
    if wanted == "paper":
        if tuple(aus) != AUS:
            raise ConfigError(
                f"loss.{name}: the paper's weights are for AUs {', '.join(map(str, AUS))}, the labels hold "
                f"{', '.join(map(str, aus))}; use --set loss.{name}=auto, or one number per AU"
            )
        return paper
    if not isinstance(wanted, tuple) or len(wanted) != len(aus):
        raise ConfigError(f"loss.{name}: {len(wanted)} weights, the labels hold {len(aus)} AUs")
    return wanted


def main_scores(
    tasks: Sequence[Task], outputs: NDArray[np.float32], targets: Mapping[str, NDArray[Any]]
) -> dict[str, float]:
    """Task -> the number that it is judged by, for ``outputs`` [N, W]; NaN where nothing is annotated.

    ``au``: mean F1 at logit >= 0; ``expr``: macro F1; ``va``: mean CCC of valence and arousal; ``intensity``: mean
    ICC(3,1). The mean of the tasks decides which epoch is the best.
    """
    found = {}
    for task in tasks:
        values, labels = outputs[:, task.columns], targets[task.name]
        match task.name:
            case "au":
                counts = confusion(labels, values >= 0)
                scores = np.where(counts.annotated > 0, counts.f1, np.nan)
            case "expr":
                classes = expression_confusion(labels, values.argmax(axis=1), task.width)
                scores = classes.f1 if classes.annotated.any() else np.array([np.nan])
            case "va":
                found_va = agreement(labels, values, LOWEST_AFFECT)
                scores = np.where(found_va.count > 0, found_va.ccc, np.nan)
            case _:
                found_intensity = agreement(labels, values, LOWEST_INTENSITY)
                scores = np.where(found_intensity.count > 0, found_intensity.icc, np.nan)
        known = scores[~np.isnan(scores)]
        found[task.name] = float(known.mean()) if len(known) else float("nan")
    return found
