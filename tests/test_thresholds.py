"""Thresholds against brute force over all distinct scores, scikit-learn's F1 and golden values."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score

from extract.au.metrics import f1
from fusion.temperature import sigmoid
from fusion.thresholds import PAPER_THRESHOLDS, UNTUNED, best_thresholds, held_out


def brute_force(labels, scores):
    """The best F1 of one AU over a threshold at every distinct score, and one above all."""
    annotated = labels >= 0
    thresholds = [*np.unique(scores[annotated]), 2.0]
    return max(
        f1_score(labels[annotated], scores[annotated] >= threshold, zero_division=0.0) for threshold in thresholds
    )


def case(seed):
    """Few distinct scores (ties), -1, classes from absent to all, lengths from one frame."""
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 60))
    labels = (random.random((count, 3)) < random.random(3)).astype(np.int8)
    labels[random.random(labels.shape) < random.choice([0.0, 0.2, 0.9])] = -1
    kinds = [
        random.random((count, 3)),
        random.integers(0, 4, (count, 3)) / 3,  # ties, also at 0 and 1
        np.full((count, 3), random.random()),
        0.5 + random.integers(0, 3, (count, 3)) * 2.0**-53,  # neighbouring floats
        sigmoid(random.normal(0, 40, (count, 3))),  # saturated
    ]
    return labels, kinds[seed % len(kinds)]


@pytest.mark.parametrize("seed", range(60))
def test_equals_brute_force(seed):
    labels, scores = case(seed)
    found = best_thresholds(labels, scores)
    reached = f1(labels, scores >= found.thresholds)
    np.testing.assert_array_equal(reached, found.f1)  # what it says is what its threshold gives
    for au in range(3):
        if not (labels[:, au] == 1).any():
            assert (found.no_positives[au], found.thresholds[au], found.f1[au]) == (True, UNTUNED, 0)
        else:
            assert not found.no_positives[au]
            assert found.f1[au] == pytest.approx(brute_force(labels[:, au], scores[:, au]), abs=1e-12)


def test_never_below_the_golden_grid(golden_dir: Path):
    with np.load(golden_dir / "metrics.npz") as file:
        golden = {name: file[name] for name in file.files}
    frames = golden["valid_frames"]
    labels, scores = golden["labels"][frames], sigmoid(golden["logits"][frames])
    found = best_thresholds(labels, scores)
    on_grid = golden["grid_f1"].max(axis=1)
    at_best = f1(labels, scores >= golden["grid_best"])
    np.testing.assert_allclose(at_best, on_grid, rtol=0, atol=1e-9)  # so we read the grid as it was made
    assert (found.f1 >= on_grid - 1e-12).all()
    assert (found.f1 > on_grid + 1e-3).any()


def test_midway_between_distinct_scores():
    labels = np.array([[0, 0, 1, 1]]).T
    assert best_thresholds(labels, np.array([[0.1, 0.2, 0.6, 0.7]]).T).thresholds == pytest.approx(0.4)
    # All active is best: midway between the lowest score and 0.
    assert best_thresholds(np.ones((3, 1)), np.array([[0.3, 0.4, 0.9]]).T).thresholds == pytest.approx(0.15)


def test_rounding_of_the_scores_turns_no_decision_around():
    random = np.random.default_rng(0)
    labels = (random.random((500, 12)) < 0.3).astype(np.int8)
    scores = np.round(random.random((500, 12)), 3)  # distinct ones are 1e-3 apart
    thresholds = best_thresholds(labels, scores).thresholds
    moved = np.clip(scores + random.uniform(-4e-4, 4e-4, scores.shape), 0, 1)
    np.testing.assert_array_equal(moved >= thresholds, scores >= thresholds)


def test_of_equally_good_ones_the_nearest_to_a_half():
    # 1 of 2 called with 1 right, or 3 of 4 called with 2 right: 2/(1+2) = 4/(4+2), both 2/3.
    labels, scores = np.array([[1, 0, 0, 1, 0]]).T, np.array([[0.9, 0.8, 0.35, 0.3, 0.1]]).T
    found = best_thresholds(labels, scores)
    assert found.f1 == pytest.approx(2 / 3)
    assert found.thresholds == pytest.approx(0.2)  # .85 is .35 from a half, .2 is .3
    mirrored = best_thresholds(labels, np.array([[0.7, 0.6, 0.3, 0.25, 0.1]]).T)
    assert mirrored.thresholds == pytest.approx(0.65)


def test_order_of_frames_does_not_matter():
    labels, scores = case(1)
    order = np.random.default_rng(0).permutation(len(labels))
    np.testing.assert_array_equal(
        best_thresholds(labels[order], scores[order]).thresholds, best_thresholds(labels, scores).thresholds
    )


def test_frames_without_annotation_do_not_move_it():
    labels, scores = case(5)
    more = np.concatenate([labels, np.full_like(labels, -1)])
    found = best_thresholds(more, np.concatenate([scores, np.random.default_rng(0).random(scores.shape)]))
    np.testing.assert_array_equal(found.thresholds, best_thresholds(labels, scores).thresholds)


def test_the_papers_thresholds_by_au():
    expected = [0.5, 0.55, 0.5, 0.4, 0.45, 0.45, 0.45, 0.5, 0.5, 0.55, 0.4, 0.5]
    assert list(PAPER_THRESHOLDS.values()) == expected
    assert (PAPER_THRESHOLDS[6], PAPER_THRESHOLDS[24], PAPER_THRESHOLDS[26]) == (0.4, 0.55, 0.5)


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        (np.zeros((3, 2)), np.zeros((3, 3)), r"labels \(3, 2\) and probabilities \(3, 3\)"),
        (np.zeros((1, 1)), np.array([[1.5]]), r"outside \[0, 1\]"),
        (np.zeros((1, 1)), np.array([[np.nan]]), "or NaN"),
    ],
)
def test_refusals(labels, scores, message):
    with pytest.raises(ValueError, match=message):
        best_thresholds(labels, scores)


# ---- on recordings that were not tuned on ----------------------------------------------------------------------------


def videos_of(random, videos, frames=40):
    """Labels and scores of 3 AUs; each video has its own shift."""
    video = np.repeat(np.arange(videos), frames)
    labels = (random.random((len(video), 3)) < 0.3).astype(np.int8)
    shift = random.normal(0, 1, (videos, 3))[video]
    return labels, sigmoid(3 * labels - 2.5 + shift + random.normal(0, 1, labels.shape)), video


@pytest.mark.parametrize("videos", [2, 3, 5, 7, 12])
def test_each_video_is_decided_by_thresholds_of_others(videos):
    random = np.random.default_rng(videos)
    labels, scores, video = videos_of(random, videos)
    labels[random.random(labels.shape) < 0.2] = -1
    found = held_out(labels, scores, 10 * video + 3)
    decisions = np.zeros_like(labels)
    for one in range(videos):
        others = video % min(5, videos) != one % min(5, videos)
        thresholds = best_thresholds(labels[others], scores[others]).thresholds
        decisions[video == one] = scores[video == one] >= thresholds
    for au in range(3):
        known = labels[:, au] >= 0
        expected = [f1_score(labels[known, au], d[known, au]) for d in (decisions, scores >= UNTUNED)]
        np.testing.assert_allclose([found.tuned[au], found.untuned[au]], expected, rtol=0, atol=1e-12)


def test_its_standard_error_is_that_of_leaving_out_one_video():
    """With the decisions as they are: Tukey's jackknife over videos."""
    labels, scores, video = videos_of(np.random.default_rng(1), 60)
    found = held_out(labels, scores, video)
    decisions = np.zeros_like(labels)
    for group in range(5):
        inside = video % 5 == group
        decisions[inside] = scores[inside] >= best_thresholds(labels[~inside], scores[~inside]).thresholds
    changes = np.array([
        f1(labels[video != one], decisions[video != one]) - f1(labels[video != one], scores[video != one] >= UNTUNED)
        for one in range(60)
    ])
    expected = np.sqrt(59 / 60 * ((changes - changes.mean(axis=0)) ** 2).sum(axis=0))
    np.testing.assert_allclose(found.error, expected, rtol=0.05)


def test_one_video_has_no_others():
    with pytest.raises(ValueError, match=r"1 source video\(s\): expected at least 2"):
        held_out(np.ones((4, 1)), np.full((4, 1), 0.5), np.zeros(4))
