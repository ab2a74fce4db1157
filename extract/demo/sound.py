"""What is heard: words in the stretches of speech, some from beside the camera, over a little noise."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from extract.demo.schedule import Burst
from extract.inputs.media import read_audio
from extract.inputs.transcripts import Word

SOUND_HZ = 16_000
PAUSE_S = (0.02, 0.09)
ELSEWHERE = 0.08
"""Chance of a word from somebody beside the camera in any pause of a second."""

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Spoken:
    """One recorded word."""

    text: str
    opens: bool
    """The jaw drops for its vowel."""
    samples: Samples
    """[n] in [-1, 1] at 16 kHz."""


def load_words() -> dict[str, list[Spoken]]:
    """Voice -> its words, in the order of the table."""
    folder = resources.files("extract") / "demo_words"
    found: dict[str, list[Spoken]] = {}
    rows = csv.DictReader((folder / "words.csv").read_text(encoding="utf-8").splitlines())
    for row in rows:
        with resources.as_file(folder / row["file"]) as path:
            audio = read_audio(path, hz=SOUND_HZ)
        if audio is None:
            raise ValueError(f"demo_words/{row['file']} holds no sound")
        found.setdefault(row["voice"], []).append(Spoken(row["word"], row["mouth"] == "open", audio.samples))
    return found


def speak(
    words: Sequence[Spoken], bursts: Sequence[Burst], duration_s: float, random: np.random.Generator
) -> tuple[Samples, list[Word]]:
    """Sound [n] at 16 kHz of a clip, and its words with their times.

    A burst in which the jaw drops takes words with an open vowel, another one the rest: the sound says something of
    the mouth, but not all: some words are said elsewhere.
    """
    sound = random.normal(0, 0.003, round(duration_s * SOUND_HZ)).astype(np.float32)
    said: list[Word] = []
    for burst in sorted(bursts, key=lambda burst: burst.start_s):
        fitting = [word for word in words if word.opens == burst.jaw]
        _fill(sound, said, fitting, max(burst.start_s, 0.0), min(burst.end_s, duration_s), random)
    for second in np.arange(0.0, duration_s - 0.8, 1.0):
        free = all(second + 0.8 < word.start_s or word.end_s < second for word in said)
        if free and random.random() < ELSEWHERE:
            _fill(sound, said, words, float(second), float(second) + 0.7, random)
    return np.clip(sound, -1, 1), sorted(said, key=lambda word: word.start_s)


def _fill(
    sound: Samples,
    said: list[Word],
    words: Sequence[Spoken],
    start_s: float,
    end_s: float,
    random: np.random.Generator,
) -> None:
    """Words one after another while they fit."""
    at = round(start_s * SOUND_HZ)
    while True:
        word = words[int(random.integers(len(words)))]
        stop = at + len(word.samples)
        if stop > min(round(end_s * SOUND_HZ), len(sound)):
            return
        sound[at:stop] += np.float32(random.uniform(0.5, 0.9)) * word.samples
        said.append(Word(word.text, at / SOUND_HZ, stop / SOUND_HZ))
        at = stop + round(random.uniform(*PAUSE_S) * SOUND_HZ)
