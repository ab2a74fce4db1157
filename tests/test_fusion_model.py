"""The network against the original's outputs, and against itself: what shares a batch must not matter."""

import dataclasses
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from fusion.config import FusionConfig
from fusion.data import Rows
from fusion.model import LARGE_SHIFT, FusionModel, Projection

SIZES = {"swin": 49 * 768, "ghfeat": 14 * 1024, "ghfeat_context": 14 * 1024, "hubert": 1280, "roberta": 1024}
KINDS = {"swin": "frame", "ghfeat": "frame", "ghfeat_context": "context", "hubert": "steps", "roberta": "steps"}
PROJECT = {"swin": 512, "ghfeat": 128, "ghfeat_context": 64, "hubert": 64, "roberta": 64}

# Our names -> those of the original's SwinV2. A GRU layer is a module here, a suffix there.
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
            for suffix in ("", "_reverse"):
                for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                    ours = f"branches.{name}.encode.layers.{layer}.{part}_l0{suffix}"
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
            "model": {"readout": "last_output", "missing": "zero_output"},
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

    def alone(self, *names: str) -> dict[str, Rows]:
        return {name: sequences(self.inputs[name], KINDS[name]) for name in names}

    def padded(self, *names: str) -> dict[str, Rows]:
        """As the original collates: zeros behind, which it reads like any other step."""
        found = {}
        for name in names:
            parts = self.inputs[name]
            if KINDS[name] != "frame":
                longest = max(len(part) for part in parts)
                parts = [torch.nn.functional.pad(part, (0, 0, 0, longest - len(part))) for part in parts]
            found[name] = sequences(parts, KINDS[name])
        return found


GARBAGE = 1e4
"""What lies below a sequence's end: no result may depend on it."""


def sequences(parts: list[torch.Tensor], kind: str = "steps") -> Rows:
    """One sequence per part; for ``frame`` one per row."""
    parts = [row[None] for part in parts for row in part] if kind == "frame" else parts
    longest = max(1, *(len(part) for part in parts))
    square = torch.full((longest, len(parts), parts[0].shape[1]), GARBAGE)
    for column, part in enumerate(parts):
        square[: len(part), column] = part
    lengths = torch.tensor([len(part) for part in parts])
    times = torch.linspace(-1, 1, longest)[:, None].expand(longest, len(parts))
    return Rows(square.flatten(0, 1), lengths, (longest, len(parts)), None, times)


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
    logits = golden.model(*SIZES)(golden.alone(*SIZES))
    assert relative(logits, golden.values["logits_alone"]) < 1e-5
    assert relative(logits, golden.values["logits"]) > 1e-2  # what padding did there


@torch.inference_mode()
def test_logits_and_parts_are_the_originals_when_fed_its_padding(golden: Golden):
    model, inputs = golden.model(*SIZES), golden.padded(*SIZES)
    assert relative(model(inputs), golden.values["logits"]) < 1e-5
    for name, part in model.represent(inputs).items():
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
    assert relative(golden.model(*names)(golden.padded(*names)), golden.values[key]) < 1e-5


# ---- standardisation and missing modalities --------------------------------------------------------------------------


def small(**settings) -> FusionModel:
    torch.manual_seed(1)
    config = FusionConfig.model_validate({
        "modalities": {
            "face": {"kind": "frame", "instance": "swin", "array": "feature", "project": 5},
            "sound": {"kind": "steps", "instance": "hubert", "array": "feature", "project": 4},
        },
        "model": {"hidden": 3, "head": 8, "width": 8, "heads": 2, **settings},
    })
    model = FusionModel({"face": 6, "sound": 7}, config)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.normal_(module.running_mean)
    for name, parameter in model.named_parameters():
        if name.endswith("missing"):
            torch.nn.init.normal_(parameter)
    return model


def batch_of(present: list[int], batch_size: int, *, sound: list[int]) -> dict[str, Rows]:
    """``face`` rows for the samples of ``present``; ``sound`` lengths for every sample, 0 for none."""
    generator = torch.Generator().manual_seed(2)
    face = torch.randn(batch_size, 6, generator=generator)
    steps = [torch.randn(length, 7, generator=generator) for length in sound]
    return {
        "face": sequences([face[i : i + 1] if i in present else face[:0] for i in range(batch_size)]),
        "sound": sequences(steps),
    }


