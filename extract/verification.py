"""Checks that every stored block is what was written, and was made from the files that exist now."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from extract.damage import Damage
from extract.errors import ClipError, ConfigError, CorruptError, MachineError, StaleError, StoreError, UsageError
from extract.inputs.manifest import Clip, load_manifest
from extract.names import nearest
from extract.records import Record
from extract.registry import STAGES
from extract.running import lease
from extract.running.fingerprints import Sources, fingerprint, parts_of, sha256_of
from extract.running.planning import Plan, refuse_stale
from extract.running.report import Progress, Report
from extract.running.runner import as_made, plan, refresh_attributes, run
from extract.running.selection import Options, choose
from extract.stage import ClipStage
from extract.store import Store


@dataclass(frozen=True)
class Checked:
    """What was read, and what of it is damaged."""

    clips: int
    instances: int
    """Finished ones."""
    unfinished: int
    damage: tuple[Damage, ...]


def root_is_damaged(path: str | Path) -> bool:
    """Whether a store's root metadata is damaged or missing while its clips exist."""
    try:
        Store.open(path)
    except CorruptError:
        return Store.holds_clips_of_ours(Path(path))
    except StoreError:
        return False
    return False


def check(store: Store, clips: Sequence[str] = ()) -> Checked:
    """Read every existing block. Of a damaged record ``array`` is empty; of a clip's attributes ``instance`` too.

    Raises:
        UsageError: the store has no such clip.
    """
    held = store.clips()
    for asked in clips:
        if asked not in held:
            near = nearest(asked, held)
            raise UsageError(f"--clip {asked}: the store has no such clip{f'; did you mean {near!r}?' if near else ''}")
    found: list[Damage] = []
    finished = unfinished = 0
    chosen = [clip for clip in held if not clips or clip in clips]
    for clip in chosen:
        try:
            store.attributes(clip)
        except CorruptError as error:
            found.append(Damage(clip, "", "", -1, str(error)))
    for clip, instance, record in store.survey(chosen):
        if isinstance(record, CorruptError):
            found.append(Damage(clip, instance, "", -1, str(record)))
            continue
        # Its source was not there when it was tried: nothing is stored, nothing damaged.
        if record.state == "empty" and not record.fingerprint and not record.source:
            unfinished += 1
            continue
        if record.finished and record.fingerprint != fingerprint(sha256_of(record.recipe), record.source):
            found.append(Damage(clip, instance, "", -1, "the record is not what was written"))
            continue
        finished += record.finished
        unfinished += not record.finished
        # An array of another form goes whole: blocks made again under its metadata would be wrong again.
        unlike = _unlike_declared(store, clip, instance, record)
        reported = {damage.array for damage in unlike}
        found += unlike
        found += [damage for damage in store.damage(clip, instance) if damage.array not in reported]
    return Checked(len(chosen), finished, unfinished, tuple(found))


def _unlike_declared(store: Store, clip: str, instance: str, record: Record) -> list[Damage]:
    """Arrays of a finished instance that differ from, or are missing among, those that its stage declares today."""
    stage_type = STAGES.get(str(record.recipe.get("stage")))
    without_arrays = record.state == "empty" and not record.rows
    provided = "provided" in record.provenance  # read from files of the clip's own, in a form of their own
    if stage_type is None or not record.finished or without_arrays or provided:
        return []
    if record.recipe.get("version") != stage_type.version:
        return []  # what it declared then is not known now
    config = record.recipe.get("config", {})
    if "weights" in stage_type.config_type.model_fields and "weights" not in config:
        config = {**config, "weights": "unnamed"}  # a recipe names weights by content; no array's form depends on them
    try:
        outputs = stage_type(stage_type.config_type.model_validate(config)).outputs
    except (ValueError, TypeError, ConfigError, ImportError):  # of another version of this program or of a library
        return []
    kept = [output for output in outputs if output.kept]
    return store.unlike(clip, instance, kept, whole=issubclass(stage_type, ClipStage))


@dataclass(frozen=True)
class SourcesChecked:
    """The result of hashing every source file again."""

    files: int
    changed: tuple[str, ...]
    """``clip, instance: part`` whose bytes have changed, even where size and time have not."""
    gone: tuple[str, ...]
    """Clips with a missing file."""


