"""From adapted weights to the table that is refused: what was heard is not scored, through all of the commands."""

import csv

import numpy as np
import pytest
from typer.testing import CliRunner

import extract
from extract.adapt.hubert import adapt_hubert
from extract.au import AU_NAMES
from extract.config import ExtractConfig
from extract.inputs.manifest import Clip, Labels, write_manifest
from fusion.cli import app as fusion
from tests.adapt_speech import murmur, quick
from tests.media_files import pictures, write_clip

SPLITS = {"a": "train", "b": "train", "c": "val", "d": "test", "e": "test"}
FUSION = """fusion:
  modalities: {hubert: {kind: steps, instance: hubert, array: feature, project: 4, before_s: 0.1, after_s: 0.1}}
  model: {width: 8}
  training: {max_epochs: 1, batch: 16}
"""


def clip(folder, number, name, split):
    """A movie of 3 s at 10 frames a second with sound and labels."""
    video = write_clip(folder / f"{name}.mov", pictures(30, 16, 16), rate=10, sound=murmur(number, 3.0))
    labels = folder / f"{name}.au.csv"
    with labels.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(AU_NAMES)
        writer.writerows(np.random.default_rng(number).integers(0, 2, (30, len(AU_NAMES))).tolist())
    return Clip(id=name, video=video, labels=Labels(au=labels), split=split)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("movies")
    clips = [clip(folder, number, name, split) for number, (name, split) in enumerate(SPLITS.items())]
    write_manifest(folder / "m.yaml", clips, "")
    return folder / "m.yaml"


@pytest.mark.parametrize("transductive", [False, True])
def test_fusion_scores_no_clip_that_was_heard(manifest, tmp_path, monkeypatch, transductive):
    config = quick(steps=2, head_steps=0, targets={"clusters": 6})
    done = adapt_hubert(manifest, tmp_path / "adapted", config, weights="random", architecture="small", device="cpu",
                        transductive=transductive)  # fmt: skip
    entry = {"weights": str(done.best), "architecture": "small"}
    instances = ExtractConfig.model_validate({"instances": {"labels": {}, "hubert": entry}})
    assert extract.run(manifest, tmp_path / "store.zarr", instances).exit_code == 0
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f.yaml").write_text(FUSION)

    def command(*arguments):
        return CliRunner().invoke(fusion, list(arguments))

    fitted = command("fit", "-q", "-c", "f.yaml", "-o", "run", *(["--allow-leak"] if transductive else []))
    assert fitted.exit_code == 0, fitted.output
    scored = command("evaluate", "--run", "run")
    if not transductive:
        assert scored.exit_code == 0, scored.output
        assert "adapted" not in scored.output
        return
    said = "instance hubert: its weights were adapted on 2 of these clips (d, e): their scores are too high"
    assert scored.exit_code == 2
    assert said in scored.stderr
    assert "--allow-leak, which every table then says" in scored.stderr
    allowed = command("evaluate", "--run", "run", "--allow-leak")
    assert allowed.exit_code == 0, allowed.output
    assert f"--allow-leak: {said}" in " ".join(allowed.output.split())
