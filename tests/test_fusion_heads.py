"""Expressions, valence and arousal, intensities beside action units: one run carries all, each masked on its own."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import f1_score

from extract.au import AUS
from extract.errors import StoreError
from extract.store import Store
from fusion.config import FusionConfig
from fusion.inference import predict_outputs
from fusion.loading import load_samples
from fusion.model import FusionModel
from fusion.runs import Run
from fusion.tasks import Objective, main_scores, num_outputs, tasks_of
from fusion.training import fit
from tests.fusion_stores import add_clip, add_instance

TASKS = {"au": 1.0, "expr": 0.5, "va": 2.0, "intensity": 0.25}
CPU = torch.device("cpu")
CLIPS = {"a": "train", "b": "train", "c": "val"}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    """Every label is a function of Swin's features; a tenth of the frames lacks one of them, another tenth all."""
    path = tmp_path_factory.mktemp("labelled") / "store.zarr"
    store, random = Store.open(path, "a"), np.random.default_rng(0)
    directions = random.standard_normal((16, 12 + 8 + 2))
    frames = 150
    for clip, split in CLIPS.items():
        swin = random.standard_normal((frames, 16)).astype(np.float16)
        scores = swin.astype(np.float64) @ directions
        au = (scores[:, :12] > 1).astype(np.int8)
        expr = scores[:, 12:20].argmax(axis=1).astype(np.int8)
        va = np.tanh(scores[:, 20:] / 4).astype(np.float32)
        intensity = np.clip(np.round(scores[:, :12] / 2 + 1), 0, 5).astype(np.int8)
        part = random.integers(0, 10, frames)
        for number, (values, none) in enumerate(((au, -1), (expr, -1), (va, -5), (intensity, -1))):
            values[(part == number) | (part == 9)] = none
        au[part == 4, 3], va[part == 4, 1], intensity[part == 4, 5] = -1, -5, -1
        add_clip(store, clip, split=split)
        add_instance(store, clip, "frames", {"pts_s": np.arange(frames) / 25})
        add_instance(store, clip, "labels", {"au": au, "expr": expr, "va": va, "intensity": intensity})
        add_instance(store, clip, "swin", {"feature": swin, "valid": np.ones(frames, dtype=np.bool_)})
    return path


def config_of(tasks, **training) -> FusionConfig:
    return FusionConfig.model_validate({
        "modalities": {"swin": {"kind": "frame", "instance": "swin", "array": "feature", "project": 64}},
        "tasks": tasks,
        "model": {"head": 64},
        "training": {"batch": 64, "max_epochs": 8, "min_epoch_steps": 40, "lr": 0.005} | training,
    })


def closed_forms(outputs: np.ndarray, targets: dict[str, np.ndarray]) -> dict[str, float]:
    """The scores of the four tasks, from scikit-learn and written out."""
    au, expr, va, intensity = np.split(outputs.astype(np.float64), [12, 20, 22], axis=1)
    found = {"au": [], "va": [], "intensity": []}
    for k in range(12):
        known = targets["au"][:, k] >= 0
        found["au"].append(f1_score(targets["au"][known, k], au[known, k] >= 0, zero_division=0))
        known = targets["intensity"][:, k] >= 0
        y, x = targets["intensity"][known, k].astype(np.float64), intensity[known, k]
        table = np.stack([y, x], axis=1)  # [n, 2]: the two-way analysis of variance of ICC(3,1)
        n = len(table)
        rows = 2 * ((table.mean(axis=1) - table.mean()) ** 2).sum() / (n - 1)
        rest = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
        error = (rest**2).sum() / (n - 1)
        found["intensity"].append((rows - error) / (rows + error))
    for k in range(2):
        known = targets["va"][:, k] >= -1
        y, x = targets["va"][known, k].astype(np.float64), va[known, k]
        r = stats.pearsonr(x, y).statistic
        found["va"].append(2 * r * x.std() * y.std() / (x.var() + y.var() + (x.mean() - y.mean()) ** 2))
    known = targets["expr"] >= 0
    macro = f1_score(
        targets["expr"][known], expr[known].argmax(axis=1), labels=range(8), average="macro", zero_division=0
    )
    return {name: float(np.mean(values)) for name, values in found.items()} | {"expr": float(macro)}


def test_one_run_carries_all_tasks_and_each_is_learnt_and_judged_by_its_own_number(labelled, tmp_path):
    config = config_of(TASKS)
    fit(labelled, tmp_path / "run", config)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    best = Run(tmp_path / "run").model()
    assert best.model.num_outputs == 12 + 8 + 2 + 12
    val = load_samples(Store.open(labelled), ["c"], config)
    outputs = predict_outputs(best.model, val, CPU)
    expected = closed_forms(outputs, {task: labels.numpy() for task, labels in val.targets.items()})
    entry = log[best.epoch - 1]
    for task in TASKS:
        assert entry[f"val_{task}"] == pytest.approx(expected[task], abs=1e-5), task
    assert entry["val_score"] == pytest.approx(np.mean(list(expected.values())), abs=1e-5)
    assert entry["val_score"] == max(each["val_score"] for each in log)
    assert expected["au"] > 0.75
    assert expected["expr"] > 0.6
    assert expected["va"] > 0.85
    assert expected["intensity"] > 0.7


