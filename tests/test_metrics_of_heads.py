"""Metrics beside F1 against scikit-learn, scipy and an analysis of variance; what degenerate input gives."""

import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from extract.au import AFFECT_NOT_ANNOTATED, LOWEST_AFFECT, LOWEST_INTENSITY
from extract.au.agreement import agreement
from extract.au.calibration import brier, reliability
from extract.au.losses import ConcordanceLoss
from extract.au.metrics import average_precision, confusion, expression_confusion


@pytest.fixture
def drawn():
    """(labels [N, 4] with -1, probabilities [N, 4] with many ties)."""
    random = np.random.default_rng(0)
    labels = (random.random((400, 4)) < (0.03, 0.3, 0.5, 0.9)).astype(np.int8)
    scores = np.clip(random.normal(0.3 + 0.3 * labels, 0.25), 0, 1).round(2)
    labels[random.random(labels.shape) < 0.15] = -1
    return labels, scores


def each_au(labels, scores):
    for a in range(labels.shape[1]):
        kept = labels[:, a] >= 0
        yield labels[kept, a], scores[kept, a]


def test_precision_and_recall_are_sklearns(drawn):
    labels, scores = drawn
    counts = confusion(labels, scores >= 0.5)
    for a, (y, s) in enumerate(each_au(labels, scores)):
        assert counts.precision[a] == pytest.approx(sklearn_metrics.precision_score(y, s >= 0.5), abs=1e-12)
        assert counts.recall[a] == pytest.approx(sklearn_metrics.recall_score(y, s >= 0.5), abs=1e-12)


def test_precision_and_recall_of_nothing_are_zero():
    counts = confusion([[0, 1, -1]], [[0, 0, 1]])
    assert (counts.precision.tolist(), counts.recall.tolist()) == ([0, 0, 0], [0, 0, 0])


