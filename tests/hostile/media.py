"""300 damaged media files, made of real ones: the same bytes for the same number, on every machine.

Nothing is stored but this code. Each number has a kind of damage and draws its details from a generator of its own, so
that a file can be made alone.
"""

import os
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
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
EVER = 10_000
"""Attempts at drawing something that is there."""


@dataclass(frozen=True)
class Hostile:
    """One file of the corpus."""

    number: int
    kind: str
    told: str
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


@dataclass(frozen=True)
class Made:
    """Bytes, the suffix that they lie about or not, and what was done."""

    data: bytes
    suffix: str
    told: str


Maker = Callable[[random.Random, Path], Made]


@cache
def _bytes(path: Path) -> bytes:
    return path.read_bytes()


def _source(rng: random.Random, media: Path, among: Sequence[str] = SOURCES) -> tuple[str, str, bytearray]:
    """Name, suffix and bytes of one source."""
    name = rng.choice(among)
    return name, Path(name).suffix, bytearray(_bytes(media / name))


# ---- any container -------------------------------------------------------------------------------------------------


def flips(rng: random.Random, media: Path) -> Made:
    """Bits flipped all over the file, one in a million bytes up to one in fifty."""
    name, suffix, data = _source(rng, media)
    number = max(1, round(len(data) * 10 ** rng.uniform(-6, -1.7)))
    for _ in range(number):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return Made(bytes(data), suffix, f"{name}: {number} bits flipped")


def head_flips(rng: random.Random, media: Path) -> Made:
    """Bytes replaced where the header stands: at the beginning, or in an mp4's index wherever it lies."""
    name, suffix, data = _source(rng, media)
    first, stop = 0, min(HEAD, len(data))
    if suffix == ".mp4" and (index := data.find(b"moov")) > 0 and rng.random() < 0.8:
        first, stop = index, min(len(data), index + HEAD)
    number = rng.randint(1, 40)
    for _ in range(number):
        data[rng.randrange(first, stop)] = rng.randrange(256)
    return Made(bytes(data), suffix, f"{name}: {number} bytes of [{first}, {stop}) replaced")


