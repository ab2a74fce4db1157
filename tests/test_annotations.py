"""Label files: the challenge's layout, columns by name, and every way to be malformed with its line."""

import re

import numpy as np
import pytest

from extract.au import AUS
from extract.errors import ClipError
from extract.inputs.annotations import read_au, read_expr, read_intensity, read_va

HEADER = "AU1,AU2,AU4,AU6,AU7,AU10,AU12,AU15,AU23,AU24,AU25,AU26"
"""The header of Aff-Wild2, written out: the order of AUS is checked against it, not derived from it."""

EXPRESSIONS = "Neutral,Anger,Disgust,Fear,Happiness,Sadness,Surprise,Other"


@pytest.fixture
def write(tmp_path):
    def write(text: str | bytes):
        path = tmp_path / "labels.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_aff_wild2(write):
    au = read_au(write(f"{HEADER}\n0,1,0,0,1,0,1,0,0,0,1,-1\n-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1\n")).au
    assert au.dtype == np.int8
    assert au.tolist() == [[0, 1, 0, 0, 1, 0, 1, 0, 0, 0, 1, -1], [-1] * 12]


def test_columns_go_by_name(write):
    """One row whose values tell the columns apart: AU26 first, AU1 last."""
    names = [f"AU{au}" for au in reversed(AUS)]
    row = [0, 1, -1, 1, 1, 0, 0, -1, 1, 0, -1, 1]
    au = read_au(write(",".join(names) + "\n" + ",".join(map(str, row)) + "\n")).au
    assert au.tolist() == [row[::-1]]


def test_missing_columns_are_not_annotated(write):
    au = read_au(write("AU12,AU4\n1,0\n0,1\n")).au
    assert au[:, AUS.index(12)].tolist() == [1, 0]
    assert au[:, AUS.index(4)].tolist() == [0, 1]
    others = [column for column, number in enumerate(AUS) if number not in {4, 12}]
    assert (au[:, others] == -1).all()
    assert len(others) == 10


@pytest.mark.parametrize("name", ["AU1", "AU01", "au1", " AU1 ", "AU 1", "Au 01", "AU001"])
def test_spellings_of_a_column(write, name):
    assert read_au(write(f"{name},AU2\n1,0\n")).au[0, :2].tolist() == [1, 0]


LEFT_OUT = {
    "one more": ("AU1,AU45,AU2\n1,1,0\n0,0,1\n", ("AU45",)),
    "first and last": ("AU45,AU1,AU2,AU5\n1,1,0,1\n0,0,1,1\n", ("AU45", "AU5")),
    "counted": ("frame,AU1,AU9,AU2\n0,1,1,0\n1,0,0,1\n", ("AU9",)),
    "other values": ("AU 1,AU 9,AU 2\n1,9,0\n0,3.5,1\n", ("AU 9",)),
    "openface": (
        "AU01_r,AU02_r,AU45_r,AU01_c,AU02_c,AU45_c\n.5,0,1,1,0,1\n0,2.1,0,0,1,0\n",
        ("AU01_r", "AU02_r", "AU45_r", "AU45_c"),
    ),
    "counted openface": ("frame, AU01_c, AU02_c, AU28_c\n1, 1, 0, 1\n2, 0, 1, 0\n", ("AU28_c",)),
}


@pytest.mark.parametrize(("text", "left_out"), LEFT_OUT.values(), ids=LEFT_OUT)
def test_other_aus_are_left_out_by_name_and_the_known_ones_kept(write, text, left_out):
    read = read_au(write(text))
    assert read.au[:, :3].tolist() == [[1, 0, -1], [0, 1, -1]]
    assert read.left_out == left_out


def test_nothing_is_left_out_of_a_file_of_the_twelve(write):
    assert read_au(write(f"{HEADER}\n{GOOD_ROW}\n")).left_out == ()


@pytest.mark.parametrize(
    "ending", ["", "\n", "\r\n", "\n\n", "\n \n"], ids=["none", "one", "windows", "two", "blank at the end"]
)
def test_line_ends_and_byte_order_mark(write, ending):
    new_line = "\r\n" if "\r" in ending else "\n"
    au = read_au(write(b"\xef\xbb\xbf" + (new_line.join(["AU1,AU2", "1,0", " 0 , -1"]) + ending).encode())).au
    assert au[:, :2].tolist() == [[1, 0], [0, -1]]


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("form", ["{}", "{:05d}", " {} "])
def test_a_frame_column_counts_from_0_or_1(write, first, form):
    rows = [f"{form.format(i + first)},{i % 2}" for i in range(12)]
    au = read_au(write("frame,AU7\n" + "\n".join(rows))).au
    assert au[:, AUS.index(7)].tolist() == [0, 1] * 6


