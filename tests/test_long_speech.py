"""Speech encoders on long recordings: what is in memory, what the blocks are, and what float16 costs.

That the values are those of the whole recording is tested with the stages: tests/stages/test_hubert.py, test_speech.py.
"""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.autograd.profiler import profile

from extract.models import hubert, long_speech
from extract.models.waveform import normalised
from extract.running.recipes import DEFAULT_PRECISION
from extract.stage import Context
from extract.stages.hubert import Hubert, HubertConfig
from extract.stages.speech import Speech, SpeechConfig
from extract.weights.resolving import resolve
from tests.contract import CPU
from tests.stages.test_hubert import LIKE_BASE, run, speech


def ready(precision: torch.dtype = torch.float32, **config: Any) -> Any:
    stage = Hubert(HubertConfig(**{"weights": "random", "architecture": "small", "dtype": "float32"} | config))
    stage.setup(Context(CPU, precision, resolve("random", stage)))
    return stage


def peak_bytes(work: Callable[[], object]) -> int:
    """Most that torch held at a time beyond what it held before: every block of memory taken and given back."""
    with profile(use_cpu=True, profile_memory=True) as profiled:
        work()
    events = [event for event in profiled.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


MOST = 100e6
"""Bytes: 64 positions a step of 32 channels, of twice 1,536 steps, are 25 MB, and an activation holds a few such."""


@pytest.mark.parametrize("minutes", [1, 5, pytest.param(10, marks=pytest.mark.slow)])
def test_no_table_of_steps_by_steps_is_made(minutes):
    """Below a minute the recording goes through transformers' own forward, above in blocks."""
    num_steps = 50 * 60 * minutes
    stage, samples = ready(layer=1), speech(num_steps * 320 + 80)
    own = len(samples) * 4 * 2 + num_steps * 64 * 4 * 4  # the samples, hidden states, keys, values
    assert peak_bytes(lambda: run(stage, samples)) < MOST + own
    assert minutes == 1 or 4 * 4 * num_steps**2 > 10 * (MOST + own)  # what four heads would take


@pytest.mark.parametrize("family", ["wav2vec2", "data2vec", "wavlm"])
def test_nor_by_other_families(monkeypatch, family):
    """WavLM's bias is such a table: it is made for a few queries at a time."""
    config: dict[str, Any] = {"family": family, "weights": "random", "width": 64, "normalise": True, "dtype": "float32"}
    stage = Speech(SpeechConfig(**config))
    stage.setup(Context(CPU, torch.float32, resolve("random", stage)))
    num_steps = 50 * 60 * 2
    monkeypatch.setattr(long_speech, "BIAS_NUMBERS", 4 * 64 * num_steps)
    samples = speech(num_steps * 320 + 80)
    assert peak_bytes(lambda: run(stage, samples)) < 1.5 * MOST
    assert 4 * 4 * num_steps**2 > 3 * MOST


@pytest.mark.parametrize("architecture", ["small", "base"])
def test_larger_blocks_of_the_layers_change_rounding_only(monkeypatch, architecture):
    """A GPU's, of five minutes: each layer once for a recording of a minute and a half."""
    monkeypatch.setitem(hubert.ARCHITECTURES, "base", LIKE_BASE)
    assert long_speech.layer_steps(torch.device("cuda")) == 15_360
    assert long_speech.layer_steps(CPU) == 1_536
    attended, attention = [], torch.nn.functional.scaled_dot_product_attention
    counted = lambda queries, *more, **named: attended.append(1) or attention(queries, *more, **named)  # noqa: E731
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    stage, samples = ready(architecture=architecture), speech(4_700 * 320)
    layers = hubert.ARCHITECTURES[architecture].num_layers
    expected = run(stage, samples).arrays["feature"]
    assert len(attended) == 3 * layers
    monkeypatch.setattr(long_speech, "layer_steps", lambda _: 15_360)
    found = run(stage, samples).arrays["feature"]
    assert len(attended) == 3 * layers + layers
    assert (found - expected).norm() / expected.norm() < 1e-6


# ---- float16 --------------------------------------------------------------------------------------------------------


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("seconds", [5, 70])
def test_float16_is_nearer_than_bfloat16(seconds):
    """Which is as fast; a GPU's default. Eleven bits of fraction against eight: about eight times."""
    assert DEFAULT_PRECISION["cuda"] == "float16"
    samples = speech(16_000 * seconds)
    expected = run(ready(), samples).arrays["feature"]
    half, brain = (
        apart(run(ready(precision), samples).arrays["feature"], expected)
        for precision in (torch.float16, torch.bfloat16)
    )
    assert half < 4e-3
    assert half < brain / 6


def test_float16_at_the_published_widths(monkeypatch):
    wide = hubert.Architecture(1280, num_layers=1, heads=16, mlp_width=5120, stable_layer_norm=True)
    monkeypatch.setitem(hubert.ARCHITECTURES, "xlarge", wide)
    samples = speech(3_200)
    expected = run(ready(architecture="xlarge"), samples).arrays["feature"]
    assert apart(run(ready(torch.float16, architecture="xlarge"), samples).arrays["feature"], expected) < 4e-3


def test_norms_of_large_float16_numbers_do_not_overflow():
    """Hidden states of thousands: their squares do not fit float16 (65,504), so the norms must count in float32."""
    samples, found, largest = speech(32_000), {}, 0.0
    for precision in (torch.float32, torch.float16, torch.bfloat16):
        stage = ready(precision)
        with torch.no_grad():
            for layer in stage._model.encoder.layers:
                layer.feed_forward.output_dense.weight *= 4_000
        found[precision] = run(stage, samples).arrays["feature"]
        stage._final_norm = torch.nn.Identity()
        largest = float(run(stage, samples).arrays["feature"].abs().max())
    assert 10_000 < largest < 60_000
    half, brain = (apart(found[precision], found[torch.float32]) for precision in (torch.float16, torch.bfloat16))
    assert half < brain / 4


@pytest.mark.parametrize("normalise", [True, False])
def test_a_quiet_recording_in_blocks_is_as_near_in_float16_as_at_once(monkeypatch, normalise):
    """Base's norm over time: the scale is large there, and the shift of a microphone off centre."""
    monkeypatch.setitem(hubert.ARCHITECTURES, "base", LIKE_BASE)
    samples = 1e-3 * speech(16_000 * 70) + 0.02
    expected = run(ready(architecture="base", normalise=normalise), samples).arrays["feature"]
    stage = ready(torch.float16, architecture="base", normalise=normalise)
    values = (normalised(samples) if normalise else samples).half()
    with torch.inference_mode():
        whole = stage._model(values[None]).last_hidden_state[0].float()
    assert apart(run(stage, samples).arrays["feature"], expected) < 1.1 * apart(whole, expected)
