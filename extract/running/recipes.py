"""Recipes: everything that decides an instance's values and is the same for all clips, resolved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from extract.errors import CorruptError, WeightsError
from extract.graph import Instance
from extract.inputs.manifest import Clip
from extract.records import Record
from extract.running.fingerprints import sha256_of
from extract.store import Store
from extract.weights import resolving
from extract.weights.files import Weights

DEFAULT_PRECISION = {"cpu": "float32", "cuda": "float16"}
"""What ``precision: auto`` means where the store holds nothing yet."""


@dataclass(frozen=True)
class Prepared:
    """An instance with everything that decides its values resolved."""

    instance: Instance
    recipe: dict[str, Any]
    recipe_sha256: str
    weights: Weights | None
    precision: str


def prepare(
    graph: Mapping[str, Instance],
    names: Sequence[str],
    store: Store | None,
    clips: Sequence[Clip],
    device_kind: str,
    *,
    offline: bool = False,
    lock: Path,
) -> dict[str, Prepared]:
    """Resolve weights and precision of ``names`` (inputs first) and make their recipes.

    An instance that is finished for every clip needs no weights file: its recipe is taken from the store.

    Raises:
        WeightsError: weights are needed and missing; every missing one is named.
    """
    prepared: dict[str, Prepared] = {}
    missing: list[str] = []
    for name in names:
        instance = graph[name]
        precision = _precision(instance, store, device_kind)
        weights, weights_sha256 = None, None
        if instance.stage.weights is not None:
            try:
                weights = resolving.resolve(
                    instance.stage.weights, instance.stage, offline=offline, instance=name, lock=lock
                )
                weights_sha256 = weights.sha256
            except WeightsError as error:
                weights_sha256 = _finished_with(store, instance, clips, precision, prepared)
                if weights_sha256 is None:
                    missing.append(f"{name}: {error}")
        recipe = _recipe(instance, weights_sha256, precision, prepared)
        prepared[name] = Prepared(instance, recipe, sha256_of(recipe), weights, precision)
    if missing:
        raise WeightsError("\n".join(missing))
    return prepared


def _recipe(
    instance: Instance, weights_sha256: str | None, precision: str, prepared: Mapping[str, Prepared]
) -> dict[str, Any]:
    stage = instance.stage
    config = stage.config.of_recipe()
    if config.get("weights") not in stage.weightless:
        config.pop("weights", None)  # the file's content counts, not the name or path it goes by
    recipe: dict[str, Any] = {"stage": stage.name, "version": stage.version, "config": config}
    if weights_sha256:
        recipe["weights"] = weights_sha256
    if stage.device == "gpu":
        recipe["precision"] = precision
    recipe["inputs"] = {slot: prepared[source].recipe for slot, source in instance.feeds.items()}
    return recipe


def _precision(instance: Instance, store: Store | None, device_kind: str) -> str:
    """``auto`` is what the store already holds for any clip: shards on different machines must agree."""
    asked = instance.config.precision
    if asked != "auto" or instance.stage.device == "cpu":
        return asked if asked != "auto" else "float32"
    for clip in store.clips() if store else ():
        record = sound_record(store, clip, instance.name)
        if record and record.state != "failed" and "precision" in record.recipe:
            return str(record.recipe["precision"])
    return DEFAULT_PRECISION[device_kind]


def _finished_with(
    store: Store | None,
    instance: Instance,
    clips: Sequence[Clip],
    precision: str,
    prepared: Mapping[str, Prepared],
) -> str | None:
    """sha256 of the weights with which every clip was finished, if the rest of the recipe is the wanted one."""
    found: set[str] = set()
    for clip in clips:
        record = sound_record(store, clip.id, instance.name)
        if record is None or not record.finished:
            return None
        sha256 = record.recipe.get("weights", "")
        if record.recipe != _recipe(instance, sha256, precision, prepared):
            return None
        found.add(sha256)
    return found.pop() if len(found) == 1 else None


def sound_record(store: Store | None, clip: str, instance: str) -> Record | None:
    """The record; None if there is none or it is damaged, which planning its clip reports."""
    try:
        return store.record(clip, instance) if store else None
    except CorruptError:
        return None
