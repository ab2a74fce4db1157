"""The commands that analyse runs, from the store to the table."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from extract.errors import StaleError, UsageError
from extract.store import Store
from fusion import analysis, cross_fitting
from fusion.ablation_picture import draw_ablation
from fusion.assessment import assess
from fusion.cli import app
from fusion.config import FusionConfig
from fusion.evaluation import evaluate, split_scorer
from fusion.runs import Run
from fusion.scores import FrameScores
from fusion.text_tables import WIDTH
from fusion.training import fit
from tests.fusion_stores import add_clip, planted_store

SPLITS = {"a": "train", "b": "train", "c": "train", "d": "val", "e": "val", "f": "test", "g": "test"}
CONFIG = FusionConfig.model_validate({
    "modalities": {
        "face": {"kind": "frame", "instance": "swin", "array": "feature", "project": 8},
        "sound": {"kind": "frame", "instance": "swin", "array": "feature", "project": 4},
    },
    "model": {"head": 8},
    "training": {"max_epochs": 1, "min_epoch_steps": 2},
    "post": {"thresholds": "tuned", "pairs": "paper"},  # on few recordings nothing is chosen unless asked for
})


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a store and two runs that differ by their seed."""
    folder = tmp_path_factory.mktemp("analysis")
    planted_store(folder / "store.zarr", SPLITS, num_frames=24, swin_size=8)
    for seed in (0, 1):
        fit(folder / "store.zarr", folder / f"runs/s{seed}", CONFIG, set=[f"training.seed={seed}"], device="cpu")
    return folder


@pytest.fixture
def here(made: Path, monkeypatch) -> Path:
    monkeypatch.chdir(made)
    return made


def fusion(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def ablated(here: Path) -> Path:
    """The first run after all three ways; only the first test that asks fits networks."""
    if not (here / "runs/s0/ablate").exists():
        ways = [word for way in ("zero_input", "missing", "retrained") for word in ("--way", way)]
        found = fusion("ablate", "--run", "runs/s0", *ways)
        assert found.exit_code == 0, found.output
        assert max(map(len, found.stdout.splitlines())) <= WIDTH
        assert "written: runs/s0/ablate/test.{json,csv,png,svg}" in found.stderr
    return here / "runs/s0"


@pytest.mark.usefixtures("ablated")
def test_ablate_takes_the_input_away_in_the_three_ways():
    kept = json.loads(Path("runs/s0/ablate/test.json").read_text())
    scorer = split_scorer("store.zarr", "runs/s0", device="cpu")
    assert kept["f1"] == pytest.approx(assess(scorer.scores()).scores.mean_f1)
    for one in kept["removed"]:
        if one["how"] == "retrained":
            scores = split_scorer("store.zarr", f"runs/s0/ablate/without_{one['removed'][0]}", device="cpu").scores()
        else:
            scores = scorer.scores(dict.fromkeys(one["removed"], one["how"]))
        assert one["f1"] == pytest.approx(assess(scores).scores.mean_f1)
    done = {(tuple(one["removed"]), one["how"]) for one in kept["removed"]}
    groups = [("face", "sound"), ("face",), ("sound",)]
    assert done == {(group, how) for group in groups for how in ("zero_input", "missing")} | {
        (group, "retrained") for group in groups[1:]
    }
    assert Run("runs/s0/ablate/without_face").config().used.keys() == {"sound"}
    with open("runs/s0/ablate/test.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 1 + len(kept["removed"])


def test_a_retrained_network_is_fitted_once(ablated, monkeypatch):
    def again(*_, **__):
        raise AssertionError("fitted again")

    monkeypatch.setattr(analysis, "fit", again)
    analysis.ablate("store.zarr", "runs/s0", ways=["retrained"], without=["sound"], device="cpu")
    other = Run(ablated / "ablate/without_sound").config()
    other = other.model_copy(update={"model": other.model.model_copy(update={"head": 9})})
    with pytest.raises(StaleError, match=r"without_sound was fitted with other settings \(model.head: 8 against 9"):
        analysis.fit_once(
            "store.zarr", ablated / "ablate/without_sound", other, device="cpu", skip_failed=False, allow_leak=False
        )


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ablate", "--way", "zeros"), "way zeros: no such way to leave a modality out; known: zero_input, missing"),
        (("ablate", "--without", "words"), "no modality words in this run; known: face, sound"),
        (("ensemble", "runs/s0", "runs/s1", "--metric", "f2"), "--metric f2: no such metric"),
        (("ensemble", "runs/s0", "runs/s0"), "candidates of one name: runs/s0 epoch "),
        (
            ("crossval", "-o", "none", "-c", "runs/s0/config.yaml", "--folds", "6"),
            "5 groups of clips cannot make 6 folds; expected 2 to 5",
        ),
        (("crossval", "-o", "none", "--pool", "tets"), "split tets: no such split; did you mean 'test'?"),
        (("crossval", "-o", "none", "--first", "test"), "--first test: its clips are not pooled; add `--pool test`"),
    ],
)
def test_what_is_refused(arguments, message):
    found = fusion(*arguments)
    assert found.exit_code == 2
    assert message in found.stderr
    assert not Path("none").exists()


