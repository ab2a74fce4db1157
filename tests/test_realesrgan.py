"""Real-ESRGAN's networks and inference against values of the original program."""

import hashlib
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from extract.errors import WeightsError
from extract.models import realesrgan
from extract.models.realesrgan import Inference, enhance, enlarge, from_tensors, rrdb_shapes, srvgg_shapes, upscale
from extract.stages.superres import Superres, SuperresConfig
from extract.weights.resolving import resolve
from tests.golden_nets import drawn, rrdb_rule, srvgg_rule

RULES = {"rrdb": rrdb_rule, "srvgg": srvgg_rule}
CASES = {  # input, tile, tile_pad, pre_pad, outscale
    "rrdb_untiled_pre10": ("image", Inference(0, 10, 10, 4)),
    "srvgg_untiled_pre10": ("image", Inference(0, 10, 10, 4)),
    "rrdb_tile32": ("image", Inference(32, 10, 0, 4)),
    "srvgg_tile32": ("image", Inference(32, 10, 0, 4)),
    "rrdb_tile32_pre10_x2.5": ("image", Inference(32, 10, 10, 2.5)),
    "srvgg_tile32_pre10_x2.5": ("image", Inference(32, 10, 10, 2.5)),
    "rrdb_gray": ("gray", Inference(0, 10, 0, 4)),
    "rrdb_bgra": ("bgra", Inference(0, 10, 0, 4)),
    "rrdb_u16": ("u16", Inference(0, 10, 0, 4)),
    "rrdb_u16_tile8_pad4": ("u16", Inference(8, 4, 0, 4)),
    "rrdb_u16_x3.5": ("u16", Inference(0, 10, 0, 3.5)),
}


@pytest.fixture(scope="module")
def golden(golden_dir):
    return np.load(golden_dir / "realesrgan.npz")


@pytest.fixture(scope="module")
def tensors(golden):
    return {
        net: {name: torch.from_numpy(v) for name, v in drawn(golden, rule, prefix=f"{net}/", keys=f"{net}_").items()}
        for net, rule in RULES.items()
    }


@pytest.fixture(scope="module")
def nets(tensors):
    return {net: from_tensors(of_net, net) for net, of_net in tensors.items()}


def rgb(picture):
    """OpenCV's order of colours to ours, and back."""
    if picture.ndim == 2:
        return picture
    return np.ascontiguousarray(picture[:, :, [2, 1, 0, 3][: picture.shape[2]]])


def assert_near(found, expected):
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    off = np.abs(found.astype(int) - expected.astype(int))
    if expected.dtype == np.uint8:
        assert off.max() <= 1
        assert (off > 0).mean() <= 1e-3
    else:
        assert off.max() <= 3


@pytest.mark.parametrize("net", RULES)
def test_the_bare_nets(golden, nets, net):
    picture = torch.from_numpy(rgb(golden["image"][:12, :14])).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        found = nets[net].net(picture)[0].numpy()
    expected = golden[f"{net}_net_out"]
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


def test_every_case_of_the_file_is_tried(golden):
    assert {name.removeprefix("out_") for name in golden.files if name.startswith("out_")} == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_the_original_pipeline(golden, nets, case):
    name, settings = CASES[case]
    found = enhance(nets[case.partition("_")[0]], rgb(golden[name]), settings)
    assert_near(rgb(found), golden[f"out_{case}"])


@pytest.mark.parametrize("case", [case for case, (name, _) in CASES.items() if name == "image"])
def test_the_batched_way_is_the_same(golden, nets, case):
    """What the stage calls: two different pictures at once, one of them the golden one."""
    name, settings = CASES[case]
    image = torch.from_numpy(rgb(golden[name]))
    found = upscale(nets[case.partition("_")[0]], torch.stack([image.flip(0), image]), settings)
    assert_near(rgb(found[1].numpy()), golden[f"out_{case}"])


