"""Face pictures enlarged: by Real-ESRGAN, or by Lanczos resampling, which is not trained."""

from collections import defaultdict
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from extract.models.ffhq.geometry import MIN_SIDE_PX
from extract.stage import Context, Output, RowsBatch, RowsStage, StageConfig
from extract.timeline import FRAMES

if TYPE_CHECKING:
    from typing import Any

    import numpy as np
    from torch import Tensor

LANCZOS = "lanczos"
PUSHED_ON = frozenset({"cuda"})
"""Device types where dense blocks run in push form (extract/models/dense_push.py)."""


class SuperresConfig(StageConfig):
    """The defaults are USC's, ABAW5: x4plus on pictures of 112 pixels, as its command line runs it."""

    weights: str = "realesrgan-x4plus"
    """Key, or path of any ESRGAN or Compact file; ``lanczos`` enlarges without a network."""
    input_px: int = Field(default=112, ge=16)
    """Longest side that the network sees; larger pictures are reduced to it first."""
    skip_above: int = Field(default=256, ge=16)
    """A picture with a side longer than this shows more than the network could add: it is only resized."""
    outscale: float = Field(default=4.0, gt=0, le=8)
    """Size of the result over that of what the network sees. Where the network's own scale is another, its rounded
    result is resized by Lanczos."""
    tile: int = Field(default=0, ge=0)
    """Side of the tiles that go through the network one by one, in pixels; 0: no tiles."""
    tile_pad: int = Field(default=10, ge=0)
    """Pixels around a tile that the network sees as well."""
    pre_pad: int = Field(default=0, ge=0)
    """Pixels mirrored on at the right and at the bottom."""

    @model_validator(mode="after")
    def _larger_ones_are_skipped(self) -> "SuperresConfig":
        if self.skip_above < self.input_px:
            raise ValueError(f"skip_above is {self.skip_above}, expected at least input_px = {self.input_px}")
        return self


class Superres(RowsStage[SuperresConfig]):
    """``crop.patch``, ``outscale`` times as large; the face's box moves along. Too small a patch is not valid."""

    name = "superres"
    version = 1
    config_type = SuperresConfig
    inputs = ("crop.patch", "crop.patch_box")
    device = "gpu"
    batch = 8
    device_batch = 32
    host_inputs = frozenset({"crop.patch_box"})
    weightless = frozenset({LANCZOS})

    @property
    def outputs(self) -> tuple[Output, ...]:
        return (
            Output("image", FRAMES, ("y", "x", "rgb"), (None, None, 3), "uint8", kept=False),
            Output("box", FRAMES, ("edge",), (4,), "float32", kept=False),
            Output("valid", FRAMES, (), (), "bool", kept=False),
        )

    def random_weights(self) -> "dict[str, np.ndarray[Any, Any]]":
        from extract.models import realesrgan

        return realesrgan.random_weights()

    def setup(self, context: Context) -> None:
        import torch

        self._upscaler = None
        if self.config.weights == LANCZOS:
            return
        from extract.models import dense_push, realesrgan
        from extract.models.levers import Levered

        if context.weights is None:
            raise ValueError("stage superres needs weights")
        self._upscaler = realesrgan.load(context.weights)
        form = "pull"
        if context.device.type in PUSHED_ON and dense_push.push(self._upscaler.net):
            form = "push"
        self._upscaler.net.to(context.device, context.precision).to(memory_format=torch.channels_last)
        config, scale = self.config, self._upscaler.scale
        self._scale = scale
        self._inference = inference = realesrgan.Inference(
            config.tile, config.tile_pad, config.pre_pad, config.outscale
        )

        def call(net: torch.nn.Module, images: "Tensor") -> "Tensor":
            return realesrgan.levels(realesrgan.Upscaler(net, scale), images, inference)

        side = config.input_px  # of faces with more pixels, once reduced, and of given crops
        usual = torch.zeros((context.batch, side, side, 3), dtype=torch.uint8, device=context.device)
        self._network = Levered(self._upscaler.net, call, realesrgan.blocks(), usual, fast=context.compile)
        self.levers = self._network.levers | {"form": form}

    def compute(self, batch: RowsBatch) -> "dict[str, Tensor | list[Tensor]]":
        """``crop.patch``: B pictures, uint8 RGB [H, W, 3] of any size; ``crop.patch_box`` [B, 4] in their pixels."""
        import torch

        patches, boxes = batch["crop.patch"], batch["crop.patch_box"]
        least = max(MIN_SIDE_PX, self.config.pre_pad + 1)  # what is mirrored on is less than the side
        alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, patch in enumerate(patches):
            alike[tuple(patch.shape)].append(i)
        images: list[Tensor] = [torch.empty(0)] * len(patches)
        together: dict[tuple[int, ...], list[tuple[list[int], Tensor]]] = defaultdict(list)
        for (height, width, _), rows in alike.items():
            same = torch.stack([patches[i] for i in rows])  # [b, H, W, 3]
            shrink = min(self.config.input_px / max(height, width, 1), 1.0)
            small = max(1, round(height * shrink)), max(1, round(width * shrink))
            if min(height, width) < least:
                _spread(images, rows, same)
            elif self._upscaler is None or max(height, width) > self.config.skip_above:
                large = [int(side * self.config.outscale) for side in small]
                _spread(images, rows, _resized(same, *large))
            else:
                # On a CPU the last bits may depend on who shares a forward: as in stores made before.
                kind = small if same.device.type == "cuda" else (height, width)
                with torch.inference_mode():
                    together[kind].append((rows, _resized(same, *small)))
        for parts in together.values():
            _spread(images, [i for rows, _ in parts for i in rows], self._enlarged([small for _, small in parts]))
        sides = [(image.shape, patch.shape) for image, patch in zip(images, patches, strict=True)]
        ratios = [[large[1] / max(own[1], 1), large[0] / max(own[0], 1)] * 2 for large, own in sides]
        valid = torch.tensor([min(patch.shape[:2]) >= least for patch in patches])
        ratio = torch.tensor(ratios).reshape(-1, 4)  # of shapes: no number comes from the device
        return {"image": images, "box": (boxes + 0.5) * ratio.to(boxes.device) - 0.5, "valid": valid}

    def _enlarged(self, parts: "list[Tensor]") -> "Tensor":
        """uint8 [b, h, w, 3] each, of one size -> all of them, ``outscale`` times as large, by the network."""
        import torch

        from extract.models import realesrgan

        with torch.inference_mode():
            images = parts[0] if len(parts) == 1 else torch.cat(parts)
            _, height, width, _ = images.shape
            return realesrgan.brought_to_outscale(self._network(images), height, width, self._scale, self._inference)


def _spread(into: "list[Tensor]", rows: list[int], images: "Tensor") -> None:
    for i, image in zip(rows, images, strict=True):
        into[i] = image


def _resized(images: "Tensor", height: int, width: int) -> "Tensor":
    """uint8 [B, H, W, 3] -> [B, height, width, 3], by Lanczos, antialiased."""
    if tuple(images.shape[1:3]) == (height, width):
        return images
    from extract.models import lanczos

    return lanczos.resize(images.permute(0, 3, 1, 2), height, width).permute(0, 2, 3, 1).contiguous()
