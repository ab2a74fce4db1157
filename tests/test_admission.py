"""What a fit or an evaluation refuses, or says, of its clips: other crops, leaks of adapted weights, shared people."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from extract.errors import CorruptError, StaleError, UsageError
from extract.records import Record
from extract.store import Store
from fusion.cli import app
from fusion.config import FusionConfig
from fusion.crop_kinds import AS_GIVEN, CUT, GIVEN, MIXED, cut_kinds, differ, kind_of, together, without_patch
from fusion.evaluation import evaluate
from fusion.runs import Run
from fusion.training import fit
from tests.fusion_stores import add_clip, add_instance, planted_store

SPLITS = {"a": "train", "b": "train", "v": "val", "x": "test", "y": "test"}
CONFIG = FusionConfig.model_validate({
    "modalities": {
        "swin": {"kind": "frame", "instance": "swin", "array": "feature", "project": 8},
        "hubert": {"kind": "steps", "instance": "hubert", "array": "feature", "project": 4},
    },
    "model": {"head": 8, "hidden": 4},
    "training": {"max_epochs": 1, "min_epoch_steps": 1},
    "post": {"preset": "none"},
})


def recipe(**crop):
    """Of features that are made from crops two stages below."""
    cut = {"stage": "crop", "version": 1, "config": crop, "inputs": {}}
    between = {"stage": "superres", "version": 1, "config": {}, "inputs": {"crop": cut}}
    return {"stage": "swin", "version": 1, "config": {}, "inputs": {"superres": between}}


def made(store, clip, kind, **provenance):
    """Say of a clip's ``swin`` that it was made in this way."""
    arrays = store.read(clip, "swin", "feature")
    source = {"media": f"m-{clip}"} | ({"crops": f"c-{clip}"} if kind == GIVEN else {})
    add_instance(
        store,
        clip,
        "swin",
        {"feature": arrays.values, "valid": arrays.valid},
        recipe=recipe(**({"patch": "face"} if kind == AS_GIVEN else {})),
        source=source,
        provenance=provenance,
    )


def store_of(path, kinds, splits=SPLITS):
    """A store whose clips' crops are of these kinds: one for all, or by clip."""
    store = planted_store(path, splits, num_frames=12)
    for clip in splits:
        made(store, clip, kinds if isinstance(kinds, str) else kinds[clip])
    return store


# ---- crops ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "source", "crop", "expected"),
    [
        ("done", {"media": "m", "crops": "c"}, {}, GIVEN),
        ("done", {"crops": "c"}, {"patch": "face"}, GIVEN),
        ("done", {"media": "m"}, {"patch": "face"}, AS_GIVEN),
        ("done", {"media": "m"}, {}, CUT),
        ("empty", {"media": "m"}, {}, None),
    ],
)
def test_the_kind_of_a_record(state, source, crop, expected):
    assert kind_of(Record(state, recipe(**crop), source, "f")) == expected


def test_sound_has_no_kind():
    plain = {"stage": "hubert", "version": 1, "config": {}, "inputs": {"wave": {"stage": "wave", "config": {}}}}
    assert kind_of(Record("done", plain, {"media": "m", "crops": "c"}, "f")) is None
    assert cut_kinds({"hubert": plain, "swin": recipe()}) == {"swin": CUT}


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ([], None),
        ([GIVEN, GIVEN], GIVEN),
        ([AS_GIVEN], AS_GIVEN),
        ([GIVEN, AS_GIVEN], GIVEN),
        ([GIVEN, CUT], MIXED),
        ([AS_GIVEN, CUT, CUT], MIXED),
    ],
)
def test_several_clips_have_one_kind(kinds, expected):
    assert together(kinds) == expected


def test_which_kinds_differ():
    table = {
        (one, other) for one in (GIVEN, AS_GIVEN, CUT, MIXED) for other in (GIVEN, AS_GIVEN, CUT) if differ(one, other)
    }
    assert table == {(GIVEN, CUT), (AS_GIVEN, CUT), (CUT, GIVEN), (CUT, AS_GIVEN)}


def test_a_recipe_without_patch_is_otherwise_the_same():
    wanted = recipe()
    assert without_patch(recipe(patch="face")) == wanted
    assert recipe(patch="face") != wanted  # the copy is deep
    assert without_patch(wanted) == wanted


