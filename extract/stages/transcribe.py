"""The words of a clip, and when each is spoken."""

import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from extract.errors import ClipError, ConfigError
from extract.inputs.manifest.clip import LANGUAGE
from extract.inputs.transcripts import Transcript, Word
from extract.recognition.engine import Engine
from extract.recognition.google import Connection, Google, GoogleConfig, billed_s
from extract.recognition.pieces import Piece, cut
from extract.recognition.words import merge
from extract.stage import ClipResult, ClipStage, Context, Output, StageConfig
from extract.stages.wave import WAVE_HZ
from extract.timeline import Table

if TYPE_CHECKING:
    from extract.recognition.speech_activity import Samples
    from extract.recognition.whisper import Whisper

WORDS = Table("word")
GIVEN = "given"
SHORTEST_S = 0.1
"""Nobody says a word in less."""


class TranscribeConfig(StageConfig):
    engines: tuple[Literal["given", "whisper", "google"], ...] = Field(default=("given",), min_length=1)
    """Where words come from, first choice first. ``given``: the transcript that the manifest names. Behind it, or
    alone, one recogniser, for clips without a transcript; with ``given`` alone these are ``empty``."""
    language: str | None = Field(default=None, pattern=f"^{LANGUAGE.pattern}$")
    """``en``, ``en-US``: of every clip whose manifest entry names no other. None: as whisper recognises it; google
    must be told."""
    weights: str = "whisper-small"
    """Of ``whisper``: a key, or a folder as transformers saves it."""
    architecture: str = "small"
    """Of ``whisper``: ``tiny``, ``small``, ``large-v3`` ..., as OpenAI names them."""
    voice_gate: bool = True
    """Recognise only what is loud enough, beside what surrounds it, to be speech; off for speech over loud music."""
    google: GoogleConfig = GoogleConfig()
    """How that service is asked, and what it costs."""

    @field_validator("engines")
    @classmethod
    def _one_recogniser(cls, engines: tuple[str, ...]) -> tuple[str, ...]:
        recognisers = [engine for engine in engines if engine != GIVEN]
        if len(recognisers) > 1 or len(set(engines)) < len(engines) or GIVEN in engines[1:]:
            raise ValueError(
                f"engines is {', '.join(engines)}; expected given, one recogniser, or given and then one recogniser"
            )
        return engines

    @model_validator(mode="after")
    def _language_is_known(self) -> "TranscribeConfig":
        if "google" in self.engines and self.language is None:
            raise ValueError(
                "google must be told the language: --set transcribe.language=en-US (a clip's own goes in the manifest)"
            )
        return self

    @property
    def recogniser(self) -> str | None:
        """What hears the clips that bring no transcript; None: nothing does."""
        return None if self.engines[-1] == GIVEN else self.engines[-1]

    def of_recipe(self) -> dict[str, Any]:
        """Without all that concerns recognising: the words of a given transcript are the same with any recogniser
        behind it, and those recognised name it in their source (``Transcribe.made_with``)."""
        return {"engines": list(self.engines[:1])}


class Given(ClipStage[TranscribeConfig]):
    """Words of a clip that brings its transcript: no sound is read for them, and nothing is recognised."""

    name = "transcribe"
    version = 1
    config_type = TranscribeConfig
    parts = ("transcript",)
    provided_by: str | None = "transcript"

    @property
    def outputs(self) -> tuple[Output, ...]:
        return (
            Output("text", WORDS, (), (), "str"),
            Output("start_s", WORDS, (), (), "float64"),
            Output("end_s", WORDS, (), (), "float64"),
        )

    @property
    def weights(self) -> str | None:
        return None

    def compute(self, inputs: Mapping[str, Any]) -> ClipResult:
        """``transcript``: a Transcript, or None where the manifest names none."""
        transcript: Transcript | None = inputs["transcript"]
        if transcript is None:
            return ClipResult({}, empty="no_transcript")
        if not transcript.words:
            return ClipResult({}, transcript.notes, empty="no_words")
        return ClipResult(_table(transcript.words), {"engine": GIVEN, **transcript.notes})


