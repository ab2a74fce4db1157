"""Which training frames an epoch shows, and in which order: thinned, over-sampled, or in runs of neighbours.

Everything here gives indices and copies no data; everything random comes from a seed.
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Imbalance:
    """How unevenly labels occur (Charte et al., "Addressing imbalance in multilabel classification", 2015)."""

    counts: NDArray[np.int64]
    """Positives of each label, [A]."""
    ratio: NDArray[np.float64]
    """IRLbl, [A]: positives of the commonest label over those of this one; inf for a label without positives."""
    mean_ratio: float
    """MeanIR over the labels with positives; 0 if there are none."""

    @property
    def minority(self) -> tuple[int, ...]:
        """Columns of the labels with positives that are rarer than the mean: IRLbl > MeanIR."""
        return tuple(np.flatnonzero((self.counts > 0) & (self.ratio > self.mean_ratio)).tolist())

    @property
    def without_positive(self) -> tuple[int, ...]:
        """Columns of the labels that nothing can balance; they are left out of the mean."""
        return tuple(np.flatnonzero(self.counts == 0).tolist())

    @classmethod
    def of_counts(cls, counts: ArrayLike) -> "Imbalance":
        """From the number of positives of each label, [A]."""
        number = np.asarray(counts, dtype=np.int64)
        present = number > 0
        ratio = np.full(number.shape, np.inf)
        ratio[present] = number.max(initial=0) / number[present]
        return cls(number, ratio, float(ratio[present].mean()) if present.any() else 0.0)


@dataclass(frozen=True)
class Oversampled:
    """What ML-ROS gives."""

    indices: Indices
    """Every original row in its order, then the clones in the order they were drawn, [N + clones]."""
    clones: int
    before: Imbalance
    after: Imbalance


def imbalance(labels: ArrayLike) -> Imbalance:
    """Imbalance of ``labels`` [N, A]: 0, 1, or -1 (not annotated), which is no positive."""
    return Imbalance.of_counts((_matrix(labels) == 1).sum(0))


def ml_ros(labels: ArrayLike, percent: float = 10.0, seed: int = 0) -> Oversampled:
    """ML-ROS: clone rows with rare labels until these are no rarer than the mean was, or the budget is spent.

    Charte et al. 2015, algorithm 2. The budget is floor(N percent / 100) clones. Each minority label has a bag, the
    original rows where it is positive. Bags take turns; each turn draws one row of the bag with replacement, with all
    its labels, so common labels grow along. A label whose IRLbl on the grown rows has come down to the MeanIR of the
    original ones is retired. Unlike the paper's, whose check once a round may clone one row a bag too many, the budget
    is strict.

    Neighbouring frames of a video are nearly alike: thin them out first (``strided``). Only the training rows are to
    be given, after the split.

    Args:
        labels: [N, A], 0, 1, or -1 (not annotated, no positive).
        percent: at most how many clones, in percent of N; >= 0.
        seed: of the draws.

    Raises:
        ValueError: other shapes or values.
    """
    truth = _matrix(labels)
    if percent < 0:
        raise ValueError(f"percent is {percent}: expected at least 0")
    before = imbalance(truth)
    positive = truth == 1
    bags = {label: np.flatnonzero(positive[:, label]) for label in before.minority}
    budget = int(len(truth) * Fraction(str(percent)) / 100)  # by decimals: 1.15 % of 10,000 are 115
    random = np.random.default_rng(seed)
    counts = before.counts.copy()
    clones: list[int] = []
    while bags and len(clones) < budget:
        for label in list(bags):
            row = int(bags[label][random.integers(len(bags[label]))])
            clones.append(row)
            counts += positive[row]
            if counts.max() / counts[label] <= before.mean_ratio:
                del bags[label]
            if len(clones) == budget:
                break
    indices = np.concatenate([np.arange(len(truth)), np.array(clones, dtype=np.int64)])
    return Oversampled(indices, len(clones), before, Imbalance.of_counts(counts))


def strided(clip: ArrayLike, frame: ArrayLike, stride: int) -> Indices:
    """Every ``stride``-th sample of each clip, counted from its first one in the order of frames; indices ascend.

    Args:
        clip: [N], the clip of each sample, as numbers or names.
        frame: [N], its frame number.
        stride: >= 1; 1 keeps all.

    Raises:
        ValueError: other shapes or values.
    """
    if stride < 1:
        raise ValueError(f"stride is {stride}: expected at least 1")
    order, starts = _by_clip(clip, frame)
    first = np.repeat(starts[:-1], np.diff(starts))
    return np.sort(order[(np.arange(len(order)) - first) % stride == 0])


def segments(
    clip: ArrayLike, frame: ArrayLike, *, length: int, batch_size: int, seed: int = 0, epoch: int = 0
) -> list[Indices]:
    """One epoch's batches for the sampler ``segments``: runs of neighbours, each sample exactly once.

    The samples of a clip, in the order of frames, are cut into runs of ``length``; each clip's cuts are shifted by a
    number drawn anew every epoch, so its first and last run may be shorter and two frames do not always share a run.
    Runs are shuffled and dealt whole, the long ones first, always to the smallest batch, so that sizes differ by at
    most ``length``, and by a few samples where many clips give short runs. There are as few batches as keep each within
    ``batch_size``. Batch normalisation has no variance in a batch of 1: where one would be left, it joins the smallest
    of the others, which may then hold one sample more.

    Args:
        clip: [N], the clip of each sample, as numbers or names.
        frame: [N], its frame number; equal ones (clones of ML-ROS) are neighbours.
        length: samples of a run, >= 1.
        batch_size: samples of the largest batch, >= ``length`` and >= 2.
        seed: of the run; with ``epoch`` it determines the batches.
        epoch: counted from 0.

    Returns:
        Arrays of indices into the samples, in an order that is random as well.

    Raises:
        ValueError: other shapes or values; a single sample, which is no batch.
    """
    if length < 1 or batch_size < max(length, 2):
        raise ValueError(
            f"length {length} and batch_size {batch_size}: expected a length from 1 and a batch of at least one run "
            "and 2 samples"
        )
    order, starts = _by_clip(clip, frame)
    if len(order) == 1:
        raise ValueError("1 sample: expected at least 2, a batch of 1 cannot be normalised")
    random = np.random.default_rng([seed, epoch])
    runs = _runs(starts, length, random)
    random.shuffle(runs)
    runs.sort(key=lambda run: run[0] - run[1])  # longest first; equal ones stay shuffled
    number = -(-len(order) // batch_size)
    batches = _dealt(runs, number)
    while any(_size(batch) > batch_size for batch in batches):
        number += 1
        batches = _dealt(runs, number)
    batches.sort(key=_size)
    while len(batches) > 1 and _size(batches[0]) == 1:
        alone = batches.pop(0)
        batches[0] += alone
        batches.sort(key=_size)
    random.shuffle(batches)
    return [np.concatenate([order[start:stop] for start, stop in batch]) for batch in batches]


Run = tuple[int, int]
"""Half-open range of positions in the order of clips and frames."""


def _runs(starts: NDArray[np.int64], length: int, random: np.random.Generator) -> list[Run]:
    """The runs of every clip; ``starts`` [C + 1] are the clips' borders."""
    runs: list[Run] = []
    for start, stop in pairwise(starts.tolist()):
        first = start + int(random.integers(length))
        cuts = [start, *range(first if first > start else start + length, stop, length), stop]
        runs += pairwise(cuts)
    return runs


