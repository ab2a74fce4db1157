"""Watching the reading of a file, which may hang: a share that is gone, a decoder in a loop."""

import time
from collections.abc import Callable

from extract.errors import ClipError
from extract.inputs.media import Watcher


class Reading(Watcher):
    """Watches the thread that reads a file: whether it makes progress, and whether it opened the right file.

    Args:
        stall_s: seconds without a sign of life after which the file counts as stalled.
        on_open: called in the reading thread right after a file was opened.
    """

    def __init__(self, stall_s: float, on_open: Callable[[], None] = lambda: None) -> None:
        self.stall_s = stall_s
        self._on_open = on_open
        self._moved = time.monotonic()

    def opened(self) -> None:
        """A file was opened. Raises what ``on_open`` raises."""
        self.moved()
        self._on_open()

    def moved(self) -> None:
        """A packet was read, a frame was decoded."""
        self._moved = time.monotonic()

    def watch(self) -> Callable[[], None]:
        """For work that begins now: raises ClipError ``stalled`` if nothing has moved for ``stall_s`` seconds."""
        since = time.monotonic()

        def check() -> None:
            if time.monotonic() - max(self._moved, since) > self.stall_s:
                raise ClipError(
                    "stalled",
                    f"nothing was read or decoded for {self.stall_s:g} s; is its disk or share still there? the next "
                    "run tries again, run.stall_s sets the time",
                )

        return check
