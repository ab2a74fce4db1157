"""Runs the program on hostile files, watches how long and how large it gets, and judges what it says afterwards."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from extract.errors import EMPTY_REASONS, FAILED_REASONS
from extract.store import Store

ROOT = Path(__file__).resolve().parents[2]

LONGEST_S = 60.0
"""How long one file may take."""
MOST_BYTES = 3_000_000_000
"""Peak memory of the run and its child together."""
LOOK_S = 0.05
"""How often the processes are looked at."""
START = "(start and end)"
"""Stands for a clip while none is worked on."""

OURS = frozenset({"unexpected", "broken_promise"})
"""Reasons that name a fault of the program and never of a file."""

MEDIA_SETTINGS = (
    "run.isolate=always",
    "run.clips=1",  # one child, whose memory and time are its clip's
    "run.stall_s=20",
    "run.cpu_threads=1",
    "detections.detect_px=200",
    "hubert.weights=random",
    "hubert.architecture=small",
)
MEDIA_STAGES = ("faces", "hubert")


@dataclass
class Ended:
    """How one command ended and what it took."""

    code: int
    out: str
    err: str
    stopped: tuple[str, str] | None = None
    """The clip at which it broke a limit, and which one: the command was killed."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Clip -> how long its lease was held."""
    peaks: dict[str, int] = field(default_factory=dict)
    """Clip -> bytes that run and child held at most, together."""

    @property
    def report(self) -> dict[str, Any] | None:
        """What ``--json`` printed, if it did."""
        try:
            found = json.loads(self.out)
        except ValueError:
            return None
        return found if isinstance(found, dict) else None


@dataclass(frozen=True)
class Violation:
    """A promise that was broken."""

    what: str
    """The clip, or the command."""
    message: str

    def __str__(self) -> str:
        return f"{self.what}: {self.message}"


# ---- running -------------------------------------------------------------------------------------------------------


def command(*arguments: str, settings: Iterable[str] = ()) -> list[str]:
    """The program's own command line."""
    return [sys.executable, "-m", "extract.cli", *arguments, *(w for s in settings for w in ("--set", s))]


def watched(
    arguments: Sequence[str],
    folder: Path,
    store: Path | None = None,
    *,
    longest_s: float = LONGEST_S,
    most_bytes: int = MOST_BYTES,
) -> Ended:
    """Run a command in ``folder`` until it ends or breaks a limit.

    Args:
        store: the time counts per clip, by who holds a lease there; else for the command as a whole.
    """
    home = folder.parent / "home"
    home.mkdir(exist_ok=True)
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HOME": str(home),
        "AU_FUSION_CACHE": str(home / "cache"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    ended = Ended(0, "", "")
    said = [folder.parent / f"said.{name}" for name in ("out", "err")]
    with said[0].open("wb") as out, said[1].open("wb") as err:
        process = subprocess.Popen(
            arguments, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )
        try:
            _watch(process, ended, store, longest_s, most_bytes)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # its child dies with it
            ended.code = process.wait()
    ended.out, ended.err = (path.read_text(errors="replace") for path in said)
    return ended


def _watch(
    process: "subprocess.Popen[bytes]", ended: Ended, store: Path | None, longest_s: float, most_bytes: int
) -> None:
    at, since = START, time.monotonic()
    while process.poll() is None:
        now = time.monotonic()
        ended.seconds[at] = max(ended.seconds.get(at, 0.0), now - since)
        holding = _leased(store) if store else START
        if holding != at:
            at, since = holding, now
            _forget_peaks(process.pid)
        held = _peak(process.pid)
        ended.peaks[at] = max(ended.peaks.get(at, 0), held)
        if held > most_bytes:
            ended.stopped = (at, f"memory of {held / 1e9:.1f} GB")
            return
        if now - since > longest_s:
            ended.stopped = (at, f"no end after {longest_s:g} s")
            return
        time.sleep(LOOK_S)


def _leased(store: Path) -> str:
    return next((path.parent.name for path in store.glob("*/.lease")), START)


def _family(pid: int) -> list[int]:
    """The process and its children."""
    found = [pid]
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (thread / "children").read_text().split()]
    return found


def _peak(pid: int) -> int:
    """Bytes that process and children held at most since ``_forget_peaks``."""
    total = 0
    for member in _family(pid):
        with suppress(OSError, StopIteration):
            lines = Path(f"/proc/{member}/status").read_text().splitlines()
            total += 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
    return total


def _forget_peaks(pid: int) -> None:
    for member in _family(pid):
        with suppress(OSError):
            Path(f"/proc/{member}/clear_refs").write_text("5")  # sets the peak back to what is held now


def left_as_it_was(folder: Path, but: Iterable[Path] = ()) -> dict[str, tuple[int, int, int]]:
    """Every path below ``folder`` outside of ``but``: type and rights, size and time, to be compared."""
    spared, found = tuple(str(path) for path in but), {}
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if os.path.join(parent, name) not in spared]
        for name in [*folders, *names]:
            path = os.path.join(parent, name)
            if path not in spared:
                status = os.lstat(path)
                is_folder = name in folders
                found[path] = (
                    status.st_mode,
                    0 if is_folder else status.st_size,
                    0 if is_folder else status.st_mtime_ns,
                )
    return found


def changes(before: Mapping[str, object], after: Mapping[str, object], whose: str) -> list[Violation]:
    """What was made, removed or written that should have been left alone."""
    differing = sorted(path for path in {*before, *after} if before.get(path) != after.get(path))
    return [Violation(whose, f"{path} was {_how(path, before, after)}") for path in differing]


