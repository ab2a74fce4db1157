"""Reads label files: one row per video frame, -1 where nothing was annotated."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from extract import texts
from extract.au import (
    AFFECT_NOT_ANNOTATED,
    AUS,
    HIGHEST_INTENSITY,
    NOT_ANNOTATED,
    NUM_EXPRESSIONS,
    au_name,
    au_number,
)
from extract.errors import ClipError

MOST_FRAMES = 5_000_000
"""Largest ``frame_index`` of a label file: two days of video; a wrong number shall not fill the memory."""

COUNTED, LISTED = "frame", "frame_index"
"""First column of a table with a row per frame, which then counts them; and of one that lists the annotated frames."""

# OpenFace adds _c for presence, 0 or 1, and _r for an intensity from 0 to 5.
_PRESENT, _INTENSITY = "_c", "_r"
_INTENSITIES = {str(value): value for value in range(-1, HIGHEST_INTENSITY + 1)}
_AU_VALUES = {"0": 0, "1": 1, "-1": -1}
_EXPR_VALUES = {str(value): value for value in range(-1, NUM_EXPRESSIONS)}


@dataclass(frozen=True)
class AuLabels:
    """Action units of every frame: whether each is there, or how intense it is."""

    au: NDArray[np.int8]
    """[N, A] in the order asked for, values 0, 1 (intensities 0 to 5), or -1 (not annotated)."""
    left_out: tuple[str, ...]
    """Columns of the file that were not asked for, as its header spells them: ``AU45``, ``AU01_r``."""
    listed: bool = False
    """The file lists the frames that it annotates (``frame_index``): row N - 1 is the last of them, not the last frame
    of the clip."""


def read_au(path: Path, aus: tuple[int, ...] = AUS) -> AuLabels:
    """Action units of every frame of a movie: is each there?

    The layout of Aff-Wild2 (ABAW): a header ``AU01,AU02,...,AU26``, then one line of comma-separated values per frame
    of the movie. Columns go by their names (``AU01``, ``AU1``, ``au 1``, OpenFace's ``AU01_c``), so they may be in
    any order, and an AU without a column is -1 throughout. AUs that are not asked for are skipped, whatever their
    values are, and named. A column that is no AU at all is refused: ``success`` or ``confidence`` may say that a row's
    zeros mean nothing. A first column ``frame`` must count up by one from 0 or from 1. A first column ``frame_index``
    lists the frames that are annotated, counted from 0 and increasing; those between are -1.

    Args:
        aus: numbers of the A action units asked for, in the order of the columns.

    Raises:
        ClipError: ``missing_file``, ``unreadable``, or ``bad_labels`` with the line, what was found and expected.
    """
    return _read_table(path, aus, _PRESENT, _AU_VALUES, "0, 1 or -1 (not annotated)")


def read_intensity(path: Path, aus: tuple[int, ...] = AUS) -> AuLabels:
    """Intensity of action units in every frame of a movie, 0 (absent) to 5, -1 not annotated.

    The layout of ``read_au``; a column may be called ``AU01`` or ``AU01_r``. Whole numbers alone: they were coded.

    Raises:
        ClipError: as ``read_au``.
    """
    expected = f"one whole number from -1 (not annotated) to {HIGHEST_INTENSITY}"
    return _read_table(path, aus, _INTENSITY, _INTENSITIES, expected)


def read_va(path: Path) -> NDArray[np.float32]:
    """Valence and arousal of every frame: [N, 2], each in [-1, 1], or -5 (not annotated).

    The layout of Aff-Wild2 (ABAW): the header ``valence,arousal``, then two numbers per frame of the movie.

    Raises:
        ClipError: as ``read_au``.
    """
    header = "the header `valence,arousal`"
    lines = _lines(path, header)
    if [name.strip().lower() for name in lines[0].split(",")] != ["valence", "arousal"]:
        raise _bad(path, 1, _shown(lines[0]), header)
    rows = [line.split(",") for line in lines[1:]]
    for number, row in enumerate(rows, start=2):
        if len(row) != 2:
            raise _bad(path, number, f"{len(row)} columns in {_shown(lines[number - 1])}", "2 as in the header")
    return _values(path, list(chain.from_iterable(rows)), 2, _affect, _AFFECT_EXPECTED, np.float32)


_AFFECT_EXPECTED = f"a number from -1 to 1, or {AFFECT_NOT_ANNOTATED:g} (not annotated)"


def _affect(token: str) -> float | None:
    try:
        value = float(token)
    except ValueError:
        return None
    return value if -1 <= value <= 1 or value == AFFECT_NOT_ANNOTATED else None


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
    return _values(path, lines[1:], 1, _EXPR_VALUES.get, expected, np.int8)[:, 0]


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


def _read_table(path: Path, aus: tuple[int, ...], suffix: str, table: Mapping[str, int], expected: str) -> AuLabels:
    """A table of action units; only the spellings in ``table`` are values, and only ``suffix`` may end a name."""
    lines = _lines(path, "a header such as `AU01,AU02,AU04`")
    columns, left_out, first = _au_columns(path, lines[0], aus, suffix)
    rows = [line.split(",") for line in lines[1:]]
    width = len(columns) + len(left_out) + bool(first)
    for number, row in enumerate(rows, start=2):
        if len(row) != width:
            raise _bad(path, number, f"{len(row)} columns in {_shown(lines[number - 1])}", f"{width} as in the header")
    places = np.arange(len(rows))
    if first == LISTED:
        places = _listed_frames(path, [row[0] for row in rows])
    elif first == COUNTED:
        _check_count(path, [row[0] for row in rows])
    if first or left_out:
        rows = [[row[column] for column in columns.values()] for row in rows]
    values = _values(path, list(chain.from_iterable(rows)), len(columns), table.get, expected, np.int8)
    num_rows = int(places[-1]) + 1 if len(places) else 0
    au = np.full((num_rows, len(aus)), NOT_ANNOTATED, dtype=np.int8)  # [N, A]
    au[places[:, None], np.array([aus.index(number) for number in columns])] = values
    return AuLabels(au, left_out, listed=first == LISTED)


def _au_columns(
    path: Path, header: str, wanted: tuple[int, ...], suffix: str
) -> tuple[dict[int, int], tuple[str, ...], str]:
    """Column of each AU, the names of columns that are skipped, and the name of a column of frames before them."""
    names = [name.strip() for name in header.split(",")]
    first = names[0].lower() if names[0].lower() in {COUNTED, LISTED} else ""
    expected = f"a header of AU columns such as `AU01,AU02,AU04`, from {', '.join(map(au_name, wanted))}"
    aus: dict[int, int] = {}
    left_out: list[str] = []
    for column, name in enumerate(names[bool(first) :], start=bool(first)):
        kind = next((kind for kind in (_PRESENT, _INTENSITY) if name.lower().endswith(kind)), "")
        number = au_number(name[: len(name) - len(kind)])
        if number is None:
            raise _bad(path, 1, f"column {_shown(name.lower())}", expected)
        if number not in wanted or kind not in {"", suffix}:
            left_out.append(name)
        elif number in aus:
            raise _bad(path, 1, f"{au_name(number)} twice", "each AU once")
        else:
            aus[number] = column
    if not aus:
        raise _bad(path, 1, _shown(", ".join(left_out) or header), expected)
    return aus, tuple(left_out), first


def _check_count(path: Path, tokens: list[str]) -> None:
    """Refuse a frame column that jumps: rows are missing, and every later label would belong to the wrong frame."""
    counts = list(map(_frame, tokens))
    first = 0 if counts[:1] == [0] else 1
    for row, count in enumerate(counts):
        if count != row + first:
            expected = f"frame {row + first}: one row per frame, counted from 0 or 1"
            raise _bad(path, row + 2, f"frame {_shown(tokens[row].strip())}", expected)


def _listed_frames(path: Path, tokens: list[str]) -> NDArray[np.int64]:
    """The frames that the rows belong to, increasing."""
    before = -1
    frames: list[int] = []
    for row, token in enumerate(tokens):
        frame = _frame(token)
        if frame is None or not before < frame < MOST_FRAMES:
            expected = f"a {LISTED} from {before + 1} to {MOST_FRAMES - 1:,}: counted from 0, in order"
            raise _bad(path, row + 2, f"{LISTED} {_shown(token.strip())}", expected)
        frames.append(frame)
        before = frame
    return np.array(frames, dtype=np.int64)


def _frame(token: str) -> int | None:
    return int(token) if len(token) < 20 and token.strip().isdecimal() else None


T = TypeVar("T", np.int8, np.float32)


def _values(
    path: Path, tokens: list[str], width: int, read: Callable[[str], float | None], expected: str, dtype: type[T]
) -> NDArray[T]:
    """Numbers [N, width] of tokens, row after row; ``read`` gives None for what is none."""
    codes = [read(token.strip()) for token in tokens]
    if None in codes:
        wrong = codes.index(None)
        raise _bad(path, wrong // width + 2, f"value {_shown(tokens[wrong].strip())}", expected)
    return np.array(codes, dtype=dtype).reshape(-1, width)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _bad(path: Path, line: int, found: str, expected: str) -> ClipError:
    return ClipError("bad_labels", f"{path}:{line}: found {found}, expected {expected}")
