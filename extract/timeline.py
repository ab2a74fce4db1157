"""Clocks and windows: all time arithmetic of the project.

Times are seconds on the clip's presentation clock. Comparisons are made on whole nanoseconds (int64, 292 years), so
that "centre in [t - 2, t + 2)" is decided exactly: every clock here (25 or 29.97 fps, 90 kHz, 16 kHz, 20 ms steps)
that can meet a window's edge meets it on a whole nanosecond, where a sum of float64 would miss it by one part in 1e16.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

NS_PER_S = 1_000_000_000


@dataclass(frozen=True)
class FrameClock:
    """One row per video frame; row t happens at ``frames/pts_s[t]``."""

    axis: ClassVar[str] = "frame"
    """Name of the rows' axis in the store."""


@dataclass(frozen=True)
class Regular:
    """Steps every ``hop_s`` seconds, each seeing ``window_s`` seconds; step 0 begins at the stream's own start.

    ::

        start_s      hop_s
        |<-------------->|
        [==== window_s ====)          step 0, centre start_s + window_s / 2
                         [==== window_s ====)   step 1
    """

    hop_s: Fraction
    window_s: Fraction
    axis: ClassVar[str] = "step"

    def num_steps(self, duration_s: Fraction) -> int:
        """Number of whole windows in a recording; 0 if it is shorter than one window."""
        return max(0, (duration_s - self.window_s) // self.hop_s + 1)

    def centres_s(self, num_steps: int, start_s: float) -> NDArray[np.float64]:
        """Middle of each step on the clip's clock, [S] seconds."""
        first, hop = float(self.window_s / 2), self.hop_s
        # One division per step: adding up hops would drift.
        return start_s + first + np.arange(num_steps) * hop.numerator / hop.denominator


@dataclass(frozen=True)
class Table:
    """Rows without a regular time: words, tokens."""

    axis: str


Clock = FrameClock | Regular | Table
FRAMES = FrameClock()


def nanoseconds(seconds: ArrayLike) -> NDArray[np.int64]:
    """Seconds to the nearest whole nanosecond."""
    return np.rint(np.asarray(seconds, dtype=np.float64) * NS_PER_S).astype(np.int64)


def centred_windows(centre_s: ArrayLike, at_s: ArrayLike, before_s: float, after_s: float) -> NDArray[np.int64]:
    """Steps whose centre lies in [t - before_s, t + after_s), for every t of ``at_s``: [T, 2] half-open step ranges.

    ``centre_s`` [S] must increase. A window is cut at the ends of the recording; it never wraps and is never padded.
    An empty range (start == stop) means that the recording says nothing about that time. (The paper's public code
    let the start go negative in the first two seconds, where Python's slicing wraps: tests/test_usc_defects.py.)
    """
    centres, at = nanoseconds(centre_s), nanoseconds(at_s)
    if centres.size and (np.diff(centres) <= 0).any():
        raise ValueError("centre_s must increase")
    start = np.searchsorted(centres, at - nanoseconds(before_s), side="left")
    stop = np.searchsorted(centres, at + nanoseconds(after_s), side="left")
    return np.stack([start, stop], axis=-1).astype(np.int64)


def words_met(
    start_s: ArrayLike, end_s: ArrayLike, at_s: ArrayLike, before_s: float, after_s: float
) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """The words whose span [start, end] meets [t - before_s, t + after_s], both closed, for every t of ``at_s``.

    Words [W] may overlap and end in any order; ``start_s`` must not decrease. Times [T] in any order.

    Returns:
        The distinct word sets, each as increasing indices, in the order in which they first occur, and [T] which of
        them is each frame's. A set changes only when a word enters or leaves: about two sets per word, not one per
        frame.
    """
    (starts, ends), at = _spans(start_s, end_s), nanoseconds(at_s)
    by_end = np.argsort(ends, kind="stable")
    rank = np.empty(len(ends), dtype=np.int64)  # of each word among the ends
    rank[by_end] = np.arange(len(ends))
    # A word that is over by then has begun by then: so two counts, of begun and of ended words, fix the set.
    begun = np.searchsorted(starts, at + nanoseconds(after_s), side="right")
    ended = np.searchsorted(ends[by_end], at - nanoseconds(before_s), side="left")
    pairs, first, which = np.unique(np.stack([begun, ended], axis=1), axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    lowest = np.minimum.accumulate(by_end[::-1])[::-1]  # first word that is not over once k have ended
    sets = []
    for count, over in pairs[order].tolist():
        low = int(lowest[over]) if over < len(lowest) else count
        sets.append(low + np.flatnonzero(rank[low:count] >= over))
    return sets, place[which.reshape(-1)]


def utterances(start_s: ArrayLike, end_s: ArrayLike, pause_s: float) -> NDArray[np.int64]:
    """Words [W] cut at pauses: [U, 2] half-open word ranges, one after another.

    An utterance begins with the first word, and with each word that starts more than ``pause_s`` after all words before
    it have ended. Words may overlap and end in any order; ``start_s`` must not decrease.
    """
    starts, ends = _spans(start_s, end_s)
    if not starts.size:
        return np.empty((0, 2), dtype=np.int64)
    silence = starts[1:] - np.maximum.accumulate(ends)[:-1]
    firsts = np.flatnonzero(silence > nanoseconds(pause_s)) + 1
    return np.stack([[0, *firsts], [*firsts, len(starts)]], axis=-1).astype(np.int64)


def _spans(start_s: ArrayLike, end_s: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Starts and ends of words [W] in nanoseconds, checked."""
    starts, ends = nanoseconds(start_s), nanoseconds(end_s)
    if starts.size and ((np.diff(starts) < 0).any() or (ends < starts).any()):
        raise ValueError("start_s must not decrease, nor a word end before it starts")
    return starts, ends


def neighbours(num_frames: int, before: int, after: int) -> NDArray[np.int64]:
    """Rows t - before .. t + after of every frame t, cut at the clip's ends: [T, 2] half-open row ranges."""
    t = np.arange(num_frames, dtype=np.int64)
    return np.stack([np.maximum(t - before, 0), np.minimum(t + after + 1, num_frames)], axis=-1)


def spread(pts_s: ArrayLike, frames: int, span_s: float) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """``frames`` frames spread evenly over [t - span_s, t + span_s] around every frame t, each the nearest in time.

    A moment outside the recording (by more than half a frame, at its ends) has no frame. ``pts_s`` [T] must increase.

    Returns:
        [T, frames] frame numbers and [T, frames] whether there is one; frame numbers increase along a row.
    """
    times = nanoseconds(pts_s)
    if not len(times):
        return np.empty((0, frames), dtype=np.int64), np.empty((0, frames), dtype=np.bool_)
    wanted = times[:, None] + nanoseconds(np.linspace(-span_s, span_s, frames))  # [T, frames]
    right = np.searchsorted(times, wanted).clip(1, max(1, len(times) - 1))
    left = right - 1
    right = np.minimum(right, len(times) - 1)
    nearest = np.where(wanted - times[left] <= times[right] - wanted, left, right)
    half = int(np.median(np.diff(times))) // 2 if len(times) > 1 else 0
    inside = (wanted >= times[0] - half) & (wanted <= times[-1] + half)
    return nearest, inside
