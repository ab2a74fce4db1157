"""Where a recording may hold speech, by energy alone: what is certainly none need not be sent, paid for or guessed at.

A frame of 10 ms counts as voice where it is louder than the quietest moment around it, the noise floor, and louder than
what a microphone hears of an empty room. Limits of a rule that knows nothing but loudness:

* steady noise or a steady tone, however loud, is no voice, nor is speech less than ``ABOVE_FLOOR_DB`` above it;
* music, laughter, a slammed door are voice: the recogniser's own guards (``words.py``) say that nothing is said there;
* in less than ``LEAST_FOR_FLOOR_S`` there is no telling what is steady: all that is loud enough is voice;
* speech below ``LEAST_DB`` is lost: raise the level of such recordings, or switch the gate off.
"""

import math
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

HOPS_PER_S = 100
"""Frames of 10 ms, side by side."""
ABOVE_FLOOR_DB = 4.0
"""White noise, smoothed over 50 ms, stays within 2 dB of its floor; the vowels of speech rise 20 dB and more."""
LEAST_DB = -65.0
"""Mean square, relative to a full-scale square wave. Quiet speech through a camera's microphone has -50."""
FLOOR_S = 10.0
"""The floor is the quietest 50 ms of so many seconds around: fluent speech has such moments several times a second."""
LEAST_FOR_FLOOR_S = 3.0
SMOOTH_FRAMES = 5
SHORTEST_S = 0.08
"""A click is shorter, of which smoothing makes 0.06 s; the shortest syllables take 0.1 s."""
LOWEST_HZ = 80.0
"""Mains hum and wind lie below, the voices of men begin there."""
CHUNK_S = 60
QUIETEST_DB = -120.0


class Samples(Protocol):
    """A recording, in memory or read slice by slice: float32 [n] in [-1, 1]."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice) -> "Tensor": ...


def levels_db(samples: Samples, hz: int) -> NDArray[np.float32]:
    """Loudness of every 10 ms, smoothed over 50 ms: [ceil(n / hop)] dB, ``QUIETEST_DB`` at least.

    The samples are read in chunks; the values are those of one chunk.
    """
    from scipy import ndimage, signal

    hop, chunk = hz // HOPS_PER_S, CHUNK_S * hz
    sections = signal.butter(2, LOWEST_HZ, "highpass", fs=hz, output="sos")
    state = np.zeros((len(sections), 2))
    power = np.zeros(-(-len(samples) // hop))  # [F]
    for start in range(0, len(samples), chunk):
        part = samples[start : start + chunk].detach().cpu().numpy()
        filtered, state = signal.sosfilt(sections, part, zi=state)
        padded = np.zeros(-(-len(part) // hop) * hop)
        padded[: len(part)] = filtered
        frames = padded.reshape(-1, hop)
        power[start // hop : start // hop + len(frames)] = (frames**2).mean(axis=1)
    smooth = ndimage.uniform_filter1d(power, SMOOTH_FRAMES, mode="nearest")
    loudness: NDArray[Any] = 10 * np.log10(np.maximum(smooth, 10 ** (QUIETEST_DB / 10)))
    return loudness.astype(np.float32)


def voiced(levels: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which frames of ``levels_db`` may be speech, [F]; without any margin."""
    from scipy import ndimage

    if not len(levels):
        return np.zeros(0, dtype=bool)
    threshold = np.full(len(levels), LEAST_DB, dtype=np.float32)
    if len(levels) >= LEAST_FOR_FLOOR_S * HOPS_PER_S:
        around = int(FLOOR_S * HOPS_PER_S) + 1
        floor = ndimage.minimum_filter1d(levels, around, mode="nearest")
        threshold = np.maximum(threshold, floor + ABOVE_FLOOR_DB)
    shortest = math.ceil(SHORTEST_S * HOPS_PER_S)
    loud: NDArray[np.bool_] = levels > threshold
    lasting: NDArray[np.bool_] = ndimage.binary_opening(loud, np.ones(shortest, dtype=bool))
    return lasting
