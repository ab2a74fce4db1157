"""GH-Feat codes of aligned face pictures."""

from typing import TYPE_CHECKING, Literal

from extract.models.ghfeat.levels import num_values
from extract.stage import VALID, Context, Output, RowsBatch, RowsStage, StageConfig
from extract.timeline import FRAMES

if TYPE_CHECKING:
    from typing import Any

    import numpy as np
    from torch import Tensor

SIZES = {"resnet50-256": (256, 1024), "resnet18-256": (256, 1024), "small": (64, 64)}
"""Architecture -> side of its picture in pixels, places of one of its 14 levels."""


class GhfeatConfig(StageConfig):
    weights: str = "ghfeat-ffhq-256"
    """Key, or path of the authors' ``.pkl`` or of what ``extract weights convert`` made of it."""
    architecture: Literal["resnet50-256", "resnet18-256", "small"] = "resnet50-256"
    resize: Literal["bilinear", "area"] = "bilinear"
    """How a picture of another size is brought to the network's: ``bilinear`` without antialiasing is the authors'
    extraction script, ``area`` what their training pictures went through. 1024 -> 256 differs, 256 is left alone."""
    dtype: Literal["float16", "float32"] = "float16"


class Ghfeat(RowsStage[GhfeatConfig]):
    """The distinct values of all 14 levels; ``extract.models.ghfeat.levels`` says where each lies."""

    name = "ghfeat"
    version = 1
    config_type = GhfeatConfig
    inputs = ("align.image",)
    device = "gpu"
    device_batch = 128

    @property
    def outputs(self) -> tuple[Output, ...]:
        width = num_values(SIZES[self.config.architecture][1])  # 9,984
        return (Output("code", FRAMES, ("feature",), (width,), self.config.dtype), VALID)

    def random_weights(self) -> "dict[str, np.ndarray[Any, Any]]":
        from extract.models.ghfeat import network

        return network.random_weights(self.config.architecture)

    def setup(self, context: Context) -> None:
        import torch

        from extract.models.ghfeat import loading, network
        from extract.models.levers import Levered

        if context.weights is None:
            raise ValueError("stage ghfeat needs weights")
        self._precision = context.precision
        model = loading.load(self.config.architecture, context.weights, context.device)
        model.to(context.device, context.precision).to(memory_format=torch.channels_last)
        side = SIZES[self.config.architecture][0]
        usual = torch.zeros((context.batch, 3, side, side), dtype=context.precision, device=context.device)
        usual = usual.contiguous(memory_format=torch.channels_last)
        self._network = Levered(model, lambda net, planes: net(planes), network.BLOCKS, usual, fast=context.compile)
        self.levers = self._network.levers

    def compute(self, batch: RowsBatch) -> "dict[str, Tensor | list[Tensor]]":
        """``align.image``: uint8 RGB [B, H, W, 3], square."""
        import torch

        with torch.inference_mode():
            ready = prepare(batch["align.image"], SIZES[self.config.architecture][0], self.config.resize)
            ready = ready.to(self._precision).contiguous(memory_format=torch.channels_last)
            return {"code": self._network(ready).float()}  # the runner narrows it to ``dtype``, looking for overflow


def prepare(images: "Tensor", side: int, resize: str) -> "Tensor":
    """uint8 [B, H, W, 3] -> float32 [B, 3, side, side] in [-1, 1]; resized levels are whole ones, as in a file."""
    import torch
    from torch.nn import functional

    planes = images.permute(0, 3, 1, 2).float()
    if images.shape[1:3] != torch.Size([side, side]):
        if resize == "area":
            planes = functional.interpolate(planes, size=(side, side), mode="area")
        else:
            planes = functional.interpolate(planes, size=(side, side), mode="bilinear", align_corners=False)
        planes = (planes + 0.5).floor()
    return planes / 255 * 2 - 1
