"""``fusion predict``: its numbers against the store's own way, its times against ffprobe, its refusals."""

import csv
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import extract
import fusion
from extract.config import ExtractConfig
from extract.errors import ConfigError, StaleError, UsageError, WeightsError
from extract.graph import build_graph, upstream
from extract.inputs.manifest import Clip, Labels
from extract.inputs.media import DRAWN
from extract.running.recipes import prepare
from extract.running.report import Progress
from extract.stages.swin import Swin
from extract.store import Store
from fusion.cli import app
from fusion.config import load_fusion_config
from fusion.inference import predict_outputs
from fusion.loading import load_samples
from fusion.prediction import _rebuilt
from fusion.runs import FittedModel, Run
from tests.media_files import pictures, tone, write_clip

CONFIG = """\
extract:
  instances:
    labels: {}
    swin: {weights: random, architecture: small, resize: 64, crop: 64, normalise: per_image}
    hubert: {weights: random, architecture: small}
    transcribe: {}
    roberta: {weights: random, architecture: small}
fusion:
  modalities:
    landmarks: {kind: frame, instance: crop, array: point, project: 16}
    swin: {kind: frame, instance: swin, array: feature, project: 16}
    hubert: {kind: steps, instance: hubert, array: feature, before_s: 0.1, after_s: 0.1, project: 8}
    roberta: {kind: tokens, instance: roberta, array: token, project: 8}
  model: {hidden: 8, head: 16}
  training: {max_epochs: 1}
"""
WORDS = "word,start_s,end_s\nbin,0.2,0.5\nblue,0.6,0.9\n"
MODALITIES = ("landmarks", "swin", "hubert", "roberta")


@pytest.fixture(scope="module")
def fitted(media_dir, tmp_path_factory):
    """A folder with ``config.yaml``, a store of one GRID clip cut to 12 frames, and ``run`` fitted on it."""
    root = tmp_path_factory.mktemp("fitted")
    (root / "config.yaml").write_text(CONFIG)
    (root / "words.csv").write_text(WORDS)
    rows = np.random.default_rng(0).integers(0, 2, (12, 12))
    header = ",".join(f"AU{au}" for au in (1, 2, 4, 6, 7, 10, 12, 15, 23, 24, 25, 26))
    (root / "labels.csv").write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    clip = Clip(
        id="train",
        video=media_dir / "grid_brbk7n.mpg",
        transcript=root / "words.csv",
        labels=Labels(au=root / "labels.csv"),
        split="train",
        end_s=0.48,
    )
    assert extract.run([clip], root / "store.zarr", str(root / "config.yaml")).exit_code == 0
    fusion.fit(root / "store.zarr", root / "run", load_fusion_config(str(root / "config.yaml")))
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AU_FUSION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def table(path: Path) -> dict[str, list[str]]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [row[name] for row in rows] for name in rows[0]}


def movie(path: Path, num_frames: int = 10, **sound) -> Path:
    return write_clip(path, pictures(num_frames, 96, 128), **sound)


def rewrite(run: Path, copy: Path, **changes) -> Path:
    """``run`` with other facts about it."""
    shutil.copytree(run, copy)
    where = Run(copy)
    where.save_model(replace(where.model(), **changes))
    return copy


