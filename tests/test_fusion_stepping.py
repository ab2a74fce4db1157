"""The captured step is the plain step: the same losses, the same network, and a capture leaves no trace.

A graph that is captured and replayed is simulated on the CPU (``recording``): the work runs once at capture, and each
replay runs it again over the same buffers. The real ones are in test_fusion_gpu.py.
"""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from extract.au import AUS
from extract.store import Store
from fusion import data, stepping
from fusion.config import FusionConfig, TrainingConfig
from fusion.data import Samples, Windows
from fusion.loading import load_samples
from fusion.model import LARGE_SHIFT, FusionModel, Projection
from fusion.stepping import (
    TrainStep,
    bucket,
    empty_like,
    layout_of,
    make_optimizer,
    restore_optimizer,
    set_rate,
    with_spare_rows,
)
from fusion.tables import Home
from fusion.tasks import Objective, tasks_of
from fusion.training import fit, standardise
from tests.fusion_stores import MIXED, mixed_store
from tests.simulated_device import SimulatedDevice
from tests.test_fusion_training import assert_same_tensors, interrupt_after, tensors

CPU = torch.device("cpu")
STEADY = {"dropout": 0.0, "modality_dropout": 0.0}


MODALITIES = {name: MIXED[name] for name in ("face", "words")} | {
    "sound": MIXED["sound"] | {"before_s": 0.1, "after_s": 0.12}
}


def mixed_config(*, model=None, **training) -> FusionConfig:
    """11 steps of sound, which short windows of the edges share a batch with, and 0 to 3 words."""
    return FusionConfig.model_validate({
        "modalities": MODALITIES,
        "model": {"hidden": 4, "head": 16, "width": 8, "heads": 2} | (model or {}),
        "training": {"batch": 16} | training,
    })


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("mixed") / "store.zarr"
    mixed_store(path, {"a": "train", "b": "train", "c": "train", "silent": "train"})
    return path


@pytest.fixture(scope="module")
def samples(mixed) -> Samples:
    return load_samples(Store.open(mixed), ["a", "b", "c", "silent"], mixed_config())


def recording(work):
    """A capture: runs the work once, and returns what repeats it."""
    work()
    return work


def built(samples: Samples, config: FusionConfig, capture=None, *, distinct=False, double=False) -> TrainStep:
    """A step on a network that is the same for every call."""
    torch.manual_seed(1)
    tasks = tasks_of(config, samples.aus)
    sizes = {name: samples.tables[source].shape[1] for name, source in samples.sources.items()}
    model = FusionModel(sizes, config)
    standardise(model, samples)
    model.train()
    optimizer = make_optimizer(model, config.training, CPU)
    objective = Objective(tasks, config.loss, samples.aus)
    if double:
        model, objective = model.double(), objective.double()
    return TrainStep(model, objective, samples, optimizer, config.training, CPU, distinct=distinct, capture=capture)


def drawn_batches(samples: Samples, number: int, sizes=(32, 31, 24)) -> list:
    """Every third batch is of the clip without sound, so that its rectangles are short."""
    random = np.random.default_rng(2)
    pools = [np.arange(len(samples))] * 2 + [np.flatnonzero(samples.clip == samples.clip.max())]
    return [random.permutation(pools[i % 3])[: sizes[i % 3]] for i in range(number)]


def assert_near(one: TrainStep, other: TrainStep, most: float) -> None:
    for (name, value), expected in zip(one.model.state_dict().items(), other.model.state_dict().values(), strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=most, msg=lambda text, name=name: f"{name}: {text}")


