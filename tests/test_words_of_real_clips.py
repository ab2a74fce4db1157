"""Real clips with the words that are spoken in them, through the commands' own stages, against transformers."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

import extract
from extract.config import ExtractConfig
from extract.inputs.manifest import Clip
from tests.media_files import greys, write_clip
from tests.stages.test_roberta import reference

# Of the corpus' codes: command, colour, preposition, letter, digit, adverb.
GRID = {
    "grid_bbaf2n": "bin blue at f two now",
    "grid_brbk7n": "bin red by k seven now",
    "grid_lbax4n": "lay blue at x four now",
    "grid_swiz3n": "set white in z three now",
}
JFK = """WEBVTT

00:00.300 --> 00:02.140
And so my fellow Americans

00:03.260 --> 00:04.320
<00:00:03.260>ask <00:00:03.980>not

00:05.380 --> 00:07.580
what your country can do for you

00:08.160 --> 00:10.420
ask what you can do for your country
"""
"""Each phrase has the span in which the recording is louder than -32 dB."""
JFK_UTTERANCES = [
    "And so my fellow Americans",
    "ask not",
    "what your country can do for you ask what you can do for your country",
]
"""The pauses between the phrases last 1.12, 1.06 and .58 s."""
READING = " ".join(f"word{number} of a reader who makes no pause" for number in range(30))
"""Stands for a transcript: more than 1,100 letters in 11.9 s, which the network reads in three pieces."""

SMALL = {"weights": "random", "architecture": "small", "dtype": "float32"}
INSTANCES = {
    "frames": {},
    "roberta": SMALL,
    "uttered": SMALL | {"stage": "roberta", "context": "utterance"},
    "pooled": SMALL | {"stage": "roberta", "context": "utterance", "pool": "mean"},
    "xlmr": SMALL | {"stage": "roberta", "architecture": "xlmr-small", "context": "utterance"},
}


@pytest.fixture(scope="module")
def store(media_dir, tmp_path_factory):
    """The sound files get grey pictures, two a second; jfk comes without any as well."""
    root: Path = tmp_path_factory.mktemp("words")
    grey = write_clip(root / "grey.mov", greys(24), rate=2)
    jfk, read = media_dir / "jfk.flac", media_dir / "librispeech_6313-76958-0021.flac"
    (root / "jfk.vtt").write_text(JFK)
    (root / "read.srt").write_text(f"1\n00:00:00,000 --> 00:00:11,925\n{READING}\n")
    clips = [
        Clip(id="jfk", video=grey, audio=jfk, transcript=root / "jfk.vtt"),
        Clip(id="read", video=grey, audio=read, transcript=root / "read.srt"),
        Clip(id="heard", audio=jfk, transcript=root / "jfk.vtt"),
    ]
    for name, said in GRID.items():
        (root / f"{name}.srt").write_text(f"1\n00:00:00,000 --> 00:00:03,000\n{said}\n")
        clips.append(Clip(id=name, video=media_dir / f"{name}.mpg", transcript=root / f"{name}.srt"))
    assert extract.run(clips, root / "store.zarr", ExtractConfig(instances=INSTANCES)).exit_code == 0
    return extract.open_store(root / "store.zarr")


def values(store, clip, instance, array):
    return store.read(clip, instance, array).values


def words_of(store, clip):
    names = ("text", "start_s", "end_s")
    return list(zip(*(values(store, clip, "transcribe", name).tolist() for name in names), strict=True))


def assert_near(found, expected, what):
    """[rows, D] of the store and of the oracle."""
    found = torch.from_numpy(found)
    assert found.shape == expected.shape, what
    assert (found - expected).norm() <= 1e-5 * expected.norm(), what


@pytest.mark.parametrize("clip", [*GRID, "jfk", "read"])
def test_windows_are_what_counting_finds(store, clip):
    words, pts_s = words_of(store, clip), values(store, clip, "frames", "pts_s")
    tokens, ranges = values(store, clip, "roberta", "token"), values(store, clip, "roberta", "range")
    assert len(ranges) == len(pts_s) == (75 if clip in GRID else 24)
    seen: dict[str, torch.Tensor] = {"": torch.empty(0, 64)}
    for t, (start, stop) in zip(pts_s, ranges.tolist(), strict=True):
        text = " ".join(word for word, begin, end in words if begin <= t + 2 + 1e-9 and end >= t - 2 - 1e-9)
        if text not in seen:
            seen[text] = torch.cat(reference([text[at : at + 510] for at in range(0, len(text), 510)]))
        assert_near(tokens[start:stop], seen[text], (clip, t))
    record = store.record(clip, "roberta")
    assert record.notes["texts"] == len(seen) - 1
    assert record.notes["words"] == len(words)
    assert len(tokens) == sum(map(len, seen.values()))


@pytest.mark.parametrize("clip", [*GRID, "jfk", "read"])
def test_utterances_are_what_counting_finds(store, clip):
    said = {"jfk": JFK_UTTERANCES, "read": [READING]}.get(clip) or [GRID[clip]]
    words, pts_s = words_of(store, clip), values(store, clip, "frames", "pts_s")
    of_word = []
    for text in said:
        edges = [0, len(text) // 3, 2 * len(text) // 3, len(text)] if len(text) > 510 else [0, len(text)]
        states, at = torch.cat(reference([text[a:b] for a, b in itertools.pairwise(edges)])), 0
        for place, word in enumerate(text.split()):
            of_word.append(states[at : at + len(word) + (place > 0)])
            at += len(of_word[-1])
    assert len(of_word) == len(words)
    tokens, ranges = values(store, clip, "uttered", "token"), values(store, clip, "uttered", "range")
    means, rows = values(store, clip, "pooled", "feature"), values(store, clip, "pooled", "range")
    for t, (start, stop), (row, end) in zip(pts_s, ranges.tolist(), rows.tolist(), strict=True):
        numbers = [i for i, (_, begin, over) in enumerate(words) if begin <= t + 2 + 1e-9 and over >= t - 2 - 1e-9]
        assert (stop > start) == (end - row == 1) == bool(numbers), (clip, t)
        if numbers:
            expected = torch.cat([of_word[i] for i in numbers])
            assert_near(tokens[start:stop], expected, (clip, t))
            assert_near(means[row:end], expected.mean(dim=0, keepdim=True), (clip, t))
    notes = store.record(clip, "uttered").notes
    assert (notes["utterances"], notes["texts"]) == (len(said), len(said))
    assert notes["forwards"] <= 3
    assert len(tokens) == sum(map(len, of_word))


def test_a_window_of_jfk_reaches_over_a_pause(store):
    """At 4.5 s: "ask not", and the first words after the pause behind it, each at the beginning of its utterance."""
    pts_s = values(store, "jfk", "frames", "pts_s")
    (t,) = np.flatnonzero(np.isclose(pts_s, 4.5))
    start, stop = values(store, "jfk", "uttered", "range")[t].tolist()
    met = [word for word, begin, end in words_of(store, "jfk") if begin <= 6.5 and end >= 2.5]
    assert met == ["ask", "not", "what", "your", "country"]
    assert stop - start == len("ask not" + "what your country")


@pytest.mark.parametrize("clip", [*GRID, "jfk", "read"])
def test_xlmr_reads_the_same_words(store, clip):
    """A token per byte and one per word, in every utterance of every clip; none is unknown."""
    words = words_of(store, clip)
    ranges = values(store, clip, "xlmr", "range")
    assert len(values(store, clip, "xlmr", "token")) == sum(len(word) + 1 for word, _, _ in words)
    for t, (start, stop) in zip(values(store, clip, "frames", "pts_s"), ranges.tolist(), strict=True):
        met = [word for word, begin, end in words if begin <= t + 2 + 1e-9 and end >= t - 2 - 1e-9]
        assert stop - start == sum(len(word) + 1 for word in met)
    notes = store.record(clip, "xlmr").notes
    assert (notes["language"], notes["unknown_tokens"]) == ("multilingual", 0)


@pytest.mark.parametrize("instance", ["roberta", "uttered", "pooled", "xlmr"])
def test_words_without_pictures_belong_to_no_frame(store, instance):
    record = store.record("heard", instance)
    assert (record.state, record.reason) == ("empty", "no_video")
