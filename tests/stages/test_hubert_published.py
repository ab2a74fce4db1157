"""Published HuBERT weights against features that the original program wrote, whose layer is derived, not believed."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from extract.inputs.media import read_audio
from extract.models.waveform import normalised, whole_moments
from extract.stages.hubert import Hubert, HubertConfig
from extract.weights import files, resolving
from tests.contract import context
from tests.stages.test_hubert import ready, run, speech

NEAR = 1e-3
"""Relative distance to the layer that it is: float32 sums in another order, and what fairseq adds to the variance."""


def distances(stage: Hubert, samples: torch.Tensor, expected: torch.Tensor) -> list[float]:
    """Relative distance of ``expected`` [S, D] to the output of each layer; 0 is the input of the first."""
    values = normalised(samples, whole_moments(samples), 1e-5) if stage.config.normalise else samples
    with torch.inference_mode():
        states = stage._model(values[None], output_hidden_states=True).hidden_states
    assert {tuple(state.shape[1:]) for state in states} == {tuple(expected.shape)}
    return [float((state[0] - expected).norm() / expected.norm()) for state in states]


def layer_of(found: list[float]) -> int:
    """The layer that the features are of: near it, and ten times as far from every other one."""
    best, second, *_ = sorted(range(len(found)), key=found.__getitem__)
    assert found[best] < NEAR, f"layer {best} is the nearest, but {found[best]:.1e} apart"
    assert found[second] > 10 * max(found[best], NEAR), f"layers {best} and {second} are both near: {found}"
    return best


@pytest.mark.weights
@pytest.mark.parametrize(
    ("key", "architecture", "normalise", "golden", "layer"),
    [
        ("hubert-base-ls960", "base", False, "hubert_base_L9.npy", 9),
        ("hubert-xlarge-ll60k", "xlarge", True, "hubert_xlarge_L30.npy", 30),
    ],
)
def test_published_weights_give_fairseqs_features(media_dir, key, architecture, normalise, golden, layer):
    """596 steps of one LibriSpeech recording; the stored layer is the unique best of all, and the stage gives it."""
    rows = resolving.list_rows(files.cache_folder(), Path("weights.lock"))
    missing = {entry.row.key: entry.missing for entry in rows}[key]
    if missing:
        pytest.skip(f"weights {key} are not in {files.cache_folder()}; `extract weights fetch {key}`")
    config: dict[str, Any] = {"weights": key, "architecture": architecture, "normalise": normalise, "dtype": "float32"}
    audio = read_audio(media_dir / "librispeech_6313-76958-0021.flac")
    assert audio is not None
    samples, expected = torch.from_numpy(audio.samples), torch.from_numpy(np.load(media_dir / golden))
    every = Hubert(HubertConfig(**config))
    every.setup(context(every))
    assert layer_of(distances(every, samples, expected)) == layer
    del every
    stage = Hubert(HubertConfig(**config, layer=layer, chunks="fairseq_100s"))
    stage.setup(context(stage))
    found = run(stage, samples, audio.start_s).arrays["feature"]
    assert found.shape == expected.shape
    assert (found - expected).norm() / expected.norm() < NEAR


def test_the_goldens_are_of_the_recording(media_dir):
    """Step for step, and of the widths of the networks; as the recording is 190,800 samples long."""
    audio = read_audio(media_dir / "librispeech_6313-76958-0021.flac")
    assert audio is not None
    assert len(audio.samples) == 190_800
    for golden, architecture in (("hubert_base_L9.npy", "base"), ("hubert_xlarge_L30.npy", "xlarge")):
        stage = Hubert(HubertConfig(architecture=architecture, normalise=architecture == "xlarge"))
        expected = np.load(media_dir / golden)
        assert expected.shape == (stage.steps.num_steps(Fraction(len(audio.samples), 16_000)), stage.width)
        assert np.isfinite(expected).all()


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_layer_is_derived(layer):
    """Of a small network, whose features are known to be of that layer but for a little noise."""
    samples = speech(16_000)
    given = run(ready(layer=layer, chunks="fairseq_100s") if layer < 2 else ready(layer=2), samples).arrays["feature"]
    noisy = given + 1e-4 * given.std() * torch.randn(given.shape, generator=torch.Generator().manual_seed(layer))
    assert layer_of(distances(ready(), samples, noisy)) == layer


def test_features_of_no_layer_or_of_two_are_refused():
    samples = speech(16_000)
    given = run(ready(layer=1), samples).arrays["feature"]
    with pytest.raises(AssertionError, match="is the nearest, but"):
        layer_of(distances(ready(), samples, 1.01 * given))
    with pytest.raises(AssertionError, match="layers 1 and 2 are both near"):
        layer_of([1.0, 1e-4, 2e-3])
