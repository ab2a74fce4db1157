"""Batches filled up to a fixed number of rows, and the graph that is replayed for them, here one for a CPU."""

import pytest
import torch

from extract.models.fixed_rows import FixedRows, cuda_graph
from tests.levers import FakeGraphs

ROWS = 8


def function(batch):
    """Each row by itself; 1 for a row of zeros, so that filled rows would be seen."""
    return torch.cos(batch).sum(dim=(1, 2)) / 6


def batch(rows, seed=0):
    return torch.randn((rows, 2, 3), generator=torch.Generator().manual_seed(seed))


EXAMPLE = torch.full((ROWS, 2, 3), 7.0)


@pytest.fixture(params=["called", "replayed"])
def fixed(request):
    return FixedRows(function, EXAMPLE, FakeGraphs().capture if request.param == "replayed" else None)


@pytest.mark.parametrize("rows", [5, 7, 8])
def test_a_partial_batch_is_filled_up(fixed, rows):
    assert fixed.takes(batch(rows))
    assert torch.equal(fixed(batch(rows)), function(batch(rows)))


def test_the_real_rows_are_the_same_whatever_fills_the_rest(fixed):
    """Neither the batch before nor the number of rows is seen in them."""
    full = fixed(batch(8))
    fixed(batch(8, seed=1) * 1e6)
    assert torch.equal(fixed(batch(8)[:5]), full[:5])


def test_what_fills_a_batch_is_zero():
    seen = []
    fixed = FixedRows(lambda given: seen.append(given.clone()) or given, EXAMPLE)
    fixed(batch(5))
    assert [len(given) for given in seen] == [ROWS]
    assert torch.equal(seen[0][:5], batch(5))
    assert not seen[0][5:].any()


def test_a_result_outlives_the_next_call(fixed):
    """A replay writes to the same memory each time."""
    first = fixed(batch(6))
    fixed(batch(6, seed=1))
    assert torch.equal(first, function(batch(6)))


def test_the_example_stays_as_it_is(fixed):
    fixed(batch(8))
    assert (EXAMPLE == 7).all()


@pytest.mark.parametrize(
    ("given", "takes"),
    [
        (torch.zeros(8, 2, 3), True),
        (torch.zeros(5, 2, 3), True),
        (torch.zeros(4, 2, 3), False),  # half: filling up would cost more than the plain way
        (torch.zeros(0, 2, 3), False),
        (torch.zeros(9, 2, 3), False),
        (torch.zeros(8, 3, 3), False),
        (torch.zeros(8, 2, 3, dtype=torch.float64), False),
    ],
)
def test_what_is_taken(given, takes):
    assert FixedRows(function, EXAMPLE).takes(given) is takes


def test_one_row_is_enough_where_batches_have_one():
    assert FixedRows(function, EXAMPLE[:1]).takes(torch.zeros(1, 2, 3))


def test_no_rows_are_never_taken():
    assert not FixedRows(function, EXAMPLE[:0]).takes(torch.zeros(0, 2, 3))


def test_the_memory_format_is_the_examples():
    """What is compiled for one order of strides would be compiled again for another."""
    seen = []
    example = torch.zeros(4, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    fixed = FixedRows(lambda given: seen.append(given.stride()) or given, example)
    fixed(torch.zeros(3, 3, 5, 5))
    fixed(torch.zeros(4, 5, 5, 3).permute(0, 3, 1, 2))
    assert seen == [example.stride()] * 2


@pytest.mark.gpu
def test_a_cuda_graph(cuda):
    fixed = FixedRows(function, EXAMPLE.to(cuda), cuda_graph)
    for rows, seed in ((8, 0), (5, 1), (8, 2)):
        given = batch(rows, seed).to(cuda)
        assert torch.equal(fixed(given), function(given))


@pytest.mark.gpu
def test_what_waits_for_the_device_is_no_graph(cuda):
    with pytest.raises(RuntimeError, match="captur"):
        FixedRows(lambda given: given * given.sum().item(), EXAMPLE.to(cuda), cuda_graph)
    assert torch.zeros(1, device=cuda).item() == 0  # the device is still there
