import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time

import pytest

from extract import lease
from extract.files import LocalFiles
from extract.lease import Holder, Lease, LeaseLostError


@pytest.fixture
def files(tmp_path):
    return LocalFiles(tmp_path)


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def write(files, **changes):
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "run": "other", "time": time.time(), "token": "t"}
    files.write("clip/.lease", json.dumps(holder | changes).encode())


def test_a_second_taker_is_told_who_holds_it(files):
    first = lease.take(files, "clip", "one")
    holder = lease.take(files, "clip", "two")
    assert isinstance(holder, Holder)
    assert str(holder) == f"run one (pid {os.getpid()} on {socket.gethostname()})"
    first.release()
    second = lease.take(files, "clip", "two")
    assert isinstance(second, Lease)
    second.release()
    assert files.names("clip") == []


def test_a_dead_process_of_this_host_holds_nothing(files):
    write(files, pid=dead_pid())
    with lease.held(files, "clip", "mine") as held:
        assert isinstance(held, Lease)


def test_a_process_of_another_host_is_believed_for_ten_minutes(files):
    write(files, host="elsewhere", pid=dead_pid(), time=time.time() - 590)
    assert isinstance(lease.take(files, "clip", "mine"), Holder)
    write(files, host="elsewhere", time=time.time() - 610)
    with lease.held(files, "clip", "mine") as held:
        assert isinstance(held, Lease)


def test_a_lease_that_is_no_json_is_void(files):
    files.write("clip/.lease", b"{")
    with lease.held(files, "clip", "mine") as held:
        assert isinstance(held, Lease)


def test_a_held_lease_is_renewed(files, monkeypatch):
    monkeypatch.setattr(lease, "REFRESH_S", 0.02)
    with lease.held(files, "clip", "mine"):
        first = json.loads(files.read("clip/.lease"))["time"]
        deadline = time.monotonic() + 5
        while json.loads(files.read("clip/.lease"))["time"] == first:
            assert time.monotonic() < deadline, "never renewed"
            time.sleep(0.01)
    assert files.read("clip/.lease") is None


def test_who_slept_too_long_may_not_commit(files, monkeypatch):
    held = lease.take(files, "clip", "mine")
    held.check()
    monkeypatch.setattr(lease, "VOID_AFTER_S", 2 * lease.REFRESH_S)
    time.sleep(0.001)
    with pytest.raises(LeaseLostError, match="clip clip: asleep for minutes"):
        held.check()
    held.release()


def test_who_was_taken_over_may_not_commit(files, monkeypatch):
    monkeypatch.setattr(lease, "REFRESH_S", 0.02)
    held = lease.take(files, "clip", "mine")
    write(files, run="heir")
    deadline = time.monotonic() + 5
    while not held._lost:
        assert time.monotonic() < deadline, "never noticed"
        time.sleep(0.01)
    with pytest.raises(LeaseLostError, match="another run's"):
        held.check()
    held.release()


def test_a_void_lease_is_told_to_who_inherits_it(files):
    with lease.held(files, "clip", "mine") as held:
        assert not held.inherited
    write(files, pid=dead_pid())
    with lease.held(files, "clip", "mine") as held:
        assert held.inherited


def test_release_leaves_the_lease_of_who_took_over(files):
    held = lease.take(files, "clip", "mine")
    write(files, run="heir")
    held.release()
    assert json.loads(files.read("clip/.lease"))["run"] == "heir"


def _take_and_count(root, start, wins, rounds):
    files = LocalFiles(root)
    for number in range(rounds):
        start.wait()
        held = lease.take(files, f"clip{number}", "race")
        if isinstance(held, Lease):
            wins[number] += 1  # unlocked on purpose: a second winner would be lost or counted, either way not 1
            with wins.get_lock():
                wins[rounds + number] += 1
        start.wait()


def test_of_many_that_find_a_void_lease_at_once_one_takes_it(tmp_path):
    """Six processes, twenty clips, each with a lease whose holder is dead."""
    rounds, racers = 20, 6
    files = LocalFiles(tmp_path)
    pid = dead_pid()
    for number in range(rounds):
        write(files, pid=pid)
        os.renames(tmp_path / "clip/.lease", tmp_path / f"clip{number}/.lease")
    context = multiprocessing.get_context("spawn")
    start, wins = context.Barrier(racers), context.Array("i", 2 * rounds)
    processes = [context.Process(target=_take_and_count, args=(tmp_path, start, wins, rounds)) for _ in range(racers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert list(wins)[rounds:] == [1] * rounds
