"""Any folder of recordings to manifest entries: `extract manifest folder DIR -o FILE`.

Files that belong together are in one folder and share a stem. For a video ``NAME.mp4``:

* ``NAME.srt``, else ``NAME.vtt``, else ``NAME.json`` with Whisper's ``segments``, is its transcript;
* ``NAME.csv`` is its AU labels; with the header ``word,start_s,end_s`` it is its transcript instead (the others take
  precedence); what ``fusion predict`` wrote beside a movie is neither;
* ``NAME.wav`` is a clip of its own: the video has sound already, and the name does not say whether this file is the
  same sound, a part of it, delayed, or something else. Both clips get one ``source_video``, so no split separates
  them.

A sound file has no frames to label, only a transcript. All other files are left out and counted.

A clip's id is made from its own path alone, so that ids do not change when files are added: folders and stem joined by
"-" (``x/a.mp4`` is ``x-a``), characters other than A-Z a-z 0-9 . _ - replaced by "_". If two files would have the same
id, the container named first below keeps it and the other adds its suffix (``a.mp4`` is ``a``, ``a.avi`` is ``a.avi``)
or, if its name had to be changed, a hash of its path. A name whose letters do not exist in ASCII always gets the hash.
"""

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from extract.errors import UsageError
from extract.inputs.manifest import Clip, Labels, absolute
from extract.inputs.transcripts import HEADER as TRANSCRIPT_HEADER
from extract.names import MAX_CHARS, is_legal

VIDEO_SUFFIXES = (
    *(".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".flv"),
    *(".mts", ".m2ts", ".ts", ".3gp", ".ogv", ".mxf", ".asf", ".vob"),
)
"""Containers of video, the usual ones first: of two files with one name, the first in this list keeps the plain id."""

AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".mp3", ".m4a", ".ogg", ".opus", ".aac", ".wma", ".aif", ".aiff"),
    *(".oga", ".mka", ".ac3", ".amr", ".caf", ".au"),
)

PREDICTION_HEADER = "frame,pts_s,valid,"
"""How the tables of ``fusion predict`` begin."""
OPENFACE_HEADER = "frame,face_id,timestamp,success,"
"""The same with ``--columns openface``. OpenFace itself has ``confidence`` before ``success``."""

_RANK = {suffix: rank for rank, suffix in enumerate(VIDEO_SUFFIXES + AUDIO_SUFFIXES)}


@dataclass(frozen=True)
class FolderScan:
    """What a folder holds."""

    clips: tuple[Clip, ...]
    """In the order of their paths; ``video`` or ``audio`` is set, by the kind of file."""
    left_out: Mapping[str, int]
    """Number of files not taken, by suffix in lower case; others by a name in brackets, such as ``(no suffix)``."""
    notes: tuple[str, ...]
    """What may come as a surprise, a line each: files of the same name side by side."""


def scan_folder(root: Path) -> FolderScan:
    """Find the videos and sound files below a folder; links to folders are followed, hidden names and stores skipped.

    Raises:
        UsageError: ``root`` is no folder, cannot be listed, or holds no video or sound file.
    """
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise UsageError(f"{root}: {what}; expected a folder of videos or sound files")
    left_out: Counter[str] = Counter()
    by_stem: dict[PurePosixPath, list[PurePosixPath]] = {}
    for path in _files(root, left_out):
        by_stem.setdefault(path.with_suffix(""), []).append(path)
    media = {stem: sorted((p for p in paths if _suffix(p) in _RANK), key=_rank) for stem, paths in by_stem.items()}
    ids = _ids([path for paths in media.values() for path in paths])
    base = absolute(root, Path.cwd())
    clips: list[tuple[PurePosixPath, Clip]] = []
    for stem, paths in by_stem.items():
        beside = _Beside(base, paths)
        clips += [(path, beside.clip(path, ids[path], source_video=ids[media[stem][0]])) for path in media[stem]]
        left_out.update(_suffix(path) or "(no suffix)" for path in paths if path not in beside.taken)
    if not clips:
        raise UsageError(f"{root}: no video or sound file in this folder{_counted(left_out)}")
    clips.sort(key=lambda pair: pair[0])
    return FolderScan(
        clips=tuple(clip for _, clip in clips),
        left_out=dict(sorted(left_out.items())),
        notes=tuple(_note(paths, ids) for _, paths in sorted(media.items()) if len(paths) > 1),
    )


def _files(root: Path, left_out: Counter[str]) -> Iterator[PurePosixPath]:
    """Files below ``root`` as relative paths; those that cannot be listed or named are counted in ``left_out``."""

    def unlisted(error: OSError) -> None:
        if error.filename == str(root):
            raise UsageError(f"{root}: cannot list the folder ({error.strerror})") from error
        left_out["(folder that cannot be listed)"] += 1

    seen: set[str] = set()
    for folder, folders, names in os.walk(root, onerror=unlisted, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back up, or two links to one folder
            folders.clear()
            continue
        seen.add(real)
        # A store beside the videos holds many files, but no recording.
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not name.endswith(".zarr"))
        relative = PurePosixPath(Path(folder).relative_to(root).as_posix())
        for name in sorted(names):
            if name.startswith("."):
                continue
            path = relative / name
            try:
                str(path).encode()
            except UnicodeEncodeError:  # not UTF-8: a manifest cannot name this file
                left_out["(name that is not UTF-8)"] += 1
                continue
            yield path


