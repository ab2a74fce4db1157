"""Splits clips so that no person is in two splits: groups by source video and subject, shares, folds, exact names.

Pure functions over names; everything that splits clips uses them.
"""

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from extract.errors import UsageError

SPLITS = TRAIN, VAL, TEST = "train", "val", "test"


@dataclass(frozen=True)
class Member:
    """What decides which clips belong together."""

    id: str
    source_video: str
    subject: str | None = None


def groups(members: Iterable[Member]) -> list[tuple[str, ...]]:
    """Ids that must stay together, as sorted tuples in sorted order.

    Two clips of one recording belong together, as do two of one person, and two that a third clip links.
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

    A group's place is decided by a hash of the seed and its first id, so the order of the clips does not matter, and an
    added clip moves few others.

    Raises:
        UsageError: fewer than two groups, or a share that is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise UsageError(f"a share of {share:g} cannot be held out; expected more than 0 and less than 1")
    parts = _shuffled(groups(members), seed)
    if len(parts) < 2:
        raise UsageError(
            f"{len(parts)} group of clips (one source video or person) cannot be split; expected two or more"
        )
    number = min(max(round(share * len(parts)), 1), len(parts) - 1)
    return {clip for part in parts[:number] for clip in part}


def folds(
    members: Iterable[Member], k: int, seed: int, amounts: Mapping[str, Sequence[float]] | None = None
) -> list[set[str]]:
    """Ids of ``k`` folds: every clip in one, no person in two, all amounts as even as the groups allow.

    Groups are placed one by one, the one that holds most of any amount first, each where the sum of squared shares
    grows least; so a rare action unit counts as much as the number of frames.

    Args:
        amounts: clip -> what is to be even, at least 0 each, as in (frames, positives of AU01, of AU02, ...). None:
            the numbers of clips.

    Raises:
        UsageError: fewer groups than folds, or a clip without amounts.
    """
    members = list(members)
    parts = _shuffled(groups(members), seed)
    if not 1 < k <= len(parts):
        raise UsageError(f"{len(parts)} groups of clips cannot make {k} folds; expected 2 to {len(parts)}")
    of_clip = {member.id: (1.0,) for member in members} if amounts is None else amounts
    lacking = sorted({member.id for member in members} - set(of_clip))
    if lacking:
        raise UsageError(f"no amounts to balance folds by are given for {_few(lacking)}")
    totals = [sum(column) for column in zip(*(of_clip[member.id] for member in members), strict=True)]

    def shares(part: tuple[str, ...]) -> list[float]:
        sums = (sum(column) for column in zip(*(of_clip[clip] for clip in part), strict=True))
        return [amount / total if total else 0.0 for amount, total in zip(sums, totals, strict=True)]

    found: list[set[str]] = [set() for _ in range(k)]
    filled = [[0.0] * len(totals) for _ in range(k)]
    for share, part in sorted(((shares(part), part) for part in parts), key=lambda pair: -max(pair[0])):
        growth = [
            (sum(more * (more + 2 * there) for more, there in zip(share, fold, strict=True)), len(clips))
            for fold, clips in zip(filled, found, strict=True)
        ]
        place = growth.index(min(growth))  # an empty fold grows least, so none stays empty
        found[place].update(part)
        filled[place] = [more + there for more, there in zip(share, filled[place], strict=True)]
    return found


def by_names(members: Iterable[Member], wanted: Mapping[str, Collection[str]]) -> dict[str, str]:
    """Clip -> split, for splits given by exact names.

    Raises:
        UsageError: a name that no clip has, a name in two splits, or two splits that share a recording or a person.
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
    for crossing in crossings(members, found):
        where = ", ".join(f"{clips[0]} in {split}" for split, clips in crossing.clips.items())
        raise UsageError(f"clips of one recording or person are in several splits: {where}")
    return found


@dataclass(frozen=True)
class Crossing:
    """Clips that belong together but are in several splits."""

    clips: Mapping[str, tuple[str, ...]]
    """Split -> its clips of this group."""
    shared: str
    """What these clips have in common, as in ``subject S1``."""


def crossings(members: Iterable[Member], split_of: Mapping[str, str]) -> list[Crossing]:
    """Where ``split_of`` (clip -> split) breaks the rule that no group is in two splits.

    A group is listed once for each subject or source video that is in several splits; once in all if its clips in
    different splits are linked only by further ones.
    """
    by_id = {member.id: member for member in members}
    found: list[Crossing] = []
    for part in groups(by_id.values()):
        if len({split_of[clip] for clip in part if clip in split_of}) < 2:
            continue
        shared = [
            Crossing(clips, f"{key} {name}")
            for key in ("subject", "source_video")
            for name in dict.fromkeys(getattr(by_id[clip], key) for clip in part)
            if name is not None
            and len(clips := _by_split((clip for clip in part if getattr(by_id[clip], key) == name), split_of)) > 1
        ]
        linked = "subjects and source videos that further clips link"
        found += shared or [Crossing(_by_split(part, split_of), linked)]
    return found


