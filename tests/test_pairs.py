"""Correlation against NumPy, SciPy and golden values; the paper's equations, and those found from labels."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import pearsonr

from extract.au import AUS
from extract.au.metrics import f1
from fusion.pairs import PAPER_PAIRS, check_pairs, corrected, equation, known_pairs, mine_pairs
from fusion.pearson import labels_as_values, pearson
from fusion.temperature import sigmoid
from fusion.thresholds import best_thresholds


@pytest.fixture(scope="module")
def golden(golden_dir: Path):
    with np.load(golden_dir / "metrics.npz") as file:
        return {name: file[name] for name in file.files}


# ---- Pearson ----------------------------------------------------------------------------------------------------


def test_golden_correlations(golden):
    frames = golden["valid_frames"]
    for values, name in (
        (golden["labels"].astype(float), "pearson_labels"),
        (golden["logits"], "pearson_logits"),
        (sigmoid(golden["logits"]), "pearson_probabilities"),
    ):
        found = pearson(values[frames])
        np.testing.assert_allclose(found.r, golden[name], rtol=0, atol=1e-9)
        assert (found.rows == frames.sum()).all()
    pairwise = pearson(labels_as_values(golden["labels"]))
    np.testing.assert_allclose(pairwise.r, golden["pearson_labels_pairwise"], rtol=0, atol=1e-9)
    assert np.abs(pairwise.r - golden["pearson_labels"]).max() > 1e-3  # the two ways do differ here


def test_each_pair_over_its_own_rows():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(80, 4)) + 1e4, random.normal(size=(80, 3))
    y[:, 0] += x[:, 1] - 1e4
    x[random.random(x.shape) < 0.3] = np.nan
    y[random.random(y.shape) < 0.3] = np.nan
    found = pearson(x, y)
    for i, j in np.ndindex(4, 3):
        both = ~np.isnan(x[:, i]) & ~np.isnan(y[:, j])
        assert found.rows[i, j] == both.sum()
        assert found.r[i, j] == pytest.approx(pearsonr(x[both, i], y[both, j]).statistic, abs=1e-9)
    np.testing.assert_allclose(pearson(y, x).r, found.r.T, atol=1e-12)


def test_undefined_where_nothing_varies():
    values = np.array([
        [0.1, 0.0, 1.0, np.nan],
        [0.1, 1.0, 1.0, 3.0],
        [0.1, 0.0, np.nan, np.nan],
        [0.1, 1.0, 0.0, np.nan],
    ])
    found = pearson(values)
    assert np.isnan(found.r[0]).all()  # a constant that is no binary fraction
    assert np.isnan(found.r[3]).all()  # one value
    assert found.r[1, 1] == pytest.approx(1)
    # Both vary, but not in the rows they share.
    split = np.array([[0.0, 1.0], [1.0, np.nan], [0.0, 2.0], [0.0, 3.0]])
    assert np.isnan(pearson(split).r[0, 1])
    assert pearson(split).rows[0, 1] == 3
    assert np.isnan(pearson(np.zeros((0, 2))).r).all()


def test_rare_labels_lose_no_digit():
    """One positive in a million frames."""
    labels = np.zeros((1_000_000, 2))
    labels[17], labels[18, 1] = 1, 1
    assert pearson(labels).r[0, 1] == pytest.approx(np.sqrt(0.5), abs=1e-5)


# ---- equations --------------------------------------------------------------------------------------------------


def test_the_papers_two_equations_are_golden(golden):
    found = corrected(sigmoid(golden["smooth_k6_h3"]), AUS, PAPER_PAIRS)
    np.testing.assert_allclose(found, golden["aucorr_probabilities"], rtol=0, atol=1e-9)


def test_right_hand_sides_are_before_any_correction():
    p = np.array([[0.2, 0.6, 1.0]])
    found = corrected(p, (1, 2, 4), {2: (1,), 4: (2,), 1: (4, 2)})
    np.testing.assert_allclose(found, [[0.6, 0.4, 0.8]])
    np.testing.assert_array_equal(p, [[0.2, 0.6, 1.0]])


def test_equations_without_their_aus():
    with pytest.raises(ValueError, match=r"AU26 <- \(AU26 \+ AU01 \+ AU02\) / 3: no probabilities of AU26, AU02"):
        corrected(np.zeros((2, 3)), (1, 4, 24), {26: (1, 2)})
    kept, about = known_pairs(PAPER_PAIRS, (1, 4, 24))
    assert kept == {24: (4,)}
    assert about == ["AU26 <- (AU26 + AU01 + AU02) / 3 left out: the run has no AU26, AU02"]
    assert equation(24, (4,)) == "AU24 <- (AU24 + AU04) / 2"


def test_checked_on_val():
    random = np.random.default_rng(0)
    labels = (random.random((400, 2)) < 0.4).astype(np.int8)
    labels[:, 1] = labels[:, 0]
    p = np.stack([np.where(labels[:, 0], 0.9, 0.1), random.random(400)], axis=1)  # the second AU is not seen at all

    def f1_of(number, column):
        return float(f1(labels[:, [(4, 24).index(number)]], (column >= 0.5)[:, None])[0])

    helpful, harmful = check_pairs({24: (4,), 4: (24,)}, p, (4, 24), f1_of)
    assert helpful.helps
    assert helpful.f1_with > helpful.f1_without + 0.1
    assert not harmful.helps
    assert (harmful.f1_without, harmful.target, harmful.sources) == (1.0, 4, (24,))


# ---- mined ------------------------------------------------------------------------------------------------------


def planted(seed=0, count=3000):
    """AU24 follows AU04 and, less, AU07; only AU24 cannot be seen. AU25 follows AU04 too and is seen well."""
    random = np.random.default_rng(seed)
    aus = (4, 7, 12, 24, 25)
    common = random.random((count, 1)) < 0.4
    noise = random.random((count, 5)) < (0.03, 0.15, 0.5, 0.1, 0.1)
    labels = (common ^ noise).astype(np.int8)
    strength = np.array([2.5, 2.5, 2.5, 0.15, 2.5])
    p = sigmoid(strength * (2 * labels - 1) + random.normal(0, 1, labels.shape))
    return aus, labels, p


def judge(aus, labels):
    def f1_of(number, column):
        own = labels[:, [aus.index(number)]]
        return float(best_thresholds(own, column[:, None]).f1[0]) if (own == 1).any() else float("nan")

    return f1_of


def test_mined_equations_find_the_planted_one():
    aus, train, _ = planted(1)
    _, val, p = planted(2)
    (found,) = mine_pairs(train, p, aus, judge(aus, val))
    assert (found.target, found.sources[0]) == (24, 4)
    assert 12 not in found.sources
    assert found.helps
    after = corrected(p, aus, {found.target: found.sources})[:, [3]]
    assert best_thresholds(val[:, [3]], after).f1[0] == pytest.approx(found.f1_with)
    # The longer of the two prefixes is taken only if it is better.
    by_hand = {
        sources: float(best_thresholds(val[:, [3]], corrected(p, aus, {24: sources})[:, [3]]).f1[0])
        for sources in ((4,), (4, 25), (4, 7))
    }
    assert found.f1_with >= by_hand[4,]
    assert found.f1_with == by_hand[found.sources]


def test_mined_equations_need_training_labels_that_go_together():
    aus, train, _ = planted(1)
    _, val, p = planted(2)
    shuffled = train.copy()
    shuffled[:, 3] = np.random.default_rng(0).permutation(shuffled[:, 3])
    assert mine_pairs(shuffled, p, aus, judge(aus, val)) == []
    unseen = train.copy()
    unseen[:, 3] = -1
    assert mine_pairs(unseen, p, aus, judge(aus, val)) == []


def test_an_au_that_val_cannot_judge_is_no_target():
    aus, train, _ = planted(1)
    _, val, p = planted(2)
    val[:, 3] = np.minimum(val[:, 3], 0)
    assert mine_pairs(train, p, aus, judge(aus, val)) == []


def test_a_mined_equation_that_does_not_help_says_so():
    aus, train, p = planted(1)
    val = np.random.default_rng(3).integers(0, 2, train.shape).astype(np.int8)  # val is not like training
    val[:, [0, 1, 2, 4]] = train[:, [0, 1, 2, 4]]
    p[:, 3] = 0.4 + 0.01 * val[:, 3]  # and AU24 is seen perfectly, at a threshold that is fixed too high

    def at_half(number, column):
        return float(f1(val[:, [aus.index(number)]], (column >= 0.5)[:, None])[0])

    tried = mine_pairs(train, p, aus, at_half)
    assert [one.target for one in tried] == [24]
    assert tried[0].helps  # at .5 anything beats nothing
    np.testing.assert_equal(mine_pairs(train, p, aus, judge(aus, val)), [])  # at its best threshold nothing does
