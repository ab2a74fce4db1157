"""When compiling the networks pays."""

from collections.abc import Callable
from typing import Literal

FROM_FRAMES = 4_000
"""Frames from which ``auto`` compiles on a GPU: about two minutes of film.

On an H100 the three picture networks take 10 + 20 + 40 s to compile (push form; 17 s as published). Per frame they then
save 1.54 ms (Real-ESRGAN, 273 to 471 frames/s) + .14 ms (GH-Feat, 5,000 to 16,000) + .16 ms (Swin, 4,000 to 11,300).
The code is kept: later runs load it in about a tenth of the time, 7 s, which 3,800 frames make good. The first run on a
machine makes it good from 38,000 frames on; a shorter one is slower, once, by at most 70 s.
"""


def compile_wanted(
    setting: Literal["auto", "on", "off"], device_type: str, frames: Callable[[], int], before: bool | None
) -> bool:
    """Whether the networks are compiled.

    Args:
        setting: ``run.compile``.
        device_type: ``cuda``, ``cpu``: where the networks run. On a CPU compiling gains little and ``auto`` leaves it.
        frames: of the clips that the run will work on, as far as they are known; asked only where it matters.
        before: whether the run that is continued compiled, so that no array holds rows of both ways; None: there is
            none.
    """
    if setting == "auto":
        return device_type == "cuda" and (frames() >= FROM_FRAMES if before is None else before)
    return setting == "on"
