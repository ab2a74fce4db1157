"""Refuses clips of one subject or recording in several splits: scores measured on them would be too good."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from extract.errors import ManifestError
from extract.inputs.manifest.clip import Clip
from extract.inputs.manifest.reading import read_document
from extract.inputs.splits import Member, crossings

SHOWN_CROSSINGS = 5
"""Subjects or recordings that a refusal lists."""
SHOWN_CLIPS = 3
"""Clips that it lists of each, per split."""


def members_of(clips: Iterable[Clip]) -> list[Member]:
    """What decides which of the clips belong together."""
    return [Member(clip.id, clip.source_video, clip.subject) for clip in clips]


def refuse_shared(clips: Iterable[Clip], path: Path | None) -> None:
    """Refuse clips of one subject or recording in several splits.

    Args:
        path: the manifest that they were read from, for its lines.

    Raises:
        ManifestError: names the first few, and what to do.
    """
    clips = tuple(clips)
    split_of = {clip.id: clip.split for clip in clips if clip.split is not None}
    found = crossings(members_of(clips), split_of)
    if not found:
        return
    lines: dict[str, str] = {}
    if path is not None:
        lines = {clip.id: f" (line {place.line})" for clip, place in read_document(path).entries()}

    def listed(ids: Sequence[str]) -> str:
        more = f" and {len(ids) - SHOWN_CLIPS} more" if len(ids) > SHOWN_CLIPS else ""
        return ", ".join(f"{clip_id}{lines.get(clip_id, '')}" for clip_id in ids[:SHOWN_CLIPS]) + more

    shown = [
        f"  {crossing.shared}: " + "; ".join(f"{split}: {listed(ids)}" for split, ids in crossing.clips.items())
        for crossing in found[:SHOWN_CROSSINGS]
    ]
    if len(found) > SHOWN_CROSSINGS:
        shown.append(f"  and {len(found) - SHOWN_CROSSINGS} more")
    raise ManifestError(
        "\n".join([
            f"{path or 'the clips'}: one subject or recording is in several splits, so scores would be too good:",
            *shown,
            "give all clips of one subject or recording the same `split:`, or leave out `subject:` where "
            "it is not known; `--allow-shared-subjects` accepts them as they are",
        ])
    )
