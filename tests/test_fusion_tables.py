"""Where the tables of a fit lie: chosen from what is free, and never a matter of values."""

from pathlib import Path

import numpy as np
import pytest
import torch

from extract.errors import ConfigError, MachineError
from extract.store import Store
from fusion import tables
from fusion.loading import load_samples
from tests.test_fusion_data import CONFIG, add_video


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store.zarr", "a")


def test_where_the_tables_lie_changes_nothing(store, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    add_video(store, "a", num_frames=9, valid=[1, 0, 1, 1, 0, 1, 1, 1, 1])
    add_video(store, "b", num_frames=5, offset=2.0)
    batches = []
    for place in ("memory", "file", "auto"):
        config = CONFIG.model_copy(update={"training": CONFIG.training.model_copy(update={"tables": place})})
        samples = load_samples(store, ["a", "b"], config)
        assert samples.home.place == ("file" if place == "file" else "memory")
        batches.append(samples.batch(np.array([3, 0, 12, 4])))
    for other in batches[1:]:
        for name, rows in batches[0].inputs.items():
            torch.testing.assert_close(other.inputs[name].values, rows.values, rtol=0, atol=0)
    assert list(tmp_path.glob("tmp*")) == []  # the file has no name and goes with its table


def test_tables_go_to_a_file_when_memory_is_short(store, monkeypatch):
    add_video(store, "a", num_frames=9)
    monkeypatch.setattr(tables, "free_memory", lambda: 100)
    assert load_samples(store, ["a"], CONFIG).home.place == "file"


def test_a_disk_that_is_too_small_is_told_before_anything_is_read(store, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    add_video(store, "a", num_frames=9)
    monkeypatch.setattr("os.posix_fallocate", full)
    config = CONFIG.model_copy(update={"training": CONFIG.training.model_copy(update={"tables": "file"})})
    with pytest.raises(MachineError, match=r"no room for 0\.0 GB of features \(No space left on device\); set TMPDIR"):
        load_samples(store, ["a"], config)


def test_a_gpu_for_the_tables_needs_one(store):
    add_video(store, "a", num_frames=9)
    config = CONFIG.model_copy(update={"training": CONFIG.training.model_copy(update={"tables": "gpu"})})
    with pytest.raises(ConfigError, match=r"fusion\.training\.tables is gpu, and the device is cpu"):
        load_samples(store, ["a"], config)


def test_free_memory_is_that_of_the_machine_or_its_container(monkeypatch, tmp_path):
    machine = tables.free_memory()
    assert 50e6 < machine < 1e14
    monkeypatch.setattr(tables, "_CGROUP", tmp_path)
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.max").write_text("1500\n")
    assert tables.free_memory() == 500
    (tmp_path / "memory.max").write_text("max\n")
    assert tables.free_memory() == pytest.approx(machine, rel=0.5)


def test_each_array_is_read_once_and_in_the_order_of_clips(store, monkeypatch):
    for clip in "abc":
        add_video(store, clip, num_frames=6)
    read, real = [], Store.read
    monkeypatch.setattr(Store, "read", lambda *key: (read.append(key[1:]), real(*key))[1])
    load_samples(store, ["a", "b", "c"], CONFIG)
    features = [key for key in read if key[2] == "feature"]
    assert features == [(clip, instance, "feature") for clip in "abc" for instance in ("swin", "hubert")]
