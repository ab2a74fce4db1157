"""Bad files: one clear line each, and what can still be read is read."""

import struct
from pathlib import Path

import numpy as np
import pytest

from extract.errors import ClipError
from extract.inputs.media import open_video, read_audio
from tests.media_files import cut_short, greys, overwrite_packets, payloads, pictures, tone, write_clip

READERS = [open_video, read_audio]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    "content",
    [b"", b"hello world\n" * 50, np.random.default_rng(0).bytes(4000), b"\x00" * 1000],
    ids=["empty", "text", "noise", "zeros"],
)
def test_what_is_no_media_file_is_unreadable(tmp_path, read, content):
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(
        ClipError, match=r"clip\.mp4 cannot be opened as a media file \(.+\); expected a complete movie"
    ) as caught:
        read(path)
    assert caught.value.reason == "unreadable"


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("notes.nfo", b"hello world\n", "tty"),  # FFmpeg would draw it
        ("list.mp4", b"ffconcat version 1.0\nfile 'other.mp4'\n", "concat"),  # and play other files than this one
        ("talk.srt", b"1\n00:00:01,000 --> 00:00:02,000\nbin blue\n", "srt"),
    ],
)
def test_text_that_ffmpeg_would_play_is_unreadable(tmp_path, read, name, content, kind):
    write_clip(tmp_path / "other.mp4", greys(3), codec="mpeg4")
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(
        ClipError, match=rf"{name} has the format {kind}, without pictures or sound of its own"
    ) as caught:
        read(path)
    assert caught.value.reason == "unreadable"


@pytest.mark.parametrize("read", READERS)
def test_a_playlist_never_reaches_for_the_network(tmp_path, read):
    path = tmp_path / "clip.m3u8"
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(ClipError, match=r"clip\.m3u8 cannot be opened"):
        read(path)


@pytest.mark.parametrize("read", READERS)
def test_a_missing_file_is_named(tmp_path, read):
    with pytest.raises(ClipError, match=r"gone\.mp4 does not exist; correct its path in the manifest") as caught:
        read(tmp_path / "gone.mp4")
    assert caught.value.reason == "missing_file"


@pytest.mark.parametrize("read", READERS)
def test_a_folder_is_unreadable(tmp_path, read):
    with pytest.raises(ClipError, match=r"cannot be opened as a media file \(.*directory"):
        read(tmp_path)


def test_a_name_may_look_like_an_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_clip(Path("talk.mov"), pictures(2), sound=tone(0.5)).rename("http: 100%d, é.mov")
    assert len(list(open_video(path).frames())) == 2
    assert len(read_audio(path).samples) == 8_000


def test_titles_in_old_encodings_do_not_matter(tmp_path):
    path = write_clip(tmp_path / "clip.mkv", pictures(2))
    path.write_bytes(path.read_bytes().replace(b"Lavf", b"\xe9\xe8\xfff"))  # the muxer's name stands in for any tag
    assert len(list(open_video(path).frames())) == 2


# Video streams without frames


def test_a_video_stream_of_which_nothing_decodes(tmp_path):
    path = overwrite_packets(write_clip(tmp_path / "clip.mov", pictures(4), sound=tone(1)), 0)
    with pytest.raises(ClipError, match=r"the video stream of clip\.mov has no frame .*4 packets refused") as caught:
        open_video(path)
    assert caught.value.reason == "no_frames"
    assert len(read_audio(path).samples) == 16_000


def test_a_video_stream_without_packets(tmp_path):
    """A track whose sample table is emptied: what a recorder leaves when its camera never started."""
    path = write_clip(tmp_path / "clip.mov", pictures(4), sound=tone(1))
    data = bytearray(path.read_bytes())
    track = data.index(b"vmhd")  # only the video track has this header, and its sample tables follow
    for table, entries_at in ((b"stts", 8), (b"stsz", 12), (b"stsc", 8), (b"stco", 8)):
        place = data.index(table, track) + entries_at
        data[place : place + 4] = b"\x00" * 4
    path.write_bytes(data)
    with pytest.raises(ClipError, match=r"the video stream of clip\.mov has no frame") as caught:
        open_video(path)
    assert caught.value.reason == "no_frames"
    assert len(read_audio(path).samples) == 16_000


# Truncated files


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("clip.mov", None),
        ("clip.mkv", None),
        ("clip.avi", None),
        ("clip.mp4", "libx264"),
        ("clip.mkv", "libx264"),
        ("clip.mpg", "mpeg1video"),
        ("clip.flv", "flv"),
        ("clip.ts", "libx264"),
    ],
)
@pytest.mark.parametrize("share", [0.45, 0.6, 0.8])
def test_a_truncated_clip_gives_its_frames_and_says_so(tmp_path, name, codec, share):
    whole = write_clip(tmp_path / name, pictures(40), codec=codec)
    path = cut_short(whole, share)
    with open_video(path) as video, open_video(whole) as untorn:
        frames, reference = list(video.frames()), list(untorn.frames())
    assert len(reference) == 40
    assert "truncated_at_s" not in untorn.notes
    assert 5 < len(frames) < 40
    assert [frame.pts_s for frame in frames] == [frame.pts_s for frame in reference][: len(frames)]
    # The last ones may be mended by the decoder; those before are untouched.
    same = [np.array_equal(a.image, b.image) for a, b in zip(frames, reference, strict=False)]
    assert all(same[:-4])
    assert video.notes["truncated_at_s"] == frames[-1].pts_s


def test_a_truncated_sound_says_so(tmp_path):
    whole = write_clip(tmp_path / "clip.wav", sound=tone(2))
    audio = read_audio(cut_short(whole, 0.5))
    assert 15_000 < len(audio.samples) < 17_000
    assert audio.notes == {"truncated_at_s": len(audio.samples) / 16_000}
    assert read_audio(whole).notes == {}