def test_header_alone_is_no_row(write):
    assert read_au(write(f"{HEADER}\n")).au.shape == (0, 12)
    assert read_au(write("frame,AU1\n")).au.shape == (0, 12)
    assert read_expr(write(f"{EXPRESSIONS}\n")).shape == (0,)


GOOD_ROW = "0,0,0,0,0,0,0,0,0,0,0,0"

BAD_AU = {
    "empty": ("", 1, "an empty file", "a header such as `AU01,AU02,AU04`"),
    "only blank": ("\n \n", 1, "an empty file", "a header"),
    "no header": (f"{GOOD_ROW}\n{GOOD_ROW}\n", 1, "column '0'", "a header of AU columns"),
    "blank before header": (f"\n{HEADER}\n{GOOD_ROW}\n", 1, "a blank line", "a header"),
    "no known AU": ("AU9,AU45\n0,0\n", 1, "'AU9, AU45'", "from AU01, AU02, AU04, AU06, AU07, AU10"),
    "known and no AU": ("AU1,AU45,success\n0,0,1\n", 1, "column 'success'", "a header"),
    "13 of 14 columns": ("frame,AU1,AU45\n0,1,1\n1,1\n", 3, "2 columns in '1,1'", "3 as in the header"),
    "known AU spelled twice": ("AU1,AU45,AU01_c\n0,0,0\n", 1, "AU01 twice", "each AU once"),
    "bad value beside one left out": ("AU45,AU1\n7,1\n7,2\n", 3, "value '2'", "0, 1 or -1"),
    "AU0": ("AU0\n0\n", 1, "column 'au0'", "a header"),
    "other column": ("AU1,confidence\n0,0\n", 1, "column 'confidence'", "a header"),
    "intensities": ("AU01_r,AU02_r\n0,0\n", 1, "'AU01_r, AU02_r'", "a header"),
    "twice": ("AU1,AU2,AU01\n0,0,0\n", 1, "AU01 twice", "each AU once"),
    "frame not first": ("AU1,frame\n0,0\n", 1, "column 'frame'", "a header"),
    "frame alone": ("frame\n0\n", 1, "'frame'", "a header of AU columns"),
    "semicolons": (HEADER.replace(",", ";") + "\n", 1, "column 'au1;au2;", "a header"),
    "comma at the end": (f"{HEADER},\n{GOOD_ROW},\n", 1, "column ''", "a header"),
    "11 columns": (f"{HEADER}\n{GOOD_ROW}\n{GOOD_ROW[:-2]}\n", 3, f"11 columns in '{GOOD_ROW[:-2]}'", "12 as in the"),
    "13 columns": (f"{HEADER}\n{GOOD_ROW}\n{GOOD_ROW},0\n", 3, f"13 columns in '{GOOD_ROW},0'", "12 as in the header"),
    "frame missing in a row": ("frame,AU1\n0,1\n1\n", 3, "1 columns in '1'", "2 as in the header"),
    "value 2": ("AU1,AU2\n0,1\n0,0\n1,2\n", 4, "value '2'", "0, 1 or -1 (not annotated)"),
    "value 9": ("AU1\n9\n", 2, "value '9'", "0, 1 or -1"),
    "text": ("AU1,AU2\n0,on\n", 2, "value 'on'", "0, 1 or -1"),
    "nothing between commas": ("AU1,AU2\n0,\n", 2, "value ''", "0, 1 or -1"),
    "fraction": ("AU1,AU2\n0,0.5\n", 2, "value '0.5'", "0, 1 or -1"),
    "not a number": ("AU1,AU2\n0,nan\n", 2, "value 'nan'", "0, 1 or -1"),
    "blank in the middle": ("AU1,AU2\n0,0\n\n0,0\n", 3, "a blank line", "one row per frame without gaps"),
    "frame jumps": ("frame,AU1\n1,0\n2,0\n4,0\n", 4, "frame '4'", "frame 3: one row per frame"),
    "frame repeats": ("frame,AU1\n0,0\n0,0\n", 3, "frame '0'", "frame 1: one row"),
    "frame starts late": ("frame,AU1\n5,0\n", 2, "frame '5'", "frame 1: one row per frame, counted from 0 or 1"),
    "frame is a name": ("frame,AU1\n00001.jpg,0\n", 2, "frame '00001.jpg'", "frame 1: one row"),
    "AU of 5000 digits": (f"AU1,AU{'9' * 5000}\n0,0\n", 1, "column 'au999", "a header"),
    "frame of 5000 digits": (f"frame,AU1\n{'1' * 5000},0\n", 2, "frame '111", "frame 1: one row"),
    "frame is nothing": ("frame,AU1\n,0\n", 2, "frame ''", "frame 1: one row"),
}


