"""Text files from users (manifests, configs, labels, transcripts): read completely, within limits."""

import errno
import os
import select
import stat
from pathlib import Path
from typing import Any

import yaml

MOST_BYTES = 16_000_000
"""Enough for a manifest of 60,000 clips or six hours of labels. Reading takes up to 200 times the file's size."""
WAIT_S = 10.0
"""How long a pipe may be silent: ``-c <(program)`` is read like a file, a pipe that nobody writes to is given up."""

MOST_DEPTH = 100
"""Nesting of lists and mappings; libyaml's own recursion ends the process at some ten thousand."""
MOST_REPEATED = 1_000_000
"""Values that the aliases of one YAML file expand to, in total."""


def read_bytes(path: Path) -> bytes:
    """The bytes of a file that should be small.

    Raises:
        OSError: as ``open`` does; also ``EFBIG`` for what is larger than ``MOST_BYTES`` or has no end (a device), and
            ``ETIMEDOUT`` for a pipe that gives nothing.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe would wait for somebody to fill it
    with open(descriptor, "rb", buffering=0) as file:
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        waiting = select.poll()
        waiting.register(descriptor, select.POLLIN)
        found = bytearray()
        while True:
            if not is_file and not waiting.poll(WAIT_S * 1000):
                raise TimeoutError(errno.ETIMEDOUT, f"a pipe that gave nothing for {WAIT_S:g} s", str(path))
            part = file.read(2**20)
            if not part:
                return bytes(found)
            found += part
            if len(found) > MOST_BYTES:
                raise OSError(errno.EFBIG, f"larger than {MOST_BYTES / 1e6:g} MB", str(path))


def read_text(path: Path) -> str:
    """The text of such a file, with ``\\n`` as the end of every line and without a byte order mark.

    Raises:
        OSError: as ``read_bytes``.
        UnicodeDecodeError: it is no UTF-8; ``start`` counts from the file's first byte.
    """
    data = read_bytes(path)
    text = data.decode().removeprefix("\ufeff")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def load_yaml(text: str) -> Any:  # noqa: ANN401 - whatever the text holds
    """The values of a YAML text, plain ones only.

    Raises:
        yaml.YAMLError: it is none, or ``refuse_bombs`` refuses it.
    """
    refuse_bombs(text, yaml.SafeLoader)
    return yaml.safe_load(text)


def refuse_bombs(text: str, loader: Any) -> None:  # noqa: ANN401 - pyyaml's loaders share no public base
    """Check a YAML text before anything is built from it.

    Raises:
        yaml.YAMLError: it is no YAML, or it is nested deeper than ``MOST_DEPTH``, names itself within itself, or its
            aliases stand for more than ``MOST_REPEATED`` values.
    """
    sizes: dict[str | None, int] = {}  # anchor -> values that it stands for
    open_: list[tuple[str | None, int]] = []  # (anchor, values before it) of lists and mappings around here
    values = repeated = 0
    for event in yaml.parse(text, Loader=loader):
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_):
                raise _refused(f"`*{event.anchor}` stands within what it names", event)
            size = sizes.get(event.anchor, 0)  # an unknown one is for the loader to refuse
            values, repeated = values + size, repeated + size
            if repeated > MOST_REPEATED:
                raise _refused(f"`*{event.anchor}` and the aliases before it repeat too many values", event)
        elif isinstance(event, yaml.ScalarEvent):
            values += 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            values += 1
            open_.append((event.anchor, values))
            if len(open_) > MOST_DEPTH:
                raise _refused(f"lists and mappings nested deeper than {MOST_DEPTH}", event)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_.pop()
            if anchor:
                sizes[anchor] = values - before + 1


def _refused(problem: str, event: yaml.Event) -> yaml.MarkedYAMLError:
    mark: Any = event.start_mark  # libyaml's is of a type of its own
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
