"""Is every stored block what was written, and made of the files that are there now?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from extract import lease
from extract.errors import CorruptError, MachineError
from extract.planning import plan_clip, refuse_stale
from extract.runner import Options, Progress, Report, plan, run
from extract.sources import Sources
from extract.store import Damage, Store


@dataclass(frozen=True)
class Checked:
    """What was read, and what of it is damaged."""

    clips: int
    instances: int
    damage: tuple[Damage, ...]


def check(store: Store, clips: Sequence[str] = ()) -> Checked:
    """Read every block of every finished instance. A damaged record has ``array`` empty."""
    found: list[Damage] = []
    read = 0
    chosen = [clip for clip in store.clips() if not clips or clip in clips]
    for clip in chosen:
        for instance in store.files.folders(clip):
            try:
                record = store.record(clip, instance)
                if record and record.finished:
                    read += 1
                    found += store.damage(clip, instance)
            except CorruptError as error:
                found.append(Damage(clip, instance, "", -1, str(error)))
    return Checked(len(chosen), read, tuple(found))


def check_sources(
    manifest: str | Path, store: str, config: str | None, overrides: Sequence[str], clips: Sequence[str]
) -> None:
    """Hash every source file again.

    Raises:
        StaleError: a file has other bytes than the store was made from, though size and time are the same.
    """
    made, opened = plan(manifest, store, config, set=overrides, options=Options(clips=clips))
    if opened is None:
        return
    sources = Sources(rehash=True)
    for clip in made.clips:
        made.tasks[clip.id] = plan_clip(made, opened, clip, sources, retry=False)
    refuse_stale(made, opened)


def repair(
    checked: Checked,
    manifest: str | Path,
    store: str,
    config: str | None,
    overrides: Sequence[str],
    device: str,
    progress: Progress,
) -> Report:
    """Remove damaged blocks and compute them again, with the settings they were made with.

    Raises:
        StaleError: the config is not the one the store was made with; nothing was removed.
        MachineError: another run works on a damaged clip.
    """
    clips = sorted({damage.clip for damage in checked.damage})
    instances = sorted({damage.instance for damage in checked.damage})
    options = Options(stages=instances, clips=clips, device=device)
    opened = Store.open(store, "a")
    readable = tuple(d for d in checked.damage if d.array)
    for damage in checked.damage:
        if not damage.array:
            opened.files.delete(f"{damage.clip}/{damage.instance}/zarr.json")
    made, _ = plan(manifest, store, config, set=overrides, options=options)
    refuse_stale(made, opened)
    for clip in clips:
        with lease.held(opened.files, clip, "repair") as held:
            if isinstance(held, lease.Holder):
                raise MachineError(f"clip {clip}: {held} works on it; repair when it is through")
            for damage in (d for d in readable if d.clip == clip):
                record = opened.record(clip, damage.instance)
                if record is not None and record.finished:
                    opened.write_record(clip, damage.instance, replace(record, state="partial"))
                opened.delete_block(damage)
    return run(manifest, store, config, set=overrides, options=options, progress=progress)
