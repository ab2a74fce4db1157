"""From scores to probabilities and decisions: post-processed as the run ships it, or the network's own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion.scores import FrameScores

THRESHOLD = 0.5
"""On a probability, of a run without post-processing: logit 0."""


@dataclass(frozen=True)
class Decided:
    """Probabilities and decisions for N frames and A action units."""

    probabilities: NDArray[np.float64]
    """[N, A] in [0, 1]."""
    decisions: NDArray[np.bool_]
    """[N, A]"""
    thresholds: Mapping[str, float]
    """AU name -> threshold that the decisions were made with."""
    steps: Mapping[str, Any] | None = None
    """The post-processing, as the run ships it; None: the network's own numbers."""


def decide(scores: FrameScores) -> Decided:
    """The network's own probabilities, and decisions at logit >= 0."""
    probabilities = 1 / (1 + np.exp(-scores.logits.astype(np.float64)))  # [N, A]
    return Decided(probabilities, scores.logits >= 0, dict.fromkeys(scores.au_names, THRESHOLD))
