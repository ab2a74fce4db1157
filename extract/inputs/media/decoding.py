"""Opens media files and decodes their streams: what ``video`` and ``audio`` share."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

from extract.errors import ClipError

MAX_PIXELS = 1 << 27
"""Larger frames (16384 x 8192 is 400 MB as RGB) are not decoded; only damaged or hostile files state them."""

TAIL_PACKETS = 4
"""Damage within this many packets of the last one is the file's end: after an incomplete packet, the parser still
returns those that it held back."""

# FFmpeg opens these, but they read files other than the one that was hashed, or draw text; nobody means one by a clip.
_NO_MEDIA_FORMATS = {"adf", "bin", "concat", "dash", "hls", "idf", "tty", "xbin"}

# A title in an old encoding is no reason to refuse a movie; PyAV 19 dropped the argument and never refuses.
_ANY_TITLES: dict[str, Any] = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "replace"}

# For probing a file as well as for decoding it: FFmpeg checks before it allocates memory for a frame.
_LIMITS = {"max_pixels": str(MAX_PIXELS)}

_COVER_ART = Disposition.attached_pic | Disposition.timed_thumbnails

Stream = VideoStream | AudioStream


class Watcher:
    """Follows the reading of a file, in the thread that reads. This one does nothing."""

    def opened(self) -> None:
        """The file was opened. An exception from here ends the reading: the path may lead to another file by now."""

    def moved(self) -> None:
        """Another packet was read."""


@dataclass
class Damage:
    """What went wrong while a stream was read."""

    watcher: Watcher
    num_undecodable: int = 0
    first_error: str | None = None
    num_packets: int = 0
    last_torn: int | None = None
    """Number of the last packet, of any stream, that is incomplete or did not decode."""
    demuxer_failed: bool = False
    in_last_frame: bool = False

    @property
    def at_end(self) -> bool:
        """Whether the end of the file is damaged."""
        torn = self.last_torn is not None and self.num_packets - self.last_torn < TAIL_PACKETS
        return torn or self.demuxer_failed or self.in_last_frame

    def undecodable(self, error: av.FFmpegError) -> None:
        """Count a packet that the decoder refused."""
        self.num_undecodable += 1
        self.last_torn = self.num_packets
        self.first_error = self.first_error or error.strerror

    def note(self, notes: dict[str, Any]) -> None:
        """Add what belongs into the record."""
        if self.num_undecodable:
            notes["undecodable_packets"] = {"count": self.num_undecodable, "error": self.first_error}

    def __str__(self) -> str:
        """The end of an error message."""
        if self.num_undecodable:
            return f" ({self.num_undecodable} packets refused, the first with: {self.first_error})"
        return f" ({self.first_error or f'{self.num_packets} packets in the file'})"


def open_file(path: Path, watcher: Watcher) -> InputContainer:
    """Open a media file.

    Raises ``ClipError``: ``missing_file``, or ``unreadable`` for what is no media file.
    """
    if not path.exists():
        raise ClipError("missing_file", f"{path} does not exist; correct its path in the manifest")
    try:
        # ``file:`` keeps a name with a colon from being read as a protocol; from a file FFmpeg follows no network link.
        container: InputContainer = av.open(f"file:{path}", options=dict(_LIMITS), **_ANY_TITLES)
    except av.FFmpegError as error:
        raise ClipError(
            "unreadable",
            f"{path.name} cannot be opened as a media file ({error.strerror}); expected a complete movie or sound "
            "file: is it the right file, and was the whole of it copied?",
        ) from error
    if container.format.name in _NO_MEDIA_FORMATS or not (container.streams.video or container.streams.audio):
        container.close()
        raise ClipError(
            "unreadable",
            f"{path.name} has the format {container.format.name}, without pictures or sound of its own; "
            "expected a movie or sound file",
        )
    try:
        watcher.opened()
    except BaseException:
        container.close()
        raise
    return container


def packets(container: InputContainer, damage: Damage) -> "Iterator[Packet[Any] | None]":
    """Packets of all streams: a file cut off inside an audio packet ends early for its video too. ``None`` flushes."""
    found = container.demux()
    while True:
        try:
            packet = next(found, None)
        except av.FFmpegError as error:
            damage.demuxer_failed = True
            damage.first_error = damage.first_error or error.strerror
            yield None
            return
        if packet is None:
            return
        damage.watcher.moved()
        if packet.size:
            damage.num_packets += 1
            if packet.is_corrupt:
                damage.last_torn = damage.num_packets
        yield packet


def decoded(container: InputContainer, stream: Stream, damage: Damage) -> Iterator[Any]:
    """Frames of one stream in presentation order; packets that cannot be decoded are counted and skipped."""
    if not _has_decoder(stream, damage):
        return
    for packet in packets(container, damage):
        if packet is None or packet.stream.index == stream.index:
            try:
                frames = stream.decode(packet)
            except av.FFmpegError as error:
                damage.undecodable(error)
            else:
                yield from frames


def _has_decoder(stream: Stream, damage: Damage) -> bool:
    """Whether this FFmpeg can decode the stream; where it cannot, PyAV gives no codec context."""
    if stream.codec_context is None:
        damage.first_error = "this FFmpeg has no decoder for its codec"
        return False
    stream.codec_context.thread_count = 1
    stream.codec_context.options = dict(_LIMITS)
    return True


def is_cover_art(stream: VideoStream) -> bool:
    """Whether the stream holds a cover picture or thumbnails instead of a video."""
    return bool(stream.disposition & _COVER_ART)


def time_base(stream: Stream) -> Fraction:
    """Seconds per tick of the stream's times.

    Raises ``ClipError``: ``bad_times`` if the stream states none.
    """
    base = fraction(stream.time_base)
    if base is None:
        raise ClipError("bad_times", f"stream {stream.index} states no time base; re-encode the file")
    return base


def fraction(ratio: Fraction | None) -> Fraction | None:
    """PyAV before 19 gives a Fraction or None; since then it gives a type of its own, false where nothing is stated."""
    return Fraction(ratio.numerator, ratio.denominator) if ratio else None
