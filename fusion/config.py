"""The section ``fusion:`` of an experiment file: which features, which network, how it is trained."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from extract.au import AUS
from extract.au.losses import POS_WEIGHT, SOFT_MARGIN_WEIGHT
from extract.config import Frozen, Remembered, load_section, validated


class FrameModality(Frozen):
    """The frame's own row, flattened: Linear(D, project)."""

    kind: Literal["frame"] = "frame"
    instance: str
    array: str
    project: int = Field(default=512, ge=1)
    """Width of its part in the head (the paper: 512 for Swin, 128 for GH-Feat)."""


class ContextModality(Frozen):
    """The rows of the frame and its neighbours: each Linear(D, project), then the recurrent encoder."""

    kind: Literal["context"]
    instance: str
    array: str
    before: int = Field(default=4, ge=0)
    """Frames before."""
    after: int = Field(default=4, ge=0)
    """Frames after."""
    project: int = Field(default=64, ge=1)
    """Width of one step into the encoder."""


class StepsModality(Frozen):
    """The steps whose centre lies in [t - before_s, t + after_s): each Linear(D, project), then the encoder."""

    kind: Literal["steps"]
    instance: str
    array: str
    before_s: float = Field(default=2.0, ge=0)
    after_s: float = Field(default=2.0, ge=0)
    project: int = Field(default=64, ge=1)
    """Width of one step into the encoder."""


class TokensModality(Frozen):
    """The rows that the instance's own ``range`` [T, 2] gives each frame: each Linear(D, project), then the encoder."""

    kind: Literal["tokens"]
    instance: str
    array: str
    project: int = Field(default=64, ge=1)
    """Width of one token into the encoder."""


AnyModality: TypeAlias = FrameModality | ContextModality | StepsModality | TokensModality
Modality = Annotated[AnyModality, Field(discriminator="kind")]

DEFAULT_MODALITIES: Mapping[str, AnyModality] = {
    "swin": FrameModality(instance="swin", array="feature"),
    "hubert": StepsModality(kind="steps", instance="hubert", array="feature"),
    "roberta": TokensModality(kind="tokens", instance="roberta", array="token"),
}
"""What the default config of ``extract`` computes."""


class DataConfig(Frozen):
    """Which annotated frames are samples."""

    drop_partial_frames: bool = False
    """Leave out frames with any -1, as the papers do; otherwise a -1 leaves out its own element only."""


class ModelConfig(Frozen):
    """The network of USC (ABAW5) over the modalities asked for."""

    hidden: int = Field(default=64, ge=1)
    """Width of the recurrent state, per direction."""
    layers: int = Field(default=2, ge=1)
    """Bidirectional GRU layers."""
    head: int = Field(default=512, ge=1)
    """Width of the head's hidden layer."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Between GRU layers and before the last layer."""
    readout: Literal["final_state", "last_output"] = "final_state"
    """``final_state``: each direction after it has read the whole sequence (the paper's text). ``last_output``: the
    output at the last step, where the backward direction has read one step only (the paper's code)."""
    missing: Literal["learned", "zeros"] = "learned"
    """What stands for a modality that a frame lacks, after its branch."""
    modality_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Chance, per frame and modality while training, to be treated as missing: it trains the learned vector."""


class LossConfig(Frozen):
    """Weights of the two-part loss, one per AU in the order of ``extract.au.AUS``."""

    pos_weight: tuple[float, ...] = POS_WEIGHT
    soft_margin_weight: tuple[float, ...] = SOFT_MARGIN_WEIGHT

    @field_validator("pos_weight", "soft_margin_weight")
    @classmethod
    def _one_per_au(cls, weights: tuple[float, ...]) -> tuple[float, ...]:
        if len(weights) != len(AUS) or min(weights) <= 0:
            raise ValueError(f"expected {len(AUS)} positive numbers, one per AU")
        return weights


class TrainingConfig(Frozen):
    """How the network is fitted."""

    lr: float = Field(default=1e-3, gt=0)
    """AdamW's rate. The paper's 1e-5 belongs to training end to end with Swin inside, not to frozen features."""
    weight_decay: float = Field(default=1e-5, ge=0)
    batch: int = Field(default=256, ge=2)
    """Frames per step; the last batches of an epoch are evened out, so that none is tiny."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    max_epochs: int = Field(default=20, ge=1)
    min_epoch_steps: int = Field(default=10, ge=1)
    """An epoch passes over the frames as often as it takes to make this many steps: a few hundred frames are two
    steps, too few to judge by. 1: an epoch is one pass."""
    patience: int = Field(default=5, ge=1)
    """Epochs without a better mean F1 on the split ``val`` before it stops. Without that split all epochs are run."""
    seed: int = Field(default=0, ge=0, lt=2**32)


class FusionConfig(Frozen):
    """The section ``fusion:``."""

    modalities: Mapping[str, Modality | None] = DEFAULT_MODALITIES
    """By name, in the order in which the head reads them; ``null`` leaves one out."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()

    @property
    def used(self) -> dict[str, AnyModality]:
        """The modalities that are not left out."""
        return {name: modality for name, modality in self.modalities.items() if modality is not None}

    @property
    def instances(self) -> tuple[str, ...]:
        """The instances they read, each once."""
        return tuple(dict.fromkeys(modality.instance for modality in self.used.values()))

    @model_validator(mode="after")
    def _usable(self) -> "FusionConfig":
        if not self.used:
            raise ValueError("modalities: none is left; name at least one")
        for name in self.modalities:
            if not name.isidentifier():  # they become names of parameters, where a dot would be a level
                raise ValueError(f"modalities: {name!r} is no name; use letters, digits and _")
        return self


def load_fusion_config(
    spec: str | None = None, overrides: Sequence[str] = (), remembered: Remembered | None = None
) -> FusionConfig:
    """Read ``fusion:`` of a built-in config or file, or as a store remembers it, with ``a.b=c`` overrides.

    Raises:
        ConfigError: the file, a key or a value is not as it should be; the message names file and key.
    """
    section = load_section(spec, "fusion", overrides, remembered)
    return validated(FusionConfig, section, f"config {spec or 'default'}, section fusion")
