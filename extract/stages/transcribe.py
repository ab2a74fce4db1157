"""The words of a clip, and when each is spoken."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field

from extract.inputs.transcripts import Transcript
from extract.stage import ClipResult, ClipStage, Output, StageConfig
from extract.timeline import Table

WORDS = Table("word")


class TranscribeConfig(StageConfig):
    engines: tuple[Literal["given"], ...] = Field(default=("given",), min_length=1)
    """Where words may come from, first choice first. ``given``: the transcript that the manifest names. (Recognisers
    come in a later version; a clip without a transcript is ``empty`` until then.)"""


class Transcribe(ClipStage[TranscribeConfig]):
    """Words in the order in which they begin; two people may talk at once."""

    name = "transcribe"
    version = 1
    config_type = TranscribeConfig
    parts = ("transcript",)
    provided_by = "transcript"
    copyable = True

    @property
    def outputs(self) -> tuple[Output, ...]:
        return (
            Output("text", WORDS, (), (), "str"),
            Output("start_s", WORDS, (), (), "float64"),
            Output("end_s", WORDS, (), (), "float64"),
        )

    def compute(self, inputs: Mapping[str, Any]) -> ClipResult:
        """``transcript``: a Transcript, or None where the manifest names none."""
        import torch

        transcript: Transcript | None = inputs["transcript"]
        if transcript is None:
            return ClipResult({}, empty="no_transcript")
        if not transcript.words:
            return ClipResult({}, transcript.notes, empty="no_words")
        times = np.array([(word.start_s, word.end_s) for word in transcript.words], dtype=np.float64)  # [W, 2]
        return ClipResult(
            {
                "text": [word.text for word in transcript.words],
                "start_s": torch.from_numpy(times[:, 0].copy()),
                "end_s": torch.from_numpy(times[:, 1].copy()),
            },
            {"engine": "given", **transcript.notes},
        )
