"""ML-ROS by worked examples and by a straight transcription, thinning, and the sampler of neighbouring frames."""

from collections import Counter

import numpy as np
import pytest

from extract.au import AU_NAMES
from extract.au.balance import Imbalance, imbalance, ml_ros, segments, strided

THREE = np.array([[1, 0, 0]] * 6 + [[1, 1, 0]] * 2 + [[0, 1, 0], [0, 1, 1]], dtype=np.int8)
"""The first worked example: counts 8, 4, 1."""

AFF_WILD2 = np.array([160, 68, 210, 363, 540, 468, 333, 38, 43, 35, 853, 101])
"""Thousands of positives in the training set, in the order of AUS (specs of SituTech, finding 1)."""


def test_imbalance_of_the_first_example():
    found = imbalance(THREE)
    assert found.counts.tolist() == [8, 4, 1]
    assert found.ratio.tolist() == [1, 2, 8]
    assert found.mean_ratio == pytest.approx(11 / 3)
    assert (found.minority, found.without_positive) == ((2,), ())


@pytest.mark.parametrize(
    ("percent", "clones", "counts", "ratio"),
    [(10, 1, [8, 5, 2], 4), (20, 2, [8, 6, 3], 8 / 3), (50, 2, [8, 6, 3], 8 / 3)],
)
def test_the_first_example(percent, clones, counts, ratio):
    found = ml_ros(THREE, percent)
    assert found.indices.tolist() == [*range(10), *[9] * clones]
    assert found.clones == clones
    assert found.after.counts.tolist() == counts
    assert found.after.ratio[2] == pytest.approx(ratio)
    assert imbalance(THREE[found.indices]).mean_ratio == found.after.mean_ratio
    if clones == 2:
        assert found.after.mean_ratio == pytest.approx(5 / 3)


def test_the_second_example_in_which_the_common_label_grows_too():
    labels = np.array([[1, 0]] * 8 + [[1, 1]] * 2)
    found = ml_ros(labels, 100)
    assert (found.before.ratio.tolist(), found.before.mean_ratio) == ([1, 5], 3)
    assert found.after.counts.tolist() == [12, 4]
    assert ml_ros(labels, 10).after.counts.tolist() == [11, 3]
    assert set(found.indices[10:]) <= {8, 9}


def test_aff_wild2_has_four_minority_labels():
    found = Imbalance.of_counts(1000 * AFF_WILD2)
    expected = [5.3, 12.5, 4.1, 2.3, 1.6, 1.8, 2.6, 22.4, 19.8, 24.4, 1, 8.45]
    np.testing.assert_allclose(found.ratio, expected, atol=0.06)
    assert found.mean_ratio == pytest.approx(8.86, abs=0.005)
    assert [AU_NAMES[label] for label in found.minority] == ["AU02", "AU15", "AU23", "AU24"]
    assert 8.4 < found.ratio[AU_NAMES.index("AU26")] < found.mean_ratio  # the one that misses narrowly


def test_aff_wild2_is_balanced_by_28_58_53_and_61_thousand_clones():
    """One positive a row, in tens of thousands: without co-occurrence each label needs 853 / 8.86 = 96 positives."""
    labels = np.repeat(np.eye(12, dtype=np.int8), 10 * AFF_WILD2, axis=0)
    found = ml_ros(labels, 100)
    grown = (found.after.counts - found.before.counts) / 10
    np.testing.assert_allclose(grown[found.before.minority,], [28, 58, 53, 61], atol=0.8)
    assert grown.sum() == found.clones / 10
    assert (found.after.ratio[found.before.minority,] <= found.before.mean_ratio).all()


def by_definition(labels, budget, seed):
    """The procedure of the spec, step by step, on the grown rows themselves."""
    random, mean = np.random.default_rng(seed), imbalance(labels).mean_ratio
    bags = {label: [i for i in range(len(labels)) if labels[i, label] == 1] for label in imbalance(labels).minority}
    rows = list(range(len(labels)))
    active = sorted(bags)
    while active:
        for label in tuple(active):
            if len(rows) - len(labels) == budget:
                return rows
            rows.append(bags[label][random.integers(len(bags[label]))])
            if imbalance(labels[rows]).ratio[label] <= mean:
                active.remove(label)
    return rows


