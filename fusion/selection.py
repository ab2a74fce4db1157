"""Which clips of a store a split can use, whether their features fit together, and what is wrong with the others."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from extract.errors import CorruptError, UnfinishedError, UsageError, run_command
from extract.inputs.splits import SPLITS, Member, crossings
from extract.names import nearest, suggestion
from extract.records import Record
from extract.store import Store
from fusion.crop_kinds import kind_of, without_patch

FRAMES, LABELS = "frames", "labels"
"""Instances that every fit reads, whatever its modalities."""
ALIKE = 0.75
"""Similarity of a misspelt instance: ``swim`` to ``swin``. At less, ``roberta`` would be taken for ``hubert``."""
SHOWN = 8
"""Clips that a message lists before it only counts."""


@dataclass(frozen=True)
class Selection:
    """The clips of a split that can be used, and why others cannot."""

    split: str
    clips: tuple[str, ...]
    unlabelled: tuple[str, ...]
    """Clips for which the manifest names no label file."""
    skipped: Mapping[str, str]
    """Clip -> what is wrong with it; only with ``skip_failed``."""

    @property
    def left_out(self) -> dict[str, str]:
        """Clip -> why it is not used."""
        return {**dict.fromkeys(self.unlabelled, "no labels"), **self.skipped}


def select_clips(
    store: Store,
    split: str,
    instances: Iterable[str],
    *,
    skip_failed: bool = False,
    labelled: bool = True,
    tasks: Sequence[str] = ("au",),
    splits: Mapping[str, str] | None = None,
) -> Selection:
    """The clips of ``split`` whose ``instances`` are finished, and unless not ``labelled`` labels of one of ``tasks``.

    ``empty`` counts as finished: the recording lacks something, and the model knows how to do without it. Of a
    ``failed`` or unfinished instance nothing is known.

    Args:
        splits: clip -> split, in place of the store's; other clips are in none.

    Raises:
        UsageError: no such split can exist.
        UnfinishedError: some clips are not finished, and ``skip_failed`` is off; the message names them.
        CorruptError: a record is damaged.
    """
    if split not in SPLITS:
        raise UsageError(f"--split {split}: no such split; {suggestion(split, SPLITS)}")
    instances = tuple(dict.fromkeys((FRAMES, *((LABELS,) if labelled else ()), *instances)))
    usable, unlabelled = [], []
    problems: dict[str, str] = {}
    to_compute: set[str] = set()
    crashed = False
    for clip in store.clips():
        if (store.attributes(clip).get("split") if splits is None else splits.get(clip)) != split:
            continue
        found = []
        for instance in instances:
            record = store.record(clip, instance)
            if record is not None and record.finished:
                continue
            found.append(_problem(instance, record))
            to_compute.add(instance)
            crashed |= record is not None and record.reason == "crashed"
        if found:
            problems[clip] = ", ".join(found)
        elif labelled and not any(store.has(clip, LABELS, task) for task in tasks):
            unlabelled.append(clip)
        else:
            usable.append(clip)
    if problems and not skip_failed:
        raise UnfinishedError(
            f"{_counted(len(problems), 'clip')} of split {split} cannot be used:\n"
            + "\n".join([*_listed([f"  {clip}: {problem}" for clip, problem in problems.items()]), ""])
            + "".join(f"{line}\n" for line in _in_no_clip(store, instances))
            + f"compute what is missing with `{_command(store, to_compute, crashed=crashed)}`, "
            "or leave these clips out with --skip-failed"
        )
    return Selection(split, tuple(usable), tuple(unlabelled), problems)


def require_clips(store: Store, selection: Selection) -> None:
    """Refuse a split in which no clip can be used.

    Raises:
        UsageError: the message says which splits there are, and why this one is empty.
    """
    if selection.clips:
        return
    found = ", ".join(f"{name} {count}" for name, count in sorted(_clips_per_split(store).items())) or "none"
    reason = ""
    if selection.unlabelled or selection.skipped:
        reason = f" ({len(selection.unlabelled)} without labels, {len(selection.skipped)} left out)"
        reason += "".join(f"; for example {clip}: {problem}" for clip, problem in [*selection.skipped.items()][:1])
    raise UsageError(
        f"{store.path}: no labelled clip in split {selection.split}{reason}; clips per split: {found}. "
        "Set `split:` and `labels:` in the manifest and run `extract run` again"
    )


@contextmanager
def all_damage_named(store: Store, splits: Sequence[str], instances: Iterable[str]) -> Iterator[None]:
    """Where reading the store meets one damaged record or block, name all that the clips of ``splits`` have.

    Raises:
        CorruptError: what is damaged, one line each, in place of the first that was met.
    """
    try:
        yield
    except CorruptError as first:
        found = _damage(store, splits, dict.fromkeys((FRAMES, LABELS, *instances))) or [str(first)]
        raise CorruptError(
            f"{store.path}: {_counted(len(found), 'damaged record or block', 'damaged records and blocks')}:\n"
            + "\n".join(f"  {line}" for line in found)
            + "\n`extract verify --repair` computes them again"
        ) from first


def _damage(store: Store, splits: Sequence[str], instances: Iterable[str]) -> list[str]:
    found = []
    for clip in store.clips():
        try:
            if store.attributes(clip).get("split") not in splits:
                continue
        except CorruptError as error:
            found.append(error.problem)
            continue
        for instance in instances:
            try:
                for damage in store.damage(clip, instance):
                    block = f", block {damage.block}" if damage.block >= 0 else ""
                    found.append(f"clip {clip}, {instance}/{damage.array}{block}: {damage.message}")
            except CorruptError as error:
                found.append(error.problem)
    return found


def shared_people(store: Store, split_of: Mapping[str, str]) -> list[str]:
    """A line for each subject or source video that lies in several splits: scores on such clips flatter.

    Args:
        split_of: clip -> split, of the clips in use.
    """
    members = []
    for clip in split_of:
        attributes = store.attributes(clip)
        members.append(Member(clip, attributes.get("source_video") or clip, attributes.get("subject")))
    return [
        f"{crossing.shared} lies in several splits: "
        + "; ".join(f"{split}: {', '.join(clips)}" for split, clips in crossing.clips.items())
        for crossing in crossings(members, split_of)
    ]


# ---- recipes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FeatureSource:
    """What the store says of one instance, for all clips in use."""

    recipe: Mapping[str, Any]
    """The same for every clip."""
    fingerprints: Mapping[str, str]
    """Clip -> fingerprint."""
    untrained: bool
    """Whether its encoder has random weights."""
    weights: Mapping[str, str]
    """sha256 -> what the extraction's config called these weights, its own and those of its inputs."""
    drawn: tuple[str, ...]
    """Clips whose pictures were drawn by a program that says so in the file."""
    crops: Mapping[str, str] = field(default_factory=dict)
    """Clip -> ``given``, ``as_given`` or ``cut`` (fusion/crop_kinds.py); empty where no crop is involved."""
    adapted_on: tuple[str, ...] = ()
    """Clips that the weights, its own or those of its inputs, were trained on."""


