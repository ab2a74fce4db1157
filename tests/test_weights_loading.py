"""From files to networks: nothing is drawn first, nothing is there twice, and the numbers are the file's."""

import copy
import weakref
from collections import Counter
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from extract.errors import WeightsError
from extract.models import hubert, random, roberta, speech, swin
from extract.models import timm as encoders
from extract.stage import Context
from extract.stages.hubert import Hubert, HubertConfig
from extract.stages.roberta import Roberta, RobertaConfig
from extract.stages.swin import Swin, SwinConfig
from extract.stages.timm import Timm, TimmConfig
from extract.weights.files import Weights
from extract.weights.loading import fill
from extract.weights.resolving import resolve
from extract.weights.unfilled import unfilled
from tests.contract import CPU

DRAWING = ("normal", "uniform", "rand", "bernoulli", "exponential", "cauchy", "erfinv")


class Drawn(TorchDispatchMode):
    """Counts the random numbers that are drawn where memory is: not on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = func.name().removeprefix("aten::")
        if name.startswith(DRAWING) and isinstance(found, torch.Tensor) and not found.is_meta:
            self.numbers += found.numel()
        return found


BUILT = {
    "hubert": lambda: hubert.build("xlarge", conv_bias=True),
    "roberta": lambda: roberta.build("large"),
    "wavlm": lambda: speech.build("wavlm", {}),
    "data2vec": lambda: speech.build("data2vec", {}),
    "swin": lambda: swin.build("tiny"),
    "timm": lambda: encoders.build("vit_small_patch14_dinov2", 224),
}


@pytest.mark.parametrize("name", BUILT)
def test_nothing_is_drawn_for_parameters_that_a_file_fills(name):
    """HuBERT x-large has a billion of them."""
    before = torch.get_rng_state()
    with Drawn() as drawn:
        model = BUILT[name]()
    numbers = sum(parameter.numel() for parameter in model.parameters())
    assert numbers > 20_000_000
    assert drawn.numbers == 0
    assert torch.equal(torch.get_rng_state(), before)


def test_only_what_writes_into_a_parameter_does_nothing():
    before = torch.get_rng_state()
    with unfilled():
        parameter = nn.Parameter(torch.full((3,), 2.0))
        assert parameter.data_ptr() == nn.init.uniform_(parameter).data_ptr() == parameter.zero_().data_ptr()
        plain = torch.zeros(3).normal_() + torch.randn(3)
        parameter.requires_grad_(False)
    assert (parameter.tolist(), parameter.requires_grad) == ([2.0] * 3, False)
    assert plain.all()
    assert torch.equal(torch.get_rng_state(), before)


ARCHITECTURES = (
    "swin_tiny_patch4_window7_224",
    "vit_tiny_patch16_224",
    "beit_base_patch16_224",
    "eva02_tiny_patch14_224",
    "convnext_atto",
    "resnet18",
    "maxvit_nano_rw_256",
)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_network_built_unfilled_and_filled_is_the_plain_one(architecture):
    """Every buffer too: tables of indices, masks and rotations that no file holds, counters of batches."""
    plain = timm.create_model(architecture, num_classes=0).eval()
    given = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    with unfilled():
        model = timm.create_model(architecture, num_classes=0).eval()
    fill(model, given, architecture)
    for kind in ("named_parameters", "named_buffers"):
        found, expected = dict(getattr(model, kind)()), dict(getattr(plain, kind)())
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name
            assert found[name].requires_grad == tensor.requires_grad, name
    side = plain.pretrained_cfg["input_size"][-1]
    picture = torch.from_numpy(random.normal("picture", "x", (1, 3, side, side)).astype(np.float32))
    with torch.inference_mode():
        assert torch.equal(model(picture), plain(picture))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("table", torch.arange(5.0), persistent=False)


def small(seed: int = 0) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tensors = copy.deepcopy(Small().state_dict())
    tensors["norm.num_batches_tracked"] += 7
    return dict(tensors)


@pytest.mark.parametrize("kind", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("precision", [None, torch.float32, torch.float16, torch.bfloat16])
def test_numbers_are_those_of_a_float32_network_that_is_brought_to_the_precision(kind, precision):
    """Through float32 on the way, whatever the file holds; whole numbers stay whole."""
    tensors = {name: tensor.to(kind) if tensor.is_floating_point() else tensor for name, tensor in small().items()}
    tensors["linear.weight"][0, 0] = 1 + 2**-11 + 2**-40  # rounded to float32 and then to float16: 1
    plain = Small()
    plain.load_state_dict(tensors)
    plain.to(CPU, precision)
    with torch.device("meta"):
        model = Small()
    model.register_buffer("table", torch.arange(5.0), persistent=False)
    fill(model, tensors, "w", CPU, precision)
    for found, expected in zip(
        (*model.parameters(), *model.buffers()), (*plain.parameters(), *plain.buffers()), strict=True
    ):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


def test_a_filled_network_owns_its_numbers(tmp_path):
    """A file that is written anew in its place changes nothing; strided tensors become plain ones."""
    save_file(small(0), tmp_path / "w.safetensors")
    tensors = Weights("w", "", "", "", path=tmp_path / "w.safetensors").tensors()
    tensors["linear.weight"] = tensors["linear.weight"].t().contiguous().t()
    with unfilled():
        model = Small()
    fill(model, tensors, "w")
    (tmp_path / "w.safetensors").write_bytes(safetensors.torch.save(small(1)))
    assert model.linear.weight.is_contiguous()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in small(0).items())


def test_no_tensor_is_there_twice(monkeypatch):
    """Counted whenever memory is taken: what is read and not yet placed, and what is placed."""
    tensors = {f"{i}.weight": torch.ones(100, 100) for i in range(20)}
    total, one = 20 * 10_000, 10_000
    waiting: Counter[str] = Counter({name: tensor.numel() for name, tensor in tensors.items()})
    for name, tensor in tensors.items():
        weakref.finalize(tensor, waiting.pop, name)
    placed, most = 0, 0
    real = torch.empty

    def counted(*arguments: Any, **more: Any) -> torch.Tensor:
        nonlocal placed, most
        found: torch.Tensor = real(*arguments, **more)
        placed += found.numel()
        most = max(most, placed + waiting.total())
        return found

    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(100, 100, bias=False) for _ in range(20)))
    del tensor
    monkeypatch.setattr(torch, "empty", counted)
    fill(model, tensors, "w")
    monkeypatch.undo()
    assert not tensors
    assert (placed, waiting.total()) == (total, 0)
    assert most <= total + one


def test_a_file_that_lacks_or_has_more_is_refused_before_a_tensor_is_taken():
    tensors = small() | {"more": torch.zeros(1)}
    del tensors["linear.bias"]
    with torch.device("meta"):
        model = Small()
    with pytest.raises(WeightsError, match=r"'w' do not fit: 1 missing \(linear.bias\); 1 unexpected \(more\)"):
        fill(model, tensors, "w")
    assert len(tensors) == len(small())
    assert model.linear.weight.is_meta


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_file_is_read_straight_onto_the_device(monkeypatch, tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    if suffix == ".bin":
        torch.save(small(), path)
    else:
        save_file(small(), path)
    asked = []

    def spy(module: Any, name: str, key: str) -> None:
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, **more: asked.append(more[key]) or real(*given, **more | here))
        here = {key: "cpu"}  # this machine may have no other

    spy(safetensors.torch, "load_file", "device")
    spy(torch, "load", "map_location")
    Weights("w", "", "", "", path=path).tensors(torch.device("cuda", 1))
    assert [str(device) for device in asked] == ["cuda:1"]


STAGES = {
    "hubert": lambda: Hubert(HubertConfig(weights="random", architecture="small")),
    "roberta": lambda: Roberta(RobertaConfig(weights="random", architecture="small")),
    "swin": lambda: Swin(SwinConfig(weights="random", architecture="small", resize=64, crop=64)),
    "timm": lambda: Timm(
        TimmConfig(
            architecture="resnet18",
            weights="random",
            image_px=64,
            interpolation="bilinear",
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
            pool="avg",
        )
    ),
}


def network(stage):
    return stage._network.net if hasattr(stage, "_network") else stage._model


@pytest.mark.parametrize("name", STAGES)
def test_stages_ask_for_their_device_and_precision_at_once(monkeypatch, name):
    """Not for a float32 network first: where the numbers are placed, they have the precision."""
    stage = STAGES[name]()
    taken = []
    real = torch.empty

    def counted(*arguments: Any, **more: Any) -> torch.Tensor:
        if more.get("device") == CPU and more["dtype"].is_floating_point:
            taken.append(more["dtype"])
        found: torch.Tensor = real(*arguments, **more)
        return found

    weights = resolve("random", stage)
    monkeypatch.setattr(torch, "empty", counted)
    stage.setup(Context(CPU, torch.bfloat16, weights))
    assert set(taken) == {torch.bfloat16}
    assert {parameter.dtype for parameter in network(stage).parameters()} == {torch.bfloat16}


def test_random_numbers_do_not_depend_on_the_threads_that_draw_them():
    shapes = {f"layer{i}.weight": (i + 1, 300) for i in range(40)}
    together = random.draw(shapes, "s")
    assert list(together) == list(shapes)
    for name, shape in shapes.items():
        assert np.array_equal(together[name], random.draw({name: shape}, "s")[name])
