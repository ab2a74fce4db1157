"""Every loss beside the two-part one, against torch, timm and closed forms; what all promise; automatic weights."""

import math

import numpy as np
import pytest
import torch
from timm.loss import AsymmetricLossMultiLabel
from torch import nn
from torch.nn import functional

from extract.au import AFFECT_NOT_ANNOTATED, NOT_ANNOTATED
from extract.au.losses import (
    POS_WEIGHT,
    AsymmetricLoss,
    ConcordanceLoss,
    ExpressionLoss,
    SquaredErrorLoss,
    TwoPartLoss,
)
from extract.au.weighting import auto_pos_weight, auto_weight


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def au_labels(*shape, seed=0, lowest=0):
    return torch.randint(lowest, 2, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int8)


def affect(*shape, seed=0):
    return torch.tanh(normal(*shape, seed=seed))


LOSSES = {
    "two parts": (
        lambda: TwoPartLoss([1, 2, 3], [3, 2, 1], label_smoothing=0.1),
        lambda n: au_labels(n, 3),
        NOT_ANNOTATED,
    ),
    "asymmetric": (
        lambda: AsymmetricLoss(3, 4, [0, 0.5, 2], [0, 0.05, 0.3], 0.1),
        lambda n: au_labels(n, 3),
        NOT_ANNOTATED,
    ),
    "plain asymmetric": (lambda: AsymmetricLoss(3, 0.5, 0, 0.2), lambda n: au_labels(n, 3), NOT_ANNOTATED),
    "concordance": (lambda: ConcordanceLoss(), lambda n: affect(n, 3), AFFECT_NOT_ANNOTATED),
    "squared error": (lambda: SquaredErrorLoss(), lambda n: 5 * au_labels(n, 3), NOT_ANNOTATED),
    "expression": (lambda: ExpressionLoss(), lambda n: au_labels(n) + 1, NOT_ANNOTATED),
    "weighted expression": (lambda: ExpressionLoss([1, 2, 3]), lambda n: au_labels(n) + 1, NOT_ANNOTATED),
}
every_loss = pytest.mark.parametrize(("make", "draw", "absent"), LOSSES.values(), ids=LOSSES)


@every_loss
@pytest.mark.parametrize("wild", [0.0, 1e4, -1e4, math.inf, -math.inf, math.nan])
def test_nothing_annotated_is_no_loss_and_no_gradient(make, draw, absent, wild):
    outputs = torch.full((4, 3), wild, requires_grad=True)
    total = make()(outputs, torch.full_like(draw(4), absent))
    total.backward()
    assert (total.shape, total.item()) == ((), 0)
    assert (outputs.grad == 0).all()


@every_loss
@pytest.mark.parametrize("wild", [7.0, math.inf, math.nan])
def test_rows_without_annotation_change_nothing(make, draw, absent, wild):
    loss, outputs, labels = make(), normal(9, 3).requires_grad_(), draw(9)
    alone = loss(outputs, labels)
    alone.backward()
    padded = torch.cat([outputs.detach(), torch.full((5, 3), wild, dtype=torch.float64)]).requires_grad_()
    among = loss(padded, torch.cat([labels, torch.full_like(draw(5), absent)]))
    among.backward()
    assert among.item() == pytest.approx(alone.item(), rel=1e-12)
    np.testing.assert_allclose(padded.grad[:9].numpy(), outputs.grad.numpy(), rtol=1e-12, atol=1e-15)
    assert (padded.grad[9:] == 0).all()


@every_loss
def test_gradients_are_those_of_finite_differences(make, draw, absent):
    labels = draw(8)
    labels[2:4] = absent
    outputs = normal(8, 3, seed=1).requires_grad_()
    loss = make().double()
    assert torch.autograd.gradcheck(lambda z: loss(z, labels), (outputs,))