def _by_split(clips: Iterable[str], split_of: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for clip in clips:
        if clip in split_of:
            found[split_of[clip]] = (*found.get(split_of[clip], ()), clip)
    return found


def assign(
    members: Iterable[Member],
    given: Mapping[str, str],
    *,
    val: float,
    test: float,
    seed: int,
    left_out: Collection[str] = (),
) -> dict[str, str]:
    """Clip -> split for the clips that are not in ``given``: shares ``val`` and ``test`` of all clips, else train.

    A group of which ``given`` puts a clip into a split goes there whole. The others are shuffled by the seed. The test
    set is made of the first of them whose numbers of clips come closest to its share, the validation set of the rest.

    Args:
        given: clip -> split, not to be changed.
        left_out: clips that get no split; they still link others.

    Raises:
        UsageError: invalid shares, too few groups for the splits, or ``given`` puts a group into several.
    """
    if not (val >= 0 and test >= 0 and val + test < 1):
        raise UsageError(
            f"--val {val:g} --test {test:g}: expected two shares of at least 0 whose sum is less than 1; "
            "the rest is train"
        )
    members = list(members)
    for crossing in crossings(members, given):
        where = ", ".join(f"{clips[0]} in {split}" for split, clips in crossing.clips.items())
        raise UsageError(f"{crossing.shared} is already in several splits: {where}; put it into one first")
    number = dict.fromkeys(SPLITS, 0)  # of clips, those of `given` included
    found: dict[str, str] = {}
    free: list[tuple[str, ...]] = []
    for part in _shuffled(groups(members), seed):
        own = tuple(clip for clip in part if clip not in left_out)
        split = next((given[clip] for clip in part if clip in given), None)
        if split is not None:
            number[split] += len(own)
            found |= dict.fromkeys(own, split)
        elif own:
            free.append(own)
    total = sum(number.values()) + sum(map(len, free))
    wanted = {TEST: test * total, VAL: val * total}
    empty = [split for split in SPLITS if not number[split] and (split == TRAIN or wanted[split])]
    if total and len(free) < len(empty):
        raise UsageError(
            f"{len(free)} group{'s' * (len(free) != 1)} of clips without a split (a subject or recording each) cannot "
            f"fill {', '.join(empty)}; ask for less (`--val 0`, `--test 0`), or remove `split:` lines"
        )
    for split, clips in wanted.items():
        if not clips:
            continue
        others = [name for name in empty if name != split and not number[name]]
        lacks, most = clips - number[split], len(free) - len(others)
        taken = _nearest([len(part) for part in free], lacks, most, may_be_none=number[split] > 0)
        for place in reversed(taken):
            part = free.pop(place)
            number[split] += len(part)
            found |= dict.fromkeys(part, split)
    found |= {clip: TRAIN for part in free for clip in part}
    return {clip: split for clip, split in found.items() if clip not in given}


_Chain: TypeAlias = "tuple[int, _Chain | None]"
"""The last place of a sum, and the chain of those before it: sums share their first terms."""


def _nearest(sizes: Sequence[int], wanted: float, most: int, *, may_be_none: bool) -> list[int]:
    """Places of at most ``most`` sizes whose sum is as near to ``wanted`` as possible, in order; the first of several.

    Place by place, every possible sum is kept with the fewest places that give it. Of the sums above
    ``wanted``, only the smallest is of use.
    """
    made: dict[int, tuple[int, _Chain | None]] = {0: (0, None)}
    beyond = nearest = math.inf

    def off(total: float) -> float:
        return abs(total - wanted) if total or may_be_none else math.inf

    step = math.gcd(*sizes)  # sums are multiples of it: once the nearest multiple is reached, nothing can be nearer
    closest = min(map(off, (step * (wanted // step), step * (wanted // step + 1)))) if step and wanted > 0 else 0.0
    for place, size in enumerate(sizes):
        if nearest <= closest:
            break
        for total, (count, chain) in list(made.items()):
            more = total + size
            if total >= wanted or count >= most or more > beyond:
                continue
            if more not in made or count + 1 < made[more][0]:
                made[more] = count + 1, (place, chain)
                nearest = min(nearest, off(more))
            if more >= wanted:
                beyond = more
    chain = made[min(made, key=off)][1]
    places: list[int] = []
    while chain is not None:
        place, chain = chain
        places.append(place)
    return places[::-1]


def _shuffled(parts: Sequence[tuple[str, ...]], seed: int) -> list[tuple[str, ...]]:
    return sorted(parts, key=lambda part: hashlib.sha256(f"{seed}:{part[0]}".encode()).digest())


def _few(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
