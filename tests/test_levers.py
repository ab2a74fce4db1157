"""Which way a batch goes through a network, and that the stages give the same by each: the gates of the levers."""

import json
import logging
from pathlib import Path

import pytest
import torch

from extract.models import levers
from extract.models.levers import Levered
from extract.stage import Context
from extract.stages import superres
from extract.stages.ghfeat import Ghfeat, GhfeatConfig
from extract.stages.superres import Superres, SuperresConfig
from extract.stages.swin import Swin, SwinConfig
from extract.stages.timm import Timm, TimmConfig
from extract.weights.resolving import resolve
from tests.levers import Block, call, graphs_made, tower
from tests.stages.test_superres import compact_file, pictures
from tests.stages.test_swin import faces

pytestmark = pytest.mark.usefixtures("compiled_folder")

CPU = torch.device("cpu")


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
def test_nothing_is_compiled_after_the_setup():
    """Not for a full batch, not for one that is filled up, and small ones leave compiled blocks alone."""
    way = Levered(tower(4, 4), call, (Block,), torch.zeros(4, 4), fast=True)
    made = graphs_made()
    with torch.inference_mode():
        for rows in (4, 3, 2, 1):
            way(torch.ones(rows, 4))
    assert graphs_made() == made == 1


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


def test_compiling_needs_the_batch():
    with pytest.raises(ValueError, match="compile is on, but batch is 0; expected the rows of the largest"):
        Context(CPU, torch.float32, None, compile=True)
