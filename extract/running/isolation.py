"""A separate process for clips that crash theirs: if it dies or hangs, only its clip is lost.

The run stays the owner of plan, leases and report. The process gets one clip after another over a pipe, does with it
what the run would have done itself (so the stored bytes are the same), and answers with the outcomes. It lives until it
dies; the next clip gets a new one. Models are loaded in it as well: it costs what a second run costs.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import torch

from extract.config import ExtractConfig
from extract.devices import pick_device
from extract.endings import defer
from extract.errors import AuFusionError, MachineError
from extract.inputs.manifest import Clip
from extract.running import crashes, lease
from extract.running.budget import Budget
from extract.running.clipwork import work_on
from extract.running.device import LocalEngine
from extract.running.handover import Before, ClipReport, Working
from extract.running.lanes import InlineLanes, one_thread
from extract.running.planning import prepared_plan
from extract.running.selection import Options
from extract.running.tasks import LET_GO_S, Loop, StoppedError
from extract.store import Store

PACKAGES = str(Path(__file__).resolve().parents[2])
"""Where the process finds this package, however the run itself found it."""

SIGNS_OF_LIFE_S = 2.0
"""How often the process says that it is not stuck."""
START_S = 120.0
"""How long a process may be silent before its first clip: it imports torch, which takes long on a busy machine."""
END_S = 30.0
"""How long a clean end may take: the current block is dropped, attempts are cleared."""
MOST_DEATHS = 4
"""Deaths at one clip without a row computed in between, after which the clip is not to blame: its records count two."""

READY, STALLED = "ready", "stalled"
EXPECTED, PROGRESS = "expected", "progress"
"""What the process tells while it works: how many frames its clip has, and how many were gone through."""

FATAL = {-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGILL, -signal.SIGABRT, -signal.SIGFPE, -signal.SIGKILL}
"""Deaths that count as the clip's fault. SIGKILL: the run itself survives, so memory was full."""


@dataclass(frozen=True)
class Job:
    """What the process is told once."""

    config: ExtractConfig
    stages: Sequence[str]
    clips: Sequence[Clip]
    store: str
    device: str
    offline: bool
    lock: Path | None
    overwrite: bool
    provenance: dict[str, Any]
    compiled: bool
    """Whether networks are compiled, as the run decided for all its clips."""
    set_up: Sequence[str]
    """Instances whose weights are loaded before the first clip, so that wrong ones are found before any work."""


@dataclass(frozen=True)
class Assignment:
    """One clip to work on."""

    clip: Clip
    holder: lease.Holder
    """The run's lease, which the process checks before every commit."""
    before: Before
    retry: bool


