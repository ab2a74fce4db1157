"""From raw videos to per-frame multimodal features in one resumable Zarr store.

``extract.run`` does what the command ``extract run`` does; ``extract.open_store`` opens what it wrote. They import
torch and Zarr, which takes seconds, only when they are called.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from extract.config import ExtractConfig
    from extract.inputs.manifest import Clip
    from extract.running.report import Progress, Report
    from extract.running.selection import Options
    from extract.store import Store

__all__ = ["open_store", "run"]


def run(
    manifest: "str | Path | Sequence[Clip]" = "data_manifest.yaml",
    store: str | Path = "store.zarr",
    config: "str | ExtractConfig | None" = None,
    *,
    set: Sequence[str] = (),
    stages: Sequence[str] = (),
    clips: Sequence[str] = (),
    limit: int | None = None,
    shard: str | None = None,
    device: str = "auto",
    overwrite: bool = False,
    retry: bool = False,
    offline: bool = False,
    allow_shared_subjects: bool = False,
    options: "Options | None" = None,
    progress: "Progress | None" = None,
) -> "Report":
    """Compute what the store lacks of the manifest's clips.

    Args:
        manifest: its file, or the clips themselves.
        store: folder of the store; made if it does not exist.
        config: a built-in config, a YAML file, or the settings themselves. None is ``default``.
        set: ``a.b=c`` each, over that config, as in ``swin.batch=8``.
        stages: only these instances (or all instances of a stage), and what feeds them.
        clips: only these clips.
        limit: only the first so many clips.
        shard: ``k/n``: only the k-th of n parts of the clips.
        device: ``auto``, ``cpu`` or ``cuda:N``.
        overwrite: compute stale instances again.
        retry: try clips again that crashed the process twice.
        offline: use no network.
        allow_shared_subjects: accept a subject or source video that lies in several splits.
        options: the settings from ``stages`` on as one object, in place of them.
        progress: is told how far the run is.

    Returns:
        What was done, and which clips failed. Failed clips raise nothing: look at ``exit_code`` and ``failures``.

    Raises:
        UsageError: config, manifest or arguments are wrong, or the store is stale (nothing was changed).
        WeightsError: weights are missing (before any work).
        MachineError: the disk, the store or the GPU gave up; what was finished stays.
    """
    from extract.errors import UsageError
    from extract.running import runner
    from extract.running.selection import Options

    single = Options(
        stages=stages,
        clips=clips,
        limit=limit,
        shard=shard,
        device=device,
        overwrite=overwrite,
        retry=retry,
        offline=offline,
        allow_shared_subjects=allow_shared_subjects,
    )
    if options is not None and single != Options():
        raise UsageError("extract.run: give `options` or single settings, not both")
    return runner.run(manifest, store, config, set=set, options=options or single, progress=progress)


def open_store(path: str | Path) -> "Store":
    """Open a store for reading.

    Raises:
        StoreError: nothing is there, or it is not a store of this program.
    """
    from extract.store import Store

    return Store.open(path)
