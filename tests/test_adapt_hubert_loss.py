"""The loss against fairseq's own values, the masks against their closed form."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from extract.adapt.hubert_loss import (
    Head,
    LossConfig,
    hubert_loss,
    label_range,
    labelled_steps,
    logits_of,
    of_steps,
    valid_steps,
)
from extract.adapt.hubert_masks import draw_masks

CASES = ["offset4", "offset0", "unmasked", "two_sets_100hz"]
LEARNED = {
    "grad_encoder": "encoder",
    "grad_conv": "conv",
    "grad_proj_weight": "proj_weight",
    "grad_proj_bias": "proj_bias",
    "grad_label_table": "label_table",
}


@pytest.fixture(scope="module")
def golden(golden_dir):
    return np.load(golden_dir / "hubert_loss.npz")


def of_case(golden, case):
    """The case's arrays as tensors; what gradients are compared of asks for them."""
    prefix = f"{case}/"
    found = {name.removeprefix(prefix): torch.from_numpy(golden[name]) for name in golden if name.startswith(prefix)}
    for name in LEARNED.values():
        found[name].requires_grad_()
    return found


def loss_of(z, **changes):
    classes = tuple(z["classes"].tolist())
    arguments = {
        "conv": z["conv"],
        "hidden": z["encoder"],
        "head": Head(z["proj_weight"], z["proj_bias"], z["label_table"], classes, int(z["cluster_offset"])),
        "clusters": [z[f"cluster_{i}"] for i in range(len(classes))],
        "mask": z["mask"],
        "valid": valid_steps(z["valid_samples"], int(z["num_samples"]), z["frame_padding"].shape[1]),
        "ratio": float(z["ratio"]),
        "config": LossConfig(float(z["w_masked"]), float(z["w_unmasked"])),
    }
    return hubert_loss(**arguments | changes)


@pytest.mark.parametrize("case", CASES)
def test_fairseqs_losses(golden, case):
    z = of_case(golden, case)
    steps = labelled_steps(z["conv"].shape[-1], min(z[f"cluster_{i}"].shape[1] for i in range(len(z["classes"]))),
                           float(z["ratio"]))  # fmt: skip
    assert steps == z["frame_padding"].shape[1]
    valid = valid_steps(z["valid_samples"], int(z["num_samples"]), steps)
    assert torch.equal(~valid, z["frame_padding"])

    found = loss_of(z)
    assert found.sample_size == int(z["sample_size"])
    near = {"rel": 1e-5}
    assert found.penalty.item() == pytest.approx(float(z["penalty"]), **near)
    assert found.penalty_term.item() == pytest.approx(float(z["penalty_term"]), **near)
    assert found.total.item() == pytest.approx(float(z["total"]), **near)
    for i in range(len(z["classes"])):
        assert found.masked[i].loss.item() == pytest.approx(float(z[f"loss_m_{i}"]), **near)
        assert (int(found.masked[i].correct), found.masked[i].count) == (z[f"correct_m_{i}"], z[f"count_m_{i}"])
    # What is of no weight in the case is computed with a small one, to be compared all the same.
    both = loss_of(z, config=LossConfig(1.0, 1e-9))
    for i in range(len(z["classes"])):
        assert both.unmasked[i].loss.item() == pytest.approx(float(z[f"loss_u_{i}"]), **near)
        assert (int(both.unmasked[i].correct), both.unmasked[i].count) == (z[f"correct_u_{i}"], z[f"count_u_{i}"])


@pytest.mark.parametrize("case", CASES)
def test_fairseqs_gradients(golden, case):
    z = of_case(golden, case)
    loss_of(z).total.backward()
    for name, learned in LEARNED.items():
        most = float(z[name].abs().max())
        assert float((z[learned].grad - z[name]).abs().max()) <= 1e-5 * most, name


@pytest.mark.parametrize("case", CASES)
def test_fairseqs_logits(golden, case):
    """Its column 0 is the target; the target's own column, barred there, is what column 0 says."""
    z = of_case(golden, case)
    classes = z["classes"].tolist()
    steps = z["frame_padding"].shape[1]
    seen = z["mask"][:, :steps] & ~z["frame_padding"]
    size = len(z["proj_bias"]) // len(classes)
    vectors = functional.linear(z["encoder"][:, :steps][seen], z["proj_weight"], z["proj_bias"])[:, :size]
    target = of_steps(z["cluster_0"], steps, float(z["ratio"]))[seen] + z["cluster_offset"]
    logits = logits_of(vectors, z["label_table"][: classes[0]]).detach()
    expected = z["logits_m_0"][:, 1:].clone()
    expected[torch.arange(len(target)), target] = z["logits_m_0"][:, 0]
    assert torch.allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_special_rows_are_wrong_answers_that_count(golden):
    """The README of the golden values: without the four special rows 57.08 becomes 53.57."""
    four, none = (loss_of(of_case(golden, case)).masked[0].loss.item() for case in ("offset4", "offset0"))
    assert (four, none) == (pytest.approx(57.08, abs=0.005), pytest.approx(53.57, abs=0.005))


