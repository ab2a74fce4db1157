"""Recognised words: what is no speech is left out, and pieces are put together on the clip's clock."""

import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from extract.inputs.transcripts import Word
from extract.recognition.pieces import Piece

NO_SPEECH_PROBABILITY = 0.6
"""With the next one: Whisper's own rule (Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision",
2022, section 4.5), that a piece is silence."""
LEAST_LOG_PROBABILITY = -1.0
MOST_COMPRESSION = 2.4
"""From the same section: text that zlib makes this much smaller repeats itself."""
MOST_REPEATS = 4
"""Times that a phrase may stand behind itself; people say "no no no no", recognisers in a loop never end."""


@dataclass(frozen=True)
class Heard:
    """What an engine heard in one piece."""

    words: tuple[Word, ...]
    """Times in seconds from the piece's start."""
    language: str | None = None
    """As the engine gives it (``en``, ``en-US``); None: it does not say."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Facts for the record: name -> a count (int), which is added up over the pieces of a clip."""


def is_no_speech(no_speech: float, mean_log_probability: float) -> bool:
    """Whether a piece holds no speech by the engine's own account.

    Args:
        no_speech: probability of the token that says so, 0 to 1.
        mean_log_probability: of the tokens of the text, natural logarithm; a confident text is speech all the same.
    """
    return no_speech > NO_SPEECH_PROBABILITY and mean_log_probability < LEAST_LOG_PROBABILITY


def is_repetitive(texts: Sequence[str]) -> bool:
    """Whether words repeat themselves as a recogniser does that is caught in a loop, over music above all.

    Two signs: the text shrinks under zlib beyond ``MOST_COMPRESSION``, or a phrase of 1 to 8 words stands more than
    ``MOST_REPEATS`` times in a row.
    """
    words = [text.strip(" .,!?;:-\u2026").casefold() for text in texts]
    raw = " ".join(words).encode()
    if len(raw) > MOST_COMPRESSION * len(zlib.compress(raw)):
        return True
    for length in range(1, 9):
        same = 0
        for at in range(length, len(words)):
            same = same + 1 if words[at] == words[at - length] else 0
            if same >= length * MOST_REPEATS:
                return True
    return False


def guarded(heard: Heard) -> Heard:
    """The same, or no words and the note ``repetitive_pieces`` where the text is a loop."""
    if is_repetitive([word.text for word in heard.words]):
        return Heard((), heard.language, {**heard.notes, "repetitive_pieces": 1})
    return heard


def merge(pieces: Sequence[Piece], heard: Sequence[Heard], hz: int, start_s: float) -> Heard:
    """What was heard in all pieces, on the clip's clock, in the order in which the words begin.

    Engines are not trusted with times: one outside its piece is moved to the piece's edge, an end before its start to
    the start; a word without a number for a time is left out. ``mended_times`` counts them. Loops are left out
    (``guarded``).

    Args:
        pieces: in samples at ``hz``.
        start_s: time of the recording's first sample on the clip's clock, seconds.

    Returns:
        Words; the language of most words; the notes' counts added up.
    """
    words: list[Word] = []
    notes: Counter[str] = Counter()
    languages: Counter[str] = Counter()
    for piece, raw in zip(pieces, heard, strict=True):
        found = guarded(raw)
        notes.update(found.notes)
        begin_s, length_s = start_s + piece.start / hz, len(piece) / hz
        for word in found.words:
            text = " ".join(word.text.split())
            if not text:
                continue
            if not (math.isfinite(word.start_s) and math.isfinite(word.end_s)):
                notes["mended_times"] += 1
                continue
            first = min(max(word.start_s, 0.0), length_s)
            last = min(max(word.end_s, first), length_s)
            notes["mended_times"] += (first, last) != (word.start_s, word.end_s)
            words.append(Word(text, begin_s + first, begin_s + last))
            if found.language:
                languages[found.language] += 1
    spoken = languages.most_common(1)
    kept = {name: count for name, count in notes.items() if count}
    words.sort(key=lambda word: (word.start_s, word.end_s))
    return Heard(tuple(words), spoken[0][0] if spoken else None, kept)
