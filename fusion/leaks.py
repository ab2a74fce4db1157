"""What was selected on which clips, and the refusal to report it on the same ones."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from extract.errors import UsageError
from fusion.scores import FrameScores

SHOWN = 8
"""Names that a message lists before it only counts."""


@dataclass(frozen=True)
class SelectedOn:
    """The scores that thresholds, windows or checkpoints were chosen on."""

    split: str
    clips: tuple[str, ...]
    source_videos: tuple[str, ...]
    """Distinct, sorted."""
    annotated: int
    """Frames with at least one annotated AU."""
    sha256: str
    """Of the scores and labels; the same for the same numbers, however they are stored."""

    @classmethod
    def of(cls, scores: FrameScores) -> "SelectedOn":
        """Describe these scores."""
        return cls(
            split=str(scores.facts.get("split", "unnamed")),
            clips=scores.clips,
            source_videos=tuple(sorted(set(scores.source_videos))),
            annotated=int((scores.labels >= 0).any(axis=1).sum()),
            sha256=scores_sha256(scores),
        )


def scores_sha256(scores: FrameScores) -> str:
    """sha256 of the names, frames, logits and labels; facts take no part."""
    plain = json.dumps([scores.clips, scores.source_videos, scores.aus])
    digest = hashlib.sha256(plain.encode())
    for values in (scores.clip, scores.frame, scores.pts_s, scores.face, scores.logits, scores.labels):
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def check_disjoint(selected: SelectedOn, scores: FrameScores, allow_leak: bool, what: str) -> str | None:
    """Refuse to report on clips or recordings that something was selected on.

    Names of splits do not matter: two splits may share clips, or clips of one recording.

    Args:
        what: what was selected, as the subject of a sentence in the plural: ``the thresholds``.

    Returns:
        None if the two share nothing; else, if allowed, the sentence that every table must print.

    Raises:
        UsageError: they share something, and it is not allowed.
    """
    clips = sorted(set(selected.clips) & set(scores.clips))
    videos = sorted(set(selected.source_videos) & set(scores.source_videos))
    if not clips and not videos:
        return None
    shared = f"{_few('clip', clips)}" if clips else f"{_few('source video', videos)}"
    split = scores.facts.get("split", "unnamed")
    if not allow_leak:
        raise UsageError(
            f"split {split}: {what} were selected on {shared}, so that its numbers would flatter them; "
            "report a split that was not selected on, or say --allow-leak, which every table then prints"
        )
    return f"LEAK ALLOWED: {what} were selected on {shared} of these very scores; the numbers flatter them"


def _few(what: str, names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"{what} {names[0]}"
    listed = ", ".join(names[:SHOWN])
    return f"{len(names)} {what}s ({listed}{', ...' if len(names) > SHOWN else ''})"
