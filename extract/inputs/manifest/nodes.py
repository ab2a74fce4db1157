"""The YAML of a manifest, as nodes instead of values, because a node knows its line. Only this module imports yaml."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from extract import texts
from extract.errors import ManifestError

Node = yaml.Node

# The loaders that give every scalar as its text. pyyaml may lack libyaml; the slow ones read and write the same.
LOADER: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

HOW_TO_MAKE_ONE = "make one with `extract manifest folder DIR -o FILE`, or name another with `--manifest FILE`"

_TEXT_TAG = "tag:yaml.org,2002:str"
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})


def compose(path: Path, raw: bytes) -> Node:
    """Root node of a manifest's bytes.

    Raises:
        ManifestError: they are empty or no YAML; names the line.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ManifestError(f"{path}:{line}: not UTF-8 text; a manifest is a YAML file: {HOW_TO_MAKE_ONE}") from error
    try:
        texts.refuse_bombs(text, LOADER)
        root: Node | None = yaml.compose(text, Loader=LOADER)
    except yaml.reader.ReaderError as error:
        strange = yaml.reader.Reader.NON_PRINTABLE.search(text)
        before = text[: strange.start()] if strange else ""
        raise ManifestError(f"{path}:{before.count(chr(10)) + 1}: not YAML: {error.reason}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(part for part in (error.context, error.problem) if part)
        raise ManifestError(f"{path}:{mark.line + 1 if mark else 1}: not YAML: {what}") from error
    if root is None:
        raise ManifestError(
            f"{path}:1: the file is empty; expected `version: 1` and a list `clips:`; {HOW_TO_MAKE_ONE}"
        )
    return root


def dump(values: Any) -> str:  # noqa: ANN401 - mappings and lists of text and numbers
    """YAML of plain values, a key per line, in their order."""
    return str(yaml.dump(values, Dumper=DUMPER, sort_keys=False, allow_unicode=True, width=10_000))


# -- what a node is ---------------------------------------------------------------------------------------------------


def is_mapping(node: Node) -> bool:
    return isinstance(node, yaml.MappingNode)


def is_list(node: Node) -> bool:
    return isinstance(node, yaml.SequenceNode)


def is_scalar(node: Node) -> bool:
    return isinstance(node, yaml.ScalarNode)


def is_text(node: Node) -> bool:
    """A scalar without a tag, in quotes or not."""
    return isinstance(node, yaml.ScalarNode) and node.tag == _TEXT_TAG


def is_plain(node: Node) -> bool:
    """A scalar without quotes or tag: the only ones that may be a number or nothing."""
    return isinstance(node, yaml.ScalarNode) and not node.style and node.tag == _TEXT_TAG


def is_null(node: Node) -> bool:
    return is_plain(node) and node.value in _NULLS


def is_flow(node: Node) -> bool:
    """A list or mapping in brackets or braces."""
    return isinstance(node, yaml.CollectionNode) and bool(node.flow_style)


def described(node: Node) -> str:
    """What a node is, for a message: ``a list``, ``'1'``, ``'1' in quotes``."""
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if not isinstance(node, yaml.ScalarNode):
        return "a list"
    if node.tag != _TEXT_TAG:
        return f"tagged {node.tag}"
    return f"{node.value!r} in quotes" if node.style else repr(node.value)


# -- where a node is --------------------------------------------------------------------------------------------------


def line_of(node: Node) -> int:
    """Its first line, from 1."""
    return int(node.start_mark.line) + 1


def column_of(node: Node) -> int:
    """Its first column, from 0."""
    return int(node.start_mark.column)


def start_of(node: Node) -> int:
    """Position of its first character in the text, from 0."""
    return int(node.start_mark.index)


def end_of(node: Node) -> int:
    """Position behind its last character. A list or mapping over several lines has its end mark further down."""
    if isinstance(node, yaml.ScalarNode) or is_flow(node):
        return int(node.end_mark.index)
    parts: Sequence[Node] = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
    return max(map(end_of, parts))  # the target of an alias has its marks further up, where it was defined
