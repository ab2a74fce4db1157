"""Face pictures aligned as those of FFHQ."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from extract.stage import Output, RowsBatch, RowsStage, StageConfig
from extract.timeline import FRAMES

if TYPE_CHECKING:
    from torch import Tensor


class AlignConfig(StageConfig):
    output_size: int = Field(default=256, ge=16, le=1024)
    """Side of the result in pixels; FFHQ's own is 1024."""
    transform_size: int = Field(default=1024, ge=16, le=4096)
    """Side of the picture that is sampled and then reduced to the result; FFHQ's own is 4096."""
    method: Literal["torch", "pillow"] = "torch"
    """``pillow``: the reference to the last bit, on the CPU; ``torch``: within one level of it, on the device."""

    @model_validator(mode="after")
    def _is_reduced(self) -> "AlignConfig":
        if self.transform_size < self.output_size:
            message = f"transform_size is {self.transform_size}, expected at least output_size = {self.output_size}"
            raise ValueError(message)
        return self


class Align(RowsStage[AlignConfig]):
    """FFHQ's square around the face, upright: mirrored, blurred and faded where it leaves the picture.

    A row whose landmarks give no square, or one beyond the picture, is not valid.
    """

    name = "align"
    version = 1
    config_type = AlignConfig
    inputs = ("superres.image", "landmarks.point")
    device = "gpu"
    host_inputs = frozenset({"landmarks.point"})

    @property
    def outputs(self) -> tuple[Output, ...]:
        side = self.config.output_size
        return (
            Output("image", FRAMES, ("y", "x", "rgb"), (side, side, 3), "uint8", kept=False),
            Output("valid", FRAMES, (), (), "bool", kept=False),
        )

    def compute(self, batch: RowsBatch) -> "dict[str, Tensor | list[Tensor]]":
        """``superres.image``: B pictures of any sizes, uint8 RGB [H, W, 3]; ``landmarks.point`` [B, 68, 2] in their
        pixels, on the CPU or where the pictures are (they are fetched, once for all).
        """
        import torch

        from extract.models.ffhq import align

        config, pictures = self.config, list(batch["superres.image"])
        preparations = align.plan(batch["landmarks.point"], pictures, config.output_size)
        images = align.align(pictures, preparations, config.output_size, config.transform_size, config.method)
        return {"image": images, "valid": torch.from_numpy(preparations.valid)}
