"""A folder to clips: what is taken, what belongs together, and ids that stay."""

import os
import random
from pathlib import Path

import pytest

from extract.errors import UsageError
from extract.inputs.datasets import folder
from extract.inputs.datasets.folder import FolderScan, clip_of_file, scan_folder
from extract.inputs.manifest import load_manifest, write_manifest
from extract.names import is_legal


@pytest.fixture
def make(tmp_path):
    """Scan a folder of empty files (or of the given contents); nothing is opened but tables."""
    root = tmp_path / "videos"
    root.mkdir()

    def make(*names: str, **contents: str) -> FolderScan:
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        for name, text in contents.items():
            (root / name.replace("__", ".")).write_text(text)
        return scan_folder(root)

    return make


def ids(scan: FolderScan) -> dict[str, str]:
    """File -> id, files relative to the folder `videos`."""
    paths = {clip.id: clip.video or clip.audio for clip in scan.clips}
    return {str(path).split("/videos/", 1)[1]: clip_id for clip_id, path in paths.items() if path is not None}


# -- what is taken ----------------------------------------------------------------------------------------------------


def test_the_shared_media(media_dir):
    scan = scan_folder(media_dir)
    assert [clip.id for clip in scan.clips] == [
        *("av1", "grid_bbaf2n", "grid_brbk7n", "grid_lbax4n", "grid_swiz3n", "hevc", "jfk"),
        *("librispeech_6313-76958-0021", "no_face", "one_face", "two_video_streams"),
    ]
    assert [clip.id for clip in scan.clips if clip.video is None] == ["jfk", "librispeech_6313-76958-0021"]
    assert all(path.is_file() for clip in scan.clips if (path := clip.video or clip.audio) is not None)
    assert scan.left_out[".jpg"] == 1, "the picture beside the video of the same name"
    assert set(scan.left_out) == {".jpg", ".md", ".npy"}
    assert scan.notes == ()


def test_by_suffix_in_any_case_and_at_any_depth(make, tmp_path):
    scan = make("a.MP4", "b.Wav", "x/y/c.mkv", "d.jpg", "e.JPG", "f.tar.gz", "README", "x/g.srt")
    root = tmp_path / "videos"
    assert [(clip.id, clip.video, clip.audio) for clip in scan.clips] == [
        ("a", root / "a.MP4", None),
        ("b", None, root / "b.Wav"),
        ("x-y-c", root / "x/y/c.mkv", None),
    ]
    assert scan.left_out == {"(no suffix)": 1, ".gz": 1, ".jpg": 2, ".srt": 1}


def test_every_listed_suffix_is_taken(make):
    suffixes = folder.VIDEO_SUFFIXES + folder.AUDIO_SUFFIXES
    assert len(set(suffixes)) == len(suffixes)
    scan = make(*(f"{number}{suffix}" for number, suffix in enumerate(suffixes)))
    assert len(scan.clips) == len(suffixes)
    assert sum(clip.video is not None for clip in scan.clips) == len(folder.VIDEO_SUFFIXES)


def test_hidden_files_and_stores_are_not_looked_at(make):
    scan = make("a.mp4", "._a.mp4", ".hidden/b.mp4", "store.zarr/a/c.mp4", "x/.c.mp4")
    assert [clip.id for clip in scan.clips] == ["a"]
    assert scan.left_out == {}


def test_linked_folders_once_and_without_going_round(make, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/b.mp4").touch()
    root = tmp_path / "videos"
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "again").symlink_to(tmp_path / "elsewhere")
    (root / "round").symlink_to(root)
    assert ids(make("a.mp4")) == {"a.mp4": "a", "again/b.mp4": "again-b"}


def test_a_file_that_is_not_there_behind_its_link_is_that_clips_failure(make, tmp_path):
    (tmp_path / "videos/a.mp4").symlink_to(tmp_path / "gone.mp4")
    assert [clip.id for clip in make().clips] == ["a"]


