"""The levers of the picture networks change no value beyond the gates here, and fall back to the plain way aloud."""

import json
import logging
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from extract.models import compiled as compiling
from extract.models import levers, swin, timm
from extract.models.compiled import compiled, most_repeated
from extract.models.dense_push import PushedBlock, push
from extract.models.ghfeat import network as ghfeat_network
from extract.models.levers import Levered
from extract.stage import Context
from extract.stages import superres
from extract.stages.ghfeat import Ghfeat, GhfeatConfig
from extract.stages.superres import Superres, SuperresConfig
from extract.stages.swin import Swin, SwinConfig
from extract.stages.timm import Timm, TimmConfig
from extract.weights.resolving import resolve
from tests.levers import FakeGraphs, planes, rrdb_net
from tests.stages.test_superres import compact_file, pictures
from tests.stages.test_swin import faces

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    """Nothing compiled before counts, and no variable stays."""
    monkeypatch.setenv("AU_FUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "put back at the end")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    compiling._warn.cache_clear()
    torch._dynamo.reset()
    counters.clear()
    return tmp_path / "cache" / "compiled"


@pytest.fixture
def only_traced(monkeypatch):
    """What torch.compile makes of a block is run by torch itself: no compiler, no seconds."""
    monkeypatch.setattr(compiling, "HOW", {"fullgraph": True, "dynamic": False, "backend": "eager"})


@pytest.fixture
def graphs(monkeypatch):
    fake = FakeGraphs()
    monkeypatch.setitem(levers.CAPTURES, "cpu", fake.capture)
    return fake


class Block(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x):
        return x + torch.tanh(self.layer(x))


class Waits(Block):
    def forward(self, x):
        return x * 2 if x.sum().item() > 0 else x


def call(net, x):
    return net(x)


def zeros(*shape):
    """An inference tensor, as all batches of the stages are."""
    with torch.inference_mode():
        return torch.zeros(shape)


def tower(*widths, kind=Block):
    torch.manual_seed(0)
    return nn.Sequential(*(kind(width) for width in widths)).eval().requires_grad_(False)


def graphs_made():
    return counters["stats"]["unique_graphs"]


# ---- compiled blocks -----------------------------------------------------------------------------------------------


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


def test_compiled_code_is_kept_beside_the_weights(cache_folder):
    compiled(tower(4, 4), (Block,), call, zeros(2, 4))
    assert counters["inductor"]["fxgraph_cache_miss"] == 1
    assert any(cache_folder.rglob("*.so"))
    torch._dynamo.reset()
    counters.clear()
    twin = compiled(tower(4, 4), (Block,), call, zeros(2, 4))
    assert twin is not None
    assert counters["inductor"]["fxgraph_cache_hit"] == 1
    assert counters["inductor"]["fxgraph_cache_miss"] == 0


def test_a_folder_that_the_user_named_is_left(monkeypatch, cache_folder, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "mine"))
    compiled(tower(4), (Block,), call, zeros(2, 4))
    assert any((tmp_path / "mine").iterdir())
    assert not cache_folder.exists()


def test_without_a_compiler_the_network_runs_as_it_is(caplog):
    """Warned once, not once per network."""
    net = tower(4, 4)
    with torch._inductor.config.patch("cpp.cxx", ("no-such-compiler",)), caplog.at_level(logging.WARNING, "extract"):
        ways = [Levered(net, call, (Block,), torch.zeros(2, 4), fast=True) for _ in range(2)]
    (record,) = caplog.records
    assert "torch.compile does not work on this machine" in record.message
    assert "no-such-compiler" in record.message
    for way in ways:
        assert way.levers == {"compile": False, "graphs": False, "batch": 2}
        assert torch.equal(way(torch.ones(2, 4)), net(torch.ones(2, 4)))


@pytest.mark.usefixtures("only_traced")
def test_a_block_that_cannot_be_compiled_whole(caplog):
    net = tower(4, kind=Waits)
    with caplog.at_level(logging.WARNING, "extract"):
        assert compiled(net, (Waits,), call, zeros(2, 4)) is None
    assert "torch.compile does not work" in caplog.text


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


# ---- which way a batch goes ----------------------------------------------------------------------------------------


def test_off_is_the_plain_way(graphs):
    way = Levered(tower(4), call, (Block,), torch.zeros(4, 4), fast=False)
    way(torch.zeros(4, 4))
    assert (graphs.captured, graphs_made()) == (0, 0)
    assert way.levers == {"compile": False, "graphs": False, "batch": 4}


