import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from extract.errors import WeightsError
from extract.models.ghfeat import network
from extract.stage import Context
from extract.stages.ghfeat import Ghfeat, GhfeatConfig, prepare
from extract.weights.resolving import resolve
from tests.contract import RowsContract
from tests.stages.test_swin import faces


class TestGhfeat(RowsContract):
    def stage(self):
        return Ghfeat(GhfeatConfig(weights="random", architecture="small", dtype="float32"))

    def row(self, seed):
        return {"align.image": faces(1, seed, side=64)[0]}


def test_the_published_encoder_keeps_9984_values():
    (code, valid) = Ghfeat(GhfeatConfig()).outputs
    assert (code.name, code.sizes, code.dtype, valid.name) == ("code", (9984,), "float16", "valid")


def test_levels_are_mapped_as_the_original_maps_them():
    """v / 255 * 2 - 1 in float32; 0 and 255 are the ends."""
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(1, 16, 16, 3)
    found = prepare(levels, 16, "bilinear")
    expected = np.arange(256, dtype=np.float32) / np.float32(255) * np.float32(2) - np.float32(1)
    assert np.array_equal(found[0, 0].flatten().numpy(), expected)


@pytest.mark.parametrize("size", [1024, 512, 448])
def test_resizing_is_opencvs(size):
    """The authors' script: ``cv2.resize``, bilinear, from uint8 to uint8."""
    image = faces(1, side=size)
    found = (prepare(image, 256, "bilinear")[0].permute(1, 2, 0) + 1) / 2 * 255
    expected = cv2.resize(image[0].numpy(), (256, 256)).astype(int)
    off = np.abs(found.round().int().numpy() - expected)
    assert off.max() <= (0 if size % 256 == 0 else 1)  # OpenCV's shares are of 11 bits


def test_area_is_the_mean():
    image = faces(1, side=128)
    found = (prepare(image, 64, "area")[0] + 1) / 2 * 255
    mean = image[0].permute(2, 0, 1).float().reshape(3, 64, 2, 64, 2).mean(dim=(2, 4))
    assert torch.equal(found.round(), (mean + 0.5).floor())


def test_random_codes_fit_float16():
    stage = Ghfeat(GhfeatConfig(weights="random", architecture="small"))
    stage.setup(Context(torch.device("cpu"), torch.float32, resolve("random", stage)))
    code = stage.compute({"align.image": faces(2, side=64)})["code"]
    assert isinstance(code, torch.Tensor)
    assert code.abs().max() < 1000
    assert code.std(dim=0).min() > 0


def test_other_weights_are_listed(tmp_path):
    drawn = {name: torch.from_numpy(values) for name, values in network.random_weights("small").items()}
    drawn.pop("stem.conv.weight")
    drawn["heads.0.fc.bias"] = torch.zeros(3)
    path = tmp_path / "x.safetensors"
    save_file(drawn, path)
    stage = Ghfeat(GhfeatConfig(weights=str(path), architecture="small"))
    with pytest.raises(WeightsError, match=r"1 missing \(stem.conv.weight\); 1 of another shape \(heads.0.fc.bias"):
        stage.setup(Context(torch.device("cpu"), torch.float32, resolve(str(path), stage)))


@pytest.mark.parametrize(("precision", "most"), [(torch.float16, 3e-3), (torch.bfloat16, 3e-2)])
def test_half_precision_is_near(precision, most):
    """What a GPU computes in by default; float32 comes out all the same."""
    codes = []
    for kind in (torch.float32, precision):
        stage = Ghfeat(GhfeatConfig(weights="random", architecture="small"))
        stage.setup(Context(torch.device("cpu"), kind, resolve("random", stage)))
        codes.append(stage.compute({"align.image": faces(2, side=64)})["code"])
    assert codes[1].dtype == torch.float32  # type: ignore[union-attr]
    assert 0 < (codes[1] - codes[0]).norm() / codes[0].norm() < most  # type: ignore[union-attr, operator]
