"""From scores to probabilities and decisions: post-processed as the run ships it, or the network's own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion.postprocess import FILE, PostProcess, describe
from fusion.scores import FrameScores
from fusion.temperature import sigmoid

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
    shipped: PostProcess | None = None
    """The post-processing that was applied; None: the network's own numbers."""

    @property
    def facts(self) -> dict[str, Any] | None:
        """The post-processing as plain values and as sentences; None without one."""
        if self.shipped is None:
            return None
        plain = self.shipped.as_json()
        kept = ("preset", "order", "smooth", "no_face", "temperature", "pairs", "selected_on")
        return {"summary": describe(self.shipped), **{name: plain[name] for name in kept}}


def shipped_with(folder: Path, aus: Sequence[int]) -> PostProcess | None:
    """The post-processing in the folder of a run, or of an export; None if it has none.

    Raises:
        UsageError: it is of other AUs.
        CorruptError: it is damaged.
    """
    path = folder / FILE
    return PostProcess.read(path, aus) if path.is_file() else None


def decide(scores: FrameScores, shipped: PostProcess | None) -> Decided:
    """Probabilities and decisions as the run ships them; without post-processing the network's own, at logit >= 0."""
    if shipped is None:
        return Decided(sigmoid(scores.logits), scores.logits >= 0, dict.fromkeys(scores.au_names, THRESHOLD))
    probabilities = shipped.probabilities(scores)
    thresholds = dict(zip(scores.au_names, shipped.thresholds, strict=True))
    return Decided(probabilities, shipped.decisions(scores) == 1, thresholds, shipped)
