"""Making a manifest of what a scan found, and adding to one that somebody has edited since.

An edited manifest is never written anew: new clips and splits are put into its text, and every character that was there
stays. The result is read back before it is written; a form of YAML that takes no addition safely is refused.
"""

import codecs
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from operator import itemgetter
from pathlib import Path
from typing import Literal

from extract.errors import ManifestError, UsageError
from extract.files import LocalFiles
from extract.inputs.manifest import (
    Clip,
    Document,
    Place,
    members_of,
    read_document,
    refuse_existing,
    write_manifest,
    written_entry,
)
from extract.inputs.splits import SPLITS, Member, assign, crossings, groups
from extract.names import MAX_CHARS, is_legal

_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
"""What ends a line of YAML."""


@dataclass(frozen=True)
class Parting:
    """How the clips without a split are put into splits."""

    by: Literal["subject", "source_video"]
    """What every clip must name. Clips that share either stay together."""
    val: float
    """Share of all clips; what neither ``val`` nor ``test`` takes is for training."""
    test: float
    seed: int
    allow_shared_subjects: bool = False
    """Keep only recordings together."""


@dataclass(frozen=True)
class Made:
    """What a manifest lacked of a scan, and what was written."""

    added: tuple[Clip, ...]
    known: int = 0
    """Clips that were there."""
    gone: tuple[str, ...] = ()
    """Clips that were there and that the scan does not find in its folder; they stay."""
    elsewhere: int = 0
    """Clips that were there and lie outside the folder: the scan cannot tell of them."""
    assigned: int = 0
    """Clips that got a split, new ones included."""
    kept_out: int = 0
    """Clips that say ``split: null`` and stay without one."""
    splits: Mapping[str, tuple[int, int]] | None = None
    """Split -> its clips, and the groups that they make, in the whole manifest; None: nobody asked."""
    notes: tuple[str, ...] = ()
    """What may surprise, a line each."""


def make(
    path: Path,
    scanned: Sequence[Clip],
    comment: str,
    *,
    root: Path,
    own: Callable[[Clip], Path | None],
    update: bool = False,
    parting: Parting | None = None,
) -> Made:
    """Write the clips of a scan as a manifest, or with ``update`` add to the one that is there.

    Args:
        comment: goes on top of a new manifest.
        root: the folder that was scanned.
        own: the file that tells a scanned clip from the others; an entry that names it is that clip, whatever its id.

    Raises:
        UsageError: a manifest is there and nobody asked for ``update``, or the clips cannot be parted as asked.
        ManifestError: the manifest that is there is faulty, or of a form that takes no addition.
        MachineError: the disk is full, read-only or gone.
    """
    if not (update and os.path.lexists(path)):
        refuse_existing(path)
        split_of = _parted(scanned, (), parting)
        clips = _with_splits(scanned, split_of)
        write_manifest(path, clips, comment, new=True)
        return Made(clips, assigned=len(split_of), splits=_count(clips, parting), notes=_torn(clips))
    document = read_document(path)
    found = _compare(document.clips, scanned, root, own)
    kept_out = [
        clip.id for clip, at in document.entries() if clip.split is None and at.split and at.split[0] < at.split[1]
    ]
    split_of = _parted([*document.clips, *found.added], kept_out, parting)
    added = _with_splits(found.added, split_of)
    _extend(path, document, added, {clip.id: split_of[clip.id] for clip in document.clips if clip.id in split_of})
    clips = (*_with_splits(document.clips, split_of), *added)
    unsplit = [clip.id for clip in added if clip.split is None]
    notes = list(found.notes)
    if unsplit and any(clip.split is not None for clip in document.clips):
        notes.append(
            f"{len(unsplit)} added clips have no split{_few(unsplit)}; `--update --split-by ...` gives them one"
        )
    return replace(
        found,
        added=added,
        assigned=len(split_of),
        kept_out=len(kept_out),
        splits=_count(clips, parting),
        notes=(*notes, *_torn(clips)),
    )


