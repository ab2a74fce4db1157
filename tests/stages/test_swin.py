from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file

from extract.errors import WeightsError
from extract.models import swin
from extract.stage import Context
from extract.stages.swin import Swin, SwinConfig, prepare
from extract.weights.resolving import resolve
from tests.contract import RowsContract, context

SMALL: dict[str, Any] = {"weights": "random", "architecture": "small", "resize": 64, "crop": 64, "dtype": "float32"}


def ready(**config):
    stage = Swin(SwinConfig(**(SMALL | config)))
    stage.setup(context(stage))
    return stage


def faces(num, seed=0, side=112):
    """Smooth pictures, as crops are."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (num, 9, 9, 3), dtype=np.uint8)
    smooth = [np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)) for image in coarse]
    return torch.from_numpy(np.stack(smooth))


class Small(RowsContract):
    def row(self, seed):
        return {"crop.image": faces(1, seed)[0]}


class TestPooled(Small):
    def stage(self):
        return Swin(SwinConfig(**SMALL, normalise="per_image"))


class TestTokens(Small):
    def stage(self):
        return Swin(SwinConfig(**SMALL, output="tokens"))


def timm_tiny(tensors):
    model = timm.create_model("swin_tiny_patch4_window7_224", pretrained=False, num_classes=0)
    model.load_state_dict(tensors)
    return model.eval()


@pytest.fixture(scope="module")
def tiny_weights():
    return resolve("random", Swin(SwinConfig(weights="random")))


def test_tiny_is_timms(tiny_weights):
    """Oracle: timm's model by its published name."""
    images = faces(1)
    with torch.inference_mode():
        grid = timm_tiny(tiny_weights.tensors()).forward_features(prepare(images, SwinConfig()))
    stage = Swin(SwinConfig(weights="random", output="tokens"))
    stage.setup(Context(torch.device("cpu"), torch.float32, tiny_weights))
    token = stage.compute({"crop.image": images})["token"]
    assert isinstance(token, torch.Tensor)
    assert token.shape == (1, 49, 768)
    assert (token - grid.flatten(1, 2)).norm() / grid.norm() < 1e-5


def test_pooling_is_timms_head_without_its_classifier():
    images = faces(3)
    model = swin.load("small", resolve("random", Swin(SwinConfig(**SMALL))))
    with torch.inference_mode():
        pooled = model.forward_head(model.forward_features(prepare(images, SwinConfig(**SMALL))), pre_logits=True)
    feature = ready().compute({"crop.image": images})["feature"]
    token = ready(output="tokens").compute({"crop.image": images})["token"]
    assert feature.shape == (3, 256)
    assert token.shape == (3, 4, 256)
    assert (feature - pooled).norm() / pooled.norm() < 1e-5
    assert torch.allclose(token.mean(dim=1), feature, atol=1e-5)
    assert (pooled[0] - pooled[1]).norm() / pooled.norm() > 0.05  # random weights that see their input


@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (224, 224)])
def test_resizing_is_pillows_antialiased_bilinear(resize, crop):
    images = faces(1, side=300)  # larger than the goal: antialiasing matters
    config = SwinConfig(resize=resize, crop=crop)
    found = (prepare(images, config)[0].permute(1, 2, 0) * 0.5 + 0.5) * 255
    resized = np.asarray(Image.fromarray(images[0].numpy()).resize((resize, resize), Image.Resampling.BILINEAR))
    edge = (resize - crop) // 2
    off = (found - torch.from_numpy(resized[edge : edge + crop, edge : edge + crop].astype(np.float32))).abs()
    assert off.max() <= 1.01  # Pillow rounds twice, across and down
    assert off.mean() < 0.5
    assert found.std() > 20


