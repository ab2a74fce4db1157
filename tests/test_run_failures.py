"""Failures of one clip, of the machine, and runs that meet: the other clips finish, nothing is lost."""

import errno
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from extract.config import InstanceConfig
from extract.errors import ClipError, MachineError, StoreError
from extract.graph import Instance
from extract.inputs.manifest import write_manifest
from extract.records import Record
from extract.running import clip_stages, groups, lease
from extract.running.device import LocalEngine
from extract.running.handover import ClipReport
from extract.running.isolation import Isolation
from extract.running.lease import Lease, LeaseLostError
from extract.running.recipes import Prepared
from extract.running.report import Report
from extract.running.whole_clips import compute_clip
from extract.stage import StageConfig
from extract.store import Store
from extract.timeline import FRAMES as FRAMES_CLOCK
from tests.bench import FRAMES
from tests.toy_stages import Colour, Rank, computed

pytestmark = pytest.mark.usefixtures("toys")


def test_an_exception_of_one_clip_is_recorded_with_its_traceback_and_the_others_finish(bench, monkeypatch):
    bench.add("a")
    bench.add("b", 20)
    real = Colour.compute

    def compute(self, batch):
        if computed["colour"] < 8:
            computed["colour"] += 8
            raise ZeroDivisionError("by chance")
        return real(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Colour, "compute", compute)
        report = bench.run(config=("run.clips=1",))
    assert report.exit_code == 1
    assert {(f.clip, f.instance, f.reason) for f in report.failures} == {
        ("a", name, "unexpected") for name in ("colour", "contrast", "rank", "after_rank")
    }
    assert "Traceback" in bench.record("a", "colour").message
    behind = bench.record("a", "contrast")
    assert behind.message.startswith("Traceback")
    assert behind.cause == "colour"
    assert bench.record("a", "frames").state == "done"
    assert bench.record("b", "after_rank").state == "done"
    assert bench.run().exit_code == 0  # the next run tries again


def test_an_overflow_names_the_setting_that_helps(bench):
    bench.add("a")
    report = bench.run("colour", config=("colour.gain=1000.0", "colour.dtype=float16"))
    (failure,) = report.failures
    assert failure.reason == "overflow"
    assert "does not fit float16; --set colour.dtype=float32" in failure.message
    assert bench.record("a", "frames").state == "done"


@pytest.mark.parametrize(
    ("spoil", "reason", "message"),
    [
        (lambda out: {**out, "mean": out["mean"] * float("nan")}, "not_finite", "mean: NaN or infinity"),
        (lambda out: {**out, "mean": out["mean"][:-1]}, "broken_promise", r"mean: \d+ rows for \d+ given"),
        (lambda out: {**out, "mean": out["mean"][:, :2]}, "broken_promise", r"mean: rows of \(2,\), declares \(3,\)"),
        (lambda out: {**out, "mean": out["mean"].double()}, "broken_promise", "mean: float64, declares float32"),
        (lambda out: {"mean": out["mean"]}, "broken_promise", r"gave \['mean'\], declares"),
        (lambda out: {**out, "extra": out["mean"]}, "broken_promise", "gave .*extra"),
    ],
)
def test_a_stage_that_breaks_its_promise_fails_the_clip(bench, monkeypatch, spoil, reason, message):
    bench.add("a", 10)
    real = Colour.compute
    monkeypatch.setattr(Colour, "compute", lambda self, batch: spoil(real(self, batch)))
    (failure,) = bench.run("colour").failures
    assert failure.reason == reason
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(failure.message)


def test_a_full_disk_stops_at_once_and_marks_no_clip_failed(bench, monkeypatch):
    for name in "abc":
        bench.add(name, 10)
    bench.run("frames")
    fsync = os.fsync
    left = [12]

    def filling(handle):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr("extract.files.os.fsync", filling)
        with pytest.raises(MachineError, match=r"No space left on device.*run the same command again"):
            bench.run("colour")
    states = {bench.record(name, "colour").state for name in "abc" if bench.record(name, "colour")}
    assert "failed" not in states
    with monkeypatch.context() as patch:  # and again: a full disk is no crash of the clip
        left[0] = 12
        patch.setattr("extract.files.os.fsync", filling)
        with pytest.raises(MachineError, match="No space left on device"):
            bench.run("colour")
    assert bench.run("colour").exit_code == 0


