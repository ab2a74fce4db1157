"""The only decoder: video frames and 16 kHz mono sound with their times on the clip's presentation clock.

Times are what the container says (``pts * time_base``), unshifted: a stream that begins at 0.5 s begins at 0.5 s, and
audio and video each keep their own start. Both readers stream; memory holds one decoded frame, or the samples asked
for, however long the clip. Decoding is single-threaded per clip: engines work on several clips at once, and neither
the order of errors nor a value can depend on the machine's number of cores.
"""

import itertools
import math
import tempfile
import weakref
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import GeneratorType, TracebackType
from typing import IO, Any, Self, cast

import av
import numpy as np
import soxr
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.video.frame import VideoFrame as DecodedFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from extract.errors import ClipError, MachineError
from extract.timeline import NS_PER_S

MAX_JITTER_S = Fraction(40, 1000)
"""Sound whose times and sample count disagree by more has a gap or an overlap; less is rounding of the container."""

MAX_GAP_S = 3600
"""A longer jump of the sound's times is a broken clock (a wrapped counter), not an hour of silence to fill in."""

MAX_SILENCE_S = 4 * 3600
"""The gaps of one clip may not ask for more silence than this, whatever its pictures say."""

MAX_PICTURE_S = 10
"""A picture that is shown for longer counts as this long where the length of a video bounds the silence."""

MAX_PIXELS = 1 << 27
"""Pictures of more (16384 x 8192: 400 MB as RGB) are not decoded: only a damaged or hostile header states them."""

SOUND_HZ = (1_000, 768_000)
"""Lowest and highest rate of sound that is believed. An hour of 16 kHz made from four kilobytes at 1 Hz is none."""

MAX_CHANNELS = 64
"""A microphone array has as many; a header that states thousands is damaged."""

HELD_SAMPLES = 300 * 16_000
"""Sound of more samples (five minutes at 16 kHz) lies in a temporary file, not in memory."""

DRAWN = "drawn, not recorded"
"""How the comment in a container begins whose pictures a program made up; it follows the clip into every report."""

TAIL_PACKETS = 4
"""Damage this near the last packet is the file's end: after the torn packet a parser still hands out what it held."""

# They read other files than the one that was hashed, or draw text: FFmpeg opens them, nobody means them by a clip.
_NO_MEDIA_FORMATS = {"adf", "bin", "concat", "dash", "hls", "idf", "tty", "xbin"}

# A title in an old encoding is no reason to refuse a movie; PyAV 19 dropped the argument and never refuses.
_ANY_TITLES: dict[str, Any] = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "replace"}

# For the probing of a file as for its decoding: FFmpeg looks before it takes memory for a picture.
_LIMITS = {"max_pixels": str(MAX_PIXELS)}

_PICTURE = Disposition.attached_pic | Disposition.timed_thumbnails


class Watcher:
    """Told, in the thread that reads, how reading goes on. This one keeps still."""

    def opened(self) -> None:
        """The file was opened. What this raises ends the reading: the file may be another than was meant."""

    def moved(self) -> None:
        """Another packet was read."""


