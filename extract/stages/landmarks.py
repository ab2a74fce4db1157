"""The 68 landmarks of a super-resolved face, by dlib."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from extract.models.dlib_faces import NUM_LANDMARKS, shared_faces
from extract.stage import VALID, Context, Output, RowsBatch, RowsStage, StageConfig
from extract.stages.faces import overlap
from extract.timeline import FRAMES

if TYPE_CHECKING:
    from torch import Tensor


class LandmarksConfig(StageConfig):
    weights: str = "dlib-68-landmarks"
    """The landmark model; the detector is part of dlib."""
    upsample: int = Field(default=0, ge=0, le=1)
    """How often the picture is doubled before the detector sees it. FFHQ's scripts say 1, which takes about four
    times as long."""
    score_threshold: float = 0.0
    """Least score of the detector's box; 0 is dlib's own."""
    min_iou: float = Field(default=0.3, gt=0, le=1)
    """Least overlap (intersection over union) of the detector's box with the known one, to be the same face."""


class Landmarks(RowsStage[LandmarksConfig]):
    """Detector and landmarks on the enlarged picture, as FFHQ's alignment wants them; in its pixels.

    Of several boxes the best one that overlaps the known box counts. Where the detector finds none, the landmarks are
    those within the known box: the face was seen in the frame.
    """

    name = "landmarks"
    version = 1
    config_type = LandmarksConfig
    inputs = ("superres.image", "superres.box")
    batch = 16

    @property
    def outputs(self) -> tuple[Output, ...]:
        return (Output("point", FRAMES, ("point", "xy"), (NUM_LANDMARKS, 2), "float32"), VALID)

    def setup(self, context: Context) -> None:
        self._faces = shared_faces(context.weights)

    def compute(self, batch: RowsBatch) -> "dict[str, Tensor | list[Tensor]]":
        """``superres.image``: B pictures, uint8 RGB [H, W, 3]; ``superres.box`` [B, 4] in their pixels."""
        import torch

        images = [np.ascontiguousarray(image.numpy()) for image in batch["superres.image"]]
        known = [box.numpy() for box in batch["superres.box"]]
        boxes = [self._box(image, box) for image, box in zip(images, known, strict=True)]
        return {"point": torch.from_numpy(self._faces.landmarks(images, np.stack(boxes)))}

    def _box(self, image: NDArray[np.uint8], known: NDArray[np.float32]) -> NDArray[Any]:
        found, _ = self._faces.detect(image, self.config.upsample, self.config.score_threshold)
        same = found[overlap(known[None].astype(np.float64), found)[0] >= self.config.min_iou]
        return same[0] if len(same) else known