@every_loss
def test_no_value_is_read_and_no_shape_depends_on_data(make, draw, absent):
    """Tensors on ``meta`` have shapes and no values: reading one, or an index by mask, raises."""
    outputs = torch.zeros(6, 3, device="meta", requires_grad=True)
    labels = torch.cat([draw(5), torch.full_like(draw(1), absent)]).to("meta")
    with pytest.raises(NotImplementedError, match="nonzero"):
        outputs[labels >= 0]
    total = make().to("meta")(outputs, labels)
    total.backward()
    assert total.shape == ()
    assert outputs.grad.shape == (6, 3)


@every_loss
def test_half_precision_is_computed_in_single(make, draw, absent):
    outputs, labels = normal(400, 3).to(torch.bfloat16), draw(400)
    labels[:9] = absent
    assert make()(outputs, labels).dtype == torch.float32
    assert torch.equal(make()(outputs, labels), make()(outputs.float(), labels))


@pytest.mark.parametrize("loss", [TwoPartLoss([2, 1, 3], [1, 4, 1], 0.1), AsymmetricLoss(3, 2, 1, 0, 0.1)])
def test_label_smoothing_moves_annotated_targets_alone(loss):
    """y (1 - eps) + eps / 2 for two classes: .95 and .05 at eps .1 (specs of SituTech, 1.6)."""
    logits, labels = normal(20, 3), au_labels(20, 3, lowest=-1)
    assert (labels == -1).any()
    smoothed = torch.where(labels >= 0, 0.05 + 0.9 * labels.double(), -1.0)
    loss.label_smoothing = 0.0
    by_hand = loss(logits, smoothed)
    plain = loss(logits, labels)
    loss.label_smoothing = 0.1
    assert loss(logits, labels).item() == pytest.approx(by_hand.item(), rel=1e-12)
    assert abs(loss(logits, labels).item() - plain.item()) > 1e-3


