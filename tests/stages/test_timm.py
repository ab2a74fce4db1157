import itertools
import subprocess
import sys
from typing import Any, ClassVar

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file
from timm.layers.pos_embed import resample_abs_pos_embed

from extract.config import ExtractConfig
from extract.errors import ConfigError, WeightsError
from extract.graph import build_graph
from extract.models import timm as networks
from extract.models.pictures import normalised, resized
from extract.stage import Output
from extract.stages.timm import Timm, TimmConfig
from tests.contract import RowsContract, context
from tests.stages.test_swin import faces

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SMALL: dict[str, Any] = {
    "architecture": "test_vit",
    "weights": "random",
    "image_px": 64,
    "interpolation": "bicubic",
    **IMAGENET,
    "pool": "token",
    "dtype": "float32",
}


def ready(**config):
    stage = Timm(TimmConfig(**(SMALL | config)))
    stage.setup(context(stage))
    return stage


def feature(stage, images):
    return stage.compute({"crop.image": images})["feature"]


class Pictures(RowsContract):
    settings: ClassVar[dict[str, Any]] = {}

    def stage(self):
        return Timm(TimmConfig(**(SMALL | self.settings)))

    def row(self, seed):
        return {"crop.image": faces(1, seed)[0]}


class TestVit(Pictures):
    """Tokens, the class token among them."""


class TestConvnext(Pictures):
    """A grid [C, H, W], and a norm that stands in the head."""

    settings: ClassVar[dict[str, Any]] = {"architecture": "test_convnext", "pool": "head", "interpolation": "bilinear"}


class TestResnet(Pictures):
    """Batch norms."""

    settings: ClassVar[dict[str, Any]] = {"architecture": "test_resnet", "pool": "avg", "dtype": "float16"}


class TestEfficientnet(Pictures):
    settings: ClassVar[dict[str, Any]] = {"architecture": "test_efficientnet", "pool": "head"}


class TestMambaout(Pictures):
    """A grid [H, W, C], and a head that widens it."""

    settings: ClassVar[dict[str, Any]] = {"architecture": "test_mambaout", "pool": "head"}


class TestByobnet(Pictures):
    settings: ClassVar[dict[str, Any]] = {"architecture": "test_byobnet", "pool": "avg"}


class TestPicturesOfSeveralSizes(RowsContract):
    """Frames, which come as a list: each is resized by itself."""

    ragged = frozenset({"crop.image"})

    def stage(self):
        return Timm(TimmConfig(**SMALL))

    def row(self, seed):
        return {"crop.image": faces(1, seed, side=80 + 16 * seed)[0][: 60 + seed]}


def timms_own(architecture, image_px):
    """Oracle: timm's model by its name, with classes, as anyone would make it; and our drawn weights."""
    sized = {} if "vit" not in architecture else {"img_size": image_px}
    model = timm.create_model(architecture, pretrained=False, **sized)
    drawn = networks.random_weights(architecture, image_px)
    found = model.load_state_dict({name: torch.from_numpy(values) for name, values in drawn.items()}, strict=False)
    assert not found.unexpected_keys
    return model.eval()


FAMILIES = ["test_vit", "test_resnet", "test_efficientnet", "test_convnext", "test_mambaout", "test_byobnet"]
REGISTERS = "vit_small_patch14_reg4_dinov2"
"""A class token, then four registers, before the patches: the smallest of timm's networks with several."""


def assert_features_are_timms(config, num_prefix):
    """``num_prefix``: tokens before the patches, by the architecture's description and not by timm's attribute."""
    images = faces(2)
    stage = ready(**config)
    config = SMALL | config
    found = feature(stage, images)
    model = timms_own(config["architecture"], config["image_px"])
    with torch.inference_mode():
        planes = resized(images, config["image_px"], config["interpolation"])
        features = model.forward_features(normalised(planes, config["mean"], config["std"]))
        if config["pool"] == "head":
            expected = model.forward_head(features, pre_logits=True)
        elif features.ndim == 3:
            expected = features[:, 0] if config["pool"] == "token" else features[:, num_prefix:].mean(1)
        else:
            expected = features.mean((1, 2) if config["architecture"] == "test_mambaout" else (2, 3))
    assert found.shape == expected.shape == (2, stage.outputs[0].sizes[0])
    assert (found - expected).norm() / expected.norm() < 1e-5
    assert (found[0] - found[1]).norm() / found.norm() > 0.01  # random weights that see their input


@pytest.mark.parametrize(
    ("architecture", "pool"), [*itertools.product(FAMILIES, ("avg", "head")), ("test_vit", "token")]
)
def test_features_are_timms(architecture, pool):
    assert_features_are_timms({"architecture": architecture, "pool": pool}, num_prefix=1)


