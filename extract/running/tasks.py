"""Coroutines of a run, driven by one thread: the owner of all state. What takes time is handed to lanes.

A coroutine says ``await loop.run("cpu", work)``. A lane does the work, a pure function, in a thread of its own and
posts it to the queue of finished work; the owner then continues the coroutine. Only the owner changes the state of the
run, and the order in which work finishes changes no result.

Not asyncio, for two reasons. ``extract.run`` must also work where an event loop runs already, as in a notebook. And the
serial engine, and the tests' engine of random order, differ from this one in nothing but their lanes.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Generic, Protocol, TypeVar, cast
from weakref import WeakSet

from extract.endings import deferrable, leave_at_once, uninterrupted
from extract.errors import MachineError

T = TypeVar("T")

POLL_S = 0.5
"""How often work that may hang is asked for signs of life."""
COMPUTE = {"cpu", "gpu"}
"""Lanes whose work takes memory for models' results."""
LET_GO_S = 10.0
"""How long most work under way may take to end after the run was told to stop; then it is left behind."""


class StoppedError(BaseException):
    """The run, or the part of it that this belongs to, ends here. No failure: nothing may record it as one."""


class Promise(Generic[T]):
    """A value that is not there yet; ``await`` it."""

    def __init__(self) -> None:
        self.done = False
        self._value: T | None = None
        self.error: BaseException | None = None
        self.waiting: list[Task[Any]] = []

    def __await__(self) -> Generator["Promise[Any]", None, T]:
        yield self  # even where it is done: a signal is heeded between two steps
        if self.error is not None:
            raise self.error
        return cast(T, self._value)


class Task(Promise[T]):
    """A coroutine on its way; its value is what the coroutine returns."""

    def __init__(self, coroutine: Coroutine[Promise[Any], None, T]) -> None:
        super().__init__()
        self.coroutine = coroutine


class Scope:
    """Work that ends together: work of a closed scope is not begun any more, and who awaits it gets StoppedError."""

    def __init__(self, parent: "Scope | None" = None) -> None:
        self.closed: bool = parent is not None and parent.closed
        self.on_close: list[Callable[[], None]] = []
        """Called when it closes: those who wait for a turn must hear of it."""
        self._parts: WeakSet[Scope] = WeakSet()
        self._whole = parent  # it must not go before its parts: they hear of a stop through it
        if parent is not None:
            parent._parts.add(self)

    def close(self) -> None:
        """Let no more work begin, here and in all that is part of it."""
        if self.closed:
            return
        self.closed = True
        for part in list(self._parts):
            part.close()
        for tell in self.on_close:
            tell()


class Job(Promise[T]):
    """Work for a lane."""

    def __init__(
        self,
        lane: str,
        work: Callable[[], T],
        scope: Scope | None,
        watch: Callable[[], None] | None,
        patience_s: float,
    ) -> None:
        super().__init__()
        self.lane, self.work, self.scope, self.watch, self.patience_s = lane, work, scope, watch, patience_s
        self.outcome: tuple[T | None, BaseException | None] = (None, None)
        self.abandoned = False

    def perform(self) -> None:
        """Do the work, in whichever thread; the outcome waits for the owner."""
        try:
            if self.scope is not None and self.scope.closed:
                raise StoppedError  # noqa: TRY301 - the outcome of work that must not begin
            self.outcome = (self.work(), None)
        except BaseException as error:  # noqa: BLE001 - carried over to the owner
            self.outcome = (None, error)
        finally:
            del self.work  # and with it the pictures that it read


class Lanes(Protocol):
    """Where work is done."""

    def submit(self, job: Job[Any], finished: Callable[[Job[Any]], None]) -> None:
        """Do ``job.perform`` at some time and call ``finished`` then, in any thread."""

    def idle(self) -> bool:
        """Called when the owner has nothing to do: do some work now, in its thread. False if there is none."""

    def close(self) -> None:
        """No more work will come."""