# -- what is new ------------------------------------------------------------------------------------------------------


def _compare(known: Sequence[Clip], scanned: Sequence[Clip], root: Path, own: Callable[[Clip], Path | None]) -> Made:
    """Scanned clips that the manifest lacks, with ids that are free there, and its own that the scan lacks."""
    by_file = {_real(file): clip for clip in reversed(known) for file in _files(clip)}
    by_id = {clip.id.lower(): clip for clip in known}
    entry = {clip.id: by_file[file] for clip in scanned if (file := _real(own(clip))) in by_file}
    of_other_files = {clip.id for clip in entry.values()}
    moved: list[str] = []
    for clip in scanned:
        same = by_id.get(clip.id.lower())
        # An entry that names another file of this scan is that file's, though it has this clip's id.
        if clip.id not in entry and same is not None and same.id not in of_other_files:
            entry[clip.id] = same
            moved.append(clip.id)
    # What belongs to a recording belongs to it under the name that its entry gives it.
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
            f"{len(moved)} files count as clips of the manifest whose entries name other files{_few(moved)}; if they "
            "are other recordings, add them by hand under ids of their own"
        )
    notes += _unnamed(scanned, entry)
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


def _unnamed(scanned: Sequence[Clip], entry: Mapping[str, Clip]) -> list[str]:
    """Files that lie beside known recordings by now and that their entries do not name."""
    pairs = [(clip, entry[clip.id]) for clip in scanned if clip.id in entry]
    lacking = {
        "transcript": [old.id for clip, old in pairs if clip.transcript is not None and old.transcript is None],
        "labels": [old.id for clip, old in pairs if clip.labels.au is not None and old.labels.au is None],
    }
    return [
        f"{len(ids)} clips have a file for `{key}:` beside them that their entries do not name{_few(ids)}"
        for key, ids in lacking.items()
        if ids
    ]


def _few(ids: Sequence[str], most: int = 3) -> str:
    return f" (first: {', '.join(ids[:most])})"


# -- splits -----------------------------------------------------------------------------------------------------------


def _parted(clips: Sequence[Clip], kept_out: Sequence[str], parting: Parting | None) -> dict[str, str]:
    """Clip -> split for the clips that have none."""
    if parting is None:
        return {}
    if parting.by == "subject":
        lacking = [clip.id for clip in clips if clip.subject is None and clip.split is None and clip.id not in kept_out]
        if lacking:
            raise UsageError(
                f"--split-by subject: {len(lacking)} of {len(clips)} clips name no subject{_few(lacking)}; write "
                "`subject:` for each into the manifest (made without --split-by) and repeat this with --update, or use "
                "--split-by source_video"
            )
    return assign(
        _members(clips, parting),
        {clip.id: clip.split for clip in clips if clip.split is not None},
        val=parting.val,
        test=parting.test,
        seed=parting.seed,
        left_out=frozenset(kept_out),
    )


def _members(clips: Iterable[Clip], parting: Parting) -> list[Member]:
    if parting.allow_shared_subjects:
        return [Member(clip.id, clip.source_video) for clip in clips]
    return members_of(clips)


def _with_splits(clips: Iterable[Clip], split_of: Mapping[str, str]) -> tuple[Clip, ...]:
    return tuple(
        clip.model_copy(update={"split": split_of[clip.id]}) if clip.id in split_of else clip for clip in clips
    )


def _count(clips: Sequence[Clip], parting: Parting | None) -> dict[str, tuple[int, int]] | None:
    if parting is None:
        return None
    split_of = {clip.id: clip.split for clip in clips}
    of_groups = [{split_of[clip_id] for clip_id in part} for part in groups(_members(clips, parting))]
    return {
        split: (sum(clip.split == split for clip in clips), sum(split in found for found in of_groups))
        for split in SPLITS
    }


