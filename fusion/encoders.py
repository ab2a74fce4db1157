"""What reads a sequence of projected rows and gives one vector per sample: GRU, attention pooling, convolutions.

All take the rectangle of ``fusion.data.Rows``, [L, B, size] with sequence b in the first ``lengths[b]`` places of its
column, and depend on nothing below. Every operation has a shape that is known beforehand, so that a step can be
captured as a CUDA graph. A column of length 0 gives a finite vector without meaning.
"""

from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fusion import recurrence
from fusion.config import ModelConfig


class Encoder(Protocol):
    """The interface of the three."""

    width: int
    """Values per sample that it gives."""

    def __call__(self, rows: Tensor, lengths: Tensor, times: Tensor | None, short: Tensor | None = None) -> Tensor:
        """Map ``rows`` [L, B, size], ``lengths`` [B] and ``times`` [L, B] (relative, in seconds) to [B, width].

        Args:
            short: the columns that may be shorter than L; None: all of them.
        """
        ...


def make_encoder(kind: str, size: int, config: ModelConfig) -> nn.Module:
    """The encoder ``gru``, ``attention`` or ``tcn`` over rows of ``size`` values."""
    if kind == "gru":
        return BiGRU(size, config.hidden, config.layers, config.dropout, config.readout)
    if kind == "attention":
        return AttentionPooling(size, 2 * config.hidden, config.heads)
    return TemporalConvolution(size, config.hidden, config.layers, config.dropout)


def reads_times(kind: str) -> bool:
    """Whether an encoder needs the relative times of its rows."""
    return kind == "attention"


