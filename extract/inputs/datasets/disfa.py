"""DISFA (Mavadati et al. 2013) as it is distributed, to manifest entries.

Looked for below the given folder, at any depth: the codes, a folder ``SN001`` per person with a file
``SN001_au1.txt`` (or ``au1.txt``) per action unit, lines ``frame,intensity`` with intensities 0 to 5; the movies
``LeftVideoSN001_comp.avi`` and ``RightVideoSN001_comp.avi``; and, if there are any, face crops in
``cropped_aligned/SN001``.

Frames are numbered from 1 in the codes as distributed; a copy that numbers them from 0 is known by its first line. The
codes end some frames before the movie: 4,845 of 4,854. Whether an action unit is there is not coded: it is, where its
intensity reaches a threshold, 2 in most publications, and results depend on it.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from extract.errors import UsageError
from extract.inputs.datasets import coded
from extract.inputs.datasets.coded import CodedScan, Codes
from extract.inputs.manifest import Clip, Labels, absolute

AUS = (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26)

THRESHOLD = 2
"""Least intensity that counts as present, as in most publications."""

FOLDS = tuple(
    frozenset(f"SN{number:03d}" for number in people)
    for people in (
        (2, 10, 1, 26, 27, 32, 30, 9, 16),
        (13, 18, 11, 28, 12, 6, 31, 21, 24),
        (3, 29, 23, 25, 8, 5, 7, 17, 4),
    )
)
"""The three subject-exclusive folds that most publications use (JAA-Net, ME-GraphAU)."""

KNOWN = {"subjects": "27", "clips": "27", "coded frames": "130,815"}
"""What is published; 4,845 frames a person, in some copies 4,844."""

_PERSON = re.compile(r"SN[0-9]{3}")
_CODES = re.compile(r"(?:SN[0-9]{3}_)?au0*([1-9][0-9]?)\.txt", re.IGNORECASE)
_MOVIE = re.compile(r"(left|right)video(SN[0-9]{3})_comp", re.IGNORECASE)


def scan_disfa(
    root: Path,
    label_folder: Path,
    *,
    threshold: int = THRESHOLD,
    side: Literal["left", "right"] = "left",
    fold: int | None = None,
    val: float = 0.1,
    seed: int = 0,
    fps: float | None = None,
    known: Mapping[str, str] = MappingProxyType({}),
) -> CodedScan:
    """Find the people of the data set and the files of each; nothing is written.

    Args:
        label_folder: where the label files will lie.
        threshold: least intensity, 1 to 5, that counts as present.
        side: which camera's movie.
        fold: of ``FOLDS``, from 1: these people are ``test``. None: no splits.
        val: share of the other people that becomes ``val``; 0 for none.
        seed: of who is in ``val``.
        fps: frame rate of crops that have no movie; None leaves them out.
        known: person -> split of an earlier scan, which stays.

    Raises:
        UsageError: no codes, malformed ones, none that gives a clip, or a setting out of its range.
    """
    if not 1 <= threshold <= 5:
        raise UsageError(f"--threshold {threshold}: expected an intensity from 1 to 5")
    root = absolute(root, Path.cwd())
    codes: dict[str, dict[int, Path]] = {}
    movies: dict[str, Path] = {}
    crops: dict[str, Path] = {}
    for folder, names in coded.walk(root, "DISFA"):
        if _PERSON.fullmatch(folder.name) and coded.under_crops(folder, root):
            crops.setdefault(folder.name, folder)
            continue
        for name in names:
            if (match := _CODES.fullmatch(name)) and _PERSON.fullmatch(folder.name):
                of_person = codes.setdefault(folder.name, {})
                if (other := of_person.setdefault(int(match[1]), folder / name)) != folder / name:
                    raise UsageError(f"{folder / name} and {other}: two code files of one action unit; keep one")
            elif coded.is_video(name) and (match := _MOVIE.fullmatch(Path(name).stem)) and match[1].lower() == side:
                movies.setdefault(match[2].upper(), folder / name)
    if not codes:
        raise UsageError(
            f"{root}: no action unit codes; expected ActionUnit_Labels/SN001/SN001_au1.txt and the like below it"
        )
    clips, label_files, left_out, frames = [], {}, {}, 0
    for person, files in sorted(codes.items()):
        movie, given = movies.get(person), crops.get(person)
        if movie is None and (given is None or fps is None):
            rate = f"; --fps N takes the crops alone: {given}" if given is not None else ""
            left_out[person] = f"no movie {side.capitalize()}Video{person}_comp.*{rate}"
            continue
        intensities, first = _codes_of(files)
        present = label_folder / f"{person}_au_from_{threshold}.csv"
        intensity = label_folder / f"{person}_intensity.csv"
        label_files[present] = coded.label_file(coded.present_from(intensities, threshold), AUS, first)
        label_files[intensity] = coded.label_file(intensities, AUS, first)
        frames += len(intensities)
        clips.append(
            Clip(
                id=person,
                video=movie,
                crops=given,
                fps=fps if movie is None else None,
                labels=Labels(au=present, intensity=intensity),
                subject=person,
            )
        )
    if not clips:
        person, why = next(iter(left_out.items()))
        raise UsageError(f"{root}: codes of {len(left_out)} people, but none gives a clip; {person}: {why}")
    counts = {"subjects": len(codes), "clips": len(clips), "coded frames": frames}
    split = coded.with_fold(clips, FOLDS, fold, val=val, seed=seed, known=known)
    return CodedScan(split, AUS, label_files, counts, left_out)


def _codes_of(files: Mapping[int, Path]) -> tuple[Codes, int]:
    """Intensities of one person, and the number of the first frame, 0 or 1."""
    codes: Codes = {}
    firsts = {}
    for au, path in sorted(files.items()):
        own: Codes = {}
        coded.read_one_au(path, au, coded.INTENSITY, own)
        firsts[path] = min(own, default=1)
        for frame, labels in own.items():
            codes.setdefault(frame, {}).update(labels)
    for path, first in firsts.items():
        if first not in {0, 1} or first != min(codes, default=1):
            raise UsageError(
                f"{path}: found frames from {first}, expected them from 0 or from 1, and alike in all files of a person"
            )
    return codes, min(codes, default=1)