# ---- graph and eager -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "distinct", "double", "steps"),
    [
        ({}, False, False, 200),
        ({"layers": 1}, True, True, 60),
        ({"encoder": "attention", "missing": "zero_input"}, False, True, 60),
        ({"encoder": "tcn"}, True, True, 60),
        ({"kind": "transformer"}, True, True, 60),
    ],
)
def test_many_steps_of_graphs_are_as_many_plain_steps(samples, model, distinct, double, steps):
    """Padded rectangles against tight ones. Each batch is spoilt before its replay: only the graph's own is read.

    Most in float64: AdamW divides the rounding error of a gradient that is 0 (a bias before a softmax) by itself, and
    two roundings may fall on either side of a ReLU's kink.
    """
    config = mixed_config(model=STEADY | model)
    given = {}

    def spoiling(work):
        work()

        def replay():
            for rows in given["batch"].inputs.values():
                rows.values.fill_(float("nan"))
                rows.lengths.fill_(-7)
            work()

        return replay

    plain = built(samples, config, double=double)
    graphs = built(samples, config, spoiling, distinct=distinct, double=double)
    losses = []
    for index in drawn_batches(samples, 20) * (steps // 20):
        given["batch"] = graphs.gather(index)
        losses.append((plain(plain.gather(index)).item(), graphs(given["batch"]).item()))
    expected, found = np.array(losses).T
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert expected[-20:].mean() < 0.98 * expected[:20].mean()
    assert len(graphs._graphs) >= 3
    assert_near(graphs, plain, 1e-9 if double else 1e-5)


def test_with_dropout_they_are_equal_to_the_last_bit_at_the_same_random_state(samples):
    """On the same rectangles; captures, which draw numbers too, fall on several of the steps."""
    config = mixed_config(model={"dropout": 0.3, "modality_dropout": 0.2})
    plain, graphs = built(samples, config), built(samples, config, recording)
    found = []
    for step in (plain, graphs):
        torch.manual_seed(5)
        found.append([step(graphs.gather(index)).item() for index in drawn_batches(samples, 30)])
    assert found[0] == found[1]
    assert len(set(found[0])) == 30
    assert_near(graphs, plain, 0)


@pytest.mark.parametrize("steps_before", [0, 3])
def test_a_capture_leaves_no_trace(samples, steps_before):
    """Nor does it move anything: earlier graphs hold the addresses."""
    step = built(samples, mixed_config(), recording)
    first, other = drawn_batches(samples, 2)
    for _ in range(steps_before):
        step(step.gather(first))
    random = torch.get_rng_state()
    before = copy.deepcopy((step.model.state_dict(), step.optimizer.state_dict()))
    places = {name: value.data_ptr() for name, value in step.model.state_dict().items()}
    moments = {id(p): state["exp_avg"].data_ptr() for p, state in step.optimizer.state.items()}
    step._captured(step.gather(other))
    assert torch.equal(torch.get_rng_state(), random)
    assert_same_tensors(step.model.state_dict(), before[0])
    assert places == {name: value.data_ptr() for name, value in step.model.state_dict().items()}
    for number, state in step.optimizer.state_dict()["state"].items():
        saved = before[1]["state"].get(number)
        assert {"step", "exp_avg", "exp_avg_sq"} == set(state)
        for key, value in state.items():
            assert torch.equal(value, saved[key]) if steps_before else not value.any()
    assert steps_before == 0 or moments == {id(p): s["exp_avg"].data_ptr() for p, s in step.optimizer.state.items()}


def test_the_learning_rate_of_a_replay_is_the_one_that_is_set(samples):
    """A rate of 0 leaves the weights alone although the graph was captured at another."""
    step = built(samples, mixed_config(), recording)
    batch = step.gather(np.arange(16))
    step(batch)
    before = copy.deepcopy(dict(step.model.named_parameters()))
    set_rate(step.optimizer, 0.0)
    step(batch)
    assert all(torch.equal(value, before[name]) for name, value in step.model.named_parameters())


def test_a_loaded_rate_stays_the_tensor_that_a_graph_reads():
    """A checkpoint's tensors lie on the CPU."""
    model = torch.nn.Linear(3, 2)

    def optimizer(rate):
        found = torch.optim.AdamW(model.parameters(), lr=torch.tensor(rate), foreach=False)
        model(torch.ones(1, 3)).sum().backward()
        found.step()
        return found

    saved, going_on = optimizer(0.25), optimizer(0.5)
    rate = going_on.param_groups[0]["lr"]
    restore_optimizer(going_on, saved.state_dict())
    assert going_on.param_groups[0]["lr"] is rate
    assert rate.item() == 0.25
    for key, value in saved.state[model.weight].items():
        assert torch.equal(going_on.state[model.weight][key], value)
    plain = torch.optim.AdamW(model.parameters(), lr=0.1)
    restore_optimizer(plain, torch.optim.AdamW(model.parameters(), lr=0.2).state_dict())
    assert plain.param_groups[0]["lr"] == 0.2


def test_a_resumed_fit_with_graphs_equals_an_unbroken_one(mixed, monkeypatch, tmp_path):
    """Stopped within an epoch; the graphs are captured at other moments then."""
    monkeypatch.setattr(stepping, "captured", recording)
    monkeypatch.setattr(stepping, "graph_wanted", lambda *_: True)
    config = mixed_config(max_epochs=2, min_epoch_steps=3, checkpoint_minutes=0.0)
    fit(mixed, tmp_path / "whole", config)
    with monkeypatch.context() as broken:
        interrupt_after(broken, 14)  # runs of the work, captures among them
        with pytest.raises(KeyboardInterrupt):
            fit(mixed, tmp_path / "broken", config)
    assert len(torch.load(tmp_path / "broken" / "checkpoint.pt", weights_only=False)["losses"]) > 0
    fit(mixed, tmp_path / "broken", config)
    for name in ("model.pt", "checkpoint.pt"):
        assert_same_tensors(tensors(tmp_path / "broken", name), tensors(tmp_path / "whole", name))
    assert (tmp_path / "broken" / "log.jsonl").read_bytes() == (tmp_path / "whole" / "log.jsonl").read_bytes()


# ---- a capture that is refused ---------------------------------------------------------------------------------------


def refusing(work):
    work()
    raise RuntimeError("operation not permitted when stream is capturing\nand more")


def test_a_refused_capture_is_told_once_and_steps_run_without(samples, caplog):
    config = mixed_config()
    graphs, plain = built(samples, config, refusing), built(samples, config, recording)
    batches = [plain.gather(index) for index in drawn_batches(samples, 4)]
    torch.manual_seed(3)
    found = [graphs(batch).item() for batch in batches]
    torch.manual_seed(3)
    plain.capture = None
    assert found == [plain(batch).item() for batch in batches]
    assert_near(graphs, plain, 0)
    told = "training.graph: no graph can be captured here (operation not permitted when stream is capturing); "
    assert [record.getMessage() for record in caplog.records] == [told + "steps run without"]


@pytest.mark.parametrize(
    ("graph", "error", "message"),
    [("on", RuntimeError, "not permitted when stream"), ("auto", torch.OutOfMemoryError, "no room")],
)
def test_a_refused_capture_raises_if_graphs_are_demanded_or_memory_is_short(samples, graph, error, message):
    def failing(work):
        work()
        raise error("operation not permitted when stream is capturing" if error is RuntimeError else "no room")

    step = built(samples, mixed_config(graph=graph), failing)
    before = copy.deepcopy(step.model.state_dict())
    with pytest.raises(error, match=message):
        step(step.gather(np.arange(16)))
    assert_same_tensors(step.model.state_dict(), before)


# ---- few layouts -----------------------------------------------------------------------------------------------------


def test_buckets_hold_every_length_and_are_at_most_an_eighth_longer():
    for longest in (1, 3, 8, 9, 13, 64, 200, 513):
        found = [bucket(length, longest) for length in range(longest + 1)]
        assert all(length <= size <= longest for length, size in enumerate(found))
        assert all(8 * size <= 9 * length for length, size in enumerate(found) if length > 8)
        assert found == sorted(found)
        assert found[0] == min(8, longest)
        assert all(bucket(size, longest) == size for size in found)
        assert len(set(found)) <= 1 + 8 * max(1, longest.bit_length() - 3)


@pytest.mark.parametrize("distinct", [False, True])
def test_few_graphs_serve_windows_of_1_to_200_rows(distinct):
    """Counted over the steps of an epoch whose batches have two sizes."""
    random = np.random.default_rng(0)
    start = random.integers(0, 800, 5000)
    windows = Windows(np.stack([start, start + random.integers(1, 201, 5000)], axis=1))
    long = samples_of(windows)
    config = FusionConfig.model_validate({
        "modalities": {"m": {"kind": "steps", "instance": "m", "array": "x", "project": 2}},
        "model": {"hidden": 2, "head": 2},
    })
    step = built(long, config, recording, distinct=distinct)
    layouts = {layout_of(step.gather(index)) for index in np.array_split(random.permutation(5000), 79)}
    assert {layout[0] for layout in layouts} == {63, 64}
    assert len(layouts) <= (12 if distinct else 4)
    captures = []
    step.capture = lambda work: captures.append(1) or recording(work)
    for number in (1, 2, 5, 70, 71, 72, 200, 3, 71):
        step(step.gather(np.flatnonzero(windows.lengths == number)[:2]))
    # Of 8, 72 and 200 rows; and of 72 that are filled, in which no column is short.
    assert len(captures) == (4 if not distinct else len(step._graphs))


def samples_of(windows: Windows) -> Samples:
    """Samples of one modality ``m`` over a table of 1000 rows."""
    number = len(windows.ranges)
    torch.manual_seed(0)
    return Samples(
        clips=("a",),
        clip=np.zeros(number, dtype=np.int64),
        frame=np.arange(number),
        pts_s=np.arange(number) / 25,
        targets={"au": torch.randint(0, 2, (number, 12), dtype=torch.int8)},
        aus=AUS,
        tables={("m", "x"): torch.randn(1000, 3)},
        row_times={("m", "x"): None},
        sources={"m": ("m", "x")},
        windows={"m": windows},
        home=Home("memory", CPU, ""),
    )


def test_spare_distinct_rows_stand_nowhere(samples):
    batch = samples.batch(np.arange(30), distinct=True)
    spare = with_spare_rows(batch)
    grown = 0
    for name, rows in batch.inputs.items():
        other = spare.inputs[name]
        grown += len(other.values) - len(rows.values)
        assert torch.equal(other.values[: len(rows.values)], rows.values)
        assert torch.equal(other.place, rows.place)
        assert len(other.values) == bucket(len(rows.values), rows.shape[0] * rows.shape[1])
    assert grown > 0
    room = empty_like(spare, CPU)
    assert layout_of(room) == layout_of(spare)


# ---- 16 bits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [{}, {"encoder": "attention"}, {"encoder": "tcn"}, {"kind": "transformer"}])
def test_bfloat16_trains_like_float32_and_keeps_its_weights_in_float32(samples, model):
    """The losses differ, so that it is not float32, but by a hundredth at most."""
    wide, narrow = (
        built(samples, mixed_config(model=STEADY | model, precision=precision), recording)
        for precision in ("float32", "bfloat16")
    )
    losses = np.array([
        [step(step.gather(index)).item() for step in (wide, narrow)] for index in drawn_batches(samples, 4) * 10
    ])
    assert (losses[:, 0] != losses[:, 1]).mean() > 0.9
    np.testing.assert_allclose(losses[:, 1], losses[:, 0], rtol=0.03)
    assert losses[-4:, 1].mean() < 0.98 * losses[:4, 1].mean()
    state = narrow.optimizer.state_dict()["state"]
    kept = [*narrow.model.parameters(), *(value for each in state.values() for value in each.values())]
    assert {value.dtype for value in kept} == {torch.float32}
    # Many small steps add up: in 16 bits, a weight of 1 would not move by 1e-3.
    assert all(parameter.grad.dtype == torch.float32 for parameter in narrow.model.parameters())


@pytest.mark.parametrize("ratio", [0.0, 3.9, 4.1, 100.0, LARGE_SHIFT * 100])
def test_a_projection_in_16_bits_is_as_near_as_16_bits_allow(ratio):
    """Features whose mean is many deviations: they are shifted before they are rounded."""
    torch.manual_seed(0)
    project = Projection(64, 8)
    deviation = torch.rand(64) + 0.5
    project.standardise_by(ratio * deviation, deviation)
    noise = torch.randn(50, 64)
    rows = ((ratio + noise) * deviation)[: 50 if ratio < 1e4 else 0]
    expected = torch.nn.functional.linear(
        (rows.double() / deviation - ratio), project.weight.double(), project.bias.double()
    )
    with torch.autocast("cpu", torch.bfloat16):
        found = project(rows)
    assert found.dtype == torch.bfloat16
    assert ((found.double() - expected).abs() < 0.03).all()


def test_rows_of_float16_enter_bfloat16_without_a_detour():
    """The same values as by way of float32, which holds both."""
    project = Projection(6, 4)
    rows = torch.randn(9, 6).half()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(project(rows), project(rows.float()))


# ---- nothing waits for the device ------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["gpu", "memory"])
@pytest.mark.parametrize("distinct", [False, True])
@pytest.mark.parametrize("encoder", ["gru", "attention"])
def test_gathering_waits_for_nothing(samples, place, distinct, encoder):
    """After a first batch, which carries the windows there, only numbers of samples (and of distinct rows) are sent."""
    expected = built(samples, mixed_config(model={"encoder": encoder}), recording, distinct=distinct)
    indices = drawn_batches(samples, 5)
    with SimulatedDevice() as device:
        there = torch.device("cuda:0")
        tables = {key: table.to(there) if place == "gpu" else table for key, table in samples.tables.items()}
        moved = replace(samples, tables=tables, home=Home(place, there if place == "gpu" else CPU, ""))
        moved = replace(moved, pinned=place == "memory", placed=data.Placed())
        step = TrainStep(
            expected.model, expected.objective, moved, expected.optimizer, expected.settings, there,
            distinct=distinct, capture=recording,
        )  # fmt: skip
        step.gather(indices[0])
        before = copy.deepcopy(device.counts)
        found = [step.gather(index) for index in indices[1:]]
        counts = device.counts - before
        assert counts.stalls.total() == 0, counts
        assert counts.fetches == 0
        assert counts.uploads == (0 if place == "memory" else 4 * (1 + 2 * len(MODALITIES) * distinct))
        values = [{name: rows.values.cpu() for name, rows in batch.inputs.items()} for batch in found]
    for index, batch in zip(indices[1:], values, strict=True):
        for name, rows in expected.gather(index).inputs.items():
            assert torch.equal(rows.values, batch[name])


def test_settings_for_graphs():
    assert not stepping.graph_wanted(TrainingConfig(), CPU)
    assert stepping.graph_wanted(TrainingConfig(), torch.device("cuda"))
    assert not stepping.graph_wanted(TrainingConfig(graph="off"), torch.device("cuda"))
