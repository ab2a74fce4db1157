"""The checker of submissions: each defect by file and line, and nothing of a sound one."""

import json

import pytest
from typer.testing import CliRunner

from extract.errors import UsageError
from fusion.cli import app
from fusion.submission_check import PER_KIND, check, refuse_needless
from fusion.submission_files import HEADER, LOCATION_HEADER

ROW = "0,1,0,0,1,0,1,0,0,0,1,1"
PLACES = [f"v1/{frame:05d}.jpg" for frame in range(1, 5)] + [f"v2_left/{frame:05d}.jpg" for frame in range(1, 4)]
EXPECTED = "v1,4\nv2_left,3\n"


@pytest.fixture
def folder(tmp_path):
    """A sound ``abaw3`` submission of two videos, and ``expected.txt``."""
    (tmp_path / "out").mkdir()
    for video, count in (("v1", 4), ("v2_left", 3)):
        (tmp_path / "out" / f"{video}.txt").write_text("\n".join([HEADER, *[ROW] * count]) + "\n")
    (tmp_path / "expected.txt").write_text(EXPECTED)
    return tmp_path / "out"


@pytest.fixture
def file(tmp_path):
    """A sound ``abaw5`` submission, ``sample.txt`` and ``expected.txt``."""
    (tmp_path / "out.txt").write_text("\n".join([LOCATION_HEADER, *(f"{place},{ROW}" for place in PLACES)]) + "\n")
    (tmp_path / "sample.txt").write_text("\n".join([LOCATION_HEADER, *(f"{place}," for place in PLACES)]) + "\n")
    (tmp_path / "expected.txt").write_text(EXPECTED)
    return tmp_path / "out.txt"


def lines_of(path):
    return path.read_text().split("\n")[:-1]


def told(defects):
    """(name of the file, line, kind) each."""
    return [(defect.file.name, defect.line, defect.kind) for defect in defects]


def test_a_sound_submission_has_no_defect(folder, file):
    assert check(folder, expected=folder.parent / "expected.txt") == []
    assert check(folder, "abaw3") == []
    for lists in ({}, {"sample": file.parent / "sample.txt"}, {"expected": file.parent / "expected.txt"}):
        assert check(file, **lists) == []


DAMAGE = {
    "a value": (lambda rows: [rows[0], rows[1], ROW.replace("1", "2", 1), *rows[3:]], [(3, "values")]),
    "a probability": (lambda rows: [*rows[:-1], "0.5" + ROW[1:]], [(5, "values")]),
    "minus one": (lambda rows: [rows[0], "-1" + ROW[1:], *rows[2:]], [(2, "values")]),
    "a blank": (lambda rows: [rows[0], " " + ROW, *rows[2:]], [(2, "values")]),
    "a comma": (lambda rows: [*rows[:3], rows[3] + ",", *rows[4:]], [(4, "comma")]),
    "a column less": (lambda rows: [*rows[:2], ROW[:-2], *rows[3:]], [(3, "width")]),
    "a column more": (lambda rows: [*rows[:2], ROW + ",0", *rows[3:]], [(3, "width")]),
    "a header": (lambda rows: [rows[0].replace("AU1,", "AU01,"), *rows[1:]], [(1, "header")]),
    "no header": (lambda rows: rows[1:], [(1, "header")]),
    "a row less": (lambda rows: rows[:-1], [(4, "count")]),
    "a row more": (lambda rows: [*rows, ROW], [(6, "count")]),
    "no row": (lambda rows: rows[:1], [(1, "count")]),
    "a blank line": (lambda rows: [*rows[:2], "", *rows[2:]], [(3, "blank")]),
}


@pytest.mark.parametrize(("damage", "expected"), DAMAGE.values(), ids=DAMAGE)
def test_each_defect_of_a_video_is_named_by_line(folder, damage, expected):
    path = folder / "v1.txt"
    path.write_text("\n".join(damage(lines_of(path))) + "\n")
    found = check(folder, expected=folder.parent / "expected.txt")
    assert told(found) == [("v1.txt", *one) for one in expected]
    assert str(found[0]).startswith(f"{path}:{expected[0][0]}: ")


