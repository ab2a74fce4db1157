"""``fusion predict`` with a run on given crops: faces of a movie are cut as those are, or it says so."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import extract
import fusion
from extract.config import ExtractConfig
from extract.errors import StaleError, UsageError
from extract.inputs.manifest import Clip, Labels
from fusion.cli import app
from fusion.clip_scores import score_clips
from fusion.config import FusionConfig
from fusion.runs import Run
from tests.test_crop_patch import VISUAL
from tests.test_prediction import rewrite, table
from tests.test_vision_chain import faces, write_clip

NUM_FRAMES = 6
INSTANCES = {"labels": {}, **VISUAL}
FIT = FusionConfig.model_validate({
    "modalities": {
        "swin": {"kind": "frame", "instance": "swin", "array": "feature", "project": 8},
        "ghfeat": {"kind": "frame", "instance": "ghfeat", "array": "code", "project": 8},
    },
    "model": {"hidden": 8, "head": 8},
    "training": {"max_epochs": 1},
})


@pytest.fixture(scope="module")
def made(media_dir, tmp_path_factory):
    """``face.mkv``, runs ``given`` and ``wide`` fitted on its crops and on itself, and ``given.zarr``."""
    root = tmp_path_factory.mktemp("made")
    write_clip(root / "face.mkv", faces(media_dir, NUM_FRAMES))
    (root / "labels.csv").write_text("AU01,AU12\n" + "1,0\n0,1\n" * (NUM_FRAMES // 2))
    about = {"labels": Labels(au=root / "labels.csv"), "split": "train"}
    keeping = ExtractConfig.model_validate({"instances": {**INSTANCES, "crop": {"keep": ["image"]}}})
    assert extract.run([Clip(id="a", video=root / "face.mkv", **about)], root / "wide.zarr", keeping).exit_code == 0
    (root / "crops").mkdir()
    images = extract.open_store(root / "wide.zarr").read("a", "crop", "image").values
    for number, image in enumerate(images, start=1):
        Image.fromarray(image).save(root / "crops" / f"{number:05d}.png")
    given = Clip(id="a", video=root / "face.mkv", crops=root / "crops", **about)
    assert extract.run([given], root / "given.zarr", ExtractConfig(instances=INSTANCES)).exit_code == 0
    for name in ("wide", "given"):
        fusion.fit(root / f"{name}.zarr", root / name, FIT)
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AU_FUSION_CACHE", str(tmp_path / "cache"))


def probabilities(path):
    columns = table(path)
    return np.array([columns[name] for name in columns if name.endswith("_p")], dtype=float)


def test_runs_know_what_they_were_fitted_on(made):
    assert Run(made / "given").model().crops == {"swin": "given", "ghfeat": "given"}
    assert Run(made / "wide").model().crops == {"swin": "cut", "ghfeat": "cut"}


def test_a_run_on_given_crops_has_them_cut_as_given(made, tmp_path):
    """Oracle: the network on the features of the given crops, which hold the same pixels."""
    found = fusion.predict([made / "face.mkv"], made / "given", output=tmp_path, raw=True)
    assert not [line for line in found.warnings if "crops" in line]
    facts = json.loads((tmp_path / "face.json").read_text())
    assert facts["crops"] == {name: {"fitted": "given", "here": "as_given"} for name in ("swin", "ghfeat")}
    fitted = Run(made / "given").model()
    scores = score_clips(extract.open_store(made / "given.zarr"), ["a"], fitted, torch.device("cpu"))
    expected = 1 / (1 + np.exp(-scores.logits.astype(float)))
    np.testing.assert_allclose(probabilities(tmp_path / "face.csv"), expected.T, rtol=0, atol=1e-6)


def test_wide_crops_are_refused_by_name_unless_allowed(made, tmp_path):
    message = (
        r"instances swin, ghfeat: run .*given was fitted on crops that the clips brought .*, but it is used "
        r"on crops cut from the movies .*face\.mkv\n.*--set crop\.patch=face"
    )
    with pytest.raises(StaleError, match=message):
        fusion.predict([made / "face.mkv"], made / "given", output=tmp_path, crops="wide")
    with pytest.raises(StaleError, match=message):
        fusion.predict([made / "face.mkv"], made / "given", output=tmp_path, set=["crop.patch=wide"])
    found = fusion.predict([made / "face.mkv"], made / "given", output=tmp_path, crops="wide", allow_other_crops=True)
    assert found.warnings[0].startswith("other crops than in the fit: instances swin, ghfeat: run ")
    facts = json.loads((tmp_path / "face.json").read_text())
    assert facts["warnings"] == found.warnings
    assert facts["crops"]["ghfeat"] == {"fitted": "given", "here": "cut"}
    fusion.predict([made / "face.mkv"], made / "given", output=tmp_path / "as_given")
    wide, tight = (probabilities(path) for path in (tmp_path / "face.csv", tmp_path / "as_given" / "face.csv"))
    assert np.abs(wide - tight).max() > 1e-4


def test_a_run_on_movies_goes_on_cutting_wide(made, tmp_path):
    fusion.predict([made / "face.mkv"], made / "wide", output=tmp_path)
    facts = json.loads((tmp_path / "face.json").read_text())
    assert facts["crops"]["ghfeat"] == {"fitted": "cut", "here": "cut"}
    arguments = ["predict", str(made / "face.mkv"), "--run", str(made / "wide"), "-o", str(tmp_path)]
    refused = CliRunner().invoke(app, [*arguments, "--crops", "as-given"])
    assert refused.exit_code == 2
    assert "was fitted on crops cut from the movies" in refused.stderr
    told = CliRunner().invoke(app, [*arguments, "--crops", "as-given", "--allow-other-crops"])
    assert told.exit_code == 0, told.stderr
    assert "warning: other crops than in the fit: instances swin, ghfeat" in told.stderr


def test_a_mixture_is_told(made, tmp_path):
    run = rewrite(made / "given", tmp_path / "run", crops={"swin": "mixed", "ghfeat": "mixed"})
    found = fusion.predict([made / "face.mkv"], run, output=tmp_path)
    assert "the run was fitted on a mixture of given and cut crops: swin, ghfeat" in found.warnings


def test_evaluate_refuses_a_store_of_the_other_kind(made):
    with pytest.raises(StaleError, match="but it is used on crops cut from the movies"):
        fusion.evaluate(made / "wide.zarr", made / "given", split="train")


def test_a_misspelt_way_is_refused(made, tmp_path):
    arguments = ["predict", str(made / "face.mkv"), "--run", str(made / "wide"), "-o", str(tmp_path)]
    for option, value, message in (
        ("--crops", "as_given", "did you mean 'as-given'"),
        ("--columns", "openfase", "did you mean 'openface'"),
    ):
        refused = CliRunner().invoke(app, [*arguments, option, value])
        assert (refused.exit_code, message in refused.stderr) == (2, True), refused.stderr


def test_predict_takes_ways_from_python_too(made, tmp_path):
    with pytest.raises(UsageError, match=r"--crops tight: no such way; known: as-given, wide"):
        fusion.predict([made / "face.mkv"], made / "wide", output=tmp_path, crops="tight")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"--columns x: no such names; known: default, openface"):
        fusion.predict([made / "face.mkv"], made / "wide", output=tmp_path, columns="x")  # type: ignore[arg-type]