def test_average_precision_is_sklearns(drawn):
    labels, scores = drawn
    expected = [sklearn_metrics.average_precision_score(y, s) for y, s in each_au(labels, scores)]
    np.testing.assert_allclose(average_precision(labels, scores), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(average_precision(labels, 10 * scores - 3), expected, rtol=0, atol=1e-12)


def test_average_precision_by_hand_and_of_degenerate_columns():
    labels = np.array([[1, 1, 0, -1, 1], [0, 1, 0, -1, 0], [1, 1, 0, -1, 0], [0, 1, 0, -1, 0]])
    scores = np.array([[0.9] * 5, [0.8] * 4 + [0.9], [0.7] * 4 + [0.9], [0.1] * 4 + [0.9]])
    # .9 finds 1 of 2 at precision 1; .7 finds the other at 2/3. All equal: the prior.
    np.testing.assert_allclose(average_precision(labels, scores), [0.5 + 0.5 * 2 / 3, 1, 0, 0, 0.25])
    assert average_precision(np.zeros((0, 2)), np.zeros((0, 2))).tolist() == [0, 0]


def test_expressions_are_sklearns_macro_f1():
    random = np.random.default_rng(1)
    labels, guess = random.integers(-1, 7, 300), random.integers(0, 7, 300)  # class 7 occurs in neither
    guess[:150] = np.maximum(labels[:150], 0)
    kept = labels >= 0
    by_class = sklearn_metrics.f1_score(labels[kept], guess[kept], labels=range(8), average=None, zero_division=0)
    found = expression_confusion(labels, guess)
    np.testing.assert_allclose(found.f1, by_class, rtol=0, atol=1e-12)
    assert by_class[7] == 0 < found.f1.mean()
    assert (found.annotated == kept.sum()).all()
    assert found.f1.mean() == pytest.approx(
        sklearn_metrics.f1_score(labels[kept], guess[kept], labels=range(8), average="macro", zero_division=0)
    )
    assert expression_confusion([], []).f1.tolist() == [0] * 8


def test_calibration_error_bin_by_bin(drawn):
    labels, scores = drawn
    for num_bins in (5, 15, 100):
        found = reliability(labels, scores, num_bins)
        for a, (y, p) in enumerate(each_au(labels, scores)):
            error = 0.0
            for b in range(num_bins):
                inside = (p >= b / num_bins) & ((p < (b + 1) / num_bins) | (b == num_bins - 1))
                assert found.count[a, b] == inside.sum()
                if inside.any():
                    assert found.probability[a, b] == pytest.approx(p[inside].mean())
                    assert found.rate[a, b] == pytest.approx(y[inside].mean())
                    error += inside.mean() * abs(p[inside].mean() - y[inside].mean())
            assert found.error[a] == pytest.approx(error, abs=1e-12)


def test_calibration_error_by_hand():
    labels, p = np.array([[1, 1], [0, 1], [0, 0], [0, 0]]), np.array([[0.25, 1], [0.25, 1], [0.25, 0], [0.25, 0]])
    assert reliability(labels, p).error.tolist() == [0, 0]
    assert reliability(labels, p + np.array([0.5, 0])).error.tolist() == [0.5, 0]
    assert reliability([[1]], [[0.29]], 100).count[0, 29] == 1  # .29 * 100 is 28.999999999999996


def test_a_calibrated_predictor_has_little_error_and_a_sure_one_much():
    random = np.random.default_rng(2)
    p = random.random((200_000, 1))
    labels = (random.random(p.shape) < p).astype(np.int8)
    assert reliability(labels, p).error[0] < 0.005
    assert reliability(labels, p > 0.5).error[0] == pytest.approx(0.25, abs=0.005)


def test_brier_is_sklearns(drawn):
    labels, scores = drawn
    expected = [sklearn_metrics.brier_score_loss(y, p) for y, p in each_au(labels, scores)]
    np.testing.assert_allclose(brier(labels, scores), expected, rtol=0, atol=1e-12)


def test_an_error_of_nothing_is_not_a_number_and_what_is_masked_may_be_anything():
    labels, p = [[-1, 1], [-1, 0]], [[np.nan, 1], [7, 0]]
    np.testing.assert_array_equal(brier(labels, p), [np.nan, 0])
    np.testing.assert_array_equal(reliability(labels, p).error, [np.nan, 0])
    np.testing.assert_array_equal(average_precision(labels, p), [0, 1])


@pytest.fixture
def rated():
    """(labels [N, 3] with gaps, predictions [N, 3])."""
    random = np.random.default_rng(3)
    labels = np.tanh(random.normal(0.1, 0.6, (150, 3)))
    predictions = 0.6 * labels + random.normal((0.3, 0, -0.2), 0.3, labels.shape)
    labels[random.random(labels.shape) < 0.2] = AFFECT_NOT_ANNOTATED
    return labels, predictions


def icc_3_1(*raters):
    """Two-way analysis of variance, raters fixed: Shrout and Fleiss 1979, their table of mean squares."""
    ratings = np.stack(raters, axis=1)  # [n targets, k raters]
    n, k = ratings.shape
    grand, targets, raters = ratings.mean(), ratings.mean(axis=1), ratings.mean(axis=0)
    between = k * ((targets - grand) ** 2).sum()
    judges = n * ((raters - grand) ** 2).sum()
    total = ((ratings - grand) ** 2).sum()
    bms, ems = between / (n - 1), (total - between - judges) / ((n - 1) * (k - 1))
    return (bms - ems) / (bms + (k - 1) * ems)


def test_agreement_is_scipys_sklearns_and_the_definitions(rated):
    labels, predictions = rated
    found = agreement(labels, predictions, LOWEST_AFFECT)
    for d in range(3):
        kept = labels[:, d] >= -1
        y, x = labels[kept, d], predictions[kept, d]
        assert found.count[d] == kept.sum() < 150
        assert found.pcc[d] == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
        assert found.icc[d] == pytest.approx(icc_3_1(x, y), abs=1e-12)
        assert found.mae[d] == pytest.approx(sklearn_metrics.mean_absolute_error(y, x), abs=1e-12)
        assert found.mse[d] == pytest.approx(sklearn_metrics.mean_squared_error(y, x), abs=1e-12)
        # Lin's own form: correlation times the bias correction.
        scale, shift = x.std() / y.std(), (x.mean() - y.mean()) / np.sqrt(x.std() * y.std())
        ccc = stats.pearsonr(x, y).statistic * 2 / (scale + 1 / scale + shift**2)
        assert found.ccc[d] == pytest.approx(ccc, abs=1e-12)


def test_icc_of_shrout_and_fleiss():
    """Their example, four judges of six targets: ICC(3,1) is .71; then judges 1 and 4 alone."""
    judges = np.array([[9, 6, 8, 7, 10, 6], [2, 1, 4, 1, 5, 2], [5, 3, 6, 2, 6, 4], [8, 2, 8, 6, 9, 7]], dtype=float)
    assert icc_3_1(*judges) == pytest.approx(0.71, abs=0.005)
    found = agreement(judges[0][:, None], judges[3][:, None], LOWEST_INTENSITY).icc[0]
    assert found == pytest.approx(icc_3_1(judges[0], judges[3]), abs=1e-12)


def test_loss_and_metric_are_one_coefficient(rated):
    import torch

    labels, predictions = rated
    loss = ConcordanceLoss()(torch.from_numpy(predictions), torch.from_numpy(labels))
    assert 1 - agreement(labels, predictions, LOWEST_AFFECT).ccc.mean() == pytest.approx(loss.item(), rel=1e-12)


def test_an_offset_costs_concordance_but_neither_of_the_others():
    y = np.arange(6.0)[:, None] / 2
    found = agreement(y, y + 1, LOWEST_INTENSITY)
    assert (found.pcc[0], found.icc[0], found.mae[0], found.mse[0]) == (1, 1, 1, 1)
    variance = np.arange(6).var() / 4
    assert found.ccc[0] == pytest.approx(2 * variance / (2 * variance + 1))
    assert agreement(y, 2 * y, LOWEST_INTENSITY).icc[0] == pytest.approx(0.8)


def test_degenerate_columns_have_defined_values():
    """No annotation; a constant that 0.1 + 0.1 + 0.1 rounds; constant labels and guesses that are equal; one sample."""
    labels = np.array([[-5, 0.1, 0.3, 0.5], [-5, 0.1, 0.3, -5], [-5, 0.1, 0.3, -5]])
    predictions = np.array([[np.nan, 1, 0.3, 1], [np.inf, 2, 0.3, 9], [0, 4, 0.3, 9]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = agreement(labels, predictions, LOWEST_AFFECT)
    assert found.count.tolist() == [0, 3, 3, 1]
    assert found.label_variance.tolist() == [0, 0, 0, 0]
    for coefficient in (found.ccc, found.pcc, found.icc):
        assert coefficient.tolist() == [0, 0, 0, 0]
    np.testing.assert_array_equal(found.mae[[0, 2, 3]], [np.nan, 0, 0.5])
    np.testing.assert_array_equal(found.mse[[0, 2, 3]], [np.nan, 0, 0.25])
    assert agreement(np.zeros((0, 2)), np.zeros((0, 2)), 0).ccc.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: average_precision([[1]], [[1, 0]]), r"labels \(1, 1\) and scores \(1, 2\)"),
        (lambda: average_precision([[2]], [[1]]), r"labels hold \[2\]"),
        (lambda: average_precision([[1]], [[np.nan]]), "scores hold NaN"),
        (lambda: expression_confusion([1], [[1]]), r"labels \(1,\) and predictions \(1, 1\)"),
        (lambda: expression_confusion([8], [1]), r"labels hold \[8\]: expected classes 0 to 7"),
        (lambda: expression_confusion([1], [-1]), r"predictions hold \[-1\]: expected classes 0 to 7"),
        (lambda: reliability([[1]], [[1.5]]), r"probabilities lie outside \[0, 1\]"),
        (lambda: brier([[1]], [[np.nan]]), r"probabilities lie outside .*: expected the sigmoid of the logits"),
        (lambda: brier([[3]], [[0.5]]), "labels hold other values"),
        (lambda: brier([1], [0.5]), r"labels \(1,\) and probabilities \(1,\): expected the same \[N, A\]"),
        (lambda: agreement([[0]], [[np.inf]], 0), "predictions hold NaN or infinity"),
        (lambda: agreement([[np.nan]], [[0]], -1), "labels hold NaN: expected numbers, below -1"),
        (lambda: agreement([0], [0], 0), r"labels \(1,\) and predictions \(1,\): expected the same \[N, D\]"),
    ],
)
def test_what_makes_no_sense_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
