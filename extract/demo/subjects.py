"""Who is seen: shapes of face, tones of skin, backgrounds; and how a clip was recorded."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from extract.demo.mesh import Mesh
from extract.demo.portrait import AXIS_X, AXIS_Y, PUPIL_DISTANCE_PX, Floats
from extract.demo.units import DISPLACEMENTS

STRENGTH = 0.5
"""Of the differences between people; at 1 the mesh begins to fold."""
TONES = (0.0, 0.35, -0.12, 0.6, 0.15, -0.2, 0.45, 0.8)
TONE_RGB = np.array([0.30, 0.42, 0.52])
VOICES = ("slt", "rms", "awb")

JAW = tuple(str(i) for i in range(1, 16))
BROWS = tuple(str(i) for i in range(17, 27))
EYES = (("36", "37", "38", "39", "40", "41"), ("42", "43", "44", "45", "46", "47"))
NOSE = tuple(str(i) for i in range(27, 36))
MOUTH = (*(str(i) for i in range(48, 68)), "ulL", "ulR", "llL", "llR")
LOWER = (*MOUTH, "chM", "chL", "chR", *(str(i) for i in range(4, 13)))


@dataclass(frozen=True)
class Subject:
    """One person of the demo."""

    name: str
    neutral: Floats
    """[V, 2]: displacements of the mesh from the texture to this face at rest."""
    gains: Floats
    """[12]: how strongly each action unit shows."""
    texture: NDArray[np.uint8]
    closed: NDArray[np.uint8]
    mirrored: bool
    voice: str


@dataclass(frozen=True)
class Recording:
    """What a clip's camera did."""

    turn_deg: float
    drift_deg: float
    """Turn gained from the first to the last frame."""
    shift: tuple[float, float]
    scale: float
    resolution: float
    """Share of the frame's 256 pixels that the camera had."""
    blur_px: float
    noise: float
    """Grey levels."""


def draw_subject(mesh: Mesh, textures: tuple[NDArray[np.uint8], ...], head: Floats, number: int, seed: int) -> Subject:
    """A person; the same for the same numbers."""
    random = np.random.default_rng([seed, 1, number])
    moves = _shape(mesh, random)
    # A face's differences come on top of the relaxed portrait.
    neutral = mesh.at_rest + mesh.spread(moves)
    # Tones go round, so that no split has one tone only; the seed says who begins.
    tone = TONES[(number + seed) % len(TONES)]
    background = random.uniform(0.75, 1.05, 3)
    across = random.uniform(-0.22, 0.22) * np.linspace(-1, 1, head.shape[1])
    gain = head[..., None] * (1 - tone * TONE_RGB) + (1 - head[..., None]) * background  # [H, W, 3]
    lit = [np.clip(texture * gain * (1 + across)[None, :, None], 0, 255).astype(np.uint8) for texture in textures]
    gains = np.clip(random.normal(1, 0.12, len(DISPLACEMENTS)), 0.7, 1.3)
    return Subject(f"S{number:02d}", neutral, gains, lit[0], lit[1], number % 2 == 1, VOICES[number % len(VOICES)])


def draw_recording(random: np.random.Generator) -> Recording:
    """A camera for one clip."""
    return Recording(
        turn_deg=float(random.normal(0, 5)),
        drift_deg=float(random.uniform(0, 4) * random.choice((-1, 1))),
        shift=(float(random.normal(0, 1.3)), float(random.normal(0, 1.3))),
        scale=float(random.uniform(0.96, 1.04)),
        resolution=float(random.choice((1.0, 0.65, 0.44), p=(0.4, 0.35, 0.25))),
        blur_px=float(random.uniform(0.4, 1.0)),
        noise=float(random.uniform(1, 5)),
    )


def _shape(mesh: Mesh, random: np.random.Generator) -> Mapping[str, Floats]:
    """Named point -> displacement in pixels of the portrait; deviations are shares of a length, or pupil distances."""

    def amount(sigma: float) -> float:
        return float(np.clip(random.normal(0, sigma), -2 * sigma, 2 * sigma)) * STRENGTH

    places = mesh.places + mesh.at_rest
    at = {name: places[mesh.index[name]] for name in mesh.names}
    middle = at["27"]
    moved = {name: place.copy() for name, place in at.items()}

    def stretch(names: tuple[str, ...], centre: Floats, across: float, down: float) -> None:
        for name in names:
            offset = moved[name] - centre
            moved[name] = moved[name] + across * (offset @ AXIS_X) * AXIS_X + down * (offset @ AXIS_Y) * AXIS_Y

    def shift(names: tuple[str, ...], across_iod: float, down_iod: float) -> None:
        for name in names:
            moved[name] = moved[name] + PUPIL_DISTANCE_PX * (across_iod * AXIS_X + down_iod * AXIS_Y)

    everything = tuple(mesh.names)
    stretch(everything, middle, amount(0.05), 0)
    stretch(JAW[2:-2], middle, amount(0.07), 0)
    stretch(LOWER, at["33"], 0, amount(0.06))
    shift(("7", "8", "9", "chM"), 0, amount(0.06))
    size, spacing = amount(0.10), amount(0.03)
    for eye, side in zip(EYES, (-1, 1), strict=True):
        stretch(eye, np.mean([moved[name] for name in eye], axis=0), size, size)
        shift(eye, side * spacing, 0)
    height, tilt = amount(0.035), amount(0.03)
    for side, brow in ((-1, BROWS[:5]), (1, BROWS[5:])):
        shift(brow, 0, height)
        outer = np.linspace(1, 0, 5) if side < 0 else np.linspace(0, 1, 5)
        for name, share in zip(brow, outer, strict=True):
            shift((name,), 0, tilt * float(share))
    stretch(NOSE, at["27"], 0, amount(0.04))
    stretch(NOSE[4:], at["33"], amount(0.10), 0)
    stretch(MOUTH, np.mean([at["48"], at["54"]], axis=0), amount(0.07), 0)
    shift(MOUTH, 0, amount(0.025))
    thickness = amount(0.18)
    for lip, inner in ((("49", "50", "51", "52", "53"), "62"), (("55", "56", "57", "58", "59"), "66")):
        stretch(lip, moved[inner], 0, thickness)
    corner = amount(0.018)
    shift(("48", "54", "60", "64"), 0, corner)
    return {name: moved[name] - at[name] for name in mesh.names}
