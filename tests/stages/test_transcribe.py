import sys
import types

import pytest
import torch
from pydantic import ValidationError

from extract.errors import ClipError, ConfigError
from extract.inputs.transcripts import Transcript, Word
from extract.recognition.words import Heard
from extract.stages.transcribe import Given, Transcribe, TranscribeConfig
from tests.contract import ClipContract, ClipInputs, context

HELLO = Transcript((Word("hello", 0.5, 1.0), Word("😀", 0.75, 0.75)), {"spread_words": 1})
HZ = 16_000


class TestTranscribe(ClipContract):
    def stage(self):
        return Transcribe(TranscribeConfig())

    def clips(self):
        given = [HELLO, None, Transcript(()), Transcript((Word("a", 0, 1),))]
        return [ClipInputs({"transcript": transcript}) for transcript in given]


class TestWhisper(ClipContract):
    """The network that tests have, untrained: what it says is nothing, and the same every time."""

    def stage(self):
        return Transcribe(TranscribeConfig(engines=("given", "whisper"), weights="random", architecture="toy"))

    def clips(self):
        sounds = [tone((1, 2), (4, 4.5), seconds=7), torch.zeros(16_000), tone((0.5, 3), seconds=4), torch.zeros(5)]
        return [ClipInputs({"wave.samples": s, "wave.start_s": 0.5, "choice.language": None}) for s in sounds]


def compute(transcript):
    return Transcribe(TranscribeConfig()).compute({"transcript": transcript})


def test_words_are_as_given():
    result = compute(HELLO)
    assert result.arrays["text"] == ["hello", "😀"]
    assert result.arrays["start_s"].tolist() == [0.5, 0.75]
    assert result.arrays["end_s"].tolist() == [1.0, 0.75]
    assert result.notes == {"engine": "given", "spread_words": 1}


def test_no_transcript_is_another_thing_than_no_words():
    assert compute(None).empty == "no_transcript"
    assert compute(Transcript(())).empty == "no_words"


# ---- a recogniser ---------------------------------------------------------------------------------------------------


class Stub:
    """Hears one word in every piece, named by the piece's length; over noise, what Whisper is known to say."""

    name = "whisper"
    max_piece_s = 30.0

    def __init__(self, language):
        self.language, self.pieces = language, []

    @classmethod
    def load(cls, _architecture, _weights, _device, _precision, *, language):
        return cls(language)

    def speaking(self, language):
        if language == "xx":
            raise ConfigError("the stub knows no 'xx'")
        return self if language == self.language else type(self)(language)

    def describe(self):
        return {"engine": self.name, "version": "stub", "model": "stub", "language": self.language}

    def recognise(self, pieces):
        self.pieces += pieces
        return [Heard((Word(f"{len(piece) / HZ:.2f}", 0.25, 0.5),), self.language or "en") for piece in pieces]


@pytest.fixture
def whisper(monkeypatch, tmp_path):
    """The stage with the stub in Whisper's place; the weights are a folder that nobody reads."""
    module = types.ModuleType("extract.recognition.whisper")
    module.Whisper = Stub
    monkeypatch.setitem(sys.modules, module.__name__, module)
    (tmp_path / "model.safetensors").write_bytes(b"weights")

    def made(**config):
        stage = Transcribe(TranscribeConfig(engines=("given", "whisper"), weights=str(tmp_path), **config))
        stage.setup(context(stage))
        return stage

    return made


def tone(*stretches, seconds):
    """Bursts of a buzz, [start, stop) seconds each, in near silence."""
    time = torch.arange(int(seconds * HZ)) / HZ
    sound = 1e-4 * torch.randn(len(time), generator=torch.Generator().manual_seed(0))
    for start, stop in stretches:
        sound += ((time >= start) & (time < stop)) * 0.3 * torch.sign(torch.sin(2 * torch.pi * 150 * time))
    return sound


def hear(stage, sound, start_s=0.0, language=None):
    return stage.compute({"wave.samples": sound, "wave.start_s": start_s, "choice.language": language})


def test_words_are_on_the_clips_clock(whisper):
    """Two pieces: each begins 0.2 s before its burst, and its word 0.25 s after that."""
    result = hear(whisper(), tone((3, 5), (10, 11), seconds=15), start_s=-0.5)
    assert result.arrays["start_s"].tolist() == pytest.approx([-0.5 + 3 - 0.2 + 0.25, -0.5 + 10 - 0.2 + 0.25], abs=0.04)
    assert (result.arrays["end_s"] - result.arrays["start_s"]).tolist() == pytest.approx([0.25, 0.25])
    assert result.notes["pieces"] == 2
    assert result.notes["speech_s"] == pytest.approx(2 + 1 + 4 * 0.2, abs=0.15)
    assert (result.notes["engine"], result.notes["language"]) == ("whisper", "en")


