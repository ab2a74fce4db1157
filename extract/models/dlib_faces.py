"""dlib's frontal face detector and its 68 landmarks, shared by the stages that look for faces."""

import queue
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from extract.errors import WeightsError
from extract.weights.files import Weights

NUM_LANDMARKS = 68

Item = TypeVar("Item")
Result = TypeVar("Result")


class DlibFaces:
    """HOG detector (Dalal and Triggs 2005) and regression-tree landmarks (Kazemi and Sullivan 2014).

    Pictures are uint8 RGB [H, W, 3], C-contiguous: dlib has been seen to misread others, without a word.
    """

    def __init__(self, weights: Weights | None, num_threads: int) -> None:
        """Raises WeightsError: the file is no dlib landmark file, or gives another number of points."""
        import dlib

        if weights is None or weights.path is None:
            raise ValueError("dlib needs its landmark file")
        try:
            # One for all threads: it only reads itself. 100 MB, so not one each.
            self._predictor = dlib.shape_predictor(str(weights.path))
        except RuntimeError as error:
            raise WeightsError(f"{weights.path} is no dlib landmark file: {error}") from error
        points = self._predictor(np.zeros((8, 8, 3), np.uint8), dlib.rectangle(0, 0, 7, 7)).num_parts
        if points != NUM_LANDMARKS:
            raise WeightsError(f"{weights.path} gives {points} landmarks, expected {NUM_LANDMARKS} (iBUG numbering)")
        self._num_threads = num_threads
        self._detectors: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(num_threads):  # a detector keeps scratch memory: one per thread
            self._detectors.put(dlib.get_frontal_face_detector())

    def detect(
        self, image: NDArray[np.uint8], upsample: int, score_threshold: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Boxes [F, 4] (left, top, right, bottom of the outermost pixels) and scores [F], best first.

        Args:
            upsample: how often the picture is doubled first; faces from 80 px on are found without.
        """
        detector = self._detectors.get()
        try:
            found, scores, _ = detector.run(image, upsample, score_threshold)
        finally:
            self._detectors.put(detector)
        best = np.argsort(-np.asarray(scores), kind="stable")
        edges = [(found[i].left(), found[i].top(), found[i].right(), found[i].bottom()) for i in best]
        return np.array(edges, np.float64).reshape(-1, 4), np.asarray(scores, np.float64)[best]

    def landmarks(self, image: NDArray[np.uint8], box: NDArray[Any]) -> NDArray[np.float32]:
        """[68, 2] in the picture's pixels, of the face in ``box``, whose edges are rounded to whole pixels."""
        import dlib

        shape = self._predictor(image, dlib.rectangle(*np.rint(box).astype(int).tolist()))
        return np.array([(point.x, point.y) for point in shape.parts()], np.float32)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """``function`` of every item, in threads: dlib leaves the interpreter free while it works."""
        with ThreadPoolExecutor(self._num_threads) as pool:
            return list(pool.map(function, items))
