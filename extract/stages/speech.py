"""Features of 16 kHz speech by any encoder of four families that transformers builds."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from pydantic import Field, model_validator

from extract.models import speech
from extract.models.chunks import overlapping_chunks
from extract.stage import ClipResult, ClipStage, Context, Output, StageConfig
from extract.stages.wave import WAVE_HZ
from extract.timeline import Regular

if TYPE_CHECKING:
    import numpy as np

    from extract.weights.files import Weights


OVERLAP_S = 8
"""Of the chunks of a long recording."""
USUAL_MAX_S = 300
FAIRSEQ_PIECE_S = 100
"""1,600,000 samples: ``max_chunk`` of fairseq's ``dump_hubert_feature``."""


class EncoderConfig(StageConfig):
    """What every speech encoder is asked for."""

    # Recipes made before they were there, and the records of clips that they do not concern, stay as they are; what of
    # the others they concern, ``SpeechEncoder.outdated`` says.
    added: ClassVar[frozenset[str]] = frozenset({"max_s", "chunks"})

    layer: int | Literal["last"] = Field(default="last", union_mode="left_to_right")
    """k: raw output of transformer layer k, 0 being the input of the first. ``last``: the last layer after the final
    norm, where the network has one (``do_stable_layer_norm``)."""
    normalise: bool
    """Whole recording to mean 0 and variance 1 first: ``do_normalize`` of ``preprocessor_config.json``."""
    dtype: Literal["float16", "float32"] = "float16"
    chunks: Literal["overlapping", "fairseq_100s"] = "overlapping"
    """``overlapping``: each step attends to the whole recording, or to one chunk of it that is long (``max_s``).
    ``fairseq_100s``: features as fairseq's ``dump_hubert_feature`` writes them: pieces of 100 s go through the network
    one by one, without overlap; of a piece's 5,000 steps the last, whose samples lie in two pieces, does not exist."""
    max_s: int = Field(default=USUAL_MAX_S, ge=200)
    """Seconds that attend to each other at most: of 600 s, attention costs x-large nearly four times all else. A
    longer recording is cut into chunks of even sizes, each longer than half of this (so at least 100 s), that overlap
    by 8 s. Normalisation and convolutions are of the whole recording all the same."""

    @model_validator(mode="after")
    def _heeds_max_s(self) -> "EncoderConfig":
        if self.chunks == "fairseq_100s" and self.max_s != USUAL_MAX_S:
            raise ValueError(f"max_s is {self.max_s}, but chunks: fairseq_100s cuts every 100 s; leave max_s out")
        return self


EncoderConfigT = TypeVar("EncoderConfigT", bound=EncoderConfig)


