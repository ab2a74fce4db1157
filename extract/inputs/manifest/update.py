"""Makes a manifest of what a scan found, or adds to one that a person has edited since.

An edited manifest is never rewritten: new clips and splits are inserted into its text (``edits``).
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Literal

from extract.errors import UsageError
from extract.inputs.manifest.clip import Clip
from extract.inputs.manifest.edits import extend, with_splits
from extract.inputs.manifest.reading import read_document
from extract.inputs.manifest.shared import members_of
from extract.inputs.manifest.writing import refuse_existing, write_manifest
from extract.inputs.splits import SPLITS, Member, assign, crossings, groups
from extract.names import MAX_CHARS, is_legal


@dataclass(frozen=True)
class SplitRule:
    """How the clips without a split are divided among the splits."""

    by: Literal["subject", "source_video"]
    """What every clip must name. Clips that share either stay together."""
    val: float
    """Share of all clips; what neither ``val`` nor ``test`` takes is for training."""
    test: float
    seed: int
    allow_shared_subjects: bool = False
    """Keep only clips of one recording together."""


@dataclass(frozen=True)
class Made:
    """What a scan found that the manifest lacked, and what was written."""

    added: tuple[Clip, ...]
    known: int = 0
    """Clips that the manifest held before."""
    gone: tuple[str, ...] = ()
    """Those of them that the scan does not find in its folder; they stay."""
    elsewhere: int = 0
    """Those of them outside the folder: the scan cannot say whether they exist."""
    assigned: int = 0
    """Clips that were given a split, new ones included."""
    kept_out: int = 0
    """Clips that say ``split: null`` and stay without a split."""
    splits: Mapping[str, tuple[int, int]] | None = None
    """Split -> its number of clips and of groups, in the whole manifest; None without a ``SplitRule``."""
    notes: tuple[str, ...] = ()
    """What may come as a surprise, a line each."""


def make(
    path: Path,
    scanned: Sequence[Clip],
    comment: str,
    *,
    root: Path,
    own: Callable[[Clip], Path | None],
    update: bool = False,
    rule: SplitRule | None = None,
) -> Made:
    """Write the clips of a scan as a manifest or, with ``update``, add those that an existing one lacks.

    Args:
        comment: goes on top of a new manifest.
        root: the folder that was scanned.
        own: the file that sets a scanned clip apart; an entry that names it is that clip, whatever its id.

    Raises:
        UsageError: the manifest exists and ``update`` is not set, or the clips cannot be split by the rule.
        ManifestError: the existing manifest breaks a rule, or is written in a form that cannot be extended.
        MachineError: the disk is full, read-only or gone.
    """
    if not (update and os.path.lexists(path)):
        refuse_existing(path)
        split_of = _assigned(scanned, (), rule)
        clips = with_splits(scanned, split_of)
        write_manifest(path, clips, comment, new=True)
        return Made(clips, assigned=len(split_of), splits=_count(clips, rule), notes=_shared_notes(clips))
    document = read_document(path)
    found = _compare(document.clips, scanned, root, own)
    kept_out = [
        clip.id
        for clip, place in document.entries()
        if clip.split is None and place.split and place.split[0] < place.split[1]
    ]
    split_of = _assigned([*document.clips, *found.added], kept_out, rule)
    added = with_splits(found.added, split_of)
    extend(path, document, added, {clip.id: split_of[clip.id] for clip in document.clips if clip.id in split_of})
    clips = (*with_splits(document.clips, split_of), *added)
    unsplit = [clip.id for clip in added if clip.split is None]
    notes = list(found.notes)
    if unsplit and any(clip.split is not None for clip in document.clips):
        notes.append(
            f"{len(unsplit)} added clips have no split{_first(unsplit)}; `--update --split-by ...` gives them one"
        )
    return replace(
        found,
        added=added,
        assigned=len(split_of),
        kept_out=len(kept_out),
        splits=_count(clips, rule),
        notes=(*notes, *_shared_notes(clips)),
    )


# -- what is new ------------------------------------------------------------------------------------------------------


def _compare(known: Sequence[Clip], scanned: Sequence[Clip], root: Path, own: Callable[[Clip], Path | None]) -> Made:
    """Scanned clips that the manifest lacks, with ids that are free there, and those of its clips that the scan lacks.

    A scanned clip is known by its own file, else by its id.
    """
    by_file = {_real(file): clip for clip in reversed(known) for file in _files(clip)}
    by_id = {clip.id.lower(): clip for clip in known}
    entry = {clip.id: by_file[file] for clip in scanned if (file := _real(own(clip))) in by_file}
    of_other_files = {clip.id for clip in entry.values()}
    moved: list[str] = []
    for clip in scanned:
        same = by_id.get(clip.id.lower())
        # An entry that names another file of this scan belongs to that file, though it has this clip's id.
        if clip.id not in entry and same is not None and same.id not in of_other_files:
            entry[clip.id] = same
            moved.append(clip.id)
    # A recording may be renamed in the manifest; new clips of it take that name.
    source = {clip.source_video: entry[clip.id].source_video for clip in reversed(scanned) if clip.id in entry}
    taken = {*by_id, *(clip.id.lower() for clip in scanned)}
    added: list[Clip] = []
    notes: list[str] = []
    for clip in scanned:
        if clip.id in entry:
            continue
        clip_id = clip.id
        if clip_id.lower() in by_id:
            clip_id = _free_id(clip_id, own(clip), taken)
            taken.add(clip_id.lower())
            notes.append(f"{own(clip)} is added as {clip_id}: the manifest has another clip {clip.id}")
        source_video = source.get(clip.source_video, clip.source_video)
        added.append(clip.model_copy(update={"id": clip_id, "source_video": source_video}))
    if moved:
        notes.append(
            f"{len(moved)} files have the id of a clip whose entry names another file{_first(moved)} and are taken for "
            "that clip; if they are other recordings, add them by hand, each with an id of its own"
        )
    notes += _missing_keys(scanned, entry)
    there = {clip.id for clip in entry.values()}
    missing = [clip for clip in known if clip.id not in there]
    folder = os.path.realpath(root) + os.sep
    gone = tuple(clip.id for clip in missing if any(_real(file).startswith(folder) for file in _files(clip)))
    return Made(tuple(added), len(known), gone, len(missing) - len(gone), notes=tuple(notes))


def _files(clip: Clip) -> list[Path]:
    return [path for path in (clip.video, clip.audio, clip.crops, clip.labels.au) if path is not None]


def _real(path: Path | None) -> str:
    """A path without linked folders. A linked file keeps its name: two names are two recordings."""
    return "" if path is None else os.path.join(os.path.realpath(path.parent), path.name)


def _free_id(clip_id: str, own: Path | None, taken: Iterable[str]) -> str:
    suffix = own.suffix.lower() if own is not None else ""
    endings = chain([suffix] * bool(suffix), (f"-{number}" for number in count(2)))
    names = (clip_id[: MAX_CHARS - len(ending)] + ending for ending in endings)
    return next(name for name in names if is_legal(name) and name.lower() not in taken)


def _missing_keys(scanned: Sequence[Clip], entry: Mapping[str, Clip]) -> list[str]:
    """Notes of files that by now lie beside known recordings, but that their entries do not name."""
    pairs = [(clip, entry[clip.id]) for clip in scanned if clip.id in entry]
    lacking = {
        "transcript": [old.id for clip, old in pairs if clip.transcript is not None and old.transcript is None],
        "labels": [old.id for clip, old in pairs if clip.labels.au is not None and old.labels.au is None],
    }
    return [
        f"{len(ids)} clips have a file for `{key}:` beside them that their entries do not name{_first(ids)}"
        for key, ids in lacking.items()
        if ids
    ]


def _first(ids: Sequence[str], most: int = 3) -> str:
    return f" (first: {', '.join(ids[:most])})"


# -- splits -----------------------------------------------------------------------------------------------------------


def _assigned(clips: Sequence[Clip], kept_out: Sequence[str], rule: SplitRule | None) -> dict[str, str]:
    """Clip -> split for the clips that have none."""
    if rule is None:
        return {}
    if rule.by == "subject":
        lacking = [clip.id for clip in clips if clip.subject is None and clip.split is None and clip.id not in kept_out]
        if lacking:
            raise UsageError(
                f"--split-by subject: {len(lacking)} of {len(clips)} clips name no subject{_first(lacking)}; write "
                "`subject:` for each into the manifest (made without --split-by) and repeat this with --update, or use "
                "--split-by source_video"
            )
    return assign(
        _members(clips, rule),
        {clip.id: clip.split for clip in clips if clip.split is not None},
        val=rule.val,
        test=rule.test,
        seed=rule.seed,
        left_out=frozenset(kept_out),
    )


def _members(clips: Iterable[Clip], rule: SplitRule) -> list[Member]:
    if rule.allow_shared_subjects:
        return [Member(clip.id, clip.source_video) for clip in clips]
    return members_of(clips)


def _count(clips: Sequence[Clip], rule: SplitRule | None) -> dict[str, tuple[int, int]] | None:
    if rule is None:
        return None
    split_of = {clip.id: clip.split for clip in clips}
    of_groups = [{split_of[clip_id] for clip_id in part} for part in groups(_members(clips, rule))]
    return {
        split: (sum(clip.split == split for clip in clips), sum(split in found for found in of_groups))
        for split in SPLITS
    }


def _shared_notes(clips: Sequence[Clip]) -> tuple[str, ...]:
    """A note if one subject or recording is in several splits."""
    found = crossings(members_of(clips), {clip.id: clip.split for clip in clips if clip.split is not None})
    if not found:
        return ()
    what = f"{len(found)} subjects or recordings are in several splits (first: {found[0].shared})"
    return (f"{what}; `extract run` accepts them only with --allow-shared-subjects",)