def test_a_movie_with_a_64_bit_box(tmp_path):
    """Boxes over 4 GB state their size in 64 bits; FFmpeg leaves room for that before the pictures."""
    path = write_clip(tmp_path / "clip.mov", pictures(10))
    data = bytearray(path.read_bytes())
    place = data.index(b"mdat") - 4
    assert bytes(data[place - 8 : place]) in {b"\0\0\0\x08wide", b"\0\0\0\x08free"}
    size = int.from_bytes(data[place : place + 4], "big") + 8
    data[place - 8 : place + 8] = (1).to_bytes(4, "big") + b"mdat" + size.to_bytes(8, "big")
    path.write_bytes(data)
    torn = tmp_path / "torn.mov"
    place, packet = list(payloads(path, 0))[6]
    torn.write_bytes(data[: place + len(packet)])  # between two packets: only the box says that more should follow
    with open_video(path) as video, open_video(torn) as torn_video:
        assert len(list(video.frames())) == 10
        assert len(list(torn_video.frames())) == 7
    assert video.notes == {}
    assert torn_video.notes == {"truncated_at_s": 0.24, "declared_frames": 10}


def test_a_transport_stream_cut_between_its_packets(tmp_path):
    """It states no length: the broken last picture tells."""
    path = write_clip(tmp_path / "clip.ts", pictures(40), codec="libx264")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 188 * 6 // 10 * 188])
    with open_video(path) as video:
        frames = list(video.frames())
    assert 5 < len(frames) < 40
    assert video.notes["truncated_at_s"] == frames[-1].pts_s


def test_the_sound_of_a_truncated_movie_says_so(tmp_path):
    for name in ("clip.mov", "clip.mkv"):
        path = write_clip(tmp_path / name, pictures(50), sound=tone(2))
        assert read_audio(path).notes == {}
        audio = read_audio(cut_short(path, 0.6))
        assert 0.5 < audio.notes["truncated_at_s"] < 1.9


def test_a_truncated_movie_without_its_index_is_unreadable(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", pictures(20), codec="libx264", index_first=False)
    with pytest.raises(ClipError, match=r"clip_torn\.mp4 cannot be opened .*was the whole of it copied\?") as caught:
        open_video(cut_short(path, 0.7))
    assert caught.value.reason == "unreadable"


def test_a_torn_index_leaves_a_stream_of_no_known_codec(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", greys(20), codec="libx264", index_first=False)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"stsd") - 4])  # the box that names the codec, and all after it, is lost
    with pytest.raises(ClipError, match=r"clip\.mp4 has no frame .*no decoder for its codec"):
        open_video(path)


@pytest.mark.parametrize("name", ["clip.mkv", "clip.wav"])
def test_a_live_recording_of_unstated_length_is_not_truncated(tmp_path, name):
    """A recorder that cannot go back leaves the outermost size unknown: all ones, in both formats."""
    path = write_clip(tmp_path / name, pictures(4) if name == "clip.mkv" else (), sound=tone(1))
    data = bytearray(path.read_bytes())
    if name == "clip.wav":
        data[4:8] = b"\xff" * 4
    else:
        place = data.index(b"\x18\x53\x80\x67") + 4
        data[place : place + 8] = b"\x01" + b"\xff" * 7
    path.write_bytes(data)
    assert read_audio(path).notes == {}
    if name == "clip.mkv":
        with open_video(path) as video:
            assert len(list(video.frames())) == 4
            assert video.notes == {}


# Damage in the middle


def test_packets_lost_midway_are_noted(tmp_path):
    images = pictures(20)
    path = overwrite_packets(write_clip(tmp_path / "clip.mov", images), 0, lambda number: number in {5, 6})
    with open_video(path) as video:
        frames = list(video.frames())
    kept = [i for i in range(20) if i not in {5, 6}]
    assert [frame.pts_s for frame in frames] == [i / 25 for i in kept]
    assert all(np.array_equal(frame.image, images[i]) for frame, i in zip(frames, kept, strict=True))
    assert video.notes["undecodable_packets"]["count"] == 2
    assert "Invalid data" in video.notes["undecodable_packets"]["error"]
    assert "truncated_at_s" not in video.notes


def test_frames_that_the_decoder_mends_are_noted(tmp_path):
    whole = write_clip(tmp_path / "clip.mpg", pictures(40), codec="mpeg1video")
    data = bytearray(whole.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = b"\x00" * 3000
    whole.write_bytes(data)
    with open_video(whole) as video:
        frames = list(video.frames())
    assert 30 <= len(frames) <= 40
    assert video.notes["corrupt_frames"]["count"] >= 1
    assert 0.2 < video.notes["corrupt_frames"]["first_s"] < 1.4
    assert "truncated_at_s" not in video.notes


def test_a_header_that_lies_is_noted(tmp_path):
    path = write_clip(tmp_path / "clip.avi", pictures(10))
    data = bytearray(path.read_bytes())
    place = data.index(b"strh") + 8 + 32  # AVISTREAMHEADER.dwLength
    assert struct.unpack_from("<I", data, place) == (10,)
    struct.pack_into("<I", data, place, 870)
    path.write_bytes(data)
    with open_video(path) as video:
        assert video.declared_frames == 870
        assert len(list(video.frames())) == 10
    assert video.notes == {"declared_frames": 870}


def test_payloads_finds_every_packet(tmp_path):
    """The tests that spoil packets stand on this."""
    path = write_clip(tmp_path / "clip.mov", pictures(6))
    places = [place for place, _ in payloads(path, 0)]
    assert len(set(places)) == 6
    assert places == sorted(places)