def runs(rng: random.Random, media: Path) -> Made:
    """A stretch of zeros, of ones or of noise, as a bad sector leaves it."""
    name, suffix, data = _source(rng, media)
    length = min(rng.choice((512, 4096, 65_536)), len(data) // 2)
    first = rng.randrange(len(data) - length)
    fill = rng.choice((b"\0" * length, b"\xff" * length, rng.randbytes(length)))
    data[first : first + length] = fill
    return Made(bytes(data), suffix, f"{name}: {length} bytes from {first} are {fill[:2].hex()}...")


def truncations(rng: random.Random, media: Path) -> Made:
    """The end is missing; or the beginning, or both."""
    name, suffix, data = _source(rng, media)
    first, stop = 0, rng.randrange(len(data))
    how = rng.random()
    if how < 0.15:
        stop = rng.randrange(min(HEAD, len(data)))
    elif how < 0.3:
        first, stop = stop, len(data)
    return Made(bytes(data[first:stop]), suffix, f"{name}: only bytes [{first}, {stop}) of {len(data)}")


def splices(rng: random.Random, media: Path) -> Made:
    """Parts of two files, or of one in another order, twice, or with a hole."""
    name, suffix, data = _source(rng, media)
    other, _, second = _source(rng, media)
    at, to = sorted(rng.randrange(len(data)) for _ in range(2))
    how = rng.randrange(5)
    if how == 0:
        share = rng.random()
        made = data[: int(len(data) * share)] + second[int(len(second) * share) :]
        told = f"{name} up to {share:.3f} of it, then {other}"
    elif how == 1:
        piece = second[: rng.randrange(min(len(second), 100_000))]
        made, told = data[:at] + piece + data[at:], f"{name} with {len(piece)} bytes of {other} put in at {at}"
    elif how == 2:
        made, told = data[:at] + data[to:], f"{name} without [{at}, {to})"
    elif how == 3:
        made, told = data[:to] + data[at:], f"{name} with [{at}, {to}) twice"
    else:
        made, told = data + second, f"{name} with {other} behind it"
    return Made(bytes(made), suffix, told)


# ---- mp4 boxes -----------------------------------------------------------------------------------------------------

PARENTS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf", b"udta", b"mvex", b"moof", b"traf"}

# Box -> named fields (offset from the box's content, bytes), version 0.
FIELDS: dict[bytes, tuple[tuple[str, int, int], ...]] = {
    b"mvhd": (("timescale", 12, 4), ("duration", 16, 4)),
    b"mdhd": (("timescale", 12, 4), ("duration", 16, 4)),
    b"tkhd": (("track_id", 12, 4), ("duration", 20, 4), ("matrix", 40, 4), ("width", 76, 4), ("height", 80, 4)),
    b"elst": (("count", 4, 4), ("duration", 8, 4), ("media_time", 12, 4), ("rate", 16, 4)),
    b"stts": (("count", 4, 4), ("samples", 8, 4), ("delta", 12, 4)),
    b"ctts": (("count", 4, 4), ("samples", 8, 4), ("offset", 12, 4)),
    b"stsz": (("size", 4, 4), ("count", 8, 4), ("first size", 12, 4)),
    b"stsc": (("count", 4, 4), ("first chunk", 8, 4), ("samples", 12, 4), ("description", 16, 4)),
    b"stco": (("count", 4, 4), ("first offset", 8, 4)),
    b"stss": (("count", 4, 4), ("first sample", 8, 4)),
    b"stsd": (("count", 4, 4), ("entry size", 8, 4), ("width and height", 40, 4), ("sound's rate", 40, 4)),
    b"hdlr": (("handler", 8, 4),),
}


@dataclass(frozen=True)
class Box:
    kind: bytes
    start: int
    """Of its size field."""
    content: int
    stop: int


def boxes(data: bytes | bytearray, start: int = 0, stop: int | None = None) -> Iterator[Box]:
    """Every box of an mp4 file, those within others after them."""
    stop = len(data) if stop is None else stop
    while start + 8 <= stop:
        size, kind = struct.unpack_from(">I4s", data, start)
        content = start + 8
        if size == 1:
            size, content = struct.unpack_from(">Q", data, content)[0], start + 16
        size = size or stop - start
        box = Box(kind, start, content, min(start + size, stop))
        yield box
        if kind in PARENTS:
            yield from boxes(data, content, box.stop)
        start += max(size, 8)


def mp4_fields(rng: random.Random, media: Path) -> Made:
    """One to three fields of the index hold an extreme value."""
    name, suffix, data = _source(rng, media, [source for source in VIDEOS if source.endswith(".mp4")])
    told = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        kind = rng.choice(tuple(FIELDS))
        found = [box for box in boxes(data) if box.kind == kind]
        if not found:
            kind = b"mdhd"
            found = [box for box in boxes(data) if box.kind == kind]
        box = rng.choice(found)
        field, offset, width = rng.choice(FIELDS[kind])
        if kind in {b"stts", b"ctts"} and field != "count" and rng.random() < 0.7:  # any entry, not just the first
            entries = (box.stop - box.content - 8) // 8
            offset += 8 * rng.randrange(max(1, entries))
        value = rng.choice(EXTREMES)
        if box.content + offset + width <= box.stop:
            data[box.content + offset : box.content + offset + width] = value.to_bytes(width, "big")
            told.append(f"{kind.decode()} at {box.start}: {field} (+{offset}) = {value}")
    return Made(bytes(data), suffix, f"{name}: {'; '.join(told) or 'nothing'}")


def mp4_sizes(rng: random.Random, media: Path) -> Made:
    """The size of a box is not its size, or its name is another one's."""
    name, suffix, data = _source(rng, media, [source for source in VIDEOS if source.endswith(".mp4")])
    box = rng.choice(list(boxes(data)))
    size = box.stop - box.start
    if rng.random() < 0.2:
        kind = rng.choice((*FIELDS, *PARENTS, b"free", b"mdat", b"ftyp"))
        data[box.start + 4 : box.start + 8] = kind
        return Made(bytes(data), suffix, f"{name}: {box.kind!r} at {box.start} is called {kind!r}")
    written = int.from_bytes(data[box.start : box.start + 4], "big")  # 1: the size follows in 64 bits
    wrong = [value % 2**32 for value in (*EXTREMES, 7, 8, size - 1, size + 1, size * 2)]
    value = rng.choice([value for value in wrong if value != written])
    data[box.start : box.start + 4] = value.to_bytes(4, "big")
    return Made(bytes(data), suffix, f"{name}: {box.kind!r} at {box.start} has size {value} instead of {size}")


# ---- MPEG program streams, FLAC, Matroska --------------------------------------------------------------------------


def _places(data: bytes | bytearray, mark: bytes) -> list[int]:
    """Where ``mark`` stands."""
    found, at = [], data.find(mark)
    while at >= 0:
        found.append(at)
        at = data.find(mark, at + 1)
    return found


def _stamp(value: int, mark: int) -> bytes:
    """33 bits of 1/90,000 s as a presentation time is written in MPEG."""
    high, middle, low = value >> 30 & 7, value >> 15 & 0x7FFF, value & 0x7FFF
    return bytes([mark | high << 1 | 1]) + ((middle << 1 | 1) << 16 | (low << 1 | 1)).to_bytes(4, "big")


def mpeg_headers(rng: random.Random, media: Path) -> Made:
    """Clock references, presentation times, the picture's size and rate, packet lengths."""
    name, suffix, data = _source(rng, media, [source for source in VIDEOS if source.endswith(".mpg")])
    how = rng.choice(("scr", "pts", "pts", "pts", "picture", "picture", "length"))
    if how == "scr":
        at = rng.choice(_places(data, b"\0\0\1\xba")) + 4
        data[at : at + 5] = value = rng.choice((bytes(5), b"\xff" * 5, _stamp(2**33 - 1, 0x20), rng.randbytes(5)))
    elif how == "pts":
        # An MPEG-1 packet: code, stream, length, stuffing, buffer size, then 2x (pts) or 3x (pts and dts).
        stream = rng.choice((b"\xe0", b"\xc0"))
        times = [
            i
            for at in _places(data, b"\0\0\1" + stream)
            for i in range(at + 6, min(at + 26, len(data) - 10))
            if data[i] >> 4 in {2, 3} and data[i] & 1 and data[i + 2] & 1 and data[i + 4] & 1
        ]
        chosen = times if rng.random() < 0.3 else [rng.choice(times)]
        for at in chosen:
            value = _stamp(rng.choice((0, 1, 2**32, 2**33 - 1, rng.randrange(2**33))), data[at] & 0xF0)
            data[at : at + 5] = value
    elif how == "picture":
        at = rng.choice(_places(data, b"\0\0\1\xb3")[:1])
        width, height = rng.choice(((0, 0), (1, 1), (4095, 4095), (4095, 1), (16, 4095), (720, 576)))
        value = (width << 12 | height).to_bytes(3, "big") + bytes([rng.choice((data[at + 7], 0, 0x10, 0xFF, 0x1F))])
        for at in _places(data, b"\0\0\1\xb3"):
            data[at + 4 : at + 8] = value
    else:
        at = rng.choice(_places(data, b"\0\0\1" + rng.choice((b"\xe0", b"\xc0")))) + 4
        data[at : at + 2] = value = rng.choice((b"\0\0", b"\0\1", b"\xff\xff", b"\x7f\xff"))
    return Made(bytes(data), suffix, f"{name}: {how} at {at} = {value.hex()}")


def flac_headers(rng: random.Random, media: Path) -> Made:
    """STREAMINFO: block sizes, rate, channels, sample size, number of samples; lengths of metadata blocks."""
    name, suffix, data = _source(rng, media, SOUNDS)
    how = rng.choice(("rate", "rate", "total", "total", "channels", "blocks", "length"))
    packed = int.from_bytes(data[18:26], "big")  # rate 20, channels 3, bits 5, total 36
    if how == "rate":
        value = rng.choice((0, 1, 2, 3999, 655_350, 2**20 - 1))
        packed = packed & ~(2**20 - 1 << 44) | value << 44
    elif how == "total":
        value = rng.choice((0, 1, 2**31 - 1, 2**36 - 1))
        packed = packed & ~(2**36 - 1) | value
    elif how == "channels":
        value = rng.randrange(256)
        packed = packed & ~(0xFF << 36) | value << 36
    elif how == "blocks":
        value = rng.choice((0, 0x00010001, 0xFFFFFFFF, 0x0010FFFF))
        data[8:12] = value.to_bytes(4, "big")
    else:
        value = rng.choice((0, 1, 0x7FFFFF, 0xFFFFFF))
        data[5:8] = value.to_bytes(3, "big")
    data[18:26] = packed.to_bytes(8, "big")
    return Made(bytes(data), suffix, f"{name}: {how} = {value}")


# Matroska's elements by their ids; a one-byte size follows.
ELEMENTS = {
    "Duration": b"\x44\x89",
    "TimestampScale": b"\x2a\xd7\xb1",
    "PixelWidth": b"\xb0",
    "PixelHeight": b"\xba",
    "SamplingFrequency": b"\xb5",
    "DefaultDuration": b"\x23\xe3\x83",
    "Cluster": b"\x1f\x43\xb6\x75",
    "Timestamp": b"\xe7",
    "SimpleBlock": b"\xa3",
    "CodecID": b"\x86",
    "TrackNumber": b"\xd7",
    "Segment": b"\x18\x53\x80\x67",
}


def matroska_headers(rng: random.Random, media: Path) -> Made:
    """An element's value is extreme, or its size is."""
    name, suffix, data = _source(rng, media, [source for source in VIDEOS if source.endswith(".mkv")])
    for _ in range(EVER):
        element, mark = rng.choice(tuple(ELEMENTS.items()))
        at = rng.choice([*_places(data, mark), -1])
        if at < 0:
            continue
        size_at = at + len(mark)
        size = data[size_at] & 0x7F
        if not data[size_at] & 0x80 or not 0 < size <= 8 or rng.random() < 0.3:
            value = rng.choice((b"\x80", b"\xff", b"\x88", b"\x01" + b"\xff" * 7, b"\x08\x7f\xff\xff\xff"))
            data[size_at : size_at + len(value)] = value
            return Made(bytes(data), suffix, f"{name}: size of {element} at {at} = {value.hex()}")
        value = rng.choice((bytes(size), b"\xff" * size, b"\x7f" + b"\xff" * (size - 1), rng.randbytes(size)))
        data[size_at + 1 : size_at + 1 + size] = value
        return Made(bytes(data), suffix, f"{name}: {element} at {at} = {value.hex()}")
    raise ValueError(f"{name} holds none of {', '.join(ELEMENTS)}")


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
    told = how
    if how == "empty":
        data = b""
    elif how == "zeros":
        data = bytes(rng.choice((1, 7, 4096, 2**20)))
    elif how == "noise":
        data = rng.randbytes(rng.choice((1, 100, 100_000)))
    elif how == "file":
        name = rng.choice(("one_face.jpg", "hubert_base_L9.npy", "SOURCES.md", *SOURCES))
        data, told = _bytes(media / name), name
    elif how == "wav":
        rate, size, channels = rng.choice((
            (0, 3200, 1),
            (2**32 - 1, 2**32 - 1, 1),
            (1, 3200, 1),
            (16_000, 3200, 65_535),
        ))
        data, told = _wav(rate, size, channels), f"a wav of {rate} Hz, {channels} channels, {size} bytes declared"
    elif how == "gif":
        width, height = rng.choice(((65_535, 65_535), (20_000, 20_000), (0, 0), (1, 65_535)))
        data, told = _gif(width, height), f"a gif of {width} x {height}"
    elif how == "stub":
        name = rng.choice(SOURCES)
        data, told = _bytes(media / name)[: rng.choice((4, 8, 12, 32))], f"the first bytes of {name}"
    else:
        data = TEXTS[how].encode()
    return Made(data, suffix, f"{told} as {suffix}")


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
    while kind != "other_type" and made.data in (_bytes(media / name) for name in SOURCES):  # what it wrote stood there
        attempt += 1
        made = maker(random.Random(f"{seed}/{number}/{attempt}"), media)
    path = folder / f"{number:03d}_{kind}{made.suffix}"
    path.write_bytes(made.data.replace(b"{self}", os.fsencode(path.name)) if kind == "other_type" else made.data)
    return Hostile(number, kind, made.told, path)


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