TEXT = {
    "CRLF": (lambda data: data.replace(b"\n", b"\r\n"), [(1, "crlf")]),
    "one CR": (lambda data: data.replace(b"\n", b"\r\n", 3).replace(b"\r\n", b"\n", 2), [(3, "crlf")]),
    "BOM": (lambda data: b"\xef\xbb\xbf" + data, [(1, "bom")]),
    "BOM and CRLF": (lambda data: b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n"), [(1, "bom"), (1, "crlf")]),
    "not text": (lambda data: data[:-2] + b"\xe9\n", [(5, "text")]),
    "UTF-16": (lambda data: data.decode().encode("utf-16"), [(1, "text")]),
    "no end": (lambda data: data[:-1], [(5, "end")]),
    "nothing": (lambda data: data[:0], [(1, "text")]),
}


@pytest.mark.parametrize(("damage", "expected"), TEXT.values(), ids=TEXT)
def test_text_of_another_kind_is_named(folder, damage, expected):
    (folder / "v1.txt").write_bytes(damage((folder / "v1.txt").read_bytes()))
    assert told(check(folder, expected=folder.parent / "expected.txt")) == [("v1.txt", *one) for one in expected]


def test_videos_are_missing_foreign_or_spelt_otherwise(folder):
    (folder / "v2_left.txt").rename(folder / "V2_left.txt")
    (folder / "notes.csv").touch()
    found = check(folder, expected=folder.parent / "expected.txt")
    assert told(found) == [
        ("notes.csv", None, "foreign"),
        ("v2_left.txt", None, "missing"),
        ("V2_left.txt", None, "foreign"),
    ]
    assert "lists v2_left with 3 rows; V2_left.txt differs in case" in str(found[1])


ONE_FILE = {
    "two rows swapped": (lambda rows: [rows[0], rows[2], rows[1], *rows[3:]], [(2, "order")]),
    "videos swapped": (lambda rows: [rows[0], *rows[5:], *rows[1:5]], [(2, "order")]),
    "a duplicate": (lambda rows: [*rows[:3], rows[2], *rows[3:]], [(4, "duplicate")]),
    "a row less": (lambda rows: [*rows[:3], *rows[4:]], [(None, "missing")]),
    "a video less": (lambda rows: rows[:5], [(None, "missing")]),
    "a row more": (lambda rows: [*rows, f"v2_left/00004.jpg,{ROW}"], [(9, "foreign")]),
    "a video more": (lambda rows: [*rows, f"v3/00001.jpg,{ROW}"], [(9, "foreign")]),
    "another place": (
        lambda rows: [*rows[:7], rows[7].replace("00003", "3")],
        [(8, "location"), (None, "missing")],
    ),
    "a comma": (lambda rows: [*rows[:7], rows[7] + ","], [(8, "comma")]),
    "a value": (lambda rows: [*rows[:7], rows[7][:-1] + "2"], [(8, "values")]),
    "only a comma": (lambda rows: [*rows[:7], "v2_left/00003.jpg,"], [(8, "comma"), (8, "width")]),
    "a header": (lambda rows: [HEADER, *rows[1:]], [(1, "header")]),
    "no header": (lambda rows: rows[1:], [(1, "header")]),
}


@pytest.mark.parametrize(("damage", "expected"), ONE_FILE.values(), ids=ONE_FILE)
def test_each_defect_of_one_file_is_named_by_line(file, damage, expected):
    file.write_text("\n".join(damage(lines_of(file))) + "\n")
    found = check(file, sample=file.parent / "sample.txt")
    assert sorted(told(found), key=str) == sorted((("out.txt", *one) for one in expected), key=str)


def test_without_a_sample_frames_go_from_one_on(file):
    header, *rows = lines_of(file)
    cases = {
        (rows[1], rows[0], *rows[2:]): [(2, "order")],
        (*rows[:2], *rows[3:]): [(4, "order")],
        (*rows[:2], *rows[4:], *rows[2:4]): [(7, "order")],
    }
    for changed, expected in cases.items():
        file.write_text("\n".join([header, *changed]) + "\n")
        assert told(check(file)) == [("out.txt", *one) for one in expected]


def test_expected_counts_hold_for_one_file_too(file):
    (file.parent / "expected.txt").write_text("v1,5\nv3,2\n")
    found = check(file, expected=file.parent / "expected.txt")
    assert sorted(told(found), key=str) == [
        ("out.txt", 5, "count"),
        ("out.txt", 6, "foreign"),
        ("out.txt", None, "missing"),
    ]


def test_many_alike_are_counted(folder):
    path = folder / "v1.txt"
    path.write_text("\n".join([HEADER, *["2" + ROW[1:]] * 100]) + "\n")
    found = check(folder)
    assert [defect.line for defect in found] == [*range(2, 2 + PER_KIND), None]
    assert "and 95 more of this kind (values)" in str(found[-1])


def test_the_command_ends_with_1_and_names_them(folder, file):
    arguments = ["submit", "--check", str(folder), "--expected", str(folder.parent / "expected.txt")]
    sound = CliRunner().invoke(app, arguments)
    assert (sound.exit_code, sound.stdout) == (0, f"{folder}: no defects found\n")
    (folder / "v1.txt").write_text(HEADER + "\n")
    bad = CliRunner().invoke(app, arguments)
    assert bad.exit_code == 1
    assert f"{folder / 'v1.txt'}:1: 0 rows, expected 4: one per frame of the movie\n" in bad.stdout
    assert f"{folder}: 1 defect found" in bad.stdout
    listed = CliRunner().invoke(app, [*arguments, "--json"])
    assert (listed.exit_code, json.loads(listed.stdout)["defects"][0]["kind"]) == (1, "count")
    assert CliRunner().invoke(app, ["submit", "--check", str(file), "-q"]).exit_code == 0


@pytest.mark.parametrize(
    ("form", "name", "message"),
    [
        ("abaw3", "out.txt", r"is a file, and abaw3 is a folder with one file per video"),
        ("abaw5", "folder", r"is a folder, and abaw5 is one file"),
        ("abaw4", "out.txt", r"--format abaw4: no such form"),
        (None, "gone", r"--check .*gone: no such file or folder"),
    ],
)
def test_another_kind_is_refused(file, form, name, message):
    (file.parent / "folder").mkdir()
    with pytest.raises(UsageError, match=message):
        check(file.parent / name, form)


def test_a_sample_of_a_folder_and_needless_options_are_refused(folder):
    with pytest.raises(UsageError, match="--sample is of abaw5"):
        check(folder, sample=folder.parent / "sample.txt")
    with pytest.raises(UsageError, match="--check writes nothing; leave out --output, --fill"):
        refuse_needless(output=folder, run=None, fill="nearest")
