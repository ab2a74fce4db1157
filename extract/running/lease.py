"""One writer per clip: a file beside the clip's arrays says who works on it.

How two runs never get one clip, however they are interleaved:

* A lease appears by ``link``, whole and only where there is none. It keeps its inode for life; its holder renews it by
  touching that inode, which can never bring a lease back that was taken over.
* Who finds a lease judges it under the clip folder's lock, and takes a void one over by renaming it away. Where a file
  system has no locks two may do so at once: each looks at what it moved, and puts back what is not what it judged.
* A holder looks before every commit whether the clip's lease is still its own inode.

When a lease is void: it was not touched for ten minutes by the file system's own clock (those of the machines may
differ), or its holder is dead. On the same kernel that is known at once and across containers, for the holder keeps the
file locked and the kernel frees locks of the dead; where nothing can be locked, by pid and start time within one pid
namespace. On a file system of this machine alone, a lease of another boot is one of before the reboot. Where the system
tells no boot id (macOS), and of a lease that an earlier version wrote, only the age counts.
"""

import atexit
import errno
import fcntl
import json
import os
import socket
import stat
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_type_hints

from extract.endings import uninterrupted
from extract.errors import AuFusionError, MachineError
from extract.files import NO_LINKS, TEMPORARY, LocalFiles

NAME = ".lease"
REFRESH_S = 30.0
"""A holder renews its lease this often (at least every minute is the promise)."""
VOID_AFTER_S = 600.0
"""A lease not renewed for so long is void: its holder is dead, or asleep and must stop when it wakes."""

LOCAL = {"btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "ramfs", "reiserfs", "tmpfs", "xfs", "zfs"}
"""File systems that one kernel alone writes."""


class LeaseLostError(AuFusionError):
    """Another run took this clip over while this one was asleep."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease."""

    host: str
    pid: int
    run: str
    time: float
    """Unix seconds when the lease was taken, by the holder's clock; shown to people."""
    token: str
    boot: str = ""
    """Boot id of the kernel; "" where it is not known."""
    pid_namespace: str = ""
    """Within it, ``pid`` names one process at a time."""
    started: int = 0
    """When the process began, in ticks since boot: it tells apart processes that reuse a pid."""
    locked: bool = False
    """Whether the holder keeps the file locked."""

    def __str__(self) -> str:
        return f"run {self.run} (pid {self.pid} on {self.host})"

    @classmethod
    def me(cls, run: str, *, locked: bool) -> "Holder":
        """This process, for ``run``."""
        pid = os.getpid()
        return cls(
            host=socket.gethostname(),
            pid=pid,
            run=run,
            time=time.time(),
            token=uuid.uuid4().hex,
            boot=_text("/proc/sys/kernel/random/boot_id"),
            pid_namespace=_link("/proc/self/ns/pid"),
            started=_started(pid),
            locked=locked,
        )


class Lease:
    """A lease held by this process until ``release``; its own thread renews it."""

    def __init__(self, files: LocalFiles, clip: str, holder: Holder, handle: int) -> None:
        self.holder = holder
        self._files, self._clip, self._handle = files, clip, handle
        self._path = files.root / clip / NAME
        self._inode = _identity(os.fstat(handle))
        self._renewed = _seconds_since_boot()
        self._lost = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_stopped, name=f"lease {clip}", daemon=True)
        self._thread.start()
        _HELD.add(self)

    def check(self) -> None:
        """Raise LeaseLostError if the lease may have become void: called before every commit.

        A process that was stopped (a laptop's lid, a debugger, swap) wakes up with its renewal overdue.
        """
        overdue = _seconds_since_boot() - self._renewed > VOID_AFTER_S - 2 * REFRESH_S
        if self._lost or overdue or not self._is_ours():
            self._lost = True
            raise LeaseLostError(f"clip {self._clip}: asleep for minutes, the lease may be another run's; run again")

    def release(self) -> None:
        """Release the clip. A second call does nothing."""
        if self not in _HELD:
            return
        _HELD.discard(self)
        self._stop.set()
        self._thread.join(REFRESH_S)  # it may hang on a share that does not answer
        try:
            with self._files.locked(self._clip):
                if self._is_ours():
                    self._path.unlink(missing_ok=True)
        except OSError as error:
            raise MachineError(f"cannot delete {self._path}: {error.strerror or error}") from error
        finally:
            os.close(self._handle)  # and with it the lock

    def _is_ours(self) -> bool:
        try:
            return _identity(os.stat(self._path)) == self._inode
        except FileNotFoundError:
            return False
        except OSError:  # a share that does not answer shows at the commit itself
            return True

    def _renew_until_stopped(self) -> None:
        while not self._stop.wait(REFRESH_S):
            with suppress(OSError):  # a full disk shows at the next commit; until then the old renewal counts
                os.utime(self._handle)
                if not self._is_ours():
                    self._lost = True
                    return
                self._renewed = _seconds_since_boot()