def test_asymmetric_without_focus_and_shift_is_plain_cross_entropy():
    logits = (30 * normal(50, 4)).requires_grad_()  # far beyond where 1 - sigmoid rounds to 0 in single precision
    labels = au_labels(50, 4)
    AsymmetricLoss(4, 0, 0, 0)(logits.float(), labels).backward()
    found, logits.grad = logits.grad, None
    plain = functional.binary_cross_entropy_with_logits(logits, labels.double())
    plain.backward()
    assert AsymmetricLoss(4, 0, 0, 0)(logits.float(), labels).item() == pytest.approx(plain.item(), rel=1e-6)
    np.testing.assert_allclose(found.numpy(), logits.grad.numpy(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("gamma_neg", "gamma_pos", "shift"), [(4, 0, 0.05), (4, 1, 0.05), (2, 2, 0), (0, 0, 0.3)])
def test_asymmetric_is_timms(gamma_neg, gamma_pos, shift):
    logits, labels = (4 * normal(200, 5, dtype=torch.float32)).requires_grad_(), au_labels(200, 5)
    theirs = AsymmetricLossMultiLabel(gamma_neg, gamma_pos, shift, eps=1e-30, reduction="mean")(logits, labels)
    theirs.backward()
    expected, logits.grad = logits.grad, None
    ours = AsymmetricLoss(5, gamma_neg, gamma_pos, shift)(logits, labels)
    ours.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    np.testing.assert_allclose(logits.grad.numpy(), expected.numpy(), rtol=2e-4, atol=1e-8)


def test_asymmetric_of_logits_beyond_single_precision():
    """The sigmoid of -200 is 0 there, and x ** .5 has no slope at 0."""
    logits = torch.tensor([[-1e4, -200, 200, 1e4]], requires_grad=True)
    for labels, elements in (([[0] * 4], (0, 0, 200, 1e4)), ([[1] * 4], (1e4, 200, 0, 0))):
        for gamma in (0, 0.5, 2):
            total = AsymmetricLoss(4, gamma, gamma, 0)(logits, torch.tensor(labels))
            total.backward()
            assert total.item() == pytest.approx(sum(elements) / 4)
            assert logits.grad.isfinite().all()


def test_asymmetric_by_hand_with_numbers_of_each_au():
    """Column 0: y = 1 at p = .8, (1 - p)^2 ln p. Column 1: y = 0 at p = .6, (p - .1)^3 ln(1 - .5). Column 2: p < m."""
    logits = torch.logit(torch.tensor([[0.8, 0.6, 0.2]], dtype=torch.float64))
    loss = AsymmetricLoss(3, [1, 3, 1], [2, 0, 0], [0, 0.1, 0.25]).double()
    expected = -(0.2**2 * math.log(0.8) + 0.5**3 * math.log(0.5) + 0) / 3
    assert loss(logits, torch.tensor([[1, 0, 0]])).item() == pytest.approx(expected, rel=1e-6)


def test_concordance_of_each_column_by_numpy():
    outputs, labels = normal(60, 2, seed=1), affect(60, 2)
    labels[::3, 0] = AFFECT_NOT_ANNOTATED
    values = []
    for column in range(2):
        kept = labels[:, column].numpy() >= -1
        x, y = outputs[kept, column].numpy(), labels[kept, column].numpy()
        values.append(2 * np.cov(x, y, bias=True)[0, 1] / (x.var() + y.var() + (x.mean() - y.mean()) ** 2))
    assert ConcordanceLoss()(outputs, labels).item() == pytest.approx(1 - np.mean(values), rel=1e-12)
    labels[:, 0] = AFFECT_NOT_ANNOTATED  # a column without annotation is no part of the mean
    assert ConcordanceLoss()(outputs, labels).item() == pytest.approx(1 - values[1], rel=1e-12)


@pytest.mark.parametrize(
    ("outputs", "labels", "loss"),
    [
        ([0.1, 0.5, -0.3], [0.1, 0.5, -0.3], 0),
        ([-0.1, -0.5, 0.3, 0.3], [0.1, 0.5, -0.3, -0.3], 2),
        ([1, 2, 3], [-1, 0, 1], 1 - 2 * (2 / 3) / (4 / 3 + 4)),  # perfect correlation, two too high
        ([0.4, 0.4], [0.1, 0.2], 1),
        ([0.4], [0.4], 1),
    ],
)
def test_concordance_by_hand(outputs, labels, loss):
    z = torch.tensor(outputs, dtype=torch.float64)[:, None].requires_grad_()
    found = ConcordanceLoss()(z, torch.tensor(labels, dtype=torch.float64)[:, None])
    found.backward()
    assert found.item() == pytest.approx(loss, abs=1e-12)
    assert z.grad.isfinite().all()


def test_minus_one_is_a_valence():
    outputs, labels = torch.tensor([[0.0], [1.0]]), torch.tensor([[-1.0], [1.0]])
    assert ConcordanceLoss()(outputs, labels).item() == pytest.approx(1 - 2 * 0.5 / (0.25 + 1 + 0.25))


def test_squared_error_is_torchs_over_the_annotated():
    outputs, labels = normal(30, 4), torch.randint(-1, 6, (30, 4), generator=torch.Generator().manual_seed(0))
    kept = labels >= 0
    expected = functional.mse_loss(outputs[kept], labels[kept].double())
    assert SquaredErrorLoss()(outputs, labels.to(torch.int8)).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("weight", [None, [1, 2, 3, 4, 5, 6, 7, 8.0]])
def test_expression_is_torchs_cross_entropy(weight):
    logits = normal(40, 8).requires_grad_()
    labels = torch.randint(-1, 8, (40,), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    tensor = None if weight is None else torch.tensor(weight, dtype=torch.float64)
    expected = nn.CrossEntropyLoss(tensor, ignore_index=-1)(logits, labels.long())
    expected.backward()
    gradient, logits.grad = logits.grad, None
    found = ExpressionLoss(weight)(logits, labels)
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    np.testing.assert_allclose(logits.grad.numpy(), gradient.numpy(), rtol=1e-10, atol=1e-15)


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match=r"outputs \(4, 1\) and labels \(4, 1\): expected \[B, 12\] both"):
        TwoPartLoss()(torch.zeros(4, 1), torch.zeros(4, 1))
    with pytest.raises(ValueError, match=r"outputs \(4, 3\) and labels \(4, 1\): expected \[B, 3\] both"):
        AsymmetricLoss(3)(torch.zeros(4, 3), torch.zeros(4, 1))
    for loss in (ConcordanceLoss(), SquaredErrorLoss()):
        with pytest.raises(ValueError, match=r"outputs \(4, 3\) and labels \(4,\): expected the same \[B, D\]"):
            loss(torch.zeros(4, 3), torch.zeros(4))
    with pytest.raises(ValueError, match=r"logits \(4, 8\) and labels \(4, 1\): expected \[B, C\] and \[B\]"):
        ExpressionLoss()(torch.zeros(4, 8), torch.zeros(4, 1))
    with pytest.raises(ValueError, match="logits of 8 classes, expected 7"):
        ExpressionLoss([1] * 7)(torch.zeros(4, 8), torch.zeros(4))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: TwoPartLoss([1, 2], [1]), "2 pos_weights and 1 weights: expected one each per AU"),
        (lambda: TwoPartLoss([1, 0], [1, 1]), "a weight is 0: expected positive"),
        (lambda: TwoPartLoss(label_smoothing=1.0), "label_smoothing is 1.0: expected a number from 0 to below 1"),
        (lambda: AsymmetricLoss(3, [1, 2]), "2 values of gamma_neg: expected 1, or 3"),
        (lambda: AsymmetricLoss(2, 4, -1), r"gamma_pos is \[-1.0, -1.0\]: expected from 0"),
        (lambda: AsymmetricLoss(2, shift=[0, 1]), r"shift is \[0, 1\]: expected from 0 to below 1"),
        (lambda: ExpressionLoss([1, -2]), "a class weight is -2: expected positive"),
    ],
)
def test_settings_out_of_range_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