@pytest.mark.parametrize(
    "prepared",
    [
        {"interpolation": "bilinear"},
        {"mean": (0.5, 0.4, 0.3)},
        {"std": (0.5, 0.3, 0.2)},
        {"interpolation": "bilinear", "mean": (0.5, 0.4, 0.3), "std": (0.5, 0.3, 0.2)},
    ],
)
def test_pictures_are_prepared_as_the_config_says(prepared):
    assert_features_are_timms(prepared, num_prefix=1)
    assert not torch.allclose(feature(ready(**prepared), faces(2)), feature(ready(), faces(2)), rtol=0.01)


@pytest.mark.parametrize(
    ("architecture", "image_px", "num_prefix"),
    [(REGISTERS, 28, 5), ("test_vit4", 64, 1)],  # a class token and four registers; one register alone
)
def test_registers_are_left_out_of_the_mean_over_patches(architecture, image_px, num_prefix):
    config = {"architecture": architecture, "image_px": image_px, "pool": "avg"}
    assert_features_are_timms(config, num_prefix)


def test_the_class_token_stands_before_the_registers():
    assert_features_are_timms({"architecture": REGISTERS, "image_px": 28, "pool": "token"}, num_prefix=5)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("from_px", "to_px"), [(300, 224), (112, 224)])
def test_resizing_is_pillows(interpolation, from_px, to_px):
    images = faces(1, side=from_px)
    found = resized(images, to_px, interpolation)[0].permute(1, 2, 0) * 255
    how = getattr(Image.Resampling, interpolation.upper())
    expected = np.asarray(Image.fromarray(images[0].numpy()).resize((to_px, to_px), how)).astype(np.float32)
    off = (found - torch.from_numpy(expected)).abs()
    assert off.max() <= 1.6  # Pillow rounds twice, across and down
    assert off.mean() < 0.5
    assert found.std() > 20


def test_bicubic_does_not_leave_the_range_of_bytes():
    """At an edge it overshoots by a twelfth and more."""
    images = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    images[:, :, 32:] = 255
    planes = images.permute(0, 3, 1, 2).float() / 255
    free = torch.nn.functional.interpolate(planes, size=(96, 96), mode="bicubic", antialias=True)
    assert free.min() < -0.05
    found = resized(images, 96, "bicubic")
    assert (found.min(), found.max()) == (0, 1)
    assert torch.equal(found, free.clamp(0, 1))


def test_mean_and_std_are_per_channel():
    planes = torch.rand(2, 3, 4, 5)
    found = normalised(planes, (0.1, 0.2, 0.3), (1, 2, 4))
    assert torch.allclose(found[:, 2], (planes[:, 2] - 0.3) / 4)
    assert torch.allclose(found[:, 0], planes[:, 0] - 0.1)


@pytest.mark.parametrize(
    ("architecture", "image_px", "pool", "width"),
    [
        ("vit_small_patch14_dinov2", 224, "token", 384),
        ("vit_base_patch16_clip_quickgelu_224", 224, "token", 768),
        ("swin_tiny_patch4_window7_224", 224, "avg", 768),
        ("mobilenetv3_large_100", 224, "avg", 960),
        ("mobilenetv3_large_100", 224, "head", 1280),
        ("volo_d1_224", 224, "head", 384),
        ("pvt_v2_b0", 256, "avg", 256),  # patches of 7 px, 4 px apart, over a padded picture: nothing is left over
    ],
)
def test_widths_are_known_without_weights(architecture, image_px, pool, width):
    config = SMALL | {"architecture": architecture, "image_px": image_px, "pool": pool, "weights": "not here"}
    first = Timm(TimmConfig(**config)).outputs[0]
    assert isinstance(first, Output)
    assert (first.name, first.sizes) == ("feature", (width,))


def test_nothing_is_taken_from_the_config_of_pretrained_models(monkeypatch):
    """timm's registry could change mean, size or crop between releases; no value follows it."""
    expected = feature(ready(), faces(2))
    asked = []
    monkeypatch.setattr("timm.models._builder.get_pretrained_cfg", asked.append)  # which finds nothing
    assert torch.equal(feature(ready(), faces(2)), expected)
    assert "test_vit" in asked


def saved(path, architecture="test_vit", image_px=64, **more):
    drawn = networks.random_weights(architecture, image_px)
    tensors = {name: torch.from_numpy(values) for name, values in drawn.items()}
    save_file(tensors | more, path)
    return str(path)


def test_an_official_file_loads_without_its_classifier(tmp_path):
    """As ``timm.create_model(...).state_dict()`` is saved for the hub."""
    for architecture in ("test_vit", "test_convnext", "test_efficientnet"):
        model = timms_own(architecture, 64)
        (tmp_path / architecture).mkdir()
        save_file(model.state_dict(), tmp_path / architecture / "model.safetensors")
        drawn, loaded = (
            ready(architecture=architecture, pool="head", weights=weights)
            for weights in ("random", str(tmp_path / architecture))
        )
        assert torch.equal(feature(loaded, faces(2)), feature(drawn, faces(2))), architecture


