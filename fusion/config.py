"""The section ``fusion:`` of a config: which features, which network, how it is trained."""

import copy
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, TypeAdapter, field_validator, model_validator

from extract.au import NUM_EXPRESSIONS
from extract.config import SECTIONS, Frozen, Remembered, apply_overrides, load_section, validated
from extract.errors import ConfigError
from extract.names import suggestion
from fusion.post_config import PostConfig


class FrameModality(Frozen):
    """The frame's own row, flattened: Linear(D, project)."""

    kind: Literal["frame"] = "frame"
    instance: str
    array: str
    project: int = Field(default=512, ge=1)
    """Width of its part of the head's input (the paper: 512 for Swin, 128 for GH-Feat)."""


Encoder: TypeAlias = Literal["gru", "attention", "tcn"]


class SequenceModality(Frozen):
    """What the three kinds of several rows per frame share."""

    instance: str
    array: str
    project: int = Field(default=64, ge=1)
    """Width of each step of the encoder's input."""
    encoder: Encoder | None = None
    """What reads the sequence; None: ``model.encoder``."""


class ContextModality(SequenceModality):
    """The rows of the frame and its neighbours: Linear(D, project) on each, then the encoder.

    Two ways to say which: ``before`` and ``after``, every ``stride``-th frame; or ``frames`` and ``span_s``, so many
    frames spread evenly over [t - span_s, t + span_s], each the one that is nearest in time.
    """

    kind: Literal["context"]
    before: int = Field(default=4, ge=0)
    """Frames before."""
    after: int = Field(default=4, ge=0)
    """Frames after."""
    stride: int = Field(default=1, ge=1)
    """Distance of two frames; ``before: 4, stride: 2`` reaches back eight frames."""
    frames: int | None = Field(default=None, ge=2)
    """Number of frames of the window; the paper's code takes 8."""
    span_s: float | None = Field(default=None, gt=0)
    """Seconds on either side over which ``frames`` are spread; the paper's code: 2."""

    @model_validator(mode="after")
    def _one_way(self) -> "ContextModality":
        if (self.frames is None) != (self.span_s is None):
            raise ValueError("frames and span_s go together: so many frames, spread over so many seconds")
        mixed = {"before", "after", "stride"} & self.model_fields_set
        if self.frames is not None and any(getattr(self, name) != _CONTEXT[name] for name in mixed):
            raise ValueError("a window is given by before, after and stride, or by frames and span_s, not by both")
        return self


_CONTEXT = {name: field.default for name, field in ContextModality.model_fields.items()}


class StepsModality(SequenceModality):
    """The steps with their centre in [t - before_s, t + after_s): Linear(D, project) on each, then the encoder."""

    kind: Literal["steps"]
    before_s: float = Field(default=2.0, ge=0)
    after_s: float = Field(default=2.0, ge=0)


class TokensModality(SequenceModality):
    """The rows that the instance's ``range`` [T, 2] names for the frame: Linear(D, project) each, then the encoder."""

    kind: Literal["tokens"]


AnyModality: TypeAlias = FrameModality | ContextModality | StepsModality | TokensModality
Modality = Annotated[AnyModality, Field(discriminator="kind")]


@cache
def default_modalities() -> Mapping[str, AnyModality | None]:
    """What a config without ``modalities`` fits on: those of ``default.yaml``, in Python as in the shell."""
    adapter: TypeAdapter[dict[str, Modality | None]] = TypeAdapter(dict[str, Modality | None])
    return adapter.validate_python(load_section("default", "fusion", ())["modalities"])


TaskName: TypeAlias = Literal["au", "expr", "va", "intensity"]


class DataConfig(Frozen):
    """Which annotated frames are samples, and in which order they are trained on."""

    drop_partial_frames: bool = False
    """Leave out frames with any -1, as the papers do; otherwise a -1 leaves out only its own AU."""
    expressions: int = Field(default=NUM_EXPRESSIONS, ge=2)
    """Classes of the task ``expr``; Aff-Wild2 has 8, the last one ``other``."""
    stride: int = Field(default=1, ge=1)
    """Train on every n-th annotated frame of a clip: neighbouring frames are nearly equal."""
    ml_ros: float = Field(default=0.0, ge=0, le=100)
    """Frames with rare AUs that ML-ROS repeats (Charte et al. 2015), in percent of the training frames; 0: none."""
    sampler: Literal["iid", "segments"] = "iid"
    """``iid``: the frames of a batch are drawn from all clips. ``segments``: a batch is made of runs of consecutive
    frames; they share the rows of their windows, so each row is read and projected once, but batches are less mixed."""
    segment: int = Field(default=16, ge=1)
    """Frames per run of the sampler ``segments``."""


