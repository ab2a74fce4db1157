"""Parting clips so that nobody is on both sides: groups by source video and subject, shares, folds, exact names.

Pure functions over names; everybody who parts clips uses them.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from extract.errors import UsageError


@dataclass(frozen=True)
class Member:
    """What decides which clips belong together."""

    id: str
    source_video: str
    subject: str | None = None


def groups(members: Iterable[Member]) -> list[tuple[str, ...]]:
    """Ids that must lie together, as sorted tuples in sorted order.

    Two clips of one recording belong together, two of one person do, and so do two that a third one links.
    """
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    ids: dict[str, str] = {}
    for member in members:
        keys = [f"video {member.source_video}"]
        if member.subject is not None:
            keys.append(f"subject {member.subject}")
        for key in keys:
            parent.setdefault(key, key)
        for key in keys[1:]:
            parent[root(key)] = root(keys[0])
        ids[member.id] = keys[0]
    together: dict[str, list[str]] = {}
    for clip, key in ids.items():
        together.setdefault(root(key), []).append(clip)
    return sorted(tuple(sorted(clips)) for clips in together.values())


def hold_out(members: Iterable[Member], share: float, seed: int) -> set[str]:
    """Ids of about ``share`` of the groups, at least one and never all of them.

    A group's place is decided by a hash of the seed and its first id, so the order of the clips does not matter and a
    clip that is added moves few others.

    Raises:
        UsageError: fewer than two groups, or a share that is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise UsageError(f"a share of {share:g} cannot be held out; expected more than 0 and less than 1")
    parts = _shuffled(groups(members), seed)
    if len(parts) < 2:
        raise UsageError(
            f"{len(parts)} group of clips (one source video or person) cannot be parted; expected two or more"
        )
    number = min(max(round(share * len(parts)), 1), len(parts) - 1)
    return {clip for part in parts[:number] for clip in part}


def folds(members: Iterable[Member], k: int, seed: int) -> list[set[str]]:
    """Ids of ``k`` folds: every clip in one, nobody in two, the numbers of clips as even as the groups allow.

    Raises:
        UsageError: fewer groups than folds.
    """
    parts = sorted(_shuffled(groups(members), seed), key=len, reverse=True)
    if not 1 < k <= len(parts):
        raise UsageError(f"{len(parts)} groups of clips cannot make {k} folds; expected 2 to {len(parts)}")
    found: list[set[str]] = [set() for _ in range(k)]
    for part in parts:  # the largest first, each to the fold that has least
        min(found, key=len).update(part)
    return found


def by_names(members: Iterable[Member], wanted: Mapping[str, Collection[str]]) -> dict[str, str]:
    """Clip -> split, for splits given by exact names.

    Raises:
        UsageError: a name that no clip has, one in two splits, or two splits that share a recording or a person.
    """
    members = list(members)
    known = {member.id for member in members}
    found: dict[str, str] = {}
    for split, names in wanted.items():
        absent = sorted(set(names) - known)
        if absent:
            raise UsageError(f"split {split}: no clip is named {_few(absent)}")
        for name in names:
            if found.setdefault(name, split) != split:
                raise UsageError(f"clip {name} is in the splits {found[name]} and {split}")
    for part in groups(members):
        of_part = {found[clip]: clip for clip in part if clip in found}
        if len(of_part) > 1:
            told = ", ".join(f"{clip} in {split}" for split, clip in of_part.items())
            raise UsageError(f"clips of one recording or person lie in several splits: {told}")
    return found


def _shuffled(parts: Sequence[tuple[str, ...]], seed: int) -> list[tuple[str, ...]]:
    return sorted(parts, key=lambda part: hashlib.sha256(f"{seed}:{part[0]}".encode()).digest())


def _few(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