@pytest.mark.parametrize("percent", [0, 3.5, 8, 40])
@pytest.mark.parametrize("seed", [0, 1])
def test_by_definition(percent, seed):
    random = np.random.default_rng(seed)
    labels = (random.random((200, 6)) < (0.6, 0.5, 0.3, 0.08, 0.04, 0.02)).astype(np.int8)
    labels[random.random(labels.shape) < 0.1] = -1
    found = ml_ros(labels, percent, seed)
    assert found.indices.tolist() == by_definition(labels, int(2 * percent), seed)
    assert found.clones <= 2 * percent  # strict: not one row per bag more
    assert found.after.counts.tolist() == imbalance(labels[found.indices]).counts.tolist()


def test_seeds_differ_and_repeat():
    labels = np.array([[1, 0]] * 80 + [[0, 1]] * 20)
    one, same, other = ml_ros(labels, 10, 1), ml_ros(labels, 10, 1), ml_ros(labels, 10, 2)
    assert np.array_equal(one.indices, same.indices)
    assert not np.array_equal(one.indices, other.indices)


def test_labels_without_positives_are_left_out_and_named():
    labels = np.concatenate([THREE, np.zeros((10, 1)), np.full((10, 1), -1)], axis=1)
    found = ml_ros(labels, 50)
    assert found.before.without_positive == (3, 4)
    assert np.isinf(found.before.ratio[3:]).all()
    assert found.before.mean_ratio == imbalance(THREE).mean_ratio
    assert found.indices.tolist() == ml_ros(THREE, 50).indices.tolist()
    nothing = ml_ros(np.full((4, 2), -1), 50)
    assert (nothing.indices.tolist(), nothing.before.mean_ratio) == ([0, 1, 2, 3], 0)


def test_the_budget_is_counted_by_decimals():
    labels = np.array([[1, 0]] * 9900 + [[0, 1]] * 100)
    assert ml_ros(labels, 0.57).clones == 57  # 10,000 * .57 / 100 is 56.99999999999999 in binary
    assert ml_ros(labels, 0.569).clones == 56


def test_a_stride_keeps_every_third_sample_of_each_clip():
    clip = ["b", "a", "b", "b", "a", "b", "b", "c"]
    frame = [4, 9, 0, 6, 2, 1, 8, 5]
    assert strided(clip, frame, 3).tolist() == [2, 3, 4, 7]  # b: 0 1 4 6 8 -> 0 and 6; a: 2; c: 5
    assert strided(clip, frame, 1).tolist() == list(range(8))


def samples(*sizes, seed=0):
    """(clip, frame) of clips with so many samples, in a random order; frames have gaps."""
    random = np.random.default_rng(seed)
    frame = np.concatenate([np.sort(random.choice(3 * n + 3, n, replace=False)) for n in sizes])
    order = random.permutation(len(frame))
    return np.repeat(np.arange(len(sizes)), sizes)[order], frame[order]


@pytest.mark.parametrize("epoch", range(3))
@pytest.mark.parametrize(
    ("sizes", "length", "batch_size"),
    [
        ((300, 41, 7, 1, 512), 16, 64),
        ((1000,), 50, 200),
        ((5, 1, 1), 4, 4),
        ((2,), 1, 2),
        ((3,), 1, 2),
        ((97,) * 9, 32, 256),
    ],
)
def test_every_sample_once_in_whole_runs_of_even_batches(sizes, length, batch_size, epoch):
    clip, frame = samples(*sizes)
    batches = segments(clip, frame, length=length, batch_size=batch_size, epoch=epoch)
    assert sorted(np.concatenate(batches)) == list(range(len(clip)))
    lengths = [len(batch) for batch in batches]
    assert min(lengths) >= 2
    assert max(lengths) <= batch_size + (batch_size <= 4)  # one that would be alone joins a full batch
    assert max(lengths) - min(lengths) <= length
    place = {int(i): rank for rank, i in enumerate(np.lexsort((frame, clip)))}
    for batch in batches:
        runs = np.split(batch, np.flatnonzero(np.diff([place[int(i)] for i in batch]) != 1) + 1)
        joined = sum(len(run) for run in runs if len(run) < length)
        # Every clip gives at most two short runs; all else is cut at the full length (or two runs that meet).
        assert joined <= 2 * length * len(sizes)


