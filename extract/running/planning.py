"""What there is to do: recipes, and what the store lacks or holds stale."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from extract.errors import ClipError, CorruptError, StaleError, WeightsError
from extract.graph import Instance, downstream, spared, upstream, with_provided
from extract.inputs.manifest import Clip
from extract.running.fingerprints import Sources, parts_of, sha256_of
from extract.store import Record, Store
from extract.weights import lock, resolving
from extract.weights.files import Weights

MAX_ATTEMPTS = 2
"""Times that work on a clip may begin without a committed block before it counts as ``crashed``."""

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
    lock: Path = Path(lock.LOCK),
) -> dict[str, Prepared]:
    """Resolve weights and precision of ``names`` (feeding ones first) and make their recipes.

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
    config = stage.config.model_dump(mode="json")
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
    """``auto`` is what the store holds, of whatever clip: shards on different machines must not part ways."""
    asked = instance.config.precision
    if asked != "auto" or instance.stage.device == "cpu":
        return asked if asked != "auto" else "float32"
    for clip in store.clips() if store else ():
        record = _sound_record(store, clip, instance.name)
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
    """sha256 of the weights that every clip was finished with, where the recipe is else the wanted one."""
    found: set[str] = set()
    for clip in clips:
        record = _sound_record(store, clip.id, instance.name)
        if record is None or not record.finished:
            return None
        sha256 = record.recipe.get("weights", "")
        if record.recipe != _recipe(instance, sha256, precision, prepared):
            return None
        found.add(sha256)
    return found.pop() if len(found) == 1 else None


def _sound_record(store: Store | None, clip: str, instance: str) -> Record | None:
    """The record; None where there is none, or a damaged one, which is told when its clip is planned."""
    try:
        return store.record(clip, instance) if store else None
    except CorruptError:
        return None


Need = Literal["finished", "missing", "partial", "failed", "crashed", "stale", "replaced", "transient"]
"""``stale`` is refused or, with ``--overwrite``, computed anew; ``replaced`` is computed anew without asking."""


@dataclass(frozen=True)
class Task:
    """One instance of one clip: what the store has, and what is wanted."""

    name: str
    need: Need
    record: Record | None
    changes: tuple[str, ...] = ()
    """For ``stale``: what differs, as ``field: old -> new``."""
    unchecked: bool = False
    """Finished, but its source is gone and could not be compared."""


@dataclass(frozen=True)
class ClipPlan:
    """A plan for one clip."""

    graph: dict[str, Instance]
    """Every instance, those that the clip provides as they are read."""
    prepared: dict[str, Prepared]
    """As of the plan, less what this clip does not need."""


@dataclass
class Plan:
    """What a run would do."""

    graph: dict[str, Instance]
    prepared: dict[str, Prepared]
    """Instances asked for and what feeds them, feeding ones first."""
    clips: list[Clip]
    asked: tuple[str, ...] = ()
    """Instances asked for by name; none: whatever the config lists, where a clip has a use for it."""
    tasks: dict[str, dict[str, Task]] = field(default_factory=dict)
    """Clip -> instance -> task."""
    damaged: dict[str, str] = field(default_factory=dict)
    """Clips with a damaged record, which are left alone, and what is damaged."""

    def of(self, clip: Clip) -> "ClipPlan":
        """What of it concerns this clip, with what the clip brings along in its place."""
        graph = with_provided(self.graph, clip)
        needed = set(upstream(graph, self.asked)) if self.asked else set(graph) - spared(self.graph, graph)
        prepared = {name: replace(one, instance=graph[name]) for name, one in self.prepared.items() if name in needed}
        return ClipPlan(graph, prepared)

    def todo(self) -> Iterator[tuple[str, Task]]:
        """(clip, task) of everything that a run would compute."""
        for clip, tasks in self.tasks.items():
            for task in tasks.values():
                if task.need in {"missing", "partial", "failed", "replaced"}:
                    yield clip, task

    def stale(self) -> list[tuple[str, Task]]:
        """(clip, task) of everything that was made with other settings or sources."""
        return [(c, task) for c, tasks in self.tasks.items() for task in tasks.values() if task.need == "stale"]


def plan_clip(plan: Plan, store: Store | None, clip: Clip, sources: Sources, *, retry: bool) -> dict[str, Task]:
    """Compare what the store holds of one clip with what is wanted."""
    tasks: dict[str, Task] = {}
    own = plan.of(clip)
    for name, prepared in own.prepared.items():
        if not prepared.instance.kept:
            tasks[name] = Task(name, "transient", None)
            continue
        record = store.record(clip.id, name) if store else None
        tasks[name] = _task(own, store, clip, prepared, record, sources, retry=retry)
    return tasks


