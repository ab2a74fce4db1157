"""``fusion export``: a run as one folder that predicts on a machine which never saw its store.

::

    FOLDER/model.safetensors   the network's tensors
           postprocess.json    smoothing, equations and thresholds, if the run has them
           README.md           the model card
           fusion.json         config, sizes, recipes, clips, scores; sha256 of the other files; written last

Nothing in it is a pickle, and nothing names a path of the machine where it was fitted: local files of weights are known
by their sha256 and file name.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from extract.au import au_name
from extract.errors import CorruptError, StoreError, UsageError
from extract.files import LocalFiles
from extract.weights.table import RANDOM, TABLE
from fusion.config import FusionConfig
from fusion.model import FusionModel
from fusion.model_card import card
from fusion.runs import METRICS, MODEL, FittedModel, Run
from fusion.tasks import num_outputs, tasks_of

FACTS, TENSORS, CARD, POSTPROCESS = "fusion.json", "model.safetensors", "README.md", "postprocess.json"
OURS = frozenset({FACTS, TENSORS, CARD, POSTPROCESS})
FORMAT, SCHEMA = "au-fusion-run", 1
LARGEST_JSON = 64 * 2**20
"""Bytes of the largest ``fusion.json`` that is read: thousands of clips take less than one MB."""


# ---- writing -------------------------------------------------------------------------------------------------------


def export(run: str | Path | None, output: str | Path) -> Path:
    """Write a run as one folder to share.

    Args:
        run: folder of a finished run; None is the newest in ``runs/``.
        output: the folder to write, which is empty or not there yet.

    Returns:
        The folder.

    Raises:
        UsageError: no such run, it is not finished, or the folder holds something else.
        CorruptError: a file of the run is damaged.
        MachineError: the disk gave up.
    """
    import safetensors.torch

    where, folder = Run(run) if run is not None else Run.newest(), Path(output)
    if (where.path / FACTS).is_file():
        raise UsageError(f"{where.path}: was exported already; copy the folder as it is")
    fitted = where.model()
    if not where.finished:
        raise UsageError(f"run {where.path} is not finished; `fusion fit -o {where.path}` continues it")
    _refuse_other_content(folder)
    scores = _json_of(where.path / METRICS, "fit again")
    tested = where.path / "evaluate" / "test.json"
    if tested.is_file():
        scores = {"test": _json_of(tested, "`fusion evaluate` writes it anew"), **scores}
    shipped = where.path / POSTPROCESS
    tensors = {name: value.detach().cpu().contiguous() for name, value in fitted.model.state_dict().items()}
    contents = {TENSORS: safetensors.torch.save(tensors)}
    if shipped.is_file():
        _json_of(shipped, "`fusion tune --apply` writes it anew")
        contents[POSTPROCESS] = shipped.read_bytes()
    facts: dict[str, Any] = {
        "format": FORMAT,
        "schema": SCHEMA,
        "aus": [au_name(number) for number in fitted.aus],
        "run": described(fitted),
        "scores": _without_paths(scores),
        "versions": versions(),
    }
    _refuse_paths(facts)
    contents[CARD] = card(facts, fitted, _json_of(shipped, "") if shipped.is_file() else None).encode()
    facts["files"] = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(contents.items())}
    facts["sha256"] = _digest(facts)
    files = LocalFiles(folder)
    for name, data in contents.items():
        files.write(name, data)
    files.write(FACTS, (json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
    return folder


def described(fitted: FittedModel) -> dict[str, Any]:
    """All fields of a fitted model but the network, as JSON values; weights by key or file name, never by path."""
    values = {field.name: getattr(fitted, field.name) for field in dataclasses.fields(fitted) if field.name != "model"}
    plain: dict[str, Any] = {
        name: TypeAdapter(get_type_hints(FittedModel)[name]).dump_python(value, mode="json")
        for name, value in values.items()
    }
    plain["weights"] = {sha256: public_name(spec) for sha256, spec in fitted.weights.items()}
    return plain


def public_name(spec: str) -> str:
    """What others may read of a weights spec: a key as it is, of a path the file's name alone."""
    if spec in TABLE or spec == RANDOM:
        return spec
    return PureWindowsPath(spec).name or PurePath(spec).name or "unnamed"  # which splits at both kinds of slash


