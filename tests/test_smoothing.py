"""Temporal smoothing against golden values and its definition, written as loops."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from extract.errors import ConfigError
from fusion.post_config import PostConfig
from fusion.smoothing import Windows, clip_bounds, frame_ranges, interpolated, second_ranges, smoothed
from tests.made_scores import drawn, scores_of


@pytest.fixture(scope="module")
def golden(golden_dir: Path):
    with np.load(golden_dir / "metrics.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def golden_scores(golden):
    lengths = np.diff(clip_bounds(golden["video"]))
    return scores_of(lengths.tolist(), golden["logits"], golden["labels"])


def by_definition(scores, size, takes_part=None, values=None):
    """The mean of frames i - size // 2 .. of the same clip, frame by frame."""
    values = scores.logits.astype(np.float64) if values is None else values
    takes_part = np.ones(len(scores), dtype=bool) if takes_part is None else takes_part
    found = values.copy()
    for row in np.flatnonzero(takes_part):
        window = range(row - size // 2, row - size // 2 + size)
        rows = [other for other in window if 0 <= other < len(scores) and scores.clip[other] == scores.clip[row]]
        found[row] = np.mean([values[other] for other in rows if takes_part[other]], axis=0)
    return found


def same(size, unit="frames", count=12):
    return Windows((float(size),) * count, unit)


@pytest.mark.parametrize(("size", "name"), [(11, "smooth_h5"), (7, "smooth_k6_h3"), (6, "smooth_k6_six")])
def test_golden(golden, golden_scores, size, name):
    np.testing.assert_allclose(smoothed(golden_scores, same(size)), golden[name], rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [1, 2, 3, 6, 7, 32, 1000])
def test_equals_the_definition(size):
    scores = drawn(0)
    np.testing.assert_allclose(smoothed(scores, same(size)), by_definition(scores, size), rtol=0, atol=1e-12)


def test_the_specs_example():
    """[0, 0, 6, 0, 0, 3], half-width 1: 0, 2, 2, 2, 1, 1.5 (specs, situtech 1.10)."""
    scores = scores_of([6], np.array([0, 0, 6, 0, 0, 3]), aus=(1,))
    np.testing.assert_array_equal(smoothed(scores, same(3, count=1))[:, 0], [0, 2, 2, 2, 1, 1.5])


def test_one_frame_is_untouched_to_the_last_bit():
    scores = drawn(1)
    np.testing.assert_array_equal(smoothed(scores, same(1)), scores.logits.astype(np.float64))


def test_a_window_per_au():
    scores = drawn(2)
    windows = Windows((6.0,) * 5 + (10.0,) + (1.0,) * 6)
    found = smoothed(scores, windows)
    for column, size in enumerate(windows.sizes):
        np.testing.assert_array_equal(found[:, column], smoothed(scores, same(size))[:, column])


def test_a_clip_does_not_depend_on_the_others_by_a_bit():
    """Also not on how many large values stand before it."""
    random = np.random.default_rng(3)
    own = random.normal(size=(50, 12))
    alone = smoothed(scores_of([50], own), same(6))
    before = random.normal(size=(4000, 12)) * 1e6
    after = random.normal(size=(3, 12))
    together = smoothed(scores_of([4000, 50, 1, 2], np.concatenate([before, own, after])), same(6))
    np.testing.assert_array_equal(together[4000:4050], alone)


def test_seconds_agree_at_25_and_30_frames_a_second():
    """A straight line has at every inner frame the mean of a window of 0.2 s, up to where the frames lie in it."""
    at_25 = scores_of([100], np.arange(100) / 25, aus=(1,), fps=25.0)
    at_30 = scores_of([120], np.arange(120) / 30, aus=(1,), fps=30.0)
    # [t - .1, t + .1): 5 frames of 1/25 (t - .08 to t + .08), 6 of 1/30 (t - .1 to t + .0667).
    ranges_25, ranges_30 = second_ranges(at_25.clip, at_25.pts_s, 0.2), second_ranges(at_30.clip, at_30.pts_s, 0.2)
    np.testing.assert_array_equal(ranges_25[50], [48, 53])
    np.testing.assert_array_equal(ranges_30[50], [47, 53])
    np.testing.assert_allclose(smoothed(at_25, same(0.2, "seconds", 1))[3:-3, 0], np.arange(3, 97) / 25, atol=1e-6)
    np.testing.assert_allclose(
        smoothed(at_30, same(0.2, "seconds", 1))[3:-3, 0], np.arange(3, 117) / 30 - 1 / 60, atol=1e-6
    )
    # At 30 frames a second six frames and 0.2 s are the same, everywhere.
    np.testing.assert_array_equal(ranges_30, frame_ranges(at_30.clip, 6))


def test_a_window_in_seconds_takes_out_the_same_wave_at_both_rates():
    """A wave of one second has mean 0 over one second; over thirty frames only at 30 frames a second."""
    at_25, at_30 = (
        scores_of([10 * rate], np.sin(2 * np.pi * np.arange(10 * rate) / rate), aus=(1,), fps=rate) for rate in (25, 30)
    )
    for scores in (at_25, at_30):
        assert np.abs(smoothed(scores, same(1.0, "seconds", 1))[20:-20]).max() < 1e-6
    assert np.abs(smoothed(at_30, same(30, count=1))[20:-20]).max() < 1e-6
    assert np.abs(smoothed(at_25, same(30, count=1))[20:-20]).max() > 0.1


def test_a_window_in_seconds_holds_its_own_frame_and_excludes_its_end():
    scores = drawn(4, fps=[30.0, 25.0, 29.97, 12.5])
    ranges = second_ranges(scores.clip, scores.pts_s, 0.4)
    rows = np.arange(len(scores))
    assert ((ranges[:, 0] <= rows) & (rows < ranges[:, 1])).all()
    for row, (start, stop) in enumerate(ranges):
        gap = np.abs(scores.pts_s - scores.pts_s[row])
        inside = scores.clip == scores.clip[row]
        # Frames clearly inside and clearly outside; those on the edge are pinned above.
        assert set(np.flatnonzero(inside & (gap < 0.2 - 1e-6))) <= set(range(start, stop))
        assert not set(np.flatnonzero(~inside | (gap > 0.2 + 1e-6))) & set(range(start, stop))


def test_masked_frames_keep_their_own_value_and_leave_the_windows():
    scores = drawn(5)
    face = np.random.default_rng(5).random(len(scores)) < 0.6
    scores = drawn(5, face=face)
    found = smoothed(scores, same(6), "mask")
    np.testing.assert_allclose(found, by_definition(scores, 6, face), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(found[~face], scores.logits[~face].astype(np.float64))
    # What a masked frame says changes nobody else.
    louder = drawn(5, face=face)
    louder.logits[~face] += 100
    np.testing.assert_array_equal(smoothed(louder, same(6), "mask")[face], found[face])
    assert np.abs(smoothed(louder, same(6), "network")[face] - found[face]).max() > 10


def test_interpolation_is_linear_in_time_and_held_at_the_ends():
    known = np.array([False, True, False, False, True, False, False])
    pts_s = np.array([0.0, 1.0, 1.5, 3.0, 5.0, 6.0, 0.0])  # the last row is another clip, without a face
    values = np.array([[9.0], [10.0], [9.0], [9.0], [30.0], [9.0], [7.0]])
    found = interpolated(values, [0, 0, 0, 0, 0, 0, 1], pts_s, known)
    np.testing.assert_allclose(found[:, 0], [10, 10, 12.5, 20, 30, 30, 7])
    np.testing.assert_array_equal(values[:, 0], [9, 10, 9, 9, 30, 9, 7])  # the input is as it was


def test_interpolated_before_smoothing():
    face = np.ones(126, dtype=bool)
    face[[0, 7, 8, 9, 30, 39, 40, 50, 125]] = False  # row 40 is a clip of one frame
    scores = drawn(6, face=face)
    filled = interpolated(scores.logits.astype(np.float64), scores.clip, scores.pts_s, face)
    assert (filled[7:10] != scores.logits[7:10]).all()
    expected = by_definition(scores, 6, values=filled)
    np.testing.assert_allclose(smoothed(scores, same(6), "interpolate"), expected, rtol=0, atol=1e-12)


def test_no_frame_and_no_au():
    assert smoothed(drawn(0, lengths=(4,), aus=()), Windows(())).shape == (4, 0)
    scores = drawn(0)
    none = replace(scores, **{name: getattr(scores, name)[:0] for name in ("clip", "pts_s", "face", "logits")})
    assert smoothed(none, same(6)).shape == (0, 12)


def test_windows_of_a_config():
    names = drawn(0).au_names
    assert set(Windows.of(PostConfig(), names).sizes) == {6.0}
    assert set(Windows.of(PostConfig(preset="none"), names).sizes) == {1.0}
    found = Windows.of(PostConfig(smooth_s=0.2, smooth_by_au={"au12": 0.5}), names)
    assert (found.unit, found.sizes[6], found.sizes[0]) == ("seconds", 0.5, 0.2)
    with pytest.raises(ConfigError, match=r"smooth_by_au: AU13 is none of the run's action units; did you mean 'AU"):
        Windows.of(PostConfig(smooth_by_au={"AU13": 4}), names)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: smoothed(drawn(0), same(6, count=11)), "11 windows for 12 AUs"),
        (lambda: smoothed(drawn(0), same(2.5)), "a window of 2.5 frames: expected a whole number from 1"),
        (lambda: smoothed(drawn(0), same(0)), "a window of 0.0 frames"),
        (lambda: smoothed(drawn(0), same(1e-10, "seconds")), "expected at least two nanoseconds"),
        (lambda: frame_ranges([0, 0, 1, 0], 3), "the frames of one clip stand apart"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
