"""The portrait: its points, a texture with an open mouth and no smile lines, and where the points lie at rest.

Coordinates are pixels of the 512-pixel picture, y down. The sitter smiles with teeth: some points are set by hand where
the landmark model is drawn to the teeth, the folds of the smile are filled in, and the mouth is brought to rest.
"""

import functools
from dataclasses import dataclass

import cv2
import dlib
import numpy as np
import skimage.data
from numpy.typing import NDArray

from extract.demo.units import LOWER_INNER, UPPER_INNER
from extract.stages.detections import Detections, DetectionsConfig
from extract.weights import resolving

Floats = NDArray[np.float64]
Points = dict[str, Floats]

PUPIL_DISTANCE_PX = 43.2
AXIS_X, AXIS_Y = np.array([0.999, 0.052]), np.array([-0.052, 0.999])
"""Out to the image's right, and down, along the tilted head."""
LEFT, TOP, SIDE = 102, 10, 240
"""The part of the picture that is used."""
MAGNIFIED = 2
"""Texture pixels per pixel of the picture."""

BY_HAND = {
    **{"48": (200.8, 139.1), "49": (209.2, 138.5), "53": (236.6, 138.5), "54": (245.8, 139.4), "60": (202.9, 139.9)},
    **{"64": (243.6, 140.2), "65": (228.9, 148.7), "66": (222.7, 149.4), "67": (216.7, 148.2)},
    **{"ulL": (208.8, 141.2), "ulR": (236.6, 141.2), "llL": (207.9, 145.0), "llR": (236.0, 146.3)},
    **{"ckL": (198, 121), "ckR": (253, 123), "ckkL": (190, 133), "ckkR": (259, 135), "nlL": (206, 127)},
    **{"nlR": (243, 129), "ueL": (203.5, 110), "ueR": (247, 112), "oeL": (189, 103), "oeR": (262, 106)},
    **{"chM": (222.5, 163.5), "chL": (210, 159.5), "chR": (235, 160.5), "gl": (225.5, 92.5), "fhL": (196, 77)},
    **{"fhR": (252, 80), "fmL": (210, 78), "fmR": (238, 79), "fhM": (222, 78), "hcL": (194, 147), "hcR": (254, 149)},
}
AT_REST = {
    **{"48": (204.7, 146.2), "54": (241.3, 147.2), "49": (210.6, 142.9), "50": (218.2, 141.5), "51": (223, 142.4)},
    **{"52": (228.2, 141.7), "53": (235.7, 143.4), "60": (206.2, 146.2), "64": (239.8, 147.1), "61": (217.8, 146)},
    **{"62": (222.9, 146.4), "63": (228.4, 146.2), "65": (228.4, 146.6), "66": (222.9, 146.8), "67": (217.8, 146.4)},
    **{"59": (211.3, 150.2), "58": (216.9, 152.3), "57": (222.8, 153.1), "56": (229, 152.6), "55": (235, 150.9)},
    **{"ulL": (211.3, 146), "ulR": (235.3, 146.6), "llL": (211.3, 146.4), "llR": (235.3, 147)},
}
RELAXED = {
    **dict.fromkeys(("ckL", "ckR", "nlL", "nlR"), (0.0, 1.5)),
    **dict.fromkeys(("chL", "chR", "chM", "6", "7", "8", "9", "10"), (0.0, -1.5)),
    **{"31": (0.8, 0.0), "35": (-0.8, 0.0)},
}
"""How far the rest of the face is from the smile, in pixels."""
FOLDS = (
    ((209, 122.5), (205, 126.5), (200.5, 130), (197.3, 133.3), (196, 137.5)),
    ((237, 123), (240.5, 127), (245, 131.5), (249, 136), (250.2, 141)),
)


@dataclass(frozen=True)
class Portrait:
    """What every clip is drawn from."""

    texture: NDArray[np.uint8]
    """RGB [480, 480, 3]."""
    closed: NDArray[np.uint8]
    """The same without teeth: squeezed to the seam of a closed mouth, they would be a line of white dashes."""
    head: NDArray[np.float32]
    """[480, 480] in [0, 1]: face, hair and neck, softly bounded."""
    points: Points
    """Where the 93 points lie on the texture, in pixels of the picture: smiling, mouth open."""
    at_rest: Points
    """The same with a relaxed face and the mouth closed."""


@functools.cache
def load_portrait() -> Portrait:
    """Measure and prepare the portrait (seconds; once per process)."""
    picture = skimage.data.astronaut()  # type: ignore[no-untyped-call]
    points = {str(i): place for i, place in enumerate(_landmarks(picture))}
    points |= {name: np.array(place, dtype=np.float64) for name, place in BY_HAND.items()}
    at_rest = {name: place + RELAXED.get(name, (0.0, 0.0)) for name, place in points.items()}
    at_rest |= {name: np.array(place, dtype=np.float64) for name, place in AT_REST.items()}
    cut = picture[TOP : TOP + SIDE, LEFT : LEFT + SIDE]
    texture = cv2.resize(cut, None, fx=MAGNIFIED, fy=MAGNIFIED, interpolation=cv2.INTER_CUBIC)
    texture = _without_folds(texture)
    opened, closed = (_open_mouth(texture, points, teeth=teeth) for teeth in (True, False))
    return Portrait(opened, closed, _head(texture, points), points, at_rest)


