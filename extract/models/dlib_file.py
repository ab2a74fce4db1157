"""The numbers of a file that dlib wrote (dlib's ``serialize.h``).

An integer is a control byte, its low four bits the number of bytes that follow and its highest bit the sign, then the
absolute value in that many bytes, the lowest first. A float is two integers, mantissa and exponent: mantissa times
two to the exponent.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CHUNK_BYTES = 8192
"""Bytes of one chain; the chains of a file are followed side by side."""
RUN_UP_BYTES = 256
"""Where an integer begins shows only from the one before. A chain that begins in the middle of one soon meets the
true beginnings, most often within a few integers: each chain runs up to its chunk from here."""
MOST_FILE_BYTES = 400_000_000
"""Four times the published file: reading takes ten times a file's size in memory."""
MOST_BYTES = 3
"""Of an integer's value: a float32's mantissa has 24 bits, and counts are smaller than that."""


def read_words(path: Path) -> NDArray[np.uint32]:
    """Every integer of the file in order, [N], as its control byte (lowest) and three bytes of value.

    Raises:
        ValueError: the bytes are no such integers, or the last one is cut off.
    """
    size = path.stat().st_size
    if size > MOST_FILE_BYTES:
        raise ValueError(f"it has {size / 1e9:.3g} GB, expected 0.1")
    data = np.zeros(size + 20, np.uint8)  # a chain may step over the end, by 16 bytes at most
    data[:size] = np.fromfile(path, np.uint8)
    word = np.ndarray((size + 16,), "<u4", data, 0, (1,))  # the four bytes from every place on
    begins = np.arange(0, size, CHUNK_BYTES)
    ends = np.minimum(begins + CHUNK_BYTES, size)
    entry = np.maximum(begins - RUN_UP_BYTES, 0)
    while (behind := entry < begins).any():
        entry[behind] += 1 + (data[entry[behind]] & 15)
    columns, left = _follow(word, entry, ends)
    for k in range(1, len(begins)):
        if left[k - 1] < ends[k - 1]:  # it met a zero: nothing behind can be right
            break
        if entry[k] != left[k - 1]:  # the run-up was too short
            column, left[k : k + 1] = _follow(word, left[k - 1 : k], ends[k : k + 1])
            if len(column) > len(columns):
                columns = np.pad(columns, ((0, len(column) - len(columns)), (0, 0)))
            columns[:, k] = 0
            columns[: len(column), k] = column[:, 0]
    words: NDArray[np.uint32] = columns.T[columns.T != 0]
    length = words & 0x7F  # no bit but the sign and the length may be set
    whole = len(words) > 0 and (left >= ends).all() and left[-1] == size
    if not whole or (length == 0).any() or (length > MOST_BYTES).any():
        raise ValueError("its bytes are not dlib's integers")
    return words


def _follow(
    word: NDArray[np.uint32], entry: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """The words of chains from ``entry`` up to ``ends``, [S, K], zeros below the last; where each chain stands then."""
    place, rows = entry.copy(), []
    while True:
        here = word[place]
        here[place >= ends] = 0
        if not here.any():
            break
        rows.append(here)
        place += np.where(here != 0, (here & 15) + 1, 0)
    return np.stack(rows) if rows else np.zeros((0, len(entry)), np.uint32), place


def integers(words: NDArray[np.uint32]) -> NDArray[np.int32]:
    """The values of ``words``, of the same shape."""
    bits = (words & 15) * np.uint32(8)
    value = ((words >> np.uint32(8)) & ((np.uint32(1) << bits) - np.uint32(1))).astype(np.int32)
    return np.where(words & 128, -value, value)


def floats(words: NDArray[np.uint32]) -> NDArray[np.float32]:
    """The values of ``words`` [..., 2 N], mantissas and exponents in turn: [..., N]."""
    pairs = integers(words).reshape(*words.shape[:-1], -1, 2)
    return np.ldexp(pairs[..., 0].astype(np.float32), pairs[..., 1])
