"""The section ``fusion:`` of a config: which features, which network, how it is trained."""

import copy
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from extract.au import AUS
from extract.au.losses import POS_WEIGHT, SOFT_MARGIN_WEIGHT
from extract.config import SECTIONS, Frozen, Remembered, apply_overrides, load_section, validated
from extract.errors import ConfigError
from extract.names import suggestion


class FrameModality(Frozen):
    """The frame's own row, flattened: Linear(D, project)."""

    kind: Literal["frame"] = "frame"
    instance: str
    array: str
    project: int = Field(default=512, ge=1)
    """Width of its part of the head's input (the paper: 512 for Swin, 128 for GH-Feat)."""


class ContextModality(Frozen):
    """The rows of the frame and its neighbours: Linear(D, project) on each, then the recurrent encoder."""

    kind: Literal["context"]
    instance: str
    array: str
    before: int = Field(default=4, ge=0)
    """Frames before."""
    after: int = Field(default=4, ge=0)
    """Frames after."""
    project: int = Field(default=64, ge=1)
    """Width of each step of the encoder's input."""


class StepsModality(Frozen):
    """The steps with their centre in [t - before_s, t + after_s): Linear(D, project) on each, then the encoder."""

    kind: Literal["steps"]
    instance: str
    array: str
    before_s: float = Field(default=2.0, ge=0)
    after_s: float = Field(default=2.0, ge=0)
    project: int = Field(default=64, ge=1)
    """Width of each step of the encoder's input."""


class TokensModality(Frozen):
    """The rows that the instance's ``range`` [T, 2] names for the frame: Linear(D, project) each, then the encoder."""

    kind: Literal["tokens"]
    instance: str
    array: str
    project: int = Field(default=64, ge=1)
    """Width of each token of the encoder's input."""


AnyModality: TypeAlias = FrameModality | ContextModality | StepsModality | TokensModality
Modality = Annotated[AnyModality, Field(discriminator="kind")]

DEFAULT_MODALITIES: Mapping[str, AnyModality] = {
    "swin": FrameModality(instance="swin", array="feature"),
    "hubert": StepsModality(kind="steps", instance="hubert", array="feature"),
    "roberta": TokensModality(kind="tokens", instance="roberta", array="token"),
}
"""What a config without ``modalities`` fits on."""


class DataConfig(Frozen):
    """Which annotated frames are samples."""

    drop_partial_frames: bool = False
    """Leave out frames with any -1, as the papers do; otherwise a -1 leaves out only its own AU."""


class ModelConfig(Frozen):
    """The network of USC (ABAW5) over the chosen modalities."""

    hidden: int = Field(default=64, ge=1)
    """Width of the recurrent state per direction."""
    layers: int = Field(default=2, ge=1)
    """Bidirectional GRU layers."""
    head: int = Field(default=512, ge=1)
    """Width of the head's hidden layer."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Between GRU layers and before the last layer."""
    readout: Literal["final_state", "last_output"] = "final_state"
    """``final_state``: the state of each direction after the whole sequence (the paper's text). ``last_output``: the
    output at the last step, where the backward direction has read only that step (the paper's code)."""
    missing: Literal["learned", "zeros"] = "learned"
    """What replaces the output of a modality's branch in frames without that modality."""
    modality_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Probability, per frame and modality, of being treated as missing in training; it trains the learned vector."""


class LossConfig(Frozen):
    """Weights of the two-part loss, one per AU in the order of ``extract.au.AUS``."""

    pos_weight: tuple[float, ...] = POS_WEIGHT
    soft_margin_weight: tuple[float, ...] = SOFT_MARGIN_WEIGHT

    @field_validator("pos_weight", "soft_margin_weight")
    @classmethod
    def _one_per_au(cls, weights: tuple[float, ...]) -> tuple[float, ...]:
        if len(weights) != len(AUS) or min(weights) <= 0:
            raise ValueError(f"expected {len(AUS)} positive numbers, one per AU, found {list(weights)}")
        return weights


class TrainingConfig(Frozen):
    """How the network is fitted."""

    lr: float = Field(default=1e-3, gt=0)
    """Learning rate of AdamW. The paper's 1e-5 is for end-to-end training that includes Swin, not for frozen
    features."""
    weight_decay: float = Field(default=1e-5, ge=0)
    batch: int = Field(default=256, ge=2)
    """Most frames per step; the batches of an epoch are of nearly equal size, so that none is tiny."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Gradients with a larger norm are scaled down to it."""
    max_epochs: int = Field(default=20, ge=1)
    min_epoch_steps: int = Field(default=10, ge=1)
    """An epoch makes as many passes over the frames as this many steps take: a few hundred frames are two steps, too
    few between validations. 1: an epoch is one pass."""
    patience: int = Field(default=5, ge=1)
    """Epochs without a better mean F1 on the split ``val`` before training stops. Without that split all epochs
    run."""
    seed: int = Field(default=0, ge=0, lt=2**32)


class FusionConfig(Frozen):
    """The section ``fusion:``."""

    modalities: Mapping[str, Modality | None] = DEFAULT_MODALITIES
    """By name, in the order of the head's input; ``null`` leaves one out."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()

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
