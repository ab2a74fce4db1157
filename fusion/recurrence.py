"""The bidirectional GRU of ``fusion.encoders`` where it only predicts, on a CPU: the same with less arithmetic.

Its first layer multiplies each row by its input weights whatever comes before it. Neighbouring frames share most of
their rows, so these products, the *gates*, are made once per distinct row, as the projection is, and gathered step by
step. Both directions take a step together and in place; tanh x is computed as 2 sigmoid(2 x) - 1, which torch's vector
code does four times as fast (either is within 2e-7 of the exact value). A step: r, z = sigmoid of gates + products of
the state, n = tanh(gate + r * (product + bias)), state = n + z (state - n); it is the variant of cuDNN and torch.

On a GPU, cuDNN runs all steps in one kernel and is faster than any loop of ours: ``fusion.encoders`` uses it there, and
wherever gradients are needed.
"""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

STEPS = 8
"""Steps whose input products a further layer makes in one call: of 256 columns and 64 units they take 3 MB."""


def gates(layer: nn.Module, rows: Tensor) -> Tensor:
    """What the first layer makes of each row before it reads them in any order.

    Args:
        layer: a bidirectional GRU of one layer, H units per direction.
        rows: [R, size].

    Returns:
        [R, 2 * 3H], forwards and backwards; each has the parts r, z and n, the last one doubled. Every bias that may be
        added beforehand is in it.
    """
    weights = _Weights(layer)
    return torch.addmm(weights.input_bias.flatten(), rows, torch.cat([*weights.input], dim=1))


def read(layers: Sequence[nn.Module], table: Tensor, place: Tensor, lengths: Tensor, *, final_state: bool) -> Tensor:
    """The result of the layers for each column, [B, 2H].

    Args:
        layers: bidirectional GRUs of one layer each.
        table: [U, 2 * 3H], ``gates`` of the distinct rows.
        place: [L, B], which of them lies where; below a column's length any does.
        lengths: [B]; a column of length 0 gives a finite vector without meaning.
        final_state: the last state of either direction; else the output at the last row, where the backward direction
            has read that row only.
    """
    length, batch = place.shape
    last = (lengths - 1).clamp(min=0)
    column = torch.arange(batch)
    # Place p in one direction's order is place last - p in the other's.
    turned = (last - torch.arange(length)[:, None]).clamp(min=0)  # [L, B]
    size = table.shape[1] // 2
    at = torch.cat([2 * place, 2 * place.gather(0, turned) + 1], dim=1)  # [L, 2B] of `table` as [2U, 3H]
    inputs = _gathered(table.view(-1, size), at, batch)
    states = _states(_Weights(layers[0]), inputs, length, batch)
    for layer in layers[1:]:
        weights = _Weights(layer)
        states = _states(weights, _products(weights, states, turned), length, batch)
    flat = states.view(length * 2 * batch, -1)
    ends = last * 2 * batch + column
    back = ends if final_state else column
    return torch.cat([flat.index_select(0, ends), flat.index_select(0, back + batch)], dim=1)


class _Weights:
    """The weights of both directions, laid out for the loop; n's are doubled."""

    def __init__(self, layer: nn.Module) -> None:
        self.input, self.input_bias = _both(layer, "weight_ih"), _both(layer, "bias_ih")  # [2, size, 3H], [2, 3H]
        self.state, bias = _both(layer, "weight_hh"), _both(layer, "bias_hh")  # [2, H, 3H]
        self.units = self.state.shape[1]
        early = 2 * self.units
        self.input_bias[:, :early] += bias[:, :early]
        self.late_bias = bias[:, None, early:]
        """[2, 1, H]: n's, which r multiplies together with the state's product."""


def _both(layer: nn.Module, name: str) -> Tensor:
    found = torch.stack([cast(Tensor, getattr(layer, f"{name}_{suffix}")) for suffix in ("l0", "l0_reverse")])
    found[:, -found.shape[1] // 3 :] *= 2
    return found if found.ndim == 2 else found.transpose(1, 2).contiguous()


def _states(weights: _Weights, inputs: Iterator[Tensor], length: int, batch: int) -> Tensor:
    """The states [L, 2, B, H] of both directions, each in its own order; ``inputs`` are [2, B, 3H] per step."""
    units = weights.units
    states = weights.state.new_empty(length, 2, batch, units)
    state = weights.state.new_zeros(2, batch, units)
    both = weights.state.new_empty(2, batch, 3 * units)
    r, z, n = (both[..., part * units : (part + 1) * units] for part in range(3))
    r_and_z = both[..., : 2 * units]
    for step, known in enumerate(inputs):
        torch.bmm(state, weights.state, out=both)
        r_and_z.add_(known[..., : 2 * units]).sigmoid_()
        n.add_(weights.late_bias).mul_(r).add_(known[..., 2 * units :]).sigmoid_().mul_(2).sub_(1)
        state = torch.lerp(n, state, z, out=states[step])
    return states


def _gathered(table: Tensor, at: Tensor, batch: int) -> Iterator[Tensor]:
    """[2, B, 3H] per step: the rows ``at`` [L, 2B] of ``table``."""
    found = table.new_empty(2 * batch, table.shape[1])
    for rows in at:
        yield torch.index_select(table, 0, rows, out=found).view(2, batch, -1)


def _products(weights: _Weights, states: Tensor, turned: Tensor) -> Iterator[Tensor]:
    """[2, B, 3H] per step: what a further layer makes of the states [L, 2, B, H] of the one below it."""
    length, _, batch, units = states.shape
    flat = states.view(-1, units)
    here = torch.arange(length)[:, None] * 2 * batch + torch.arange(batch)  # [L, B]: places of the forward states
    there = turned * 2 * batch + torch.arange(batch)
    # The same row's two states; either direction comes to it at a step of its own.
    at = torch.stack([torch.stack([here, there + batch], dim=2), torch.stack([there, here + batch], dim=2)])
    for start in range(0, length, STEPS):
        wanted = at[:, start : start + STEPS]  # [2, S, B, 2]
        rows = flat.index_select(0, wanted.flatten()).view(2, -1, 2 * units)
        found = torch.baddbmm(weights.input_bias[:, None], rows, weights.input)
        yield from found.view(2, -1, batch, found.shape[2]).unbind(1)
