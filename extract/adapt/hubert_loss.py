"""HuBERT's pre-training loss (Hsu et al. 2021, arXiv 2106.07447, section II): which cluster is under the mask?

Equal to fairseq's criterion (tests/test_adapt_hubert_loss.py, against its own values), but written as plain
cross-entropy: fairseq stacks the target's row in front of all rows and bars its second appearance, which is the same
number and needs [C + 1, frames, D] of memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

TEMPERATURE = 0.1
"""Cosines are divided by it."""
COSINE_EPS = 1e-8
"""Least length of a vector in the cosine; torch's own."""


@dataclass(frozen=True)
class LossConfig:
    """What the parts of the loss count."""

    masked: float = 1.0
    unmasked: float = 0.0
    penalty: float = 10.0
    """Of the mean square of the convolutions' output, per step that counts."""


@dataclass(frozen=True)
class Part:
    """Cross-entropy of some steps, for one set of labels."""

    loss: "Tensor"
    """Sum over the steps, natural logarithm."""
    correct: "Tensor"
    """Steps whose likeliest cluster is the target."""
    count: int


@dataclass(frozen=True)
class Loss:
    """A batch's loss, as sums: batches add up, and whoever trains divides by all their ``sample_size``."""

    total: "Tensor"
    """``masked`` and ``unmasked`` weighed, plus ``penalty_term``."""
    sample_size: int
    """Steps that count: the masked ones, and the others where they have a weight. Once, however many label sets."""
    penalty: "Tensor"
    """Mean square of the convolutions' output, padding included."""
    penalty_term: "Tensor"
    masked: tuple[Part, ...]
    """Per label set."""
    unmasked: tuple[Part, ...]
    """The same; empty where they have no weight."""


@dataclass(frozen=True)
class Head:
    """What predicts clusters from hidden states; several label sets lie side by side in it."""

    weight: "Tensor"
    """[sets * P, D]: one projection per label set."""
    bias: "Tensor"
    """[sets * P]."""
    table: "Tensor"
    """[sum of classes, P]: a row per class, a block of rows per set."""
    classes: tuple[int, ...]
    """Rows of each set, ``offset`` included."""
    offset: int = 0
    """Class of cluster 0. fairseq's tables begin with 4 rows for its special symbols, which take part as wrong
    answers."""


def hubert_loss(
    conv: "Tensor",
    hidden: "Tensor",
    head: Head,
    clusters: "Sequence[Tensor]",
    mask: "Tensor",
    *,
    valid: "Tensor | None" = None,
    ratio: float = 1.0,
    config: LossConfig | None = None,
) -> Loss:
    """Penalty and cross-entropy of a batch.

    Args:
        conv: [B, C, S] output of the convolutions.
        hidden: [B, S, D] output of the transformer, final norm included.
        clusters: per label set, [B, L] cluster of each label step, without ``head.offset``.
        mask: bool [B, S], the steps that the transformer did not see.
        valid: bool [B, S], False in padding; None: there is none.
        ratio: label steps per step of the network: 1 at 50 Hz, 2 at 100 Hz.

    Where the labels are too short, later steps are left out.
    """
    config = config or LossConfig()
    steps = labelled_steps(conv.shape[-1], min(labels.shape[-1] for labels in clusters), ratio)
    conv, hidden, mask = conv[..., :steps], hidden[:, :steps], mask[:, :steps]
    valid = mask.new_ones(mask.shape) if valid is None else valid[:, :steps]
    targets = [of_steps(labels, steps, ratio) for labels in clusters]
    penalty = conv.float().square().mean()

    seen = {"masked": mask & valid, "unmasked": ~mask & valid}
    parts = {
        name: _parts(hidden[where], [target[where] for target in targets], head) if weight else ()
        for (name, where), weight in zip(seen.items(), (config.masked, config.unmasked), strict=True)
    }
    sample_size = sum(found[0].count for found in parts.values() if found)
    penalty_term = config.penalty * penalty * sample_size
    total = penalty_term
    for name, weight in (("masked", config.masked), ("unmasked", config.unmasked)):
        for part in parts[name]:
            total = total + weight * part.loss
    return Loss(total, sample_size, penalty, penalty_term, parts["masked"], parts["unmasked"])


def _parts(hidden: "Tensor", targets: "Sequence[Tensor]", head: Head) -> tuple[Part, ...]:
    """``hidden`` [N, D] and, per label set, clusters [N]."""
    import torch
    from torch.nn import functional

    projected = functional.linear(hidden, head.weight, head.bias).chunk(len(head.classes), dim=-1)  # [N, P] per set
    found = []
    tables = torch.split(head.table, list(head.classes))
    for vectors, table, target in zip(projected, tables, targets, strict=True):
        logits = logits_of(vectors, table)
        classes = target + head.offset
        loss = functional.cross_entropy(logits, classes, reduction="sum")
        found.append(Part(loss, (logits.argmax(dim=-1) == classes).sum(), len(classes)))
    return tuple(found)


def logits_of(vectors: "Tensor", table: "Tensor") -> "Tensor":
    """Cosine of each vector [N, P] with each row [C, P], over the temperature: [N, C], in float32 whatever they are."""
    from torch.nn import functional

    of_rows = functional.normalize(table.float(), dim=-1, eps=COSINE_EPS)
    return functional.normalize(vectors.float(), dim=-1, eps=COSINE_EPS) @ of_rows.T / TEMPERATURE


def labelled_steps(steps: int, num_labels: int, ratio: float) -> int:
    """Of ``steps``, how many have a label: fairseq cuts where ``ratio * steps`` exceeds the labels."""
    return int(num_labels / ratio) if ratio * steps > num_labels else steps


def of_steps(labels: "Tensor", steps: int, ratio: float) -> "Tensor":
    """The label of each step, ``labels[..., floor(i * ratio)]``: [..., S]."""
    import torch

    return labels[..., (torch.arange(steps, device=labels.device) * ratio).long()]


def label_range(start: int, num_samples: int, label_hz: float, sample_hz: int) -> tuple[int, int]:
    """Labels [start, stop) of the crop ``[start, start + num_samples)`` of a recording, by fairseq's rule.

    A crop that begins at sample 320 k begins with label k. (torchaudio's recipe takes k - 1, 20 ms early.)
    """
    first = round(start * label_hz / sample_hz)
    return first, first + round(num_samples * label_hz / sample_hz)


def valid_steps(valid_samples: "Tensor", num_samples: int, steps: int) -> "Tensor":
    """bool [B, S]: which steps of padded rows hold sound.

    fairseq's rule: the last ``num_samples % steps`` samples are left out, the rest is cut into ``steps`` equal
    chunks, and a step is padding if its whole chunk is.

    Args:
        valid_samples: int [B], samples of each row before its padding.
    """
    import torch

    starts = torch.arange(steps, device=valid_samples.device) * (num_samples // steps)
    return starts[None] < valid_samples[:, None]