def test_a_name_that_is_not_utf8_is_counted(make, tmp_path):
    name = os.fsencode(tmp_path / "videos") + b"/b\xff.mp4"
    try:
        Path(os.fsdecode(name)).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert make("a.mp4").left_out == {"(name that is not UTF-8)": 1}


def test_a_folder_that_cannot_be_listed_is_counted(make, tmp_path, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("/x"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert make("a.mp4", "x/b.mp4").left_out == {"(folder that cannot be listed)": 1}
    with pytest.raises(UsageError, match=r"/x: cannot list the folder \(Permission denied\)"):
        scan_folder(tmp_path / "videos/x")


@pytest.mark.parametrize(("name", "found"), [("none", "does not exist"), ("file", "is a file")])
def test_no_folder(tmp_path, name, found):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=f"{name}: {found}; expected a folder of videos or sound files"):
        scan_folder(tmp_path / name)


def test_nothing_to_take(make):
    with pytest.raises(UsageError, match=r"videos: no video or sound file in this folder$"):
        make()
    with pytest.raises(UsageError, match=r"no video or sound file in this folder \(left out: 2 \.jpg, 1 \.txt\)$"):
        make("a.txt", "b.jpg", "c.jpg")


# -- what belongs together --------------------------------------------------------------------------------------------


def test_transcript_and_labels_beside_a_video(make, tmp_path):
    root = tmp_path / "videos"
    scan = make("a.mp4", "a.SRT", "b.mp4", "b.vtt", "c.mp4", "x/d.mp4", "d.srt", a__csv="AU1\n0\n")
    a, b, c, d = scan.clips
    assert (a.transcript, a.labels.au, a.labels.expr) == (root / "a.SRT", root / "a.csv", None)
    assert (b.transcript, b.labels.au) == (root / "b.vtt", None)
    assert (c.transcript, d.transcript) == (None, None)
    assert scan.left_out == {".srt": 1}, "d.srt lies in another folder than d.mp4"


@pytest.mark.parametrize("header", ["word,start_s,end_s", "\ufeffword,start_s,end_s\r", "Word, start_s, end_s"])
def test_a_table_of_words_is_a_transcript(make, tmp_path, header):
    scan = make("a.mp4", a__csv=f"{header}\nhello,0.1,0.4\n")
    assert scan.clips[0].transcript == tmp_path / "videos/a.csv"
    assert scan.clips[0].labels.au is None
    assert scan.left_out == {}


@pytest.mark.parametrize("header", ["AU1,AU2", "word,start_s", "word,start_s,end_s,speaker", "", "\xff"])
def test_another_table_is_labels(make, tmp_path, header):
    scan = make("a.mp4", a__csv=f"{header}\n")
    assert scan.clips[0].labels.au == tmp_path / "videos/a.csv"
    assert scan.clips[0].transcript is None


def test_subtitles_go_before_a_table_of_words(make, tmp_path):
    scan = make("a.mp4", "a.srt", "a.vtt", a__csv="word,start_s,end_s\n")
    assert scan.clips[0].transcript == tmp_path / "videos/a.srt"
    assert scan.clips[0].labels.au is None
    assert scan.left_out == {".csv": 1, ".vtt": 1}


def test_a_sound_file_takes_words_but_no_labels(make, tmp_path):
    scan = make("a.wav", "a.srt", a__csv="AU1\n0\n")
    assert scan.clips[0].transcript == tmp_path / "videos/a.srt"
    assert scan.clips[0].labels.au is None
    assert scan.left_out == {".csv": 1}


def test_files_of_one_name_are_clips_of_one_recording(make):
    scan = make("a.mp4", "a.wav", "a.srt", "b.mp4", "x/a.mp4", a__csv="AU1\n0\n")
    clips = {clip.id: clip for clip in scan.clips}
    assert set(clips) == {"a", "a.wav", "b", "x-a"}
    assert clips["a"].audio is None, "the movie keeps its own sound"
    assert clips["a.wav"].video is None
    assert [clips[key].source_video for key in ("a", "a.wav", "b", "x-a")] == ["a", "a", "b", "x-a"]
    assert clips["a"].transcript == clips["a.wav"].transcript is not None
    assert clips["a.wav"].labels.au is None
    assert scan.notes == ("a.mp4 (clip a) and a.wav (clip a.wav): one name, so one source_video",)


# -- ids --------------------------------------------------------------------------------------------------------------


def test_two_videos_of_one_stem(make):
    assert ids(make("a.avi", "a.mp4", "x/a.mp4", "y/a.mp4")) == {
        "a.avi": "a.avi",
        "a.mp4": "a",
        "x/a.mp4": "x-a",
        "y/a.mp4": "y-a",
    }


def test_names_that_differ_only_in_case(make, tmp_path):
    (tmp_path / "videos/A.mp4").touch()
    if (tmp_path / "videos/a.mp4").exists():
        pytest.skip("this file system takes capital and small letters for one")
    found = ids(make("a.mp4", "a.MP4"))
    assert found["A.mp4"] == "A"
    assert len({clip_id.lower() for clip_id in found.values()}) == 3


ODD_NAMES = {
    "my clip.mp4": "my_clip",
    "a (1)+[2].mp4": "a_1_2_",
    "café.mp4": "cafe",
    "cafe\u0301.mkv": "cafe",
    "one\ntwo.mp4": "one_two",
    "...dots.mp4": None,  # hidden
    "…dots.mp4": "_..dots",
    "-x.mp4": "-x",
    "a..b.mp4": "a..b",
}


@pytest.mark.parametrize(("name", "expected"), ODD_NAMES.items(), ids=map(ascii, ODD_NAMES))
def test_odd_characters(make, name, expected):
    found = ids(make("z.mp4", name))
    assert found.get(name) == expected


NO_LEGAL_SPELLING = [
    *("視頻.mp4", "видео 1.mp4", "straße.mp4", "😀/視.mp4", "zarr.json.mp4"),
    *("x" * 200 + ".mp4", "d" * 100 + "/" + "y" * 100 + ".mp4"),
]


@pytest.mark.parametrize("name", NO_LEGAL_SPELLING)
def test_names_without_a_legal_spelling_get_a_hash_of_their_path(make, name):
    found = ids(make("z.mp4", name))[name]
    assert is_legal(found)
    assert found[-9] == "-"
    assert set(found[-8:]) <= set("0123456789abcdef")


def test_names_in_another_script_stay_apart(make):
    found = ids(make(*(f"{letter}.mp4" for letter in "абвгдежзиклмнопрст")))
    assert len(set(found.values())) == 18


def test_odd_names_that_would_be_one(make):
    found = ids(make("a b.mp4", "a+b.mp4", "a_b.mp4"))
    assert found["a_b.mp4"] == "a_b", "the name that needs no change keeps it"
    assert len(set(found.values())) == 3
    assert all(is_legal(clip_id) for clip_id in found.values())


def test_ids_stay_when_files_are_added(make):
    before = ids(make("a.mp4", "x/a.mp4", "b c.mp4", "視.mp4", "d.mp4"))
    after = ids(
        make("a.avi", "a.wav", "0.mp4", "y/a.mp4", "b-c.mp4", "b+d.mp4", "頻.mp4", "0/視.mp4", "x-b.mp4", "D.wmv")
    )
    assert {path: after[path] for path in before} == before


NAMES = [
    "a",
    "A",
    "a.b",
    "a b",
    "a_b",
    "é",
    "e",
    "視",
    "x-a",
    "a.mp4",
    "zarr.json",
    "-",
    "_",
    "p" * 119,
    "p" * 120,
    "p" * 130,
]


@pytest.mark.parametrize("seed", range(20))
def test_any_folder_gives_a_manifest_that_loads(make, tmp_path, seed):
    """Ids are legal and distinct (load_manifest refuses others), and do not depend on the order of the directory."""
    dice = random.Random(seed)
    folders, suffixes = ["", "x/", "X/", "x y/", "a/"], [".mp4", ".MP4", ".avi", ".wav", ".srt"]
    names = {dice.choice(folders) + dice.choice(NAMES) + dice.choice(suffixes) for _ in range(60)}
    scan = make("sure.mp4", *names)
    assert len(scan.clips) == 1 + sum(not name.endswith(".srt") for name in names)
    path = tmp_path / "m.yaml"
    write_manifest(path, scan.clips)
    assert load_manifest(path) == scan.clips


def test_the_order_of_the_directory_does_not_matter(make, tmp_path, monkeypatch):
    root = tmp_path / "videos"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/b.mp4").touch()
    for link in ("first", "second", "third"):
        (root / link).symlink_to(tmp_path / "elsewhere")
    names = ["a.mp4", "a.avi", "a b.mp4", "a+b.mp4", "x/a.mp4", "y/a.mp4", "視.mp4", "a.srt", "a.SRT"]
    scan = make(*names)
    assert [str((clip.video or root).relative_to(root)) for clip in scan.clips] == [
        *("a b.mp4", "a+b.mp4", "a.avi", "a.mp4", "first/b.mp4", "x/a.mp4", "y/a.mp4", "視.mp4"),
    ], "clips stand in the order of their paths"
    walk = os.walk

    def backwards(*arguments, **options):
        for path, folders, files in walk(*arguments, **options):
            folders.sort(reverse=True)
            yield path, folders, sorted(files, reverse=True)

    monkeypatch.setattr(os, "walk", backwards)
    assert scan_folder(root) == scan
    assert {clip.transcript for clip in scan.clips if clip.source_video == "a"} == {root / "a.srt"}, "not a.SRT"


def test_a_folder_named_from_beside(make, tmp_path, monkeypatch):
    """As in `extract manifest folder ../shared/media -o m.yaml`: both may be moved together."""
    make("a.mp4")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    write_manifest(Path("m.yaml"), scan_folder(Path("../videos")).clips)
    assert "video: ../videos/a.mp4\n" in Path("m.yaml").read_text()
    assert load_manifest(Path("m.yaml"))[0].video == tmp_path / "videos/a.mp4"


def test_whispers_json_is_a_transcript_and_other_json_is_not(make, tmp_path):
    scan = make("a.mp4", "b.mp4", "c.mp4", "c.vtt")
    folder = tmp_path / "videos"
    (folder / "a.json").write_text('{"segments": []}')
    (folder / "b.json").write_text('{"video": "b.mp4"}')
    (folder / "c.json").write_text('{"segments": []}')
    scan = scan_folder(folder)
    assert [clip.transcript for clip in scan.clips] == [folder / "a.json", None, folder / "c.vtt"]
    assert scan.left_out == {".json": 2}


def test_what_predict_wrote_is_neither_labels_nor_words(make):
    """Predicting beside a movie must not break the next manifest."""
    scan = make("a.mp4", a__csv="frame,pts_s,valid,swin,AU01_p\n0,0.0,1,1,0.5\n")
    assert (scan.clips[0].labels.au, scan.clips[0].transcript) == (None, None)
    assert scan.left_out == {".csv": 1}


def test_one_file_as_a_clip(make, tmp_path):
    """For predict: the transcript beside it, never its labels; a name that an id can hold."""
    make("a b.mp4", "a b.srt", "c.mp4", c__csv="AU1\n0\n")
    folder = tmp_path / "videos"
    one, other = clip_of_file(folder / "a b.mp4", "12345678"), clip_of_file(folder / "c.mp4", "12345678")
    assert (one.id, one.video, one.transcript) == ("a_b-12345678", folder / "a b.mp4", folder / "a b.srt")
    assert (other.id, other.transcript, other.labels.au) == ("c-12345678", None, None)
    long = clip_of_file(folder / ("x" * 200 + ".mp4"), "12345678")
    assert len(long.id) == 120
    assert long.id.endswith("x-12345678")
