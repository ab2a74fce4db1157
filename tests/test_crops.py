"""Clips that bring their face crops: what is read, what is not computed, and what stands in the records."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import extract
from extract.cli import app
from extract.config import ExtractConfig
from extract.crops import list_crops, read_crop
from extract.errors import ClipError, ConfigError
from extract.manifest import Clip, Labels, load_manifest
from extract.runner import Options
from extract.stages.detections import Detections
from fusion.config import FusionConfig
from fusion.data import load_samples
from tests.media_files import greys, pictures, tone, write_clip

CONFIG = ExtractConfig(
    instances={
        "labels": {},
        "detections": {},
        "faces": {},
        "swin": {"weights": "random", "architecture": "small", "resize": 64, "crop": 64},
        "hubert": {"weights": "random", "architecture": "small"},
    }
)


def draw_crops(folder, numbers, suffix="png", size=112):
    """A picture of noise for every number."""
    folder.mkdir(exist_ok=True)
    for number in numbers:
        image = np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / f"{number:05d}.{suffix}")
    return folder


@pytest.fixture
def no_detector(monkeypatch):
    """Nothing upstream of given crops may run."""

    def never(*_):
        raise AssertionError("detections ran")

    monkeypatch.setattr(Detections, "setup", never)
    monkeypatch.setattr(Detections, "compute", never)


def run(tmp_path, clip, config=CONFIG, **options):
    report = extract.run([clip], tmp_path / "store.zarr", config, options=Options(**options))
    return report, extract.open_store(tmp_path / "store.zarr")


def test_given_crops_have_the_features_of_computed_ones(media_dir, tmp_path):
    """The crops of a real clip, kept, written as pictures and given back: Swin's values are the same to the bit."""
    instances = {"swin": CONFIG.instances["swin"], "crop": {"keep": ["image"]}}
    plain = Clip(id="a", video=media_dir / "grid_bbaf2n.mpg", end_s=1.6)
    _, one = run(tmp_path, plain, ExtractConfig.model_validate({"instances": instances}), stages=["swin"])
    images, valid = one.read("a", "crop", "image")
    assert valid is not None
    assert len(images) == valid.sum() == 40
    folder = tmp_path / "crops"
    folder.mkdir()
    for row, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{row + 1:05d}.png")
    (tmp_path / "given").mkdir()
    given = Clip(id="a", crops=folder, fps=25)
    _, other = run(tmp_path / "given", given, stages=["swin"])
    assert np.array_equal(one.read("a", "swin", "feature").values, other.read("a", "swin", "feature").values)
    assert one.record("a", "swin").recipe == other.record("a", "swin").recipe
    assert one.record("a", "swin").fingerprint != other.record("a", "swin").fingerprint


@pytest.mark.usefixtures("no_detector")
def test_nothing_upstream_runs_and_the_records_say_why(tmp_path):
    """A whole run over a movie with crops that begin late, have a gap, and end early."""
    folder = draw_crops(tmp_path / "crops", [3, 4, 7])
    movie = write_clip(tmp_path / "a.mov", greys(10), rate=25, sound=tone(0.4))
    (tmp_path / "labels.csv").write_text("AU1\n" + "1\n" * 10)
    clip = Clip(id="a", video=movie, crops=folder, labels=Labels(au=tmp_path / "labels.csv"))
    report, store = run(tmp_path, clip)
    assert (report.exit_code, report.failures) == (0, [])
    assert store.instances("a") == ["crop", "frames", "hubert", "labels", "swin"]
    assert np.array_equal(store.read("a", "frames", "pts_s").values, np.arange(10) / 25)
    _, valid = store.read("a", "swin", "feature")
    assert np.flatnonzero(valid).tolist() == [2, 3, 6]
    crop = store.record("a", "crop")
    assert (crop.state, crop.rows, crop.provenance["provided"]) == ("done", 10, "crops")
    assert crop.notes == {"missing_crops": 7}
    assert set(crop.source) == {"crops", "media", "choice.last_crop"}
    assert crop.source["choice.last_crop"] == 7
    assert "choice.face" not in store.record("a", "swin").source
    assert set(store.record("a", "hubert").source) == {"media"}
    again, _ = run(tmp_path, clip)
    assert again.computed == 0


