"""The fusion networks: from the rows of several modalities to the outputs of one or more tasks.

``branches`` is the network of USC (ABAW5), after section 3 and the table of "Multi-modal Facial Action Unit Detection
with Large Pre-trained Models for the 5th ABAW" and its public code: a branch per modality, their concatenation, a small
head. ``transformer``, ``mlp`` and ``linear`` stand beside it with the same interface.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fusion.config import FrameModality, FusionConfig, Modality, ModelConfig
from fusion.data import Rows
from fusion.encoders import TIMES, BiGRU, encode, make_encoder, masked, reads_times, time_features

LARGE_SHIFT = 1000.0
"""Means beyond so many deviations are subtracted from the rows instead of being folded into the projection."""
LARGE_SHIFT_16_BITS = 4.0
"""The same where products are of 16 bits, which round a row by up to 1/512 of itself: here 1/128 of a deviation."""


class Projection(nn.Linear):
    """Linear(D, size) of standardised rows, with the standardisation folded into weight and bias.

    ``(x - mean) * scale`` is never computed row by row: ``W (x - m) s + b = (W s) x + (b - (W s) m)``. Where a mean is
    more than ``LARGE_SHIFT`` deviations the two terms would cancel in float32 (under autocast in 16 bits: more than
    ``LARGE_SHIFT_16_BITS``), so rows are then shifted first.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__(size, width)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.standardised = False
        self.shift = 0.0
        """Most deviations that a mean is away from 0."""

    def standardise_by(self, mean: Tensor, deviation: Tensor) -> None:
        """Set the training split's mean and standard deviation, [D] each; inputs then have mean 0 and deviation 1."""
        self.mean.copy_(mean)
        self.scale.copy_(deviation.reciprocal())
        self._look()

    def _look(self) -> None:
        self.standardised = bool((self.mean != 0).any() or (self.scale != 1).any())
        self.shift = float((self.mean * self.scale).abs().max())

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._look()

    def forward(self, rows: Tensor) -> Tensor:
        """[R, width] of ``rows`` [R, D], in the type of the store."""
        in_16_bits = torch.is_autocast_enabled(rows.device.type)
        if not self.standardised:
            return functional.linear(self._wide(rows), self.weight, self.bias)
        with torch.autocast(rows.device.type, enabled=False):
            weight, bias = self.weight * self.scale, cast(Tensor, self.bias)
            if self.shift > (LARGE_SHIFT_16_BITS if in_16_bits else LARGE_SHIFT):
                rows = rows.to(weight.dtype) - self.mean
            else:
                bias = bias - weight.mv(self.mean)
        return functional.linear(self._wide(rows), weight, bias)

    def _wide(self, rows: Tensor) -> Tensor:
        """In the type of the weights; autocast makes its own type of any, in one pass."""
        return rows if torch.is_autocast_enabled(rows.device.type) else rows.to(self.weight.dtype)


def laid_out(rows: Rows, project: Projection) -> Tensor:
    """The projected rows on their rectangle, [L, B, width]."""
    projected = rows.values if rows.projected else cast(Tensor, project(rows.values))
    if rows.place is not None:
        projected = projected.index_select(0, rows.place)
    return projected.view(*rows.shape, -1)


