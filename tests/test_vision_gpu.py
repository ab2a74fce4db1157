"""The vision stages on a GPU against the CPU. Without a GPU they are skipped; REQUIRE_GPU=1 makes that a failure."""

import pytest
import torch

from extract.stage import Context
from extract.stages.align import Align, AlignConfig
from extract.stages.crop import Crop, CropConfig
from extract.stages.ghfeat import Ghfeat, GhfeatConfig
from extract.stages.superres import Superres, SuperresConfig
from extract.weights.resolving import resolve
from tests.stages.test_align import batch as align_batch
from tests.stages.test_align import face
from tests.stages.test_crop import wild_rows
from tests.stages.test_superres import batch as superres_batch
from tests.stages.test_superres import compact_file, pictures
from tests.stages.test_swin import faces
from tests.test_levers import STAGES as LEVERED
from tests.test_levers import rrdb_file

pytestmark = pytest.mark.gpu


def on(device, precision, stage, *, fast=False):
    weights = None
    if getattr(stage.config, "weights", "lanczos") != "lanczos":
        weights = resolve(stage.config.weights, stage)
    stage.setup(Context(device, precision, weights, compile=fast, batch=4))
    return stage


def moved(batch, device):
    return {
        name: [row.to(device) for row in rows] if isinstance(rows, list) else rows.to(device)
        for name, rows in batch.items()
    }


@pytest.mark.parametrize(("precision", "most"), [(torch.float32, 1e-5), (torch.float16, 5e-3)])
def test_ghfeat(cuda, precision, most):
    given = {"align.image": faces(3, side=64)}
    config = GhfeatConfig(weights="random", architecture="small")
    expected = on(torch.device("cpu"), torch.float32, Ghfeat(config)).compute(given)["code"]
    found = on(cuda, precision, Ghfeat(config)).compute(moved(given, cuda))["code"].cpu()
    assert (found - expected).norm() / expected.norm() < most


@pytest.mark.parametrize(
    ("weights", "precision", "most"),
    [("lanczos", torch.float16, 0), ("compact", torch.float32, 1), ("compact", torch.float16, 2)],
)
def test_superres(cuda, weights, precision, most):
    given = superres_batch(pictures((40, 48), (40, 48), (160, 128), (257, 300)))
    config = SuperresConfig(weights=str(compact_file()) if weights == "compact" else weights)
    expected = on(torch.device("cpu"), torch.float32, Superres(config)).compute(given)
    found = on(cuda, precision, Superres(config)).compute(moved(given, cuda))
    for here, there in zip(expected["image"], found["image"], strict=True):
        assert (here.int() - there.cpu().int()).abs().max() <= most
    assert torch.equal(expected["box"], found["box"].cpu())


def test_crop(cuda):
    """Products and sums are the CPU's, one by one, so the gate (one level in 99.9 %) has much room."""
    given = wild_rows(0, 40)
    expected, found = (Crop(CropConfig()).compute(each) for each in (given, moved(given, cuda)))
    off = (found["image"].cpu().int() - expected["image"].int()).abs()
    assert (off <= 1).double().mean() >= 0.999
    assert off.max() <= 1
    for here, there in zip(expected["patch"], found["patch"], strict=True):
        assert there.device.type == "cuda"
        assert torch.equal(here, there.cpu())
    for name in ("point", "patch_box", "valid"):
        assert torch.equal(found[name], expected[name])


def test_nothing_waits_for_the_gpu(cuda):
    """Landmarks being on the CPU: after a first call, which keeps Lanczos' matrices, torch itself reports any wait."""
    faces_on_cpu = {"faces.landmarks", "faces.box", "landmarks.point"}
    for stage, given in (
        (Crop(CropConfig()), wild_rows(0, 8)),
        (Align(AlignConfig()), align_batch(face(1), face(4, 90), face(2))),
    ):
        there = {
            name: rows if name in faces_on_cpu else moved({name: rows}, cuda)[name] for name, rows in given.items()
        }
        stage.compute(there)
        torch.cuda.set_sync_debug_mode("error")
        try:
            stage.compute(there)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_align(cuda):
    given = align_batch(face(1), face(4, 90))
    expected = Align(AlignConfig(method="pillow")).compute(given)["image"]
    found = Align(AlignConfig()).compute(moved(given, cuda))["image"].cpu()
    off = (found.int() - expected.int()).abs()
    assert off.max() <= 1
    assert (off == 0).all(dim=-1).float().mean() >= 0.985


@pytest.mark.slow
@pytest.mark.parametrize("name", LEVERED)
def test_an_encoder_compiled_and_captured(cuda, name):
    """Against the plain way in the same precision; padded batches and small ones too, and each twice."""
    make, batch, output = LEVERED[name]
    for precision, most in ((torch.float32, 1e-5), (torch.float16, 2e-3)):
        plain, fast = (on(cuda, precision, make(), fast=way) for way in (False, True))
        assert fast.levers == {"compile": True, "graphs": True, "batch": 4}
        full = fast.compute(moved(batch(4), cuda))[output]
        for rows in (4, 3, 2, 3):
            expected = plain.compute(moved(batch(4), cuda))[output][:rows]
            found = fast.compute({name: rows_of[:rows] for name, rows_of in moved(batch(4), cuda).items()})[output]
            assert (found - expected).norm() <= most * expected.norm()
            if rows > 2:
                assert torch.equal(found, full[:rows])


@pytest.mark.slow
def test_superres_compiled_and_captured(cuda, tmp_path):
    config = SuperresConfig(weights=str(rrdb_file(tmp_path)), input_px=40)
    fast = on(cuda, torch.float16, Superres(config), fast=True)
    assert fast.levers == {"compile": True, "graphs": True, "batch": 4, "form": "push"}
    plain = on(torch.device("cpu"), torch.float32, Superres(config))
    for sizes in ([(40, 40)] * 4, [(40, 40)] * 3, [(40, 40), (64, 64), (32, 40), (64, 64)]):
        given = superres_batch(pictures(*sizes))
        expected, found = plain.compute(given)["image"], fast.compute(moved(given, cuda))["image"]
        for here, there in zip(expected, found, strict=True):
            assert (here.int() - there.cpu().int()).abs().max() <= 2
