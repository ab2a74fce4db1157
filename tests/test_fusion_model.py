"""The network against the original's outputs, and against itself: what shares a batch must not matter."""

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from fusion.config import FusionConfig
from fusion.data import Sequences
from fusion.model import BiGRU, FusionModel

SIZES = {"swin": 49 * 768, "ghfeat": 14 * 1024, "ghfeat_context": 14 * 1024, "hubert": 1280, "roberta": 1024}
KINDS = {"swin": "frame", "ghfeat": "frame", "ghfeat_context": "context", "hubert": "steps", "roberta": "steps"}
PROJECT = {"swin": 512, "ghfeat": 128, "ghfeat_context": 64, "hubert": 64, "roberta": 64}

# Our names -> those of the original's SwinV2. A GRU layer and direction is a module here, a suffix there.
BRANCHES = {"swin": "static_proj_1", "ghfeat": "static_proj_3"}
ENCODERS = {
    "ghfeat_context": ("gh_feat_proj", "gh_feat_encoder"),
    "hubert": ("audio_proj", "audio_encoder"),
    "roberta": ("text_proj", "text_encoder"),
}
REPRESENTATIONS = BRANCHES | {name: encoder for name, (_, encoder) in ENCODERS.items()}


def original_names() -> dict[str, str]:
    names = {}
    for name, original in BRANCHES.items():
        names |= {f"branches.{name}.project.{part}": f"{original}.{part}" for part in ("weight", "bias")}
    for name, (project, encoder) in ENCODERS.items():
        names |= {f"branches.{name}.project.{part}": f"{project}.{part}" for part in ("weight", "bias")}
        for layer in (0, 1):
            for direction, suffix in (("forwards", ""), ("backwards", "_reverse")):
                for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                    ours = f"branches.{name}.encode.{direction}.{layer}.{part}_l0"
                    names[ours] = f"{encoder}.{part}_l{layer}{suffix}"
    for layer in (0, 2, 4):
        names |= {f"head.{layer}.{part}": f"classifier.{layer}.{part}" for part in ("weight", "bias")}
    return names | {f"head.2.{part}": f"classifier.2.{part}" for part in ("running_mean", "running_var")}


