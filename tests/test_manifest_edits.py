"""Adding to the text of a manifest that a person edited: every character that was there stays."""

import random
import stat

import pytest
import yaml

from extract.errors import ManifestError
from extract.inputs.manifest import edits, load_manifest, nodes
from extract.inputs.manifest.update import SplitRule
from tests.edited_manifests import BY_VIDEO, EDITED, HEAD, A, B, update


def only_inserted(before: bytes, after: bytes) -> bool:
    """Whether every byte of ``before`` is in ``after``, in its order."""
    rest = iter(after)
    return all(byte in rest for byte in before)


def test_comments_order_and_spelling_stay(tmp_path, videos):
    path = tmp_path / "m.yaml"
    path.write_text(EDITED)
    made = update(path, videos("a.mp4", "b.mp4", "c.mp4"))
    assert path.read_text() == EDITED + "- id: c\n  video: v/c.mp4\n"
    assert ([clip.id for clip in made.added], made.known, made.gone) == (["c"], 2, ())


def test_new_entries_stand_as_the_others_do(tmp_path, videos):
    path = tmp_path / "m.yaml"
    path.write_text(CLIPS["indented"])
    update(path, videos("a.mp4", "b.mp4", "c.mp4"), SplitRule("source_video", 0, 0, 0))
    a, b = (f"    -   id: {name}\n        video: v/{name}.mp4\n        split: train\n" for name in "ab")
    assert path.read_text() == HEAD + a + b + a.replace("id: a", "id: c").replace("a.mp4", "c.mp4")


def test_splits_are_put_below_each_entry_that_has_none(tmp_path, videos):
    path = tmp_path / "m.yaml"
    path.write_text(EDITED)
    update(path, videos("a.mp4", "b.mp4"), SplitRule("subject", 0, 0.5, 0))
    lines = path.read_text().splitlines()
    at = {line.strip(): number for number, line in enumerate(lines)}
    assert {lines[at["subject: anna"] + 1], lines[at["subject: ben"] + 1]} == {"  split: train", "  split: test"}
    assert "\n".join(line for line in lines if "split:" not in line) + "\n" == EDITED


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


@pytest.mark.parametrize("loader", [nodes.LOADER, yaml.BaseLoader], ids=["as installed", "without libyaml"])
@pytest.mark.parametrize("with_splits", [False, True])
@pytest.mark.parametrize("form", ["plain", "windows", "byte order mark"])
@pytest.mark.parametrize("text", CLIPS.values(), ids=CLIPS)
def test_every_form_can_be_extended_and_loses_nothing(tmp_path, videos, monkeypatch, text, form, with_splits, loader):
    monkeypatch.setattr(nodes, "LOADER", loader)
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
@pytest.mark.parametrize("rule", [None, BY_VIDEO])
def test_tabs_between_values_and_comments(tmp_path, videos, rule):
    path = tmp_path / "m.yaml"
    text = "version: 1\t# one\nclips:\t\n- id: a\t\n  video:\tv/a.mp4\t# tab\n- id: b\n  video: v/b.mp4\t\n  #\t"
    path.write_text(text)
    update(path, videos("a.mp4", "b.mp4", "c.mp4"), rule)
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
        "has a form that cannot be extended",
    ),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_a_form_that_cannot_be_extended_is_refused(tmp_path, videos, text, message):
    path = tmp_path / "m.yaml"
    path.write_text(text)
    with pytest.raises(ManifestError, match=f"{message}.*`-o FILE`. Nothing was changed"):
        update(path, videos("a.mp4", "b.mp4"), SplitRule("source_video", 0, 0.5, 0))
    assert path.read_text() == text


def test_a_broken_rule_is_named_with_its_line(tmp_path, videos):
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
    written = edits.written_entry

    def meanwhile(*arguments):
        path.write_text(EDITED + "# saved by an editor\n")
        return written(*arguments)

    monkeypatch.setattr(edits, "written_entry", meanwhile)
    with pytest.raises(ManifestError, match="was changed by another program meanwhile; run the same command again"):
        update(path, videos("a.mp4", "b.mp4", "c.mp4"))
    assert path.read_text() == EDITED + "# saved by an editor\n"
