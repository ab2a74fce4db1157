"""Clips whose decoder crashes or hangs: the run goes on, in this process or beside it, and says what happened."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import extract
from extract.errors import MachineError
from extract.inputs.manifest import Clip, write_manifest
from extract.running import isolation
from extract.store import Store
from tests.media_files import pictures, write_clip

ROOT = Path(__file__).resolve().parent.parent

# Read by Python at its start: what a decoder that crashes or hangs on one file looks like from outside.
TRAP = """
import ctypes, signal, threading, time
import av

real = av.open
armed = {armed!r}

def opens(file, *args, **kwargs):
    if "bad" in str(file):
        if armed == "crash":
            signal.pthread_kill(threading.get_ident(), signal.SIGSEGV)
        elif armed == "hang":
            time.sleep(600)
        elif armed == "hang and let nobody else run":
            ctypes.PyDLL(None).sleep(600)
    return real(file, *args, **kwargs)

av.open = opens
"""


class Bench:
    def __init__(self, root: Path) -> None:
        self.root = root
        clips = [
            Clip(id=name, video=write_clip(root / f"{name}.mov", pictures(12)))
            for name in ("a_good", "b_bad", "c_good")
        ]
        write_manifest(root / "m.yaml", clips)

    def start(self, armed: str, *settings: str, store: str = "s.zarr", stage: str = "frames", retry: bool = False):
        traps = self.root / "traps"
        traps.mkdir(exist_ok=True)
        (traps / "sitecustomize.py").write_text(TRAP.format(armed=armed))
        command = [sys.executable, "-m", "extract.cli", "run", "--json", "--manifest", str(self.root / "m.yaml")]
        command += ["--store", str(self.root / store), "--stage", stage, *(["--retry"] if retry else [])]
        for setting in ("run.block_rows=8", *settings):
            command += ["--set", setting]
        env = {**os.environ, "PYTHONPATH": f"{traps}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.root
        )

    def run(self, armed: str, *settings: str, **more):
        process = self.start(armed, *settings, **more)
        out, err = process.communicate(timeout=120)
        return process.returncode, json.loads(out) if out.strip().startswith("{") else {}, err

    def states(self, store: str = "s.zarr") -> dict[str, str | None]:
        opened = Store.open(self.root / store)
        records = {name: opened.record(name, "frames") for name in ("a_good", "b_bad", "c_good")}
        return {name: record and (record.reason or record.state) for name, record in records.items()}


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


GOOD_BUT_ONE = {"a_good": "done", "c_good": "done"}


@pytest.mark.parametrize("engine", ["serial", "lanes"])
def test_a_clip_that_crashed_the_process_is_worked_on_beside_it_and_the_others_finish(bench, engine):
    """With several clips in flight all of them are suspected; only the one to blame is recorded."""
    code, _, _ = bench.run("crash", f"run.engine={engine}")
    assert code == -signal.SIGSEGV
    assert bench.states()["b_bad"] == "partial"
    if engine == "serial":
        assert bench.states() == {"a_good": "done", "b_bad": "partial", "c_good": None}
    code, report, err = bench.run("crash", f"run.engine={engine}")
    assert code == 1, err
    assert bench.states() == {**GOOD_BUT_ONE, "b_bad": "crashed"}
    (failure,) = report["failures"]
    assert "Segmentation fault in sitecustomize.py, line" in failure["message"]
    assert not list(bench.root.rglob(".crash"))
    assert not list(bench.root.rglob(".lease"))
    # Nothing is tried again until asked; then beside the run again; mended, it is done.
    assert (bench.run("")[0], bench.states()["b_bad"]) == (1, "crashed")
    assert (bench.run("crash", retry=True)[0], bench.states()["b_bad"]) == (1, "crashed")
    assert (bench.run("", retry=True)[0], bench.states()["b_bad"]) == (0, "done")


def test_always_isolated_one_run_is_enough(bench):
    code, report, err = bench.run("crash", "run.isolate=always")
    assert code == 1, err
    assert bench.states() == {**GOOD_BUT_ONE, "b_bad": "crashed"}
    assert [failure["reason"] for failure in report["failures"]] == ["crashed"]


@pytest.mark.parametrize("isolate", ["auto", "always"])
def test_a_decoder_that_hangs_fails_its_clip_alone(bench, isolate):
    code, report, err = bench.run("hang", "run.stall_s=2", f"run.isolate={isolate}")
    assert code == 1, err
    assert bench.states() == {**GOOD_BUT_ONE, "b_bad": "stalled"}
    assert "nothing was read or decoded for 2 s" in report["failures"][0]["message"]
    assert bench.run("")[0] == 0  # tried again without being asked


def test_a_decoder_that_lets_no_other_thread_run_is_ended_from_outside(bench):
    code, report, err = bench.run("hang and let nobody else run", "run.stall_s=2", "run.isolate=always")
    assert code == 1, err
    assert bench.states() == {**GOOD_BUT_ONE, "b_bad": "stalled"}
    assert "gave no sign of life for 2 s (run.stall_s)" in report["failures"][0]["message"]


def test_a_named_pipe_is_not_waited_for(bench):
    (bench.root / "b_bad.mov").unlink()
    os.mkfifo(bench.root / "b_bad.mov")
    code, report, err = bench.run("")
    assert code == 1, err
    assert bench.states() == {**GOOD_BUT_ONE, "b_bad": "stalled"}
    assert "b_bad.mov is a named pipe, which may never give a byte; expected a file" in report["failures"][0]["message"]


def test_isolated_or_not_the_bytes_are_the_same(bench):
    for isolate in ("never", "always"):
        code, _, err = bench.run("", f"run.isolate={isolate}", store=isolate, stage="faces")
        assert code == 0, err
    never, always = (
        {str(path.relative_to(bench.root / store)): path.read_bytes() for path in (bench.root / store).rglob("c.*")}
        for store in ("never", "always")
    )
    assert len(never) > 10
    assert never == always
    levers = {
        Store.open(bench.root / store).record("a_good", "detections").provenance["levers"]["batch"]
        for store in ("never", "always")
    }
    assert levers == {8}  # a block has eight rows


def test_the_folder_that_is_passed_on_is_enough_to_find_this_package(tmp_path):
    """Without site-packages, where an installed copy may be another one; from elsewhere."""
    script = "import importlib.util; print(importlib.util.find_spec('extract').origin)"
    found = subprocess.run(
        [sys.executable, "-S", "-c", script],
        env={"PYTHONPATH": isolation.PACKAGES},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout.strip() == extract.__file__, found.stderr


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="children are found in /proc")
def test_no_process_is_left_behind_by_a_run_that_is_killed(bench):
    process = bench.start("hang", "run.isolate=always")
    child = _child_of(process)
    process.kill()
    process.communicate(timeout=30)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{child}").exists():
        assert time.monotonic() < deadline, "the isolated process lives on without its run"
        time.sleep(0.1)


def _child_of(process) -> int:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
                command = (stat.parent / "cmdline").read_bytes()
            except OSError:
                continue
            if int(fields[1]) == process.pid and b"extract.running.isolation" in command:
                return int(stat.parent.name)
        time.sleep(0.1)
    raise AssertionError("no isolated process was started")


def test_a_machine_too_busy_to_start_a_process_is_no_bug(monkeypatch):
    monkeypatch.setattr(isolation, "START_S", 0.01)
    monkeypatch.setattr(isolation, "SIGNS_OF_LIFE_S", 0.01)  # importing torch takes longer
    job = SimpleNamespace(config=SimpleNamespace(run=SimpleNamespace(stall_s=0.01)))
    with pytest.raises(MachineError, match=r"was not ready after 0\.01 s: this machine is too busy; run the same"):
        isolation.IsolatedWorker(job, None).start()