def _torn(clips: Sequence[Clip]) -> tuple[str, ...]:
    found = crossings(members_of(clips), {clip.id: clip.split for clip in clips if clip.split is not None})
    if not found:
        return ()
    told = f"{len(found)} subjects or recordings lie in several splits (first: {found[0].shared})"
    return (f"{told}; `extract run` takes them with --allow-shared-subjects only",)


# -- the text ---------------------------------------------------------------------------------------------------------


def _extend(path: Path, document: Document, added: Sequence[Clip], splits: Mapping[str, str]) -> None:
    """Put clips behind those of the manifest, and splits into entries that have none; with nothing to put, nothing."""
    if not added and not splits:
        return
    mark = codecs.BOM_UTF8 if document.raw.startswith(codecs.BOM_UTF8) else b""
    text = document.raw.removeprefix(mark).decode()
    edits = [_split_edit(text, at, splits[clip.id]) for clip, at in document.entries() if clip.id in splits]
    if added:
        edits.append(_clips_edit(path, text, document, added))
    parts, done = [], 0
    for position, what in sorted(edits, key=itemgetter(0)):
        parts += [text[done:position], what]
        done = position
    raw = mark + "".join([*parts, text[done:]]).encode()
    try:
        as_meant = read_document(path, raw).clips == (*_with_splits(document.clips, splits), *added)
    except ManifestError:
        as_meant = False
    if not as_meant:
        raise ManifestError(
            f"{path}: its YAML is of a form that cannot be added to without changing what it says; write its clips as "
            "`- id:` entries with one key a line, or make another with `-o FILE`. Nothing was changed"
        )
    target = Path(os.path.realpath(path))  # a link stays one
    mode = stat.S_IMODE(target.stat().st_mode)
    if target.read_bytes() != document.raw:
        raise ManifestError(f"{path}: was edited by somebody else at this moment; run the same command again")
    LocalFiles(target.parent).write(target.name, raw)
    target.chmod(mode)


def _split_edit(text: str, at: Place, split: str) -> tuple[int, str]:
    """Where something is to be put into the text, and what."""
    if at.split is not None:  # `split:` with nothing behind it
        return at.split[0], f" {split}"
    if at.in_braces:
        return at.after_id, f", split: {split}"
    return _new_lines(text, _after_line(text, at.end), [f"{' ' * at.indent}split: {split}"])


def _clips_edit(path: Path, text: str, document: Document, added: Sequence[Clip]) -> tuple[int, str]:
    if document.in_brackets:
        raise ManifestError(
            f"{path}: its clips are written in brackets, `clips: [...]`, which takes no addition; write them as a list "
            "of `- id:` entries, or make another manifest with `-o FILE`. Nothing was changed"
        )
    last = document.places[-1]
    place = _after_line(text, last.end)
    below = [line.strip() for line in _BREAK.split(text[place:])]
    if all(not line or line.startswith("#") for line in below):
        place = len(text)  # comments below the last clip stay below it
    dash = f"{' ' * document.dash}-".ljust(max(last.indent, document.dash + 2))
    lines: list[str] = []
    for clip in added:
        first, *others = written_entry(clip, path).rstrip("\n").split("\n")
        lines += [dash + first, *(" " * len(dash) + line if line else "" for line in others)]
    return _new_lines(text, place, lines)


def _after_line(text: str, position: int) -> int:
    """Beginning of the line below ``position``, or the end of the text."""
    if position and _BREAK.fullmatch(text[position - 1]):  # a text block ends with its line
        return position
    found = _BREAK.search(text, position)
    return found.end() if found else len(text)


def _new_lines(text: str, position: int, lines: Sequence[str]) -> tuple[int, str]:
    """Lines to stand at the beginning of a line, or behind a last line that is not ended."""
    found = _BREAK.search(text)
    end = found[0] if found else "\n"
    if position and not _BREAK.fullmatch(text[position - 1]):
        return position, "".join(end + line for line in lines)
    return position, "".join(line + end for line in lines)
