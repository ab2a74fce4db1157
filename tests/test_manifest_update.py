"""Adding what a scan found to an edited manifest: which clips are new, which split they get, and the command."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from extract.cli import app
from extract.errors import UsageError
from extract.inputs.datasets import folder
from extract.inputs.manifest import load_manifest
from extract.inputs.manifest.update import SplitRule
from tests.conftest import ROOT
from tests.edited_manifests import BY_VIDEO, EDITED, HEAD, A, B, update


def extract(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


# -- what is new ------------------------------------------------------------------------------------------------------


def start(path: Path, root: Path) -> None:
    assert extract("manifest", "folder", root, "-o", path).exit_code == 0


def test_a_clip_is_known_by_id_and_by_its_recording(tmp_path, videos):
    path, root = tmp_path / "m.yaml", videos("a.mp4", "b.mp4", "c.wav")
    start(path, root)
    text = path.read_text().replace("id: a\n", "id: renamed\n").replace("v/b.mp4", "small/b.mp4")
    path.write_text(text)
    made = update(path, root)
    assert (made.added, made.gone, path.read_text()) == ((), (), text)
    assert made.notes == (
        "1 files have the id of a clip whose entry names another file (first: b) and are taken for that clip; "
        "if they are other recordings, add them by hand, each with an id of its own",
    )


def test_a_recording_cut_in_two_is_known(tmp_path, videos):
    path, root = tmp_path / "m.yaml", videos("a.mp4", "b.mp4")
    path.write_text(
        "version: 1\nclips:\n- {id: a1, video: v/a.mp4, end_s: 3}\n- {id: a2, video: v/a.mp4, start_s: 3}\n"
    )
    assert [clip.id for clip in update(path, root).added] == ["b"]


def test_a_recording_is_known_behind_a_linked_folder(tmp_path, videos):
    root = videos("x/a.mp4")
    (tmp_path / "link").symlink_to(root)
    path = tmp_path / "m.yaml"
    start(path, root)
    path.write_text(path.read_text().replace("id: x-a", "id: anna"))
    assert update(path, tmp_path / "link").added == ()


def test_clips_that_are_gone_are_reported_and_stay(tmp_path, videos):
    path, root = tmp_path / "m.yaml", videos("a.mp4", "b.mp4")
    start(path, root)
    (root / "a.mp4").unlink()
    result = extract("manifest", "folder", root, "-o", path, "--update")
    assert result.exit_code == 0
    assert "1 no longer found, left as they are: a\n" in result.stdout
    assert [clip.id for clip in load_manifest(path)] == ["a", "b"]


def test_clips_of_another_folder_are_not_called_gone(tmp_path, videos):
    path = tmp_path / "m.yaml"
    start(path, videos("first/a.mp4").parent / "v/first")
    result = extract("manifest", "folder", videos("second/b.mp4") / "second", "-o", path, "--update")
    assert "1 of another folder, left as they are\n" in result.stdout
    assert "no longer found" not in result.stdout
    assert [clip.id for clip in load_manifest(path)] == ["a", "b"]


def test_a_movie_beside_a_sound_file_that_has_its_id(tmp_path, videos):
    """Alone, a.wav is clip a. The scan would now call a.mp4 so; the entry keeps its id, and both are one recording."""
    path, root = tmp_path / "m.yaml", videos("a.wav")
    start(path, root)
    made = update(path, videos("a.mp4"))
    sound, movie = load_manifest(path)
    assert (sound.id, movie.id, movie.video) == ("a", "a.mp4", root / "a.mp4")
    assert movie.source_video == sound.source_video == "a"
    assert made.notes == (f"{root / 'a.mp4'} is added as a.mp4: the manifest has another clip a",)


def test_what_belongs_to_a_renamed_recording_goes_with_it(tmp_path, videos):
    path, root = tmp_path / "m.yaml", videos("a.mp4")
    path.write_text("version: 1\nclips:\n- {id: talk, video: v/a.mp4, split: test}\n- {id: x, video: v/x.mp4}\n")
    made = update(path, videos("a.wav"), SplitRule("source_video", 0, 0.5, 0))
    assert [(clip.id, clip.source_video, clip.split) for clip in made.added] == [("a.wav", "talk", "test")]
    assert made.gone == ("x",)
    assert root.is_dir()


def test_an_id_that_differs_only_in_case_is_not_added_twice(tmp_path, videos):
    path = tmp_path / "m.yaml"
    path.write_text("version: 1\nclips:\n- {id: A, video: other/a.mp4}\n")
    assert update(path, videos("a.mp4", "b.mp4")).added[0].id == "b"
    assert [clip.id for clip in load_manifest(path)] == ["A", "b"]


def test_labels_that_came_later_are_reported(tmp_path, videos):
    path, root = tmp_path / "m.yaml", videos("a.mp4", "b.mp4")
    start(path, root)
    videos("a.csv", "b.srt")
    assert update(path, root).notes == (
        "1 clips have a file for `transcript:` beside them that their entries do not name (first: b)",
        "1 clips have a file for `labels:` beside them that their entries do not name (first: a)",
    )


# -- splits -----------------------------------------------------------------------------------------------------------


def test_added_clips_without_a_split_among_others_that_have_one(tmp_path, videos):
    path = tmp_path / "m.yaml"
    path.write_text(HEAD + A + "  split: train\n" + B)
    root = videos("a.mp4", "b.mp4", "c.mp4")
    assert update(path, root).notes == (
        "1 added clips have no split (first: c); `--update --split-by ...` gives them one",
    )
    assert update(path, root).notes == ()


def test_a_group_keeps_the_split_that_it_has(tmp_path, videos):
    path, root = tmp_path / "m.yaml", videos(*(f"{n}.mp4" for n in range(20)))
    start(path, root)
    text = path.read_text()
    for n in range(20):
        text = text.replace(f"v/{n}.mp4\n", f"v/{n}.mp4\n  subject: p{n // 2}\n" + ("  split: val\n" if n == 4 else ""))
    path.write_text(text)
    videos("20.mp4")
    with pytest.raises(UsageError, match=r"1 of 21 clips name no subject \(first: 20\); write `subject:` for each"):
        update(path, root, SplitRule("subject", 0.1, 0.2, 3))
    assert path.read_text() == text
    (root / "20.mp4").unlink()
    made = update(path, root, SplitRule("subject", 0.1, 0.2, 3))
    split_of = {clip.id: clip.split for clip in load_manifest(path)}
    assert split_of["4"] == split_of["5"] == "val", "the other clip of that person, and no further person: 2 of 20"
    assert made.splits == {"train": (14, 7), "val": (2, 1), "test": (4, 2)}
    assert made.assigned == 19
    again = path.read_bytes()
    assert update(path, root, SplitRule("subject", 0.1, 0.2, 4)).assigned == 0
    assert path.read_bytes() == again, "another seed moves nobody who has a split"


def test_split_null_keeps_a_clip_out(tmp_path, videos):
    path, root = tmp_path / "m.yaml", videos(*(f"{n}.mp4" for n in range(10)))
    start(path, root)
    path.write_text(path.read_text().replace("v/3.mp4\n", "v/3.mp4\n  split: null # no labels yet\n"))
    made = update(path, root, BY_VIDEO)
    assert [clip.id for clip in load_manifest(path) if clip.split is None] == ["3"]
    assert "  split: null # no labels yet\n" in path.read_text()
    assert (made.kept_out, made.assigned) == (1, 9)


def test_subjects_stay_together_also_by_source_video(tmp_path, videos):
    path, root = tmp_path / "m.yaml", videos(*(f"{n}.mp4" for n in range(12)))
    start(path, root)
    text = path.read_text()
    for n in range(6):
        text = text.replace(f"v/{n}.mp4\n", f"v/{n}.mp4\n  subject: anna\n")
    for allowed in (False, True):
        path.write_text(text)
        made = update(path, root, SplitRule("source_video", 0.25, 0.5, 1, allow_shared_subjects=allowed))
        of_anna = {clip.split for clip in load_manifest(path) if clip.subject == "anna"}
        assert (len(of_anna) > 1) == allowed
        assert bool(made.notes) == allowed
        assert made.splits["test"][0] == 6
        assert made.splits["val"][0] == 3


def test_the_seed_decides(tmp_path, videos):
    root = videos(*(f"{n}.mp4" for n in range(30)))

    def splits(seed: int) -> list[str | None]:
        path = tmp_path / f"{seed}-{len(os.listdir(tmp_path))}.yaml"
        assert (
            extract("manifest", "folder", root, "-o", path, "--split-by", "source_video", "--seed", seed).exit_code == 0
        )
        return [clip.split for clip in load_manifest(path)]

    assert splits(0) == splits(0) != splits(1)
    assert [splits(0).count(split) for split in ("train", "val", "test")] == [24, 3, 3]


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_tracked_manifest_is_refused(tmp_path, videos, monkeypatch):
    tracked = (ROOT / "data_manifest.yaml").read_bytes()
    monkeypatch.chdir(tmp_path)
    Path("data_manifest.yaml").write_bytes(tracked)
    for arguments in ((), ("--split-by", "source_video")):
        result = extract("manifest", "folder", videos("a.mp4"), "-o", "data_manifest.yaml", *arguments)
        assert result.exit_code == 2
        assert "data_manifest.yaml: already exists and may have been edited" in result.stderr
        assert "`--update`" in result.stderr
    assert Path("data_manifest.yaml").read_bytes() == tracked


@pytest.mark.parametrize("what", ["video", "empty", "link to nothing"])
def test_nothing_that_exists_is_replaced(tmp_path, videos, what):
    root = videos("a.mp4")
    path = root / "a.mp4" if what == "video" else tmp_path / "m.yaml"
    if what == "empty":
        path.touch()
    if what == "link to nothing":
        path.symlink_to(tmp_path / "none.yaml")
    before = sorted(os.listdir(tmp_path))
    assert extract("manifest", "folder", root, "-o", path).exit_code == 2
    assert sorted(os.listdir(tmp_path)) == before


def test_a_file_that_appears_during_the_scan_is_not_replaced(tmp_path, videos, monkeypatch):
    root, path = videos("a.mp4"), tmp_path / "m.yaml"
    scan = folder.scan_folder

    def slow(root: Path):
        path.write_text(EDITED)
        return scan(root)

    monkeypatch.setattr(folder, "scan_folder", slow)
    assert extract("manifest", "folder", root, "-o", path).exit_code == 2
    assert path.read_text() == EDITED


def test_update_of_nothing_makes_the_manifest(tmp_path, videos):
    result = extract("manifest", "folder", videos("a.mp4"), "-o", tmp_path / "m.yaml", "--update")
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'm.yaml'}: 1 clips (1 videos, 0 sound files)\n")


def test_what_an_update_says(tmp_path, videos):
    path, root = tmp_path / "m.yaml", videos(*(f"{n}.mp4" for n in range(9)))
    start(path, root)
    videos("new.mp4")
    result = extract("manifest", "folder", root, "-o", path, "--update", "--split-by", "source_video", "--test", ".2")
    assert result.stdout == (
        f"{root}: 10 clips (10 videos, 0 sound files)\n"
        f"{path}: 9 clips were there, 1 added: new\n"
        "clips of each split (groups that stay together): train: 7 (7); val: 1 (1); test: 2 (2); 10 assigned now\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--split-by", "person"), "--split-by person: expected subject or source_video"),
        (("--val", ".1"), "give --split-by as well"),
        (("--seed", "0"), "give --split-by as well"),
        (("--split-by", "subject"), "3 of 3 clips name no subject (first: 0, 1, 2)"),
        (("--split-by", "subject", "--allow-shared-subjects"), "exclude each other"),
        (("--split-by", "source_video", "--val", "-.1"), "--val -0.1 --test 0.1: expected two shares of at least 0"),
        (("--split-by", "source_video", "--val", ".5", "--test", ".5"), "whose sum is less than 1"),
        (("--split-by", "source_video", "--test", "nan"), "expected two shares"),
    ],
)
def test_splits_that_make_no_sense_are_refused_and_nothing_is_written(tmp_path, videos, arguments, message):
    result = extract("manifest", "folder", videos("0.mp4", "1.mp4", "2.mp4"), "-o", tmp_path / "m.yaml", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "m.yaml").exists()


def test_too_few_recordings_for_three_splits(tmp_path, videos):
    result = extract(
        "manifest", "folder", videos("0.mp4", "1.mp4"), "-o", tmp_path / "m.yaml", "--split-by", "source_video"
    )
    assert result.exit_code == 2
    assert (
        "2 groups of clips without a split (a subject or recording each) cannot fill train, val, test" in result.stderr
    )
    assert "`--val 0`" in result.stderr


def test_the_readme_writes_over_nothing():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    written = [
        line.split("-o ")[1].split()[0] for line in text.splitlines() if line.strip().startswith("extract manifest")
    ]
    assert written
    assert not [name for name in written if (ROOT / name).exists()]
