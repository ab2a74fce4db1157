"""In which order a clip's instances are worked on: which share a pass over the frames, and which must wait."""

from collections.abc import Collection, Mapping, Sequence

from extract.graph import Instance, upstream
from extract.running.planning import ClipPlan
from extract.stage import SourceStage


class Order:
    """The instances of one clip, feeding ones first."""

    def __init__(self, plan: ClipPlan) -> None:
        self._graph, self._prepared = plan.graph, plan.prepared

    def instance(self, name: str) -> Instance:
        return self._prepared[name].instance

    def passes(self, wanted: Collection[str]) -> "list[tuple[list[str], list[str]]]":
        """What to do one after the other: (instances of one pass over the frames, clip stages behind it) each."""
        levels = self._levels()
        steps: list[tuple[list[str], list[str]]] = []
        for level in sorted(set(levels.values())):
            names = [name for name in self._prepared if levels[name] == level and name in wanted]
            per_row = [name for name in names if not self.instance(name).is_clip_stage]
            # Each kind of pictures is decoded in its own way.
            steps += [
                ([name for name in per_row if self.pictures_of(name) == pictures], [])
                for pictures in dict.fromkeys(map(self.pictures_of, per_row))
            ]
            steps.append(([], [name for name in names if self.instance(name).is_clip_stage]))
        return steps

    def _levels(self) -> Mapping[str, int]:
        """Instance -> number of the pass it belongs to: what a clip stage or other pictures feed waits for the next.

        So given crops wait for the frames: how many there are must be known first.
        """
        levels: dict[str, int] = {}
        for name, prepared in self._prepared.items():
            instance = prepared.instance
            below = 0
            for source in instance.feeds.values():
                waits = not instance.is_clip_stage and (
                    self.instance(source).is_clip_stage or self.pictures_of(source) != self.pictures_of(name)
                )
                below = max(below, levels[source] + int(waits))
            levels[name] = below
        return levels

    def pictures_of(self, name: str) -> str:
        """What is decoded for ``name``, which is no clip stage: its frames instance, or given crops."""
        instance = self.instance(name)
        if isinstance(instance.stage, SourceStage):
            return name
        feeds = [instance.source_of(declared) for declared in instance.stage.inputs]
        in_memory = [source for source, array in feeds if array not in {o.name for o in self.instance(source).kept}]
        per_row = [source for source, _ in feeds if not self.instance(source).is_clip_stage]
        below = (*in_memory, *per_row)
        return self.pictures_of(below[0]) if below else self.clock_of(name)

    def clock_of(self, name: str) -> str:
        """The frames instance that ``name`` rests on."""
        return next(n for n in upstream(self._graph, [name]) if self.instance(n).stage.clock)

    def below(self, names: Sequence[str]) -> tuple[str, ...]:
        """All that feeds ``names``, directly or not."""
        return tuple(name for name in upstream(self._graph, names) if name not in names)

    def with_helpers(self, names: Sequence[str], todo: Collection[str]) -> list[str]:
        """``names`` and what feeds them in memory: instances to be computed again, or decoded, because what they give
        is not in the store."""
        needed = list(names)
        stack = list(names)
        while stack:
            instance = self.instance(stack.pop())
            for declared in instance.stage.inputs:
                source, array = instance.source_of(declared)
                kept = {output.name for output in self.instance(source).kept}
                if (array not in kept or source in {*todo} & {*names}) and source not in needed:
                    needed.append(source)
                    stack.append(source)
        return [name for name in self._prepared if name in needed]

    def recorded_feeds(self, name: str) -> list[str]:
        """What feeds ``name`` and has a record; for what only flows through memory, what feeds that."""
        found: list[str] = []
        for source in self.instance(name).feeds.values():
            found += [source] if self.instance(source).kept else self.recorded_feeds(source)
        return list(dict.fromkeys(found))
