"""Where weights come from and what they are: the table, the files on this machine, their sha256, safe reading."""

import hashlib
import importlib.util
import json
import os
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from extract.archives import too_large
from extract.errors import UsageError, WeightsError
from extract.stage import Stage

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

RANDOM = "random"
"""The spec that draws weights by name instead of reading a file; the result is called untrained everywhere."""

HUB = "https://huggingface.co"
LOCK = "weights.lock"
"""What the first fetch resolved. It is kept with the experiment: see ``lock_file``."""

TENSOR_FILES = ("model.safetensors", "pytorch_model.bin")
"""What a weights folder may call its tensors; the first one present counts."""


@dataclass(frozen=True)
class WeightsRow:
    """One entry of the table: published weights under the name that a config calls them by."""

    key: str
    stages: tuple[str, ...]
    """Who can use them."""
    architecture: str | None
    """What the stage's config must say; ``None`` for a stage with one architecture."""
    source: str
    """Page or package they come from."""
    files: tuple[str, ...]
    """Files beside the tensors, which are one of TENSOR_FILES; with ``package``, ``download`` or ``by_hand`` the one
    file itself."""
    licence: str
    trained_on: str
    sha256: str | None
    """Of the file or folder; ``None`` (shown as ``unpinned``) where no file was at hand to compute it from."""
    package: str | None = None
    """Python package that brings the file along; ``None``: the cache folder holds it."""
    download: str | None = None
    """Address of the one file, for what lies on a release page; ``None``: ``source`` is a repository of the hub."""
    by_hand: bool = False
    """The one file is offered on a page that no program may read; the user puts it into the cache folder."""
    note: str = ""

    @property
    def is_one_file(self) -> bool:
        """Whether it is the file itself that a config names, and no folder."""
        return self.download is not None or self.by_hand


def by_key(rows: Sequence[WeightsRow]) -> dict[str, WeightsRow]:
    """The rows by key. A key given twice is a mistake in this file."""
    table: dict[str, WeightsRow] = {}
    for row in rows:
        if row.key in table or row.key == RANDOM:
            raise ValueError(f"weights key {row.key!r} is taken")
        table[row.key] = row
    return table


def _hubert(key: str, architecture: str, trained_on: str) -> WeightsRow:
    return WeightsRow(
        key=key,
        stages=("hubert",),
        architecture=architecture,
        source=f"{HUB}/facebook/{key}",
        files=("config.json", "preprocessor_config.json"),
        licence="Apache-2.0",
        trained_on=trained_on,
        sha256=None,
    )


def _realesrgan(key: str, release: str, file: str, *, sha256: str | None = None, note: str = "") -> WeightsRow:
    return WeightsRow(
        key=key,
        stages=("superres",),
        architecture=None,
        source="https://github.com/xinntao/Real-ESRGAN/releases",
        files=(file,),
        licence="BSD-3-Clause",
        trained_on="DIV2K, Flickr2K, OutdoorSceneTraining; degraded by a model of the real world",
        sha256=sha256,
        download=f"https://github.com/xinntao/Real-ESRGAN/releases/download/{release}/{file}",
        note=note,
    )


def _roberta(key: str, architecture: str) -> WeightsRow:
    return WeightsRow(
        key=key,
        stages=("roberta",),
        architecture=architecture,
        source=f"{HUB}/FacebookAI/{key}",
        files=("config.json", "vocab.json", "merges.txt"),
        licence="MIT",
        trained_on="160 GB of English text (books, Wikipedia, news, web)",
        sha256=None,
        note="lm_head.* and pooler.* are dropped",
    )


X4PLUS_SHA256 = "4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1"