def test_the_scores_of_a_task_without_annotation_are_nan_and_in_no_mean(labelled):
    """A validation split that knows no valence: the mean is over the other tasks."""
    config = config_of(TASKS)
    tasks = tasks_of(config, AUS)
    val = load_samples(Store.open(labelled), ["c"], config)
    targets = {task: labels.numpy().copy() for task, labels in val.targets.items()}
    targets["va"][:] = -5
    outputs = np.random.default_rng(0).standard_normal((len(val), 34)).astype(np.float32)
    known = {task: labels.numpy() for task, labels in val.targets.items()}
    found, whole = (main_scores(tasks, outputs, each) for each in (targets, known))
    assert np.isnan(found["va"])
    assert all(found[task] == whole[task] for task in ("au", "expr", "intensity"))


@pytest.mark.parametrize("tasks", [{"va": 1.0}, {"expr": 1.0, "intensity": 1.0}])
def test_a_run_without_action_units(labelled, tmp_path, tasks):
    fit(labelled, tmp_path / "run", config_of(tasks, max_epochs=2))
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {name.removeprefix("val_") for name in log[0] if name.startswith("val_")} == {"loss", "score", *tasks}
    assert log[1]["val_score"] > log[0]["val_score"] > 0


# ---- masks -----------------------------------------------------------------------------------------------------------


def gradients(labelled, tasks, *, hidden=(), seed=0):
    """Parameter -> gradient of one batch, without the labels of some tasks; and the columns of each task."""
    config = config_of(tasks)
    samples = load_samples(Store.open(labelled), ["a", "b"], config)
    for task in hidden:
        none = -5 if task == "va" else -1
        samples = replace(samples, targets={**samples.targets, task: torch.full_like(samples.targets[task], none)})
    layout = tasks_of(config, AUS)
    torch.manual_seed(seed)
    model = FusionModel({"swin": 16}, config, num_outputs(tasks_of(config_of(TASKS), AUS))).eval()
    columns = {task.name: task.columns for task in tasks_of(config_of(TASKS), AUS)}
    layout = tuple(replace(task, columns=columns[task.name]) for task in layout)
    batch = samples.batch(np.arange(200))
    Objective(layout, config.loss, AUS)(model(batch.inputs), batch.targets).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}, columns


@pytest.mark.parametrize("hidden", TASKS)
def test_a_masked_task_leaves_the_gradient_of_the_others_untouched(labelled, hidden):
    """To the last bit on the columns of the last layer; and below it, what would be without the task."""
    whole, columns = gradients(labelled, TASKS)
    masked, _ = gradients(labelled, TASKS, hidden=[hidden])
    alone, _ = gradients(labelled, {task: weight for task, weight in TASKS.items() if task != hidden})
    (weight,) = [name for name, value in whole.items() if value.shape == (34, 64)]
    bias = weight.replace("weight", "bias")
    for task, part in columns.items():
        for name in (weight, bias):
            assert whole[name][part].any()
            if task == hidden:
                assert not masked[name][part].any()
            else:
                assert torch.equal(masked[name][part], whole[name][part])
    for name, value in masked.items():
        assert (value is None) == (alone[name] is None)
        if value is not None:
            torch.testing.assert_close(value, alone[name], rtol=1e-5, atol=1e-8)
    lower = "branches.swin.project.weight"
    assert not torch.equal(masked[lower], whole[lower])


def test_nothing_annotated_at_all_has_no_gradient(labelled):
    found, _ = gradients(labelled, TASKS, hidden=list(TASKS))
    assert not any(value.any() for value in found.values() if value is not None)


# ---- labels that do not fit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        ("va", np.zeros((150, 3), dtype=np.float32), r"clip c: labels/va is \(150, 3\), expected \[150 frames, 2\]"),
        ("intensity", np.zeros((150, 9), dtype=np.int8), r"labels/intensity is .*expected \[150 frames, 12 AUs\]"),
        ("expr", np.zeros(149, dtype=np.int8), r"labels/expr is \(149,\), expected \[150 frames\]"),
    ],
)
def test_labels_of_another_shape_are_refused(tmp_path, task, values, message):
    store = Store.open(tmp_path / "s.zarr", "a")
    add_clip(store, "c")
    add_instance(store, "c", "frames", {"pts_s": np.arange(150) / 25})
    add_instance(store, "c", "labels", {task: values})
    add_instance(store, "c", "swin", {"feature": np.ones((150, 4), np.float32), "valid": np.ones(150, np.bool_)})
    with pytest.raises(StoreError, match=message):
        load_samples(store, ["c"], config_of({task: 1.0}))
