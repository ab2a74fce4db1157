"""Real-ESRGAN's dense blocks in push form give what the published pull form gives."""

import copy
import functools

import pytest
import torch
from torch import nn

from extract.models import dense_push, realesrgan
from extract.models.dense_push import PushedBlock, push
from extract.models.realesrgan import from_tensors, srvgg_shapes
from tests.levers import Launches, planes, rrdb_net


def forms(kind, num_blocks=2):
    pull = rrdb_net(num_blocks).to(kind)
    pushed = copy.deepcopy(pull)
    assert push(pushed)
    return pull, pushed.to(memory_format=torch.channels_last)


def apart(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(("kind", "most"), [(torch.float64, 1e-14), (torch.float32, 2e-6)])
def test_both_forms_give_the_same(kind, most):
    pull, pushed = forms(kind)
    given = planes(2, 24, kind)
    with torch.inference_mode():
        found, expected = pushed(given), pull(given)
    assert 0 < apart(found, expected) < most  # 0 would say that nothing was pushed
    assert found.shape == expected.shape


def test_every_block_is_pushed_and_no_number_is_lost():
    pull, pushed = forms(torch.float32, num_blocks=3)
    assert sum(isinstance(module, PushedBlock) for module in pushed.modules()) == 3
    assert not any(isinstance(module, nn.Conv2d) and module.in_channels > 64 for module in pushed.modules())
    assert sum(p.numel() for p in pushed.parameters()) == sum(p.numel() for p in pull.parameters())
    assert not any(p.requires_grad or p.is_meta for p in pushed.parameters())


@pytest.mark.parametrize("which", ["a slice too early", "biases of one layer left out", "another slope"])
def test_a_mistake_in_the_form_is_seen(which, monkeypatch):
    pull, pushed = forms(torch.float64, num_blocks=1)
    dense = next(module for module in pushed.modules() if isinstance(module, dense_push.PushedDense))
    if which == "a slice too early":
        dense.later[0].weight.data = dense.later[0].weight.data.roll(32, dims=0)
    elif which == "biases of one layer left out":
        dense.first.bias.data[32:64] = 0
    else:
        monkeypatch.setattr(dense_push, "LEAK", 0.1)
    with torch.inference_mode():
        assert apart(pushed(planes(1, 16, torch.float64)), pull(planes(1, 16, torch.float64))) > 1e-6


def with_1x1(dense):
    dense.conv1x1 = nn.Conv2d(64, 32, 1, bias=False)


def with_a_norm(dense):
    dense.conv3.append(nn.BatchNorm2d(32))


def with_another_slope(dense):
    dense.conv2[1] = nn.LeakyReLU(0.1)


def with_no_bias(dense):
    dense.conv4[0].bias = None


def with_a_stride(dense):
    dense.conv5[0].dilation = (2, 2)


@pytest.mark.parametrize("change", [with_1x1, with_a_norm, with_another_slope, with_no_bias, with_a_stride])
def test_another_structure_is_left_alone(change):
    """One strange block in the last place leaves the whole network as it was."""
    net = rrdb_net(2)
    change([module for module in net.modules() if type(module).__name__ == "ResidualDenseBlock_5C"][-1])
    before = [type(module) for module in net.modules()]
    assert not push(net)
    assert [type(module) for module in net.modules()] == before


def test_a_compact_network_is_left_alone():
    tensors = {name: torch.zeros(shape) for name, shape in srvgg_shapes(8, num_convs=2).items()}
    net = from_tensors(tensors, "compact").net
    assert not push(net)
    assert not any(isinstance(module, realesrgan.blocks()) for module in net.modules())


def test_channels_stay_last():
    """Else every convolution would turn its input around first."""
    _, pushed = forms(torch.float32, num_blocks=1)
    orders = []
    for module in pushed.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(
                lambda _, given: orders.append(given[0].is_contiguous(memory_format=torch.channels_last))
            )
    with torch.inference_mode():
        pushed(planes(2, 16))
    assert len(orders) == 21
    assert all(orders)


@functools.cache
def launched():
    """Name of the form -> what one forward of the published size (23 blocks) launches."""
    found = {}
    given = planes(1, 8)
    for name, net in zip(("pull", "push"), forms(torch.float32, num_blocks=23), strict=True):
        with torch.no_grad(), Launches() as launches:
            net(given)
        found[name] = launches.names
    return found


def test_what_a_forward_launches():
    """Neither form is short: one addition of a sum takes the place of one concatenation. The graph is what helps."""
    pull, pushed = launched()["pull"], launched()["push"]
    assert (pull["convolution"], pushed["convolution"]) == (351, 351)
    assert (pull["cat"], pushed["cat"]) == (276, 0)
    assert (pull["mul"], pushed["mul"]) == (92, 0)  # the damped sums are one launch each
    assert (sum(pull.values()), sum(pushed.values())) == (1093, 1001)
