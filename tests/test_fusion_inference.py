"""Outputs by distinct rows are those of plain batches, and no row is projected twice."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from extract.store import Store
from fusion import inference, recurrence
from fusion.config import FusionConfig
from fusion.data import Batch, Samples
from fusion.inference import predict_outputs
from fusion.loading import load_samples
from fusion.model import FusionModel, Projection
from fusion.training import standardise
from tests.fusion_stores import MIXED, mixed_store

CPU = torch.device("cpu")
CLIPS = ("a", "b", "silent", "c")
KINDS = [
    {},
    {"layers": 2, "readout": "last_output"},
    {"encoder": "attention", "missing": "zero_input"},
    {"encoder": "tcn", "readout": "last_output"},
    {"kind": "transformer"},
]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("mixed") / "store.zarr"
    mixed_store(path, {"a": "train", "b": "train", "c": "train", "silent": "train"})
    return path


def config_of(model=None, **training) -> FusionConfig:
    sizes = {"hidden": 4, "head": 16, "width": 8, "heads": 2, "layers": 1}
    return FusionConfig.model_validate({"modalities": MIXED, "model": sizes | (model or {}), "training": training})


def loaded(path, config, clips=CLIPS) -> Samples:
    return read_once(path, config.model_dump_json(), clips)


@cache
def read_once(path, config, clips) -> Samples:
    """Nothing writes into samples, so that tests may share them."""
    return load_samples(Store.open(path), clips, FusionConfig.model_validate_json(config), frames="all")


def network(path, config) -> FusionModel:
    """A network whose missing vectors are not zero."""
    torch.manual_seed(0)
    samples = loaded(path, config)
    model = FusionModel({name: samples.tables[key].shape[1] for name, key in samples.sources.items()}, config)
    standardise(model, samples)
    for name, parameter in model.named_parameters():
        if name.endswith("missing"):
            torch.nn.init.normal_(parameter)
    return model.eval()


def plain(model, samples, index, without=None, change=lambda batch: batch) -> np.ndarray:
    with torch.inference_mode():
        batch: Batch = change(samples.batch(index, times=True))
        return model(batch.inputs, without).numpy()


def near(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


# ---- equal to the plain way ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", KINDS)
@pytest.mark.parametrize("without", [None, {"sound": "missing"}, {"sound": "zero_input", "face": "zero_input"}])
def test_outputs_by_distinct_rows_are_those_of_plain_batches(path, monkeypatch, model, without):
    config = config_of(model)
    net, samples = network(path, config), loaded(path, config)
    expected = plain(net, samples, np.arange(len(samples)), without)
    assert np.ptp(expected, axis=0).min() > 1e-3
    for group, size in ((4096, 256), (1, 7)):
        monkeypatch.setattr(inference, "GROUP", group)
        monkeypatch.setattr(inference, "CHUNK_VALUES", 50)
        near(predict_outputs(net, samples, CPU, size, without=without), expected)


def test_samples_that_are_chosen_come_in_their_order(path):
    config = config_of()
    net, samples = network(path, config), loaded(path, config)
    whole = predict_outputs(net, samples, CPU)
    for index in (np.array([3]), np.array([0, 5, 41, 100, 159]), np.flatnonzero(samples.clip == 2), np.empty(0, int)):
        near(predict_outputs(net, samples, CPU, index=index), whole[index])


@pytest.mark.parametrize("model", KINDS)
def test_the_order_of_clips_and_what_is_beside_them_change_nothing(path, model):
    config = config_of(model)
    net, samples = network(path, config), loaded(path, config)
    for without in (None, {"sound": "zero_input", "words": "zero_input"}):
        expected = predict_outputs(net, samples, CPU, without=without)
        for clips in (("c", "silent", "b", "a"), ("silent",), ("b", "silent")):
            other = loaded(path, config, clips)
            found = predict_outputs(net, other, CPU, 11, without=without)
            for number, clip in enumerate(clips):
                near(found[other.clip == number], expected[samples.clip == CLIPS.index(clip)])


def test_where_the_tables_lie_changes_nothing(path):
    net = network(path, config_of())
    one, other = (predict_outputs(net, loaded(path, config_of(tables=place)), CPU) for place in ("memory", "file"))
    np.testing.assert_array_equal(one, other)


def test_no_sample_and_no_row(path):
    config = config_of()
    net = network(path, config)
    assert predict_outputs(net, loaded(path, config), CPU, index=np.empty(0, int)).shape == (0, 12)
    silent = loaded(path, config, ("silent",))
    assert silent.missing()["sound"] == silent.missing()["words"] == len(silent) == 40


# ---- a modality taken away -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", KINDS)
@pytest.mark.parametrize("name", MIXED)
def test_without_zero_input_is_feeding_zeros(path, model, name):
    """Rows of zeros in the windows that there are, one such row at the frame's own time where there is none."""
    config = config_of(model)
    net, samples = network(path, config), loaded(path, config)

    def zeroed(batch):
        rows = batch.inputs[name]
        none = rows.lengths == 0
        assert none.any()
        times = torch.where(none, 0.0, rows.times)
        rows = replace(rows, values=rows.values * 0, lengths=rows.lengths.clamp(min=1), times=times)
        return replace(batch, inputs=batch.inputs | {name: rows})

    found = predict_outputs(net, samples, CPU, without={name: "zero_input"})
    near(found, plain(net, samples, np.arange(len(samples)), change=zeroed))
    assert np.abs(found - predict_outputs(net, samples, CPU)).max() > 1e-3
    # Where it was missing anyway, `missing: zero_input` has said so before.
    if net.kind == "branches" and model.get("missing") == "zero_input":
        absent = samples.windows[name].lengths == 0
        near(found[absent], predict_outputs(net, samples, CPU)[absent])