@pytest.mark.parametrize(("name", "num_frames"), [("one_face.mp4", 72), ("grid_bbaf2n.mpg", 75)])
def test_times_are_ffprobes_and_numbers_are_the_stores(fitted, media_dir, golden_dir, tmp_path, name, num_frames):
    """Oracle for the probabilities: the clip extracted through a manifest, and the network on that store."""
    if golden_dir.name != "golden" or not (golden_dir / "ffprobe").is_dir():
        pytest.skip("these golden values hold no times")
    shutil.copy(media_dir / name, tmp_path)
    (tmp_path / name).with_suffix(".csv").write_text(WORDS)
    found = fusion.predict([tmp_path / name], fitted / "run", output=tmp_path / "out", raw=True)
    assert (found.exit_code, found.failed) == (0, {})
    columns = table(tmp_path / "out" / f"{Path(name).stem}.csv")
    aus = [f"AU{au:02d}" for au in (1, 2, 4, 6, 7, 10, 12, 15, 23, 24, 25, 26)]
    assert list(columns) == ["frame", "pts_s", "valid", *MODALITIES, *(f"{au}_p" for au in aus), *aus]
    assert columns["frame"] == [str(i) for i in range(num_frames)]
    probed = json.loads((golden_dir / "ffprobe" / f"{name}.json").read_text())
    times = next(stream for stream in probed["streams"] if stream["codec_type"] == "video")["pts_time"]
    np.testing.assert_allclose(
        [float(text) for text in columns["pts_s"]], [float(text) for text in times], rtol=0, atol=1e-6
    )

    clip = Clip(id="same", video=tmp_path / name, transcript=(tmp_path / name).with_suffix(".csv"))
    extract.run([clip], tmp_path / "store.zarr", str(fitted / "config.yaml"))
    model = Run(fitted / "run").model()
    samples = load_samples(Store.open(tmp_path / "store.zarr"), ["same"], model.config, frames="all", labelled=False)
    logits = predict_outputs(model.model, samples, next(model.model.parameters()).device)
    probabilities = np.array([columns[f"{au}_p"] for au in aus], dtype=float).T
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-logits.astype(float))), rtol=0, atol=1e-6)
    assert ((logits >= 0) == np.array([columns[au] for au in aus], dtype=int).T).all()
    for modality in MODALITIES:
        present = samples.windows[modality].lengths > 0
        assert [int(text) for text in columns[modality]] == present.astype(int).tolist()


def test_facts_say_what_the_numbers_are(fitted, media_dir, tmp_path):
    run = rewrite(fitted / "run", tmp_path / "run", drawn=1)
    found = fusion.predict([media_dir / "one_face.mp4"], run, output=tmp_path)
    facts = json.loads((tmp_path / "one_face.json").read_text())
    assert facts["warnings"] == found.warnings
    assert "untrained encoders (random weights): swin, hubert, roberta" in facts["warnings"]
    assert any("synthetic, drawn by a program (1 of 1 clips)" in text for text in facts["warnings"])
    assert facts["recipes"] == Run(run).model().recipes
    assert facts["run"]["path"] == str(run)
    assert (facts["frames"], facts["valid"]) == (72, 72)
    assert facts["present"] == {"landmarks": 72, "swin": 72, "hubert": 72, "roberta": 0}
    assert facts["units"]["pts_s"].endswith("seconds")
    assert facts["video"] == "one_face.mp4"


def test_fit_knows_drawn_clips(fitted, tmp_path):
    """From the container's comment through the store into the run and every table."""
    path = tmp_path / "drawn.mov"
    with av.open(path, "w") as container:
        container.metadata["comment"] = f"{DRAWN}: by a test"
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height = 128, 96
        for image in pictures(3, 96, 128):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode())
    (tmp_path / "labels.csv").write_text("AU1\n1\n0\n1\n")
    clips = [
        Clip(id="a", video=path, labels=Labels(au=tmp_path / "labels.csv"), split="train"),
        Clip(
            id="b",
            video=movie(tmp_path / "b.mov", 3, sound=tone(0.2)),
            labels=Labels(au=tmp_path / "labels.csv"),
            split="train",
        ),
    ]
    extract.run(clips, tmp_path / "store.zarr", str(fitted / "config.yaml"))
    assert Store.open(tmp_path / "store.zarr").record("a", "frames").notes["drawn"] == f"{DRAWN}: by a test"
    leave_out = [f"modalities.{name}=null" for name in ("landmarks", "swin", "roberta")]
    config = load_fusion_config(str(fitted / "config.yaml"), leave_out)
    (evaluation,) = fusion.fit(tmp_path / "store.zarr", tmp_path / "run", config)
    assert (evaluation.drawn, evaluation.clips, Run(tmp_path / "run").model().drawn) == (1, 2, 1)
    assert "synthetic: 1 of 2 clips are drawn by a program" in evaluation.text()


def test_predicting_again_computes_nothing(fitted, tmp_path, cache):
    videos = [movie(tmp_path / "a.mov", sound=tone(0.4))]
    fusion.predict(videos, fitted / "run", output=tmp_path / "out")
    first = (tmp_path / "out" / "a.csv").read_bytes()
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    assert any(path.name.startswith("c.") for path in before)
    fusion.predict(videos, fitted / "run", output=tmp_path / "out")
    assert (tmp_path / "out" / "a.csv").read_bytes() == first
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()} == before


