"""A clip: one entry of the manifest, and the rules for its values."""

import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator

from extract.names import LEGAL, is_legal

LANGUAGE = re.compile("[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")
"""BCP-47: a language, then script, region or variant."""


class Labels(BaseModel):
    """Label files of one clip, one row per video frame."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    au: Path | None = None
    """Action units; read by ``annotations.read_au``."""
    expr: Path | None = None
    """Expression; read by ``annotations.read_expr``."""
    va: Path | None = None
    """Valence and arousal; read by ``annotations.read_va`` where the config's ``labels.also`` names ``va``."""
    intensity: Path | None = None
    """Intensities of action units; read by ``annotations.read_intensity`` where ``labels.also`` names them."""


class Clip(BaseModel):
    """One entry of the manifest. Paths are absolute; whether their files exist is checked by the run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    """Name of the clip everywhere, and of its folder in the store."""
    video: Path | None = None
    """Movie: frames, their times, and the sound unless ``audio`` is given."""
    crops: Path | None = None
    """Folder of aligned face pictures named by frame number; they replace what the instance ``crop`` would compute."""
    fps: float | None = None
    """Frames per second of ``crops`` without a movie. A movie's own times are the truth."""
    audio: Path | None = None
    """Sound file that replaces the movie's own sound."""
    transcript: Path | None = None
    """Words with times: .srt, .vtt, .json as Whisper writes it, or .csv with the header ``word,start_s,end_s``."""
    language: str | None = None
    """What is spoken, as BCP-47: ``en``, ``en-US``, ``de``. ``None``: what the config says of all clips, or as
    recognised. Only recognising heeds it."""
    labels: Labels = Labels()
    subject: str | None = None
    """Who is seen; a run refuses one subject in two splits. ``None``: not known."""
    source_video: str = ""
    """Recording that the clip was cut from; clips of one recording are never in two splits. Default: the id."""
    split: Literal["train", "val", "test"] | None = None
    """``None``: used neither for fitting nor for testing. ``split: null`` also keeps the clip out of ``--split-by``."""
    face: Literal["largest", "left", "right", "none"] = "largest"
    """Which face of several is the clip's; ``none`` leaves the visual instances empty."""
    start_s: float | None = None
    """Start on the presentation clock, seconds, included. ``None``: from the first frame."""
    end_s: float | None = None
    """End on the presentation clock, seconds, excluded. ``None``: to the last frame."""

    @model_validator(mode="before")
    @classmethod
    def _own_source(cls, values: Any) -> Any:  # noqa: ANN401 - whatever the caller handed to Clip
        if isinstance(values, Mapping) and values.get("source_video") is None and "id" in values:
            return {**values, "source_video": values["id"]}
        return values

    @field_validator("id")
    @classmethod
    def _id_stays_in_the_store(cls, value: str) -> str:
        if not is_legal(value):
            raise ValueError(f"id {value!r} cannot name a folder of the store; expected {LEGAL}")
        return value

    @field_validator("subject", "source_video")
    @classmethod
    def _names_something(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and not value.strip():
            raise ValueError(f"{info.field_name} is empty; give a name or leave the key out")
        return value

    @field_validator("language")
    @classmethod
    def _is_a_language(cls, value: str | None) -> str | None:
        if value is not None and not LANGUAGE.fullmatch(value):
            raise ValueError(f"language is {value!r}; expected a language of BCP-47 such as en, en-US or zh-Hant")
        return value

    @field_validator("fps", "start_s", "end_s")
    @classmethod
    def _finite(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{info.field_name} is {value}; expected a finite number")
        return value

    @field_validator("fps")
    @classmethod
    def _fps_positive(cls, value: float | None) -> float | None:
        if value is not None and value <= 0:
            raise ValueError(f"fps is {value:g}; expected more than 0")
        return value

    @field_validator("end_s")
    @classmethod
    def _ends_after_start(cls, value: float | None, info: ValidationInfo) -> float | None:
        start_s = info.data.get("start_s") or 0.0
        if value is not None and value <= start_s:
            raise ValueError(f"end_s {value:g} is not after start_s {start_s:g}; the clip would be empty")
        return value

    @model_validator(mode="after")
    def _has_media(self) -> "Clip":
        given = [
            key for key in ("video", "crops", "audio", "fps", "start_s", "end_s") if getattr(self, key) is not None
        ]
        if (problem := media_problem(given)) is not None:
            raise ValueError(problem)
        return self


def media_problem(given: Collection[str]) -> str | None:
    """Why a clip with these keys is no recording, or ``None`` if it is one."""
    if not {"video", "crops", "audio"} & set(given):
        return "the clip names no recording; expected at least one of video, crops, audio"
    if "crops" in given and {"start_s", "end_s"} & set(given):
        return "start_s and end_s cut a movie, but crops are numbered by the frames of the whole movie: leave one out"
    if "crops" in given and not {"video", "fps"} & set(given):
        return "crops have no times of their own; expected `video` (the movie they come from) or `fps`"
    return None
