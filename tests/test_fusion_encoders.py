"""The encoders of sequences: against torch's own, and each sequence as if it were alone."""

import numpy as np
import pytest
import torch

from fusion.config import ModelConfig
from fusion.data import short_columns
from fusion.encoders import BiGRU, make_encoder
from tests.test_fusion_model import sequences


def reference(encoder: BiGRU, layers: int) -> torch.nn.GRU:
    """torch's bidirectional GRU with our weights."""
    other = torch.nn.GRU(encoder.layers[0].input_size, encoder.width // 2, layers, bidirectional=True)
    state = {}
    for number, layer in enumerate(encoder.layers):
        state |= {key.replace("_l0", f"_l{number}"): value for key, value in layer.state_dict().items()}
    other.load_state_dict(state)
    return other


@pytest.mark.parametrize("readout", ["final_state", "last_output"])
@pytest.mark.parametrize(
    ("lengths", "short"),
    [
        ([5, 1, 3, 5, 2], None),
        ([5, 1, 3, 5, 2], [1, 2, 4]),
        ([5, 1, 3, 5, 2], [4, 1, 0, 2]),  # one too many does no harm
        ([4, 4, 4], None),
        ([4, 4, 4], []),
        ([1], None),
        ([7], []),
    ],
)
def test_encoder_equals_a_bidirectional_gru_run_on_each_sequence_alone(readout, lengths, short):
    torch.manual_seed(0)
    encoder = BiGRU(6, 4, 3, dropout=0.0, readout=readout)
    parts = [torch.randn(length, 6, requires_grad=True) for length in lengths]
    given = sequences(parts)
    few = None if short is None else torch.tensor(short, dtype=torch.int64)
    found = encoder(given.values.view(*given.shape, -1), given.lengths, None, few)
    gru = reference(encoder, 3)
    expected = []
    for part in parts:
        output, state = gru(part[:, None])
        expected.append(torch.cat([state[-2, 0], state[-1, 0]]) if readout == "final_state" else output[-1, 0])
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-6)
    weights = torch.randn_like(found)
    ours = torch.autograd.grad((found * weights).sum(), parts)
    theirs = torch.autograd.grad((torch.stack(expected) * weights).sum(), parts)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["gru", "attention", "tcn"])
@torch.inference_mode()
def test_a_sequence_is_encoded_alone_as_among_longer_ones(kind):
    torch.manual_seed(0)
    encoder = make_encoder(kind, 6, ModelConfig(hidden=4, layers=2, heads=2)).eval()
    parts = [torch.randn(length, 6) for length in (9, 1, 4, 9, 6)]
    given = sequences(parts)
    found = encoder(given.values.view(*given.shape, -1), given.lengths, given.times)
    assert found.shape == (5, encoder.width)
    for column, part in enumerate(parts):
        times = given.times[: len(part), column : column + 1]
        alone = encoder(part[:, None], torch.tensor([len(part)]), times)[0]
        torch.testing.assert_close(alone, found[column], rtol=1e-5, atol=1e-6)


@torch.inference_mode()
def test_attention_knows_when_a_row_was_and_not_where_it_stands():
    torch.manual_seed(0)
    encoder = make_encoder("attention", 6, ModelConfig(hidden=4, heads=2)).eval()
    rows, times = torch.randn(5, 1, 6), torch.linspace(-2, 2, 5)[:, None]
    order = torch.tensor([3, 0, 4, 1, 2])
    whole = encoder(rows, torch.tensor([5]), times)
    torch.testing.assert_close(encoder(rows[order], torch.tensor([5]), times[order]), whole)
    assert (encoder(rows, torch.tensor([5]), times + 0.5) - whole).abs().max() > 1e-3


@torch.inference_mode()
def test_convolutions_are_torchs_with_zeros_behind_the_end():
    torch.manual_seed(0)
    encoder = make_encoder("tcn", 6, ModelConfig(hidden=4, layers=1)).eval()
    part = torch.randn(5, 6)
    entered = encoder.enter(part)
    hidden = entered + torch.nn.functional.relu(encoder.layers[0](entered.T[None])[0]).T
    expected = torch.cat([hidden.mean(0), hidden.amax(0)])
    given = sequences([part, torch.randn(8, 6)])
    found = encoder(given.values.view(*given.shape, -1), given.lengths, None)
    torch.testing.assert_close(found[0], expected)


def test_short_columns_are_all_there_and_their_number_takes_few_values():
    random = np.random.default_rng(0)
    counts = set()
    for _ in range(200):
        lengths = np.where(random.random(256) < random.random() / 2, random.integers(0, 200, 256), 200)
        found, number = short_columns(lengths, 200), int((lengths < 200).sum())
        if found is None:
            assert -(-number // 16) * 16 > 64
        else:
            assert set(np.flatnonzero(lengths < 200)) <= set(found.tolist())
            assert len(set(found.tolist())) == len(found)
            counts.add(len(found))
    assert counts <= {0, 16, 32, 48, 64}
    assert short_columns(np.full(5, 9), 9).tolist() == []
