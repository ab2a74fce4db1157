"""What a reader must know of some scores to judge a table of them: it goes with every result."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from extract.errors import UsageError
from fusion.heads import annotated_frames
from fusion.scores import FrameScores


@dataclass(frozen=True)
class About:
    """Whose scores they are, on how much, and what weakens them."""

    run: str
    features: str
    split: str
    epoch: int
    clips: int
    source_videos: int
    """Recordings with any annotated frame: what the intervals count."""
    frames: int
    """Annotated frames. All of them count, with or without a face."""
    missing: Mapping[str, int]
    """Modality -> number of annotated frames without it."""
    untrained: tuple[str, ...]
    """Instances whose encoder has random weights: the numbers say nothing about the method."""
    drawn: int
    """Number of clips whose pictures a program drew: the numbers say nothing about people."""
    left_out: Mapping[str, str]
    """Clip of the split that is not scored -> why."""
    leak: str | None = None
    """What was chosen or trained on clips that are scored here, where that was allowed."""
    warned: tuple[str, ...] = ()
    """What was found when the clips were admitted: people in several splits, crops of another kind, allowed leaks."""

    @classmethod
    def of(cls, scores: FrameScores, leak: str | None = None) -> "About":
        """Read from the scores and their facts.

        The facts are ``run``, ``features``, ``split``, ``epoch``, ``untrained`` (a list of instances), ``drawn`` (a
        number of clips), ``left_out`` (clip -> why) and ``warnings`` (sentences). What is absent counts as nothing.

        Raises:
            UsageError: no frame has a label of any task.
        """
        annotated = annotated_frames(scores)
        split = str(scores.facts.get("split", ""))
        if not annotated.any():
            raise UsageError(
                f"split {split or '(unnamed)'}: no annotated frame in {len(scores.clips)} clips: every label is -1; "
                "are the label files those of these clips? `extract inspect CLIP` shows what was imported"
            )
        return cls(
            run=str(scores.facts.get("run", "")),
            features=str(scores.facts.get("features", "")),
            split=split,
            epoch=int(scores.facts.get("epoch", 0)),
            clips=len(scores.clips),
            source_videos=len(np.unique(scores.source_video[annotated])),
            frames=int(annotated.sum()),
            missing={name: int((~there & annotated).sum()) for name, there in scores.present.items()},
            untrained=tuple(scores.facts.get("untrained", ())),
            drawn=int(scores.facts.get("drawn", 0)),
            left_out=dict(scores.facts.get("left_out", {})),
            leak=leak,
            warned=tuple(scores.facts.get("warnings", ())),
        )

    def facts_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            "run": self.run,
            "features": self.features,
            "split": self.split,
            "epoch": self.epoch,
            "clips": self.clips,
            "source_videos": self.source_videos,
            "frames": self.frames,
            "missing": dict(self.missing),
            "untrained": list(self.untrained),
            "drawn": self.drawn,
            "left_out": dict(self.left_out),
            "leak": self.leak,
        }

    def where(self) -> str:
        """``split test of store.zarr: 9,312 annotated frames of 12 clips``."""
        of = f" of {self.features}" if self.features else ""
        return f"split {self.split}{of}: {counted(self.frames, 'annotated frame')} of {counted(self.clips, 'clip')}"

    def warnings(self) -> list[str]:
        """A sentence for each thing that makes the numbers say less than they seem to."""
        found = [*([self.leak] if self.leak else []), *self.warned]
        if self.untrained:
            found.append(
                f"untrained: {', '.join(self.untrained)} (random weights: the numbers say nothing about the method)"
            )
        if self.drawn:
            found.append(f"synthetic: {self.drawn} of {self.clips} clips are drawn by a program")
        found += [f"left out: clip {clip}: {reason}" for clip, reason in self.left_out.items()]
        return found


def counted(number: int, one: str) -> str:
    """``1 clip``, ``2 clips``."""
    return f"{number:,} {one}" if number == 1 else f"{number:,} {one}s"
