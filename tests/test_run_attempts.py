"""Clips that kill the process: attempts are counted, stops are not."""

import os
from pathlib import Path

import pytest

from extract.files import LocalFiles
from extract.running import crashes, lease
from extract.store import Store
from tests.bench import Stop, stop_after
from tests.toy_stages import Colour, computed

pytestmark = pytest.mark.usefixtures("toys")


def leave_behind(held):
    """What a killed process does with its lease: it stays, and names a process that is gone."""
    held._stop.set()
    held._thread.join()
    lease._HELD.discard(held)
    os.close(held._handle)  # the kernel frees the locks of the dead


SEGFAULT = """{"boot": "", "counter": "", "kills": 0}
Fatal Python error: Segmentation fault

Current thread 0x00007f0000000000 (most recent call first):
  File "/somewhere/extract/inputs/media.py", line 7 in frames
"""


def die(bench, monkeypatch, times, left=SEGFAULT):
    """Runs that end as a killed process does: nothing after the kill is carried out, its lease and traceback stay."""
    for _ in range(times):
        with monkeypatch.context() as patch:
            stop_after(patch, 0)
            patch.setattr("extract.running.ledger.Ledger.clear_attempts", lambda _: None)
            patch.setattr("extract.running.lease.Lease.release", leave_behind)
            with pytest.raises(Stop):
                bench.run("colour", config=HERE)
        (bench.store_path / "a/.crash").write_text(left)
        computed.clear()


HERE = ("run.isolate=never",)
"""Toy stages live in this process alone."""


def test_a_clip_that_kills_the_process_twice_is_skipped_until_retry(bench, monkeypatch):
    bench.add("a")
    bench.add("b", 10)
    die(bench, monkeypatch, 2)
    assert bench.record("a", "colour").attempts == 2
    report = bench.run("colour", config=HERE)
    assert report.exit_code == 1
    assert [(f.clip, f.instance, f.reason) for f in report.failures] == [
        ("a", "frames", "crashed"),
        ("a", "colour", "crashed"),
    ]
    assert "the last time by: Segmentation fault in media.py, line 7, frames; `--retry`" in report.failures[0].message
    assert bench.record("b", "colour").state == "done"
    computed.clear()
    assert bench.run("colour", config=HERE).exit_code == 1
    assert computed == {}
    assert bench.run("colour", retry=True, config=HERE).exit_code == 0
    assert bench.record("a", "colour").attempts == 0


@pytest.mark.parametrize("left", ["", '{"boot": "", "counter": "", "kills": 0}\n', "no word of ours\n"])
def test_a_process_killed_from_outside_is_no_crash_however_often(bench, monkeypatch, left):
    """A preempted job, an impatient kill -9: the fault handler wrote nothing, the clip is begun again."""
    bench.add("a")
    die(bench, monkeypatch, 4, left)
    assert bench.record("a", "colour").attempts == 1
    assert bench.run("colour").exit_code == 0
    assert not list(bench.store_path.rglob(".crash"))


def test_a_committed_block_clears_the_attempts(bench, monkeypatch):
    bench.add("a")
    die(bench, monkeypatch, 1)
    with monkeypatch.context() as patch:
        stop_after(patch, 24)
        with pytest.raises(Stop):
            bench.run("colour", config=HERE)
    assert bench.record("a", "colour").attempts == 0


def test_a_clean_stop_is_no_attempt(bench, monkeypatch):
    bench.add("a")
    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(Colour, "compute", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                bench.run("colour")
    assert bench.run("colour").exit_code == 0
    assert not list(bench.store_path.rglob(".lease"))


def test_a_stop_while_the_attempts_are_cleared_is_none_either(bench, monkeypatch):
    """The signal comes between the first block and the record that says so."""
    bench.add("a")
    real = Store.write_record
    stopped = []

    def write_record(self, clip, instance, record):
        if instance == "colour" and record.state == "partial" and not record.attempts and not stopped:
            stopped.append(True)
            raise Stop
        real(self, clip, instance, record)

    monkeypatch.setattr(Store, "write_record", write_record)
    with pytest.raises(Stop):
        bench.run("colour")
    assert stopped
    assert bench.record("a", "colour").attempts == 0


def test_what_only_inherited_a_crash_needs_no_retry_of_its_own(bench, monkeypatch):
    bench.add("a")
    die(bench, monkeypatch, 2)
    assert bench.run("contrast", config=HERE).exit_code == 1
    assert bench.record("a", "contrast").reason == "crashed"
    assert bench.run("colour", retry=True, config=HERE).exit_code == 0
    assert bench.run("contrast", config=HERE).exit_code == 0


def test_a_mark_that_goes_while_the_marks_are_read_is_no_matter(tmp_path, monkeypatch):
    """Another run finishes its clip just then."""
    files = LocalFiles(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / crashes.NAME).touch()
    (tmp_path / f"{crashes.TRACE}old").touch()

    def gone(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_bytes", gone)
    crashes.sweep(files)
    assert not (tmp_path / f"{crashes.TRACE}old").exists()
