"""Whether a process that died at a clip was killed by that clip: a decoder or a model that crashed, not a preemption.

While a clip is worked on, the file ``<clip>/.crash`` lies beside its lease. It names the run's trace, a file beside
the clips into which Python's fault handler writes when the process dies of SIGSEGV, SIGBUS, SIGILL, SIGFPE or SIGABRT;
a process that is killed from outside writes nothing. The out-of-memory killer leaves no word either, but the kernel
counts its kills. Several clips are in flight: which of them is to blame shows when each is worked on by itself.
"""

import faulthandler
import fcntl
import json
import os
import re
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from extract.errors import MachineError
from extract.files import LocalFiles

NAME = ".crash"
TRACE = ".crash."
"""What traces are called, followed by letters of their own."""

# Where the kernel counts: of this container or job (cgroup v2), else of the whole machine.
_OOM_COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@contextmanager
def traced(files: LocalFiles) -> Iterator[str]:
    """Write the traceback of a fatal signal inside the block to a file; gives its name. A clean end removes it.

    Raises:
        MachineError: the file cannot be made.
    """
    path = files.root / f"{TRACE}{uuid.uuid4().hex}"
    was_enabled = faulthandler.is_enabled()
    try:
        file = path.open("wb", buffering=0)
    except OSError as error:
        raise MachineError(f"cannot write {path}: {error.strerror or error}") from error
    with file:
        with suppress(OSError):  # no locks here: then nobody sweeps
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        faulthandler.enable(file, all_threads=True)
        try:
            yield path.name
        finally:
            faulthandler.disable()
            if was_enabled:
                with suppress(ValueError, OSError, AttributeError, RuntimeError):  # a standard error that is no file
                    faulthandler.enable(sys.__stderr__)  # type: ignore[arg-type]
            with suppress(OSError):  # one that is left says nothing
                path.unlink()


@contextmanager
def marked(files: LocalFiles, clip: str, trace: str) -> Iterator[None]:
    """While ``clip`` is worked on: if the process dies, ``trace`` will say how.

    Raises:
        MachineError: the mark cannot be written.
    """
    path = files.path(f"{clip}/{NAME}")
    try:
        path.write_text(json.dumps({**_oom_kills(), "trace": trace}) + "\n")
    except OSError as error:
        raise MachineError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()


def sweep(files: LocalFiles) -> None:
    """Remove traces of dead processes that no clip's mark names any more."""
    traces = list(files.root.glob(f"{TRACE}*"))
    if not traces:
        return
    named = set()
    for mark in files.root.glob(f"*/{NAME}"):
        with suppress(OSError):  # another run finishes its clip at this moment
            named.add(str(_header(mark.read_bytes()).get("trace")))
    for path in traces:
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # one that is locked belongs to a run that lives
            if path.name not in named:
                path.unlink()


def left_by_the_dead(files: LocalFiles, clip: str) -> str | None:
    """How the previous process that worked on ``clip`` died, if the clip may be to blame; else None.

    To be asked under the clip's lease, before it is ``marked``.
    """
    data = files.read(f"{clip}/{NAME}")
    if data is None:
        return None
    before = _header(data)
    trace = data.partition(b"\n")[2]  # marks of earlier versions hold it themselves
    name = str(before.pop("trace", ""))
    if name.startswith(TRACE) and os.sep not in name:
        trace = files.read(name) or b""
    if trace.strip():
        return summary(trace.decode(errors="replace"))
    now = _oom_kills()
    same_counter = {**before, "kills": 0} == {**now, "kills": 0}
    kills, kills_now = before.get("kills"), now["kills"]
    if same_counter and isinstance(kills, int) and isinstance(kills_now, int) and kills_now > kills:
        return "killed when the memory was full"
    return None


def _header(data: bytes) -> dict[str, object]:
    """The first line of a mark; empty if it is not whole."""
    try:
        found = json.loads(data.partition(b"\n")[0])
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def summary(trace: str) -> str:
    """``Segmentation fault in dlib_faces.py, line 55, detect`` out of a fault handler's lines."""
    what = re.search(r"Fatal Python error: (.+)", trace)
    death = what[1].strip() if what else trace.strip().splitlines()[0][:80]
    current = trace.partition("Current thread")[2] or trace
    where = re.search(r'File "([^"]+)", line (\d+) in (\S+)', current)
    return f"{death} in {Path(where[1]).name}, line {where[2]}, {where[3]}" if where else death


def _oom_kills() -> dict[str, str | int]:
    """How often the out-of-memory killer has struck, by which counter, since which boot."""
    for counter in _OOM_COUNTERS:
        with suppress(OSError, ValueError):
            found = re.search(r"^oom_kill (\d+)$", counter.read_text(), re.MULTILINE)
            if found:
                inode = counter.stat().st_ino if counter != _OOM_COUNTERS[-1] else 0
                boot = _BOOT_ID.read_text().strip()
                return {"boot": boot, "counter": f"{counter}:{inode}", "kills": int(found[1])}
    return {"boot": "", "counter": "", "kills": 0}
