"""Sigmoid, log loss and temperature against scikit-learn, scipy and planted values."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from extract.au.calibration import reliability
from fusion.temperature import (
    TEMPERATURES,
    best_temperatures,
    negative_log_likelihood,
    sigmoid,
)


def planted(count=4000, temperature=2.5, seed=0):
    """Labels drawn from sigmoid(z), and logits that are too loud by ``temperature``; a fifth not annotated."""
    random = np.random.default_rng(seed)
    z = random.normal(0, 2, (count, 1))
    labels = (random.random(z.shape) < expit(z)).astype(np.int8)
    labels[random.random(z.shape) < 0.2] = -1
    return labels, z * temperature


def test_sigmoid_is_scipys():
    z = np.concatenate([np.linspace(-800, 800, 1601), [-1e-17, 0.0, 1e-17]])
    np.testing.assert_allclose(sigmoid(z), expit(z), rtol=1e-14, atol=1e-300)
    assert sigmoid(0.0) == 0.5


def test_log_loss_is_scikit_learns():
    labels, z = planted()
    seen = labels[:, 0] >= 0
    expected = log_loss(labels[seen, 0], expit(z[seen, 0]))
    assert negative_log_likelihood(labels, z)[0] == pytest.approx(expected, rel=1e-9)
    assert np.isnan(negative_log_likelihood(np.full((2, 1), -1), np.zeros((2, 1)))).all()


def test_temperature_is_the_inverse_slope_of_a_logistic_regression():
    """Without intercept and penalty, its slope minimises the same loss."""
    labels, z = planted()
    seen = labels[:, 0] >= 0
    fitted = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(z[seen], labels[seen, 0])
    found = best_temperatures(labels, z)[0]
    assert found == pytest.approx(1 / fitted.coef_[0, 0], rel=1e-4)
    assert found == pytest.approx(2.5, rel=0.1)
    assert negative_log_likelihood(labels, z / found) < negative_log_likelihood(labels, z) - 0.05
    before, after = (reliability(labels, sigmoid(one)).error for one in (z, z / found))
    assert after < before - 0.05


def test_one_class_keeps_its_temperature_and_perfect_logits_end_at_the_bound():
    z = np.array([[-1.0, 3.0, 1.0], [2.0, 1.0, -1.0], [3.0, -1.0, -2.0]])
    labels = np.array([[1, -1, 1], [1, -1, 0], [1, -1, 0]])
    found = best_temperatures(labels, z)
    np.testing.assert_array_equal(found[:2], 1.0)
    assert found[2] == pytest.approx(TEMPERATURES[0], rel=1e-3)
