"""What reads a sequence of projected rows and gives one vector per sample: GRU, attention pooling, convolutions.

All take the rectangle of ``fusion.data.Rows``, [L, B, size] with sequence b in the first ``lengths[b]`` places of its
column, and depend on nothing below. Every operation has a shape that is known beforehand, so that a step can be
captured as a CUDA graph. A column of length 0 gives a finite vector without meaning.
"""

from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fusion.config import ModelConfig


class Encoder(Protocol):
    """The interface of the three."""

    width: int
    """Values per sample that it gives."""

    def __call__(self, rows: Tensor, lengths: Tensor, times: Tensor | None) -> Tensor:
        """Map ``rows`` [L, B, size], ``lengths`` [B] and ``times`` [L, B] (relative, in seconds) to [B, width]."""
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

    Each direction has its own rectangle, in its own reading order, so that short sequences end early::

        forwards   a0 a1 a2       backwards  a2 a1 a0
                   b0  .  .                  b0  .  .

    A GRU sees only what came before, so nothing that it gives for a row depends on the dots. Dropout between layers is
    applied here because cuDNN's own dropout keeps a random state that no checkpoint can save. (The original code pads
    with zeros and reads them: tests/test_usc_defects.py.)
    """

    def __init__(self, size: int, hidden: int, layers: int, dropout: float, readout: str) -> None:
        super().__init__()
        sizes = [size] + [2 * hidden] * (layers - 1)
        self.forwards = nn.ModuleList(nn.GRU(width, hidden) for width in sizes)
        self.backwards = nn.ModuleList(nn.GRU(width, hidden) for width in sizes)
        self.dropout = nn.Dropout(dropout)
        self.readout = readout
        self.width = 2 * hidden

    def forward(self, rows: Tensor, lengths: Tensor, times: Tensor | None = None) -> Tensor:
        """See ``Encoder``; the times are not read."""
        del times
        length, batch, _ = rows.shape
        last = (lengths - 1).clamp(min=0)  # [B]
        # Place p of one order is place last - p of the other; below a sequence's end any row will do.
        turned = (last - torch.arange(length, device=rows.device)[:, None]).clamp(min=0)  # [L, B]
        column = torch.arange(batch, device=rows.device)
        turned = (turned * batch + column).flatten()  # [L * B], places of the flattened rectangle
        ends = last * batch + column  # [B]
        # The recurrence stays in float32 under autocast: its errors add up over hundreds of steps.
        with torch.autocast(rows.device.type, enabled=False):
            rows = rows.to(self.forwards[0].weight_ih_l0.dtype)  # type: ignore[arg-type]
            for layer, (forwards, backwards) in enumerate(zip(self.forwards, self.backwards, strict=True)):
                if layer:
                    rows = self.dropout(rows)
                reversed_rows = _taken(rows, turned)
                ahead = forwards(rows)[0]  # [L, B, hidden]
                if layer == len(self.forwards) - 1:
                    if self.readout == "last_output":
                        # At the last step the backward direction has read that step only.
                        back = backwards(reversed_rows[:1])[0][0]
                    else:
                        back = backwards(reversed_rows)[0].flatten(0, 1).index_select(0, ends)
                    return torch.cat([ahead.flatten(0, 1).index_select(0, ends), back], dim=1)
                rows = torch.cat([ahead, _taken(backwards(reversed_rows)[0], turned)], dim=2)
        raise AssertionError("a BiGRU has at least one layer")


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

    def forward(self, rows: Tensor, lengths: Tensor, times: Tensor | None) -> Tensor:
        """See ``Encoder``."""
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

    def forward(self, rows: Tensor, lengths: Tensor, times: Tensor | None = None) -> Tensor:
        """See ``Encoder``; the times are not read."""
        del times
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


def encode(encoder: nn.Module, rows: Tensor, lengths: Tensor, times: Tensor | None) -> Tensor:
    """``encoder(rows, lengths, times)``, typed."""
    return cast(Encoder, encoder)(rows, lengths, times)