def test_sums_of_parts_are_the_whole(golden):
    """Rows of equal length and as many hidden steps each: a batch is the sum of its rows, penalty included."""
    z = of_case(golden, "offset0")
    mask = torch.zeros_like(z["mask"])
    mask[:, 2:7] = True
    whole = loss_of(z, mask=mask, valid=None)
    rows = [
        loss_of(z, conv=z["conv"][i : i + 1], hidden=z["encoder"][i : i + 1], mask=mask[i : i + 1], valid=None,
                clusters=[z["cluster_0"][i : i + 1]])
        for i in range(len(mask))
    ]  # fmt: skip
    assert sum(row.sample_size for row in rows) == whole.sample_size
    assert sum(row.total.item() for row in rows) == pytest.approx(whole.total.item(), rel=1e-6)


def test_half_precision_is_compared_in_float32():
    random = torch.Generator().manual_seed(3)
    vectors, table = (torch.randn(n, 16, generator=random).bfloat16() for n in (5, 9))
    expected = functional.cosine_similarity(vectors.double()[:, None], table.double()[None], dim=-1) / 0.1
    assert logits_of(vectors, table).dtype == torch.float32
    assert torch.allclose(logits_of(vectors, table).double(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("start", "num_samples", "label_hz", "expected"),
    [
        (0, 16_000, 50, (0, 50)),
        (3200, 16_000, 50, (10, 60)),  # sample 320 k: label k
        (3519, 32_000, 50, (11, 111)),  # 10.997 rounds up
        (160, 640, 50, (0, 2)),  # half to even
        (1600, 16_000, 100, (10, 110)),
    ],
)
def test_labels_of_a_crop(start, num_samples, label_hz, expected):
    assert label_range(start, num_samples, label_hz, 16_000) == expected


@pytest.mark.parametrize(("steps", "labels", "ratio", "left"), [(21, 38, 2.0, 19), (21, 42, 2.0, 21), (7, 9, 1.0, 7)])
def test_steps_without_labels_are_left_out(steps, labels, ratio, left):
    assert labelled_steps(steps, labels, ratio) == left
    assert of_steps(torch.arange(labels), left, ratio).tolist() == [int(i * ratio) for i in range(left)]


# ---- masks ----------------------------------------------------------------------------------------------------------


def expected_share(steps, share=0.8, span=10):
    """Of one row: the chance of a step to lie under at least one span, in closed form."""
    spans = share * steps / span
    found = 0.0
    for n, chance in ((math.floor(spans), 1 - spans % 1), (math.floor(spans) + 1, spans % 1)):
        for step in range(steps):
            reach = min(step, steps - span - 1) - max(0, step - span + 1) + 1  # starts that would cover it
            found += chance * (1 - math.comb(steps - span - reach, n) / math.comb(steps - span, n)) / steps
    return found


@pytest.mark.parametrize(("steps", "published"), [(781, 0.567), (99, 0.574)])
def test_share_of_hidden_steps(steps, published):
    """fairseq's expected shares; single rows, which nothing thins."""
    random = np.random.default_rng(5)
    shares = [draw_masks(1, steps, random).mean() for _ in range(2500)]
    error = float(np.std(shares) / np.sqrt(len(shares)))
    assert expected_share(steps) == pytest.approx(published, abs=0.002)
    assert abs(float(np.mean(shares)) - expected_share(steps)) < 4 * error
    assert error < 0.0015


def test_masks_of_a_batch():
    random = np.random.default_rng(0)
    batches = [draw_masks(8, 120, random) for _ in range(200)]
    assert all(len(set(masks.sum(axis=1))) == 1 for masks in batches)  # as many in every row
    hidden = np.mean(np.concatenate(batches), axis=0)
    assert hidden[-1] == 0.0  # fairseq never hides the last step
    assert hidden[-2] > 0
    assert hidden[15:100].std() < 0.03  # no place is preferred inside
    alone = np.mean([draw_masks(1, 120, random).mean() for _ in range(1600)])
    assert hidden.mean() < alone  # thinned to the row that hid fewest


def test_masks_depend_on_the_generator_alone():
    first, again, other = (draw_masks(4, 99, np.random.default_rng([7, step])) for step in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_rows_too_short_for_their_spans():
    assert draw_masks(3, 24, np.random.default_rng(0)).any(axis=1).all()
    with pytest.raises(ValueError, match="11 steps are too few for 2 spans of 10"):
        draw_masks(1, 11, np.random.default_rng(0))
