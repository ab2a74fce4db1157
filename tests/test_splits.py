import itertools
import random
from collections import Counter

import pytest

from extract.errors import UsageError
from extract.inputs.splits import Member, assign, by_names, crossings, folds, groups, hold_out


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
        (lambda: hold_out([Member("a", "v"), Member("b", "v")], 0.1, 0), "1 group of clips .* cannot be split"),
        (lambda: folds(people(2), 3, 0), "2 groups of clips cannot make 3 folds; expected 2 to 2"),
        (lambda: folds(people(2), 1, 0), "cannot make 1 folds"),
        (lambda: by_names(people(2), {"test": ["c9"]}), "split test: no clip is named c9"),
        (lambda: by_names(people(2), {"test": ["c1"], "train": ["c1"]}), "clip c1 is in the splits test and train"),
        (
            lambda: by_names([Member("a", "v"), Member("b", "v")], {"test": ["a"], "train": ["b"]}),
            "one recording or person are in several splits: a in test, b in train",
        ),
    ],
)
def test_what_cannot_be_parted_is_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()


# -- the rule ---------------------------------------------------------------------------------------------------------


def test_what_lies_in_several_splits_is_named():
    members = [
        Member("a", "v1", "anna"),
        Member("b", "v2", "anna"),
        Member("c", "v3", "ben"),
        Member("d", "v3"),
        Member("e", "v4", "eve"),
        Member("f", "v5", "eve"),
    ]
    found = crossings(members, {"a": "train", "b": "test", "c": "val", "d": "train", "e": "test"})
    assert [(crossing.shared, dict(crossing.clips)) for crossing in found] == [
        ("subject anna", {"train": ("a",), "test": ("b",)}),
        ("source_video v3", {"val": ("c",), "train": ("d",)}),
    ]


def test_a_clip_without_a_split_may_link_two_that_have_one():
    """Anna and Ben are in one recording: whoever trains on Anna's other clip has not seen Ben, but it has a twin."""
    members = [Member("a", "v1", "anna"), Member("ab", "v1", "ben"), Member("b", "v2", "ben")]
    (found,) = crossings(members, {"a": "train", "b": "test"})
    assert (found.shared, found.clips) == (
        "subjects and source videos that further clips link",
        {"train": ("a",), "test": ("b",)},
    )


# -- assigning --------------------------------------------------------------------------------------------------------


def drawn(random_, given_share=0.0):
    """Members in groups of random sizes, and a split for some groups."""
    sizes = [random_.randint(1, 6) for _ in range(random_.randint(3, 8))]
    members = [Member(f"{n}-{k}", f"v{n}-{k}", f"s{n}") for n, size in enumerate(sizes) for k in range(size)]
    given = {
        f"{n}-0": random_.choice(["train", "val", "test"]) for n in range(len(sizes)) if random_.random() < given_share
    }
    return members, given, sizes


@pytest.mark.parametrize("given_share", [0.0, 0.3])
def test_shares_are_met_as_closely_as_groups_allow(given_share):
    """Against every choice of whole groups: first for the test set, then for the validation set."""
    for seed in range(150):
        members, given, sizes = drawn(random.Random(seed), given_share)
        shares = {"test": 0.05 + 0.8 * random.Random(-seed).random(), "val": 0.1}
        of_group = {int(clip.split("-")[0]): split for clip, split in given.items()}
        free = [n for n in range(len(sizes)) if n not in of_group]
        empty = {split for split in ("train", "val", "test") if split not in of_group.values()}
        if len(free) < len(empty):
            with pytest.raises(UsageError, match=r"groups? of clips without a split .* cannot fill"):
                assign(members, given, **shares, seed=seed)
            continue
        found = assign(members, given, **shares, seed=seed)
        assert not found.keys() & given.keys()
        split_of = found | given
        assert len(split_of) == len(members)
        assert crossings(members, split_of) == []
        counts = Counter(split_of.values())
        assert min(counts[split] for split in ("train", "val", "test")) > 0
        for split, later in (("test", {"train", "val"}), ("val", {"train"})):
            have = sum(sizes[n] for n, name in of_group.items() if name == split)
            wanted = shares[split] * len(members)
            best = min(
                abs(have + sum(sizes[n] for n in chosen) - wanted)
                for k in range(len(free) - len(empty & later) + 1)
                for chosen in itertools.combinations(free, k)
                if have or chosen
            )
            assert abs(counts[split] - wanted) == pytest.approx(best)
            free = [n for n in free if split_of[f"{n}-0"] != split]


def test_assigning_depends_on_the_seed_and_not_on_the_order():
    members = people(60)
    found = assign(members, {}, val=0.1, test=0.2, seed=5)
    assert Counter(found.values()) == {"train": 42, "test": 12, "val": 6}
    shuffled = random.Random(0).sample(members, 60)
    assert assign(shuffled, {}, val=0.1, test=0.2, seed=5) == found
    assert assign(members, {}, val=0.1, test=0.2, seed=6) != found


def test_large_groups_go_to_every_split():
    """Nothing but chance puts a person of many clips among those that are tested."""
    members = [Member(f"big{k}", f"b{k}", "big") for k in range(20)] + people(80)
    seen = Counter(assign(members, {}, val=0.2, test=0.2, seed=seed)["big0"] for seed in range(60))
    assert set(seen) == {"train", "val", "test"}


