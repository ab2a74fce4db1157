"""The manifest: which recordings there are and what belongs to each. The only reader of that file.

    version: 1
    clips:
      - id: SN001            # also the clip's folder in the store
        video: SN001.mp4     # relative to the manifest
        labels: {au: SN001.csv}
        subject: 001

Text is taken as it stands: ``subject: 001`` is "001", ``id: yes`` is "yes" and ``id: 1e3`` is "1e3", where YAML alone
would read 1, true and a string. Only ``null``, ``~`` and nothing at all mean "not given"; a clip of such a name needs
quotes.
"""

import contextlib
import difflib
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator, model_validator

from extract import texts
from extract.errors import ManifestError, UsageError
from extract.files import LocalFiles
from extract.inputs.splits import Member, crossings
from extract.names import LEGAL, is_legal

SHOWN_PROBLEMS = 100
"""Broken rules that a refusal lists; what is wrong with every clip is plain before."""
SHOWN_CROSSINGS = 5
SHOWN_CLIPS = 3
"""Subjects in several splits, and clips of each, that a refusal lists."""

_MAKE_ONE = "make one with `extract manifest folder DIR -o FILE`, or name another with `--manifest FILE`"

# The loaders that give every scalar as its text. pyyaml may lack libyaml; the slow ones read and write the same.
_Loader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

_TEXT_TAG = "tag:yaml.org,2002:str"
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})


