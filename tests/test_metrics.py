"""F1 against scikit-learn's values (golden/metrics) and against counting by hand."""

from pathlib import Path

import numpy as np
import pytest

from extract.au.metrics import confusion, f1, f1_our, fully_annotated, trivial_baselines


@pytest.fixture(scope="module")
def golden(golden_dir: Path):
    with np.load(golden_dir / "metrics.npz") as file:
        return {name: file[name] for name in file.files}


def predictions(golden, tag: str) -> np.ndarray:
    if tag == "logit0":
        return golden["logits"] >= 0
    if tag == "thresholds":
        return 1 / (1 + np.exp(-golden["logits"].astype(np.float64))) >= golden["thresholds"]
    if tag.startswith("smooth"):
        return golden[tag] >= 0
    return np.full(golden["labels"].shape, {"zeros": 0, "ones": 1}[tag])


@pytest.mark.parametrize("tag", ["logit0", "zeros", "ones", "thresholds", "smooth_h5", "smooth_k6_six"])
def test_both_definitions_on_fully_annotated_frames(golden, tag):
    frames = fully_annotated(golden["labels"])
    np.testing.assert_array_equal(frames, golden["valid_frames"])
    labels, guess = golden["labels"][frames], predictions(golden, tag)[frames]
    np.testing.assert_allclose(f1(labels, guess), golden[f"{tag}_f1"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(confusion(labels, guess).f1_negative, golden[f"{tag}_f1_negative"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(f1_our(labels, guess), golden[f"{tag}_f1_our"], rtol=0, atol=1e-9)


def test_masking_by_element(golden):
    found = f1(golden["labels"], golden["logits"] >= 0)
    np.testing.assert_allclose(found, golden["logit0_f1_elementwise"], rtol=0, atol=1e-9)
    assert np.abs(found - golden["logit0_f1"]).max() > 1e-3  # the two ways of masking do differ here


def test_absent_classes(golden):
    np.testing.assert_allclose(f1(golden["zero_labels"], golden["zero_predictions"]), golden["zero_f1"], atol=1e-9)
    np.testing.assert_allclose(
        f1_our(golden["zero_labels"], golden["zero_predictions"]), golden["zero_f1_our"], atol=1e-9
    )


def test_one_column_by_hand():
    """y = 1100000000, p = 1010000000: positive .5, negative .875, both .6875 (specs, 1.9)."""
    labels, guess = np.zeros((10, 1), dtype=np.int8), np.zeros((10, 1), dtype=np.int8)
    labels[[0, 1]], guess[[0, 2]] = 1, 1
    counts = confusion(labels, guess)
    assert (counts.f1, counts.f1_negative, counts.f1_our) == (0.5, 0.875, 0.6875)
    assert (counts.annotated, counts.prior) == (10, 0.2)


def test_constant_baselines_are_the_golden_ones(golden):
    labels = golden["labels"][fully_annotated(golden["labels"])]
    found = trivial_baselines(labels)
    for tag in ("zeros", "ones"):
        np.testing.assert_allclose(found[tag]["f1"], golden[f"{tag}_f1"], atol=1e-9)
        np.testing.assert_allclose(found[tag]["f1_our"], golden[f"{tag}_f1_our"], atol=1e-9)


def test_majority_takes_the_better_constant_of_each_au(golden):
    found = trivial_baselines(golden["labels"])
    positive = (golden["labels"] == 1).sum(0) >= (golden["labels"] == 0).sum(0)
    assert 0 < positive.sum() < 12
    np.testing.assert_array_equal(
        found["majority"]["f1_our"], np.where(positive, found["ones"]["f1_our"], found["zeros"]["f1_our"])
    )


def test_prior_is_what_a_random_predictor_of_that_rate_reaches():
    random = np.random.default_rng(0)
    labels = (random.random((200_000, 3)) < (0.03, 0.3, 0.8)).astype(np.int8)
    guess = random.random(labels.shape) < labels.mean(axis=0)
    found = trivial_baselines(labels)["prior"]
    np.testing.assert_allclose(found["f1"], f1(labels, guess), atol=5e-3)
    np.testing.assert_allclose(found["f1_our"], f1_our(labels, guess), atol=5e-3)
    np.testing.assert_allclose(found["f1"], labels.mean(axis=0), atol=1e-12)


def test_an_au_without_annotation_scores_zero_and_counts_nothing():
    labels = np.array([[-1, 1], [-1, 0]])
    counts = confusion(labels, np.ones((2, 2)))
    np.testing.assert_array_equal(counts.annotated, [0, 2])
    np.testing.assert_array_equal(counts.f1, [0, 2 / 3])
    assert np.isfinite(trivial_baselines(labels)["prior"]["f1_our"]).all()


def test_other_shapes_and_values_are_refused():
    with pytest.raises(ValueError, match=r"labels \(2, 3\) and predictions \(3, 2\): expected the same"):
        f1(np.zeros((2, 3)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"labels hold \[5\]: expected 0, 1 or -1"):
        f1(np.full((2, 3), 5), np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"predictions hold \[0\.3\].*apply a threshold first"):
        f1(np.zeros((2, 3)), np.full((2, 3), 0.3))
