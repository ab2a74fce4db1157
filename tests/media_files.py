"""Small clips for tests, muxed with known pictures, sound and times."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import OutputContainer
from numpy.typing import NDArray

TICK = Fraction(1, 90_000)
"""Time base of the video streams: 25 and 30 fps, milliseconds and 1/90 kHz are whole ticks."""


def pictures(num_frames: int, height: int = 48, width: int = 64) -> list[NDArray[np.uint8]]:
    """Noise, another one for every frame: [H, W, 3] each. Equal to one only if it is that very frame, unturned."""
    return [np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8) for i in range(num_frames)]


def greys(num_frames: int, height: int = 48, width: int = 64) -> list[NDArray[np.uint8]]:
    """Plain frames that grow brighter by 6: lossy codecs keep their order readable. At most 40."""
    return [np.full((height, width, 3), 10 + 6 * i, dtype=np.uint8) for i in range(num_frames)]


def tone(duration_s: float, hz: int = 16_000, *, frequency_hz: float = 440.0, start_s: float = 0.0) -> NDArray[Any]:
    """A sine of half full scale, sample k at ``start_s + k / hz``: float64 [n]."""
    at = start_s + np.arange(round(duration_s * hz)) / hz
    return 0.5 * np.sin(2 * np.pi * frequency_hz * at)


def write_clip(
    path: Path,
    images: Sequence[NDArray[np.uint8]] = (),
    *,
    rate: int = 25,
    pts_s: Iterable[Fraction | float] | None = None,
    codec: str | None = None,
    pix_fmt: str | None = None,
    options: dict[str, str] | None = None,
    sound: NDArray[Any] | None = None,
    hz: int = 16_000,
    sound_start_s: Fraction | float = 0,
    sound_codec: str = "pcm_s16le",
    index_first: bool = True,
) -> Path:
    """Write ``images`` (at ``pts_s``, else regularly at ``rate``) and ``sound`` (float [n] or [C, n] in [-1, 1]).

    Without ``codec`` pixels are kept exactly. ``.mov`` keeps times to 1/90,000 s, ``.mkv`` to 1 ms, ``.avi``
    knows regular ones only. A truncated ``.mov`` or ``.mp4`` can be read if its index stands first.
    """
    mux_options = {"video_track_timescale": "90000"} | ({"movflags": "faststart"} if index_first else {})
    with av.open(path, "w", options=mux_options if path.suffix in {".mov", ".mp4"} else {}) as container:
        video = encode_pictures(container, images, rate, pts_s, codec, pix_fmt, options) if images else []
        audio = [] if sound is None else encode_sound(container, sound, hz, sound_start_s, sound_codec)
        mux(container, video, audio)
    return path


def mux(container: OutputContainer, *streams: Sequence[Any]) -> None:
    """Write the packets of all streams, interleaved. A stream added after the first packet would miss the header."""
    container.start_encoding()
    packets = sorted((packet for packets in streams for packet in packets), key=lambda p: p.dts * float(p.time_base))
    container.mux(packets)


def encode_pictures(
    container: OutputContainer,
    images: Sequence[NDArray[np.uint8]],
    rate: int = 25,
    pts_s: Iterable[Fraction | float] | None = None,
    codec: str | None = None,
    pix_fmt: str | None = None,
    options: dict[str, str] | None = None,
) -> list[Any]:
    """Add a video stream to ``container``: its packets, for ``mux``."""
    times = [Fraction(i, rate) for i in range(len(images))] if pts_s is None else [Fraction(t) for t in pts_s]
    if codec is None:
        codec, pix_fmt = ("png", "rgb24") if container.format.name == "mov" else ("ffv1", "bgr0")
    stream = container.add_stream(codec, rate=rate, options=options or {})
    stream.height, stream.width = images[0].shape[:2]
    stream.pix_fmt = pix_fmt or "yuv420p"
    regular_only = codec.startswith("mpeg") or container.format.name == "avi"
    tick = stream.codec_context.time_base = Fraction(1, rate) if regular_only else TICK
    packets = []
    for image, time in zip(images, times, strict=True):
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame.pts, frame.time_base = round(time / tick), tick
        packets += stream.encode(frame)
    return packets + stream.encode(None)


def encode_sound(
    container: OutputContainer,
    sound: NDArray[Any],
    hz: int = 16_000,
    start_s: Fraction | float = 0,
    codec: str = "pcm_s16le",
    gaps_s: dict[int, float] | None = None,
) -> list[Any]:
    """Add an audio stream to ``container``: its packets, for ``mux``.

    ``gaps_s`` shifts all that follows sample k (a multiple of 1024) by that many seconds; below 0: back.
    """
    channels = np.atleast_2d(sound)  # [C, n]
    layout = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}[len(channels)]
    stream = container.add_stream(codec, rate=hz, layout=layout)
    array, sample_format = _encoded_as(channels, stream.format.name)
    shift, packets = Fraction(start_s), []
    for first in range(0, channels.shape[1], 1024):
        shift += Fraction((gaps_s or {}).get(first, 0))
        block = array[:, first : first + 1024]
        packed = block if sample_format.endswith("p") else block.T.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(packed), format=sample_format, layout=layout)
        frame.sample_rate, frame.time_base = hz, Fraction(1, hz)
        frame.pts = first + round(shift * hz)
        packets += stream.encode(frame)
    return packets + stream.encode(None)


def _encoded_as(channels: NDArray[Any], sample_format: str) -> tuple[NDArray[Any], str]:
    full_scale = {"u8": 127, "s16": 2**15 - 1, "s32": 2**31 - 1}.get(sample_format.removesuffix("p"))
    if full_scale is None:
        return channels.astype(np.float64 if sample_format.startswith("dbl") else np.float32), sample_format
    scaled = np.rint(channels * full_scale)
    if sample_format.startswith("u8"):
        return (scaled + 128).astype(np.uint8), sample_format
    return scaled.astype(np.int16 if sample_format.startswith("s16") else np.int32), sample_format


def cut_short(path: Path, share: float) -> Path:
    """Keep the first ``share`` of a file's bytes, as a broken copy does."""
    data = path.read_bytes()
    torn = path.with_stem(path.stem + "_torn")
    torn.write_bytes(data[: int(len(data) * share)])
    return torn


def payloads(path: Path, stream_index: int) -> Iterator[tuple[int, bytes]]:
    """Where each packet of a stream lies in the file, and its bytes. They must differ from packet to packet."""
    data = path.read_bytes()
    with av.open(path) as container:
        for packet in container.demux(container.streams[stream_index]):
            if packet.size:
                yield data.index(bytes(packet)), bytes(packet)


def overwrite_packets(
    path: Path, stream_index: int, spoil: Callable[[int], bool] = lambda _: True, byte: int = 0xA5
) -> Path:
    """Replace the content of the packets ``spoil(number)`` by one repeated byte; headers and times stay."""
    data = bytearray(path.read_bytes())
    for number, (place, packet) in enumerate(payloads(path, stream_index)):
        if spoil(number):
            data[place : place + len(packet)] = bytes([byte]) * len(packet)
    path.write_bytes(data)
    return path
