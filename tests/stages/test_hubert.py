import itertools
import json
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import HubertConfig as TransformersConfig
from transformers import HubertModel, Wav2Vec2FeatureExtractor

from extract.errors import WeightsError
from extract.inputs.media import Sound
from extract.models import hubert, long_speech, random, waveform
from extract.models.waveform import normalised
from extract.running.clip_inputs import SamplesOnDisk
from extract.stages.hubert import HUBERT_STEPS, Hubert, HubertConfig
from tests.contract import ClipContract, ClipInputs, context

SMALL: dict[str, Any] = {"weights": "random", "architecture": "small", "dtype": "float32"}
# Group norm after the first convolution only, norms after attention and MLP, no final norm: base, but fast.
LIKE_BASE = hubert.Architecture(48, num_layers=3, heads=4, mlp_width=96, stable_layer_norm=False, conv_width=32)


def ready(**config):
    stage = Hubert(HubertConfig(**(SMALL | config)))
    stage.setup(context(stage))
    return stage


def speech(num_samples, seed=0):
    """Noise that swells, off centre as cheap microphones are."""
    t = np.arange(num_samples) / 16_000
    noise = random.normal("wave", str(seed), num_samples)
    return torch.from_numpy((0.03 + 0.1 * noise * (0.6 + 0.4 * np.sin(5 * t + seed))).astype(np.float32))


def run(stage, samples, start_s=0.0):
    return stage.compute({"wave.samples": samples, "wave.start_s": start_s})


def clip(num_samples, seed=0, start_s=0.0):
    return ClipInputs(
        {"wave.samples": speech(num_samples, seed), "wave.start_s": start_s},
        duration_s=Fraction(num_samples, 16_000),
        start_s=start_s,
    )


class TestHubert(ClipContract):
    def stage(self):
        return Hubert(HubertConfig(**SMALL))

    def clips(self):
        return [clip(16_000), clip(20_801, 1, 2.43), clip(399), clip(16_000, 2, -0.02), clip(400), clip(0)]


class TestFloat16Layer(TestHubert):
    def stage(self):
        return Hubert(HubertConfig(**SMALL | {"layer": 1, "dtype": "float16", "normalise": False}))


@pytest.mark.parametrize(
    ("num_samples", "steps"), [(16_000, 49), (32_000, 99), (400, 1), (719, 1), (720, 2), (40_000, 124)]
)
def test_published_step_counts(num_samples, steps):
    """fairseq's counts: one second has 49 steps."""
    found = run(ready(), speech(num_samples)).arrays
    assert len(found["feature"]) == len(found["centre_s"]) == steps


def test_the_clock_counts_as_seven_convolutions_do():
    """floor((n - k) / s) + 1, layer by layer, for every length up to two seconds."""
    n = np.arange(400, 32_001)
    expected = n
    for kernel, stride in zip((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2), strict=True):
        expected = (expected - kernel) // stride + 1
    assert [HUBERT_STEPS.num_steps(Fraction(int(samples), 16_000)) for samples in n] == expected.tolist()


def test_centres_are_the_middle_of_what_a_step_sees():
    """A click moves the steps around it most; step k sees samples 320 k to 320 k + 400."""
    found = run(ready(), speech(16_000), start_s=1.5).arrays
    assert found["centre_s"][0] == 1.5 + 200 / 16_000
    assert found["centre_s"][48] == pytest.approx(1.5 + (48 * 320 + 200) / 16_000, abs=1e-12)
    stage = ready(layer=0, normalise=False)  # before attention mixes all steps
    stage._model.encoder.pos_conv_embed = torch.nn.Module()
    stage._model.encoder.pos_conv_embed.forward = lambda hidden: 0 * hidden
    quiet = 0.01 * speech(16_000)
    click = quiet.clone()
    click[320 * 20 + 200] += 0.5
    moved = (run(stage, click).arrays["feature"] - run(stage, quiet).arrays["feature"]).norm(dim=1)
    assert moved.nonzero().flatten().tolist() == [20]


def transformers_model(architecture):
    """Oracle: transformers' own model with its default masking and dropout, in eval mode, and our drawn weights."""
    sizes = hubert.ARCHITECTURES[architecture]
    config = TransformersConfig(
        hidden_size=sizes.width,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.mlp_width,
        do_stable_layer_norm=sizes.stable_layer_norm,
        feat_extract_norm="layer" if sizes.stable_layer_norm else "group",
        conv_dim=(sizes.conv_width,) * 7,
    )
    model = HubertModel(config).eval()
    drawn = {name: torch.from_numpy(values) for name, values in hubert.random_weights(architecture).items()}
    assert model.load_state_dict(drawn, strict=False) == (["masked_spec_embed"], [])
    return model