def test_normalisations_in_closed_form():
    image = faces(1, side=64)
    unit = image.permute(0, 3, 1, 2).double() / 255

    def found(normalise):
        return prepare(image, SwinConfig(**SMALL, normalise=normalise)).double()

    assert torch.allclose(found("half"), 2 * unit - 1, atol=1e-6)
    mean, std = torch.tensor([0.485, 0.456, 0.406]).double(), torch.tensor([0.229, 0.224, 0.225]).double()
    assert torch.allclose(found("imagenet"), (unit - mean[:, None, None]) / std[:, None, None], atol=1e-5)
    standard = found("per_image")
    assert abs(float(standard.mean())) < 1e-6
    assert float(standard.std(correction=0)) == pytest.approx(1, abs=1e-6)
    assert torch.allclose(standard, (unit - unit.mean()) / unit.std(correction=0), atol=1e-5)


def test_a_picture_of_one_colour_is_finite():
    grey = torch.full((2, 112, 112, 3), 77, dtype=torch.uint8)
    grey[1] = 0
    assert not prepare(grey, SwinConfig(**SMALL, normalise="per_image")).abs().gt(1e-4).any()


def test_rows_may_come_as_a_list():
    images = faces(2)
    stage = ready()
    one, two = stage.compute({"crop.image": images}), stage.compute({"crop.image": list(images)})
    assert torch.equal(one["feature"], two["feature"])


def test_loading_leaves_the_global_random_state_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    ready()
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"architecture": "small"}, "crop is 224, but architecture small sees 64 pixels"),
        ({"crop": 192}, "crop is 192, but architecture tiny sees 224 pixels"),
        ({"resize": 200}, "resize is 200, expected at least crop = 224"),
        ({"colour": "bgr"}, "colour"),
    ],
)
def test_settings_that_do_not_fit_are_refused(wrong, message):
    with pytest.raises(ValidationError, match=message):
        SwinConfig(**wrong)


@pytest.fixture
def published(tmp_path):
    """Writes tensors as a file and gives back a function that runs the small net with it."""
    drawn = {name: torch.from_numpy(values) for name, values in swin.random_weights("small").items()}

    def run(change, name="model.safetensors"):
        tensors = change(dict(drawn))
        path = tmp_path / name
        save_file(tensors, path) if name.endswith(".safetensors") else torch.save(tensors, path)
        return ready(weights=str(path)).compute({"crop.image": faces(1)})["feature"]

    return run


def test_published_names_and_files(published):
    """The ImageNet classifier, the tables that timm once stored, its old names and wrappers all give the same net."""
    expected = ready().compute({"crop.image": faces(1)})["feature"]
    head = {"head.fc.weight": torch.zeros(1000, 256), "head.fc.bias": torch.zeros(1000)}
    tables = {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16, dtype=torch.int64)}

    def old(tensors):
        return {
            name
            .replace("layers.1.d", "layers.0.d")
            .replace("layers.2.d", "layers.1.d")
            .replace("layers.3.d", "layers.2.d"): tensor
            for name, tensor in tensors.items()
        }

    for name in ("model.safetensors", "model.bin", "model.pth"):
        assert torch.equal(published(lambda tensors: tensors | head, name), expected)
    assert torch.equal(
        published(lambda tensors: old(tensors) | tables | {"head.weight": torch.zeros(9, 256)}), expected
    )
    assert torch.equal(published(lambda tensors: {"model": tensors, "optimizer": {}}, "model.pth"), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {n: v for n, v in t.items() if n != "norm.weight"}, r"1 missing \(norm.weight\)"),
        (lambda t: t | {"fc.weight": torch.zeros(2)}, r"1 unexpected \(fc.weight\)"),
        (lambda t: t | {"norm.weight": torch.zeros(2)}, r"norm.weight \(2,\), expected \(256,\)"),
        (lambda _: {f"x{i}": torch.zeros(1) for i in range(9)}, r"9 unexpected \(x0, x1, x2, x3, x4, and 4 more\)"),
    ],
)
def test_tensors_that_do_not_fit_are_listed(published, change, message):
    with pytest.raises(WeightsError, match=message):
        published(change)


def test_the_tiny_net_does_not_go_into_the_small_one(tmp_path, tiny_weights):
    save_file(tiny_weights.tensors(), tmp_path / "tiny.safetensors")
    with pytest.raises(WeightsError, match=r"of another shape .* Is the architecture in the config the right one"):
        ready(weights=str(tmp_path / "tiny.safetensors"))
