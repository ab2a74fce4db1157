"""dlib's frontal face detector and its 68 landmarks, shared by the stages that look for faces."""

import functools
import queue
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from extract.errors import WeightsError
from extract.models.landmark_trees import read_landmark_trees
from extract.weights.files import Weights

NUM_LANDMARKS = 68


class DlibFaces:
    """HOG detector (Dalal and Triggs 2005) and regression-tree landmarks (Kazemi and Sullivan 2014).

    Pictures are uint8 RGB [H, W, 3], C-contiguous: dlib has been seen to misread others, without a word. Several
    threads may ask at once, each for pictures of its own: the detector leaves the interpreter free while it works, and
    so do the trees for the most part.
    """

    def __init__(self, landmark_file: Path) -> None:
        """Reads the file; ``shared_faces`` gives the one that is there.

        Raises:
            WeightsError: it is no dlib landmark file, or gives another number of points.
        """
        try:
            # One for all threads: it only reads itself. 100 MB, so not one each.
            self._trees = read_landmark_trees(landmark_file)
        except ValueError as error:
            raise WeightsError(f"{landmark_file} is no dlib landmark file: {error}") from error
        points = len(self._trees.mean_shape)
        if points != NUM_LANDMARKS:
            raise WeightsError(f"{landmark_file} gives {points} landmarks, expected {NUM_LANDMARKS} (iBUG numbering)")
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        """Detectors that nobody uses at the moment."""

    def detect(
        self, image: NDArray[np.uint8], upsample: int, score_threshold: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Boxes [F, 4] (left, top, right, bottom of the outermost pixels) and scores [F], best first.

        Args:
            upsample: how often the picture is doubled first; faces from 80 px on are found without.
        """
        import dlib

        try:
            detector = self._idle.get_nowait()
        except queue.Empty:
            # It keeps scratch memory: one per thread, and as many as were ever at work together.
            detector = dlib.get_frontal_face_detector()
        try:
            found, scores, _ = detector.run(image, upsample, score_threshold)
        finally:
            self._idle.put(detector)
        best = np.argsort(-np.asarray(scores), kind="stable")
        edges = [(found[i].left(), found[i].top(), found[i].right(), found[i].bottom()) for i in best]
        return np.array(edges, np.float64).reshape(-1, 4), np.asarray(scores, np.float64)[best]

    def landmarks(self, images: Sequence[NDArray[np.uint8]], boxes: NDArray[Any]) -> NDArray[np.float32]:
        """[F, 68, 2] in the pictures' pixels, of the faces in ``boxes`` [F, 4], rounded to whole pixels.

        A picture with several faces is given for each of them.
        """
        return self._trees(images, np.rint(boxes).astype(np.int64))


_READING = threading.Lock()


def shared_faces(weights: Weights | None) -> DlibFaces:
    """The one DlibFaces of this process for the landmark file ``weights``: stages and runs share it.

    Raises:
        WeightsError: as DlibFaces.
    """
    if weights is None or weights.path is None:
        raise ValueError("dlib needs its landmark file")
    with _READING:  # who comes second waits instead of reading the 100 MB again
        return _read(weights.path, weights.sha256)


@functools.lru_cache(maxsize=1)
def _read(path: Path, sha256: str) -> DlibFaces:
    """Another content under the same name is another file."""
    del sha256
    return DlibFaces(path)