@pytest.mark.parametrize("architecture", ["small", "base"])
@pytest.mark.parametrize("normalise", [True, False])
def test_every_layer_is_transformers_own(monkeypatch, architecture, normalise):
    monkeypatch.setitem(hubert.ARCHITECTURES, "base", LIKE_BASE)
    extractor = Wav2Vec2FeatureExtractor(feature_size=1, sampling_rate=16_000, do_normalize=normalise)
    samples = speech(12_345)
    values = extractor(samples.numpy(), sampling_rate=16_000, return_tensors="pt").input_values
    model = transformers_model(architecture)
    with torch.inference_mode():
        expected = model(values, output_hidden_states=True)
    layers = hubert.ARCHITECTURES[architecture].num_layers
    assert len(expected.hidden_states) == layers + 1
    for layer in range(layers + 1):
        found = run(ready(architecture=architecture, layer=layer, normalise=normalise), samples).arrays["feature"]
        reference = expected.hidden_states[layer][0]
        assert (found - reference).norm() / reference.norm() < 1e-5, layer
    last = run(ready(architecture=architecture, normalise=normalise), samples).arrays["feature"]
    reference = expected.last_hidden_state[0]
    assert (last - reference).norm() / reference.norm() < 1e-5
    is_normed = (reference - expected.hidden_states[layers][0]).norm() / reference.norm() > 0.1
    assert is_normed == (architecture == "small")  # the final norm exists, and only there


# Long recordings


@pytest.fixture
def one_thread():
    """With several, torch's GELU takes the last values of each thread's part one by one, and rounds them otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def at_once(stage, samples):
    """Oracle: transformers' own forward of the whole recording."""
    values = normalised(samples) if stage.config.normalise else samples
    with torch.inference_mode():
        return stage._final_norm(stage._model(values[None]).last_hidden_state[0])


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("layer", ["last", 1, 0])
@pytest.mark.parametrize("more_steps", [0, 1, 700, 1535])
def test_blocks_are_the_whole_recording_to_the_last_bit(layer, more_steps):
    """From the first length that is cut (61.4 s, 3072 steps) on; the last block is of 1536 to 3071 steps."""
    samples = speech((3_071 + more_steps) * 320 + 400 + 13)
    stage = ready(layer=layer)
    found = run(stage, samples).arrays["feature"]
    assert len(found) == 3_072 + more_steps
    assert torch.equal(found, at_once(stage, samples))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("num_steps", [40_000, 61_440, 95_001])
def test_positions_of_half_an_hour_to_the_last_bit(num_steps):
    positions = ready()._model.encoder.pos_conv_embed
    hidden = torch.from_numpy(random.normal("hidden", "x", num_steps * 64).astype(np.float32)).view(num_steps, 64)
    with torch.inference_mode():
        expected = hidden + positions(hidden[None])[0]
        long_speech._add_positions(positions, hidden)
    assert torch.equal(hidden, expected)


@pytest.mark.usefixtures("one_thread")
def test_a_recording_of_one_block_goes_through_at_once(monkeypatch):
    """Stores made before recordings were cut keep their values: nothing of the cutting is reached."""
    monkeypatch.setattr(long_speech, "hidden_of_long", None)
    samples = speech(3_071 * 320 + 399)
    stage = ready()
    assert torch.equal(run(stage, samples).arrays["feature"], at_once(stage, samples))
    with pytest.raises(TypeError):
        run(stage, speech(3_071 * 320 + 400))


@pytest.mark.usefixtures("one_thread")
def test_blocks_of_published_widths(monkeypatch):
    """The convolutions of large, and one layer of its width."""
    wide = hubert.Architecture(1024, num_layers=1, heads=16, mlp_width=4096, stable_layer_norm=True)
    monkeypatch.setitem(hubert.ARCHITECTURES, "large", wide)
    monkeypatch.setattr(long_speech, "BLOCK_STEPS", 256)  # 5 s; the queries of one block are taken as those of all
    samples = speech(1_000 * 320)
    stage = ready(architecture="large")
    whole = at_once(stage, samples)
    found = run(stage, samples).arrays["feature"]
    assert (found - whole).norm() / whole.norm() < 1e-6


