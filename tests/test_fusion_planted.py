"""Planted signals: what a window holds is found, what lies just outside is not, and each modality carries its own.

Features are random numbers, each row drawn by itself; a label is whether one certain row is positive. Nothing but that
row tells it, so a score above chance is a window that holds the row.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from extract.store import Store
from fusion.config import FusionConfig
from fusion.inference import predict_outputs
from fusion.loading import load_samples
from fusion.model import FusionModel
from fusion.stepping import TrainStep, make_optimizer, set_rate
from fusion.tasks import Objective, tasks_of
from fusion.training import epoch_batches, standardise
from tests.fusion_stores import add_clip, add_instance

CPU = torch.device("cpu")
FOUND, LOST = 0.95, 0.75
"""Half of the labels are positive, so that "always" has an F1 of .67."""
FRAMES = {"train": 1200, "val": 400}
STEP_S = 320 / 16_000
TOKENS = 5

PLANTED = {
    # AU: (modality, the row that tells it, relative to the frame's first one, whether windows hold it)
    1: ("face", 0, True),
    2: ("motion", -4, True),
    4: ("motion", 4, True),
    6: ("motion", -5, False),
    7: ("motion", 5, False),
    10: ("sound", -100, True),  # exactly 2 s before
    12: ("sound", 99, True),  # one step less than 2 s after
    15: ("sound", -101, False),
    23: ("sound", 100, False),  # exactly 2 s after: the window is half-open
    24: ("words", 0, True),
    25: ("words", TOKENS - 1, True),
    26: ("words", TOKENS, False),
    27: ("words", -1, False),
}
ROWS_PER_FRAME = {"face": 1, "motion": 1, "sound": 2, "words": 3}
INSTANCES = {
    "face": ("swin", "feature"),
    "motion": ("ghfeat", "code"),
    "sound": ("hubert", "feature"),
    "words": ("roberta", "token"),
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Path:
    """Two clips. Frame n is shown when step 2 n has its centre, to the last bit."""
    path = tmp_path_factory.mktemp("planted") / "store.zarr"
    store, random = Store.open(path, "a"), np.random.default_rng(0)
    for clip, frames in FRAMES.items():
        add_clip(store, clip, split=clip)
        steps = (np.arange(2 * frames) * 320 + 200) / 16_000
        add_instance(store, clip, "frames", {"pts_s": steps[::2]})
        features = {
            name: random.choice([-1.0, 1.0], (per * frames + TOKENS, 2)).astype(np.float32)
            for name, per in ROWS_PER_FRAME.items()
        }
        au = np.full((frames, len(PLANTED)), -1, dtype=np.int8)
        for column, (name, offset, _) in enumerate(PLANTED.values()):
            row = ROWS_PER_FRAME[name] * np.arange(frames) + offset
            there = (row >= 0) & (row < ROWS_PER_FRAME[name] * frames)
            au[there, column] = features[name][row[there], 0] > 0
        recipe = {"stage": "labels", "version": 1, "config": {"aus": list(PLANTED)}}
        add_instance(store, clip, "labels", {"au": au}, recipe=recipe)
        valid = np.ones(frames, dtype=np.bool_)
        add_instance(store, clip, "swin", {"feature": features["face"][:frames], "valid": valid})
        add_instance(store, clip, "ghfeat", {"code": features["motion"][:frames], "valid": valid})
        add_instance(store, clip, "hubert", {"feature": features["sound"][: 2 * frames], "centre_s": steps})
        start = 3 * np.arange(frames)
        ranges = np.stack([start, start + TOKENS], axis=1).astype(np.int32)
        add_instance(store, clip, "roberta", {"range": ranges, "token": features["words"]})
    return path


def config_of(modalities, *, model=None, epochs=4, lr=0.02) -> FusionConfig:
    return FusionConfig.model_validate({
        "modalities": modalities,
        "model": {"hidden": 8, "layers": 1, "head": 64, "dropout": 0.0} | (model or {}),
        "loss": {"pos_weight": "none", "soft_margin_weight": "none"},
        "training": {"batch": 64, "max_epochs": epochs, "lr": lr},
    })


def fitted(path, config, *, relabel=None):
    """A trained network and the held-out samples."""
    splits = {}
    for clip in FRAMES:
        samples = load_samples(Store.open(path), [clip], config)
        splits[clip] = samples if relabel is None else replace(samples, targets={"au": relabel(clip, samples)})
    train = splits["train"]
    torch.manual_seed(0)
    sizes = {name: train.tables[key].shape[1] for name, key in train.sources.items()}
    model = FusionModel(sizes, config, len(train.aus))
    standardise(model, train)
    settings = config.training
    optimizer = make_optimizer(model, settings, CPU)
    objective = Objective(tasks_of(config, train.aus), config.loss, train.aus)
    step = TrainStep(model, objective, train, optimizer, settings, CPU)
    model.train()
    for epoch in range(1, settings.max_epochs + 1):
        set_rate(optimizer, settings.lr * min(1, 2 * (1 - (epoch - 1) / settings.max_epochs)))
        for batch in step.batches(epoch_batches(train, np.arange(len(train)), config, epoch)):
            step(batch)
    return model, splits["val"]


def scores(model, samples, without=None) -> dict[int, float]:
    """AU -> F1."""
    found = predict_outputs(model, samples, CPU, without=without) >= 0
    labels = samples.labels.numpy()
    known = labels >= 0
    return {
        au: f1_score(labels[known[:, k], k], found[known[:, k], k], zero_division=0)
        for k, au in enumerate(samples.aus)
        if known[:, k].any()
    }


@pytest.fixture(scope="module")
def network(planted):
    return fitted(
        planted,
        config_of({
            name: {"instance": instance, "array": array, "project": 8}
            | {"kind": {"face": "frame", "motion": "context", "sound": "steps", "words": "tokens"}[name]}
            for name, (instance, array) in INSTANCES.items()
        }),
    )


def test_what_a_window_holds_is_found_and_what_lies_beside_it_is_not(network):
    found = scores(*network)
    for au, (name, offset, inside) in PLANTED.items():
        assert (found[au] > FOUND) if inside else (found[au] < LOST), (name, offset, found)


@pytest.mark.parametrize("how", ["zero_input", "missing"])
@pytest.mark.parametrize("gone", INSTANCES)
def test_without_a_modality_its_signals_are_lost_and_no_others(network, gone, how):
    found = scores(*network, without={gone: how})
    for au, (name, offset, inside) in PLANTED.items():
        if name == gone or not inside:
            assert found[au] < LOST, (name, offset, found)
        else:
            assert found[au] > 0.9, (name, offset, found)


# ---- the other networks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [{"encoder": "attention"}, {"encoder": "tcn"}, {"kind": "transformer"}])
def test_other_encoders_find_what_is_in_their_window(planted, model):
    """AU 1: whether most rows of the ten within .1 s are positive; AU 2: of the ten behind them."""
    model = {"heads": 2, "width": 16} | model
    config = config_of(
        {"sound": {"kind": "steps", "instance": "hubert", "array": "feature", "before_s": 0.1, "after_s": 0.1}},
        model=model,
        epochs=7,
        lr=0.005,
    )

    def relabel(clip, samples):
        """Not annotated where five are."""
        values = Store.open(planted).read(clip, "hubert", "feature").values[:, 0]
        au = np.full((len(samples), len(PLANTED)), -1, dtype=np.int8)
        for n, frame in enumerate(samples.frame):
            for column, first in enumerate((-5, 5)):
                rows = values[max(0, 2 * frame + first) : 2 * frame + first + 10]
                if len(rows) == 10 and rows.sum():
                    au[n, column] = rows.sum() > 0
        return torch.from_numpy(au)

    trained, held_out = fitted(planted, config, relabel=relabel)
    found = scores(trained, held_out)
    assert found[1] > FOUND
    assert found[2] < LOST
    assert scores(trained, held_out, {"sound": "zero_input"})[1] < LOST


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_the_small_baselines_find_what_is_in_their_frame(planted, kind):
    config = config_of(
        {"face": {"kind": "frame", "instance": "swin", "array": "feature"}}, model={"kind": kind}, epochs=4
    )
    trained, held_out = fitted(planted, config)
    found = scores(trained, held_out)
    assert found[1] > FOUND
    assert max(found[au] for au in (2, 4, 10)) < LOST
    assert scores(trained, held_out, {"face": "missing"})[1] < LOST