# ---------------------------------------------------------------------------------------------------------- video


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
    the iteration before it.
    """

    path: Path
    stream_index: int
    """Index of the chosen stream in its container."""
    declared_frames: int | None
    """How many frames the header claims; it may lie. ``None``: it claims nothing."""
    size: tuple[int, int]
    """Height and width of the first frame, after rotation. A later frame may differ where the stream changes size."""
    rotation_deg: int
    """Clockwise turn that was applied, from the display matrix: 0, 90, 180 or 270."""
    notes: dict[str, Any]
    """Facts for the record that are no error, JSON values; complete when ``frames`` is exhausted.

    ``rotation_deg``, ``mirrored``, ``video_streams {count, taken}``, ``declared_frames`` (where another number was
    decoded), ``truncated_at_s`` (time of the last frame of a file that ends early), ``corrupt_frames {count, first_s}``
    (given, as the decoder mended them), ``undecodable_packets {count, error}`` (no frame came of them),
    ``repaired_pts {absent, not_increasing}``, ``drawn`` (a file that says its pictures are a program's).
    """

    def __init__(
        self,
        path: Path,
        stream: "_ProbedStream",
        num_streams: int,
        cut: tuple[Fraction | None, Fraction | None],
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
        self._start, self._end = cut
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
        """End a running iteration and close its file. One that hangs in another thread keeps both."""
        if self._running is not None and not self._running.gi_running:
            self._running.close()
        self._running = None

    def frames(self, wanted: Callable[[int], bool] | None = None) -> Iterator[VideoFrame]:
        """Every frame with ``start_s <= pts_s < end_s``; those not ``wanted(index)`` are decoded but not converted.

        Raises ``ClipError``: ``bad_times`` at a frame whose time is absent or does not increase (unless
        ``repair_pts``), ``no_frames`` at the end if none lay in the range.
        """
        self.close()
        self._running = cast("GeneratorType[VideoFrame, None, None]", self._decode(wanted))
        return self._running

    def _decode(self, wanted: Callable[[int], bool] | None) -> Generator[VideoFrame, None, None]:
        self.notes.clear()
        self.notes.update(self._facts)
        repaired = self._repaired_times() if self._repair_pts else None
        reformatter = VideoReformatter()
        damage = _Damage(self._watcher)
        corrupt_s: list[float] = []
        num_decoded = num_given = 0
        last: Fraction | None = None
        with _open(self.path, self._watcher) as container:
            stream = container.streams.video[self._number]
            if (comment := container.metadata.get("comment", "")).startswith(DRAWN):
                self.notes["drawn"] = comment
            frames: Iterator[DecodedFrame] = _decoded(container, stream, damage)
            for frame in frames:
                at = repaired[num_decoded] if repaired else _checked_time(frame, stream, num_decoded, last)
                if self._end is not None and at >= self._end:
                    break
                num_decoded, last = num_decoded + 1, at
                damage.in_last_frame = frame.is_corrupt
                if frame.is_corrupt:
                    corrupt_s.append(float(at))
                if self._start is not None and at < self._start:
                    continue
                image = _rgb(frame, reformatter) if wanted is None or wanted(num_given) else None
                yield VideoFrame(num_given, float(at), image)
                num_given += 1
            else:
                self._note_end(container, damage, num_decoded, last)
        if corrupt_s:
            self.notes["corrupt_frames"] = {"count": len(corrupt_s), "first_s": corrupt_s[0]}
        damage.note(self.notes)
        if not num_given:
            raise ClipError("no_frames", self._nothing_given(num_decoded, damage, last))

    def _note_end(self, container: InputContainer, damage: "_Damage", num_decoded: int, last: Fraction | None) -> None:
        """What can be said only when the stream was read to its end."""
        complete = num_decoded == self.declared_frames
        if last is not None and (damage.at_end or (not complete and _lacks_bytes(container, self.path))):
            self.notes["truncated_at_s"] = float(last)
        # After a cut at start_s the count is still that of the whole stream.
        if self.declared_frames is not None and not complete:
            self.notes["declared_frames"] = self.declared_frames

    def _nothing_given(self, num_decoded: int, damage: "_Damage", last: Fraction | None) -> str:
        if not num_decoded and self._end is None:
            return f"video stream {self.stream_index} of {self.path.name} holds no frame that decodes{damage}"
        start = "the beginning" if self._start is None else f"start_s {float(self._start)}"
        end = "the end" if self._end is None else f"end_s {float(self._end)}"
        seen = "every frame is later" if last is None else f"the last frame before its end is at {float(last):.3f} s"
        return f"no frame between {start} and {end} ({seen}); correct start_s and end_s of the clip in the manifest"

    def _repaired_times(self) -> list[Fraction]:
        """Read the whole stream once for its times: a run of bad ones is mended from the good ones on both sides."""
        with _open(self.path, self._watcher) as container:
            stream = container.streams.video[self._number]
            time_base = _time_base(stream)
            damage = _Damage(self._watcher)
            pts: list[int | None] = [frame.pts for frame in _decoded(container, stream, damage)]
            times = repair_times([None if p is None else p * time_base for p in pts], _fraction(stream.average_rate))
        num_absent = sum(p is None for p in pts)
        num_changed = sum(p is None or p * time_base != time for p, time in zip(pts, times, strict=True))
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
    """Open a clip's video; ``None`` if the file has no video stream (cover art is none).

    Of several streams the first with more than one frame is taken, else the first with one. ``start_s`` and ``end_s``
    cut the clip without moving its clock. ``repair_pts`` reads the stream twice and mends its times as
    ``repair_times`` says.

    Raises ``ClipError``: ``missing_file``, ``unreadable``, ``no_frames`` (a video stream of which nothing decodes).
    """
    watcher = watcher or Watcher()
    with _open(path, watcher) as container:
        numbers = [n for n, stream in enumerate(container.streams.video) if not stream.disposition & _PICTURE]
    if not numbers:
        return None
    # A lone stream is taken for its first frame; among several a still picture gives way to the movie behind it.
    enough = 1 if len(numbers) == 1 else 2
    refused: _Damage | None = None
    best: _ProbedStream | None = None
    for number in numbers:
        damage = _Damage(watcher)
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
            f"{which} of {path.name} holds no frame that decodes{damage}; encode the clip anew, with pictures "
            f"of at most {MAX_PIXELS:,} pixels",
        )
    cut = (_exact(start_s), _exact(end_s))
    return Video(path, best, len(numbers), cut, repair_pts=repair_pts, watcher=watcher)


def repair_times(times: Sequence[Fraction | None], rate: Fraction | None) -> list[Fraction]:
    """Times that increase, one per frame, from times of which some are absent or do not increase.

    No frame is dropped: labels count frames. The largest set of times that increase is kept (one wild jump forward
    does not condemn all that follow it); the rest are spread evenly between their kept neighbours, and before the
    first and after the last at the usual step: the median of the kept ones, else ``1 / rate`` from 0.

    Raises ``ClipError`` ``bad_times`` where neither times nor ``rate`` say how long a frame lasts.
    """
    kept = _longest_increasing(times)
    steps = sorted(j_time - i_time for (i, i_time), (j, j_time) in itertools.pairwise(kept) if j == i + 1)
    if steps:
        step = steps[len(steps) // 2]
    elif rate:
        step = 1 / rate
    elif len(kept) < len(times):
        raise ClipError(
            "bad_times",
            f"{len(times) - len(kept)} of {len(times)} frames have no usable time and the stream states no frame rate; "
            "times cannot be repaired: put the stream into a container with times (mp4, mkv)",
        )
    else:
        return [time for _, time in kept]
    first, first_time = kept[0] if kept else (0, Fraction(0))
    last, last_time = kept[-1] if kept else (0, Fraction(0))
    repaired = [first_time + (i - first) * step for i in range(first)]
    for (i, i_time), (j, j_time) in itertools.pairwise(kept):
        repaired += [i_time + (j_time - i_time) * (m - i) / (j - i) for m in range(i, j)]
    return repaired + [last_time + (i - last) * step for i in range(last, len(times))]


def _longest_increasing(times: Sequence[Fraction | None]) -> list[tuple[int, Fraction]]:
    """The longest strictly increasing subsequence as (index, time), by patience sorting, O(n log n).

    It is built from the end, so that of two equally long ones the earlier frames keep their times.
    """
    known = [(index, time) for index, time in enumerate(times) if time is not None]
    heads: list[Fraction] = []  # the negated latest beginning of an increasing run of each length
    at: list[int] = []  # its place in known
    following: list[int | None] = [None] * len(known)  # the next place in the best run that begins at each
    for k in reversed(range(len(known))):
        length = bisect_left(heads, -known[k][1])
        following[k] = at[length - 1] if length else None
        heads[length : length + 1] = [-known[k][1]]
        at[length : length + 1] = [k]
    run = []
    place = at[-1] if at else None
    while place is not None:
        run.append(known[place])
        place = following[place]
    return run


@dataclass(frozen=True)
class _Turn:
    """How a decoded picture becomes upright: transposed first, then mirrored along either axis."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @classmethod
    def of(cls, frame: DecodedFrame) -> "_Turn":
        """From the display matrix [a b u; c d v; x y w]: a pixel (p, q) is shown at (a p + c q, b p + d q).

        Angles between quarter turns, which no camera writes, go to the nearest one.
        """
        try:
            # Not frame.side_data: the frame would keep it, it keeps the frame, and each frame waits for the garbage
            # collector: gigabytes of large ones (tests/test_large_frames.py).
            data = cast(Any, SideDataContainer)(frame).get(SideDataType.DISPLAYMATRIX)
        except ValueError:  # PyAV 18 lists no side data at all if one is new to it (a photograph's EXIF)
            clockwise = round(-frame.rotation / 90) % 4
            return cls(transpose=clockwise % 2 == 1, flip_x=clockwise in {1, 2}, flip_y=clockwise in {2, 3})
        if data is None:
            return cls()
        a, b, _, c, d = np.frombuffer(data, dtype=np.int32, count=5).tolist()  # ISO/IEC 14496-12, 6.2.2
        if abs(b) > abs(a):
            return cls(transpose=True, flip_x=c < 0, flip_y=b < 0)
        return cls(flip_x=a < 0, flip_y=d < 0)

    @property
    def mirrored(self) -> bool:
        return self.transpose ^ self.flip_x ^ self.flip_y

    @property
    def clockwise_deg(self) -> int:
        """The turn; of a mirrored picture, the turn before it is mirrored left to right."""
        flip_x = self.flip_x ^ self.mirrored
        if self.transpose:
            return 90 if flip_x else 270
        return 180 if flip_x else 0

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A view of ``image`` [H, W, 3]."""
        if self.transpose:
            image = image.transpose(1, 0, 2)
        return image[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]


@dataclass(frozen=True)
class _ProbedStream:
    """A video stream of which at least one frame decoded."""

    number: int
    """Position among the container's video streams."""
    index: int
    declared_frames: int | None
    size: tuple[int, int]
    turn: _Turn
    num_frames: int
    """Frames seen while probing, not more than were asked for."""


def _probe(path: Path, number: int, enough: int, damage: "_Damage") -> _ProbedStream | None:
    with _open(path, damage.watcher) as container:
        stream = container.streams.video[number]
        frames: Iterator[DecodedFrame] = _decoded(container, stream, damage)
        first = next(frames, None)
        if first is None:
            return None
        num_frames = 1 + sum(1 for _, _ in zip(range(enough - 1), frames, strict=False))
        turn = _Turn.of(first)
        height, width = (first.width, first.height) if turn.transpose else (first.height, first.width)
        return _ProbedStream(number, stream.index, stream.frames or None, (height, width), turn, num_frames)


def _checked_time(frame: DecodedFrame, stream: VideoStream, number: int, last: Fraction | None) -> Fraction:
    remedy = "set `repair_pts: true` in the config of `frames` to have it filled in"
    after = "at the start of the stream" if last is None else f"after {float(last):.6f} s"
    if frame.pts is None:
        raise ClipError("bad_times", f"frame {number} ({after}) has no presentation time; {remedy}")
    at = frame.pts * _time_base(stream)
    if last is not None and at <= last:
        raise ClipError("bad_times", f"frame {number} is at {float(at):.6f} s, not {after}; {remedy}")
    return at


def _rgb(frame: DecodedFrame, reformatter: VideoReformatter) -> NDArray[np.uint8]:
    """RGB [H, W, 3] in memory of its own.

    Matrix and range are the stream's, flags libswscale's defaults, so pixels equal ``ffmpeg -pix_fmt rgb24``; without
    ``threads=1`` PyAV starts one thread per core for every picture.
    """
    rgb = reformatter.reformat(frame, format="rgb24", interpolation=Interpolation.BICUBIC, threads=1)
    # What PyAV shows has padded rows in FFmpeg's memory: dlib misreads it, and a later frame may overwrite it.
    view: NDArray[np.uint8] = np.asarray(rgb.to_ndarray(), dtype=np.uint8)
    return np.array(_Turn.of(frame).apply(view), order="C", copy=True)


# ---------------------------------------------------------------------------------------------------------- sound


class Sound:
    """Mono samples in [-1, 1], gathered block by block; more than HELD_SAMPLES of them lie in a file without a name."""

    num_clipped: int = 0
    """Samples that lay outside [-1, 1]."""

    def __init__(self) -> None:
        self._num = 0
        self._blocks: list[NDArray[np.float32]] = []
        self._file: IO[bytes] | None = None

    def __len__(self) -> int:
        return self._num

    @property
    def in_memory(self) -> bool:
        return self._file is None

    def append(self, block: NDArray[np.float32]) -> None:
        """Add samples [n] at the end.

        Raises ``MachineError``: the disk for temporary files is full.
        """
        self.num_clipped += int(np.count_nonzero(np.abs(block) > 1))
        block = np.clip(block, -1, 1)
        self._num += len(block)
        if self._file is None:
            self._blocks.append(block)
            if self._num <= HELD_SAMPLES:
                return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it goes with this object
                weakref.finalize(self, self._file.close)
                blocks, self._blocks = self._blocks, []
            else:
                blocks = [block]
            for waiting in blocks:
                self._file.write(waiting.tobytes())
            self._file.flush()
        except OSError as error:
            raise MachineError(
                "a recording of more than five minutes waits in the folder for temporary files, which cannot be "
                f"written ({error.strerror or error}); make room there, or name another folder in TMPDIR"
            ) from error

    def __getitem__(self, part: slice) -> NDArray[np.float32]:
        """Consecutive samples."""
        if self._file is None:
            if len(self._blocks) != 1:
                self._blocks = [np.concatenate(self._blocks) if self._blocks else np.zeros(0, dtype=np.float32)]
            return self._blocks[0][part]
        start, stop, step = part.indices(self._num)
        if step != 1:
            raise ValueError(f"step {step}: only consecutive samples can be read")
        self._file.seek(4 * start)
        return np.frombuffer(self._file.read(4 * max(stop - start, 0)), dtype=np.float32).copy()


@dataclass(frozen=True)
class Audio:
    """The sound of one clip."""

    sound: Sound
    """Mono, the mean of the channels: its length and slices of it, however long it is."""
    start_s: float
    """Time of sample 0 in seconds on the clip's clock; sample k is at ``start_s + k / hz``."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Facts for the record that are no error, JSON values.

    ``audio_streams {count, taken}``, ``audio_gaps [[start_s, duration_s], ...]`` (filled with silence),
    ``audio_overlap_s`` (seconds dropped because the times ran back), ``clipped_samples`` (a lossy decoder's overshoot),
    ``start_assumed`` (no time in the stream: taken to begin at 0 s), ``truncated_at_s``,
    ``undecodable_packets {count, error}``.
    """

    @property
    def samples(self) -> NDArray[np.float32]:
        """All samples [n] in memory."""
        return self.sound[:]


def read_audio(
    path: Path,
    *,
    hz: int = 16_000,
    start_s: float | None = None,
    end_s: float | None = None,
    watcher: Watcher | None = None,
) -> Audio | None:
    """Decode a file's sound to mono at ``hz``; ``None`` if it has no audio stream.

    Of several streams the first that decodes is taken. Sound at ``hz`` passes unchanged; other rates go through
    soxr (HQ), whose linear phase keeps every sample's time. Encoder delay and edit lists are applied as FFmpeg does.

    Times that jump ahead leave a gap, filled with silence; where they run back, sound that overlaps is dropped. Both
    are bounded, so that a few flipped bits cannot ask for more memory than a machine has or empty a clip unseen:

    * a jump is an hour at most (MAX_GAP_S);
    * all silence inside the cut is at most as long as the file's pictures or as its sound that decodes, whichever is
      longer, and four hours at most (MAX_SILENCE_S). Pictures are as long as the times of the video's packets span,
      no picture counting for more than ten seconds (MAX_PICTURE_S). What the header says of lengths is not asked;
    * no more sound is dropped than is kept.

    Raises ``ClipError``: ``missing_file``, ``unreadable``, ``audio_undecodable`` (a stream, but no sample),
    ``bad_times`` (times outside these bounds; seen before the silence is made).
    """
    watcher = watcher or Watcher()
    with _open(path, watcher) as container:
        num_streams = len(container.streams.audio)
    if not num_streams:
        return None
    cut = (_exact(start_s), _exact(end_s))
    refused: _Damage | None = None
    for number in range(num_streams):
        damage = _Damage(watcher)
        with _open(path, watcher) as container:
            stream = container.streams.audio[number]
            audio = _read_stream(container, stream, number, path, damage, hz, cut)
            if audio is not None:
                if num_streams > 1:
                    audio.notes["audio_streams"] = {"count": num_streams, "taken": stream.index}
                return audio
        refused = refused or damage
    which = "the audio stream" if num_streams == 1 else f"each of {num_streams} audio streams"
    raise ClipError("audio_undecodable", f"{which} of {path.name} holds no sample that decodes{refused}")


def _read_stream(
    container: InputContainer,
    stream: AudioStream,
    number: int,
    path: Path,
    damage: "_Damage",
    hz: int,
    cut: tuple[Fraction | None, Fraction | None],
) -> Audio | None:
    notes: dict[str, Any] = {}
    gaps: list[list[float]] = []
    times: _SoundTimes | None = None
    recording: _Recording | None = None
    silence_checked = False
    frames: Iterator[AudioFrame] = _decoded(container, stream, damage)
    for frame in frames:
        _check_format(frame, path)
        wave, rate = _mono(frame), frame.sample_rate
        if recording is None or times is None:
            if frame.pts is None:
                notes["start_assumed"] = True
            times = _SoundTimes(_audio_time(frame, stream) or Fraction(0), cut)
            recording = _Recording(hz, times.end, cut)
        gap_at = times.end
        num_silent, num_dropped = times.place(_audio_time(frame, stream), len(wave), rate)
        if num_silent:
            late = Fraction(num_silent, rate)
            if late > MAX_GAP_S:
                raise ClipError(
                    "bad_times",
                    f"the sound's times jump from {float(gap_at):.3f} s to {float(gap_at + late):.3f} s; "
                    "expected steady times: write the file anew (ffmpeg -i IN -c copy OUT) or cut it with end_s",
                )
            # Enough sound so far: nothing to ask. Else the rest of the file says, before the silence is made.
            if times.silence > min(times.sound, Fraction(MAX_SILENCE_S)) and not silence_checked:
                _check_silence(path, number, cut, damage.watcher)
                silence_checked = True
            gaps.append([float(gap_at), float(late)])
            recording.add_silence(num_silent, rate)
        recording.add(wave[num_dropped:], rate)
        if recording.complete:
            break
    if recording is None or times is None:
        return None
    if times.dropped > times.sound:
        raise ClipError(
            "bad_times",
            f"the sound's times run back at {float(times.first_overlap or 0):.3f} s, and {float(times.dropped):.3f} s "
            f"of {float(times.sound + times.dropped):.3f} s would be dropped as heard before; expected steady times: "
            "give the frames of the sound new times (ffmpeg -i IN -vn -af asetpts=N/SR/TB OUT.wav) and name that "
            "file as `audio` in the manifest",
        )
    if gaps:
        notes["audio_gaps"] = gaps
    if times.dropped:
        notes["audio_overlap_s"] = float(times.dropped)
    if not recording.complete and (damage.at_end or _lacks_bytes(container, path)):
        notes["truncated_at_s"] = float(times.end)
    damage.note(notes)
    sound = recording.finish()
    if sound.num_clipped:
        notes["clipped_samples"] = sound.num_clipped
    return Audio(sound, float(recording.first_kept), notes)


class _SoundTimes:
    """Places decoded sound on the clip's clock by its times and its number of samples; counts, and holds none."""

    def __init__(self, start: Fraction, cut: tuple[Fraction | None, Fraction | None]) -> None:
        self.end = start
        """Time right after the last sample that was placed: where the next one is expected."""
        self.sound = self.silence = self.dropped = Fraction(0)
        """Seconds: of sound that was placed, of silence inside the cut, of sound left out."""
        self.first_jump: tuple[Fraction, Fraction] | None = None
        """From where to where the times first jumped ahead, inside the cut."""
        self.first_overlap: Fraction | None = None
        self._cut = cut

    def place(self, at: Fraction | None, num_samples: int, rate: int) -> tuple[int, int]:
        """Samples of silence that go before the next ``num_samples``, and how many of these are dropped."""
        late = Fraction(0) if at is None else at - self.end
        num_silent = round(late * rate) if late > MAX_JITTER_S else 0
        num_dropped = min(num_samples, round(-late * rate)) if late < -MAX_JITTER_S else 0
        resumed = self.end + Fraction(num_silent, rate)
        inside = self._inside(self.end, resumed)
        if inside and self.first_jump is None:
            self.first_jump = self.end, resumed
        if num_dropped and self.first_overlap is None:
            self.first_overlap = self.end
        self.silence += inside
        self.sound += Fraction(num_samples - num_dropped, rate)
        self.dropped += Fraction(num_dropped, rate)
        self.end = resumed + Fraction(num_samples - num_dropped, rate)
        return num_silent, num_dropped

    def _inside(self, start: Fraction, stop: Fraction) -> Fraction:
        cut_start, cut_end = self._cut
        start = start if cut_start is None else max(start, cut_start)
        stop = stop if cut_end is None else min(stop, cut_end)
        return max(stop - start, Fraction(0))


def _check_silence(path: Path, number: int, cut: tuple[Fraction | None, Fraction | None], watcher: Watcher) -> None:
    """Read the file once more, keeping nothing: raise ``bad_times`` if its gaps ask for too much silence."""
    times: _SoundTimes | None = None
    with _open(path, watcher) as container:
        stream = container.streams.audio[number]
        for frame in _decoded(container, stream, _Damage(watcher)):
            at = _audio_time(frame, stream)
            times = times or _SoundTimes(at or Fraction(0), cut)
            times.place(at, frame.samples, frame.sample_rate)
            if cut[1] is not None and times.end >= cut[1]:
                break
    if times is None or times.first_jump is None:
        return
    pictures = _length_of_pictures(path, watcher)
    allowed = min(max(pictures, times.sound), Fraction(MAX_SILENCE_S))
    if times.silence > allowed:
        jump_from, jump_to = times.first_jump
        raise ClipError(
            "bad_times",
            f"the sound's times ask for {float(times.silence):.3f} s of silence, the first from "
            f"{float(jump_from):.3f} s to {float(jump_to):.3f} s; the file holds {float(times.sound):.3f} s of sound "
            f"and {float(pictures):.3f} s of pictures, so {float(allowed):.3f} s at most are expected: cut the clip "
            "before the jump with end_s or after it with start_s, or give the sound new times "
            "(ffmpeg -i IN -vn -af asetpts=N/SR/TB OUT.wav) and name that file as `audio` in the manifest",
        )


def _length_of_pictures(path: Path, watcher: Watcher) -> Fraction:
    """Seconds that the times of the packets span, of the longest video stream; 0 without one."""
    found: dict[int, list[Fraction]] = {}
    with _open(path, watcher) as container:
        for packet in _packets(container, _Damage(watcher)):
            if packet is None or packet.pts is None or not isinstance(packet.stream, VideoStream):
                continue
            if not packet.stream.disposition & _PICTURE:
                found.setdefault(packet.stream.index, []).append(packet.pts * _time_base(packet.stream))
    steps = ([b - a for a, b in itertools.pairwise(sorted(times))] for times in found.values())
    return max(
        (sum((min(step, Fraction(MAX_PICTURE_S)) for step in each), Fraction(0)) for each in steps), default=Fraction(0)
    )


class _Recording:
    """Gathers mono sound of any rate as samples at ``hz``, and keeps those inside the cut."""

    def __init__(self, hz: int, start: Fraction, cut: tuple[Fraction | None, Fraction | None]) -> None:
        cut_start, cut_end = cut
        # Sample k is at start + k / hz; kept are those with cut_start <= time < cut_end.
        self._first = 0 if cut_start is None else max(0, math.ceil((cut_start - start) * hz))
        self._stop = None if cut_end is None else max(0, math.ceil((cut_end - start) * hz))
        self.first_kept = start + Fraction(self._first, hz)
        self._hz = hz
        self._rate: int | None = None
        self._resampler: soxr.ResampleStream | None = None
        self._num_made = 0
        self._kept = Sound()

    @property
    def complete(self) -> bool:
        """Nothing that may follow lies inside the cut."""
        return self._stop is not None and self._num_made >= self._stop

    def add(self, wave: NDArray[np.float32], rate: int) -> None:
        if rate != self._rate:  # the first samples, or a stream that changes its rate
            self._flush()
            self._rate = rate
            self._resampler = None if rate == self._hz else soxr.ResampleStream(rate, self._hz, 1, dtype="float32")
        self._keep(wave if self._resampler is None else self._resampler.resample_chunk(wave))

    def add_silence(self, num_samples: int, rate: int) -> None:
        for done in range(0, num_samples, rate):  # a second at a time: a long gap needs no long array
            self.add(np.zeros(min(rate, num_samples - done), dtype=np.float32), rate)

    def finish(self) -> Sound:
        """All kept samples; nothing can be added afterwards."""
        self._flush()
        return self._kept

    def _flush(self) -> None:
        if self._resampler is not None:
            self._keep(self._resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True))
            self._resampler = None

    def _keep(self, wave: NDArray[np.float32]) -> None:
        first = max(0, self._first - self._num_made)
        stop = len(wave) if self._stop is None else max(0, self._stop - self._num_made)
        self._num_made += len(wave)
        if len(wave[first:stop]):
            self._kept.append(wave[first:stop])


