"""BP4D (Zhang et al. 2014), its action unit codes, to manifest entries.

Looked for below the given folder, at any depth: presence codes ``AU_OCC/F001_T1.csv``, whose first line numbers the
action units and whose first column numbers the frames, with 0, 1 or 9 (not codable); intensities, a folder per action
unit (``AU_INT/AU06/F001_T1_AU06.csv``, lines ``frame,intensity``); a movie ``F001_T1.*`` or ``F001/T1.*``; and, if
there are any, face crops ``cropped_aligned/F001/T1/2440.jpg``.

The codes begin in the middle of a task, and their frame numbers are those of the video; all other frames are not
annotated. Pictures of whole frames (``F001/T1/2440.jpg``) are not read: make a movie of them, or crop the faces.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from extract.errors import UsageError
from extract.inputs.datasets import coded
from extract.inputs.datasets.coded import CodedScan, Codes
from extract.inputs.manifest import Clip, Labels, absolute

AUS = (1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24)
"""The twelve that publications report; more are coded, and ``labels.aus`` may name them."""

FOLDS = tuple(
    frozenset(people.split())
    for people in (
        "F001 M007 F018 F008 F002 M004 F010 F009 M012 M001 F016 M014 F023 M008",
        "M011 F003 M010 M002 F005 F022 M018 M017 F013 M016 F020 F011 M013 M005",
        "F007 F015 F006 F019 M006 M009 F012 M003 F004 F021 F017 M015 F014",
    )
)
"""The three subject-exclusive folds that most publications use (JAA-Net, ME-GraphAU)."""

KNOWN = {"subjects": "41", "clips": "328", "coded frames": "about 146,800"}
"""41 people, eight tasks each."""

_PERSON, _TASK = re.compile(r"[FM][0-9]{3}"), re.compile(r"T[0-9]+")
_CLIP = re.compile(r"([FM][0-9]{3})_(T[0-9]+)")
_CODES = re.compile(r"([FM][0-9]{3})_(T[0-9]+)\.csv", re.IGNORECASE)
_INTENSITIES = re.compile(r"([FM][0-9]{3})_(T[0-9]+)(?:_AU0*[0-9]+)?\.csv", re.IGNORECASE)
_ONE_AU = re.compile(r"AU0*([1-9][0-9]?)", re.IGNORECASE)


def scan_bp4d(
    root: Path,
    label_folder: Path,
    *,
    first_frame: int = 1,
    fold: int | None = None,
    val: float = 0.1,
    seed: int = 0,
    fps: float | None = None,
    known: Mapping[str, str] = MappingProxyType({}),
) -> CodedScan:
    """Find the coded tasks of the data set and the files of each; nothing is written.

    Args:
        label_folder: where the label files will lie.
        first_frame: number, 0 or 1, that the codes give to a movie's first frame. Crops are named by the codes'
            numbers and belong to row number - 1, so they go with 1 alone.
        fold: of ``FOLDS``, from 1: these people are ``test``. None: no splits.
        val: share of the other people that becomes ``val``; 0 for none.
        seed: of who is in ``val``.
        fps: frame rate of crops that have no movie; None leaves them out.
        known: person -> split of an earlier scan, which stays.

    Raises:
        UsageError: no codes, malformed ones, none that gives a clip, or a setting out of its range.
    """
    if first_frame not in {0, 1}:
        raise UsageError(f"--first-frame {first_frame}: expected 0 or 1")
    root = absolute(root, Path.cwd())
    codes: dict[str, Path] = {}
    intensities: dict[str, dict[int, Path]] = {}
    movies: dict[str, Path] = {}
    crops: dict[str, Path] = {}
    for folder, names in coded.walk(root, "BP4D"):
        task = _task(folder)
        if task and coded.under_crops(folder, root):
            crops.setdefault(task, folder)
            continue
        one_au = _ONE_AU.fullmatch(folder.name)
        for name in names:
            stem = Path(name).stem
            if one_au and (match := _INTENSITIES.fullmatch(name)):
                _keep(intensities.setdefault(_id(match), {}), int(one_au[1]), folder / name)
            elif match := _CODES.fullmatch(name):
                _keep(codes, _id(match), folder / name)
            elif coded.is_video(name):
                if match := _CLIP.fullmatch(stem):
                    movies.setdefault(_id(match), folder / name)
                elif _PERSON.fullmatch(folder.name) and _TASK.fullmatch(stem):
                    movies.setdefault(f"{folder.name}_{stem}", folder / name)
    if not codes:
        raise UsageError(f"{root}: no action unit codes; expected AUCoding/AU_OCC/F001_T1.csv and the like below it")
    if crops and first_frame == 0:
        raise UsageError(
            f"--first-frame 0: the crops in {next(iter(crops.values()))} are named by the codes' numbers, and crop 1 "
            "belongs to the first frame; leave the option out, or the crops"
        )
    clips, label_files, left_out, frames = [], {}, {}, 0
    for clip, path in sorted(codes.items()):
        movie, given = movies.get(clip), crops.get(clip)
        if movie is None and (given is None or fps is None):
            rate = f"; --fps N takes the crops alone: {given}" if given is not None else ""
            left_out[clip] = f"no movie {clip}.*{rate}"
            continue
        present = coded.read_au_columns(path, coded.PRESENCE)
        _check_first(path, present, first_frame)
        aus = list(next(iter(present.values()), dict.fromkeys(AUS)))
        label_files[label_folder / f"{clip}_au.csv"] = coded.label_file(present, aus, first_frame)
        frames += len(present)
        intensity = None
        if files := intensities.get(clip):
            intensity = label_folder / f"{clip}_intensity.csv"
            rated: Codes = {}
            for au, file in sorted(files.items()):
                coded.read_one_au(file, au, coded.INTENSITY, rated)
                _check_first(file, rated, first_frame)
            label_files[intensity] = coded.label_file(rated, sorted(files), first_frame)
        clips.append(
            Clip(
                id=clip,
                video=movie,
                crops=given,
                fps=fps if movie is None else None,
                labels=Labels(au=label_folder / f"{clip}_au.csv", intensity=intensity),
                subject=clip.partition("_")[0],
            )
        )
    if not clips:
        clip, why = next(iter(left_out.items()))
        raise UsageError(f"{root}: {len(left_out)} coded tasks, but none gives a clip; {clip}: {why}")
    counts = {
        "subjects": len({clip.partition("_")[0] for clip in codes}),
        "clips": len(clips),
        "coded frames": frames,
    }
    split = coded.with_fold(clips, FOLDS, fold, val=val, seed=seed, known=known)
    return CodedScan(split, AUS, label_files, counts, left_out)


Key = TypeVar("Key")


def _id(match: re.Match[str]) -> str:
    return f"{match[1]}_{match[2]}".upper()


def _task(folder: Path) -> str | None:
    """The clip whose pictures lie in ``F001/T1`` or ``F001_T1``."""
    if _CLIP.fullmatch(folder.name):
        return folder.name
    nested = _PERSON.fullmatch(folder.parent.name) and _TASK.fullmatch(folder.name)
    return f"{folder.parent.name}_{folder.name}" if nested else None


def _keep(into: dict[Key, Path], key: Key, path: Path) -> None:
    """Keep the only file of a key."""
    other = into.setdefault(key, path)
    if other != path:
        raise UsageError(f"{path} and {other}: two code files of one task; name the folder of one")


def _check_first(path: Path, codes: Codes, first: int) -> None:
    if min(codes, default=first) < first:
        raise UsageError(f"{path}: found frame {min(codes)}, but frames are taken to be counted from {first}")
