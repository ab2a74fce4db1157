import errno
import fcntl
import json
import multiprocessing
import os
import random
import socket
import subprocess
import sys
import time
from dataclasses import asdict

import pytest

from extract.errors import MachineError
from extract.files import LocalFiles
from extract.running import lease
from extract.running.lease import Holder, Lease, LeaseLostError


@pytest.fixture
def files(tmp_path):
    return LocalFiles(tmp_path)


def write(files, *, age_s=0.0, **changes):
    """A lease as another process would have left it: of this kernel and pid namespace, its file not locked."""
    holder = asdict(Holder.me("other", locked=False)) | changes
    files.write("clip/.lease", json.dumps(holder).encode())
    then = (files.root / "clip/.lease").stat().st_mtime - age_s
    os.utime(files.root / "clip/.lease", (then, then))


def dead() -> dict[str, int]:
    process = subprocess.Popen([sys.executable, "-c", ""])
    started = lease._started(process.pid)
    process.wait()
    return {"pid": process.pid, "started": started}


def is_taken(files) -> bool:
    """Whether the clip's lease can be had."""
    with lease.held(files, "clip", "mine") as held:
        return isinstance(held, Lease)


def test_a_second_taker_is_told_who_holds_it(files):
    first = lease.take(files, "clip", "one")
    holder = lease.take(files, "clip", "two")
    assert isinstance(holder, Holder)
    assert str(holder) == f"run one (pid {os.getpid()} on {socket.gethostname()})"
    first.release()
    second = lease.take(files, "clip", "two")
    assert isinstance(second, Lease)
    second.release()
    assert os.listdir(files.root / "clip") == []


# ---- void or not ----------------------------------------------------------------------------------------------------


def test_a_dead_process_holds_nothing(files):
    write(files, **dead())
    assert is_taken(files)


def test_a_live_process_holds_it_and_another_of_its_number_does_not(files):
    write(files)
    assert not is_taken(files)
    write(files, started=lease._started(os.getpid()) - 1)
    assert is_taken(files)


HOLD = """
import sys, time
from pathlib import Path
from extract.running import lease
from extract.errors import MachineError
from extract.files import LocalFiles

held = lease.take(LocalFiles(Path(sys.argv[1])), "clip", "other")
print(held.holder.locked, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("ours", ["pid:[1]", None])
def test_containers_of_one_name_are_told_apart_by_the_lock(files, monkeypatch, ours):
    """Its pid says nothing in another pid namespace; the kernel's lock says whether it lives, there as here."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(files.root)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "True\n"
        if ours:
            monkeypatch.setattr(lease, "_link", lambda _: ours)
        assert not is_taken(files)
    finally:
        process.kill()
        process.communicate()
    assert is_taken(files)  # at once: the container was restarted


def test_without_locks_another_pid_namespace_is_believed_for_ten_minutes(files):
    write(files, **dead(), pid_namespace="pid:[1]", age_s=590)
    assert not is_taken(files)
    write(files, pid_namespace="pid:[1]", age_s=610)
    assert is_taken(files)


@pytest.mark.parametrize(("kind", "taken"), [("ext4", True), ("nfs4", False), ("fuse.sshfs", False)])
def test_a_lease_of_another_boot(files, monkeypatch, kind, taken):
    """On a disk of this machine it is one of before the reboot; on a share, it may be another machine's."""
    device = os.stat(files.root).st_dev
    mounts = f"1 0 {os.major(device)}:{os.minor(device)} / /somewhere rw - {kind} /dev/x rw"
    real = lease._text
    monkeypatch.setattr(lease, "_text", lambda path: mounts if path.endswith("mountinfo") else real(path))
    write(files, boot="another", age_s=590)
    assert is_taken(files) is taken
    write(files, boot="another", age_s=610)
    assert is_taken(files)


@pytest.mark.parametrize("skew_s", [-600, 600])
def test_the_clocks_of_the_machines_may_differ(files, monkeypatch, skew_s):
    """By this machine's clock the lease is ten minutes older, or newer, than by the file system's."""
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + skew_s)
    write(files, boot="another", pid_namespace="pid:[1]", age_s=100, time=real() - skew_s)
    monkeypatch.setattr(lease, "_is_local", lambda _: False)
    assert not is_taken(files)
    write(files, boot="another", pid_namespace="pid:[1]", age_s=650, time=real() - skew_s)
    assert is_taken(files)


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"\xff\x00",
        b"[]",
        b"[" * 60_000,
        b"7",
        b"null",
        b'{"host": "h"}',
        b'{"host": "h", "pid": "seven", "run": "r", "time": 0.0, "token": "t"}',
        b'{"host": 1, "pid": 7, "run": "r", "time": 0.0, "token": "t"}',
        b'{"host": "h", "pid": 7, "run": "r", "time": "now", "token": "t"}',
    ],
)
def test_what_is_no_lease_of_ours_is_void(files, content):
    files.write("clip/.lease", content)
    assert is_taken(files)


def test_a_lease_of_an_earlier_version_goes_by_its_age(files):
    old = {"host": socket.gethostname(), "pid": dead()["pid"], "run": "r", "time": time.time(), "token": "t"}
    files.write("clip/.lease", json.dumps(old).encode())
    assert not is_taken(files)
    os.utime(files.root / "clip/.lease", (0, 0))
    assert is_taken(files)


def test_a_folder_in_its_place_is_named(files):
    (files.root / "clip/.lease").mkdir(parents=True)
    with pytest.raises(MachineError, match=r"clip/\.lease is a folder, expected a run's lease; remove it"):
        lease.take(files, "clip", "mine")


