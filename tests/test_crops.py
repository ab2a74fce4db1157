"""Clips with crops of their own: how pictures are read, what is computed from them, and what is not."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import extract
from extract.cli import app
from extract.config import ExtractConfig
from extract.errors import ClipError, ConfigError
from extract.inputs.crops import list_crops, read_crop
from extract.inputs.manifest import Clip, Labels, load_manifest
from extract.registry import STAGES
from extract.stage import VALID, Output, RowsStage, StageConfig
from extract.stages.detections import Detections
from extract.timeline import FRAMES
from fusion.config import FusionConfig
from fusion.loading import load_samples
from tests import toy_stages
from tests.given_crops import CONFIG, draw_crops, run
from tests.media_files import greys, pictures, tone, write_clip


@pytest.fixture
def no_detector(monkeypatch):
    """Nothing upstream of given crops may run."""

    def never(*_):
        raise AssertionError("detections ran")

    monkeypatch.setattr(Detections, "setup", never)
    monkeypatch.setattr(Detections, "compute", never)


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
    # In the same store: not by itself, and then without the landmarks that were computed.
    assert one.has("a", "crop", "point")
    kept = ExtractConfig.model_validate({"instances": instances})
    with pytest.raises(extract.errors.StaleError, match=r"crop: clip a: .*source crops: none -> "):
        run(tmp_path, given, kept, stages=["swin"])
    _, replaced = run(tmp_path, given, kept, stages=["swin"], overwrite=True)
    assert not replaced.has("a", "crop", "point")
    assert np.array_equal(replaced.read("a", "crop", "image").values, images)


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
    """No array of zeros: a modality that asks for them gets the reason why there is none."""
    (tmp_path / "labels.csv").write_text("AU1\n1\n0\n")
    clip = Clip(id="a", crops=draw_crops(tmp_path / "c", [1, 2]), fps=25, labels=Labels(au=tmp_path / "labels.csv"))
    _, store = run(tmp_path, clip)
    assert not store.has("a", "crop", "point")
    config = FusionConfig.model_validate({"modalities": {"p": {"kind": "frame", "instance": "crop", "array": "point"}}})
    with pytest.raises(ConfigError, match="has no array 'point'; the clip was given crops, which come without it"):
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
    assert any("beyond the movie's last frame: 2 times are continued" in warning.message for warning in report.warnings)
    assert store.read("a", "swin", "feature").valid.tolist() == [True, False, False, False, False, True]


def test_a_damaged_picture_is_a_frame_without_a_face(tmp_path):
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
    assert any(
        "damaged crops, taken for absent: 2, the first 00002.jpg" in notice.message for notice in report.warnings
    )


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
        (
            ["1699999999.jpg"],
            r"1699999999\.jpg: found number 1699999999, expected pictures numbered from 1 to 10,000,000",
        ),
        (["00001.png", "1.png"], r"found 00001\.png and 1\.png, expected one picture per frame"),
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
    Image.new("RGB", (112, 112), (1, 2, 3)).save(tmp_path / "4.png")
    assert read_crop(tmp_path / "4.png")[5, 7].tolist() == [1, 2, 3]


def test_cuts_and_crops_exclude_each_other(tmp_path):
    with pytest.raises(ValueError, match="start_s and end_s cut a movie, but crops are numbered by the frames of"):
        Clip(id="a", video=tmp_path / "a.mp4", crops=tmp_path, start_s=1.0)
    (tmp_path / "m.yaml").write_text("version: 1\nclips:\n- {id: a, video: a.mp4, crops: c, end_s: 2}\n")
    with pytest.raises(extract.errors.ManifestError, match=r"m\.yaml:3: start_s and end_s cut a movie"):
        load_manifest(tmp_path / "m.yaml")


def test_sound_of_its_own_is_heard(tmp_path):
    """A clip of crops and a sound file: every stage has what it needs, and a source of its own."""
    sound = write_clip(tmp_path / "a.mov", greys(10), sound=tone(0.4))
    clip = Clip(id="a", crops=draw_crops(tmp_path / "c", [1, 2]), fps=25, audio=sound)
    report, store = run(tmp_path, clip)
    assert report.exit_code == 0
    assert len(store.read("a", "hubert", "feature").values) == 19
    assert set(store.record("a", "hubert").source) == {"audio"}
    assert store.record("a", "frames").rows == 2


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize("names", [["swin", "after_rank"], ["after_rank", "swin"]])
def test_a_movies_pictures_and_given_crops_are_kept_apart(tmp_path, names):
    """Both are wanted after a clip stage: in whatever order, each instance is given its own pictures."""
    movie = write_clip(tmp_path / "a.mov", greys(6))
    clip = Clip(id="a", video=movie, crops=draw_crops(tmp_path / "c", [1, 2, 4]))
    report, store = run(tmp_path, clip, CONFIG.model_copy(update={"instances": {"swin": CONFIG.instances["swin"]}}))
    (tmp_path / "both").mkdir()
    wanted = {name: CONFIG.instances.get(name) for name in names}
    report, both = run(tmp_path / "both", clip, ExtractConfig(instances=wanted))
    assert (report.exit_code, report.failures) == (0, [])
    alone, among = store.read("a", "swin", "feature"), both.read("a", "swin", "feature")
    assert np.array_equal(alone.values, among.values)
    assert among.valid.tolist() == [True, True, False, True, False, False]
    place = both.read("a", "rank", "place").values
    assert np.array_equal(both.read("a", "after_rank", "value").values - 1000 * place, [g[0, 0, 0] for g in greys(6)])


class Both(RowsStage[StageConfig]):
    """A stage that looks at the frame and its crop together."""

    name = "both"
    version = 1
    config_type = StageConfig
    inputs = ("frames.image", "crop.image")

    @property
    def outputs(self):
        return (Output("value", FRAMES, (), (), "float32"), VALID)

    def compute(self, _):
        raise AssertionError("never reached")


def test_a_stage_of_frames_and_crops_at_once_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(STAGES, "both", Both)
    movie = write_clip(tmp_path / "a.mov", greys(2))
    clip = Clip(id="a", video=movie, crops=draw_crops(tmp_path / "c", [1, 2]))
    report, store = run(tmp_path, clip, ExtractConfig(instances={"both": {}, "swin": CONFIG.instances["swin"]}))
    assert [(failure.instance, failure.reason) for failure in report.failures] == [("both", "unsupported")]
    assert "needs frames and crop at once" in report.failures[0].message
    assert store.record("a", "swin").state == "done"


def test_what_is_asked_for_by_name_is_computed(tmp_path):
    """Faces of the movie, though no crop needs them; a whole run later leaves them alone."""
    movie = write_clip(tmp_path / "a.mov", pictures(2))
    clip = Clip(id="a", video=movie, crops=draw_crops(tmp_path / "c", [1, 2]))
    report, store = run(tmp_path, clip, stages=["faces"])
    assert report.exit_code == 0
    assert store.instances("a") == ["detections", "faces", "frames"]
    assert (store.record("a", "faces").state, store.record("a", "faces").reason) == ("empty", "no_face")
    assert set(store.record("a", "faces").source) == {"media", "choice.face", "choice.last_crop"}
    report, store = run(tmp_path, clip)
    assert store.record("a", "swin").state == "done"
    assert "detections" not in report.counts or not report.counts["detections"]


@pytest.mark.usefixtures("toys")
def test_without_a_movie_there_are_no_frames_to_look_at(tmp_path):
    """A frame that nobody has is no frame without a face."""
    toy_stages.computed.clear()
    clip = Clip(id="a", crops=draw_crops(tmp_path / "c", [1, 2]), fps=25)
    config = ExtractConfig(instances={"colour": {}, "swin": CONFIG.instances["swin"]})
    report, store = run(tmp_path, clip, config)
    assert report.exit_code == 0
    assert (store.record("a", "colour").state, store.record("a", "colour").reason) == ("empty", "no_video")
    assert not toy_stages.computed
    assert store.record("a", "swin").state == "done"


@pytest.mark.usefixtures("toys")
def test_frames_beyond_the_movie_are_frames_without_a_face(tmp_path):
    """For what looks at the movie, over several groups of frames."""
    clip = Clip(id="a", video=write_clip(tmp_path / "a.mov", greys(3)), crops=draw_crops(tmp_path / "c", [1, 70]))
    report, store = run(tmp_path, clip, ExtractConfig(instances={"colour": {}, "swin": CONFIG.instances["swin"]}))
    assert (report.exit_code, report.failures) == (0, [])
    _, valid = store.read("a", "colour", "mean")
    assert (len(valid), np.flatnonzero(valid).tolist()) == (70, [0, 1, 2])
    _, valid = store.read("a", "swin", "feature")
    assert np.flatnonzero(valid).tolist() == [0, 69]


def test_a_picture_too_large_to_decode_is_of_another_size(tmp_path):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "1.png")
    with pytest.raises(ClipError, match=r"1\.png: .*exceeds limit .*; expected 112 x 112") as refused:
        read_crop(tmp_path / "1.png")
    assert refused.value.reason == "bad_crops"


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
    shown = CliRunner().invoke(app, ["plan", *common]).stdout
    assert "detections   not needed: the clips bring their crops" in shown
    result = CliRunner().invoke(app, ["run", *common])
    assert result.exit_code == 0, result.output
    status = json.loads(CliRunner().invoke(app, ["status", "--store", common[3], "--json"]).stdout)
    assert "detections" not in json.dumps(status)
    verified = CliRunner().invoke(app, ["verify", *common, "--sources"])
    assert verified.exit_code == 0, verified.output
