"""The encoder against the original TensorFlow graph's values, and against itself with each known mistake."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from extract.models.ghfeat import levels, network, official
from extract.models.ghfeat.levels import level_slices, num_values, unfold
from extract.stages.ghfeat import SIZES
from tests.golden_nets import drawn, ghfeat_rule

TOLERANCE = 2e-5
"""Relative L2 distance per picture (tests/golden: README of the golden values)."""


@pytest.fixture(scope="module")
def golden(golden_dir):
    return np.load(golden_dir / "ghfeat.npz")


@pytest.fixture(scope="module")
def tensors(golden):
    return official.from_tensorflow(drawn(golden, ghfeat_rule), "resnet50-256", "golden")


@pytest.fixture(scope="module")
def encoder(tensors):
    return network.from_tensors("resnet50-256", tensors, "golden").to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def pictures(golden):
    return torch.from_numpy(golden["image"]).permute(0, 3, 1, 2).float() / 255 * 2 - 1


def run(encoder, pictures):
    with torch.inference_mode():
        return encoder(pictures.contiguous(memory_format=torch.channels_last))


def distances(found, golden):
    """Relative L2 distance of every picture."""
    apart = np.linalg.norm((found.numpy() - golden["output"]).reshape(len(found), -1), axis=1)
    return apart / np.linalg.norm(golden["output"].reshape(len(found), -1), axis=1)


def test_the_original_graphs_values(encoder, pictures, golden):
    found = unfold(run(encoder, pictures))
    assert found.shape == (3, 14, 1024)
    assert distances(found, golden).max() <= TOLERANCE
    worst = np.abs(found.numpy() - golden["output"]).max(axis=(1, 2))
    assert (worst <= 1e-4 * np.abs(golden["output"]).max(axis=(1, 2))).all()


def test_the_maps_on_the_way(encoder, pictures, golden):
    """So that a failure above says where it begins."""
    with torch.inference_mode():
        maps = {"stem": encoder.stem(pictures)}
        x, found = maps["stem"], []
        for stage in encoder.stages:
            x = stage(x)
            found.append(x)
        maps |= dict(zip(("res4", "res5", "res6"), found[2:], strict=True))
        maps["P_2"] = encoder.fpn(found[2:])[2]
    for name, values in maps.items():
        near = {"rtol": 1e-4, "atol": 1e-4 * float(values.abs().max())}
        np.testing.assert_allclose(values.mean(dim=(2, 3)).numpy(), golden[f"{name}_channel_mean"], **near)
        np.testing.assert_allclose(values[:, :8, :4, :4].numpy(), golden[f"{name}_corner"], **near)


def test_folding_the_norms_changes_rounding_only(tensors, encoder, pictures):
    model = network.build("resnet50-256")
    whole = {name: torch.zeros((), dtype=torch.long) for name in model.state_dict() if "tracked" in name}
    model.load_state_dict(whole | tensors, assign=True)
    with torch.inference_mode():
        unfolded = model(pictures)
    assert (run(encoder, pictures) - unfolded).norm() / unfolded.norm() <= 1e-5
    assert not any(isinstance(part, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d) for part in encoder.modules())


# ---- each mistake of the golden values' table, tried: the comparison above must see it ------------------------------


def symmetric(kernel_of, pads):
    plain = network.same_padding
    return lambda size, kernel, stride: pads if (kernel, stride) == kernel_of else plain(size, kernel, stride)


def stem(activation, pool):
    return lambda self, x: pool(activation(self.norm(self.conv(x))))


def leaky(x):
    return functional.leaky_relu(x, 0.2)


def max_pool(x):
    return functional.max_pool2d(x, 3, 2, ceil_mode=True)


def fuse_first(self, maps):
    fused = [
        functional.avg_pool2d(conv(x), 1 << (2 - i)) for i, (conv, x) in enumerate(zip(self.fuse, maps, strict=True))
    ]
    return [x + fused[-1] for x in fused[:-1]] + fused[-1:]


def nothing_added(self, maps):
    pooled = [functional.avg_pool2d(x, 1 << (2 - i)) for i, x in enumerate(maps)]
    return [conv(x) for conv, x in zip(self.fuse, pooled, strict=True)]


def channels_last(self, x):
    return self.norm(self.fc(x.permute(0, 2, 3, 1).flatten(1)))


PATCHES = {
    "stem padded 3/3": (network, "same_padding", symmetric((7, 2), (3, 3))),
    "3x3 stride 2 padded 1/1": (network, "same_padding", symmetric((3, 2), (1, 1))),
    "max-pool padded 1/1": (network.Stem, "forward", stem(leaky, lambda x: functional.max_pool2d(x, 3, 2, 1))),
    "ReLU in the stem": (network.Stem, "forward", stem(functional.relu, max_pool)),
    "fuse conv before pooling": (network.Alignment, "forward", fuse_first),
    "F_2 not added": (network.Alignment, "forward", nothing_added),
    "flattened H, W, C": (network.Head, "forward", channels_last),
}


def is_seen(found, golden):
    """Whether at least one picture is far beyond the tolerance."""
    return distances(found, golden).max() > 10 * TOLERANCE


@pytest.mark.parametrize("mistake", PATCHES)
def test_a_mistake_in_the_graph_is_seen(encoder, pictures, golden, monkeypatch, mistake):
    monkeypatch.setattr(*PATCHES[mistake])
    assert is_seen(unfold(run(encoder, pictures)), golden)


def test_a_mistake_in_the_strides_is_seen(encoder, pictures, golden):
    blocks = [part for part in encoder.modules() if isinstance(part, network.Bottleneck) and part.conv_b.stride[0] == 2]
    assert len(blocks) == 4
    try:
        for block in blocks:
            block.conv_a.stride, block.conv_b.stride = (2, 2), (1, 1)
        assert is_seen(unfold(run(encoder, pictures)), golden)
    finally:
        for block in blocks:
            block.conv_a.stride, block.conv_b.stride = (1, 1), (2, 2)


def test_another_epsilon_is_seen(tensors, pictures, golden, monkeypatch):
    monkeypatch.setattr(network, "BN_EPS", 1e-3)
    assert is_seen(unfold(run(network.from_tensors("resnet50-256", tensors, "golden"), pictures)), golden)


def test_biases_left_out_are_seen(tensors, pictures, golden):
    of_convs = {n: torch.zeros_like(t) for n, t in tensors.items() if ".conv_" in n and n.endswith(".bias")}
    assert len(of_convs) == 17 * 3
    assert is_seen(unfold(run(network.from_tensors("resnet50-256", tensors | of_convs, "golden"), pictures)), golden)


def test_mistakes_around_the_network_are_seen(encoder, pictures, golden):
    code = run(encoder, pictures)
    places = list(zip(level_slices(), levels.COPIES, strict=True))
    padded = [functional.pad(code[:, at], (0, 1024 - (at.stop - at.start))) for at, _ in places]
    interleaved = [code[:, at].repeat_interleave(copies, dim=1) for at, copies in places]
    assert is_seen(torch.stack(padded, dim=1), golden)
    assert is_seen(torch.stack(interleaved, dim=1), golden)
    assert is_seen(unfold(run(encoder, pictures.flip(1))), golden)  # BGR


# ---- sizes and levels ----------------------------------------------------------------------------------------------


def test_sizes_are_the_released_ones():
    shapes = network.shapes("resnet50-256")
    assert len(shapes) == 372
    assert sum(math.prod(shape) for shape in shapes.values()) == 151_850_304


@pytest.mark.parametrize("architecture", network.ARCHITECTURES)
def test_the_stage_knows_the_sizes(architecture):
    """It names them itself, so that planning needs no torch."""
    sizes = network.ARCHITECTURES[architecture]
    assert SIZES[architecture] == (sizes.image_px, sizes.level)
    with torch.device("meta"):
        picture = torch.empty(2, 3, sizes.image_px, sizes.image_px)
    assert network.build(architecture)(picture).shape == (2, num_values(sizes.level))


@pytest.mark.parametrize(("size", "kernel", "stride"), [(256, 7, 2), (128, 3, 2), (33, 3, 2), (5, 1, 2), (9, 3, 1)])
def test_same_padding_gives_a_row_per_stride(size, kernel, stride):
    before, after = network.same_padding(size, kernel, stride)
    assert (size + before + after - kernel) // stride + 1 == -(-size // stride)
    assert after - before in {0, 1}


def test_unfold_tiles_every_level():
    code = torch.arange(9984.0)
    full = unfold(torch.stack([code, -code]))
    assert full.shape == (2, 14, 1024)
    assert num_values() == 9984
    for level, (at, copies) in enumerate(zip(level_slices(), levels.COPIES, strict=True)):
        assert torch.equal(full[0, level], code[at].repeat(copies))
    assert [at.start for at in level_slices()[8:]] == [8192, 8704, 9216, 9472, 9728, 9856]
    assert torch.equal(full[1], -full[0])
    assert unfold(torch.zeros(5, 624)).shape == (5, 14, 64)  # the demo's small encoder


@pytest.mark.parametrize("size", [0, 1, 77, 9983, 14336])
def test_unfold_refuses_what_is_no_code(size):
    with pytest.raises(ValueError, match=f"{size} values are no GH-Feat code; the published encoder's has 9984"):
        unfold(torch.zeros(2, size))
