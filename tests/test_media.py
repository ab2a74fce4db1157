"""Decoding real clips: times against ffprobe, sound against the checksum that FLAC carries."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from extract.inputs.media import open_video, read_audio

FFPROBE = Path(__file__).parent / "golden" / "ffprobe"
CLIPS = sorted(path.stem for path in FFPROBE.glob("*.json"))


def golden(name: str, kind: str) -> list[dict]:
    streams = json.loads((FFPROBE / f"{name}.json").read_text())["streams"]
    return [stream for stream in streams if stream["codec_type"] == kind]


def test_every_clip_has_its_golden_file(media_dir):
    clips = {p.name for p in media_dir.iterdir() if p.suffix not in {".md", ".npy", ".jpg"}}
    assert clips == set(CLIPS)


@pytest.mark.parametrize("name", CLIPS)
def test_frame_times_equal_ffprobes(media_dir, name):
    streams = golden(name, "video")
    video = open_video(media_dir / name)
    if not streams:
        assert video is None
        return
    assert video is not None
    with video:
        frames = list(video.frames(lambda _: False))
    assert [f"{frame.pts_s:.6f}" for frame in frames] == streams[0]["pts_time"]
    assert [frame.index for frame in frames] == list(range(len(frames)))
    assert video.size == (streams[0]["height"], streams[0]["width"])
    assert video.stream_index == streams[0]["index"]


@pytest.mark.parametrize("name", CLIPS)
def test_sound_begins_and_lasts_as_ffprobe_says(media_dir, name):
    streams = golden(name, "audio")
    audio = read_audio(media_dir / name)
    if not streams:
        assert audio is None
        return
    assert audio is not None
    assert f"{audio.start_s:.6f}" == streams[0]["first_pts_time"]
    assert audio.samples.dtype == np.float32
    assert audio.samples.ndim == 1
    rate = int(streams[0]["sample_rate"])
    # Newer FFmpegs drop the padding behind the last AAC frame, older ones (and the golden ffprobe) give it.
    padding = 1024 if streams[0]["codec_name"] == "aac" else 0
    surplus = streams[0]["num_samples"] * 16_000 / rate - len(audio.samples)
    assert -1 < surplus < 1 + padding * 16_000 / rate
    assert np.abs(audio.samples).max() <= 1
    assert np.count_nonzero(audio.samples) > len(audio.samples) / 2


def test_counts_that_the_sources_state(media_dir):
    counts = {"one_face.mp4": 72, "no_face.mp4": 95} | {p.name: 75 for p in media_dir.glob("grid_*.mpg")}
    assert len(counts) == 6
    for name, count in counts.items():
        video = open_video(media_dir / name)
        assert sum(1 for _ in video.frames(lambda _: False)) == count


def test_a_header_that_claims_98_of_95_frames_is_noted(media_dir):
    with open_video(media_dir / "no_face.mp4") as video:
        assert video.declared_frames == 98
        for _ in video.frames(lambda _: False):
            pass
    assert video.notes == {"declared_frames": 98}


def test_an_honest_header_is_not_noted(media_dir):
    with open_video(media_dir / "one_face.mp4") as video:
        assert video.declared_frames == 72
        for _ in video.frames(lambda _: False):
            pass
    assert video.notes == {}


def test_which_of_several_streams_was_taken_is_noted(media_dir):
    video = open_video(media_dir / "two_video_streams.mp4")
    assert video.notes == {"video_streams": {"count": 2, "taken": 0}}
    assert read_audio(media_dir / "two_video_streams.mp4").notes == {"audio_streams": {"count": 2, "taken": 1}}


def test_sixteen_kilohertz_mono_passes_untouched(media_dir):
    """FLAC's header holds the MD5 of the samples that were encoded (RFC 9639, section 8.2)."""
    path = media_dir / "librispeech_6313-76958-0021.flac"
    audio = read_audio(path)
    pcm = audio.samples * 2**15
    assert np.array_equal(pcm, np.rint(pcm))
    assert hashlib.md5(pcm.astype("<i2").tobytes()).digest() == path.read_bytes()[26:42]


def test_pictures_own_contiguous_memory(media_dir):
    """360 columns make rows of 1,080 bytes, which FFmpeg pads: dlib misreads such arrays without a word."""
    with open_video(media_dir / "grid_bbaf2n.mpg") as video:
        for frame in video.frames(lambda index: index < 5):
            if frame.index < 5:
                assert frame.image.shape == (288, 360, 3)
                assert frame.image.dtype == np.uint8
                assert frame.image.flags.c_contiguous
                assert frame.image.flags.owndata
                assert frame.image.flags.writeable
            else:
                assert frame.image is None


def test_decoding_twice_gives_the_same_bytes(media_dir):
    def digest():
        sha = hashlib.sha256()
        for frame in open_video(media_dir / "one_face.mp4").frames(lambda index: index < 20):
            sha.update(b"" if frame.image is None else frame.image.tobytes())
        return sha.hexdigest()

    assert digest() == digest()


def test_nothing_is_printed_about_a_damaged_file(media_dir, tmp_path, capfd):
    torn = tmp_path / "torn.mpg"
    torn.write_bytes((media_dir / "grid_bbaf2n.mpg").read_bytes()[:271_564])
    with open_video(torn) as video:
        num_frames = sum(1 for _ in video.frames(lambda _: False))
    audio = read_audio(torn)
    assert audio.notes["truncated_at_s"] == pytest.approx(audio.start_s + len(audio.samples) / 16_000, abs=1e-3)
    assert 0 < num_frames < 75
    assert video.notes["truncated_at_s"] == pytest.approx((num_frames - 1) / 25)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
