"""Token times: the warping path against transformers' own, brute force and closed forms."""

import itertools

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from transformers.models.whisper.generation_whisper import _dynamic_time_warping

from extract.recognition.alignment import MEDIAN_POSITIONS, _median, first_columns, token_times


def theirs(cost):
    """First columns by transformers' loops."""
    rows, columns = _dynamic_time_warping(cost)
    return [int(columns[rows == row].min()) for row in range(len(cost))]


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2), (5, 40), (17, 17), (30, 7), (24, 160)])
@pytest.mark.parametrize("seed", range(4))
def test_the_path_is_that_of_transformers(shape, seed):
    """Multiples of 1/64, so that their float32 sums are exact; few values, so that ties abound."""
    cost = np.random.default_rng(seed).integers(-8, 8, shape) / 64
    assert first_columns(cost).tolist() == theirs(cost)


@pytest.mark.parametrize("seed", range(6))
def test_the_path_is_the_cheapest_of_all(seed):
    cost = np.random.default_rng(seed).normal(size=(4, 5))
    steps = [(0, 1), (1, 0), (1, 1)]

    def paths(i, j):
        if (i, j) == (3, 4):
            return [[(i, j)]]
        nexts = [(i + down, j + right) for down, right in steps if i + down < 4 and j + right < 5]
        return [[(i, j), *rest] for step in nexts for rest in paths(*step)]

    best = min(paths(0, 0), key=lambda path: sum(cost[cell] for cell in path))
    expected = [min(j for i, j in best if i == row) for row in range(4)]
    assert first_columns(cost).tolist() == expected


def blocks(starts, num_frames, num_prompt, heads=3, sharpness=1.0):
    """Attention whose text rows lie side by side: row k on [starts[k], starts[k + 1])."""
    rows = num_prompt + len(starts)
    attention = torch.full((heads, rows, num_frames), 1e-3)
    for number, (first, last) in enumerate(itertools.pairwise([*starts, num_frames])):
        attention[:, num_prompt - 1 + number, first:last] = sharpness
    return attention / attention.sum(-1, keepdim=True)


@pytest.mark.parametrize("num_prompt", [1, 2, 4])
@pytest.mark.parametrize("starts", [[0, 10, 24, 60], [0, 4, 8, 12, 95], [0, 50], [0]])
def test_tokens_side_by_side_begin_where_their_attention_does(starts, num_prompt):
    found = token_times(blocks(starts, 100, num_prompt), num_prompt)
    assert found == pytest.approx([0.02 * start for start in starts])


def test_a_head_that_looks_elsewhere_is_outvoted():
    attention = blocks([0, 30, 70], 100, 2, heads=5)
    attention[4] = attention[4].flip(-1)
    assert token_times(attention, 2) == pytest.approx([0, 0.6, 1.4])


def test_a_position_that_all_tokens_attend_to_says_nothing():
    attention = blocks([0, 30, 70], 100, 2)
    attention[:, :, 50] = 5.0
    assert token_times(attention, 2) == pytest.approx([0, 0.6, 1.4])


@pytest.mark.parametrize("seed", range(8))
def test_the_whole_way_is_that_of_scipy_and_transformers(seed):
    """Spiky attention: every step of the method shows in the times."""
    random = np.random.default_rng(seed)
    weights = random.exponential(size=(4, 14, 60)) ** 2 + 4 * (random.random((4, 14, 60)) > 0.95)
    shares = weights / weights.sum(-1, keepdims=True)
    smooth = ndimage.median_filter(stats.zscore(shares, axis=1), size=(1, 1, 7), mode="mirror").mean(0)
    expected = [0.02 * column for column in theirs(-smooth[2:-1])]
    found = token_times(torch.from_numpy(weights), 3)
    assert found == pytest.approx(expected)
    assert len(set(expected)) > 4


def test_what_was_cut_off_behind_the_piece_changes_nothing():
    """Weights that sum to 1 over 30 s count as if the rest had never been there."""
    whole = blocks([0, 30, 70], 100, 2)
    behind = torch.cat([whole * torch.tensor([[[0.9], [0.1], [0.5], [0.2], [1.0]]])], -1)
    assert token_times(behind, 2).tolist() == token_times(whole, 2).tolist()


@pytest.mark.parametrize("width", [1, 3, 4, 7, 40])
def test_the_median_is_scipys(width):
    values = torch.rand(2, 3, width, generator=torch.Generator().manual_seed(width))
    found = _median(values)
    if width <= MEDIAN_POSITIONS // 2:
        assert torch.equal(found, values)
    else:
        expected = ndimage.median_filter(values.numpy(), size=(1, 1, MEDIAN_POSITIONS), mode="mirror")
        assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("seed", range(20))
def test_times_never_decrease_and_stay_within(seed):
    random = torch.Generator().manual_seed(seed)
    num_prompt, num_texts, num_frames = (int(torch.randint(1, top, (), generator=random)) for top in (5, 30, 80))
    attention = torch.rand(3, num_prompt + num_texts + 1, num_frames, generator=random).softmax(-1)
    attention[:, :, torch.rand(num_frames, generator=random) < 0.3] = 0  # positions that nobody attends to
    times = token_times(attention, num_prompt)
    assert len(times) == num_texts + 1
    assert times[0] == 0
    assert (np.diff(times) >= 0).all()
    assert times[-1] < num_frames * 0.02
