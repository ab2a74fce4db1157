"""The one face that a clip is about: a track through its detections."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from extract.models.dlib_faces import NUM_LANDMARKS
from extract.stage import VALID, ClipResult, ClipStage, Output, StageConfig
from extract.timeline import FRAMES

if TYPE_CHECKING:
    from torch import Tensor

CHOICES = ("largest", "left", "right", "none")


class FacesConfig(StageConfig):
    min_iou: float = Field(default=0.3, gt=0, le=1)
    """Least overlap (intersection over union) of a box with a track's last one, to be the same face."""
    max_gap: int = Field(default=30, ge=0)
    """Frames that a face may be missing and still be found again anywhere within one box side of its last place.
    After a longer gap it must overlap that place by ``min_iou``."""
    min_share: float = Field(default=0.2, ge=0, le=1)
    """``left`` and ``right`` choose among tracks with at least this share of the greatest summed area: the people
    of the clip, not passers-by."""


class Faces(ClipStage[FacesConfig]):
    """One track per clip, chosen by the manifest's ``face``.

    ``largest``: the track with the greatest box area summed over the clip, so that it never flips between people who
    take turns in leaning forward. ``left``, ``right``: the person furthest to that side of the image, on average.
    ``none``: nobody. Place is all the evidence: two people shown in turn at one place are one track.
    """

    name = "faces"
    version = 1
    config_type = FacesConfig
    inputs = ("detections.box", "detections.score", "detections.landmarks", "detections.count")
    parts = ("choice.face",)

    @property
    def outputs(self) -> tuple[Output, ...]:
        return (
            Output("box", FRAMES, ("edge",), (4,), "float32"),
            Output("score", FRAMES, (), (), "float32"),
            Output("landmarks", FRAMES, ("point", "xy"), (NUM_LANDMARKS, 2), "float32"),
            VALID,
        )

    def compute(self, inputs: Mapping[str, Any]) -> ClipResult:
        """``detections.*``: [T, M, ...] as that stage gives them; ``choice.face``: one of CHOICES."""
        choice = inputs["choice.face"]
        if choice not in CHOICES:
            raise ValueError(f"choice.face is {choice!r}, expected one of {', '.join(CHOICES)}")
        box = inputs["detections.box"].numpy()  # [T, M, 4]
        track = link(box, inputs["detections.count"].numpy(), self.config)  # [T, M]
        chosen = None if choice == "none" else choose(box, track, choice, self.config.min_share)
        mine = np.zeros(track.shape, bool) if chosen is None else track == chosen
        arrays = {name: _rows(inputs[f"detections.{name}"], mine) for name in ("box", "score", "landmarks")}
        valid: NDArray[np.bool_] = np.any(mine, axis=1)
        seen = np.any(track >= 0, axis=1)
        notes = {"tracks": int(track.max(initial=-1)) + 1, "rows_of_other_faces_only": int((seen & ~valid).sum())}
        empty = None
        if chosen is None:
            empty = "no_face_chosen" if choice == "none" else "no_face"
        return ClipResult(arrays | {"valid": _tensor(valid)}, notes, empty)


def link(box: NDArray[Any], count: NDArray[Any], config: FacesConfig) -> NDArray[np.int64]:
    """Track number of every detection, [T, M], -1 where there is none; tracks are numbered as they begin.

    Frame by frame each detection joins the track whose last box it overlaps most; failing that, the nearest one that
    is at most one box side away. Best pairs first; tracks seen within ``max_gap`` frames before older ones, so that a
    face left behind long ago never takes over one that is being followed.
    """
    track = np.full(box.shape[:2], -1, np.int64)
    last = np.zeros((0, 4))  # [K, 4] last box of each track
    last_seen = np.zeros(0, np.int64)  # [K] frame of it
    for t in np.flatnonzero(count):
        found = box[t, : count[t]].astype(np.float64)  # [m, 4]
        recent = t - last_seen - 1 <= config.max_gap  # [K]
        iou, distance = overlap(last, found), _distance(last, found)  # [K, m]
        overlapping = iou >= config.min_iou
        affinity = np.where(overlapping, iou, np.where(distance <= 1, -distance, -np.inf))
        affinity = np.where(recent[:, None], 4 + affinity, np.where(overlapping, iou, -np.inf))  # recent ones first
        mine = _pair(affinity)  # [m]
        begins = mine < 0
        mine[begins] = len(last) + np.arange(begins.sum())
        last = np.concatenate([last, found[begins]])
        last_seen = np.concatenate([last_seen, np.full(begins.sum(), t)])
        last[mine], last_seen[mine] = found, t
        track[t, : count[t]] = mine
    return track


def choose(box: NDArray[Any], track: NDArray[np.int64], choice: str, min_share: float) -> int | None:
    """The track that ``choice`` (``largest``, ``left``, ``right``) means; ``None`` if there is none."""
    found = track >= 0
    if not found.any():
        return None
    boxes, ids = box[found].astype(np.float64), track[found]
    area = np.bincount(ids, weights=_area(boxes))  # [K] summed over the clip
    if choice == "largest":
        return int(area.argmax())
    centre_x = np.bincount(ids, weights=boxes[:, [0, 2]].mean(axis=1)) / np.bincount(ids)
    people = np.flatnonzero(area >= min_share * area.max())
    side = centre_x[people].argmin() if choice == "left" else centre_x[people].argmax()
    return int(people[side])


def _pair(affinity: NDArray[np.float64]) -> NDArray[np.int64]:
    """For every column its row, best pairs first, no row twice; -1 where only -inf is left."""
    row_of = np.full(affinity.shape[1], -1, np.int64)
    left = affinity.copy()
    for _ in range(min(left.shape)):
        row, column = np.unravel_index(left.argmax(), left.shape)
        if left[row, column] == -np.inf:
            break
        row_of[column] = row
        left[row], left[:, column] = -np.inf, -np.inf
    return row_of


def _area(box: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pixels of boxes [..., 4] whose edges are the outermost pixels."""
    width, height = box[..., 2] - box[..., 0] + 1, box[..., 3] - box[..., 1] + 1
    return np.asarray(width * height)


def overlap(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of every pair, [K, m]."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = np.clip(high - low + 1, 0, None).prod(axis=-1)
    return np.asarray(common / (_area(a)[:, None] + _area(b)[None] - common))


def _distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance of the centres of every pair in sides of the greater box, [K, m]."""
    between = (a[:, None, :2] + a[:, None, 2:] - b[None, :, :2] - b[None, :, 2:]) / 2
    side = np.sqrt(np.maximum(_area(a)[:, None], _area(b)[None]))
    return np.asarray(np.hypot(between[..., 0], between[..., 1]) / side)


def _rows(values: "Tensor", mine: NDArray[np.bool_]) -> "Tensor":
    """The chosen face of every frame out of [T, M, ...]; zeros where it is absent. At most one per frame is mine."""
    rows = np.zeros((mine.shape[0], *values.shape[2:]), np.float32)
    rows[mine.any(axis=1)] = values.numpy()[mine]
    return _tensor(rows)


def _tensor(values: NDArray[Any]) -> "Tensor":
    import torch

    return torch.from_numpy(values)
