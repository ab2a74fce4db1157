"""How both programs end: signals, exit codes, output that nobody reads, errors that nobody foresaw."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from extract import endings
from extract.errors import ClipError, CorruptError, MachineError
from extract.store import Store
from tests.conftest import ROOT
from tests.media_files import pictures, write_clip

EXTRACT = [sys.executable, "-m", "extract.cli"]
STOPS = {signal.SIGHUP: 129, signal.SIGINT: 130, signal.SIGTERM: 143}


def heeded():
    """A shell that runs the tests in the background leaves SIGINT ignored, which children inherit."""
    for signum in STOPS:
        signal.signal(signum, signal.SIG_DFL)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for n in range(2):
        write_clip(folder / f"{n}.mov", pictures(250, 240, 320), codec="libx264", pix_fmt="yuv420p")
    subprocess.run([*EXTRACT, "manifest", "folder", ".", "-o", "m.yaml"], cwd=folder, check=True, capture_output=True)
    return folder


def start(clips, store, *settings, preexec_fn=heeded):
    command = [*EXTRACT, "run", "--manifest", str(clips / "m.yaml"), "--store", str(store), "--stage", "detections"]
    words = [word for setting in ("run.block_rows=16", *settings) for word in ("--set", setting)]
    return subprocess.Popen(
        [*command, "-q", *words], cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=preexec_fn
    )


def wait_for_a_block(process, store):
    while process.poll() is None and not any(Path(store).glob("*/detections/box/c.*")):
        time.sleep(0.01)


@pytest.mark.parametrize(("how", "code"), STOPS.items())
@pytest.mark.parametrize("isolate", ["never", "always"])
def test_a_stopped_run_says_so_and_leaves_nothing_behind(clips, tmp_path, how, code, isolate):
    store = tmp_path / "s.zarr"
    process = start(clips, store, f"run.isolate={isolate}")
    wait_for_a_block(process, store)
    process.send_signal(how)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code, error
    assert error == "extract: interrupted; run the same command to continue\n"
    assert not list(store.glob("*/.lease*"))
    assert not list(store.glob("*/.crash"))
    records = [Store.open(store).record(clip, "detections") for clip in Store.open(store).clips()]
    assert {(record.state, record.attempts) for record in records if record} <= {("partial", 0), ("done", 0)}


def test_who_ignores_a_hangup_goes_on(clips, tmp_path):
    """``nohup extract run``."""

    def nohup():
        heeded()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = start(clips, tmp_path / "s.zarr", preexec_fn=nohup)
    wait_for_a_block(process, tmp_path / "s.zarr")
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143


FIT = """
import sys, time
from fusion import cli, training
def fit(*args, **keys):
    print("fitting", flush=True)
    time.sleep(600)
training.fit = fit
cli.main()
"""


@pytest.mark.parametrize(("how", "code"), STOPS.items())
def test_fusion_ends_alike(tmp_path, how, code):
    process = subprocess.Popen(
        [sys.executable, "-c", FIT, "fit", "-c", "demo"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heeded,
    )
    assert process.stdout.readline() == "fitting\n"
    process.send_signal(how)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code, error
    assert error.startswith("fusion: interrupted; run the same command to continue (with -o")


ENDING = """
import os, signal, sys, time
from extract import endings
class Last:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000): pass
def app():
    if "destructor" in sys.argv:
        Last()
        time.sleep(20)
    elif "outside" in sys.argv:
        os.kill(os.getpid(), signal.SIGTERM)
    else:
        import atexit
        atexit.register(os.kill, os.getpid(), signal.SIGTERM)
    raise SystemExit(3)
