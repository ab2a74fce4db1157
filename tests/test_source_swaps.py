"""A recording that is replaced while it is worked on: no row of another file is ever stored under its name."""

import os
import shutil

import numpy as np
import pytest

from extract.inputs import media
from extract.running import fingerprints as sources
from tests.bench import Bench
from tests.media_files import pictures, write_clip
from tests.toy_stages import Colour, expected_mean

pytestmark = pytest.mark.usefixtures("toys")

FRAMES = 64


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path)
    bench.add("a", FRAMES)
    return bench


def another(bench):
    """A file of as many frames, of other pictures."""
    return write_clip(bench.root / "another.mov", [255 - image for image in pictures(FRAMES)])


def at_row(monkeypatch, row, act):
    """Call ``act`` when ``colour`` gets to ``row``."""
    real, done = Colour.compute, [0]

    def compute(self, batch):
        before, done[0] = done[0], done[0] + len(batch["frames.image"])
        if before <= row < done[0]:
            act()
        return real(self, batch)

    monkeypatch.setattr(Colour, "compute", compute)


def swap(bench, other):
    """Put ``other`` in the clip's place; what was there stands where ``other`` was."""
    path, aside = bench.clips["a"].video, bench.root / "aside.mov"
    os.rename(path, aside)
    os.rename(other, path)
    os.rename(aside, other)


def assert_of_the_true_clip(bench):
    mean = bench.store.read("a", "colour", "mean").values
    assert np.abs(mean - expected_mean(pictures(FRAMES))).max() < 1e-4


def test_swapped_when_it_is_opened_and_back_before_the_next_run(bench, monkeypatch):
    other = another(bench)
    real = media.open_video
    with monkeypatch.context() as patch:

        def opens(path, **keys):
            swap(bench, other)
            return real(path, **keys)

        patch.setattr(media, "open_video", opens)
        report = bench.run("colour")
    assert {failure.reason for failure in report.failures} == {"source_changed"}
    assert bench.files() == {}
    swap(bench, other)
    assert bench.run("colour").exit_code == 0
    assert_of_the_true_clip(bench)


def test_swapped_back_before_the_first_commit(bench, monkeypatch):
    """At every commit the path leads to the right file: what counts as well is what the decoder opened."""
    other = another(bench)
    real = media.Video.frames

    def frames(self, wanted=None):
        if wanted is not None:  # not while it is only probed
            swap(bench, other)
        return real(self, wanted)

    monkeypatch.setattr(media.Video, "frames", frames)
    at_row(monkeypatch, 0, lambda: swap(bench, other))
    report = bench.run("colour")
    assert {failure.reason for failure in report.failures} == {"source_changed"}
    assert bench.files() == {}


def test_overwritten_in_place_and_restored_with_its_old_times(bench, monkeypatch):
    path, whole_compute = bench.clips["a"].video, Colour.compute
    whole, status = path.read_bytes(), path.stat()
    other = another(bench).read_bytes()
    at_row(monkeypatch, 16, lambda: path.write_bytes(other))
    report = bench.run("colour")
    assert {failure.reason for failure in report.failures} == {"source_changed"}
    assert "a.mov changed while it was being worked on; run again" in report.failures[0].message
    stored = bench.files().keys()
    assert "a/colour/mean/c.1.0" not in stored
    path.write_bytes(whole)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    monkeypatch.setattr(Colour, "compute", whole_compute)
    assert bench.run("colour").exit_code == 0
    assert_of_the_true_clip(bench)


def test_the_same_bytes_copied_anew_are_the_same_source(bench, monkeypatch):
    """A synchronised folder, a restored backup: another inode, other times, no reason to fail."""
    path = bench.clips["a"].video
    copy = bench.root / "copy.mov"

    def replace():
        shutil.copyfile(path, copy)
        os.replace(copy, path)

    at_row(monkeypatch, 16, replace)
    assert bench.run("colour").exit_code == 0
    assert_of_the_true_clip(bench)


def test_gone_in_the_middle(bench, monkeypatch):
    at_row(monkeypatch, 16, bench.clips["a"].video.unlink)
    report = bench.run("colour")
    assert {failure.reason for failure in report.failures} == {"source_changed"}


def test_an_untouched_file_is_hashed_once(bench, monkeypatch):
    hashed = []
    real = sources._hash_of
    monkeypatch.setattr(sources, "_hash_of", lambda path: hashed.append(path.name) or real(path))
    assert bench.run().exit_code == 0
    assert hashed == ["a.mov"]
