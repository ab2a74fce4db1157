"""Compiled blocks give what the blocks give, are compiled once and kept, and are left alone where that fails."""

import logging

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from extract.models import swin, timm
from extract.models.compiled import compiled, most_repeated
from extract.models.dense_push import PushedBlock, push
from extract.models.ghfeat import network as ghfeat_network
from extract.models.levers import Levered
from tests.levers import Block, call, graphs_made, planes, rrdb_net, tower, zeros

pytestmark = pytest.mark.usefixtures("compiled_folder")


class Waits(Block):
    def forward(self, x):
        return x * 2 if x.sum().item() > 0 else x


@pytest.mark.usefixtures("only_traced")
def test_blocks_of_one_shape_are_compiled_once():
    net = tower(4, 4, 4)
    twin = compiled(net, (Block,), call, zeros(2, 4))
    assert graphs_made() == 1
    with torch.inference_mode():
        given = torch.randn(2, 4)
        assert torch.equal(twin(given), net(given))
    assert graphs_made() == 1


@pytest.mark.usefixtures("only_traced")
def test_the_plain_network_stays_plain():
    """Batches of other shapes go through it, and would each be compiled anew."""
    net = tower(4, 4)
    twin = compiled(net, (Block,), call, zeros(2, 4))
    assert all(
        a is b for a, b in zip(net.parameters(), twin.parameters(), strict=True)
    )  # no second copy of the weights
    net(torch.zeros(3, 4))
    net(torch.zeros(5, 4))
    assert graphs_made() == 1


@pytest.mark.usefixtures("only_traced")
def test_more_shapes_than_torch_compiles_by_itself():
    """ResNet-50 has nine; torch stops at eight, and leaves the rest as it is without a word."""
    widths = range(2, 14)

    class Nets(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(Block(width) for width in widths)

        def forward(self, x):
            return torch.cat([block(x[:, : block.layer.in_features]) for block in self.blocks], dim=1)

    compiled(Nets().requires_grad_(False), (Block,), call, zeros(2, 14))
    assert graphs_made() == len(widths)


@pytest.mark.usefixtures("only_traced")
def test_a_network_without_such_blocks_is_not_compiled(caplog):
    assert compiled(tower(4), (), call, zeros(2, 4)) is None
    assert compiled(tower(4), (PushedBlock,), call, zeros(2, 4)) is None
    assert not caplog.records


def test_compiled_code_is_kept_beside_the_weights(compiled_folder):
    compiled(tower(4, 4), (Block,), call, zeros(2, 4))
    assert counters["inductor"]["fxgraph_cache_miss"] == 1
    assert any(compiled_folder.rglob("*.so"))
    torch._dynamo.reset()
    counters.clear()
    twin = compiled(tower(4, 4), (Block,), call, zeros(2, 4))
    assert twin is not None
    assert counters["inductor"]["fxgraph_cache_hit"] == 1
    assert counters["inductor"]["fxgraph_cache_miss"] == 0


def test_a_folder_that_the_user_named_is_left(monkeypatch, compiled_folder, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "mine"))
    compiled(tower(4), (Block,), call, zeros(2, 4))
    assert any((tmp_path / "mine").iterdir())
    assert not compiled_folder.exists()


def test_without_a_compiler_the_network_runs_as_it_is(caplog):
    """Warned once, not once per network."""
    net = tower(4, 4)
    with torch._inductor.config.patch("cpp.cxx", ("no-such-compiler",)), caplog.at_level(logging.WARNING, "extract"):
        ways = [Levered(net, call, (Block,), torch.zeros(2, 4), fast=True) for _ in range(2)]
    (record,) = caplog.records
    assert "torch.compile does not work here" in record.message
    assert "no-such-compiler" in record.message
    assert "is a C compiler (gcc) installed?" in record.message
    for way in ways:
        assert way.levers == {"compile": False, "graphs": False, "batch": 2}
        assert torch.equal(way(torch.ones(2, 4)), net(torch.ones(2, 4)))


