"""What a recogniser is to the stage ``transcribe``."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from extract.recognition.words import Heard

if TYPE_CHECKING:
    from torch import Tensor


class Engine(Protocol):
    """Recognises pieces of speech, each by itself: what a piece gives does not depend on the others of a call."""

    name: str
    """As the config's ``engines`` calls it: ``whisper``, ``google``."""
    max_piece_s: float
    """Longest piece that it takes, seconds."""

    def recognise(self, pieces: Sequence["Tensor"]) -> list[Heard]:
        """What is said in each piece.

        Args:
            pieces: float32 [n] each, in [-1, 1], 16 kHz, in the CPU's memory, none longer than ``max_piece_s``.

        Returns:
            One ``Heard`` per piece, in their order; times in seconds from the piece's own start.
        """

    def describe(self) -> dict[str, Any]:
        """``engine``, ``version``, ``model``, ``language`` (None: as recognised) as JSON values, for the record."""