def test_landmarks_of_given_crops_are_not_made_up(tmp_path):
    """No array of zeros: a modality that asks for them is told why there is none."""
    (tmp_path / "labels.csv").write_text("AU1\n1\n0\n")
    clip = Clip(id="a", crops=draw_crops(tmp_path / "c", [1, 2]), fps=25, labels=Labels(au=tmp_path / "labels.csv"))
    _, store = run(tmp_path, clip)
    assert not store.has("a", "crop", "point")
    config = FusionConfig.model_validate({"modalities": {"p": {"kind": "frame", "instance": "crop", "array": "point"}}})
    with pytest.raises(
        ConfigError, match="instance crop has no array 'point': the clip brought its own crops, without"
    ):
        load_samples(store, ["a"], config)


def test_crops_without_a_movie_have_assumed_times(tmp_path):
    clip = Clip(id="a", crops=draw_crops(tmp_path / "c", [2, 5], "jpg"), fps=12.5)
    report, store = run(tmp_path, clip)
    assert report.exit_code == 0
    assert store.read("a", "frames", "pts_s").values.tolist() == [0, 0.08, 0.16, 0.24, 0.32]
    assert store.record("a", "frames").notes == {"time": "assumed"}
    assert store.record("a", "hubert").reason == "no_audio"
    assert store.read("a", "swin", "feature").valid.tolist() == [False, True, False, False, True]


def test_crops_beyond_the_movie_continue_its_times(tmp_path):
    movie = write_clip(tmp_path / "a.mov", greys(4), rate=10)
    report, store = run(tmp_path, Clip(id="a", video=movie, crops=draw_crops(tmp_path / "c", [1, 6])))
    assert store.read("a", "frames", "pts_s").values == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert store.record("a", "frames").notes["frames_beyond_movie"] == 2
    assert any("beyond the movie's last frame: 2 times are continued" in warning for warning in report.warnings)
    assert store.read("a", "swin", "feature").valid.tolist() == [True, False, False, False, False, True]


def test_a_torn_picture_is_a_frame_without_a_face(tmp_path):
    folder = draw_crops(tmp_path / "c", [1, 2, 3], "jpg")
    whole = (folder / "00002.jpg").read_bytes()
    (folder / "00002.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "00003.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("left out")
    report, store = run(tmp_path, Clip(id="a", crops=folder, fps=25))
    assert report.exit_code == 0
    assert store.read("a", "swin", "feature").valid.tolist() == [True, False, False]
    assert store.record("a", "crop").notes == {
        "left_out_files": 1,
        "unreadable_crops": {"count": 2, "first": "00002.jpg"},
    }
    assert any("damaged, taken for absent: {'count': 2, 'first': '00002.jpg'}" in text for text in report.warnings)


def test_a_picture_of_another_size_fails_its_clip_alone(tmp_path):
    folder = draw_crops(tmp_path / "c", [1, 2])
    draw_crops(folder, [2], size=224)
    clips = [Clip(id="bad", crops=folder, fps=25), Clip(id="good", crops=draw_crops(tmp_path / "d", [1]), fps=25)]
    report = extract.run(clips, tmp_path / "store.zarr", CONFIG)
    assert report.exit_code == 1
    assert {(failure.clip, failure.reason) for failure in report.failures} == {("bad", "bad_crops")}
    message = report.failures[0].message
    assert "00002.png: found 224 x 224 pixels, expected 112 x 112" in message
    assert extract.open_store(tmp_path / "store.zarr").record("good", "swin").state == "done"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["00000.png"], r"00000\.png: found number 0, expected pictures numbered from 1"),
        (["00001.png", "1.png"], r"found 00001\.png and 1\.png, expected one picture of a frame"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(tmp_path, names, message):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ClipError, match=message) as refused:
        list_crops(tmp_path)
    assert refused.value.reason == "bad_crops"


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ClipError, match="no such folder of crops") as refused:
        list_crops(tmp_path / "gone")
    assert refused.value.reason == "missing_file"
    (tmp_path / "file").touch()
    with pytest.raises(ClipError, match="`crops` names a folder of pictures") as refused:
        list_crops(tmp_path / "file")
    assert refused.value.reason == "unreadable"
    report, _ = run(tmp_path, Clip(id="a", crops=tmp_path / "gone", fps=25))
    assert {failure.reason for failure in report.failures} == {"missing_file"}