class IsolatedWorker:
    """The run's side: starts the process when needed, and restarts it after a death."""

    def __init__(self, job: Job, store: Store) -> None:
        self._job, self._store = job, store
        self._stall_s = job.config.run.stall_s
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._interrupted = False

    def start(self) -> None:
        """Start the process and wait until it has its models.

        Raises:
            AuFusionError: what it met (weights, device); the machine is too busy for it to start.
            RuntimeError: it died before its first clip, which is no clip's fault.
        """
        if self._process is not None and self._process.poll() is None:
            return
        ours, theirs = Pipe()
        path = os.pathsep.join([PACKAGES, *filter(None, [os.environ.get("PYTHONPATH")])])
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "extract.running.isolation", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,  # standard output belongs to the command's own answer
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C is for the run, which ends it
            )
        self._pipe = ours
        ours.send(self._job)
        patience_s = max(START_S, self._stall_s)
        answer = self._answer(lambda *_: None, patience_s)
        if answer == STALLED:
            raise MachineError(
                f"the process for isolated clips was not ready after {patience_s:g} s: this machine is too busy; run "
                "the same command to continue when it is less so"
            )
        if answer != READY:
            raise RuntimeError(f"the process for isolated clips ended before its first clip: {answer}")

    def work(
        self, clip: Clip, held: lease.Lease, before: Before, told: Callable[[str, Any], None], *, retry: bool
    ) -> ClipReport:
        """Work on one clip, in as many processes as it takes.

        Raises:
            AuFusionError: what ends the run (disk, GPU, weights).
            StoppedError: after ``interrupt``.
            RuntimeError: the process ends again and again, or in another way than a crash.
        """
        deaths = 0

        def heard(what: str, value: Any) -> None:  # noqa: ANN401 - as the process says it
            nonlocal deaths
            if what == PROGRESS:
                deaths = 0
            told(what, value)

        try:
            while deaths < MOST_DEATHS:
                self.start()
                cast(Connection, self._pipe).send(Assignment(clip, held.holder, before, retry))
                answer = self._answer(heard, self._stall_s)
                if isinstance(answer, ClipReport):
                    return answer
                held.check()
                before = self._after(answer, clip, before)
                deaths, retry = deaths + 1, False  # `--retry` is for crashes of earlier runs; this one's count
        except BaseException:
            self.close()  # before the lease is given back
            raise
        raise RuntimeError(f"clip {clip.id}: the process for isolated clips died {deaths} times: {before.died}")

    def _after(self, answer: str, clip: Clip, before: Before) -> Before:
        """What the next process must know of how the last one ended."""
        if answer != STALLED:
            return replace(before, died=crashes.left_by_the_dead(self._store.files, clip.id) or answer)
        message = (
            f"the process that worked on it gave no sign of life for {self._stall_s:g} s (run.stall_s) and was ended"
        )
        return replace(before, given_up={**before.given_up, **dict.fromkeys(self._begun(clip), message)})

    def interrupt(self) -> None:
        """Have a call of ``work`` in another thread end soon, with StoppedError."""
        self._interrupted = True
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()

    def close(self) -> None:
        """End the process: cleanly if it listens, else by force."""
        process, pipe = self._process, self._pipe
        self._process = self._pipe = None
        if process is None or pipe is None:
            return
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        pipe.close()

    def _begun(self, clip: Clip) -> list[str]:
        """Instances in progress when the process ended: begun, with no block committed since."""
        records = {name: self._store.record(clip.id, name) for name in self._store.instances(clip.id)}
        return [name for name, record in records.items() if record and record.state == "partial" and record.attempts]

    def _answer(self, told: Callable[[str, Any], None], patience_s: float) -> ClipReport | str:
        """``READY``, the clip's report, ``STALLED`` (silent for ``patience_s``), or how the process died. Raises what
        the process sent."""
        pipe, process = cast(Connection, self._pipe), cast("subprocess.Popen[bytes]", self._process)
        heard = time.monotonic()
        while True:
            try:
                if not pipe.poll(min(SIGNS_OF_LIFE_S, patience_s)):
                    # At least two signs must be missing, however short the time that was set.
                    if time.monotonic() - heard > max(patience_s, 2 * SIGNS_OF_LIFE_S):
                        process.kill()
                        self.close()
                        return STALLED
                    continue
                what, value = pipe.recv()
            except (EOFError, ConnectionError):
                code = process.wait()
                self.close()
                if self._interrupted:
                    raise StoppedError from None
                return _death(code)
            heard = time.monotonic()
            if what in {EXPECTED, PROGRESS}:
                told(what, value)
            elif what == "raised":
                raise value
            elif what == READY:
                return READY
            elif what == "report":
                return cast(ClipReport, value)


def _death(code: int) -> str:
    """How the process died, if the clip may be to blame."""
    if code in FATAL:
        full = " (the memory was full, or somebody ended it)" if code == -signal.SIGKILL else ""
        return f"{signal.Signals(-code).name}{full}"
    raise RuntimeError(f"the process for isolated clips ended with {code}; its own words are above")