@pytest.mark.usefixtures("only_traced")
def test_a_block_that_cannot_be_compiled_whole(caplog):
    net = tower(4, kind=Waits)
    with caplog.at_level(logging.WARNING, "extract"):
        assert compiled(net, (Waits,), call, zeros(2, 4)) is None
    assert "torch.compile does not work" in caplog.text
    assert "gcc" not in caplog.text  # which would not help


@pytest.mark.usefixtures("only_traced")
def test_a_full_memory_is_not_taken_for_a_missing_compiler():
    def full(_net, _x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        compiled(tower(4), (Block,), full, zeros(2, 4))


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("test_vit", "Block"),
        ("vit_small_patch14_dinov2", "Block"),
        ("resnet50", "Bottleneck"),
        ("convnext_tiny", "ConvNeXtBlock"),
        ("swin_tiny_patch4_window7_224", "SwinTransformerBlock"),
        ("efficientnet_b0", "InvertedResidual"),
    ],
)
def test_what_timms_networks_repeat(architecture, kind):
    with torch.device("meta"):
        net = timm.build(architecture, 224)
    assert [found.__name__ for found in most_repeated(net)] == [kind]


def test_a_network_that_repeats_nothing():
    assert most_repeated(tower(4, 4)) == ()
    assert most_repeated(tower(4, 4, 4)) == (Block,)
    assert most_repeated(nn.Sequential(*(nn.Linear(2, 2) for _ in range(9)))) == ()  # layers, no blocks


def last(net, kind):
    return [module for module in net.modules() if isinstance(module, kind)][-1]


def pushed_block():
    net = rrdb_net(1)
    assert push(net)
    return last(net.to(memory_format=torch.channels_last), PushedBlock), planes(2, 8).repeat(1, 22, 1, 1)[:, :64]


def ghfeat_block(kind):
    tensors = {name: torch.from_numpy(values) for name, values in ghfeat_network.random_weights("small").items()}
    block = last(ghfeat_network.from_tensors("small", tensors, "test"), kind)
    return block, torch.randn(2, block.conv_a.in_channels, 4, 4).contiguous(memory_format=torch.channels_last)


def swin_block():
    """A shifted one, with a mask."""
    block = swin.build("tiny").layers[2].blocks[1]
    return filled(block), torch.randn(2, 14, 14, 384)


def vit_block():
    net = timm.build("test_vit", 64)
    return filled(last(net, most_repeated(net))), torch.randn(2, 17, 64)


def filled(block):
    """With numbers, which networks that wait for their file do not have."""
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.1)
    return block


BLOCKS = {
    "push": pushed_block,
    "basic": lambda: ghfeat_block(ghfeat_network.Basic),
    "bottleneck": lambda: ghfeat_block(ghfeat_network.Bottleneck),
    "swin": swin_block,
    "vit": vit_block,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_a_compiled_block_gives_what_the_block_gives(name):
    """In float32 on the CPU, by the real compiler; whole networks are compared on a GPU and by benchmarks.vision."""
    block, given = BLOCKS[name]()
    twin = compiled(nn.Sequential(block), (type(block),), call, given)
    assert twin is not None
    assert graphs_made() == 1
    with torch.inference_mode():
        found, expected = twin(given), block(given)
    assert found.stride() == expected.stride()
    assert (found - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize(
    ("name", "blocks", "kinds"),
    [
        ("ghfeat", 17, 9),  # four stages' first and other bottlenecks, and the fifth stage's
        ("swin", 12, 7),  # four stages, shifted or not; the last one has a single window
    ],
)
@pytest.mark.usefixtures("only_traced")
def test_of_the_published_networks_each_kind_is_compiled_once(name, blocks, kinds):
    """More kinds than torch compiles by itself: none is left out, none compiled twice."""
    with torch.device("meta"), torch.inference_mode():
        net = ghfeat_network.build("resnet50-256") if name == "ghfeat" else swin.build("tiny")
        given = torch.zeros(2, 3, *([256] * 2 if name == "ghfeat" else [224] * 2))
    repeated = ghfeat_network.BLOCKS if name == "ghfeat" else swin.blocks()
    forward = call if name == "ghfeat" else lambda net, x: net.forward_features(x)
    assert compiled(net, repeated, forward, given) is not None
    assert sum(isinstance(module, repeated) for module in net.modules()) == blocks
    assert graphs_made() == kinds
