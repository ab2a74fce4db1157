"""The fusion network of USC (ABAW5): a branch per modality, their concatenation, a small head.

Architecture after Table and section 3 of "Multi-modal Facial Action Unit Detection with Large Pre-trained Models for
the 5th ABAW" and its public code; sequences are not padded, unlike in that code (tests/test_usc_defects.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from extract.au import AUS
from fusion.config import FrameModality, FusionConfig, Modality, ModelConfig
from fusion.data import Sequences


@dataclass(frozen=True)
class _Grid:
    """The layout of sequences on a rectangle [L, n], time first, so that one call runs them all.

    Each direction of a GRU has its own rectangle, in its own reading order; short sequences end early::

        forwards   a0 a1 a2       backwards  a2 a1 a0
                   b0  .  .                  b0  .  .

    No output at or after a dot is used, and a GRU sees only what came before: no result depends on the dots. The
    values equal those of each sequence run alone, and sequences of equal length leave no dots.
    """

    forwards: Tensor
    """[L * n] the row at each place of the forwards rectangle; at a dot, any row."""
    backwards: Tensor
    """[L * n] the same for the backwards rectangle."""
    forwards_place: Tensor
    """[R] the place of each row on the forwards rectangle."""
    backwards_place: Tensor
    """[R] the same for the backwards rectangle."""
    first: Tensor
    """[n] first row of each sequence."""
    last: Tensor
    """[n] last row of each sequence."""
    shape: tuple[int, int]
    """L, n."""

    @classmethod
    def of(cls, lengths: Tensor, device: torch.device) -> "_Grid":
        """Lay out sequences of ``lengths`` [n] (on the CPU) whose rows follow one another."""
        n, longest = len(lengths), int(lengths.max())
        last = lengths.cumsum(0) - 1  # [n]
        first = last - lengths + 1
        sequence = torch.repeat_interleave(torch.arange(n), lengths)  # [R]
        position = torch.arange(len(sequence)) - first[sequence]  # [R]
        time = torch.minimum(torch.arange(longest)[:, None], lengths - 1)  # [L, n], constant after a sequence's end
        return cls(
            forwards=(first + time).flatten().to(device),
            backwards=(last - time).flatten().to(device),
            forwards_place=(position * n + sequence).to(device),
            backwards_place=((lengths[sequence] - 1 - position) * n + sequence).to(device),
            first=first.to(device),
            last=last.to(device),
            shape=(longest, n),
        )


class BiGRU(nn.Module):
    """Layers of GRUs that read each sequence in both directions and give one vector per sequence.

    Each direction is a separate module because each has its own grid. Dropout between layers is applied here because
    cuDNN's own dropout keeps a random state that no checkpoint can save.
    """

    def __init__(self, size: int, hidden: int, layers: int, dropout: float, readout: str) -> None:
        super().__init__()
        sizes = [size] + [2 * hidden] * (layers - 1)
        self.forwards = nn.ModuleList(nn.GRU(width, hidden) for width in sizes)
        self.backwards = nn.ModuleList(nn.GRU(width, hidden) for width in sizes)
        self.dropout = nn.Dropout(dropout)
        self.readout = readout
        self.hidden = hidden

    def forward(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """Map ``rows`` [R, size], sequences of ``lengths`` [n] (on the CPU) one after another, to [n, 2 * hidden]."""
        grid = _Grid.of(lengths, rows.device)
        for layer, (forwards, backwards) in enumerate(zip(self.forwards, self.backwards, strict=True)):
            if layer:
                rows = self.dropout(rows)
            ahead = forwards(rows.index_select(0, grid.forwards).view(*grid.shape, -1))[0].flatten(
                0, 1
            )  # [L * n, hidden]
            back = backwards(rows.index_select(0, grid.backwards).view(*grid.shape, -1))[0].flatten(0, 1)
            # Each is [L * n, hidden] in its own reading order; both go back to the order of the rows.
            both = ahead.index_select(0, grid.forwards_place), back.index_select(0, grid.backwards_place)
            rows = torch.cat(both, dim=1)  # [R, 2 * hidden]
        if self.readout == "last_output":
            return rows[grid.last]
        return torch.cat([rows[grid.last, : self.hidden], rows[grid.first, self.hidden :]], dim=1)


class Branch(nn.Module):
    """One modality: standardise, project, and encode if it is a sequence; a fixed vector where it is missing."""

    mean: Tensor
    scale: Tensor
    missing: Tensor

    def __init__(self, size: int, modality: Modality, config: ModelConfig) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.project = nn.Linear(size, modality.project)
        self.encode: BiGRU | None = None
        self.width = modality.project
        if not isinstance(modality, FrameModality):
            self.encode = BiGRU(modality.project, config.hidden, config.layers, config.dropout, config.readout)
            self.width = 2 * config.hidden
        absent = torch.zeros(self.width)
        if config.missing == "learned":
            self.missing = nn.Parameter(absent)
        else:
            self.register_buffer("missing", absent)

    def standardise_by(self, mean: Tensor, deviation: Tensor) -> None:
        """Set the training split's mean and standard deviation, [D] each; inputs then have mean 0 and deviation 1."""
        self.mean.copy_(mean)
        self.scale.copy_(deviation.reciprocal())

    def forward(self, sequences: Sequences, batch_size: int) -> tuple[Tensor, Tensor]:
        """The representation [B, width] of each sample, and which samples have the modality, bool [B]."""
        rows = sequences.rows
        present = torch.zeros(batch_size, dtype=torch.bool, device=rows.device)
        present[sequences.samples] = True
        representation = self.missing.expand(batch_size, -1)
        if len(sequences.samples):
            projected = self.project((rows.to(self.mean.dtype) - self.mean) * self.scale)  # [R, project]
            encoded = projected if self.encode is None else self.encode(projected, sequences.lengths)
            representation = representation.index_copy(0, sequences.samples, encoded)
        return representation, present


