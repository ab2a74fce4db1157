"""The overlapping engine: whatever is finished first, the store is that of the serial engine."""

import json
import os
import random
import shutil
import signal
import tempfile
import threading
import time
import warnings
import weakref
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch

import extract
from extract.config import ExtractConfig
from extract.inputs.manifest import Clip
from extract.inputs.media import picture
from extract.registry import STAGES
from extract.running import runner, tasks
from extract.running.lanes import InlineLanes
from extract.running.selection import Options
from extract.stage import VALID, Output, RowsStage, StageConfig
from extract.timeline import FRAMES
from tests.bench import Bench
from tests.media_files import write_clip
from tests.test_long_clips import write_video
from tests.test_vision_chain import INSTANCES, faces
from tests.toy_stages import Colour, Rank

ORDERS = 50
STOPS = 15
KILLS = 30
SERIAL, LANES = ("run.engine=serial",), ("run.engine=lanes",)


class Fragile(RowsStage[StageConfig]):
    """Fails in two micro-batches; what it raises first decides nothing."""

    name = "fragile"
    version = 1
    config_type = StageConfig
    inputs = ("colour.mean",)
    batch = 4

    @property
    def outputs(self):
        return (Output("copy", FRAMES, ("channel",), (3,), "float32"), VALID)

    def compute(self, batch):
        brightest = float(batch["colour.mean"].max())
        if brightest > 200:
            raise extract.errors.ClipError("not_finite", f"too bright: {brightest:.3f}")
        return {"copy": batch["colour.mean"]}


class AfterFragile(RowsStage[StageConfig]):
    """Fed by one that fails."""

    name = "after_fragile"
    version = 1
    config_type = StageConfig
    inputs = ("fragile.copy", "frames.image")
    row_by_row = True

    @property
    def outputs(self):
        return (Output("half", FRAMES, ("channel",), (3,), "float32"), VALID)

    def compute(self, batch):
        return {"half": batch["fragile.copy"] / 2}


class RandomLanes(InlineLanes):
    """Does one piece of the work that waits when the owner has nothing to do, and chooses it by a seed."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self.chance = chance
        self.waiting = []
        self.did = []
        self.stop_after = None

    def submit(self, job, finished):
        self.waiting.append((job, finished))

    def idle(self):
        if not self.waiting:
            return False
        if len(self.did) == self.stop_after:
            self.stop_after = None
            raise KeyboardInterrupt
        job, finished = self.waiting.pop(self.chance.randrange(len(self.waiting)))
        self.did.append(job.lane)
        self._do(job, finished)
        return True


class Shuffled(deque):
    """Gives its entries in any order."""

    chance = random.Random(0)

    def popleft(self):
        self.rotate(self.chance.randrange(len(self)))
        return super().popleft()


@pytest.fixture
def in_random_order(monkeypatch):
    """Call it with a seed: runs from now on do ready work in an order of its own."""

    def use(seed):
        chance = random.Random(seed)
        lanes = RandomLanes(chance)
        monkeypatch.setattr(Shuffled, "chance", chance)
        monkeypatch.setattr(tasks, "deque", Shuffled)
        monkeypatch.setattr(runner, "make_lanes", lambda *_: lanes)
        return lanes

    return use


def contents(store: Path) -> dict[str, object]:
    """Every file of a store; records without time and run, the config without the settings of speed."""
    found: dict[str, object] = {}
    for path in sorted(store.rglob("*")):
        if path.is_file() and not (path.parent == store and path.suffix == ".partial"):  # of a store half made
            name = str(path.relative_to(store))
            found[name] = without_times(json.loads(path.read_text())) if path.suffix == ".json" else path.read_bytes()
    return found


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(one) for key, one in value.items() if key not in {"run", "time"}}
    return value


@pytest.fixture
def folder(tmp_path):
    """In memory where the system has such a folder: what takes the time of a small run is the disk."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as made:
        yield Path(made)


