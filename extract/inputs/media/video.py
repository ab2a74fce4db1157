"""The frames of a clip, with the time at which each is shown."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import GeneratorType, TracebackType
from typing import Any, Self, cast

import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame as DecodedFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from extract.errors import ClipError
from extract.inputs.media import decoding, picture
from extract.inputs.media.decoding import MAX_PIXELS, Damage, Watcher, fraction, is_cover_art, time_base
from extract.inputs.media.file_ends import is_cut_off
from extract.inputs.media.frame_times import repair_times
from extract.inputs.media.picture import Turn
from extract.inputs.media.span import Span

DRAWN = "drawn, not recorded"
"""How the comment of a container begins whose video is a program's drawing; every report repeats it."""


@dataclass(frozen=True, slots=True)
class VideoFrame:
    """One frame of a clip."""

    index: int
    """Row of the clip, from 0; the first frame at or after ``start_s`` is row 0."""
    pts_s: float
    """Presentation time in seconds on the clip's clock."""
    image: NDArray[np.uint8] | None
    """RGB [H, W, 3], upright, C-contiguous, its own memory. ``None`` where the caller did not want this frame."""


class Video:
    """The frames of one clip, in presentation order. Made by ``open_video``.

    Leaving the ``with`` block closes the file. ``frames`` may be called again: it starts from the first frame and ends
    the previous iteration.
    """

    path: Path
    stream_index: int
    """Index of the chosen stream in its container."""
    declared_frames: int | None
    """How many frames the header states; it may be wrong. ``None``: it states nothing."""
    size: tuple[int, int]
    """Height and width of the first frame, after rotation. A later frame may differ where the stream changes size."""
    rotation_deg: int
    """Clockwise rotation that was applied, from the display matrix: 0, 90, 180 or 270."""
    notes: dict[str, Any]
    """Facts for the record that are no errors, JSON values; complete when ``frames`` is exhausted.

    ``rotation_deg``, ``mirrored``, ``video_streams {count, taken}``, ``declared_frames`` (where another number was
    decoded), ``truncated_at_s`` (time of the last frame of a file that ends early), ``corrupt_frames {count, first_s}``
    (returned, as the decoder mended them), ``undecodable_packets {count, error}`` (they gave no frame),
    ``repaired_pts {absent, not_increasing}``, ``drawn`` (the file says that its video is a program's drawing).
    """

    def __init__(
        self,
        path: Path,
        stream: "_ProbedStream",
        num_streams: int,
        span: Span,
        *,
        repair_pts: bool,
        watcher: Watcher,
    ) -> None:
        self.path = path
        self._watcher = watcher
        self.stream_index = stream.index
        self.declared_frames = stream.declared_frames
        self.size = stream.size
        self.rotation_deg = stream.turn.clockwise_deg
        self._number = stream.number
        self._span = span
        self._repair_pts = repair_pts
        self._running: GeneratorType[VideoFrame, None, None] | None = None
        self._facts: dict[str, Any] = {}
        if self.rotation_deg:
            self._facts["rotation_deg"] = self.rotation_deg
        if stream.turn.mirrored:
            self._facts["mirrored"] = True
        if num_streams > 1:
            self._facts["video_streams"] = {"count": num_streams, "taken": self.stream_index}
        self.notes = dict(self._facts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End a running iteration and close its file; an iteration that hangs in another thread keeps running."""
        if self._running is not None and not self._running.gi_running:
            self._running.close()
        self._running = None

    def frames(self, wanted: Callable[[int], bool] | None = None) -> Iterator[VideoFrame]:
        """Every frame with ``start_s <= pts_s < end_s``; those not ``wanted(index)`` are decoded but not converted.

        Raises ``ClipError``: ``bad_times`` at a frame whose time is absent or does not increase (unless
        ``repair_pts``), ``no_frames`` at the end if no frame lies in the range.
        """
        self.close()
        self._running = cast("GeneratorType[VideoFrame, None, None]", self._decode(wanted))
        return self._running

    def _decode(self, wanted: Callable[[int], bool] | None) -> Generator[VideoFrame, None, None]:
        self.notes.clear()
        self.notes.update(self._facts)
        repaired = self._repaired_times() if self._repair_pts else None
        reformatter = VideoReformatter()
        damage = Damage(self._watcher)
        corrupt_s: list[float] = []
        num_decoded = num_given = 0
        last: Fraction | None = None
        with decoding.open_file(self.path, self._watcher) as container:
            stream = container.streams.video[self._number]
            if (comment := container.metadata.get("comment", "")).startswith(DRAWN):
                self.notes["drawn"] = comment
            frames: Iterator[DecodedFrame] = decoding.decoded(container, stream, damage)
            for frame in frames:
                at = repaired[num_decoded] if repaired else _checked_time(frame, stream, num_decoded, last)
                if self._span.ends_by(at):
                    break
                num_decoded, last = num_decoded + 1, at
                damage.in_last_frame = frame.is_corrupt
                if frame.is_corrupt:
                    corrupt_s.append(float(at))
                if self._span.starts_after(at):
                    continue
                image = picture.upright_rgb(frame, reformatter) if wanted is None or wanted(num_given) else None
                yield VideoFrame(num_given, float(at), image)
                num_given += 1
            else:
                self._note_end(container, damage, num_decoded, last)
        if corrupt_s:
            self.notes["corrupt_frames"] = {"count": len(corrupt_s), "first_s": corrupt_s[0]}
        damage.note(self.notes)
        if not num_given:
            raise ClipError("no_frames", self._nothing_given(num_decoded, damage, last))

    def _note_end(self, container: InputContainer, damage: Damage, num_decoded: int, last: Fraction | None) -> None:
        """Note what is known only when the stream was read to its end."""
        complete = num_decoded == self.declared_frames
        if last is not None and (damage.at_end or (not complete and is_cut_off(self.path, container.format.name))):
            self.notes["truncated_at_s"] = float(last)
        # Frames before start_s are counted too: the header counts those of the whole stream.
        if self.declared_frames is not None and not complete:
            self.notes["declared_frames"] = self.declared_frames

    def _nothing_given(self, num_decoded: int, damage: Damage, last: Fraction | None) -> str:
        if not num_decoded and self._span.end is None:
            return f"video stream {self.stream_index} of {self.path.name} has no frame that can be decoded{damage}"
        start = "the beginning" if self._span.start is None else f"start_s {float(self._span.start)}"
        end = "the end" if self._span.end is None else f"end_s {float(self._span.end)}"
        seen = "every frame is later" if last is None else f"the last frame before its end is at {float(last):.3f} s"
        return f"no frame between {start} and {end} ({seen}); correct start_s and end_s of the clip in the manifest"

    def _repaired_times(self) -> list[Fraction]:
        """Read the whole stream once for its times: a run of bad ones is mended from the good ones on both sides."""
        with decoding.open_file(self.path, self._watcher) as container:
            stream = container.streams.video[self._number]
            tick = time_base(stream)
            damage = Damage(self._watcher)
            pts: list[int | None] = [frame.pts for frame in decoding.decoded(container, stream, damage)]
            times = repair_times([None if p is None else p * tick for p in pts], fraction(stream.average_rate))
        num_absent = sum(p is None for p in pts)
        num_changed = sum(p is None or p * tick != time for p, time in zip(pts, times, strict=True))
        if num_changed:
            self.notes["repaired_pts"] = {"absent": num_absent, "not_increasing": num_changed - num_absent}
        return times


def open_video(
    path: Path,
    *,
    start_s: float | None = None,
    end_s: float | None = None,
    repair_pts: bool = False,
    watcher: Watcher | None = None,
) -> Video | None:
    """Open a clip's video; ``None`` if the file has no video stream (cover art does not count).

    Of several streams, the first with more than one frame is taken, else the first with one. ``start_s`` and ``end_s``
    cut the clip without moving its clock. ``repair_pts`` reads the stream twice and repairs its times as
    ``repair_times`` describes.

    Raises ``ClipError``: ``missing_file``, ``unreadable``, ``no_frames`` (no frame of the video can be decoded).
    """
    watcher = watcher or Watcher()
    with decoding.open_file(path, watcher) as container:
        numbers = [number for number, stream in enumerate(container.streams.video) if not is_cover_art(stream)]
    if not numbers:
        return None
    # A lone stream needs one frame; among several, a still picture gives way to the movie behind it.
    enough = 1 if len(numbers) == 1 else 2
    refused: Damage | None = None
    best: _ProbedStream | None = None
    for number in numbers:
        damage = Damage(watcher)
        stream = _probe(path, number, enough, damage)
        refused = refused or damage
        if stream is not None and (best is None or stream.num_frames > best.num_frames):
            best = stream
        if best is not None and best.num_frames == enough:
            break
    if best is None:
        which = "the video stream" if len(numbers) == 1 else f"each of {len(numbers)} video streams"
        raise ClipError(
            "no_frames",
            f"{which} of {path.name} has no frame that can be decoded{refused}; re-encode the clip, with frames of at "
            f"most {MAX_PIXELS:,} pixels",
        )
    return Video(path, best, len(numbers), Span.of(start_s, end_s), repair_pts=repair_pts, watcher=watcher)


@dataclass(frozen=True)
class _ProbedStream:
    """A video stream of which at least one frame decoded."""

    number: int
    """Position among the container's video streams."""
    index: int
    declared_frames: int | None
    size: tuple[int, int]
    turn: Turn
    num_frames: int
    """Frames seen while probing, no more than were asked for."""


def _probe(path: Path, number: int, enough: int, damage: Damage) -> _ProbedStream | None:
    """Decode up to ``enough`` frames of a stream; ``None`` if there is none."""
    with decoding.open_file(path, damage.watcher) as container:
        stream = container.streams.video[number]
        frames: Iterator[DecodedFrame] = decoding.decoded(container, stream, damage)
        first = next(frames, None)
        if first is None:
            return None
        num_frames = 1 + sum(1 for _, _ in zip(range(enough - 1), frames, strict=False))
        turn = Turn.of(first)
        return _ProbedStream(number, stream.index, stream.frames or None, turn.size_of(first), turn, num_frames)


def _checked_time(frame: DecodedFrame, stream: VideoStream, number: int, last: Fraction | None) -> Fraction:
    remedy = "set `repair_pts: true` in the config of `frames` to have it repaired"
    after = "at the start of the stream" if last is None else f"after {float(last):.6f} s"
    if frame.pts is None:
        raise ClipError("bad_times", f"frame {number} ({after}) has no presentation time; {remedy}")
    at = frame.pts * time_base(stream)
    if last is not None and at <= last:
        raise ClipError("bad_times", f"frame {number} is at {float(at):.6f} s, not {after}; {remedy}")
    return at
