"""Analyses of saved scores, without the network: tune, correlate. And runs of several epochs and seeds."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from extract.au import AUS
from extract.errors import UsageError
from extract.store import Store
from fusion import inference, saved_scores
from fusion.cli import app
from fusion.config import FusionConfig
from fusion.postprocess import PostProcess
from fusion.runs import Run
from fusion.scores import FrameScores
from fusion.seeds import fit_seeds
from fusion.training import fit
from tests.fusion_stores import planted_store

CONFIG = FusionConfig.model_validate({
    "modalities": {"swin": {"kind": "frame", "instance": "swin", "array": "feature", "project": 16}},
    "model": {"head": 16},
    "training": {"batch": 32, "max_epochs": 2, "min_epoch_steps": 4, "keep_epochs": True},
})


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    clips = {"a": "train", "b": "train", "c": "val", "d": "val", "e": "test"}
    planted_store(folder / "store.zarr", clips, num_frames=40, swin_size=12)
    fit(folder / "store.zarr", folder / "run", CONFIG)
    return folder


def fusion(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def no_network(monkeypatch):
    def refused(*_, **__):
        raise AssertionError("the network ran")

    monkeypatch.setattr(inference, "predict_outputs", refused)


def test_saved_scores_hold_every_frame_and_are_those_of_the_metrics(fitted):
    scores = Run(fitted / "run").scores("val")
    assert (scores.clips, len(scores)) == (("c", "d"), 80)
    assert scores.frame.tolist() == [*range(40)] * 2
    metrics = json.loads((fitted / "run" / "metrics.json").read_text())["val"]
    hits = [
        ((scores.logits >= 0) & (scores.labels == 1)).sum(0),
        (scores.logits >= 0).sum(0) + (scores.labels == 1).sum(0),
    ]
    f1 = 2 * hits[0] / np.maximum(hits[1], 1)
    assert metrics["f1"]["mean"] == pytest.approx(f1.mean())
    copy = FrameScores.read(fitted / "run" / "scores" / "val.npz")
    np.testing.assert_array_equal(copy.logits, scores.logits)


@pytest.mark.usefixtures("no_network")
def test_tune_sweeps_the_window_and_can_apply_it(fitted):
    before = (fitted / "run" / "postprocess.json").read_bytes()
    found = saved_scores.tune(fitted / "run", sizes=[1, 5])
    assert found.best_size in {1, 5}
    assert (fitted / "run" / "postprocess.json").read_bytes() == before
    result = fusion("tune", "--run", fitted / "run", "--unit", "seconds", "--size", 0.12, "--size", 0.2, "--apply")
    assert result.exit_code == 0, result.output
    assert "post.smooth_s=" in result.stdout + result.stderr
    shipped = PostProcess.read(fitted / "run" / "postprocess.json", AUS)
    assert shipped.windows.unit == "seconds"
    assert set(shipped.windows.sizes) <= {0.12, 0.2}
    assert {path.suffix for path in (fitted / "run" / "tune").iterdir()} == {".json", ".csv", ".png", ".svg"}


def test_tune_mines_equations_from_the_training_labels(fitted):
    run = Run(fitted / "run")
    labels = saved_scores.train_labels(Store.open(fitted / "store.zarr"), run.model())
    store = Store.open(fitted / "store.zarr")
    expected = np.concatenate([store.read(clip, "labels", "au").values for clip in ("a", "b")])
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.usefixtures("no_network")
def test_correlate_reads_what_was_saved(fitted):
    found = saved_scores.correlate(fitted / "run")
    labels = Run(fitted / "run").scores("val").labels
    np.testing.assert_allclose(found.labels.r, np.corrcoef(labels.T), atol=1e-12)
    result = fusion("correlate", "--run", fitted / "run", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("tune", "--report", "test"),
            r"run .*run has no scores of split test: `fusion evaluate --run .* --split test`",
        ),
        (("tune", "--unit", "frame"), "--unit frame: did you mean 'frames'"),
        (("tune", "--at", "0.5"), "--at 0.5: known: tuned, half"),
        (("correlate", "--split", "train"), "has no scores of split train"),
    ],
)
def test_what_is_not_there_is_told_with_the_command(fitted, arguments, message):
    result = fusion(*arguments, "--run", fitted / "run")
    assert result.exit_code == 2
    with pytest.raises(UsageError, match=message):
        raise UsageError(result.stderr)


def test_the_networks_of_all_epochs_are_kept_and_read_like_runs(fitted):
    kept = sorted((fitted / "run" / "epochs").iterdir())
    assert [path.name for path in kept] == ["01", "02"]
    assert [Run(path).model().epoch for path in kept] == [1, 2]
    best = Run(fitted / "run").model()
    same = Run(kept[best.epoch - 1]).model()
    for name, value in best.model.state_dict().items():
        assert (value == same.model.state_dict()[name]).all()
    result = fusion(
        "ensemble", *kept, "--features", fitted / "store.zarr", "-o", fitted / "ensemble", "--folds", 2, "--json"
    )
    assert result.exit_code == 0, result.output
    written = {path.name for path in (fitted / "ensemble").iterdir()}
    assert written == {f"ensemble.{kind}" for kind in ("json", "csv", "png", "svg")}


def test_several_seeds_give_mean_and_deviation_and_keep_what_is_finished(fitted, monkeypatch):
    config = CONFIG.model_copy(update={"training": CONFIG.training.model_copy(update={"keep_epochs": False})})
    found = fit_seeds(fitted / "store.zarr", 2, fitted / "many", config)
    assert [Path(one.run).name for one in found.evaluations] == ["many_seed0", "many_seed1"]
    assert found.evaluations[0].split == "test"
    means = [one.scores.mean_f1 for one in found.evaluations]
    assert means[0] != means[1]
    last = found.as_json()["steps"][-1]
    assert (last["f1_mean"], last["f1_deviation"]) == pytest.approx((np.mean(means), np.std(means, ddof=1)))
    monkeypatch.setattr("fusion.seeds.fit", lambda *_, **__: pytest.fail("a finished run was fitted again"))
    again = fit_seeds(fitted / "store.zarr", 2, fitted / "many", config)
    assert [one.scores.mean_f1 for one in again.evaluations] == means