_HELD: set[Lease] = set()


@atexit.register
def _release_what_is_left() -> None:
    """A signal may arrive between taking a lease and the block that releases it."""
    for lease in list(_HELD):
        with suppress(AuFusionError):
            lease.release()


def take(files: LocalFiles, clip: str, run: str) -> Lease | Holder:
    """The lease of ``clip``, or who holds it. Of several runs that ask at once, one gets it."""
    path = files.root / clip / NAME
    while True:
        with _disk(path), files.locked(clip):  # makes the folder
            mine, handle = _create(path, run)
            if mine is not None:
                if mine.locked:  # the folder is, too: nobody else is in the middle of anything here
                    _sweep(path.parent)
                return Lease(files, clip, mine, handle)
            judged = _open(path)
            if judged < 0:
                continue  # given back just now
            try:  # open until it is away: the file's number cannot be given to another lease meanwhile
                holder = _judge(path, judged)
                if holder is not None:
                    return holder
                _take_away(path, judged)
            finally:
                os.close(judged)


def _sweep(folder: Path) -> None:
    """Remove the files of a process that was killed while taking a lease."""
    for name in os.listdir(folder):
        if name.startswith(f"{NAME}.") and name.endswith(TEMPORARY):
            with suppress(OSError):
                os.unlink(folder / name)


def check_lent(files: LocalFiles, clip: str, holder: Holder) -> None:
    """``Lease.check`` for a process that works for the holder.

    Raises:
        LeaseLostError: the clip's lease is another's.
    """
    found = _decode(files.read(f"{clip}/{NAME}") or b"")
    if found is None or found.token != holder.token:
        raise LeaseLostError(f"clip {clip}: the run that asked for it no longer holds its lease; run again")


@contextmanager
def held(files: LocalFiles, clip: str, run: str) -> Iterator[Lease | Holder]:
    """``take``, and release at the end of the block."""
    lease: Lease | Holder | None = None
    try:
        with uninterrupted():
            lease = take(files, clip, run)
        yield lease
    finally:
        with uninterrupted():
            if isinstance(lease, Lease):
                lease.release()


def _create(path: Path, run: str) -> tuple[Holder | None, int]:
    """Create our lease, kept open and locked, if there is none; (None, -1) if there is one."""
    temporary = path.with_name(f"{NAME}.{uuid.uuid4().hex}{TEMPORARY}")
    handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        mine = Holder.me(run, locked=_lock(handle))
        os.write(handle, json.dumps(asdict(mine)).encode())
        os.link(temporary, path)  # exclusive, and shows the whole content at once
    except OSError as error:
        os.close(handle)
        if error.errno in NO_LINKS:
            return _create_without_links(path, run)
        if not isinstance(error, FileExistsError):
            raise
        return None, -1
    except BaseException:
        os.close(handle)
        raise
    finally:
        with suppress(OSError):
            temporary.unlink()
    return mine, handle


