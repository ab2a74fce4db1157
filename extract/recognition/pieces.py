"""Cuts a recording into pieces of speech that a recogniser takes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
    """Samples [start, stop) of a recording."""

    start: int
    stop: int
