"""The two-part loss of both published systems, masked element by element."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

POS_WEIGHT = (1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 6.0, 6.0, 5.0, 1.0, 5.0)
"""W1 of USC (ABAW5): what a positive counts in the binary cross-entropy, in the order of AUS."""

SOFT_MARGIN_WEIGHT = (1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 6.0, 6.0, 6.0, 1.0, 2.0)
"""W2 of USC (ABAW5): what an AU counts in the multi-label soft margin loss, both classes alike."""


class TwoPartLoss(nn.Module):
    """Binary cross-entropy with ``pos_weight`` plus multi-label soft margin with ``weight``, each a mean over elements.

    The second term is the same cross-entropy with weights on both classes (MultiLabelSoftMarginLoss averages it over
    labels), so the two differ only because ``pos_weight`` leaves the negatives alone.

    Args:
        pos_weight: one positive number per AU.
        weight: one positive number per AU.
    """

    pos_weight: Tensor
    weight: Tensor

    def __init__(self, pos_weight: Sequence[float] = POS_WEIGHT, weight: Sequence[float] = SOFT_MARGIN_WEIGHT) -> None:
        super().__init__()
        # Buffers, so that they are moved to the device once and not at every step; the config holds their values.
        self.register_buffer("pos_weight", torch.tensor(pos_weight, dtype=torch.float32), persistent=False)
        self.register_buffer("weight", torch.tensor(weight, dtype=torch.float32), persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum of both terms, a scalar.

        Args:
            logits: [B, A], any real number.
            labels: [B, A], 0 or 1 (or between, for smoothed targets); negative where not annotated.
        """
        cross_entropy, soft_margin = self.terms(logits, labels)
        return cross_entropy + soft_margin

    def terms(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The two means over the annotated elements; both 0, with gradient 0, when nothing is annotated."""
        annotated = labels >= 0
        # A masked element must get a finite target: inf * 0 would be NaN in the backward pass.
        targets = labels.clamp(min=0).to(logits.dtype)
        weighted = functional.binary_cross_entropy_with_logits(
            logits, targets, pos_weight=self.pos_weight, reduction="none"
        )
        plain = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        count = annotated.sum().clamp(min=1)
        return (weighted * annotated).sum() / count, (plain * self.weight * annotated).sum() / count
