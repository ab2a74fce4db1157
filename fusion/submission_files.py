"""The challenge's own files: the two forms of a submission, the list of expected rows, the sample."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeAlias

from extract import texts
from extract.au import AUS, challenge_name
from extract.errors import UsageError
from extract.names import suggestion

Form: TypeAlias = Literal["abaw3", "abaw5"]
FORMS: tuple[Form, ...] = ("abaw3", "abaw5")

HEADER = ",".join(challenge_name(number) for number in AUS)
"""As in the challenge's label files: ``AU1,AU2,AU4,...,AU26``."""
LOCATION_HEADER = f"image_location,{HEADER}"

SHOWN = 8
"""Names that a message lists before it only counts."""
_LOCATION = re.compile(r"(?P<video>[^/\s,]+)/(?P<frame>[0-9]{5,})\.jpg")


def form_of(text: str | None) -> Form:
    """The value of ``--format``; raises UsageError for another word, or none."""
    for known in FORMS:
        if text == known:
            return known
    if text is None:
        raise UsageError("--format is missing: abaw3 (a file per video) or abaw5 (one file; ABAW6 and later as well)")
    raise UsageError(f"--format {text}: no such form; {suggestion(text, FORMS)}")


def location(video: str, frame: int) -> str:
    """``video/00001.jpg``: frame 1 is the first. Numbers have at least five digits."""
    return f"{video}/{frame:05d}.jpg"


def parse_location(text: str) -> tuple[str, int] | None:
    """Video and frame (from 1) of a picture's place; None if it is written otherwise."""
    found = _LOCATION.fullmatch(text)
    if found is None or int(found["frame"]) < 1 or location(found["video"], int(found["frame"])) != text:
        return None
    return found["video"], int(found["frame"])


def read_expected(path: Path) -> dict[str, int]:
    """Rows per video, from lines ``NAME,COUNT``; a first line without a number is a header.

    Raises:
        UsageError: the file cannot be read, or a line is malformed; the message names it.
    """
    counts: dict[str, int] = {}
    for number, line in _lines(path):
        name, comma, count = (part.strip() for part in line.rpartition(","))
        if not comma or not (count.isascii() and count.isdecimal()) or not name or int(count) < 1:
            if number == 1 and comma and not any(character.isdigit() for character in count):
                continue
            raise UsageError(f"{path}:{number}: found {line[:60]!r}, expected NAME,COUNT such as `video37,4230`")
        if name in counts:
            raise UsageError(f"{path}:{number}: video {name} is there twice")
        counts[name] = int(count)
    if not counts:
        raise UsageError(f"{path}: no line NAME,COUNT in it")
    return counts


def read_sample(path: Path) -> list[tuple[str, int]]:
    """The rows of a sample in its order: video and frame (from 1). What stands behind the first comma is not read.

    Raises:
        UsageError: the file cannot be read, or a line is malformed; the message names it.
    """
    rows: dict[tuple[str, int], int] = {}
    for number, line in _lines(path):
        first = line.partition(",")[0].strip()
        if number == 1 and first == "image_location":
            continue
        place = parse_location(first)
        if place is None:
            raise UsageError(f"{path}:{number}: found {first[:60]!r}, expected VIDEO/00001.jpg")
        if place in rows:
            raise UsageError(f"{path}:{number}: {first} is there already, in line {rows[place]}")
        rows[place] = number
    if not rows:
        raise UsageError(f"{path}: no row VIDEO/00001.jpg in it")
    return list(rows)


def some(names: list[str]) -> str:
    """Names for a message, the first few of many."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is not blank, with any line ends."""
    try:
        text = texts.read_text(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: is not UTF-8 text") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line.strip()
