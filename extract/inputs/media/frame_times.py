"""Repairs the presentation times of frames where some are absent or do not increase."""

import itertools
from bisect import bisect_left
from collections.abc import Sequence
from fractions import Fraction

from extract.errors import ClipError


def repair_times(times: Sequence[Fraction | None], rate: Fraction | None) -> list[Fraction]:
    """Increasing times, one per frame, from times of which some are absent or do not increase.

    No frame is dropped, because labels count frames. The largest set of times that increase is kept, so that one wild
    jump ahead does not discredit all that follow it. The other times are spread evenly between their kept neighbours.
    Those before the first kept time and after the last follow at the usual step: the median step of the kept ones,
    else ``1 / rate`` from 0.

    Raises ``ClipError``: ``bad_times`` where neither times nor ``rate`` say how long a frame lasts.
    """
    kept = _longest_increasing(times)
    steps = sorted(j_time - i_time for (i, i_time), (j, j_time) in itertools.pairwise(kept) if j == i + 1)
    if steps:
        step = steps[len(steps) // 2]
    elif rate:
        step = 1 / rate
    elif len(kept) < len(times):
        raise ClipError(
            "bad_times",
            f"{len(times) - len(kept)} of {len(times)} frames have no usable time and the stream states no frame rate; "
            "times cannot be repaired: put the stream into a container with times (mp4, mkv)",
        )
    else:
        return [time for _, time in kept]
    first, first_time = kept[0] if kept else (0, Fraction(0))
    last, last_time = kept[-1] if kept else (0, Fraction(0))
    repaired = [first_time + (i - first) * step for i in range(first)]
    for (i, i_time), (j, j_time) in itertools.pairwise(kept):
        repaired += [i_time + (j_time - i_time) * (m - i) / (j - i) for m in range(i, j)]
    return repaired + [last_time + (i - last) * step for i in range(last, len(times))]


def _longest_increasing(times: Sequence[Fraction | None]) -> list[tuple[int, Fraction]]:
    """The longest strictly increasing subsequence as (index, time), by patience sorting, O(n log n).

    It is built from the end, so that of two equally long ones the earlier frames keep their times.
    """
    known = [(index, time) for index, time in enumerate(times) if time is not None]
    heads: list[Fraction] = []  # for each length, the negated latest start of an increasing run
    at: list[int] = []  # where in ``known`` that run starts
    following: list[int | None] = [None] * len(known)  # for each place, the next one in the best run that starts there
    for k in reversed(range(len(known))):
        length = bisect_left(heads, -known[k][1])
        following[k] = at[length - 1] if length else None
        heads[length : length + 1] = [-known[k][1]]
        at[length : length + 1] = [k]
    run = []
    place = at[-1] if at else None
    while place is not None:
        run.append(known[place])
        place = following[place]
    return run
