"""The loop that drives a run's coroutines, its lanes, and the memory that they share."""

import signal
import threading
import time

import pytest

from extract.errors import ClipError, MachineError
from extract.running import tasks
from extract.running.budget import Budget
from extract.running.lanes import InlineLanes, ThreadLanes
from extract.running.reading import Reading
from extract.running.tasks import Loop, Scope, StoppedError, all_of

LANES = {"cpu": 3, "gpu": 1, "write": 1}


@pytest.fixture(params=["threads", "inline"])
def loop(request):
    return Loop(ThreadLanes(LANES) if request.param == "threads" else InlineLanes())


def test_work_is_done_and_its_value_awaited(loop):
    async def main():
        jobs = [loop.run("cpu", lambda n=n: n * n, loop.scope) for n in range(20)]
        return sum(await all_of(jobs))

    assert loop.drive(main()) == sum(n * n for n in range(20))


def test_what_work_raises_is_raised_where_it_is_awaited(loop):
    async def main():
        with pytest.raises(ClipError, match="no picture"):
            await loop.run("cpu", lambda: fail(ClipError("no_frames", "no picture")), loop.scope)
        await loop.run("cpu", lambda: fail(ValueError("a bug")), loop.scope)

    with pytest.raises(ValueError, match="a bug"):
        loop.drive(main())


def test_the_error_of_the_first_is_raised_when_all_have_ended(loop):
    ended = []

    async def one(number, error):
        await loop.run("cpu", lambda: time.sleep(0.01 * (3 - number)), loop.scope)
        ended.append(number)
        if error:
            raise ValueError(f"number {number}")

    async def main():
        await all_of([loop.spawn(one(0, error=False)), loop.spawn(one(1, error=True)), loop.spawn(one(2, error=True))])

    with pytest.raises(ValueError, match="number 1"):
        loop.drive(main())
    assert sorted(ended) == [0, 1, 2]


def test_a_stop_begins_no_more_work_but_what_is_written(loop):
    done = []

    async def main():
        await loop.run("cpu", lambda: done.append("before"), loop.scope)
        loop.stop(MachineError("the disk is full"))
        with pytest.raises(StoppedError):
            await loop.run("cpu", lambda: done.append("after"), loop.scope)
        await loop.run("write", lambda: done.append("a record"), None)

    with pytest.raises(MachineError, match="the disk is full"):
        loop.drive(main())
    assert done == ["before", "a record"]


def test_what_is_no_error_ends_the_run(loop):
    """As a kill, or a signal in work that the owner does itself."""

    class Kill(BaseException):
        pass

    async def main():
        try:
            await loop.run("cpu", lambda: fail(Kill()), loop.scope)
        except Exception:  # noqa: BLE001 - the point of the test
            pytest.fail("it was taken for a failure")

    with pytest.raises(Kill):
        loop.drive(main())


def test_work_of_a_closed_scope_is_not_begun(loop):
    async def main():
        scope = Scope(loop.scope)
        scope.close()
        with pytest.raises(StoppedError):
            await loop.run("cpu", lambda: pytest.fail("begun"), scope)
        return await loop.run("cpu", lambda: "the rest goes on", loop.scope)

    assert loop.drive(main()) == "the rest goes on"


def test_alone_means_that_nothing_else_computes():
    loop = Loop(ThreadLanes(LANES))
    lock, active, most = threading.Lock(), [0], []

    def work(seconds):
        with lock:
            active[0] += 1
            most.append(active[0])
        time.sleep(seconds)
        with lock:
            active[0] -= 1

    def large():
        assert active[0] == 0
        work(0.05)
        assert active[0] == 0

    async def main():
        before = [loop.run("cpu", lambda: work(0.03), loop.scope) for _ in range(6)]
        alone = [loop.spawn(loop.run_alone(lane, large, loop.scope)) for lane in ("gpu", "cpu")]
        await loop.run("write", lambda: None, None)
        after = [loop.run(lane, lambda: work(0.01), loop.scope) for lane in ("cpu", "gpu", "cpu")]
        await all_of([*before, *alone, *after])

    loop.drive(main())
    assert max(most) > 1
    assert len(most) == 11


def test_work_that_hangs_is_left_behind(loop, monkeypatch):
    monkeypatch.setattr(tasks, "POLL_S", 0.01)
    release = threading.Event()
    reading = Reading(stall_s=0.05)

    async def main():
        with pytest.raises(ClipError, match=r"nothing was read or decoded for 0\.05 s"):
            await loop.run("decode", release.wait, loop.scope, watch=reading.watch())
        return await loop.run("cpu", lambda: "the rest goes on", loop.scope)

    assert loop.drive(main()) == "the rest goes on"
    release.set()


def interrupted_after_s(loop, coroutine):
    """How long it took until the run ended, by Ctrl-C."""
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        loop.drive(coroutine)
    return time.monotonic() - began


