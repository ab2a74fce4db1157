"""Swin Transformer features of aligned face pictures."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from extract.models import pictures, swin
from extract.stage import VALID, Context, Output, RowsBatch, RowsStage, StageConfig
from extract.timeline import FRAMES

if TYPE_CHECKING:
    from typing import Any

    import numpy as np
    from torch import Tensor

HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class SwinConfig(StageConfig):
    """The defaults are those of USC, ABAW5: tiny, 256, 224, half."""

    weights: str = "swin-tiny"
    architecture: Literal["tiny", "small"] = "tiny"
    resize: int = Field(default=256, ge=1)
    """The square crop is brought to this side, in pixels, antialiased bilinear."""
    crop: int = Field(default=224, ge=1)
    """Side of the middle that the network sees: its own size (tiny 224, small 64)."""
    normalise: Literal["half", "imagenet", "per_image"] = "half"
    """Of values in [0, 1]: mean = deviation = 0.5 (the paper's code), ImageNet's per colour (timm's data config), or
    each picture to mean 0 and deviation 1."""
    output: Literal["pooled", "tokens"] = "pooled"
    """The mean over the tokens, ``feature`` [768]; or all of them, ``token`` [49, 768], row by row."""
    dtype: Literal["float16", "float32"] = "float16"

    @model_validator(mode="after")
    def _sizes_fit(self) -> "SwinConfig":
        side = swin.ARCHITECTURES[self.architecture].image_px
        if self.crop != side:
            raise ValueError(f"crop is {self.crop}, but architecture {self.architecture} sees {side} pixels")
        if self.resize < self.crop:
            raise ValueError(f"resize is {self.resize}, expected at least crop = {self.crop}")
        return self


class Swin(RowsStage[SwinConfig]):
    """Last tokens after the final norm; ``pooled`` is what timm's classifier would be fed."""

    name = "swin"
    version = 1
    config_type = SwinConfig
    inputs = ("crop.image",)
    device = "gpu"
    device_batch = 64

    @property
    def outputs(self) -> tuple[Output, ...]:
        sizes = swin.ARCHITECTURES[self.config.architecture]
        width = sizes.num_features
        if self.config.output == "tokens":
            values = Output("token", FRAMES, ("token", "feature"), (sizes.num_tokens, width), self.config.dtype)
        else:
            values = Output("feature", FRAMES, ("feature",), (width,), self.config.dtype)
        return (values, VALID)

    def random_weights(self) -> "dict[str, np.ndarray[Any, Any]]":
        return swin.random_weights(self.config.architecture)

    def setup(self, context: Context) -> None:
        import torch

        from extract.models.levers import Levered

        if context.weights is None:
            raise ValueError("stage swin needs weights")
        self._precision = context.precision
        model = swin.load(self.config.architecture, context.weights, context.device, context.precision)
        side = self.config.crop
        usual = torch.zeros((context.batch, 3, side, side), dtype=context.precision, device=context.device)

        def call(net: "Any", planes: "Tensor") -> "Tensor":  # noqa: ANN401 - timm's network
            grid: Tensor = net.forward_features(planes)
            return grid

        self._network = Levered(model, call, swin.blocks(), usual, fast=context.compile)
        self.levers = self._network.levers

    def compute(self, batch: RowsBatch) -> "dict[str, Tensor | list[Tensor]]":
        """``crop.image``: uint8 RGB [B, H, W, 3], square."""
        import torch

        with torch.inference_mode():
            ready = prepare(batch["crop.image"], self.config).to(self._precision)
            grid = self._network(ready).float()  # [B, 7, 7, 768]
        # float32; the runner narrows it to ``dtype`` and looks for overflow.
        return {"token": grid.flatten(1, 2)} if self.config.output == "tokens" else {"feature": grid.mean(dim=(1, 2))}


def prepare(images: "Tensor", config: SwinConfig) -> "Tensor":
    """uint8 [B, H, W, 3] -> float32 [B, 3, crop, crop]: resized, the middle cut out, normalised."""
    planes = pictures.resized(images, config.resize, "bilinear")
    edge = (config.resize - config.crop) // 2
    planes = planes[:, :, edge : edge + config.crop, edge : edge + config.crop]
    if config.normalise == "half":
        return pictures.normalised(planes, HALF, HALF)
    if config.normalise == "imagenet":
        return pictures.normalised(planes, IMAGENET_MEAN, IMAGENET_STD)
    # A picture of one colour has no deviation; one grey level spread over all values is the least that means anything.
    std = planes.std(dim=(1, 2, 3), correction=0, keepdim=True).clamp(min=1 / 255)
    return (planes - planes.mean(dim=(1, 2, 3), keepdim=True)) / std