PRIORS = (0.118, 0.050, 0.154, 0.267, 0.397, 0.344, 0.245, 0.028, 0.032, 0.026, 0.627, 0.074)
"""Aff-Wild2's training set, in the order of AUS (specs of SituTech, finding 1)."""


def drawn(*priors, num_frames=1000):
    ranks = np.arange(num_frames)[:, None]
    return (ranks < np.round(np.multiply(priors, num_frames))).astype(np.int8)


def test_weights_of_aff_wild2_lie_near_the_papers():
    found = auto_pos_weight(drawn(*PRIORS))
    assert found.one_class == ()
    expected = [min(max(math.sqrt((1 - p) / p), 1), 6) for p in PRIORS]
    np.testing.assert_allclose(found.weights, expected, rtol=1e-6)
    chosen, whole = np.array(POS_WEIGHT), [min((1 - p) / p, 6) for p in PRIORS]
    assert np.abs(np.log(expected / chosen)).mean() < np.abs(np.log(np.maximum(whole, 1) / chosen)).mean()
    rare = [a for a in range(12) if chosen[a] >= 5]
    assert min(found.weights[a] for a in rare) > max(w for a, w in enumerate(found.weights) if chosen[a] == 1)


def test_weights_by_hand_ignore_what_is_not_annotated():
    labels = drawn(0.1, 0.9, 0.5)
    with_gaps = np.concatenate([labels, np.full((500, 3), -1, dtype=np.int8)])
    for given in (labels, with_gaps):
        np.testing.assert_allclose(auto_pos_weight(given).weights, [3, 1, 1])
        np.testing.assert_allclose(auto_weight(given).weights, [3, 3, 1])


def test_an_au_of_one_class_weighs_one_and_is_named():
    labels = drawn(0.0, 1.0, 0.2, 0.001, num_frames=2000)
    labels = np.concatenate([labels, np.full((2000, 1), -1, dtype=np.int8)], axis=1)
    for weights in (auto_pos_weight(labels), auto_weight(labels)):
        assert weights.weights == (1, 1, 2, 6, 1)
        assert weights.one_class == (0, 1, 4)
    with pytest.raises(ValueError, match=r"labels \(2000,\): expected \[N, A\] of 0, 1 or -1"):
        auto_weight(labels[:, 0])
