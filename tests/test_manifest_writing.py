"""Writing a manifest: what is written reads back equal, and nothing else is touched."""

import os
import textwrap
from pathlib import Path

import pytest
import yaml

from extract.errors import MachineError, ManifestError, UsageError
from extract.inputs.manifest import Clip, Labels, absolute, load_manifest, write_manifest

GOOD = "version: 1\nclips:\n- {id: a, video: a.mp4}\n"

ODD_NAMES = [
    "a b.mp4",
    "a: b.mp4",
    "#a.mp4",
    "'q'.mp4",
    '"d".mp4',
    "é視.mp4",
    "😀.mp4",
    "a\nb.mp4",
    " lead.mp4",
    "~",
    "null",
]


def test_what_is_written_reads_back_equal(tmp_path):
    everything = Clip(
        id="all",
        video=tmp_path / "a.mp4",
        crops=tmp_path.parent / "crops",
        fps=30000 / 1001,
        audio=Path("/elsewhere/a.wav"),
        transcript=tmp_path / "w.srt",
        labels=Labels(au=tmp_path / "l.csv", expr=tmp_path / "e.txt"),
        subject="007",
        source_video="whole",
        split="test",
        face="right",
    )
    clips = (
        everything,
        Clip(id="part", video=tmp_path / "a.mp4", start_s=1e-7, end_s=1e17),
        *(Clip(id=f"odd{i}", video=tmp_path / name, subject=name) for i, name in enumerate(ODD_NAMES)),
        *(
            Clip(id=name, audio=tmp_path / "a.wav", subject=name)
            for name in ("001", "yes", "null", "1e3", "010", "1.5")
        ),
    )
    path = tmp_path / "m.yaml"
    write_manifest(path, clips)
    assert load_manifest(path) == clips
    assert "video: é視.mp4\n" in path.read_text(encoding="utf-8"), "readable, not escaped"


def test_what_is_written_is_what_a_person_would_write(tmp_path):
    path = tmp_path / "m.yaml"
    clips = (
        Clip(id="a", video=tmp_path / "v/a.mp4", labels=Labels(au=tmp_path / "a.csv")),
        Clip(id="001", audio=Path("/opt/b.wav"), source_video="a", split="val"),
    )
    write_manifest(path, clips, comment="Made by hand.\n\nTwo clips.")
    assert path.read_text() == textwrap.dedent(
        """\
        # Made by hand.
        #
        # Two clips.
        version: 1
        clips:
        - id: a
          video: v/a.mp4
          labels:
            au: a.csv
        - id: '001'
          audio: /opt/b.wav
          source_video: a
          split: val
        """
    )


def test_paths_are_relative_when_near(tmp_path, monkeypatch):
    home = tmp_path / "home"
    (home / "project").mkdir(parents=True)
    monkeypatch.chdir(home)
    clips = [
        Clip(id="near", video=home / "data/a.mp4"),
        Clip(id="far", video=Path("/mnt/data/a.mp4")),
        Clip(id="shell", video=Path("data/b.mp4")),
        Clip(id="dots", video=home / "x/../b.mp4"),
    ]
    write_manifest(Path("project/m.yaml"), clips)
    written = yaml.safe_load((home / "project/m.yaml").read_text())["clips"]
    assert [clip["video"] for clip in written] == [
        "../data/a.mp4",
        "/mnt/data/a.mp4",
        "../data/b.mp4",
        f"{home}/x/../b.mp4",
    ]


def test_relative_paths_hold_behind_a_linked_folder(tmp_path):
    (tmp_path / "real/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real/deep")
    video = tmp_path / "v/a.mp4"
    write_manifest(tmp_path / "link/m.yaml", [Clip(id="a", video=video)])
    assert yaml.safe_load((tmp_path / "link/m.yaml").read_text())["clips"][0]["video"] == "../../v/a.mp4"
    assert load_manifest(tmp_path / "link/m.yaml")[0].video == video


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "m.yaml"
    path.write_text(GOOD)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineError, match=r"cannot write .*m\.yaml.*No space left on device"):
        write_manifest(path, [Clip(id="b", video=tmp_path / "b.mp4")])
    assert path.read_text() == GOOD
    assert [file.name for file in tmp_path.iterdir()] == ["m.yaml"]


def test_a_written_file_replaces_the_old_one_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text("x" * 10_000)
    write_manifest(path, [Clip(id="b", video=tmp_path / "b.mp4")])
    assert load_manifest(path)[0].id == "b"
    assert [file.name for file in tmp_path.iterdir()] == ["m.yaml"]


def test_a_new_file_is_written_only_where_none_is(tmp_path):
    path = tmp_path / "m.yaml"
    clips = [Clip(id="b", video=tmp_path / "b.mp4")]
    write_manifest(path, clips, new=True)
    assert load_manifest(path) == tuple(clips)
    path.write_text(GOOD)
    with pytest.raises(UsageError, match=r"m\.yaml: already exists .* with `--update`, or name another file with `-o"):
        write_manifest(path, clips, new=True)
    assert path.read_text() == GOOD


def test_a_folder_in_place_of_the_file(tmp_path):
    with pytest.raises(UsageError, match="is a folder; name a file with `-o FILE`"):
        write_manifest(tmp_path, [Clip(id="a", video=tmp_path / "a.mp4")])


def test_nothing_to_write(tmp_path):
    with pytest.raises(ManifestError, match="no clips to write"):
        write_manifest(tmp_path / "m.yaml", [])


def test_two_clips_of_one_id_are_not_written(tmp_path):
    clips = [Clip(id="a", video=tmp_path / "a.mp4"), Clip(id="A", video=tmp_path / "b.mp4")]
    with pytest.raises(ManifestError, match="two clips with the ids 'a' and 'A'"):
        write_manifest(tmp_path / "m.yaml", clips)
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_no_text_is_not_written(tmp_path):
    with pytest.raises(UsageError, match="the name of a file is not UTF-8 text"):
        write_manifest(tmp_path / "m.yaml", [Clip(id="a", video=tmp_path / "a\udcff.mp4")])
    assert not list(tmp_path.iterdir())


def test_absolute():
    base = Path("/a/b")
    assert absolute("c", base) == Path("/a/b/c")
    assert absolute("../c", base) == Path("/a/c")
    assert absolute("..", base) == Path("/a")
    assert absolute("../../../c", base) == Path("/c")
    assert absolute("/c", base) == Path("/c")
    assert absolute("..c", base) == Path("/a/b/..c")
    assert str(absolute("c/../d", base)) == "/a/b/c/../d"
