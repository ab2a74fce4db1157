"""Recordings made ready for a network: their mean and variance, taken in pieces, and what is scaled by them."""

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MOMENTS_OF = 983_440
"""Samples whose mean and variance are taken together (61.5 s); those of longer recordings are joined. Another number
would round otherwise."""

EPSILON = 1e-7
"""Added to the variance: transformers' feature extractor."""
FAIRSEQ_EPSILON = 1e-5
"""The same in fairseq, whose tasks normalise a recording with ``layer_norm``."""


class Samples(Protocol):
    """A recording: a Tensor [n], or what stands for one whose samples lie on the disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice) -> "torch.Tensor":
        """Consecutive samples, float32."""


class Moments:
    """Mean and population variance, in float64, of rows [..., n] that come in pieces (Chan et al. 1983)."""

    def __init__(self) -> None:
        self._num = 0
        self.mean: Any = 0.0
        self.variance: Any = 0.0

    def add(self, piece: "Tensor") -> None:
        """Take the next piece [..., n] into account."""
        import torch

        variance, mean = torch.var_mean(piece.double(), dim=-1, correction=0)
        if not self._num:
            self._num, self.mean, self.variance = piece.shape[-1], mean, variance
            return
        num = self._num + piece.shape[-1]
        share = piece.shape[-1] / num
        apart = mean - self.mean
        self.mean = self.mean + apart * share
        self.variance = self.variance * (1 - share) + variance * share + apart * apart * share * (1 - share)
        self._num = num


def whole_moments(samples: Samples) -> Moments:
    """Mean and variance of the whole recording, in float64: an hour is 6e7 samples."""
    moments = Moments()
    for start in range(0, len(samples), MOMENTS_OF):
        moments.add(samples[start : start + MOMENTS_OF])
    return moments


def normalised(part: "Tensor", moments: Moments | None = None, epsilon: float = EPSILON) -> "Tensor":
    """(x - mean) / sqrt(var + epsilon), with the moments of the whole recording.

    ``None``: ``part`` is the whole recording.
    """
    import torch

    moments = moments or whole_moments(part)
    scaled: Tensor = (part - moments.mean) / torch.sqrt(moments.variance + epsilon)
    return scaled.float()
