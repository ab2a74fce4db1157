"""Evaluations of saved scores: metrics, steps, what is printed, written and drawn."""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score

from extract.errors import UsageError
from fusion import published
from fusion.assessment import assess, network_alone
from fusion.bootstrap import VideoBootstrap, VideoCounts
from fusion.evaluation_picture import draw_evaluation
from fusion.postprocess import Step
from fusion.result_files import write_result
from fusion.scores import FrameScores
from fusion.text_tables import WIDTH, as_csv, au_table, signed
from tests.made_scores import drawn, scores_of

FACTS = {"run": "runs/a", "features": "store.zarr", "split": "test", "epoch": 3}


def six_videos(seed: int = 0, **changes) -> FrameScores:
    """Eight clips of six source videos."""
    videos = ["v0", "v0", "v1", "v2", "v3", "v3", "v4", "v5"]
    scores = drawn(seed, [40, 30, 25, 60, 35, 50, 45, 20], split="test", videos=videos)
    return replace(scores, facts=FACTS | changes.pop("facts", {}), **changes)


def three_steps(scores: FrameScores) -> list[Step]:
    base = network_alone(scores)
    lower = 1 / (1 + np.exp(-(scores.logits + 0.4)))
    return [*base, Step("+smooth", lower, (lower >= 0.5) * 1), Step("+threshold", lower, (lower >= 0.4) * 1)]


def test_every_metric_equals_scikit_learns():
    scores = six_videos()
    found = assess(scores, three_steps)
    for step, made in zip(found.steps, three_steps(scores), strict=True):
        for au in range(12):
            seen = scores.labels[:, au] >= 0
            truth, said, p = scores.labels[seen, au], made.decisions[seen, au], made.probabilities[seen, au]
            for field, expected in (
                ("f1", f1_score(truth, said)),
                ("f1_our", f1_score(truth, said, average="macro")),
                ("precision", precision_score(truth, said)),
                ("recall", recall_score(truth, said)),
                ("average_precision", average_precision_score(truth, p)),
            ):
                assert getattr(step.scores, field)[au] == pytest.approx(expected, abs=1e-12)
        assert 0 < step.scores.calibration_error.min() <= step.scores.calibration_error.max() < 1
    assert found.scores is found.steps[-1].scores


def test_steps_are_compared_on_the_same_draws():
    scores = six_videos()
    found = assess(scores, three_steps)
    counts = [VideoCounts.of(scores.labels, step.decisions, scores.source_video) for step in three_steps(scores)]
    bootstrap = VideoBootstrap(counts[0])
    means = [step.scores.mean_f1 for step in found.steps]
    assert found.steps[0].over_base is found.steps[0].over_previous is None
    assert found.steps[2].over_base == (means[2] - means[0], bootstrap.gain(counts[2], counts[0]))
    assert found.steps[2].over_previous == (means[2] - means[1], bootstrap.gain(counts[2], counts[1]))
    assert found.interval == bootstrap.mean_f1(counts[2])
    assert found.au_intervals[3] == bootstrap.f1(counts[2])[3]
    assert found.source_videos == 6


def test_a_modality_is_scored_where_it_is_absent_and_when_it_is_withheld():
    there = np.ones(305, dtype=np.bool_)
    there[:50] = False
    scores = six_videos(present={"swin": there, "hubert": np.ones(305, dtype=np.bool_)})
    without = replace(scores, logits=scores.logits - 1)
    swin, hubert = assess(scores, withheld={"swin": without}).absent
    labels, decisions = scores.labels, scores.logits >= 0

    def mean_f1(rows, said):
        return np.mean([
            f1_score(labels[rows & (labels[:, k] >= 0), k], said[rows & (labels[:, k] >= 0), k]) for k in range(12)
        ])

    assert swin.without == pytest.approx(mean_f1(~there, decisions), abs=1e-12)
    assert swin.with_it == pytest.approx(mean_f1(there, decisions), abs=1e-12)
    assert swin.withheld == pytest.approx(mean_f1(there | True, without.logits >= 0), abs=1e-12)
    assert swin.cost[0] == pytest.approx(swin.withheld - mean_f1(there | True, decisions), abs=1e-12)
    assert (hubert.frames, hubert.without, hubert.withheld) == (0, None, None)


