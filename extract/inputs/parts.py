"""Source parts of a clip: the files or the choice behind each of them, and what a stage that reads one is given."""

from pathlib import Path
from typing import Any

from extract.inputs import annotations, transcripts
from extract.inputs.manifest import Clip


def choice(clip: Clip, part: str) -> str | float | list[float | None] | None:
    """A choice that the manifest makes for a clip; None if it makes none."""
    if part == "choice.face":
        return clip.face
    if part == "choice.fps":
        return clip.fps if clip.crops and not clip.video else None  # a movie's own times are the truth
    if part == "choice.span":
        return [clip.start_s, clip.end_s] if (clip.start_s, clip.end_s) != (None, None) else None
    raise KeyError(part)


def part_files(clip: Clip, part: str) -> tuple[Path, ...]:
    """The files of a source part; none if the clip does not have it."""
    named = {
        "media": (clip.video,),
        "audio": (clip.audio,),
        "crops": (clip.crops,),
        "transcript": (clip.transcript,),
        "labels": (clip.labels.au, clip.labels.expr),
    }[part]
    return tuple(path for path in named if path is not None)


def read_part(clip: Clip, part: str) -> dict[str, Any]:
    """What a clip stage that declares ``part`` is given, by input name; {} for parts that the runner decodes.

    ``labels.au`` int8 [rows, 12] and ``labels.expr`` int8 [rows], each None if the clip has none;
    ``labels.left_out``: columns of AUs other than the twelve; ``transcript``: a Transcript or None;
    ``choice.face``: str or None.

    Raises:
        ClipError: the file is missing or malformed.
    """
    if part == "labels":
        au = annotations.read_au(clip.labels.au) if clip.labels.au else None
        return {
            "labels.au": au.au if au else None,
            "labels.left_out": au.left_out if au else (),
            "labels.expr": annotations.read_expr(clip.labels.expr) if clip.labels.expr else None,
        }
    if part == "transcript":
        return {part: transcripts.read_transcript(clip.transcript) if clip.transcript else None}
    return {part: clip.face} if part == "choice.face" else {}