def _create_without_links(path: Path, run: str) -> tuple[Holder | None, int]:
    """As ``_create``. The file is empty for a moment: a process that reads it then judges by its age."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return None, -1
    mine = Holder.me(run, locked=_lock(handle))
    os.write(handle, json.dumps(asdict(mine)).encode())
    return mine, handle


def _open(path: Path) -> int:
    """A handle of the existing lease; -1 if there is none."""
    flags = os.O_NOFOLLOW | os.O_NONBLOCK  # never waits for whoever might write into a pipe of that name
    try:
        try:
            handle = os.open(path, os.O_RDWR | flags)  # some shares lock only what is open for writing
        except PermissionError:
            handle = os.open(path, os.O_RDONLY | flags)  # of another user
    except FileNotFoundError:
        return -1
    except IsADirectoryError:
        raise MachineError(f"{path} is a folder, expected a run's lease; remove it") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise MachineError(f"{path} is no file, expected a run's lease; remove it")
    return handle


def _judge(path: Path, handle: int) -> Holder | None:
    """Who holds the lease that ``handle`` is open on; None if it is void."""
    modified_s = os.fstat(handle).st_mtime
    data = os.read(handle, 65_536)
    holder = _decode(data)
    if _now_there(path) - modified_s > VOID_AFTER_S or (holder is None and data):
        return None
    if holder is None:  # being made
        return Holder("an unknown host", 0, "unknown", modified_s, "")
    return None if _is_dead(holder, handle, path) else holder


def _take_away(path: Path, judged: int) -> None:
    """Rename a void lease, open as ``judged``, out of the way, unless another has replaced it."""
    aside = path.with_name(f"{NAME}.{uuid.uuid4().hex}{TEMPORARY}")
    inode = _identity(os.fstat(judged))
    try:
        if _identity(os.stat(path)) != inode:
            return
        os.rename(path, aside)
    except FileNotFoundError:
        return
    if _identity(os.stat(aside)) != inode:
        with suppress(OSError):  # if it cannot be put back, its holder sees that at its next commit
            os.link(aside, path)
    aside.unlink()


def _is_dead(holder: Holder, handle: int, path: Path) -> bool:
    """Whether the holder's process is known to be gone; ``handle`` is open on its lease."""
    boot = _text("/proc/sys/kernel/random/boot_id")
    if not (boot and holder.boot):
        return False
    if holder.boot != boot:
        return _is_local(path)
    if holder.locked:
        return _lock(handle)  # freed again when the handle is closed
    if holder.pid_namespace == _link("/proc/self/ns/pid"):
        return _started(holder.pid) != holder.started
    return False


def _lock(handle: int) -> bool:
    """Lock the file while it is open here; False if another process holds it, or if the file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _now_there(path: Path) -> float:
    """Unix seconds by the clock of the file system that holds ``path``."""
    probe = path.with_name(f"{NAME}.{uuid.uuid4().hex}{TEMPORARY}")
    handle = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.write(handle, b"?")
        os.utime(handle)
        return os.fstat(handle).st_mtime
    finally:
        os.close(handle)
        with suppress(OSError):
            probe.unlink()


def _is_local(path: Path) -> bool:
    """Whether only this machine writes the file system; False where that is not known."""
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in _text("/proc/self/mountinfo").splitlines():  # proc(5)
        mount, _, behind = line.partition(" - ")
        if mount.split()[2] == number:
            return behind.split()[0] in LOCAL
    return False


def _started(pid: int) -> int:
    """When a process began, in ticks after boot; 0 if there is no such process or that is not known."""
    after_name = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(after_name[19]) if len(after_name) > 19 else 0


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _decode(data: bytes) -> Holder | None:
    """None if it is not a lease of ours: written by hand, torn, or by another program."""
    try:
        found = json.loads(data)
        known = get_type_hints(Holder)
        if not isinstance(found, dict):
            return None
        holder = Holder(**{key: value for key, value in found.items() if key in known})
    except (ValueError, TypeError, RecursionError):
        return None
    return holder if all(isinstance(value, known[name]) for name, value in vars(holder).items()) else None


def _seconds_since_boot() -> float:
    """Seconds since boot, suspended time included, which time.monotonic() leaves out on Linux."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise MachineError(f"cannot take {path}: its folder is gone") from error
        raise MachineError(f"cannot take {path}: {error.strerror or error}") from error
