"""Aff-Wild2 (Kollias and Zafeiriou, ABAW challenges) as it is distributed, to manifest entries.

Looked for below the given folder, at any depth: the annotations of action units (``AU_Detection_Challenge`` or
``AU_Set`` with ``Train_Set`` and ``Validation_Set``) and, if there are any, of expressions and of valence and arousal
(``VA_Estimation_Challenge``, ``VA_Set``); the folder
``cropped_aligned`` with one folder of crops per annotated face; the movies; transcripts named like their movie, beside
it or in a folder ``transcripts`` (``.srt``, else ``.vtt``, else Whisper's ``.json``, else ``.csv`` of words).

Two faces of one movie are annotated as ``NAME_left`` and ``NAME_right``: two clips with crops and labels of their own
that share the movie NAME and with it frame times, sound and words. The official validation set is the test split; the
official training set is split 90/10 by source video.
"""

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from extract.errors import ClipError, UsageError
from extract.inputs.crops import list_crops
from extract.inputs.datasets.folder import VIDEO_SUFFIXES, is_transcript_table, is_whisper
from extract.inputs.manifest import Clip, Labels, absolute
from extract.inputs.splits import Member, hold_out
from extract.names import is_legal

AU_FOLDERS = ("AU_Detection_Challenge", "AU_Set")
EXPR_FOLDERS = (
    "EXPR_Classification_Challenge",
    "EXPR_Recognition_Challenge",
    "EXPR_Classification",
    "EXPR_Recognition",
    "EXPR_Set",
)
VA_FOLDERS = ("VA_Estimation_Challenge", "VA_Estimation", "VA_Set")
SETS = TRAIN, VALIDATION = "Train_Set", "Validation_Set"
CROPS = "cropped_aligned"
"""Also the beginning of a folder's name, for crops that come in several archives."""
TRANSCRIPTS = "transcripts"
TRANSCRIPT_SUFFIXES = (".srt", ".vtt", ".json", ".csv")
"""The first that exists is taken."""
SIDES: Mapping[str, Literal["left", "right"]] = {"_left": "left", "_right": "right"}
VAL_SHARE = 0.1

KNOWN = {
    "annotation files": {TRAIN: "295", VALIDATION: "105"},
    "annotated frames": {TRAIN: "1,359,690 (ABAW3), 1,359,523 (ABAW5)", VALIDATION: "445,845"},
    "annotated frames without a crop": {TRAIN: "2,829", VALIDATION: "9"},
}
"""What others published about the official sets; the data of another year differs."""


@dataclass(frozen=True)
class AffWild2:
    """What the data set's folder holds."""

    clips: tuple[Clip, ...]
    counts: dict[str, dict[str, int]]
    """What is counted -> official set -> how many; the keys are those of KNOWN."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Annotated face that gives no clip -> why."""
    notes: tuple[str, ...] = ()


def scan_affwild2(
    root: Path, *, seed: int = 0, fps: float | None = None, known: Mapping[str, str] = MappingProxyType({})
) -> AffWild2:
    """Find the clips of the data set and the files of each.

    Args:
        seed: of the 90/10 split.
        fps: for crops without a movie; None leaves them out.
        known: source video -> split of an earlier scan: train and val stay as they were.

    Raises:
        UsageError: no annotations, two of the same name, or none that gives a clip; ``fps`` is no rate.
    """
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise UsageError(f"--fps {fps:g}: expected frames per second, more than 0")
    if not root.is_dir():
        raise UsageError(
            f"{root}: {'is a file' if root.exists() else 'does not exist'}; expected the folder of Aff-Wild2"
        )
    tree = _scan(absolute(root, Path.cwd()))
    if not tree.au:
        raise UsageError(
            f"{root}: no action unit annotations; expected {' or '.join(AU_FOLDERS)} with {TRAIN} and {VALIDATION} "
            "and a file per face below it"
        )
    clips, counts, left_out = [], _Counts(), {}
    for name, (official, path) in sorted(tree.au.items()):
        crops = tree.crops.get(name)
        bare, face = _bare(name)
        movie = tree.movies.get(bare)
        counts.add(official, path, crops)
        if not is_legal(name):
            left_out[name] = "its name cannot be a clip's id"
        elif movie is None and crops is None:
            left_out[name] = f"neither a movie {bare}.* nor {CROPS}/{name}"
        elif movie is None and fps is None:
            left_out[name] = f"no movie {bare}.*, so no frame times; --fps N assumes them"
        else:
            clips.append(
                Clip(
                    id=name,
                    video=movie,
                    crops=crops,
                    fps=fps if movie is None else None,
                    transcript=tree.transcript(bare),
                    labels=Labels(au=path, expr=tree.expr.get(name), va=tree.va.get(name)),
                    source_video=bare,
                    split="test" if official == VALIDATION else "train",
                    face=face,
                )
            )
    if not clips:
        first = next(iter(left_out.items()))
        raise UsageError(f"{root}: {len(left_out)} annotated faces, but none gives a clip; {first[0]}: {first[1]}")
    return AffWild2(_with_val(clips, seed, known), counts.found, left_out, _notes(tree, clips))


