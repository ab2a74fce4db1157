"""Checks files for the ABAW challenge, line by line: what its server would refuse, or worse, score wrongly."""

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from extract.errors import UsageError
from fusion.submission_files import (
    HEADER,
    LOCATION_HEADER,
    Form,
    form_of,
    location,
    parse_location,
    read_expected,
    read_sample,
)

NUM_VALUES = HEADER.count(",") + 1
BOM = b"\xef\xbb\xbf"
PER_KIND = 5
"""Defects of one kind in one file that are named line by line; the rest is counted."""


@dataclass(frozen=True)
class Defect:
    """One thing that is wrong."""

    file: Path
    line: int | None
    """From 1; None for the file as a whole."""
    kind: str
    """A word for programs: ``values``, ``order`` ..."""
    message: str
    """What was found and what was expected."""

    def __str__(self) -> str:
        return f"{self.file}{'' if self.line is None else f':{self.line}'}: {self.message}"

    def as_json(self) -> dict[str, object]:
        """The same as plain values."""
        return {"file": str(self.file), "line": self.line, "kind": self.kind, "message": self.message}


def check(
    path: str | Path, form: str | None = None, *, sample: Path | None = None, expected: Path | None = None
) -> list[Defect]:
    """All defects of a submission; none: it is as the challenge wants it, as far as ``sample`` and ``expected`` tell.

    Args:
        path: the file (``abaw5``) or the folder (``abaw3``).
        form: None: ``abaw3`` for a folder, ``abaw5`` for a file.
        sample: the challenge's sample; it says which rows there are, in which order (``abaw5``).
        expected: the challenge's list of videos and their rows.

    Raises:
        UsageError: nothing is there, it is of the other kind, or ``sample`` or ``expected`` is malformed.
    """
    target = Path(path)
    if not target.exists():
        raise UsageError(f"--check {target}: no such file or folder")
    chosen: Form = form_of(form) if form is not None else "abaw3" if target.is_dir() else "abaw5"
    if (chosen == "abaw3") != target.is_dir():
        kinds = ("a file", "a folder with one file per video") if chosen == "abaw3" else ("a folder", "one file")
        raise UsageError(f"--check {target}: is {kinds[0]}, and {chosen} is {kinds[1]}")
    counts = read_expected(expected) if expected is not None else None
    if chosen == "abaw3":
        if sample is not None:
            raise UsageError("--sample is of abaw5; for abaw3 give --expected")
        return _check_folder(target, counts, expected)
    order = read_sample(sample) if sample is not None else None
    return _few(target, [*_check_one_file(target, order, counts, sample, expected)])


def refuse_needless(**given: object) -> None:
    """Raise UsageError where ``--check`` is given together with what only writing heeds."""
    needless = [f"--{name}" for name, value in given.items() if value is not None]
    if needless:
        raise UsageError(f"--check writes nothing; leave out {', '.join(needless)}")


def _check_folder(folder: Path, counts: Mapping[str, int] | None, expected: Path | None) -> list[Defect]:
    files = {entry.stem: entry for entry in sorted(folder.iterdir()) if entry.suffix == ".txt" and entry.is_file()}
    defects = [
        Defect(entry, None, "foreign", "is no <video>.txt; expected nothing else in the folder")
        for entry in sorted(folder.iterdir())
        if entry not in files.values()
    ]
    for video in counts or ():
        if video not in files:
            near = next((name for name in files if name.lower() == video.lower()), None)
            hint = f"; {files[near].name} differs in case" if near else ""
            message = f"is missing: {expected} lists {video} with {counts[video] if counts else 0} rows{hint}"
            defects.append(Defect(folder / f"{video}.txt", None, "missing", message))
    if not files and counts is None:
        defects.append(Defect(folder, None, "missing", "holds no <video>.txt"))
    for video, path in files.items():
        if counts is not None and video not in counts:
            defects.append(Defect(path, None, "foreign", f"video {video} is not in {expected}"))
        wanted = counts.get(video) if counts is not None else None
        defects += _few(path, [*_check_video(path, wanted)])
    return defects


def _check_video(path: Path, wanted: int | None) -> Iterator[Defect]:
    lines = yield from _lines(path, HEADER)
    if lines is None:
        return
    for number, line in lines:
        yield from _check_values(path, number, line.split(","), line)
    if wanted is not None and len(lines) != wanted:
        last = lines[-1][0] if lines else 1
        yield Defect(path, last, "count", f"{len(lines)} rows, expected {wanted}: one per frame of the movie")
    elif not lines:
        yield Defect(path, 1, "count", "no row, expected one per frame of the movie")


def _check_one_file(
    path: Path,
    order: list[tuple[str, int]] | None,
    counts: Mapping[str, int] | None,
    sample: Path | None,
    expected: Path | None,
) -> Iterator[Defect]:
    lines = yield from _lines(path, LOCATION_HEADER)
    if lines is None:
        return
    first_line: dict[tuple[str, int], int] = {}
    places: list[tuple[int, tuple[str, int]]] = []
    for number, line in lines:
        text, *cells = line.split(",")
        place = parse_location(text)
        if place is None:
            yield Defect(path, number, "location", f"{text[:60]!r}, expected VIDEO/00001.jpg")
        elif place in first_line:
            yield Defect(path, number, "duplicate", f"{text} is there already, in line {first_line[place]}")
        else:
            first_line[place] = number
            places.append((number, place))
        yield from _check_values(path, number, cells, line)
    found: dict[str, list[tuple[int, int]]] = {}
    for number, (video, frame) in places:
        found.setdefault(video, []).append((number, frame))
    if order is not None:
        yield from _against_sample(path, places, order, str(sample))
    else:
        yield from _frames_in_order(path, found, places)
    for video, count in (counts or {}).items():
        rows = found.get(video, [])
        if not rows:
            yield Defect(path, None, "missing", f"video {video} is missing: {expected} lists it with {count} rows")
        elif len(rows) != count:
            yield Defect(path, rows[-1][0], "count", f"video {video}: {len(rows)} rows, {expected} lists {count}")
    for video in found if counts is not None else ():
        if counts is not None and video not in counts:
            yield Defect(path, found[video][0][0], "foreign", f"video {video} is not in {expected}")


