"""Inserts clips and splits into the text of a manifest; every character that was there stays.

The result is read back before it is written. A form of YAML that cannot be extended safely is refused.
"""

import codecs
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path

from extract.errors import ManifestError
from extract.files import LocalFiles
from extract.inputs.manifest.clip import Clip
from extract.inputs.manifest.reading import Document, Place, read_document
from extract.inputs.manifest.writing import written_entry

_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
"""What ends a line of YAML."""


def with_splits(clips: Iterable[Clip], split_of: Mapping[str, str]) -> tuple[Clip, ...]:
    """The clips, with the splits that ``split_of`` (clip -> split) gives them."""
    return tuple(
        clip.model_copy(update={"split": split_of[clip.id]}) if clip.id in split_of else clip for clip in clips
    )


def extend(path: Path, document: Document, added: Sequence[Clip], splits: Mapping[str, str]) -> None:
    """Insert clips behind those of the manifest, and ``splits`` (clip -> split) into entries that have none.

    Raises:
        ManifestError: the form of the manifest cannot be extended, or its file changed since it was read.
    """
    if not added and not splits:
        return
    mark = codecs.BOM_UTF8 if document.raw.startswith(codecs.BOM_UTF8) else b""
    text = document.raw.removeprefix(mark).decode()
    edits = [_split_edit(text, place, splits[clip.id]) for clip, place in document.entries() if clip.id in splits]
    if added:
        edits.append(_clips_edit(path, text, document, added))
    parts, done = [], 0
    for position, what in sorted(edits, key=itemgetter(0)):
        parts += [text[done:position], what]
        done = position
    raw = mark + "".join([*parts, text[done:]]).encode()
    try:
        as_meant = read_document(path, raw).clips == (*with_splits(document.clips, splits), *added)
    except ManifestError:
        as_meant = False
    if not as_meant:
        raise ManifestError(
            f"{path}: its YAML has a form that cannot be extended without changing what it means; write its clips as "
            "`- id:` entries with one key per line, or make another manifest with `-o FILE`. Nothing was changed"
        )
    target = Path(os.path.realpath(path))  # a link stays one
    mode = stat.S_IMODE(target.stat().st_mode)
    if target.read_bytes() != document.raw:
        raise ManifestError(f"{path}: was changed by another program meanwhile; run the same command again")
    LocalFiles(target.parent).write(target.name, raw)
    target.chmod(mode)


def _split_edit(text: str, place: Place, split: str) -> tuple[int, str]:
    """Where to insert a split into the text, and what."""
    if place.split is not None:  # `split:` without a value
        return place.split[0], f" {split}"
    if place.in_braces:
        return place.after_id, f", split: {split}"
    return _new_lines(text, _after_line(text, place.end), [f"{' ' * place.indent}split: {split}"])


def _clips_edit(path: Path, text: str, document: Document, added: Sequence[Clip]) -> tuple[int, str]:
    """Where to insert clips into the text, and what."""
    if document.in_brackets:
        raise ManifestError(
            f"{path}: its clips are written in brackets, `clips: [...]`, which cannot be extended; write them as a "
            "list of `- id:` entries, or make another manifest with `-o FILE`. Nothing was changed"
        )
    last = document.places[-1]
    position = _after_line(text, last.end)
    below = [line.strip() for line in _BREAK.split(text[position:])]
    if all(not line or line.startswith("#") for line in below):
        position = len(text)  # comments below the last clip stay below it
    dash = f"{' ' * document.dash}-".ljust(max(last.indent, document.dash + 2))
    lines: list[str] = []
    for clip in added:
        first, *others = written_entry(clip, path).rstrip("\n").split("\n")
        lines += [dash + first, *(" " * len(dash) + line if line else "" for line in others)]
    return _new_lines(text, position, lines)


def _after_line(text: str, position: int) -> int:
    """Beginning of the line below ``position``, or the end of the text."""
    if position and _BREAK.fullmatch(text[position - 1]):  # a text block ends with its line
        return position
    found = _BREAK.search(text, position)
    return found.end() if found else len(text)


def _new_lines(text: str, position: int, lines: Sequence[str]) -> tuple[int, str]:
    """Insert lines at the beginning of a line, or behind a last line that has no line break."""
    found = _BREAK.search(text)
    end = found[0] if found else "\n"
    if position and not _BREAK.fullmatch(text[position - 1]):
        return position, "".join(end + line for line in lines)
    return position, "".join(line + end for line in lines)