@pytest.mark.usefixtures("here")
def test_ensemble_chooses_on_val_and_reports_on_test():
    found = fusion("ensemble", "runs/s0", "runs/s1", "--json", "-o", "both")
    assert found.exit_code == 0, found.output
    plain = json.loads(found.stdout)
    assert plain["split"] == "val"
    for place, seed in enumerate((0, 1)):
        scores = assess(split_scorer("store.zarr", f"runs/s{seed}", split="val", device="cpu").scores()).scores
        assert list(plain["table"][place].values())[1:] == pytest.approx(scores.f1_our)
    on_test = [way for way in plain["ways"] if way["split"] == "test"]
    assert [way["way"] for way in on_test] == ["best per AU", "best single candidate", "mean of logits"]
    each = {seed: assess(split_scorer("store.zarr", f"runs/s{seed}", device="cpu").scores()).scores for seed in (0, 1)}
    for au, (name, candidate) in enumerate(plain["chosen"].items()):
        assert on_test[0]["f1"][name] == pytest.approx(each[int("s1" in candidate)].f1[au])
    assert {path.name for path in Path("both").iterdir()} == {
        f"ensemble.{kind}" for kind in ("json", "csv", "png", "svg")
    }


@pytest.mark.usefixtures("here")
def test_runs_that_read_the_same_features_share_their_tables():
    first = split_scorer("store.zarr", "runs/s0", device="cpu")
    second = split_scorer("store.zarr", "runs/s1", device="cpu", like=first)
    assert second.samples is first.samples
    alone = split_scorer("store.zarr", "runs/s1", device="cpu")
    np.testing.assert_array_equal(second.scores().logits, alone.scores().logits)
    assert split_scorer("store.zarr", "runs/s1", split="val", device="cpu", like=first).samples is not first.samples
    config = first.fitted.config
    one_less = config.model_copy(update={"modalities": {**config.modalities, "sound": None}})
    other = replace(first, fitted=replace(first.fitted, config=one_less))
    assert split_scorer("store.zarr", "runs/s1", device="cpu", like=other).samples is not first.samples


def test_scores_of_other_epochs_are_candidates_too(here):
    scores = split_scorer("store.zarr", "runs/s0", split="val", device="cpu").scores()
    (here / "epoch1.npz").write_bytes(scores.as_bytes())
    found = analysis.ensemble("store.zarr", ["runs/s0", "epoch1.npz"], device="cpu")
    assert {way.split for way in found.ways} == {"val"}
    assert set(found.chosen.values()) == {found.names[0]}  # equal scores: the first wins


def test_crossval_scores_every_clip_by_a_run_that_did_not_see_it(here):
    result = cross_fitting.crossval("store.zarr", "cv", CONFIG, k=2, device="cpu")
    assert sorted(result.scores.clips) == ["a", "b", "c", "d", "e"]
    for fold in result.folds:
        run = Run(here / "cv" / fold.name).model()
        used = {*run.clips["train"], *run.clips["val"]}
        assert run.clips["val"]
        assert used == set("abcde") - set(fold.clips)
        kept = FrameScores.read(here / "cv" / f"{fold.name}.npz")
        splits = dict.fromkeys(fold.clips, "test")
        again = split_scorer("store.zarr", here / "cv" / fold.name, device="cpu", splits=splits).scores()
        np.testing.assert_array_equal(kept.logits, again.logits)
    assert [step.name for step in result.pooled.steps] == ["base", "+smooth", "+AUcorr", "+threshold"]


