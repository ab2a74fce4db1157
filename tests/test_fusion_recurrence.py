"""The loop over gates is torch's own GRU."""

import pytest
import torch

from fusion.encoders import BiGRU

UNITS, SIZE, DISTINCT = 5, 6, 40


@pytest.fixture(params=["final_state", "last_output"])
def readout(request):
    return request.param


def encoder(layers, readout) -> BiGRU:
    torch.manual_seed(layers)
    return BiGRU(SIZE, UNITS, layers, 0.3, readout).eval()


def alone(net: BiGRU, rows: torch.Tensor) -> torch.Tensor:
    """Of one sequence [L, size], through torch's bidirectional GRU."""
    for layer in net.layers:
        rows, state = layer(rows)
    if net.readout == "last_output":
        return rows[-1]
    return state.flatten()


@torch.inference_mode()
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 7, 8, 9, 33])
def test_each_column_is_its_sequence_through_torch(readout, layers, length):
    net = encoder(layers, readout)
    distinct = torch.randn(DISTINCT, SIZE)
    lengths = torch.tensor([length, 0, 1, max(1, length // 2), length, max(1, length - 1)])
    place = torch.randint(DISTINCT, (length, len(lengths)))
    found = net.of_gates(net.gates(distinct), place, lengths)
    assert found.shape == (6, 2 * UNITS)
    assert torch.isfinite(found).all()
    for column, count in enumerate(lengths.tolist()):
        if count:
            expected = alone(net, distinct[place[:count, column]])
            torch.testing.assert_close(found[column], expected, rtol=0, atol=1e-6)
    expected = net(distinct[place.flatten()].view(length, -1, SIZE), lengths)
    torch.testing.assert_close(found[lengths > 0], expected[lengths > 0], rtol=0, atol=1e-6)


@torch.inference_mode()
def test_large_states_over_many_steps(readout):
    """Saturated gates, and errors that could add up, at a thousand steps."""
    net = encoder(2, readout)
    for weights in net.parameters():
        weights.mul_(6)
    distinct = 5 * torch.randn(DISTINCT, SIZE)
    place = torch.randint(DISTINCT, (1000, 3))
    found = net.of_gates(net.gates(distinct), place, torch.tensor([1000, 999, 500]))
    wide = net.double()
    for column, count in enumerate((1000, 999, 500)):
        expected = alone(wide, distinct[place[:count, column]].double())
        torch.testing.assert_close(found[column].double(), expected, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_16_bits_around_it_change_nothing(readout):
    net = encoder(2, readout)
    distinct, place, lengths = torch.randn(DISTINCT, SIZE), torch.randint(DISTINCT, (9, 4)), torch.tensor([9, 9, 3, 1])
    expected = net.of_gates(net.gates(distinct), place, lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = net.of_gates(net.gates(distinct), place, lengths)
    assert torch.equal(found, expected)


@torch.inference_mode()
def test_what_lies_below_a_column_changes_nothing(readout):
    net = encoder(2, readout)
    table = net.gates(torch.randn(DISTINCT, SIZE))
    place, lengths = torch.randint(DISTINCT, (9, 3)), torch.tensor([9, 4, 1])
    other = torch.where(torch.arange(9)[:, None] < lengths, place, torch.randint(DISTINCT, (9, 3)))
    assert not torch.equal(place, other)
    assert torch.equal(net.of_gates(table, place, lengths), net.of_gates(table, other, lengths))
