"""What data sets of hand-coded action units share: code files to label files, people in published folds.

The codes lie in files of the data set's own form, so a scan writes them anew as label files (``frame_index,AU01,...``,
read by ``annotations``) beside the manifest, which names these. Frames without a code are not listed.
"""

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from extract import texts
from extract.au import HIGHEST_INTENSITY, NOT_ANNOTATED, au_name
from extract.errors import UsageError
from extract.files import LocalFiles
from extract.inputs.annotations import LISTED
from extract.inputs.datasets.folder import VIDEO_SUFFIXES
from extract.inputs.manifest import Clip
from extract.inputs.splits import Member, hold_out

NOT_CODABLE = 9
"""What coders write where a face cannot be seen; not annotated."""

PRESENCE: Mapping[int, int] = MappingProxyType({0: 0, 1: 1, NOT_CODABLE: NOT_ANNOTATED, -1: NOT_ANNOTATED})
INTENSITY: Mapping[int, int] = MappingProxyType({
    **{value: value for value in range(HIGHEST_INTENSITY + 1)},
    NOT_CODABLE: NOT_ANNOTATED,
    -1: NOT_ANNOTATED,
})
"""Code -> label."""

CROPS = "crop"
"""Beginning of the name of a folder of given face crops: ``cropped_aligned``."""

Codes = dict[int, dict[int, int]]
"""Frame, as the data set numbers it -> action unit -> label."""


@dataclass(frozen=True)
class CodedScan:
    """What the folder of a coded data set holds."""

    clips: tuple[Clip, ...]
    aus: tuple[int, ...]
    """Action units that the set codes."""
    label_files: Mapping[Path, str]
    """What ``write_labels`` writes: path -> text."""
    counts: Mapping[str, int]
    """What is counted -> how many: ``subjects``, ``clips``, ``coded frames``."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """What is coded but gives no clip -> why."""


def write_labels(label_files: Mapping[Path, str]) -> None:
    """Write the label files of a scan; one that holds the same already is left alone.

    Raises:
        MachineError: the disk is full, read-only or gone.
    """
    for path, text in label_files.items():
        data = text.encode()
        if not path.is_file() or path.read_bytes() != data:
            LocalFiles(path.parent).write(path.name, data)


def own_file(clip: Clip) -> Path | None:
    """A file that no other clip of the set has."""
    return clip.video or clip.crops


def walk(root: Path, whose: str) -> Iterator[tuple[Path, list[str]]]:
    """Every folder below ``root`` with its files, sorted; links are followed, no folder twice, hidden ones not.

    Raises:
        UsageError: ``root`` is no folder.
    """
    if not root.is_dir():
        raise UsageError(
            f"{root}: {'is a file' if root.exists() else 'does not exist'}; expected the folder of {whose}"
        )
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real not in seen:
            seen.add(real)
            yield Path(folder), sorted(name for name in names if not name.startswith("."))


def is_video(name: str) -> bool:
    """By its suffix."""
    return Path(name).suffix.lower() in VIDEO_SUFFIXES


def under_crops(folder: Path, root: Path) -> bool:
    """Whether a folder above ``folder``, below ``root``, says that it holds face crops."""
    return any(part.lower().startswith(CROPS) for part in folder.relative_to(root).parts[:-1])


def read_rows(path: Path) -> list[tuple[int, list[int]]]:
    """Whole numbers of each line that is not blank, with its line number, from 1.

    Raises:
        UsageError: the file cannot be read, or holds something else.
    """
    try:
        lines = texts.read_text(path).split("\n")
    except OSError as error:
        raise UsageError(f"{path}: cannot read the codes ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: found bytes that are not UTF-8 text, expected a file of codes") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        tokens = re.split(r"[,;\s]+", line.strip())
        if tokens == [""]:
            continue
        if not all(re.fullmatch(r"-?[0-9]{1,9}", token) for token in tokens):
            raise UsageError(f"{path}:{number}: found {line.strip()[:60]!r}, expected whole numbers")
        rows.append((number, [int(token) for token in tokens]))
    return rows


def read_one_au(path: Path, au: int, labels: Mapping[int, int], into: Codes) -> None:
    """Add a file of lines ``frame,code`` of one action unit.

    Raises:
        UsageError: it is malformed, or frames do not increase.
    """
    before = -1
    for number, row in read_rows(path):
        if len(row) != 2:
            raise UsageError(f"{path}:{number}: found {len(row)} numbers, expected 2: frame and code")
        before = _frame(path, number, row[0], before)
        into.setdefault(row[0], {})[au] = _label(path, number, row[1], labels)


def read_au_columns(path: Path, labels: Mapping[int, int]) -> Codes:
    """A table whose first line numbers the action units and whose first column numbers the frames.

    Raises:
        UsageError: it is malformed, or frames do not increase.
    """
    rows = read_rows(path)
    aus = rows[0][1][1:] if rows else []
    if not aus or len(set(aus)) != len(aus) or min(aus) < 1:
        raise UsageError(f"{path}:1: found no action units, expected a line such as `0,1,2,4` (0 heads the frames)")
    codes: Codes = {}
    before = -1
    for number, row in rows[1:]:
        if len(row) != len(aus) + 1:
            raise UsageError(f"{path}:{number}: found {len(row)} numbers, expected {len(aus) + 1} as in the first line")
        before = _frame(path, number, row[0], before)
        values = [_label(path, number, code, labels) for code in row[1:]]
        codes[row[0]] = dict(zip(aus, values, strict=True))
    return codes


def _frame(path: Path, line: int, frame: int, before: int) -> int:
    if frame <= before:
        raise UsageError(f"{path}:{line}: found frame {frame}, expected more than {before}: frames in order, each once")
    return frame


def _label(path: Path, line: int, code: int, labels: Mapping[int, int]) -> int:
    if code not in labels:
        raise UsageError(f"{path}:{line}: found code {code}, expected one of {', '.join(map(str, labels))}")
    return labels[code]


def label_file(codes: Codes, aus: Sequence[int], first: int) -> str:
    """The text of a label file. ``first``: number that the data set gives to the video's first frame."""
    lines = [",".join([LISTED, *map(au_name, aus)])]
    for frame, labels in sorted(codes.items()):
        lines.append(",".join(map(str, [frame - first, *(labels.get(au, NOT_ANNOTATED) for au in aus)])))
    return "\n".join(lines) + "\n"