@pytest.mark.usefixtures("only_traced")
def test_the_usual_batch_is_one_replay(graphs):
    rows = []

    def counting(net, x):
        rows.append(len(x))
        return net(x)

    net = tower(4, 4)
    way = Levered(net, counting, (Block,), torch.zeros(4, 4), fast=True)
    assert way.levers == {"compile": True, "graphs": True, "batch": 4}
    assert (graphs.captured, graphs.replays) == (1, 0)
    rows.clear()
    given = torch.randn(4, 4)
    assert torch.allclose(way(given), net(given))
    assert (graphs.replays, rows) == (1, [4])  # forwards per row: 1.00
    assert torch.allclose(way(given[:3]), net(given[:3]))  # filled up
    assert (graphs.replays, rows) == (2, [4, 4])
    assert torch.equal(way(given[:2]), net(given[:2]))  # half: as it is
    assert torch.equal(way(torch.ones(7, 4)), net(torch.ones(7, 4)))
    assert (graphs.replays, rows) == (2, [4, 4, 2, 7])


@pytest.mark.usefixtures("only_traced")
def test_what_goes_into_no_graph_is_called(monkeypatch, caplog):
    def refuse(_function, _given):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setitem(levers.CAPTURES, "cpu", refuse)
    net = tower(4)
    with caplog.at_level(logging.WARNING, "extract"):
        way = Levered(net, call, (Block,), torch.zeros(4, 4), fast=True)
    assert way.levers == {"compile": True, "graphs": False, "batch": 4}
    assert "Sequential does not go into a CUDA graph" in caplog.text
    assert "operation not permitted when stream is capturing" in caplog.text
    assert torch.equal(way(torch.ones(3, 4)), net(torch.ones(3, 4)))


@pytest.mark.usefixtures("only_traced")
def test_a_full_memory_during_the_capture_is_raised(monkeypatch):
    def full(_function, _given):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(levers.CAPTURES, "cpu", full)
    with pytest.raises(torch.OutOfMemoryError):
        Levered(tower(4), call, (Block,), torch.zeros(4, 4), fast=True)


# ---- the stages ----------------------------------------------------------------------------------------------------

ROWS = 4


def timm_config(**other):
    half = (0.5, 0.5, 0.5)
    given = {"image_px": 64, "interpolation": "bilinear", "mean": half, "std": half, "pool": "avg"}
    return TimmConfig(architecture="test_vit", weights="random", **(given | other))


def superres_batch(rows, side=24, seed=0):
    images = pictures(*[(side, side)] * rows, seed=seed)
    return {"crop.patch": images, "crop.patch_box": torch.zeros(rows, 4)}


STAGES = {
    "ghfeat": (
        lambda: Ghfeat(GhfeatConfig(weights="random", architecture="small")),
        lambda rows: {"align.image": faces(rows, side=64)},
        "code",
    ),
    "swin": (
        lambda: Swin(SwinConfig(weights="random", architecture="small", resize=70, crop=64)),
        lambda rows: {"crop.image": faces(rows, side=112)},
        "feature",
    ),
    "timm": (lambda: Timm(timm_config()), lambda rows: {"crop.image": faces(rows, side=112)}, "feature"),
}


def ready(stage, *, fast):
    stage.setup(Context(CPU, torch.float32, resolve(stage.config.weights, stage), compile=fast, batch=ROWS))
    return stage


def rrdb_file(folder: Path) -> Path:
    from safetensors.torch import save_file

    from extract.models import realesrgan

    path = folder / "rrdb.safetensors"
    save_file({name: torch.from_numpy(v) for name, v in realesrgan.random_weights(2).items()}, path)
    return path


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.usefixtures("only_traced")
def test_an_encoder_by_way_of_its_graph(name, graphs):
    """Full, partial and small batches: the values of the plain stage, one replay for a batch that is full enough."""
    make, batch, output = STAGES[name]
    plain, fast = ready(make(), fast=False), ready(make(), fast=True)
    assert plain.levers == {"compile": False, "graphs": False, "batch": ROWS}
    assert fast.levers == {"compile": True, "graphs": True, "batch": ROWS}
    assert json.loads(json.dumps(fast.levers)) == fast.levers
    for rows, replays in ((4, 1), (3, 2), (2, 2)):
        found, expected = (stage.compute(batch(rows))[output] for stage in (fast, plain))
        assert found.shape == expected.shape
        assert (found - expected).norm() <= 1e-5 * expected.norm()
        assert graphs.replays == replays


