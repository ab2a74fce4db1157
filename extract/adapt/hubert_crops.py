"""Which pieces of which recordings a step trains on: drawn by (seed, epoch), so that any step can be had again."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from extract.adapt.hubert_config import HubertAdaptConfig

HOP, SEEN, HZ = 320, 400, 16_000
"""Samples from step to step of all HuBERTs, those that a step sees, and per second."""
TRIMMED = 0.9
"""Crops that go together are cut to the shortest of them, which has at least this share of the longest."""
LOOKING = 1 << 32
"""In the place of an epoch's number, in the seeds of the masks that ``val`` is looked at with."""


@dataclass(frozen=True)
class Crop:
    """Consecutive steps of a recording. It begins at a multiple of the hop: its steps are the recording's own."""

    recording: int
    first: int
    steps: int

    @property
    def samples(self) -> slice:
        """What the network hears of the recording."""
        start = HOP * self.first
        return slice(start, start + HOP * (self.steps - 1) + SEEN)


@dataclass(frozen=True)
class MicroBatch:
    """Crops of equal length that a device takes at once."""

    key: tuple[int, ...]
    """Seeds its masks."""
    crops: tuple[Crop, ...]

    @property
    def steps(self) -> int:
        """Of each crop."""
        return self.crops[0].steps


@dataclass(frozen=True)
class Update:
    """What one update of the weights is computed from."""

    step: int
    """From 0."""
    epoch: int
    batches: tuple[MicroBatch, ...]


def steps_in(seconds: float) -> int:
    """Whole steps in so many seconds: 49 in the first."""
    return max(0, (round(seconds * HZ) - SEEN) // HOP + 1)


def updates(lengths: Sequence[int], config: HubertAdaptConfig, first: int = 0) -> Iterator[Update]:
    """All updates from number ``first`` on.

    Args:
        lengths: steps of each recording.
    """
    step, epoch = 0, 0
    while step < config.steps:
        batches = epoch_batches(lengths, config, epoch)
        total = sum(batch.steps * len(batch.crops) for batch in batches)
        parts = max(1, round(total / steps_in(config.batch_s)))
        for part in np.array_split(np.arange(len(batches)), min(parts, len(batches))):
            if first <= step < config.steps:
                yield Update(step, epoch, tuple(batches[i] for i in part))
            step += 1
        epoch += 1


def epoch_batches(lengths: Sequence[int], config: HubertAdaptConfig, epoch: int) -> list[MicroBatch]:
    """An epoch: every recording cut at other places than in the last one, the pieces batched by length, shuffled.

    Pieces are at most ``crop_s`` long; the first begins with the recording, and ends anywhere. Those shorter than
    ``least_s`` are left out of this epoch.
    """
    random = np.random.default_rng([config.seed, epoch])
    most, least = steps_in(config.crop_s), steps_in(config.least_s)
    crops = []
    for recording, steps in enumerate(lengths):
        first_end = int(random.integers(1, most + 1)) if steps > most else steps
        edges = [0, *range(first_end, steps, most), steps]
        pieces = [(start, stop - start) for start, stop in itertools.pairwise(edges)]
        crops += [Crop(recording, start, length) for start, length in pieces if length >= least]
    order = random.permutation(len(crops))
    by_length = sorted((crops[i] for i in order), key=lambda crop: -crop.steps)
    groups = _grouped(by_length, steps_in(config.device_s))
    batches: list[MicroBatch] = []
    for number in random.permutation(len(groups)):
        fewest = min(crop.steps for crop in groups[number])
        trimmed = [
            Crop(crop.recording, crop.first + int(random.integers(crop.steps - fewest + 1)), fewest)
            for crop in groups[number]
        ]
        batches.append(MicroBatch((config.seed, epoch, len(batches)), tuple(trimmed)))
    return batches


def whole_batches(lengths: Sequence[int], config: HubertAdaptConfig) -> list[MicroBatch]:
    """Every recording once, cut into equal pieces, each recording's pieces together: the same at every look.

    What is left over at a recording's end, less than a piece, is not looked at.
    """
    most, least, held = steps_in(config.crop_s), steps_in(config.least_s), steps_in(config.device_s)
    found = []
    for recording, steps in enumerate(lengths):
        if steps < least:
            continue
        number = max(1, steps // most)
        length = min(most, steps)
        crops = [Crop(recording, i * length, length) for i in range(number)]
        rows = max(1, held // length)
        for start in range(0, number, rows):
            found.append(MicroBatch((config.seed, LOOKING, recording, start), tuple(crops[start : start + rows])))
    return found


def _grouped(crops: Sequence[Crop], held: int) -> list[list[Crop]]:
    """Crops, longest first, in groups of similar length that are at most ``held`` steps together once trimmed."""
    groups: list[list[Crop]] = []
    for crop in crops:
        group = groups[-1] if groups else []
        fits = group and crop.steps * (len(group) + 1) <= held and crop.steps >= TRIMMED * group[0].steps
        if fits:
            group.append(crop)
        else:
            groups.append([crop])
    return groups