@pytest.mark.parametrize(("text", "line", "found", "expected"), BAD_AU.values(), ids=BAD_AU)
def test_malformed_au(write, text, line, found, expected):
    path = write(text)
    with pytest.raises(
        ClipError, match=f"^{re.escape(f'{path}:{line}: found {found}')}.*, expected .*{re.escape(expected)}"
    ) as caught:
        read_au(path)
    assert caught.value.reason == "bad_labels"


def test_a_long_line_is_not_shown_whole(write):
    with pytest.raises(ClipError, match=r"'xxx+\.\.\.'") as caught:
        read_au(write("x" * 100_000))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("read", [read_au, read_expr, read_intensity, read_va])
def test_not_text(write, read):
    with pytest.raises(ClipError, match="found bytes that are not UTF-8 text") as caught:
        read(write(b"\x89PNG\r\n\xff\xfe\x00"))
    assert caught.value.reason == "bad_labels"


@pytest.mark.parametrize("read", [read_au, read_expr, read_intensity, read_va])
def test_no_file(tmp_path, read):
    with pytest.raises(ClipError, match=r"none\.csv: no such label file; check the clip's `labels`") as caught:
        read(tmp_path / "none.csv")
    assert caught.value.reason == "missing_file"


@pytest.mark.parametrize("read", [read_au, read_expr, read_intensity, read_va])
def test_a_folder(tmp_path, read):
    with pytest.raises(ClipError, match=r"cannot read the label file .*irectory") as caught:
        read(tmp_path)
    assert caught.value.reason == "unreadable"


def test_expressions(write):
    expr = read_expr(write(f"{EXPRESSIONS}\n-1\n0\n1\n2\n3\n4\n5\n6\n7\n"))
    assert expr.dtype == np.int8
    assert expr.tolist() == [-1, 0, 1, 2, 3, 4, 5, 6, 7]


def test_expressions_from_windows(write):
    assert read_expr(write(f"\ufeff{EXPRESSIONS}\r\n 4 \r\n-1\r\n\r\n")).tolist() == [4, -1]


BAD_EXPR = {
    "empty": ("", 1, "an empty file", "a header with the expressions' names"),
    "no header": ("0\n1\n", 1, "'0'", "a header with the expressions' names"),
    "value 8": (f"{EXPRESSIONS}\n0\n8\n", 3, "value '8'", "one number from -1 (not annotated) to 7"),
    "value -2": (f"{EXPRESSIONS}\n-2\n", 2, "value '-2'", "one number from -1"),
    "text": (f"{EXPRESSIONS}\nAnger\n", 2, "value 'Anger'", "one number from -1"),
    "valence and arousal": ("valence,arousal\n0.1,0.2\n", 2, "value '0.1,0.2'", "one number from -1"),
    "blank": (f"{EXPRESSIONS}\n0\n\n1\n", 3, "a blank line", "one row per frame without gaps"),
}


@pytest.mark.parametrize(("text", "line", "found", "expected"), BAD_EXPR.values(), ids=BAD_EXPR)
def test_malformed_expressions(write, text, line, found, expected):
    path = write(text)
    with pytest.raises(
        ClipError, match=f"^{re.escape(f'{path}:{line}: found {found}')}, expected {re.escape(expected)}"
    ) as caught:
        read_expr(path)
    assert caught.value.reason == "bad_labels"


def test_20_000_frames_read_back(write):
    """As numpy's own reader gives them."""
    labels = np.random.default_rng(0).integers(-1, 2, size=(20_000, 12))
    path = write(HEADER + "\n" + "\n".join(",".join(map(str, row)) for row in labels.tolist()))
    np.testing.assert_array_equal(read_au(path).au, labels)
    np.testing.assert_array_equal(read_au(path).au, np.loadtxt(path, delimiter=",", skiprows=1, dtype=np.int8))


DISFA = (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26)


