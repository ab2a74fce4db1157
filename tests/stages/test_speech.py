import json
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import (
    Data2VecAudioConfig,
    Data2VecAudioForCTC,
    Data2VecAudioForSequenceClassification,
    Data2VecAudioModel,
    HubertConfig,
    HubertForCTC,
    HubertForSequenceClassification,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    Wav2Vec2ForPreTraining,
    Wav2Vec2ForSequenceClassification,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMForCTC,
    WavLMForSequenceClassification,
    WavLMModel,
)

from extract.errors import WeightsError
from extract.models import long_speech, speech
from extract.models.random import normal
from extract.models.waveform import normalised
from extract.stage import Output
from extract.stages.speech import Speech, SpeechConfig
from extract.timeline import Regular
from extract.weights.resolving import resolve
from tests.contract import ClipContract, context
from tests.stages.test_hubert import clip, run
from tests.stages.test_hubert import speech as recording

SMALL: dict[str, Any] = {"family": "hubert", "weights": "random", "width": 64, "normalise": True, "dtype": "float32"}
FAMILIES = ("hubert", "wavlm", "wav2vec2", "data2vec")
OFFICIAL: dict[str, tuple[Any, Any]] = {
    "hubert": (HubertConfig, HubertModel),
    "wavlm": (WavLMConfig, WavLMModel),
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2Model),
    "data2vec": (Data2VecAudioConfig, Data2VecAudioModel),
}
LIKE_BASE = {"do_stable_layer_norm": False, "feat_extract_norm": "group"}
LIKE_LARGE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
KINDS = [(family, like) for family in FAMILIES[:3] for like in (LIKE_BASE, LIKE_LARGE)] + [("data2vec", {})]


def ready(**config):
    stage = Speech(SpeechConfig(**(SMALL | config)))
    stage.setup(context(stage))
    return stage


def official(family, **sizes):
    """transformers' own model with its default masking and dropout, in eval mode; our drawn numbers."""
    config_type, model_type = OFFICIAL[family]
    common = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
    model = model_type(config_type(**common, **{"conv_dim": (32,) * 7} | sizes))
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            z = torch.from_numpy(normal(family, name, tuple(tensor.shape))).float()
            fan_in = max(tensor[0].numel(), 1) if tensor.ndim > 1 else 100
            tensor.copy_(z / fan_in**0.5 + (tensor.ndim == 1 and name.endswith("weight")))
    return model.eval()


class Small(ClipContract):
    settings: ClassVar[dict[str, Any]] = {}

    def stage(self):
        return Speech(SpeechConfig(**(SMALL | self.settings)))

    def clips(self):
        return [clip(16_000), clip(20_801, 1, 2.43), clip(399), clip(16_000, 2, -0.02), clip(400), clip(0)]


class TestHubertFamily(Small):
    settings: ClassVar[dict[str, Any]] = {"family": "hubert"}


class TestWavlmFamily(Small):
    settings: ClassVar[dict[str, Any]] = {"family": "wavlm", "layer": 1, "dtype": "float16"}


class TestWav2vec2Family(Small):
    settings: ClassVar[dict[str, Any]] = {"family": "wav2vec2", "normalise": False}


class TestData2vecFamily(Small):
    settings: ClassVar[dict[str, Any]] = {"family": "data2vec"}


class TestOtherConvolutions(Small):
    """Another clock: 64 samples a step, 10 + 2 * 4 + 2 * 16 seen."""

    settings: ClassVar[dict[str, Any]] = {"conv_kernel": (10, 3, 3), "conv_stride": (4, 4, 4)}

    def clips(self):
        return [clip(16_000), clip(1_601, 1, 2.43), clip(49), clip(50)]


@pytest.mark.parametrize(("family", "like"), KINDS)
@pytest.mark.parametrize(("layer", "normalise"), [("last", True), (2, True), (0, True), ("last", False), (2, False)])
def test_values_are_transformers_own(tmp_path, family, like, layer, normalise):
    """From a folder as ``save_pretrained`` writes it."""
    model = official(family, **like)
    model.save_pretrained(tmp_path)
    stage = ready(family=family, weights=str(tmp_path), width=48, layer=layer, normalise=normalise)
    samples = 0.3 * recording(12_000)  # far from variance 1
    with torch.inference_mode():
        found = model((normalised(samples) if normalise else samples)[None], output_hidden_states=True)
    expected = found.last_hidden_state[0] if layer == "last" else found.hidden_states[layer][0]
    values = run(stage, samples).arrays["feature"]
    assert values.shape == (37, 48)
    assert (values - expected).norm() / expected.norm() < 1e-5
    assert values.std() > 0.05


