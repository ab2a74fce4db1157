"""``weights.lock``: which bytes the keys of the table stood for when an experiment began."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from extract.errors import WeightsError
from extract.weights.table import WeightsRow

LOCK = "weights.lock"
"""What the first fetch resolved. It is kept with the experiment: see ``lock_file``."""


def lock_file(config: str | None, store: str | Path | None) -> Path:
    """``weights.lock`` beside the config's file, else beside the store: with the experiment, wherever one stands.

    The first of the two that is there; where neither is, the first that could be. A built-in config has no file.
    """
    beside_config = [Path(config).parent] if config and Path(config).is_file() else []
    beside_store = [Path(store).parent] if store is not None and "://" not in str(store) else []
    places = [folder / LOCK for folder in (*beside_config, *beside_store)] or [Path(LOCK)]
    return next((place for place in places if place.exists()), places[0])


def flags_for(lock: Path) -> str:
    """What ``extract weights fetch`` needs to pin in ``lock``: nothing where it stands in the current folder, else a
    store beside it (which need not exist)."""
    return "" if lock.parent == Path() else f" --store {shlex.quote(str(lock.parent / 'store.zarr'))}"


def read_lock(path: Path) -> dict[str, Any]:
    """Key -> what was pinned: ``source``, ``commit``, ``fetched``, ``sha256``, ``files``; empty without that file.

    Raises:
        WeightsError: it is no lock of ours.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read ({error}); restore it from where the experiment is kept") from None
    if not isinstance(found, dict) or not all(map(_is_lock_entry, found.values())):
        raise WeightsError(f"{path}: is no weights.lock; expected an object of keys with sha256 and files")
    return dict(found)


def _is_lock_entry(entry: object) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("files"), dict):
        return False
    files = entry["files"].values()
    commit_is_text = isinstance(entry.get("commit"), str | None)
    hashed = all(isinstance(file, dict) and isinstance(file.get("sha256"), str) for file in files)
    return commit_is_text and hashed and isinstance(entry.get("sha256"), str)


def pinned_sha256(row: WeightsRow, lock: Mapping[str, Any]) -> str | None:
    """What the bytes must be: as the table says, else as the lock does; ``None``: nobody has pinned them."""
    if row.sha256 is not None:
        return row.sha256
    return lock[row.key]["sha256"] if row.key in lock else None