def _dealt(runs: Iterable[Run], number: int) -> list[list[Run]]:
    """Each run to the smallest of ``number`` batches so far; none is left empty while there are as many runs."""
    batches: list[list[Run]] = [[] for _ in range(number)]
    sizes = [(0, batch) for batch in range(number)]  # a heap
    for run in runs:
        size, batch = sizes[0]
        batches[batch].append(run)
        heapq.heapreplace(sizes, (size + run[1] - run[0], batch))
    return [batch for batch in batches if batch]


def _size(batch: list[Run]) -> int:
    return sum(stop - start for start, stop in batch)


def _by_clip(clip: ArrayLike, frame: ArrayLike) -> tuple[Indices, NDArray[np.int64]]:
    """Indices [N] in the order of clips and frames, and where each clip starts there, [C + 1]."""
    clips, frames = np.asarray(clip), np.asarray(frame)
    if clips.ndim != 1 or clips.shape != frames.shape or not np.issubdtype(frames.dtype, np.integer):
        raise ValueError(
            f"clips {clips.shape} and frames {frames.shape} {frames.dtype}: expected the same [N], integers"
        )
    _, codes = np.unique(clips, return_inverse=True)
    order = np.lexsort((frames, codes))
    return order, np.concatenate([[0], np.cumsum(np.bincount(codes))]).astype(np.int64)


def _matrix(labels: ArrayLike) -> NDArray[np.generic]:
    truth = np.asarray(labels)
    if truth.ndim != 2 or not np.isin(truth, (-1, 0, 1)).all():
        raise ValueError(f"labels {truth.shape}: expected [N, A] of 0, 1 or -1")
    return truth