def _against_sample(
    path: Path, places: list[tuple[int, tuple[str, int]]], order: list[tuple[str, int]], sample: str
) -> Iterator[Defect]:
    wanted, here = set(order), {place for _, place in places}
    missing: dict[str, list[int]] = {}
    for video, frame in order:
        if (video, frame) not in here:
            missing.setdefault(video, []).append(frame)
    videos = {video for video, _ in here}
    for video, frames in missing.items():
        what = f"{len(frames)} rows of video {video} are" if video in videos else f"video {video} is"
        first = location(video, frames[0])
        yield Defect(path, None, "missing", f"{what} missing, the first {first}: {sample} lists {len(frames)} of them")
    for number, place in places:
        if place not in wanted:
            yield Defect(path, number, "foreign", f"{location(*place)} is not in {sample}")
    # The order is that of the common rows: one missing row is one defect, not a thousand.
    common = [(number, place) for number, place in places if place in wanted]
    for (number, place), expected in zip(common, (place for place in order if place in here), strict=True):
        if place != expected:
            yield Defect(
                path,
                number,
                "order",
                f"{location(*place)}, expected {location(*expected)} here: the rows are in another order than {sample}",
            )
            return


def _frames_in_order(
    path: Path, found: Mapping[str, list[tuple[int, int]]], places: list[tuple[int, tuple[str, int]]]
) -> Iterator[Defect]:
    """Without a sample: each video in one piece, its frames from 1 on without a gap."""
    over: set[str] = set()
    for at, (number, (video, _)) in enumerate(places):
        if at and places[at - 1][1][0] != video:
            over.add(places[at - 1][1][0])
            if video in over:
                yield Defect(path, number, "order", f"video {video} goes on here, after others in between")
    for video, rows in found.items():
        for expected, (number, frame) in enumerate(rows, start=1):
            if frame != expected:
                message = f"{location(video, frame)}, expected {location(video, expected)}: a row per frame, in order"
                yield Defect(path, number, "order", message)
                break


def _lines(path: Path, header: str) -> Generator[Defect, None, list[tuple[int, str]] | None]:
    """The rows below the header, as (line number, text), or None for what is no text; its defects on the way."""
    data = path.read_bytes()
    if not data:
        yield Defect(path, 1, "text", f"the file is empty, expected a header {header!r} and rows")
        return None
    if data.startswith(BOM):
        yield Defect(path, 1, "bom", "begins with a byte order mark, expected plain UTF-8")
        data = data[len(BOM) :]
    carriage = [number for number, line in enumerate(data.split(b"\n"), start=1) if b"\r" in line]
    if carriage:
        message = f"{len(carriage)} lines end in CR LF (or hold a CR), expected LF alone"
        yield Defect(path, carriage[0], "crlf", message)
    try:
        text = data.decode("ascii").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        at = data.count(b"\n", 0, error.start) + 1
        yield Defect(path, at, "text", f"byte 0x{data[error.start]:02x}, expected ASCII text")
        return None
    if not text.endswith("\n"):
        yield Defect(path, text.count("\n") + 1, "end", "the last line does not end in a line break")
        text += "\n"
    lines = text.split("\n")[:-1]
    if lines[0] != header:
        yield Defect(path, 1, "header", f"header {lines[0][:80]!r}, expected {header!r}")
    begins_with_rows = lines[0].rpartition(",")[2].strip().lstrip("-").isdecimal()
    rows = []
    for number, line in enumerate(lines, start=1):
        if number == 1 and not begins_with_rows:
            continue
        if line.strip():
            rows.append((number, line))
        else:
            yield Defect(path, number, "blank", "a blank line, expected a row")
    return rows


def _check_values(path: Path, number: int, cells: list[str], line: str) -> Iterator[Defect]:
    if line.endswith(","):
        yield Defect(path, number, "comma", "the row ends in a comma, expected nothing after the last value")
        cells = cells[:-1]
    if len(cells) != NUM_VALUES:
        yield Defect(path, number, "width", f"{len(cells)} values, expected {NUM_VALUES}")
    wrong = [cell for cell in cells if cell not in ("0", "1")]
    if wrong:
        yield Defect(path, number, "values", f"value {wrong[0][:20]!r}, expected 0 or 1")


def _few(path: Path, defects: list[Defect]) -> list[Defect]:
    """The first few of each kind in the order of the lines, and one that counts the others."""
    seen: dict[str, int] = {}
    kept = []
    for defect in defects:
        seen[defect.kind] = seen.get(defect.kind, 0) + 1
        if seen[defect.kind] <= PER_KIND:
            kept.append(defect)
    kept.sort(key=lambda defect: defect.line or 0)
    more = {kind: count - PER_KIND for kind, count in seen.items() if count > PER_KIND}
    return kept + [Defect(path, None, kind, f"and {count} more of this kind ({kind})") for kind, count in more.items()]
