"""Features of pictures by any encoder that timm builds."""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from extract.models import pictures, timm
from extract.stage import VALID, Context, Output, RowsBatch, RowsStage, StageConfig
from extract.timeline import FRAMES

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

PerChannel = tuple[float, float, float]


class TimmConfig(StageConfig):
    """All that decides a value is written here, and so in the recipe: nothing is looked up in timm's own defaults for
    pretrained models, which change from release to release."""

    architecture: str
    """As ``timm.list_models()`` has it, without the tag of its weights: ``vit_small_patch14_dinov2``."""
    weights: str
    image_px: int = Field(ge=1)
    """The picture is brought to this side. A ViT made for another size gets its position embedding resampled."""
    interpolation: pictures.Interpolation
    """How it is brought there; antialiased."""
    mean: PerChannel
    std: PerChannel
    """Of red, green, blue in [0, 1]: the network sees (x - mean) / std."""
    pool: timm.Pool
    """``token``: the class token. ``avg``: the mean over patches or grid. Both as ``forward_features`` leaves them.
    ``head``: what the architecture's own classifier would be fed."""
    dtype: Literal["float16", "float32"] = "float16"

    @model_validator(mode="after")
    def _std_divides(self) -> "TimmConfig":
        if min(self.std) <= 0:
            raise ValueError(f"std is {list(self.std)}, expected numbers above 0")
        return self


class Timm(RowsStage[TimmConfig]):
    """One vector per picture. Wire another instance's pictures to it with ``inputs: {crop: align}``.

    Pictures that are not square are squeezed; those of several sizes (``frames``) are resized one by one.
    """

    name = "timm"
    version = 1
    config_type = TimmConfig
    inputs = ("crop.image",)
    device = "gpu"
    device_batch = 64

    @property
    def outputs(self) -> tuple[Output, ...]:
        width = timm.width(self.config.architecture, self.config.image_px, self.config.pool)
        return (Output("feature", FRAMES, ("feature",), (width,), self.config.dtype), VALID)

    def random_weights(self) -> "dict[str, np.ndarray[Any, Any]]":
        return timm.random_weights(self.config.architecture, self.config.image_px)

    def setup(self, context: Context) -> None:
        import torch

        from extract.models import compiled
        from extract.models.levers import Levered

        if context.weights is None:
            raise ValueError("stage timm needs weights")
        self._precision = context.precision
        config = self.config
        model = timm.load(config.architecture, config.image_px, context.weights, context.device, context.precision)
        self._format = torch.preserve_format
        if context.device.type == "cuda":  # the CPU's bits stay those of its own order
            self._format = torch.channels_last
            torch.nn.utils.convert_conv2d_weight_memory_format(model, self._format)
        side = config.image_px
        usual = torch.zeros((context.batch, 3, side, side), dtype=context.precision, device=context.device)
        usual = usual.to(memory_format=self._format)

        def call(net: Any, planes: "Tensor") -> "Tensor":  # noqa: ANN401 - one of timm's networks
            return timm.pooled(net, net.forward_features(planes), config.pool)

        self._network = Levered(model, call, compiled.most_repeated(model), usual, fast=context.compile)
        self.levers = self._network.levers

    def compute(self, batch: RowsBatch) -> "dict[str, Tensor | list[Tensor]]":
        """``crop.image``: uint8 RGB [B, H, W, 3], or a list of [H, W, 3]."""
        import torch

        config = self.config
        with torch.inference_mode():
            planes = pictures.resized(batch["crop.image"], config.image_px, config.interpolation)
            ready = pictures.normalised(planes, config.mean, config.std)
            feature = self._network(ready.to(self._precision, memory_format=self._format))
        # float32; the runner narrows it to ``dtype`` and looks for overflow.
        return {"feature": feature.float()}
