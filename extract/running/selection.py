"""Which clips and instances a run works on, and how."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from extract.config import ExtractConfig
from extract.errors import UsageError
from extract.inputs.manifest import Clip, load_manifest, refuse_shared
from extract.names import nearest
from extract.weights.lock import lock_file


@dataclass(frozen=True)
class Options:
    """Which clips and instances to work on, and how to treat existing results."""

    stages: Sequence[str] = ()
    clips: Sequence[str] = ()
    limit: int | None = None
    shard: str | None = None
    """``k/n``: the k-th of n parts of the manifest (1/n ... n/n), by the clips' order."""
    device: str = "auto"
    overwrite: bool = False
    retry: bool = False
    offline: bool = False
    allow_shared_subjects: bool = False
    """Accept a manifest in which one subject or source video is in several splits."""
    remember: bool = True
    """Keep the config in the store, for later commands."""
    lock: Path | None = None
    """``weights.lock``; None: as ``weights.lock.lock_file`` finds it, by config and store."""


def listed(manifest: str | Path | Sequence[Clip], options: Options) -> Sequence[Clip]:
    """The clips of a manifest, refused if its splits share people or recordings."""
    path = Path(manifest) if isinstance(manifest, str | Path) else None
    clips = load_manifest(path) if path is not None else cast(Sequence[Clip], manifest)
    if not options.allow_shared_subjects:
        refuse_shared(clips, path)
    return clips


def with_lock(options: Options, config: str | ExtractConfig | None, store: str | Path) -> Options:
    """The options with the ``weights.lock`` that config and store have, unless they name one."""
    if options.lock:
        return options
    return replace(options, lock=lock_file(config if isinstance(config, str) else None, store))


def choose(clips: Sequence[Clip], options: Options) -> list[Clip]:
    """The clips selected by ``--clip``, then ``--shard``, then ``--limit``."""
    known = {clip.id: clip for clip in clips}
    for asked in options.clips:
        if asked not in known:
            near = nearest(asked, known)
            hint = f"; did you mean {near!r}?" if near else ""
            raise UsageError(f"--clip {asked}: the manifest has no such clip{hint}")
    chosen = [clip for clip in clips if not options.clips or clip.id in options.clips]
    if options.shard is not None:
        part, _, parts = options.shard.partition("/")
        if not (options.shard.isascii() and part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
            raise UsageError(f"--shard {options.shard}: expected k/n with k from 1 to n, as in 1/4 ... 4/4")
        chosen = chosen[int(part) - 1 :: int(parts)]
    return chosen[: options.limit]
