"""Scores against golden/metrics and against counting; what an evaluation refuses and says."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from extract.au import AU_NAMES
from extract.errors import StaleError, UnfinishedError, UsageError
from extract.store import Store
from fusion.config import FusionConfig
from fusion.evaluation import evaluate
from fusion.inference import predict_outputs
from fusion.loading import load_samples
from fusion.model import FusionModel
from fusion.runs import FittedModel, Run
from fusion.scoring import by_name, score
from fusion.selection import feature_sources
from tests.fusion_stores import add_clip, add_instance, planted_store, remove_instance

CONFIG = FusionConfig.model_validate({
    "modalities": {"swin": {"kind": "frame", "instance": "swin", "array": "feature", "project": 12}},
    "model": {"head": 12, "modality_dropout": 0, "missing": "zero_output"},
})


@pytest.mark.parametrize("tag", ["logit0", "zeros", "ones"])
@pytest.mark.parametrize("drop_partial_frames", [False, True])
def test_an_evaluation_equals_the_golden_metrics(golden_dir, tmp_path, tag, drop_partial_frames):
    """The golden logits are stored as features and passed through a network that is the identity."""
    with np.load(golden_dir / "metrics.npz") as file:
        golden = dict(file)
    logits = {"logit0": golden["logits"], "zeros": np.full((281, 12), -1), "ones": np.ones((281, 12))}[tag]
    store = Store.open(tmp_path / "store.zarr", "a")
    for video in range(4):
        frames = golden["video"] == video
        clip, num_frames = f"v{video}", int(frames.sum())
        add_clip(store, clip, split="test")
        add_instance(store, clip, "frames", {"pts_s": np.arange(num_frames) / 25})
        add_instance(store, clip, "labels", {"au": golden["labels"][frames]})
        valid = np.ones(num_frames, dtype=np.bool_)
        add_instance(store, clip, "swin", {"feature": logits[frames].astype(np.float32), "valid": valid})
    config = CONFIG.model_copy(
        update={"data": CONFIG.data.model_copy(update={"drop_partial_frames": drop_partial_frames})}
    )
    save_identity(tmp_path / "run", store, config)
    scores = evaluate(tmp_path / "store.zarr", tmp_path / "run").scores
    if drop_partial_frames:
        np.testing.assert_allclose(scores.f1, golden[f"{tag}_f1"], rtol=0, atol=1e-9)
        np.testing.assert_allclose(scores.f1_our, golden[f"{tag}_f1_our"], rtol=0, atol=1e-9)
        for name in ("zeros", "ones"):
            np.testing.assert_allclose(scores.baselines[name]["f1_our"], golden[f"{name}_f1_our"], atol=1e-9)
    elif tag == "logit0":
        np.testing.assert_allclose(scores.f1, golden["logit0_f1_elementwise"], rtol=0, atol=1e-9)
        np.testing.assert_array_equal(scores.annotated, (golden["labels"] >= 0).sum(axis=0))
        np.testing.assert_array_equal(scores.positive, (golden["labels"] == 1).sum(axis=0))


def save_identity(path: Path, store: Store, config: FusionConfig) -> None:
    """A run whose logits are its 12 features: x = relu(x + 100) - 100 through every layer."""
    model = FusionModel({"swin": 12}, config).eval()
    eye = torch.eye(12)
    with torch.no_grad():
        for layer, bias in ((model.branch("swin").project, 0.0), (model.head[0], 100.0), (model.head[4], -100.0)):
            layer.weight.copy_(eye)
            layer.bias.fill_(bias)
        # BatchNorm divides by sqrt(1 + eps): the sign of a logit is all that counts, so undo it exactly enough.
        model.head[2].running_var.fill_(1 - model.head[2].eps)
    sources = feature_sources(store, store.clips(), ["swin"])
    run = Run(path)
    run.begin(config)
    run.save_model(FittedModel(model, config, {"swin": 12}, {"swin": sources["swin"].recipe}, {"train": ()}, 1))


@pytest.fixture
def fitted(tmp_path: Path) -> tuple[Path, Path]:
    """A store with a clip of each split and a run that saw ``a``."""
    store = planted_store(
        tmp_path / "store.zarr", {"a": "train", "b": "test", "c": "test"}, num_frames=20, swin_size=12
    )
    save_identity(tmp_path / "run", store, CONFIG)
    run = Run(tmp_path / "run")
    model = run.model()
    run.save_model(FittedModel(model.model, CONFIG, model.sizes, model.recipes, {"train": ("a",)}, 7))
    return tmp_path / "store.zarr", tmp_path / "run"


def test_frames_without_a_face_count(fitted):
    features, run = fitted
    store = Store.open(features, "a")
    valid = np.arange(20) >= 5
    values = store.read("b", "swin", "feature").values * valid[:, None]
    add_instance(store, "b", "swin", {"feature": values, "valid": valid})
    found = evaluate(features, run)
    assert (found.frames, found.clips, found.epoch) == (40, 2, 7)
    assert found.missing == {"swin": 5}
    assert found.scores.annotated.tolist() == [40] * 12


def test_predictions_keep_the_order_of_the_samples(fitted):
    features, run = fitted
    store = Store.open(features)
    samples = load_samples(store, ["b", "c"], CONFIG, frames="all")
    logits = predict_outputs(Run(run).model().model, samples, torch.device("cpu"), batch_size=7)
    expected = np.concatenate([store.read(clip, "swin", "feature").values for clip in "bc"])
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_aus_without_annotation_are_null_and_in_no_mean():
    labels = np.ones((4, 12), dtype=np.int8)
    labels[:, 3:] = -1
    labels[2:, 0] = 0
    scores = score(labels, np.ones((4, 12)))
    found = scores.as_json()
    assert found["f1"]["AU01"] == pytest.approx(2 / 3)
    assert found["f1"]["AU06"] is None
    assert found["f1"]["mean"] == pytest.approx((2 / 3 + 1 + 1) / 3) == scores.mean_f1
    assert found["baselines"]["zeros"]["f1_our"]["AU01"] == pytest.approx(1 / 3)
    assert found["annotated"]["AU06"] == 0
    assert by_name(np.full(12, np.nan), AU_NAMES)["mean"] == 0
    assert list(found["f1"]) == [*AU_NAMES, "mean"]
    json.dumps(found, allow_nan=False)


def test_untrained_encoders_are_named(fitted):
    features, run = fitted
    assert evaluate(features, run).untrained == ()
    store = Store.open(features, "a")
    values = store.read("b", "swin", "feature").values
    add_instance(store, "b", "swin", {"feature": values}, provenance={"untrained": True})
    assert evaluate(features, run).untrained == ("swin",)


def test_features_of_another_recipe_are_refused(fitted):
    features, run = fitted
    store = Store.open(features, "a")
    recipe = {"stage": "swin", "version": 2, "config": {}}
    for clip in "bc":
        add_instance(store, clip, "swin", {"feature": store.read(clip, "swin", "feature").values}, recipe=recipe)
    with pytest.raises(StaleError, match=r"instance swin: run .*/run was fitted on other.*\(version: 1 against 2\)"):
        evaluate(features, run)


def test_rows_of_another_size_are_refused(fitted):
    features, run = fitted
    store = Store.open(features, "a")
    for clip in "bc":
        add_instance(store, clip, "swin", {"feature": np.zeros((20, 5), np.float16)})
    with pytest.raises(StaleError, match=r"modality swin: 5 values per row, the run was fitted on 12"):
        evaluate(features, run)


def test_clips_that_the_run_was_trained_on_are_no_test(fitted):
    features, run = fitted
    add_clip(Store.open(features, "a"), "a", split="test")
    with pytest.raises(UsageError, match=r"split test: .*trained on a \(1 in all\)"):
        evaluate(features, run)
    add_clip(Store.open(features, "a"), "a", split="train")
    assert evaluate(features, run, split="train").frames == 20


def test_nothing_to_evaluate(fitted):
    features, run = fitted
    with pytest.raises(UsageError, match=r"no labelled clip in split val; clips per split: test 2, train 1"):
        evaluate(features, run, split="val")
    store = Store.open(features, "a")
    for clip in "bc":
        add_instance(store, clip, "labels", {"au": np.full((20, 12), -1, dtype=np.int8)})
    with pytest.raises(UsageError, match="split test: no annotated frame in 2 clips"):
        evaluate(features, run)


def test_unfinished_clips_are_refused_or_left_out(fitted):
    features, run = fitted
    store = Store.open(features, "a")
    remove_instance(store, "b", "swin")
    add_instance(store, "c", "labels", {}, state="empty", reason="no_labels")
    with pytest.raises(UnfinishedError, match="b: swin was never computed"):
        evaluate(features, run)
    with pytest.raises(UsageError, match=r"split test \(1 without labels, 1 left out\); for example b: swin was never"):
        evaluate(features, run, skip_failed=True)


def test_the_newest_run_is_taken(tmp_path):
    with pytest.raises(UsageError, match=r"no fitted model in .*/runs/; make one with `fusion fit`"):
        Run.newest(tmp_path / "runs")
    for age, name in enumerate(("young", "middle", "old")):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "model.pt").touch()
        os.utime(folder / "model.pt", (1e9 - age, 1e9 - age))
    assert Run.newest(tmp_path / "runs").path.name == "young"