@pytest.mark.parametrize("normalise", [True, False])
def test_a_norm_over_time_is_of_the_whole_recording(monkeypatch, normalise):
    """Base's first convolution: its second half louder, so that a block's own norm would be another."""
    monkeypatch.setitem(hubert.ARCHITECTURES, "base", LIKE_BASE)
    samples = speech(4_000 * 320)
    samples[len(samples) // 2 :] *= 4
    stage = ready(architecture="base", normalise=normalise)
    whole = at_once(stage, samples)
    found = run(stage, samples).arrays["feature"]
    assert (found - whole).norm() / whole.norm() < 1e-5


def test_moments_that_are_joined_are_those_of_all():
    x = torch.from_numpy(random.normal("moments", "x", 10_007)).reshape(1, -1) * torch.tensor([[1.0], [1e-3]]) + 5
    moments = waveform.Moments()
    for start, stop in ((0, 1), (1, 700), (700, 10_007)):
        moments.add(x[:, start:stop])
    assert torch.allclose(moments.mean, x.double().mean(dim=1), rtol=1e-12)
    assert torch.allclose(moments.variance, x.double().var(dim=1, correction=0), rtol=1e-9)


@pytest.mark.usefixtures("one_thread")
def test_samples_on_the_disk_give_the_same_and_are_never_read_whole(monkeypatch):
    samples = speech(200 * 16_000)  # longer than what the mean is taken of at once
    sound, asked = Sound(), []
    for part in samples.split(30_000):
        sound.append(part.numpy())
    on_disk = SamplesOnDisk(sound, torch.device("cpu"))
    real = SamplesOnDisk.__getitem__

    def reads(self, part):
        asked.append(part.stop - part.start)
        return real(self, part)

    monkeypatch.setattr(SamplesOnDisk, "__getitem__", reads)
    stage = ready(layer=0)
    found = run(stage, on_disk).arrays["feature"]
    assert max(asked) < 62 * 16_000
    assert torch.equal(found, run(stage, samples).arrays["feature"])
    assert (found - at_once(stage, samples)).abs().max() < 1e-5


def test_normalisation_is_of_the_whole_recording():
    """Closed form; a second half that is louder changes the first."""
    samples = speech(8_000)
    for loudness in (1, 1e-3):  # the second so faint that the 1e-7 counts
        x = loudness * samples.double()
        expected = (x - x.mean()) / torch.sqrt(((x - x.mean()) ** 2).mean() + 1e-7)
        assert torch.allclose(normalised(loudness * samples).double(), expected, atol=1e-5)
    assert normalised(torch.zeros(500)).tolist() == [0] * 500
    louder = torch.cat([samples[:4_000], 5 * samples[4_000:]])
    assert not torch.allclose(normalised(louder)[:4_000], normalised(samples)[:4_000], atol=0.1)


def test_normalisation_makes_loudness_and_offset_irrelevant():
    samples = speech(8_000)
    one, two = (run(ready(), wave).arrays["feature"] for wave in (samples, samples / 4 + 0.3))
    assert (one - two).norm() / one.norm() < 1e-3
    raw = [run(ready(normalise=False), wave).arrays["feature"] for wave in (samples, samples / 4 + 0.3)]
    assert (raw[0] - raw[1]).norm() / raw[0].norm() > 0.1


@pytest.mark.parametrize("num_samples", [0, 1, 399])
def test_shorter_than_a_step_is_empty(num_samples):
    result = run(ready(), speech(num_samples))
    assert (result.empty, dict(result.arrays), result.notes) == ("too_short", {}, {"samples": num_samples})


@pytest.mark.parametrize(("architecture", "width"), [("xlarge", 1280), ("large", 1024), ("base", 768), ("small", 64)])
def test_width_is_known_without_weights(architecture, width):
    feature, centre_s = Hubert(HubertConfig(architecture=architecture)).outputs
    assert (feature.sizes, feature.dtype) == ((width,), "float16")
    assert (centre_s.sizes, centre_s.dtype) == ((), "float64")


def test_xlarge_has_the_published_number_of_parameters():
    """962,493,824 without biases in the convolutions; the mask vector among them is not built here."""
    model = hubert.build("xlarge", conv_bias=False)
    assert sum(parameter.numel() for parameter in model.parameters()) == 962_493_824 - 1280


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layer": 49}, "layer is 49, but architecture xlarge has layers 0 to 48"),
        ({"layer": -1}, "layer is -1"),
        ({"layer": "first"}, "layer"),
        ({"architecture": "huge"}, "architecture"),
    ],
)
def test_settings_that_do_not_fit_are_refused(wrong, message):
    with pytest.raises(ValidationError, match=message):
        HubertConfig(**wrong)


