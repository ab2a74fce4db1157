"""The published weights, where they are on this machine: words of a real speech and their times; nothing over music."""

from pathlib import Path

import pytest
import torch

from extract.inputs.media.audio import read_audio
from extract.recognition.whisper import Whisper
from extract.weights.files import Weights, cache_folder
from tests.toy_whisper import HZ, music, noise, whole

pytestmark = pytest.mark.weights

ALIGNED = """\
and 0.29 0.63, so 0.63 0.97, my 0.97 1.24, fellow 1.24 1.63, americans 1.63 2.16, ask 3.25 3.99, not 3.99 4.30,
what 5.37 5.61, your 5.61 5.86, country 5.86 6.42, can 6.42 6.66, do 6.66 6.91, for 6.91 7.05, you 7.05 7.67,
ask 8.15 8.53, what 8.53 8.82, you 8.82 9.20, can 9.20 9.37, do 9.37 9.62, for 9.62 9.78, your 9.78 9.99,
country 9.99 10.46"""
"""Seconds of each word of jfk.flac, by another recogniser: the transcript aligned by force with PocketSphinx 5.1.1 and
the acoustic model ``en-us`` that comes with it."""


@pytest.fixture(params=["small", "large-v3", "tiny.en"])
def engine(request):
    key = f"whisper-{request.param}"
    folder = Path(cache_folder()) / "weights" / key
    if not folder.is_dir():
        pytest.skip(f"weights {key} are not in {cache_folder()}")
    return Whisper.load(request.param, Weights(key, "0" * 64, "MIT", "", path=folder))


def test_words_are_right_and_where_another_recogniser_finds_them(engine, media_dir):
    heard = whole(engine, torch.from_numpy(read_audio(media_dir / "jfk.flac").samples), gate=True)
    expected = [word.split() for word in ALIGNED.replace("\n", " ").split(",")]
    assert [word.text.strip(".,;:!?").lower() for word in heard.words] == [text for text, _, _ in expected]
    for word, (_, start, end) in zip(heard.words, expected, strict=True):
        assert (word.start_s, word.end_s) == (pytest.approx(float(start), abs=0.3), pytest.approx(float(end), abs=0.3))
    assert heard.language == "en"
    assert set(heard.notes) <= {"language_en"}


def test_nothing_is_said_over_silence_noise_and_music(engine):
    """60 s each, without the gate that would keep most of it from the network."""
    hum = 0.1 * torch.sin(torch.arange(60 * HZ) * (2 * torch.pi * 50 / HZ))
    for sound in (torch.zeros(60 * HZ), noise(60, level=3e-3), hum, music(60)):
        heard = whole(engine, sound, gate=False)
        assert heard.words == ()
        assert sum(heard.notes.get(name, 0) for name in ("no_speech_pieces", "repetitive_pieces")) >= 1