def check_sources(manifest: str | Path, store: Store, clips: Sequence[str]) -> SourcesChecked:
    """Hash every source file of the store's clips again; needs the manifest, no config and no weights."""
    sources = Sources(rehash=True)
    changed: list[str] = []
    gone: dict[str, None] = {}
    hashed = 0
    for clip in choose(load_manifest(Path(manifest)), Options(clips=clips)):
        reported: set[str] = set()
        for _, instance, record in store.survey([clip.id]):
            sound = not isinstance(record, CorruptError) and record.finished
            for part, recorded in (record.source if sound else {}).items():  # type: ignore[union-attr]
                if part.startswith("choice.") or part in reported:
                    continue
                try:
                    if sources.source(clip, (part,))[part] != recorded:
                        changed.append(f"clip {clip.id}, {instance}: source {part} has other bytes")
                except ClipError:
                    gone[clip.id] = None
                reported.add(part)
                hashed += 1
    return SourcesChecked(hashed, tuple(changed), tuple(gone))


def repair(
    checked: Checked,
    manifest: str | Path,
    store: str,
    config: str | None,
    overrides: Sequence[str],
    device: str,
    progress: Progress,
) -> Report:
    """Remove damaged blocks and compute them again, with the config that the store was made with or the one named.

    Everything is looked at before anything is removed.

    Raises:
        StaleError: the config is not the one the store was made with.
        CorruptError: a source file is gone, so that what is damaged cannot be computed again.
        MachineError: another run works on a damaged clip.
    """
    clips = sorted({damage.clip for damage in checked.damage})
    instances = sorted({damage.instance for damage in checked.damage if damage.instance})
    loaded, lock = as_made(store, config, overrides)
    # How the clips are split has nothing to do with what they are: it is no reason to leave damage.
    options = Options(
        stages=instances, clips=clips, device=device, allow_shared_subjects=True, remember=False, lock=lock
    )
    opened = Store.open(store, "a")
    by_id = {clip.id: clip for clip in choose(load_manifest(Path(manifest)), options)}
    with ExitStack() as stack:
        for clip in clips:
            held = stack.enter_context(lease.held(opened.files, clip, "repair"))
            if isinstance(held, lease.Holder):
                raise MachineError(f"clip {clip}: {held} works on it; repair when it is through. Nothing was removed")
        for damage in checked.damage:
            if not damage.instance:
                refresh_attributes(opened, by_id[damage.clip])
        if not instances:
            return Report(run="repair")
        of_instances = [damage for damage in checked.damage if damage.instance]
        set_aside = _set_aside_damaged_records(opened, of_instances)
        try:
            made, _ = plan(manifest, store, loaded, options=options)
            refuse_stale(made, opened)
            for damage in of_instances:
                _require_same_made(opened, made, by_id[damage.clip], damage)
        except BaseException:
            for key, data in set_aside.items():
                opened.files.write(key, data)
            raise
        for damage in of_instances:
            record = opened.record(damage.clip, damage.instance)
            if record is not None and record.finished:
                opened.write_record(damage.clip, damage.instance, replace(record, state="partial"))
            if damage.array:
                opened.delete_block(damage)
    return run(manifest, store, loaded, options=options, progress=progress)


def _set_aside_damaged_records(store: Store, damage: Sequence[Damage]) -> dict[str, bytes]:
    """Remove unreadable records so that a plan can be made; returns them, to be restored if the repair is refused."""
    keys = [f"{d.clip}/{d.instance}/zarr.json" for d in damage if not d.array]
    aside = {key: store.files.read(key) or b"" for key in keys}
    for key in keys:
        store.files.delete(key)
    return aside


def _require_same_made(store: Store, plan: Plan, clip: Clip, damage: Damage) -> None:
    """Raise unless the damaged instance can be computed again with the same result."""
    try:
        source = plan.new_sources().source(clip, parts_of(plan.of(clip).graph, damage.instance, clip))
    except ClipError as error:
        raise CorruptError(
            f"clip {clip.id}, {damage.instance} is damaged and cannot be computed again: {error}. Nothing was removed"
        ) from None
    if damage.array:
        return  # its record was compared with the plan
    wanted = fingerprint(plan.prepared[damage.instance].recipe_sha256, source)
    made_under = set(_fingerprints(store, f"{clip.id}/{damage.instance}").values())
    if made_under - {wanted}:
        raise StaleError(
            f"clip {clip.id}, {damage.instance}: its record is damaged and its arrays were made with other settings "
            "than the config's; give those settings, or --overwrite it by `extract run`. Nothing was removed"
        )


def _fingerprints(store: Store, key: str) -> Mapping[str, str]:
    """Array -> the fingerprint in its metadata, where that can be read."""
    found = {}
    for array in store.files.folders(key):
        try:
            found[array] = json.loads(store.files.read(f"{key}/{array}/zarr.json") or b"")["attributes"]["fingerprint"]
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return found
