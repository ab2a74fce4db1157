"""Post-processing as a run ships it: presets, steps, the file, and no report on what was selected on."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from extract.au import AUS
from extract.au.metrics import f1
from extract.errors import UsageError
from fusion import post_fitting
from fusion.leaks import SelectedOn, check_disjoint, scores_sha256
from fusion.pairs import PAPER_PAIRS, corrected
from fusion.post_config import PostConfig
from fusion.post_fitting import fit_post, without_val
from fusion.postprocess import PostProcess, check_no_leak
from fusion.smoothing import Windows, clip_bounds, smoothed
from fusion.temperature import sigmoid
from fusion.thresholds import PAPER_THRESHOLDS, best_thresholds
from tests.made_scores import drawn, scores_of


@pytest.fixture(autouse=True)
def enough_videos(monkeypatch):
    """The tests choose on a handful of drawn clips; how many are enough has a test of its own."""
    monkeypatch.setattr(post_fitting, "FEW_VIDEOS", 0)


@pytest.fixture(scope="module")
def golden(golden_dir: Path):
    with np.load(golden_dir / "metrics.npz") as file:
        return {name: file[name] for name in file.files}


def six(size=6.0, unit="frames", count=12):
    return Windows((float(size),) * count, unit)


# ---- steps ------------------------------------------------------------------------------------------------------


def test_the_golden_chain(golden):
    lengths = np.diff(clip_bounds(golden["video"])).tolist()
    scores = scores_of(lengths, golden["logits"], golden["labels"])
    post = fit_post(scores, PostConfig(preset="paper", smooth=7, thresholds="paper"))
    np.testing.assert_array_equal(post.thresholds, golden["thresholds"])
    np.testing.assert_allclose(post.probabilities(scores), golden["aucorr_probabilities"], rtol=0, atol=1e-9)
    base, smooth, threshold, aucorr = post.steps(scores)
    assert [step.name for step in (base, smooth, threshold, aucorr)] == ["base", "+smooth", "+threshold", "+AUcorr"]
    frames = golden["valid_frames"]

    def found(step):
        return f1(golden["labels"][frames], step.decisions[frames])

    np.testing.assert_allclose(found(base), golden["logit0_f1"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(found(smooth), golden["smooth_k6_h3_f1"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(found(aucorr), golden["chain_f1"], rtol=0, atol=1e-9)
    assert post.selected_on is None  # nothing was chosen on these scores


def test_golden_thresholds_without_smoothing(golden):
    scores = scores_of([281], golden["logits"], golden["labels"])
    post = fit_post(scores, PostConfig(preset="none", thresholds="paper"))
    frames = golden["valid_frames"]
    found = f1(golden["labels"][frames], post.decisions(scores)[frames])
    np.testing.assert_allclose(found, golden["thresholds_f1"], rtol=0, atol=1e-9)


def test_preset_paper_tunes_before_the_equations():
    val = drawn(0)
    post = fit_post(val, PostConfig(preset="paper"))
    smooth = sigmoid(smoothed(val, six()))
    np.testing.assert_array_equal(post.thresholds, best_thresholds(val.labels, smooth).thresholds)
    assert post.pairs == PAPER_PAIRS
    names = [step.name for step in post.steps(val)]
    assert names == ["base", "+smooth", "+threshold", "+AUcorr"]
    np.testing.assert_array_equal(post.steps(val)[2].decisions, smooth >= post.thresholds)
    after = corrected(smooth, AUS, PAPER_PAIRS)
    np.testing.assert_array_equal(post.decisions(val), after >= post.thresholds)


def test_preset_default_tunes_what_comes_out():
    val = drawn(0)
    post = fit_post(val, PostConfig(check_pairs=False, check_thresholds=False))
    after = corrected(sigmoid(smoothed(val, six())), AUS, PAPER_PAIRS)
    best = best_thresholds(val.labels, after)
    np.testing.assert_array_equal(post.thresholds, best.thresholds)
    base, smooth, aucorr, threshold = post.steps(val)
    assert [step.name for step in post.steps(val)] == ["base", "+smooth", "+AUcorr", "+threshold"]
    np.testing.assert_array_equal(base.decisions, val.logits >= 0)
    np.testing.assert_array_equal(smooth.decisions, smoothed(val, six()) >= 0)
    np.testing.assert_array_equal(aucorr.decisions, after >= 0.5)
    np.testing.assert_array_equal(threshold.decisions, after >= best.thresholds)
    assert post.report["f1"]["+threshold"]["mean"] == pytest.approx(best.f1.mean())
    assert post.report["f1"]["base"]["AU12"] == pytest.approx(f1(val.labels, val.logits >= 0)[6])


@pytest.mark.parametrize("preset", ["default", "paper", "none"])
@pytest.mark.parametrize("no_face", ["network", "interpolate", "mask"])
def test_the_last_step_is_the_result(preset, no_face):
    face = np.random.default_rng(1).random(126) < 0.7
    val, test = drawn(1, face=face), drawn(2, face=~face, split="test")
    post = fit_post(val, PostConfig(preset=preset, no_face=no_face, temperature=preset == "default"))
    last = post.steps(test)[-1]
    np.testing.assert_array_equal(last.decisions, post.decisions(test))
    np.testing.assert_array_equal(last.probabilities, post.probabilities(test))
    assert last.probabilities.shape == (126, 12)
    assert np.isfinite(last.probabilities).all()
    assert ((last.probabilities >= 0) & (last.probabilities <= 1)).all()


def test_preset_none_is_the_base():
    val = drawn(3)
    post = fit_post(val, PostConfig(preset="none"))
    np.testing.assert_array_equal(post.decisions(val), val.logits >= 0)
    np.testing.assert_allclose(post.probabilities(val), sigmoid(val.logits))
    assert post.selected_on is None


def test_on_val_no_step_of_tuning_loses():
    """Tuned thresholds are at least as good as .5, and equations that were checked at least as good as none."""
    for seed in range(5):
        val = drawn(seed)
        with_pairs, without = (
            np.array([*fit_post(val, PostConfig(pairs=pairs)).report["f1"]["+threshold"].values()])
            for pairs in ("paper", "none")
        )
        at_half = np.array([*fit_post(val, PostConfig(pairs="none")).report["f1"]["+smooth"].values()])
        assert (with_pairs >= without - 1e-12).all()
        assert (without >= at_half - 1e-12).all()


def test_a_threshold_that_does_not_hold_on_other_recordings_gives_way():
    """AU01's scores are all too low, so its best threshold is good for everybody; AU02's are of no use."""
    random = np.random.default_rng(5)
    labels = (random.random((600, 12)) < 0.4).astype(np.int8)
    logits = np.where(labels == 1, 2.0, -2.0) + random.normal(0, 1, labels.shape)
    logits[:, 0] -= 2.5
    logits[:, 1] = random.normal(3, 1, 600)  # called active nearly always: no threshold can do much better
    val = scores_of([50] * 12, logits, labels)
    post = fit_post(val, PostConfig(smooth=1, pairs="none"))
    best = best_thresholds(val.labels, sigmoid(val.logits.astype(np.float64))).thresholds
    assert post.thresholds[0] == best[0] < 0.2
    assert post.thresholds[1] == 0.5 != best[1]
    checked = post.report["thresholds_checked"]
    assert checked["AU01"]["tuned_on_other_videos"] > checked["AU01"]["untuned"] + 0.3
    (said,) = post.notices
    assert "AU02" in said
    assert "AU01" not in said
    assert "is not better on its others by a standard error (post.thresholds=tuned uses it" in said
    # By name, and in the paper's preset, it is used as it is.
    for config in (PostConfig(smooth=1, pairs="none", thresholds="tuned"), PostConfig(smooth=1, preset="paper")):
        np.testing.assert_array_equal(fit_post(val, config).thresholds, best)


def test_an_equation_that_does_not_help_is_named():
    labels = (np.random.default_rng(0).random((300, 12)) < 0.3).astype(np.int8)
    val = scores_of([300], 8.0 * labels - 4.0, labels)  # every AU is seen perfectly: nothing helps
    post = fit_post(val, PostConfig(smooth=1))
    assert post.pairs == {}
    said = re.compile(r"AU(24|26) <- .* not used: F1 on val 100\.0 without it, (\d\d)\.\d with it")
    assert [said.fullmatch(notice)[1] for notice in post.notices[:2]] == ["24", "26"]
    assert fit_post(val, PostConfig(smooth=1, check_pairs=False)).pairs == PAPER_PAIRS


@pytest.mark.parametrize(("videos", "few"), [(9, True), (10, False)])
def test_the_default_preset_chooses_nothing_on_few_recordings_unless_asked(monkeypatch, videos, few):
    monkeypatch.undo()
    random = np.random.default_rng(0)
    labels = (random.random((30 * videos, 12)) < 0.3).astype(np.int8)
    labels[:, 9] = labels[:, 2]
    logits = 2.0 * labels - 2.0 + random.normal(size=labels.shape)
    logits[:, 9] = random.normal(size=len(labels))
    val = scores_of([30] * videos, logits, labels)
    post = fit_post(val, PostConfig(smooth=1))
    told = f"{videos} source videos in split val are too few to choose on: thresholds stay 0.5, no equation is used"
    assert any(notice.startswith(told) for notice in post.notices) == few
    assert (set(post.thresholds) == {0.5}) == few
    assert (post.pairs == {}) == few
    assert (post.selected_on is None) == few
    asked = fit_post(val, PostConfig(smooth=1, thresholds="tuned", pairs="paper"))
    assert set(asked.thresholds) != {0.5}
    assert 24 in asked.pairs
    assert set(fit_post(val, PostConfig(preset="paper")).thresholds) != {0.5}


def test_an_equation_that_helps_is_kept():
    random = np.random.default_rng(0)
    labels = (random.random((600, 12)) < 0.3).astype(np.int8)
    labels[:, 9] = labels[:, 2]
    logits = 4.0 * labels - 2.0
    logits[:, 9] = random.normal(size=600)
    post = fit_post(scores_of([600], logits, labels), PostConfig(smooth=1))
    assert post.pairs == {24: (4,)}
    f1s = post.report["f1"]
    assert f1s["+threshold"]["AU24"] > f1s["base"]["AU24"] + 0.3


def test_an_equation_is_judged_as_it_will_be_used():
    """AU24 is seen perfectly, but below 0.5: there its equation helps, at its own threshold it harms."""
    random = np.random.default_rng(0)
    labels = (random.random((600, 12)) < 0.3).astype(np.int8)
    labels[:, 9] = labels[:, 2] ^ (random.random(600) < 0.1)
    logits = 8.0 * labels - 4.0
    logits[:, 9] = np.where(labels[:, 9] == 1, -0.5, -2.0)
    val = scores_of([600], logits, labels)
    tuned, at_half = (fit_post(val, PostConfig(smooth=1, thresholds=value)) for value in ("tuned", 0.5))
    assert 24 not in tuned.pairs
    assert tuned.report["f1"]["+threshold"]["AU24"] == 1
    assert at_half.pairs[24] == (4,)
    assert at_half.report["f1"]["+smooth"]["AU24"] == 0


def test_an_equation_that_changes_nothing_is_not_used():
    labels = (np.random.default_rng(0).random((300, 12)) < 0.3).astype(np.int8)
    labels[:, 9] = labels[:, 2]
    post = fit_post(scores_of([300], 8.0 * labels - 4.0, labels), PostConfig(smooth=1))
    assert 24 not in post.pairs
    assert "AU24 <- (AU24 + AU04) / 2 not used: F1 on val 100.0 without it, 100.0 with it" in post.notices


def test_mined_equations_need_labels_and_use_them():
    random = np.random.default_rng(0)
    labels = (random.random((600, 12)) < 0.3).astype(np.int8)
    labels[:, 7] = labels[:, 6]
    logits = 4.0 * labels - 2.0
    logits[:, 7] = random.normal(size=600)
    val = scores_of([600], logits, labels)
    config = PostConfig(pairs="mined", smooth=1)
    with pytest.raises(UsageError, match="mined needs the labels of the training split"):
        fit_post(val, config)
    post = fit_post(val, config, train_labels=labels)
    assert post.pairs == {15: (12,)}
    assert post.report["pairs_tried"][0].startswith("AU15 <- (AU15 + AU12) / 2: F1 on val ")


def test_faceless_frames_count_with_what_fills_them():
    face = np.ones(126, dtype=bool)
    face[3:8] = False
    val = drawn(4, face=face)
    filled = fit_post(val, PostConfig(preset="none", no_face="interpolate"))
    found = filled.steps(val)
    assert (found[0].decisions == (val.logits >= 0)).all()  # base is what the network says
    assert found[1].probabilities[4] != pytest.approx(found[0].probabilities[4])
    np.testing.assert_array_equal(found[1].probabilities[face], found[0].probabilities[face])


def test_temperature_is_reported_and_applied():
    val = drawn(5, lengths=(900,))
    val = replace(val, logits=val.logits * 4)
    post = fit_post(val, PostConfig(temperature=True, pairs="none", thresholds=0.5))
    assert min(post.temperature) > 1.5
    for name in val.au_names:
        values = post.report["temperature"][name]
        assert values["nll_after"] < values["nll_before"]
        assert values["ece_after"] < values["ece_before"]
    expected = sigmoid(smoothed(val, six()) / np.array(post.temperature))
    np.testing.assert_array_equal(post.probabilities(val), expected)
    np.testing.assert_array_equal(post.decisions(val), smoothed(val, six()) >= 0)  # and turns no decision at .5
    assert post.selected_on is not None


# ---- odd splits -------------------------------------------------------------------------------------------------


def test_all_labels_absent():
    val = replace(drawn(6), labels=np.full((126, 12), -1, dtype=np.int8))
    post = fit_post(val, PostConfig(temperature=True))
    assert set(post.thresholds) == {0.5}
    assert set(post.temperature) == {1.0}
    assert post.pairs == {}
    assert "AU01: no positive in split val, so its threshold stays 0.5" in post.notices
    assert post.report["f1"]["base"] == {**dict.fromkeys(val.au_names), "mean": None}
    json.dumps(post.as_json(), allow_nan=False)


def test_an_au_without_positives():
    val = drawn(7)
    val.labels[:, 3] = np.minimum(val.labels[:, 3], 0)
    post = fit_post(val, PostConfig())
    assert post.thresholds[3] == 0.5
    assert [line for line in post.notices if "no positive" in line] == [
        "AU06: no positive in split val, so its threshold stays 0.5"
    ]
    assert post.report["f1"]["base"]["AU06"] == 0.0


def test_clips_of_one_frame():
    val = drawn(8, lengths=(1,) * 50)
    post = fit_post(val, PostConfig(pairs="none"))
    np.testing.assert_array_equal(post.probabilities(val), sigmoid(val.logits.astype(np.float64)))


def test_order_of_clips_changes_nothing():
    val = drawn(9, lengths=(30, 20, 50))
    rows = [np.flatnonzero(val.clip == clip) for clip in (2, 0, 1)]
    order = np.concatenate(rows)
    moved = scores_of([50, 30, 20], val.logits[order], val.labels[order], names=[val.clips[i] for i in (2, 0, 1)])
    first, second = (fit_post(scores, PostConfig(temperature=True)) for scores in (val, moved))
    assert first.temperature == pytest.approx(second.temperature, rel=1e-6)
    assert first.thresholds == pytest.approx(second.thresholds, rel=1e-6)
    assert first.pairs == second.pairs
    np.testing.assert_allclose(second.probabilities(moved), first.probabilities(val)[order], rtol=1e-6)


def test_other_action_units():
    aus = (1, 2, 4, 9, 17)
    val = drawn(10, aus=aus)
    post = fit_post(val, PostConfig(preset="paper", thresholds="paper"))
    assert post.pairs == {}
    assert post.thresholds == (0.5, 0.55, 0.5, 0.5, 0.5)
    assert post.notices == (
        "the paper has no threshold for AU09, AU17: 0.5 is used",
        "AU24 <- (AU24 + AU04) / 2 left out: the run has no AU24",
        "AU26 <- (AU26 + AU01 + AU02) / 3 left out: the run has no AU26",
    )
    with pytest.raises(UsageError, match="post-processing of AU01, AU02, AU04, AU09, AU17 on scores of AU01, AU02, AU"):
        post.probabilities(drawn(0))


def test_no_action_unit_at_all():
    val = drawn(11, aus=())
    post = fit_post(val, PostConfig())
    assert post.probabilities(val).shape == (126, 0)
    assert PostProcess.from_json(json.loads(json.dumps(post.as_json())), (), "x") == post


def test_without_a_val_split():
    post = without_val(PostConfig(temperature=True), AUS)
    assert (set(post.thresholds), post.pairs, post.selected_on) == ({0.5}, {}, None)
    assert post.notices == (
        "no clip in split val to select on: thresholds stay 0.5, no equation between action units is used, "
        "no temperature is fitted",
    )
    fixed = without_val(PostConfig(preset="paper", thresholds="paper"), AUS)
    assert fixed.thresholds == tuple(PAPER_THRESHOLDS.values())
    assert (fixed.pairs, fixed.notices) == (PAPER_PAIRS, ())
    assert without_val(PostConfig(preset="none"), AUS).notices == ()


# ---- leaks ------------------------------------------------------------------------------------------------------


def test_reporting_what_was_selected_on_is_refused():
    val = drawn(12)
    post = fit_post(val, PostConfig())
    message = r"split val: thresholds and equations were selected on 4 clips \(val0, val1, val2, val3\)"
    with pytest.raises(UsageError, match=message):
        check_no_leak(post, val)
    # The name of the split does not matter, the clips do.
    renamed = replace(val, facts={"split": "test"})
    with pytest.raises(UsageError, match=r"split test: .* or say --allow-leak"):
        check_no_leak(post, renamed)
    sentence = check_no_leak(post, renamed, allow_leak=True)
    assert sentence is not None
    assert sentence.startswith("LEAK ALLOWED: thresholds and equations were selected on 4 clips")
    other = drawn(12, split="val", names=["a", "b", "c", "d"])
    assert check_no_leak(post, other) is None


def test_another_clip_of_the_same_recording_is_a_leak():
    val = drawn(13, videos=["v1", "v2", "v3", "v4"])
    test = drawn(14, split="test", videos=["w1", "w2", "v3", "w4"])
    with pytest.raises(UsageError, match="selected on source video v3"):
        check_no_leak(fit_post(val, PostConfig()), test)
    assert check_no_leak(fit_post(val, PostConfig()), drawn(14, split="test", videos=["w1", "w2", "w3", "w4"])) is None


def test_what_was_not_selected_leaks_nothing():
    val = drawn(15)
    for config in (PostConfig(preset="none"), PostConfig(preset="paper", thresholds="paper")):
        assert check_no_leak(fit_post(val, config), val) is None


def test_many_clips_are_counted():
    selected = SelectedOn.of(drawn(0, lengths=(2,) * 12))
    with pytest.raises(UsageError, match=r"12 clips \(val0, .*val5, \.\.\.\)"):
        check_disjoint(selected, drawn(0, lengths=(2,) * 12), allow_leak=False, what="windows")


def test_the_hash_is_of_the_numbers():
    val = drawn(16)
    assert scores_sha256(val) == scores_sha256(replace(val, facts={"split": "other"}))
    for changed in ("logits", "labels"):
        values = getattr(val, changed).copy()
        values[5, 5] += 1
        assert scores_sha256(replace(val, **{changed: values})) != scores_sha256(val)
    assert scores_sha256(replace(val, clips=("a", "b", "c", "d"))) != scores_sha256(val)
