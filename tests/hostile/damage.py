"""Damage that any media file may have: flipped bits, missing parts, parts of two files."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

VIDEOS = (
    "one_face.mp4",
    "grid_bbaf2n.mpg",
    "grid_brbk7n.mpg",
    "grid_lbax4n.mpg",
    "grid_swiz3n.mpg",
    "no_face.mp4",
    "two_video_streams.mp4",
    "av1.mkv",
    "hevc.mp4",
)
SOUNDS = ("jfk.flac", "librispeech_6313-76958-0021.flac")
SOURCES = VIDEOS + SOUNDS
"""Below ``../shared/media``."""

EXTREMES = (0, 1, 2**31 - 1, 2**31, 2**32 - 1)
HEAD = 4096
"""Bytes from the beginning in which most containers say what they hold."""


@dataclass(frozen=True)
class Made:
    """Bytes, the suffix that they claim, and what was done to which file."""

    data: bytes
    suffix: str
    description: str


Maker = Callable[[random.Random, Path], Made]


@cache
def bytes_of(path: Path) -> bytes:
    return path.read_bytes()


def source(rng: random.Random, media: Path, among: Sequence[str] = SOURCES) -> tuple[str, str, bytearray]:
    """Name, suffix and bytes of one source."""
    name = rng.choice(among)
    return name, Path(name).suffix, bytearray(bytes_of(media / name))


def flips(rng: random.Random, media: Path) -> Made:
    """Bits flipped all over the file, one in a million bytes up to one in fifty."""
    name, suffix, data = source(rng, media)
    number = max(1, round(len(data) * 10 ** rng.uniform(-6, -1.7)))
    for _ in range(number):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return Made(bytes(data), suffix, f"{name}: {number} bits flipped")


def head_flips(rng: random.Random, media: Path) -> Made:
    """Bytes replaced where the header stands: at the beginning, or in an mp4's index wherever it lies."""
    name, suffix, data = source(rng, media)
    first, stop = 0, min(HEAD, len(data))
    if suffix == ".mp4" and (index := data.find(b"moov")) > 0 and rng.random() < 0.8:
        first, stop = index, min(len(data), index + HEAD)
    number = rng.randint(1, 40)
    for _ in range(number):
        data[rng.randrange(first, stop)] = rng.randrange(256)
    return Made(bytes(data), suffix, f"{name}: {number} bytes of [{first}, {stop}) replaced")


def runs(rng: random.Random, media: Path) -> Made:
    """A stretch of zeros, of ones or of noise, as a bad sector leaves it."""
    name, suffix, data = source(rng, media)
    length = min(rng.choice((512, 4096, 65_536)), len(data) // 2)
    first = rng.randrange(len(data) - length)
    fill = rng.choice((b"\0" * length, b"\xff" * length, rng.randbytes(length)))
    data[first : first + length] = fill
    return Made(bytes(data), suffix, f"{name}: {length} bytes from {first} are {fill[:2].hex()}...")


def truncations(rng: random.Random, media: Path) -> Made:
    """The end is missing; or the beginning, or both."""
    name, suffix, data = source(rng, media)
    first, stop = 0, rng.randrange(len(data))
    how = rng.random()
    if how < 0.15:
        stop = rng.randrange(min(HEAD, len(data)))
    elif how < 0.3:
        first, stop = stop, len(data)
    return Made(bytes(data[first:stop]), suffix, f"{name}: only bytes [{first}, {stop}) of {len(data)}")


def splices(rng: random.Random, media: Path) -> Made:
    """Parts of two files, or of one in another order, twice, or with a hole."""
    name, suffix, data = source(rng, media)
    other, _, second = source(rng, media)
    at, to = sorted(rng.randrange(len(data)) for _ in range(2))
    how = rng.randrange(5)
    if how == 0:
        share = rng.random()
        made = data[: int(len(data) * share)] + second[int(len(second) * share) :]
        description = f"{name} up to {share:.3f} of it, then {other}"
    elif how == 1:
        piece = second[: rng.randrange(min(len(second), 100_000))]
        made, description = data[:at] + piece + data[at:], f"{name} with {len(piece)} bytes of {other} put in at {at}"
    elif how == 2:
        made, description = data[:at] + data[to:], f"{name} without [{at}, {to})"
    elif how == 3:
        made, description = data[:to] + data[at:], f"{name} with [{at}, {to}) twice"
    else:
        made, description = data + second, f"{name} with {other} behind it"
    return Made(bytes(made), suffix, description)
