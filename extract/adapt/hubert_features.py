"""The features whose clusters are the targets: a layer of a trained network, or mel cepstra for an untrained one."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from extract.adapt.hubert_crops import HOP, HZ, SEEN
from extract.adapt.hubert_sound import Heard, Recording
from extract.models import hubert, mfcc, speech
from extract.weights.files import Weights

CHUNK_STEPS = 5000
"""Steps that go through the network together: 100 s, as fairseq cuts recordings for their features."""

Chunk: TypeAlias = tuple[int, Callable[[], Tensor]]
"""First row, and what computes the rows [n, D] from it on, float32."""


@dataclass(frozen=True)
class TargetSource:
    """Whose features are clustered."""

    weights: Weights | None = None
    """Of a network; None: mel cepstra, as in the first of HuBERT's iterations."""
    architecture: str = ""
    layer: int = 0
    normalise: bool = False
    """Whether the network wants recordings of mean 0 and variance 1."""

    @property
    def width(self) -> int:
        """Features per row."""
        return mfcc.WIDTH if self.weights is None else hubert.ARCHITECTURES[self.architecture].width

    @property
    def label_hz(self) -> int:
        """Rows a second: 100 of cepstra, 50 of a network."""
        return HZ // (mfcc.HOP if self.weights is None else HOP)

    @property
    def ratio(self) -> float:
        """Rows per step of the network that is adapted."""
        return self.label_hz * HOP / HZ

    def num_rows(self, heard: Heard) -> int:
        """Of a recording."""
        return mfcc.num_rows(heard.num_samples) if self.weights is None else heard.steps

    def as_json(self) -> dict[str, str | int | bool]:
        """What decides the features."""
        if self.weights is None:
            return {"features": "mfcc"}
        return {"weights": self.weights.sha256, "layer": self.layer, "normalise": self.normalise}

    def features(self, device: torch.device) -> "Features":
        """What computes them."""
        return _Cepstra() if self.weights is None else _Layer(self, self.weights, device)


class _Cepstra:
    """Mel cepstra with their differences, of the whole recording at once: 39 numbers every 10 ms."""

    def chunks(self, recording: Recording) -> Sequence[Chunk]:
        """One, of all rows."""
        return [(0, lambda: mfcc.mfcc(lambda start, stop: recording[start:stop], len(recording)))]


class _Layer:
    """Raw output of one transformer layer over a recording."""

    def __init__(self, source: TargetSource, weights: Weights, device: torch.device) -> None:
        self._device = device
        self._model = hubert.load(source.architecture, weights, device)
        speech.keep_layers(self._model, source.layer)  # its final norm is left out: the raw output is clustered

    def chunks(self, recording: Recording) -> Sequence[Chunk]:
        """CHUNK_STEPS each, the last one up to twice as many, since a few steps alone would have no context.

        Chunks overlap by the samples that two steps share, so that every step of the recording is there (fairseq's cut
        loses one per 100 s, and the clusters after it slip by 20 ms each).
        """
        steps = recording.heard.steps

        def compute(first: int, stop: int) -> Tensor:
            wave = recording[HOP * first : HOP * (stop - 1) + SEEN].to(self._device)
            with torch.inference_mode():
                hidden: Tensor = self._model(wave[None]).last_hidden_state[0]
            return hidden.float()

        number = max(1, steps // CHUNK_STEPS)
        edges = [CHUNK_STEPS * i for i in range(number)] + [steps]
        return [
            (first, lambda first=first, stop=stop: compute(first, stop))  # type: ignore[misc]
            for first, stop in itertools.pairwise(edges)
        ]


Features: TypeAlias = _Cepstra | _Layer