@pytest.mark.usefixtures("only_traced", "graphs")
def test_a_row_is_the_same_in_a_full_and_a_partial_batch():
    """To the bit: both are computed by the same kernels on the same number of rows."""
    stage = ready(STAGES["swin"][0](), fast=True)
    images = faces(4, side=112)
    full, partial = (stage.compute({"crop.image": images[:rows]})["feature"] for rows in (4, 3))
    assert torch.equal(full[:3], partial)


@pytest.mark.usefixtures("only_traced")
def test_superres_by_way_of_its_graph(graphs, monkeypatch, tmp_path):
    """Push form, and one replay for the pictures of the size that the network sees; others go the plain way."""
    weights = str(rrdb_file(tmp_path))
    config = SuperresConfig(weights=weights, input_px=24)
    plain = ready(Superres(config), fast=False)
    assert plain.levers == {"compile": False, "graphs": False, "batch": ROWS, "form": "pull"}
    monkeypatch.setattr(superres, "PUSHED_ON", frozenset({"cpu"}))
    fast = ready(Superres(config), fast=True)
    assert fast.levers == {"compile": True, "graphs": True, "batch": ROWS, "form": "push"}
    # Full; reduced to the usual size; filled up; another size; half a batch.
    cases = [(4, 24, 1), (4, 40, 1), (3, 24, 1), (4, 20, 0), (2, 24, 0)]
    for rows, side, replays in cases:
        before = graphs.replays
        found, expected = (torch.stack(s.compute(superres_batch(rows, side))["image"]) for s in (fast, plain))
        off = (found.int() - expected.int()).abs()
        assert off.max() <= 1
        assert (off > 0).float().mean() <= 1e-3
        assert graphs.replays - before == replays, (rows, side)


@pytest.mark.usefixtures("only_traced")
def test_pictures_of_mixed_sizes_keep_their_places(graphs, tmp_path):
    config = SuperresConfig(weights=str(rrdb_file(tmp_path)), input_px=24)
    plain, fast = ready(Superres(config), fast=False), ready(Superres(config), fast=True)
    given = {"crop.patch": pictures((24, 24), (20, 24), (24, 24), (24, 24)), "crop.patch_box": torch.ones(4, 4)}
    found, expected = fast.compute(given), plain.compute(given)
    assert graphs.replays == 1
    for here, there in zip(found["image"], expected["image"], strict=True):
        assert here.shape == there.shape
        assert (here.int() - there.int()).abs().max() <= 1
    assert torch.equal(found["box"], expected["box"])


@pytest.mark.usefixtures("graphs")
def test_a_compact_network_is_captured_but_not_compiled():
    fast = ready(Superres(SuperresConfig(weights=str(compact_file()), input_px=24)), fast=True)
    assert fast.levers == {"compile": False, "graphs": True, "batch": ROWS, "form": "pull"}


def test_lanczos_has_no_levers():
    stage = Superres(SuperresConfig(weights="lanczos"))
    stage.setup(Context(CPU, torch.float32, None, compile=True, batch=4))
    assert stage.levers == {}


def last(net, kind):
    return [module for module in net.modules() if isinstance(module, kind)][-1]


def pushed_block():
    net = rrdb_net(1)
    assert push(net)
    return last(net.to(memory_format=torch.channels_last), PushedBlock), planes(2, 8).repeat(1, 22, 1, 1)[:, :64]


def ghfeat_block(kind):
    net = ready(STAGES["ghfeat"][0](), fast=False)._network.net
    block = last(net, kind)
    return block, torch.randn(2, block.conv_a.in_channels, 4, 4).contiguous(memory_format=torch.channels_last)


def swin_block():
    """A shifted one, with a mask."""
    block = swin.build("tiny").layers[2].blocks[1]
    return block, torch.randn(2, 14, 14, 384)


def vit_block():
    block = last(ready(STAGES["timm"][0](), fast=False)._network.net, most_repeated(timm.build("test_vit", 64)))
    return block, torch.randn(2, 17, 64)


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


def test_compiling_needs_the_batch():
    with pytest.raises(ValueError, match="compile is on, but batch is 0; expected the rows of the largest"):
        Context(CPU, torch.float32, None, compile=True)