endings.run_program("x", app)
"""


@pytest.mark.parametrize(
    ("moment", "code", "said"),
    [
        ("destructor", 143, "x: interrupted; run the same command to continue\n"),
        ("outside", 143, "x: interrupted; run the same command to continue\n"),
        ("afterwards", 3, ""),
    ],
)
def test_a_signal_at_an_unpleasant_moment(moment, code, said):
    """Where nothing can be raised; before there is a command; while the interpreter takes itself apart."""
    ended = subprocess.run(
        [sys.executable, "-c", ENDING, moment],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        preexec_fn=heeded,
        cwd=ROOT,
    )
    assert (ended.returncode, ended.stderr) == (code, said)


def is_there(group: int) -> bool:
    """Whether a process of the group lives."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_drawing_stops_at_once_with_its_processes(tmp_path, how):
    process = subprocess.Popen(
        [*EXTRACT, "demo", "-o", str(tmp_path / "demo")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heeded,
        start_new_session=True,
        cwd=ROOT,
    )
    assert process.stdout.readline().startswith("drawn: ")
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as a terminal does
    else:
        process.send_signal(how)
    _, error = process.communicate(timeout=30)  # the pipe ends with the last process that holds it
    assert (process.returncode, error) == (128 + how, "extract: interrupted; run the same command to continue\n")
    deadline = time.monotonic() + 10  # the last one to go, multiprocessing's own, sees its pipe closed first
    while is_there(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_there(process.pid)


IMPORTING = """
import sys, time
from extract import endings
sys.path.insert(0, sys.argv[1])
def app():
    import slow
    print("imported", slow.done, flush=True)
    time.sleep(600)
endings.run_program("x", app)
"""
SLOW = """
import time
print("begun", flush=True)
ends = time.monotonic() + {seconds}
while time.monotonic() < ends:
    time.sleep(0.01)
done = True
"""


def importing(tmp_path, seconds):
    (tmp_path / "slow.py").write_text(SLOW.format(seconds=seconds))
    process = subprocess.Popen(
        [sys.executable, "-c", IMPORTING, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heeded,
    )
    assert process.stdout.readline() == "begun\n"
    return process


@pytest.mark.parametrize(("how", "code"), STOPS.items())
def test_a_signal_during_an_import_waits_for_its_end(tmp_path, how, code):
    """Raised in the middle of ``import torch``, it would meet C++ that aborts the process."""
    process = importing(tmp_path, 1.5)
    process.send_signal(how)
    out, error = process.communicate(timeout=30)
    assert (out, error, process.returncode) == (
        "imported True\n",
        "x: interrupted; run the same command to continue\n",
        code,
    )


def test_an_import_that_hangs_ends_by_a_second_signal(tmp_path):
    process = importing(tmp_path, 600)
    process.send_signal(signal.SIGINT)
    time.sleep(endings.SAME_STOP_S + 0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=5)
    assert process.returncode == 130


STUBBORN = """
import sys, time
from extract import endings
def app():
    with endings.uninterrupted():
        print("begun", flush=True)
        time.sleep(600)
endings.run_program("x", app)
"""


def test_a_second_signal_ends_at_once_but_not_one_of_the_same_moment():
    process = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, text=True, preexec_fn=heeded)
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    time.sleep(endings.SAME_STOP_S)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=5)
    assert process.returncode == 143


def test_a_signal_waits_for_the_end_of_a_block_that_must_be_whole(monkeypatch):
    monkeypatch.setattr(endings, "_first", None)
    done = []

    def block():
        with endings.uninterrupted():
            endings._stop(signal.SIGHUP, None)
            done.append("whole")

    with pytest.raises(endings.Interrupted) as stop:
        block()
    assert done == ["whole"]
    assert stop.value.exit_code == 129


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (MachineError("no disk"), 5, "x: no disk\n"),
        (CorruptError("bits"), 4, "x: bits\n"),
        (MemoryError(), 5, "x: the memory is full; nothing finished is lost"),
        (ModuleNotFoundError("No module named 'plotly'", name="plotly"), 3, "x: No module named 'plotly'; install"),
        (ModuleNotFoundError("No module named 'extract.new'", name="extract.new"), 70, "please report it"),
        (
            ValueError("nobody thought of it"),
            70,
            "ValueError: nobody thought of it\nx: a bug in au-fusion; please report",
        ),
        (BrokenPipeError(32, "Broken pipe"), 70, "please report it"),
        (endings.Interrupted(signal.SIGTERM), 143, "stopped\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
    ],
)
def test_every_error_has_its_code_and_its_words(capsys, error, code, said):
    with pytest.raises(typer.Exit) as end, endings.reported("x", "stopped"):
        raise error
    assert end.value.exit_code == code
    assert said in capsys.readouterr().err


def test_a_clips_error_outside_a_run_is_no_exit_code_of_a_bug(capsys):
    with pytest.raises(typer.Exit) as end, endings.reported("x", "stopped"):
        raise ClipError("no_frames", "nothing decodes")
    assert end.value.exit_code == 1
    assert capsys.readouterr().err == "x: nothing decodes\n"


@pytest.mark.parametrize("arguments", [["weights", "list"], ["weights", "list", "--json"], ["--help"]])
def test_output_that_nobody_reads_is_no_failure(arguments):
    """``extract status | true``: the reader is gone before the first line."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run(
            [*EXTRACT, *arguments], stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False, timeout=60
        )
    finally:
        os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_failure_is_not_hidden_by_a_closed_output(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    (tmp_path / "torn.mp4").write_bytes(b"no movie")
    (tmp_path / "m.yaml").write_text("version: 1\nclips: [{id: a, video: torn.mp4}]\n")
    command = [*EXTRACT, "run", "--manifest", str(tmp_path / "m.yaml"), "--store", str(tmp_path / "s.zarr")]
    ended = subprocess.run(
        [*command, "--stage", "frames"], stdout=writer, stderr=subprocess.PIPE, check=False, cwd=ROOT, timeout=60
    )
    os.close(writer)
    assert ended.returncode == 1


@pytest.mark.parametrize("arguments", [["weights", "list"], ["weights", "list", "--json"]])
def test_output_that_cannot_be_written_is_the_machines_fault(arguments):
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [*EXTRACT, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False, timeout=60
        )
    assert ended.returncode == 5
    assert ended.stderr == "extract: cannot write the output: No space left on device; what was computed is kept\n"


def test_threads_that_compute_do_not_spoil_the_exit_code(tmp_path):
    """A stop leaves a model that computes for minutes behind; an orderly end of the interpreter would abort."""
    program = tmp_path / "p.py"
    program.write_text(
        "import threading, time, torch\n"
        "from extract.endings import leave_at_once, run_program\n"
        "def compute():\n"
        "    a = torch.randn(400, 400)\n"
        "    while True: a @ a\n"
        "def app():\n"
        "    for _ in range(4): threading.Thread(target=compute, daemon=True).start()\n"
        "    time.sleep(0.3)\n"
        "    leave_at_once()\n"
        "    raise SystemExit(143)\n"
        "run_program('p', app)\n"
    )
    ended = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (143, "")