MISTAKES = {
    "pre-pad left out": ("rrdb_untiled_pre10", Inference(0, 10, 0, 4)),
    "a pixel less around the tiles": ("rrdb_u16_tile8_pad4", Inference(8, 3, 0, 4)),
    "no tiles": ("rrdb_u16_tile8_pad4", Inference(0, 4, 0, 4)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_setting_is_seen(golden, nets, mistake):
    case, settings = MISTAKES[mistake]
    found = rgb(enhance(nets["rrdb"], rgb(golden[CASES[case][0]]), settings))
    expected = golden[f"out_{case}"]
    with pytest.raises(AssertionError):
        assert_near(found, expected)


def test_other_roundings_and_orders_are_seen(golden, nets, monkeypatch):
    case = "srvgg_tile32_pre10_x2.5"
    name, settings = CASES[case]

    def found():
        return rgb(enhance(nets["srvgg"], rgb(golden[name]), settings))

    assert_near(found(), golden[f"out_{case}"])
    with pytest.raises(AssertionError):
        assert_near(enhance(nets["srvgg"], golden[name], settings), golden[f"out_{case}"])  # BGR
    with monkeypatch.context() as patched:
        patched.setattr(realesrgan.cv2, "INTER_LANCZOS4", realesrgan.cv2.INTER_AREA)
        with pytest.raises(AssertionError):
            assert_near(found(), golden[f"out_{case}"])
    pad = realesrgan.functional.pad
    with monkeypatch.context() as patched:
        patched.setattr(realesrgan.functional, "pad", lambda x, by, _mode: pad(x, by, "replicate"))
        with pytest.raises(AssertionError):
            assert_near(found(), golden[f"out_{case}"])


def quantised_late(upscaler, picture, settings):
    """Resized in float32, rounded last."""
    large = realesrgan._through(upscaler, picture.astype(np.float32) / 255, replace(settings, outscale=None))
    size = realesrgan.resized(*picture.shape[:2], upscaler.scale, settings)
    return (realesrgan._lanczos(large, size).clip(0, 1) * 255).round().astype(np.uint8)


def truncated(upscaler, picture, settings):
    large = realesrgan._through(upscaler, picture.astype(np.float32) / 255, settings)
    return (large * 255).astype(np.uint8)


def padded_on_all_sides(upscaler, picture, settings):
    by, wide = settings.pre_pad, settings.pre_pad * upscaler.scale
    mirrored = np.pad(picture, ((by, by), (by, by), (0, 0)), "reflect")
    return enhance(upscaler, mirrored, replace(settings, pre_pad=0))[wide:-wide, wide:-wide]


@pytest.mark.parametrize(
    ("case", "wrong"),
    [
        ("rrdb_tile32_pre10_x2.5", quantised_late),
        ("rrdb_untiled_pre10", truncated),
        ("rrdb_untiled_pre10", padded_on_all_sides),
    ],
)
def test_another_order_of_steps_is_seen(golden, nets, case, wrong):
    found = rgb(wrong(nets["rrdb"], rgb(golden["image"]), CASES[case][1]))
    expected = golden[f"out_{case}"]
    assert found.shape == expected.shape
    with pytest.raises(AssertionError):
        assert_near(found, expected)


def test_scale_two_folds_even_sides():
    """x2plus: 12 channels of half the size go in; an odd side is mirrored on and cut off again."""
    shapes = rrdb_shapes(8, 12, num_blocks=1)
    rng = np.random.default_rng(0)
    net = from_tensors({n: torch.from_numpy(rng.normal(0, 0.1, s).astype(np.float32)) for n, s in shapes.items()}, "x2")
    assert net.scale == 2
    picture = torch.from_numpy(rng.random((1, 3, 21, 33), dtype=np.float32))
    found = enlarge(net, picture, Inference())
    assert found.shape == (1, 3, 42, 66)
    even = torch.cat([picture, picture[:, :, -2:-1]], dim=2)
    even = torch.cat([even, even[..., -2:-1]], dim=3)
    assert torch.equal(found, net.net(even)[..., :42, :66].clamp(0, 1))
    assert enlarge(net, picture, Inference(tile=7, tile_pad=3)).shape == (1, 3, 42, 66)


def test_a_batch_is_its_rows(nets):
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (3, 16, 24, 3), dtype=np.uint8))
    together = upscale(nets["srvgg"], images, Inference())
    for i in range(3):
        off = together[i].int() - upscale(nets["srvgg"], images[i : i + 1], Inference())[0].int()
        assert off.abs().max() <= 1


