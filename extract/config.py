"""The experiment file: one YAML with the sections ``extract:`` and ``fusion:``, read once, checked key by key."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from extract import texts
from extract.adapt.config import AdaptConfig
from extract.errors import ConfigError
from extract.names import nearest, suggestion

LARGEST_BATCH = 128
"""Rows; no micro-batch is larger."""

MEMORY_GB = {"cpu": 1.0, "cuda": 4.0}
"""A GPU takes groups of 128 rows; four of 1280 x 720 pixels are 1.4 GB."""

SECTIONS = ("extract", "fusion")
NAMED = {"instances", "modalities"}
"""Sections whose keys are the user's own names: ``null`` for an unknown one is a mistake, not a wish."""
M = TypeVar("M", bound=BaseModel)


class Frozen(BaseModel):
    """Base of every config model."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class InstanceConfig(Frozen):
    """One entry of ``extract.instances``: the runner's own keys; every other key belongs to the stage's config."""

    model_config = ConfigDict(frozen=True, extra="allow")

    stage: str | None = None
    """Stage name; the instance's own name when absent."""
    inputs: Mapping[str, str] = {}
    """Slot -> instance; a slot not named here is fed by the instance of that name."""
    keep: tuple[str, ...] = ()
    """Transient outputs to store all the same. Not in the recipe."""
    block_rows: int | None = Field(default=None, ge=1)
    """Rows per block for new arrays; a power of two. Overrides ``run.block_rows``. Not in the recipe."""
    batch: int | None = Field(default=None, ge=1, le=LARGEST_BATCH)
    """Rows per micro-batch, a power of two. Changes speed, and values only by rounding. Not in the recipe."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of a GPU stage's model: ``auto`` is what the store already holds, else float32 on a CPU and float16
    on CUDA. In the recipe."""

    @property
    def stage_fields(self) -> dict[str, Any]:
        """What is left for the stage's own config."""
        return dict(self.model_extra or {})

    @field_validator("block_rows", "batch")
    @classmethod
    def _power_of_two(cls, rows: int | None) -> int | None:
        return _power_of_two(rows)


class RunConfig(Frozen):
    """What changes speed or layout only; of values ``compile`` alone changes last digits."""

    block_rows: int | None = Field(default=None, ge=1)
    """Rows per block for new arrays of rows stages; ``None``: 256 to 4096 by the widest output (nearest 8 MB)."""
    engine: Literal["lanes", "serial"] = "lanes"
    """``lanes``: decoding, models and writing overlap, several clips in flight; ``serial``: one after the other. The
    stored bytes are the same."""
    clips: int = Field(default=3, ge=1, le=16)
    """Clips in flight."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Whether networks are compiled and replayed as CUDA graphs; ``auto``: on a GPU, from a few thousand frames on."""
    cpu_threads: int = Field(default=0, ge=0)
    """Threads of the lane that computes on the CPU; 0: all cores this process may use. A process of isolated clips
    computes in one."""
    memory_gb: float | None = Field(default=None, gt=0)
    """Memory for decoded frames and what is cut out of them, of all clips in flight, in 10^9 bytes; ``None``: 1, with a
    GPU 4. Larger pictures are handed on in smaller groups, down to one frame."""
    isolate: Literal["auto", "always", "never"] = "auto"
    """Which clips are worked on in a separate process, so that a decoder or model that dies costs only its clip:
    ``auto``, those that crashed a process before; ``always``, all (the models live in that process alone)."""
    stall_s: float = Field(default=300.0, gt=0)
    """Seconds without a byte read or a frame decoded after which a clip is ``failed: stalled``."""

    @field_validator("block_rows")
    @classmethod
    def _power_of_two(cls, rows: int | None) -> int | None:
        return _power_of_two(rows)

    @field_validator("compile", mode="before")
    @classmethod
    def _words_of_yaml(cls, value: object) -> object:
        """YAML takes ``on`` and ``off`` for true and false."""
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    def memory_bytes(self, device: str) -> int:
        """``memory_gb`` in bytes, or what suits the device (``cpu``, ``cuda``)."""
        return int((self.memory_gb or MEMORY_GB[device]) * 1e9)


