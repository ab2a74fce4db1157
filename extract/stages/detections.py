"""Faces of every frame: boxes, scores and 68 landmarks by dlib."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from extract.models.dlib_faces import NUM_LANDMARKS, shared_faces
from extract.stage import VALID, Context, Output, RowsBatch, RowsStage, StageConfig
from extract.timeline import FRAMES

if TYPE_CHECKING:
    from torch import Tensor


class DetectionsConfig(StageConfig):
    weights: str = "dlib-68-landmarks"
    """The landmark model; the detector is part of dlib."""
    detect_px: int = Field(default=640, ge=80)
    """Frames wider than this are reduced to it for the detector, whose cost grows with the area. It finds faces from
    80 px on in the picture that it sees."""
    upsample: int = Field(default=0, ge=0, le=2)
    """How often the picture is doubled first, to find faces of 40 or 20 px. From 1 on, false boxes score near 0.1."""
    score_threshold: float = 0.2
    """Least score of a face. dlib's own line is 0; clear faces score above 1, chance patterns up to 0.1."""
    max_faces: int = Field(default=8, ge=1, le=127)
    """Faces kept per frame, best score first."""


class Detections(RowsStage[DetectionsConfig]):
    """HOG frontal face detector (Dalal and Triggs 2005) and regression-tree landmarks (Kazemi and Sullivan 2014).

    Coordinates are native pixels, x right, y down, an integer being the centre of a pixel. ``box`` is dlib's: left,
    top, right, bottom of the outermost pixels that belong to it. It may reach over the edge of the frame.
    """

    name = "detections"
    version = 1
    config_type = DetectionsConfig
    inputs = ("frames.image",)
    empty_reason = "no_face"
    batch = 16
    row_by_row = True

    @property
    def outputs(self) -> tuple[Output, ...]:
        most = self.config.max_faces
        sizes = (most, NUM_LANDMARKS, 2)
        return (
            Output("box", FRAMES, ("face", "edge"), (most, 4), "float32", compress=True),
            Output("score", FRAMES, ("face",), (most,), "float32", compress=True),
            Output("landmarks", FRAMES, ("face", "point", "xy"), sizes, "float32", compress=True),
            Output("count", FRAMES, (), (), "int8"),
            VALID,
        )

    def setup(self, context: Context) -> None:
        self._faces = shared_faces(context.weights)

    def compute(self, batch: RowsBatch) -> "dict[str, Tensor | list[Tensor]]":
        """``frames.image``: B tensors, uint8 RGB [H, W, 3]."""
        import torch

        images = [np.ascontiguousarray(image.numpy()) for image in batch["frames.image"]]
        most = self.config.max_faces
        box, score = np.zeros((len(images), most, 4), np.float32), np.zeros((len(images), most), np.float32)
        landmarks = np.zeros((len(images), most, NUM_LANDMARKS, 2), np.float32)
        count = np.zeros(len(images), np.int8)
        for row, image in enumerate(images):
            boxes, scores = self._find(image)
            count[row] = len(boxes)
            box[row, : len(boxes)], score[row, : len(boxes)] = boxes, scores
        found = np.arange(most) < count[:, None]  # [B, M]
        landmarks[found] = self._faces.landmarks([images[row] for row in np.nonzero(found)[0]], box[found])
        arrays = {"box": box, "score": score, "landmarks": landmarks, "count": count, "valid": count > 0}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _find(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Boxes [m, 4] in the picture's own pixels and scores [m] of its best faces."""
        seen = reduced(image, self.config.detect_px)
        boxes, scores = self._faces.detect(seen, self.config.upsample, self.config.score_threshold)
        ratio = np.array(image.shape[1::-1]) / seen.shape[1::-1]  # x, y
        # Pixel centres scale about the corner -0.5.
        boxes = (boxes + 0.5) * np.tile(ratio, 2) - 0.5
        return boxes[: self.config.max_faces], scores[: self.config.max_faces]


def reduced(image: NDArray[np.uint8], most_px: int) -> NDArray[np.uint8]:
    """``image`` [H, W, 3] at most ``most_px`` wide, its shape kept: bilinear, antialiased for HOG's sake."""
    height, width = image.shape[:2]
    if width <= most_px:
        return image
    import torch
    from torch.nn import functional

    size = (max(1, round(height * most_px / width)), most_px)
    small = np.empty((*size, 3), np.uint8)
    for channel in range(3):  # one at a time, of the same values: a frame of 8K as float32 takes 400 MB
        plane = torch.from_numpy(image[:, :, channel])[None, None].float()
        plane = functional.interpolate(plane, size=size, mode="bilinear", antialias=True, align_corners=False)
        small[:, :, channel] = plane[0, 0].round().to(torch.uint8).numpy()
    return small
