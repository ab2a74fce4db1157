"""Paths in a manifest: absolute when read, relative to the manifest when written."""

import os
from pathlib import Path


def absolute(path: str | Path, base: Path) -> Path:
    """``path`` seen from the folder ``base`` (absolute, without links), without leading ``..``.

    Only leading ``..`` are resolved: where ``x`` may be a link, ``x/..`` cannot be dropped without naming another file.
    """
    text = os.fspath(path)
    while text == ".." or text.startswith("../"):
        base, text = base.parent, text[2:].lstrip("/")
    return Path(os.path.join(base, text))  # parsed once, not twice: manifests hold thousands of paths


def real_folder(path: Path) -> Path:
    """Folder of the manifest without links, so that its ``..`` are where the operating system finds them."""
    return Path(os.path.realpath(path.parent))


def as_written(path: Path, folder: Path) -> str:
    """``path`` as a manifest in ``folder`` names it: relative if both share a folder below the root, else absolute."""
    path = absolute(path, Path.cwd())
    shared = os.path.commonpath([path, folder])
    # A path with `..` inside stays absolute: behind a link, `..` cannot be resolved by name.
    if shared == path.anchor or ".." in path.parts:
        return str(path)
    return os.path.relpath(path, folder)