def test_what_a_movie_lacks_is_missing_not_zero(fitted, tmp_path):
    """No face, no words; then no sound either. Frames stay, and ``valid`` says what the numbers rest on."""
    heard, silent = movie(tmp_path / "heard.mov", sound=tone(0.4)), movie(tmp_path / "silent.mov")
    found = fusion.predict([heard, silent], fitted / "run", output=tmp_path, fill=True)
    assert found.exit_code == 0
    assert [one.present["hubert"] > 0 for one in found.written] == [True, False]
    for name in ("heard", "silent"):
        columns = table(tmp_path / f"{name}.csv")
        assert len(columns["frame"]) == 10
        assert set(columns["valid"]) == set(columns["landmarks"]) == set(columns["roberta"]) == {"0"}
        assert 0 < float(columns["AU12_p"][0]) < 1
    assert table(tmp_path / "heard.csv")["hubert"][5] == "1"


def test_frames_without_a_face_get_no_numbers_unless_asked(fitted, tmp_path):
    """What sound and words alone say of a face is no decision to hand on."""
    video = movie(tmp_path / "a.mov", sound=tone(0.4))
    fusion.predict([video], fitted / "run", output=tmp_path)
    columns = table(tmp_path / "a.csv")
    assert set(columns["valid"]) == {"0"}
    assert set(columns["AU12_p"]) == set(columns["AU12"]) == {""}
    fusion.predict([video], fitted / "run", output=tmp_path, fill=True)
    columns = table(tmp_path / "a.csv")
    assert all(0 < float(value) < 1 for value in columns["AU12_p"])
    assert set(columns["AU12"]) <= {"0", "1"}


def test_progress_counts_clips_that_failed(fitted, tmp_path):
    """One bad movie among three fails in many instances, and is one."""
    (tmp_path / "bad.mp4").write_bytes(b"no movie")
    told = []

    class Told(Progress):
        def clip(self, clip, failed):
            del clip
            told.append(failed)

    videos = [tmp_path / "bad.mp4", movie(tmp_path / "a.mov"), movie(tmp_path / "b.mov", 11)]
    fusion.predict(videos, fitted / "run", output=tmp_path, progress=Told())
    assert len(told) == 3  # in the order in which they are through
    assert told[-1] == max(told) == 1


def test_a_named_pipe_is_no_movie(fitted, tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    found = fusion.predict([tmp_path / "pipe.mp4"], fitted / "run", output=tmp_path)
    assert found.failed == {tmp_path / "pipe.mp4": "is not a file"}


def test_words_beside_a_movie_are_used_and_their_edits_seen(fitted, tmp_path):
    video = movie(tmp_path / "a.mov", 75)
    srt = tmp_path / "a.srt"
    srt.write_text("1\n00:00:02,500 --> 00:00:02,900\nhello\n")
    fusion.predict([video], fitted / "run", output=tmp_path / "out")
    one = table(tmp_path / "out" / "a.csv")["roberta"]
    assert one == ["0"] * 13 + ["1"] * 62  # from 0.5 s on, at 25 fps
    srt.write_text("1\n00:00:02,900 --> 00:00:02,950\nhello\n")
    fusion.predict([video], fitted / "run", output=tmp_path / "out")
    assert table(tmp_path / "out" / "a.csv")["roberta"] == ["0"] * 23 + ["1"] * 52


def test_one_bad_movie_stops_no_other(fitted, tmp_path):
    (tmp_path / "text.mp4").write_text("no movie")
    good = movie(tmp_path / "good.mov")
    paths = [str(tmp_path / name) for name in ("text.mp4", "gone.mp4", "good.mov")]
    result = CliRunner().invoke(app, ["predict", *paths, "--run", str(fitted / "run"), "-o", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert f"failed: {tmp_path / 'gone.mp4'}: cannot be read (No such file or directory)" in result.stderr
    assert f"failed: {tmp_path / 'text.mp4'}: frames: " in result.stderr
    assert f"{good}: 10 frames" in result.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["good.csv", "good.json"]


def test_a_sound_file_has_no_frames(fitted, tmp_path):
    sound = write_clip(tmp_path / "a.wav", sound=tone(0.5))
    found = fusion.predict([sound], fitted / "run", output=tmp_path)
    assert found.failed == {sound: "no_video: there is no frame to predict for"}


def test_two_movies_of_one_name_get_names_of_their_own(fitted, tmp_path):
    for folder, frames in (("x", 3), ("y", 4)):
        (tmp_path / folder).mkdir()
        movie(tmp_path / folder / "a.mov", frames)
    found = fusion.predict([tmp_path / "x/a.mov", tmp_path / "y/a.mov"], fitted / "run", output=tmp_path / "out")
    assert len({one.table for one in found.written}) == 2
    assert sorted(len(table(one.table)["frame"]) for one in found.written) == [3, 4]


@pytest.mark.parametrize(("name", "text"), [("a.csv", "AU1,AU2\n1,0\n"), ("a.json", '{"segments": []}')])
def test_files_of_others_are_not_replaced(fitted, tmp_path, cache, name, text):
    """Labels or a transcript beside the movie, when the tables go to the same folder."""
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=rf"{name}: exists and is not a prediction; name another folder with -o"):
        fusion.predict([movie(tmp_path / "a.mov")], fitted / "run", output=tmp_path)
    assert (tmp_path / name).read_text() == text
    assert not cache.exists()


def test_an_output_that_is_a_file_is_refused(fitted, tmp_path):
    with pytest.raises(UsageError, match="is a file; name a folder"):
        fusion.predict([movie(tmp_path / "a.mov")], fitted / "run", output=tmp_path / "a.mov")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["swin.normalise=imagenet"], r"instance swin: .*\(config.normalise: 'per_image' against 'imagenet'\)"),
        (["hubert.layer=1"], r"instance hubert: .*\(config.layer: 'last' against 1\)"),
        (["detections.detect_px=320"], r"instance crop: .*detect_px: 640 against 320"),
    ],
)
@pytest.mark.parametrize("with_config", [True, False])
def test_other_features_are_refused_by_field(fitted, tmp_path, cache, changes, message, with_config):
    config = str(fitted / "config.yaml") if with_config else None
    with pytest.raises(StaleError, match=message) as refused:
        fusion.predict([movie(tmp_path / "a.mov")], fitted / "run", output=tmp_path, config=config, set=changes)
    assert refused.value.exit_code == 2
    assert not cache.exists()


