"""Crops as a source: when they count as changed, are read again, are missing or cannot be read."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import extract
from extract.cli import app
from extract.errors import ClipError
from extract.inputs.crops import listing_stamp, read_crop
from extract.inputs.manifest import Clip, Labels
from extract.running.fingerprints import Sources
from extract.running.selection import Options
from tests.given_crops import CONFIG, draw_crops, run
from tests.media_files import greys, pictures, tone, write_clip


def test_a_stamp_tells_when_a_folder_must_be_read_again(tmp_path):
    """By name, size and time: each alone shows."""
    folder = draw_crops(tmp_path / "c", [1, 2])
    seen = {listing_stamp(folder)}
    first = folder / "00001.png"
    size, when = first.stat().st_size, first.stat().st_mtime_ns
    assert listing_stamp(folder) in seen
    os.utime(first, ns=(when, when + 1))
    seen.add(listing_stamp(folder))
    first.write_bytes(bytes(size + 1))
    os.utime(first, ns=(when, when))
    seen.add(listing_stamp(folder))
    first.rename(folder / "00003.png")
    seen.add(listing_stamp(folder))
    assert len(seen) == 4


def test_another_picture_makes_the_features_stale_and_leaves_sound_and_labels(tmp_path):
    """And times too, while the last number is the same."""
    folder = draw_crops(tmp_path / "c", [1, 2, 3])
    movie = write_clip(tmp_path / "a.mov", greys(3), sound=tone(0.4))
    clip = Clip(id="a", video=movie, crops=folder)
    run(tmp_path, clip)
    Image.new("RGB", (112, 112)).save(folder / "00002.png")
    with pytest.raises(extract.errors.StaleError, match=r"crop: clip a: source crops: ") as refused:
        run(tmp_path, clip)
    assert "hubert" not in str(refused.value)
    report, _ = run(tmp_path, clip, overwrite=True)
    assert (report.exit_code, report.computed) == (0, 2)
    (folder / "00003.png").unlink()
    with pytest.raises(extract.errors.StaleError, match=r"choice\.last_crop: 3 -> 2"):
        run(tmp_path, clip)


def test_a_run_that_was_cut_off_goes_on(tmp_path, monkeypatch):
    """Blocks of 4 rows: existing blocks are not read again, and the bytes are those of an unbroken run."""
    config = CONFIG.model_copy(update={"run": CONFIG.run.model_copy(update={"block_rows": 4})})
    clip = Clip(id="a", crops=draw_crops(tmp_path / "c", range(1, 13)), fps=25)
    for number in (2, 6):
        (tmp_path / f"c/{number:05d}.png").write_bytes(b"")
    _, whole = run(tmp_path, clip, config, stages=["swin"])
    (tmp_path / "two").mkdir()
    _, cut = run(tmp_path / "two", clip, config, stages=["swin"])
    for array in ("swin/feature", "swin/valid", "crop/valid"):
        chunk = next((tmp_path / "two/store.zarr/a" / array).glob("c.1*"))
        chunk.unlink()
    for instance in ("swin", "crop"):
        record = json.loads((path := tmp_path / f"two/store.zarr/a/{instance}/zarr.json").read_text())
        record["attributes"] |= {"state": "partial", "notes": {}}
        path.write_text(json.dumps(record))
    read = []
    monkeypatch.setattr("extract.inputs.crops.read_crop", lambda path: read.append(path.name) or read_crop(path))
    report, _ = run(tmp_path / "two", clip, config, stages=["swin"])
    assert sorted(read) == [f"{number:05d}.png" for number in (5, 6, 7, 8)]
    # One damaged picture was read now, the other by the run before: both are reported.
    assert cut.record("a", "crop").notes["unreadable_crops"] == {"count": 2, "first": "00002.png"}
    assert any("absent: 2, the first 00002.png" in warning.message for warning in report.warnings)
    files = {path.relative_to(whole.path): path.read_bytes() for path in whole.path.rglob("c.*")}
    assert files == {path.relative_to(cut.path): path.read_bytes() for path in cut.path.rglob("c.*")}


def test_crops_that_are_gone_leave_what_is_finished(tmp_path):
    """Not compared, and said so; labels edited since are imported all the same."""
    movie = write_clip(tmp_path / "a.mov", greys(3))
    folder = draw_crops(tmp_path / "c", [1, 2])
    (tmp_path / "labels.csv").write_text("AU1\n1\n1\n1\n")
    clip = Clip(id="a", video=movie, crops=folder, labels=Labels(au=tmp_path / "labels.csv"))
    run(tmp_path, clip)
    shutil.rmtree(folder)
    (tmp_path / "labels.csv").write_text("AU1\n0\n0\n0\n")
    report, store = run(tmp_path, clip)
    assert (report.exit_code, report.computed) == (0, 1)
    assert not store.read("a", "labels", "au").values[:, 0].any()
    loaded = CONFIG.model_copy(update={"instances": {"labels": {}, "swin": CONFIG.instances["swin"]}})
    made, _, _ = extract.running.runner.make_plan(loaded, [clip], tmp_path / "store.zarr", Options(), "cpu")
    assert {name: (task.need, task.unchecked) for name, task in made.tasks["a"].items()} == dict.fromkeys(
        ("frames", "crop", "swin", "labels"), ("finished", True)
    )


def test_a_disk_that_does_not_give_a_picture_fails_the_clip(tmp_path, monkeypatch):
    """It says nothing about the face, so no row may come out as one without."""
    folder = draw_crops(tmp_path / "c", [1, 2])

    whole = Path.read_bytes

    def broken(path):
        if path.parent == folder:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", broken)
    with pytest.raises(ClipError, match=r"00001\.png: Input/output error") as refused:
        read_crop(folder / "00001.png")
    assert refused.value.reason == "unreadable"
    report, _ = run(tmp_path, Clip(id="a", crops=folder, fps=25))
    assert {failure.reason for failure in report.failures} == {"unreadable"}


def test_a_link_to_nowhere_is_named(tmp_path):
    folder = draw_crops(tmp_path / "c", [1])
    (folder / "00002.png").symlink_to(tmp_path / "nowhere.png")
    report, _ = run(tmp_path, Clip(id="a", crops=folder, fps=25))
    assert {failure.reason for failure in report.failures} == {"missing_file"}
    assert "00002.png: no such file" in report.failures[0].message


@pytest.mark.parametrize(("made", "reason"), [("pipe", "stalled"), ("device", "unreadable")])
def test_a_picture_that_never_ends_is_not_waited_for(tmp_path, made, reason):
    folder = draw_crops(tmp_path / "c", [1])
    if made == "pipe":
        os.mkfifo(folder / "00002.png")
    else:
        (folder / "00002.png").symlink_to("/dev/zero")
    report, _ = run(tmp_path, Clip(id="a", crops=folder, fps=25))
    assert {failure.reason for failure in report.failures} == {reason}
    assert f"00002.png is a {'named pipe' if made == 'pipe' else 'device'}" in report.failures[0].message


def test_a_folder_that_grows_meanwhile_is_noticed(tmp_path):
    clip = Clip(id="a", crops=draw_crops(tmp_path / "c", [1, 2]), fps=25)
    sources = Sources()
    parts = ("choice.last_crop",)
    assert sources.source(clip, parts) == {"choice.last_crop": 2}
    sources.check_unchanged(clip, parts)
    draw_crops(tmp_path / "c", [5])
    with pytest.raises(ClipError, match="the last crop was 2, now it is 5; run again") as refused:
        sources.check_unchanged(clip, parts)
    assert refused.value.reason == "source_changed"


def test_a_damaged_block_is_read_again_from_the_pictures(tmp_path):
    """Also of what was computed from the movie before the clip's crops came: by the name of the damaged instance."""
    draw_crops(tmp_path / "c", [1, 2])
    write_clip(tmp_path / "a.mov", pictures(2))
    (tmp_path / "m.yaml").write_text("version: 1\nclips:\n- {id: a, video: a.mov, crops: c}\n")
    (tmp_path / "c.yaml").write_text("extract: {instances: {detections: {}, crop: {}}}")
    store = tmp_path / "s.zarr"
    common = ["--manifest", str(tmp_path / "m.yaml"), "--store", str(store), "-c", str(tmp_path / "c.yaml")]
    for stages in ((), ("--stage", "detections")):
        assert CliRunner().invoke(app, ["run", *common, *stages]).exit_code == 0
    for instance in ("crop", "detections"):
        chunk = next((store / "a" / instance / "valid").glob("c.*"))
        whole = chunk.read_bytes()
        chunk.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        assert CliRunner().invoke(app, ["verify", *common]).exit_code == 4
        repaired = CliRunner().invoke(app, ["verify", *common, "--repair"])
        assert repaired.exit_code == 0, repaired.output
        assert chunk.read_bytes() == whole


def test_a_picture_moved_to_another_frame_is_another_source(tmp_path):
    """The same pictures in the same order, one of them a frame later: every name counts."""
    folder = draw_crops(tmp_path / "c", [1, 2, 4])
    clip = Clip(id="a", crops=folder, fps=25)
    run(tmp_path, clip)
    (folder / "00002.png").rename(folder / "00003.png")
    with pytest.raises(extract.errors.StaleError, match=r"crop: clip a: source crops: "):
        run(tmp_path, clip)
