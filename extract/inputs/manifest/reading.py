"""Reads and checks a manifest. The only reader of that file."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from extract import texts
from extract.errors import ManifestError
from extract.inputs.manifest import nodes
from extract.inputs.manifest.clip import Clip, media_problem
from extract.inputs.manifest.nodes import HOW_TO_MAKE_ONE, Node, described, line_of
from extract.inputs.manifest.paths import real_folder
from extract.inputs.manifest.values import Entry, Problems, entries_of, read_value

ONE_FOLDER = "each clip needs a folder of its own in the store, on file systems that ignore case, too"


def load_manifest(path: Path) -> tuple[Clip, ...]:
    """Read and check a manifest; the clips in the order of the file.

    Whether the files that it names exist is not checked: a missing one fails its clip when it is run.

    Raises:
        ManifestError: the file does not exist, is no YAML, or breaks a rule. Broken rules are listed, the first
            ``values.SHOWN_PROBLEMS``, one per line, as ``FILE:LINE: what was found, what is expected``.
    """
    return _parsed(path, _bytes(path))[1]


@dataclass(frozen=True)
class Place:
    """Where a clip is in the text of its manifest. Positions count characters from 0, lines from 1."""

    line: int
    indent: int
    """Column of its first key, from 0."""
    in_braces: bool
    """Written as ``{id: a, video: a.mp4}``."""
    after_id: int
    """Position behind the value of ``id``."""
    end: int
    """Position behind the last value."""
    split: tuple[int, int] | None
    """Span of the value of ``split`` where that key exists; the span is empty where it has no value."""


@dataclass(frozen=True)
class Document:
    """A manifest, read together with its text."""

    raw: bytes
    clips: tuple[Clip, ...]
    places: tuple[Place, ...]
    """Of the clips, in their order."""
    in_brackets: bool
    """The list is written as ``clips: [...]``."""
    dash: int
    """Column of the list's dashes, from 0."""

    def entries(self) -> Iterator[tuple[Clip, Place]]:
        """The clips, each with its place."""
        return zip(self.clips, self.places, strict=True)


def read_document(path: Path, raw: bytes | None = None) -> Document:
    """Read a manifest whose text is to be changed.

    Args:
        raw: bytes to read in place of the file's.

    Raises:
        ManifestError: as ``load_manifest``.
    """
    raw = _bytes(path) if raw is None else raw
    root, clips = _parsed(path, raw)
    listed = next(value for key, value in root.value if key.value == "clips")
    return Document(
        raw=raw,
        clips=clips,
        places=tuple(_place(node) for node in listed.value),
        in_brackets=nodes.is_flow(listed),
        dash=nodes.column_of(listed),
    )


def _place(node: Node) -> Place:
    values = {key.value: value for key, value in node.value}
    split = values.get("split")
    return Place(
        line=line_of(node),
        indent=nodes.column_of(node),
        in_braces=nodes.is_flow(node),
        after_id=int(values["id"].end_mark.index),
        end=nodes.end_of(node),
        split=None if split is None else (nodes.start_of(split), int(split.end_mark.index)),
    )


def _bytes(path: Path) -> bytes:
    try:
        return texts.read_bytes(path)
    except FileNotFoundError as error:
        raise ManifestError(f"{path}: no such manifest; {HOW_TO_MAKE_ONE}") from error
    except OSError as error:
        raise ManifestError(f"{path}: cannot read the manifest ({error.strerror}); {HOW_TO_MAKE_ONE}") from error


def _parsed(path: Path, raw: bytes) -> tuple[Node, tuple[Clip, ...]]:
    """Root node and clips of a manifest without problems."""
    problems = Problems(path)
    root = nodes.compose(path, raw)
    fields = entries_of(root, ("version", "clips"), "the manifest", problems)
    if not nodes.is_mapping(root):
        problems.raise_if_any()
    _check_version(fields, problems)
    clips = _clips(fields, real_folder(path), problems)
    problems.raise_if_any()
    return root, clips


def _check_version(fields: Mapping[str, Entry], problems: Problems) -> None:
    if "version" not in fields:
        problems.add(1, "the manifest has no `version`; expected `version: 1`")
        return
    entry = fields["version"]
    if not nodes.is_plain(entry.node) or entry.node.value != "1":
        problems.add(entry.line, f"version is {described(entry.node)}; this program reads `version: 1`")


def _clips(fields: Mapping[str, Entry], base: Path, problems: Problems) -> tuple[Clip, ...]:
    if "clips" not in fields:
        problems.add(1, "the manifest has no `clips`; expected a list of them, each beginning with `- id:`")
        return ()
    node = fields["clips"].node
    if not nodes.is_list(node):
        message = f"clips is {described(node)}; expected a list, each entry beginning with `- id:`"
        problems.add(fields["clips"].line, message)
        return ()
    if not node.value:
        message = f"clips is an empty list; expected at least one clip; {HOW_TO_MAKE_ONE}"
        problems.add(fields["clips"].line, message)
    first_line: dict[str, tuple[int, str]] = {}
    clips = [_clip(item, base, first_line, problems) for item in node.value]
    return tuple(clip for clip in clips if clip is not None)


def _clip(node: Node, base: Path, first_line: dict[str, tuple[int, str]], problems: Problems) -> Clip | None:
    """One clip, or ``None`` if something about it is wrong; ``first_line`` collects the ids seen so far."""
    if not nodes.is_mapping(node):
        problems.add(line_of(node), f"a clip is {described(node)}; expected a mapping that begins with `- id:`")
        return None
    entries = entries_of(node, tuple(Clip.model_fields), "the clip", problems)
    values: dict[str, Any] = {}
    for key, entry in entries.items():
        try:
            values[key] = read_value(entry, key, base, problems)
        except ValueError as error:
            problems.add(entry.line, str(error))
    line = line_of(node)
    if "id" not in entries:
        problems.add(line, "the clip has no `id`; expected a name (in quotes if the name is null)")
    elif isinstance(clip_id := values.get("id"), str):
        _check_repeated(clip_id, entries["id"].line, first_line, problems)
    if (problem := media_problem(entries)) is not None:
        problems.add(line, problem)
    try:
        return Clip.model_validate(values)
    except ValidationError as error:
        for found in error.errors():
            key = str(found["loc"][0]) if found["loc"] else ""
            # A value that could not be read is reported already; so is what follows from its absence.
            if key in values:
                problems.add(entries[key].line, _message(key, found))
        return None


def _check_repeated(clip_id: str, line: int, first_line: dict[str, tuple[int, str]], problems: Problems) -> None:
    folder = clip_id.lower()
    if folder not in first_line:
        first_line[folder] = (line, clip_id)
        return
    other_line, other = first_line[folder]
    if other == clip_id:
        problems.add(line, f"id {clip_id!r} is already used in line {other_line}; {ONE_FOLDER}")
    else:
        problems.add(line, f"id {clip_id!r} differs only in case from {other!r} of line {other_line}; {ONE_FOLDER}")


def _message(key: str, found: Mapping[str, Any]) -> str:
    """A finding of pydantic in our words."""
    context = found.get("ctx", {})
    if found["type"] == "value_error":
        return str(context["error"])
    if found["type"] == "literal_error":
        return f"{key} is {found['input']!r}; expected {context['expected']}"
    return f"{key} is {found['input']!r}: {found['msg']}"
