"""Headers that declare what no clip has: the file is read for what it holds, or refused before memory is taken."""

import struct

import pytest

from extract.manifest import Clip
from tests.media_files import greys, pictures, write_clip
from tests.test_runner import Bench


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