def _audio_time(frame: AudioFrame, stream: AudioStream) -> Fraction | None:
    return None if frame.pts is None else frame.pts * _time_base(stream)


def _check_format(frame: AudioFrame, path: Path) -> None:
    """Raise ``audio_undecodable`` for a rate or a number of channels that no recording has."""
    lowest, highest = SOUND_HZ
    if not lowest <= frame.sample_rate <= highest:
        found, expected = f"a rate of {frame.sample_rate:,} Hz", f"{lowest:,} to {highest:,} Hz"
    elif len(frame.layout.channels) > MAX_CHANNELS:
        found, expected = f"{len(frame.layout.channels):,} channels", f"{MAX_CHANNELS} at most"
    else:
        return
    raise ClipError(
        "audio_undecodable",
        f"the sound of {path.name} states {found}, expected {expected}; its header is damaged: write the sound anew, "
        "or name another file as `audio` in the manifest",
    )


def _mono(frame: AudioFrame) -> NDArray[np.float32]:
    """Mean of the channels [n] on a full scale of 1; 24-bit sound arrives in the high bits of 32."""
    try:
        wave = frame.to_ndarray()  # planar [C, n], packed [1, n * C]
    except ValueError as error:
        raise ClipError("audio_undecodable", f"samples of format {frame.format.name} are not supported") from error
    if not frame.format.is_planar:
        wave = wave.reshape(frame.samples, -1).T
    scaled: NDArray[np.float64] = wave.astype(np.float64)
    if wave.dtype == np.uint8:  # the one unsigned format: silence is 128
        scaled = (scaled - 128) / 128
    elif wave.dtype.kind == "i":
        scaled /= 2.0 ** (8 * wave.dtype.itemsize - 1)
    mean: NDArray[np.float64] = scaled.mean(axis=0)
    return mean.astype(np.float32)


