"""What each modality is worth, and tables over seeds."""

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import f1_score

from extract.errors import UsageError
from fusion.ablation import ablate, groups_of
from fusion.assessment import assess
from fusion.bootstrap import VideoBootstrap, VideoCounts
from fusion.config import ContextModality, FrameModality, StepsModality, TokensModality
from fusion.scores import FrameScores
from fusion.seeds import over_seeds
from fusion.text_tables import WIDTH
from tests.made_scores import drawn

MODALITIES = {
    "face": FrameModality(instance="swin", array="feature"),
    "shape": FrameModality(instance="ghfeat", array="code"),
    "shape_nearby": ContextModality(kind="context", instance="ghfeat", array="code"),
    "sound": StepsModality(kind="steps", instance="hubert_adapted", array="feature"),
    "words": TokensModality(kind="tokens", instance="roberta", array="token"),
}
BOTH = ("shape", "shape_nearby")
WHOLE = replace(
    drawn(0, (40, 30, 25, 60, 35), split="test"),
    facts={"run": "runs/a", "features": "store.zarr", "split": "test", "epoch": 3},
)


def worse(by: float) -> FrameScores:
    return replace(WHOLE, logits=WHOLE.logits - np.float32(by))


def mean_f1(scores: FrameScores) -> float:
    labels, said = scores.labels, scores.logits >= 0
    return float(np.mean([f1_score(labels[labels[:, k] >= 0, k], said[labels[:, k] >= 0, k]) for k in range(12)]))


def test_modalities_of_one_instance_are_also_removed_together():
    assert groups_of(MODALITIES) == [("face",), BOTH, ("shape",), ("shape_nearby",), ("sound",), ("words",)]


def test_every_group_is_removed_in_every_way():
    called = []
    cost = {("face",): 2.0, BOTH: 1.0}

    def without(group, how):
        called.append((group, how))
        return worse(cost.get(group, 0.2) + (how == "missing"))

    def retrained(group):
        called.append((group, "retrained"))
        return worse(3 * cost.get(group, 0.2))

    found = ablate(
        WHOLE, MODALITIES, without, retrained, ways=("zero_input", "missing", "retrained"), published_beside=True
    )
    ways = ("zero_input", "missing", "retrained")
    assert called == [(group, how) for how in ways for group in groups_of(MODALITIES)]
    whole = VideoCounts.of(WHOLE.labels, WHOLE.logits >= 0, WHOLE.source_video)
    for one in found.removed:
        by = cost.get(one.modalities, 0.2)
        other = worse({"zero_input": by, "missing": by + 1, "retrained": 3 * by}[one.how])
        assert one.f1 == pytest.approx(mean_f1(other), abs=1e-12)
        assert one.change == pytest.approx(mean_f1(other) - mean_f1(WHOLE), abs=1e-12)
        counts = VideoCounts.of(WHOLE.labels, other.logits >= 0, WHOLE.source_video)
        assert one.change_interval == VideoBootstrap(whole).gain(counts, whole)
        assert one.interval == VideoBootstrap(whole).mean_f1(counts)
    assert found.f1 == pytest.approx(mean_f1(WHOLE), abs=1e-12)
    paper = {one.modalities: one.published for one in found.removed if one.how == "zero_input"}
    alone = {"face": 0.451, "shape": 0.493, "shape_nearby": 0.492, "sound": 0.478, "words": 0.491}
    assert paper == {BOTH: 0.489} | {(name,): f1 for name, f1 in alone.items()}
    assert {one.published for one in found.removed if one.how != "zero_input"} == {None}
    assert found.published == 0.499


def test_the_table_of_an_ablation():
    def without(group, _):
        return worse(0.5 if "sound" in group else 0.1)

    found = ablate(WHOLE, MODALITIES, without, published_beside=True, leak="LEAK ALLOWED: x")
    lines = found.text().splitlines()
    dearest = min(found.removed, key=lambda one: one.change)
    assert dearest.modalities == ("sound",)
    assert f"it changes most without sound: {100 * dearest.change:+.1f}" in " ".join(lines[:2])
    assert "LEAK ALLOWED: x" in lines
    assert "zero_input: its input is zeroed at test time, as in the paper" in lines
    row = next(line for line in lines if line.startswith("shape + shape_nearby"))
    assert row.split()[-1] == "48.9"
    for verbose in (False, True):
        assert max(map(len, found.text(verbose).splitlines())) <= WIDTH
    rows = found.rows()
    assert [row["removed"] for row in rows[:3]] == ["", "face", "shape shape_nearby"]
    assert rows[2]["change"] == found.removed[1].change
    assert json.loads(json.dumps(found.as_json()))["removed"][0]["change_interval_95"] is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": [("fcae",)]}, "no modality fcae in this run; known: face, shape"),
        ({"ways": ["retrained"]}, "retrained: nothing was given to fit networks with"),
        (
            {"other": {"clips": tuple("abcde")}},
            "zero_input without face: clips a, b, c, d, e, expected test0",
        ),
        ({"other": {"frame": WHOLE.frame + 1}}, "zero_input without face: other frames of the same clips"),
        ({"other": {"labels": -WHOLE.labels}}, "zero_input without face: other labels of the same frames"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes, message):
    other = changes.pop("other", {})
    with pytest.raises(UsageError, match=message):
        ablate(WHOLE, MODALITIES, lambda *_: replace(worse(1), **other), **changes)


def test_nothing_is_retrained_on_nothing():
    def retrained(group):
        raise AssertionError(f"asked to fit without {group}, which is all there is")

    only = {"face": MODALITIES["face"]}
    assert ablate(WHOLE, only, lambda *_: worse(1), retrained, ways=["retrained"]).removed == ()


# ---- seeds -----------------------------------------------------------------------------------------------------------


def test_the_table_over_seeds():
    scores = [replace(worse(by), facts={**WHOLE.facts, "run": f"runs/seed{by}"}) for by in (0, 0.3, 0.9)]
    found = over_seeds([assess(one) for one in scores])
    values = np.array([mean_f1(one) for one in scores])
    step = found.as_json()["steps"][0]
    assert step == {
        "step": "base",
        "f1_mean": pytest.approx(values.mean(), abs=1e-12),
        "f1_deviation": pytest.approx(values.std(ddof=1), abs=1e-12),
    }
    lines = found.text(verbose=True).splitlines()
    assert lines[0].startswith(
        f"mean F1 {100 * values.mean():.1f} %, deviation {100 * values.std(ddof=1):.1f} over 3 seeds, best trivial"
    )
    assert sum(line.startswith("runs/seed") for line in lines) == 3
    assert max(map(len, lines)) <= WIDTH
    assert [row["f1"] for row in found.rows()] == pytest.approx(values)


def test_only_like_runs_are_one_table():
    one = assess(WHOLE)
    with pytest.raises(UsageError, match="1 run: a deviation over seeds takes two or more"):
        over_seeds([one])
    other = assess(drawn(0, (40, 30), split="test"))
    with pytest.raises(UsageError, match=r"frames \d+, run runs/a has \d+; evaluate both alike"):
        over_seeds([one, other])
