"""The lanes of this machine: threads that do the work that the owner hands out.

``decode``: a thread for each piece of work, for a decoder may hang; a clip's frames and its sound may be read at once.
``gpu``: one thread, which launches micro-batches and does not wait for their results. ``fetch``: waits for those.
``cpu``: as many threads as asked for, torch at one thread in each. ``write``: one thread, for all that is written to
the store. ``apart``: a thread for each process of isolated clips, which waits for it. ``service``: one for each clip
that waits for a remote service.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, cast

import torch

from extract.endings import interruptible, leave_at_once
from extract.running.tasks import Job

Lane = Literal["decode", "gpu", "fetch", "cpu", "write", "apart", "service"]

END_S = 1.0
"""How long idle threads may take to end."""

Finished = Callable[[Job[Any]], None]


class Busy:
    """Seconds that each lane has worked, over all its threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.seconds: dict[str, float] = {}

    def perform(self, job: Job[Any]) -> None:
        """Do the job, and add its time to its lane's."""
        start = time.perf_counter()
        job.perform()
        took = time.perf_counter() - start
        with self._lock:
            self.seconds[job.lane] = self.seconds.get(job.lane, 0.0) + took


class Threads:
    """Daemons, for one that hangs in a library must not keep the program from its end; those that can end are awaited.

    A thread that still lets go of tensors while the interpreter ends aborts the process.
    """

    def __init__(self) -> None:
        self._begun: list[threading.Thread] = []

    def begin(self, name: str, work: Callable[..., None], *given: object) -> None:
        """Call ``work`` with ``given`` in a thread of its own."""
        thread = threading.Thread(target=work, args=given, name=name, daemon=True)
        self._begun = [*(begun for begun in self._begun if begun.is_alive()), thread]
        thread.start()

    def join(self) -> None:
        """Wait for all, END_S at most; if one is left then, the program must end without regard to it."""
        until = time.monotonic() + END_S
        for thread in self._begun:
            thread.join(max(until - time.monotonic(), 0))
        if any(thread.is_alive() for thread in self._begun):
            leave_at_once()


class ThreadLanes:
    """Every lane has threads of its own. They are begun when they are first needed, and end with ``close``."""

    def __init__(self, threads: Mapping[str, int]) -> None:
        """``threads``: lane -> how many. ``decode`` has one for each piece of work, not more at once than here."""
        self.threads = dict(threads)
        self.busy = Busy()
        self._begun = Threads()
        self._queues: dict[str, queue.SimpleQueue[tuple[Job[Any], Finished] | None]] = {}

    def submit(self, job: Job[Any], finished: Finished) -> None:
        """Queue the job for its lane."""
        if job.lane == "decode":
            self._begun.begin(job.lane, self._one, job, finished)
            return
        if job.lane not in self._queues:
            self._queues[job.lane] = queue.SimpleQueue()
            for number in range(self.threads[job.lane]):
                self._begun.begin(f"{job.lane} {number}", self._work, self._queues[job.lane])
        self._queues[job.lane].put((job, finished))

    def idle(self) -> bool:
        """False: the threads work by themselves."""
        return False

    def close(self) -> None:
        """End the threads when they have done what is queued."""
        for lane, waiting in self._queues.items():
            for _ in range(self.threads[lane]):
                waiting.put(None)
        self._queues.clear()
        self._begun.join()

    def _one(self, job: Job[Any], finished: Finished) -> None:
        self.busy.perform(job)
        finished(job)

    def _work(self, waiting: "queue.SimpleQueue[tuple[Job[Any], Finished] | None]") -> None:
        torch.set_num_threads(1)  # this thread's own number
        while (entry := waiting.get()) is not None:
            self._one(*entry)


class InlineLanes:
    """All work is done at once, by the owner, one piece after the other; only what may hang gets a thread."""

    def __init__(self) -> None:
        self.threads: dict[str, int] = {}
        self.busy = Busy()
        self._begun = Threads()

    def submit(self, job: Job[Any], finished: Finished) -> None:
        """Do the job, and return when it is done; one with a ``watch`` is done in a thread, which may hang."""
        if job.watch is not None:
            self._begun.begin(job.lane, self._do, job, finished)
            return
        with interruptible() if job.scope else nullcontext():  # what is written is not given up
            self._do(job, finished)

    def idle(self) -> bool:
        """False: nothing is ever left to do."""
        return False

    def close(self) -> None:
        """Wait for what has a thread."""
        self._begun.join()

    def _do(self, job: Job[Any], finished: Finished) -> None:
        self.busy.perform(job)
        finished(job)


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch computes in the thread that calls it: lanes are the parallelism, and bytes depend on no number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make_lanes(engine: Literal["lanes", "serial"], cpu_threads: int, clips: int) -> "ThreadLanes | InlineLanes":
    """As the config says."""
    if engine == "serial":
        return InlineLanes()
    named: dict[Lane, int] = {"decode": 2 * clips, "gpu": 1, "fetch": 1, "cpu": cpu_threads, "write": 1}
    named |= {"apart": clips, "service": clips}
    return ThreadLanes(cast("dict[str, int]", named))