class ExtractConfig(Frozen):
    """The section ``extract:``."""

    instances: Mapping[str, InstanceConfig | None] = {}
    """By name, in any order. Instances that feed a named one and are not listed exist with their defaults."""
    run: RunConfig = RunConfig()
    adapt: AdaptConfig = AdaptConfig()
    """Settings of ``extract adapt``, by stage; a run reads none of them."""


def _power_of_two(rows: int | None) -> int | None:
    if rows is not None and rows & (rows - 1):
        raise ValueError(f"{rows} is not a power of two")
    return rows


@dataclass(frozen=True)
class Remembered:
    """The config that a store was made with, as plain values."""

    name: str | None
    """As ``-c`` named it; None for the built-in default, and for one that a program handed over."""
    sections: Mapping[str, Mapping[str, Any]]
    """Section -> its values, ``--set`` applied."""

    def __str__(self) -> str:
        return f"the config that the store was made with ({self.name or 'default'})"

    @staticmethod
    def taken(kept: "Remembered | None") -> str:
        """What a command says that was given no config."""
        return f"config: {kept or 'the built-in default (this store does not say its own)'}; -c NAME|PATH takes another"

    @classmethod
    def of(cls, spec: str | None, overrides: Sequence[str]) -> "Remembered":
        """What a run with these flags keeps for later commands: both sections."""
        of_fusion = [text for text in overrides if text.startswith("fusion.")]
        extract, fusion = load_section(spec, "extract", overrides), load_section(spec, "fusion", of_fusion)
        return cls(spec, {"extract": extract, "fusion": fusion})

    @classmethod
    def of_model(cls, config: ExtractConfig) -> "Remembered":
        """The same for a config that a program made."""
        return cls(None, {"extract": config.model_dump(mode="json", exclude_defaults=True)})


def load_extract_config(
    spec: str | None, overrides: Sequence[str] = (), remembered: Remembered | None = None
) -> ExtractConfig:
    """Read ``extract:`` of a built-in config or file. ``a.b=c`` may also begin with an instance's name.

    Args:
        remembered: stands for the built-in default where ``spec`` names nothing; ``overrides`` go on top.

    Raises:
        ConfigError: the file, a key or a value is not as it should be; the message names file and key.
    """
    section = load_section(spec, "extract", overrides, remembered)
    return validated(ExtractConfig, section, f"{_whose(spec, remembered)}, section extract")


def validated(model: type[M], values: object, where: str, also: Sequence[str] = ()) -> M:
    """``model`` of ``values``; pydantic's findings become one ConfigError with a line each.

    Args:
        also: keys that are known beside the model's own, to be named where one is not.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}:\n{describe(error, model, also)}") from None


def describe(error: ValidationError, model: type[BaseModel], also: Sequence[str] = ()) -> str:
    """One indented line per finding: the key's path, what is wrong, the nearest known key of that level."""
    lines = []
    for finding in error.errors():
        path = ".".join(str(part) for part in finding["loc"])
        if finding["type"] == "extra_forbidden":
            known = known_keys(model, finding["loc"][:-1]) or list(model.model_fields)
            known += also if len(finding["loc"]) == 1 else ()
            lines.append(f"  {path}: unknown key; {suggestion(str(finding['loc'][-1]), known)}")
        elif finding["type"] == "value_error":  # a validator's own words, which say what was found
            lines.append("  " + ": ".join(filter(None, [path, finding["msg"].removeprefix("Value error, ")])))
        else:
            lines.append(f"  {path}: {finding['msg']}, found {finding['input']!r}")
    return "\n".join(lines)