# ------------------------------------------------------------------------------------------------------- container


@dataclass
class _Damage:
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
        torn = self.last_torn is not None and self.num_packets - self.last_torn < TAIL_PACKETS
        return torn or self.demuxer_failed or self.in_last_frame

    def undecodable(self, error: av.FFmpegError) -> None:
        self.num_undecodable += 1
        self.last_torn = self.num_packets
        self.first_error = self.first_error or error.strerror

    def note(self, notes: dict[str, Any]) -> None:
        if self.num_undecodable:
            notes["undecodable_packets"] = {"count": self.num_undecodable, "error": self.first_error}

    def __str__(self) -> str:
        """Tail of an error message."""
        if self.num_undecodable:
            return f" ({self.num_undecodable} packets refused, the first with: {self.first_error})"
        return f" ({self.first_error or f'{self.num_packets} packets in the file'})"


def _open(path: Path, watcher: Watcher) -> InputContainer:
    if not path.exists():
        raise ClipError("missing_file", f"{path} is not there; correct its path in the manifest")
    try:
        # ``file:`` keeps a name with a colon from being read as a protocol; from a file FFmpeg follows no network link.
        container: InputContainer = av.open(f"file:{path}", options=dict(_LIMITS), **_ANY_TITLES)
    except av.FFmpegError as error:
        raise ClipError(
            "unreadable",
            f"{path.name} does not open as a media file ({error.strerror}); expected a movie or sound file, whole: "
            "is it the right file, and was it copied to its end?",
        ) from error
    if container.format.name in _NO_MEDIA_FORMATS or not (container.streams.video or container.streams.audio):
        container.close()
        raise ClipError(
            "unreadable",
            f"{path.name} is of format {container.format.name}, without picture or sound of its own; "
            "expected a movie or sound file",
        )
    try:
        watcher.opened()
    except BaseException:
        container.close()
        raise
    return container


