"""Weights are hashed once per file: the hash is remembered, in this process and for later runs.

A hash is believed while the file's stamp is the same: inode, size, times of the last change of content and of anything.
As git does it, no hash is remembered of a file that was changed shortly before it was read: file systems keep coarse
times, and a second change within the same tick would leave no trace.
"""

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from extract.errors import ForeignError, MachineError, UsageError
from extract.files import LocalFiles
from extract.weights.files import cache_folder, file_sha256, path_sha256

log = logging.getLogger(__name__)

MEMO = "hashes.json"
"""Below the cache folder: ``{path: [inode, size, mtime_ns, ctime_ns, sha256]}``."""
SETTLED_S = 2.0
"""A file that changed less than this before it was read may change again unseen."""
WORTH_A_NOTE = 1 << 24
"""Bytes of a file (16 MB) from which on its hash is kept for later runs; smaller ones take a few milliseconds."""
MOST_NOTED = 1 << 20
"""Bytes of a memo that is read (1 MB): thousands of files; a larger one is none of ours."""

Stamp = tuple[int, int, int, int]
"""Inode, size, mtime_ns, ctime_ns. The last one is the kernel's own: no program can set it back."""

_seen: dict[Path, tuple[Stamp, str]] = {}
"""Absolute path -> what this process knows."""


def remembered_sha256(path: Path, cache: Path | None = None) -> str:
    """``path_sha256`` of a file or folder; bytes are read only of files that are new or changed.

    Args:
        cache: folder of the memo, ``cache_folder()`` when absent. Where it does not exist, only this process remembers.
    """
    if cache is None:
        try:
            cache = cache_folder()
        except UsageError:  # a user without a home can do without the memo
            cache = None
    return path_sha256(path, lambda file: _sha256(file, cache))


def _sha256(file: Path, cache: Path | None) -> str:
    path = Path(os.path.abspath(file))
    stamp = _stamp(path)
    if stamp[1] < WORTH_A_NOTE:
        cache = None
    known = _seen.get(path) or (_read(cache).get(path) if cache else None)
    if known is not None and known[0] == stamp:
        _seen[path] = known
        return known[1]
    began_s = time.time()
    sha256 = file_sha256(path)
    changed_s = max(stamp[2], stamp[3]) / 1e9
    if began_s - changed_s >= SETTLED_S:
        _seen[path] = (stamp, sha256)
        if cache is not None:
            _note(path, cache)
    return sha256


def _stamp(path: Path) -> Stamp:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read(cache: Path) -> Mapping[Path, tuple[Stamp, str]]:
    """The memo; nothing where there is none or it is damaged: it saves time, no more."""
    memo = cache / MEMO
    try:
        if memo.stat().st_size > MOST_NOTED:
            return {}
        found = json.loads(memo.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {Path(path): ((*entry[:4],), entry[4]) for path, entry in found.items() if _is_entry(entry)}


def _is_entry(entry: Any) -> bool:  # noqa: ANN401 - anything that JSON can hold
    return (
        isinstance(entry, list)
        and [type(value) for value in entry] == [int, int, int, int, str]
        and len(entry[4]) == 64
    )


def _note(path: Path, cache: Path) -> None:
    """Add a file to the memo and drop those that are gone. Of two runs that write at once, one has the last word."""
    if not cache.is_dir():
        return
    entries = {**_read(cache), path: _seen[path]}
    there = {str(file): [*stamp, sha256] for file, (stamp, sha256) in entries.items() if os.path.isfile(file)}
    try:
        LocalFiles(cache).write(MEMO, json.dumps(there, indent=1, sort_keys=True).encode())
    except (MachineError, ForeignError) as error:
        log.info("the hash of %s is not kept for later runs: %s", path, error)