@pytest.fixture
def bench(folder, monkeypatch, toys):  # noqa: ARG001 - toys must be in the registry
    """Two good clips, one whose bright frames fail a stage, one that is cut off, one that does not decode whole."""
    for stage in (Fragile, AfterFragile):
        monkeypatch.setitem(STAGES, stage.name, stage)
    bench = Bench(folder)
    listed = "colour: {}, contrast: {}, rank: {}, after_rank: {}, labels: {}, fragile: {}, after_fragile: {}"
    (folder / "c.yaml").write_text(f"extract: {{instances: {{{listed}}}}}")
    bench.add("a", 40)
    bench.add("b", 70)
    bright = [np.full((48, 64, 3), (200 if 20 <= i < 40 else 60) + i, np.uint8) for i in range(50)]
    bench.clips["c"] = Clip(id="c", video=write_clip(folder / "c.mov", bright))
    whole = (folder / "b.mov").read_bytes()
    (folder / "d.mov").write_bytes(whole[: len(whole) // 2])
    bench.clips["d"] = Clip(id="d", video=folder / "d.mov")
    white = [np.full((48, 64, 3), 255 if i == 37 else i, np.uint8) for i in range(60)]
    bench.clips["e"] = Clip(id="e", video=write_clip(folder / "e.mov", white))
    real = picture.upright_rgb

    def rgb(frame, reformatter):
        image = real(frame, reformatter)
        if image.min() == 255:
            raise extract.errors.ClipError("unreadable", "a white frame")
        return image

    monkeypatch.setattr(picture, "upright_rgb", rgb)
    return bench


@pytest.fixture
def serial(bench):
    """What the serial engine makes of the same clips."""
    assert bench.run(config=SERIAL).exit_code == 1
    expected = contents(bench.store_path)
    shutil.rmtree(bench.store_path)
    records = {
        name: value["attributes"] for name, value in expected.items() if name.count("/") == 2 and "/c." not in name
    }
    failed = {(name.split("/")[0], record["reason"]) for name, record in records.items() if record["state"] == "failed"}
    assert failed == {("c", "not_finite"), ("e", "unreadable")}
    assert (
        "too bright: 223" in records["c/fragile/zarr.json"]["message"]
    )  # rows 20 to 23, of five micro-batches that fail
    assert "e/colour/mean/c.1.0" in expected  # rows 16 to 31, of a group before the one that failed
    assert "e/colour/mean/c.2.0" not in expected
    return expected


def test_in_random_order_the_store_is_that_of_the_serial_engine(bench, serial, in_random_order):
    orders = set()
    for seed in range(ORDERS):
        lanes = in_random_order(seed)
        assert bench.run(config=("run.clips=3",)).exit_code == 1
        assert contents(bench.store_path) == serial, f"seed {seed}"
        shutil.rmtree(bench.store_path)
        orders.add(tuple(lanes.did))
    assert len(orders) == ORDERS


@pytest.mark.parametrize("lanes", [1, 2, 3, 4])
def test_whatever_the_number_of_lanes(bench, serial, lanes):
    report = bench.run(config=(*LANES, f"run.cpu_threads={lanes}", f"run.clips={lanes}"))
    assert report.exit_code == 1
    assert contents(bench.store_path) == serial


def test_a_budget_that_holds_one_frame_at_a_time_decides_nothing_but_the_time(bench, serial):
    assert bench.run(config=(*LANES, "run.memory_gb=1e-7")).exit_code == 1
    assert contents(bench.store_path) == serial


def test_slices_that_are_computed_out_of_order_are_put_in_order(bench, in_random_order, monkeypatch):
    """A row-by-row stage computes on slices of one frame, side by side; what it feeds waits for the group."""
    monkeypatch.setattr(Colour, "row_by_row", True)
    stored = []
    for seed in (None, *range(10)):
        engine = SERIAL
        if seed is not None:
            in_random_order(seed)
            engine = LANES
        assert bench.run("contrast", config=(*engine, "run.memory_gb=1e-5"), clips=["a", "b"]).exit_code == 0
        stored.append(contents(bench.store_path))
        assert stored[-1] == stored[0], f"seed {seed}"
        shutil.rmtree(bench.store_path)


def test_stopped_at_any_moment_and_resumed_the_store_is_the_same(bench, serial, in_random_order):
    """A stop keeps the blocks that are whole, gives the leases back, and is no attempt."""
    lanes = in_random_order(0)
    bench.run(config=("run.clips=3",))
    shutil.rmtree(bench.store_path)
    pieces = len(lanes.did)
    for seed in range(STOPS):
        lanes = in_random_order(seed)
        lanes.stop_after = lanes.chance.randrange(5, pieces)
        with pytest.raises(KeyboardInterrupt):
            bench.run(config=("run.clips=3",))
        left = contents(bench.store_path)
        assert {name: data for name, data in left.items() if "/c." in name}.items() <= serial.items()
        assert not [name for name in left if name.endswith((".lease", ".crash"))]
        assert not [
            name for name, record in left.items() if "zarr.json" in name and record["attributes"].get("attempts")
        ]
        in_random_order(seed)
        assert bench.run(config=("run.clips=3",)).exit_code == 1
        assert contents(bench.store_path) == serial, f"seed {seed}"
        shutil.rmtree(bench.store_path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a copy of this process")
def test_killed_and_resumed_with_three_clips_in_flight_the_store_is_the_same(bench, serial):
    """SIGKILL at random moments, until as many as KILLS have struck; each store is then continued to its end."""
    chance = random.Random(0)
    longest = 0.7
    kills = stores = 0
    while kills < KILLS:
        while True:
            pid = fork()
            if pid == 0:  # the copy: a run like any other
                bench.run(config=("run.clips=3",), retry=False)
                os._exit(0)
            time.sleep(chance.uniform(0, longest))
            os.kill(pid, signal.SIGKILL)
            killed = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
            if not killed or kills == KILLS:
                break
            kills += 1
        stores += 1
        assert bench.run().exit_code == 1
        assert contents(bench.store_path) == serial
        assert not list(bench.store_path.rglob(".crash*")) + list(bench.store_path.rglob(".lease"))
        shutil.rmtree(bench.store_path)
    assert stores <= KILLS


def fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: the copy begins its own
        return os.fork()


@pytest.mark.slow
def test_real_stages_in_random_order(media_dir, tmp_path, in_random_order):
    """dlib, alignment, two networks and sound, two clips in flight."""
    instances = {
        **INSTANCES,
        "swin": {"weights": "random", "architecture": "small", "resize": 64, "crop": 64},
        "hubert": {"weights": "random", "architecture": "small"},
    }
    clips = [Clip(id="sound", video=media_dir / "grid_lbax4n.mpg")]
    for number, frames in enumerate((20, 37)):
        path = tmp_path / f"{number}.mkv"
        write_clip(path, faces(media_dir, frames))
        clips.append(Clip(id=f"face{number}", video=path))
    stored = []
    for order in (None, *range(5)):
        engine = "serial" if order is None else "lanes"
        if order is not None:
            in_random_order(order)
        config = ExtractConfig(instances=instances, run={"engine": engine, "block_rows": 16})
        store = tmp_path / f"{order}.zarr"
        report = extract.run(clips, store, config, options=Options())
        assert report.exit_code == 0, report.failures
        stored.append(contents(store))
        assert stored[-1] == stored[0], order


def test_a_clip_stage_out_of_memory_is_tried_again_alone(bench, monkeypatch):
    """What was short of memory only because of its neighbours is no failure."""
    lock, active, tries = threading.Lock(), [0], []
    of_colour, of_rank = Colour.compute, Rank.compute

    def colour(self, batch):
        with lock:
            active[0] += 1
        try:
            time.sleep(0.01)
            return of_colour(self, batch)
        finally:
            with lock:
                active[0] -= 1

    def rank(self, inputs):
        tries.append((str(inputs), active[0]))  # another clip's may come between the first try and the second
        if len(tries) == 1:
            raise torch.OutOfMemoryError("out of memory")
        return of_rank(self, inputs)

    monkeypatch.setattr(Colour, "compute", colour)
    monkeypatch.setattr(Rank, "compute", rank)
    report = bench.run("colour", "rank", clips=["a", "b", "d"])
    assert report.exit_code == 0, report.failures
    assert len(tries) == 1 + 3
    assert [others for inputs, others in tries[1:] if inputs == tries[0][0]] == [0]


def test_frames_of_all_clips_in_flight_stay_within_the_memory(folder, monkeypatch, toys):  # noqa: ARG001
    """Ten minutes of video, three clips in flight; each may have one frame too many in its hands."""
    now, most, of_one = [0], [0], 64 * 48 * 3
    lock = threading.Lock()
    real = picture.upright_rgb

    def let_go():
        with lock:
            now[0] -= of_one

    def rgb(frame, reformatter):
        image = real(frame, reformatter)
        with lock:
            now[0] += of_one
            most[0] = max(most[0], now[0])
        weakref.finalize(image, let_go)
        return image

    monkeypatch.setattr(picture, "upright_rgb", rgb)
    bench = Bench(folder)
    for name in ("a", "b", "c"):
        video = write_video(folder / f"{name}.mkv", minutes=10)
        bench.clips[name] = Clip(id=name, video=video)
    held = 100 * of_one
    report = bench.run("colour", config=(f"run.memory_gb={held / 1e9}", "run.block_rows=256"))
    assert report.exit_code == 0, report.failures
    assert report.speed.num_frames == 3 * 10 * 60 * 2
    assert 32 * of_one <= most[0] <= held + 3 * of_one
