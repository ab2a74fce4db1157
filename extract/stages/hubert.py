"""HuBERT features of 16 kHz speech: one vector every 20 ms."""

from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from extract.models import hubert, speech
from extract.stage import ClipResult, ClipStage, Context, Output, StageConfig
from extract.stages.wave import WAVE_HZ
from extract.timeline import Regular

if TYPE_CHECKING:
    import numpy as np

# The convolutions hop 320 samples and see 400 (25 ms): one second has 49 steps, not 50.
HUBERT_STEPS = Regular(hop_s=Fraction(320, WAVE_HZ), window_s=Fraction(400, WAVE_HZ))


class HubertConfig(StageConfig):
    """The defaults are those of USC, ABAW5, before adaptation: x-large, last layer."""

    weights: str = "hubert-xlarge-ll60k"
    architecture: Literal["xlarge", "large", "base", "small"] = "xlarge"
    """Fixes the width of the features: 1280, 1024, 768, 64."""
    layer: int | Literal["last"] = Field(default="last", union_mode="left_to_right")
    """k: raw output of transformer layer k, 0 being the input of the first. ``last``: the last layer after the final
    norm, where the architecture has one (all but base)."""
    normalise: bool = True
    """Whole recording to mean 0 and variance 1 first: ``do_normalize`` of the model's preprocessor config. fairseq
    trained xlarge and large with it, base without."""
    dtype: Literal["float16", "float32"] = "float16"

    @model_validator(mode="after")
    def _layer_exists(self) -> "HubertConfig":
        most = hubert.ARCHITECTURES[self.architecture].num_layers
        if self.layer != "last" and not 0 <= self.layer <= most:
            raise ValueError(f"layer is {self.layer}, but architecture {self.architecture} has layers 0 to {most}")
        return self


class Hubert(ClipStage[HubertConfig]):
    """Hidden states of one transformer layer, as of the whole clip at once: nothing is cut or padded.

    A recording of more than a minute goes through in blocks, with the same values (``long_speech.hidden_of_long``).
    """

    name = "hubert"
    version = 1
    config_type = HubertConfig
    inputs = ("wave.samples",)
    device = "gpu"

    @property
    def outputs(self) -> tuple[Output, ...]:
        width = hubert.ARCHITECTURES[self.config.architecture].width
        return (
            Output("feature", HUBERT_STEPS, ("feature",), (width,), self.config.dtype),
            Output("centre_s", HUBERT_STEPS, (), (), "float64"),
        )

    def random_weights(self) -> "dict[str, np.ndarray[Any, Any]]":
        return hubert.random_weights(self.config.architecture)

    def setup(self, context: Context) -> None:
        from torch import nn

        if context.weights is None:
            raise ValueError("stage hubert needs weights")
        self._precision = context.precision
        model = hubert.load(self.config.architecture, context.weights)
        final_norm = speech.keep_layers(model, self.config.layer)
        self._model = model
        self._final_norm = final_norm if self.config.layer == "last" else nn.Identity()
        for module in (self._model, self._final_norm):
            module.to(context.device, context.precision)

    def compute(self, inputs: Mapping[str, Any]) -> ClipResult:
        """``wave.samples``: float32 [n] in [-1, 1] at 16 kHz, in memory or not; ``wave.start_s``: time of the first."""
        import torch

        samples = inputs["wave.samples"]
        num_steps = HUBERT_STEPS.num_steps(Fraction(len(samples), WAVE_HZ))
        if num_steps == 0:
            return ClipResult({}, {"samples": len(samples)}, empty="too_short")
        with torch.inference_mode():
            hidden = speech.hidden_states(
                self._model,
                self._final_norm,
                samples,
                num_steps,
                normalise=self.config.normalise,
                precision=self._precision,
            )
        centres = torch.from_numpy(HUBERT_STEPS.centres_s(num_steps, inputs["wave.start_s"]))
        # float32; the runner narrows it to ``dtype`` and looks for overflow.
        return ClipResult({"feature": hidden.float(), "centre_s": centres})
