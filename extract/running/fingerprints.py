"""What a clip's values are made from: files, by the hash of their bytes, and choices of the manifest, by value."""

import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from extract.errors import ClipError, WeightsError
from extract.graph import Instance, upstream
from extract.inputs.crops import folder_sha256, list_crops, listing_stamp
from extract.inputs.manifest import Clip
from extract.inputs.parts import choice, part_files
from extract.records import Record

MADE_WITH = "choice.made_with."
"""With an instance's name, a source part: what a ``sourced`` stage computed the clip with."""
LAST_CROP = "choice.last_crop"
"""The highest number among the clip's crops. The clock depends on nothing else: changed pixels leave labels alone."""


def parts_of(graph: Mapping[str, Instance], name: str, clip: Clip) -> tuple[str, ...]:
    """Source parts of this clip that an instance or its inputs read, sorted."""
    parts: set[str] = set()
    for source in upstream(graph, [name]):
        for part in graph[source].stage.parts:
            if part == "sound":  # a sound file of its own, or the video's audio stream
                parts.add("audio" if clip.audio else "media")
            elif not part.startswith("choice.") or choice(clip, part) is not None:
                parts.add(part)
        if clip.crops is not None and graph[source].stage.clock:
            parts.add(LAST_CROP)
        if graph[source].stage.sourced:
            parts.add(made_with_part(source))
    return tuple(sorted(parts))


def made_with_part(instance: str) -> str:
    """Source part that says what an instance of a ``sourced`` stage computed with."""
    return f"{MADE_WITH}{instance}"


