"""The sweep of windows and the correlations: numbers against direct computation, tables, pictures."""

import csv
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.stats import pearsonr

from extract.au import EXPRESSIONS
from extract.au.metrics import f1
from extract.errors import UsageError
from fusion.correlations import correlate
from fusion.pictures import (
    COLOURS,
    bar_style,
    heatmap,
    line_style,
    new_figure,
    save_figure,
    styled,
)
from fusion.post_config import PostConfig
from fusion.post_fitting import fit_post
from fusion.postprocess import PostProcess
from fusion.smoothing import Windows, smoothed
from fusion.temperature import sigmoid
from fusion.thresholds import best_thresholds
from fusion.tuning import FRAMES, tune
from tests.made_scores import drawn, scores_of


def planted(seed, split="val", clips=6, n=300):
    """AU12 stays on for ten frames at a time, AU04 for sixty: the noise of single frames is smoothed away."""
    random = np.random.default_rng(seed)
    total = clips * n
    columns = [np.repeat(random.random(total // length + 1) < 0.4, length)[:total] for length in (60, 10)]
    labels = np.stack(columns, axis=1).astype(np.int8)
    logits = 1.5 * (2 * labels - 1) + random.normal(0, 3, labels.shape)
    return scores_of([n] * clips, logits, labels, aus=(4, 12), split=split)


@pytest.fixture(scope="module")
def swept():
    return tune(planted(0), reported=planted(1, "test"))


# ---- tune -------------------------------------------------------------------------------------------------------


def test_every_point_is_what_it_says(swept):
    val, test = planted(0), planted(1, "test")
    assert swept.sizes == FRAMES == tuple(range(1, 33))
    for place in (0, 5, 20):
        windows = Windows((float(place + 1),) * 2)
        on_val, on_test = sigmoid(smoothed(val, windows)), sigmoid(smoothed(test, windows))
        best = best_thresholds(val.labels, on_val)
        np.testing.assert_allclose(swept.val.half[place], f1(val.labels, on_val >= 0.5), atol=1e-12)
        np.testing.assert_allclose(swept.val.tuned[place], best.f1, atol=1e-12)
        np.testing.assert_allclose(swept.reported.half[place], f1(test.labels, on_test >= 0.5), atol=1e-12)
        # With the thresholds of val, not with its own.
        np.testing.assert_allclose(swept.reported.tuned[place], f1(test.labels, on_test >= best.thresholds), atol=1e-12)


def test_the_best_window_is_the_shortest_near_the_best(swept):
    mean = swept.val.tuned.mean(axis=1)
    assert mean[swept.best] >= mean.max() - 0.001
    assert (mean[: swept.best] < mean.max() - 0.001).all()
    assert mean[swept.best] > mean[0] + 0.1
    long, short = (swept.sizes[place] for place in swept.best_by_au)
    assert long > 20 > 16 > short > 4  # as long as each AU stays on, or a bit less


def test_what_is_reported_selects_nothing(swept):
    alone = tune(planted(0))
    assert (alone.best, alone.best_by_au) == (swept.best, swept.best_by_au)
    np.testing.assert_array_equal(alone.val.tuned, swept.val.tuned)
    assert alone.reported is None


def test_a_choice_at_a_half():
    found = tune(planted(0), at="half", sizes=(1, 6, 12))
    assert found.best == int(np.argmax(found.val.half.mean(axis=1)))
    assert found.as_json()["selected_by"] == "mean F1 on val, at 0.5"


def test_seconds_are_frames_at_thirty_a_second():
    frames, seconds = tune(planted(0), sizes=(3, 6, 12)), tune(planted(0), unit="seconds", sizes=(0.1, 0.2, 0.4))
    # An odd window is centred in both; an even one begins k/2 before in both.
    np.testing.assert_array_equal(frames.val.tuned, seconds.val.tuned)
    assert "best window: 0.4 s, " in seconds.text()
    for found in (frames, seconds):
        assert f"({found.setting})" in found.text()
        name, value = found.setting.removeprefix("post.").split("=")
        windows = Windows.of(PostConfig(**{name: float(value)}), ["AU04", "AU12"])
        assert (windows.sizes, windows.unit) == ((found.best_size,) * 2, found.unit)


def test_one_window_alone():
    found = tune(planted(0), sizes=(6,))
    assert (found.best_size, found.best_by_au) == (6, (0, 0))
    assert found.text().startswith("best window: 6 frames, mean F1 ")
    assert found.pictures().keys() == {"tune"}


def test_an_au_without_positives_or_labels():
    val = planted(0)
    val.labels[:, 0] = np.minimum(val.labels[:, 0], 0)
    found = tune(val, sizes=(1, 6))
    assert found.best_by_au == (None, 1)
    assert "AU04                     -  no positive in val" in found.text(verbose=True)
    val.labels[:, 0] = -1
    found = tune(val, sizes=(1, 6))
    np.testing.assert_array_equal(found.val.mean("tuned"), found.val.tuned[:, 1])
    assert "AU04                     -  not annotated in val" in found.text(verbose=True)
    json.dumps(found.as_json(), allow_nan=False)
    assert found.rows()[0]["AU04"] is None
    found.pictures()
    val.labels[:] = -1
    with pytest.raises(UsageError, match="split val: no annotated frame to choose a window on"):
        tune(val)


def test_tuned_on_what_is_reported():
    val = planted(0)
    with pytest.raises(UsageError, match=r"split val: windows were selected on 6 clips"):
        tune(val, reported=val)
    found = tune(val, reported=val, allow_leak=True, sizes=(1, 6))
    assert found.leak is not None
    assert found.leak in found.text()
    assert found.as_json()["leak"] == found.leak


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"sizes": (2.5,)}, "a window of 2.5 frames: expected a whole number from 1"),
        ({"sizes": (0,)}, "a window of 0 frames"),
        ({"sizes": (-1,), "unit": "seconds"}, "a window of -1 seconds: expected a number above 0"),
        ({"reported": drawn(0, split="test")}, "windows chosen for AU04, AU12, reported AU01, AU02"),
    ],
)
def test_sweeps_that_are_refused(more, message):
    with pytest.raises(UsageError, match=message):
        tune(planted(0), **more)


