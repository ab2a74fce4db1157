"""Weights on this machine: the cache, their sha256, safe reading."""

import hashlib
import json
import os
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extract.archives import too_large
from extract.errors import UsageError, WeightsError
from extract.weights.table import TENSOR_FILES

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

ADAPTED = "adapted.json"
"""File of a folder of adapted weights that says which clips they were trained on."""


@dataclass(frozen=True)
class Weights:
    """What a config's ``weights`` stands for on this machine, hashed."""

    spec: str
    """As the config has it: a key, a path, or ``random``."""
    sha256: str
    """Part of the recipe. Of a folder: over the sorted names and hashes of its files."""
    licence: str
    trained_on: str
    untrained: bool = False
    path: Path | None = None
    """File or folder; ``None`` for random weights."""
    drawn: "Mapping[str, np.ndarray[Any, Any]] | None" = field(default=None, repr=False, compare=False)
    """The tensors of random weights."""
    adapted_on: Mapping[str, frozenset[str]] = field(default_factory=dict, repr=False, compare=False)
    """Source part (``media``, ``crops``) -> sha256 of the clips that adapted weights were trained on, as the
    folder's ``adapted.json`` says. A record notes which parts of its clip are among them, and ``fusion`` refuses to
    score such clips."""
    pinned: bool = True
    """False for a key of the table whose bytes nobody has pinned: another file of that name would pass."""

    def tensors(self, device: "torch.device | str" = "cpu") -> "dict[str, Tensor]":
        """All tensors by name, read straight onto ``device``. Nothing in a file is executed.

        Raises:
            WeightsError: the file is damaged, holds code, or holds something else than tensors by name.
        """
        if self.drawn is not None:
            import torch

            return {name: torch.from_numpy(values.copy()).to(device) for name, values in self.drawn.items()}
        if self.path is None:
            raise ValueError("weights without a path must be drawn")
        return read_tensors(tensor_file(self.path), device)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A JSON file beside the tensors of a folder; ``None`` if there is none."""
        if self.path is None or not (self.path / name).is_file():
            return None
        try:
            found = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise WeightsError(f"weights {self.spec!r}: cannot read {self.path / name}: {error}") from error
        if not isinstance(found, dict):
            raise WeightsError(f"weights {self.spec!r}: {self.path / name} holds {found!r}, expected a JSON object")
        return found


def adapted_on(path: Path) -> dict[str, frozenset[str]]:
    """What ``adapted.json`` in a folder of weights says of the clips that they were trained on; empty without it.

    ::

        {"trained_on": {"media": ["<sha256>", ...], "crops": ["<sha256>", ...]}}

    The hashes are those of a record's source. Both parts of a training clip should be listed, since another store may
    be made from the other one.

    Raises:
        WeightsError: the file is damaged, or lists something else than hashes: which clips were seen is unknown.
    """
    file = path / ADAPTED
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["trained_on"]
        return {part: frozenset(map(_sha256_text, hashes)) for part, hashes in found.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f'{file}: cannot be read ({error}); expected {{"trained_on": {{"media": [sha256, ...], "crops": [...]}}}}; '
            "without it nobody can tell whether these weights saw a test clip"
        ) from None


def _sha256_text(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise ValueError(f"{value!r:.80} is no sha256")
    return value


def cache_folder() -> Path:
    """``$AU_FUSION_CACHE``, else ``~/.cache/au-fusion``. Weights lie in ``weights/<key>`` below it.

    Raises:
        UsageError: neither is known: a container's user may have no home.
    """
    named = os.environ.get("AU_FUSION_CACHE")
    if named:
        return Path(named)
    try:
        return Path.home() / ".cache" / "au-fusion"
    except RuntimeError:
        raise UsageError(
            f"this user ({os.getuid()}) has no home folder and HOME is not set; set AU_FUSION_CACHE to a folder for "
            "weights and predictions, or HOME"
        ) from None


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def path_sha256(path: Path, of_file: Callable[[Path], str] = file_sha256) -> str:
    """sha256 of a file; of a folder, over the sorted names and hashes of its files, tokenizer and configs included.

    Hidden files are left out: version control and download tools put theirs there.

    Args:
        of_file: sha256 of one file's bytes, for who knows it without reading them.
    """
    if path.is_file():
        return of_file(path)
    files = {file.relative_to(path): file for file in path.rglob("*") if file.is_file()}
    seen = {name.as_posix(): file for name, file in files.items() if not any(p.startswith(".") for p in name.parts)}
    lines = (f"{name}\0{of_file(seen[name])}\n" for name in sorted(seen))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def arrays_sha256(arrays: "Mapping[str, np.ndarray[Any, Any]]") -> str:
    """sha256 over sorted names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name}\0{arrays[name].dtype}{arrays[name].shape}\n".encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


def tensor_file(path: Path) -> Path:
    """The file with the tensors: ``path`` itself, or the member of that folder.

    Raises:
        WeightsError: the folder has none.
    """
    if path.is_file():
        return path
    for name in TENSOR_FILES:
        if (path / name).is_file():
            return path / name
    raise WeightsError(f"{path} holds none of {' and '.join(TENSOR_FILES)}; name the file itself, or save as one file")


def read_tensors(path: Path, device: "torch.device | str" = "cpu") -> "dict[str, Tensor]":
    """All tensors of one file by name, on ``device``; errors as of ``Weights.tensors``."""
    import safetensors.torch
    import torch

    bomb = too_large(path, path.stat().st_size)
    if bomb is not None:
        raise WeightsError(f"{path}: {bomb}: it is not read; get the file anew from who made it")
    try:
        if path.suffix == ".safetensors":
            # A header that claims more than the file has is refused.
            found: object = safetensors.torch.load_file(path, device=str(device))
        else:
            found = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own text recommends to try without the check; only what the file asks for is repeated from it.
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it asks for {asked[1]}" if asked else "it is no pickle of tensors"
        raise WeightsError(
            f"{path} cannot be read as plain tensors, and what may hold code is never executed: {reason}; "
            "save its state dict as .safetensors with the program that made it"
        ) from error
    except (MemoryError, torch.OutOfMemoryError, getattr(torch, "AcceleratorError", MemoryError)):
        raise  # of the machine, which says nothing of the file
    except Exception as error:  # a damaged file can make either reader raise anything
        raise WeightsError(f"{path} is no weights file, or a damaged one: {error}; get it anew") from error
    for wrapper in ("model", "state_dict", "params_ema", "params"):  # training keeps more beside the tensors
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    whole = isinstance(found, dict) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in found.items()
    )
    if not isinstance(found, dict) or not whole:
        raise WeightsError(f"{path} holds {type(found).__name__}, expected tensors by name")
    return dict(found)