def _with_val(clips: list[Clip], seed: int, known: Mapping[str, str]) -> tuple[Clip, ...]:
    """A tenth of the training set's source videos becomes ``val``; if there is only one, it stays in ``train``."""
    members = [Member(clip.id, clip.source_video) for clip in clips if clip.split == "train"]
    several = len({member.source_video for member in members}) > 1
    held_out = hold_out(members, VAL_SHARE, seed) if several else set()
    return tuple(
        clip.model_copy(update={"split": "val"})
        if clip.split == "train" and known.get(clip.source_video, "val" if clip.id in held_out else "train") == "val"
        else clip
        for clip in clips
    )


def own_file(clip: Clip) -> Path | None:
    """A file that no other clip of the set has: two faces share their movie."""
    return clip.crops or clip.labels.au


def _bare(name: str) -> tuple[str, Literal["largest", "left", "right"]]:
    """Name of the movie, and which face of it."""
    for suffix, side in SIDES.items():
        if name.endswith(suffix):
            return name.removesuffix(suffix), side
    return name, "largest"


# ---- the tree ------------------------------------------------------------------------------------------------------


@dataclass
class _Tree:
    """Where everything is."""

    au: dict[str, tuple[str, Path]] = field(default_factory=dict)
    """Face -> official set and annotation file."""
    expr: dict[str, Path] = field(default_factory=dict)
    va: dict[str, Path] = field(default_factory=dict)
    crops: dict[str, Path] = field(default_factory=dict)
    movies: dict[str, Path] = field(default_factory=dict)
    words: dict[str, list[Path]] = field(default_factory=dict)
    """Name -> files that may be its transcript."""
    passed_over: list[Path] = field(default_factory=list)
    """Further movies or folders of crops of the same name."""

    def transcript(self, name: str) -> Path | None:
        """The transcript of the movie ``name``; a table of that name elsewhere may hold anything."""
        movie = self.movies.get(name)
        for path in sorted(self.words.get(name, ()), key=lambda path: TRANSCRIPT_SUFFIXES.index(path.suffix.lower())):
            near = path.parent.name == TRANSCRIPTS or (movie is not None and path.parent == movie.parent)
            looks = {".json": is_whisper, ".csv": is_transcript_table}.get(path.suffix.lower())
            if near and (looks is None or looks(path)):
                return path
        return None

    def take(self, into: dict[str, Path], name: str, path: Path) -> None:
        """Keep the first path of each name."""
        if into.setdefault(name, path) != path:
            self.passed_over.append(path)


def _scan(root: Path) -> _Tree:
    tree = _Tree()
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not name.endswith(".zarr"))
        if real in seen:  # a link back up, or two links to one folder
            folders.clear()
            continue
        seen.add(real)
        here = Path(folder)
        if here.name.startswith(CROPS):
            for name in folders:
                if not name.startswith(CROPS):
                    tree.take(tree.crops, name, here / name)
            # Do not descend into a million pictures; an archive unpacked into a folder of its own is one level deeper.
            folders[:] = [name for name in folders if name.startswith(CROPS)]
            continue
        if here.name in SETS and here.parent.name in {*AU_FOLDERS, *EXPR_FOLDERS, *VA_FOLDERS}:
            for name in sorted(names):
                if name.endswith(".txt") and not name.startswith("."):
                    _annotation(tree, here / name)
            continue
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if stem.startswith("."):  # such as the files that macOS puts beside others
                continue
            if suffix.lower() in VIDEO_SUFFIXES:
                tree.take(tree.movies, stem, here / name)
            elif suffix.lower() in TRANSCRIPT_SUFFIXES:
                tree.words.setdefault(stem, []).append(here / name)
    return tree