def test_the_table_of_windows(swept):
    text = swept.text()
    first = text.splitlines()[0]
    assert first.startswith(f"best window: {swept.best_size:g} frames, mean F1 ")
    assert first.endswith(f"on val with tuned thresholds (at 1 frame: {100 * swept.val.tuned[0].mean():.1f})")
    assert text.count("<- best") == 1
    row = next(line for line in text.splitlines() if line.startswith("6 frames"))
    numbers = [float(cell) for cell in re.findall(r"\d+\.\d", row)]
    curves = (swept.val.half, swept.val.tuned, swept.reported.half, swept.reported.tuned)
    assert numbers == pytest.approx([100 * curve[5].mean() for curve in curves], abs=0.05)
    assert len(swept.text(verbose=True).splitlines()) > len(text.splitlines()) + 20
    assert max(map(len, swept.text(verbose=True).splitlines())) <= 100


def test_rows_and_json_hold_every_point(swept):
    rows = swept.rows()
    assert len(rows) == 2 * 2 * 32
    (row,) = [
        row for row in rows if (row["split"], row["thresholds"], row["window"]) == ("test", "with tuned thresholds", 6)
    ]
    assert (row["AU04"], row["AU12"]) == tuple(swept.reported.tuned[5])
    assert row["mean"] == pytest.approx(swept.reported.tuned[5].mean())
    plain = json.loads(json.dumps(swept.as_json(), allow_nan=False))
    assert plain["val"]["tuned"]["AU12"][5] == swept.val.tuned[5, 1]
    assert plain["best_by_au"]["AU12"] == swept.sizes[swept.best_by_au[1]]


# ---- correlate --------------------------------------------------------------------------------------------------


def with_expressions(seed=0):
    scores = drawn(seed, lengths=(400, 200))
    random = np.random.default_rng(seed)
    expr = np.where(scores.labels[:, 6] == 1, 4, random.integers(0, 8, 600)).astype(np.int8)
    expr[random.random(600) < 0.2] = -1
    return replace(scores, targets={"expr": expr})


