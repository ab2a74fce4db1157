"""Presentation times that are absent or do not increase: refused by name, or repaired."""

import itertools
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from av.rational import AVRational

from extract.errors import ClipError
from extract.inputs.media import open_video, repair_times
from extract.inputs.media.decoding import fraction, time_base
from tests.media_files import greys, payloads, pictures, write_clip


def clip_with_times(path: Path, times_ms: list[int]) -> Path:
    """A .mkv whose blocks claim ``times_ms``: a muxer would refuse to write them, so they are patched in."""
    write_clip(path, pictures(len(times_ms)))
    data = bytearray(path.read_bytes())
    for (place, _), time_ms in zip(payloads(path, 0), times_ms, strict=True):
        # A SimpleBlock: track number, time since its cluster (which begins at 0), flags, frame (RFC 9559, 10.2).
        data[place - 3 : place - 1] = time_ms.to_bytes(2, "big")
    path.write_bytes(data)
    return path


def without_times(path: Path) -> Path:
    """A bare H.264 stream holds no times at all."""
    return write_clip(path, greys(8), codec="libx264", options={"bf": "0"})


def test_a_time_that_runs_back_is_named(tmp_path):
    path = clip_with_times(tmp_path / "clip.mkv", [0, 40, 80, 60, 160, 200])
    given = []
    with (
        open_video(path) as video,
        pytest.raises(
            ClipError, match=r"frame 3 is at 0\.060000 s, not after 0\.080000 s; .*`repair_pts: true`"
        ) as caught,
    ):
        given += [frame.pts_s for frame in video.frames()]
    assert caught.value.reason == "bad_times"


def test_a_time_that_stands_still_is_named(tmp_path):
    path = clip_with_times(tmp_path / "clip.mkv", [0, 40, 40, 120])
    with open_video(path) as video, pytest.raises(ClipError, match=r"frame 2 is at 0\.040000 s, not after 0\.040000 s"):
        list(video.frames())


def test_an_absent_time_is_named(tmp_path):
    with (
        open_video(without_times(tmp_path / "clip.h264")) as video,
        pytest.raises(
            ClipError, match=r"frame 0 \(at the start .*no presentation time; .*`repair_pts: true`"
        ) as caught,
    ):
        list(video.frames())
    assert caught.value.reason == "bad_times"


def test_bad_times_are_repaired_and_counted(tmp_path):
    path = clip_with_times(tmp_path / "clip.mkv", [0, 40, 80, 60, 160, 200])
    with open_video(path, repair_pts=True) as video:
        frames = list(video.frames())
    assert [frame.pts_s for frame in frames] == [0, 0.04, 0.08, 0.12, 0.16, 0.2]
    assert all(np.array_equal(f.image, image) for f, image in zip(frames, pictures(6), strict=True))
    assert video.notes["repaired_pts"] == {"absent": 0, "not_increasing": 1}


def test_absent_times_follow_the_rate(tmp_path):
    with open_video(without_times(tmp_path / "clip.h264"), repair_pts=True) as video:
        frames = list(video.frames())
    assert [frame.pts_s for frame in frames] == [i / 25 for i in range(8)]
    assert video.notes["repaired_pts"] == {"absent": 8, "not_increasing": 0}
    brightness = [frame.image.mean() for frame in frames]
    assert brightness == sorted(brightness)


def test_a_cut_is_made_on_repaired_times(tmp_path):
    path = clip_with_times(tmp_path / "clip.mkv", [0, 40, 80, 60, 160, 200])
    with open_video(path, start_s=0.1, end_s=0.2, repair_pts=True) as video:
        assert [(frame.index, frame.pts_s) for frame in video.frames()] == [(0, 0.12), (1, 0.16)]


def test_good_times_are_left_alone(tmp_path):
    path = write_clip(tmp_path / "clip.mov", pictures(5), pts_s=[Fraction(i * i, 30) for i in range(5)])
    with open_video(path, repair_pts=True) as video:
        assert [frame.pts_s for frame in video.frames()] == [i * i / 30 for i in range(5)]
    assert video.notes == {}


@pytest.mark.parametrize(
    ("times", "repaired"),
    [
        ([0, 1, 2], [0, 1, 2]),
        ([0, None, 2, 3], [0, 1, 2, 3]),
        ([0, 1, None, None, 4], [0, 1, 2, 3, 4]),
        ([None, None, 5, 6, 7], [3, 4, 5, 6, 7]),  # may lie before 0
        ([5, 6, 7, None, None], [5, 6, 7, 8, 9]),
        ([0, 1, 900, 3, 4, 5], [0, 1, 2, 3, 4, 5]),  # one wild jump does not condemn what follows
        ([0, 2, 4, 4, 8], [0, 2, 4, 6, 8]),
        ([0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 4, 5]),  # a counter that starts anew
        ([1, 4, None, None, 11], [1, 4, Fraction(19, 3), Fraction(26, 3), 11]),  # evenly, at variable rate
        ([0, 1, 5, 9, None], [0, 1, 5, 9, 13]),  # the median step is the usual one
        ([None, None, None], [0, 10, 20]),  # only the rate is known
        ([None, 7, None], [-3, 7, 17]),
        ([3], [3]),
        ([], []),
    ],
)
def test_repair(times, repaired):
    exact = [None if time is None else Fraction(time) for time in times]
    assert repair_times(exact, rate=Fraction(1, 10)) == repaired


def test_repaired_times_increase_whatever_they_were():
    rng = np.random.default_rng(0)
    for _ in range(200):
        times = [None if t < 3 else Fraction(int(t)) for t in rng.integers(0, 30, size=20)]
        repaired = repair_times(times, Fraction(25))
        assert len(repaired) == 20
        assert all(before < after for before, after in itertools.pairwise(repaired))
        # Those kept are as many as a brute search over all pairs finds (longest increasing subsequence, O(n^2)).
        longest = [0] * 20
        for i, time in enumerate(times):
            if time is not None:
                longest[i] = 1 + max(
                    (longest[j] for j in range(i) if times[j] is not None and times[j] < time), default=0
                )
        assert sum(a == b for a, b in zip(times, repaired, strict=True)) >= max(longest)


def test_times_without_any_measure_cannot_be_repaired():
    with pytest.raises(ClipError, match=r"1 of 2 frames have no usable time .*no frame rate.*container") as caught:
        repair_times([Fraction(1), None], rate=None)
    assert caught.value.reason == "bad_times"


def test_ffmpeg_itself_gives_the_times_that_were_patched(tmp_path):
    """The tests above patch bytes; this one says that a reader other than ours sees what they meant."""
    path = clip_with_times(tmp_path / "clip.mkv", [0, 40, 80, 60, 160, 200])
    with av.open(path) as container:
        assert [packet.pts for packet in container.demux(video=0) if packet.size] == [0, 40, 80, 60, 160, 200]


def test_time_bases_of_both_kinds_are_read_exactly():
    """PyAV gives Fractions up to version 18 and AVRational from 19 on, where 0/1 says that nothing is stated."""
    assert fraction(AVRational(1001, 30_000)) == Fraction(1001, 30_000)
    assert fraction(Fraction(1, 25)) == Fraction(1, 25)
    assert fraction(AVRational(0, 1)) is None
    assert fraction(None) is None
    with pytest.raises(ClipError, match=r"stream 3 states no time base; re-encode the file") as caught:
        time_base(SimpleNamespace(index=3, time_base=None))
    assert caught.value.reason == "bad_times"
