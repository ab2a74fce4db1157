"""The sound that stages of a clip hear: at the rate of its source, from a recording opened no more than needed."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch

from extract.config import ExtractConfig
from extract.inputs import media
from extract.inputs.manifest import Clip
from extract.registry import STAGES
from extract.running import runner
from extract.stage import ClipResult, ClipStage, Output, SourceStage, StageConfig
from extract.stages.wave import Wave
from extract.store import Store
from extract.timeline import Regular, Table
from tests.media_files import pictures, tone, write_clip


class Coarse(SourceStage[StageConfig]):
    """The same sound at 8 kHz."""

    name = "coarse"
    version = 1
    config_type = StageConfig
    reads = "sound"
    parts = Wave.parts

    @property
    def outputs(self):
        clock = Regular(hop_s=Fraction(1, 8_000), window_s=Fraction(1, 8_000))
        return (Output("samples", clock, (), (), "float32", kept=False),)


class Heard(ClipStage[StageConfig]):
    """The samples that it was given, as they came."""

    name = "heard"
    version = 1
    config_type = StageConfig
    inputs = ("wave.samples",)

    @property
    def outputs(self):
        return (Output("copy", Table("sample"), (), (), "float32"),)

    def compute(self, inputs):
        return ClipResult({"copy": torch.as_tensor(inputs["wave.samples"][:])})


AT_BOTH_RATES = ExtractConfig.model_validate({
    "instances": {
        "fine": {"stage": "heard"},
        "fine_again": {"stage": "heard"},
        "low": {"stage": "heard", "inputs": {"wave": "coarse"}},
        "low_again": {"stage": "heard", "inputs": {"wave": "coarse"}},
    }
})


@pytest.fixture
def opened(monkeypatch):
    """Rate -> how often the recording was opened at it."""
    for stage in (Coarse, Heard):
        monkeypatch.setitem(STAGES, stage.name, stage)
    counted: Counter[int] = Counter()
    read_audio = media.read_audio

    def counting(path, *, hz, **keys):
        counted[hz] += 1
        return read_audio(path, hz=hz, **keys)

    monkeypatch.setattr(media, "read_audio", counting)
    return counted


def test_sources_of_two_rates_give_each_its_own_samples(tmp_path, opened):
    clip = Clip(id="a", video=write_clip(tmp_path / "a.mov", pictures(25), sound=tone(1)))
    report = runner.run([clip], tmp_path / "s.zarr", AT_BOTH_RATES)
    assert report.exit_code == 0, report.failures
    assert opened == {16_000: 1, 8_000: 1}
    store = Store.open(tmp_path / "s.zarr")
    for name, hz in (("fine", 16_000), ("low", 8_000)):
        found, again = (store.read("a", instance, "copy").values for instance in (name, f"{name}_again"))
        assert len(found) == hz
        assert np.array_equal(found, again)
        middle = slice(hz // 4, -hz // 4)  # resampling rings at both ends
        assert np.allclose(found[middle], tone(1, hz)[middle], atol=2e-3)


def test_a_clip_without_sound_is_opened_once_per_rate(tmp_path, opened):
    """That there is no sound is remembered as well."""
    clip = Clip(id="a", video=write_clip(tmp_path / "a.mov", pictures(5)))
    report = runner.run([clip], tmp_path / "s.zarr", AT_BOTH_RATES)
    assert report.exit_code == 0, report.failures
    assert opened == {16_000: 1, 8_000: 1}
    store = Store.open(tmp_path / "s.zarr")
    assert {store.record("a", name).reason for name in AT_BOTH_RATES.instances} == {"no_audio"}


@pytest.mark.parametrize("instances", [{"frames": {}}, {"wave": {}, "heard": {}}])
def test_a_movie_with_a_sound_file_of_its_own_may_be_seen_alone_or_heard_alone(tmp_path, opened, instances):
    """The file that nothing in the run reads was never hashed: there is nothing to hold it to."""
    del opened
    movie = write_clip(tmp_path / "a.mov", pictures(5))
    clip = Clip(id="a", video=movie, audio=write_clip(tmp_path / "a.mkv", sound=tone(0.2)))
    report = runner.run([clip], tmp_path / "s.zarr", ExtractConfig(instances=instances))
    assert report.exit_code == 0, report.failures
    (name,) = set(instances) - {"wave"}
    record = Store.open(tmp_path / "s.zarr").record("a", name)
    assert record.state == "done"
    assert record.source.keys() == ({"media"} if name == "frames" else {"audio"})
