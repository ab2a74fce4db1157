"""Cross-validation: who sees whom, what is kept, and whose thresholds decide."""

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import f1_score

from extract.errors import StaleError, UsageError
from extract.inputs.splits import Member
from fusion.crossval import crossval, plan
from fusion.postprocess import Step
from fusion.score_sets import joined, of_clips
from fusion.scores import FrameScores
from fusion.text_tables import WIDTH
from tests.made_scores import drawn

WHOLE = drawn(4, (40, 30, 25, 60, 35, 20), names=list("abcdef"), videos=["v1", "v1", "v2", "v3", "v4", "v5"])
PARTS = [("a", "b"), ("c", "f"), ("d", "e")]
SETTINGS = {"lr": 1e-3, "features": {"swin": "abc"}, "sizes": (1, 2)}


class Fits:
    """Stands in for training: remembers what it was asked, answers with the clips' scores."""

    def __init__(self):
        self.asked = []

    def __call__(self, train, held_out, name):
        self.asked.append((train, held_out, name))
        return of_clips(WHOLE, held_out)


def test_every_clip_is_scored_by_a_network_that_did_not_see_it(tmp_path):
    fits = Fits()
    found = crossval(PARTS, fits, tmp_path, SETTINGS)
    assert fits.asked == [
        (("c", "f", "d", "e"), ("a", "b"), "fold1"),
        (("a", "b", "d", "e"), ("c", "f"), "fold2"),
        (("a", "b", "c", "f"), ("d", "e"), "fold3"),
    ]
    assert found.scores.clips == ("a", "b", "c", "f", "d", "e")
    for clip in "abcdef":
        rows = (np.array(scores.clips)[scores.clip] == clip for scores in (found.scores, WHOLE))
        ours, theirs = (scores.logits[where] for scores, where in zip((found.scores, WHOLE), rows, strict=True))
        np.testing.assert_array_equal(ours, theirs)


def mean_f1(scores: FrameScores, said) -> float:
    labels = scores.labels
    return float(np.mean([f1_score(labels[labels[:, k] >= 0, k], said[labels[:, k] >= 0, k]) for k in range(12)]))


def test_pooled_f1_and_the_folds_own(tmp_path):
    found = crossval(PARTS, Fits(), tmp_path, SETTINGS)
    assert found.pooled.scores.mean_f1 == pytest.approx(mean_f1(WHOLE, WHOLE.logits >= 0), abs=1e-12)
    own = [mean_f1(part, part.logits >= 0) for part in (of_clips(WHOLE, clips) for clips in PARTS)]
    assert found.mean_and_deviation == pytest.approx((np.mean(own), np.std(own, ddof=1)), abs=1e-12)
    assert found.pooled.source_videos == 5
    lines = found.text().splitlines()
    assert lines[0].startswith(f"mean F1 {100 * found.pooled.scores.mean_f1:.1f} % (95 %: ")
    assert f"own mean F1 {100 * np.mean(own):.1f}, deviation {100 * np.std(own, ddof=1):.1f}" in " ".join(
        found.text().split()
    )
    for verbose in (False, True):
        assert max(map(len, found.text(verbose).splitlines())) <= WIDTH
    plain = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert [fold["f1"]["mean"] for fold in plain["folds"]] == pytest.approx(own)
    assert {row["fold"] for row in found.rows()} == {"fold1", "fold2", "fold3", "pooled"}


def test_thresholds_for_a_fold_come_from_the_other_folds_only(tmp_path):
    tuned_on = []

    def tune(scores):
        tuned_on.append(scores.clips)
        threshold = 0.1 * len(tuned_on)

        def decide(asked):
            p = 1 / (1 + np.exp(-asked.logits.astype(float)))
            return [Step("base", p, (p >= 0.5) * 1), Step("+threshold", p, (p >= threshold) * 1)]

        return decide

    found = crossval(PARTS, Fits(), tmp_path, SETTINGS, tune=tune)
    assert tuned_on == [("c", "f", "d", "e"), ("a", "b", "d", "e"), ("a", "b", "c", "f")]
    p = 1 / (1 + np.exp(-found.scores.logits.astype(float)))
    threshold = np.repeat([0.1, 0.2, 0.3], [70, 45, 95])[:, None]
    assert found.pooled.scores.mean_f1 == pytest.approx(mean_f1(found.scores, p >= threshold), abs=1e-12)
    assert found.pooled.steps[0].scores.mean_f1 == pytest.approx(mean_f1(found.scores, p >= 0.5), abs=1e-12)