def _packets(container: InputContainer, damage: _Damage) -> "Iterator[Packet[Any] | None]":
    """Packets of all streams: a file torn inside an audio packet ends early for its video too. ``None`` flushes."""
    packets = container.demux()
    while True:
        try:
            packet = next(packets, None)
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


def _decoded(container: InputContainer, stream: VideoStream | AudioStream, damage: _Damage) -> Iterator[Any]:
    """Frames of one stream in presentation order; a packet that does not decode is counted and left behind."""
    if not _is_known(stream, damage):
        return
    for packet in _packets(container, damage):
        if packet is None or packet.stream.index == stream.index:
            try:
                frames = stream.decode(packet)
            except av.FFmpegError as error:
                damage.undecodable(error)
            else:
                yield from frames


def _is_known(stream: VideoStream | AudioStream, damage: _Damage) -> bool:
    """Whether this FFmpeg has a decoder for the stream; PyAV gives no codec context where it has not."""
    if stream.codec_context is None:
        damage.first_error = "this FFmpeg has no decoder for its codec"
        return False
    stream.codec_context.thread_count = 1
    stream.codec_context.options = dict(_LIMITS)
    return True


def _time_base(stream: VideoStream | AudioStream) -> Fraction:
    base = _fraction(stream.time_base)
    if base is None:
        raise ClipError("bad_times", f"stream {stream.index} states no time base; write the file anew")
    return base


