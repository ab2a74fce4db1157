"""Reading a manifest: every rule with its line, and text as it is written."""

import re
import textwrap
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from extract.errors import ManifestError
from extract.inputs import manifest
from extract.inputs.manifest import Clip, Labels, load_manifest, nodes
from extract.names import MAX_CHARS, is_legal

GOOD = "version: 1\nclips:\n- {id: a, video: a.mp4}\n"


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "m.yaml"
        path.write_text(textwrap.dedent(text))
        return path

    return write


def clip_with(line: str) -> str:
    """A manifest whose line 5 is ``line``, in an otherwise good clip."""
    return f"version: 1\nclips:\n- id: a\n  video: a.mp4\n  {line}\n"


# -- what is read -----------------------------------------------------------------------------------------------------


def test_only_the_first_hundred_problems_are_listed(tmp_path):
    (tmp_path / "m.yaml").write_text("version: 1\nclips:\n" + "- {id: a b, video: 1}\n" * 5000)
    with pytest.raises(ManifestError, match=r"\nand [0-9]+ more problems$") as caught:
        load_manifest(tmp_path / "m.yaml")
    assert len(str(caught.value).splitlines()) == 101


def test_every_field(write, tmp_path):
    path = write(
        """\
        version: 1
        clips:
        - id: 10-60-1280x720_left
          video: videos/10-60-1280x720.mp4
          crops: crops/10-60-1280x720_left
          fps: 29.97
          audio: sound/a b.wav
          transcript: words/a.srt
          language: en-US
          labels: {au: labels/a.txt, expr: labels/e.txt, va: labels/v.txt, intensity: labels/i.csv}
          subject: S1
          source_video: 10-60-1280x720
          split: val
          face: left
        - id: part
          video: b.mp4
          start_s: 1.5
          end_s: 9
        """
    )
    clip, part = load_manifest(path)
    assert (part.start_s, part.end_s) == (1.5, 9.0)
    assert clip.model_dump() == {
        "id": "10-60-1280x720_left",
        "video": tmp_path / "videos/10-60-1280x720.mp4",
        "crops": tmp_path / "crops/10-60-1280x720_left",
        "fps": 29.97,
        "audio": tmp_path / "sound/a b.wav",
        "transcript": tmp_path / "words/a.srt",
        "language": "en-US",
        "labels": {
            "au": tmp_path / "labels/a.txt",
            "expr": tmp_path / "labels/e.txt",
            "va": tmp_path / "labels/v.txt",
            "intensity": tmp_path / "labels/i.csv",
        },
        "subject": "S1",
        "source_video": "10-60-1280x720",
        "split": "val",
        "face": "left",
        "start_s": None,
        "end_s": None,
    }


def test_defaults(write):
    (clip,) = load_manifest(write(GOOD))
    assert (clip.source_video, clip.face, clip.labels) == ("a", "largest", Labels())
    unset = ("crops", "fps", "audio", "transcript", "subject", "split", "start_s", "end_s")
    assert [getattr(clip, key) for key in unset] == [None] * len(unset)


def test_null_is_as_good_as_absent(write):
    nulls = "".join(
        f"  {key}: {null}\n" for key, null in zip(("subject", "split", "labels"), ("null", "~", ""), strict=True)
    )
    assert load_manifest(
        write(GOOD.replace("{id: a, video: a.mp4}", f"id: a\n  video: a.mp4\n{nulls}"))
    ) == load_manifest(write(GOOD))


@pytest.mark.parametrize("text", ["001", "1e3", "yes", "no", "010", "0x1F", "1_000", "2024-01-01", "_", "-x", "a.b"])
def test_an_id_is_its_literal_text(write, text):
    """YAML 1.1 would read a number, a truth value or a date; the store's folder is named as the user sees it."""
    (clip,) = load_manifest(write(f"version: 1\nclips:\n- id: {text}\n  video: a.mp4\n  subject: {text}\n"))
    assert (clip.id, clip.subject, clip.source_video) == (text, text, text)


def test_a_clip_may_be_called_null_in_quotes(write):
    (clip,) = load_manifest(write("version: 1\nclips:\n- id: 'null'\n  video: a.mp4\n"))
    assert clip.id == "null"