class Branch(nn.Module):
    """One modality: project, and encode if it is a sequence; something in its place where it is missing."""

    missing: Tensor

    def __init__(self, size: int, modality: Modality, config: ModelConfig) -> None:
        super().__init__()
        self.project = Projection(size, modality.project)
        self.encode: nn.Module | None = None
        self.width = modality.project
        self.reads_times = False
        if not isinstance(modality, FrameModality):
            kind = modality.encoder or config.encoder
            self.encode = make_encoder(kind, modality.project, config)
            self.width = cast(int, self.encode.width)
            self.reads_times = reads_times(kind)
        self.missing_is = config.missing
        absent = torch.zeros(self.width)
        if config.missing == "learned":
            self.missing = nn.Parameter(absent)
        else:
            self.register_buffer("missing", absent)

    def forward(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """The representation [B, width] of each sample, and what stands for the modality where it is missing."""
        absent = self.in_its_place()
        if not rows.values.shape[1]:  # no clip has the modality
            return absent.expand(rows.shape[1], -1), absent
        if rows.gates:
            table, place = rows.values, cast(Tensor, rows.place)
            return cast(BiGRU, self.encode).of_gates(table, place.view(rows.shape), rows.lengths), absent
        projected = laid_out(rows, self.project)
        return self._encoded(projected, rows.lengths, rows.times, rows.short), absent

    def in_its_place(self) -> Tensor:
        """[width]: the learned vector, what a row of zeros becomes (the paper), or zeros."""
        if self.missing_is != "zero_input":
            return self.missing
        weight = self.project.weight
        zeros = self.project(weight.new_zeros(1, self.project.in_features))
        one = torch.ones(1, dtype=torch.int64, device=weight.device)
        return self._encoded(zeros[None], one, weight.new_zeros(1, 1), None)[0]

    def _encoded(self, projected: Tensor, lengths: Tensor, times: Tensor | None, short: Tensor | None) -> Tensor:
        if self.encode is None:
            return projected[0]
        return encode(self.encode, projected, lengths, times, short)


class FusionModel(nn.Module):
    """The outputs of all tasks, side by side, from the modalities of ``config``.

    Args:
        sizes: modality -> features per row, D.
        config: ``modalities`` and ``model`` are used; the head's input follows the order of ``modalities``.
        num_outputs: sum of the widths of the tasks (12 for the action units alone).
    """

    def __init__(self, sizes: Mapping[str, int], config: FusionConfig, num_outputs: int = 12) -> None:
        super().__init__()
        settings = config.model
        self.kind = settings.kind
        self.num_outputs = num_outputs
        self.modality_dropout = settings.modality_dropout
        self.branches = nn.ModuleDict()
        if settings.kind == "transformer":
            self.tokens = nn.ModuleDict({name: Tokens(sizes[name], settings) for name in config.used})
            self.joint = Joint(settings, num_outputs)
            return
        widths = {
            # A small baseline's first layer is its projection.
            name: {"mlp": settings.head, "linear": num_outputs}.get(settings.kind, modality.project)
            for name, modality in config.used.items()
        }
        self.branches = nn.ModuleDict({
            name: Branch(sizes[name], modality.model_copy(update={"project": widths[name]}), settings)
            for name, modality in config.used.items()
        })
        width = sum(self.branch(name).width for name in config.used)
        if settings.kind == "linear":
            self.head: nn.Module = nn.Identity()
        elif settings.kind == "mlp":
            self.head = nn.Sequential(nn.ReLU(), nn.Dropout(settings.dropout), nn.Linear(width, num_outputs))
        else:
            self.head = nn.Sequential(
                nn.Linear(width, settings.head),
                nn.ReLU(),
                nn.BatchNorm1d(settings.head),
                nn.Dropout(settings.dropout),
                nn.Linear(settings.head, num_outputs),
            )

    def forward(self, inputs: Mapping[str, Rows], without: Mapping[str, str] | None = None) -> Tensor:
        """Outputs [B, num_outputs]; a sample's depend only on itself, but for the head's BatchNorm in training.

        Args:
            inputs: by modality.
            without: modality -> ``missing`` (as if no frame had it) or ``zero_input`` (its rows are zeros, as the
                paper's ablation has it).
        """
        found = self.represent(self._ablated(inputs, without or {}))
        if self.kind == "transformer":
            return cast(Tensor, self.joint(found))
        return cast(Tensor, self.head(torch.cat([*found.values()], dim=1)))

    def represent(self, inputs: Mapping[str, Rows]) -> dict[str, Tensor]:
        """Modality -> what the head reads of it: [B, width], or the transformer's tokens [L, B, width + 1]."""
        found = {}
        for name in self.tokens if self.kind == "transformer" else self.branches:
            present = inputs[name].lengths > 0
            if self.training and self.modality_dropout:
                present &= torch.rand(len(present), device=present.device) >= self.modality_dropout
            if self.kind == "transformer":
                found[name] = cast(Tokens, self.tokens[name])(inputs[name], present)
                continue
            representation, absent = self.branch(name)(inputs[name])
            found[name] = torch.where(present[:, None], representation, absent.to(representation.dtype))
        return found

    def _ablated(self, inputs: Mapping[str, Rows], without: Mapping[str, str]) -> dict[str, Rows]:
        """The inputs without some modalities, each taken away in its way."""
        found = dict(inputs)
        for name, how in without.items():
            rows = found[name]
            if how == "missing":
                found[name] = replace(rows, lengths=torch.zeros_like(rows.lengths))
                continue
            zeros = torch.zeros_like(rows.values)
            if rows.projected:
                row = zeros.new_zeros(1, self.projection(name).in_features)
                zeros = self.entered(name, row, gates=rows.gates).expand(len(zeros), -1).contiguous()
            # A frame that lacks the modality has one row of zeros, too.
            found[name] = replace(rows, values=zeros, lengths=rows.lengths.clamp(min=1), short=None)
        return found

    def branch(self, name: str) -> Branch:
        """The branch of one modality."""
        return cast(Branch, self.branches[name])

    def projection(self, name: str) -> Projection:
        """The projection of one modality's rows."""
        if self.kind == "transformer":
            return cast(Tokens, self.tokens[name]).project
        return self.branch(name).project

    def reads_gates(self, name: str, device: torch.device) -> bool:
        """Whether a modality's rows may enter as gates on ``device`` where no gradient is needed."""
        return device.type == "cpu" and self.kind != "transformer" and isinstance(self.branch(name).encode, BiGRU)

    def entered(self, name: str, rows: Tensor, *, gates: bool) -> Tensor:
        """What can be computed of each row by itself: projected, [R, project]; or its gates, [R, 6 * hidden]."""
        projected = cast(Tensor, self.projection(name)(rows))
        return cast(BiGRU, self.branch(name).encode).gates(projected) if gates else projected

    @property
    def reads_times(self) -> bool:
        """Whether ``Rows.times`` are needed."""
        return self.kind == "transformer" or any(self.branch(name).reads_times for name in self.branches)


class Tokens(nn.Module):
    """The transformer's tokens of one modality: projected rows, their relative time, which modality they are."""

    missing: Tensor

    def __init__(self, size: int, config: ModelConfig) -> None:
        super().__init__()
        self.project = Projection(size, config.width)
        self.time = nn.Linear(TIMES, config.width)
        self.origin = nn.Parameter(torch.zeros(config.width))
        nn.init.normal_(self.origin, std=0.02)
        self.missing_is = config.missing
        if config.missing == "learned":
            self.missing = nn.Parameter(torch.zeros(config.width))
        else:
            self.register_buffer("missing", torch.zeros(config.width))

    def forward(self, rows: Rows, present: Tensor) -> Tensor:
        """[L, B, width + 1]: tokens, and 1 where there is one; a missing modality is a single token of its own."""
        if rows.times is None:
            raise ValueError("the transformer needs the relative times of its rows")
        tokens = self.time(time_features(rows.times).to(self.origin.dtype))  # [L, B, width]
        if rows.values.shape[1]:  # else no clip has the modality
            tokens = tokens + laid_out(rows, self.project)
        absent = self.missing
        if self.missing_is == "zero_input":
            absent = self.project(self.origin.new_zeros(1, self.project.in_features))[0]
            absent = absent + self.time(time_features(self.origin.new_zeros(1)))[0]  # at the frame's own time
        first = torch.arange(rows.shape[0], device=present.device)[:, None] == 0  # [L, 1]
        tokens = torch.where(present[:, None], tokens, absent.to(tokens.dtype)) + self.origin
        there = masked(torch.ones_like(tokens[..., :1]), rows.lengths, 0.0)
        there = torch.where(present[:, None], there, first[..., None].to(there.dtype))
        return torch.cat([tokens, there], dim=2)


class Joint(nn.Module):
    """One small transformer over the tokens of all modalities, read out at a token of its own (pre-norm)."""

    def __init__(self, config: ModelConfig, num_outputs: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            config.width, config.heads, 4 * config.width, config.dropout, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.reader = nn.Parameter(torch.zeros(config.width))
        nn.init.normal_(self.reader, std=0.02)
        self.head = nn.Sequential(
            nn.LayerNorm(config.width), nn.Dropout(config.dropout), nn.Linear(config.width, num_outputs)
        )

    def forward(self, found: Mapping[str, Tensor]) -> Tensor:
        """Outputs [B, num_outputs] from the tokens of each modality."""
        tokens = torch.cat([*found.values()], dim=0).transpose(0, 1)  # [B, sum of L, width + 1]
        reader = self.reader.expand(len(tokens), 1, -1).to(tokens.dtype)
        absent = torch.cat([torch.zeros_like(tokens[:, :1, -1]), 1 - tokens[..., -1]], dim=1) > 0.5
        read = self.encoder(torch.cat([reader, tokens[..., :-1]], dim=1), src_key_padding_mask=absent)
        return cast(Tensor, self.head(read[:, 0]))