class SpeechEncoder(ClipStage[EncoderConfigT]):
    """Hidden states of one transformer layer. Nothing is padded, and up to ``max_s`` nothing is cut.

    A recording of more than a minute goes through in blocks, with the same values (``long_speech.hidden_of_long``).
    """

    inputs = ("wave.samples",)
    device = "gpu"
    copyable = True

    @property
    @abstractmethod
    def uncut_steps(self) -> Regular:
        """The clock of its convolutions over a recording in one piece."""

    @property
    def steps(self) -> Regular:
        """Its clock."""
        if self.config.chunks == "fairseq_100s":
            return replace(self.uncut_steps, piece_s=Fraction(FAIRSEQ_PIECE_S))
        return self.uncut_steps

    @property
    @abstractmethod
    def width(self) -> int:
        """Features per step."""

    @abstractmethod
    def load(self, context: Context, weights: "Weights") -> Any:  # noqa: ANN401 - transformers' model of the family
        """The network with its weights, where and how ``context`` wants it."""

    @property
    def outputs(self) -> tuple[Output, ...]:
        return (
            Output("feature", self.steps, ("feature",), (self.width,), self.config.dtype),
            Output("centre_s", self.steps, (), (), "float64"),
        )

    def setup(self, context: Context) -> None:
        from torch import nn

        if context.weights is None:
            raise ValueError(f"stage {self.name} needs weights")
        self._precision = context.precision
        self._model = self.load(context, context.weights)
        final_norm = speech.keep_layers(self._model, self.config.layer)
        self._final_norm = final_norm if self.config.layer == "last" else nn.Identity()

    def compute(self, inputs: Mapping[str, Any]) -> ClipResult:
        """``wave.samples``: float32 [n] in [-1, 1] at 16 kHz, in memory or not; ``wave.start_s``: time of the first."""
        import torch

        samples = inputs["wave.samples"]
        num_steps = self.steps.num_steps(Fraction(len(samples), WAVE_HZ))
        if num_steps == 0:
            return ClipResult({}, {"samples": len(samples)}, empty="too_short")
        normalise, precision = self.config.normalise, self._precision
        with torch.inference_mode():
            if self.config.chunks == "fairseq_100s":
                num_chunks = -(-num_steps // self.steps.num_steps(Fraction(FAIRSEQ_PIECE_S)))
                hidden = speech.hidden_states_of_pieces(
                    self._model,
                    self._final_norm,
                    samples,
                    FAIRSEQ_PIECE_S * WAVE_HZ,
                    normalise=normalise,
                    precision=precision,
                )
            else:
                chunks = overlapping_chunks(num_steps, self._max_steps, round(OVERLAP_S / self.steps.hop_s))
                num_chunks = len(chunks)
                hidden = speech.hidden_states(
                    self._model,
                    self._final_norm,
                    samples,
                    num_steps,
                    normalise=normalise,
                    precision=precision,
                    chunks=chunks,
                )
        centres = torch.from_numpy(self.steps.centres_s(num_steps, inputs["wave.start_s"]))
        notes = {"chunks": num_chunks} if num_chunks > 1 else {}
        # float32; the runner narrows it to ``dtype`` and looks for overflow.
        return ClipResult({"feature": hidden.float(), "centre_s": centres}, notes)

    @property
    def _max_steps(self) -> int:
        return self.steps.num_steps(Fraction(self.config.max_s))

    def outdated(self, rows: int, notes: Mapping[str, Any]) -> str | None:
        """Before there was ``max_s``, every step attended to the whole recording, however long."""
        if self.config.chunks == "fairseq_100s" or rows <= self._max_steps or "chunks" in notes:
            return None
        return f"{self.name}.max_s: none, {rows} steps at once -> {self.config.max_s}"


class SpeechConfig(EncoderConfig):
    """What fixes shape and time of the output is said here, so that planning and ``status`` need no weights.

    The other sizes (layers, heads, norms) are those of the weights folder's own ``config.json``, whose content is part
    of the weights' sha256. The fields that both have must agree.
    """

    family: speech.Family
    weights: str
    """A key, or a folder with ``config.json`` and the tensors, as transformers saves it. ``random``: two layers."""
    width: int = Field(ge=1)
    """Features per step: ``hidden_size``."""
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    """The convolutions over the samples, which fix the clock. These, which all published encoders of the four families
    have, hop 320 samples (20 ms) and see 400 (25 ms)."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> "SpeechConfig":
        if self.layer != "last" and self.layer < 0:
            raise ValueError(f"layer is {self.layer}, expected 0 or more, or last")
        if not self.conv_kernel or len(self.conv_kernel) != len(self.conv_stride):
            raise ValueError(
                f"conv_kernel has {len(self.conv_kernel)} numbers and conv_stride {len(self.conv_stride)}, expected "
                "one of each per convolution"
            )
        if min(self.conv_kernel + self.conv_stride) < 1:
            raise ValueError(f"conv_kernel {self.conv_kernel}, conv_stride {self.conv_stride}: expected 1 or more each")
        groups = speech.TOY["num_conv_pos_embedding_groups"]
        if self.weights == "random" and self.width % groups:
            raise ValueError(f"width is {self.width}; with weights: random it must be a multiple of {groups}")
        return self


class Speech(SpeechEncoder[SpeechConfig]):
    """An encoder of the family that the config names.

    What the families do differently in the blocks of a long recording, WavLM's gated position bias and data2vec's
    several positional convolutions, is given to each block as the whole recording has it. Below a minute WavLM holds
    its bias whole, in transformers' own way: a minute through WavLM large takes 2.5 GB for it in float32.
    """

    name = "speech"
    version = 1
    config_type = SpeechConfig

    @property
    def uncut_steps(self) -> Regular:
        return speech.clock(self.config.conv_kernel, self.config.conv_stride, WAVE_HZ)

    @property
    def width(self) -> int:
        return self.config.width

    def random_weights(self) -> "dict[str, np.ndarray[Any, Any]]":
        config = self.config
        return speech.random_weights(config.family, config.width, config.conv_kernel, config.conv_stride)

    def load(self, context: Context, weights: "Weights") -> Any:  # noqa: ANN401 - transformers' model of the family
        config = self.config
        return speech.load(
            config.family,
            weights,
            config.width,
            config.conv_kernel,
            config.conv_stride,
            config.layer,
            context.device,
            context.precision,
        )
