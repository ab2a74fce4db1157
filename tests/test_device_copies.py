"""In the steady loop the picture stages copy nothing between host and device, and wait for nothing.

Counted without a GPU: fake tensors have a device and a shape but no numbers, so a copy is seen and a wait raises.
"""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from extract.models import lanczos, pictures
from extract.stage import Context
from extract.stages.ghfeat import Ghfeat, GhfeatConfig
from extract.stages.superres import Superres, SuperresConfig
from extract.stages.swin import Swin, SwinConfig
from extract.stages.timm import Timm
from extract.weights.resolving import resolve
from tests.levers import Launches
from tests.test_levers import rrdb_file, timm_config

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="this torch knows no CUDA device")
CUDA = torch.device("cuda:0")


@pytest.fixture(autouse=True)
def fakes():
    """Constants that are kept per device must not be fake ones afterwards."""
    caches = (pictures._on_device, lanczos._banded)
    for cache in caches:
        cache.cache_clear()
    with FakeTensorMode() as mode:
        yield mode
    for cache in caches:
        cache.cache_clear()


def on_gpu(stage):
    """The stage as it would be on a GPU in float16, its tensors without numbers."""
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes():
        stage.setup(Context(torch.device("cpu"), torch.float32, resolve(stage.config.weights, stage)))
    stage._precision = torch.float16
    for module in stage._network.net.modules():
        for kept in (module._parameters, module._buffers):
            for name, tensor in kept.items():
                if tensor is not None:
                    kind = torch.float16 if tensor.is_floating_point() else tensor.dtype
                    fake = torch.empty(tensor.shape, dtype=kind, device=CUDA)
                    kept[name] = nn.Parameter(fake, requires_grad=False) if kept is module._parameters else fake
    return stage


def images(*shape):
    return torch.empty(*shape, 3, dtype=torch.uint8, device=CUDA)


def superres_batch(*sides):
    return {"crop.patch": [images(side, side) for side in sides], "crop.patch_box": torch.zeros(len(sides), 4)}


def copies(stage, batch):
    """Operations of the second batch that touch both memories: the first brings constants there."""
    stage.compute(batch)
    with Launches() as launches:
        found = stage.compute(batch)
    return launches.across, found


@pytest.mark.parametrize("normalise", ["half", "imagenet", "per_image"])
def test_swin(normalise):
    config = SwinConfig(weights="random", architecture="small", resize=70, crop=64, normalise=normalise)
    assert copies(on_gpu(Swin(config)), {"crop.image": images(4, 112, 112)})[0] == []


def test_timm():
    assert copies(on_gpu(Timm(timm_config())), {"crop.image": images(4, 112, 112)})[0] == []


@pytest.mark.parametrize("resize", ["bilinear", "area"])
@pytest.mark.parametrize("side", [64, 100])
def test_ghfeat(resize, side):
    config = GhfeatConfig(weights="random", architecture="small", resize=resize)
    assert copies(on_gpu(Ghfeat(config)), {"align.image": images(4, side, side)})[0] == []


@pytest.mark.parametrize("sides", [(112, 112), (160, 112, 64, 4), (300, 112)])
def test_superres(tmp_path, sides):
    """As they are, reduced, of several sizes, enlarged by Lanczos; box and validity never leave the host."""
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes():
        path = rrdb_file(tmp_path)
    across, found = copies(on_gpu(Superres(SuperresConfig(weights=str(path)))), superres_batch(*sides))
    assert across == []
    assert (found["box"].device.type, found["valid"].device.type) == ("cpu", "cpu")
    assert {image.device for image in found["image"]} == {CUDA}


def test_a_copy_and_a_wait_are_seen():
    """Else nothing above could fail."""
    given = images(4, 4)
    with Launches() as launches:
        given.float() - torch.tensor([1.0, 2, 3]).to(CUDA)
    assert len(launches.across) == 1
    with pytest.raises(DataDependentOutputException):
        given.sum().item()