class Transcribe(Given):
    """Words in the order in which they begin; two people may talk at once.

    A clip's own transcript comes first. Without one, the sound is cut at pauses into pieces that the recogniser takes;
    what is no speech by its loudness is not given to it.
    """

    recognition_version = 1
    """Raised by hand when the code changes recognised words: cutting, guards, merging, requests."""

    def __init__(self, config: TranscribeConfig) -> None:
        super().__init__(config)
        recogniser = config.recogniser
        if recogniser is None:
            return
        self.inputs = ("wave.samples",)
        self.parts = ("choice.language",)
        self.device = "gpu" if recogniser == "whisper" else "cpu"
        self.external = recogniser == "google"
        self.sourced = True
        is_given = GIVEN in config.engines
        self.provided_by = "transcript" if is_given else None
        self.stand_in = Given if is_given else None

    @property
    def weights(self) -> str | None:
        return self.config.weights if self.config.recogniser == "whisper" else None

    @property
    def without(self) -> str:
        return "name a transcript for them in the manifest, or leave them empty: --set {instance}.engines=[given]"

    def random_weights(self) -> "dict[str, np.ndarray[Any, Any]]":
        from extract.models.whisper import random_weights

        return random_weights(self.config.architecture)

    def made_with(self) -> dict[str, Any]:
        config = self.config
        made: dict[str, Any] = {"engine": config.recogniser, "version": self.recognition_version}
        made |= {"language": config.language, "voice_gate": config.voice_gate}
        own = config.google.of_recipe() if config.recogniser == "google" else {"architecture": config.architecture}
        return {**made, **own}

    def setup(self, context: Context) -> None:
        self._context = context
        self._engines: dict[str | None, Engine] = {}
        self._loading, self._computing = threading.Lock(), threading.Lock()
        if self.config.recogniser == "google":
            # Before any work: an hour later is late for "no credentials".
            self._connection = None if context.offline else Connection.open(self.config.google)
        elif self.config.recogniser == "whisper":
            self._whisper = self._loaded_whisper(context)

    def compute(self, inputs: Mapping[str, Any]) -> ClipResult:
        """``wave.samples``: float32 [n] in [-1, 1] at 16 kHz, in memory or not; ``wave.start_s``: time of the first;
        ``choice.language``: of the clip, or None. With ``given`` alone, ``transcript`` as ``Given`` takes it."""
        if self.config.recogniser is None:
            return super().compute(inputs)
        engine = self._engine(inputs["choice.language"] or self.config.language)
        samples: Samples = inputs["wave.samples"]
        if len(samples) < SHORTEST_S * WAVE_HZ:
            return ClipResult({}, {"samples": len(samples)}, empty="too_short")
        found = self._pieces(samples, engine.max_piece_s)
        described = {**engine.describe(), "pieces": len(found)}
        described["speech_s"] = round(sum(map(len, found)) / WAVE_HZ, 2)
        if not found:
            return ClipResult({}, described, empty="no_speech")
        # One clip after the other has the network; a service answers many at once.
        with nullcontext() if self.external else self._computing:
            heard = engine.recognise([samples[piece.start : piece.stop].cpu() for piece in found])
        merged = merge(found, heard, WAVE_HZ, inputs["wave.start_s"])
        notes = {**described, "language": merged.language or described["language"], **merged.notes}
        if not merged.words:
            return ClipResult({}, notes, empty="no_speech")
        return ClipResult(_table(merged.words), notes)

    def seconds_to_send(self, inputs: Mapping[str, Any], context: Context) -> int:
        """What a run would send of a clip, in seconds as the service counts them; kept answers cost nothing."""
        if context.answers is None:
            raise ValueError("an external stage needs the folder of kept answers")
        language = inputs["choice.language"] or self.config.language
        asked = Google(self.config.google, str(language), context.answers, None)
        samples: Samples = inputs["wave.samples"]
        found = self._pieces(samples, asked.max_piece_s)
        return sum(billed_s(len(p)) for p in found if not asked.is_kept(samples[p.start : p.stop].cpu()))

    @property
    def price_per_minute(self) -> float | None:
        return self.config.google.price_per_minute

    @property
    def price_setting(self) -> str:
        return "{instance}.google.price_per_minute"

    def _pieces(self, samples: "Samples", max_s: float) -> list[Piece]:
        return cut(samples, WAVE_HZ, max_s, gate=self.config.voice_gate)

    def _engine(self, language: str | None) -> Engine:
        """The recogniser of a language, made when the first clip of it comes."""
        with self._loading:
            if language not in self._engines:
                self._engines[language] = self._made_engine(language)
            return self._engines[language]

    def _made_engine(self, language: str | None) -> Engine:
        context = self._context
        if self.config.recogniser == "google":
            if context.answers is None:
                raise ValueError("an external stage needs the folder of kept answers")
            return Google(self.config.google, str(language), context.answers, self._connection)
        try:
            return self._whisper.speaking(_spoken(language))
        except ConfigError as error:  # the config's own language was known
            raise ClipError("unsupported", f"`language: {language}` of the manifest: {error}") from None

    def _loaded_whisper(self, context: Context) -> "Whisper":
        from extract.recognition.whisper import Whisper

        if context.weights is None:
            raise ValueError("engine whisper needs weights")
        architecture, language = self.config.architecture, _spoken(self.config.language)
        return Whisper.load(architecture, context.weights, context.device, context.precision, language=language)


def _spoken(language: str | None) -> str | None:
    """Whisper knows languages, not regions."""
    return language.partition("-")[0] if language else None


def _table(words: Sequence[Word]) -> dict[str, Any]:
    import torch

    times = np.array([(word.start_s, word.end_s) for word in words], dtype=np.float64)  # [W, 2]
    return {
        "text": [word.text for word in words],
        "start_s": torch.from_numpy(times[:, 0].copy()),
        "end_s": torch.from_numpy(times[:, 1].copy()),
    }
