"""Mean of the logits of consecutive frames of one clip: temporal smoothing, which the papers call label smoothing.

A window of k frames, k even, is i - k/2 to i + k/2 - 1 (k = 6: i-3 to i+2); k odd is centred. In seconds it is the
frames with t in [t_i - s/2, t_i + s/2). Both are cut at the ends of the clip and divided by the frames that are there::

    clip A            clip B
    0  1  2  3  4  |  5  6  7          k = 6
    [========]     |                   window of 0: rows 0 to 2
       [==============]                window of 3: rows 0 to 4, not 5
                   |  [=======]        window of 5: rows 5 to 7
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from extract.errors import ConfigError
from extract.names import suggestion
from extract.timeline import centred_windows, nanoseconds
from fusion.post_config import NoFace, PostConfig
from fusion.scores import FrameScores

Floats: TypeAlias = NDArray[np.float64]
Ranges: TypeAlias = NDArray[np.int64]
Unit: TypeAlias = Literal["frames", "seconds"]


@dataclass(frozen=True)
class Windows:
    """How long each AU's window is."""

    sizes: tuple[float, ...]
    """[A] frames (whole numbers) or seconds, in the order of the AUs."""
    unit: Unit = "frames"

    @classmethod
    def of(cls, config: PostConfig, au_names: Sequence[str]) -> "Windows":
        """The windows that a config names for these AUs.

        Raises:
            ConfigError: ``smooth_by_au`` names another AU.
        """
        settled = config.resolved()
        for name in settled.smooth_by_au:
            if name not in au_names:
                raise ConfigError(
                    f"post.smooth_by_au: {name} is none of the run's action units; {suggestion(name, au_names)}"
                )
        unit: Unit = "frames" if settled.smooth_s is None else "seconds"
        base = settled.smooth if settled.smooth_s is None else settled.smooth_s
        return cls(tuple(float(settled.smooth_by_au.get(name, base or 1)) for name in au_names), unit)


def smoothed(scores: FrameScores, windows: Windows, no_face: NoFace = "network") -> Floats:
    """The logits of ``scores``, each the mean of its clip's window around it: [N, A] float64.

    No value depends on another clip, not by a bit. A window holds at least its own frame.

    Args:
        no_face: see ``PostConfig.no_face``.

    Raises:
        ValueError: another number of windows than AUs, a window that is none, or frames that are not in order.
    """
    if len(windows.sizes) != len(scores.aus):
        raise ValueError(f"{len(windows.sizes)} windows for {len(scores.aus)} AUs: expected one each")
    logits = scores.logits.astype(np.float64)
    if no_face == "interpolate":
        logits = interpolated(logits, scores.clip, scores.pts_s, scores.face)
    takes_part = scores.face if no_face == "mask" else np.ones(len(scores), dtype=np.bool_)
    found = np.empty_like(logits)
    sizes = np.array(windows.sizes)
    for size in dict.fromkeys(windows.sizes):
        columns = np.flatnonzero(sizes == size)
        if windows.unit == "frames":
            ranges = frame_ranges(scores.clip, size)
        else:
            ranges = second_ranges(scores.clip, scores.pts_s, size)
        found[:, columns] = window_means(logits[:, columns], ranges, takes_part)
    return found


def frame_ranges(clip: ArrayLike, size: float) -> Ranges:
    """Rows of every frame's window of ``size`` frames: [N, 2], half-open.

    ``clip`` [N] names each row's clip; rows of one clip stand together.

    Raises:
        ValueError: ``size`` is no whole number from 1, or a clip's rows do not stand together.
    """
    if size < 1 or size != int(size):
        raise ValueError(f"a window of {size} frames: expected a whole number from 1")
    bounds = clip_bounds(clip)  # [C + 1]
    lengths = np.diff(bounds)
    first, end = np.repeat(bounds[:-1], lengths), np.repeat(bounds[1:], lengths)  # [N] each
    rows = np.arange(bounds[-1])
    before = int(size) // 2
    return np.stack([np.maximum(rows - before, first), np.minimum(rows - before + int(size), end)], axis=1)


def second_ranges(clip: ArrayLike, pts_s: ArrayLike, size_s: float) -> Ranges:
    """Rows with a time in [t - size_s / 2, t + size_s / 2) of every frame's clip: [N, 2], half-open.

    Decided on whole nanoseconds, so that 25 and 30 fps agree wherever both have a frame at a window's edge.

    Raises:
        ValueError: ``size_s`` is below two nanoseconds, the times of a clip do not increase, or its rows do not stand
            together.
    """
    half_s = size_s / 2
    if nanoseconds(half_s) < 1:
        raise ValueError(f"a window of {size_s} s: expected at least two nanoseconds")
    bounds, times = clip_bounds(clip), np.asarray(pts_s, dtype=np.float64)
    found = np.empty((len(times), 2), dtype=np.int64)
    for first, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        at = times[first:end]
        found[first:end] = first + centred_windows(at, at, half_s, half_s)
    return found


def window_means(values: Floats, ranges: Ranges, takes_part: NDArray[np.bool_]) -> Floats:
    """Mean over the rows of each range that take part, [N, A]; a row that takes no part keeps its own value.

    Args:
        values: [N, A].
        ranges: [N, 2] rows, half-open, each with its own row in it.
        takes_part: [N].
    """
    if not len(values):
        return values.copy()
    # Sums of the slices themselves. Differences of one running sum would carry the rounding of a million frames, and
    # a clip's values would depend on the clips before it.
    edges = ranges.ravel()
    counted = np.append(takes_part, False).astype(np.float64)  # a row behind the last, for ranges that end there
    counts = np.add.reduceat(counted, edges)[::2]
    padded = np.concatenate([values, np.zeros_like(values[:1])]) * counted[:, None]
    sums = np.add.reduceat(padded, edges, axis=0)[::2]
    means: Floats = np.divide(sums, counts[:, None], out=values.copy(), where=takes_part[:, None])
    return means


def interpolated(values: Floats, clip: ArrayLike, pts_s: Floats, known: NDArray[np.bool_]) -> Floats:
    """``values`` [N, A] with the rows that are not ``known`` [N] replaced: linear in time, held at a clip's ends.

    A clip without any known row keeps its values: there is nothing to replace them by.
    """
    found = values.copy()
    bounds = clip_bounds(clip)
    for first, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        here = known[first:end]
        if here.all() or not here.any():
            continue
        times, unknown = pts_s[first:end], ~here
        for column in range(values.shape[1]):
            own = values[first:end, column]
            found[first:end, column][unknown] = np.interp(times[unknown], times[here], own[here])
    return found


def clip_bounds(clip: ArrayLike) -> NDArray[np.int64]:
    """Where each run of equal numbers begins, and the end: [C + 1].

    Raises:
        ValueError: one clip's rows stand apart.
    """
    numbers = np.asarray(clip)
    if not len(numbers):
        return np.zeros(1, dtype=np.int64)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(numbers)) + 1])
    if len(np.unique(numbers[starts])) < len(starts):
        raise ValueError("the frames of one clip stand apart: expected frames ordered by clip and frame")
    return np.concatenate([starts, [len(numbers)]]).astype(np.int64)
