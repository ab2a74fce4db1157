"""Frames of clips muxed here: times, pictures, turns, streams, memory."""

import struct
import tracemalloc
from fractions import Fraction

import av
import numpy as np
import pytest

from extract.errors import ClipError
from extract.inputs.media import VideoFrame, open_video
from tests.media_files import (
    TICK,
    cut_short,
    encode_pictures,
    encode_sound,
    greys,
    mux,
    overwrite_packets,
    pictures,
    tone,
    write_clip,
)


def decode(path, **options) -> list[VideoFrame]:
    with open_video(path, **options) as video:
        return list(video.frames())


def times(path, **options) -> list[float]:
    return [frame.pts_s for frame in decode(path, **options)]


# Times


@pytest.mark.parametrize(
    "pts_s",
    [
        [Fraction(i, 25) for i in range(6)],
        [Fraction(i, 30) for i in (0, 1, 3, 7, 8, 20)],  # variable rate
        [Fraction(1, 2) + Fraction(i, 25) for i in range(6)],  # first at 0.5 s
        [Fraction(i * 1001, 30_000) for i in range(0, 24, 4)],  # 29.97 fps
    ],
)
def test_times_are_those_muxed(tmp_path, pts_s):
    path = write_clip(tmp_path / "clip.mov", pictures(6), pts_s=pts_s)
    assert times(path) == [float(round(t / TICK) * TICK) for t in pts_s]


def test_late_sound_does_not_move_the_pictures(tmp_path):
    path = write_clip(tmp_path / "clip.mov", pictures(3), pts_s=[0.5, 0.54, 0.58], sound=tone(1), sound_start_s=2.43)
    assert times(path) == [0.5, 0.54, 0.58]


def test_b_frames_come_in_presentation_order(tmp_path):
    options = {"bf": "3", "b-adapt": "0", "x264-params": "scenecut=0"}
    pts_s = [Fraction(i * i + 30 * i, 900) for i in range(20)]
    path = write_clip(tmp_path / "clip.mp4", greys(20), pts_s=pts_s, codec="libx264", options=options)
    with av.open(path) as container:
        packets = [packet.pts for packet in container.demux(video=0) if packet.size]
    assert packets != sorted(packets)  # the file does hold B-frames
    frames = decode(path)
    assert [frame.pts_s for frame in frames] == [float(t) for t in pts_s]
    brightness = [frame.image.mean() for frame in frames]
    assert np.abs(np.array(brightness) - [10 + 6 * i for i in range(20)]).max() < 3


def test_one_frame(tmp_path):
    path = write_clip(tmp_path / "clip.mov", pictures(1))
    (frame,) = decode(path)
    assert (frame.index, frame.pts_s) == (0, 0.0)


# Cutting


def test_a_cut_is_half_open_and_keeps_the_clock(tmp_path):
    path = write_clip(tmp_path / "clip.mov", pictures(8), pts_s=[Fraction(i, 30) for i in range(8)])
    frames = decode(path, start_s=2 / 30, end_s=5 / 30)
    assert [frame.pts_s for frame in frames] == [2 / 30, 3 / 30, 4 / 30]
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert all(np.array_equal(frame.image, image) for frame, image in zip(frames, pictures(8)[2:5], strict=True))


def test_wanted_counts_rows_of_the_cut_clip(tmp_path):
    path = write_clip(tmp_path / "clip.mov", pictures(6))
    with open_video(path, start_s=0.08) as video:
        frames = list(video.frames(lambda index: index == 1))
    assert [frame.image is not None for frame in frames] == [False, True, False, False]
    assert np.array_equal(frames[1].image, pictures(6)[3])


