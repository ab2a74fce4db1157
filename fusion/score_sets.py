"""Parts and unions of frame scores, by whole clips."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from extract.errors import UsageError
from fusion.scores import FrameScores


def of_clips(scores: FrameScores, wanted: Collection[str]) -> FrameScores:
    """The frames of the clips ``wanted``, in the order of ``scores``.

    Raises:
        ValueError: ``scores`` lacks one of them.
    """
    lacking = sorted(set(wanted) - set(scores.clips))
    if lacking:
        raise ValueError(f"no scores of clip {', '.join(lacking)}")
    kept = [number for number, clip in enumerate(scores.clips) if clip in wanted]
    new_number = np.full(len(scores.clips), -1)
    new_number[kept] = np.arange(len(kept))
    rows = new_number[scores.clip] >= 0
    return replace(
        scores,
        clips=tuple(scores.clips[number] for number in kept),
        source_videos=tuple(scores.source_videos[number] for number in kept),
        clip=new_number[scores.clip[rows]],
        frame=scores.frame[rows],
        pts_s=scores.pts_s[rows],
        present={name: values[rows] for name, values in scores.present.items()},
        face=scores.face[rows],
        logits=scores.logits[rows],
        labels=scores.labels[rows],
        outputs={name: values[rows] for name, values in scores.outputs.items()},
        targets={name: values[rows] for name, values in scores.targets.items()},
    )


def joined(parts: Sequence[FrameScores], facts: Mapping[str, Any]) -> FrameScores:
    """The frames of all parts, clip after clip in the order of the parts, with these facts.

    Raises:
        ValueError: a clip is in two parts, or parts differ in action units, modalities or tasks.
    """
    clips = [clip for part in parts for clip in part.clips]
    twice = sorted({clip for clip in clips if clips.count(clip) > 1})
    if twice:
        raise ValueError(f"clip {', '.join(twice)} is in several parts")
    first = parts[0]
    for part in parts[1:]:
        for name in ("aus", "present", "outputs", "targets"):
            one, other = (tuple(getattr(scores, name)) for scores in (first, part))
            if one != other:
                raise ValueError(f"parts differ in {name}: {one} and {other}")
    before = np.cumsum([0, *(len(part.clips) for part in parts)])

    def together(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(part, name) for part in parts])

    def each(kind: str) -> dict[str, Any]:
        return {name: np.concatenate([getattr(part, kind)[name] for part in parts]) for name in getattr(first, kind)}

    return FrameScores(
        clips=tuple(clips),
        source_videos=tuple(video for part in parts for video in part.source_videos),
        clip=np.concatenate([part.clip + start for part, start in zip(parts, before, strict=False)]),
        frame=together("frame"),
        pts_s=together("pts_s"),
        present=each("present"),
        face=together("face"),
        logits=together("logits"),
        labels=together("labels"),
        aus=first.aus,
        outputs=each("outputs"),
        targets=each("targets"),
        facts=dict(facts),
    )


def check_same_frames(one: FrameScores, other: FrameScores, whose: str) -> None:
    """Refuse to compare scores of other frames or labels: differences would be between data, not between networks.

    Args:
        whose: whose scores ``other`` is, to begin the message.

    Raises:
        UsageError: the message names the first thing that differs.
    """
    for name, found, expected in (
        ("action units", other.au_names, one.au_names),
        ("clips", other.clips, one.clips),
        ("source videos", other.source_videos, one.source_videos),
    ):
        if found != expected:
            raise UsageError(f"{whose}: {name} {_few(found)}, expected {_few(expected)}; score the same clips again")
    if not (np.array_equal(one.clip, other.clip) and np.array_equal(one.frame, other.frame)):
        raise UsageError(f"{whose}: other frames of the same clips; were they extracted anew? Score again")
    if not np.array_equal(one.labels, other.labels):
        raise UsageError(f"{whose}: other labels of the same frames; were they imported anew? Score again")


def _few(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f", ... ({len(names)})" if len(names) > most else "")