class Sources:
    """Hashes of source files, each read once per run; a recorded hash is trusted while size and time are unchanged.

    Args:
        made_with: instance of a ``sourced`` stage -> what it computes with.
    """

    def __init__(self, *, rehash: bool = False, made_with: Mapping[str, dict[str, Any]] | None = None) -> None:
        self._rehash = rehash
        self._made_with = {made_with_part(name): made for name, made in (made_with or {}).items()}
        self._recorded_made_with: dict[tuple[str, str], dict[str, Any]] = {}
        """(clip, part) -> as recorded."""
        self._seen: dict[Path, tuple[tuple[int, int], str]] = {}
        self._recorded: dict[Path, tuple[tuple[int, int], str]] = {}
        self._identity: dict[Path, Identity | None] = {}
        """Each file's identity when it was hashed, or when it was last found to hold the same bytes."""
        self._last_crop: dict[Path, int] = {}
        self._recorded_last_crop: dict[Path, int] = {}

    def source(self, clip: Clip, parts: Sequence[str], *, believe_gone: bool = False) -> dict[str, Any]:
        """Part -> sha256 (of the files' hashes where there are several), or the choice.

        Args:
            believe_gone: for what is not there, take the value of a record that ``trust`` was shown.

        Raises:
            ClipError: ``missing_file``, ``unreadable`` or ``bad_crops``.
        """
        source: dict[str, Any] = {}
        for part in parts:
            if part == LAST_CROP:
                source[part] = self._last_crop_of(cast(Path, clip.crops), believe_gone)
                continue
            if part.startswith(MADE_WITH):
                source[part] = self._what_made(clip, part, believe_gone)
                continue
            if part.startswith("choice."):
                source[part] = choice(clip, part)
                continue
            hashes = [self._hash(path, believe_gone) for path in part_files(clip, part)]
            source[part] = hashes[0] if len(hashes) == 1 else sha256_of(hashes)
        return source

    def trust(self, clip: Clip, record: Record) -> None:
        """Trust the record's hashes for files whose size and modification time are as recorded."""
        if clip.crops is not None and LAST_CROP in record.source:
            self._recorded_last_crop[clip.crops] = record.source[LAST_CROP]
        for part, made in record.source.items():
            if part.startswith(MADE_WITH):
                self._recorded_made_with[clip.id, part] = made
        for part, files in record.provenance.get("files", {}).items():
            for path, (size, mtime_ns, sha256) in zip(part_files(clip, part), files, strict=False):
                if path in self._seen:
                    continue
                self._recorded[path] = ((size, mtime_ns), sha256)
                identity = _identity(path)
                if not self._rehash and _stamp(path) == (size, mtime_ns):
                    self._seen[path] = ((size, mtime_ns), sha256)
                    self._identity[path] = identity

    def is_gone(self, clip: Clip, parts: Sequence[str]) -> bool:
        """Whether a file of these parts is missing."""
        named = ["crops" if part == LAST_CROP else part for part in parts]
        paths = [path for part in named if not part.startswith("choice.") for path in part_files(clip, part)]
        return not all(os.path.exists(path) for path in paths)

    def files(self, clip: Clip, parts: Sequence[str]) -> dict[str, list[list[Any]]]:
        """For the record: size, time and hash of each file as they were read, for ``trust`` in later runs."""
        return {
            part: [[*stamp, sha256] for stamp, sha256 in map(self._known, part_files(clip, part))]
            for part in parts
            if not part.startswith("choice.")
        }

    def check_unchanged(self, clip: Clip, parts: Sequence[str]) -> None:
        """Raise ClipError ``source_changed`` if a file's bytes are not those that were hashed.

        To be called whenever a file was opened, and before every commit: a file that is swapped and swapped back
        between two calls must not leave a row behind. Device, inode, size and times tell at the cost of a stat; where
        they differ, the bytes are hashed: a file that was copied anew is the same source.
        """
        if LAST_CROP in parts and clip.crops in self._last_crop:
            before, now = self._last_crop[clip.crops], list_crops(clip.crops).num_frames
            if before != now:
                message = f"{clip.crops}: the last crop was {before}, now it is {now}; run again"
                raise ClipError("source_changed", message)
        for part in parts:
            for path in () if part.startswith("choice.") else part_files(clip, part):
                identity = _identity(path)
                if path not in self._seen and (identity is None or path not in self._recorded):
                    continue  # nothing in this run reads it; or it was gone before, and the record's hash stands for it
                if path not in self._identity or identity != self._identity[path]:
                    if identity is None or _hash_of(path) != self._known(path)[1]:
                        raise ClipError("source_changed", f"{path} changed while it was being worked on; run again")
                    self._identity[path] = identity

    def _what_made(self, clip: Clip, part: str, believe_gone: bool) -> dict[str, Any]:
        """Weights that are not on this machine may be those of the record."""
        made = self._made_with[part]
        if "weights" in made and made["weights"] is None:
            recorded = self._recorded_made_with.get((clip.id, part))
            if not believe_gone or recorded is None:
                name = part.removeprefix(MADE_WITH)
                raise WeightsError(f"instance {name}: clip {clip.id} needs its weights, which are not on this machine")
            return {**made, "weights": recorded.get("weights")}
        return made

    def _last_crop_of(self, folder: Path, believe_gone: bool) -> int:
        """Listed once a run."""
        if believe_gone and folder in self._recorded_last_crop and not folder.exists():
            return self._recorded_last_crop[folder]
        if folder not in self._last_crop:
            self._last_crop[folder] = list_crops(folder).num_frames
        return self._last_crop[folder]

    def _known(self, path: Path) -> tuple[tuple[int, int], str]:
        return self._seen.get(path) or self._recorded[path]

    def _hash(self, path: Path, believe_gone: bool) -> str:
        if believe_gone and path in self._recorded and _stamp(path) is None:
            return self._recorded[path][1]
        if path not in self._seen:
            stamp, identity = _stamp(path), _identity(path)
            try:
                sha256 = _hash_of(path)
            except FileNotFoundError as error:
                of_demo = path.parts[-3:-1] == ("demo", "clips")
                remedy = "`extract demo` draws the demo's clips" if of_demo else "is the path right?"
                raise ClipError("missing_file", f"{error.filename}: no such file; {remedy}") from None
            except OSError as error:
                raise ClipError("unreadable", f"{error.filename or path}: {error.strerror or error}") from None
            self._seen[path], self._identity[path] = (stamp or (0, 0), sha256), identity
        return self._seen[path][1]


Identity = tuple[int, ...]


def _hash_of(path: Path) -> str:
    """sha256 of a file, or of a folder of crops.

    Raises:
        OSError: it cannot be read.
        ClipError: as ``folder_sha256`` and ``_hash_of_file``.
    """
    return folder_sha256(path, _hash_of_file) if path.is_dir() else _hash_of_file(path)


def _hash_of_file(path: Path) -> str:
    """sha256 of a file.

    Raises:
        OSError: it cannot be read.
        ClipError: ``stalled``: a named pipe, which gives no byte until somebody writes, and never the same twice;
            ``unreadable``: a device or socket.
    """
    kind = path.stat().st_mode
    if stat.S_ISFIFO(kind):
        raise ClipError("stalled", f"{path} is a named pipe, which may never give a byte; expected a file")
    if not stat.S_ISREG(kind):
        raise ClipError("unreadable", f"{path} is a device or socket; expected a file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _identity(path: Path) -> Identity | None:
    """Device, inode, size and times of a file, and a folder's listing; None if it is not there."""
    try:
        status = path.stat()
        listing = listing_stamp(path) if stat.S_ISDIR(status.st_mode) else ()
    except OSError:
        return None
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, *listing)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            return listing_stamp(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def sha256_of(value: object) -> str:
    """Hash of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def fingerprint(recipe_sha256: str, source: Mapping[str, Any]) -> str:
    """Identity of one clip's values: the same for all machines and folders."""
    return sha256_of([recipe_sha256, source])