def test_silence_is_not_recognised(whisper):
    stage = whisper()
    result = hear(stage, torch.zeros(60 * HZ))
    assert (result.arrays, result.empty) == ({}, "no_speech")
    assert stage._engine(None).pieces == []


@pytest.mark.parametrize("samples", [0, 1, 320])
def test_hardly_any_sound_is_too_short(whisper, samples):
    """0.02 s of sound, one sample, none."""
    assert hear(whisper(), torch.full((samples,), 0.5)).empty == "too_short"


def test_the_clips_language_comes_before_the_configs(whisper):
    stage = whisper(language="en-US")
    sound = tone((1, 2), seconds=5)
    assert hear(stage, sound).notes["language"] == "en"  # Whisper knows languages, not regions
    assert hear(stage, sound, language="de-CH").notes["language"] == "de"
    assert hear(whisper(), sound, language="sw").notes["language"] == "sw"
    with pytest.raises(ClipError, match="`language: xx-YY` of the manifest: the stub knows no 'xx'"):
        hear(stage, sound, language="xx-YY")


def test_without_the_gate_everything_is_recognised(whisper):
    stage = whisper(voice_gate=False)
    hear(stage, torch.zeros(65 * HZ))
    assert sum(map(len, stage._engine(None).pieces)) == 65 * HZ
    assert max(map(len, stage._engine(None).pieces)) <= 30 * HZ


def test_a_loop_over_music_is_no_speech(whisper, monkeypatch):
    """What recognisers say over music: one phrase without end, or a text that they call no speech themselves."""
    said = Heard(tuple(Word(word, i / 10, i / 10 + 0.1) for i, word in enumerate(["thank", "you."] * 20)), "en")
    monkeypatch.setattr(Stub, "recognise", lambda _, pieces: [said for _ in pieces])
    result = hear(whisper(), music(60))
    assert result.empty == "no_speech"
    assert result.notes["repetitive_pieces"] == result.notes["pieces"] >= 2


def music(seconds):
    """Chords that change every half second, with a beat."""
    time = torch.arange(seconds * HZ) / HZ
    chord = (time * 2).long() % 4
    root = torch.tensor([220.0, 261.6, 174.6, 196.0])[chord]
    sound = sum(torch.sin(2 * torch.pi * root * ratio * time) for ratio in (1, 1.25, 1.5, 2))
    return 0.1 * sound * torch.exp(-6 * ((time * 2) % 1))


# ---- the config -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "engines", [["whisper", "given"], ["given", "whisper", "google"], ["given", "given"], ["vosk"], []]
)
def test_one_recogniser_and_given_words_before_it(engines):
    with pytest.raises(ValidationError, match="engines"):
        TranscribeConfig(engines=engines, language="en")


@pytest.mark.parametrize("engines", [["google"], ["given", "google"]])
def test_google_must_be_told_the_language(engines):
    with pytest.raises(ValidationError, match=r"google must be told the language: --set transcribe\.language=en-US"):
        TranscribeConfig(engines=engines)


def test_only_google_is_external_and_only_whisper_has_weights():
    configs = {name: TranscribeConfig(engines=("given", name), language="en") for name in ("whisper", "google")}
    made = {name: Transcribe(config) for name, config in configs.items()}
    assert {name: (stage.external, stage.weights, stage.device) for name, stage in made.items()} == {
        "whisper": (False, "whisper-small", "gpu"),
        "google": (True, None, "cpu"),
    }
    given = Transcribe(TranscribeConfig())
    assert (given.inputs, given.external, given.weights, given.sourced) == ((), False, None, False)


def test_what_recognises_is_no_part_of_the_recipe_but_of_what_it_made():
    """Clips with and without a transcript share a recipe; a store of given transcripts stays as it is."""
    configs = [
        TranscribeConfig(),
        TranscribeConfig(engines=("given", "whisper"), weights="elsewhere", language="de", voice_gate=False),
        TranscribeConfig(engines=("given", "google"), language="en-US"),
    ]
    assert [config.of_recipe() for config in configs] == [{"engines": ["given"]}] * 3
    whisper, google = (Transcribe(config).made_with() for config in configs[1:])
    assert whisper == {
        "engine": "whisper",
        "version": 1,
        "language": "de",
        "voice_gate": False,
        "architecture": "small",
    }
    assert google == {"engine": "google", "version": 1, "language": "en-US", "voice_gate": True, "model": "long"}


def test_a_clip_with_a_transcript_needs_no_sound():
    stage = Transcribe(TranscribeConfig(engines=("given", "whisper")))
    assert stage.stand_in is Given
    own = stage.stand_in(stage.config)
    assert (own.inputs, own.parts, own.weights, own.device) == ((), ("transcript",), None, "cpu")
    assert own.compute({"transcript": HELLO}).arrays["text"] == ["hello", "😀"]