def test_frames_that_nobody_annotated_count_nowhere():
    scores = six_videos()
    labels = scores.labels.copy()
    labels[scores.clip == 0] = -1
    labels[scores.clip == 2] = -1  # the only clip of v1
    found = assess(replace(scores, labels=labels))
    assert found.frames == 305 - 40 - 25
    assert (found.clips, found.source_videos) == (8, 5)


def test_an_au_that_never_occurs_is_warned_of_and_has_a_value():
    scores = six_videos()
    labels = scores.labels.copy()
    labels[:, 4] = np.minimum(labels[:, 4], 0)
    found = assess(replace(scores, labels=labels))
    assert found.scores.f1[4] == 0
    assert found.warnings() == ["never active in this split: AU07 (F1 is 0 by definition and counts in the mean)"]
    assert "never active in this split: AU07" in found.text()
    assert found.scores.mean_f1 == pytest.approx(found.scores.f1.sum() / 12)


def test_labels_that_are_all_missing_are_refused():
    scores = six_videos()
    with pytest.raises(
        UsageError, match=r"split test: no annotated frame in 8 clips: every label is -1; are the label"
    ):
        assess(replace(scores, labels=np.full_like(scores.labels, -1)))


def test_the_text_leads_with_the_answer_and_prints_what_weakens_it():
    facts = {"untrained": ["swin"], "drawn": 2, "left_out": {"x": "no labels"}, "warnings": ["subject S lies in both"]}
    leak = "LEAK ALLOWED: thresholds and equations were selected on clip a of these very scores"
    found = assess(six_videos(facts=facts), three_steps, leak=leak)
    lines = found.text().splitlines()
    low, high = (f"{100 * end:.1f}" for end in found.interval)
    name, value = found.scores.best_baseline
    assert name == "ones"
    assert lines[0] == (
        f"mean F1 {100 * found.scores.mean_f1:.1f} % (95 %: {low} to {high}, 6 source videos), "
        f"best trivial predictor {100 * value:.1f} (all one)"
    )
    assert lines[1] == f"run runs/a (epoch 3), split test of store.zarr: {found.frames} annotated frames of 8 clips"
    assert lines[2:7] == [
        leak,
        "subject S lies in both",
        "untrained: swin (random weights: the numbers say nothing about the method)",
        "synthetic: 2 of 8 clips are drawn by a program",
        "left out: clip x: no labels",
    ]
    for verbose in (False, True):
        assert max(map(len, found.text(verbose).splitlines())) <= WIDTH


def test_published_numbers_are_marked_and_only_for_the_same_steps():
    scores = six_videos()
    plain = assess(scores, three_steps).text(verbose=True)
    assert "published" not in plain
    found = assess(scores, three_steps, published=True)
    assert found.published_steps == {"base": 0.499, "+smooth": 0.508, "+threshold": 0.514}
    assert "USC published" in found.text()
    assert published.SOURCE in found.text(verbose=True)
    assert found.as_json()["published"]["usc_steps"]["+threshold"] == 0.514
    assert published.steps(["base", "+smooth", "+AUcorr"], "test") == {}
    assert published.steps(["base"], "train") == {}


