"""A triangle mesh over the portrait, and pictures of it with its points moved.

93 named points, a grid of 9 pixels over the face, 16 points on the ellipse around it that stay, and the border. Moves
of the named points spread to the grid by thin-plate splines (Duchon 1977). Every triangle has one affine map.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator
from scipy.spatial import Delaunay

from extract.demo.portrait import (
    AXIS_X,
    AXIS_Y,
    LEFT,
    MAGNIFIED,
    PUPIL_DISTANCE_PX,
    SIDE,
    TOP,
    Floats,
    Portrait,
    on_texture,
)
from extract.demo.units import DISPLACEMENTS, INNER_LIP, LOWER_INNER, MIDLINE, MIRROR, STROKES, UPPER_INNER

CENTRE, RADII = np.array([225.0, 118.0]), np.array([88.0, 100.0])
GRID_PX, CLEARANCE_PX = 9, 4.5
FRAME_PX = 256
SUPERSAMPLED = 2
"""Drawn this many times larger and reduced by area: else closed lips show stairs."""
PICTURE_SCALE = FRAME_PX * SUPERSAMPLED / SIDE
"""Pixels drawn per pixel of the portrait."""
SHADE_RGB = np.array([0.75, 1.0, 1.1], dtype=np.float32)


@dataclass(frozen=True)
class Pose:
    """Where the head is in one frame."""

    turn_deg: float
    scale: float
    shift: tuple[float, float]
    """Pixels of the frame, right and down."""


class Mesh:
    """The portrait as a mesh; places are [V, 2] in pixels of the portrait."""

    def __init__(self, portrait: Portrait) -> None:
        self.names = list(portrait.points)
        self.index = {name: number for number, name in enumerate(self.names)}
        named = np.array([portrait.points[name] for name in self.names])
        grid = _grid(named, np.array([portrait.points[name] for name in (*UPPER_INNER, *LOWER_INNER[-2:0:-1])]))
        angles = np.arange(16) * 2 * np.pi / 16
        ring = CENTRE + RADII * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        along = np.linspace(0, SIDE, 7)
        border = [(x, y) for x in along for y in along if x in {0, SIDE} or y in {0, SIDE}]
        corner = np.array([LEFT - 0.5, TOP - 0.5])
        self.places: Floats = np.concatenate([named, grid, ring, np.array(border) + corner])  # [V, 2]
        self.triangles: NDArray[np.int64] = Delaunay(self.places).simplices.astype(np.int64)  # [F, 3]
        self._moving = len(named) + len(grid)
        self._centres = np.array([i for i, name in enumerate(self.names) if name not in INNER_LIP])
        self._pinned = np.arange(self._moving, self._moving + len(ring))
        self._sources = on_texture(self.places)[self.triangles]  # [F, 3, 2]
        self.at_rest = self.spread({name: portrait.at_rest[name] - portrait.points[name] for name in self.names})
        """[V, 2]: displacements that relax the face and close the mouth."""
        self.units = np.stack([self.spread(unit_displacements(unit)) for unit in DISPLACEMENTS])  # [12, V, 2]
        self.strokes = np.stack([_strokes(unit, portrait) for unit in DISPLACEMENTS])  # [12, H, W]

    def spread(self, moves: Mapping[str, Floats]) -> Floats:
        """Displacements of all vertices [V, 2] from those of named points; a point not named stays."""
        displaced = np.zeros_like(self.places)
        for name, move in moves.items():
            displaced[self.index[name]] = move
        fixed = np.concatenate([self._centres, self._pinned])
        spline = RBFInterpolator(self.places[fixed], displaced[fixed], kernel="thin_plate_spline")
        grid = slice(len(self.names), self._moving)
        displaced[grid] = spline(self.places[grid])
        return displaced

    def named(self, places: Floats, *names: str) -> Floats:
        """Rows of ``places`` [V, 2] by name."""
        return places[[self.index[name] for name in names]]

    def held(self, places: Floats) -> Floats:
        """``places`` with lips and lids that neither cross nor touch: a gap and a thickness always remain."""
        places = places.copy()
        lid = 0.035 * PUPIL_DISTANCE_PX
        _part(places, self._indices(("37", "38", "43", "44")), self._indices(("41", "40", "47", "46")), lid)
        lip = 0.02 * PUPIL_DISTANCE_PX
        _part(places, self._indices(("50", "51", "52")), self._indices(("61", "62", "63")), lip)
        _part(places, self._indices(("67", "66", "65")), self._indices(("58", "57", "56")), lip)
        _part(places, self._indices(UPPER_INNER[1:-1]), self._indices(LOWER_INNER[1:-1]), 0.35)  # last: it must hold
        return places

    def _indices(self, names: tuple[str, ...]) -> NDArray[np.int64]:
        return np.array([self.index[name] for name in names])

    def flipped(self, places: Floats) -> float:
        """Share of triangles that are turned over."""
        a, b, c = places[self.triangles].transpose(1, 0, 2)
        x, y, z = self.places[self.triangles].transpose(1, 0, 2)
        return float(np.mean(_cross(b - a, c - a) * _cross(y - x, z - x) <= 0))

    def picture(self, texture: NDArray[np.uint8], places: Floats, pose: Pose) -> NDArray[np.uint8]:
        """RGB [512, 512, 3] of ``texture`` with its vertices at ``places``, the head posed."""
        side = FRAME_PX * SUPERSAMPLED
        rigid = _posed(pose)  # [2, 3]
        targets = places @ rigid[:, :2].T + rigid[:, 2]  # [V, 2] in pixels drawn
        corners = targets[self.triangles]  # [F, 3, 2]
        labels = np.full((side, side), len(self.triangles), np.int32)
        for number, corner in enumerate(np.rint(corners * 16).astype(np.int32)):
            cv2.fillConvexPoly(labels, corner, number, lineType=cv2.LINE_8, shift=4)
        # Beyond the portrait: the pose alone, edges mirrored by remap.
        maps = np.concatenate([_affine(corners, self._sources), _outside(rigid)]).astype(np.float32)  # [F + 1, 2, 3]
        x = np.arange(side, dtype=np.float32)
        chosen = maps[labels]  # [H, W, 2, 3]
        at = chosen[..., 0] * x[None, :, None] + chosen[..., 1] * x[:, None, None] + chosen[..., 2]
        drawn = cv2.remap(texture, at[..., 0], at[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        return np.asarray(drawn, np.uint8)

    def opening_px(self, places: Floats) -> float:
        """Gap between the inner lips in the middle, in pixels of the portrait."""
        upper, lower = self.named(places, "62", "66")
        return float((lower - upper) @ AXIS_Y)

    def shaded(self, texture: NDArray[np.uint8], activations: Floats) -> NDArray[np.uint8]:
        """``texture`` with the lines of the active units [12] deepened."""
        active = np.flatnonzero(activations > 0)
        if not active.size:
            return texture
        darker = np.tensordot(activations[active].astype(np.float32), self.strokes[active], axes=1)  # [H, W]
        return np.clip(texture * (1 + darker[..., None] * SHADE_RGB), 0, 255).astype(np.uint8)


def unit_displacements(unit: int) -> dict[str, Floats]:
    """Named point -> displacement in pixels of the portrait at activation 1, both halves of the face."""
    moves = {}
    for name, (out, down) in DISPLACEMENTS[unit].items():
        vertical = down * AXIS_Y
        moves[name] = PUPIL_DISTANCE_PX * (vertical - (0 if name in MIDLINE else out) * AXIS_X)
        if name in MIRROR:
            moves[MIRROR[name]] = PUPIL_DISTANCE_PX * (vertical + out * AXIS_X)
    return moves


def _grid(named: Floats, lips: Floats) -> Floats:
    """Points every GRID_PX inside the ellipse, clear of the named ones and outside the mouth."""
    x, y = np.meshgrid(np.arange(LEFT, LEFT + SIDE, GRID_PX), np.arange(TOP, TOP + SIDE, GRID_PX))
    points = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float64)
    inside = (((points - CENTRE) / RADII) ** 2).sum(axis=1) < 0.94
    clear = np.linalg.norm(points[:, None] - named[None], axis=2).min(axis=1) >= CLEARANCE_PX
    outline = lips.astype(np.float32)
    in_mouth = np.array([cv2.pointPolygonTest(outline, (float(x), float(y)), False) >= 0 for x, y in points])
    chosen: Floats = points[inside & clear & ~in_mouth]
    return chosen


def _strokes(unit: int, portrait: Portrait) -> NDArray[np.float32]:
    """How much darker each texel is at activation 1 (negative), [H, W]; AU6 also lights the cheeks."""
    height, width = portrait.texture.shape[:2]
    total = np.zeros((height, width), np.float32)
    for weight, lines in STROKES.get(unit, ()):
        drawn = np.zeros((height, width), np.float32)
        for line in lines:
            places = np.rint(on_texture(np.array(line)) * 16).astype(np.int32)
            cv2.polylines(drawn, [places], False, 1.0, 2 * MAGNIFIED, cv2.LINE_AA, 4)
        total += weight * cv2.GaussianBlur(drawn, (0, 0), 1.0 * MAGNIFIED)
    if unit == 6:
        for name in ("ckL", "ckR"):
            x, y = on_texture(portrait.points[name])
            rows, columns = np.mgrid[:height, :width]
            distance2 = (columns - x) ** 2 + (rows - y) ** 2
            total += 0.07 * np.exp(-distance2 / (2 * (7 * MAGNIFIED) ** 2)).astype(np.float32)
    return total


def _part(places: Floats, upper: NDArray[np.int64], lower: NDArray[np.int64], least: float) -> None:
    """Push pairs apart along the face until ``lower`` lies at least so many pixels below ``upper``."""
    gap = (places[lower] - places[upper]) @ AXIS_Y
    push = np.maximum(least - gap, 0)[:, None] / 2 * AXIS_Y
    places[upper] -= push
    places[lower] += push


def _posed(pose: Pose) -> Floats:
    """[2, 3]: pixels of the portrait to pixels drawn, integers being centres."""
    angle, scale = np.deg2rad(pose.turn_deg), pose.scale * PICTURE_SCALE
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = np.array([LEFT, TOP]) + SIDE / 2 - 0.5
    target = np.full(2, FRAME_PX * SUPERSAMPLED / 2 - 0.5) + SUPERSAMPLED * np.array(pose.shift)
    return np.concatenate([turn, (target - turn @ middle)[:, None]], axis=1)


def _outside(rigid: Floats) -> Floats:
    """[1, 2, 3]: pixels drawn back to pixels of the texture, by the pose alone."""
    back = np.linalg.inv(rigid[:, :2])
    shift = on_texture(-back @ rigid[:, 2])
    return np.concatenate([MAGNIFIED * back, shift[:, None]], axis=1)[None]


def _affine(corners: Floats, sources: Floats) -> Floats:
    """[F, 2, 3]: for each triangle, pixels drawn to pixels of the texture. A flat triangle is drawn nowhere."""
    ones = np.concatenate([corners, np.ones((*corners.shape[:2], 1))], axis=2)  # [F, 3, 3]
    flat = np.abs(np.linalg.det(ones)) < 1e-9
    ones[flat] = np.eye(3)
    return np.linalg.solve(ones, sources).transpose(0, 2, 1)


def _cross(one: Floats, other: Floats) -> Floats:
    return one[:, 0] * other[:, 1] - one[:, 1] * other[:, 0]
