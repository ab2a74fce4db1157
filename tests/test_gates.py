"""The gates of benchmarks/vision.py, and the weights under which float16 is as near to float32 as with trained ones."""

import functools

import numpy as np
import pytest
import torch

from benchmarks import vision
from benchmarks.gates import GateError, features_are_near, pictures_are_near, realistic
from extract.models.dense_push import push
from extract.models.realesrgan import Inference, Upscaler, enlarge, load
from extract.stages.superres import Superres, SuperresConfig
from extract.weights.resolving import resolve
from tests.stages.test_superres import pictures


@functools.cache
def drawn():
    return resolve("random", Superres(SuperresConfig(weights="random")))


@functools.cache
def enlarged(kind, *, tame=True, pushed=False):
    """A picture by the random x4plus of the published size, [1, 3, 64, 64] in [0, 1], not rounded; bare: not cut."""
    upscaler = load(realistic(drawn()) if tame else drawn())
    if pushed:
        assert push(upscaler.net)
    net = upscaler.net.to(kind).to(memory_format=torch.channels_last)
    planes = pictures((16, 16))[0].permute(2, 0, 1)[None].to(kind) / 255
    with torch.inference_mode():
        bare = net(planes.contiguous(memory_format=torch.channels_last)).double()
        return bare, enlarge(Upscaler(net, 4), planes, Inference()).double()


def levels(kind, **how):
    return enlarged(kind, **how)[1].mul(255).round()


def test_the_gain_is_that_of_the_published_file():
    """1.3e-3, a third of a grey level, is what float16 is known to cost there; and pictures are no posters."""
    bare, reference = enlarged(torch.float32)
    off = (enlarged(torch.float16)[1] - reference).abs().max()
    assert 0.65e-3 < off < 2.6e-3
    assert 0.15 < bare.std() < 0.3
    assert ((bare < 0) | (bare > 1)).double().mean() < 0.05


def test_the_weights_of_recipes_fail_the_gate_in_float16():
    """They make too much of rounding, the plain way too: why the gates draw others."""
    plain = levels(torch.float16, tame=False)
    with pytest.raises(GateError, match="within one level of float32, at least 99"):
        pictures_are_near(plain, plain, levels(torch.float32, tame=False))


def test_the_drawn_weights_stay_as_they_are():
    before = {name: values.copy() for name, values in drawn().drawn.items()}
    changed = realistic(drawn()).drawn
    assert [name for name in changed if not np.array_equal(changed[name], before[name])] == ["conv_last.weight"]
    assert all(np.array_equal(drawn().drawn[name], values) for name, values in before.items())
    assert changed["conv_last.weight"].dtype == np.float32


def test_push_form_in_float16():
    """No further from float32 than the plain way in the same numbers, but for the half that the gate allows."""
    reference, plain, pushed = (
        enlarged(torch.float32)[0], enlarged(torch.float16)[0], enlarged(torch.float16, pushed=True)[0]
    )  # fmt: skip
    assert not torch.equal(pushed, plain)
    features_are_near(pushed, plain, reference)
    said = pictures_are_near(levels(torch.float16, pushed=True), levels(torch.float16), levels(torch.float32))
    assert said.startswith("100.0000% of the levels within 1 of float32")


def test_a_way_that_errs_twice_as_much_is_refused():
    reference, plain = levels(torch.float32), levels(torch.float16)
    worse = reference.clone()
    wrong = (
        torch.rand(reference.shape, generator=torch.Generator().manual_seed(0))
        < 0.003 + 2 * (plain != reference).double().mean()
    )
    worse[wrong] += 1
    with pytest.raises(GateError, match="of the levels are not float32's, at most"):
        pictures_are_near(worse, plain, reference)
    reference, plain = enlarged(torch.float32)[0], enlarged(torch.float16)[0]
    with pytest.raises(GateError, match="relative from float32, at most"):
        features_are_near(reference + 2 * (plain - reference), plain, reference)


def test_float32_is_held_to_1e_5():
    reference = torch.ones(100)
    features_are_near(reference + 0.9e-5, reference, reference)
    with pytest.raises(GateError, match=r"1.1e-05 relative from float32, at most 1.0e-05"):
        features_are_near(reference + 1.1e-5, reference, reference)


def test_weights_that_are_not_random_are_not_damped(tmp_path):
    from dataclasses import replace

    with pytest.raises(ValueError, match="weights 'random' are not random ones"):
        realistic(replace(drawn(), drawn=None, path=tmp_path))


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_ghfeat_in_sixteen_bits(precision):
    """The stage as the pipeline calls it, norms folded and channels last, with the small network."""
    subject = vision.gh_feat(vision.Way(torch.device("cpu"), precision), "small")
    assert "relative from plain float32" in subject.gate()
