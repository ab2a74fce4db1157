"""The values of a manifest: from YAML nodes to text, numbers and paths, with every problem by its line."""

import contextlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from extract.errors import ManifestError
from extract.inputs.manifest.clip import Labels
from extract.inputs.manifest.nodes import Node, described, is_mapping, is_null, is_plain, is_scalar, is_text, line_of
from extract.inputs.manifest.paths import absolute
from extract.names import nearest

SHOWN_PROBLEMS = 100
"""Problems that a refusal lists: beyond them, the same one probably concerns every clip."""


@dataclass
class Problems:
    """What is wrong with a manifest, collected so that one run shows all of it."""

    path: Path
    found: dict[tuple[int, str], None] = field(default_factory=dict)

    def add(self, line: int, message: str) -> None:
        """Add a problem; the same one again changes nothing."""
        self.found[line, message] = None

    def raise_if_any(self) -> None:
        """Raise ``ManifestError`` with the first problems, one per line, if there are any."""
        if self.found:
            listed = [f"{self.path}:{line}: {message}" for line, message in sorted(self.found)]
            if len(listed) > SHOWN_PROBLEMS:
                listed[SHOWN_PROBLEMS:] = [f"and {len(listed) - SHOWN_PROBLEMS} more problems"]
            raise ManifestError("\n".join(listed))


@dataclass(frozen=True)
class Entry:
    """One ``key: value`` of a mapping."""

    line: int
    node: Node


def entries_of(node: Node, known: Collection[str], whose: str, problems: Problems) -> dict[str, Entry]:
    """Entries of a mapping by key; unknown and repeated keys are problems, null values count as absent."""
    if not is_mapping(node):
        problems.add(line_of(node), f"{whose} is {described(node)}; expected a mapping of {', '.join(known)}")
        return {}
    entries: dict[str, Entry] = {}
    first_line: dict[str, int] = {}
    for key_node, value_node in node.value:
        line, key = line_of(key_node), key_node.value
        if not is_scalar(key_node) or key not in known:
            name = key if isinstance(key, str) else described(key_node)
            problems.add(line, f"{whose} has an unknown key `{name}`; {_suggestion(name, known)}")
        elif key in first_line:
            problems.add(line, f"{whose} has `{key}` twice, first in line {first_line[key]}; keep one")
        else:
            first_line[key] = line
            if not is_null(value_node):
                entries[key] = Entry(line, value_node)
    return entries


def _suggestion(key: str, known: Collection[str]) -> str:
    near = nearest(key, known)
    return f"did you mean `{near}`?" if near else f"expected one of {', '.join(known)}"


def read_value(entry: Entry, key: str, base: Path, problems: Problems) -> Any:  # noqa: ANN401 - by its key
    """The value of a clip's ``key``; paths are seen from ``base``.

    Raises:
        ValueError: it is not what the key expects.
    """
    return _READERS.get(key, _text)(entry, key, base, problems)


def _text(entry: Entry, key: str, _base: Path, _problems: Problems) -> str:
    node = entry.node
    if not is_text(node):
        raise ValueError(f"{key} is {described(node)}; expected text")
    if "\0" in node.value:
        raise ValueError(f"{key} is {node.value!r}; expected text without a zero character")
    return str(node.value)


def _path(entry: Entry, key: str, base: Path, problems: Problems) -> Path:
    text = _text(entry, key, base, problems)
    if not text.strip():
        raise ValueError(f"{key} is empty; expected a path, or leave the key out")
    return absolute(Path(text), base)


def _number(entry: Entry, key: str, _base: Path, _problems: Problems) -> float:
    node = entry.node
    # By its digits, not by YAML's idea of them: 1:30 would be 90, 010 would be 8, and 1e3 a string.
    if is_plain(node):
        with contextlib.suppress(ValueError):
            return float(node.value)
    unit = "frames per second" if key == "fps" else "seconds"
    raise ValueError(f"{key} is {described(node)}; expected a number of {unit} such as 25 or 29.97")


def _labels(entry: Entry, key: str, base: Path, problems: Problems) -> Labels:
    entries = entries_of(entry.node, tuple(Labels.model_fields), key, problems)
    paths: dict[str, Path] = {}
    for name, part in entries.items():
        try:
            paths[name] = _path(part, f"{key}.{name}", base, problems)
        except ValueError as error:
            problems.add(part.line, str(error))
    return Labels(**paths)


_READERS: dict[str, Callable[[Entry, str, Path, Problems], Any]] = {
    **dict.fromkeys(("video", "crops", "audio", "transcript"), _path),
    **dict.fromkeys(("fps", "start_s", "end_s"), _number),
    "labels": _labels,
}
"""How the value of each key is read; the other keys hold text."""
