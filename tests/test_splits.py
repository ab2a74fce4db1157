import random

import pytest

from extract.errors import UsageError
from extract.splits import Member, by_names, folds, groups, hold_out


def people(n):
    """n recordings of one person each."""
    return [Member(f"c{i}", f"v{i}", f"s{i}") for i in range(n)]


def test_groups_follow_recordings_and_people():
    members = [
        Member("a_left", "a", "anna"),
        Member("a_right", "a", "ben"),
        Member("b", "b", "ben"),
        Member("c", "c", None),
        Member("d", "d", None),
        Member("e", "e", "eve"),
        Member("f", "f", "eve"),
    ]
    assert groups(members) == [("a_left", "a_right", "b"), ("c",), ("d",), ("e", "f")]


def test_a_video_and_a_person_of_one_name_are_two_things():
    assert groups([Member("a", "x", "y"), Member("b", "y", "x")]) == [("a",), ("b",)]


@pytest.mark.parametrize("seed", range(5))
def test_a_share_is_held_out_by_group(seed):
    members = [Member(f"c{i}_{k}", f"v{i}") for i in range(40) for k in range(1 + i % 3)]
    held = hold_out(members, 0.1, seed)
    videos = {member.source_video for member in members if member.id in held}
    assert len(videos) == 4
    assert held == {member.id for member in members if member.source_video in videos}
    shuffled = members.copy()
    random.Random(seed).shuffle(shuffled)
    assert hold_out(shuffled, 0.1, seed) == held


def test_seeds_part_differently_and_more_clips_move_few():
    members = people(100)
    assert hold_out(members, 0.1, 0) != hold_out(members, 0.1, 1)
    before, after = hold_out(members, 0.1, 0), hold_out([*members, Member("new", "new")], 0.1, 0)
    assert len(before ^ after) <= 2


@pytest.mark.parametrize(("count", "share", "expected"), [(2, 0.01, 1), (2, 0.99, 1), (3, 0.5, 2), (20, 0.1, 2)])
def test_never_none_and_never_all(count, share, expected):
    assert len(hold_out(people(count), share, 0)) == expected


def test_folds_part_everybody_evenly():
    members = [Member(f"c{i}", f"v{i}", f"s{i // 3}") for i in range(41)]
    found = folds(members, 3, seed=4)
    assert sorted(clip for fold in found for clip in fold) == sorted(member.id for member in members)
    subjects = [{member.subject for member in members if member.id in fold} for fold in found]
    assert not subjects[0] & subjects[1]
    assert not (subjects[0] | subjects[1]) & subjects[2]
    assert max(map(len, found)) - min(map(len, found)) <= 3


def test_exact_names():
    members = people(4)
    assert by_names(members, {"test": ["c1"], "train": ["c0", "c2"]}) == {"c1": "test", "c0": "train", "c2": "train"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hold_out(people(3), 1.0, 0), "a share of 1 cannot be held out"),
        (lambda: hold_out([Member("a", "v"), Member("b", "v")], 0.1, 0), "1 group of clips .* cannot be parted"),
        (lambda: folds(people(2), 3, 0), "2 groups of clips cannot make 3 folds; expected 2 to 2"),
        (lambda: folds(people(2), 1, 0), "cannot make 1 folds"),
        (lambda: by_names(people(2), {"test": ["c9"]}), "split test: no clip is named c9"),
        (lambda: by_names(people(2), {"test": ["c1"], "train": ["c1"]}), "clip c1 is in the splits test and train"),
        (
            lambda: by_names([Member("a", "v"), Member("b", "v")], {"test": ["a"], "train": ["b"]}),
            "one recording or person lie in several splits: a in test, b in train",
        ),
    ],
)
def test_what_cannot_be_parted_is_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()
