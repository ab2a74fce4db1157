"""Reads label files: one row per video frame, -1 where nothing was annotated."""

from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from extract import texts
from extract.au import AU_NAMES, AUS, au_name, au_number
from extract.errors import ClipError

NOT_ANNOTATED = -1
NUM_EXPRESSIONS = 8

# OpenFace adds _c for presence, 0 or 1, and _r for an intensity from 0 to 5, which is not used as a label.
_PRESENT, _INTENSITY = "_c", "_r"
_AU_VALUES = {"0": 0, "1": 1, "-1": -1}
_EXPR_VALUES = {str(value): value for value in range(-1, NUM_EXPRESSIONS)}


@dataclass(frozen=True)
class AuLabels:
    """Action units of every frame."""

    au: NDArray[np.int8]
    """[N, 12] in the order of ``extract.au.AUS``, values 0, 1, -1 (not annotated)."""
    left_out: tuple[str, ...]
    """Columns of the file that are other action units, as its header spells them: ``AU45``, ``AU01_r``."""


def read_au(path: Path) -> AuLabels:
    """Action units of every frame of a movie.

    The layout of Aff-Wild2 (ABAW): a header ``AU01,AU02,...,AU26``, then one line of comma-separated values per frame
    of the movie. Columns go by their names (``AU01``, ``AU1``, ``au 1``, OpenFace's ``AU01_c``), so they may be in
    any order, and an AU without a column is -1 throughout. AUs other than the twelve are skipped, whatever their
    values are, and named. A column that is no AU at all is refused: ``success`` or ``confidence`` may say that a row's
    zeros mean nothing. A first column ``frame`` must count up by one from 0 or from 1.

    Raises:
        ClipError: ``missing_file``, ``unreadable``, or ``bad_labels`` with the line, what was found and expected.
    """
    lines = _lines(path, "a header such as `AU01,AU02,AU04`")
    aus, left_out, counted = _au_columns(path, lines[0])
    rows = [line.split(",") for line in lines[1:]]
    width = len(aus) + len(left_out) + counted
    for number, row in enumerate(rows, start=2):
        if len(row) != width:
            raise _bad(path, number, f"{len(row)} columns in {_shown(lines[number - 1])}", f"{width} as in the header")
    if counted:
        _check_count(path, [row[0] for row in rows])
    if counted or left_out:
        rows = [[row[column] for column in aus.values()] for row in rows]
    values = _values(path, list(chain.from_iterable(rows)), len(aus), _AU_VALUES, "0, 1 or -1 (not annotated)")
    au = np.full((len(rows), len(AUS)), NOT_ANNOTATED, dtype=np.int8)  # [N, 12]
    au[:, [AUS.index(number) for number in aus]] = values
    return AuLabels(au, left_out)


def read_expr(path: Path) -> NDArray[np.int8]:
    """Expression of every frame: [N], values 0 to 7 in the order of the challenge's header, -1 not annotated.

    The layout of Aff-Wild2 (ABAW): a line with the expressions' names, then one number per frame of the movie.

    Raises:
        ClipError: as ``read_au``.
    """
    names = "a header with the expressions' names"
    lines = _lines(path, names)
    if not any(character.isalpha() for character in lines[0]):
        raise _bad(path, 1, _shown(lines[0]), names)
    expected = f"one number from -1 (not annotated) to {NUM_EXPRESSIONS - 1}"
    return _values(path, lines[1:], 1, _EXPR_VALUES, expected)[:, 0]


def _lines(path: Path, header: str) -> list[str]:
    """Lines of the file from the header to the last one that is not blank; a blank line before it is refused."""
    try:
        # Any line ends, and no byte order mark: label files pass through spreadsheets.
        text = texts.read_text(path).rstrip()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ClipError(
            "missing_file", f"{path}: no such label file; check the clip's `labels` in the manifest"
        ) from error
    except OSError as error:
        raise ClipError("unreadable", f"{path}: cannot read the label file ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ClipError("bad_labels", f"{path}: found bytes that are not UTF-8 text, expected a label file") from error
    if not text:
        raise _bad(path, 1, "an empty file", header)
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise _bad(path, number, "a blank line", "one row per frame without gaps" if number > 1 else header)
    return lines


def _au_columns(path: Path, header: str) -> tuple[dict[int, int], tuple[str, ...], bool]:
    """Column of each AU, the names of columns that are skipped, and whether a frame counter precedes them."""
    names = [name.strip() for name in header.split(",")]
    counted = names[0].lower() == "frame"
    expected = f"a header of AU columns such as `AU01,AU02,AU04`, from {', '.join(AU_NAMES)}"
    aus: dict[int, int] = {}
    left_out: list[str] = []
    for column, name in enumerate(names[counted:], start=counted):
        kind = next((kind for kind in (_PRESENT, _INTENSITY) if name.lower().endswith(kind)), "")
        number = au_number(name[: len(name) - len(kind)])
        if number is None:
            raise _bad(path, 1, f"column {_shown(name.lower())}", expected)
        if number not in AUS or kind == _INTENSITY:
            left_out.append(name)
        elif number in aus:
            raise _bad(path, 1, f"{au_name(number)} twice", "each AU once")
        else:
            aus[number] = column
    if not aus:
        raise _bad(path, 1, _shown(", ".join(left_out) or header), expected)
    return aus, tuple(left_out), counted


def _check_count(path: Path, tokens: list[str]) -> None:
    """Refuse a frame column that jumps: rows are missing, and every later label would belong to the wrong frame."""
    counts = [int(token) if len(token) < 20 and token.strip().isdecimal() else None for token in tokens]
    first = 0 if counts[:1] == [0] else 1
    for row, count in enumerate(counts):
        if count != row + first:
            expected = f"frame {row + first}: one row per frame, counted from 0 or 1"
            raise _bad(path, row + 2, f"frame {_shown(tokens[row].strip())}", expected)


def _values(path: Path, tokens: list[str], width: int, table: dict[str, int], expected: str) -> NDArray[np.int8]:
    """Numbers [N, width] of tokens, row after row; only the spellings in ``table`` are accepted."""
    get = table.get
    codes = [get(token.strip()) for token in tokens]
    if None in codes:
        wrong = codes.index(None)
        raise _bad(path, wrong // width + 2, f"value {_shown(tokens[wrong].strip())}", expected)
    return np.array(codes, dtype=np.int8).reshape(-1, width)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _bad(path: Path, line: int, found: str, expected: str) -> ClipError:
    return ClipError("bad_labels", f"{path}:{line}: found {found}, expected {expected}")
