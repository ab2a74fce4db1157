"""Pearson's correlation of columns, each pair over the rows in which both have a value."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Correlation:
    """How columns of one table go with columns of another."""

    r: Floats
    """[A, B] in [-1, 1]; NaN where fewer than two rows have both, or one of them does not vary there."""
    rows: NDArray[np.int64]
    """[A, B]: rows in which both have a value."""


def pearson(first: ArrayLike, second: ArrayLike | None = None) -> Correlation:
    """Correlate the columns of ``first`` [N, A] with those of ``second`` [N, B] (None: with each other).

    NaN is a value that is not there; it leaves out its row from its own column's pairs only.
    """
    x, x_there = _centred(first)
    y, y_there = (x, x_there) if second is None else _centred(second)
    n = x_there.T @ y_there  # [A, B], of each pair: rows, sums and sums of squares over its own rows
    sum_x, sum_y = x.T @ y_there, x_there.T @ y
    covariance = n * (x.T @ y) - sum_x * sum_y
    spread_x = n * ((x * x).T @ y_there) - sum_x**2
    spread_y = n * (x_there.T @ (y * y)) - sum_y**2
    # A constant column has spread 0 up to rounding, which grows with the sums.
    tiny = 1e-12 * n**2
    defined = (n > 1) & (spread_x > tiny) & (spread_y > tiny)
    r = np.full(n.shape, np.nan)
    root = np.sqrt(np.where(defined, spread_x, 1.0)) * np.sqrt(np.where(defined, spread_y, 1.0))
    np.divide(covariance, root, out=r, where=defined)
    return Correlation(np.clip(r, -1.0, 1.0), n.astype(np.int64))


def labels_as_values(labels: ArrayLike) -> Floats:
    """Labels as floats with NaN in place of -1."""
    truth = np.asarray(labels)
    return np.where(truth < 0, np.nan, truth.astype(np.float64))


def _centred(values: ArrayLike) -> tuple[Floats, Floats]:
    """Each column minus its mean and divided by its deviation, with 0 where nothing is, and whether something is.

    Correlation does not change by that, but sums of squares of uncentred values would lose digits.
    """
    found = np.asarray(values, dtype=np.float64)
    there = ~np.isnan(found)
    filled = np.where(there, found, 0.0)
    count = np.maximum(there.sum(axis=0), 1)
    centred = np.where(there, filled - filled.sum(axis=0) / count, 0.0)
    deviation = np.sqrt((centred**2).sum(axis=0) / count)
    return centred / np.where(deviation > 0, deviation, 1.0), there.astype(np.float64)