def present_from(codes: Codes, threshold: int) -> Codes:
    """Intensities as presence: 1 from ``threshold`` on."""
    return {
        frame: {au: NOT_ANNOTATED if value < 0 else int(value >= threshold) for au, value in labels.items()}
        for frame, labels in codes.items()
    }


def with_fold(
    clips: Sequence[Clip],
    folds: Sequence[Collection[str]],
    fold: int | None,
    *,
    val: float,
    seed: int,
    known: Mapping[str, str],
) -> tuple[Clip, ...]:
    """The people of a published fold become ``test``; of the others, a share ``val``, the rest ``train``.

    Args:
        fold: counted from 1; None gives no splits.
        val: share of the other people, 0 for none: the published protocols have no such part, but thresholds and early
            stopping need one.
        seed: of who is in ``val``.
        known: person -> split of an earlier scan, which stays.

    Raises:
        UsageError: no such fold, or no such share.
    """
    if fold is None:
        return tuple(clips)
    if not 1 <= fold <= len(folds):
        raise UsageError(f"--fold {fold}: expected 1 to {len(folds)}")
    tested = folds[fold - 1]
    others = [Member(clip.id, clip.source_video, clip.subject) for clip in clips if clip.subject not in tested]
    if not 0 <= val < 1:
        raise UsageError(f"--val {val:g}: expected a share of the other people, from 0 to below 1")
    several = len({member.subject for member in others}) > 1  # a single one stays in train
    held_out = hold_out(others, val, seed) if val and several else set()

    def split(clip: Clip) -> str:
        usual = "test" if clip.subject in tested else "val" if clip.id in held_out else "train"
        return known.get(clip.subject or "", usual)

    return tuple(clip.model_copy(update={"split": split(clip)}) for clip in clips)
