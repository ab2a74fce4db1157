"""The demo's kill and the curves of its picture, on small stores and tables, without the demo's minutes."""

import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from extract.au import AU_NAMES
from tests.fusion_stores import add_instance, planted_store, remove_instance
from tools import curves, demo
from tools.demo import Commands, extract_with_a_kill, finished_clips

CLIPS = ("a", "b", "c", "d")


def work(store, *clips, num_frames=3):
    """Clips as an extraction leaves them."""
    return planted_store(store, dict.fromkeys(clips, "train"), num_frames=num_frames)


# ---- the demo's kill ------------------------------------------------------------------------------------------------


class Stub(Commands):
    """In place of ``extract run``: work that is done at once, then a process that sleeps or ends."""

    def __init__(self, folder, *runs):
        super().__init__(folder / "log.txt", verbose=False)
        self.runs = list(runs)
        self.commands = []
        self.processes = []

    def start(self, *command):
        act, program = self.runs.pop(0)
        act()
        self.commands.append([str(word) for word in command])
        self.processes.append(subprocess.Popen([sys.executable, "-S", "-c", program]))
        return self.processes[-1]


SLEEPS, ENDS, FAILS = "import time; time.sleep(60)", "", "raise SystemExit(3)"


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Manifest and store of four clips."""
    monkeypatch.setattr(demo, "LOOK_EVERY_S", 0.05)
    manifest = tmp_path / "m.yaml"
    manifest.write_text("version: 1\nclips:\n" + "".join(f"- id: {clip}\n  video: {clip}.mp4\n" for clip in CLIPS))
    return manifest, tmp_path / "store.zarr"


@pytest.mark.parametrize("rewritten", [0, 1])
def test_killed_with_half_of_the_clips_and_run_again(tmp_path, bench, rewritten):
    manifest, store = bench

    def second():
        work(store, "c", "d")
        for path in sorted(store.glob("a/*/*/c.*"))[:rewritten]:
            path.write_bytes(path.read_bytes() + b"\0")

    commands = Stub(tmp_path, (lambda: work(store, "a", "b"), SLEEPS), (second, ENDS))
    seconds, told = extract_with_a_kill(commands, manifest, store)
    assert [process.returncode for process in commands.processes] == [-signal.SIGKILL, 0]
    command = ["extract", "run", "-c", "demo", "--manifest", str(manifest), "--store", str(store)]
    assert commands.commands == [command] * 2
    assert 0 < seconds < 30
    files = len(list(store.glob("[ab]/*/*/c.*")))
    assert files >= 12
    assert told == (
        "the extraction was killed (kill -9) with 2 of 4 clips finished and run again: "
        f"{files - rewritten} of {files} files of what was finished were kept as they were"
    )


def test_nothing_is_killed_before_half_of_the_clips_are_through(tmp_path, bench):
    manifest, store = bench
    commands = Stub(tmp_path, (lambda: work(store, "a"), "import time; time.sleep(0.5)"))
    _, told = extract_with_a_kill(commands, manifest, store)
    assert [process.returncode for process in commands.processes] == [0]
    assert told == "the extraction finished before it could be killed: nothing was killed"


@pytest.mark.parametrize(
    ("before", "late"), [((), "finished before it could be killed"), (CLIPS, "was complete before")]
)
def test_an_extraction_with_nothing_left_to_do_is_not_killed(tmp_path, bench, before, late):
    manifest, store = bench
    if before:
        work(store, *before)
    commands = Stub(tmp_path, (lambda: work(store, *CLIPS), SLEEPS.replace("60", "0.3")))
    _, told = extract_with_a_kill(commands, manifest, store)
    assert [process.returncode for process in commands.processes] == [0]
    assert told == f"the extraction {late}: nothing was killed"


@pytest.mark.parametrize("halfway", [False, True], ids=["at once", "after the kill"])
def test_an_extraction_that_fails_ends_the_demo(tmp_path, bench, halfway):
    manifest, store = bench
    first = [(lambda: work(store, "a", "b"), SLEEPS)] if halfway else []
    commands = Stub(tmp_path, *first, (lambda: None, FAILS))
    with pytest.raises(SystemExit, match=r"that ended with exit code 3; .*log\.txt has all of it"):
        extract_with_a_kill(commands, manifest, store)


def test_a_clip_is_finished_when_all_of_its_instances_are(tmp_path):
    assert finished_clips(tmp_path / "nothing") == 0
    store = work(tmp_path / "s", *CLIPS)
    assert finished_clips(store.path) == 4
    remove_instance(store, "a", "hubert")
    assert finished_clips(store.path) == 3
    add_instance(store, "b", "labels", {"au": np.zeros((3, 12), np.int8)}, state="partial")
    assert finished_clips(store.path) == 2
    (store.path / "c/swin/zarr.json").write_bytes(b"{")  # as it is being written
    assert finished_clips(store.path) == 1


# ---- the curves -----------------------------------------------------------------------------------------------------


@pytest.fixture
def tables(tmp_path):
    """A table as ``fusion predict`` writes it, one frame of it without numbers, and labels of as many rows as asked."""
    header = ["frame", "pts_s", "valid", *(f"{name}_p" for name in AU_NAMES)]
    rows = [[k, f"{k / 25:.6f}", int(k != 5), *([""] * 12 if k == 5 else [f"{k / 10:.6f}"] * 12)] for k in range(10)]
    (tmp_path / "talk.csv").write_text("\n".join(",".join(map(str, row)) for row in [header, *rows]) + "\n")

    def labelled(num_rows):
        active = np.zeros((num_rows, 12), int)
        active[2:4, 0] = 1
        np.savetxt(tmp_path / "talk.au.csv", active, "%d", ",", header=",".join(AU_NAMES), comments="")
        return [str(tmp_path / name) for name in ("talk.csv", "talk.au.csv")] + ["-o", str(tmp_path / "curves.png")]

    return labelled


def test_the_curves_of_a_table(tables, tmp_path, capsys):
    curves.main(tables(10))
    assert capsys.readouterr().out == f"{tmp_path / 'curves.png'}: 10 frames of talk\n"
    with Image.open(tmp_path / "curves.png") as opened:
        assert (opened.format, opened.size) == ("PNG", (3 * 380 + 16, 4 * 120 + 30 + 16))
        sheet = np.asarray(opened.convert("RGB")).astype(int)
    first, second = (sheet[30:150, 16 + k * 380 :][:, : 380 - 16] for k in (0, 1))  # AU01, with labels; AU02
    banded = [(np.abs(panel - curves.TRUE).sum(axis=2) < 10).any(axis=0).nonzero()[0] for panel in (first, second)]
    assert len(banded[1]) == 0
    frame_px = (380 - 16) / 9
    assert np.allclose(banded[0][[0, -1]], [1.5 * frame_px, 3.5 * frame_px], atol=2)
    lined = (np.abs(second - curves.LINE).sum(axis=2) < 60).any(axis=0)
    assert lined[: round(4 * frame_px) - 2].mean() > 0.9
    assert not lined[round(4 * frame_px) + 3 : round(6 * frame_px) - 3].any()  # nothing is drawn through frame 5
    assert lined[round(6 * frame_px) + 2 :].mean() > 0.9


@pytest.mark.parametrize("num_rows", [9, 11])
def test_labels_of_another_movie_are_refused(tables, tmp_path, num_rows):
    with pytest.raises(SystemExit, match=rf"talk\.au\.csv: {num_rows} rows of labels for 10 frames of .*talk\.csv"):
        curves.main(tables(num_rows))
    assert not (tmp_path / "curves.png").exists()
