"""Records: what a store says of one instance of one clip, and the JSON that it is kept as.

A record is the attributes of a Zarr group, but it is read and written as the plain file that it is: ``status`` over
thousands of records needs no array library.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, NoReturn

from extract.au import AUS
from extract.errors import CorruptError

State = Literal["done", "empty", "failed", "partial"]
STATES: tuple[State, ...] = ("done", "empty", "failed", "partial")
FINISHED: tuple[State, ...] = ("done", "empty")

REMEDY = "`extract verify --repair` rebuilds it"
"""How messages about damaged metadata end."""


@dataclass(frozen=True)
class Record:
    """What the store says of one instance of one clip: the attributes of its group."""

    state: State
    recipe: Mapping[str, Any]
    """Stage, version, config, weights, precision and the recipes of the inputs, as readable JSON."""
    source: Mapping[str, Any]
    """Source part -> sha256 of its bytes, or the choice itself."""
    fingerprint: str
    """Hash of recipe and source."""
    rows: int = 0
    """Rows of its first array; 0 while partial."""
    reason: str | None = None
    """A key of errors.EMPTY_REASONS or errors.FAILED_REASONS."""
    message: str | None = None
    cause: str | None = None
    """For ``failed``: the instance whose failure led to this one. Written only where there is one."""
    attempts: int = 0
    """How often work began since a block was last committed; counted only where a crash ended the process."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Facts worth knowing that are no errors: ``truncated_at_s``, padded label rows, filled audio gaps."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Run, time, device, library versions, weights as named, ``untrained``; sizes of the source files."""

    @property
    def finished(self) -> bool:
        return self.state in FINISHED

    @property
    def saw_clip(self) -> tuple[str, ...]:
        """Instances whose adapted weights were trained on this very clip: its own and those of its inputs."""
        named = self.provenance.get("weights", {})
        return tuple(instance for instance, weights in named.items() if weights.get("saw"))

    @property
    def aus(self) -> tuple[int, ...]:
        """Numbers of the action units that the columns of ``au`` and ``intensity`` hold, for imported labels.

        The recipe names them where they are not the usual twelve.
        """
        return tuple(self.recipe.get("config", {}).get("aus", AUS))

    def comes_from(self, other: "Record") -> bool | None:
        """Whether this instance was computed from ``other``'s values; None where its recipe names no such input."""
        shared = self.source.keys() & other.source.keys()
        if any(self.source[part] != other.source[part] for part in shared):
            return False
        inputs = list(_inputs(self.recipe))
        if other.recipe in inputs:
            return True
        return False if any(recipe.get("stage") == other.recipe.get("stage") for recipe in inputs) else None

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any], owner: str) -> "Record | None":
        """The record that a group's attributes hold; None for a group that Zarr made on the way to an array.

        Raises:
            CorruptError: we did not write these attributes; ``owner`` says in the message whose they are.
        """
        if "state" not in attributes:
            return None
        known = {entry.name for entry in fields(cls)}
        try:
            record = cls(**{key: value for key, value in attributes.items() if key in known})
        except TypeError as error:
            raise CorruptError(f"{owner}: damaged record ({error})", REMEDY) from None
        if problem := _problem(record):
            raise CorruptError(f"{owner}: damaged record ({problem})", REMEDY)
        return record

    def attributes(self) -> dict[str, Any]:
        """The record as JSON values."""
        attributes = asdict(self)
        if self.cause is None:  # the bytes of a record without a cause are older than this field
            del attributes["cause"]
        return attributes


def group_json(attributes: Mapping[str, Any]) -> bytes:
    """The ``zarr.json`` of a Zarr group."""
    node = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    return (json.dumps(node, indent=1, allow_nan=False) + "\n").encode()


def attributes_in(data: bytes, owner: str) -> dict[str, Any]:
    """The attributes that a ``zarr.json`` holds.

    Raises:
        CorruptError: it is damaged; ``owner`` says in the message whose it is.
    """
    try:
        node = json.loads(data, parse_constant=_refuse_constant)
        attributes = node.get("attributes", {})
    except (ValueError, AttributeError, RecursionError):
        raise CorruptError(f"{owner}: zarr.json is damaged", REMEDY) from None
    if not isinstance(attributes, dict):
        raise CorruptError(f"{owner}: zarr.json is damaged", REMEDY)
    return attributes


def _refuse_constant(constant: str) -> NoReturn:
    """Python reads NaN and Infinity, which JSON does not have; no fingerprint can be made of them."""
    raise ValueError(f"{constant} is not JSON")


def _inputs(recipe: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The recipes of everything that a recipe's instance is made from, however far upstream."""
    inputs = recipe.get("inputs")
    for feeding in inputs.values() if isinstance(inputs, Mapping) else ():
        if isinstance(feeding, Mapping):
            yield feeding
            yield from _inputs(feeding)


# ---- the form of a record ------------------------------------------------------------------------------------------

_KINDS: dict[str, Any] = {
    "state": str,
    "recipe": Mapping,
    "source": Mapping,
    "fingerprint": str,
    "rows": int,
    "reason": str | None,
    "message": str | None,
    "cause": str | None,
    "attempts": int,
    "notes": Mapping,
    "provenance": Mapping,
}
"""Field -> type of its values: JSON of another form was not written by us."""


def _are_file_stamps(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(file, list) and [type(entry) for entry in file] == [int, int, str] for file in value
    )


def _is_weights_name(value: object) -> bool:
    if not isinstance(value, Mapping) or not all(isinstance(value.get(key), str) for key in ("spec", "sha256")):
        return False
    saw = value.get("saw", [])
    return isinstance(saw, list) and all(isinstance(part, str) for part in saw)


_PROVENANCE: dict[str, Callable[[object], bool]] = {
    "files": _are_file_stamps,
    "weights": _is_weights_name,
    "rows": lambda value: type(value) is int and value >= 0,
}
"""The parts of the provenance that later runs read -> what each of their entries must be."""


def _problem(record: Record) -> str | None:
    """What in a record was not written by us, for a message; None if all of it has the right form."""
    for name, kind in _KINDS.items():
        value = getattr(record, name)
        if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, int) and value < 0):
            return f"{name} {value!r:.80}"
    if record.state not in STATES:
        return f"state {record.state!r}"
    for name, fits in _PROVENANCE.items():
        part = record.provenance.get(name, {})
        if not isinstance(part, Mapping) or not all(map(fits, part.values())):
            return f"provenance.{name} {part!r:.80}"
    return None
