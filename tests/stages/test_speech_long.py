"""Speech encoders on recordings that are cut: transformers' own modules on the very chunks, counted passes, clocks."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from extract.models import hubert, long_speech, speech
from extract.models.chunks import overlapping_chunks
from extract.models.waveform import normalised
from extract.stages.hubert import HUBERT_STEPS
from extract.stages.speech import Speech, SpeechConfig
from tests.contract import context
from tests.stages.test_hubert import LIKE_BASE, one_thread, ready, run  # noqa: F401 - a fixture
from tests.stages.test_hubert import speech as noise

SECONDS = 200
"""``max_s`` of these tests: the least that there may be."""


def of_family(family: str, **config: Any) -> Any:
    fields: dict[str, Any] = {"family": family, "weights": "random", "width": 64, "normalise": True, "dtype": "float32"}
    stage = Speech(SpeechConfig(**fields | config))
    stage.setup(context(stage))
    return stage


def apart(found, expected):
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm())


def layers_by_themselves(stage, hidden):
    """Oracle: transformers' own layers, one after the other, on one stretch of the hidden states [S, D]."""
    rows = hidden[None]
    bias = {}
    for layer in stage._model.encoder.layers:
        found = layer(rows, **bias)
        rows = found[0] if isinstance(found, tuple) else found
        bias = {"position_bias": found[1]} if isinstance(found, tuple) and len(found) > 1 else {}
    return stage._final_norm(rows)[0]


@pytest.mark.parametrize("family", ["hubert", "wavlm", "wav2vec2", "data2vec"])
def test_each_step_is_of_the_chunk_that_keeps_it(monkeypatch, family):
    """19 s in chunks of at most 8 s: convolutions of the whole, then transformers' layers on each chunk alone."""
    monkeypatch.setattr(long_speech, "BLOCK_STEPS", 256)
    stage = of_family(family)
    samples = noise(948 * 320 + 80)
    with torch.inference_mode():
        values = normalised(samples)[None]
        hidden = stage._model(values, output_hidden_states=True).hidden_states[0][0]
        pieces = [layers_by_themselves(stage, hidden[a:b]) for a, b in ((0, 370), (289, 659), (578, 948))]
        # Of the 81 steps that two chunks share, the first 41 are the earlier one's.
        expected = torch.cat([pieces[0][: 289 + 41], pieces[1][41 : 289 + 41], pieces[2][41:]])
        found = speech.hidden_states(
            stage._model,
            stage._final_norm,
            samples,
            948,
            normalise=True,
            precision=torch.float32,
            chunks=overlapping_chunks(948, 399, 81),
        )
        whole = layers_by_themselves(stage, hidden)
    assert apart(found, expected) < 1e-5
    assert apart(found, whole) > 1e-4  # else nothing was cut


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("stable", [True, False])
def test_max_s_is_heeded_and_passes_are_counted(monkeypatch, stable):
    """Counted: rows through the layers and steps out of the convolutions, per step of the recording."""
    monkeypatch.setitem(hubert.ARCHITECTURES, "base", LIKE_BASE)
    stage = ready(architecture="small" if stable else "base", layer=1, max_s=SECONDS)
    passed = {"layers": 0, "convolutions": 0}

    def count(what, rows):
        passed[what] += rows

    model = stage._model
    model.encoder.layers[0].feed_forward.register_forward_hook(lambda _, given, __: count("layers", len(given[0])))
    last = model.feature_extractor.conv_layers[-1]
    last.register_forward_hook(lambda _, __, given: count("convolutions", given.shape[-1]))
    most = HUBERT_STEPS.num_steps(Fraction(SECONDS))
    for num_steps, num_chunks in ((most, 1), (most + 1, 2)):
        passed.update(layers=0, convolutions=0)
        found = run(stage, noise(num_steps * 320 + 80))
        assert len(found.arrays["feature"]) == len(found.arrays["centre_s"]) == num_steps
        assert found.notes == ({"chunks": num_chunks} if num_chunks > 1 else {})
        assert passed["convolutions"] == num_steps  # no overlap at all
        assert passed["layers"] == num_steps + 400 * (num_chunks - 1)
        assert passed["layers"] <= 1.05 * num_steps
        centres = found.arrays["centre_s"].numpy()
        assert np.abs(centres - (np.arange(num_steps) * 320 + 200) / 16_000).max() < 1e-12


def test_a_loud_end_normalises_the_beginning_of_a_cut_recording():
    """Mean and variance are those of the whole recording, in both manners."""
    quiet = noise(210 * 16_000)
    louder = torch.cat([quiet[: 205 * 16_000], 20 * quiet[205 * 16_000 :]])
    for config in ({"max_s": SECONDS}, {"chunks": "fairseq_100s"}):
        stage = ready(layer=0, **config)
        one, other = (run(stage, samples).arrays["feature"] for samples in (quiet, louder))
        assert apart(one[:1_000], other[:1_000]) > 1e-2, config


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("architecture", ["small", "large"])
def test_the_front_end_in_blocks_is_that_of_the_whole(monkeypatch, architecture):
    """Layer norms: difference 0.0, at the published width (large) too."""
    wide = hubert.Architecture(1024, num_layers=1, heads=16, mlp_width=64, stable_layer_norm=True)
    monkeypatch.setitem(hubert.ARCHITECTURES, "large", wide)
    if architecture == "large":
        monkeypatch.setattr(long_speech, "BLOCK_STEPS", 128)
    stage = ready(architecture=architecture)
    num_steps = 3 * long_speech.BLOCK_STEPS + 77
    values = normalised(noise(num_steps * 320 + 80))
    model = stage._model
    with torch.inference_mode():
        whole = model.feature_projection(model.feature_extractor(values[None]).transpose(1, 2))[0]
        found = long_speech.front_end(model, lambda start, stop: values[start:stop], len(values))
    difference = float((found - whole).abs().max())
    print(f"front end of {architecture}, {num_steps} steps, in blocks of {long_speech.BLOCK_STEPS}: {difference}")
    assert found.shape == whole.shape
    assert difference == 0.0


# ---- step counts -------------------------------------------------------------------------------------------------

AROUND_EDGES = [
    *(399, 400, 401, 719, 720, 721, 1_039, 1_040),  # the first steps
    *(15_999, 16_000, 16_079, 16_080, 16_081),  # a second
    *(983_119, 983_120, 983_439, 983_440),  # 3,071 and 3,072 steps: the first blocks
    *(3_200_079, 3_200_080, 3_200_399),  # 10,000 steps, the first that ``max_s: 200`` cuts
]
"""Samples."""


@pytest.mark.parametrize("num_samples", AROUND_EDGES)
def test_step_counts_and_centres(num_samples):
    """By the recurrence of the seven convolutions, and where the samples lie that each step sees."""
    assert len(AROUND_EDGES) == 20
    expected, hop, seen = num_samples, 1, 1
    for kernel, stride in zip((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2), strict=True):
        expected = max(0, (expected - kernel) // stride + 1)
        seen, hop = seen + (kernel - 1) * hop, hop * stride
    found = run(ready(layer=0, max_s=SECONDS), noise(num_samples), start_s=-0.02)
    if not expected:
        assert found.empty == "too_short"
        return
    assert len(found.arrays["feature"]) == expected
    centres = found.arrays["centre_s"].numpy()
    assert np.abs(centres - (-0.02 + (np.arange(expected) * hop + seen / 2) / 16_000)).max() < 1e-12
    last_seen = round((centres[-1] + 0.02) * 16_000) + seen // 2
    assert num_samples - hop < last_seen <= num_samples