def test_a_frame_of_the_transformer_without_a_modality_is_a_row_of_zeros_at_its_own_time(path):
    config = config_of({"kind": "transformer", "missing": "zero_input"})
    net, samples = network(path, config), loaded(path, config)
    for name in MIXED:
        absent = samples.windows[name].lengths == 0
        whole, ablated = (predict_outputs(net, samples, CPU, without=how) for how in (None, {name: "zero_input"}))
        near(ablated[absent], whole[absent])


@pytest.mark.parametrize("name", MIXED)
def test_without_missing_is_a_clip_that_never_had_it(path, name):
    config = config_of()
    net, samples = network(path, config), loaded(path, config)
    windows = samples.windows[name]
    none = replace(windows, ranges=np.zeros_like(windows.ranges))
    bare = replace(samples, windows={**samples.windows, name: none})
    near(predict_outputs(net, samples, CPU, without={name: "missing"}), predict_outputs(net, bare, CPU))


# ---- no row is projected twice ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [1, 50, 4096])
def test_each_row_is_projected_once(path, monkeypatch, group):
    """Whatever the groups of clips: windows of steps, neighbours, strided ones, tokens."""
    monkeypatch.setattr(inference, "GROUP", group)
    config = config_of()
    net, samples = network(path, config), loaded(path, config)
    given = {name: [] for name in MIXED}
    real = Projection.forward

    def noting(projection, rows):
        (name,) = [name for name in MIXED if net.projection(name) is projection]
        given[name].append(rows.clone())
        return real(projection, rows)

    entered = []
    real_gates = recurrence.gates
    monkeypatch.setattr(recurrence, "gates", lambda layer, rows: entered.append(len(rows)) or real_gates(layer, rows))
    monkeypatch.setattr(Projection, "forward", noting)
    predict_outputs(net, samples, CPU, 16)
    # Nor does the first layer of a GRU multiply one twice.
    assert sum(entered) == sum(len(rows) for name, many in given.items() if name != "face" for rows in many)
    for name, windows in samples.windows.items():
        table = samples.tables[samples.sources[name]]
        used = {row for start, stop in windows.ranges for row in range(start, stop)}
        if windows.rows is not None:
            used = {windows.rows[place] for place in used}
        rows = torch.cat(given[name])
        assert len(rows) == len(used)
        assert len(used) < sum(windows.lengths) or name == "face"
        assert torch.equal(rows, table[sorted(used)])


def test_groups_are_whole_clips(monkeypatch):
    monkeypatch.setattr(inference, "GROUP", 5)
    clip = np.repeat([0, 1, 4, 5, 7], [2, 3, 9, 1, 1])
    found = [(part.start, part.stop) for part in inference._groups(clip)]
    assert found == [(0, 5), (5, 14), (14, 16)]
    assert list(inference._groups(np.empty(0, dtype=np.int64))) == []


# ---- while training --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", KINDS)
def test_distinct_rows_while_training_give_the_same_outputs_and_gradients(path, model):
    """A batch of runs of neighbours, as of the sampler ``segments``."""
    config = config_of(model | {"dropout": 0.0, "modality_dropout": 0.0})
    net, samples = network(path, config), loaded(path, config)
    net.train().double()
    index = np.concatenate([np.arange(16) + start for start in (3, 50, 100, 140)])
    gradients, outputs, rows = [], [], []
    for distinct in (False, True):
        batch = samples.batch(index, times=True, distinct=distinct)
        rows.append(sum(len(each.values) for each in batch.inputs.values()))
        outputs.append(net(batch.inputs))
        weights = torch.linspace(-1, 1, outputs[-1].numel(), dtype=torch.float64).view_as(outputs[-1])
        net.zero_grad()
        (outputs[-1] * weights).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in net.parameters()])
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-9)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-9)
    assert rows[1] < 0.35 * rows[0]
