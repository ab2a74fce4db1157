"""Names: which may become folders of a store (clips, instances, arrays), and what a misspelt one was meant to be."""

import difflib
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


def suggestion(name: str, known: Iterable[str]) -> str:
    """The nearest of the known names, else all of them."""
    near = nearest(name, known)
    return f"did you mean {near!r}?" if near else f"known: {', '.join(known)}"


def nearest(name: str, known: Iterable[str], similarity: float = 0.6) -> str | None:
    """The known name that ``name`` is most likely a misspelling of, if one is at least so similar (0 to 1)."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=similarity)
    return near[0] if near else None