@pytest.mark.parametrize("kind", [GIVEN, AS_GIVEN, CUT])
def test_fit_records_the_kind_of_each_visual_instance(tmp_path, kind):
    store_of(tmp_path / "s", kind)
    fit(tmp_path / "s", tmp_path / "run", CONFIG)
    assert Run(tmp_path / "run").model().crops == {"swin": kind}


def test_a_fit_on_a_mixture_warns_and_records_it(tmp_path, caplog):
    store_of(tmp_path / "s", dict.fromkeys(SPLITS, GIVEN) | {"b": CUT, "v": CUT})
    with caplog.at_level(logging.WARNING, "fusion"):
        fit(tmp_path / "s", tmp_path / "run", CONFIG)
    assert (
        "instance swin: 1 clips brought their crops (tight pictures), those of 2 were cut from the movie" in caplog.text
    )
    assert "b, v; the run counts as fitted on a mixture" in caplog.text
    assert Run(tmp_path / "run").model().crops == {"swin": MIXED}
    assert evaluate(tmp_path / "s", tmp_path / "run").warned == ()  # given: it has seen those


@pytest.mark.parametrize(("fitted", "used"), [(GIVEN, CUT), (CUT, GIVEN), (CUT, AS_GIVEN), (AS_GIVEN, CUT)])
def test_other_crops_are_refused_by_name_unless_allowed(tmp_path, fitted, used):
    store_of(tmp_path / "s", fitted)
    store_of(tmp_path / "other", used)
    fit(tmp_path / "s", tmp_path / "run", CONFIG)
    assert evaluate(tmp_path / "s", tmp_path / "run").warned == ()
    message = (
        r"instance swin: run .*run was fitted on crops .*, but it is used on crops .*: x, y\n(.|\n)*--allow-other-crops"
    )
    with pytest.raises(StaleError, match=message) as refused:
        evaluate(tmp_path / "other", tmp_path / "run")
    assert refused.value.exit_code == 2
    assert ("--set crop.patch=face" in str(refused.value)) == (fitted != CUT)
    assert ("without `crops:` in the manifest" in str(refused.value)) == (fitted == CUT)
    other = ["--features", str(tmp_path / "other")]
    run = ["--run", str(tmp_path / "run")]
    for command in (
        ["evaluate", *run],
        ["ablate", *run, "--without", "swin"],
        ["ensemble", str(tmp_path / "run"), "--split", "val", "-o", str(tmp_path / "chosen")],
    ):
        told = CliRunner().invoke(app, [*command, *other])
        assert told.exit_code == 2, told.output
        assert "--allow-other-crops" in told.stderr
        told = CliRunner().invoke(app, [*command, *other, "--allow-other-crops"])
        assert told.exit_code == 0, told.output
        assert command[0] != "evaluate" or "other crops than in the fit: instance swin" in told.stdout


def test_only_the_clips_of_the_split_count(tmp_path):
    store_of(tmp_path / "s", GIVEN)
    fit(tmp_path / "s", tmp_path / "run", CONFIG)
    store_of(tmp_path / "other", dict.fromkeys(SPLITS, GIVEN) | {"y": CUT, "a": CUT})
    with pytest.raises(StaleError, match=r"wide patch for super-resolution\): y\n"):
        evaluate(tmp_path / "other", tmp_path / "run")


def test_given_and_as_given_go_together(tmp_path):
    store_of(tmp_path / "s", GIVEN)
    store_of(tmp_path / "other", AS_GIVEN)
    fit(tmp_path / "s", tmp_path / "run", CONFIG)
    one, other = (evaluate(tmp_path / name, tmp_path / "run") for name in ("s", "other"))
    assert other.warned == ()
    assert other.scores.mean_f1 == one.scores.mean_f1


def test_a_run_of_an_earlier_version_is_used_as_before(tmp_path, caplog):
    store_of(tmp_path / "s", GIVEN)
    fit(tmp_path / "s", tmp_path / "run", CONFIG)
    where = Run(tmp_path / "run")
    where.save_model(replace(where.model(), crops={}))
    store_of(tmp_path / "other", CUT)
    with caplog.at_level(logging.INFO, "fusion"):
        assert evaluate(tmp_path / "other", tmp_path / "run").warned == ()
    assert "does not say whether its crops were given or cut from movies" in caplog.text


# ---- adapted weights -----------------------------------------------------------------------------------------------


