"""HuBERT features of 16 kHz speech: one vector every 20 ms."""

from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from extract.models import hubert
from extract.stage import Context
from extract.stages.speech import EncoderConfig, SpeechEncoder
from extract.stages.wave import WAVE_HZ
from extract.timeline import Regular

if TYPE_CHECKING:
    import numpy as np
    from transformers import HubertModel

    from extract.weights.files import Weights

# The convolutions hop 320 samples and see 400 (25 ms): one second has 49 steps, not 50.
HUBERT_STEPS = Regular(hop_s=Fraction(320, WAVE_HZ), window_s=Fraction(400, WAVE_HZ))


class HubertConfig(EncoderConfig):
    """The defaults are those of USC, ABAW5, before adaptation: x-large, last layer."""

    weights: str = "hubert-xlarge-ll60k"
    architecture: Literal["xlarge", "large", "base", "small"] = "xlarge"
    """Fixes the width of the features: 1280, 1024, 768, 64."""
    normalise: bool = True
    """fairseq trained xlarge and large with it, base without."""

    @model_validator(mode="after")
    def _layer_exists(self) -> "HubertConfig":
        most = hubert.ARCHITECTURES[self.architecture].num_layers
        if self.layer != "last" and not 0 <= self.layer <= most:
            raise ValueError(f"layer is {self.layer}, but architecture {self.architecture} has layers 0 to {most}")
        return self


class Hubert(SpeechEncoder[HubertConfig]):
    """The HuBERT of the architecture that the config names."""

    name = "hubert"
    version = 1
    config_type = HubertConfig
    uncut_steps = HUBERT_STEPS

    @property
    def width(self) -> int:
        return hubert.ARCHITECTURES[self.config.architecture].width

    def random_weights(self) -> "dict[str, np.ndarray[Any, Any]]":
        return hubert.random_weights(self.config.architecture)

    def load(self, context: Context, weights: "Weights") -> "HubertModel":
        return hubert.load(self.config.architecture, weights, context.device, context.precision)