def test_the_csv_and_the_json_hold_every_number_of_the_table():
    found = assess(six_videos(), three_steps)
    rows = list(csv.DictReader(io.StringIO(as_csv(found.rows()))))
    assert len(rows) == (3 + 4) * 13
    last = [row for row in rows if row["step"] == "+threshold"]
    assert [float(row["f1"]) for row in last] == pytest.approx([*found.scores.f1, found.scores.mean_f1])
    assert [float(row["f1_low"]) for row in last[:-1]] == [low for low, _ in found.au_intervals]
    plain = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert plain["step"] == "+threshold"
    assert plain["f1"]["AU12"] == found.scores.f1[6] == plain["steps"][2]["f1"]["AU12"]
    assert plain["f1_interval_95"] == list(found.interval)
    before = {"run", "features", "split", "epoch", "clips", "frames", "missing", "untrained", "drawn", "left_out"}
    before |= {"f1_interval_95", "f1", "f1_our", "baselines", "annotated", "positive"}
    assert before <= plain.keys()


def test_the_picture_is_written_twice_alike(tmp_path):
    found = assess(six_videos(), three_steps)
    first = [path.read_bytes() for path in draw_evaluation(found, tmp_path)]
    assert [path.name for path in draw_evaluation(found, tmp_path)] == ["evaluation.png", "evaluation.svg"]
    assert [path.read_bytes() for path in draw_evaluation(found, tmp_path)] == first
    assert first[0].startswith(b"\x89PNG")
    assert b"<svg" in first[1]


def test_further_tasks_have_rows_of_their_own(tmp_path):
    """Expressions, valence and arousal by closed forms; a run without action units leads with them."""
    random = np.random.default_rng(5)
    classes = random.integers(-1, 4, 120)
    outputs = random.normal(size=(120, 4)) + 2 * np.eye(4)[np.maximum(classes, 0)]
    affect = random.uniform(-1, 1, (120, 2))
    guess = affect + random.normal(0, 0.3, (120, 2))
    affect[:20] = -5
    scores = scores_of(
        [60, 60], np.empty((120, 0)), np.empty((120, 0)), aus=(),
        outputs={"expr": outputs, "va": guess}, targets={"expr": classes, "va": affect},
    )  # fmt: skip
    found = assess(scores)
    expr, va = found.heads
    seen = classes >= 0
    expected = f1_score(classes[seen], outputs[seen].argmax(axis=1), average="macro", labels=range(4))
    assert expr.main == ("f1", pytest.approx(expected, abs=1e-12))
    x, y = guess[20:, 0], affect[20:, 0]
    ccc = 2 * np.cov(x, y, bias=True)[0, 1] / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)
    assert va.metrics["ccc"][0] == pytest.approx(ccc, abs=1e-12)
    assert found.frames == (seen | (affect[:, 0] >= -1)).sum()
    lines = found.text().splitlines()
    assert lines[0] == f"expressions: macro F1 {expected:.3f}"
    assert lines[1].startswith("valence and arousal: CCC ")
    assert json.loads(json.dumps(found.as_json()))["tasks"]["va"]["ccc"]["valence"] == pytest.approx(ccc)
    assert draw_evaluation(found, "nowhere") == []
    files = write_result(found, tmp_path, "test", [row for head in found.heads for row in head.rows()])
    assert [path.name for path in files] == ["test.json", "test.csv", "test_tasks.csv"]
    with (tmp_path / "test_tasks.csv").open(newline="") as file:
        table = {(row["task"], row["column"], row["metric"]): row for row in csv.DictReader(file)}
    assert float(table["expr", "mean", "f1"]["value"]) == expected
    assert float(table["va", "valence", "ccc"]["value"]) == va.metrics["ccc"][0]
    assert table["va", "arousal", "mae"]["annotated"] == "100"
    assert len(table) == 4 + 1 + 3 * (2 + 1)


def test_more_action_units_than_fit_go_below_each_other():
    names = [f"AU{number:02d}" for number in range(15)]
    lines = au_table([*names, "mean"], {"F1": [f"{number}.0" for number in range(16)]})
    assert [line.split() for line in lines] == [
        names[:12],
        ["F1", *(f"{number}.0" for number in range(12))],
        [*names[12:], "mean"],
        ["F1", "12.0", "13.0", "14.0", "15.0"],
    ]
    assert signed(-0.0002) == "+0.0"