def test_a_shared_run_that_names_a_path_is_refused(fitted, tmp_path, cache):
    """Its recipes become instances, whose names become folders of the cache."""
    recipes = Run(fitted / "run").model().recipes
    run = rewrite(fitted / "run", tmp_path / "run", recipes={**recipes, "../../../victim": recipes["swin"]})
    (tmp_path / "victim/photos").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"instance '\.\./\.\./\.\./victim' cannot name a folder of the store"):
        fusion.predict([movie(tmp_path / "a.mov")], run, output=tmp_path)
    assert (tmp_path / "victim/photos").is_dir()
    assert not cache.exists()


def test_values_of_another_version_are_refused(fitted, tmp_path, monkeypatch):
    monkeypatch.setattr(Swin, "version", 2)
    with pytest.raises(StaleError, match=r"instance swin: run .* \(version: 1 against 2\)"):
        fusion.predict([movie(tmp_path / "a.mov")], fitted / "run", output=tmp_path)


def test_a_config_without_the_instance_is_refused(fitted, tmp_path):
    (tmp_path / "c.yaml").write_text("extract: {instances: {frames: {}}}")
    with pytest.raises(StaleError, match=r"has no instance crop, whose features the run was fitted on"):
        fusion.predict([movie(tmp_path / "a.mov")], fitted / "run", output=tmp_path, config=str(tmp_path / "c.yaml"))


def test_weights_that_moved_are_named_and_can_be_named_anew(fitted, tmp_path):
    """The run knows them by their sha256; a path of training means nothing on another machine."""
    model = Run(fitted / "run").model()
    run = rewrite(fitted / "run", tmp_path / "run", weights=dict.fromkeys(model.weights, "/gone/model.safetensors"))
    with pytest.raises(WeightsError, match=r"weights '/gone/model.safetensors' are no key .* no such path"):
        fusion.predict([movie(tmp_path / "a.mov")], run, output=tmp_path)
    back = [f"{name}.weights=random" for name in ("swin", "hubert", "roberta")]
    back.append("detections.weights=dlib-68-landmarks")
    assert fusion.predict([tmp_path / "a.mov"], run, output=tmp_path, set=back).exit_code == 0