def _how(path: str, before: Mapping[str, object], after: Mapping[str, object]) -> str:
    return "made" if path not in before else "removed" if path not in after else "changed"


# ---- judging -------------------------------------------------------------------------------------------------------


def judge_words(ended: Ended, whose: str) -> list[Violation]:
    """What holds for every command: how it ends agrees with what it says, and nobody sees a traceback."""
    if ended.stopped is not None:
        return [Violation(ended.stopped[0] if ended.stopped[0] != START else whose, ended.stopped[1])]
    wrong = []
    if ended.code not in range(6):
        wrong.append(f"exit code {ended.code}: {ended.err[-2000:]}")
    if "Traceback" in ended.err or "a bug in au-fusion" in ended.err:
        wrong.append(f"a traceback on standard error: {ended.err[-2000:]}")
    if ended.code in {2, 3, 4, 5} and not any(line.startswith("extract: ") for line in ended.err.splitlines()):
        wrong.append(f"exit code {ended.code} without a line that begins with `extract: `: {ended.err[-500:]}")
    if "\0" in ended.err or len(ended.err) > 100_000:
        wrong.append(f"{len(ended.err)} characters on standard error")
    return [Violation(whose, message) for message in wrong]


def judge_run(ended: Ended, store: Path, clips: Iterable[str], instances: Sequence[str], whose: str) -> list[Violation]:
    """What holds for ``extract run --json``: clips are done, empty or failed with a reason, code and report agree."""
    wrong = judge_words(ended, whose)
    if wrong:
        return wrong
    report = ended.report
    if report is None:
        return [Violation(whose, f"exit code {ended.code} and no report: {ended.err[-500:]}")]
    if not ended.code == report["exit_code"] == (1 if report["failures"] else 0):
        message = f"exit code {ended.code}, report {report['exit_code']}, {len(report['failures'])} failures"
        wrong.append(Violation(whose, message))
    if report["busy"] or report["damaged"]:
        wrong.append(Violation(whose, f"busy {report['busy']}, damaged {report['damaged']}"))
    failures = {(failure["clip"], failure["instance"]): failure for failure in report["failures"]}
    opened = Store.open(store)
    counted: dict[str, Counter[str]] = {name: Counter() for name in instances}
    for clip in clips:
        for name in instances:
            record = opened.record(clip, name)
            if record is None or record.state not in {"done", "empty", "failed"}:
                wrong.append(Violation(clip, f"{name}: the record is {record and record.state}"))
                continue
            counted[name][record.state] += 1
            known = {"done": (None,), "empty": EMPTY_REASONS, "failed": FAILED_REASONS}[record.state]
            if record.reason not in known or record.reason in OURS:
                wrong.append(Violation(clip, f"{name}: {record.state}, reason {record.reason}: {record.message}"))
            reported = failures.pop((clip, name), None)
            differs = bool(reported) and reported["reason"] != record.reason
            if (record.state == "failed") != (reported is not None) or differs:
                wrong.append(
                    Violation(clip, f"{name}: the store says {record.state} {record.reason}, the report {reported}")
                )
            if record.state == "failed" and not (record.message or "").strip():
                wrong.append(Violation(clip, f"{name}: failed without a message"))
            if record.state == "done":
                wrong += [Violation(clip, message) for message in _wrong_values(opened, clip, name, record.rows)]
    wrong += [Violation(clip, f"{name}: in the report alone") for clip, name in failures]
    if any(dict(counted[name]) != report["instances"].get(name, {}) for name in instances):
        wrong.append(Violation(whose, f"the store holds {counted}, the report says {report['instances']}"))
    left = [path for pattern in (".lease", ".crash", "*.partial") for path in store.rglob(pattern)]
    return wrong + [Violation(whose, f"{path} is left behind") for path in left]


def _wrong_values(store: Store, clip: str, name: str, rows: int) -> list[str]:
    """Faults of a finished instance's arrays: rows, times, numbers."""
    wrong = []
    for array in store.files.folders(f"{clip}/{name}"):
        values = store.read(clip, name, array).values
        if len(values) != rows:
            wrong.append(f"{name}/{array}: {len(values)} rows, the record says {rows}")
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            wrong.append(f"{name}/{array}: values that are not finite")
        if array == "pts_s" and not (np.diff(values) > 0).all():
            wrong.append(f"{name}/{array}: times do not increase")
    return wrong


@dataclass
class Tally:
    """What came of many files."""

    files: Counter[str] = field(default_factory=Counter)
    """Outcome of a file -> how many: ``done``, ``empty``, ``failed``; by its worst instance that was asked for."""
    reasons: Counter[str] = field(default_factory=Counter)
    """``instance state reason`` -> how many."""
    seconds: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)

    def add(self, ended: Ended) -> None:
        """Time and memory of one command."""
        for clip, seconds in ended.seconds.items():
            self.seconds[clip] = max(self.seconds.get(clip, 0.0), seconds)
        for clip, peak in ended.peaks.items():
            self.peaks[clip] = max(self.peaks.get(clip, 0), peak)

    def count(self, store: Path, clips: Iterable[str], instances: Sequence[str]) -> None:
        """Outcomes as the store holds them."""
        opened = Store.open(store)
        for clip in clips:
            records = [record for name in instances if (record := opened.record(clip, name))]
            states = {record.state for record in records}
            self.files[
                next((state for state in ("partial", "failed", "done", "empty") if state in states), "none")
            ] += 1
            for record in records:
                stage = record.recipe.get("stage", "?")
                self.reasons[f"{stage}: {record.state}{f' ({record.reason})' if record.reason else ''}"] += 1