def test_correlations_are_scipys():
    scores = with_expressions()
    found = correlate(scores)
    assert not found.processed
    for first, second in ((0, 1), (6, 11)):
        both = (scores.labels[:, first] >= 0) & (scores.labels[:, second] >= 0)
        assert found.labels.rows[first, second] == both.sum()
        expected = pearsonr(scores.labels[both, first], scores.labels[both, second]).statistic
        assert found.labels.r[first, second] == pytest.approx(expected, abs=1e-9)
        p = sigmoid(scores.logits)[both]
        assert found.predictions.r[first, second] == pytest.approx(pearsonr(p[:, first], p[:, second]).statistic)
    expr = scores.targets["expr"]
    for au, expression in ((6, 4), (0, 7)):
        both = (scores.labels[:, au] >= 0) & (expr >= 0)
        expected = pearsonr(scores.labels[both, au], expr[both] == expression).statistic
        assert found.expressions.r[au, expression] == pytest.approx(expected, abs=1e-9)
        assert found.expressions.rows[au, expression] == both.sum()
    assert found.expression_names == EXPRESSIONS
    assert found.expressions.r[6, 4] > 0.5


def test_correlations_of_a_golden_table(golden_dir):
    with np.load(golden_dir / "metrics.npz") as golden:
        scores = scores_of([281], golden["logits"], golden["labels"])
        np.testing.assert_allclose(correlate(scores).labels.r, golden["pearson_labels_pairwise"], rtol=0, atol=1e-9)
        frames = golden["valid_frames"]
        full = scores_of([int(frames.sum())], golden["logits"][frames], golden["labels"][frames])
        np.testing.assert_allclose(correlate(full).predictions.r, golden["pearson_probabilities"], rtol=0, atol=1e-9)


def test_after_post_processing():
    scores = with_expressions()
    post = fit_post(scores, PostConfig())
    found = correlate(scores, post)
    assert found.processed
    p = np.where(scores.labels >= 0, post.probabilities(scores), np.nan)
    both = ~np.isnan(p[:, 0]) & ~np.isnan(p[:, 1])
    assert found.predictions.r[0, 1] == pytest.approx(pearsonr(p[both, 0], p[both, 1]).statistic, abs=1e-9)
    assert "after post-processing" in found.text()


def test_pairs_come_by_strength_and_the_papers_are_named():
    labels = (np.random.default_rng(0).random((500, 12)) < 0.3).astype(np.int8)
    labels[:, 5] = 1 - labels[:, 0]  # AU10 against AU01: -1, as strong as it gets
    labels[:, 8] = 1  # AU23 never varies
    found = correlate(scores_of([500], 2.0 * labels, labels))
    pairs = found.pairs
    assert len(pairs) == 66
    assert (pairs[0].first, pairs[0].second, pairs[0].labels) == (1, 10, pytest.approx(-1))
    assert all(23 in (pair.first, pair.second) for pair in pairs[-11:])
    assert np.isnan([pair.labels for pair in pairs[-11:]]).all()
    assert {(pair.first, pair.second): pair.paper for pair in pairs if pair.paper} == {
        (4, 24): "AU24 <- (AU24 + AU04) / 2",
        (1, 26): "AU26 <- (AU26 + AU01 + AU02) / 3",
        (2, 26): "AU26 <- (AU26 + AU01 + AU02) / 3",
    }
    text = found.text()
    assert text.startswith("strongest of 55 pairs in the labels: AU01-AU10, r -1.00 over 500 frames; in the prediction")
    assert "-v: all 66 pairs" in text
    assert len([line for line in text.splitlines() if line.startswith("AU")]) in range(10, 14)
    assert len([line for line in found.text(verbose=True).splitlines() if line.startswith("AU")]) == 66
    json.dumps(found.as_json(), allow_nan=False)
    found.pictures()


def test_tables_of_correlations_fit_and_can_be_read_back():
    found = correlate(with_expressions())
    assert max(map(len, found.text(verbose=True).splitlines())) <= 100
    assert re.search(r"^happiness +AU12 0\.\d\d, ", found.text(), re.MULTILINE)
    rows = found.rows()
    assert len(rows) == 66 + 12 * 8
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    back = list(csv.DictReader(io.StringIO(text.getvalue())))
    assert float(back[0]["r_labels"]) == found.pairs[0].labels
    plain = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert plain["labels"]["AU01"]["AU02"] == found.labels.r[0, 1]
    assert plain["expressions"]["AU12"]["happiness"] == found.expressions.r[6, 4]