def normal(seed: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    bits = np.random.PCG64(zlib.crc32(f"{seed}:{name}".encode()))
    return np.random.Generator(bits).standard_normal(shape)


def golden_weight(name: str, z: np.ndarray) -> torch.Tensor:
    """The rule of golden/README.md, section abaw5_fusion."""
    if name.endswith("running_mean"):
        z = 0.3 + 0.1 * z
    elif name.endswith("running_var"):
        z = 0.3 * np.exp(0.2 * z)
    elif name == "classifier.2.weight":
        z = 1 + 0.1 * z
    elif z.ndim == 2:
        z = z * np.sqrt((2 if "_encoder." in name else 1) / z.shape[1])
    elif name == "classifier.4.bias":
        z = 0.1 * z - 0.5
    else:
        z = 0.1 * z
    return torch.from_numpy(z.astype(np.float32))


class Golden:
    """The original's inputs, weights and outputs, and our network holding those weights."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as file:
            self.values = {name: file[name] for name in file.files}
        self.seed = str(self.values["seed"])
        shapes = [tuple(int(n) for n in text.split("x")) for text in self.values["shapes"]]
        self.shapes = dict(zip(self.values["names"].tolist(), shapes, strict=True))
        self.first = dict(zip(self.values["names"].tolist(), self.values["first"].tolist(), strict=True))
        self.weights = {name: golden_weight(name, normal(self.seed, name, s)) for name, s in self.shapes.items()}
        inputs = {"swin": [self.normal("tokens", (3, 49, 768))], "ghfeat": [self.normal("gh", (3, 14, 1024))]}
        for name, key, sizes in (
            ("ghfeat_context", "context", (14, 1024)),
            ("hubert", "audio", (1280,)),
            ("roberta", "text", (1024,)),
        ):
            lengths = self.values[f"{key}_len"].tolist()
            inputs[name] = [self.normal(f"{key}/{i}", (n, *sizes)) for i, n in enumerate(lengths)]
        self.input_first = [part.flatten()[0].item() for parts in inputs.values() for part in parts]
        self.inputs = {name: [part.flatten(1) for part in parts] for name, parts in inputs.items()}

    def normal(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.from_numpy(normal(self.seed, name, shape).astype(np.float32))

    def model(self, *names: str) -> FusionModel:
        config = FusionConfig.model_validate({
            "modalities": {
                name: {"kind": KINDS[name], "instance": name, "array": "x", "project": PROJECT[name]} for name in names
            },
            "model": {"readout": "last_output", "missing": "zeros"},
        })
        model = FusionModel(SIZES, config).eval()
        state = {
            ours: self.weights[original] for ours, original in original_names().items() if ours in model.state_dict()
        }
        if len(names) < len(SIZES):  # the narrower heads of V0 and V1 are drawn under the same name
            shape = tuple(model.state_dict()["head.0.weight"].shape)
            state["head.0.weight"] = golden_weight(
                "classifier.0.weight", normal(self.seed, "classifier.0.weight", shape)
            )
        loaded = model.load_state_dict(state, strict=False)
        unset = {key for key in loaded.missing_keys if not key.endswith((".mean", ".scale", ".missing"))}
        assert (unset - {"head.2.num_batches_tracked"}, loaded.unexpected_keys) == (set(), [])
        return model

    def alone(self, *names: str) -> dict[str, Sequences]:
        return {name: sequences(self.inputs[name], KINDS[name]) for name in names}

    def padded(self, *names: str) -> dict[str, Sequences]:
        """As the original collates: zeros behind, which it reads like any other step."""
        found = {}
        for name in names:
            parts = self.inputs[name]
            if KINDS[name] != "frame":
                longest = max(len(part) for part in parts)
                parts = [torch.nn.functional.pad(part, (0, 0, 0, longest - len(part))) for part in parts]
            found[name] = sequences(parts, KINDS[name])
        return found


def sequences(parts: list[torch.Tensor], kind: str = "steps") -> Sequences:
    """One sequence per part; for ``frame`` one per row."""
    rows = torch.cat(parts)
    lengths = torch.ones(len(rows), dtype=torch.int64) if kind == "frame" else torch.tensor([len(p) for p in parts])
    return Sequences(rows, lengths, torch.arange(len(lengths)))


def relative(found: torch.Tensor, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found.detach().numpy() - expected) / np.linalg.norm(expected))


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> Golden:
    return Golden(golden_dir / "abaw5_fusion.npz")


def test_weights_and_inputs_are_generated_as_the_file_says(golden: Golden):
    assert golden.shapes.keys() == set(original_names().values())
    for name, first in golden.first.items():
        assert golden.weights[name].flatten()[0].item() == pytest.approx(first, rel=1e-6), name
    np.testing.assert_allclose(golden.input_first, golden.values["input_first"], rtol=1e-6)


@torch.inference_mode()
def test_logits_without_padding_are_the_originals(golden: Golden):
    logits = golden.model(*SIZES)(golden.alone(*SIZES), 3)
    assert relative(logits, golden.values["logits_alone"]) < 1e-5
    assert relative(logits, golden.values["logits"]) > 1e-2  # what padding did there


@torch.inference_mode()
def test_logits_and_parts_are_the_originals_when_fed_its_padding(golden: Golden):
    model, inputs = golden.model(*SIZES), golden.padded(*SIZES)
    assert relative(model(inputs, 3), golden.values["logits"]) < 1e-5
    for name, part in model.represent(inputs, 3).items():
        assert relative(part, golden.values[f"rep_{REPRESENTATIONS[name]}"]) < 1e-5, name


@pytest.mark.parametrize(
    ("names", "key"),
    [
        (("swin", "hubert", "roberta"), "logits_v0"),
        (("swin", "ghfeat", "hubert", "roberta"), "logits_v1"),
    ],
)
@torch.inference_mode()
def test_the_smaller_networks_of_the_original(golden: Golden, names, key):
    assert relative(golden.model(*names)(golden.padded(*names), 3), golden.values[key]) < 1e-5


# ---- the encoder against torch's own ---------------------------------------------------------------------------------


def reference(encoder: BiGRU, layers: int) -> torch.nn.GRU:
    """torch's bidirectional GRU with our weights."""
    first = encoder.forwards[0]
    other = torch.nn.GRU(first.input_size, encoder.hidden, layers, bidirectional=True)
    state = {}
    for layer in range(layers):
        for modules, suffix in ((encoder.forwards, ""), (encoder.backwards, "_reverse")):
            for key, value in modules[layer].state_dict().items():
                state[key.replace("_l0", f"_l{layer}{suffix}")] = value
    other.load_state_dict(state)
    return other


@pytest.mark.parametrize("readout", ["final_state", "last_output"])
@pytest.mark.parametrize("lengths", [[5, 1, 3, 5, 2], [4, 4, 4], [1], [7]])
def test_encoder_equals_a_bidirectional_gru_run_on_each_sequence_alone(readout, lengths):
    torch.manual_seed(0)
    encoder = BiGRU(6, 4, 3, dropout=0.0, readout=readout)
    parts = [torch.randn(length, 6) for length in lengths]
    rows = torch.cat(parts).requires_grad_()
    found = encoder(rows, torch.tensor(lengths))
    gru = reference(encoder, 3)
    expected = []
    for part in rows.split(lengths):
        output, state = gru(part[:, None])
        expected.append(torch.cat([state[-2, 0], state[-1, 0]]) if readout == "final_state" else output[-1, 0])
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-6)
    weights = torch.randn_like(found)
    ours = torch.autograd.grad((found * weights).sum(), rows)[0]
    theirs = torch.autograd.grad((torch.stack(expected) * weights).sum(), rows)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


