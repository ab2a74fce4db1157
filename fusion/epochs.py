"""What an epoch is: which frames, in which order, and when training is over."""

import logging
import math
from typing import Any

import numpy as np

from extract.au.balance import ml_ros, segments, strided
from extract.errors import UsageError
from fusion.config import FusionConfig, TrainingConfig
from fusion.data import Ints, Samples

logger = logging.getLogger("fusion")

History = list[dict[str, Any]]
"""One entry per finished epoch: ``epoch`` from 1, ``steps`` in all, ``loss``, ``val_loss``, ``val_score`` (the mean of
the tasks' scores, None without that split), ``val_au`` and so on."""


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