class Loop:
    """Drives coroutines in the thread that calls ``drive``."""

    def __init__(self, lanes: Lanes) -> None:
        self.scope = Scope()
        """Of the whole run."""
        self._lanes = lanes
        self._ready: deque[Task[Any]] = deque()
        self._running: set[Job[Any]] = set()
        self._told: deque[Callable[[], None]] = deque()
        self._alone: Job[Any] | None = None
        self._held_back: list[Job[Any]] = []
        self._wake = threading.Semaphore(0)
        self._why: BaseException | None = None
        self._stopped_at = 0.0
        self._asked = False
        """Whether a signal has asked for the end."""

    # ---- for coroutines ------------------------------------------------------------------------------------------

    def run(
        self,
        lane: str,
        work: Callable[[], T],
        scope: Scope | None,
        *,
        patience_s: float | None = None,
        watch: Callable[[], None] | None = None,
    ) -> Job[T]:
        """Have ``work`` done; await the job for its value.

        Args:
            scope: of which it is a part. None: it is done whatever ends.
            patience_s: how long it may take to end after a stop; LET_GO_S unless said, 0 for work that takes minutes
                and leaves nothing when cut.
            watch: for work that may hang. Asked every POLL_S; what it raises takes the place of the work's outcome, and
                the work is left behind, for no thread can be ended.
        """
        job = Job(lane, work, scope, watch, LET_GO_S if patience_s is None else patience_s)
        self._running.add(job)
        if self._alone is not None and lane in COMPUTE:
            self._held_back.append(job)
        else:
            self._lanes.submit(job, self._finished)
        return job

    async def run_alone(self, lane: str, work: Callable[[], T], scope: Scope) -> T:
        """Have ``work`` done while no other work computes: it has the memory for itself."""
        while self._alone is not None:
            await _ended(self._alone)
        job = self._alone = Job(lane, work, scope, None, 0.0)
        try:
            for other in [other for other in self._running if other.lane in COMPUTE and other not in self._held_back]:
                await _ended(other)
            self._running.add(job)
            self._lanes.submit(job, self._finished)
            value: T = await job
            return value
        finally:
            self._alone = None
            waiting, self._held_back = self._held_back, []
            for other in waiting:
                self._lanes.submit(other, self._finished)

    def spawn(self, coroutine: Coroutine[Promise[Any], None, T]) -> Task[T]:
        """Begin a coroutine beside the others; await the task for its value. Who spawns must await."""
        task = Task(coroutine)
        self._ready.append(task)
        return task

    def promise(self) -> Promise[Any]:
        """One to be kept with ``keep`` or broken with ``fail``."""
        return Promise()

    def keep(self, promise: Promise[T], value: T) -> None:
        """The value is there: those who wait continue."""
        promise._value = value
        self._settle(promise)

    def fail(self, promise: Promise[Any], error: BaseException) -> None:
        """The value will never come: those who wait get ``error``."""
        promise.error = error
        self._settle(promise)

    def stop(self, why: BaseException) -> None:
        """End the run: running work is finished, none is begun, ``drive`` raises ``why`` (the first one counts)."""
        if self._why is None:
            self._why, self._stopped_at = why, time.monotonic()
            self.scope.close()

    # ---- for the owner -------------------------------------------------------------------------------------------

    def drive(self, coroutine: Coroutine[Promise[Any], None, T]) -> T:
        """Run a coroutine, and all that it spawns, to the end.

        Raises:
            BaseException: what the coroutine raised, or why the run was stopped; a signal stops it.
        """
        main = self.spawn(coroutine)
        with deferrable():
            self._drive(main)
        if self._why is not None:
            raise self._why
        if main.error is not None:
            raise main.error
        return cast("T", main._value)

    def _drive(self, main: Task[Any]) -> None:
        try:
            while not main.done:
                try:
                    with uninterrupted():
                        self._hear()
                        while self._ready:
                            self._step(self._ready.popleft())
                            self._hear()
                        self._look_after_running()
                    if not main.done and not self._ready and not self._lanes.idle():
                        self._wake.acquire(timeout=POLL_S)
                except KeyboardInterrupt as signal:
                    if self._asked:  # whoever asks a second time does not want to wait
                        raise
                    self._asked = True
                    self.stop(signal)
        finally:
            self._lanes.close()
            if self._running:
                leave_at_once()  # their threads may be anywhere in a library's code

    def _step(self, task: Task[Any]) -> None:
        """Continue a coroutine until it waits again."""
        try:
            awaited = task.coroutine.send(None)
        except StopIteration as end:
            self.keep(task, end.value)
        except StoppedError as stopped:
            self.fail(task, stopped)
        except Exception as error:  # noqa: BLE001 - who awaits the task gets it
            self.fail(task, error)
        except BaseException as error:  # noqa: BLE001 - a signal's, or a test's: it ends the run
            self.stop(error)
            self.fail(task, StoppedError())
        else:
            if awaited.done:
                self._ready.append(task)
            else:
                awaited.waiting.append(task)

    def _settle(self, promise: Promise[Any]) -> None:
        promise.done = True
        self._ready += promise.waiting
        promise.waiting.clear()

    def tell(self, change: Callable[[], None]) -> None:
        """Have the owner call ``change`` soon. May be called in any thread."""
        self._told.append(change)
        self._wake.release()

    def _finished(self, job: Job[Any]) -> None:
        self.tell(partial(self._take, job))

    def _hear(self) -> None:
        while self._told:
            self._told.popleft()()

    def _take(self, job: Job[Any]) -> None:
        self._running.discard(job)
        if job.abandoned:
            return
        value, error = job.outcome
        if error is None:
            self.keep(job, value)
        elif isinstance(error, (Exception, StoppedError)):
            self.fail(job, error)
        else:
            self.stop(error)
            self.fail(job, StoppedError())

    def _look_after_running(self) -> None:
        """Leave behind what hangs."""
        since_s = time.monotonic() - self._stopped_at if self._why is not None else -1.0
        for job in [job for job in self._running if not job.abandoned]:
            try:
                if job.watch is not None:
                    job.watch()
                if since_s > job.patience_s and job.scope is not None:
                    raise StoppedError  # noqa: TRY301 - as if it had not begun
            except (Exception, StoppedError) as error:  # noqa: BLE001 - who awaits the work gets it
                job.abandoned = True
                self.fail(job, error)


async def _ended(promise: Promise[Any]) -> None:
    with suppress(Exception, StoppedError):  # whoever has to do with it hears of it
        await promise


async def all_of(tasks: Iterable[Promise[T]]) -> list[T]:
    """The values of all, in order; when all have ended, the error that ``worst`` names is raised."""
    values: list[T] = []
    errors: list[BaseException] = []
    for task in tasks:
        try:
            values.append(await task)
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)
    if errors:
        raise worst(errors)
    return values


def worst(errors: Sequence[BaseException]) -> BaseException:
    """The one to raise: what ends the run before what ends a clip; who was merely stopped knows no reason."""
    return min(errors, key=lambda error: (isinstance(error, StoppedError), not isinstance(error, MachineError)))