class FusionModel(nn.Module):
    """Logits of the 12 AUs from the modalities of ``config``.

    Args:
        sizes: modality -> features per row, D.
        config: ``modalities`` and ``model`` are used; the head's input follows the order of ``modalities``.
    """

    def __init__(self, sizes: Mapping[str, int], config: FusionConfig) -> None:
        super().__init__()
        settings = config.model
        self.branches = nn.ModuleDict({
            name: Branch(sizes[name], modality, settings) for name, modality in config.used.items()
        })
        self.modality_dropout = settings.modality_dropout
        width = sum(self.branch(name).width for name in config.used)
        self.head = nn.Sequential(
            nn.Linear(width, settings.head),
            nn.ReLU(),
            nn.BatchNorm1d(settings.head),
            nn.Dropout(settings.dropout),
            nn.Linear(settings.head, len(AUS)),
        )

    def forward(self, inputs: Mapping[str, Sequences], batch_size: int) -> Tensor:
        """Logits [B, 12]. Each row depends only on its own sample, except through the head's BatchNorm in training."""
        logits: Tensor = self.head(torch.cat(list(self.represent(inputs, batch_size).values()), dim=1))
        return logits

    def represent(self, inputs: Mapping[str, Sequences], batch_size: int) -> dict[str, Tensor]:
        """Modality -> the output of its branch, [B, width]."""
        found = {}
        for name in self.branches:
            branch = self.branch(name)
            representation, present = branch(inputs[name], batch_size)
            if self.training and self.modality_dropout:
                kept = torch.rand(batch_size, device=present.device) >= self.modality_dropout
                representation = torch.where((present & kept)[:, None], representation, branch.missing)
            found[name] = representation
        return found

    def branch(self, name: str) -> Branch:
        """The branch of one modality."""
        return cast(Branch, self.branches[name])
