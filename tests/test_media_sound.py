"""Sound of clips muxed here: closed forms for time, rate, channels and gaps."""

from pathlib import Path

import av
import numpy as np
import pytest

from extract.errors import ClipError, MachineError
from extract.inputs.media import decoding, read_audio, samples, sound_times
from tests.contract import at_once
from tests.media_files import (
    encode_pictures,
    encode_sound,
    mux,
    overwrite_packets,
    payloads,
    pictures,
    tone,
    write_clip,
)

LSB = 2**-15


def write_shifted(path, sound, gaps_s, hz=16_000):
    with av.open(path, "w") as container:
        mux(container, encode_sound(container, sound, hz, gaps_s=gaps_s))
    return path


# Time


@pytest.mark.parametrize("hz", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000])
def test_a_sine_keeps_its_phase_at_every_rate(tmp_path, hz):
    """Sample k is sin(2 pi f (k / 16000)): an error of one sample of 16 kHz would be 0.08."""
    audio = read_audio(write_clip(tmp_path / "clip.wav", sound=tone(1, hz), hz=hz))
    assert len(audio.samples) == 16_000
    inside = slice(400, -400)  # the resampler's filter sees the silence before and after
    assert np.abs(audio.samples - tone(1))[inside].max() < 2 * LSB


@pytest.mark.parametrize("hz", [16_000, 44_100, 48_000])
def test_an_impulse_lands_at_its_time(tmp_path, hz):
    sound = np.zeros(hz)
    sound[hz // 2] = 0.9
    audio = read_audio(write_clip(tmp_path / "clip.wav", sound=sound, hz=hz))
    assert np.argmax(np.abs(audio.samples)) == 8_000


@pytest.mark.parametrize("hz", [16_000, 44_100])
def test_late_sound_starts_late(tmp_path, hz):
    path = write_clip(tmp_path / "clip.mov", pictures(5), sound=tone(1, hz), hz=hz, sound_start_s=2.43)
    audio = read_audio(path)
    assert audio.start_s == 2.43
    assert len(audio.samples) == 16_000
    assert np.abs(audio.samples - tone(1))[400:-400].max() < 2 * LSB
    assert audio.notes == {}


@pytest.mark.parametrize("hz", [16_000, 48_000])
@pytest.mark.parametrize(("start_s", "end_s"), [(0.5, 0.75), (0.1, None), (None, 0.3), (0.50001, 0.9), (0.2, 0.90001)])
def test_a_cut_keeps_the_clock(tmp_path, hz, start_s, end_s):
    path = write_clip(tmp_path / "clip.wav", sound=tone(2, hz), hz=hz)
    whole, part = read_audio(path), read_audio(path, start_s=start_s, end_s=end_s)
    at = np.arange(32_000) / 16_000
    inside = (at >= (start_s or 0)) & (at < (end_s or 9))
    assert part.start_s == pytest.approx(at[inside][0], abs=1e-12)
    assert np.array_equal(part.samples, whole.samples[inside])


def test_a_cut_of_late_sound(tmp_path):
    path = write_clip(tmp_path / "clip.mkv", sound=tone(1), sound_start_s=2)
    early = read_audio(path, start_s=1, end_s=2.25)
    assert (early.start_s, len(early.samples)) == (2.0, 4_000)
    assert len(read_audio(path, end_s=1.5).samples) == 0
    assert len(read_audio(path, start_s=7).samples) == 0


# Formats


@pytest.mark.parametrize(
    ("name", "codec", "step"),
    [
        ("clip.wav", "pcm_u8", 1 / 128),
        ("clip.wav", "pcm_s16le", 2**-15),
        ("clip.wav", "pcm_s24le", 2**-23),
        ("clip.wav", "pcm_s32le", 2**-23),
        ("clip.wav", "pcm_f32le", 2**-23),
        ("clip.wav", "pcm_f64le", 2**-23),
        ("clip.flac", "flac", 2**-15),
    ],
)
@pytest.mark.parametrize("num_channels", [1, 2, 6])
def test_mono_is_the_mean_of_the_channels(tmp_path, name, codec, step, num_channels):
    audio = read_audio(write_clip(tmp_path / name, sound=channels(num_channels), sound_codec=codec))
    assert audio.samples.dtype == np.float32
    assert audio.start_s == 0
    assert np.abs(audio.samples - channels(num_channels).mean(axis=0)).max() < 2 * step


@pytest.mark.parametrize("num_channels", [1, 2, 6])
@pytest.mark.parametrize(("name", "start_s"), [("clip.m4a", 0), ("clip.mka", 0), ("clip.mp3", 1105 / 16_000)])
def test_encoder_delay_is_cut_off(tmp_path, name, start_s, num_channels):
    """Lossy planar formats. An .mp3's clock starts before its delay (1,105 samples), as ffprobe shows it."""
    codec = "aac"
    if name.endswith("mp3"):
        codec, num_channels = "libmp3lame", min(num_channels, 2)
    audio = read_audio(write_clip(tmp_path / name, sound=channels(num_channels), sound_codec=codec))
    assert audio.start_s == start_s
    expected = channels(num_channels).mean(axis=0)[4_000:12_000]
    error = audio.samples[4_000:12_000] - expected
    assert np.sqrt((error**2).mean() / (expected**2).mean()) < 0.25


def channels(num_channels):
    """One tone per channel, each softer than the one before: [C, n]."""
    return np.stack([tone(1, frequency_hz=300 + 100 * c) / (c + 1) for c in range(num_channels)])


def test_sixteen_kilohertz_is_not_resampled(tmp_path):
    noise = np.random.default_rng(0).uniform(-1, 1, 16_000)
    audio = read_audio(write_clip(tmp_path / "clip.wav", sound=noise, sound_codec="pcm_f32le"))
    assert np.array_equal(audio.samples, noise.astype(np.float32))


def test_another_rate_can_be_asked_for(tmp_path):
    path = write_clip(tmp_path / "clip.wav", sound=tone(1, 48_000), hz=48_000)
    assert len(read_audio(path, hz=24_000).samples) == 24_000


def test_overshoot_is_clipped_and_counted(tmp_path):
    loud = np.array([0.5, 1.5, -2.0, 1.0, -1.0], dtype=np.float32)
    audio = read_audio(write_clip(tmp_path / "clip.wav", sound=loud, sound_codec="pcm_f32le"))
    assert audio.samples.tolist() == [0.5, 1.0, -1.0, 1.0, -1.0]
    assert audio.notes == {"clipped_samples": 2}


def test_the_rate_may_change_midway(tmp_path):
    """Two .mp2 files, one after the other: every packet states its own rate."""
    path = tmp_path / "clip.mp2"
    parts = [
        write_clip(tmp_path / f"{hz}.mp2", sound=tone(1, hz, frequency_hz=frequency), hz=hz, sound_codec="mp2")
        for hz, frequency in ((48_000, 300), (32_000, 700))
    ]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    audio = read_audio(path)
    assert abs(len(audio.samples) - 2 * 1.008 * 16_000) <= 3  # whole packets of 1,152 samples
    for first, frequency in ((4_000, 300), (20_000, 700)):
        spectrum = np.abs(np.fft.rfft(audio.samples[first : first + 8_000]))
        assert np.argmax(spectrum) * 2 == frequency  # Hz per bin: 16,000 / 8,000


# Gaps


@pytest.mark.parametrize("hz", [16_000, 48_000])
def test_a_gap_is_filled_with_silence_and_noted(tmp_path, hz):
    first = 1024 * (hz // 8_000)
    path = write_shifted(tmp_path / "clip.mka", tone(1, hz), {first: 0.25}, hz)
    audio = read_audio(path)
    assert audio.notes == {"audio_gaps": [[pytest.approx(first / hz, abs=1e-3), pytest.approx(0.25, abs=1e-3)]]}
    assert abs(len(audio.samples) - 20_000) <= 16  # Matroska rounds times to 1 ms
    before = round(first / hz * 16_000)
    inside = audio.samples[before + 200 : before + 3_800]
    assert np.abs(inside).max() < 1e-4
    after = audio.samples[-8_000:]
    assert np.abs(after - tone(1)[-8_000:])[:-400].max() < 2 * LSB


def test_a_gap_of_forty_milliseconds_is_rounding(tmp_path):
    audio = read_audio(write_shifted(tmp_path / "clip.mka", tone(1), {2048: 0.040}))
    assert audio.notes == {}
    assert len(audio.samples) == 16_000


def test_a_gap_of_fortyone_milliseconds_is_one(tmp_path):
    audio = read_audio(write_shifted(tmp_path / "clip.mka", tone(1), {2048: 0.041}))
    assert audio.notes == {"audio_gaps": [[0.128, pytest.approx(0.041)]]}
    assert len(audio.samples) == 16_000 + 656


def test_two_gaps(tmp_path):
    audio = read_audio(write_shifted(tmp_path / "clip.mka", tone(2), {4096: 0.5, 8192: 1.0}))
    assert audio.notes == {"audio_gaps": [[0.256, 0.5], [1.012, 1.0]]}
    assert len(audio.samples) == 32_000 + 24_000
    assert np.array_equal(audio.samples[8_192 + 24_000 :], read_samples(tone(2))[8_192:])


def read_samples(sound):
    return (np.rint(sound * (2**15 - 1)) / 2**15).astype(np.float32)


def test_times_that_run_back_drop_the_overlap(tmp_path):
    """The second part claims to begin 0.128 s before the first one ends: what was heard first stays."""
    audio = read_audio(overlapping(tmp_path / "clip.mka"))
    assert audio.notes == {"audio_overlap_s": 0.128}
    assert len(audio.samples) == 16_384 - 2_048
    expected = read_samples(tone(1.024))
    assert np.array_equal(audio.samples, np.concatenate([expected[:8_192], expected[10_240:]]))


def overlapping(path):
    """A muxer refuses times that run back, so the block times of a steady clip are patched: a block is 64 ms."""
    write_clip(path, sound=tone(1.024))
    data = bytearray(path.read_bytes())
    blocks = list(payloads(path, 0))
    assert len(blocks) == 16
    for number, (place, _) in enumerate(blocks):
        if number >= 8:
            data[place - 3 : place - 1] = (64 * (number - 2)).to_bytes(2, "big")
    path.write_bytes(data)
    return path


def test_a_jump_of_hours_is_a_broken_clock(tmp_path):
    path = write_shifted(tmp_path / "clip.mka", tone(1), {4096: 4000.0})
    with pytest.raises(
        ClipError, match=r"jump from 0\.256 s to 4000\.256 s; expected no gap of more than 3600 s: .*end_s"
    ) as caught:
        read_audio(path)
    assert caught.value.reason == "bad_times"
    assert len(read_audio(path, end_s=0.2).samples) == 3_200


@pytest.fixture
def silence_made(monkeypatch):
    """Samples of silence that were made, whatever became of them."""
    made = []
    real = samples.Recording.add_silence

    def add_silence(self, num_samples, rate):
        made.append(num_samples)
        real(self, num_samples, rate)

    monkeypatch.setattr(samples.Recording, "add_silence", add_silence)
    return made


def test_more_silence_than_sound_is_refused_before_it_is_made(tmp_path, silence_made):
    """Twelve jumps of under an hour in 386 KB were 11 hours of silence."""
    path = write_shifted(tmp_path / "clip.mka", tone(12), {16_384 * k: 3_500.0 for k in range(1, 13)})
    assert path.stat().st_size < 400_000
    with pytest.raises(
        ClipError,
        match=r"need 38500\.000 s of silence, the first from 1\.024 s to 3501\.024 s; expected 12\.000 s at most, "
        r"because the file holds 12\.000 s of sound and 0\.000 s of video: .*end_s .*start_s.* that file as `audio`",
    ) as caught:
        read_audio(path)
    assert caught.value.reason == "bad_times"
    assert silence_made == []


def test_what_the_cut_leaves_out_is_not_asked_for(tmp_path):
    """Both ways out that the message names, and the silence in between."""
    path = write_shifted(tmp_path / "clip.mka", tone(3), {16_384: 3_000.0})
    with pytest.raises(ClipError, match=r"need 3000\.000 s of silence"):
        read_audio(path)
    assert len(read_audio(path, end_s=2).samples) == 32_000
    after = read_audio(path, start_s=3_000)
    assert after.start_s == 3_000
    assert len(after.samples) == round(3.0 * 16_000)
    with pytest.raises(ClipError, match=r"4\.000 s of silence, the first from 1\.024 s to 3001\.024 s"):
        read_audio(path, start_s=10, end_s=14)


@pytest.mark.parametrize("gap_s", [1.9, 2.1])
def test_as_much_silence_as_sound_is_filled_in(tmp_path, gap_s):
    """The sound that counts is that of the whole file, also what follows the gap."""
    path = write_shifted(tmp_path / "clip.mka", tone(2), {4096: gap_s})
    if gap_s < 2:
        assert len(read_audio(path).samples) == 32_000 + 16_000 * gap_s
    else:
        with pytest.raises(ClipError, match=r"2\.100 s of silence, .* holds 2\.000 s of sound"):
            read_audio(path)


def with_video(path, times_s, gaps_s):
    """One second of sound, with jumps, and small pictures at ``times_s``."""
    with av.open(path, "w") as container:
        video = encode_pictures(container, pictures(len(times_s)), pts_s=times_s)
        mux(container, video, encode_sound(container, tone(1), gaps_s=gaps_s))
    return path


def test_silence_may_be_as_long_as_the_video(tmp_path):
    """A muted microphone: the movie goes on."""
    path = with_video(tmp_path / "clip.mkv", range(31), {4096: 29.0})
    assert len(read_audio(path).samples) == 30 * 16_000
    with pytest.raises(ClipError, match=r"33\.000 s of silence, .* expected 30\.000 s at most, .* 30\.000 s of video"):
        read_audio(with_video(tmp_path / "clip.mkv", range(31), {4096: 33.0}))


def test_a_video_whose_times_jump_along_vouches_for_little(tmp_path):
    """A splice moves both streams by half an hour: one picture of 10 s at most, so 3 of them are no half hour."""
    with pytest.raises(ClipError, match=r"1800\.000 s of silence, .* 11\.000 s of video"):
        read_audio(with_video(tmp_path / "clip.mkv", [0, 1, 1801], {4096: 1800.0}))


def test_no_video_vouches_for_more_than_four_hours(tmp_path, monkeypatch):
    monkeypatch.setattr(sound_times, "MAX_SILENCE_S", 20)
    with pytest.raises(ClipError, match=r"29\.000 s of silence, .* expected 20\.000 s at most, .* 30\.000 s of video"):
        read_audio(with_video(tmp_path / "clip.mkv", range(31), {4096: 29.0}))


def test_times_that_run_back_may_not_drop_most_of_the_sound(tmp_path):
    """A clock that starts anew: of sixteen blocks the last thirteen claim to be the first three again."""
    path = write_clip(tmp_path / "clip.mka", sound=tone(1.024))
    data = bytearray(path.read_bytes())
    for number, (place, _) in enumerate(list(payloads(path, 0))):
        data[place - 3 : place - 1] = (64 * (number % 3)).to_bytes(2, "big")
    path.write_bytes(data)
    with pytest.raises(
        ClipError, match=r"run back at 0\.192 s, so that 0\.832 s of 1\.024 s would be dropped as repeated; .*asetpts"
    ) as caught:
        read_audio(path)
    assert caught.value.reason == "bad_times"


def test_long_sound_lies_on_the_disk(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "clip.wav", sound=np.concatenate([tone(2, 48_000), [1.0]]), hz=48_000)
    short = read_audio(path)
    monkeypatch.setattr(samples, "HELD_SAMPLES", 10_000)
    long = read_audio(path)
    assert (short.sound.in_memory, long.sound.in_memory) == (True, False)
    assert long.notes == short.notes
    assert len(long.sound) == len(short.sound) == 32_000
    assert np.array_equal(long.samples, short.samples)
    for part in (slice(31_000, None), slice(5, 9), slice(7, 3), slice(-3, None)):
        assert np.array_equal(long.sound[part], short.samples[part])
    long.samples[0] = 3  # its own memory
    assert long.sound[:1] == short.samples[0]
    with pytest.raises(ValueError, match="step 2"):
        long.sound[::2]


def test_long_sound_is_heard_by_several_stages_at_once(tmp_path, monkeypatch):
    """Each in a thread of its own; one that seeks must not move another's place."""
    monkeypatch.setattr(samples, "HELD_SAMPLES", 10_000)
    sound = read_audio(write_clip(tmp_path / "clip.wav", sound=tone(4, 16_000), hz=16_000)).sound
    whole = sound[:]
    assert not sound.in_memory

    def differ(start):
        parts = [slice(at, at + 400) for at in range(start, len(sound) - 400, 37)] * 3
        return sum(not np.array_equal(sound[part], whole[part]) for part in parts)

    assert at_once(differ, range(4)) == [0, 0, 0, 0]


def test_a_full_disk_under_long_sound_is_the_machines_fault(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "clip.wav", sound=tone(2))
    monkeypatch.setattr(samples, "HELD_SAMPLES", 10_000)
    with Path("/dev/full").open("r+b", buffering=0) as full:
        monkeypatch.setattr(samples.tempfile, "TemporaryFile", lambda: full)
        with pytest.raises(MachineError, match=r"cannot be written \(No space left on device\); .* TMPDIR"):
            read_audio(path)

    def nowhere():
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(samples.tempfile, "TemporaryFile", nowhere)
    with pytest.raises(MachineError, match=r"cannot be written \(No usable temporary directory found\); .* TMPDIR"):
        read_audio(path)


def test_sound_without_times_begins_at_zero(tmp_path, monkeypatch):
    """No container at hand holds sound without times: they are taken from the decoded frames here."""
    path = write_clip(tmp_path / "clip.mka", sound=tone(1), sound_start_s=2)
    decoded = decoding.decoded

    def without_times(*arguments):
        for frame in decoded(*arguments):
            frame.pts = None
            yield frame

    monkeypatch.setattr(decoding, "decoded", without_times)
    audio = read_audio(path)
    assert audio.start_s == 0
    assert audio.notes == {"start_assumed": True}
    assert np.array_equal(audio.samples, read_samples(tone(1)))


def test_a_sample_format_without_a_numpy_type_is_named(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "clip.wav", sound=tone(0.5))
    wide = av.AudioFrame(format="s64", layout="mono", samples=8)
    wide.sample_rate = 16_000
    monkeypatch.setattr(decoding, "decoded", lambda *_: iter([wide]))
    with pytest.raises(ClipError, match=r"samples of format s64 are not supported") as caught:
        read_audio(path)
    assert caught.value.reason == "audio_undecodable"


# Streams


def two_sounds(path, first, second):
    with av.open(path, "w") as container:
        mux(container, encode_sound(container, first, codec="flac"), encode_sound(container, second, codec="flac"))
    return path


def test_of_several_streams_the_first_is_taken(tmp_path):
    audio = read_audio(two_sounds(tmp_path / "clip.mka", tone(1), tone(2)))
    assert len(audio.samples) == 16_000
    assert audio.notes == {"audio_streams": {"count": 2, "taken": 0}}


def test_a_stream_that_does_not_decode_is_passed_over(tmp_path):
    path = overwrite_packets(two_sounds(tmp_path / "clip.mka", tone(1), tone(2, frequency_hz=300)), 0)
    audio = read_audio(path)
    assert len(audio.samples) == 32_000
    assert audio.notes == {"audio_streams": {"count": 2, "taken": 1}}


def test_sound_that_does_not_decode_is_a_failure(tmp_path):
    path = overwrite_packets(write_clip(tmp_path / "clip.mka", sound=tone(1), sound_codec="flac"), 0)
    with pytest.raises(ClipError, match=r"the audio stream of clip\.mka has no sample .*packets refused") as caught:
        read_audio(path)
    assert caught.value.reason == "audio_undecodable"
    path = two_sounds(tmp_path / "both.mka", tone(1), tone(2, frequency_hz=300))
    with pytest.raises(ClipError, match=r"each of 2 audio streams of both\.mka has no sample"):
        read_audio(overwrite_packets(overwrite_packets(path, 0), 1))


def test_a_silent_movie_has_no_sound(tmp_path):
    assert read_audio(write_clip(tmp_path / "clip.mov", pictures(3))) is None


def test_packets_lost_midway_leave_a_noted_gap(tmp_path):
    path = write_clip(tmp_path / "clip.mka", sound=tone(4), sound_codec="flac")
    with av.open(path) as container:
        sizes = [packet.duration for packet in container.demux(audio=0) if packet.size]
    audio = read_audio(overwrite_packets(path, 0, lambda number: number == 3))
    assert len(sizes) > 8
    assert len(audio.samples) == 64_000
    assert audio.notes["undecodable_packets"]["count"] == 1
    ((start_s, duration_s),) = audio.notes["audio_gaps"]
    assert start_s == pytest.approx(sum(sizes[:3]) / 1000, abs=2e-3)
    assert duration_s == pytest.approx(sizes[3] / 1000, abs=2e-3)
    assert "truncated_at_s" not in audio.notes
