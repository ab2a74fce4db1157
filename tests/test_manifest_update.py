"""Adding to a manifest that a person edited: what is new is found, and what was written stays, to the byte."""

import os
import random
import stat
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from extract.cli import app
from extract.errors import ManifestError, UsageError
from extract.inputs import manifest, manifest_update
from extract.inputs.datasets import folder
from extract.inputs.datasets.folder import scan_folder
from extract.inputs.manifest import load_manifest
from extract.inputs.manifest_update import Made, Parting, make
from tests.conftest import ROOT

BY_VIDEO = Parting("source_video", 0.1, 0.1, 0)


def extract(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def videos(tmp_path):
    """Empty files below ``v``; a scan opens none of them."""
    (tmp_path / "v").mkdir()

    def touch(*names: str) -> Path:
        for name in names:
            (tmp_path / "v" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "v" / name).touch()
        return tmp_path / "v"

    return touch


def update(path: Path, root: Path, parting: Parting | None = None) -> Made:
    return make(path, scan_folder(root).clips, "", root=root, own=folder.own_file, update=True, parting=parting)


def only_inserted(before: bytes, after: bytes) -> bool:
    """Whether every byte of ``before`` is in ``after``, in its order."""
    rest = iter(after)
    return all(byte in rest for byte in before)


# -- the text ---------------------------------------------------------------------------------------------------------

EDITED = """\
# People of the first study
version: 1   # of the format
clips:
- id: talk            # was a
  video: v/a.mp4
  subject: anna
# - id: out, too dark
- id: b
  video: 'v/b.mp4'

  subject: ben
  # end of the study
"""


def test_comments_order_and_spelling_stay(tmp_path, videos):
    path = tmp_path / "m.yaml"
    path.write_text(EDITED)
    made = update(path, videos("a.mp4", "b.mp4", "c.mp4"))
    assert path.read_text() == EDITED + "- id: c\n  video: v/c.mp4\n"
    assert ([clip.id for clip in made.added], made.known, made.gone) == (["c"], 2, ())


def test_new_entries_stand_as_the_others_do(tmp_path, videos):
    path = tmp_path / "m.yaml"
    path.write_text(CLIPS["indented"])
    update(path, videos("a.mp4", "b.mp4", "c.mp4"), Parting("source_video", 0, 0, 0))
    a, b = (f"    -   id: {name}\n        video: v/{name}.mp4\n        split: train\n" for name in "ab")
    assert path.read_text() == HEAD + a + b + a.replace("id: a", "id: c").replace("a.mp4", "c.mp4")


def test_splits_are_put_below_each_entry_that_has_none(tmp_path, videos):
    path = tmp_path / "m.yaml"
    path.write_text(EDITED)
    update(path, videos("a.mp4", "b.mp4"), Parting("subject", 0, 0.5, 0))
    lines = path.read_text().splitlines()
    at = {line.strip(): number for number, line in enumerate(lines)}
    assert {lines[at["subject: anna"] + 1], lines[at["subject: ben"] + 1]} == {"  split: train", "  split: test"}
    assert "\n".join(line for line in lines if "split:" not in line) + "\n" == EDITED


HEAD = "version: 1\nclips:\n"
A, B = "- id: a\n  video: v/a.mp4\n", "- id: b\n  video: v/b.mp4\n"

CLIPS = {
    "as written": HEAD + A + B,
    "indented": HEAD + "    -   id: a\n        video: v/a.mp4\n    -   id: b\n        video: v/b.mp4\n",
    "differing widths": HEAD + "  - id: a\n    video: v/a.mp4\n  -     id: b\n        video: v/b.mp4\n",
    "key below its dash": HEAD + " -\n   id: a\n   video: v/a.mp4\n -\n   id: b\n   video: v/b.mp4\n",
    "clips first": f"clips:\n{A}{B}\n# the format\nversion: 1\n",
    "no final newline": HEAD + A + B.rstrip(),
    "comment without newline": HEAD + A + B + "  # end",
    "braces": HEAD + "- {id: a, video: v/a.mp4}\n- {video: v/b.mp4, id: b,  } # b\n",
    "braces over lines": HEAD + '- {id: a, # a\n  video: v/a.mp4}\n- {"id": "b"\n  , "video": "v/b.mp4"}\n',
    "id by alias": HEAD + A + "- {source_video: &b b, id: *b, video: v/b.mp4}\n",
    "end marker": f"%YAML 1.1\n---\n{HEAD}{A}{B}...\n# over\n",
    "text block": HEAD + A + "- id: b\n  video: |-\n    v/b.mp4\n\n\n# over\n",
    "text block at the end": HEAD + A + "- id: b\n  video: >-\n    v/b.mp4",
    "value below its key": HEAD
    + "- id: a\n  video:\n    v/a.mp4\n- id:\n    b\n  video: 'v/b\\\n    .mp4'\n".replace("'", '"'),
    "labels last": HEAD + A + B + "  labels:\n    au: b.csv # x\n  # y\n",
    "empty values": HEAD + A + "  split:   # later\n- {id: b, split: , video: v/b.mp4}\n",
    "alias": HEAD + A + "  labels: &l {au: l.csv}\n" + B + "  labels: *l\n",
    "other scripts": f"# é視😀\n{HEAD}# 😀\n{A}  subject: ß 😀 # 視\n{B}",
    "old line ends": (HEAD + A + B).replace("\n", "\r"),
    "separators": HEAD + "- id: a # x\u2028  video: v/a.mp4\x85- id: b # y\n  video: v/b.mp4\u2029",
}


@pytest.mark.parametrize("loader", [manifest._Loader, yaml.BaseLoader], ids=["as installed", "without libyaml"])
@pytest.mark.parametrize("with_splits", [False, True])
@pytest.mark.parametrize("form", ["plain", "windows", "byte order mark"])
@pytest.mark.parametrize("text", CLIPS.values(), ids=CLIPS)
def test_every_form_is_added_to_and_loses_nothing(tmp_path, videos, monkeypatch, text, form, with_splits, loader):
    monkeypatch.setattr(manifest, "_Loader", loader)
    raw = text.encode()
    if form == "windows":
        raw = raw.replace(b"\n", b"\r\n")
    if form == "byte order mark":
        raw = b"\xef\xbb\xbf" + raw
    path = tmp_path / "m.yaml"
    path.write_bytes(raw)
    before = load_manifest(path)
    made = update(path, videos("a.mp4", "b.mp4", "c.mp4", "d.mp4"), BY_VIDEO if with_splits else None)
    after = load_manifest(path)
    assert [clip.id for clip in after] == ["a", "b", "c", "d"]
    assert [clip.model_copy(update={"split": None}) for clip in after[:2]] == list(before)
    assert after[2:] == made.added
    assert all(clip.split is not None for clip in after) == with_splits
    assert only_inserted(raw, path.read_bytes())
    if form == "windows" and "\r" not in text:
        assert path.read_bytes().count(b"\n") == path.read_bytes().count(b"\r\n"), "one kind of line ends"


@pytest.mark.skipif(not hasattr(yaml, "CBaseLoader"), reason="without libyaml, tabs are refused on reading")
@pytest.mark.parametrize("parting", [None, BY_VIDEO])
def test_tabs_between_values_and_comments(tmp_path, videos, parting):
    path = tmp_path / "m.yaml"
    text = "version: 1\t# one\nclips:\t\n- id: a\t\n  video:\tv/a.mp4\t# tab\n- id: b\n  video: v/b.mp4\t\n  #\t"
    path.write_text(text)
    update(path, videos("a.mp4", "b.mp4", "c.mp4"), parting)
    assert len(load_manifest(path)) == 3
    assert only_inserted(text.encode(), path.read_bytes())


def test_a_hundred_manifests_of_mixed_forms(tmp_path, videos):
    """Entries and the room between them drawn at random."""
    pick = random.Random(7).choice
    forms = (
        "- id: {n}\n  video: v/{n}.mp4\n",
        "- {{id: {n}, video: v/{n}.mp4}}\n",
        "-   video: v/{n}.mp4\n    id: '{n}'\n",
        "- id: {n}\n  video: v/{n}.mp4\n  split: train\n",
        "- id: {n}\n  video: v/{n}.mp4\n  labels:\n    au: {n}.csv\n",
        '- {{"id": "{n}", "video": "v/{n}.mp4", "split": "val"}}\n',
        "- id: {n}\n  split:\n  video: >-\n    v/{n}.mp4\n",
    )
    between = ("", "", "\n", "# note\n", "  # deeper\n\n", "      # deepest: - id\n", "#- id: x\n")
    path = tmp_path / "m.yaml"
    root = videos(*(f"c{n}.mp4" for n in range(9)))
    for _ in range(100):
        text = "version: 1\nclips:\n" + "".join(pick(between) + pick(forms).format(n=f"c{n}") for n in range(6))
        text = (text + pick(between)).removesuffix(pick(("", "\n")))
        indent = pick((0, 0, 2, 5))
        head, body = text.split("clips:\n")
        text = head + "clips:\n" + "\n".join(" " * indent + line if line else "" for line in body.split("\n"))
        path.write_text(text)
        before = load_manifest(path)
        update(path, root, BY_VIDEO)
        after = load_manifest(path)
        assert [clip.id for clip in after] == [f"c{n}" for n in range(9)], text
        assert all(clip.split is not None for clip in after)
        assert all(new.split == old.split for new, old in zip(after, before, strict=False) if old.split), text
        assert only_inserted(text.encode(), path.read_bytes()), text


REFUSED = {
    "brackets": ("version: 1\nclips: [{id: a, video: v/a.mp4}]\n", "are written in brackets, `clips: \\[...\\]`"),
    "JSON": ('{"version": 1, "clips": [{"id": "a", "video": "v/a.mp4"}]}\n', "are written in brackets"),
    "key without colon": (
        "version: 1\nclips:\n- {id: a, video: v/a.mp4, split}\n",
        "of a form that cannot be added to",
    ),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_a_form_that_takes_no_addition_is_refused(tmp_path, videos, text, message):
    path = tmp_path / "m.yaml"
    path.write_text(text)
    with pytest.raises(ManifestError, match=f"{message}.*`-o FILE`. Nothing was changed"):
        update(path, videos("a.mp4", "b.mp4"), Parting("source_video", 0, 0.5, 0))
    assert path.read_text() == text


def test_a_faulty_manifest_is_told_by_its_line(tmp_path, videos):
    path = tmp_path / "m.yaml"
    path.write_text("version: 1\nclips:\n- id: a\n  vidoe: a.mp4\n")
    with pytest.raises(ManifestError, match=r"m\.yaml:4: the clip has an unknown key `vidoe`"):
        update(path, videos("a.mp4"))


def test_names_that_need_quotes(tmp_path, videos):
    odd = ["a: b.mp4", "#a.mp4", "é視.mp4", "a\nb.mp4", "'q'.mp4", "~.mp4", " x.mp4", "\x85.mp4"]
    path = tmp_path / "m.yaml"
    for text in (
        "version: 1\nclips:\n    - id: first\n      video: v/first.mp4",
        "version: 1\r\nclips:\r\n- {id: first, video: v/first.mp4}\r\n",
    ):
        path.write_bytes(text.encode())
        root = videos("first.mp4", *odd)
        update(path, root)
        assert {clip.video for clip in load_manifest(path)} == {root / name for name in ("first.mp4", *odd)}


def test_nothing_new_leaves_the_file_alone(tmp_path, videos):
    path = tmp_path / "m.yaml"
    path.write_text(EDITED)
    before = path.stat()
    made = update(path, videos("a.mp4", "b.mp4"))
    assert (made.added, made.known) == ((), 2)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_a_linked_manifest_stays_a_link_and_keeps_its_mode(tmp_path, videos):
    (tmp_path / "real").mkdir()
    real = tmp_path / "real/m.yaml"
    real.write_text("version: 1\nclips:\n- id: a\n  video: ../v/a.mp4\n")
    real.chmod(0o640)
    path = tmp_path / "m.yaml"
    path.symlink_to(real)
    path_as_read = load_manifest(path)[0].video
    root = videos("a.mp4", "b.mp4")
    assert path_as_read != root / "a.mp4", "paths go by the folder of the link: known by its id"
    update(path, root)
    assert path.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert [clip.id for clip in load_manifest(path)] == ["a", "b"]


def test_an_edit_at_the_same_moment_is_not_lost(tmp_path, videos, monkeypatch):
    path = tmp_path / "m.yaml"
    path.write_text(EDITED)
    written = manifest_update.written_entry

    def meanwhile(*arguments):
        path.write_text(EDITED + "# saved by an editor\n")
        return written(*arguments)

    monkeypatch.setattr(manifest_update, "written_entry", meanwhile)
    with pytest.raises(ManifestError, match="edited by somebody else at this moment; run the same command again"):
        update(path, videos("a.mp4", "b.mp4", "c.mp4"))
    assert path.read_text() == EDITED + "# saved by an editor\n"


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
        "1 files count as clips of the manifest whose entries name other files (first: b); if they are other "
        "recordings, add them by hand under ids of their own",
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


def test_clips_that_are_gone_are_told_and_stay(tmp_path, videos):
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
    made = update(path, videos("a.wav"), Parting("source_video", 0, 0.5, 0))
    assert [(clip.id, clip.source_video, clip.split) for clip in made.added] == [("a.wav", "talk", "test")]
    assert made.gone == ("x",)
    assert root.is_dir()


def test_an_id_that_differs_only_in_case_is_not_added_twice(tmp_path, videos):
    path = tmp_path / "m.yaml"
    path.write_text("version: 1\nclips:\n- {id: A, video: other/a.mp4}\n")
    assert update(path, videos("a.mp4", "b.mp4")).added[0].id == "b"
    assert [clip.id for clip in load_manifest(path)] == ["A", "b"]


def test_labels_that_came_later_are_told(tmp_path, videos):
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
        update(path, root, Parting("subject", 0.1, 0.2, 3))
    assert path.read_text() == text
    (root / "20.mp4").unlink()
    made = update(path, root, Parting("subject", 0.1, 0.2, 3))
    split_of = {clip.id: clip.split for clip in load_manifest(path)}
    assert split_of["4"] == split_of["5"] == "val", "the other clip of that person, and no further person: 2 of 20"
    assert made.splits == {"train": (14, 7), "val": (2, 1), "test": (4, 2)}
    assert made.assigned == 19
    again = path.read_bytes()
    assert update(path, root, Parting("subject", 0.1, 0.2, 4)).assigned == 0
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
        made = update(path, root, Parting("source_video", 0.25, 0.5, 1, allow_shared_subjects=allowed))
        of_anna = {clip.split for clip in load_manifest(path) if clip.subject == "anna"}
        assert (len(of_anna) > 1) == allowed
        assert bool(made.notes) == allowed
        assert made.splits["test"][0] == 6
        assert made.splits["val"][0] == 3


def test_the_seed_decides(tmp_path, videos):
    root = videos(*(f"{n}.mp4" for n in range(30)))

    def parted(seed: int) -> list[str | None]:
        path = tmp_path / f"{seed}-{len(os.listdir(tmp_path))}.yaml"
        assert (
            extract("manifest", "folder", root, "-o", path, "--split-by", "source_video", "--seed", seed).exit_code == 0
        )
        return [clip.split for clip in load_manifest(path)]

    assert parted(0) == parted(0) != parted(1)
    assert [parted(0).count(split) for split in ("train", "val", "test")] == [24, 3, 3]


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_tracked_manifest_is_refused(tmp_path, videos, monkeypatch):
    tracked = (ROOT / "data_manifest.yaml").read_bytes()
    monkeypatch.chdir(tmp_path)
    Path("data_manifest.yaml").write_bytes(tracked)
    for arguments in ((), ("--split-by", "source_video")):
        result = extract("manifest", "folder", videos("a.mp4"), "-o", "data_manifest.yaml", *arguments)
        assert result.exit_code == 2
        assert "data_manifest.yaml: is there already and may have been edited" in result.stderr
        assert "`--update`" in result.stderr
    assert Path("data_manifest.yaml").read_bytes() == tracked


@pytest.mark.parametrize("what", ["video", "empty", "link to nothing"])
def test_whatever_is_there_is_not_replaced(tmp_path, videos, what):
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
        (("--split-by", "source_video", "--val", "-.1"), "--val -0.1 --test 0.1: expected two shares from 0 up"),
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