# ---- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shapes", "tensors", "numbers"),
    [
        (rrdb_shapes(), 702, 16_697_987),
        (rrdb_shapes(num_blocks=6), None, 4_467_779),
        (rrdb_shapes(64, 12), 702, 16_703_171),
        (srvgg_shapes(), 101, 1_213_296),
        (srvgg_shapes(num_convs=16), 53, 621_424),
    ],
    ids=["x4plus", "x4plus_anime_6B", "x2plus", "general-x4v3", "animevideov3"],
)
def test_sizes_are_the_published_ones(shapes, tensors, numbers):
    assert tensors is None or len(shapes) == tensors
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == numbers


@pytest.mark.parametrize("wrap", [("params",), ("params_ema",), ("params", "params_ema"), ()])
def test_the_published_files_open(tmp_path, tensors, nets, wrap):
    """``params_ema`` counts where both are there."""
    whole = tensors["rrdb"]
    path = tmp_path / "RealESRGAN.pth"
    other = {name: tensor + 1 for name, tensor in whole.items()}
    content = {name: whole if name == wrap[-1] else other for name in wrap} if wrap else whole
    torch.save(content, path)
    loaded = realesrgan.load(resolve(str(path), Superres(SuperresConfig(weights=str(path)))))
    for a, b in zip(loaded.net.parameters(), nets["rrdb"].net.parameters(), strict=True):
        assert torch.equal(a, b)


def basicsr_arch():
    """Its module of the network. The package as a whole imports a module that torchvision has dropped."""
    import torchvision.transforms.functional as functional

    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, "torchvision.transforms.functional_tensor", functional)
        return pytest.importorskip(
            "basicsr.archs.rrdbnet_arch", reason="basicsr is not installed", exc_type=ImportError
        )


@pytest.mark.filterwarnings("ignore")  # of its other modules
def test_spandrel_is_equal_to_basicsr(tensors):
    """The authors' own network on the same weights, where it can be loaded."""
    arch = basicsr_arch()
    original = arch.RRDBNet(3, 3, num_feat=16, num_block=2, num_grow_ch=32, scale=4).eval()
    original.load_state_dict(tensors["rrdb"])
    picture = torch.rand(1, 3, 20, 24)
    with torch.inference_mode():
        assert torch.equal(original(picture), from_tensors(tensors["rrdb"], "x").net(picture))


def test_other_names_of_the_same_network(nets):
    """Older files number the layers; spandrel knows them."""
    old = nets["rrdb"].net.state_dict()
    assert "conv_first.weight" not in old
    again = from_tensors(dict(old), "old")
    picture = torch.rand(1, 3, 8, 9)
    assert torch.equal(again.net(picture), nets["rrdb"].net(picture))


def like_bsrgan(name):
    """The names that BSRGAN and RealSR files have for the same layers."""
    name = re.sub(r"^body\.(\d+)\.rdb(\d)", r"RRDB_trunk.\1.RDB\2", name)
    for ours, theirs in (("conv_body", "trunk_conv"), ("conv_up", "upconv"), ("conv_hr", "HRconv")):
        name = name.replace(ours, theirs)
    return name


def test_names_of_other_programs_are_as_strict(tensors, nets):
    """spandrel leaves out what it does not know; we do not."""
    renamed = {like_bsrgan(name): tensor for name, tensor in tensors["rrdb"].items()}
    picture = torch.rand(1, 3, 8, 9)
    assert torch.equal(from_tensors(renamed, "x").net(picture), nets["rrdb"].net(picture))
    with pytest.raises(WeightsError, match="73 tensors for a network of 72; the rest is unknown"):
        from_tensors(renamed | {"mystery.weight": torch.zeros(3)}, "x")
    with pytest.raises(WeightsError, match="no ESRGAN or Compact file, or a damaged one"):
        from_tensors({name: tensor for name, tensor in renamed.items() if name != "HRconv.bias"}, "x")


def broken(tensors, net, *, drop=(), rename=None, shape=None, extra=None):
    found = {name: tensor for name, tensor in tensors[net].items() if name not in drop}
    for old, new in (rename or {}).items():
        found[new] = found.pop(old)
    return found | {name: torch.zeros(size) for name, size in {**(shape or {}), **(extra or {})}.items()}