def _without_paths(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The content of ``metrics.json`` without the places of run and store."""
    return {
        split: {name: value for name, value in found.items() if name not in {"run", "features"}}
        if isinstance(found, Mapping)
        else found
        for split, found in scores.items()
    }


def _refuse_paths(value: object, where: str = "") -> None:
    """Raise UsageError for a path of this machine anywhere in the facts: nobody else can use it, or should read it."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            _refuse_paths(str(key), where)
            _refuse_paths(below, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for below in value:
            _refuse_paths(below, where)
    elif isinstance(value, str) and _PATH.match(value):
        raise UsageError(
            f"{where}: {value!r} is a path of this machine, which a shared folder must not name; extract with a "
            "setting that names no path, and fit again"
        )


_PATH = re.compile(r"/|~|\\\\|[A-Za-z]:[\\/]")
"""How an absolute path begins, also on Windows."""


def _refuse_other_content(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"-o {folder}: is a file; name a folder")
    found = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    # Without fusion.json, what is there is an export that was interrupted.
    if FACTS in found:
        raise UsageError(f"-o {folder}: holds an export already; name another folder, or remove it")
    foreign = sorted(name for name in found - OURS if not name.endswith(".partial"))
    if foreign:
        raise UsageError(f"-o {folder}: holds something else ({foreign[0]}); name another folder")


# ---- reading -------------------------------------------------------------------------------------------------------


def fitted_model(where: Run) -> FittedModel:
    """The network of a run, or of the folder that ``export`` made of one; in eval mode, on the CPU.

    Raises:
        UsageError: there is neither.
        CorruptError: a file is damaged, or is not the one that was exported.
        StoreError: the folder was written by another version of this program, or is of another kind.
    """
    if not (where.path / FACTS).is_file():
        left = [name for name in (TENSORS, POSTPROCESS, CARD) if (where.path / name).is_file()]
        if TENSORS in left and not (where.path / MODEL).is_file():
            raise UsageError(
                f"{where.path}: has {TENSORS} but no {FACTS}: an export that was interrupted, or copied in part; "
                "run `fusion export` again, or copy the whole folder"
            )
        return where.model()
    return _read(where.path)


def network_file(where: Run) -> Path:
    """The file with the network's tensors."""
    return where.path / (TENSORS if (where.path / FACTS).is_file() else MODEL)


def _read(folder: Path) -> FittedModel:
    again = "copy the folder anew, or run `fusion export` again"
    path = folder / FACTS
    facts = _json_of(path, again)
    if facts.get("format") != FORMAT:
        raise StoreError(f"{path}: format {facts.get('format')!r}, expected {FORMAT!r}; `fusion export` writes it")
    if facts.get("schema") != SCHEMA:
        raise StoreError(
            f"{path}: schema {facts.get('schema')!r}, this program knows {SCHEMA}; use the version that wrote it "
            f"(au-fusion {_version(facts)}), or export the run again"
        )
    if facts.get("sha256") != _digest(facts):
        raise CorruptError(f"{path}: its content is not the one that was exported (its own sha256 differs)", again)
    listed = facts.get("files")
    if not isinstance(listed, dict) or TENSORS not in listed or not set(listed) < OURS:
        raise CorruptError(f"{path}: files {listed!r:.80}, expected {TENSORS} among them", again)
    for name, expected in listed.items():
        _check(folder / name, expected, again)
    if POSTPROCESS not in listed and (folder / POSTPROCESS).exists():
        raise CorruptError(f"{folder / POSTPROCESS}: does not belong to this export; remove it", again)
    hints, values = get_type_hints(FittedModel), {}
    for field in dataclasses.fields(FittedModel):
        if field.name == "model":
            continue
        try:
            values[field.name] = TypeAdapter(hints[field.name]).validate_json(json.dumps(facts["run"][field.name]))
        except (KeyError, TypeError) as error:
            if isinstance(error, KeyError) and _optional(field):
                continue  # written before this program recorded it
            raise CorruptError(f"{path}: run has no {field.name}", again) from None
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, (field.name, *first["loc"])))
            raise CorruptError(f"{path}: run.{place}: {first['msg']}", again) from None
    return FittedModel(
        model=_network(folder / TENSORS, values["config"], values["sizes"], values["aus"], again), **values
    )


def _network(path: Path, config: FusionConfig, sizes: Mapping[str, int], aus: Sequence[int], again: str) -> FusionModel:
    """Build the network and fill in its tensors, strictly."""
    import safetensors
    import safetensors.torch

    try:
        tensors = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CorruptError(f"{path}: damaged ({error})", again) from None
    if set(sizes) != set(config.used):
        raise CorruptError(f"{path.parent / FACTS}: sizes of {', '.join(sizes)}, modalities {', '.join(config.used)}")
    width = num_outputs(tasks_of(config, aus))
    with torch.device("meta"):  # sizes are compared before memory is taken for them
        expected = FusionModel(sizes, config, width).state_dict()
    for difference in _differences(expected, tensors):
        raise CorruptError(f"{path}: {difference}: {FACTS} describes another network", again)
    model = FusionModel(sizes, config, width)
    model.load_state_dict(tensors)
    return model.eval()


def _differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Iterator[str]:
    for name in dict.fromkeys((*expected, *found)):
        if name not in found:
            yield f"tensor {name} is absent"
        elif name not in expected:
            yield f"tensor {name} is of no use"
        elif expected[name].shape != found[name].shape:
            yield f"tensor {name} has shape {tuple(found[name].shape)}, expected {tuple(expected[name].shape)}"
        elif expected[name].dtype != found[name].dtype:
            yield f"tensor {name} is {found[name].dtype}, expected {expected[name].dtype}"


def _check(path: Path, sha256: object, again: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CorruptError(f"{path}: cannot be read ({error.strerror})", again) from None
    if found != sha256:
        raise CorruptError(f"{path}: sha256 {found}, {FACTS} says {sha256}", again)


def _json_of(path: Path, remedy: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CorruptError: the file is damaged or holds something else.
    """
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise CorruptError(f"{path}: {path.stat().st_size} bytes, expected at most {LARGEST_JSON}", remedy)
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptError(f"{path}: damaged ({error})", remedy) from None
    if not isinstance(found, dict):
        raise CorruptError(f"{path}: holds {type(found).__name__}, expected an object", remedy)
    return found


def _digest(facts: Mapping[str, Any]) -> str:
    """sha256 of the facts without their own ``sha256``, independent of layout and key order."""
    content = {key: value for key, value in facts.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _optional(field: "dataclasses.Field[Any]") -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def versions() -> dict[str, str]:
    """Versions of what the network was made with; it may compute other last digits with others."""
    return {name: metadata.version(name) for name in ("au-fusion", "torch", "numpy", "safetensors")}


def _version(facts: Mapping[str, Any]) -> str:
    found = facts.get("versions")
    return str(found.get("au-fusion", "unknown")) if isinstance(found, Mapping) else "unknown"
