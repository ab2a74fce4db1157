"""Settings of ``extract adapt --stage hubert``: the section ``extract: adapt: hubert:`` of the config."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Split = Literal["train", "val", "test"]


class _Frozen(BaseModel):
    """extract.config knows this module, so its own base class cannot be had here."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TargetsConfig(_Frozen):
    """Whose features are clustered, and how finely. The clusters are what the network learns to name."""

    clusters: int = Field(default=500, ge=2, le=32_767)
    features: Literal["auto", "layer", "mfcc"] = "auto"
    """``layer``: of a network; ``mfcc``: mel cepstra, as in HuBERT's own first iteration. ``auto``: cepstra where the
    network is untrained, whose own features say nothing of what is spoken, else a layer."""
    layer: int | None = Field(default=None, ge=1)
    """Raw output of this transformer layer; None: 9 of base, 20 of large, 30 of xlarge, 1 of small."""
    weights: str | None = None
    """Network whose features are clustered: a key or a path. None: the one that is adapted, as it is before that."""
    architecture: Literal["xlarge", "large", "base", "small"] | None = None
    """Of ``weights``; None: that of the network that is adapted."""
    normalise: bool | None = None
    """Whether ``weights`` wants recordings of mean 0 and variance 1; None: False for base, else True."""
    quantiser: str | None = None
    """File ``quantiser.npz`` whose clusters are taken instead of fitting new ones: its array ``centre`` [clusters, D].
    """
    frames: int = Field(default=500_000, ge=1)
    """Steps that the clusters are fitted to, drawn evenly from the training clips: float32, 2.6 GB of x-large."""
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _cepstra_have_no_network(self) -> "TargetsConfig":
        given = [name for name in ("layer", "weights", "architecture", "normalise") if getattr(self, name) is not None]
        if self.features == "mfcc" and given:
            raise ValueError(f"features is mfcc, which no network computes: leave {' and '.join(given)} out")
        return self


class HubertAdaptConfig(_Frozen):
    """How HuBERT is trained further. Fields are part of what a folder was begun with, but for the last three."""

    targets: TargetsConfig = TargetsConfig()
    splits: tuple[Split, ...] | None = None
    """Whose clips are trained on. None: train; with ``--transductive`` all."""

    steps: int = Field(default=5000, ge=1)
    """Updates in all."""
    head_steps: int = Field(default=500, ge=0)
    """The first of them move the head alone: a new one would send large wrong gradients into the network."""
    warmup_steps: int = Field(default=500, ge=1)
    """The learning rate rises linearly over so many steps from where a part begins to learn, and falls linearly to 0
    at the end."""
    lr: float = Field(default=2e-5, gt=0)
    head_lr: float = Field(default=5e-4, gt=0)
    """Of the head; pre-training of base used as much."""
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = Field(default=1e-6, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient, which is a mean over the steps that count."""

    batch_s: float = Field(default=320.0, gt=0)
    """Seconds of sound in an update, on all devices together."""
    device_s: float = Field(default=80.0, gt=0)
    """Seconds that a device holds at once. An update is made of as many such parts as ``batch_s`` needs; they are
    dealt out to the devices."""
    crop_s: float = Field(default=15.6, gt=0)
    """Longest piece of a recording."""
    least_s: float = Field(default=2.0, ge=0.5)
    """Shortest one; shorter recordings are left out."""

    mask_share: float = Field(default=0.8, gt=0, le=1)
    """Spans x their length / steps. They overlap: 0.8 hides 57 %."""
    mask_steps: int = Field(default=10, ge=1)
    """Length of a span (0.2 s)."""
    unmasked: float = Field(default=0.0, ge=0)
    """What the cross-entropy of steps that are not hidden counts; 1 for the hidden ones."""
    penalty: float = Field(default=10.0, ge=0)
    """What the mean square of the convolutions' output counts."""
    feature_grad: float | None = Field(default=None, ge=0, le=1)
    """Factor of the gradient into the convolutions; None: as in pre-training, 0.1 of base, else 1."""
    head: Literal["new", "kept"] = "new"
    """``kept``: that of the weights (``head.safetensors`` of an adapted folder, or fairseq's checkpoint), which is
    sound only with the clusters that it was made for (``targets.quantiser``)."""
    head_size: int | None = Field(default=None, ge=1)
    """P, the size of a cluster's vector in a new head; None: 1024 of xlarge, 768 of large, 256 of base, 32 of small."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the forward pass; weights and gradients stay float32. ``auto``: bfloat16 on a GPU."""
    seed: int = Field(default=0, ge=0)
    eval_steps: int = Field(default=250, ge=1)
    """Steps between two looks at ``val``, which are also lines of the log."""
    recompute: bool = False
    """Gradient checkpointing: layers are computed again in the backward pass, a third more time for a fraction of the
    memory."""
    checkpoint_minutes: float = Field(default=10.0, ge=0)
    """The state of training is written so often between two looks."""
    ahead: int = Field(default=4, ge=1)
    """Updates whose sound is read and masked ahead."""

    @model_validator(mode="after")
    def _fits(self) -> "HubertAdaptConfig":
        if self.least_s > self.crop_s:
            raise ValueError(f"least_s {self.least_s:g} is more than crop_s {self.crop_s:g}")
        if self.crop_s > self.device_s:
            raise ValueError(
                f"crop_s {self.crop_s:g} is more than device_s {self.device_s:g}, which holds no crop then"
            )
        if self.head_steps >= self.steps:
            raise ValueError(f"head_steps {self.head_steps} leave nothing of steps {self.steps} for the network")
        room, spans = self.least_s * 50 - 1 - self.mask_steps, self.mask_share * self.least_s * 50 / self.mask_steps + 1
        if room < max(spans, 2):
            raise ValueError(
                f"least_s {self.least_s:g}: too short for spans of mask_steps {self.mask_steps} at mask_share "
                f"{self.mask_share:g}"
            )
        return self


SPEED_ONLY = ("recompute", "checkpoint_minutes", "ahead")
"""Fields that change no value but by rounding: a folder may be continued with others."""

TARGET_LAYERS = {"xlarge": 30, "large": 20, "base": 9, "small": 1}
"""The layers that fairseq's own fixtures cluster."""
HEAD_SIZES = {"xlarge": 1024, "large": 768, "base": 256, "small": 32}
"""Of pre-training; ``small`` is ours."""
FEATURE_GRADS = {"base": 0.1}
"""Where pre-training damped the gradient into the convolutions."""