class Labels(BaseModel):
    """Label files of one clip, one row per video frame."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    au: Path | None = None
    """Action units; read by ``annotations.read_au``."""
    expr: Path | None = None
    """Expression; read by ``annotations.read_expr``."""


class Clip(BaseModel):
    """One entry of the manifest. Paths are absolute; that their files exist is for the run to find out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    """Name of the clip everywhere, and of its folder in the store."""
    video: Path | None = None
    """Movie: frames, their times, and the sound unless ``audio`` is given."""
    crops: Path | None = None
    """Folder of aligned face pictures named by frame number, which stand for the instance ``crop``."""
    fps: float | None = None
    """Frames per second of ``crops`` without a movie. A movie's own times are the truth."""
    audio: Path | None = None
    """Sound file that replaces the movie's own sound."""
    transcript: Path | None = None
    """Words with times: .srt, .vtt, .json as Whisper writes it, or .csv with the header ``word,start_s,end_s``."""
    labels: Labels = Labels()
    subject: str | None = None
    """Who is seen; a run refuses one subject in two splits. ``None``: not known."""
    source_video: str = ""
    """Recording that the clip was cut from; clips of one recording never lie in two splits. Default: the id."""
    split: Literal["train", "val", "test"] | None = None
    """``None``: not for fitting or testing. Who writes ``split: null`` keeps the clip out of ``--split-by``, too."""
    face: Literal["largest", "left", "right", "none"] = "largest"
    """Which face of several is the clip's; ``none`` leaves the visual instances empty."""
    start_s: float | None = None
    """Begin on the presentation clock, seconds, included. ``None``: from the first frame."""
    end_s: float | None = None
    """End on the presentation clock, seconds, excluded. ``None``: to the last frame."""

    @model_validator(mode="before")
    @classmethod
    def _own_source(cls, values: Any) -> Any:  # noqa: ANN401 - whatever the caller handed to Clip
        if isinstance(values, Mapping) and values.get("source_video") is None and "id" in values:
            return {**values, "source_video": values["id"]}
        return values

    @field_validator("id")
    @classmethod
    def _id_stays_in_the_store(cls, value: str) -> str:
        if not is_legal(value):
            raise ValueError(f"id {value!r} cannot name a folder of the store; expected {LEGAL}")
        return value

    @field_validator("subject", "source_video")
    @classmethod
    def _names_something(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and not value.strip():
            raise ValueError(f"{info.field_name} is empty; give a name or leave the key out")
        return value

    @field_validator("fps", "start_s", "end_s")
    @classmethod
    def _finite(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{info.field_name} is {value}; expected a finite number")
        return value

    @field_validator("fps")
    @classmethod
    def _fps_positive(cls, value: float | None) -> float | None:
        if value is not None and value <= 0:
            raise ValueError(f"fps is {value:g}; expected more than 0")
        return value

    @field_validator("end_s")
    @classmethod
    def _ends_after_start(cls, value: float | None, info: ValidationInfo) -> float | None:
        start_s = info.data.get("start_s") or 0.0
        if value is not None and value <= start_s:
            raise ValueError(f"end_s {value:g} is not after start_s {start_s:g}; the clip would be empty")
        return value

    @model_validator(mode="after")
    def _has_media(self) -> "Clip":
        given = [
            key for key in ("video", "crops", "audio", "fps", "start_s", "end_s") if getattr(self, key) is not None
        ]
        if (problem := _media_problem(given)) is not None:
            raise ValueError(problem)
        return self


def load_manifest(path: Path) -> tuple[Clip, ...]:
    """Read and check a manifest; the clips in the order of the file.

    Whether the files named exist is not looked at: a missing one is that clip's failure when it is run.

    Raises:
        ManifestError: the file is not there, is no YAML, or breaks a rule. Broken rules are listed, the first
            ``SHOWN_PROBLEMS``, one a line, as ``FILE:LINE: what was found, what is expected``.
    """
    return _parsed(path, _bytes(path))[1]


@dataclass(frozen=True)
class Place:
    """Where a clip stands in the text of its manifest. Positions count characters from 0, lines from 1."""

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
    """Span of the value of ``split`` where that key is there; an empty span where nothing stands behind it."""


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
    """Read a manifest for somebody who wants to add to its text.

    Args:
        raw: bytes to take for the file's.

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
        in_brackets=_is_flow(listed),
        dash=int(listed.start_mark.column),
    )


def refuse_shared(clips: Iterable[Clip], path: Path | None) -> None:
    """Refuse clips of one subject or recording in several splits: what is measured on them would flatter.

    Args:
        path: the manifest that they were read from, for its lines.

    Raises:
        ManifestError: names the first few, and what to do.
    """
    clips = tuple(clips)
    split_of = {clip.id: clip.split for clip in clips if clip.split is not None}
    found = crossings(members_of(clips), split_of)
    if not found:
        return
    lines: dict[str, str] = {}
    if path is not None:
        lines = {clip.id: f" (line {at.line})" for clip, at in read_document(path).entries()}

    def told(ids: Sequence[str]) -> str:
        more = f" and {len(ids) - SHOWN_CLIPS} more" if len(ids) > SHOWN_CLIPS else ""
        return ", ".join(f"{clip_id}{lines.get(clip_id, '')}" for clip_id in ids[:SHOWN_CLIPS]) + more

    listed = [
        f"  {crossing.shared}: " + "; ".join(f"{split}: {told(ids)}" for split, ids in crossing.clips.items())
        for crossing in found[:SHOWN_CROSSINGS]
    ]
    if len(found) > SHOWN_CROSSINGS:
        listed.append(f"  and {len(found) - SHOWN_CROSSINGS} more")
    raise ManifestError(
        "\n".join([
            f"{path or 'the clips'}: one subject or recording lies in several splits, so that scores would flatter:",
            *listed,
            "give all clips of each the same `split:`, or leave `subject:` out where nobody knows it; "
            "`--allow-shared-subjects` takes them as they are",
        ])
    )


def members_of(clips: Iterable[Clip]) -> list[Member]:
    """What decides which of the clips belong together."""
    return [Member(clip.id, clip.source_video, clip.subject) for clip in clips]


def write_manifest(path: Path, clips: Iterable[Clip], comment: str = "", *, new: bool = False) -> None:
    """Write clips as a manifest that ``load_manifest`` reads back to equal clips; an existing file is replaced whole.

    A path is written relative to the manifest when the two share a folder below the root of the file system, so that
    both can be moved together; else it is absolute. ``comment`` goes on top, each line behind a ``#``.

    Args:
        new: refuse an existing file.

    Raises:
        ManifestError: no clips, or two of one id.
        UsageError: ``path`` is a folder, or there already and ``new``; or a recording's name is no text.
        MachineError: the disk is full, read-only or gone.
    """
    clips = tuple(clips)
    _refuse_folder(path)
    if not clips:
        raise ManifestError(f"{path}: no clips to write; a manifest holds at least one")
    seen: dict[str, str] = {}
    for clip in clips:
        if (other := seen.get(clip.id.lower())) is not None:
            raise ManifestError(f"{path}: two clips with the ids {other!r} and {clip.id!r}; {_ONE_FOLDER}")
        seen[clip.id.lower()] = clip.id
    folder = _real_folder(path)
    document = {"version": 1, "clips": [_written(clip, folder) for clip in clips]}
    header = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
    try:
        body = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)
        content = (header + body).encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{path}: a file's name is no UTF-8 text ({error.object!r}); rename that file") from error
    files = LocalFiles(path.parent)
    if not new:
        files.write(path.name, content)
    elif not files.create(path.name, content):
        raise _there(path)


def refuse_existing(path: Path) -> None:
    """Refuse to write a new manifest where something is: somebody may have edited it.

    Raises:
        UsageError: there is.
    """
    _refuse_folder(path)
    if os.path.lexists(path):
        raise _there(path)


def _there(path: Path) -> UsageError:
    return UsageError(
        f"{path}: is there already and may have been edited; add what is new to it with `--update`, "
        "or name another file with `-o FILE`"
    )


def _refuse_folder(path: Path) -> None:
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name a file with `-o FILE`")


def written_entry(clip: Clip, path: Path) -> str:
    """The lines that stand for a clip in the manifest ``path``, without dash or indentation."""
    entry = _written(clip, _real_folder(path))
    return str(yaml.dump(entry, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000))


def absolute(path: str | Path, base: Path) -> Path:
    """``path`` seen from the folder ``base`` (absolute, without links), without ``..`` in front.

    Only leading ``..`` are worked off: behind a folder that may be a link, dropping ``x/..`` would name another file.
    """
    text = os.fspath(path)
    while text == ".." or text.startswith("../"):
        base, text = base.parent, text[2:].lstrip("/")
    return Path(os.path.join(base, text))  # one parse instead of two: manifests hold thousands


# -- reading: YAML nodes instead of values, because a node knows its line ---------------------------------------------


@dataclass
class _Problems:
    """What is wrong with a manifest, gathered so that one run shows all of it."""

    path: Path
    found: dict[tuple[int, str], None] = field(default_factory=dict)

    def add(self, line: int, message: str) -> None:
        self.found[line, message] = None

    def raise_if_any(self) -> None:
        if self.found:
            listed = [f"{self.path}:{line}: {message}" for line, message in sorted(self.found)]
            if len(listed) > SHOWN_PROBLEMS:
                listed[SHOWN_PROBLEMS:] = [f"and {len(listed) - SHOWN_PROBLEMS} more of the kind"]
            raise ManifestError("\n".join(listed))


@dataclass(frozen=True)
class _Entry:
    """One ``key: value`` of a mapping."""

    line: int
    node: yaml.Node


def _parsed(path: Path, raw: bytes) -> tuple[yaml.Node, tuple[Clip, ...]]:
    """Root node and clips of a manifest without fault."""
    problems = _Problems(path)
    root = _document(path, raw)
    fields = _entries(root, ("version", "clips"), "the manifest", problems)
    if not isinstance(root, yaml.MappingNode):
        problems.raise_if_any()
    _check_version(fields, problems)
    clips = _clips(fields, _real_folder(path), problems)
    problems.raise_if_any()
    return root, clips


def _bytes(path: Path) -> bytes:
    try:
        return texts.read_bytes(path)
    except FileNotFoundError as error:
        raise ManifestError(f"{path}: no such manifest; {_MAKE_ONE}") from error
    except OSError as error:
        raise ManifestError(f"{path}: cannot read the manifest ({error.strerror}); {_MAKE_ONE}") from error


def _document(path: Path, raw: bytes) -> yaml.Node:
    """Root node of the file."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ManifestError(f"{path}:{line}: not UTF-8 text; a manifest is a YAML file: {_MAKE_ONE}") from error
    try:
        texts.refuse_bombs(text, _Loader)
        root: yaml.Node | None = yaml.compose(text, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        strange = yaml.reader.Reader.NON_PRINTABLE.search(text)
        before = text[: strange.start()] if strange else ""
        raise ManifestError(f"{path}:{before.count(chr(10)) + 1}: not YAML: {error.reason}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(part for part in (error.context, error.problem) if part)
        raise ManifestError(f"{path}:{mark.line + 1 if mark else 1}: not YAML: {what}") from error
    if root is None:
        raise ManifestError(f"{path}:1: the file is empty; expected `version: 1` and a list `clips:`; {_MAKE_ONE}")
    return root


def _place(node: yaml.Node) -> Place:
    values = {key.value: value for key, value in node.value}
    split = values.get("split")
    return Place(
        line=_line(node),
        indent=int(node.start_mark.column),
        in_braces=_is_flow(node),
        after_id=int(values["id"].end_mark.index),
        end=_end(node),
        split=None if split is None else (int(split.start_mark.index), int(split.end_mark.index)),
    )


def _end(node: yaml.Node) -> int:
    """Position behind the last character of a node. A list or mapping on lines of its own has its mark further down."""
    if isinstance(node, yaml.ScalarNode) or _is_flow(node):
        return int(node.end_mark.index)
    parts = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
    return max(map(_end, parts))  # what an alias stands for has its marks further up, where it was named


def _is_flow(node: yaml.Node) -> bool:
    return isinstance(node, yaml.CollectionNode) and bool(node.flow_style)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.ScalarNode):
        return f"{node.value!r} in quotes" if node.style else repr(node.value)
    return "a list"


def _is_plain(node: yaml.Node) -> bool:
    """A scalar without quotes or tag: the only ones that may be a number or nothing."""
    return isinstance(node, yaml.ScalarNode) and not node.style and node.tag == _TEXT_TAG


def _is_null(node: yaml.Node) -> bool:
    return _is_plain(node) and node.value in _NULLS


def _entries(node: yaml.Node, known: Collection[str], whose: str, problems: _Problems) -> dict[str, _Entry]:
    """Entries of a mapping by key; unknown and repeated keys are problems, null values are as good as absent."""
    if not isinstance(node, yaml.MappingNode):
        problems.add(_line(node), f"{whose} is {_kind(node)}; expected a mapping of {', '.join(known)}")
        return {}
    entries: dict[str, _Entry] = {}
    first_line: dict[str, int] = {}
    for key_node, value_node in node.value:
        line, key = _line(key_node), key_node.value
        if not isinstance(key_node, yaml.ScalarNode) or key not in known:
            name = key if isinstance(key, str) else _kind(key_node)
            problems.add(line, f"{whose} has an unknown key `{name}`; {_suggestion(name, known)}")
        elif key in first_line:
            problems.add(line, f"{whose} has `{key}` twice, first in line {first_line[key]}; keep one")
        else:
            first_line[key] = line
            if not _is_null(value_node):
                entries[key] = _Entry(line, value_node)
    return entries


def _suggestion(key: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"did you mean `{close[0]}`?" if close else f"expected one of {', '.join(known)}"


def _check_version(fields: Mapping[str, _Entry], problems: _Problems) -> None:
    if "version" not in fields:
        problems.add(1, "the manifest has no `version`; expected `version: 1`")
        return
    entry = fields["version"]
    if not _is_plain(entry.node) or entry.node.value != "1":
        problems.add(entry.line, f"version is {_kind(entry.node)}; this program reads `version: 1`")


def _clips(fields: Mapping[str, _Entry], base: Path, problems: _Problems) -> tuple[Clip, ...]:
    if "clips" not in fields:
        problems.add(1, "the manifest has no `clips`; expected a list of them, each beginning with `- id:`")
        return ()
    entry = fields["clips"]
    if not isinstance(entry.node, yaml.SequenceNode):
        problems.add(entry.line, f"clips is {_kind(entry.node)}; expected a list, each entry beginning with `- id:`")
        return ()
    if not entry.node.value:
        problems.add(entry.line, f"clips is an empty list; expected at least one clip; {_MAKE_ONE}")
    first_line: dict[str, tuple[int, str]] = {}
    clips = [_clip(node, base, first_line, problems) for node in entry.node.value]
    return tuple(clip for clip in clips if clip is not None)


_ONE_FOLDER = "each clip needs a folder of its own in the store, also where capital and small letters are one"


def _clip(node: yaml.Node, base: Path, first_line: dict[str, tuple[int, str]], problems: _Problems) -> Clip | None:
    """One clip, or ``None`` when something about it is wrong; ``first_line`` remembers the ids met so far."""
    if not isinstance(node, yaml.MappingNode):
        problems.add(_line(node), f"a clip is {_kind(node)}; expected a mapping that begins with `- id:`")
        return None
    entries = _entries(node, tuple(Clip.model_fields), "the clip", problems)
    values: dict[str, Any] = {}
    for key, entry in entries.items():
        try:
            values[key] = _READERS.get(key, _text)(entry, key, base, problems)
        except ValueError as error:
            problems.add(entry.line, str(error))
    line = _line(node)
    if "id" not in entries:
        problems.add(line, "the clip has no `id`; expected a name (in quotes if the name is null)")
    elif isinstance(clip_id := values.get("id"), str):
        id_line, folder = entries["id"].line, clip_id.lower()
        if folder in first_line:
            other_line, other = first_line[folder]
            same = "is that" if other == clip_id else f"differs only in case from {other!r}"
            problems.add(id_line, f"id {clip_id!r} {same} of line {other_line}; {_ONE_FOLDER}")
        else:
            first_line[folder] = (id_line, clip_id)
    if (problem := _media_problem(entries)) is not None:
        problems.add(line, problem)
    try:
        return Clip.model_validate(values)
    except ValidationError as error:
        for found in error.errors():
            key = str(found["loc"][0]) if found["loc"] else ""
            # A value that could not be read is reported already; so is what follows from its absence.
            if key in values:
                problems.add(entries[key].line, _said(key, found))
        return None


def _media_problem(given: Collection[str]) -> str | None:
    """What the keys of a clip lack to make a recording, or ``None``."""
    if not {"video", "crops", "audio"} & set(given):
        return "the clip names no recording; expected at least one of video, crops, audio"
    if "crops" in given and {"start_s", "end_s"} & set(given):
        return "start_s and end_s cut a movie; crops are numbered by its whole frames: leave one of them out"
    if "crops" in given and not {"video", "fps"} & set(given):
        return "crops have no times of their own; expected `video` (the movie they come from) or `fps`"
    return None


def _said(key: str, found: Mapping[str, Any]) -> str:
    """Pydantic's finding in our words."""
    context = found.get("ctx", {})
    if found["type"] == "value_error":
        return str(context["error"])
    if found["type"] == "literal_error":
        return f"{key} is {found['input']!r}; expected {context['expected']}"
    return f"{key} is {found['input']!r}: {found['msg']}"


def _text(entry: _Entry, key: str, _base: Path, _problems: _Problems) -> str:
    node = entry.node
    if not isinstance(node, yaml.ScalarNode) or node.tag != _TEXT_TAG:
        what = f"tagged {node.tag}" if isinstance(node, yaml.ScalarNode) else _kind(node)
        raise ValueError(f"{key} is {what}; expected text")
    if "\0" in node.value:
        raise ValueError(f"{key} is {node.value!r}; expected text without a zero character")
    return str(node.value)


def _path(entry: _Entry, key: str, base: Path, problems: _Problems) -> Path:
    text = _text(entry, key, base, problems)
    if not text.strip():
        raise ValueError(f"{key} is empty; expected a path, or leave the key out")
    return absolute(Path(text), base)


def _number(entry: _Entry, key: str, _base: Path, _problems: _Problems) -> float:
    node = entry.node
    # By its digits, not by YAML's idea of them: 1:30 would be 90, 010 would be 8, and 1e3 a string.
    if _is_plain(node):
        with contextlib.suppress(ValueError):
            return float(node.value)
    unit = "frames per second" if key == "fps" else "seconds"
    raise ValueError(f"{key} is {_kind(node)}; expected a number of {unit} such as 25 or 29.97")


def _labels(entry: _Entry, key: str, base: Path, problems: _Problems) -> Labels:
    entries = _entries(entry.node, tuple(Labels.model_fields), key, problems)
    paths: dict[str, Path] = {}
    for name, part in entries.items():
        try:
            paths[name] = _path(part, f"{key}.{name}", base, problems)
        except ValueError as error:
            problems.add(part.line, str(error))
    return Labels(**paths)


_READERS: dict[str, Callable[[_Entry, str, Path, _Problems], Any]] = {
    **dict.fromkeys(("video", "crops", "audio", "transcript"), _path),
    **dict.fromkeys(("fps", "start_s", "end_s"), _number),
    "labels": _labels,
}
"""How each key's value is read; keys that are not here hold text."""


# -- writing ----------------------------------------------------------------------------------------------------------


def _real_folder(path: Path) -> Path:
    """Folder of the manifest without links, so that its ``..`` are where the operating system finds them."""
    return Path(os.path.realpath(path.parent))


def _written(clip: Clip, folder: Path) -> dict[str, Any]:
    """What a clip's entry holds: no defaults, paths as text."""
    entry: dict[str, Any] = {"id": clip.id}
    for key in Clip.model_fields:
        value = getattr(clip, key)
        if value is None or key == "id" or (key == "source_video" and value == clip.id):
            continue
        if key == "labels":
            paths = {name: getattr(value, name) for name in Labels.model_fields}
            if kept := {name: _written_path(path, folder) for name, path in paths.items() if path is not None}:
                entry[key] = kept
        elif isinstance(value, Path):
            entry[key] = _written_path(value, folder)
        elif value != Clip.model_fields[key].default:
            entry[key] = value
    return entry


def _written_path(path: Path, folder: Path) -> str:
    path = absolute(path, Path.cwd())
    shared = os.path.commonpath([path, folder])
    # `..` inside the path stays as it is, absolute: behind a link it cannot be worked off by its letters.
    if shared == path.anchor or ".." in path.parts:
        return str(path)
    return os.path.relpath(path, folder)