def test_positions_of_another_grid_are_resampled_by_timms_rule(tmp_path):
    """A file of 96 px (6 x 6 patches) for pictures of 64 px (4 x 4); the class token's own stays as it is."""
    path = saved(tmp_path / "model.safetensors", image_px=96)
    stage = ready(weights=path)
    before = torch.from_numpy(networks.random_weights("test_vit", 96)["pos_embed"])  # [1, 1 + 36, 64]
    grid = before[:, 1:].reshape(1, 6, 6, 64).permute(0, 3, 1, 2)
    new = torch.nn.functional.interpolate(grid, size=(4, 4), mode="bicubic", antialias=True)
    assert torch.equal(stage._network.net.pos_embed[:, :1], before[:, :1])
    assert torch.allclose(stage._network.net.pos_embed[:, 1:], new.flatten(2).transpose(1, 2), atol=1e-6)
    timms = resample_abs_pos_embed(before, new_size=[4, 4], num_prefix_tokens=1)  # with timm's defaults
    assert torch.equal(stage._network.net.pos_embed, timms)


def test_positions_of_the_same_grid_are_the_files(tmp_path, monkeypatch):
    monkeypatch.setattr("timm.layers.pos_embed.resample_abs_pos_embed", None)
    path = saved(tmp_path / "model.safetensors")
    assert torch.equal(feature(ready(weights=path), faces(1)), feature(ready(), faces(1)))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"neck.weight": torch.zeros(2)}, r"1 unexpected \(neck.weight\)"),
        ({"norm.weight": torch.zeros(2)}, r"norm.weight \(2,\), expected \(64,\)"),
        ({"pos_embed": torch.zeros(1, 12, 64)}, r"pos_embed \(1, 12, 64\), expected \(1, 17, 64\)"),
    ],
)
def test_tensors_that_do_not_fit_are_listed(tmp_path, more, message):
    with pytest.raises(WeightsError, match=message):
        ready(weights=saved(tmp_path / "model.safetensors", **more))


def test_a_missing_tensor_is_named(tmp_path):
    tensors = {n: torch.from_numpy(v) for n, v in networks.random_weights("test_vit", 64).items() if n != "norm.bias"}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"1 missing \(norm.bias\)"):
        ready(weights=str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"architecture": "vit_smal_patch14_dinov2"},
            r"instance dinov2 \(stage timm\): architecture 'vit_smal_patch14_dinov2': timm [\d.]+ has none of that "
            "name; did you mean 'vit_small_patch14_dinov2'",
        ),
        ({"architecture": "vit_small_patch14_dinov2.lvd142m"}, "did you mean 'vit_small_patch14_dinov2'"),
        ({"architecture": "???"}, r"`timm.list_models\(\)` names them"),
        ({"image_px": 70}, "image_px is 70, which patches of 16 px do not fill; use 64 or 80"),
        ({"architecture": "test_resnet"}, "pool is token, but this architecture has no class token; use avg or head"),
        # Its first token is a register.
        ({"architecture": "test_vit4"}, "pool is token, but this architecture has no class token; use avg or head"),
        *(
            (
                {"architecture": "volo_d1_224", "image_px": 224, "pool": pool},
                f"pool is {pool}, but where this architecture keeps its class token is unknown; use head",
            )
            for pool in ("token", "avg")
        ),
        ({"architecture": "crossvit_9_240", "image_px": 240, "pool": "avg"}, "no list of tokens and no grid"),
        ({"architecture": "inception_v3", "image_px": 8, "pool": "avg"}, "takes no pictures of 8 px with pool avg"),
        ({"std": (1, 0, 1)}, r"std is \[1.0, 0.0, 1.0\], expected numbers above 0"),
        ({"pool": "max"}, "pool: .*'token', 'avg' or 'head'"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_any_work(wrong, message):
    entry = {"stage": "timm", **SMALL, **wrong}
    with pytest.raises(ConfigError, match=message):
        build_graph(ExtractConfig(instances={"dinov2": entry}))


@pytest.mark.parametrize("field", ["architecture", "weights", "image_px", "interpolation", "mean", "std", "pool"])
def test_what_decides_values_must_be_said(field):
    with pytest.raises(ValidationError, match=f"{field}\n  Field required"):
        TimmConfig(**{name: value for name, value in SMALL.items() if name != field})


def test_the_recipe_holds_every_field():
    assert set(TimmConfig(**SMALL).model_dump()) == set(SMALL)


def test_loading_leaves_the_global_random_state_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    ready()
    assert torch.equal(torch.rand(3), expected)


def test_a_config_is_checked_without_timm_and_torch():
    script = (
        "import sys; from extract.stages.timm import TimmConfig; from extract.stages.speech import SpeechConfig\n"
        f"TimmConfig(**{SMALL!r}); SpeechConfig(family='wavlm', weights='random', width=64, normalise=True)\n"
        "print([name for name in ('torch', 'timm', 'transformers') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"


def test_another_instances_pictures_are_wired_by_config():
    entry = {"stage": "timm", **SMALL, "inputs": {"crop": "align"}}
    graph = build_graph(ExtractConfig(instances={"dinov2": entry}))
    assert graph["dinov2"].source_of("crop.image") == ("align", "image")
