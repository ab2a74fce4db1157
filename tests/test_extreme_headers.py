"""Headers that declare what no clip has: the file is read for what it holds, or refused before memory is taken."""

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import av
import numpy as np
import pytest

from extract.errors import ClipError
from extract.inputs.manifest import Clip
from extract.inputs.media import open_video, read_audio
from tests.bench import Bench
from tests.media_files import greys, pictures, tone, write_clip


def patched(path, *patches):
    """``patches``: (box, offset behind its name, struct format, value, what stands there now)."""
    data = bytearray(path.read_bytes())
    for box, offset, form, value, expected in patches:
        place = data.index(box) + len(box) + offset
        assert struct.unpack_from(form, data, place)[0] == expected
        struct.pack_into(form, data, place, value)
    path.write_bytes(data)
    return path


def avi_of_2_31_frames(folder):
    """AVIMAINHEADER.dwTotalFrames and AVISTREAMHEADER.dwLength."""
    path = write_clip(folder / "a.avi", pictures(10))
    return patched(path, (b"avih", 20, "<I", 2**31 - 1, 10), (b"strh", 36, "<I", 2**31 - 1, 10))


def mp4_of_2_31_frames(folder):
    """Entry 0 of the time-to-sample box says how many frames last as long."""
    path = write_clip(folder / "a.mp4", greys(10), codec="mpeg4")
    return patched(path, (b"stts", 8, ">I", 2**31 - 1, 10))


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize("write", [avi_of_2_31_frames, mp4_of_2_31_frames])
def test_2_31_declared_frames_are_ten(tmp_path, write):
    bench = Bench(tmp_path)
    bench.clips["a"] = Clip(id="a", video=write(tmp_path))
    report = bench.run("frames", "colour")
    assert report.exit_code == 0, report.failures
    record = bench.record("a", "frames")
    assert (record.rows, record.notes["declared_frames"]) == (10, 2**31 - 1)
    assert bench.store.read("a", "colour", "mean").values.shape == (10, 3)
    assert len(bench.files()) == 3  # frames/pts_s, colour/mean, colour/valid


PROGRAM = """
import re, sys
from contextlib import suppress
from pathlib import Path
from extract.errors import ClipError
from extract.inputs.media import open_video
with suppress(ClipError):
    open_video(Path(sys.argv[1]))
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


def peak_kib_of_opening(path):
    """In a process of its own. Not ``ru_maxrss``: a process inherits that of the one that started it."""
    ended = subprocess.run([sys.executable, "-c", PROGRAM, str(path)], capture_output=True, check=True, timeout=60)
    return int(ended.stdout)


def png_movie_of(path, side):
    """Every picture's own header, with its checksum, states ``side`` x ``side``."""
    data = bytearray(write_clip(path, pictures(3)).read_bytes())
    place = data.find(b"IHDR")
    while place >= 0:
        struct.pack_into(">II", data, place + 4, side, side)
        struct.pack_into(">I", data, place + 17, zlib.crc32(bytes(data[place : place + 17])))
        place = data.find(b"IHDR", place + 4)
    path.write_bytes(data)
    return path


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("side", [65_535, 16_000])
def test_a_picture_of_gigabytes_is_refused_before_memory_is_taken(tmp_path, side):
    """16,000 x 16,000 is what FFmpeg itself would decode, into 800 MB; a clip of the right size takes 60 MB."""
    path = png_movie_of(tmp_path / "clip.mov", side)
    with pytest.raises(ClipError, match=r"no frame that can be decoded .*of at most 134,217,728 pixels") as caught:
        open_video(path)
    assert caught.value.reason == "no_frames"
    assert peak_kib_of_opening(path) < 300_000


def test_the_largest_picture_is_decoded(tmp_path):
    path = tmp_path / "clip.mkv"
    with av.open(path, "w") as container:
        stream = container.add_stream("ffv1", rate=1)
        stream.width, stream.height, stream.pix_fmt = 8192, 4096, "gray"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((4096, 8192), np.uint8), format="gray")))
        container.mux(stream.encode(None))
    with open_video(path) as video:
        assert [frame.image.shape for frame in video.frames()] == [(4096, 8192, 3)]


@pytest.mark.parametrize("hz", [1, 999, 768_001, 2**31 - 1])
def test_a_rate_that_no_recording_has_is_refused(tmp_path, hz):
    path = write_clip(tmp_path / "clip.wav", sound=tone(1))
    patched(path, (b"fmt ", 8, "<I", hz, 16_000), (b"fmt ", 12, "<I", 2 * hz % 2**32, 32_000))
    with pytest.raises(
        ClipError, match=rf"clip\.wav states a rate of {hz:,} Hz, expected 1,000 to 768,000 Hz"
    ) as caught:
        read_audio(path)
    assert caught.value.reason == "audio_undecodable"


def test_a_rate_of_four_gigahertz_does_not_open(tmp_path):
    path = patched(write_clip(tmp_path / "clip.wav", sound=tone(1)), (b"fmt ", 8, "<I", 4_000_000_000, 16_000))
    with pytest.raises(ClipError, match=r"clip\.wav cannot be opened as a media file"):
        read_audio(path)


@pytest.mark.parametrize("hz", [1_000, 768_000])
def test_the_lowest_and_the_highest_rate_are_read(tmp_path, hz):
    audio = read_audio(write_clip(tmp_path / "clip.wav", sound=tone(0.5, hz, frequency_hz=100), hz=hz))
    assert abs(len(audio.samples) - 8_000) <= 16


@pytest.mark.parametrize("num_channels", [65, 4_000, 65_535])
def test_channels_that_no_recording_has_are_refused(tmp_path, num_channels):
    path = write_clip(tmp_path / "clip.wav", sound=tone(2))
    patched(
        path,
        (b"fmt ", 6, "<H", num_channels, 1),
        (b"fmt ", 12, "<I", 32_000 * num_channels, 32_000),
        (b"fmt ", 16, "<H", 2 * num_channels % 2**16, 2),
    )
    with pytest.raises(
        ClipError, match=r"clip\.wav (states 65 channels, expected 64 at most|has no sample that can be decoded)"
    ) as caught:
        read_audio(path)
    assert caught.value.reason == "audio_undecodable"


def test_sixty_four_channels_are_read(tmp_path):
    path = write_clip(tmp_path / "clip.wav", sound=tone(2))
    patched(path, (b"fmt ", 6, "<H", 64, 1), (b"fmt ", 12, "<I", 2_048_000, 32_000), (b"fmt ", 16, "<H", 128, 2))
    assert len(read_audio(path).samples) == 500
