"""`extract run --stage hubert` on sound as people bring it: features of what is heard, or the reason why not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import extract
from extract.inputs.manifest import Clip
from extract.models import random
from extract.store import Store
from tests.media_files import pictures, tone, write_clip
from tests.stages.test_hubert import ready, run

SET = ("hubert.weights=random", "hubert.architecture=small", "hubert.dtype=float32", "run.cpu_threads=1")
FPS = 25


class Desk:
    def __init__(self, root: Path) -> None:
        self.root = root

    def hear(self, name: str, sound: Any, num_frames: int = 0, **how: Any) -> tuple[Any, Store]:
        """The report of a run on one file with ``sound``, and the store; ``num_frames`` of picture beside it."""
        path = write_clip(self.root / name, pictures(num_frames), sound=sound, **how)
        named = {"video": path} if num_frames else {"audio": path}
        store = self.root / f"{path.stem}.zarr"
        report = extract.run([Clip(id="a", **named)], store, "default", set=SET, stages=("hubert",), device="cpu")
        return report, Store.open(store)

    def features(self, name: str, sound: Any, num_frames: int = 0, **how: Any) -> np.ndarray:
        report, store = self.hear(name, sound, num_frames, **how)
        assert report.exit_code == 0, report.failures
        found: np.ndarray = store.read("a", "hubert", "feature").values
        assert np.isfinite(found).all()
        assert len(found) == len(store.read("a", "hubert", "centre_s").values)
        return found


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


def voice(duration_s, hz=16_000):
    """Three tones that swell, at any rate of samples: float64 [n], at most 0.3."""
    at = np.arange(round(duration_s * hz)) / hz
    tones = sum(np.sin(2 * np.pi * frequency * at) for frequency in (180.0, 710.0, 2_300.0))
    return 0.1 * tones * (0.6 + 0.4 * np.sin(9 * at))


def of_samples(samples):
    """Oracle: the stage on the samples themselves."""
    return run(ready(), torch.from_numpy(np.asarray(samples, dtype=np.float32))).arrays["feature"].numpy()


def apart(found, expected):
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_sixteen_kilohertz_are_the_stages_own(desk):
    assert apart(desk.features("a.wav", voice(1), sound_codec="pcm_f32le"), of_samples(voice(1))) < 1e-5


def test_silence_is_finite_and_all_steps_are_there(desk):
    """Variance 0: the normalisation's epsilon keeps it from dividing by it."""
    found = desk.features("a.wav", np.zeros(16_000))
    assert apart(found, of_samples(np.zeros(16_000))) < 1e-5
    assert found.shape == (49, 64)
    assert desk.features("b.wav", np.zeros(32_000)).shape == (99, 64)


@pytest.mark.parametrize(("duration_s", "rows"), [(0.02, 0), (0.02494, 0), (0.025, 1), (0.0449, 1), (0.045, 2)])
def test_shorter_than_a_step_is_empty(desk, duration_s, rows):
    """25 ms are one step; 20 ms more, two."""
    report, store = desk.hear("a.wav", voice(duration_s))
    assert report.exit_code == 0, report.failures
    record = store.record("a", "hubert")
    assert record.rows == rows
    if not rows:
        assert (record.state, record.reason) == ("empty", "too_short")
        assert record.notes == {"samples": round(duration_s * 16_000)}
        with pytest.raises(extract.errors.StoreError, match="too_short"):
            store.read("a", "hubert", "feature")


def test_clipping(desk):
    """Twice full scale, cut off by the recorder: taken as it is."""
    cut = np.clip(8 * voice(1), -1, 1)
    assert np.mean(np.abs(cut) == 1) > 0.1
    assert apart(desk.features("a.wav", cut), of_samples(np.rint(cut * (2**15 - 1)) / 2**15)) < 1e-5


def test_floats_beyond_full_scale_are_clipped_and_noted(desk):
    loud = 8 * voice(1)
    report, store = desk.hear("a.wav", loud, sound_codec="pcm_f32le")
    assert report.exit_code == 0
    assert store.record("a", "hubert").notes["clipped_samples"] == np.sum(np.abs(loud) > 1)
    assert apart(store.read("a", "hubert", "feature").values, of_samples(np.clip(loud, -1, 1))) < 1e-4


def test_eight_channels_are_their_mean(desk):
    channels = np.stack([voice(1) / (channel + 1) for channel in range(8)])
    found = desk.features("a.wav", channels, sound_codec="pcm_f32le")
    assert apart(found, of_samples(channels.mean(axis=0))) < 1e-4
    assert apart(found, of_samples(tone(1))) > 0.1


def test_eight_kilohertz(desk):
    """Twice as many samples come of it, and the same features but for what lies above 4 kHz, which is nothing here."""
    found = desk.features("a.wav", voice(1, 8_000), hz=8_000, sound_codec="pcm_f32le")
    expected = of_samples(voice(1))
    assert apart(found[3:-3], expected[3:-3]) < 2e-2  # the resampler's filter sees silence before and after
    noise = random.normal("wave", "eight", 16_000) / 10
    assert apart(found, of_samples(noise)) > 0.1


@pytest.mark.parametrize("sound_s", [0.4, 1.0, 2.5])
def test_the_sound_counts_whatever_the_pictures_last(desk, sound_s):
    """Pictures of one second: features of shorter sound end with it, those of longer sound go on."""
    found = desk.features("a.mov", voice(sound_s), num_frames=FPS, sound_codec="pcm_f32le")
    assert len(found) == (round(sound_s * 16_000) - 400) // 320 + 1
    assert apart(found, of_samples(voice(sound_s))) < 1e-5


def test_sound_that_starts_late_keeps_its_time(desk):
    report, store = desk.hear("a.mov", voice(1), num_frames=FPS, sound_codec="pcm_f32le", sound_start_s=0.6)
    assert report.exit_code == 0
    centres = store.read("a", "hubert", "centre_s").values
    assert np.allclose(centres, 0.6 + (np.arange(49) * 320 + 200) / 16_000, atol=1e-9)