def _fraction(ratio: Fraction | None) -> Fraction | None:
    """PyAV before 19 gives a Fraction or None, since then a type of its own that is false where nothing is stated."""
    return Fraction(ratio.numerator, ratio.denominator) if ratio else None


def _exact(seconds: float | None) -> Fraction | None:
    """The number that a person meant: 0.1 is 1/10, and the printed time of a frame at 1/30 s is 1/30."""
    return None if seconds is None else Fraction(seconds).limit_denominator(NS_PER_S)


def _lacks_bytes(container: InputContainer, path: Path) -> bool:
    """Whether the file ends before its outermost boxes do. FFmpeg reads a torn Matroska file without an error.

    MPEG program streams and FLV state no size: there only a torn last packet or frame tells.
    """
    num_bytes = path.stat().st_size
    if container.format.name == "mpegts":  # ISO/IEC 13818-1: packets of 188 bytes; of 192 or 204 with stamp or parity
        return all(num_bytes % size for size in (188, 192, 204))
    with path.open("rb") as file:
        if "matroska" in container.format.name:
            end = _end_of_matroska(file.read(64))
        elif container.format.name in {"avi", "wav"}:
            end = _end_of_riff(file.read(8))
        elif "mp4" in container.format.name:
            end = 0
            while end + 8 <= num_bytes:
                file.seek(end)
                size = _size_of_box(file.read(16), num_bytes - end)
                if size < 8:  # no box: whatever follows, it is not missing
                    return False
                end += size
        else:
            end = 0
    return end > num_bytes


