"""From an update's crops to tensors: read, scaled, labelled and masked ahead of the device, in a thread."""

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from extract.adapt.hubert_config import HubertAdaptConfig
from extract.adapt.hubert_crops import HOP, HZ, MicroBatch, Update
from extract.adapt.hubert_loss import label_range, of_steps
from extract.adapt.hubert_masks import draw_masks
from extract.adapt.hubert_sound import Recording
from extract.adapt.hubert_targets import Labels
from extract.adapt.processes import Processes

STEP_HZ = HZ // HOP  # 50


@dataclass(frozen=True)
class Recordings:
    """Sound and clusters of the recordings of a split."""

    sound: Sequence[Recording]
    labels: Sequence[Labels]
    label_hz: int
    """Of the labels: 50 is one per step, 100 two."""

    @property
    def lengths(self) -> list[int]:
        """Steps of each."""
        return [one.heard.steps for one in self.sound]


@dataclass(frozen=True)
class ReadyBatch:
    """What a device takes at once."""

    wave: Tensor
    """[B, n]."""
    clusters: Tensor
    """int64 [B, S]."""
    mask: Tensor
    """bool [B, S], on the CPU as well as the rest until ``to``."""

    def to(self, device: torch.device) -> "ReadyBatch":
        """On the device, without waiting for it."""
        return ReadyBatch(*(tensor.to(device, non_blocking=True) for tensor in (self.wave, self.clusters, self.mask)))


@dataclass(frozen=True)
class ReadyUpdate:
    """An update, as one process computes its part of it."""

    update: Update
    batches: tuple[ReadyBatch, ...]
    """This process's own."""
    sample_size: int
    """Steps that count, of all processes' batches."""
    seconds: float
    """Of sound, of all processes' batches."""


def masks_of(batch: MicroBatch, config: HubertAdaptConfig) -> "np.ndarray[tuple[int, ...], np.dtype[np.bool_]]":
    """bool [B, S]; by the batch's key alone, whoever asks."""
    random = np.random.default_rng(batch.key)
    return draw_masks(len(batch.crops), batch.steps, random, share=config.mask_share, span=config.mask_steps)


def ready_batch(batch: MicroBatch, data: Recordings, config: HubertAdaptConfig, *, pinned: bool = False) -> ReadyBatch:
    """Sound, clusters and masks of a batch's crops."""
    wave = torch.stack([data.sound[crop.recording][crop.samples] for crop in batch.crops])
    clusters = []
    for crop in batch.crops:
        piece = crop.samples
        start, stop = label_range(piece.start, piece.stop - piece.start, data.label_hz, HZ)
        labels = torch.from_numpy(data.labels[crop.recording][start:stop])
        clusters.append(of_steps(labels, crop.steps, data.label_hz / STEP_HZ))
    made = ReadyBatch(wave, torch.stack(clusters).long(), torch.from_numpy(masks_of(batch, config)))
    if not pinned:
        return made
    return ReadyBatch(made.wave.pin_memory(), made.clusters.pin_memory(), made.mask.pin_memory())


def ready_update(update: Update, data: Recordings, config: HubertAdaptConfig, processes: Processes) -> ReadyUpdate:
    """An update's sound as far as it is this process's, and what all of it counts."""
    counted = 0
    for batch in update.batches:
        hidden = masks_of(batch, config)
        counted += int(hidden.sum()) if not config.unmasked else hidden.size
    pinned = processes.device.type == "cuda"
    own = tuple(ready_batch(batch, data, config, pinned=pinned) for batch in processes.own(update.batches))
    seconds = sum(len(batch.crops) * batch.steps for batch in update.batches) / STEP_HZ
    return ReadyUpdate(update, own, counted, seconds)


def ahead(
    updates: Iterable[Update], data: Recordings, config: HubertAdaptConfig, processes: Processes
) -> Generator[ReadyUpdate, None, None]:
    """The updates in order, ``config.ahead`` of them made ready by a thread while earlier ones are computed."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="sound")
    waiting: deque[Future[ReadyUpdate]] = deque()
    try:
        for update in updates:
            waiting.append(pool.submit(ready_update, update, data, config, processes))
            if len(waiting) > config.ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