def feature_sources(store: Store, clips: Sequence[str], instances: Iterable[str]) -> dict[str, FeatureSource]:
    """The records of ``instances``, checked to hold one recipe each.

    Raises:
        UsageError: two clips were extracted with different recipes; the message names them and the first difference.
    """
    found = {}
    for instance in instances:
        records = {clip: record for clip in clips if (record := store.record(clip, instance)) is not None}
        first = next(iter(records))
        for clip, record in records.items():
            difference = first_difference(without_patch(records[first].recipe), without_patch(record.recipe))
            if difference is not None:
                raise UsageError(
                    f"instance {instance}: clips {first} and {clip} hold features of different recipes ({difference}); "
                    f"extract them with one config: `{run_command(store.path, f'--stage {instance}', '--overwrite')}`"
                )
        found[instance] = FeatureSource(
            recipe=records[first].recipe,
            fingerprints={clip: record.fingerprint for clip, record in records.items()},
            untrained=any(record.provenance.get("untrained", False) for record in records.values()),
            weights={
                named["sha256"]: named["spec"]
                for record in records.values()
                for named in record.provenance.get("weights", {}).values()
            },
            drawn=tuple(clip for clip, record in records.items() if "drawn" in record.notes),
            crops={clip: kind for clip, record in records.items() if (kind := kind_of(record)) is not None},
            adapted_on=tuple(clip for clip, record in records.items() if record.saw_clip),
        )
    return found


def untrained(sources: Mapping[str, FeatureSource]) -> tuple[str, ...]:
    """Instances whose encoder has random weights."""
    return tuple(instance for instance, source in sources.items() if source.untrained)


def first_difference(one: object, other: object, path: str = "") -> str | None:
    """Where two JSON values first differ, as ``config.crop: 224 against 112``; None if they are equal."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in dict.fromkeys((*one, *other)):
            here = f"{path}.{key}" if path else str(key)
            difference = first_difference(one.get(key), other.get(key), here)
            if difference is not None:
                return difference
        return None
    return None if one == other else f"{path}: {one!r} against {other!r}"


# ---- words for messages --------------------------------------------------------------------------------------------


def _problem(instance: str, record: Record | None) -> str:
    if record is None:
        return "its labels were never imported" if instance == LABELS else f"{instance} was never computed"
    if record.state == "failed":
        return f"{instance} failed ({record.reason}: {record.message})"
    return f"{instance} is not finished (an interrupted run)"


def _in_no_clip(store: Store, instances: Iterable[str]) -> list[str]:
    """A line for each instance that no clip has: a similar name that is there, or how to do without it."""
    known = sorted({name for clip in store.clips() for name in store.instances(clip)})
    lines = []
    for instance in instances:
        if instance in known or instance in {FRAMES, LABELS}:
            continue
        near = nearest(instance, known, ALIKE)
        remedy = f"did you mean {near!r}?" if near else "fit without it: --set modalities.NAME=null for what reads it"
        lines.append(f"no clip has an instance {instance!r}; {remedy}")
    return lines


def _command(store: Store, instances: Iterable[str], *, crashed: bool) -> str:
    """The command that computes ``instances``, with the config that the store was made with (its ``--set`` aside)."""
    kept = store.config()
    config = [f"-c {kept.name}"] if kept and kept.name else []
    stages = [f"--stage {instance}" for instance in sorted(instances, reverse=True)]
    return run_command(store.path, *config, *stages, *(["--retry"] if crashed else []))


def _clips_per_split(store: Store) -> dict[str, int]:
    """Clips per split; those without one count as ``none``."""
    found: dict[str, int] = {}
    for clip in store.clips():
        name = store.attributes(clip).get("split") or "none"
        found[name] = found.get(name, 0) + 1
    return found


def _counted(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def _listed(lines: list[str]) -> list[str]:
    return lines if len(lines) <= SHOWN else [*lines[:SHOWN], f"  and {len(lines) - SHOWN} more"]
