"""The sound of a clip: decoded, mixed to mono, placed on the clip's clock."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from extract.errors import ClipError
from extract.inputs.media import decoding
from extract.inputs.media.decoding import Damage, Watcher, is_cover_art, time_base
from extract.inputs.media.file_ends import is_cut_off
from extract.inputs.media.samples import Audio, Recording
from extract.inputs.media.sound_times import SoundTimes, check_gap, length_of_video
from extract.inputs.media.span import Span

SOUND_HZ = (1_000, 768_000)
"""Lowest and highest sample rate that is believed: four kilobytes at 1 Hz are not an hour of sound at 16 kHz."""

MAX_CHANNELS = 64
"""A microphone array has as many; a header that states thousands is damaged."""


def read_audio(
    path: Path,
    *,
    hz: int = 16_000,
    start_s: float | None = None,
    end_s: float | None = None,
    watcher: Watcher | None = None,
) -> Audio | None:
    """Decode a file's sound to mono at ``hz``; ``None`` if it has no audio stream.

    Of several streams, the first that decodes is taken. Sound at ``hz`` passes unchanged; other rates go through
    soxr (HQ), whose linear phase keeps every sample's time. Encoder delay and edit lists are applied as FFmpeg does.

    Times that jump ahead leave a gap, which is filled with silence; where they run back, sound that overlaps is
    dropped. ``sound_times`` bounds both.

    Raises ``ClipError``: ``missing_file``, ``unreadable``, ``audio_undecodable`` (a stream, but no sample),
    ``bad_times`` (times outside these bounds, noticed before the silence is made).
    """
    watcher = watcher or Watcher()
    with decoding.open_file(path, watcher) as container:
        num_streams = len(container.streams.audio)
    if not num_streams:
        return None
    span = Span.of(start_s, end_s)
    refused: Damage | None = None
    for number in range(num_streams):
        damage = Damage(watcher)
        with decoding.open_file(path, watcher) as container:
            stream = container.streams.audio[number]
            audio = _read_stream(_Source(path, number, span, damage), container, stream, hz)
            if audio is not None:
                if num_streams > 1:
                    audio.notes["audio_streams"] = {"count": num_streams, "taken": stream.index}
                return audio
        refused = refused or damage
    which = "the audio stream" if num_streams == 1 else f"each of {num_streams} audio streams"
    raise ClipError("audio_undecodable", f"{which} of {path.name} has no sample that can be decoded{refused}")


@dataclass(frozen=True)
class _Source:
    """One audio stream of a file, and what is read of it."""

    path: Path
    number: int
    """Position among the container's audio streams."""
    span: Span
    damage: Damage


def _read_stream(source: _Source, container: InputContainer, stream: AudioStream, hz: int) -> Audio | None:
    """The sound of one stream; ``None`` if no sample of it decodes."""
    notes: dict[str, Any] = {}
    gaps: list[list[float]] = []
    times: SoundTimes | None = None
    recording: Recording | None = None
    silence_checked = False
    frames: Iterator[AudioFrame] = decoding.decoded(container, stream, source.damage)
    for frame in frames:
        _check_format(frame, source.path)
        wave, rate = _mono(frame), frame.sample_rate
        at = _time(frame, stream)
        if recording is None or times is None:
            if at is None:
                notes["start_assumed"] = True
            times = SoundTimes(at or Fraction(0), source.span)
            recording = Recording(hz, times.end, source.span)
        gap_at = times.end
        num_silent, num_dropped = times.place(at, len(wave), rate)
        if num_silent:
            gap = Fraction(num_silent, rate)
            check_gap(gap_at, gap)
            if times.silence_is_doubtful and not silence_checked:
                _check_silence(source)
                silence_checked = True
            gaps.append([float(gap_at), float(gap)])
            recording.add_silence(num_silent, rate)
        recording.add(wave[num_dropped:], rate)
        if recording.complete:
            break
    if recording is None or times is None:
        return None
    times.check_overlap()
    if gaps:
        notes["audio_gaps"] = gaps
    if times.dropped:
        notes["audio_overlap_s"] = float(times.dropped)
    if not recording.complete and (source.damage.at_end or is_cut_off(source.path, container.format.name)):
        notes["truncated_at_s"] = float(times.end)
    source.damage.note(notes)
    sound = recording.finish()
    if sound.num_clipped:
        notes["clipped_samples"] = sound.num_clipped
    return Audio(sound, float(recording.first_kept), notes)


def _check_silence(source: _Source) -> None:
    """Read the stream once more, keeping nothing: raise ``bad_times`` if its gaps need too much silence."""
    watcher, span = source.damage.watcher, source.span
    times: SoundTimes | None = None
    with decoding.open_file(source.path, watcher) as container:
        stream = container.streams.audio[source.number]
        frames: Iterator[AudioFrame] = decoding.decoded(container, stream, Damage(watcher))
        for frame in frames:
            at = _time(frame, stream)
            times = times or SoundTimes(at or Fraction(0), span)
            times.place(at, frame.samples, frame.sample_rate)
            if span.ends_by(times.end):
                break
    if times is not None and times.first_jump is not None:
        times.check_silence(_length_of_video(source.path, watcher))


def _length_of_video(path: Path, watcher: Watcher) -> Fraction:
    """Seconds that the longest video stream of a file lasts; 0 without one."""
    times: dict[int, list[Fraction]] = {}
    with decoding.open_file(path, watcher) as container:
        for packet in decoding.packets(container, Damage(watcher)):
            if packet is None or packet.pts is None or not isinstance(packet.stream, VideoStream):
                continue
            if not is_cover_art(packet.stream):
                times.setdefault(packet.stream.index, []).append(packet.pts * time_base(packet.stream))
    return max(map(length_of_video, times.values()), default=Fraction(0))


def _time(frame: AudioFrame, stream: AudioStream) -> Fraction | None:
    return None if frame.pts is None else frame.pts * time_base(stream)


def _check_format(frame: AudioFrame, path: Path) -> None:
    """Raise ``audio_undecodable`` for a sample rate or a number of channels that no recording has."""
    lowest, highest = SOUND_HZ
    if not lowest <= frame.sample_rate <= highest:
        found, expected = f"a rate of {frame.sample_rate:,} Hz", f"{lowest:,} to {highest:,} Hz"
    elif len(frame.layout.channels) > MAX_CHANNELS:
        found, expected = f"{len(frame.layout.channels):,} channels", f"{MAX_CHANNELS} at most"
    else:
        return
    raise ClipError(
        "audio_undecodable",
        f"the sound of {path.name} states {found}, expected {expected}; its header is damaged: export the sound again, "
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
