"""Every stage of the pipeline, by name. Inputs, not this order, say who comes first."""

from collections.abc import Iterable
from typing import Any

from extract.stage import Stage
from extract.stages.align import Align
from extract.stages.crop import Crop
from extract.stages.detections import Detections
from extract.stages.faces import Faces
from extract.stages.frames import Frames
from extract.stages.ghfeat import Ghfeat
from extract.stages.hubert import Hubert
from extract.stages.labels import Labels
from extract.stages.landmarks import Landmarks
from extract.stages.roberta import Roberta
from extract.stages.speech import Speech
from extract.stages.superres import Superres
from extract.stages.swin import Swin
from extract.stages.timm import Timm
from extract.stages.transcribe import Transcribe
from extract.stages.wave import Wave

StageType = type[Stage[Any]]


def by_name(stages: Iterable[StageType]) -> dict[str, StageType]:
    """The stages by their names; a name given twice is a mistake in the list."""
    found: dict[str, StageType] = {}
    for stage in stages:
        if stage.name in found:
            raise ValueError(f"two stages are named {stage.name!r}: {found[stage.name].__name__}, {stage.__name__}")
        found[stage.name] = stage
    return found


STAGES = by_name((
    Frames,
    Wave,
    Detections,
    Faces,
    Crop,
    Superres,
    Landmarks,
    Align,
    Ghfeat,
    Swin,
    Timm,
    Hubert,
    Speech,
    Transcribe,
    Roberta,
    Labels,
))
