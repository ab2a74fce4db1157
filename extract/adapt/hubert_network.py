"""HuBERT as it is trained: convolutions, hidden steps, transformer, and the head that names clusters."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from extract.adapt.hubert_loss import Head, Loss, LossConfig, hubert_loss
from extract.errors import WeightsError
from extract.models import hubert
from extract.weights.files import Weights
from extract.weights.loading import load_strictly

if TYPE_CHECKING:
    from transformers import HubertModel

MASK_VECTOR = "masked_spec_embed"
"""What transformers calls the vector in the place of hidden steps."""


class PretrainingHead(nn.Module):
    """A projection and a table of clusters, in one block per label set."""

    def __init__(self, width: int, size: int, clusters: Sequence[int], offset: int = 0) -> None:
        """``width``: D of the hidden states; ``size``: P of a cluster's vector."""
        super().__init__()
        self.classes = tuple(number + offset for number in clusters)
        self.offset = offset
        self.proj = nn.Linear(width, size * len(self.classes))
        self.table = nn.Parameter(torch.empty(sum(self.classes), size))

    def draw(self, seed: int) -> None:
        """New numbers: the projection as torch draws one, the table U[0, 1) as fairseq does; the same on any torch."""
        random = np.random.default_rng([seed, 0x4EAD])
        bound = 1 / np.sqrt(self.proj.in_features)
        with torch.no_grad():
            for tensor, low, high in (
                (self.proj.weight, -bound, bound),
                (self.proj.bias, -bound, bound),
                (self.table, 0.0, 1.0),
            ):
                tensor.copy_(torch.from_numpy(random.uniform(low, high, tuple(tensor.shape)).astype(np.float32)))

    @property
    def plain(self) -> Head:
        """Its tensors, as the loss takes them."""
        return Head(self.proj.weight, self.proj.bias, self.table, self.classes, self.offset)


class HubertPretraining(nn.Module):
    """The network with its head. Rows are crops of equal length: nothing is padded."""

    def __init__(
        self, encoder: "HubertModel", mask_vector: Tensor, head: PretrainingHead, feature_grad: float = 1.0
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.mask_vector = nn.Parameter(mask_vector)
        self.head = head
        self.feature_grad = feature_grad

    def forward(
        self, wave: Tensor, clusters: Sequence[Tensor], mask: Tensor, config: LossConfig, *, head_only: bool = False
    ) -> Loss:
        """The loss of a batch, as sums.

        Args:
            wave: [B, n], scaled as the network wants it.
            clusters: per label set, [B, S] of the crop's steps.
            mask: bool [B, S].
            head_only: no gradient goes into the encoder.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not head_only):
            conv, hidden = self.hidden(wave, mask)
        with torch.autocast(wave.device.type, enabled=False):
            return hubert_loss(conv, hidden.float(), self.head.plain, clusters, mask, config=config)

    def hidden(self, wave: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Output of the convolutions [B, C, S], and of the transformer after its final norm [B, S, D].

        The parts of transformers' network are called one by one: its own forward pass gives no output of the
        convolutions, and masks at random by itself in training mode.
        """
        encoder: Any = self.encoder
        conv = encoder.feature_extractor(wave)
        if self.feature_grad != 1.0:
            conv = cast(Tensor, _ScaledGradient.apply(conv, self.feature_grad))
        hidden = encoder.feature_projection(conv.transpose(1, 2))
        hidden = torch.where(mask[..., None], self.mask_vector.to(hidden.dtype), hidden)
        return conv, encoder.encoder(hidden).last_hidden_state


class _ScaledGradient(torch.autograd.Function):
    """The same values; the gradient times a factor."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:  # noqa: ANN401 - torch's own, untyped
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # noqa: ANN401 - likewise
        return gradients[0] * ctx.factor, None


def load_encoder(architecture: str, weights: Weights, device: torch.device) -> "tuple[HubertModel, Tensor | None]":
    """HuBERT with its weights, ready to be trained in float32, and its mask vector [D] where the weights have one.

    Raises:
        WeightsError: as ``hubert.load``.
    """
    model = hubert.load(architecture, weights, device)
    model.requires_grad_(True)
    tensors = weights.tensors()
    vector = next((values for name, values in tensors.items() if name.rpartition(".")[2] == MASK_VECTOR), None)
    return model, None if vector is None else vector.float().clone()


def recompute_layers(encoder: "HubertModel") -> None:
    """Have each layer computed again in the backward pass, instead of keeping what is inside it."""
    model: Any = encoder
    # The first name is that of newer transformers, which warn of the second.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def new_mask_vector(width: int, seed: int) -> Tensor:
    """U[0, 1) [D], as fairseq draws it."""
    drawn = np.random.default_rng([seed, 0x3A5C]).uniform(0, 1, width)
    return torch.from_numpy(drawn.astype(np.float32))


def head_of(tensors: "Mapping[str, Tensor]", clusters: int, offset: int, where: str) -> PretrainingHead:
    """A head with its numbers: ``proj.weight`` [P, D], ``proj.bias``, ``table`` [clusters + offset, P].

    Raises:
        WeightsError: it names another number of clusters.
    """
    classes, size = tensors["table"].shape
    if classes != clusters + offset:
        raise WeightsError(
            f"{where}: its head knows {classes - offset} clusters, the config says targets.clusters {clusters}; a head "
            "goes with the clusters that it was made for: set targets.clusters and targets.quantiser, or head=new"
        )
    head = PretrainingHead(tensors["proj.weight"].shape[1], size, [clusters], offset)
    load_strictly(head, tensors, where)
    return head