def on_texture(places: NDArray[np.generic] | Floats) -> Floats:
    """Pixels of the picture [..., 2] to pixels of the texture, integers being centres."""
    return (np.asarray(places, dtype=np.float64) - (LEFT, TOP) + 0.5) * MAGNIFIED - 0.5


def _landmarks(picture: NDArray[np.uint8]) -> Floats:
    """68 points [68, 2]: the median over enlargements and boxes a little off, steadier than one look."""
    stage = Detections(DetectionsConfig())
    predictor = dlib.shape_predictor(str(resolving.resolve(stage.config.weights, stage).path))
    detector = dlib.get_frontal_face_detector()
    (box,) = detector(picture, 0)
    found = []
    for times in (2, 3, 4):
        large = cv2.resize(picture, None, fx=times, fy=times, interpolation=cv2.INTER_CUBIC)
        for dx in (-2, 0, 2):
            for dy in (-2, 0, 2):
                edges = (box.left() + dx, box.top() + dy, box.right() + dx, box.bottom() + dy)
                shape = predictor(large, dlib.rectangle(*(times * edge for edge in edges)))
                places = np.array([(part.x, part.y) for part in shape.parts()], dtype=np.float64)
                found.append((places + 0.5) / times - 0.5)
    return np.median(found, axis=0)


def _without_folds(texture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    mask = np.zeros(texture.shape[:2], np.uint8)
    for line in FOLDS:
        cv2.polylines(mask, [np.rint(on_texture(np.array(line))).astype(np.int32)], False, 255, 4 * MAGNIFIED)
    filled = cv2.inpaint(texture, mask, 4.0 * MAGNIFIED, cv2.INPAINT_TELEA)
    share = 0.85 * cv2.GaussianBlur(mask.astype(np.float32) / 255, (0, 0), 2)[..., None]
    return np.asarray(np.rint(share * filled + (1 - share) * texture), np.uint8)


def _open_mouth(texture: NDArray[np.uint8], points: Points, *, teeth: bool) -> NDArray[np.uint8]:
    """Paint the inside once: dark, teeth at the top, tongue at the bottom. A closed mouth squeezes it to a seam."""
    upper = on_texture(np.array([points[name] for name in UPPER_INNER]))
    lower = on_texture(np.array([points[name] for name in LOWER_INNER]))
    y, x = np.mgrid[: texture.shape[0], : texture.shape[1]].astype(np.float64)
    top, bottom = (np.interp(x, line[:, 0], line[:, 1]) for line in (upper, lower))
    v = np.clip((y - top) / np.maximum(bottom - top, 1.0), 0, 1)[..., None]
    along = np.clip((x - upper[0, 0]) / (upper[-1, 0] - upper[0, 0]), 0, 1)[..., None]
    inside = np.array([46.0, 20, 20]) * (1 - 0.3 * v) + np.array([60.0, 22, 26]) * np.clip((v - 0.6) / 0.4, 0, 1)
    white = float(teeth) * np.clip((0.34 - v) / 0.1, 0, 1) * np.clip(np.minimum(along, 1 - along) / 0.22, 0, 1)
    inside = inside * (1 - white) + np.array([214.0, 200, 188]) * white
    mask = np.zeros(texture.shape[:2], np.float32)
    outline = np.concatenate([upper, lower[-2:0:-1]])
    cv2.fillPoly(mask, [np.rint(outline * 16).astype(np.int32)], 1.0, shift=4)
    share = cv2.GaussianBlur(mask, (0, 0), 0.8)[..., None]
    return np.asarray(np.rint(inside * share + texture * (1 - share)), np.uint8)


def _head(texture: NDArray[np.uint8], points: Points) -> NDArray[np.float32]:
    """The head by grabCut: an ellipse would leave a halo of another tone around the head."""
    marks = np.full(texture.shape[:2], cv2.GC_PR_BGD, np.uint8)
    hull = [points[str(i)] for i in range(17)] + [points[str(i)] for i in range(26, 16, -1)]
    outline = np.rint(on_texture(np.array(hull))).astype(np.int32)
    wide = cv2.fillPoly(np.zeros_like(marks), [outline], 1)
    marks[cv2.dilate(wide, np.ones((31, 31), np.uint8)) > 0] = cv2.GC_PR_FGD
    marks[cv2.erode(wide, np.ones((9, 9), np.uint8)) > 0] = cv2.GC_FGD
    marks[:20], marks[:, :60], marks[:, -60:] = cv2.GC_BGD, cv2.GC_BGD, cv2.GC_BGD
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(texture, marks, (0, 0, 1, 1), *models, 5, cv2.GC_INIT_WITH_MASK)
    head = np.isin(marks, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)
    return np.asarray(cv2.GaussianBlur(head, (0, 0), 3), np.float32)
