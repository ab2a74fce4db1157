"""Speech features in pieces of 100 s, as fairseq's ``dump_hubert_feature`` writes them."""

import numpy as np
import pytest
import torch

from extract.models import hubert
from extract.models.waveform import normalised, whole_moments
from extract.stages import speech as speech_stage
from tests.stages.test_hubert import LIKE_BASE, one_thread, ready, run  # noqa: F401 - a fixture
from tests.stages.test_hubert import speech as noise
from tests.stages.test_speech_long import apart, of_family


def dump(stage, samples, piece):
    """Oracle: what ``dump_hubert_feature`` does, with transformers' model in the place of fairseq's."""
    x = torch.nn.functional.layer_norm(samples, samples.shape) if stage.config.normalise else samples
    found = []
    with torch.inference_mode():
        for start in range(0, len(x), piece):
            chunk = x[start : start + piece]
            if len(chunk) >= 400:  # fairseq's convolutions fail on fewer
                found.append(stage._final_norm(stage._model(chunk[None]).last_hidden_state[0]))
    return torch.cat(found)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("config", [{}, {"normalise": False}, {"layer": 1}, {"architecture": "base"}])
@pytest.mark.parametrize("num_samples", [31_999, 32_000, 32_399, 32_400, 64_000, 100_123])
def test_pieces_are_those_of_the_dump(monkeypatch, config, num_samples):
    monkeypatch.setitem(hubert.ARCHITECTURES, "base", LIKE_BASE)
    monkeypatch.setattr(speech_stage, "FAIRSEQ_PIECE_S", 2)
    stage = ready(chunks="fairseq_100s", **config)
    samples = 0.01 * noise(num_samples)  # so quiet that the epsilon counts
    expected = dump(stage, samples, 32_000)
    found = run(stage, samples, start_s=1.5)
    assert apart(found.arrays["feature"], expected) < 1e-5
    starts = [at for first in range(0, num_samples, 32_000) for at in range(first, first + 32_000 - 399, 320)]
    centres = [1.5 + (at + 200) / 16_000 for at in starts if at + 400 <= num_samples]
    assert np.allclose(found.arrays["centre_s"], centres, rtol=0, atol=1e-12)
    assert len(centres) == len(expected)
    if num_samples > 32_400:
        other = run(ready(**config), samples).arrays["feature"]
        assert len(other) > len(expected)  # the steps between pieces are there


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("num_samples", "steps"),
    [(1_600_000, 4_999), (1_600_399, 4_999), (1_600_400, 5_000), (3_200_000, 9_998), (3_216_000, 10_047)],
)
def test_pieces_of_100_s(num_samples, steps):
    """Of each 5,000 steps of 20 ms, the one between two pieces is missing."""
    stage, samples = ready(layer=0, chunks="fairseq_100s"), noise(num_samples)
    found = run(stage, samples)
    assert len(found.arrays["feature"]) == len(found.arrays["centre_s"]) == steps
    assert found.notes == ({"chunks": -(-steps // 4_999)} if steps > 4_999 else {})
    assert apart(found.arrays["feature"], dump(stage, samples, 1_600_000)) < 1e-6
    gaps = np.diff(found.arrays["centre_s"].numpy())
    assert np.allclose(np.flatnonzero(gaps > 0.03), np.arange(4_998, steps - 1, 4_999))
    assert np.allclose(gaps[gaps > 0.03], 0.04)


@pytest.mark.parametrize("family", ["wavlm", "wav2vec2", "data2vec"])
def test_other_families_in_pieces(monkeypatch, family):
    monkeypatch.setattr(speech_stage, "FAIRSEQ_PIECE_S", 2)
    stage, samples = of_family(family, chunks="fairseq_100s"), noise(80_000)
    assert apart(run(stage, samples).arrays["feature"], dump(stage, samples, 32_000)) < 1e-5


def test_fairseqs_epsilon_is_for_the_dump_alone():
    """Of a quiet recording the two differ; of a loud one not."""
    for loudness, differ in ((1e-3, True), (1.0, False)):
        samples = loudness * noise(16_000)
        usual, dumped = (run(ready(**config), samples).arrays["feature"] for config in ({}, {"chunks": "fairseq_100s"}))
        assert (apart(dumped, usual) > 1e-2) == differ
    moments = whole_moments(samples)
    assert torch.allclose(normalised(samples, moments, 1e-5), torch.nn.functional.layer_norm(samples, samples.shape))
