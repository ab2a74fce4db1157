"""Reads given transcripts: words, and when they are spoken on the clip's presentation clock.

* ``.csv``: the header ``word,start_s,end_s``, then one word per row;
* ``.srt`` and ``.vtt``: subtitles. A cue's words share its time in proportion to their letters, unless the cue
  contains times of words (``<00:00:01.250>``, WebVTT);
* ``.json``: what Whisper writes: ``segments``, with ``words`` if they were requested; a segment without them is read
  like a subtitle.
"""

import csv
import html
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from extract import texts
from extract.errors import ClipError

HEADER = ("word", "start_s", "end_s")
MAX_S = 1_000_000.0
"""Eleven days: a time beyond it is a number in another unit."""


@dataclass(frozen=True)
class Word:
    """One spoken word."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Transcript:
    """Words in the order in which they begin."""

    words: tuple[Word, ...]
    notes: dict[str, Any] = field(default_factory=dict)
    """``spread_words``: how many words have no time of their own, only a share of their cue's."""


def read_transcript(path: Path) -> Transcript:
    """Read a transcript by its suffix.

    Words that overlap (two people talk) stay as they are. Blank words and cues are skipped.

    Raises:
        ClipError: ``missing_file``, ``unreadable``, or ``bad_transcript`` with the line, what was found and what is
            expected: a time that is no number, negative or beyond ``MAX_S``, an end before its start, another format.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ClipError("bad_transcript", f"{path}: found suffix {path.suffix!r}, expected {', '.join(_READERS)}")
    try:
        # A byte order mark is dropped and line ends are unified: transcripts pass through spreadsheets and editors.
        text = texts.read_text(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ClipError("missing_file", f"{path}: no such transcript; check the clip in the manifest") from None
    except OSError as error:
        raise ClipError("unreadable", f"{path}: cannot read the transcript ({error.strerror})") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise _bad(path, line, "bytes that are not UTF-8 text", "UTF-8") from None
    given = list(reader(path, text))
    words = sorted((word for word, _ in given), key=lambda word: (word.start_s, word.end_s))
    spread = sum(is_spread for _, is_spread in given)
    return Transcript(tuple(words), {"spread_words": spread} if spread else {})


# ---- tables --------------------------------------------------------------------------------------------------------

Given = Iterator[tuple[Word, bool]]
"""Words, and whether their time is a share of something longer."""


def _csv(path: Path, text: str) -> Given:
    rows = csv.reader(io.StringIO(text))
    expected = f"a header {','.join(HEADER)}"
    try:
        header = next(rows, None)
        if header is None or tuple(name.strip().lower() for name in header) != HEADER:
            raise _bad(path, 1, "an empty file" if header is None else repr(",".join(header)), expected)
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(HEADER):
                raise _bad(path, rows.line_num, f"{len(row)} columns", f"{','.join(HEADER)}; quote words with commas")
            start_s, end_s = (_number(path, rows.line_num, cell) for cell in row[1:])
            yield from _word(path, rows.line_num, row[0], start_s, end_s)
    except csv.Error as error:
        raise _bad(path, rows.line_num, str(error), "a table of words") from None


def _json(path: Path, text: str) -> Given:
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:  # RecursionError: brackets nested without end
        raise _bad(path, getattr(error, "lineno", 1), f"invalid JSON ({error})", "Whisper's `segments`") from None
    segments = whole.get("segments") if isinstance(whole, dict) else None
    if not isinstance(segments, list):
        raise _bad(path, 1, _shown(text), "an object with a list `segments`, as Whisper writes it")
    for number, segment in enumerate(segments):
        where = f"segment {number}"
        if not isinstance(segment, dict):
            raise _bad(path, where, _shown(segment), "an object")
        words = segment.get("words")
        if isinstance(words, list):
            for word in words:
                if not isinstance(word, dict):
                    raise _bad(path, where, _shown(word), "a word as an object")
                yield from _word(path, where, *_spoken(path, where, word, "word"))
        else:
            said, start_s, end_s = _spoken(path, where, segment, "text")
            yield from _cue(path, where, said, start_s, end_s)


def _spoken(path: Path, where: str, value: dict[str, Any], key: str) -> tuple[str, float, float]:
    said = value.get(key)
    if not isinstance(said, str):
        raise _bad(path, where, f"{key} {_shown(said)}", "text")
    start_s, end_s = (value.get(name) for name in ("start", "end"))
    for time in (start_s, end_s):
        if isinstance(time, bool) or not isinstance(time, int | float):
            raise _bad(path, where, f"time {_shown(time)}", "seconds")
        if abs(time) > MAX_S:  # before it is made a float, which a whole number may be too large for
            raise _bad(path, where, f"time {_shown(time)}", f"seconds from 0 to {MAX_S:g}")
    return said, float(start_s), float(end_s)  # type: ignore[arg-type]  # checked above


# ---- subtitles -----------------------------------------------------------------------------------------------------

_TIME = r"(?:(\d{1,6}):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})"
_ARROW = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?:\s.*)?")
_INLINE = re.compile(rf"<{_TIME}>")
# At most so many characters: a search for the end of each tag through the whole text would take quadratic time.
_TAG = re.compile(r"<[^>]{0,1000}>|\{\\[^}]{0,1000}\}")
_NO_CUE = ("WEBVTT", "NOTE", "STYLE", "REGION")


def _subtitles(path: Path, text: str) -> Given:
    """Blocks between blank lines; the line with the arrow gives the time, the lines below it are spoken."""
    lines = text.split("\n")
    number = 0
    while number < len(lines):
        first = number
        while number < len(lines) and lines[number].strip():
            number += 1
        block = lines[first:number]
        number += 1
        at = next((i for i, line in enumerate(block) if "-->" in line), None)
        if at is None:
            if block and not block[0].startswith(_NO_CUE) and not all(line.strip().isdigit() for line in block):
                raise _bad(path, first + 1, _shown(block[0]), "a cue with a line `00:00:01,000 --> 00:00:02,000`")
            continue
        times = _ARROW.fullmatch(block[at])
        if times is None:
            raise _bad(path, first + at + 1, _shown(block[at]), "`00:00:01,000 --> 00:00:02,000`")
        start_s, end_s = _seconds(times.groups()[:4]), _seconds(times.groups()[4:])
        yield from _cue(path, first + at + 1, " ".join(block[at + 1 :]), start_s, end_s)


def _seconds(parts: Sequence[str | None]) -> float:
    hours, minutes, seconds, fraction = parts
    milliseconds = int((fraction or "").ljust(3, "0"))
    return ((int(hours or 0) * 60 + int(minutes or 0)) * 60 + int(seconds or 0)) + milliseconds / 1000


def _cue(path: Path, where: int | str, said: str, start_s: float, end_s: float) -> Given:
    """The words of a cue, each with its share of the time; inline times split the cue first."""
    parts = _INLINE.split(said)  # text, then (4 groups of a time, text) again and again
    begins = [start_s, *(_seconds(parts[i : i + 4]) for i in range(1, len(parts), 5))]
    texts = [html.unescape(_TAG.sub("", part)).split() for part in parts[::5]]
    for words, begin, end in zip(texts, begins, [*begins[1:], end_s], strict=True):
        _check(path, where, begin, end)
        letters = [0]
        for word in words:
            letters.append(letters[-1] + len(word))
        for word, before, after in zip(words, letters, letters[1:], strict=False):
            share = (end - begin) / letters[-1]
            for checked, _ in _word(path, where, word, begin + before * share, begin + after * share):
                yield checked, len(words) > 1


_READERS: dict[str, Callable[[Path, str], Given]] = {
    ".csv": _csv,
    ".srt": _subtitles,
    ".vtt": _subtitles,
    ".json": _json,
}


# ---- checks --------------------------------------------------------------------------------------------------------


# Surrogates: JSON can name them, but no text contains them.
_HALF_A_LETTER = re.compile("[\ud800-\udfff]")


def _word(path: Path, where: int | str, text: str, start_s: float, end_s: float) -> Given:
    """The word; nothing if the text is blank."""
    _check(path, where, start_s, end_s)
    spelled = " ".join(text.split())
    if _HALF_A_LETTER.search(spelled):
        raise _bad(path, where, f"{_shown(spelled)}, which is no text", "whole letters")
    if spelled:
        yield Word(spelled, start_s, end_s), False


def _check(path: Path, where: int | str, start_s: float, end_s: float) -> None:
    for time in (start_s, end_s):
        if not (math.isfinite(time) and 0 <= time <= MAX_S):
            raise _bad(path, where, f"time {time:g}", f"seconds from 0 to {MAX_S:g}")
    if end_s < start_s:
        raise _bad(path, where, f"an end at {end_s:g} s before the start at {start_s:g} s", "the times in order")


def _number(path: Path, line: int, cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise _bad(path, line, f"time {_shown(cell)}", "seconds") from None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _bad(path: Path, where: int | str, found: str, expected: str) -> ClipError:
    place = f"{path}:{where}" if isinstance(where, int) else f"{path}, {where}"
    return ClipError("bad_transcript", f"{place}: found {found}, expected {expected}")