def test_another_number_of_expressions_has_no_names():
    scores = with_expressions()
    seven = replace(scores, outputs={"expr": np.zeros((600, 7), np.float32)})
    seven.targets["expr"][seven.targets["expr"] == 7] = -1
    assert correlate(seven).expression_names == tuple(f"class {number}" for number in range(7))
    none = replace(scores, targets={"expr": np.full(600, -1, np.int8)})
    assert correlate(none).expressions is None
    assert "correlate_expressions" not in correlate(none).pictures()


def test_nothing_to_correlate():
    scores = with_expressions()
    with pytest.raises(UsageError, match="split val: no annotated frame to correlate"):
        correlate(replace(scores, labels=np.full((600, 12), -1, np.int8)))
    with pytest.raises(UsageError, match="needs two action units; the scores are of AU04"):
        correlate(drawn(0, aus=(4,)))
    constant = correlate(replace(scores, labels=np.zeros((600, 12), np.int8)))
    assert constant.text().startswith("no pair of action units varies together in the labels (split val: 2 clips")


# ---- pictures ---------------------------------------------------------------------------------------------------


def test_pictures_are_saved_twice_with_the_same_bytes(tmp_path, swept):
    pictures = {**swept.pictures(), **correlate(with_expressions()).pictures()}
    assert pictures.keys() == {"tune", "correlate", "correlate_expressions"}
    for name, figure in pictures.items():
        png, svg = save_figure(figure, tmp_path / "new" / "folder", name)
        assert [path.name for path in (png, svg)] == [f"{name}.png", f"{name}.svg"]
        with Image.open(png) as image:
            assert image.size[0] > 800
            # Something is drawn, and it is not lost in grey.
            grey = np.asarray(image.convert("L"))
        assert grey.min() < 64
        assert np.median(grey) > 200
        assert svg.read_bytes().startswith(b"<?xml")
    before = png.read_bytes(), svg.read_bytes()
    save_figure(figure, png.parent, name)
    assert (png.read_bytes(), svg.read_bytes()) == before
    assert not list(tmp_path.rglob("*.partial"))


def test_lines_and_bars_differ_without_colour():
    def luminance(colour):
        red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    lines = [line_style(number) for number in range(28)]
    assert len({(line["linestyle"], line["marker"]) for line in lines}) == 28
    assert max(luminance(colour) for colour in COLOURS) < 0.75  # none is lost on white
    bars = [bar_style(number) for number in range(7)]
    assert len({(bar["facecolor"], bar["hatch"]) for bar in bars}) == 7
    assert len({bar["hatch"] for bar in bars}) == 7


def test_every_cell_of_a_heatmap_holds_its_number():
    with styled():
        axes = new_figure(4, 3).subplots()
        heatmap(axes, [[0.321, -0.05], [1.0, np.nan], [-0.001, -1.0]], ["a", "b", "c"], ["AU01", "AU02"])
    assert [text.get_text() for text in axes.texts] == [".32", "-.05", "1.00", "-", ".00", "-1.00"]
    assert [text.get_color() for text in axes.texts] == ["black", "black", "white", "black", "black", "white"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["AU01", "AU02"]
    with styled():
        axes = new_figure(4, 3).subplots()
        heatmap(axes, [[0.5, -12.25, 25.0]], ["a"], ["1", "2", "3"], most=25, digits=1)
    assert [text.get_text() for text in axes.texts] == ["0.5", "-12.2", "25.0"]


def test_drawing_leaves_the_callers_settings_alone():
    import matplotlib as mpl

    mpl.rcParams["font.size"] = 17.0
    try:
        with styled():
            assert mpl.rcParams["font.size"] == 9
        assert mpl.rcParams["font.size"] == 17
    finally:
        mpl.rcdefaults()


def test_a_shipped_file_serves_every_analysis():
    """What was read back gives the same correlations as what was fitted."""
    scores = with_expressions()
    post = fit_post(scores, PostConfig(temperature=True))
    back = PostProcess.from_json(json.loads(json.dumps(post.as_json())), post.aus, "f")
    np.testing.assert_array_equal(correlate(scores, back).predictions.r, correlate(scores, post).predictions.r)