def test_a_read_only_store_stops_before_a_record_is_written(bench, monkeypatch):
    bench.add("a", 10)
    bench.run("frames")

    def read_only(*_args, **_kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr("extract.files.LocalFiles._write_and_sync", staticmethod(read_only))
        with pytest.raises(MachineError, match="Read-only file system"):
            bench.run("colour")
    assert bench.record("a", "colour") is None


def test_a_folder_that_is_not_ours_is_refused_before_any_work(bench):
    bench.add("a", 10)
    bench.store_path.mkdir()
    (bench.store_path / "thesis.docx").write_text("years of work")
    with pytest.raises(StoreError, match="something else here"):
        bench.run("colour")
    assert computed == {}


def run_in_the_middle(monkeypatch, run):
    """Call ``run`` before the first batch that ``colour`` computes; the list that its report will be in."""
    real = Colour.compute
    second: list[Report] = []

    def compute(self, batch):
        if not second:
            second.append(None)
            second[0] = run()
        return real(self, batch)

    monkeypatch.setattr(Colour, "compute", compute)
    return second


def test_two_runs_at_once_each_clip_written_by_one(bench, monkeypatch):
    """The second run starts while the first is in the middle of clip a."""
    bench.add("a")
    bench.add("b", 10)

    def run():
        before = computed["colour"]
        report = bench.run("colour")
        assert computed["colour"] == before + 10  # clip b only
        return report

    second = run_in_the_middle(monkeypatch, run)
    first = bench.run("colour", config=("run.engine=serial",))
    assert second[0].exit_code == 1
    assert len(second[0].busy) == 1
    assert str(second[0].busy[0]).startswith("clip a: run ")
    assert first.exit_code == 0
    assert computed["colour"] == FRAMES + 10
    assert bench.record("a", "colour").provenance["run"] == first.run
    assert bench.record("b", "colour").provenance["run"] == second[0].run


def test_runs_that_start_together_share_the_work(bench):
    """Four at once make one store: none ends in an error, every clip is written by one."""
    names = [f"c{n:02}" for n in range(12)]
    for name in names:
        bench.add(name, 3)
    write_manifest(bench.root / "m.yaml", list(bench.clips.values()))
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda _: bench.run("colour", manifest=False), range(4)))
    assert not [failure for report in reports for failure in report.failures]
    assert sum(report.computed for report in reports) == 2 * len(names)
    assert computed["colour"] == 3 * len(names)
    runs = {report.run for report in reports}
    assert {bench.record(name, "colour").provenance["run"] for name in names} <= runs


def test_what_another_run_made_meanwhile_with_other_settings_is_left_alone(bench, monkeypatch):
    bench.add("a")
    bench.add("b", 10)
    run_in_the_middle(monkeypatch, lambda: bench.run("colour", config=("colour.gain=2.0",), clips=["b"]))
    first = bench.run("colour", config=("run.engine=serial",))
    assert first.exit_code == 1
    assert [vars(notice) for notice in first.busy] == [
        {"clip": "b", "instance": None, "message": "another run made colour with other settings meanwhile"}
    ]
    assert bench.record("b", "colour").recipe["config"]["gain"] == 2.0


def test_a_clip_taken_over_by_another_run_gets_not_a_record_more(bench, monkeypatch):
    bench.add("a")
    real = Colour.compute

    heir = Record("done", {"stage": "colour"}, {}, "heir", rows=1)
    taken: list[Lease] = []
    take = lease.take

    def taking(*arguments):
        taken.append(take(*arguments))
        return taken[-1]

    def compute(self, batch):
        taken[0]._lost = True
        Store.open(bench.store_path, "a").write_record("a", "colour", heir)
        return real(self, batch)

    monkeypatch.setattr(lease, "take", taking)
    monkeypatch.setattr(Colour, "compute", compute)
    report = bench.run("colour")
    assert report.exit_code == 1
    assert "the lease may be another run's" in report.busy[0].message
    assert bench.record("a", "colour") == heir