class Isolation:
    """The lane of isolated clips: as many processes as there are, one clip in each."""

    def __init__(self, job: Job, store: Store, loop: Loop, *, processes: int) -> None:
        memory_gb = job.config.run.memory_bytes(torch.device(job.device).type) / 1e9 / processes
        run = job.config.run.model_copy(update={"memory_gb": memory_gb, "engine": "serial"})  # what dies was alone
        own = replace(job, config=job.config.model_copy(update={"run": run}))
        self._loop = loop
        self._free = [IsolatedWorker(own, store) for _ in range(processes)]
        self._all = tuple(self._free)
        self._places = Budget(loop, processes)
        loop.scope.on_close += [self._places.wake, self._interrupt]

    def start(self) -> None:
        """Start the first process: what it lacks shows before any work. Raises as ``IsolatedWorker.start``."""
        self._free[-1].start()

    async def work(
        self, clip: Clip, held: lease.Lease, before: Before, told: Callable[[str, Any], None], *, retry: bool
    ) -> ClipReport:
        """``IsolatedWorker.work`` when a process is free; ``told`` is called by the owner."""

        def heard(what: str, value: Any) -> None:  # noqa: ANN401 - as the process says it
            self._loop.tell(partial(told, what, value))

        place = await self._places.reserve(1, self._loop.scope)
        worker = self._free.pop()
        try:
            assigned = partial(worker.work, clip, held, before, heard, retry=retry)
            return await self._loop.run("apart", assigned, self._loop.scope, patience_s=END_S + LET_GO_S)
        finally:
            self._free.append(worker)
            place.release()

    def _interrupt(self) -> None:
        for worker in self._all:
            worker.interrupt()

    def close(self) -> None:
        """End the processes."""
        for worker in self._all:
            worker.close()


# ---- the process's side ---------------------------------------------------------------------------------------------


class _Lent:
    """The run's lease, checked before every commit; the run renews it."""

    def __init__(self, store: Store, assignment: Assignment) -> None:
        self._store, self._assignment = store, assignment

    def check(self) -> None:
        lease.check_lent(self._store.files, self._assignment.clip.id, self._assignment.holder)


def main(pipe: Connection) -> None:
    """Work on the clips that the run assigns, until it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no work continues without the run and its lease
    defer(signal.SIGTERM)
    saying = threading.Lock()

    def say(what: str, value: object = None) -> None:
        with saying:
            try:
                pipe.send((what, value))
            except OSError:  # the run is gone
                os.kill(os.getpid(), signal.SIGKILL)

    def live() -> None:
        while True:
            time.sleep(SIGNS_OF_LIFE_S / 2)
            say("alive")

    job: Job = pipe.recv()
    threading.Thread(target=live, name="signs of life", daemon=True).start()
    try:
        _work(job, pipe, say)
    except AuFusionError as error:
        say("raised", error)
    except (KeyboardInterrupt, EOFError):
        pass  # the run asked for the end, or has gone
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it may ask again while this process is on its way out


def _work(job: Job, pipe: Connection, say: Callable[..., None]) -> None:
    store = Store.open(job.store, "a")
    with crashes.traced(store.files) as trace:
        _serve(job, store, trace, pipe, say)


def _serve(job: Job, store: Store, trace: str, pipe: Connection, say: Callable[..., None]) -> None:
    device = pick_device(job.device)
    options = Options(stages=job.stages, offline=job.offline, lock=job.lock)
    plan = prepared_plan(job.config, job.clips, store, options, device.type)
    engine = LocalEngine(device, compiled=job.compiled, block_rows=job.config.run.block_rows, offline=job.offline)
    for name in job.set_up:
        engine.ready(plan.prepared[name])
    loop = Loop(InlineLanes())
    working = Working(
        plan,
        store,
        engine,
        plan.new_sources(),
        job.provenance,
        lambda _, frames: say(EXPECTED, frames),
        lambda _, frames: say(PROGRESS, frames),
        job.config.run,
        overwrite=job.overwrite,
        loop=loop,
        budget=Budget(loop, job.config.run.memory_bytes(device.type)),
        trace=trace,
    )
    say(READY)
    with one_thread():
        while True:
            given: Assignment = pipe.recv()
            report = loop.drive(work_on(working, given.clip, _Lent(store, given), given.before, retry=given.retry))
            say("report", report)


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])))
