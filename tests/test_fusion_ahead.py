"""Batches that are gathered one step ahead: the same ones, in the same order, and no thread outlives the loop."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from extract.store import Store
from fusion import data
from fusion.data import Samples
from fusion.loading import load_samples
from tests.fusion_stores import mixed_store
from tests.test_fusion_stepping import (
    built,
    drawn_batches,
    mixed_config,
)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("mixed") / "store.zarr"
    mixed_store(path, {"a": "train", "b": "train", "c": "train", "silent": "train"})
    return path


@pytest.fixture(scope="module")
def samples(mixed) -> Samples:
    return load_samples(Store.open(mixed), ["a", "b", "c", "silent"], mixed_config())


@pytest.fixture
def ahead(samples, monkeypatch):
    """A step that gathers in a thread, as for a GPU, into memory that is not pinned."""
    real, asked = data.gather, []

    def unpinned(table, rows, *, pinned):
        asked.append(pinned)
        return real(table, rows)

    monkeypatch.setattr(data, "gather", unpinned)
    yield built(replace(samples, pinned=True), mixed_config())
    assert not asked or any(asked)


def gathering() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("gather")]


def test_batches_that_are_gathered_ahead_are_the_same_in_the_same_order(samples, ahead):
    indices = drawn_batches(samples, 12)
    names = set()
    real = ahead.gather

    def noting(index):
        names.add(threading.current_thread().name)
        return real(index)

    ahead.gather = noting
    found = list(ahead.batches(iter(indices)))
    assert len(found) == 12
    for index, batch in zip(indices, found, strict=True):
        expected = samples.batch(index)
        assert torch.equal(batch.targets["au"], expected.targets["au"])
        for name, rows in expected.inputs.items():
            assert torch.equal(batch.inputs[name].values, rows.values)
    assert len(names) == 1
    assert names != {threading.current_thread().name}
    assert gathering() == []


@pytest.mark.parametrize("number", [0, 1, 2])
def test_no_batch_one_batch_two_batches(samples, ahead, number):
    assert len(list(ahead.batches(drawn_batches(samples, number)))) == number


def test_an_error_while_gathering_arrives_at_its_batch(samples, ahead):
    indices = drawn_batches(samples, 5)
    indices[2] = np.array([len(samples) + 3])
    batches = ahead.batches(indices)
    assert [len(next(batches)) for _ in range(2)] == [32, 31]
    with pytest.raises(IndexError, match="out of bounds"):
        next(batches)
    assert gathering() == []


def test_a_loop_that_is_left_leaves_no_thread_behind(samples, ahead):
    for batch in ahead.batches(drawn_batches(samples, 40)):
        assert gathering()
        del batch
        break
    assert gathering() == []


def test_one_batch_is_gathered_ahead_and_no_more(samples, ahead):
    """Pinned memory is dear, and a batch may have hundreds of megabytes."""
    started = []
    batches = ahead.batches(index for index in drawn_batches(samples, 9) if started.append(1) is None)
    next(batches)
    assert len(started) == 2
    next(batches)
    assert len(started) == 3
    batches.close()