def only(inputs: dict[str, Rows], i: int) -> dict[str, Rows]:
    """One sample of a batch, on rectangles of its own."""
    found = {}
    for name, rows in inputs.items():
        length = int(rows.lengths[i])
        column = rows.values.view(*rows.shape, -1)[:length, i]
        found[name] = sequences([column])
        times = rows.times[: max(1, length), i : i + 1]
        found[name] = dataclasses.replace(found[name], times=times)
    return found


@pytest.mark.parametrize("kind", ["branches", "transformer"])
@pytest.mark.parametrize("missing", ["learned", "zero_input", "zero_output"])
@torch.inference_mode()
def test_a_sample_has_the_same_logits_alone_as_in_a_batch(kind, missing):
    model = small(kind=kind, missing=missing).eval()
    whole = batch_of([0, 1, 2, 4], 5, sound=[3, 9, 1, 9, 0])
    logits = model(whole)
    for i in range(5):
        torch.testing.assert_close(model(only(whole, i))[0], logits[i], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["branches", "transformer"])
@torch.inference_mode()
def test_distinct_rows_and_projected_rows_are_the_same_rows(kind):
    """``place`` says which row lies where; projecting before or after changes nothing."""
    model = small(kind=kind).eval()
    inputs = batch_of([0, 1], 3, sound=[4, 2, 0])
    expected = model(inputs)
    sound = inputs["sound"]
    order = torch.randperm(len(sound.values))
    place = torch.argsort(order)
    distinct = dataclasses.replace(sound, values=sound.values[order], place=place)
    torch.testing.assert_close(model({**inputs, "sound": distinct}), expected)
    projected = dataclasses.replace(distinct, values=model.projection("sound")(distinct.values), projected=True)
    torch.testing.assert_close(model({**inputs, "sound": projected}), expected)
    for how in ("zero_input", "missing"):
        one, other = (model({**inputs, "sound": rows}, {"sound": how}) for rows in (sound, projected))
        torch.testing.assert_close(one, other)
        assert (one[:2] - expected[:2]).abs().max() > 1e-3
        assert (how == "missing") == torch.allclose(one[2], expected[2])


@torch.inference_mode()
def test_a_missing_modality_is_its_vector_and_not_a_row_of_zeros():
    model = small().eval()
    inputs = batch_of([0], 2, sound=[4, 0])
    parts = model.represent(inputs)
    torch.testing.assert_close(parts["face"][1], model.branch("face").missing, rtol=0, atol=0)
    torch.testing.assert_close(parts["sound"][1], model.branch("sound").missing, rtol=0, atol=0)
    zeros = model.represent({**inputs, "face": sequences([torch.zeros(2, 6)], "frame")})
    assert (zeros["face"][1] - parts["face"][1]).abs().max() > 0.1


@torch.inference_mode()
def test_zero_input_is_what_the_branch_makes_of_one_row_of_zeros():
    """The paper's way, also for standardised features: the row of zeros goes through all that a row goes through."""
    model = small(missing="zero_input").eval()
    for name, size in (("face", 6), ("sound", 7)):
        model.projection(name).standardise_by(torch.rand(size), 1 + torch.rand(size))
    absent = model.represent(batch_of([0], 2, sound=[4, 0]))
    zeros = {"face": sequences([torch.zeros(2, 6)], "frame"), "sound": sequences([torch.zeros(1, 7)] * 2)}
    given = model.represent(zeros)
    for name in ("face", "sound"):
        torch.testing.assert_close(absent[name][1], given[name][1])
    assert absent["face"][1].abs().max() > 0.01


def test_a_batch_without_any_row_of_a_modality():
    model = small().eval()
    logits = model(batch_of([], 2, sound=[0, 0]))
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits[0], logits[1])


def test_the_missing_vector_is_learned_unless_zeros_are_asked_for():
    inputs = batch_of([0], 3, sound=[4, 2, 1])
    model = small(modality_dropout=0.0)
    model(inputs).square().sum().backward()
    assert model.branch("face").missing.grad.abs().sum() > 0
    assert (model.branch("sound").missing.grad == 0).all()  # no sample lacks it
    zeros = small(missing="zero_output")
    assert "branches.face.missing" not in dict(zeros.named_parameters())
    assert (zeros.eval().represent(inputs)["face"][1] == 0).all()