def _task(
    plan: ClipPlan,
    store: Store | None,
    clip: Clip,
    prepared: Prepared,
    record: Record | None,
    sources: Sources,
    *,
    retry: bool,
) -> Task:
    name = prepared.instance.name
    if store is None or record is None:
        return Task(name, "missing", None)
    if record.recipe == prepared.recipe:  # one object for ten thousand clips, and nothing to look for below
        record = replace(record, recipe=prepared.recipe)
    parts = parts_of(plan.graph, name, clip)
    sources.trust(clip, record)
    gone = sources.is_gone(clip, parts)
    try:  # what is finished stays readable when its files are gone; the other parts are compared all the same
        source: dict[str, Any] | None = sources.source(clip, parts, believe_gone=True)
    except ClipError:
        source = None
    changes = _changes(record, prepared.recipe, source)
    if record.state == "failed" or not record.fingerprint:  # or settled when its source was not there to be hashed
        # Nothing finished is lost by trying again; what blocks it has are kept if they are of this fingerprint.
        own = record.reason == "crashed" and not (record.message or "").startswith("from ")
        crashed = own and not changes and not retry
        return Task(name, "crashed" if crashed else "failed", record, changes)
    if changes:
        labels_alone = all(change.startswith("source labels") for change in changes)
        if labels_alone:  # an import that feeds nothing: re-read without asking
            return Task(name, "replaced", record, changes)
        return Task(name, "stale", record, changes)
    if record.state == "partial":
        return Task(name, "partial", record)
    absent = record.rows > 0 and any(not store.has(clip.id, name, output.name) for output in prepared.instance.kept)
    if absent:  # `keep` asks for more than before, or someone deleted an array
        return Task(name, "partial", record)
    return Task(name, "finished", record, unchecked=gone)


def _changes(record: Record, recipe: Mapping[str, Any], source: Mapping[str, Any] | None) -> tuple[str, ...]:
    same = record.recipe is recipe
    changes = [] if same else [f"recipe {line}" for line in differences(record.recipe, recipe)]
    if source is not None:
        for part in sorted({*record.source, *source}):
            old, new = record.source.get(part), source.get(part)
            if old != new:
                changes.append(f"source {part}: {_short(old)} -> {_short(new)}")
    return tuple(changes)


def differences(old: object, new: object, path: str = "") -> list[str]:
    """Where two recipes differ, as ``path: old -> new``; ``inputs.`` and ``config.`` are left out of paths."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        lines = []
        for key in [*old, *(key for key in new if key not in old)]:
            below = path if key in {"inputs", "config"} else f"{path}.{key}".lstrip(".")
            lines += differences(old.get(key), new.get(key), below)
        return lines
    return [] if old == new else [f"{path}: {_short(old)} -> {_short(new)}"]


def _short(value: object) -> str:
    text = "none" if value is None else str(value)
    return f"{text[:12]}..." if len(text) == 64 else text


def refuse_stale(plan: Plan, store: Store) -> None:
    """Raise StaleError naming what changed, where anything asked for, or feeding it, is stale."""
    stale = plan.stale()
    if not stale:
        return
    lines = []
    by_reason: dict[tuple[str, ...], list[tuple[str, Task]]] = {}
    for clip, task in stale:  # every clip's file has a hash of its own: one line for all of them
        kinds = (change.partition(":")[0] if change.startswith("source") else change for change in task.changes)
        by_reason.setdefault((task.name, *kinds), []).append((clip, task))
    for found in by_reason.values():
        clip, task = found[0]
        first = f"{len(found)} clips (first {clip})" if len(found) > 1 else f"clip {clip}"
        lines.append(f"  {task.name}: {first}: {'; '.join(task.changes)}")
    below = stale_downstream(plan, store)
    also = f" (then also stale: {', '.join(below)})" if below else ""
    raise StaleError(
        f"store {store.path} holds values of other settings or sources; nothing was computed or removed\n"
        + "\n".join(lines)
        + f"\n  --overwrite computes them again{also}; another --store keeps both"
    )


def stale_downstream(plan: Plan, store: Store) -> list[str]:
    """What is fed by something stale, has a record in the store, and is not asked for."""
    names = {task.name for _, task in plan.stale()}
    below = [name for name in downstream(plan.graph, names) if name not in plan.prepared]
    return [name for name in below if any(_sound_record(store, clip.id, name) for clip in plan.clips)]
