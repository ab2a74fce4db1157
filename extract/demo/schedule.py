"""When each action unit is on: events of a few drivers (a smile, a frown, speech), with ramps, jitter and company."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from extract.au import AUS
from extract.demo.portrait import Floats

ON_S, RAMP_UP_S, RAMP_DOWN_S, JITTER_S = (0.6, 3.0), 0.28, 0.36, 0.08
PEAK = (0.55, 1.0)
LABEL_ABOVE = 0.30
"""An action unit counts as active above this activation."""
RATE_LEAST, RATE_MOST = 0.09, 0.60
SYLLABLES_HZ = (3.2, 4.6)


@dataclass(frozen=True)
class Driver:
    """Something that a face does."""

    share: float
    """Part of the time that it is done."""
    units: Mapping[int, float]
    """Action unit -> how often it takes part."""


DRIVERS: Mapping[str, Driver] = {
    "smile": Driver(0.46, {12: 1, 6: 0.85, 25: 0.4, 7: 0.3, 10: 0.25}),
    "brow": Driver(0.28, {1: 0.88, 2: 0.85}),
    "inner": Driver(0.06, {1: 1}),
    "frown": Driver(0.26, {4: 1, 24: 0.6, 7: 0.45}),
    "sad": Driver(0.34, {15: 1, 1: 0.3, 4: 0.3}),
    "tight": Driver(0.38, {23: 1}),
    "press": Driver(0.18, {24: 1}),
    "lip": Driver(0.13, {10: 1}),
    "squint": Driver(0.12, {7: 1}),
    "speech": Driver(0.46, {25: 1, 26: 0.7, 10: 0.3}),
}
_ROW = {unit: row for row, unit in enumerate(AUS)}


@dataclass(frozen=True)
class Burst:
    """A stretch of speech."""

    start_s: float
    end_s: float
    jaw: bool
    """The jaw drops (AU26)."""


@dataclass(frozen=True)
class Schedule:
    """One clip."""

    activations: Floats
    """[T, 12] in [0, 1]."""
    bursts: tuple[Burst, ...]

    @property
    def labels(self) -> NDArray[np.int8]:
        """[T, 12]: 1 where the activation is above LABEL_ABOVE."""
        return (self.activations > LABEL_ABOVE).astype(np.int8)


def draw_schedules(num_clips: int, pts_s: Floats, random: np.random.Generator) -> list[Schedule]:
    """Clips of one split, drawn anew until every action unit is on in RATE_LEAST to RATE_MOST of their frames."""
    for _ in range(2000):
        drawn = [draw_schedule(pts_s, random) for _ in range(num_clips)]
        rates = np.concatenate([schedule.labels for schedule in drawn]).mean(axis=0)
        if rates.min() >= RATE_LEAST and rates.max() <= RATE_MOST:
            return drawn
    raise RuntimeError(f"no schedule of {num_clips} clips has every action unit often enough")


def draw_schedule(pts_s: Floats, random: np.random.Generator) -> Schedule:
    """One clip; ``pts_s`` [T] from 0 on."""
    activations = np.zeros((len(pts_s), len(AUS)))
    bursts = []
    for name, driver in DRIVERS.items():
        for start_s, end_s in _events(float(pts_s[-1]), driver.share, random):
            joined = [unit for unit, chance in driver.units.items() if random.random() < chance]
            if name == "speech":
                bursts.append(Burst(start_s, end_s, 26 in joined))
            rate = random.uniform(*SYLLABLES_HZ)
            for unit in joined:
                begin, end = (time + random.normal(0, JITTER_S) for time in (start_s, end_s))
                level = random.uniform(*PEAK) * _envelope(pts_s, begin, end)
                if name == "speech" and unit in {25, 26}:
                    level *= 0.72 + 0.28 * np.sin(2 * np.pi * rate * (pts_s - start_s))
                row = _ROW[unit]
                activations[:, row] = np.maximum(activations[:, row], level)
    open_mouth = np.maximum(activations[:, _ROW[25]], 0.9 * activations[:, _ROW[26]])
    activations[:, _ROW[25]] = open_mouth
    for unit in (23, 24):  # lips that are apart are neither tightened nor pressed
        activations[:, _ROW[unit]] *= 1 - np.clip(open_mouth, 0, 1)
    activations[:, _ROW[15]] *= 1 - 0.8 * activations[:, _ROW[12]]
    return Schedule(np.clip(activations, 0, 1), tuple(bursts))


def _events(duration_s: float, share: float, random: np.random.Generator) -> list[tuple[float, float]]:
    """(start, end) of a renewal process that is on for ``share`` of the time; it was running before the clip began."""
    mean_on = sum(ON_S) / 2
    mean_off = mean_on * (1 - share) / share
    at = -random.uniform(0, 3 * (mean_on + mean_off))
    events = []
    while at < duration_s:
        at += random.exponential(mean_off)
        length = random.uniform(*ON_S)
        if at < duration_s and at + length > 0:
            events.append((at, at + length))
        at += length
    return events


def _envelope(pts_s: Floats, start_s: float, end_s: float) -> Floats:
    """0 to 1 and back, smoothly (3 x^2 - 2 x^3)."""
    rising = np.clip((pts_s - start_s) / RAMP_UP_S, 0, 1)
    falling = np.clip((end_s + RAMP_DOWN_S - pts_s) / RAMP_DOWN_S, 0, 1)
    both = np.minimum(rising, falling)
    return np.asarray(both * both * (3 - 2 * both))
