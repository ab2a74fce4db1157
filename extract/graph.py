"""Which instances there are and what feeds them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from extract.config import ExtractConfig, InstanceConfig, validated
from extract.errors import ConfigError, UsageError
from extract.inputs.manifest import Clip
from extract.inputs.parts import part_files
from extract.names import LEGAL, is_legal, suggestion
from extract.registry import STAGES
from extract.stage import ClipStage, Output, RowsStage, Stage


@dataclass(frozen=True)
class Instance:
    """A stage with one config under one name, wired to the instances that feed it."""

    name: str
    stage: Stage[Any]
    feeds: Mapping[str, str]
    """Slot -> instance."""
    config: InstanceConfig

    @property
    def kept(self) -> tuple[Output, ...]:
        """The outputs that the store holds."""
        return tuple(o for o in self.stage.outputs if o.kept or o.name in self.config.keep)

    @property
    def is_clip_stage(self) -> bool:
        """Whether its block is the whole clip."""
        return isinstance(self.stage, ClipStage)

    def source_of(self, wanted: str) -> tuple[str, str]:
        """(instance, array) that feeds the declared input ``slot.array``."""
        slot, _, array = wanted.partition(".")
        return self.feeds[slot], array


def build_graph(config: ExtractConfig) -> dict[str, Instance]:
    """Every instance of the config and its inputs, inputs first.

    Raises:
        ConfigError: an unknown stage, slot, array or stage setting; a loop; something kept that cannot be.
    """
    listed = {name: entry or InstanceConfig() for name, entry in config.instances.items()}
    graph: dict[str, Instance] = {}

    def add(name: str, path: tuple[str, ...]) -> None:
        if name in graph:
            return
        if name in path:
            raise ConfigError(f"instances feed each other in a loop: {' <- '.join([*path, name])}")
        instance = _instance(name, listed.get(name, InstanceConfig()), path)
        for source in instance.feeds.values():
            add(source, (*path, name))
        for wanted in instance.stage.inputs:
            source, array = instance.source_of(wanted)
            given = [output.name for output in graph[source].stage.outputs]
            if array not in given:
                raise ConfigError(f"instance {name} needs {source}.{array}; {source} gives {', '.join(given)}")
        graph[name] = instance

    for name in listed:
        add(name, ())
    folders: dict[str, str] = {}
    for name in graph:
        other = folders.setdefault(name.lower(), name)
        if other != name:
            raise ConfigError(f"instances {other!r} and {name!r} differ only in case; each needs a folder of its own")
    return graph


def with_provided(graph: Mapping[str, Instance], clip: Clip) -> dict[str, Instance]:
    """The graph for one clip: what the clip brings along is read from its files and depends only on the clock.

    A clip with ``crops`` brings every instance of a stage that they provide.
    """
    own = dict(graph)
    for name, instance in graph.items():
        stand_in, part = instance.stage.stand_in, instance.stage.provided_by
        if stand_in is not None and part is not None and part_files(clip, part):
            clock = {slot: source for slot, source in instance.feeds.items() if graph[source].stage.clock}
            own[name] = Instance(name, stand_in(instance.stage.config), clock, instance.config)
    return own


def spared(graph: Mapping[str, Instance], own: Mapping[str, Instance]) -> set[str]:
    """Instances needed only for what the clip of ``own`` brings along: detections and faces, for given crops."""
    provided = [name for name in own if own[name] is not graph[name]]
    served = set(upstream(graph, provided)) - set(upstream(own, provided))
    return served - set(upstream(own, [name for name in own if name not in served]))


def _instance(name: str, entry: InstanceConfig, path: tuple[str, ...]) -> Instance:
    if not is_legal(name):
        raise ConfigError(f"instance {name!r} cannot name a folder of the store; expected {LEGAL}")
    stage_name = entry.stage or name
    if stage_name not in STAGES:
        needed = f" (needed by {path[-1]})" if path else ""
        hint = "" if entry.stage else "; an instance of a name of its own says `stage:`"
        raise ConfigError(
            f"instance {name}{needed}: no stage {stage_name!r}; {suggestion(stage_name, list(STAGES))}{hint}"
        )
    stage_type = STAGES[stage_name]
    own = [key for key in InstanceConfig.model_fields if key != "stage"]  # the runner's, at the same level
    where = f"instance {name} (stage {stage_name})"
    stage = stage_type(validated(stage_type.config_type, entry.stage_fields, where, also=own))
    slots = dict.fromkeys(wanted.partition(".")[0] for wanted in stage.inputs)
    for slot in entry.inputs:
        if slot not in slots:
            raise ConfigError(
                f"instance {name}: no input slot {slot!r}; {suggestion(slot, slots) if slots else 'it has none'}"
            )
    _refuse_unheeded(name, stage, entry)
    try:
        outputs = stage.outputs
    except ConfigError as error:  # their sizes may depend on what no field alone can tell
        raise ConfigError(f"{where}: {error}") from None
    keepable = [o.name for o in outputs if isinstance(stage, RowsStage) and None not in o.sizes]
    for kept in entry.keep:
        if kept not in keepable:
            fitting = ", ".join(o.name for o in outputs if not o.kept and o.name in keepable)
            raise ConfigError(f"instance {name}: cannot keep {kept!r}; can keep: {fitting or 'nothing more'}")
    return Instance(name, stage, {slot: entry.inputs.get(slot, slot) for slot in slots}, entry)


def _refuse_unheeded(name: str, stage: Stage[Any], entry: InstanceConfig) -> None:
    """Raise ConfigError for a setting that a stage of this kind cannot heed."""
    kind = "works on whole clips" if isinstance(stage, ClipStage) else "is read, not computed"
    if entry.batch is not None and not isinstance(stage, RowsStage):
        raise ConfigError(f"instance {name}: batch is for stages that work on rows, stage {stage.name} {kind}")
    if entry.block_rows is not None and isinstance(stage, ClipStage):
        raise ConfigError(f"instance {name}: block_rows is for arrays made row by row, stage {stage.name} {kind}")
    if entry.precision != "auto" and stage.device == "cpu":
        raise ConfigError(
            f"instance {name}: precision is for models that run on a GPU, stage {stage.name} always computes on the CPU"
        )


def select(graph: Mapping[str, Instance], stages: Sequence[str]) -> tuple[str, ...]:
    """Instances asked for, in the graph's order: by instance name, or all instances of a stage's name; none: all."""
    if not stages:
        return tuple(graph)
    wanted: set[str] = set()
    for asked in stages:
        found = {n for n, instance in graph.items() if asked in {n, instance.stage.name}}
        if not found:
            raise UsageError(f"--stage {asked}: no such instance or stage in the config; {suggestion(asked, graph)}")
        wanted |= found
    return tuple(name for name in graph if name in wanted)


def upstream(graph: Mapping[str, Instance], names: Iterable[str]) -> tuple[str, ...]:
    """``names`` and all that feeds them, in the graph's order."""
    needed: set[str] = set()
    stack = list(names)
    while stack:
        name = stack.pop()
        if name not in needed:
            needed.add(name)
            stack += graph[name].feeds.values()
    return tuple(name for name in graph if name in needed)


def downstream(graph: Mapping[str, Instance], names: Iterable[str]) -> tuple[str, ...]:
    """What ``names`` feed, directly or not, without themselves."""
    reached = set(names)
    start = set(reached)
    for name, instance in graph.items():
        if reached & set(instance.feeds.values()):
            reached.add(name)
    return tuple(name for name in graph if name in reached - start)