def test_a_precision_that_the_device_lacks_is_replaced_and_told(fitted, tmp_path):
    model = Run(fitted / "run").model()
    run = rewrite(
        fitted / "run", tmp_path / "run", recipes=json.loads(json.dumps(model.recipes).replace("float32", "bfloat16"))
    )
    swin = Run(run).model().recipes["swin"]
    assert swin["precision"] == "bfloat16"
    found = fusion.predict([movie(tmp_path / "a.mov")], run, output=tmp_path)
    assert found.exit_code == 0
    assert (
        "swin: computed with another precision than for training (precision: 'bfloat16' against 'float32')"
        in "\n".join(found.warnings)
    )


CONFIGS = {
    "plain": {"swin": {"weights": "random", "architecture": "small", "resize": 64, "crop": 64}},
    "renamed inputs": {
        "near": {"stage": "detections", "detect_px": 320},
        "face": {"stage": "faces", "inputs": {"detections": "near"}},
        "cut": {"stage": "crop", "inputs": {"faces": "face"}},
        "swin": {"weights": "random", "architecture": "small", "resize": 64, "crop": 64, "inputs": {"crop": "cut"}},
    },
    "two of a stage": {
        "near": {"stage": "detections", "detect_px": 320},
        "faces_near": {"stage": "faces", "inputs": {"detections": "near"}},
        "crop_near": {"stage": "crop", "inputs": {"faces": "faces_near"}},
        "swin": {"weights": "random", "architecture": "small", "resize": 64, "crop": 64},
        "swin_near": {
            "stage": "swin",
            "weights": "random",
            "architecture": "small",
            "resize": 72,
            "crop": 64,
            "inputs": {"crop": "crop_near"},
        },
    },
    "sound": {"frames": {}, "hubert": {"weights": "random", "architecture": "small", "layer": 1, "normalise": False}},
}


@pytest.mark.parametrize("instances", CONFIGS.values(), ids=CONFIGS)
def test_a_run_knows_how_its_features_were_made(instances):
    """The rebuilt config has the same recipes for what was fitted on, whatever the inputs were called."""

    def recipes(config, names):
        graph = build_graph(ExtractConfig.model_validate(config))
        prepared = prepare(graph, upstream(graph, names), None, [], "cpu", lock=Path("weights.lock"))
        return prepared, {name: prepared[name].recipe for name in names}

    names = ("frames", *(name for name in instances if "swin" in name or "hubert" in name))
    prepared, wanted = recipes({"instances": instances}, names)
    specs = {one.weights.sha256: one.weights.spec for one in prepared.values() if one.weights}
    fitted = FittedModel(None, None, {}, wanted, {}, 1, specs)  # type: ignore[arg-type]
    assert recipes(_rebuilt(fitted), names)[1] == wanted


def test_the_default_run_is_the_newest_and_named(fitted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(fitted / "run", tmp_path / "runs" / "only")
    movie(tmp_path / "a.mov")
    result = CliRunner().invoke(app, ["predict", "a.mov", "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["run"] == "runs/only"
    assert told["written"][0]["table"] == "a.csv"


def test_a_run_on_given_crops_takes_the_detector_of_the_table(media_dir, tmp_path):
    """Its clips needed no detector, so only the recipe names one: by its sha256, which the table has."""
    crops = tmp_path / "crops"
    crops.mkdir()
    for number, image in enumerate(pictures(8), start=1):
        Image.fromarray(np.resize(image, (112, 112, 3))).save(crops / f"{number:05d}.png")
    (tmp_path / "labels.csv").write_text("AU01,AU12\n" + "1,0\n0,1\n" * 4)
    config = tmp_path / "c.yaml"
    config.write_text(
        "extract:\n  instances:\n    labels: {}\n"
        "    swin: {weights: random, architecture: small, resize: 64, crop: 64, normalise: per_image}\n"
        "fusion:\n  modalities:\n    swin: {kind: frame, instance: swin, array: feature, project: 8}\n"
        "  training: {max_epochs: 1}\n"
    )
    clip = Clip(id="given", crops=crops, fps=25.0, labels=Labels(au=tmp_path / "labels.csv"), split="train")
    assert extract.run([clip], tmp_path / "s.zarr", str(config)).exit_code == 0
    fusion.fit(tmp_path / "s.zarr", tmp_path / "run", str(config))
    rebuilt = _rebuilt(Run(tmp_path / "run").model())
    assert rebuilt["instances"]["detections"]["weights"] == "dlib-68-landmarks"
    found = fusion.predict([media_dir / "one_face.mp4"], tmp_path / "run", output=tmp_path / "predicted")
    assert [written.frames for written in found.written] == [72]