def test_a_cut_without_frames_is_named(tmp_path):
    path = write_clip(tmp_path / "clip.mov", pictures(3))
    with pytest.raises(
        ClipError, match=r"between start_s 5\.0 and end_s 6\.0 .*last .* at 0\.080 s.*manifest"
    ) as caught:
        decode(path, start_s=5, end_s=6)
    assert caught.value.reason == "no_frames"
    late = write_clip(tmp_path / "late.mov", pictures(3), pts_s=[2, 3, 4])
    with pytest.raises(ClipError, match=r"the beginning and end_s 1\.0 \(every frame is later\)"):
        decode(late, end_s=1)


def test_a_cut_says_nothing_of_the_whole_clips_header(tmp_path):
    path = write_clip(tmp_path / "clip.mov", pictures(6))
    with open_video(path, end_s=0.1) as video:
        assert len(list(video.frames())) == 3
        assert video.notes == {}


# Pictures


@pytest.mark.parametrize("name", ["clip.mov", "clip.mkv", "clip.avi"])
@pytest.mark.parametrize("width", [64, 70])
def test_pictures_are_exact_and_in_order(tmp_path, name, width):
    images = pictures(7, width=width)
    frames = decode(write_clip(tmp_path / name, images))
    assert len(frames) == 7
    for frame, image in zip(frames, images, strict=True):
        assert frame.image.flags.c_contiguous
        assert frame.image.flags.owndata
        assert np.array_equal(frame.image, image)


def test_a_changed_picture_changes_no_other(tmp_path):
    images = pictures(5)
    path = write_clip(tmp_path / "clip.mov", images)
    with open_video(path) as video:
        for frame, image in zip(video.frames(), images, strict=True):
            assert np.array_equal(frame.image, image)
            frame.image[:] = 0


def test_unwanted_frames_are_counted_but_not_converted(tmp_path):
    path = write_clip(tmp_path / "clip.mov", pictures(6))
    with open_video(path) as video:
        frames = list(video.frames(lambda index: index % 2 == 1))
    assert [frame.index for frame in frames] == list(range(6))
    assert [frame.image is None for frame in frames] == [True, False] * 3
    assert np.array_equal(frames[3].image, pictures(6)[3])