@pytest.mark.parametrize("family", FAMILIES[:3])
def test_the_last_layer_by_number_is_before_the_final_norm(tmp_path, family):
    model = official(family, **LIKE_LARGE)
    model.save_pretrained(tmp_path)
    raw, normed = (
        run(ready(family=family, weights=str(tmp_path), width=48, layer=layer), recording(8_000)).arrays["feature"]
        for layer in (3, "last")
    )
    assert not torch.allclose(raw, normed, atol=0.1)
    with torch.inference_mode():
        assert torch.allclose(model.encoder.layer_norm(raw), normed, atol=1e-5)


@pytest.mark.parametrize(("family", "like"), KINDS)
@pytest.mark.parametrize("num_steps", [599, 1_030])
def test_blocks_are_the_whole_recording(tmp_path, monkeypatch, family, like, num_steps):
    """Oracle: transformers' own forward of the whole recording; its second half is louder."""
    model = official(family, **like)
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(long_speech, "BLOCK_STEPS", 256)
    monkeypatch.setattr(long_speech, "POSITIONS_STEPS", 300)
    monkeypatch.setattr(long_speech, "BIAS_NUMBERS", 4 * num_steps * 100)  # 100 queries at once
    samples = recording(num_steps * 320 + 99)
    samples[len(samples) // 2 :] *= 4
    stage = ready(family=family, weights=str(tmp_path), width=48)
    with torch.inference_mode():
        whole = model(normalised(samples)[None]).last_hidden_state[0]
    found = run(stage, samples).arrays["feature"]
    assert found.shape == whole.shape
    assert (found - whole).norm() / whole.norm() < 1e-5
    assert (found - whole).abs().max() < 1e-4 * whole.abs().max()


def test_only_a_long_recording_goes_in_blocks(monkeypatch):
    monkeypatch.setattr(long_speech, "hidden_of_long", None)
    monkeypatch.setattr(long_speech, "BLOCK_STEPS", 20)
    assert len(run(ready(), recording(39 * 320 + 399)).arrays["feature"]) == 39
    with pytest.raises(TypeError):
        run(ready(), recording(39 * 320 + 400))


@pytest.mark.parametrize(
    ("kernels", "strides", "hop", "seen"),
    [((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2), 320, 400), ((10, 3, 3), (4, 4, 4), 64, 50), ((7,), (3,), 3, 7)],
)
def test_the_clock_counts_as_the_convolutions_do(kernels, strides, hop, seen):
    """floor((n - k) / s) + 1, layer by layer."""
    steps = speech.clock(kernels, strides, 16_000)
    assert steps == Regular(Fraction(hop, 16_000), Fraction(seen, 16_000))
    n = np.arange(seen, 5_000)
    expected = n
    for kernel, stride in zip(kernels, strides, strict=True):
        expected = (expected - kernel) // stride + 1
    assert [steps.num_steps(Fraction(int(samples), 16_000)) for samples in n] == expected.tolist()


def test_outputs_are_known_without_weights():
    feature, centre_s = Speech(SpeechConfig(**SMALL | {"weights": "not here", "width": 1024})).outputs
    assert isinstance(feature, Output)
    assert (feature.name, feature.sizes, feature.clock) == ("feature", (1024,), centre_s.clock)


@pytest.mark.parametrize("num_samples", [0, 399])
def test_shorter_than_a_step_is_empty(num_samples):
    result = run(ready(), recording(num_samples))
    assert (result.empty, dict(result.arrays), result.notes) == ("too_short", {}, {"samples": num_samples})


def test_training_mode_would_change_nothing():
    for family in FAMILIES:
        stage = ready(family=family)
        expected = run(stage, recording(8_000)).arrays["feature"]
        stage._model.train()
        assert torch.equal(run(stage, recording(8_000)).arrays["feature"], expected), family


def test_random_weights_are_of_family_and_width():
    hashes = {
        resolve("random", Speech(SpeechConfig(**SMALL | {"family": family, "width": width}))).sha256
        for family in FAMILIES
        for width in (32, 64)
    }
    assert len(hashes) == 8


def test_a_file_of_pre_training_loads_without_its_heads(tmp_path):
    """As facebook/wav2vec2-large-lv60 is: prefix, quantizer, projections, mask vector, old names of the weight norm."""
    encoder = official("wav2vec2", **LIKE_LARGE)
    whole = Wav2Vec2ForPreTraining(encoder.config)
    whole.wav2vec2 = encoder
    encoder.save_pretrained(tmp_path / "plain")
    whole.save_pretrained(tmp_path / "whole")
    old = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in whole.state_dict().items()
    }
    assert any(name.startswith("quantizer.") for name in old)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_bytes((tmp_path / "whole" / "config.json").read_bytes())
    torch.save(old, tmp_path / "old" / "pytorch_model.bin")
    values = [
        run(ready(family="wav2vec2", weights=str(tmp_path / name), width=48), recording(4_000)).arrays["feature"]
        for name in ("plain", "whole", "old")
    ]
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])


