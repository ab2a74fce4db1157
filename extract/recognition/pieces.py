"""Cuts a recording into pieces of speech that a recogniser takes."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from extract.recognition.speech_activity import HOPS_PER_S, Samples, levels_db, voiced

MARGIN_S = 0.2
"""Kept on both sides of what is loud: consonants begin and end quietly."""
JOIN_S = 1.0
"""A shorter pause stays within its piece: recognisers need the sentence, and every request is rounded up."""


@dataclass(frozen=True)
class Piece:
    """Samples [start, stop) of a recording."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def cut(samples: Samples, hz: int, max_s: float, *, gate: bool = True) -> list[Piece]:
    """The stretches that may hold speech, with margins, each of ``max_s`` seconds at most, in order.

    Every voiced sample lies in exactly one piece, and no two pieces share a sample. A longer stretch is cut where it is
    quietest, in the second half of what may be one piece.

    Args:
        samples: float32 [n] in [-1, 1].
        hz: samples a second; a multiple of 100.
        gate: False: everything counts as speech.
    """
    hop, longest = hz // HOPS_PER_S, int(max_s * HOPS_PER_S)
    if hz % HOPS_PER_S or longest < 2:
        raise ValueError(f"hz is {hz} and max_s {max_s}; expected a multiple of {HOPS_PER_S}, and 0.02 s or more")
    levels = levels_db(samples, hz)
    speech = voiced(levels) if gate else np.ones(len(levels), dtype=bool)
    return [
        Piece(start * hop, min(stop * hop, len(samples)))
        for first, last in _stretches(speech)
        for start, stop in _parts(levels, first, last, longest)
    ]


def _stretches(speech: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Runs of speech, frames [first, last), widened by the margin and joined across short pauses."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], speech, [False]]).astype(np.int8)))
    margin, join = round(MARGIN_S * HOPS_PER_S), round(JOIN_S * HOPS_PER_S)
    begun: tuple[int, int] | None = None
    for first, last in edges.reshape(-1, 2).tolist():
        widened = (max(first - margin, 0), min(last + margin, len(speech)))
        if begun is not None and widened[0] - begun[1] < join - 2 * margin:
            begun = (begun[0], widened[1])
            continue
        if begun is not None:
            yield begun
        begun = widened
    if begun is not None:
        yield begun


def _parts(levels: NDArray[np.float32], first: int, last: int, longest: int) -> Iterator[tuple[int, int]]:
    """[first, last) in parts of ``longest`` frames at most, cut at the quietest frame."""
    while last - first > longest:
        earliest = first + max(longest // 2, 1)
        at = earliest + int(np.argmin(levels[earliest : first + longest + 1]))
        yield first, at
        first = at
    yield first, last