def test_after_a_stop_work_that_does_not_end_is_left_behind(monkeypatch):
    monkeypatch.setattr(tasks, "POLL_S", 0.01)
    monkeypatch.setattr(tasks, "LET_GO_S", 0.05)
    loop = Loop(ThreadLanes(LANES))
    release = threading.Event()

    async def main():
        job = loop.run("cpu", release.wait, loop.scope)
        loop.stop(KeyboardInterrupt())
        await job

    assert interrupted_after_s(loop, main()) < 5
    release.set()


def test_what_was_merely_stopped_hides_no_reason(loop):
    """The scope is closed by what fails; who comes first in the list ends because of it."""

    async def stopped():
        await loop.run("cpu", lambda: time.sleep(0.01), loop.scope)
        raise StoppedError

    async def failing(error):
        await loop.run("cpu", lambda: time.sleep(0.01), loop.scope)
        raise error

    async def main():
        errors = [ClipError("no_frames", "no picture"), MachineError("the disk is full")]
        await all_of([loop.spawn(stopped()), *(loop.spawn(failing(error)) for error in errors)])

    with pytest.raises(MachineError, match="the disk is full"):
        loop.drive(main())


@pytest.fixture
def plain_python():
    """Ctrl-C as Python has it, whatever tests before have set."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("plain_python")
def test_ctrl_c_between_two_steps_loses_no_coroutine(loop):
    """As in a notebook: nobody called ``heed_signals``, and the signal strikes while a coroutine takes a step."""
    ended = []

    async def main():
        try:
            await loop.run("cpu", lambda: None, loop.scope)
            signal.raise_signal(signal.SIGINT)
            ended.append("the step")
            await loop.run("cpu", lambda: None, loop.scope)
        finally:
            ended.append("the coroutine")

    with pytest.raises(KeyboardInterrupt):
        loop.drive(main())
    assert ended == ["the step", "the coroutine"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("plain_python")
def test_a_second_ctrl_c_waits_for_nothing():
    """Not for what is being written either, which otherwise nothing stops."""
    loop = Loop(ThreadLanes(LANES))
    release = threading.Event()

    async def main():
        job = loop.run("write", release.wait, None)
        signal.raise_signal(signal.SIGINT)
        threading.Timer(0.2, signal.pthread_kill, [threading.get_ident(), signal.SIGINT]).start()
        await job

    assert interrupted_after_s(loop, main()) < 5
    release.set()


def test_no_thread_outlives_the_run():
    """One that lets go of its last tensors while the interpreter ends would abort it."""
    before = set(threading.enumerate())
    lanes = ThreadLanes({**LANES, "decode": 2})
    loop = Loop(lanes)

    class Slow:
        def __del__(self):
            time.sleep(0.2)

    async def main():
        await all_of([loop.run(lane, Slow, loop.scope) for lane in ("cpu", "write", "decode")])

    loop.drive(main())
    assert set(threading.enumerate()) <= before


# ---- memory --------------------------------------------------------------------------------------------------------


def test_memory_is_given_in_the_order_of_asking(loop):
    budget = Budget(loop, 10)
    order = []

    async def hold(name, amount):
        held = await budget.reserve(amount, loop.scope)
        order.append(name)
        await loop.run("cpu", lambda: time.sleep(0.005), loop.scope)
        assert budget.held <= budget.total
        held.release()
        held.release()  # a second time does nothing

    async def main():
        await all_of([loop.spawn(hold(n, a)) for n, a in (("a", 6), ("b", 4), ("c", 9), ("d", 1), ("e", 2))])

    loop.drive(main())
    assert order == ["a", "b", "c", "d", "e"]  # d and e would have fitted beside a and b
    assert budget.held == 0
    assert budget.most == 10


def test_who_asks_for_more_than_there_is_gets_all_of_it(loop):
    budget = Budget(loop, 10)

    async def main():
        small = await budget.reserve(3, loop.scope)
        large = loop.spawn(budget.reserve(1000, loop.scope))
        await loop.run("cpu", lambda: None, loop.scope)
        assert not large.done
        small.release()
        held = await large
        assert (held.amount, budget.held) == (10, 10)
        held.shrink(4)
        assert budget.held == 4

    loop.drive(main())


def test_who_waits_hears_of_a_stop(loop):
    budget = Budget(loop, 10)
    part = Scope(Scope(loop.scope))
    part.on_close.append(budget.wake)

    async def main():
        await budget.reserve(10, part)
        waiting = loop.spawn(budget.reserve(1, part))
        await loop.run("cpu", lambda: None, loop.scope)
        loop.stop(MachineError("gone"))
        with pytest.raises(StoppedError):
            await waiting

    with pytest.raises(MachineError, match="gone"):
        loop.drive(main())


def fail(error):
    raise error