class ModelConfig(Frozen):
    """The network over the chosen modalities; the default is that of USC (ABAW5)."""

    kind: Literal["branches", "transformer", "mlp", "linear"] = "branches"
    """``branches``: a projection and an encoder per modality, then the head (USC). ``transformer``: one small encoder
    over the rows of all modalities and neighbouring frames. ``mlp``, ``linear``: one modality of kind ``frame``, the
    strongest small baselines with smoothing."""
    encoder: Encoder = "gru"
    """What reads sequences. ``gru``: bidirectional (USC). ``attention``: masked attention pooling with relative time.
    ``tcn``: dilated convolutions over time."""
    hidden: int = Field(default=64, ge=1)
    """Width of the encoder's state per direction; its output has twice as many values."""
    layers: int = Field(default=2, ge=1)
    """Layers of the encoder (GRU, convolutions, transformer)."""
    head: int = Field(default=512, ge=1)
    """Width of the head's hidden layer."""
    width: int = Field(default=128, ge=8)
    """Width of the transformer's tokens."""
    heads: int = Field(default=4, ge=1)
    """Attention heads (encoder ``attention``, kind ``transformer``)."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Between layers of encoders and before the last layer."""
    readout: Literal["final_state", "last_output"] = "final_state"
    """Of a GRU. ``final_state``: the state of each direction after the whole sequence (the paper's text).
    ``last_output``: the output at the last step, where the backward direction has read only that step (the paper's
    code)."""
    standardise: bool = True
    """Give every feature mean 0 and deviation 1 over the training split; the paper and its code do not."""
    missing: Literal["learned", "zero_input", "zero_output"] = "learned"
    """What stands for a modality in frames that lack it. ``learned``: a vector, trained. ``zero_input``: what the
    branch makes of one row of zeros (the paper, its code). ``zero_output``: zeros after the branch."""
    modality_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Probability, per frame and modality, of being treated as missing in training; it trains the learned vector."""

    @field_validator("missing", mode="before")
    @classmethod
    def _renamed(cls, value: object) -> object:
        if value == "zeros":
            raise ValueError("zeros is now named zero_output (zeros after the branch); the paper's way is zero_input")
        return value

    @model_validator(mode="after")
    def _divisible(self) -> "ModelConfig":
        if self.kind == "transformer" and self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.encoder == "attention" and (2 * self.hidden) % self.heads:
            raise ValueError(f"2 * hidden = {2 * self.hidden} is not a multiple of heads {self.heads}")
        return self


Weights: TypeAlias = Literal["paper", "auto", "none"] | tuple[float, ...]


class LossConfig(Frozen):
    """The loss of the action units. Weights are given one per AU, in the order of the labels, or by name:
    ``paper``: those of USC's code, for the twelve AUs of Aff-Wild2; ``auto``: from the counts of the training labels;
    ``none``: 1."""

    kind: Literal["two_part", "asymmetric"] = "two_part"
    """``two_part``: cross-entropy with ``pos_weight`` plus multi-label soft margin with ``soft_margin_weight`` (USC,
    SituTech). ``asymmetric``: the asymmetric loss (Ben-Baruch et al. 2021), where positives are rare."""
    pos_weight: Weights = "paper"
    """What a positive counts in the cross-entropy (W1)."""
    soft_margin_weight: Weights = "paper"
    """What an AU counts in the soft margin loss, both classes alike (W2)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Targets are y (1 - e) + e / 2; scores are always measured on the labels as they are."""
    gamma_neg: float = Field(default=4.0, ge=0)
    """Asymmetric loss: focusing of negatives."""
    gamma_pos: float = Field(default=0.0, ge=0)
    """Asymmetric loss: focusing of positives."""
    shift: float = Field(default=0.05, ge=0, lt=1)
    """Asymmetric loss: probability by which negatives are shifted; easier ones count nothing."""

    @field_validator("pos_weight", "soft_margin_weight")
    @classmethod
    def _positive(cls, weights: Weights) -> Weights:
        if isinstance(weights, tuple) and (not weights or min(weights) <= 0):
            raise ValueError(f"expected positive numbers, one per AU, found {list(weights)}")
        return weights


class TrainingConfig(Frozen):
    """How the network is fitted."""

    lr: float = Field(default=1e-3, gt=0)
    """Learning rate of AdamW. The paper's 1e-5 is for end-to-end training that includes Swin, not for frozen
    features."""
    warmup_steps: int = Field(default=20, ge=0)
    """Steps over which the learning rate rises to ``lr``."""
    schedule: Literal["constant", "plateau"] = "constant"
    """After the warm-up. ``plateau``: times 0.8 after 5 epochs without a lower loss on ``val`` (the paper's code)."""
    weight_decay: float = Field(default=1e-5, ge=0)
    batch: int = Field(default=256, ge=2)
    """Most frames per step; the batches of an epoch are of nearly equal size, so that none is tiny."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Gradients with a larger norm are scaled down to it."""
    max_epochs: int = Field(default=20, ge=1)
    min_epoch_steps: int = Field(default=10, ge=1)
    """An epoch makes as many passes over the frames as this many steps take: a few hundred frames are two steps, too
    few between validations. 1: an epoch is one pass."""
    max_epoch_steps: int | None = Field(default=None, ge=1)
    """Steps after which an epoch ends although frames are left (the paper's code: 500); None: all of them."""
    patience: int = Field(default=5, ge=1)
    """Epochs without a better score on the split ``val`` before training stops. Without that split all epochs run."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    precision: Literal["float32", "bfloat16"] = "float32"
    """``bfloat16``: matrix products in 16 bits (autocast); weights, their moments and recurrent states stay float32."""
    graph: Literal["auto", "on", "off"] = "auto"
    """Replay the step as a CUDA graph; ``auto``: on a GPU. Values agree with the plain step up to rounding."""
    tables: Literal["auto", "gpu", "memory", "file"] = "auto"
    """Where the features lie while training; ``auto`` takes the fastest that they fit in. It never changes a value.
    From memory and file, batches for a GPU are gathered one step ahead, into pinned memory."""
    keep_epochs: bool = False
    """Keep the network of every epoch in ``epochs/NN`` of the run, for ``fusion ensemble``."""
    checkpoint_minutes: float = Field(default=5.0, ge=0)
    """Minutes of work between two checkpoints within an epoch; every epoch ends with one."""

    @field_validator("graph", mode="before")
    @classmethod
    def _switch(cls, value: object) -> object:
        # YAML reads `on` and `off` as booleans.
        return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


class FusionConfig(Frozen):
    """The section ``fusion:``."""

    modalities: Mapping[str, Modality | None] = Field(default_factory=default_modalities)
    """By name, in the order of the head's input; ``null`` leaves one out. Default: those of ``default.yaml``."""
    tasks: Mapping[TaskName, float] = {"au": 1.0}
    """What is predicted, each with the weight of its loss: ``au`` occurrence, ``expr`` (expression classes), ``va``
    (valence and arousal), ``intensity`` (of AUs, 0 to 5). Each is masked on its own where it is not annotated."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()
    post: PostConfig = PostConfig()

    @property
    def used(self) -> dict[str, AnyModality]:
        """The modalities that are in use."""
        return {name: modality for name, modality in self.modalities.items() if modality is not None}

    @property
    def instances(self) -> tuple[str, ...]:
        """The instances that they read, each once."""
        return tuple(dict.fromkeys(modality.instance for modality in self.used.values()))

    @model_validator(mode="after")
    def _usable(self) -> "FusionConfig":
        if not self.used:
            raise ValueError("modalities: none is in use; name at least one")
        for name in self.modalities:
            if not name.isidentifier():  # torch's parameter names contain them, and a dot would separate levels
                raise ValueError(f"modalities: {name!r} cannot be a name; use letters, digits and _")
        if not self.tasks:
            raise ValueError("tasks: none; name at least one of au, expr, va, intensity")
        if min(self.tasks.values()) <= 0:
            raise ValueError(f"tasks: weights must be positive, found {dict(self.tasks)}")
        if self.model.kind in {"mlp", "linear"}:
            kinds = [modality.kind for modality in self.used.values()]
            if kinds != ["frame"]:
                raise ValueError(
                    f"model.kind {self.model.kind} takes one modality of kind frame, found {', '.join(kinds)}; "
                    "leave the others out with --set modalities.NAME=null"
                )
        return self


def load_fusion_config(
    config: str | FusionConfig | None = None, overrides: Sequence[str] = (), remembered: Remembered | None = None
) -> FusionConfig:
    """The settings of a built-in config, a file, a store or an object, with ``a.b=c`` overrides.

    Args:
        config: name or path as ``-c`` takes it, or the settings themselves. None: ``remembered``, else ``default``.
        remembered: the config that a store was made with.

    Raises:
        ConfigError: the file, a key or a value is invalid; the message names file and key.
    """
    if isinstance(config, FusionConfig):
        where, before = "the given config", config.model_dump(mode="json")
    else:
        where = f"config {config or 'default'}" if config or remembered is None else str(remembered)
        before = load_section(config, "fusion", (), remembered)
    own = [text for text in overrides if not text.startswith("extract.")]
    section = apply_overrides(copy.deepcopy(before), "fusion", own)
    _refuse_misspelt_modality(before, section)
    # An override may also misspell the section's own name: `fusoin.training.lr=1e-4`.
    return validated(FusionConfig, section, f"{where}, section fusion", also=SECTIONS if own else ())


def _refuse_misspelt_modality(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Raise ConfigError where an override sets something of a modality that does not exist."""
    known, modalities = before.get("modalities") or {}, after.get("modalities") or {}
    if not isinstance(known, Mapping) or not isinstance(modalities, Mapping):
        return  # for pydantic to refuse
    for name, entry in modalities.items():
        if name not in known and isinstance(entry, Mapping) and "kind" not in entry:
            raise ConfigError(
                f"--set modalities.{name}.{next(iter(entry), '')}: no such modality; {suggestion(name, list(known))} "
                "(a new one needs kind, instance and array)"
            )
