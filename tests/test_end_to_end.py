"""Real clips, the commands a person runs, and what must come out."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import extract
from extract.au import AUS
from extract.cli import app as extract_app
from extract.inputs.manifest import load_manifest, write_manifest
from fusion.cli import app as fusion_app

ROOT = Path(__file__).resolve().parents[1]
GRID = ("grid_bbaf2n", "grid_brbk7n", "grid_lbax4n", "grid_swiz3n")

CONFIG = """\
extract:
  instances:
    labels: {}
    swin: {weights: random, architecture: small, resize: 64, crop: 64, normalise: per_image}
    hubert: {weights: random, architecture: small}
fusion:
  modalities:
    swin: {kind: frame, instance: swin, array: feature, project: 64}
    hubert: {kind: steps, instance: hubert, array: feature, before_s: 0.06, after_s: 0.06, project: 16}
"""


def command(app, *arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, f"{arguments}: exit {result.exit_code}\n{result.stdout}\n{result.stderr}"
    return result


@pytest.fixture(scope="module")
def faces(media_dir, tmp_path_factory):
    """``extract manifest folder ../shared/media -o m.yaml && extract run --manifest m.yaml --stage faces``."""
    root = tmp_path_factory.mktemp("faces")
    command(extract_app, "manifest", "folder", media_dir, "-o", root / "m.yaml")
    result = command(
        extract_app, "run", "--manifest", root / "m.yaml", "--store", root / "store.zarr", "--stage", "faces", "--json"
    )
    return extract.open_store(root / "store.zarr"), json.loads(result.stdout)


def test_a_face_in_every_frame_of_the_talking_heads(faces):
    store, report = faces
    assert report["exit_code"] == 0
    expected = {"one_face": 72} | dict.fromkeys(GRID, 75)
    for clip, frames in expected.items():
        assert store.record(clip, "faces").state == "done"
        valid = store.read(clip, "faces", "box").valid
        assert (len(valid), int(valid.sum())) == (frames, frames), clip


def test_clips_without_a_face_or_picture_are_empty(faces):
    store, _ = faces
    reasons = {clip: store.record(clip, "faces").reason for clip in ("no_face", "av1", "hevc", "two_video_streams")}
    assert set(reasons.values()) == {"no_face"}
    for clip in reasons:
        assert store.record(clip, "faces").state == "empty"
        assert len(store.read(clip, "faces", "valid").values) == store.record(clip, "frames").rows > 0
    for clip in ("jfk", "librispeech_6313-76958-0021"):
        assert (store.record(clip, "faces").state, store.record(clip, "faces").reason) == ("empty", "no_video")


def test_the_headers_lie_is_reported(faces):
    store, report = faces
    assert store.record("no_face", "frames").rows == 95
    assert any("the header declares 98 frames, 95 decode" in warning["message"] for warning in report["warnings"])


def test_stored_times_are_ffprobes(faces, golden_dir):
    store, _ = faces
    compared = 0
    for path in sorted((golden_dir / "ffprobe").glob("*.json")):
        told = json.loads(path.read_text())
        clip = path.name.partition(".")[0]
        if store.record(clip, "frames").state == "done":
            times = store.read(clip, "frames", "pts_s").values
            assert np.allclose(times, golden_times(told), atol=1e-6, rtol=0), clip
            compared += 1
    assert compared == 9


def golden_times(told: dict) -> list[float]:
    """The times of the stream that was taken: the first video stream with frames."""
    streams = [stream for stream in told["streams"] if stream["codec_type"] == "video" and stream["pts_time"]]
    return [float(time) for time in streams[0]["pts_time"]]


def test_features_to_a_fitted_model_on_planted_labels(media_dir, tmp_path, monkeypatch):
    """Labels that are a function of the features must be learned: train F1 > 0.95 with the training defaults."""
    monkeypatch.chdir(tmp_path)
    for clip in GRID:
        shutil.copy(media_dir / f"{clip}.mpg", tmp_path)
    Path("c.yaml").write_text(CONFIG)
    command(extract_app, "manifest", "folder", ".", "-o", "data_manifest.yaml")
    command(extract_app, "run", "-c", "c.yaml", "--stage", "swin", "--stage", "hubert", "-q")
    store = extract.open_store("store.zarr")
    features = {clip: store.read(clip, "swin", "feature").values.astype(np.float64) for clip in GRID}
    everything = np.concatenate(list(features.values()))
    directions = np.random.default_rng(0).normal(size=(everything.shape[1], len(AUS)))
    scores = (everything - everything.mean(0)) / everything.std(0) @ directions
    labels = (scores > np.quantile(scores, np.linspace(0.5, 0.9, len(AUS)), axis=0).diagonal()).astype(int)
    header = ",".join(f"AU{au}" for au in AUS)
    for clip, rows in zip(GRID, np.split(labels, len(GRID)), strict=True):
        np.savetxt(f"{clip}.csv", rows, fmt="%d", delimiter=",", header=header, comments="")
    Path("data_manifest.yaml").unlink()
    command(extract_app, "manifest", "folder", ".", "-o", "data_manifest.yaml")
    clips = [clip.model_copy(update={"split": "train"}) for clip in load_manifest(Path("data_manifest.yaml"))]
    write_manifest(Path("data_manifest.yaml"), clips)
    command(extract_app, "run", "-c", "c.yaml", "-q")
    # These labels change from frame to frame: smoothing, which suits faces, would blur them.
    plain = ("--set", "post.preset=none")
    command(fusion_app, "fit", "--features", "store.zarr", "-c", "c.yaml", "-o", "runs/planted", *plain, "-q")
    told = json.loads(command(fusion_app, "evaluate", "--split", "train", "--json").stdout)
    assert told["frames"] == 300
    assert told["untrained"] == ["swin", "hubert"]
    assert told["f1"]["mean"] > 0.95
    assert told["f1"]["mean"] > max(baseline["f1"]["mean"] for baseline in told["baselines"].values()) + 0.3


@pytest.mark.slow
def test_killed_runs_lose_nothing(media_dir, tmp_path):
    """Two kills and a stop by each signal; ``make kill MEDIA=...`` does thirty of both."""
    (tmp_path / "media").mkdir()
    shutil.copy(media_dir / "one_face.mp4", tmp_path / "media")
    script = [sys.executable, str(ROOT / "tools/kill_run.py"), "--media", str(tmp_path / "media")]
    script += ["--kills", "2", "--stops", "3"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no finished block written twice" in done.stdout