def _suffix(path: PurePosixPath) -> str:
    return path.suffix.lower()


def _rank(path: PurePosixPath) -> tuple[int, PurePosixPath]:
    return _RANK[_suffix(path)], path


class _Beside:
    """Files with one stem in one folder: which of them belong to the recordings among them."""

    def __init__(self, base: Path, paths: list[PurePosixPath]) -> None:
        self.base = base
        self.taken: set[PurePosixPath] = set()
        by_suffix = {_suffix(path): path for path in paths}
        self.table = by_suffix.get(".csv")
        if self.table is not None and _begins(base / self.table).startswith((PREDICTION_HEADER, OPENFACE_HEADER)):
            self.table = None
        self.table_is_words = self.table is not None and is_transcript_table(base / self.table)
        whisper = by_suffix.get(".json")
        if whisper is not None and not is_whisper(base / whisper):
            whisper = None
        self.subtitles = by_suffix.get(".srt") or by_suffix.get(".vtt") or whisper

    def clip(self, path: PurePosixPath, clip_id: str, source_video: str) -> Clip:
        is_video = _suffix(path) in VIDEO_SUFFIXES
        transcript = self.subtitles or (self.table if self.table_is_words else None)
        labels = self.table if is_video and not self.table_is_words else None
        self.taken |= {part for part in (path, transcript, labels) if part is not None}
        return Clip(
            id=clip_id,
            video=self.base / path if is_video else None,
            audio=None if is_video else self.base / path,
            transcript=None if transcript is None else self.base / transcript,
            labels=Labels(au=None if labels is None else self.base / labels),
            source_video=source_video,
        )


def own_file(clip: Clip) -> Path | None:
    """The recording of a scanned clip."""
    return clip.video or clip.audio


def is_transcript_table(path: Path) -> bool:
    """Whether the first line names the columns of a transcript."""
    return tuple(name.strip().lower() for name in _begins(path).split(",")) == TRANSCRIPT_HEADER


def is_whisper(path: Path) -> bool:
    """Whether a JSON file looks like Whisper's, not like another program's."""
    try:
        return b'"segments"' in path.read_bytes()
    except OSError:
        return False


def _begins(path: Path) -> str:
    """The first line; empty if the file cannot be read: the run will report that."""
    try:
        with path.open("rb") as file:
            return file.readline(200).decode("utf-8-sig", errors="replace").strip()
    except OSError:
        return ""


def clip_of_file(path: Path, own: str) -> Clip:
    """One video or sound file with the transcript beside it, without labels; its id is the stem, "-" and ``own``."""
    base = absolute(path, Path.cwd()).parent
    beside = [PurePosixPath(name) for name in os.listdir(base) if PurePosixPath(name).stem == path.stem]
    clip_id = f"{_legal(path.stem).text[: MAX_CHARS - len(own) - 1]}-{own}"
    return (
        _Beside(base, beside).clip(PurePosixPath(path.name), clip_id, clip_id).model_copy(update={"labels": Labels()})
    )


# -- ids --------------------------------------------------------------------------------------------------------------


def _ids(paths: list[PurePosixPath]) -> dict[PurePosixPath, str]:
    """An id for each file, unique even where case is ignored."""
    named = {path: _legal("-".join(path.with_suffix("").parts)) for path in paths}
    taken: set[str] = set()
    ids: dict[PurePosixPath, str] = {}
    # Unchanged names are served first: a new file with an odd name takes no id away.
    for path in sorted(paths, key=lambda path: (named[path].changed, *_rank(path))):
        ids[path] = next(name for name in _candidates(path, named[path]) if name.lower() not in taken)
        taken.add(ids[path].lower())
    return ids


@dataclass(frozen=True)
class _Named:
    """A path, spelled as an id."""

    text: str
    changed: bool
    """A character had to be replaced."""
    lost: bool
    """A letter or digit had no counterpart, so that other names may give the same text."""


def _legal(name: str) -> _Named:
    letters = [char for char in unicodedata.normalize("NFKD", name) if not unicodedata.combining(char)]
    text = re.sub(r"[^A-Za-z0-9._-]+", "_", "".join(letters))
    text = re.sub(r"^\.", "_", text)
    return _Named(text, changed=text != name, lost=any(char.isalnum() and not char.isascii() for char in letters))


def _candidates(path: PurePosixPath, named: _Named) -> Iterator[str]:
    """Possible ids of a file, the nicest first; the last ones are unique to it."""
    if not named.lost and is_legal(named.text):
        yield named.text
        if not named.changed and is_legal(with_suffix := named.text + path.suffix.lower()):
            yield with_suffix
    own = hashlib.sha256(str(path).encode()).hexdigest()
    for chars in (8, 32):  # 8 suffice, except for thousands of names in another script, which all become "_"
        yield f"{named.text[: MAX_CHARS - chars - 1]}-{own[:chars]}"


# -- words ------------------------------------------------------------------------------------------------------------


def _counted(left_out: Counter[str]) -> str:
    """``(left out: 3 .jpg, 1 .txt)``, the most frequent first; nothing for an empty folder."""
    if not left_out:
        return ""
    return f" (left out: {', '.join(f'{number} {suffix}' for suffix, number in left_out.most_common())})"


def _note(paths: list[PurePosixPath], ids: Mapping[PurePosixPath, str]) -> str:
    return " and ".join(f"{path} (clip {ids[path]})" for path in paths) + ": one name, so one source_video"