def adapted(*parts):
    return {"weights": {"swin": {"spec": "adapted", "sha256": "0" * 64, **({"saw": [*parts]} if parts else {})}}}


def test_weights_that_saw_a_test_clip_are_refused_unless_allowed(tmp_path):
    store = store_of(tmp_path / "s", CUT)
    for clip in SPLITS:
        made(store, clip, CUT, **adapted(*(["media"] if clip in ("a", "b", "y") else [])))
    fit(tmp_path / "s", tmp_path / "run", CONFIG)  # that they saw the split train is what they are for
    message = r"instance swin: its weights were adapted on 1 of these clips \(y\).*\n.*--allow-leak"
    with pytest.raises(UsageError, match=message):
        evaluate(tmp_path / "s", tmp_path / "run")
    found = evaluate(tmp_path / "s", tmp_path / "run", allow_leak=True)
    assert [line[:30] for line in found.warned] == ["--allow-leak: instance swin: i"]
    assert set(found.warned) <= set(found.as_json()["warnings"])
    assert evaluate(tmp_path / "s", tmp_path / "run", split="train").warned == ()


def test_weights_that_saw_a_clip_of_val_cannot_stop_early_on_it(tmp_path, caplog):
    store = store_of(tmp_path / "s", CUT)
    for clip in SPLITS:
        made(store, clip, CUT, **adapted(*(["crops"] if clip in ("a", "v") else [])))
    with pytest.raises(UsageError, match=r"adapted on 1 of these clips \(v\): stopping early on them flatters the run"):
        fit(tmp_path / "s", tmp_path / "run", CONFIG)
    assert not (tmp_path / "run").exists()
    fit(tmp_path / "s", tmp_path / "run", CONFIG, allow_leak=True)
    assert "--allow-leak: instance swin" in caplog.text


@pytest.mark.parametrize("saw", ["media", ["media", 3], {"media": "x"}])
def test_a_record_that_says_otherwise_what_was_seen_is_damaged(tmp_path, saw):
    store = planted_store(tmp_path / "s", {"a": "train"}, num_frames=4)
    made(store, "a", CUT, weights={"swin": {"spec": "x", "sha256": "0" * 64, "saw": saw}})
    with pytest.raises(CorruptError, match=r"damaged record \(provenance.weights"):
        Store.open(tmp_path / "s").record("a", "swin")


# ---- people --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [{"subject": "kim"}, {"source_video": "talk"}])
def test_people_in_several_splits_are_warned_of_or_refused(tmp_path, shared, caplog):
    store = planted_store(tmp_path / "s", SPLITS, num_frames=12)
    add_clip(store, "a", split="train", **shared)
    add_clip(store, "v", split="val", **shared)
    (name,) = shared.values()
    with pytest.raises(UsageError, match=rf"{name}.*several splits: train: a; val: v\n--strict-splits refuses this"):
        fit(tmp_path / "s", tmp_path / "run", CONFIG, strict_splits=True)
    assert not (tmp_path / "run").exists()
    fit(tmp_path / "s", tmp_path / "run", CONFIG)
    assert "expect scores on val that are too high" in caplog.text

    assert evaluate(tmp_path / "s", tmp_path / "run", strict_splits=True).warned == ()
    add_clip(store, "x", split="test", **shared)
    (line,) = evaluate(tmp_path / "s", tmp_path / "run").warned
    assert "train: a; test: x; these scores are too high for other people" in line
    with pytest.raises(UsageError, match=r"--strict-splits refuses this: score it on other clips"):
        evaluate(tmp_path / "s", tmp_path / "run", strict_splits=True)


def test_a_store_without_the_clips_of_the_fit_has_nobody_to_share(tmp_path):
    planted_store(tmp_path / "s", SPLITS, num_frames=12)
    planted_store(tmp_path / "other", {"x": "test"}, num_frames=12)
    fit(tmp_path / "s", tmp_path / "run", CONFIG)
    found = evaluate(tmp_path / "other", tmp_path / "run", strict_splits=True)
    assert found.warned == ()
    assert np.isfinite(found.scores.mean_f1)
    assert json.dumps(found.as_json())
    add_clip(
        Store.open(tmp_path / "other", "a"), "x", split="test", source_video="a"
    )  # as ``a_left`` is cut from ``a``
    with pytest.raises(UsageError, match="train: a; test: x"):
        evaluate(tmp_path / "other", tmp_path / "run", strict_splits=True)