# ---- standardisation and missing modalities --------------------------------------------------------------------------


def small(**settings) -> FusionModel:
    torch.manual_seed(1)
    config = FusionConfig.model_validate({
        "modalities": {
            "face": {"kind": "frame", "instance": "swin", "array": "feature", "project": 5},
            "sound": {"kind": "steps", "instance": "hubert", "array": "feature", "project": 4},
        },
        "model": {"hidden": 3, "head": 8, **settings},
    })
    model = FusionModel({"face": 6, "sound": 7}, config)
    torch.nn.init.normal_(model.head[2].running_mean)
    for name in model.branches:
        if model.branch(name).missing.requires_grad:
            torch.nn.init.normal_(model.branch(name).missing)
    return model


def batch_of(present: list[int], batch_size: int, *, sound: list[int]) -> dict[str, Sequences]:
    """``face`` rows for the samples of ``present``; ``sound`` lengths for every sample, 0 for none."""
    generator = torch.Generator().manual_seed(2)
    face = torch.randn(batch_size, 6, generator=generator)
    steps = [torch.randn(length, 7, generator=generator) for length in sound]
    heard = [i for i, length in enumerate(sound) if length]
    return {
        "face": Sequences(face[present], torch.ones(len(present), dtype=torch.int64), torch.tensor(present).long()),
        "sound": Sequences(
            torch.cat(steps), torch.tensor([sound[i] for i in heard]).long(), torch.tensor(heard).long()
        ),
    }


@torch.inference_mode()
def test_a_sample_has_the_same_logits_alone_as_in_a_batch():
    model = small().eval()
    lengths = [3, 9, 1, 9, 5]
    whole = batch_of([0, 1, 2, 4], 5, sound=lengths)
    logits = model(whole, 5)
    faces = dict(zip([0, 1, 2, 4], whole["face"].rows, strict=True))
    for i, steps in enumerate(whole["sound"].rows.split(lengths)):
        one = torch.tensor([0])
        face = faces[i][None] if i in faces else torch.empty(0, 6)
        alone = {
            "face": Sequences(face, torch.ones(len(face)).long(), one[: len(face)]),
            "sound": Sequences(steps, torch.tensor([len(steps)]), one),
        }
        torch.testing.assert_close(model(alone, 1)[0], logits[i], rtol=1e-5, atol=1e-6)


@torch.inference_mode()
def test_a_missing_modality_is_its_vector_and_not_a_row_of_zeros():
    model = small().eval()
    inputs = batch_of([0], 2, sound=[4, 0])
    parts = model.represent(inputs, 2)
    torch.testing.assert_close(parts["face"][1], model.branch("face").missing, rtol=0, atol=0)
    torch.testing.assert_close(parts["sound"][1], model.branch("sound").missing, rtol=0, atol=0)
    zeros = model.represent({**inputs, "face": Sequences(torch.zeros(2, 6), torch.ones(2).long(), torch.arange(2))}, 2)
    assert (zeros["face"][1] - parts["face"][1]).abs().max() > 0.1


def test_a_batch_without_any_row_of_a_modality():
    model = small().eval()
    logits = model(batch_of([], 2, sound=[0, 0]), 2)
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits[0], logits[1])


def test_the_missing_vector_is_learned_unless_zeros_are_asked_for():
    inputs = batch_of([0], 3, sound=[4, 2, 1])
    model = small(modality_dropout=0.0)
    model(inputs, 3).square().sum().backward()
    assert model.branch("face").missing.grad.abs().sum() > 0
    assert (model.branch("sound").missing.grad == 0).all()  # no sample lacks it
    zeros = small(missing="zeros")
    assert "branches.face.missing" not in dict(zeros.named_parameters())
    assert (zeros.eval().represent(inputs, 3)["face"][1] == 0).all()


def test_modality_dropout_replaces_that_share_of_samples_while_training():
    model = small(modality_dropout=0.25)
    n = 4000
    inputs = batch_of(list(range(n)), n, sound=[1] * n)
    torch.manual_seed(0)
    dropped = (model.represent(inputs, n)["face"] == model.branch("face").missing).all(dim=1)
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.03)  # 4 standard deviations
    model.eval()
    assert not (model.represent(inputs, n)["face"] == model.branch("face").missing).all(dim=1).any()


@torch.inference_mode()
def test_inputs_are_standardised_before_the_projection():
    model = small().eval()
    inputs = batch_of([0, 1], 2, sound=[1, 2])
    before = model(inputs, 2)
    shift, scale = 100 + 10 * torch.rand(6), 1 + torch.rand(6)
    model.branch("face").standardise_by(shift, scale)
    moved = Sequences(inputs["face"].rows * scale + shift, inputs["face"].lengths, inputs["face"].samples)
    torch.testing.assert_close(model({**inputs, "face": moved}, 2), before, rtol=1e-3, atol=1e-4)