@pytest.mark.parametrize("kind", ["branches", "transformer"])
def test_rows_that_stand_for_nothing_get_no_gradient(kind):
    model = small(kind=kind, modality_dropout=0.0)
    inputs = batch_of([0], 3, sound=[4, 2, 0])
    for rows in inputs.values():
        rows.values.requires_grad_()
    model(inputs).square().sum().backward()
    for rows in inputs.values():
        inside = torch.arange(rows.shape[0])[:, None] < rows.lengths
        gradient = rows.values.grad.view(*rows.shape, -1).abs().sum(-1)
        assert (gradient[~inside] == 0).all()
        assert (gradient[inside] > 0).all()


def test_modality_dropout_replaces_that_share_of_samples_while_training():
    model = small(modality_dropout=0.25)
    n = 4000
    inputs = batch_of(list(range(n)), n, sound=[1] * n)
    torch.manual_seed(0)
    dropped = (model.represent(inputs)["face"] == model.branch("face").missing).all(dim=1)
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.03)  # 4 standard deviations
    model.eval()
    assert not (model.represent(inputs)["face"] == model.branch("face").missing).all(dim=1).any()


@torch.inference_mode()
def test_inputs_are_standardised_before_the_projection():
    model = small().eval()
    inputs = batch_of([0, 1], 2, sound=[1, 2])
    before = model(inputs)
    shift, scale = 100 + 10 * torch.rand(6), 1 + torch.rand(6)
    model.projection("face").standardise_by(shift, scale)
    moved = dataclasses.replace(inputs["face"], values=inputs["face"].values * scale + shift)
    torch.testing.assert_close(model({**inputs, "face": moved}), before, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("ratio", [0.0, 3.0, LARGE_SHIFT / 2, LARGE_SHIFT * 100])
def test_the_folded_projection_is_the_plain_one(ratio):
    """Against float64, with means of so many deviations; beyond LARGE_SHIFT a folded mean would cancel."""
    torch.manual_seed(0)
    project = Projection(50, 8)
    deviation = torch.rand(50) + 0.5
    mean = ratio * deviation
    project.standardise_by(mean, deviation)
    rows = (mean + deviation * torch.randn(20, 50)).requires_grad_()
    expected = torch.nn.functional.linear(
        (rows.double() - mean.double()) / deviation.double(), project.weight.double(), project.bias.double()
    )
    found = project(rows)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=2e-3)
    ours, theirs = (torch.autograd.grad(out.sum(), project.weight, retain_graph=True)[0] for out in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=5e-3 * max(1.0, ratio / LARGE_SHIFT))


def test_a_loaded_projection_is_standardised_as_the_saved_one():
    project, other = Projection(5, 3), Projection(5, 3)
    project.standardise_by(torch.rand(5), 1 + torch.rand(5))
    other.load_state_dict(project.state_dict())
    rows = torch.randn(4, 5)
    torch.testing.assert_close(other(rows), project(rows), rtol=0, atol=0)


# ---- the order of modalities, and the small baselines ----------------------------------------------------------------


@torch.inference_mode()
def test_the_order_of_modalities_changes_nothing():
    """With the head's columns in the order of the branches."""
    model = small().eval()
    inputs = batch_of([0, 2], 3, sound=[3, 1, 0])
    other = small().eval()
    other.load_state_dict(model.state_dict())
    other.branches = torch.nn.ModuleDict({name: other.branches[name] for name in reversed([*other.branches])})
    face, sound = (model.branch(name).width for name in ("face", "sound"))
    other.head[0].weight.copy_(torch.cat(model.head[0].weight.split([face, sound], dim=1)[::-1], dim=1))
    torch.testing.assert_close(other(inputs), model(inputs), rtol=1e-6, atol=1e-6)
    joint = small(kind="transformer").eval()
    expected = joint(inputs)
    joint.tokens = torch.nn.ModuleDict({name: joint.tokens[name] for name in reversed([*joint.tokens])})
    torch.testing.assert_close(joint(inputs), expected, rtol=1e-5, atol=1e-6)


@torch.inference_mode()
def test_linear_and_mlp_are_what_their_names_say():
    for kind in ("linear", "mlp"):
        config = FusionConfig.model_validate({
            "modalities": {"face": {"kind": "frame", "instance": "swin", "array": "feature"}},
            "model": {"kind": kind, "head": 8},
        })
        model = FusionModel({"face": 6}, config).eval()
        rows = torch.randn(4, 6)
        project = model.projection("face")
        hidden = rows @ project.weight.T + project.bias
        expected = hidden if kind == "linear" else model.head[2](hidden.clamp(min=0))
        torch.testing.assert_close(model({"face": sequences([rows], "frame")}), expected)
        assert expected.shape == (4, 12)