@pytest.mark.parametrize(
    ("colorspace", "color_range", "red", "blue", "full"),
    [
        (av.video.reformatter.Colorspace.ITU601, "MPEG", 0.299, 0.114, False),
        (av.video.reformatter.Colorspace.ITU709, "MPEG", 0.2126, 0.0722, False),
        (None, "MPEG", 0.299, 0.114, False),  # not stated: libswscale takes BT.601
        (av.video.reformatter.Colorspace.ITU709, "JPEG", 0.2126, 0.0722, True),
    ],
)
def test_colours_follow_the_streams_matrix_and_range(tmp_path, colorspace, color_range, red, blue, full):
    """Against the definition of Y'CbCr in ITU-R BT.601 and BT.709."""
    y, cb, cr = 120, 90, 170
    frame = av.VideoFrame(64, 48, "yuv420p")
    for plane, value in zip(frame.planes, (y, cb, cr), strict=True):
        plane.update(bytes([value]) * plane.buffer_size)
    with av.open(tmp_path / "clip.mkv", "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.color_range = av.video.reformatter.ColorRange[color_range]
        if colorspace is not None:
            stream.codec_context.colorspace = colorspace
        frame.pts = 0
        mux(container, stream.encode(frame) + stream.encode(None))
    luma = y / 255 if full else (y - 16) / 219
    scale = 255 if full else 224
    r = luma + 2 * (1 - red) * (cr - 128) / scale
    b = luma + 2 * (1 - blue) * (cb - 128) / scale
    g = (luma - red * r - blue * b) / (1 - red - blue)
    (decoded,) = decode(tmp_path / "clip.mkv")
    assert np.abs(decoded.image.astype(float) - 255 * np.array([r, g, b])).max() < 2.5


def turned(path, matrix):
    """Write a display matrix into a .mov's track header, as a phone held upright does (ISO/IEC 14496-12, 8.3.2)."""
    data = bytearray(path.read_bytes())
    # From the name of the box: version and flags 4, five 32-bit fields, 8 reserved, layer and group 4, volume 4.
    place = data.index(b"tkhd") + 4 + 4 + 20 + 8 + 4 + 4
    a, b, c, d = (value << 16 for value in matrix)
    old = np.array([1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30], dtype=">i4")
    assert bytes(data[place : place + 36]) == old.tobytes()
    data[place : place + 36] = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], dtype=">i4").tobytes()
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("matrix", "clockwise", "mirrored"),
    [
        ((0, 1, -1, 0), 90, False),
        ((-1, 0, 0, -1), 180, False),
        ((0, -1, 1, 0), 270, False),
        ((-1, 0, 0, 1), 0, True),
        ((1, 0, 0, -1), 180, True),
        ((0, 1, 1, 0), 90, True),
        ((0, -1, -1, 0), 270, True),
    ],
)
def test_pictures_are_turned_upright(tmp_path, matrix, clockwise, mirrored):
    images = pictures(3)
    path = turned(write_clip(tmp_path / "clip.mov", images), matrix)
    with open_video(path) as video:
        frames = list(video.frames())
    expected = [np.rot90(image, k=-clockwise // 90) for image in images]
    if mirrored:
        expected = [image[:, ::-1] for image in expected]
    assert all(np.array_equal(f.image, image) for f, image in zip(frames, expected, strict=True))
    assert all(frame.image.flags.c_contiguous and frame.image.flags.owndata for frame in frames)
    assert video.size == expected[0].shape[:2]
    assert video.rotation_deg == clockwise
    notes = {"rotation_deg": clockwise} if clockwise else {}
    assert video.notes == (notes | {"mirrored": True} if mirrored else notes)


def test_a_photograph_is_turned_as_its_exif_says(tmp_path):
    with av.open(tmp_path / "plain.jpg", "w", format="image2") as container:
        mux(container, encode_pictures(container, [sloped()], codec="mjpeg", pix_fmt="yuvj420p"))
    plain = (tmp_path / "plain.jpg").read_bytes()
    # One entry in one directory (Exif 2.3, 4.6.4): orientation 0x0112, SHORT, 6: turn clockwise by 90 degrees.
    exif = b"Exif\0\0II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    turned_file = tmp_path / "turned.jpg"
    turned_file.write_bytes(plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:])
    with open_video(turned_file) as video:
        (frame,) = video.frames()
    assert video.rotation_deg == 90
    assert video.size == (64, 48)
    assert np.array_equal(frame.image, np.rot90(decode(tmp_path / "plain.jpg")[0].image, k=-1))


def sloped():
    """Brighter to the right and below, unlike under every turn; survives JPEG."""
    return np.repeat((np.arange(48)[:, None] + 3 * np.arange(64)[None])[..., None], 3, axis=2).astype(np.uint8)


def test_the_size_may_change_midway(tmp_path):
    small, large = greys(3), greys(3, 96, 128)
    with av.open(tmp_path / "clip.mkv", "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        packets = []
        for i, image in enumerate(small + large):
            encoder = av.CodecContext.create("mjpeg", "w")
            encoder.height, encoder.width = image.shape[:2]
            encoder.pix_fmt, encoder.time_base = "yuvj420p", Fraction(1, 25)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuvj420p")
            frame.pts = i
            for packet in encoder.encode(frame) + encoder.encode(None):
                packet.stream = stream
                packet.pts = packet.dts = i
                packet.time_base = Fraction(1, 25)
                packets.append(packet)
        mux(container, packets)
    frames = decode(tmp_path / "clip.mkv")
    assert [frame.image.shape for frame in frames] == [(48, 64, 3)] * 3 + [(96, 128, 3)] * 3
    for frame, image in zip(frames, small + large, strict=True):
        assert np.abs(frame.image.astype(int) - image).max() <= 3


# Streams


def two_streams(path, first, second, **options):
    with av.open(path, "w", options={"movflags": "faststart"} if path.suffix == ".mov" else {}) as container:
        mux(container, encode_pictures(container, first, **options), encode_pictures(container, second))
    return path


def test_of_two_movies_the_first_is_taken(tmp_path):
    path = two_streams(tmp_path / "clip.mkv", pictures(4), pictures(6, 32, 32))
    with open_video(path) as video:
        assert len(list(video.frames())) == 4
        assert video.stream_index == 0
        assert video.notes["video_streams"] == {"count": 2, "taken": 0}


def test_a_stream_that_does_not_decode_is_passed_over(tmp_path):
    path = overwrite_packets(two_streams(tmp_path / "clip.mov", pictures(4), pictures(6, 32, 32)), 0)
    with open_video(path) as video:
        frames = list(video.frames())
    assert len(frames) == 6
    assert np.array_equal(frames[5].image, pictures(6, 32, 32)[5])
    assert video.stream_index == 1
    assert video.notes == {"video_streams": {"count": 2, "taken": 1}}


def test_a_still_picture_gives_way_to_the_movie_behind_it(tmp_path):
    path = two_streams(tmp_path / "clip.mkv", pictures(1), pictures(6, 32, 32))
    with open_video(path) as video:
        assert len(list(video.frames())) == 6
        assert video.stream_index == 1


def test_of_two_still_pictures_the_first_is_taken(tmp_path):
    with open_video(two_streams(tmp_path / "clip.mkv", pictures(1), pictures(1, 32, 32))) as video:
        assert video.stream_index == 0


def test_sound_alone_is_no_video(tmp_path):
    assert open_video(write_clip(tmp_path / "clip.wav", sound=tone(0.5))) is None


def test_cover_art_is_no_video(tmp_path):
    path = tmp_path / "clip.mp4"
    with av.open(path, "w") as container:
        cover = encode_pictures(container, greys(1), codec="mjpeg", pix_fmt="yuvj420p")
        container.streams.video[0].disposition = av.stream.Disposition.attached_pic
        mux(container, cover, encode_sound(container, tone(0.5), codec="aac"))
    with av.open(path) as container:
        assert len(container.streams.video) == 1
    assert open_video(path) is None


# Iterating


def test_frames_may_be_read_again(tmp_path):
    path = write_clip(tmp_path / "clip.mov", pictures(6))
    with open_video(path) as video:
        started = video.frames()
        assert [next(started).index, next(started).index] == [0, 1]
        assert [frame.index for frame in video.frames()] == list(range(6))
        assert list(started) == []


def test_leaving_the_block_ends_the_iteration(tmp_path):
    path = write_clip(tmp_path / "clip.mov", pictures(6))
    with open_video(path) as video:
        running = video.frames()
        next(running)
    assert list(running) == []


@pytest.mark.parametrize("num_frames", [30, 300])
def test_memory_does_not_grow_with_the_clip(tmp_path, num_frames):
    """NumPy reports its arrays to tracemalloc: the peak is one picture and its maker's view, at any length."""
    images = greys(30, 240, 320) * (num_frames // 30)
    path = write_clip(tmp_path / "clip.avi", images, codec="mpeg4")
    size = images[0].nbytes
    del images
    with open_video(path) as video:
        tracemalloc.start()
        try:
            count = sum(frame.image.nbytes == size for frame in video.frames())
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert count == num_frames
    assert size < peak < 3 * size


def test_a_torn_clip_gives_what_it_has(tmp_path):
    path = cut_short(write_clip(tmp_path / "clip.mov", pictures(10)), 0.75)
    with open_video(path) as video:
        frames = list(video.frames())
    assert 5 <= len(frames) < 10
    assert all(np.array_equal(f.image, image) for f, image in zip(frames, pictures(len(frames)), strict=True))
    assert video.notes["truncated_at_s"] == frames[-1].pts_s
    assert video.notes["declared_frames"] == 10
