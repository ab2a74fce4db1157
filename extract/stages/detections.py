"""Faces of every frame: boxes, scores and 68 landmarks by dlib."""

import queue
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from extract.errors import WeightsError
from extract.stage import VALID, Context, Output, RowsBatch, RowsStage, StageConfig
from extract.timeline import FRAMES

if TYPE_CHECKING:
    from torch import Tensor

NUM_LANDMARKS = 68


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


@dataclass(frozen=True)
class _Faces:
    """What one frame holds, padded with zeros to M faces."""

    box: NDArray[np.float32]  # [M, 4]
    score: NDArray[np.float32]  # [M]
    landmarks: NDArray[np.float32]  # [M, 68, 2]
    count: int


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
        import dlib

        if context.weights is None or context.weights.path is None:
            raise ValueError("stage detections needs its landmark file")
        path = context.weights.path
        try:
            # One for all threads: it only reads itself. 100 MB, so not one each.
            self._predictor = dlib.shape_predictor(str(path))
        except RuntimeError as error:
            raise WeightsError(f"{path} is no dlib landmark file: {error}") from error
        points = self._predictor(np.zeros((8, 8, 3), np.uint8), dlib.rectangle(0, 0, 7, 7)).num_parts
        if points != NUM_LANDMARKS:
            raise WeightsError(f"{path} gives {points} landmarks, expected {NUM_LANDMARKS} (iBUG numbering)")
        self._num_threads = context.cpu_threads
        self._detectors: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(context.cpu_threads):  # a detector keeps scratch memory: one per thread
            self._detectors.put(dlib.get_frontal_face_detector())

    def compute(self, batch: RowsBatch) -> "dict[str, Tensor | list[Tensor]]":
        """``frames.image``: B tensors, uint8 RGB [H, W, 3]."""
        import torch

        # dlib has been seen to misread arrays that are not C-contiguous, without a word.
        images = [np.ascontiguousarray(image.numpy()) for image in batch["frames.image"]]
        with ThreadPoolExecutor(self._num_threads) as pool:
            rows = list(pool.map(self._find, images))
        count = torch.tensor([row.count for row in rows], dtype=torch.int8)
        return {
            "box": torch.from_numpy(np.stack([row.box for row in rows])),
            "score": torch.from_numpy(np.stack([row.score for row in rows])),
            "landmarks": torch.from_numpy(np.stack([row.landmarks for row in rows])),
            "count": count,
            "valid": count > 0,
        }

    def _find(self, image: NDArray[np.uint8]) -> _Faces:
        detector = self._detectors.get()
        try:
            seen = reduced(image, self.config.detect_px)
            rectangles, scores, _ = detector.run(seen, self.config.upsample, self.config.score_threshold)
        finally:
            self._detectors.put(detector)
        best = np.argsort(-np.asarray(scores), kind="stable")[: self.config.max_faces]
        ratio = np.array(image.shape[1::-1]) / seen.shape[1::-1]  # x, y
        most = self.config.max_faces
        box, score = np.zeros((most, 4), np.float32), np.zeros(most, np.float32)
        landmarks = np.zeros((most, NUM_LANDMARKS, 2), np.float32)
        for face, i in enumerate(best):
            edges = rectangles[i].left(), rectangles[i].top(), rectangles[i].right(), rectangles[i].bottom()
            box[face] = (np.array(edges) + 0.5) * np.tile(ratio, 2) - 0.5  # pixel centres scale about the corner -0.5
            score[face] = scores[i]
            landmarks[face] = self._landmarks(image, box[face])
        return _Faces(box, score, landmarks, len(best))

    def _landmarks(self, image: NDArray[np.uint8], box: NDArray[np.float32]) -> NDArray[np.float32]:
        import dlib

        shape = self._predictor(image, dlib.rectangle(*np.rint(box).astype(int).tolist()))
        return np.array([(point.x, point.y) for point in shape.parts()], np.float32)


def reduced(image: NDArray[np.uint8], most_px: int) -> NDArray[np.uint8]:
    """``image`` [H, W, 3] at most ``most_px`` wide, its shape kept: bilinear, antialiased for HOG's sake."""
    height, width = image.shape[:2]
    if width <= most_px:
        return image
    import torch
    from torch.nn import functional

    size = (max(1, round(height * most_px / width)), most_px)
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    small = functional.interpolate(planes, size=size, mode="bilinear", antialias=True, align_corners=False)
    return np.ascontiguousarray(small[0].round().to(torch.uint8).permute(1, 2, 0).numpy())
