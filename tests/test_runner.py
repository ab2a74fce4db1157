"""The runner on small clips and toy stages: what is computed, kept, recorded; resuming."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from extract.config import load_extract_config
from extract.errors import ManifestError, UsageError
from extract.inputs.manifest import Clip, Labels, refuse_shared, write_manifest
from extract.running import runner
from extract.running.handover import Outcome
from extract.running.selection import Options
from tests.bench import FRAMES, Stop, stop_after
from tests.toy_stages import computed, expected_mean

pytestmark = pytest.mark.usefixtures("toys")


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
            bench.run(config=("run.engine=serial",))
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
    with pytest.raises(UsageError, match="--clip aa: the manifest has no such clip; did you mean 'a'"):
        chosen(clips=["aa"])


def test_the_plan_writes_nothing(bench):
    bench.add("a", 2)
    write_manifest(bench.root / "m.yaml", list(bench.clips.values()))
    made, opened = runner.plan(bench.root / "m.yaml", bench.store_path, str(bench.root / "c.yaml"))
    assert opened is None
    assert not bench.store_path.exists()
    assert {task.need for task in made.tasks["a"].values()} == {"missing"}
    assert load_extract_config(str(bench.root / "c.yaml")).instances.keys() >= {"colour"}


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
        warning
        == "clip a, labels: columns of the label file that are none of `labels.aus` (default: the twelve) are left "
        "out: AU45, AU9"
    )
    assert [(failure.clip, failure.reason) for failure in report.failures] == [("b", "bad_labels")]


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


@pytest.mark.parametrize(
    ("note", "value", "said"),
    [
        ("corrupt_frames", {"count": 2, "first_s": 0.16}, "frames decoded with errors: 2, the first at 0.16 s"),
        ("undecodable_packets", {"count": 1, "error": "bad"}, "packets that do not decode: 1 (bad)"),
        (
            "repaired_pts",
            {"absent": 1, "not_increasing": 3},
            "presentation times repaired: 1 absent, 3 not increasing",
        ),
        ("video_streams", {"count": 2, "taken": 1}, "2 video streams; number 1 is taken"),
        (
            "unreadable_crops",
            {"count": 2, "first": "00002.jpg"},
            "damaged crops, taken for absent: 2, the first 00002.jpg",
        ),
        ("clipped_samples", 1, "samples beyond full scale, clipped: 1"),
        ("declared_frames", 98, "the header declares 98 frames, 95 decode"),
    ],
)
def test_a_note_is_told_in_words(note, value, said):
    notices = runner._warnings("a", {"frames": Outcome("done", rows=95, notes={note: value, "drawn": "x"})})
    assert [str(notice) for notice in notices] == [f"clip a, frames: {said}"]
