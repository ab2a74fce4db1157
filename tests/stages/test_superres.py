import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file

from extract.errors import WeightsError
from extract.models.realesrgan import Inference, random_weights, srvgg_shapes, upscale
from extract.stage import Context
from extract.stages.superres import Superres, SuperresConfig
from extract.weights.resolving import resolve
from tests.contract import RowsContract


def pictures(*sizes, seed=0):
    """Smooth pictures of these (height, width)."""
    rng = np.random.default_rng(seed)
    coarse = [Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)) for _ in sizes]
    scaled = [c.resize(size[::-1], Image.Resampling.BICUBIC) for c, size in zip(coarse, sizes, strict=True)]
    return [torch.from_numpy(np.array(picture)) for picture in scaled]


def batch(images):
    return {"crop.patch": images, "crop.patch_box": torch.tensor([[2.0, 3, 10, 11]] * len(images))}


@functools.cache
def compact_file() -> Path:
    """An official file's form: general-x4v3 with fewer layers."""
    path = Path(tempfile.mkdtemp()) / "compact.pth"
    rng = np.random.default_rng(0)
    shapes = srvgg_shapes(8, num_convs=2)
    torch.save({"params": {n: torch.from_numpy(rng.normal(0, 0.1, s)).float() for n, s in shapes.items()}}, path)
    return path


@pytest.fixture
def compact():
    return compact_file()


class Rows(RowsContract):
    ragged = frozenset({"crop.patch"})

    def row(self, seed):
        size = 24 + 8 * (seed % 3)  # rows may differ in size
        return {
            "crop.patch": pictures((size, size), seed=seed)[0],
            "crop.patch_box": torch.tensor([1.0, 2, 9, 10]) * seed,
        }


class TestLanczos(Rows):
    def stage(self):
        return Superres(SuperresConfig(weights="lanczos"))


class TestNetwork(Rows):
    def stage(self):
        return Superres(SuperresConfig(weights=str(compact_file())))


def ready(weights="lanczos", **config):
    stage = Superres(SuperresConfig(weights=str(weights), **config))
    resolved = None if weights == "lanczos" else resolve(str(weights), stage)
    stage.setup(Context(torch.device("cpu"), torch.float32, resolved))
    return stage


def test_lanczos_is_pillows():
    images = pictures((112, 112), (56, 40))
    found = ready().compute(batch(images))["image"]
    for image, large in zip(images, found, strict=True):
        size = (image.shape[1] * 4, image.shape[0] * 4)
        expected = Image.fromarray(image.numpy()).resize(size, Image.Resampling.LANCZOS)
        assert np.array_equal(large.numpy(), np.asarray(expected))


def test_the_network_sees_at_most_its_input(compact):
    """112 as it is, 113 to 256 reduced, above that only resized; the result is never larger than 448."""
    stage = ready(compact)
    images = pictures((112, 96), (160, 128), (257, 200))
    found = stage.compute(batch(images))["image"]
    assert [tuple(image.shape) for image in found] == [(448, 384, 3), (448, 360, 3), (448, 348, 3)]

    def resized(image, size):
        return torch.from_numpy(np.array(Image.fromarray(image.numpy()).resize(size, Image.Resampling.LANCZOS)))

    net = stage._upscaler
    assert net is not None
    assert torch.equal(found[0], upscale(net, images[0][None], Inference())[0])
    assert torch.equal(found[1], upscale(net, resized(images[1], (90, 112))[None], Inference())[0])
    assert torch.equal(found[2], resized(images[2], (348, 448)))


def test_pictures_of_one_size_go_together(compact, monkeypatch):
    stage = ready(compact)
    seen = []
    forward = stage._upscaler.net.forward
    monkeypatch.setattr(stage._upscaler.net, "forward", lambda x: seen.append(len(x)) or forward(x))
    stage.compute(batch(pictures((32, 32), (40, 40), (32, 32), (32, 32), (40, 40))))
    assert seen == [3, 2]


def test_the_box_moves_along():
    found = ready(outscale=2).compute(batch(pictures((56, 28), (448, 448))))
    # Pixel 2 of 28 reaches from 2 to 3, twice as large from 4 to 6: its centre 4.5.
    assert found["box"][0].tolist() == [4.5, 6.5, 20.5, 22.5]
    # 300 x 37 becomes 112 x 14 and then 448 x 56: rounding makes the two ratios differ.
    (uneven,) = ready().compute(batch(pictures((300, 37))))["box"]
    assert uneven.tolist() == pytest.approx([
        s * r - 0.5 for s, r in zip((2.5, 3.5, 10.5, 11.5), (56 / 37, 448 / 300) * 2, strict=True)
    ])
    assert found["box"][1].tolist() == [(2.5 / 2) - 0.5, (3.5 / 2) - 0.5, (10.5 / 2) - 0.5, (11.5 / 2) - 0.5]


def test_a_face_too_small_is_not_valid(compact):
    images = [torch.zeros((0, 0, 3), dtype=torch.uint8), *pictures((7, 20), (8, 8), (10, 10), (16, 16))]
    assert ready().compute(batch(images))["valid"].tolist() == [False, False, True, True, True]
    # Reflecting 10 pixels needs more than 10.
    assert ready(compact, pre_pad=10).compute(batch(images))["valid"].tolist() == [False] * 4 + [True]


def test_tiles_and_pre_pad_reach_the_network(compact):
    images = pictures((40, 48))
    plain = ready(compact).compute(batch(images))["image"][0]
    tiled = ready(compact, tile=16, tile_pad=2).compute(batch(images))["image"][0]
    assert plain.shape == tiled.shape
    assert not torch.equal(plain, tiled)
    wide = ready(compact, tile=16, tile_pad=10).compute(batch(images))["image"][0]  # sees 4 pixels far
    assert (plain.int() - wide.int()).abs().max() <= 1


def test_random_is_the_published_size():
    stage = Superres(SuperresConfig(weights="random"))
    weights = resolve("random", stage)
    assert weights.untrained
    assert sum(values.size for values in random_weights().values()) == 16_697_987


def test_lanczos_needs_no_weights_and_says_so_in_the_recipe(tmp_path):
    from extract.config import load_extract_config
    from extract.graph import build_graph
    from extract.running.planning import prepare

    path = tmp_path / "c.yaml"
    path.write_text("extract: {instances: {superres: {weights: lanczos}}}")
    graph = build_graph(load_extract_config(str(path)))
    prepared = prepare(graph, list(graph), None, [], "cpu", lock=tmp_path / "weights.lock")
    recipe = prepared["superres"].recipe
    assert recipe["config"]["weights"] == "lanczos"
    assert "weights" not in recipe


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match="are no ESRGAN or Compact file"):
        ready(path)


def test_settings_that_exclude_each_other():
    with pytest.raises(ValidationError, match="skip_above is 100, expected at least input_px = 112"):
        SuperresConfig(skip_above=100)


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_half_precision_is_near(compact, precision):
    """float16 is what the original computes in on a GPU: a few levels at most."""
    images = pictures((32, 40), (32, 40))
    large = []
    for kind in (torch.float32, precision):
        stage = Superres(SuperresConfig(weights=str(compact)))
        stage.setup(Context(torch.device("cpu"), kind, resolve(str(compact), stage)))
        large.append(torch.stack(stage.compute(batch(images))["image"]).int())
    off = (large[1] - large[0]).abs()
    assert 0 < off.max() <= (2 if precision == torch.float16 else 8)
