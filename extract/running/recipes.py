"""Recipes: everything that decides an instance's values and is the same for all clips, resolved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from extract.errors import CorruptError, WeightsError
from extract.graph import Instance
from extract.inputs.manifest import Clip
from extract.inputs.parts import part_files
from extract.records import Record
from extract.running.fingerprints import made_with_part, sha256_of
from extract.store import Store
from extract.weights import resolving
from extract.weights.files import Weights

DEFAULT_PRECISION = {"cpu": "float32", "cuda": "float16"}
"""What ``precision: auto`` means where the store holds nothing yet."""
SHOWN_CLIPS = 5
"""Clips that a message lists."""


@dataclass(frozen=True)
class Prepared:
    """An instance with everything that decides its values resolved."""

    instance: Instance
    recipe: dict[str, Any]
    recipe_sha256: str
    weights: Weights | None
    precision: str
    made_with: dict[str, Any] | None = None
    """Of a ``sourced`` stage: what its values are made with, and the clips that it computes have in their source. An
    unknown sha256 of weights is None: no clip needs them."""


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
        needing = _computed_clips(instance, clips) if instance.stage.sourced else list(clips)
        if instance.stage.weights is not None and (needing or not instance.stage.sourced):
            try:
                weights = resolving.resolve(
                    instance.stage.weights, instance.stage, offline=offline, instance=name, lock=lock
                )
                weights_sha256 = weights.sha256
            except WeightsError as error:
                if instance.stage.sourced:
                    missing += _lacking(store, instance, needing, error)
                else:
                    weights_sha256 = _finished_with(store, instance, clips, precision, prepared)
                    missing += [f"{name}: {error}"] if weights_sha256 is None else []
        recipe = _recipe(instance, weights_sha256, precision, prepared)
        made_with = _made_with(instance, weights_sha256, precision, prepared)
        prepared[name] = Prepared(instance, recipe, sha256_of(recipe), weights, precision, made_with)
    if missing:
        raise WeightsError("\n".join(missing))
    return prepared


def _computed_clips(instance: Instance, clips: Sequence[Clip]) -> list[Clip]:
    """The clips for which an instance of a ``sourced`` stage computes something, as far as the manifest tells."""
    part = instance.stage.provided_by
    return [clip for clip in clips if (clip.audio or clip.video) and not (part and part_files(clip, part))]


def _lacking(store: Store | None, instance: Instance, needing: Sequence[Clip], error: WeightsError) -> list[str]:
    """What to say where a ``sourced`` stage's weights are missing: nothing if all the clips concerned are finished."""
    records = {clip.id: sound_record(store, clip.id, instance.name) for clip in needing}
    waiting = [clip for clip, record in records.items() if record is None or not record.finished]
    if not waiting:
        return []
    more = f" and {len(waiting) - SHOWN_CLIPS} more" if len(waiting) > SHOWN_CLIPS else ""
    shown = f"{', '.join(waiting[:SHOWN_CLIPS])}{more}"
    without = instance.stage.without.format(instance=instance.name)
    provided = f" (no {instance.stage.provided_by} of their own)" if instance.stage.provided_by else ""
    return [f"{instance.name}: {error}. Needed for {shown}{provided}: {without}"]


def _made_with(
    instance: Instance, weights_sha256: str | None, precision: str, prepared: Mapping[str, Prepared]
) -> dict[str, Any] | None:
    stage = instance.stage
    if not stage.sourced:
        return None
    made = stage.made_with()
    if stage.weights is not None:
        made["weights"] = weights_sha256
    if stage.device == "gpu":
        made["precision"] = precision
    made["inputs"] = {slot: prepared[source].recipe_sha256 for slot, source in instance.feeds.items()}
    return made


def _recipe(
    instance: Instance, weights_sha256: str | None, precision: str, prepared: Mapping[str, Prepared]
) -> dict[str, Any]:
    stage = instance.stage
    config = stage.config.of_recipe()
    if config.get("weights") not in stage.weightless:
        config.pop("weights", None)  # the file's content counts, not the name or path it goes by
    recipe: dict[str, Any] = {"stage": stage.name, "version": stage.version, "config": config}
    if stage.sourced:  # the rest is in the source of the clips that it computes
        return {**recipe, "inputs": {}}
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
        if record is None or record.state == "failed":
            continue
        made_with = record.source.get(made_with_part(instance.name), {}) if instance.stage.sourced else record.recipe
        if "precision" in made_with:
            return str(made_with["precision"])
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