TABLE = by_key((
    WeightsRow(
        key="swin-tiny",
        stages=("swin",),
        architecture="tiny",
        source=f"{HUB}/timm/swin_tiny_patch4_window7_224.ms_in1k",
        files=(),
        licence="MIT",
        trained_on="ImageNet-1k classification",
        sha256=None,
        note="the classifier head.* is dropped",
    ),
    _hubert("hubert-xlarge-ll60k", "xlarge", "Libri-Light, 60,000 h"),
    _hubert("hubert-large-ll60k", "large", "Libri-Light, 60,000 h"),
    _hubert("hubert-base-ls960", "base", "LibriSpeech, 960 h"),
    _roberta("roberta-large", "large"),
    _roberta("roberta-base", "base"),
    _realesrgan("realesrgan-x4plus", "v0.1.0", "RealESRGAN_x4plus.pth", sha256=X4PLUS_SHA256),
    _realesrgan(
        "realesr-general-x4v3",
        "v0.2.5.0",
        "realesr-general-x4v3.pth",
        note="denoises fully; the authors' command line mixes it half and half with realesr-general-wdn-x4v3",
    ),
    WeightsRow(
        key="ghfeat-ffhq-256",
        stages=("ghfeat",),
        architecture="resnet50-256",
        source="https://github.com/genforce/ghfeat",
        files=("ghfeat-encoder-ffhq-256.pkl",),
        licence="none given by its authors: ask them before any use beyond your own research",
        trained_on="FFHQ faces, through a StyleGAN generator",
        sha256=None,
        by_hand=True,
        note="a Python pickle: read without executing anything; `extract weights convert` makes safetensors of it",
    ),
    WeightsRow(
        key="dlib-68-landmarks",
        stages=("detections", "landmarks"),
        architecture=None,
        source="Python package face-recognition-models",
        files=("models/shape_predictor_68_face_landmarks.dat",),
        licence="trained on iBUG 300-W: research only, no commercial use",
        trained_on="iBUG 300-W",
        sha256="fbdc2cb80eb9aa7a758672cbfdda32ba6300efe9b6e6c7a299ff7e736b11b92f",
        package="face_recognition_models",
        note="the package calls it CC0; the licence of the pictures it learned from says otherwise",
    ),
))


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
    pinned: bool = True
    """False for a key of the table whose bytes nobody has pinned: another file of that name would pass."""

    def tensors(self) -> "dict[str, Tensor]":
        """All tensors by name, on the CPU. Nothing in a file is executed.

        Raises:
            WeightsError: the file is damaged, holds code, or holds something else than tensors by name.
        """
        if self.drawn is not None:
            import torch

            return {name: torch.from_numpy(values.copy()) for name, values in self.drawn.items()}
        if self.path is None:
            raise ValueError("weights without a path must be drawn")
        return _read_tensors(tensor_file(self.path))

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


