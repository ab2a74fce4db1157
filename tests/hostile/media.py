"""300 damaged media files, made of real ones: the same number gives the same bytes on every machine.

Nothing is stored but this code. Each number has a kind of damage and draws its details from a generator of its own, so
that a file can be made alone.
"""

import os
import random
import struct
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.hostile.containers import boxes, flac_headers, matroska_headers, mp4_fields, mp4_sizes, mpeg_headers
from tests.hostile.damage import SOURCES, Made, Maker, bytes_of, flips, head_flips, runs, splices, truncations

__all__ = ["COUNT", "SOURCES", "SPECIAL", "Hostile", "boxes", "kind_of", "make"]


@dataclass(frozen=True)
class Hostile:
    """One file of the corpus."""

    number: int
    kind: str
    description: str
    """What was done to which file."""
    path: Path

    @property
    def clip(self) -> str:
        """Id of its clip in a manifest."""
        return f"{self.number:03d}-{self.kind}"

    @property
    def key(self) -> str:
        """Where a manifest names it: a sound file is a clip's sound, whatever is in it."""
        return "audio" if self.path.suffix == ".flac" else "video"


# ---- what is no such file at all -----------------------------------------------------------------------------------

# FFmpeg reads some texts as playlists: of other files, of other machines.
TEXTS = {
    "concat": "ffconcat version 1.0\nfile '/etc/hostname'\nfile '/dev/zero'\n",
    "concat of itself": "ffconcat version 1.0\nfile '{self}'\nfile '{self}'\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/hostname\n#EXTINF:9,\nhttp://127.0.0.1:9/x.ts\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
    "<BaseURL>file:///etc/hostname</BaseURL></AdaptationSet></Period></MPD>",
    "subtitles": "1\n00:00:00,000 --> 99:59:59,999\nwords\n",
    "yuv4mpeg": "YUV4MPEG2 W99999 H99999 F25:1 Ip A1:1 C420jpeg\nFRAME\n",
    "metadata": ";FFMETADATA1\n[CHAPTER]\nTIMEBASE=1/1\nSTART=0\nEND=9223372036854775807\n",
}


def _wav(rate: int, size: int, channels: int = 1) -> bytes:
    head = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, channels, rate, rate * 2 % 2**32, 2, 16)
    return b"RIFF" + size.to_bytes(4, "little") + head + b"data" + size.to_bytes(4, "little") + bytes(3200)


def _gif(width: int, height: int) -> bytes:
    picture = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\x00"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + picture * 3 + b";"


OTHERS = ("empty", "zeros", "noise", "file", "file", "wav", "wav", "gif", "gif", "stub", *TEXTS)


def other_type(how: str, rng: random.Random, media: Path) -> Made:
    """Something else under a video's or sound's name: nothing, zeros, noise, texts, pictures, arrays, archives."""
    suffix = rng.choice((".mp4", ".mpg", ".mkv", ".flac", ".avi"))
    description = how
    if how == "empty":
        data = b""
    elif how == "zeros":
        data = bytes(rng.choice((1, 7, 4096, 2**20)))
    elif how == "noise":
        data = rng.randbytes(rng.choice((1, 100, 100_000)))
    elif how == "file":
        name = rng.choice(("one_face.jpg", "hubert_base_L9.npy", "SOURCES.md", *SOURCES))
        data, description = bytes_of(media / name), name
    elif how == "wav":
        rate, size, channels = rng.choice((
            (0, 3200, 1),
            (2**32 - 1, 2**32 - 1, 1),
            (1, 3200, 1),
            (16_000, 3200, 65_535),
        ))
        data = _wav(rate, size, channels)
        description = f"a wav of {rate} Hz, {channels} channels, {size} bytes declared"
    elif how == "gif":
        width, height = rng.choice(((65_535, 65_535), (20_000, 20_000), (0, 0), (1, 65_535)))
        data, description = _gif(width, height), f"a gif of {width} x {height}"
    elif how == "stub":
        name = rng.choice(SOURCES)
        data, description = bytes_of(media / name)[: rng.choice((4, 8, 12, 32))], f"the first bytes of {name}"
    else:
        data = TEXTS[how].encode()
    return Made(data, suffix, f"{description} as {suffix}")


# ---- the corpus ----------------------------------------------------------------------------------------------------

KINDS: tuple[tuple[Maker, int], ...] = (
    (flips, 58),
    (head_flips, 30),
    (runs, 20),
    (truncations, 40),
    (splices, 35),
    (mp4_fields, 45),
    (mp4_sizes, 15),
    (mpeg_headers, 15),
    (flac_headers, 10),
    (matroska_headers, 10),
)
"""How many of each kind, in the order of their numbers."""

SPECIAL = ("fifo", "folder", "loop", "socket")
"""What lies there under a video's name is no file."""

COUNT = sum(number for _, number in KINDS) + len(OTHERS) + len(SPECIAL)


def kind_of(number: int) -> tuple[str, Maker | None]:
    """Name and maker of a number of the corpus; no maker for what is no file."""
    first = 0
    for maker, count in KINDS:
        if number < first + count:
            return maker.__name__, maker
        first += count
    if number < first + len(OTHERS):
        return "other_type", partial(other_type, OTHERS[number - first])
    return SPECIAL[number - first - len(OTHERS)], None


def make(number: int, media: Path, folder: Path, seed: int = 0) -> Hostile:
    """Write file ``number`` of the corpus of ``seed`` into ``folder``."""
    kind, maker = kind_of(number)
    if maker is None:
        path = folder / f"{number:03d}_{kind}.mp4"
        _special(kind, path)
        return Hostile(number, kind, f"a {kind} as .mp4", path)
    made = maker(random.Random(f"{seed}/{number}"), media)
    attempt = 0
    while kind != "other_type" and made.data in (
        bytes_of(media / name) for name in SOURCES
    ):  # what it wrote stood there
        attempt += 1
        made = maker(random.Random(f"{seed}/{number}/{attempt}"), media)
    path = folder / f"{number:03d}_{kind}{made.suffix}"
    path.write_bytes(made.data.replace(b"{self}", os.fsencode(path.name)) if kind == "other_type" else made.data)
    return Hostile(number, kind, made.description, path)


def _special(kind: str, path: Path) -> None:
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    else:
        import socket

        with socket.socket(socket.AF_UNIX) as end:
            end.bind(str(path))
