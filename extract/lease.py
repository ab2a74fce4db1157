"""One writer per clip: a file beside the clip's arrays says who works on it."""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from extract.errors import AuFusionError
from extract.files import LocalFiles

NAME = ".lease"
REFRESH_S = 30.0
"""A holder renews its lease this often (at least every minute is the promise)."""
VOID_AFTER_S = 600.0
"""A lease not renewed for so long is void: its holder is dead, or asleep and must stop when it wakes."""


class LeaseLostError(AuFusionError):
    """Another run took this clip over while this one was asleep."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease."""

    host: str
    pid: int
    run: str
    time: float
    """Unix seconds of the last renewal."""
    token: str

    def is_void(self, now: float) -> bool:
        """Not renewed for ten minutes, or its process on this host is gone."""
        if now - self.time > VOID_AFTER_S:
            return True
        return self.host == socket.gethostname() and not _is_alive(self.pid)

    def __str__(self) -> str:
        return f"run {self.run} (pid {self.pid} on {self.host})"


class Lease:
    """Held by this process until ``release``; renewed by a thread of its own."""

    def __init__(self, files: LocalFiles, clip: str, holder: Holder, *, inherited: bool) -> None:
        self.inherited = inherited
        """Whether a void lease lay here: the process that held it died, or slept for ten minutes."""
        self._files, self._key, self._clip = files, f"{clip}/{NAME}", clip
        self._holder = holder
        self._renewed = _awake_or_not_s()
        self._lost = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_stopped, name=f"lease {clip}", daemon=True)
        self._thread.start()

    @property
    def holder(self) -> Holder:
        """Who holds it: this process. Its ``time`` is that of the last renewal."""
        return self._holder

    def check(self) -> None:
        """Raise LeaseLostError if the lease may have become void: called before every commit.

        A process that was stopped (a laptop's lid, a debugger, swap) wakes up with its renewal overdue.
        """
        if self._lost or _awake_or_not_s() - self._renewed > VOID_AFTER_S - 2 * REFRESH_S:
            raise LeaseLostError(f"clip {self._clip}: asleep for minutes, the lease may be another run's; run again")

    def release(self) -> None:
        """Give the clip back."""
        self._stop.set()
        self._thread.join()
        with self._files.locked(self._clip):
            if _read(self._files, self._key) == self._holder:
                self._files.delete(self._key)

    def _renew_until_stopped(self) -> None:
        while not self._stop.wait(REFRESH_S):
            try:
                with self._files.locked(self._clip):
                    if _read(self._files, self._key) != self._holder:
                        self._lost = True
                        return
                    self._holder = Holder(**{**vars(self._holder), "time": time.time()})
                    self._files.write(self._key, _encode(self._holder))
                self._renewed = _awake_or_not_s()
            except AuFusionError:
                continue  # a full disk shows at the next commit; until then the old renewal counts


def take(files: LocalFiles, clip: str, run: str) -> Lease | Holder:
    """The lease of ``clip``, or who holds it. Of several runs that ask at once, one gets it."""
    mine = Holder(socket.gethostname(), os.getpid(), run, time.time(), uuid.uuid4().hex)
    key = f"{clip}/{NAME}"
    inherited = False
    while not files.create(key, _encode(mine)):
        with files.locked(clip):  # only one at a time may judge a lease void and remove it
            if files.read(key) is None:
                continue  # given back since: ask again
            holder = _read(files, key)
            if holder is not None and not holder.is_void(time.time()):
                return holder
            files.delete(key)
            inherited = True
    return Lease(files, clip, mine, inherited=inherited)


def check_lent(files: LocalFiles, clip: str, holder: Holder) -> None:
    """``Lease.check`` for a process that works for the holder: by the file, which the holder renews.

    Raises:
        LeaseLostError: it is another's, or was not renewed for minutes.
    """
    found = _read(files, f"{clip}/{NAME}")
    if found is None or found.token != holder.token or time.time() - found.time > VOID_AFTER_S - 2 * REFRESH_S:
        raise LeaseLostError(f"clip {clip}: the run that asked for it no longer holds its lease; run again")


@contextmanager
def held(files: LocalFiles, clip: str, run: str) -> Iterator[Lease | Holder]:
    """``take``, and release at the end of the block."""
    lease = take(files, clip, run)
    try:
        yield lease
    finally:
        if isinstance(lease, Lease):
            lease.release()


def _awake_or_not_s() -> float:
    """Seconds that also pass while the machine is suspended, which time.monotonic() leaves out on Linux."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _encode(holder: Holder) -> bytes:
    return json.dumps(vars(holder)).encode()


def _read(files: LocalFiles, key: str) -> Holder | None:
    data = files.read(key)
    try:
        return None if data is None else Holder(**json.loads(data))
    except (ValueError, TypeError):
        return None  # not ours, or written by hand: void


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