def test_a_gpu_that_gives_up_is_no_clips_failure(bench, monkeypatch):
    """CUDA's errors come late: when the results are fetched."""
    bench.add("a", 10)

    real = groups.stored_form

    def lost(values, output, prepared):
        if prepared.instance.name == "colour":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return real(values, output, prepared)

    monkeypatch.setattr(groups, "stored_form", lost)
    with pytest.raises(MachineError, match="the GPU gave up: CUDA error"):
        bench.run("colour")
    assert bench.record("a", "colour").state == "partial"


def test_a_full_disk_beside_a_pass_is_not_hidden_by_what_it_stops(bench, monkeypatch):
    """One clip: its pass over the frames is under way while a clip stage meets the full disk."""
    bench.add("a")
    under_way = threading.Event()
    real = Colour.compute

    def compute(self, batch):
        under_way.set()
        time.sleep(0.05)
        return real(self, batch)

    def full(*_):
        under_way.wait(10)
        raise MachineError("the disk is full")

    monkeypatch.setattr(Colour, "compute", compute)
    monkeypatch.setattr(clip_stages, "compute_clip", full)
    with pytest.raises(MachineError, match="the disk is full"):
        bench.run("colour", "labels")


def test_a_lease_lost_while_a_process_died_costs_its_clip_alone(bench, monkeypatch):
    bench.add("a", 10)
    bench.add("b", 10)

    async def lost(self, clip, held, before, told, *, retry):  # noqa: ARG001
        if clip.id == "a":
            raise LeaseLostError("clip a: the lease may be another run's")
        return ClipReport()

    monkeypatch.setattr(Isolation, "start", lambda _: None)
    monkeypatch.setattr(Isolation, "work", lost)
    report = bench.run("colour", config=("run.isolate=always",))
    assert report.exit_code == 1
    assert [(notice.clip, notice.message) for notice in report.busy] == [
        ("a", "clip a: the lease may be another run's")
    ]


def test_a_full_gpu_shows_when_the_clip_goes_up_too():
    class TooLong(torch.Tensor):
        def to(self, *_, **__):
            raise torch.OutOfMemoryError("tried to allocate 80 GiB")

    instance = Instance("rank", Rank(StageConfig()), FRAMES_CLOCK, InstanceConfig())
    prepared = Prepared(instance, {}, "", None, "float32")
    inputs = {"colour.mean": torch.zeros(3, 3).as_subclass(TooLong)}
    with pytest.raises(ClipError, match="instance rank: too long for the memory; cut it with start_s and end_s"):
        compute_clip(LocalEngine(torch.device("cpu")), prepared, instance.stage, inputs)


def test_a_clip_too_long_for_the_memory_fails_alone(bench, monkeypatch):
    bench.add("a")
    bench.add("b", 10)
    real = Rank.compute

    def compute(self, inputs):
        if len(inputs["colour.mean"]) > 10:
            raise torch.OutOfMemoryError("tried to allocate 80 GiB")
        return real(self, inputs)

    monkeypatch.setattr(Rank, "compute", compute)
    report = bench.run("rank")
    assert [(f.clip, f.instance, f.reason) for f in report.failures] == [("a", "rank", "out_of_memory")]
    assert bench.record("b", "rank").state == "done"


def test_damage_in_one_clip_leaves_the_others_to_finish_and_exits_4(bench):
    for name in "ab":
        bench.add(name, 10)
    bench.run("colour")
    path = bench.store_path / "a/colour/mean/c.0.0"
    path.write_bytes(bytes(len(path.read_bytes())))
    report = bench.run("rank")
    assert report.exit_code == 4
    assert "clip a, colour/mean" in report.damaged[0].message
    assert bench.record("b", "rank").state == "done"