def test_batches_of_one_long_clip_are_as_even_as_can_be():
    """Runs of 64 fill batches of 256; what the shift cuts off at the start is missing at the end and fills the gap."""
    clip, frame = samples(1024)
    for epoch in range(20):
        batches = segments(clip, frame, length=64, batch_size=256, epoch=epoch)
        assert [len(batch) for batch in batches] == [256] * 4


def brute_force(lengths, number):
    """The least spread of batch sizes over all ways to deal runs to batches."""
    states = {(0,) * number}
    for length in lengths:
        states = {tuple(sorted((*s[:i], s[i] + length, *s[i + 1 :]))) for s in states for i in range(number)}
    return min(max(state) - min(state) for state in states)


@pytest.mark.parametrize("seed", range(12))
def test_sizes_are_near_the_best_deal_there_is(seed):
    random = np.random.default_rng(seed)
    sizes = random.integers(5, 25, 4)
    clip, frame = samples(*sizes)
    batches = segments(clip, frame, length=8, batch_size=32, seed=seed)
    runs, draw = [], np.random.default_rng([seed, 0])
    for size in sizes:
        first = int(draw.integers(8)) or 8
        runs += np.diff([0, *range(first, size, 8), size]).tolist()
    lengths = [len(batch) for batch in batches]
    assert sum(runs) == sum(lengths)
    assert max(lengths) - min(lengths) <= brute_force(runs, len(batches)) + 4


def test_sizes_of_a_corpus_differ_by_a_few_samples():
    sizes = np.random.default_rng(0).integers(500, 7000, 60)
    clip, frame = samples(*sizes)
    lengths = [len(batch) for batch in segments(clip, frame, length=64, batch_size=256)]
    assert 240 < min(lengths) <= max(lengths) <= 256
    assert np.std(lengths) < 2
    assert len(lengths) <= -(-len(clip) // 256) + 1


def test_cuts_move_with_the_epoch_and_the_seed_but_not_otherwise():
    clip, frame = samples(200, 200)

    def partners(**which):
        """Which samples share a batch with sample 0."""
        batches = segments(clip, frame, length=8, batch_size=16, **which)
        return next(frozenset(batch.tolist()) for batch in batches if 0 in batch)

    assert partners(seed=3, epoch=1) == partners(seed=3, epoch=1)
    assert len({partners(seed=3, epoch=epoch) for epoch in range(8)}) == 8
    assert partners(seed=3) != partners(seed=4)
    alone = Counter()
    neighbours = np.lexsort((frame, clip))
    for epoch in range(64):
        batches = segments(clip, frame, length=8, batch_size=16, epoch=epoch)
        owner = np.empty(400, dtype=int)
        for number, batch in enumerate(batches):
            owner[batch] = number
        alone.update(np.flatnonzero(np.diff(owner[neighbours])).tolist())
    # Each pair of neighbours is parted in an eighth of the epochs, wherever it lies in the clip.
    inside = [alone[place] for place in range(10, 190)]
    assert min(inside) >= 1
    assert 6 < np.mean(inside) < 10


def test_clones_are_neighbours_and_nothing_is_no_batch():
    clip, frame = np.zeros(6, dtype=int), np.array([0, 1, 2, 1, 1, 3])
    (batch,) = segments(clip, frame, length=6, batch_size=6)
    assert sorted(batch) == list(range(6))
    assert segments([], np.array([], dtype=int), length=2, batch_size=4) == []


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: ml_ros(np.zeros(3)), r"labels \(3,\): expected \[N, A\]"),
        (lambda: ml_ros(np.full((2, 2), 9)), r"labels \(2, 2\): expected \[N, A\] of 0, 1 or -1"),
        (lambda: ml_ros(THREE, -1), "percent is -1: expected at least 0"),
        (lambda: strided([0], [0], 0), "stride is 0: expected at least 1"),
        (lambda: strided([0], [0, 1], 1), r"clips \(1,\) and frames \(2,\)"),
        (lambda: strided([0], [0.5], 1), r"frames \(1,\) float64: expected the same \[N\], integers"),
        (lambda: segments([0], [0], length=1, batch_size=2), "1 sample: expected at least 2"),
        (lambda: segments([0, 0], [0, 1], length=8, batch_size=4), "length 8 and batch_size 4"),
        (lambda: segments([0, 0], [0, 1], length=1, batch_size=1), "length 1 and batch_size 1"),
    ],
)
def test_what_makes_no_sense_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