@pytest.mark.parametrize(
    ("net", "changes", "message"),
    [
        ("rrdb", {"drop": ["conv_last.bias"]}, r"1 missing \(conv_last.bias\)"),
        ("rrdb", {"drop": ["conv_first.weight"]}, "missing"),
        ("rrdb", {"drop": ["body.1.rdb2.conv3.weight"]}, r"1 missing \(body.1.rdb2.conv3.weight\)"),
        ("rrdb", {"rename": {"conv_hr.weight": "conv_HR.weight"}}, "1 missing .conv_hr.weight.; 1 unexpected .conv_HR"),
        (
            "rrdb",
            {"shape": {"conv_body.bias": (3,)}},
            r"1 of another shape \(conv_body.bias \(3,\), expected \(16,\)\)",
        ),
        ("rrdb", {"extra": {"conv_more.weight": (3,)}}, r"1 unexpected \(conv_more.weight\)"),
        ("srvgg", {"drop": ["body.3.weight"]}, r"1 missing \(body.3.weight\)"),
        ("srvgg", {"drop": ["body.0.weight"]}, "missing"),
        ("srvgg", {"shape": {"body.10.bias": (47,)}}, r"body.10.bias \(47,\), expected \(48,\)"),
        ("srvgg", {"rename": {"body.4.bias": "body.4.shift"}}, "1 missing .body.4.bias.; 1 unexpected .body.4.shift"),
    ],
)
def test_a_broken_file_is_listed(tensors, net, changes, message):
    with pytest.raises(WeightsError, match=f"weights 'mine' are no whole Real-ESRGAN file: .*{message}"):
        from_tensors(broken(tensors, net, **changes), "mine")


@pytest.mark.parametrize("tensors", [{}, {"layer.weight": torch.zeros(3)}, {"model.0.weight": torch.zeros(3, 3, 3, 3)}])
def test_another_network_is_refused(tensors):
    with pytest.raises(WeightsError, match="weights 'mine' are no ESRGAN or Compact file, or a damaged one"):
        from_tensors(tensors, "mine")


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("it_ran",))


def test_code_in_a_file_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pth"
    torch.save({"params": Evil()}, path)
    weights = resolve(str(path), Superres(SuperresConfig(weights=str(path))))
    with pytest.raises(WeightsError, match=r"evil\.pth cannot .*never executed: it asks for posix.mkdir;"):
        realesrgan.load(weights)
    assert not Path("it_ran").exists()


def test_a_key_wants_the_published_bytes(tmp_path):
    """x4plus is pinned in the table: another file under its name is refused before any work."""
    folder = tmp_path / "weights" / "realesrgan-x4plus"
    folder.mkdir(parents=True)
    data = b"something else"
    (folder / "RealESRGAN_x4plus.pth").write_bytes(data)
    with pytest.raises(WeightsError, match=f"{hashlib.sha256(data).hexdigest()}, expected 4fa0d38905f75ac06eb49a"):
        resolve("realesrgan-x4plus", Superres(SuperresConfig()), cache=tmp_path)


def test_a_picture_of_another_kind_is_refused(nets):
    with pytest.raises(ValueError, match=r"shape \(4, 4, 2\), expected"):
        enhance(nets["srvgg"], np.zeros((4, 4, 2), np.uint8), Inference())
    with pytest.raises(ValueError, match="pre_pad is 10, but the picture has 12 x 8 pixels"):
        enhance(nets["srvgg"], np.zeros((8, 12, 3), np.uint8), Inference(pre_pad=10))


def test_random_weights_give_a_picture(tmp_path):
    drawn_ = realesrgan.random_weights(num_blocks=2)
    path = tmp_path / "net.safetensors"
    save_file({name: torch.from_numpy(values) for name, values in drawn_.items()}, path)
    net = realesrgan.load(resolve(str(path), Superres(SuperresConfig(weights=str(path)))))
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8))
    large = upscale(net, image, Inference()).float()
    assert large.shape == (1, 128, 128, 3)
    assert 20 < large.mean() < 235
    assert large.std() > 5