def test_an_empty_folder_is_a_clip_without_faces(tmp_path):
    (tmp_path / "c").mkdir()
    movie = write_clip(tmp_path / "a.mov", greys(3))
    report, store = run(tmp_path, Clip(id="a", video=movie, crops=tmp_path / "c"))
    assert report.exit_code == 0
    assert (store.record("a", "swin").state, store.record("a", "swin").reason) == ("empty", "no_face")


def test_pictures_are_read_as_rgb(tmp_path):
    """Grey, palette and transparent ones too; contiguous, their own memory."""
    grey = Image.fromarray(np.full((112, 112), 77, np.uint8))
    for name, image in (("1.png", grey), ("2.png", grey.convert("P")), ("3.png", grey.convert("RGBA"))):
        image.save(tmp_path / name)
        found = read_crop(tmp_path / name)
        assert (found.shape, found.dtype, found.flags.c_contiguous) == ((112, 112, 3), np.uint8, True)
        assert (found == 77).all()


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
    """Blocks of 4 rows: what is there is not read again, and the bytes are those of an unbroken run."""
    config = CONFIG.model_copy(update={"run": CONFIG.run.model_copy(update={"block_rows": 4})})
    clip = Clip(id="a", crops=draw_crops(tmp_path / "c", range(1, 13)), fps=25)
    _, whole = run(tmp_path, clip, config, stages=["swin"])
    (tmp_path / "two").mkdir()
    _, cut = run(tmp_path / "two", clip, config, stages=["swin"])
    for array in ("feature", "valid"):
        chunk = next((tmp_path / "two/store.zarr/a/swin" / array).glob("c.1*"))
        chunk.unlink()
    record = json.loads((path := tmp_path / "two/store.zarr/a/swin/zarr.json").read_text())
    record["attributes"]["state"] = "partial"
    path.write_text(json.dumps(record))
    read = []
    monkeypatch.setattr("extract.crops.read_crop", lambda path: read.append(path.name) or read_crop(path))
    run(tmp_path / "two", clip, config, stages=["swin"])
    assert sorted(read) == [f"{number:05d}.png" for number in (5, 6, 7, 8)]
    files = {path.relative_to(whole.path): path.read_bytes() for path in whole.path.rglob("c.*")}
    assert files == {path.relative_to(cut.path): path.read_bytes() for path in cut.path.rglob("c.*")}


def test_cuts_and_crops_exclude_each_other(tmp_path):
    with pytest.raises(ValueError, match="start_s and end_s cut a movie; crops are numbered by its whole frames"):
        Clip(id="a", video=tmp_path / "a.mp4", crops=tmp_path, start_s=1.0)
    (tmp_path / "m.yaml").write_text("version: 1\nclips:\n- {id: a, video: a.mp4, crops: c, end_s: 2}\n")
    with pytest.raises(extract.errors.ManifestError, match=r"m\.yaml:3: start_s and end_s cut a movie"):
        load_manifest(tmp_path / "m.yaml")


@pytest.mark.usefixtures("no_detector")
def test_status_and_plan_count_what_there_is(tmp_path):
    """By the commands: detections of this clip are neither missing nor done."""
    draw_crops(tmp_path / "c", [1, 2])
    write_clip(tmp_path / "a.mov", pictures(2))
    (tmp_path / "m.yaml").write_text("version: 1\nclips:\n- {id: a, video: a.mov, crops: c}\n")
    (tmp_path / "c.yaml").write_text("extract: {instances: {detections: {}, crop: {}}}")
    common = [
        "--manifest",
        str(tmp_path / "m.yaml"),
        "--store",
        str(tmp_path / "s.zarr"),
        "-c",
        str(tmp_path / "c.yaml"),
    ]
    plan = json.loads(CliRunner().invoke(app, ["plan", *common, "--json"]).stdout)
    assert {name: task["need"] for name, task in plan["a"].items()} == {"frames": "missing", "crop": "missing"}
    told = CliRunner().invoke(app, ["plan", *common]).stdout
    assert "detections   not needed: the clips bring their crops" in told
    result = CliRunner().invoke(app, ["run", *common])
    assert result.exit_code == 0, result.output
    status = json.loads(CliRunner().invoke(app, ["status", "--store", common[3], "--json"]).stdout)
    assert "detections" not in json.dumps(status)
    verified = CliRunner().invoke(app, ["verify", *common, "--sources"])
    assert verified.exit_code == 0, verified.output
