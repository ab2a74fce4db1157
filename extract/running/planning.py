"""What a run must do: what the store lacks, and what in it is stale."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from extract.config import ExtractConfig
from extract.errors import ClipError, CorruptError, StaleError
from extract.graph import Instance, build_graph, downstream, select, spared, upstream, with_provided
from extract.inputs.manifest import Clip
from extract.records import Record
from extract.running.fingerprints import Sources, parts_of
from extract.running.recipes import Prepared, prepare, sound_record
from extract.running.selection import Options
from extract.store import Store, is_store
from extract.weights.lock import lock_file

MAX_ATTEMPTS = 2
"""Times that work on a clip may begin without a committed block before it counts as ``crashed``."""

Need = Literal["finished", "missing", "partial", "failed", "crashed", "stale", "replaced", "transient"]
"""``stale`` is refused or, with ``--overwrite``, computed again; ``replaced`` is computed again without asking."""


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
    """Every instance; those that the clip provides in the form in which they are read."""
    prepared: dict[str, Prepared]
    """Those of the plan that this clip needs."""


@dataclass
class Plan:
    """What a run would do."""

    graph: dict[str, Instance]
    prepared: dict[str, Prepared]
    """The instances asked for and their inputs, inputs first."""
    clips: list[Clip]
    asked: tuple[str, ...] = ()
    """Instances asked for by name; if none, everything in the config that a clip can use."""
    tasks: dict[str, dict[str, Task]] = field(default_factory=dict)
    """Clip -> instance -> task."""
    damaged: dict[str, str] = field(default_factory=dict)
    """Clips with a damaged record, and what is damaged; the run does not touch them."""

    def of(self, clip: Clip) -> "ClipPlan":
        """The plan for one clip, with what the clip brings along in place of what would be computed."""
        graph = with_provided(self.graph, clip)
        needed = set(upstream(graph, self.asked)) if self.asked else set(graph) - spared(self.graph, graph)
        prepared = {name: _of_clip(one, graph[name]) for name, one in self.prepared.items() if name in needed}
        return ClipPlan(graph, prepared)

    def new_sources(self) -> Sources:
        """For this plan's fingerprints."""
        made = {name: one.made_with for name, one in self.prepared.items() if one.made_with is not None}
        return Sources(made_with=made)

    def todo(self) -> Iterator[tuple[str, Task]]:
        """(clip, task) of everything that a run would compute."""
        for clip, tasks in self.tasks.items():
            for task in tasks.values():
                if task.need in {"missing", "partial", "failed", "replaced"}:
                    yield clip, task

    def stale(self) -> list[tuple[str, Task]]:
        """(clip, task) of everything made with other settings or sources."""
        return [(c, task) for c, tasks in self.tasks.items() for task in tasks.values() if task.need == "stale"]


def _of_clip(prepared: Prepared, own: Instance) -> Prepared:
    """``prepared`` as one clip needs it: what it brings along has no use for the weights of a ``sourced`` stage."""
    brought = prepared.made_with is not None and not own.stage.sourced
    return replace(prepared, instance=own, weights=None if brought else prepared.weights)


def plan_clip(plan: Plan, store: Store | None, clip: Clip, sources: Sources, *, retry: bool) -> dict[str, Task]:
    """Compare what the store holds for one clip with what is wanted."""
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
        own = record.reason == "crashed" and record.cause is None
        crashed = own and not changes and not retry
        return Task(name, "crashed" if crashed else "failed", record, changes)
    if changes:
        rereadable = {f"source {part}" for part in prepared.instance.stage.reread}
        if all(change.partition(":")[0] in rereadable for change in changes):
            return Task(name, "replaced", record, changes)
        return Task(name, "stale", record, changes)
    if record.state == "partial":
        return Task(name, "partial", record)
    outdated = prepared.instance.stage.outdated(record.rows, record.notes)
    if outdated:
        return Task(name, "stale", record, (f"recipe {outdated}",))
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
            if isinstance(old, Mapping) and isinstance(new, Mapping):
                changes += [f"source {line}" for line in differences(old, new, part)]
            elif old != new:
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
    """Instances that have a record, depend on something stale, and were not asked for."""
    names = {task.name for _, task in plan.stale()}
    below = [name for name in downstream(plan.graph, names) if name not in plan.prepared]
    return [name for name in below if any(sound_record(store, clip.id, name) for clip in plan.clips)]


def make_plan(
    config: ExtractConfig, clips: Sequence[Clip], store: str | Path, options: Options, device_kind: str
) -> tuple[Plan, Store | None, Sources]:
    """What a run would do; nothing is written."""
    opened = Store.open(store) if "://" in str(store) or is_store(Path(store)) else None
    plan = prepared_plan(config, clips, opened, options, device_kind)
    sources = plan.new_sources()
    for clip in clips:
        try:
            plan.tasks[clip.id] = plan_clip(plan, opened, clip, sources, retry=options.retry)
        except CorruptError as error:  # of one record: the other clips are as good as before
            plan.tasks[clip.id] = {}
            plan.damaged[clip.id] = str(error)
    return plan, opened, sources


def prepared_plan(
    config: ExtractConfig, clips: Sequence[Clip], store: Store | None, options: Options, device_kind: str
) -> Plan:
    """Instances with their recipes, and no task yet.

    Raises:
        UsageError: an instance asked for is not there.
        WeightsError: weights are missing.
    """
    graph = build_graph(config)
    chosen = select(graph, options.stages)
    lock = options.lock or lock_file(None, store.path if store else None)
    prepared = prepare(graph, upstream(graph, chosen), store, clips, device_kind, offline=options.offline, lock=lock)
    return Plan(graph, prepared, list(clips), asked=chosen if options.stages else ())
