"""Names that become folders of a store: of clips, instances, arrays."""

import re
from collections.abc import Iterable

MAX_CHARS = 120
RESERVED = frozenset({"zarr.json"})
"""Legal by their letters, but the store keeps a file of its own under that name."""

LEGAL = f"1 to {MAX_CHARS} of A-Z a-z 0-9 . _ -, no dot first, and not {' or '.join(sorted(RESERVED))}"
"""What a message says is expected."""

_LEGAL = re.compile(rf"[A-Za-z0-9_-][A-Za-z0-9._-]{{0,{MAX_CHARS - 1}}}")


def is_legal(text: str) -> bool:
    """Whether it names one folder directly below its parent, on every file system."""
    return _LEGAL.fullmatch(text) is not None and text.lower() not in RESERVED


def only_legal(found: Iterable[str]) -> list[str]:
    """The names that can be ours; whatever bears another one was put there by somebody else."""
    return [name for name in found if is_legal(name)]