def test_a_group_that_has_a_split_keeps_it_and_counts():
    members = [Member(f"c{i}", f"v{i}", f"s{i // 2}") for i in range(20)]
    found = assign(members, {"c0": "test", "c2": "test", "c4": "test"}, val=0.1, test=0.2, seed=0)
    assert [found[clip] for clip in ("c1", "c3", "c5")] == ["test"] * 3
    assert Counter(found.values()) == {"test": 3, "val": 2, "train": 12}, "6 of 20 are tested already: more than asked"


def test_clips_left_out_get_no_split_but_link():
    members = [Member("a", "v", "anna"), Member("out", "v", "ben"), Member("b", "w", "ben"), *people(8)]
    for seed in range(10):
        found = assign(members, {"a": "val"}, val=0.2, test=0.2, seed=seed, left_out={"out"})
        assert "out" not in found
        assert found["b"] == "val"
        assert Counter(found.values())["val"] == 1


@pytest.mark.parametrize(("val", "test"), [(0.0, 0.0), (0.0, 0.3), (0.3, 0.0)])
def test_a_split_that_nobody_asked_for_stays_empty(val, test):
    counts = Counter(assign(people(10), {}, val=val, test=test, seed=0).values())
    assert counts == Counter(val=round(10 * val), test=round(10 * test), train=10 - round(10 * (val + test)))


def test_a_small_share_still_gets_somebody():
    assert Counter(assign(people(5), {}, val=0.001, test=0.001, seed=0).values()) == {"train": 3, "val": 1, "test": 1}
    assert Counter(assign(people(3), {}, val=0.49, test=0.5, seed=0).values()) == {"train": 1, "val": 1, "test": 1}


@pytest.mark.parametrize(
    ("members", "given", "shares", "message"),
    [
        (people(5), {}, (-0.1, 0.1), "expected two shares of at least 0 whose sum is less than 1"),
        (people(5), {}, (0.1, float("nan")), "expected two shares"),
        (people(5), {}, (float("inf"), 0), "expected two shares"),
        (people(5), {}, (0.5, 0.5), "expected two shares"),
        (people(2), {}, (0.1, 0.1), r"2 groups of clips without a split .* cannot fill train, val, test; ask for less"),
        (people(1), {}, (0, 0.1), "1 group of clips without a split .* cannot fill train, test"),
        (
            people(3),
            {f"c{i}": "train" for i in range(3)},
            (0.1, 0),
            "0 groups .* cannot fill val; .* remove `split:` lines",
        ),
        (
            [Member("a", "v"), Member("b", "v"), Member("c", "w")],
            {"a": "train", "b": "test"},
            (0, 0.1),
            "source_video v is already in several splits: a in train, b in test",
        ),
    ],
)
def test_what_cannot_be_assigned_is_refused(members, given, shares, message):
    with pytest.raises(UsageError, match=message):
        assign(members, given, val=shares[0], test=shares[1], seed=0)


# -- balanced folds ---------------------------------------------------------------------------------------------------


def spread(parts, amounts):
    """Largest relative distance of a fold's amount from its even share, over folds and amounts."""
    sums = [[sum(column) for column in zip(*(amounts[clip] for clip in part), strict=True)] for part in parts]
    totals = [sum(column) for column in zip(*sums, strict=True)]
    return max(
        abs(amount * len(parts) / total - 1) for row in sums for amount, total in zip(row, totals, strict=True) if total
    )


def test_folds_balance_frames_and_rare_positives():
    """The one AU that occurs in five recordings only is in every fold, and so are the long recordings."""
    members = people(40)
    chance = random.Random(3)
    amounts = {f"c{i}": (chance.randint(500, 3000), chance.randint(100, 400), 50 if i < 5 else 0) for i in range(40)}
    found = folds(members, 5, 0, amounts)
    assert [sum(amounts[clip][2] for clip in fold) for fold in found] == [50] * 5
    assert spread(found, amounts) < 0.1
    assert spread(folds(members, 5, 0), amounts) > 0.5


def test_folds_put_every_group_where_the_squares_grow_least():
    """By hand: shares .5, .3, .1, .1 into two folds make .5 and .3 + .1 + .1."""
    members = people(4)
    amounts = {"c0": (50,), "c1": (30,), "c2": (10,), "c3": (10,)}
    found = folds(members, 2, 0, amounts)
    assert sorted(map(sorted, found)) == [["c0"], ["c1", "c2", "c3"]]


def test_no_fold_is_empty_whatever_the_amounts():
    members = people(5)
    for amounts in ({f"c{i}": (0, 0) for i in range(5)}, {f"c{i}": (1000 if i == 0 else 0, 0) for i in range(5)}):
        assert sorted(map(len, folds(members, 5, 1, amounts))) == [1] * 5


def test_folds_need_amounts_of_every_clip_by_its_exact_name():
    with pytest.raises(UsageError, match="no amounts to balance folds by are given for c1"):
        folds(people(3), 2, 0, {"c0": (1,), "c10": (1,), "c2": (1,)})