def lock_file(config: str | None, store: str | Path | None) -> Path:
    """``weights.lock`` beside the config's file, else beside the store: with the experiment, wherever one stands.

    The first of the two that is there; where neither is, the first that could be. A built-in config has no file.
    """
    beside_config = [Path(config).parent] if config and Path(config).is_file() else []
    beside_store = [Path(store).parent] if store is not None and "://" not in str(store) else []
    places = [folder / LOCK for folder in (*beside_config, *beside_store)] or [Path(LOCK)]
    return next((place for place in places if place.exists()), places[0])


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def path_sha256(path: Path, of_file: Callable[[Path], str] = file_sha256) -> str:
    """sha256 of a file; of a folder, over the sorted names and hashes of its files, tokenizer and configs included.

    Hidden files are left out: version control and download tools put theirs there.
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


def resolve(
    spec: str,
    stage: Stage[Any],
    *,
    cache: Path | None = None,
    offline: bool = False,
    instance: str | None = None,
    of_file: Callable[[Path], str] = file_sha256,
    lock: Path = Path(LOCK),
) -> Weights:
    """Find and hash what ``spec`` names: a key of TABLE, a local file or folder, or ``random``.

    Args:
        stage: whose config names them; it draws ``random`` ones.
        cache: folder of fetched weights; ``cache_folder()`` when absent.
        offline: the user forbids the network; only changes what the message offers.
        instance: name for the messages' ``--set``; the stage's own when absent.
        of_file: sha256 of one file; a caller that remembers hashes by size and time passes its own.
        lock: what was pinned, as ``lock_file`` finds it.

    Raises:
        WeightsError: they are not there, of another stage or architecture, or not the bytes that the table names.
    """
    instance = instance or stage.name
    if spec == RANDOM:
        if type(stage).random_weights is Stage.random_weights:
            raise WeightsError(f"stage {stage.name} has no random weights; name a key, a file or a folder")
        drawn = stage.random_weights()
        return Weights(spec, arrays_sha256(drawn), "none", "nothing", untrained=True, drawn=drawn)
    if spec in TABLE:
        return _resolve_key(TABLE[spec], stage, cache or cache_folder(), offline, instance, of_file, lock)
    path = Path(os.path.expanduser(spec))  # which leaves ~ as it is where there is no home
    if not path.exists():
        known = ", ".join(key for key, row in TABLE.items() if stage.name in row.stages)
        raise WeightsError(f"weights {spec!r} are no key ({known or 'none'} for this stage) and no such path")
    if path.is_dir():
        tensor_file(path)
    return Weights(spec, path_sha256(path, of_file), "unknown (local)", "unknown (local)", path=path)


def _resolve_key(
    row: WeightsRow,
    stage: Stage[Any],
    cache: Path,
    offline: bool,
    instance: str,
    of_file: Callable[[Path], str],
    lock: Path,
) -> Weights:
    if stage.name not in row.stages:
        raise WeightsError(f"weights {row.key!r} belong to stage {' and '.join(row.stages)}, not to {stage.name}")
    asked = getattr(stage.config, "architecture", None)
    if row.architecture != asked:
        raise WeightsError(
            f"weights {row.key!r} are of architecture {row.architecture}, the config says {asked}; "
            f"use --set {instance}.architecture={row.architecture}, or other weights"
        )
    path, missing = locate(row, cache)
    if missing:
        means = "--offline forbids fetching them" if offline else "a run fetches nothing"
        if row.package:
            remedy = f"install the package {row.package.replace('_', '-')}"
        elif row.by_hand:
            remedy = how_by_hand(row, path)
        else:
            remedy = (
                f"`extract weights fetch {row.key}` gets them (licence {row.licence}), or put the files of "
                f"{row.source} into {path.parent if row.is_one_file else path}"
            )
        lacks = f"there is no {path}" if row.is_one_file else f"{path} lacks {', '.join(missing)}"
        raise WeightsError(
            f"weights {row.key!r} are not on this machine and {means}: {lacks}; "
            f"{remedy}, or name a local file or folder: --set {instance}.weights=PATH"
        )
    sha256 = path_sha256(path, of_file)
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


def list_rows(cache: Path, lock_path: Path = Path(LOCK)) -> list[Located]:
    """Every row of the table, looked for but not hashed."""
    lock = read_lock(lock_path)
    found = ((row, *locate(row, cache)) for row in TABLE.values())
    return [Located(row, path, tuple(missing), None, pinned_sha256(row, lock)) for row, path, missing in found]


def verify(cache: Path, of_file: Callable[[Path], str] = file_sha256, lock_path: Path = Path(LOCK)) -> list[Located]:
    """Every row of the table, hashed where its files are there."""
    return [
        entry if entry.missing else replace(entry, sha256=path_sha256(entry.path, of_file))
        for entry in list_rows(cache, lock_path)
    ]


def check_config(weights: Weights, architecture: str, expected: object, fields: Sequence[str]) -> None:
    """What no tensor's shape shows (heads, norms, strides) must be as ``config.json`` says, where there is one.

    Args:
        expected: the config that the network was built from; its attributes ``fields`` are compared.

    Raises:
        WeightsError: lists the fields that differ.
    """
    found = weights.read_json("config.json")
    if found is None:
        return
    wanted = {name: _plain(getattr(expected, name)) for name in fields}
    wrong = [
        f"{name} {found[name]!r}, expected {wanted[name]!r}"
        for name in fields
        if name in found and _plain(found[name]) != wanted[name]
    ]
    if wrong:
        raise WeightsError(
            f"weights {weights.spec!r}: config.json is not of architecture {architecture}: {'; '.join(wrong)}"
        )


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def load_strictly(model: "nn.Module", tensors: "Mapping[str, Tensor]", spec: str, *, assign: bool = False) -> None:
    """Fill ``model``: every tensor that it has, and no other, each of the same shape.

    Args:
        assign: take the tensors themselves instead of copying them (for a model on the meta device).

    Raises:
        WeightsError: lists what is missing, unexpected, and of another shape.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    told = listed(wanted, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    if told:
        raise WeightsError(f"weights {spec!r} do not fit: {told}. Is the architecture in the config the right one?")
    model.load_state_dict(dict(tensors), assign=assign)


def listed(
    wanted: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    more: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """What is missing, unexpected and of another shape, in words; empty where nothing is. ``more``: further faults."""
    faults: dict[str, Sequence[str]] = {
        "missing": sorted(wanted.keys() - found.keys()),
        "unexpected": sorted(found.keys() - wanted.keys()),
        "of another shape": [
            f"{name} {found[name]}, expected {wanted[name]}"
            for name in sorted(wanted.keys() & found.keys())
            if found[name] != wanted[name]
        ],
        **(more or {}),
    }
    return "; ".join(f"{len(names)} {kind} ({_few(names)})" for kind, names in faults.items() if names)


def _few(names: Sequence[str], most: int = 5) -> str:
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _read_tensors(path: Path) -> "dict[str, Tensor]":
    import safetensors.torch
    import torch

    bomb = too_large(path, path.stat().st_size)
    if bomb is not None:
        raise WeightsError(f"{path}: {bomb}: it is not read; get the file anew from who made it")
    try:
        if path.suffix == ".safetensors":
            found: object = safetensors.torch.load_file(path)  # a header that claims more than the file has is refused
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own text recommends to try without the check; of it only what the file asks for is told.
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it asks for {asked[1]}" if asked else "it is no pickle of tensors"
        raise WeightsError(
            f"{path} cannot be read as plain tensors, and what may hold code is never executed: {reason}; "
            "save its state dict as .safetensors with the program that made it"
        ) from error
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
