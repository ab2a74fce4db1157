"""Aff-Wild2 (Kollias and Zafeiriou, ABAW challenges) as it is handed out, to manifest entries.

Looked for below the folder given, at any depth: the annotations of action units (``AU_Detection_Challenge`` or
``AU_Set`` with ``Train_Set`` and ``Validation_Set``) and, where there are any, of expressions; the folder
``cropped_aligned`` with one folder of crops per annotated face; the movies; transcripts named like their movie.

Two faces of one movie are annotated as ``NAME_left`` and ``NAME_right``: two clips with crops and labels of their own
that share the movie NAME, so its frame times, sound and words. The official validation set is the test split; the
official training set is parted 90/10 by source video.
"""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from extract.crops import list_crops
from extract.datasets.folder import VIDEO_SUFFIXES
from extract.errors import ClipError, UsageError
from extract.manifest import Clip, Labels, absolute, is_legal_id
from extract.splits import Member, hold_out
from extract.transcripts import SUFFIXES as TRANSCRIPT_SUFFIXES

AU_FOLDERS = ("AU_Detection_Challenge", "AU_Set")
EXPR_FOLDERS = (
    "EXPR_Classification_Challenge",
    "EXPR_Recognition_Challenge",
    "EXPR_Classification",
    "EXPR_Recognition",
    "EXPR_Set",
)
TRAIN, VALIDATION = "Train_Set", "Validation_Set"
CROPS = "cropped_aligned"
SIDES: Mapping[str, Literal["left", "right"]] = {"_left": "left", "_right": "right"}
VAL_SHARE = 0.1

KNOWN = {
    "annotation files": {TRAIN: "295", VALIDATION: "105"},
    "annotated frames": {TRAIN: "1,359,690 (ABAW3), 1,359,523 (ABAW5)", VALIDATION: "445,845"},
    "annotated frames without a crop": {TRAIN: "2,829", VALIDATION: "9"},
}
"""What others counted in the official sets (the readers listed in docs/licences.md); a tree of another year differs."""


@dataclass(frozen=True)
class AffWild2:
    """What a tree holds."""

    clips: tuple[Clip, ...]
    counts: dict[str, dict[str, int]]
    """What is counted -> official set -> how many; the keys are those of KNOWN."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Annotated face that makes no clip -> why."""
    notes: tuple[str, ...] = ()


def scan_affwild2(root: Path, *, seed: int = 0, fps: float | None = None) -> AffWild2:
    """Find what belongs together.

    Args:
        seed: of the 90/10 parting.
        fps: for crops whose movie is not there; None leaves them out.

    Raises:
        UsageError: no annotations, two of one name, or nothing that makes a clip.
    """
    if not root.is_dir():
        raise UsageError(
            f"{root}: {'is a file' if root.exists() else 'is not there'}; expected the folder of Aff-Wild2"
        )
    tree = _look_through(absolute(root, Path.cwd()))
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
        if not is_legal_id(name):
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
                    transcript=tree.transcripts.get(bare),
                    labels=Labels(au=path, expr=tree.expr.get(name)),
                    source_video=bare,
                    split="test" if official == VALIDATION else "train",
                    face=face,
                )
            )
    if not clips:
        first = next(iter(left_out.items()))
        raise UsageError(f"{root}: {len(left_out)} annotated faces and none makes a clip; {first[0]}: {first[1]}")
    return AffWild2(_parted(clips, seed), counts.found, left_out, _notes(tree, clips))


def _parted(clips: list[Clip], seed: int) -> tuple[Clip, ...]:
    """A tenth of the training set's source videos becomes ``val``. A single video stays whole."""
    members = [Member(clip.id, clip.source_video) for clip in clips if clip.split == "train"]
    if len({member.source_video for member in members}) < 2:
        return tuple(clips)
    held_out = hold_out(members, VAL_SHARE, seed)
    return tuple(clip.model_copy(update={"split": "val"}) if clip.id in held_out else clip for clip in clips)


def _bare(name: str) -> tuple[str, Literal["largest", "left", "right"]]:
    """Name of the movie, and which face of it."""
    for suffix, side in SIDES.items():
        if name.endswith(suffix):
            return name.removesuffix(suffix), side
    return name, "largest"


# ---- the tree ------------------------------------------------------------------------------------------------------


@dataclass
class _Tree:
    """Where everything lies."""

    au: dict[str, tuple[str, Path]] = field(default_factory=dict)
    """Face -> official set and annotation file."""
    expr: dict[str, Path] = field(default_factory=dict)
    crops: dict[str, Path] = field(default_factory=dict)
    movies: dict[str, Path] = field(default_factory=dict)
    transcripts: dict[str, Path] = field(default_factory=dict)


def _look_through(root: Path) -> _Tree:
    tree = _Tree()
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not name.endswith(".zarr"))
        here = Path(folder)
        if here.name == CROPS:
            tree.crops |= {name: here / name for name in folders}
            folders.clear()  # a million pictures: none of them is a movie
            continue
        if here.name in {TRAIN, VALIDATION} and here.parent.name in {*AU_FOLDERS, *EXPR_FOLDERS}:
            for name in sorted(names):
                if name.endswith(".txt") and not name.startswith("."):
                    _annotation(tree, here / name)
            continue
        for name in sorted(names):
            path = here / name
            if path.suffix.lower() in VIDEO_SUFFIXES:
                tree.movies.setdefault(path.stem, path)
            elif path.suffix.lower() in TRANSCRIPT_SUFFIXES:
                tree.transcripts.setdefault(path.stem, path)
    return tree


def _annotation(tree: _Tree, path: Path) -> None:
    """One file of the official sets, of action units or expressions."""
    official, face = path.parent.name, path.stem
    if path.parent.parent.name in EXPR_FOLDERS:
        tree.expr.setdefault(face, path)
        return
    if face in tree.au:
        raise UsageError(f"{path} and {tree.au[face][1]}: two annotations of one face; name the folder of one year")
    tree.au[face] = (official, path)


# ---- counts --------------------------------------------------------------------------------------------------------


class _Counts:
    """The numbers that others published, counted here."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, int]] = {what: dict.fromkeys(sets, 0) for what, sets in KNOWN.items()}

    def add(self, official: str, path: Path, crops: Path | None) -> None:
        """One annotation file. What is wrong in it is its clip's failure later; here it counts what it can."""
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
    lacking: Counter[str] = Counter()
    for clip in clips:
        lacking["movie"] += clip.video is None
        lacking["crops"] += clip.crops is None
        lacking["transcript"] += clip.transcript is None
        lacking["expression labels"] += clip.labels.expr is None
    notes = [f"without {what}: {number} of {len(clips)} clips" for what, number in lacking.items() if number]
    unused = sorted(set(tree.crops) - set(tree.au))
    if unused:
        notes.append(f"crops of {len(unused)} faces without annotations (first: {unused[0]}) are not used")
    return tuple(notes)
