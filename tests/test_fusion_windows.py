"""Windows that leave rows out, and when their rows were."""

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from extract.store import Store
from fusion.config import FusionConfig
from fusion.loading import load_samples
from tests.fusion_stores import add_instance
from tests.test_fusion_data import CONFIG, add_video, gathered, rows_of


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store.zarr", "a")


@pytest.mark.parametrize(
    "window",
    [{"before": 4, "after": 2, "stride": 2}, {"frames": 8, "span_s": 0.2}, {"frames": 3, "span_s": 0.04}],
)
def test_strided_windows_leave_rows_out(store, window):
    """Against their definitions: every stride-th frame; or n moments spread evenly, each with the nearest frame."""
    valid = {"a": [1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 1, 1], "b": [1] * 3}
    for clip, flags in valid.items():
        add_video(store, clip, num_frames=len(flags), valid=flags)
    modality = {"kind": "context", "instance": "swin", "array": "feature"} | window
    config = FusionConfig.model_validate({"modalities": {"face": {**modality}}})
    samples = load_samples(store, ["a", "b"], config)
    for i in range(len(samples)):
        clip, t = samples.clips[samples.clip[i]], int(samples.frame[i])
        flags = valid[clip]
        if "stride" in window:
            wanted = range(t - 8, t + 5, 2)
        else:
            span, count = Fraction(str(window["span_s"])), window["frames"]
            moments = [Fraction(t, 25) - span + 2 * span * k / (count - 1) for k in range(count)]
            # The nearest frame, the earlier of two that are equally near; none beyond half a frame of the ends.
            wanted = [math.ceil(moment * 25 - Fraction(1, 2)) for moment in moments
                      if -Fraction(1, 2) <= moment * 25 <= len(flags) - Fraction(1, 2)]  # fmt: skip
        expected = [u for u in wanted if 0 <= u < len(flags) and flags[u]]
        assert rows_of(samples, "face", i) == expected
    assert samples.windows["face"].rows is not None


def test_a_clip_without_the_strided_modality(store):
    add_video(store, "a", num_frames=4)
    add_video(store, "b", num_frames=3)
    add_instance(store, "b", "swin", {}, state="empty", reason="no_video")
    add_video(store, "c", num_frames=2)
    modality = {"kind": "context", "instance": "swin", "array": "feature", "before": 1, "after": 1, "stride": 2}
    samples = load_samples(store, ["a", "b", "c"], FusionConfig.model_validate({"modalities": {"face": modality}}))
    assert [rows_of(samples, "face", i) for i in range(9)] == [[0, 2], [1, 3], [0, 2], [1, 3], [], [], [], [0], [1]]
    batch = samples.batch(np.arange(9))
    assert [gathered(batch.inputs["face"], i) for i in range(9)] == [rows_of(samples, "face", i) for i in range(9)]


def test_rows_know_when_they_were_relative_to_their_frame(store):
    add_video(store, "a", num_frames=6, valid=[1, 1, 0, 1, 1, 1])
    samples = load_samples(store, ["a"], CONFIG)
    rows = samples.batch(np.array([3, 0]), times=True).inputs
    motion = rows["motion"]  # frames 1, 3, 4 around frame 3; 0, 1 around frame 0
    torch.testing.assert_close(motion.times[:3, 0], torch.tensor([-2.0, 0.0, 1.0]) / 25)
    torch.testing.assert_close(motion.times[:2, 1], torch.tensor([0.0, 1.0]) / 25)
    sound = rows["sound"]
    centres = (320 * torch.arange(30) + 200) / 16000
    assert gathered(sound, 0) == [s for s in range(30) if 0.12 - 0.1 <= centres[s] < 0.12 + 0.1]
    steps = torch.tensor(gathered(sound, 0)).long()
    torch.testing.assert_close(sound.times[: len(steps), 0], centres[steps] - 0.12, atol=1e-6, rtol=0)


def test_a_batch_in_any_order_carries_its_own_labels(store):
    au = np.arange(8 * 12).reshape(8, 12).astype(np.int8) % 2
    au[:, 3] = np.arange(8) % 3 - 1
    add_video(store, "a", num_frames=8, au=au)
    batch = load_samples(store, ["a"], CONFIG).batch(np.array([6, 0, 3]))
    np.testing.assert_array_equal(batch.targets["au"].numpy(), au[[6, 0, 3]])
    assert batch.inputs["face"].values[:, 0].tolist() == [6, 0, 3]
    assert len(batch) == 3
