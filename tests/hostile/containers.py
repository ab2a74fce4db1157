"""Damage in the headers of one kind of container: mp4, MPEG program streams, FLAC, Matroska."""

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.hostile.damage import EXTREMES, SOUNDS, VIDEOS, Made, source

MAX_ATTEMPTS = 10_000
"""Attempts at drawing something that the file has."""


# ---- mp4 boxes -----------------------------------------------------------------------------------------------------

PARENTS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf", b"udta", b"mvex", b"moof", b"traf")

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
    """Position of its size field."""
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
    name, suffix, data = source(rng, media, [source for source in VIDEOS if source.endswith(".mp4")])
    description = []
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
            description.append(f"{kind.decode()} at {box.start}: {field} (+{offset}) = {value}")
    return Made(bytes(data), suffix, f"{name}: {'; '.join(description) or 'nothing'}")


def mp4_sizes(rng: random.Random, media: Path) -> Made:
    """The size of a box is not its size, or its name is another one's."""
    name, suffix, data = source(rng, media, [source for source in VIDEOS if source.endswith(".mp4")])
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
    name, suffix, data = source(rng, media, [source for source in VIDEOS if source.endswith(".mpg")])
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
    name, suffix, data = source(rng, media, SOUNDS)
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
    name, suffix, data = source(rng, media, [source for source in VIDEOS if source.endswith(".mkv")])
    for _ in range(MAX_ATTEMPTS):
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