def _end_of_matroska(head: bytes) -> int:
    """End of the Segment that follows the EBML header (RFC 8794 section 4, RFC 9559 section 5.1); 0: not stated."""
    end = 0
    for identity in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):
        if head[end : end + 4] != identity or end + 4 >= len(head):
            return 0
        width = 9 - head[end + 4].bit_length()  # as many leading zero bits as further bytes
        field_bytes = head[end + 4 : end + 4 + width]
        value = int.from_bytes(field_bytes, "big") & ((1 << 7 * width) - 1)
        if len(field_bytes) < width or value == (1 << 7 * width) - 1:  # all ones: unknown, as in a live stream
            return 0
        end += 4 + width + value
    return end


def _end_of_riff(head: bytes) -> int:
    """End of the first RIFF chunk; 0 where the writer could not go back to fill it in (zero or the largest sizes)."""
    size = int.from_bytes(head[4:8], "little")
    return 8 + size if head[:4] == b"RIFF" and size < 0x7FFF_0000 else 0


def _size_of_box(head: bytes, num_left: int) -> int:
    """Bytes of an ISO base media box (ISO/IEC 14496-12, 4.2): 0 reaches to the end, 1 has a 64-bit size behind it."""
    size = int.from_bytes(head[:4], "big")
    if size == 1:
        return int.from_bytes(head[8:16], "big")
    return size or num_left
