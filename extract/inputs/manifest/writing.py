"""Writes clips as a manifest."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from extract.errors import ManifestError, UsageError
from extract.files import LocalFiles
from extract.inputs.manifest import nodes
from extract.inputs.manifest.clip import Clip, Labels
from extract.inputs.manifest.paths import as_written, real_folder
from extract.inputs.manifest.reading import ONE_FOLDER


def write_manifest(path: Path, clips: Iterable[Clip], comment: str = "", *, new: bool = False) -> None:
    """Write clips as a manifest that ``load_manifest`` reads back to equal clips; an existing file is replaced whole.

    A path is written relative to the manifest when the two share a folder below the root of the file system, so that
    both can be moved together; else it is absolute. ``comment`` goes on top, a ``#`` before each line.

    Args:
        new: refuse an existing file.

    Raises:
        ManifestError: no clips, or two with the same id.
        UsageError: ``path`` is a folder, or exists and ``new`` is set; or the name of a recording is no text.
        MachineError: the disk is full, read-only or gone.
    """
    clips = tuple(clips)
    _refuse_folder(path)
    if not clips:
        raise ManifestError(f"{path}: no clips to write; a manifest holds at least one")
    seen: dict[str, str] = {}
    for clip in clips:
        if (other := seen.get(clip.id.lower())) is not None:
            raise ManifestError(f"{path}: two clips with the ids {other!r} and {clip.id!r}; {ONE_FOLDER}")
        seen[clip.id.lower()] = clip.id
    folder = real_folder(path)
    header = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
    try:
        content = (header + nodes.dump({"version": 1, "clips": [_values(clip, folder) for clip in clips]})).encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{path}: the name of a file is not UTF-8 text ({error.object!r}); rename that file"
        ) from error
    files = LocalFiles(path.parent)
    if not new:
        files.write(path.name, content)
    elif not files.create(path.name, content):
        raise _exists(path)


def written_entry(clip: Clip, path: Path) -> str:
    """The lines of a clip in the manifest ``path``, without dash or indentation."""
    return nodes.dump(_values(clip, real_folder(path)))


def refuse_existing(path: Path) -> None:
    """Refuse to write a new manifest over an existing file: a person may have edited it.

    Raises:
        UsageError: it exists.
    """
    _refuse_folder(path)
    if os.path.lexists(path):
        raise _exists(path)


def _exists(path: Path) -> UsageError:
    return UsageError(
        f"{path}: already exists and may have been edited; add what is new to it with `--update`, "
        "or name another file with `-o FILE`"
    )


def _refuse_folder(path: Path) -> None:
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name a file with `-o FILE`")


def _values(clip: Clip, folder: Path) -> dict[str, Any]:
    """What a clip's entry holds: no defaults, paths as text."""
    entry: dict[str, Any] = {"id": clip.id}
    for key in Clip.model_fields:
        value = getattr(clip, key)
        if value is None or key == "id" or (key == "source_video" and value == clip.id):
            continue
        if key == "labels":
            paths = {name: getattr(value, name) for name in Labels.model_fields}
            if kept := {name: as_written(path, folder) for name, path in paths.items() if path is not None}:
                entry[key] = kept
        elif isinstance(value, Path):
            entry[key] = as_written(value, folder)
        elif value != Clip.model_fields[key].default:
            entry[key] = value
    return entry