def _annotation(tree: _Tree, path: Path) -> None:
    """One file of the official sets, of action units, expressions, or valence and arousal."""
    official, face = path.parent.name, path.stem
    further = {**dict.fromkeys(EXPR_FOLDERS, tree.expr), **dict.fromkeys(VA_FOLDERS, tree.va)}
    into = further.get(path.parent.parent.name)
    known = into.get(face) if into is not None else tree.au[face][1] if face in tree.au else None
    if known is not None:
        raise UsageError(f"{path} and {known}: two annotations of one face; name the folder of one year")
    if into is not None:
        into[face] = path
    else:
        tree.au[face] = (official, path)


# ---- counts --------------------------------------------------------------------------------------------------------


class _Counts:
    """Counts the numbers that others published."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, int]] = {what: dict.fromkeys(sets, 0) for what, sets in KNOWN.items()}

    def add(self, official: str, path: Path, crops: Path | None) -> None:
        """Count one annotation file. Errors in it fail its clip later; here, what can be read is counted."""
        self.found["annotation files"][official] += 1
        try:
            lines = path.read_bytes().splitlines()[1:]
        except OSError:
            return
        annotated = [row for row, line in enumerate(lines) if line.strip() and b"-1" not in line]
        self.found["annotated frames"][official] += len(annotated)
        if crops is not None:
            try:
                there = list_crops(crops).by_frame
            except ClipError:
                return
            missing = sum(row not in there for row in annotated)
            self.found["annotated frames without a crop"][official] += missing


def _notes(tree: _Tree, clips: list[Clip]) -> tuple[str, ...]:
    lacking = {
        "movie": [clip.id for clip in clips if clip.video is None],
        "crops": [clip.id for clip in clips if clip.crops is None],
        "transcript": [clip.id for clip in clips if clip.transcript is None],
        "expression labels": [clip.id for clip in clips if clip.labels.expr is None],
        "valence and arousal": [clip.id for clip in clips if clip.labels.va is None] if tree.va else [],
    }
    notes = [f"without {what}: {len(ids)} of {len(clips)} clips{_first(ids)}" for what, ids in lacking.items() if ids]
    if unused := sorted(set(tree.crops) - set(tree.au)):
        notes.append(f"crops of {len(unused)} faces without annotations{_first(unused)} are not used")
    if other := sorted({*tree.expr, *tree.va} - set(tree.au)):
        notes.append(f"left out, no AU labels, only others: {len(other)}{_first(other)}")
    for what, files in (("expressions", tree.expr), ("valence and arousal", tree.va)):
        other = sorted(
            face for face, path in files.items() if tree.au.get(face, (path.parent.name,))[0] != path.parent.name
        )
        if other:
            notes.append(
                f"{what} in another official set than the AUs, whose split counts: {len(other)}{_first(other)}"
            )
    if any(clip.labels.va is not None for clip in clips):
        notes.append("valence and arousal are imported with `extract run --set 'labels.also=[va]'`")
    if tree.passed_over:
        notes.append(f"not used, another of the same name: {len(tree.passed_over)}{_first(tree.passed_over)}")
    sides = {official: {_bare(name)[0] for name, (of, _) in tree.au.items() if of == official} for official in SETS}
    if both := sorted(sides[TRAIN] & sides[VALIDATION]):
        notes.append(f"in both {TRAIN} and {VALIDATION}, so results will be too good: {len(both)}{_first(both)}")
    return tuple(notes)


def _first(names: Iterable[object], most: int = 3) -> str:
    """`` (first: a, b, c)``."""
    return f" (first: {', '.join(str(name) for name in islice(names, most))})"
