"""Whether a process that died at a clip was killed by that clip: a decoder or a model that crashed, not a preemption.

While a clip is worked on, the file ``<clip>/.crash`` lies beside its lease. Python's fault handler writes into it when
the process dies of SIGSEGV, SIGBUS, SIGILL, SIGFPE or SIGABRT; a process that is killed from outside writes nothing.
The out-of-memory killer leaves no word either, but the kernel counts its kills.
"""

import faulthandler
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from extract.errors import MachineError
from extract.files import LocalFiles

NAME = ".crash"

# Where the kernel counts: of this container or job (cgroup v2), else of the whole machine.
_OOM_COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@contextmanager
def recorded(files: LocalFiles, clip: str) -> Iterator[None]:
    """Write the traceback of a fatal signal inside the block to ``<clip>/.crash``; a clean end removes the file.

    Raises:
        MachineError: the file cannot be made.
    """
    path = files.path(f"{clip}/{NAME}")
    was_enabled = faulthandler.is_enabled()
    try:
        file = path.open("wb", buffering=0)
        file.write(json.dumps(_oom_kills()).encode() + b"\n")
    except OSError as error:
        raise MachineError(f"cannot write {path}: {error.strerror or error}") from error
    with file:
        faulthandler.enable(file, all_threads=True)
        try:
            yield
        finally:
            faulthandler.disable()
            if was_enabled:
                with suppress(ValueError, OSError, AttributeError, RuntimeError):  # a standard error that is no file
                    faulthandler.enable(sys.__stderr__)  # type: ignore[arg-type]
            with suppress(OSError):  # one that is left says nothing
                path.unlink()


def left_by_the_dead(files: LocalFiles, clip: str) -> str | None:
    """How the previous process that worked on ``clip`` died, if the clip may be to blame; else None.

    To be asked under the clip's lease, before ``recorded``.
    """
    data = files.read(f"{clip}/{NAME}")
    if data is None:
        return None
    first, _, trace = data.decode(errors="replace").partition("\n")
    if trace.strip():
        return summary(trace)
    try:
        before = json.loads(first)
    except (ValueError, RecursionError):
        return None
    now = _oom_kills()
    same_counter = isinstance(before, dict) and {**before, "kills": 0} == {**now, "kills": 0}
    if same_counter and isinstance(before.get("kills"), int) and now["kills"] > before["kills"]:
        return "killed when the memory was full"
    return None


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