def save(folder, tensors=None, **config):
    """A folder as the hub has it, from transformers' own writer; ``config`` overrides its config.json."""
    model = transformers_model("small")
    model.save_pretrained(folder)
    if tensors is not None:
        (folder / "model.safetensors").unlink()
        torch.save(tensors, folder / "pytorch_model.bin")
    if config:
        found = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(found | config))
    return str(folder)


def old_names(tensors):
    """As transformers wrote a model with a head before torch's parametrizations."""
    weight_norm = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    renamed = {}
    for name, tensor in tensors.items():
        for new, old in weight_norm.items():
            name = name.replace(new, old)
        renamed[f"hubert.{name}"] = tensor
    return renamed


def test_hub_folders_load(tmp_path):
    """New and old names, prefix or none, mask vector or none, .safetensors and .bin: one and the same net."""
    expected = run(ready(), speech(4_000)).arrays["feature"]
    drawn = {name: torch.from_numpy(values) for name, values in hubert.random_weights("small").items()}
    folders = [
        save(tmp_path / "new"),
        save(tmp_path / "old", old_names(drawn | {"masked_spec_embed": torch.zeros(64)})),
        save(tmp_path / "half", {name: tensor.double() for name, tensor in drawn.items()}),
    ]
    for folder in folders:
        assert torch.equal(run(ready(weights=folder), speech(4_000)).arrays["feature"], expected), folder


def test_biases_in_the_convolutions_count(tmp_path):
    drawn = {name: torch.from_numpy(values) for name, values in hubert.random_weights("small").items()}
    zero = {f"feature_extractor.conv_layers.{i}.conv.bias": torch.zeros(32) for i in range(7)}
    expected = run(ready(), speech(4_000)).arrays["feature"]
    same = run(ready(weights=save(tmp_path / "zero", drawn | zero, conv_bias=True)), speech(4_000)).arrays["feature"]
    assert (same - expected).norm() / expected.norm() < 1e-5
    some = {name: torch.from_numpy(random.normal("bias", name, 32)).float() for name in zero}
    other = run(ready(weights=save(tmp_path / "some", drawn | some, conv_bias=True)), speech(4_000)).arrays["feature"]
    assert (other - expected).norm() / expected.norm() > 1e-2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_attention_heads": 2}, "config.json is not of architecture small: num_attention_heads 2, expected 4"),
        ({"conv_stride": [5, 2, 2, 2, 2, 2, 1]}, "conv_stride"),
        ({"hidden_act": "gelu_new"}, "hidden_act 'gelu_new', expected 'gelu'"),
    ],
)
def test_a_config_that_no_shape_shows_is_refused(tmp_path, config, message):
    with pytest.raises(WeightsError, match=message):
        ready(weights=save(tmp_path / "w", **config))


def test_tensors_that_do_not_fit_are_refused(tmp_path):
    drawn = {name: torch.from_numpy(values) for name, values in hubert.random_weights("small").items()}
    folder = save(tmp_path / "head", drawn | {"lm_head.weight": torch.zeros(2)})
    with pytest.raises(WeightsError, match=r"1 unexpected \(lm_head.weight\)"):
        ready(weights=folder)
    del drawn["encoder.layer_norm.bias"]
    with pytest.raises(WeightsError, match=r"1 missing \(encoder.layer_norm.bias\)"):
        ready(weights=save(tmp_path / "less", drawn))


def test_a_config_that_is_no_json_is_refused(tmp_path):
    folder = save(tmp_path / "w")
    (tmp_path / "w" / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"cannot read .*config\.json"):
        ready(weights=folder)
    (tmp_path / "w" / "config.json").write_text("[]")
    with pytest.raises(WeightsError, match="expected a JSON object"):
        ready(weights=folder)


def test_training_mode_would_change_nothing():
    """Masking, dropout and layer drop are off in the config, not only by eval mode."""
    stage = ready()
    expected = run(stage, speech(8_000)).arrays["feature"]
    stage._model.train()
    assert torch.equal(run(stage, speech(8_000)).arrays["feature"], expected)


def test_lengths_do_not_leak_into_each_other():
    """One stage, clips of rising and falling length: each as if alone."""
    stage = ready()
    for num_samples in itertools.chain((400, 4_000, 16_000), (4_000, 400)):
        alone = run(ready(), speech(num_samples)).arrays["feature"]
        assert torch.equal(run(stage, speech(num_samples)).arrays["feature"], alone)
