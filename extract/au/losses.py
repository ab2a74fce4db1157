"""Losses of every head, masked element by element.

All are modules that take ``(outputs, labels)`` and give one number. None reads a value back to the host and none has a
shape that depends on data, so a step can be captured as a CUDA graph: what is not annotated is masked, never left out
by index. What an output says where nothing is annotated, NaN included, changes neither a loss nor a gradient; a batch
without any annotation gives 0 with gradient 0. Half-precision outputs are computed on in float32.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from extract.au import LOWEST_AFFECT, LOWEST_INTENSITY

POS_WEIGHT = (1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 6.0, 6.0, 5.0, 1.0, 5.0)
"""W1 of USC (ABAW5): what a positive counts in the binary cross-entropy, in the order of AUS."""

SOFT_MARGIN_WEIGHT = (1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 6.0, 6.0, 6.0, 1.0, 2.0)
"""W2 of USC (ABAW5): what an AU counts in the multi-label soft margin loss, both classes alike."""


class TwoPartLoss(nn.Module):
    """Binary cross-entropy with ``pos_weight`` plus multi-label soft margin with ``weight``, each a mean over elements.

    The second term is the same cross-entropy with weights on both classes (MultiLabelSoftMarginLoss averages it over
    labels), so the two differ only because ``pos_weight`` leaves the negatives alone.

    Args:
        pos_weight: one positive number per AU, [A].
        weight: one positive number per AU, [A].
        label_smoothing: eps in [0, 1): a target y becomes y (1 - eps) + eps / 2.

    Raises:
        ValueError: weights of two lengths, or not positive; an eps outside its range.
    """

    pos_weight: Tensor
    weight: Tensor

    def __init__(
        self,
        pos_weight: Sequence[float] = POS_WEIGHT,
        weight: Sequence[float] = SOFT_MARGIN_WEIGHT,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if len(pos_weight) != len(weight):
            raise ValueError(f"{len(pos_weight)} pos_weights and {len(weight)} weights: expected one each per AU")
        if min(*pos_weight, *weight) <= 0:
            raise ValueError(f"a weight is {min(*pos_weight, *weight)}: expected positive numbers")
        # Buffers, so that they are moved to the device once and not at every step; the config holds their values.
        self.register_buffer("pos_weight", torch.tensor(pos_weight, dtype=torch.float32), persistent=False)
        self.register_buffer("weight", torch.tensor(weight, dtype=torch.float32), persistent=False)
        self.label_smoothing = _smoothing(label_smoothing)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum of both terms, a scalar.

        Args:
            logits: [B, A], any real number.
            labels: [B, A], 0 or 1 (or between, for smoothed targets); negative where not annotated.

        Raises:
            ValueError: other shapes.
        """
        cross_entropy, soft_margin = self.terms(logits, labels)
        return cross_entropy + soft_margin

    def terms(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The two means over the annotated elements; both 0, with gradient 0, when nothing is annotated."""
        _check(logits, labels, len(self.weight))
        annotated = labels >= 0
        logits, targets = _masked(logits, labels, annotated)
        targets = _smoothed(targets, self.label_smoothing)
        weighted = functional.binary_cross_entropy_with_logits(
            logits, targets, pos_weight=self.pos_weight, reduction="none"
        )
        plain = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return _mean(weighted, annotated), _mean(plain * self.weight, annotated)


class AsymmetricLoss(nn.Module):
    """Asymmetric loss (ASL) for imbalanced labels, a mean over the annotated elements.

    Ben-Baruch et al., "Asymmetric Loss For Multi-Label Classification", ICCV 2021, Eq. 7 with the shifted probability
    of Eq. 5: with p = sigmoid(logit) and p_m = max(p - shift, 0),

        loss = - y (1 - p)^gamma_pos log(p) - (1 - y) p_m^gamma_neg log(1 - p_m)

    Easy negatives (p <= shift) count nothing, hard ones count most. The paper sums over labels; here it is a mean, so
    that the rate of learning does not depend on how much is annotated. With 0 for all three it is binary
    cross-entropy. The defaults are the paper's.

    Args:
        num_aus: A.
        gamma_neg: focusing of negatives, >= 0: one number, or one per AU.
        gamma_pos: focusing of positives, likewise.
        shift: m in [0, 1), likewise.
        label_smoothing: eps in [0, 1): a target y becomes y (1 - eps) + eps / 2.

    Raises:
        ValueError: a number outside its range, or as many of them as neither 1 nor A.
    """

    gamma_neg: Tensor
    gamma_pos: Tensor
    log_shift: Tensor
    shift: Tensor

    def __init__(
        self,
        num_aus: int,
        gamma_neg: float | Sequence[float] = 4.0,
        gamma_pos: float | Sequence[float] = 0.0,
        shift: float | Sequence[float] = 0.05,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        shifts = _per_au("shift", shift, num_aus, below=1.0)
        self.register_buffer("gamma_neg", _per_au("gamma_neg", gamma_neg, num_aus), persistent=False)
        self.register_buffer("gamma_pos", _per_au("gamma_pos", gamma_pos, num_aus), persistent=False)
        self.register_buffer("shift", shifts, persistent=False)
        self.register_buffer("log_shift", shifts.log(), persistent=False)  # -inf for 0
        self.label_smoothing = _smoothing(label_smoothing)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar >= 0; shapes, values and errors as for ``TwoPartLoss.forward``."""
        _check(logits, labels, len(self.shift))
        annotated = labels >= 0
        logits, targets = _masked(logits, labels, annotated)
        targets = _smoothed(targets, self.label_smoothing)
        # 1 - p_m = min(1 - p + m, 1); by logarithms, because 1 - p rounds to 0 at a logit of 17 already.
        log_not_shifted = torch.logaddexp(functional.logsigmoid(-logits), self.log_shift).clamp(max=0)
        # x ** gamma has no finite slope at 0 for gamma < 1; there the logarithm beside it is 0 (or the slope of p is).
        least = torch.finfo(logits.dtype).tiny
        shifted = (torch.sigmoid(logits) - self.shift).clamp(min=least)
        missed = torch.sigmoid(-logits).clamp(min=least)
        positive = targets * missed**self.gamma_pos * functional.logsigmoid(logits)
        negative = (1 - targets) * shifted**self.gamma_neg * log_not_shifted
        return _mean(-(positive + negative), annotated)


class ConcordanceLoss(nn.Module):
    """1 - CCC of each output over the batch, a mean over the outputs of which anything is annotated.

    CCC, the concordance correlation coefficient (Lin, Biometrics 45, 1989), of x and y with population moments:

        2 cov(x, y) / (var(x) + var(y) + (mean(x) - mean(y))^2)

    0/0 (both constant and equal: one annotated sample that is met exactly) is a CCC of 0 with gradient 0.
    """

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar in [0, 2].

        Args:
            outputs: [B, D], any real number.
            labels: [B, D], valence and arousal in [-1, 1]; below -1 where not annotated.

        Raises:
            ValueError: other shapes.
        """
        _check(outputs, labels)
        annotated = labels >= LOWEST_AFFECT
        x, y = _masked(outputs, labels, annotated)
        there = annotated.to(x.dtype)
        count = there.sum(0).clamp(min=1)  # [D]
        x_mean, y_mean = x.sum(0) / count, y.sum(0) / count  # masked elements are 0 on both sides
        dx, dy = (x - x_mean) * there, (y - y_mean) * there
        covariance = (dx * dy).sum(0) / count
        spread = (dx * dx + dy * dy).sum(0) / count + (x_mean - y_mean) ** 2
        # A divisor of 0 would be NaN in the backward pass, though `where` leaves it out of the forward one.
        ccc = torch.where(spread > 0, 2 * covariance / torch.where(spread > 0, spread, 1.0), 0.0)
        return _mean(1 - ccc, annotated.any(0))


class SquaredErrorLoss(nn.Module):
    """Mean squared error over the annotated elements, for AU intensities."""

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar >= 0.

        Args:
            outputs: [B, A], any real number.
            labels: [B, A], 0 to 5; negative where not annotated.

        Raises:
            ValueError: other shapes.
        """
        _check(outputs, labels)
        annotated = labels >= LOWEST_INTENSITY
        outputs, targets = _masked(outputs, labels, annotated)
        return _mean((outputs - targets) ** 2, annotated)


class ExpressionLoss(nn.Module):
    """Cross-entropy over the annotated samples; with class weights their weighted mean, as torch's own.

    Args:
        weight: one positive number per class, [C]; None: all 1.

    Raises:
        ValueError: a weight that is not positive.
    """

    weight: Tensor | None

    def __init__(self, weight: Sequence[float] | None = None) -> None:
        super().__init__()
        if weight is not None and min(weight) <= 0:
            raise ValueError(f"a class weight is {min(weight)}: expected positive numbers")
        weights = None if weight is None else torch.tensor(weight, dtype=torch.float32)
        self.register_buffer("weight", weights, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar >= 0.

        Args:
            logits: [B, C], any real number.
            labels: [B], integers 0 to C - 1; negative where not annotated.

        Raises:
            ValueError: other shapes.
        """
        if logits.ndim != 2 or labels.shape != logits.shape[:1]:
            raise ValueError(f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)}: expected [B, C] and [B]")
        if self.weight is not None and logits.shape[1] != len(self.weight):
            raise ValueError(f"logits of {logits.shape[1]} classes, expected {len(self.weight)}, as there are weights")
        annotated = labels >= 0
        logits = torch.where(annotated[:, None], _wide(logits), 0.0)
        targets = labels.clamp(min=0).long()
        log_p = functional.log_softmax(logits, dim=1).gather(1, targets[:, None])[:, 0]  # [B]
        shares = annotated.to(log_p.dtype)
        if self.weight is not None:
            shares = shares * self.weight[targets]
        whole = shares.sum()
        return -(log_p * shares).sum() / torch.where(whole > 0, whole, 1.0)


def _check(outputs: Tensor, labels: Tensor, width: int | None = None) -> None:
    """Refuse shapes that would broadcast."""
    if outputs.ndim != 2 or outputs.shape != labels.shape or (width is not None and outputs.shape[1] != width):
        expected = "the same [B, D]" if width is None else f"[B, {width}] both"
        raise ValueError(f"outputs {tuple(outputs.shape)} and labels {tuple(labels.shape)}: expected {expected}")


def _masked(outputs: Tensor, labels: Tensor, annotated: Tensor) -> tuple[Tensor, Tensor]:
    """Both with 0 where not annotated: multiplied by a mask, an infinite value would be NaN in the backward pass."""
    outputs = _wide(outputs)
    return torch.where(annotated, outputs, 0.0), torch.where(annotated, labels.to(outputs.dtype), 0.0)


def _wide(outputs: Tensor) -> Tensor:
    """At least float32: sums over a batch are lost in half precision."""
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


def _mean(values: Tensor, annotated: Tensor) -> Tensor:
    """Mean over the annotated; 0 with gradient 0 where there are none."""
    return torch.where(annotated, values, 0.0).sum() / annotated.sum().clamp(min=1)


def _smoothed(targets: Tensor, eps: float) -> Tensor:
    return targets * (1 - eps) + eps / 2


def _smoothing(eps: float) -> float:
    if not 0 <= eps < 1:
        raise ValueError(f"label_smoothing is {eps}: expected a number from 0 to below 1")
    return eps


def _per_au(name: str, values: float | Sequence[float], num_aus: int, below: float = float("inf")) -> Tensor:
    """One number per AU, [A] float32."""
    given = list(values) if isinstance(values, Sequence) else [float(values)] * num_aus
    if len(given) != num_aus:
        raise ValueError(f"{len(given)} values of {name}: expected 1, or {num_aus}, one per AU")
    if not all(0 <= value < below for value in given):
        raise ValueError(
            f"{name} is {given}: expected from 0" + (f" to below {below:g}" if below < float("inf") else "")
        )
    return torch.tensor(given, dtype=torch.float32)
