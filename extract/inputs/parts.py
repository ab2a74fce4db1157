"""Source parts of a clip: the files or the choice behind each of them, and what a stage that reads one is given."""

from pathlib import Path
from typing import Any

from extract.au import AUS
from extract.inputs import annotations, transcripts
from extract.inputs.manifest import Clip


def choice(clip: Clip, part: str) -> str | float | list[float | None] | None:
    """A choice that the manifest makes for a clip; None if it makes none."""
    if part == "choice.face":
        return clip.face
    if part == "choice.language":
        return clip.language
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
        "labels.va": (clip.labels.va,),
        "labels.intensity": (clip.labels.intensity,),
    }[part]
    return tuple(path for path in named if path is not None)


def read_part(clip: Clip, part: str, aus: tuple[int, ...] = AUS) -> dict[str, Any]:
    """What a clip stage that declares ``part`` is given, by input name; {} for parts that the runner decodes.

    ``labels.au`` int8 [rows, A] and ``labels.expr`` int8 [rows]; ``labels.va`` float32 [rows, 2];
    ``labels.intensity`` int8 [rows, A]: each None if the clip has none. With both tables of action units,
    ``..._left_out``: columns of AUs that are not asked for, and ``..._listed``: whether the file lists the frames that
    it annotates, so that it may end before the clip. ``labels.named``: kinds of label files that the manifest names.
    ``transcript``: a Transcript or None; ``choice.face``: str; ``choice.language``: str or None.

    Args:
        aus: numbers of the A action units that are asked for.

    Raises:
        ClipError: the file is missing or malformed.
    """
    if part == "labels":
        au = annotations.read_au(clip.labels.au, aus) if clip.labels.au else None
        return {
            **_of_table("labels.au", au),
            "labels.named": tuple(kind for kind, path in clip.labels if path is not None),
            "labels.expr": annotations.read_expr(clip.labels.expr) if clip.labels.expr else None,
        }
    if part == "labels.va":
        return {part: annotations.read_va(clip.labels.va) if clip.labels.va else None}
    if part == "labels.intensity":
        table = annotations.read_intensity(clip.labels.intensity, aus) if clip.labels.intensity else None
        return _of_table(part, table)
    if part == "transcript":
        return {part: transcripts.read_transcript(clip.transcript) if clip.transcript else None}
    return {part: choice(clip, part)} if part in {"choice.face", "choice.language"} else {}


def _of_table(name: str, table: annotations.AuLabels | None) -> dict[str, Any]:
    return {
        name: table.au if table else None,
        f"{name}_left_out": table.left_out if table else (),
        f"{name}_listed": table is not None and table.listed,
    }