def test_other_action_units_in_the_order_asked_for(write):
    path = write("AU05,AU1,AU45,AU9\n1,0,1,-1\n0,1,0,1\n")
    assert read_au(path, (9, 5, 20)).au.tolist() == [[-1, 1, -1], [1, 0, -1]]
    assert read_au(path, (9, 5, 20)).left_out == ("AU1", "AU45")
    assert read_au(path, DISFA).left_out == ("AU45",)
    with pytest.raises(ClipError, match=r"expected a header of AU columns such as .*, from AU20, AU17"):
        read_au(path, (20, 17))


def test_intensities(write):
    read = read_intensity(write("AU01_r,AU2,AU04_c,AU45_r\n0,5,1,9\n-1,3,0,9\n"))
    assert read.au.dtype == np.int8
    assert read.au[:, :3].tolist() == [[0, 5, -1], [-1, 3, -1]]
    assert read.left_out == ("AU04_c", "AU45_r")


BAD_INTENSITY = {
    "six": ("AU1\n6\n", 2, "value '6'", "one whole number from -1 (not annotated) to 5"),
    "fraction": ("AU1\n0\n2.5\n", 3, "value '2.5'", "one whole number from -1"),
    "presence": ("AU01_c\n1\n", 1, "'AU01_c'", "a header of AU columns"),
}


@pytest.mark.parametrize(("text", "line", "found", "expected"), BAD_INTENSITY.values(), ids=BAD_INTENSITY)
def test_malformed_intensities(write, text, line, found, expected):
    path = write(text)
    with pytest.raises(ClipError, match=re.escape(f"{path}:{line}: found {found}") + ".*" + re.escape(expected)):
        read_intensity(path)


def test_listed_frames_leave_the_others_unannotated(write):
    """As BP4D's codes, which begin in the middle of the video."""
    read = read_au(write("frame_index,AU2,AU1\n3,0,1\n00004, 1,1\n7,-1,0\n"))
    assert read.listed
    assert read.au[:, :3].tolist() == [[-1] * 3] * 3 + [[1, 0, -1], [1, 1, -1]] + [[-1] * 3] * 2 + [[0, -1, -1]]
    assert not read_au(write("frame,AU1\n0,1\n")).listed
    assert read_au(write("frame_index,AU1\n")).au.shape == (0, 12)


@pytest.mark.parametrize("frame", ["3", "2", "-1", "x", "", "3.0", "5000000"])
def test_listed_frames_increase(write, frame):
    path = write(f"frame_index,AU1\n3,1\n{frame},1\n")
    expected = (
        f"{path}:3: found frame_index '{frame}', expected a frame_index from 4 to 4,999,999: counted from 0, in order"
    )
    with pytest.raises(ClipError, match=re.escape(expected)):
        read_au(path)


def test_valence_and_arousal(write):
    va = read_va(write("valence,arousal\n0.5,-0.25\n-5,-5\n-1, 1\n-5.0,0\n"))
    assert va.dtype == np.float32
    assert va.tolist() == [[0.5, -0.25], [-5, -5], [-1, 1], [-5, 0]]
    assert read_va(write("Valence, Arousal\r\n")).shape == (0, 2)


BAD_VA = {
    "other header": ("arousal,valence\n0,0\n", 1, "'arousal,valence'", "the header `valence,arousal`"),
    "no header": ("0.1,0.2\n", 1, "'0.1,0.2'", "the header `valence,arousal`"),
    "empty": ("", 1, "an empty file", "the header `valence,arousal`"),
    "beyond": ("valence,arousal\n0,0\n0,1.01\n", 3, "value '1.01'", "a number from -1 to 1, or -5 (not annotated)"),
    "another mark": ("valence,arousal\n-2,0\n", 2, "value '-2'", "a number from -1 to 1, or -5"),
    "nan": ("valence,arousal\n0,nan\n", 2, "value 'nan'", "a number from -1 to 1"),
    "text": ("valence,arousal\n0,high\n", 2, "value 'high'", "a number from -1 to 1"),
    "one column": ("valence,arousal\n0\n", 2, "1 columns in '0'", "2 as in the header"),
    "three columns": ("valence,arousal\n0,0,0\n", 2, "3 columns in '0,0,0'", "2 as in the header"),
}


@pytest.mark.parametrize(("text", "line", "found", "expected"), BAD_VA.values(), ids=BAD_VA)
def test_malformed_valence_and_arousal(write, text, line, found, expected):
    path = write(text)
    expected = re.escape(f"{path}:{line}: found {found}, expected {expected}")
    with pytest.raises(ClipError, match=expected) as caught:
        read_va(path)
    assert caught.value.reason == "bad_labels"