@pytest.mark.parametrize(("text", "value"), [("1e3", 1000.0), ("010", 10.0), (".5", 0.5), ("7", 7.0), ("1e-07", 1e-7)])
def test_a_number_is_read_by_its_digits(write, text, value):
    (clip,) = load_manifest(write(clip_with(f"start_s: {text}")))
    assert clip.start_s == value


def test_paths_are_relative_to_the_manifest_and_not_to_the_shell(tmp_path, monkeypatch):
    (tmp_path / "real/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real/deep")
    text = "version: 1\nclips:\n- {id: a, video: ../a.mp4, audio: /b.wav, transcript: x/../c.srt}\n"
    (tmp_path / "real/deep/m.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    (clip,) = load_manifest(Path("link/m.yaml"))
    assert clip.video == tmp_path / "real/a.mp4", "`..` of a linked folder is its target's parent, as for the system"
    assert clip.audio == Path("/b.wav")
    assert str(clip.transcript).endswith("real/deep/x/../c.srt"), "x may be a link: the system must work it off"


def test_files_named_need_not_exist(write):
    (clip,) = load_manifest(write(GOOD))
    assert clip.video is not None
    assert not clip.video.exists()


def test_byte_order_mark_and_windows_lines(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load_manifest(path)[0].id == "a"


def test_example_in_the_docstring(write):
    assert manifest.__doc__ is not None
    example = manifest.__doc__.split("\n\n")[1]
    (clip,) = load_manifest(write(example))
    assert (clip.id, clip.subject) == ("SN001", "001")


# -- what is refused: the message, and the line it names -------------------------------------------------------------

BAD_LINES = {
    "unknown key": ("vidoe: a.mp4", "unknown key `vidoe`; did you mean `video`?"),
    "unknown, nothing near": ("zzz: 1", "unknown key `zzz`; expected one of id, video"),
    "merge key": ("<<: {split: val}", "unknown key `<<`"),
    "list as key": ("? [a]\n  : b", "unknown key `a list`"),
    "twice": ("video: b.mp4", "`video` twice, first in line 4"),
    "list for text": ("subject: [a]", "subject is a list; expected text"),
    "mapping for path": ("audio: {a: b}", "audio is a mapping; expected text"),
    "tag": (
        "subject: !!python/name:os.system x",
        "subject is tagged tag:yaml.org,2002:python/name:os.system; expected",
    ),
    "zero character": (r'audio: "a\0b"', r"audio is 'a\x00b'; expected text without a zero character"),
    "empty path": ("audio: ''", "audio is empty; expected a path"),
    "empty subject": ("subject: ' '", "subject is empty; give a name"),
    "text for labels": ("labels: a.csv", "labels is 'a.csv'; expected a mapping of au, expr, va, intensity"),
    "unknown label": ("labels: {aus: a.csv}", "labels has an unknown key `aus`; did you mean `au`?"),
    "empty label": ("labels: {au: ''}", "labels.au is empty"),
    "text for number": ("start_s: soon", "start_s is 'soon'; expected a number of seconds"),
    "minutes": ("start_s: 1:30", "start_s is '1:30'; expected a number of seconds"),
    "number in quotes": ("fps: '25'", "fps is '25' in quotes; expected a number of frames per second"),
    "truth as number": ("end_s: true", "end_s is 'true'; expected a number"),
    "not a number": ("end_s: nan", "end_s is nan; expected a finite number"),
    "infinite": ("end_s: inf", "end_s is inf; expected a finite number"),
    "no rate": ("fps: 0", "fps is 0; expected more than 0"),
    "ends at its start": ("{start_s: 2, end_s: 2}", "end_s 2 is not after start_s 2"),
    "ends before it": ("{start_s: 5, end_s: 3.5}", "end_s 3.5 is not after start_s 5"),
    "ends at once": ("end_s: 0", "end_s 0 is not after start_s 0"),
    "split": ("split: training", "split is 'training'; expected 'train', 'val' or 'test'"),
    "face": ("face: both", "face is 'both'; expected 'largest', 'left', 'right' or 'none'"),
}


@pytest.mark.parametrize(("line", "message"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_named(write, line, message):
    # Two fields that belong together stand on one line by way of a flow mapping's inside.
    text = clip_with(line)
    if line.startswith("{"):
        text = f"version: 1\nclips:\n\n\n- {{id: a, video: a.mp4, {line[1:]}\n"
    path = write(text)
    with pytest.raises(ManifestError, match=f"^{re.escape(str(path))}:5: .*{re.escape(message)}") as caught:
        load_manifest(path)
    assert "\n" not in str(caught.value), "one mistake, one line"


@pytest.mark.parametrize(
    "text",
    ["../x", "/x", "''", "a/b", ".x", "..", ".", "a b", "ä", "a\\b", "x" * 121, "zarr.json", "Zarr.JSON", '"a\\n"'],
)
def test_ids_that_leave_the_store(write, text):
    path = write(f"version: 1\nclips:\n- video: a.mp4\n  id: {text}\n")
    with pytest.raises(ManifestError, match=r"m\.yaml:4: id .* cannot name a folder of the store") as caught:
        load_manifest(path)
    assert "\n" not in str(caught.value)


def test_longest_id(write):
    (clip,) = load_manifest(write(f"version: 1\nclips:\n- {{id: {'x' * 120}, video: a.mp4}}\n"))
    assert len(clip.id) == MAX_CHARS == 120


@pytest.mark.parametrize("clip", ["- video: a.mp4", "- {id: null, video: a.mp4}", "- {id: , video: a.mp4}"])
def test_no_id(write, clip):
    with pytest.raises(ManifestError, match=r":3: the clip has no `id`"):
        load_manifest(write(f"version: 1\nclips:\n{clip}\n"))


def test_duplicate_ids(write):
    path = write(
        "version: 1\nclips:\n- {id: a, video: a}\n- {id: b, video: a}\n- {id: a, video: c}\n- {id: B, video: d}\n"
    )
    with pytest.raises(ManifestError) as caught:
        load_manifest(path)
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{path}:5: id 'a' is already used in line 3;")
    assert second.startswith(f"{path}:6: id 'B' differs only in case from 'b' of line 4;")


def test_a_repeated_alias_is_a_duplicate(write):
    with pytest.raises(ManifestError, match=r":3: id 'a' is already used in line 3"):
        load_manifest(write("version: 1\nclips:\n- &one {id: a, video: a}\n- *one\n"))


def test_no_recording(write):
    with pytest.raises(
        ManifestError, match=r":3: the clip names no recording; expected at least one of video, crops, audio"
    ):
        load_manifest(write("version: 1\nclips:\n- id: a\n  transcript: a.srt\n"))


def test_crops_need_times(write):
    with pytest.raises(ManifestError, match=r":3: crops have no times of their own; expected `video` .* or `fps`"):
        load_manifest(write("version: 1\nclips:\n- {id: a, crops: a, audio: a.wav}\n"))
    (clip,) = load_manifest(write("version: 1\nclips:\n- {id: a, crops: a, fps: 25}\n"))
    assert clip.fps == 25.0


WHOLE_FILES = {
    "nothing": ("", ":1: the file is empty; expected `version: 1`"),
    "comment": ("# only\n", ":1: the file is empty"),
    "list": ("- a\n", ":1: the manifest is a list; expected a mapping of version, clips"),
    "text": ("hello\n", ":1: the manifest is 'hello'; expected a mapping"),
    "no version": ("clips:\n- {id: a, video: a}\n", ":1: the manifest has no `version`; expected `version: 1`"),
    "version 2": (GOOD.replace("1", "2", 1), ":1: version is '2'; this program reads `version: 1`"),
    "version 1.0": (GOOD.replace("1", "1.0", 1), ":1: version is '1.0'; this program"),
    "version in quotes": (GOOD.replace("1", "'1'", 1), ":1: version is '1' in quotes; this program"),
    "version true": (GOOD.replace("1", "true", 1), ":1: version is 'true'; this program"),
    "no clips": ("version: 1\n", ":1: the manifest has no `clips`"),
    "no clip": ("version: 1\nclips: []\n", ":2: clips is an empty list; expected at least one clip"),
    "clips by name": ("version: 1\nclips:\n  a: {video: b}\n", ":2: clips is a mapping; expected a list"),
    "clip as text": (
        "version: 1\nclips:\n- a.mp4\n",
        ":3: a clip is 'a.mp4'; expected a mapping that begins with `- id:`",
    ),
    "top key": (GOOD + "clip: 1\n", ":4: the manifest has an unknown key `clip`; did you mean `clips`?"),
    "not yaml": ("version: 1\nclips: [a\nb: c\n", ":3: not YAML: while parsing a flow sequence"),
    "two documents": (GOOD + "---\n" + GOOD, ":4: not YAML: expected a single document in the stream"),
    "tab": ("version: 1\nclips:\n\t- id: a\n", ":3: not YAML: while scanning for the next token"),
    "control character": ("version: 1\nclips:\n- id: a\x01\n", ":3: not YAML: "),
    "unknown alias": ("version: 1\nclips: *c\n", ":2: not YAML: found undefined alias"),
}


@pytest.mark.parametrize("loader", [nodes.LOADER, yaml.BaseLoader], ids=["as installed", "without libyaml"])
@pytest.mark.parametrize(("text", "message"), WHOLE_FILES.values(), ids=WHOLE_FILES)
def test_a_file_that_is_no_manifest(tmp_path, text, message, loader, monkeypatch):
    monkeypatch.setattr(nodes, "LOADER", loader)
    path = tmp_path / "m.yaml"
    path.write_text(text)
    with pytest.raises(ManifestError, match=re.escape(f"{path}{message}")) as caught:
        load_manifest(path)
    assert "\n" not in str(caught.value), "one mistake, one line"


def test_not_text(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_bytes(b"version: 1\n\n\xff\xfe\n")
    with pytest.raises(ManifestError, match=r"m\.yaml:3: not UTF-8 text"):
        load_manifest(path)


@pytest.mark.parametrize(("name", "found"), [("none.yaml", "no such manifest"), (".", "cannot read the manifest")])
def test_no_such_file(tmp_path, name, found):
    with pytest.raises(ManifestError, match=found) as caught:
        load_manifest(tmp_path / name)
    assert "`extract manifest folder DIR -o FILE`" in str(caught.value)
    assert "`--manifest FILE`" in str(caught.value)
    assert caught.value.exit_code == 2


def test_all_mistakes_are_listed_at_once_in_the_order_of_the_file(write):
    path = write(
        """\
        version: 3
        clips:
        - id: ../x
          vidoe: a.mp4
        - id: b
          video: [b]
          start_s: 4
          end_s: 3
          split: dev
        - id: b
          audio: b.wav
        """
    )
    with pytest.raises(ManifestError) as caught:
        load_manifest(path)
    said = [line.removeprefix(f"{path}:") for line in str(caught.value).splitlines()]
    assert [line.split(":")[0] for line in said] == ["1", "3", "3", "4", "6", "8", "9", "10"]
    assert said[4] == "6: video is a list; expected text", "and no complaint that the clip has no recording"


def test_a_clip_made_in_code_obeys_the_same_rules():
    with pytest.raises(ValidationError, match=r"id '\.\./x' cannot name a folder"):
        Clip(id="../x", video=Path("a"))
    with pytest.raises(ValidationError, match="names no recording"):
        Clip(id="a")
    with pytest.raises(ValidationError, match="crops have no times"):
        Clip(id="a", crops=Path("a"))
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Clip.model_validate({"id": "a", "video": "a", "speed": 2})
    with pytest.raises(ValidationError, match="frozen"):
        Clip(id="a", video=Path("a")).id = "b"


def test_is_legal():
    assert all(is_legal(text) for text in ("a", "A-1_b.c", "_", "x" * 120))
    assert not any(is_legal(text) for text in ("", ".a", "a/b", "é", "a\n", "x" * 121, "zarr.json"))


def test_ten_thousand_clips_in_order(tmp_path):
    """Ids must be compared by look-up, not each with each; the time itself is not tested (about 1 s)."""
    path = tmp_path / "m.yaml"
    path.write_text("version: 1\nclips:\n" + "".join(f"- {{id: c{i}, video: v/{i}.mp4}}\n" for i in range(10_000)))
    clips = load_manifest(path)
    assert [clip.id for clip in clips] == [f"c{i}" for i in range(10_000)]
    assert clips[-1].video == tmp_path / "v/9999.mp4"