WITH_HEADS: dict[str, tuple[Any, Any]] = {
    "hubert": (HubertForCTC, HubertForSequenceClassification),
    "wavlm": (WavLMForCTC, WavLMForSequenceClassification),
    "wav2vec2": (Wav2Vec2ForCTC, Wav2Vec2ForSequenceClassification),
    "data2vec": (Data2VecAudioForCTC, Data2VecAudioForSequenceClassification),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("head", "of_head"),
    [(0, {"lm_head"}), (1, {"projector", "classifier", "layer_weights"})],
    ids=["recognition", "classification"],
)
def test_a_file_with_a_head_loads_as_its_encoder(tmp_path, family, head, of_head):
    """Fine-tuned models, as transformers saves them: the encoder's own prefix, and a head that is dropped."""
    encoder = official(family)
    encoder.config.use_weighted_layer_sum = True  # a weight per layer, which only classification has
    whole = WITH_HEADS[family][head](encoder.config)
    setattr(whole, whole.base_model_prefix, encoder)
    assert {name.split(".")[0] for name in whole.state_dict()} == {whole.base_model_prefix, *of_head}
    for name, model in (("plain", encoder), ("whole", whole)):
        model.save_pretrained(tmp_path / name)
    plain, fine_tuned = (
        run(ready(family=family, weights=str(tmp_path / name), width=48), recording(4_000)).arrays["feature"]
        for name in ("plain", "whole")
    )
    assert torch.equal(plain, fine_tuned)


@pytest.fixture
def folder(tmp_path):
    """A WavLM as the hub has it; called with changes of its config.json."""
    official("wavlm", **LIKE_LARGE).save_pretrained(tmp_path)

    def changed(**config):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        return str(tmp_path)

    return changed


@pytest.mark.parametrize(
    ("config", "wrong", "message"),
    [
        ({"family": "hubert"}, {}, "config.json is of model type 'wavlm', the config says hubert; set family: wavlm"),
        ({}, {"model_type": "whisper"}, "model type 'whisper', the config says wavlm; expected 'wavlm'"),
        ({"width": 64}, {}, "config.json has hidden_size 48, the config says 64; set width: 48"),
        (
            {"conv_stride": (5, 2, 2, 2, 2, 2, 1)},
            {},
            r"has conv_stride \[5, 2, 2, 2, 2, 2, 2\], the config says \[5, 2, 2, 2, 2, 2, 1\]",
        ),
        ({"conv_kernel": (10, 3, 3, 3, 3, 2, 3)}, {}, r"has conv_kernel \[10, 3, 3, 3, 3, 2, 2\]"),
        ({"layer": 4}, {}, "have layers 0 to 3, the config says layer 4"),
        ({}, {"add_adapter": True}, "the network has adapters"),
        ({}, {"adapter_attn_dim": 16}, "the network has adapters"),
        ({}, {"num_attention_heads": 5}, "transformers builds no wavlm from its config.json: .*5"),
        ({}, {"num_hidden_layers": 2}, "unexpected .*encoder.layers.2"),
        ({}, {"num_hidden_layers": 4}, "missing .*encoder.layers.3"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(folder, config, wrong, message):
    with pytest.raises(WeightsError, match=message):
        ready(**{"family": "wavlm", "weights": folder(**wrong), "width": 48} | config)


def test_a_file_without_its_config_is_refused(folder):
    with pytest.raises(WeightsError, match=r"there is no config.json, .*; name the folder that holds it"):
        ready(family="wavlm", width=48, weights=folder() + "/model.safetensors")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"family": "whisper"}, "'hubert', 'wavlm', 'wav2vec2' or 'data2vec'"),
        ({"layer": -1}, "layer is -1, expected 0 or more, or last"),
        ({"layer": "first"}, "layer"),
        ({"conv_kernel": (10, 3)}, "conv_kernel has 2 numbers and conv_stride 7"),
        ({"conv_kernel": (), "conv_stride": ()}, "conv_kernel has 0 numbers"),
        ({"conv_kernel": (10, 0), "conv_stride": (5, 2)}, "expected 1 or more each"),
        ({"width": 50}, "width is 50; with weights: random it must be a multiple of 16"),
        ({"architecture": "base"}, "architecture"),
    ],
)
def test_settings_that_do_not_fit_are_refused(wrong, message):
    with pytest.raises(ValidationError, match=message):
        SpeechConfig(**SMALL | wrong)


@pytest.mark.parametrize("field", ["family", "weights", "width", "normalise"])
def test_what_has_no_sensible_default_must_be_said(field):
    with pytest.raises(ValidationError, match=f"{field}\n  Field required"):
        SpeechConfig(**{name: value for name, value in SMALL.items() if name != field})
