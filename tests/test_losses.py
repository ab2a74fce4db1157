"""The two-part loss against the original's values and gradients, and its masking against leaving elements out."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from extract.au import AUS
from extract.au.losses import POS_WEIGHT, SOFT_MARGIN_WEIGHT, TwoPartLoss


@pytest.fixture(scope="module")
def golden(golden_dir: Path):
    with np.load(golden_dir / "abaw5_fusion.npz") as file:
        return {name: file[name] for name in file.files if name.startswith("loss_")}


def test_terms_total_and_gradient_are_the_originals(golden):
    logits = torch.from_numpy(golden["loss_logits"]).requires_grad_()
    labels = torch.from_numpy(golden["loss_labels"])
    loss = TwoPartLoss()
    cross_entropy, soft_margin = loss.terms(logits, labels)
    total = loss(logits, labels)
    total.backward()
    assert cross_entropy.item() == pytest.approx(float(golden["loss_bce"]), rel=1e-6)
    assert soft_margin.item() == pytest.approx(float(golden["loss_multilabel"]), rel=1e-6)
    assert total.item() == pytest.approx(float(golden["loss_total"]), rel=1e-6)
    np.testing.assert_allclose(logits.grad.numpy(), golden["loss_grad"], rtol=1e-5, atol=1e-8)


def test_unit_weights_give_twice_the_plain_cross_entropy(golden):
    """SituTech's Eq. 5 is its Eq. 2: without ``pos_weight`` the two terms are one (specs of the paper, finding 3)."""
    logits = torch.from_numpy(golden["loss_logits"]).requires_grad_()
    ones = [1.0] * len(AUS)
    total = TwoPartLoss(ones, ones)(logits, torch.from_numpy(golden["loss_labels"]))
    total.backward()
    assert total.item() == pytest.approx(2 * float(golden["loss_unweighted"]), rel=1e-6)
    np.testing.assert_allclose(logits.grad.numpy(), 2 * golden["loss_unweighted_grad"], rtol=1e-5, atol=1e-8)


def test_two_elements_by_hand():
    """z = (.3, -1.2), y = (1, 0): element losses .554355 and .263282 (specs, 1.6)."""
    logits, labels = torch.tensor([[0.3, -1.2]]), torch.tensor([[1, 0]], dtype=torch.int8)
    cross_entropy, soft_margin = TwoPartLoss([3.0, 3.0], [1.0, 1.0]).terms(logits, labels)
    assert soft_margin.item() == pytest.approx(0.408819, abs=1e-6)
    assert cross_entropy.item() == pytest.approx((3 * 0.554355 + 0.263282) / 2, abs=1e-6)


def test_masked_elements_are_left_out_of_the_mean_and_get_no_gradient():
    generator = torch.Generator().manual_seed(3)
    logits = (3 * torch.randn(9, 12, generator=generator)).requires_grad_()
    labels = torch.randint(-1, 2, (9, 12), generator=generator, dtype=torch.int8)
    assert (labels == -1).any()
    loss = TwoPartLoss()
    loss(logits, labels).backward()

    weighted, plain, count = 0.0, 0.0, 0  # from the definition, element by element
    for row, column in np.argwhere(labels.numpy() >= 0):
        z, y = logits[row, column].item(), labels[row, column].item()
        log_p, log_not_p = -math.log1p(math.exp(-z)), -math.log1p(math.exp(z))
        weighted -= POS_WEIGHT[column] * y * log_p + (1 - y) * log_not_p
        plain -= SOFT_MARGIN_WEIGHT[column] * (y * log_p + (1 - y) * log_not_p)
        count += 1
    assert loss(logits, labels).item() == pytest.approx((weighted + plain) / count, rel=1e-5)
    assert (logits.grad[labels == -1] == 0).all()
    assert (logits.grad[labels != -1] != 0).all()


def test_nothing_annotated_is_no_loss_and_no_gradient():
    logits = torch.full((2, 12), 50.0, requires_grad=True)
    total = TwoPartLoss()(logits, torch.full((2, 12), -1, dtype=torch.int8))
    total.backward()
    assert total.item() == 0
    assert (logits.grad == 0).all()