def test_a_finished_fold_is_not_fitted_again(tmp_path):
    class Dies(Fits):
        def __call__(self, train, held_out, name):
            if name == "fold3":
                raise KeyboardInterrupt
            return super().__call__(train, held_out, name)

    with pytest.raises(KeyboardInterrupt):
        crossval(PARTS, Dies(), tmp_path, SETTINGS)
    went_on, unbroken = Fits(), Fits()
    found = crossval(PARTS, went_on, tmp_path, SETTINGS)
    assert [name for _, _, name in went_on.asked] == ["fold3"]
    assert (
        found.as_json()["pooled"]["f1"] == crossval(PARTS, unbroken, tmp_path / "x", SETTINGS).as_json()["pooled"]["f1"]
    )
    assert crossval(PARTS, Dies(), tmp_path, SETTINGS).scores.logits.tobytes() == found.scores.logits.tobytes()


def test_a_fold_that_was_made_otherwise_is_refused(tmp_path):
    crossval(PARTS, Fits(), tmp_path, SETTINGS)
    fits = Fits()
    with pytest.raises(
        StaleError, match=r"fold1.npz: .*\(settings.lr: 0.001 against 0.01\); name another folder with -o"
    ):
        crossval(PARTS, fits, tmp_path, SETTINGS | {"lr": 0.01})
    with pytest.raises(StaleError, match=r"fold1.npz: .*held_out: \['a', 'b'\] against \['a', 'c'\]|train: "):
        crossval([("a", "c"), ("b", "f"), ("d", "e")], fits, tmp_path, SETTINGS)
    assert fits.asked == []


def test_scores_of_other_clips_are_refused(tmp_path):
    with pytest.raises(UsageError, match="fold1: scores of 1 clips, expected the 2 that were held out; for example b"):
        crossval(PARTS, lambda *_: of_clips(WHOLE, "a"), tmp_path, SETTINGS)
    assert not (tmp_path / "fold1.npz").exists()
    with pytest.raises(UsageError, match="1 fold: cross-validation takes two or more"):
        crossval([("a",)], Fits(), tmp_path, SETTINGS)


def test_the_plan_keeps_people_together_and_names_exact():
    members = [
        Member("1-30", "1-30"),
        Member("11-30", "11-30"),
        Member("x_left", "x", "p"),
        Member("x_right", "x", "q"),
    ]
    members += [Member("y", "y", "q"), Member("video1", "video1"), Member("video10", "video10"), Member("z", "z")]
    random = np.random.default_rng(0)
    labels = {member.id: random.integers(-1, 2, (50, 12)).astype(np.int8) for member in members}
    for first in ([], ["1-30", "video1"]):
        found = plan(members, labels, 3, first=first)
        assert sorted(clip for part in found for clip in part) == sorted(labels)
        assert sum({"x_left", "x_right", "y"} <= set(part) for part in found) == 1
        if first:
            assert found[0] == ("1-30", "video1")
    with pytest.raises(UsageError, match="split fold1: no clip is named video"):
        plan(members, labels, 3, first=["video"])
    with pytest.raises(UsageError, match="clips of one recording or person are in several splits: "):
        plan(members, labels, 3, first=["x_left"])


def test_rare_positives_are_in_every_fold():
    members = [Member(f"c{i}", f"c{i}") for i in range(20)]
    labels = {}
    for i in range(20):
        labels[f"c{i}"] = np.zeros((100 + 10 * i, 12), dtype=np.int8)
        labels[f"c{i}"][:30, 7] = i in {0, 1, 2, 3}
    for part in plan(members, labels, 4):
        assert sum(labels[clip][:, 7].sum() for clip in part) == 30


def test_parts_are_joined_as_they_were_taken():
    taken = [of_clips(WHOLE, part) for part in (("a", "c"), ("b", "d", "e", "f"))]
    found = joined(taken, {"split": "x"})
    assert (found.clips, found.source_videos) == (tuple("acbdef"), ("v1", "v2", "v1", "v3", "v4", "v5"))
    again = of_clips(joined([of_clips(found, clip) for clip in "abcdef"], WHOLE.facts), "abcdef")
    assert again.as_bytes() == WHOLE.as_bytes()
    with pytest.raises(ValueError, match="clip a, c is in several parts"):
        joined([taken[0], taken[0]], {})
    with pytest.raises(ValueError, match="parts differ in aus"):
        joined([taken[0], replace(taken[1], aus=tuple(range(1, 13)))], {})
    with pytest.raises(ValueError, match="no scores of clip q"):
        of_clips(WHOLE, ["a", "q"])
