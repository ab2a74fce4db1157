"""The fusion step on a GPU: graphs against plain steps and the CPU. Without a GPU they are skipped.

REQUIRE_GPU=1 makes that a failure.
"""

import copy

import numpy as np
import pytest
import torch

from extract.store import Store
from fusion import stepping
from fusion.device import arithmetic
from fusion.inference import predict_outputs
from fusion.loading import load_samples
from fusion.stepping import make_optimizer
from fusion.training import fit
from tests.fusion_stores import mixed_store
from tests.test_fusion_stepping import STEADY, built, drawn_batches, mixed_config
from tests.test_fusion_training import assert_same_tensors, interrupt_after, tensors

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    path = tmp_path_factory.mktemp("mixed") / "store.zarr"
    mixed_store(path, {"a": "train", "b": "train", "c": "train", "silent": "train"})
    return path


def on_gpu(mixed, cuda, config, *, distinct=False):
    """The step of ``built``, with tables where ``training.tables`` says."""
    samples = load_samples(Store.open(mixed), ["a", "b", "c", "silent"], config, device=cuda)
    step = built(samples, config, distinct=distinct)
    step.model.to(cuda)
    step.objective.to(cuda)
    optimizer = make_optimizer(step.model, config.training, cuda)
    return stepping.TrainStep(
        step.model, step.objective, samples, optimizer, config.training, cuda, distinct=distinct
    )  # fmt: skip


@pytest.mark.parametrize("tables", ["gpu", "memory", "file"])
@pytest.mark.parametrize("distinct", [False, True])
def test_200_steps_of_graphs_are_200_plain_steps_and_those_of_the_cpu(mixed, cuda, tables, distinct):
    with arithmetic(cuda):
        losses = []
        steps = [
            on_gpu(mixed, cuda, mixed_config(model=STEADY, tables=tables, graph=graph), distinct=distinct)
            for graph in ("on", "off")
        ]
        for step in steps:
            indices = drawn_batches(step.samples, 20) * 10
            losses.append([step(batch) for batch in step.batches(indices)])
    found, plain = (torch.stack(each).cpu().numpy() for each in losses)
    np.testing.assert_allclose(found, plain, rtol=0, atol=1e-5)
    assert len(steps[0]._graphs) >= 3
    on_cpu = built(
        load_samples(Store.open(mixed), ["a", "b", "c", "silent"], mixed_config()), mixed_config(model=STEADY)
    )
    first = [on_cpu(on_cpu.gather(index)).item() for index in drawn_batches(on_cpu.samples, 10)]
    np.testing.assert_allclose(found[:10], first, rtol=1e-4)


@pytest.mark.parametrize("model", [{"encoder": "attention"}, {"encoder": "tcn"}, {"kind": "transformer"}])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_network_can_be_captured(mixed, cuda, model, precision):
    """``on`` raises where it cannot; with dropout, which draws other numbers in every replay."""
    step = on_gpu(mixed, cuda, mixed_config(model=model | {"dropout": 0.3}, precision=precision, graph="on", lr=1e-6))
    with arithmetic(cuda):
        index = drawn_batches(step.samples, 1)[0]
        losses = [step(step.gather(index)).item() for _ in range(12)]
    assert len(step._graphs) == 1
    assert len(set(losses)) == 12
    assert {parameter.dtype for parameter in step.model.parameters()} == {torch.float32}


def test_a_capture_leaves_no_trace(mixed, cuda):
    step = on_gpu(mixed, cuda, mixed_config(graph="on"))
    with arithmetic(cuda):
        first, other = drawn_batches(step.samples, 3)[1:]
        for _ in range(3):
            step(step.gather(first))
        random = torch.cuda.get_rng_state(cuda)
        before = copy.deepcopy((step.model.state_dict(), step.optimizer.state_dict()))
        step._captured(step.gather(other))
    assert torch.equal(torch.cuda.get_rng_state(cuda), random)
    assert_same_tensors(step.model.state_dict(), before[0])
    for number, state in step.optimizer.state_dict()["state"].items():
        assert_same_tensors(state, before[1]["state"][number])


@pytest.mark.usefixtures("cuda")
def test_a_resumed_fit_with_graphs_equals_an_unbroken_one(mixed, monkeypatch, tmp_path):
    """Within an epoch and after a warm-up: the graphs are captured anew, and read the learning rate of every step."""
    config = mixed_config(graph="on", max_epochs=2, min_epoch_steps=3, checkpoint_minutes=0.0)
    monkeypatch.setattr("fusion.training.CHECK_STEPS", 1)
    fit(mixed, tmp_path / "whole", config, device="cuda:0")
    with monkeypatch.context() as broken:
        # Four runs of the work per graph: three warm steps and the capture.
        interrupt_after(broken, 13)
        with pytest.raises(KeyboardInterrupt):
            fit(mixed, tmp_path / "broken", config, device="cuda:0")
    fit(mixed, tmp_path / "broken", config, device="cuda:0")
    for name in ("model.pt", "checkpoint.pt"):
        assert_same_tensors(tensors(tmp_path / "broken", name), tensors(tmp_path / "whole", name))


def test_the_loop_waits_for_nothing(mixed, cuda):
    """Torch itself reports any wait."""
    step = on_gpu(mixed, cuda, mixed_config(tables="gpu", graph="on"))
    index = drawn_batches(step.samples, 1)[0]
    with arithmetic(cuda):
        step(step.gather(index))
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(5):
                step(step.gather(index))
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_outputs_are_those_of_the_cpu(mixed, cuda):
    config = mixed_config()
    on_cpu = load_samples(Store.open(mixed), ["a", "b", "c", "silent"], config)
    model = built(on_cpu, config).model
    expected = predict_outputs(model, on_cpu, torch.device("cpu"))
    there = load_samples(Store.open(mixed), ["a", "b", "c", "silent"], config, device=cuda)
    with arithmetic(cuda):
        found = predict_outputs(model.to(cuda), there, cuda)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
