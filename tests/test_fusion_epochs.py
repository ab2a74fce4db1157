"""Epochs: every frame once, in an order of its own, until nothing gets better."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from extract.errors import UsageError
from fusion.config import FusionConfig, TrainingConfig
from fusion.epochs import best_epoch, epoch_batches, plateau_factor, training_pool


def frames_only(number: int, clips: int = 1) -> SimpleNamespace:
    """What ``epoch_batches`` reads of samples."""
    clip = np.arange(number) * clips // number
    return SimpleNamespace(clip=clip, frame=np.arange(number), targets={})


@pytest.mark.parametrize(("frames", "steps"), [(300, 10), (257, 1), (2, 1), (1000, 1), (256, 3)])
def test_every_pass_of_an_epoch_sees_every_frame_once_in_even_batches(frames, steps):
    config = FusionConfig(training=TrainingConfig(min_epoch_steps=steps))
    batches = epoch_batches(frames_only(frames), np.arange(frames), config, epoch=1)
    per_pass = -(-frames // 256)
    passes = -(-steps // per_pass)
    assert len(batches) == per_pass * passes
    sizes = {len(batch) for batch in batches}
    assert max(sizes) <= 256
    assert max(sizes) - min(sizes) <= 1
    counts = np.bincount(np.concatenate(batches), minlength=frames)
    assert (counts == passes).all()


def test_segments_are_runs_of_neighbours_and_see_every_frame_once():
    config = FusionConfig.model_validate({
        "data": {"sampler": "segments", "segment": 8},
        "training": {"batch": 32, "min_epoch_steps": 1},
    })
    batches = epoch_batches(frames_only(500, 5), np.arange(500), config, epoch=1)
    assert sorted(np.concatenate(batches).tolist()) == list(range(500))
    steps = np.concatenate([np.diff(batch) for batch in batches])
    assert (steps == 1).mean() > 0.8
    again = epoch_batches(frames_only(500, 5), np.arange(500), config, epoch=2)
    assert any(one.tolist() != other.tolist() for one, other in zip(batches, again, strict=False))


def test_an_epoch_ends_after_so_many_steps():
    config = FusionConfig(training=TrainingConfig(batch=32, max_epoch_steps=3))
    assert len(epoch_batches(frames_only(500), np.arange(500), config, epoch=1)) == 3


def test_stride_and_ml_ros_choose_what_is_trained_on():
    """The worked example of situtech.md: of ten samples only the one with label C is cloned, twice."""
    au = np.zeros((20, 12), dtype=np.int8)
    au[:12, 0] = 1
    au[12:16, :2] = 1
    au[16:18, 1] = 1
    au[18:, 1:3] = 1
    samples = frames_only(20)
    samples.targets, samples.labels = {"au": None}, torch.from_numpy(au)
    config = FusionConfig.model_validate({"data": {"stride": 2, "ml_ros": 50}})
    pool = training_pool(samples, config)
    assert pool.tolist() == [*range(0, 20, 2), 18, 18]
    with pytest.raises(UsageError, match=r"1 frames are left by data\.stride 20"):
        training_pool(samples, FusionConfig.model_validate({"data": {"stride": 20}}))


def test_epochs_are_shuffled_differently_and_repeatably():
    config = FusionConfig(training=TrainingConfig(seed=5, min_epoch_steps=2))

    def order(epoch, config=config):
        return np.concatenate(epoch_batches(frames_only(100), np.arange(100), config, epoch))

    first, again, second = order(1), order(1), order(2)
    np.testing.assert_array_equal(first, again)
    assert (first != second).any()
    assert (first[:100] != first[100:]).any()
    other = FusionConfig(training=TrainingConfig(seed=6, min_epoch_steps=2))
    assert (first != order(1, other)).any()


def test_best_epoch_is_the_first_of_the_best_or_the_last_without_val():
    assert best_epoch([{"val_score": value} for value in (0.1, 0.3, 0.3, 0.2)]) == 2
    assert best_epoch([{"val_score": None}] * 3) == 3


def test_the_plateau_factor_is_torchs_scheduler():
    settings = TrainingConfig(schedule="plateau")
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.8, patience=5)
    losses = [1.0, 0.9, *[0.9 - 1e-5] * 9, 0.5, *np.linspace(0.6, 0.4999, 20).tolist(), 0.3, *[0.4] * 13]
    history = []
    for loss in losses:
        assert plateau_factor(history, settings) == pytest.approx(optimizer.param_groups[0]["lr"])
        history.append({"loss": 9.0, "val_loss": loss})
        scheduler.step(loss)
    assert plateau_factor(history, settings) < 0.6
    assert plateau_factor(history, TrainingConfig()) == 1
