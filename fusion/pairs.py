"""Correction of one AU's probability by those of AUs that go with it (the paper's AUcorr).

An AU that is rare or hard to see borrows from one that is common and easy: p24 <- (p24 + p4) / 2. On the right stand
the probabilities before any correction, so that the order of the equations does not matter.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from extract.au import au_name
from fusion.pearson import labels_as_values, pearson

Floats: TypeAlias = NDArray[np.float64]
Pairs: TypeAlias = Mapping[int, tuple[int, ...]]
"""AU number -> the AUs whose probabilities are averaged with its own."""

PAPER_PAIRS: Pairs = {24: (4,), 26: (1, 2)}
"""USC's two equations: p24 <- (p24 + p4) / 2, p26 <- (p26 + p1 + p2) / 3."""

LEAST_R = 0.3
"""Of mined pairs: the correlation of their training labels. The paper's pairs have .32 and .48 and more."""
LEAST_AHEAD = 0.1
"""Of mined pairs: how far the source's F1 on ``val`` is above the target's (the paper: detected far better)."""
MOST_SOURCES = 2
"""Of mined pairs: sources of one target, as many as in the paper's longest equation."""


@dataclass(frozen=True)
class Checked:
    """An equation that was tried on ``val``."""

    target: int
    sources: tuple[int, ...]
    f1_without: float
    """F1 of the target on ``val`` before the correction."""
    f1_with: float
    """And after it."""

    @property
    def helps(self) -> bool:
        return self.f1_with > self.f1_without

    def __str__(self) -> str:
        return (
            f"{equation(self.target, self.sources)}: F1 on val {100 * self.f1_without:.1f} -> {100 * self.f1_with:.1f}"
        )


def equation(target: int, sources: Sequence[int]) -> str:
    """``AU24 <- (AU24 + AU04) / 2``."""
    terms = " + ".join(au_name(number) for number in (target, *sources))
    return f"{au_name(target)} <- ({terms}) / {1 + len(sources)}"


def corrected(probabilities: ArrayLike, aus: Sequence[int], pairs: Pairs) -> Floats:
    """``probabilities`` [N, A] in [0, 1] with the equations of ``pairs`` applied, all at once: [N, A] float64.

    Raises:
        ValueError: an equation with an AU that is not in ``aus``.
    """
    before = np.asarray(probabilities, dtype=np.float64)
    after = before.copy()
    for target, sources in pairs.items():
        if unknown := [au_name(number) for number in (target, *sources) if number not in aus]:
            raise ValueError(f"{equation(target, sources)}: no probabilities of {', '.join(unknown)}")
        after[:, aus.index(target)] = before[:, [aus.index(number) for number in (target, *sources)]].mean(axis=1)
    return after


def known_pairs(pairs: Pairs, aus: Sequence[int]) -> tuple[dict[int, tuple[int, ...]], list[str]]:
    """The equations whose AUs are all in ``aus``, and a sentence about each other one."""
    kept: dict[int, tuple[int, ...]] = {}
    left_out = []
    for target, sources in pairs.items():
        unknown = [au_name(number) for number in (target, *sources) if number not in aus]
        if unknown:
            left_out.append(f"{equation(target, sources)} left out: the run has no {', '.join(unknown)}")
        else:
            kept[target] = tuple(sources)
    return kept, left_out


def check_pairs(
    pairs: Pairs, probabilities: Floats, aus: Sequence[int], f1_of: Callable[[int, Floats], float]
) -> list[Checked]:
    """Try each equation of ``pairs`` on the probabilities [N, A] of ``val``.

    Args:
        f1_of: F1 of a target, given its number and its column of probabilities [N].
    """
    found = []
    for target, sources in pairs.items():
        before = probabilities[:, aus.index(target)]
        after = corrected(probabilities, aus, {target: sources})[:, aus.index(target)]
        found.append(Checked(target, sources, f1_of(target, before), f1_of(target, after)))
    return found


def mine_pairs(
    train_labels: ArrayLike, probabilities: Floats, aus: Sequence[int], f1_of: Callable[[int, Floats], float]
) -> list[Checked]:
    """For each AU that others could correct, the best equation on ``val``, whether it helps or not.

    A source's training labels go with the target's (r >= ``LEAST_R``) and its F1 on ``val`` is ahead by
    ``LEAST_AHEAD``. Tried are the source with the highest r, and the two highest. An AU without a positive on
    ``val`` has F1 0 there by nothing but its absence, and is never a target.

    Args:
        train_labels: [M, A]: 0, 1 or -1, of the training split.
        probabilities: [N, A], of the split ``val``.
        f1_of: as in ``check_pairs``; NaN for an AU that cannot be judged.
    """
    r = pearson(labels_as_values(train_labels)).r
    f1 = np.array([f1_of(number, probabilities[:, column]) for column, number in enumerate(aus)])
    found = []
    for column, target in enumerate(aus):
        # A comparison with NaN is false: what does not vary in training, or cannot be judged, takes no part.
        fit = (r[column] >= LEAST_R) & (f1 >= f1[column] + LEAST_AHEAD)
        fit[column] = False
        by_r = [int(source) for source in np.argsort(-np.nan_to_num(r[column]), kind="stable") if fit[source]]
        prefixes = accumulate(([aus[source]] for source in by_r[:MOST_SOURCES]), lambda one, more: one + more)
        tried = [
            checked
            for sources in prefixes
            for checked in check_pairs({target: tuple(sources)}, probabilities, aus, f1_of)
        ]
        if tried:
            found.append(max(tried, key=lambda checked: checked.f1_with))
    return found