def test_crossval_goes_on_and_refuses_other_features(here, monkeypatch):
    real, fitted = cross_fitting.fit_once, []

    def once(features, folder, *arguments, **settings):
        fitted.append(folder.name)
        real(features, folder, *arguments, **settings)

    (here / "cv/fold1.npz").unlink(missing_ok=True)  # the first fold's run is kept and not fitted again
    monkeypatch.setattr(cross_fitting, "fit_once", once)
    before = cross_fitting.crossval("store.zarr", "cv", CONFIG, k=2, device="cpu")
    assert fitted == ["fold1"]
    after = cross_fitting.crossval("store.zarr", "cv", CONFIG, k=2, device="cpu")
    assert fitted == ["fold1"]
    assert after.scores.logits.tobytes() == before.scores.logits.tobytes()
    with pytest.raises(StaleError, match=r"fold1.npz: .*\(settings.config.training.lr: "):
        cross_fitting.crossval("store.zarr", "cv", CONFIG, set=["training.lr=0.5"], k=2, device="cpu")
    add_clip(Store.open(here / "store.zarr", "a"), "g", split="val")
    try:
        with pytest.raises(StaleError, match=r"fold1.npz: the fold was made otherwise than asked now"):
            cross_fitting.crossval("store.zarr", "cv", CONFIG, k=2, device="cpu")
    finally:
        add_clip(Store.open(here / "store.zarr", "a"), "g", split="test")


@pytest.mark.usefixtures("here")
def test_the_first_fold_may_be_an_official_set(monkeypatch):
    asked = []
    monkeypatch.setattr(cross_fitting.folds_of_scores, "crossval", lambda parts, *_, **__: asked.append(parts))
    pool = ("train", "val", "test")
    cross_fitting.crossval("store.zarr", "official", CONFIG, k=3, pool=pool, first="test", device="cpu")
    first, *others = asked[0]
    assert first == ("f", "g")
    assert sorted(clip for part in others for clip in part) == list("abcde")


@pytest.mark.usefixtures("here")
def test_the_crossval_command():
    arguments = ("crossval", "-o", "cv", "--folds", "2", "-c", "runs/s0/config.yaml", "--device", "cpu")
    found = fusion(*arguments)
    assert found.exit_code == 0, found.output
    lines = found.stdout.splitlines()
    assert lines[0].startswith("mean F1 ")
    assert max(map(len, lines)) <= WIDTH
    assert {f"crossval.{kind}" for kind in ("json", "csv", "png", "svg")} <= {
        path.name for path in Path("cv").iterdir()
    }


# ---- evaluate --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
def test_evaluate_shows_what_the_run_ships_and_withholds_modalities():
    scorer = split_scorer("store.zarr", "runs/s0", device="cpu")
    found = evaluate("store.zarr", "runs/s0", device="cpu", withhold=True)
    post = scorer.run.postprocess(scorer.fitted.aus)
    expected = assess(scorer.scores(), post.steps)
    assert [step.scores.mean_f1 for step in found.steps] == [step.scores.mean_f1 for step in expected.steps]
    for one in found.absent:
        alone = assess(scorer.scores({one.modality: "missing"}), post.steps)
        assert one.withheld == pytest.approx(alone.scores.mean_f1)
    shown = fusion("evaluate", "--run", "runs/s0", "--withhold")
    assert "F1 withheld" in shown.stdout
    assert "preset default" in fusion("evaluate", "--run", "runs/s0", "-v").stdout


@pytest.mark.usefixtures("here")
def test_what_was_selected_on_these_clips_is_shown_only_if_allowed():
    alone = evaluate("store.zarr", "runs/s0", split="val", device="cpu")
    assert [step.name for step in alone.steps] == ["base"]
    assert alone.notices[0].startswith(
        "the network alone: its post-processing was selected on these clips or recordings"
    )
    assert alone.notices[0] in " ".join(alone.text().split())
    allowed = fusion("evaluate", "--run", "runs/s0", "--split", "val", "--allow-leak")
    assert "LEAK ALLOWED: thresholds and equations were selected on" in allowed.stdout
    assert "F1 +threshold" in allowed.stdout


@pytest.mark.usefixtures("here")
def test_clips_of_one_recording_are_one_video():
    store = Store.open("store.zarr", "a")
    try:
        for clip in "fg":
            add_clip(store, clip, split="test", source_video="movie")
        assert evaluate("store.zarr", "runs/s0", device="cpu").source_videos == 1
    finally:
        for clip in "fg":
            add_clip(store, clip, split="test")


@pytest.mark.usefixtures("here")
def test_the_picture_of_an_ablation(tmp_path):
    found = analysis.ablate("store.zarr", "runs/s0", device="cpu")
    paths = draw_ablation(found, tmp_path)
    assert [path.name for path in paths] == ["ablation.png", "ablation.svg"]
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match="way zero: no such way"):
        analysis.ablate("store.zarr", "runs/s0", ways=["zero"], device="cpu")