def test_a_pipe_in_its_place_is_named_and_waited_for_by_nobody(files):
    (files.root / "clip").mkdir()
    os.mkfifo(files.root / "clip/.lease")
    with pytest.raises(MachineError, match=r"clip/\.lease is no file, expected a run's lease; remove it"):
        lease.take(files, "clip", "mine")


def test_a_lease_of_another_user_can_be_read_and_taken_over(files, monkeypatch):
    """Its file is not ours to write; the folder is."""
    real = os.open

    def refused(path, flags, *mode):
        if str(path).endswith("/.lease") and flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", refused)
    write(files)
    assert not is_taken(files)
    write(files, **dead())
    assert is_taken(files)


def test_a_fresh_lease_is_not_taken_for_the_void_one_whose_inode_it_has(files):
    """File systems give the number of a removed file to the next one: who judged the old one must keep it open."""
    write(files, **dead())
    path = files.root / "clip/.lease"
    judged = lease._open(path)
    assert lease._judge(path, judged) is None
    for _ in range(20):
        path.unlink()
        write(files)
        assert not lease._take_away(path, judged)
        assert path.exists()
    os.close(judged)


def test_what_was_left_while_a_lease_was_taken_is_swept(files):
    files.write("clip/.lease.0123.partial", b"half")
    assert is_taken(files)
    assert os.listdir(files.root / "clip") == []


# ---- holding it -----------------------------------------------------------------------------------------------------


def wait_until(holds) -> None:
    deadline = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < deadline, "never"
        time.sleep(0.01)


def test_a_held_lease_is_renewed(files, monkeypatch):
    monkeypatch.setattr(lease, "REFRESH_S", 0.02)
    path = files.root / "clip/.lease"
    with lease.held(files, "clip", "mine"):
        os.utime(path, (0, 0))
        wait_until(lambda: path.stat().st_mtime > 0)
    assert files.read("clip/.lease") is None


def test_renewing_brings_no_lost_lease_back(files, monkeypatch):
    monkeypatch.setattr(lease, "REFRESH_S", 0.02)
    held = lease.take(files, "clip", "mine")
    (files.root / "clip/.lease").unlink()
    wait_until(lambda: held._lost)
    time.sleep(0.1)
    assert not (files.root / "clip/.lease").exists()
    with pytest.raises(LeaseLostError, match="another run's"):
        held.check()
    held.release()


def test_who_slept_too_long_may_not_commit(files, monkeypatch):
    held = lease.take(files, "clip", "mine")
    held.check()
    monkeypatch.setattr(lease, "VOID_AFTER_S", 2 * lease.REFRESH_S)
    time.sleep(0.001)
    with pytest.raises(LeaseLostError, match="clip clip: asleep for minutes"):
        held.check()
    held.release()


def test_who_was_taken_over_may_not_commit_from_then_on(files):
    held = lease.take(files, "clip", "mine")
    write(files, run="heir")
    with pytest.raises(LeaseLostError, match="another run's"):
        held.check()
    held.release()
    assert json.loads(files.read("clip/.lease"))["run"] == "heir"


def test_a_process_that_works_for_the_holder_looks_at_the_token(files):
    with lease.held(files, "clip", "mine") as held:
        lease.check_lent(files, "clip", held.holder)
        write(files, run="heir")
        with pytest.raises(LeaseLostError, match="no longer holds"):
            lease.check_lent(files, "clip", held.holder)


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_links(files, monkeypatch, code):
    def no_links(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", no_links)
    held = lease.take(files, "clip", "mine")
    assert isinstance(held, Lease)
    assert not is_taken(files)
    held.check()
    held.release()
    assert os.listdir(files.root / "clip") == []


# ---- races ----------------------------------------------------------------------------------------------------------


def _race(root, start, wins, rounds, locks):
    """Take every clip's lease at the same moment as others, resting at random between any two steps."""
    rng = random.Random(os.getpid())
    for name in ("link", "rename", "open", "unlink", "stat"):
        real = getattr(os, name)

        def rested(*args, _real=real, **keys):
            time.sleep(rng.choice((0, 0, 0.001, 0.004)))
            return _real(*args, **keys)

        setattr(os, name, rested)
    if not locks:
        fcntl.flock = lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "no locks"))
    files = LocalFiles(root)
    for number in range(rounds):
        start.wait()
        held = lease.take(files, f"clip{number}", "race")
        start.wait()  # all have asked
        if isinstance(held, Lease):
            try:
                held.check()
            except LeaseLostError:
                continue  # somebody moved it, and it says so
            with wins.get_lock():
                wins[number] += 1


@pytest.mark.parametrize("locks", [True, False])
def test_of_many_that_find_a_void_lease_at_once_one_takes_it(tmp_path, locks):
    """Six processes, sixteen clips, each with a lease whose holder is dead."""
    rounds, racers = 16, 6
    files = LocalFiles(tmp_path)
    gone = dead()
    for number in range(rounds):
        write(files, **gone)
        os.renames(tmp_path / "clip/.lease", tmp_path / f"clip{number}/.lease")
    context = multiprocessing.get_context("spawn")
    start, wins = context.Barrier(racers), context.Array("i", rounds)
    processes = [context.Process(target=_race, args=(tmp_path, start, wins, rounds, locks)) for _ in range(racers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert max(wins) == 1
    assert sum(wins) >= (rounds if locks else 1)


def test_a_lease_left_held_is_given_back_at_the_end(tmp_path):
    """A signal may strike between the taking and the block that gives back."""
    program = (
        "import sys; from pathlib import Path; from extract.running import lease; from extract.files import LocalFiles;"
        "held = lease.take(LocalFiles(Path(sys.argv[1])), 'clip', 'mine'); sys.exit(3)"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False, timeout=60)
    assert ended.returncode == 3
    assert os.listdir(tmp_path / "clip") == []
