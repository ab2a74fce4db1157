"""The runner on small clips and toy stages: what is computed, kept, refused, recorded."""

import errno
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from extract.config import load_extract_config
from extract.errors import MachineError, ManifestError, StaleError, StoreError, UsageError
from extract.inputs.manifest import Clip, Labels, refuse_shared, write_manifest
from extract.records import Record
from extract.running import lease, nodes, runner
from extract.running.lease import Lease
from extract.running.selection import Options
from extract.store import Store
from tests.media_files import pictures, write_clip
from tests.toy_stages import Colour, Rank, computed, expected_mean

pytestmark = pytest.mark.usefixtures("toys")

FRAMES = 40
EVERYTHING = "extract: {instances: {colour: {}, contrast: {}, rank: {}, after_rank: {}, labels: {}}}"


class Bench:
    """A folder with clips, a manifest, a config and a store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store_path = root / "store.zarr"
        self.clips: dict[str, Clip] = {}
        (root / "c.yaml").write_text(EVERYTHING)

    def add(self, name: str, num_frames: int = FRAMES, **keys: object) -> list[np.ndarray]:
        images = pictures(num_frames)
        video = write_clip(self.root / f"{name}.mov", images)
        self.clips[name] = Clip(id=name, video=video, **keys)
        return images

    def run(
        self, *stages: str, config: tuple[str, ...] = (), manifest: bool = True, **options: object
    ) -> runner.Report:
        if manifest:
            write_manifest(self.root / "m.yaml", list(self.clips.values()))
        return runner.run(
            self.root / "m.yaml",
            self.store_path,
            str(self.root / "c.yaml"),
            set=["run.block_rows=16", *config],
            options=Options(stages=stages, **options),
        )

    @property
    def store(self) -> Store:
        return Store.open(self.store_path)

    def record(self, clip: str, instance: str):
        return self.store.record(clip, instance)

    def files(self) -> dict[str, bytes]:
        """Every chunk of the store."""
        found = sorted(self.store_path.rglob("c.*"))
        return {str(path.relative_to(self.store_path)): path.read_bytes() for path in found}


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


# ---- values ---------------------------------------------------------------------------------------------------------


def test_values_and_times_are_right_and_a_second_run_computes_nothing(bench):
    images = bench.add("a")
    report = bench.run()
    assert report.exit_code == 0
    mean = bench.store.read("a", "colour", "mean").values
    assert np.abs(mean - expected_mean(images)).max() < 1e-4
    assert np.allclose(bench.store.read("a", "frames", "pts_s").values, np.arange(FRAMES) / 25, atol=1e-9)
    corner = np.stack([image[0, 0] for image in images])
    assert np.abs(bench.store.read("a", "contrast", "difference").values - (corner - mean)).max() < 1e-4
    place = bench.store.read("a", "rank", "place").values
    assert np.array_equal(
        np.argsort(mean.sum(axis=1), kind="stable")[place.argsort()], np.argsort(place)[place.argsort()]
    )
    value = bench.store.read("a", "after_rank", "value").values
    assert np.array_equal(value, corner[:, 0] + 1000.0 * place)
    assert computed == {"colour": FRAMES, "contrast": FRAMES, "rank": 1, "after_rank": FRAMES}
    before = bench.files()
    computed.clear()
    again = bench.run()
    assert (again.exit_code, again.computed, dict(computed)) == (0, 0, {})
    assert bench.files() == before


def test_rows_found_wanting_are_zero_invalid_and_never_reach_what_they_feed(bench):
    images = bench.add("a")
    threshold = float(np.median(expected_mean(images).mean(axis=1)))
    bench.run(config=(f"colour.darkest={threshold}",))
    bright = expected_mean(images).mean(axis=1) >= threshold
    rows = bench.store.read("a", "colour", "mean")
    assert np.array_equal(rows.valid, bright)
    assert (rows.values[~bright] == 0).all()
    assert np.array_equal(bench.store.read("a", "contrast", "difference").valid, bright)
    assert computed["contrast"] == bright.sum()
    assert computed["after_rank"] == bright.sum()


def test_an_all_invalid_clip_is_empty_and_its_valid_is_complete(bench):
    bench.add("a")
    report = bench.run(config=("colour.darkest=999",))
    assert report.exit_code == 0
    for name in ("colour", "contrast", "after_rank"):
        record = bench.record("a", name)
        assert (record.state, record.reason, record.rows) == ("empty", "no_face", FRAMES)
        rows = bench.store.read("a", name, "valid")
        assert rows.values.shape == (FRAMES,)
        assert not rows.values.any()
        assert bench.store.damage("a", name) == []
    assert computed["after_rank"] == 0
    assert bench.run(config=("colour.darkest=999",)).computed == 0


def test_a_transient_output_is_stored_when_asked_and_changes_no_recipe(bench):
    images = bench.add("a")
    bench.run("colour")
    fingerprint = bench.record("a", "colour").fingerprint
    bench.run("colour", config=("colour.keep=[corner]",))
    assert bench.record("a", "colour").fingerprint == fingerprint
    corner = bench.store.read("a", "colour", "corner").values
    assert np.array_equal(corner, np.stack([image[0, 0] for image in images]))


def test_what_is_asked_pulls_its_inputs_and_leaves_the_rest(bench):
    bench.add("a")
    bench.run("contrast")
    assert bench.store.instances("a") == ["colour", "contrast", "frames"]


def test_one_recording_in_two_splits_is_refused_in_python_too(bench):
    for name, split in (("a", "train"), ("b", "val")):
        bench.add(name, source_video="film", split=split)
    with pytest.raises(
        ManifestError, match=r"m\.yaml: one subject or recording .*\n  source_video film: train: a \(line"
    ):
        bench.run("colour")
    clips = list(bench.clips.values())
    config = str(bench.root / "c.yaml")
    with pytest.raises(ManifestError, match=r"the clips: one subject .*\n  source_video film: train: a; val: b\n"):
        runner.run(clips, bench.store_path, config, options=Options(stages=("colour",)))
    assert not bench.store_path.exists()
    allowed = Options(stages=("colour",), allow_shared_subjects=True)
    assert runner.run(clips, bench.store_path, config, options=allowed).exit_code == 0


def test_a_long_list_of_shared_people_is_cut(tmp_path):
    clips = [
        Clip(id=f"{n}-{k}", video=tmp_path / "a.mp4", subject=f"s{n}", split=("train", "test")[k % 2])
        for n in range(8)
        for k in range(10)
    ]
    with pytest.raises(ManifestError) as caught:
        refuse_shared(clips, None)
    lines = str(caught.value).splitlines()
    assert lines[1] == "  subject s0: train: 0-0, 0-2, 0-4 and 2 more; test: 0-1, 0-3, 0-5 and 2 more"
    assert lines[6] == "  and 3 more"
    assert len(lines) == 8


def test_provenance_and_attributes_are_recorded(bench):
    bench.add("a", subject="S1", split="train", source_video="film")
    bench.run("colour")
    assert bench.store.attributes("a") == {"subject": "S1", "source_video": "film", "split": "train"}
    record = bench.record("a", "colour")
    assert record.recipe["config"] == {"gain": 1.0, "dtype": "float32", "darkest": 0.0}
    assert record.provenance["untrained"] is False
    assert record.provenance["versions"]["zarr"]
    bench.clips["a"] = bench.clips["a"].model_copy(update={"split": "test"})
    assert bench.run("colour").computed == 0
    assert bench.store.attributes("a")["split"] == "test"


# ---- resume ---------------------------------------------------------------------------------------------------------


class Stop(BaseException):
    """Ends a run from outside, as a kill does: no handler of ours may swallow it."""


def stop_after(monkeypatch, rows):
    real = Colour.compute

    def compute(self, batch):
        if computed["colour"] >= rows:
            raise Stop
        return real(self, batch)

    monkeypatch.setattr(Colour, "compute", compute)


@pytest.mark.parametrize("rows", [0, 8, 16, 24, 32])
def test_a_resumed_run_gives_the_bytes_of_an_unbroken_one(bench, monkeypatch, rows):
    bench.add("a")
    bench.run()
    whole = bench.files()
    shutil.rmtree(bench.store_path)
    computed.clear()
    with monkeypatch.context() as patch:
        stop_after(patch, rows)
        with pytest.raises(Stop):
            bench.run()
    begun = bench.files()
    assert begun.items() <= whole.items()
    finished_rows = 16 * (rows // 16)
    assert ("a/colour/mean/c.0.0" in begun) == (finished_rows > 0)
    computed.clear()
    assert bench.run().exit_code == 0
    assert bench.files() == whole
    assert computed["colour"] == FRAMES - finished_rows


def test_the_record_comes_after_every_block(bench, monkeypatch):
    bench.add("a")
    renames = []
    replace = os.replace

    def recording(old, new):
        if new.name != ".lease" and bench.store_path in new.parents:
            renames.append(str(Path(new).relative_to(bench.store_path)))
            if new.parent.name == "colour" and new.name == "zarr.json":
                renames[-1] += " " + json.loads(Path(old).read_text())["attributes"]["state"]
        replace(old, new)

    monkeypatch.setattr("extract.files.os.replace", recording)
    bench.run("colour")
    of_colour = [name for name in renames if name.startswith("a/colour")]
    assert of_colour[0] == "a/colour/zarr.json partial"
    assert of_colour[-1] == "a/colour/zarr.json done"
    assert max(i for i, name in enumerate(of_colour) if "/c." in name) < len(of_colour) - 1
    frames_done = max(i for i, name in enumerate(renames) if name == "a/frames/zarr.json")
    assert frames_done < renames.index("a/colour/zarr.json done")


def test_leftovers_of_a_killed_writer_are_swept(bench):
    bench.add("a")
    bench.run("frames")
    litter = bench.store_path / "a/frames/pts_s/.c.0.00ff.partial"
    litter.write_bytes(b"half")
    bench.run("colour")
    assert not litter.exists()


# ---- attempts -------------------------------------------------------------------------------------------------------


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


# ---- stale ----------------------------------------------------------------------------------------------------------


def test_a_changed_setting_is_refused_by_name_and_nothing_is_touched(bench):
    bench.add("a")
    bench.add("b", 10)
    bench.run()
    before = bench.files()
    computed.clear()
    with pytest.raises(StaleError) as refusal:
        bench.run("contrast", config=("colour.gain=2.0",))
    text = str(refusal.value)
    assert "colour: 2 clips (first a): recipe gain: 1.0 -> 2.0" in text
    assert "contrast: 2 clips (first a): recipe colour.gain: 1.0 -> 2.0" in text
    assert "then also stale: rank, after_rank" in text
    assert "--overwrite" in text
    assert bench.files() == before
    assert computed == {}


def test_overwrite_computes_what_was_asked_and_what_feeds_it(bench):
    images = bench.add("a")
    bench.run()
    rank = bench.record("a", "rank").fingerprint
    computed.clear()
    report = bench.run("contrast", config=("colour.gain=2.0",), overwrite=True)
    assert report.exit_code == 0
    assert [str(notice) for notice in report.warnings] == [
        "stale from now on, computed only when asked for: rank, after_rank"
    ]
    assert computed == {"colour": FRAMES, "contrast": FRAMES}
    assert np.abs(bench.store.read("a", "colour", "mean").values - 2 * expected_mean(images)).max() < 1e-3
    assert bench.record("a", "rank").fingerprint == rank
    with pytest.raises(StaleError, match=r"rank: clip a: recipe colour.gain: 1.0 -> 2.0"):
        bench.run("rank", config=("colour.gain=2.0",))


def test_a_changed_media_byte_is_refused_by_name(bench):
    bench.add("a")
    bench.run("colour")
    path = bench.clips["a"].video
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(StaleError, match=r"colour: clip a: source media: \w{12}\.\.\. -> \w{12}\.\.\."):
        bench.run("colour")
    assert bench.run("colour", overwrite=True).exit_code == 0


def test_a_raised_version_is_stale(bench, monkeypatch):
    bench.add("a")
    bench.run("colour")
    monkeypatch.setattr(Colour, "version", 2)
    with pytest.raises(StaleError, match="recipe version: 1 -> 2"):
        bench.run("colour")


def test_a_partial_instance_of_other_settings_is_stale_too(bench, monkeypatch):
    bench.add("a")
    with monkeypatch.context() as patch:
        stop_after(patch, 16)
        with pytest.raises(Stop):
            bench.run("colour")
    with pytest.raises(StaleError, match="gain"):
        bench.run("colour", config=("colour.gain=2.0",))


def test_a_source_that_is_gone_leaves_what_is_finished_readable(bench):
    bench.add("a")
    bench.run("colour")
    bench.clips["a"].video.unlink()
    assert bench.run("colour").exit_code == 0
    assert bench.store.read("a", "colour", "mean").values.shape == (FRAMES, 3)
    report = bench.run("contrast")
    assert [(f.instance, f.reason) for f in report.failures] == [("contrast", "missing_file")]


def test_batch_and_block_rows_are_in_no_recipe(bench):
    bench.add("a")
    bench.run("colour")
    assert bench.run("colour", config=("colour.batch=4", "colour.block_rows=32", "run.cpu_threads=1")).computed == 0


def test_labels_are_imported_again_without_asking(bench, tmp_path):
    labels = tmp_path / "a.csv"
    labels.write_text("AU1,AU2\n" + "1,0\n" * FRAMES)
    bench.add("a", labels=Labels(au=labels))
    bench.run("colour", "labels")
    assert bench.store.read("a", "labels", "au").values[:, :3].tolist() == [[1, 0, -1]] * FRAMES
    labels.write_text("AU1,AU2\n" + "0,1\n" * FRAMES)
    computed.clear()
    assert bench.run("colour", "labels").computed == 1
    assert bench.store.read("a", "labels", "au").values[:, :3].tolist() == [[0, 1, -1]] * FRAMES
    assert computed == {}


# ---- failures -------------------------------------------------------------------------------------------------------


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
        report = bench.run()
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


# ---- choosing clips -------------------------------------------------------------------------------------------------


def test_clips_shards_and_limits(bench):
    for name in "abcde":
        bench.add(name, 1)
    clips = list(bench.clips.values())

    def chosen(**options):
        return "".join(clip.id for clip in runner.choose(clips, Options(**options)))

    assert chosen(clips=["d", "b"]) == "bd"
    assert [chosen(shard=f"{k}/2") for k in (1, 2)] == ["ace", "bd"]
    assert chosen(shard="2/2", limit=1) == "b"
    for wrong in ("0/2", "3/2", "1", "a/b", "-1/2"):
        with pytest.raises(UsageError, match=f"--shard {wrong}: expected k/n"):
            chosen(shard=wrong)
    with pytest.raises(UsageError, match="--clip aa: the manifest has no such clip; did you mean a"):
        chosen(clips=["aa"])


def test_two_runs_at_once_each_clip_written_by_one(bench, monkeypatch):
    """The second run starts while the first is in the middle of clip a."""
    bench.add("a")
    bench.add("b", 10)
    real = Colour.compute
    second: list[runner.Report] = []

    def compute(self, batch):
        if not second:
            second.append(None)
            computed_before = computed["colour"]
            second[0] = bench.run("colour")
            assert computed["colour"] == computed_before + 10  # clip b only
        return real(self, batch)

    monkeypatch.setattr(Colour, "compute", compute)
    first = bench.run("colour")
    assert second[0].exit_code == 1
    assert len(second[0].busy) == 1
    assert str(second[0].busy[0]).startswith("clip a: run ")
    assert first.exit_code == 0
    assert computed["colour"] == FRAMES + 10
    assert bench.record("a", "colour").provenance["run"] == first.run
    assert bench.record("b", "colour").provenance["run"] == second[0].run


def test_nothing_of_the_config_is_left_out_of_the_recipe(bench):
    bench.add("a", 2)
    bench.run("colour")
    fields = Colour.config_type.model_fields
    assert set(bench.record("a", "colour").recipe["config"]) == set(fields)


def test_the_plan_writes_nothing(bench):
    bench.add("a", 2)
    write_manifest(bench.root / "m.yaml", list(bench.clips.values()))
    made, opened = runner.plan(bench.root / "m.yaml", bench.store_path, str(bench.root / "c.yaml"))
    assert opened is None
    assert not bench.store_path.exists()
    assert {task.need for task in made.tasks["a"].values()} == {"missing"}
    assert load_extract_config(str(bench.root / "c.yaml")).instances.keys() >= {"colour"}


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
    real = Colour.compute
    second: list[runner.Report] = []

    def compute(self, batch):
        if not second:
            second.append(None)
            second[0] = bench.run("colour", config=("colour.gain=2.0",), clips=["b"])
        return real(self, batch)

    monkeypatch.setattr(Colour, "compute", compute)
    first = bench.run("colour")
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

    real = nodes.stored_form

    def lost(values, output, instance):
        if instance == "colour":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return real(values, output, instance)

    monkeypatch.setattr(nodes, "stored_form", lost)
    with pytest.raises(MachineError, match="the GPU gave up: CUDA error"):
        bench.run("colour")
    assert bench.record("a", "colour").state == "partial"


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


def test_overwrite_without_the_video_loses_nothing(bench):
    """A drive that is not mounted today must not cost what was finished."""
    bench.add("a")
    bench.run("colour")
    before = bench.files()
    away = bench.clips["a"].video.rename(bench.root / "away.mov")
    report = bench.run("colour", config=("colour.gain=2.0",), overwrite=True)
    assert [(f.instance, f.reason) for f in report.failures] == [("colour", "missing_file")]
    assert bench.files() == before
    assert bench.record("a", "colour").state == "done"
    assert bench.run("colour").exit_code == 0
    away.rename(bench.clips["a"].video)


def test_aus_that_are_left_out_are_noted_and_told(bench, tmp_path):
    labels = tmp_path / "a.csv"
    labels.write_text("AU1,AU45,AU9\n" + "1,1,0\n" * FRAMES)
    bench.add("a", labels=Labels(au=labels))
    bench.add("b", labels=Labels(au=tmp_path / "b.csv"))
    (tmp_path / "b.csv").write_text("AU45\n" + "1\n" * FRAMES)
    report = bench.run("labels")
    assert (bench.store.read("a", "labels", "au").values[:, :2] == [1, -1]).all()
    assert bench.record("a", "labels").notes == {"left_out_aus": "AU45, AU9"}
    (warning,) = map(str, report.warnings)
    assert (
        warning == "clip a, labels: columns of the label file that are none of the twelve AUs are left out: AU45, AU9"
    )
    assert [(failure.clip, failure.reason) for failure in report.failures] == [("b", "bad_labels")]


def test_labels_are_imported_again_also_without_the_video(bench, tmp_path):
    labels = tmp_path / "a.csv"
    labels.write_text("AU1\n" + "1\n" * FRAMES)
    bench.add("a", labels=Labels(au=labels))
    bench.run("labels")
    bench.clips["a"].video.unlink()
    labels.write_text("AU1\n" + "0\n" * FRAMES)
    assert bench.run("labels").exit_code == 0
    assert (bench.store.read("a", "labels", "au").values[:, 0] == 0).all()


def test_a_narrow_type_gives_the_same_downstream_in_one_run_and_in_two(bench):
    bench.add("a")
    narrow = ("colour.dtype=float16", "colour.gain=1.01")
    bench.run("contrast", config=narrow)
    at_once = bench.files()
    shutil.rmtree(bench.store_path)
    bench.run("colour", config=narrow)
    shutil.rmtree(bench.store_path / "a/contrast", ignore_errors=True)
    bench.run("contrast", config=narrow)
    assert bench.files() == at_once


def test_two_frames_instances_are_decoded_each_in_its_own_way(bench):
    bench.add("a", 10)
    (bench.root / "c.yaml").write_text(
        "extract: {instances: {mended: {stage: frames, repair_pts: true}, colour: {},"
        " other: {stage: colour, inputs: {frames: mended}}}}"
    )
    assert bench.run().exit_code == 0
    assert bench.record("a", "other").recipe["inputs"]["frames"]["config"] == {"repair_pts": True}
    assert np.array_equal(
        bench.store.read("a", "mended", "pts_s").values, bench.store.read("a", "frames", "pts_s").values
    )


def test_what_only_inherited_a_crash_needs_no_retry_of_its_own(bench, monkeypatch):
    bench.add("a")
    die(bench, monkeypatch, 2)
    assert bench.run("contrast", config=HERE).exit_code == 1
    assert bench.record("a", "contrast").reason == "crashed"
    assert bench.run("colour", retry=True, config=HERE).exit_code == 0
    assert bench.run("contrast", config=HERE).exit_code == 0


def test_many_changed_files_are_one_line(bench):
    for name in "abcd":
        bench.add(name, 2)
    bench.run("colour")
    for name in "abcd":
        path = bench.clips[name].video
        path.write_bytes(path.read_bytes() + name.encode())
    with pytest.raises(StaleError) as refusal:
        bench.run("colour")
    lines = [line for line in str(refusal.value).splitlines() if "colour:" in line]
    assert len(lines) == 1
    assert "4 clips (first a): source media: " in lines[0]


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