def known_keys(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """The keys that a config model knows at ``path``, pydantic's ``loc``: field names, keys of mappings, union tags."""
    at: list[Any] = [model]
    for part in path:
        below: list[Any] = []
        for kind in at:
            origin, arguments = get_origin(kind), get_args(kind)
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                tags = [tag for entry in kind.model_fields.values() for tag in get_args(entry.annotation)]
                if str(part) in kind.model_fields:
                    below += _alternatives(kind.model_fields[str(part)].annotation)
                elif part in tags:  # which of a union it is
                    below.append(kind)
            elif origin is not None and issubclass(origin, Mapping):
                below += _alternatives(arguments[1])
        at = below
    return [key for kind in at if isinstance(kind, type) and issubclass(kind, BaseModel) for key in kind.model_fields]


def _alternatives(kind: Any) -> list[Any]:  # noqa: ANN401 - any annotation
    """The types that an annotation allows, through unions and ``Annotated``."""
    if get_origin(kind) is Annotated:
        return _alternatives(get_args(kind)[0])
    if get_origin(kind) in {Union, UnionType}:
        return [one for part in get_args(kind) for one in _alternatives(part)]
    return [kind]


def load_section(
    spec: str | None, section: str, overrides: Sequence[str] = (), remembered: Remembered | None = None
) -> dict[str, Any]:
    """One section of the config as plain values, with ``--set`` overrides applied.

    Args:
        spec: name of a built-in config (``default``), or a path; ``None`` is ``default``.
        section: ``extract`` or ``fusion``.
        overrides: ``a.b=c`` each. ``a`` is a section, or else a key below ``section`` or, for ``extract``, an
            instance. The value is read as YAML. Overrides of the other section are left to its own program.
        remembered: stands for ``default`` where ``spec`` is ``None``.

    Raises:
        ConfigError: no such config, not YAML, an unknown top-level key, an override without ``=``, or one that leaves
            out (``null``) what is not there.
    """
    whole = _read(spec) if spec or remembered is None else copy.deepcopy(dict(remembered.sections))
    for text in overrides:
        _apply(whole, section, text)
    found = whole.get(section) or {}
    if not isinstance(found, dict):
        raise ConfigError(f"{_whose(spec, remembered)}: section {section} must be a mapping, found {found!r}")
    return dict(found)


def _whose(spec: str | None, remembered: Remembered | None) -> str:
    return f"config {spec or 'default'}" if spec or remembered is None else str(remembered)


def apply_overrides(values: Mapping[str, Any], section: str, overrides: Sequence[str]) -> dict[str, Any]:
    """A section's plain values with ``a.b=c`` overrides as ``load_section`` takes them.

    Raises:
        ConfigError: an override without ``=``, or below something that is no section.
    """
    whole: dict[str, Any] = {section: dict(values)}
    for text in overrides:
        _apply(whole, section, text)
    found: dict[str, Any] = whole[section]
    return found


def builtin_configs() -> list[str]:
    """Names that ``-c`` takes besides a path."""
    folder = resources.files("extract") / "configs"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def _read(spec: str | None) -> dict[str, Any]:
    name = spec or "default"
    if name in builtin_configs():
        text = (resources.files("extract") / "configs" / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        try:
            text = texts.read_text(Path(name))
        except OSError as error:
            near = nearest(name, builtin_configs())
            hint = f"did you mean {near!r}?" if near else f"built-in configs are {', '.join(builtin_configs())}"
            raise ConfigError(f"config {name}: {error.strerror or error}; {hint}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"config {name}: not a text file") from None
    try:
        whole = texts.load_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"config {name}: not YAML: {error}") from None
    whole = {} if whole is None else whole
    if not isinstance(whole, dict):
        raise ConfigError(f"config {name}: expected the sections {' and '.join(SECTIONS)}, found {whole!r}")
    for key in whole:
        if key not in SECTIONS:
            raise ConfigError(f"config {name}: unknown top-level key {key!r}; expected {' or '.join(SECTIONS)}")
    return whole


def _apply(whole: dict[str, Any], section: str, text: str) -> None:
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {text}: expected a.b=c")
    if keys[0] not in SECTIONS:
        root = [section]
        if section == "extract" and keys[0] not in ExtractConfig.model_fields:
            root.append("instances")
        keys = root + keys
    node: Any = whole
    for done, key in enumerate(keys[:-1], start=1):
        below = node.get(key)
        if below is None:
            below = node[key] = {}
        if not isinstance(below, dict):
            raise ConfigError(f"--set {text}: {'.'.join(keys[:done])} is {below!r}, not a section")
        node = below
    try:
        found = texts.load_yaml(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text}: the value is not YAML: {error}") from None
    if found is None and len(keys) == 3 and keys[1] in NAMED and keys[2] not in node:
        there = f"; {suggestion(keys[2], list(node))}" if node else ""
        raise ConfigError(f"--set {text}: {'.'.join(keys[:2])} has no {keys[2]!r} to leave out{there}")
    node[keys[-1]] = found