class BiGRU(nn.Module):
    """Layers of GRUs that read each sequence in both directions (the paper's encoder).

    Sequences that fill the rectangle go through torch's bidirectional GRU: on a GPU both directions are one call of
    cuDNN's kernel for small states. For shorter ones each direction has its own rectangle, in its own reading order,
    so that they end early::

        forwards   a0 a1 a2       backwards  a2 a1 a0
                   b0  .  .                  b0  .  .

    A GRU sees only what came before, so nothing that it gives for a row depends on the dots. Dropout between layers is
    applied here because cuDNN's own dropout keeps a random state that no checkpoint can save. (The original code pads
    with zeros and reads them: tests/test_usc_defects.py.)
    """

    def __init__(self, size: int, hidden: int, layers: int, dropout: float, readout: str) -> None:
        super().__init__()
        sizes = [size] + [2 * hidden] * (layers - 1)
        self.layers = nn.ModuleList(nn.GRU(width, hidden, bidirectional=True) for width in sizes)
        self.dropout = nn.Dropout(dropout)
        self.readout = readout
        self.width = 2 * hidden

    def forward(
        self, rows: Tensor, lengths: Tensor, times: Tensor | None = None, short: Tensor | None = None
    ) -> Tensor:
        """See ``Encoder``; the times are not read."""
        del times
        # The recurrence stays in float32 under autocast: its errors add up over hundreds of steps.
        with torch.autocast(rows.device.type, enabled=False):
            rows = rows.to(cast(Tensor, self.layers[0].weight_ih_l0).dtype)
            if short is None:
                return self._ending_early(rows, lengths)
            filled = self._filling(rows)
            if not len(short):
                return filled
            apart = self._ending_early(rows.index_select(1, short), lengths.index_select(0, short))
            return filled.index_copy(0, short, apart)

    def gates(self, rows: Tensor) -> Tensor:
        """What ``of_gates`` reads of projected rows [R, size]: [R, 6 * hidden]."""
        with torch.autocast(rows.device.type, enabled=False):
            return recurrence.gates(self.layers[0], rows.to(cast(Tensor, self.layers[0].weight_ih_l0).dtype))

    def of_gates(self, table: Tensor, place: Tensor, lengths: Tensor) -> Tensor:
        """[B, width], without gradients and on the CPU: ``forward`` of the rows whose gates lie at ``place`` [L, B]."""
        with torch.autocast(table.device.type, enabled=False):
            final_state = self.readout == "final_state"
            return recurrence.read([*self.layers], table, place, lengths, final_state=final_state)

    def _filling(self, rows: Tensor) -> Tensor:
        """[B, width] of ``rows`` [L, B, size], every sequence L long."""
        hidden = self.width // 2
        for number, layer in enumerate(self.layers):
            rows = self.dropout(rows) if number else rows
            if number == len(self.layers) - 1 and self.readout == "last_output":
                # At the last step the backward direction has read that step only.
                return torch.cat([one_way(layer, rows)[-1], one_way(layer, rows[-1:], backwards=True)[-1]], dim=1)
            rows = layer(rows)[0]
        return torch.cat([rows[-1, :, :hidden], rows[0, :, hidden:]], dim=1)

    def _ending_early(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """[B, width] of ``rows`` [L, B, size], each direction in its own order."""
        length, batch, _ = rows.shape
        last = (lengths - 1).clamp(min=0)  # [B]
        # Place p of one order is place last - p of the other; below a sequence's end any row will do.
        turned = (last - torch.arange(length, device=rows.device)[:, None]).clamp(min=0)  # [L, B]
        column = torch.arange(batch, device=rows.device)
        turned = (turned * batch + column).flatten()  # [L * B], places of the flattened rectangle
        ends = last * batch + column  # [B]
        for layer in self.layers[:-1]:
            both = one_way(layer, rows), _taken(one_way(layer, _taken(rows, turned), backwards=True), turned)
            rows = self.dropout(torch.cat(both, dim=2))
        layer = self.layers[-1]
        ahead = one_way(layer, rows).flatten(0, 1).index_select(0, ends)
        reversed_rows = _taken(rows, turned)
        if self.readout == "last_output":
            return torch.cat([ahead, one_way(layer, reversed_rows[:1], backwards=True)[0]], dim=1)
        back = one_way(layer, reversed_rows, backwards=True).flatten(0, 1).index_select(0, ends)
        return torch.cat([ahead, back], dim=1)


def one_way(layer: nn.Module, rows: Tensor, *, backwards: bool = False) -> Tensor:
    """The outputs [L, B, hidden] of one direction's weights of a bidirectional GRU, read from the first row to the
    last."""
    suffix = "l0_reverse" if backwards else "l0"
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    weights = [cast(Tensor, getattr(layer, f"{name}_{suffix}")) for name in names]
    start = rows.new_zeros(1, rows.shape[1], weights[1].shape[1])
    return torch.gru(rows, start, weights, True, 1, 0.0, layer.training, False, False)[0]


def _taken(rows: Tensor, places: Tensor) -> Tensor:
    """``rows`` [L, B, size] in the order of ``places`` [L * B]."""
    return rows.flatten(0, 1).index_select(0, places).view_as(rows)


class AttentionPooling(nn.Module):
    """A learned mean of the rows: each head weighs them by their content and by their time relative to the frame.

    Scaled dot products with one learned query per head (Vaswani et al. 2017, pooled by a query as in Set Transformer,
    Lee et al. 2019); the time enters keys and values as sines and cosines.
    """

    def __init__(self, size: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.time = nn.Linear(TIMES, size)
        self.key = nn.Linear(size, width)
        self.value = nn.Linear(size, width)
        self.query = nn.Parameter(torch.empty(heads, width // heads))
        nn.init.normal_(self.query, std=(width // heads) ** -0.5)

    def forward(self, rows: Tensor, lengths: Tensor, times: Tensor | None, short: Tensor | None = None) -> Tensor:
        """See ``Encoder``."""
        del short
        if times is None:
            raise ValueError("attention pooling needs the relative times of its rows")
        length, batch, _ = rows.shape
        timed = rows + self.time(time_features(times).to(rows.dtype))
        key = self.key(timed).view(length, batch, self.heads, -1)
        value = self.value(timed).view(length, batch, self.heads, -1)
        scores = (key * self.query).sum(-1) * key.shape[-1] ** -0.5  # [L, B, heads]
        weights = masked(scores, lengths, float("-inf")).softmax(dim=0).nan_to_num()
        pooled: Tensor = (weights[..., None] * value).sum(0).flatten(1)  # [B, width]
        return pooled


class TemporalConvolution(nn.Module):
    """Dilated convolutions over time, then the mean and the maximum over each sequence (TCN: Bai et al. 2018).

    Layer k sees rows 2**k apart on both sides; places below a sequence's end are zeroed before each convolution, as if
    the sequence were alone.
    """

    def __init__(self, size: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.enter = nn.Linear(size, hidden)
        self.layers = nn.ModuleList(
            nn.Conv1d(hidden, hidden, 3, padding=2**layer, dilation=2**layer) for layer in range(layers)
        )
        self.dropout = nn.Dropout(dropout)
        self.width = 2 * hidden

    def forward(
        self, rows: Tensor, lengths: Tensor, times: Tensor | None = None, short: Tensor | None = None
    ) -> Tensor:
        """See ``Encoder``; the times are not read."""
        del times, short
        hidden = self.enter(rows)  # [L, B, hidden]
        for layer in self.layers:
            known = masked(hidden, lengths, 0.0).permute(1, 2, 0)  # [B, hidden, L]
            hidden = hidden + self.dropout(functional.relu(layer(known))).permute(2, 0, 1)
        count = lengths.clamp(min=1)[:, None]
        mean = masked(hidden, lengths, 0.0).sum(0) / count
        largest = masked(hidden, lengths, torch.finfo(hidden.dtype).min).amax(0)
        return torch.cat([mean, torch.where(lengths[:, None] > 0, largest, 0.0)], dim=1)


TIMES = 10
"""Values per time of ``time_features``."""


def time_features(times: Tensor) -> Tensor:
    """Sines and cosines of ``times`` [...] in seconds at periods of 0.25 to 4 seconds, doubling: [..., 10]."""
    periods = 0.25 * 2.0 ** torch.arange(TIMES // 2, device=times.device)
    angles = times[..., None] * (2 * torch.pi / periods)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def masked(rows: Tensor, lengths: Tensor, value: float) -> Tensor:
    """``rows`` [L, B, ...] with ``value`` below the end of each sequence."""
    inside = torch.arange(len(rows), device=rows.device)[:, None] < lengths  # [L, B]
    return torch.where(inside[..., None], rows, value)


def encode(encoder: nn.Module, rows: Tensor, lengths: Tensor, times: Tensor | None, short: Tensor | None) -> Tensor:
    """``encoder(rows, lengths, times, short)``, typed."""
    return cast(Encoder, encoder)(rows, lengths, times, short)
