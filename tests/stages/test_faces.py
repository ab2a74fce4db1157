import numpy as np
import pytest
import torch

from extract.stages.faces import Faces, FacesConfig, choose, link, overlap
from tests.contract import ClipContract, ClipInputs

MOST = 4


def clip(people, num_frames, choice="largest", seed=0):
    """Detections of people, each a function frame -> (centre x, centre y, side) or None, in shuffled slots."""
    rng = np.random.default_rng(seed)
    box = np.zeros((num_frames, MOST, 4), np.float32)
    score = np.zeros((num_frames, MOST), np.float32)
    landmarks = np.zeros((num_frames, MOST, 68, 2), np.float32)
    count = np.zeros(num_frames, np.int8)
    for t in range(num_frames):
        there = [(i, place) for i, person in enumerate(people) if (place := person(t)) is not None]
        for slot, at in enumerate(rng.permutation(len(there))):
            i, (x, y, side) = there[at]
            box[t, slot] = x - side / 2, y - side / 2, x + side / 2, y + side / 2
            score[t, slot] = 1 + i  # says who it is
            landmarks[t, slot] = x, y
        count[t] = len(there)
    arrays = {"box": box, "score": score, "landmarks": landmarks, "count": count}
    return {f"detections.{name}": torch.from_numpy(values) for name, values in arrays.items()} | {"choice.face": choice}


def run(people, num_frames, choice="largest", **config):
    return Faces(FacesConfig(**config)).compute(clip(people, num_frames, choice))


def who(result):
    """The person of every frame, -1 where invalid: the score says it."""
    return (result.arrays["score"] - 1).tolist()


def still(x, side=100.0, y=100.0):
    return lambda _: (x, y, side)


def between(start, stop, person):
    return lambda t: person(t) if start <= t < stop else None


class TestFaces(ClipContract):
    def stage(self):
        return Faces(FacesConfig())

    def clips(self):
        walk = lambda t: (200 + 3 * t, 120.0, 90.0)  # noqa: E731
        people = [between(0, 30, walk), between(5, 20, still(600))]
        return [
            ClipInputs(clip(people, 40), num_frames=40),
            ClipInputs(clip(people, 12, "right"), num_frames=12),
            ClipInputs(clip([], 7), num_frames=7),
            ClipInputs(clip(people, 9, "none"), num_frames=9),
            ClipInputs(clip(people, 40, "left"), num_frames=40),
            ClipInputs(clip([], 0), num_frames=0),
        ]


def test_largest_never_flips_to_who_leans_forward():
    """B is larger in some frames, A over the clip."""
    a, b = still(200, side=100), lambda t: (600, 100, 150 if 20 <= t < 30 else 60)
    assert who(run([a, b], 60)) == [0] * 60


def test_size_counts_and_not_length_or_score():
    a, b = still(200, side=60), between(10, 40, still(600, side=120))
    result = run([a, b], 60)
    assert result.arrays["valid"].tolist() == [10 <= t < 40 for t in range(60)]
    assert who(result)[10:40] == [1] * 30
    assert result.notes == {"tracks": 2, "rows_of_other_faces_only": 30}


def test_values_are_those_of_the_chosen_detection():
    result = run([still(200, side=80), still(600, side=120, y=300)], 5)
    assert result.arrays["box"].tolist() == [[540, 240, 660, 360]] * 5
    assert torch.equal(result.arrays["landmarks"], torch.tensor([600.0, 300.0]).expand(5, 68, 2))
    assert result.empty is None


@pytest.mark.parametrize(("choice", "person"), [("left", 1), ("right", 0)])
def test_sides_are_the_images(choice, person):
    people = [still(600, side=120), still(200, side=80)]
    assert who(run(people, 20, choice)) == [person] * 20


def test_a_passer_by_is_no_side():
    people = [still(400), still(600), between(5, 8, still(100, side=60))]
    assert who(run(people, 40, "left")) == [0] * 40
    assert set(who(run(people, 40, "left", min_share=0))) == {2, -1}


def test_a_lone_person_is_left_and_right():
    assert who(run([still(300)], 5, "left")) == who(run([still(300)], 5, "right")) == [0] * 5


def test_a_missed_face_keeps_its_track():
    """Two frames missed while moving 0.6 of its side: no overlap worth the name, but near and recent."""
    person = lambda t: None if t in {10, 11} else (100 + (60 if t > 10 else 0), 100, 100)  # noqa: E731
    assert run([person], 30, min_iou=0.5).notes["tracks"] == 1
    assert run([person], 30, min_iou=0.5, max_gap=1).notes["tracks"] == 2
    assert run([person], 30, min_iou=0.5, max_gap=2).notes["tracks"] == 1


def test_after_a_long_absence_only_the_same_place_counts():
    away = lambda x: lambda t: (100, 100, 100) if t < 50 else (x, 100, 100) if t >= 200 else None  # noqa: E731
    assert run([away(110)], 250).notes["tracks"] == 1
    assert run([away(170)], 250).notes["tracks"] == 2
    assert run([away(170)], 250, max_gap=150).notes["tracks"] == 1


def test_a_face_left_behind_long_ago_takes_nothing_over():
    """B comes to stand exactly where A was last seen 100 frames before."""
    a, b = between(0, 20, still(300)), lambda t: (max(300, 700 - 4 * t), 100, 100)
    result = run([a, b], 160)
    assert who(result) == [1] * 160


def test_a_jump_across_the_picture_begins_a_new_track():
    jump = lambda t: (100 if t < 10 else 300, 100, 100)  # noqa: E731
    assert run([jump], 25).arrays["valid"].tolist() == [t >= 10 for t in range(25)]


def test_tracks_are_the_people_that_were_drawn():
    """Four people who wander and are missed one time in five: each stays one track whatever slot it came in."""
    rng = np.random.default_rng(3)
    paths = np.cumsum(rng.normal(0, 4, (4, 200, 2)), axis=1)
    missed = rng.random((4, 200)) < 0.2
    missed[:, 0] = False

    def person(i):
        return lambda t: None if missed[i, t] else (300 * i + paths[i, t, 0], paths[i, t, 1], 90)

    inputs = clip([person(i) for i in range(4)], 200)
    track = link(inputs["detections.box"].numpy(), inputs["detections.count"].numpy(), FacesConfig())
    drawn = np.where(track >= 0, inputs["detections.score"].numpy() - 1, -1)
    pairs = {(int(a), int(b)) for a, b in zip(track.ravel(), drawn.ravel(), strict=True)}
    assert len(pairs) == 5  # -1 with -1, and four names each with one number


def test_the_best_pair_is_made_first():
    """Closed form: boxes of side 99 (100 pixels) shifted by 10 and by 60 overlap by 9000 / 11000 and 4000 / 16000."""
    box = np.zeros((2, 2, 4))
    box[0, 0] = 0, 0, 99, 99
    box[1, 0], box[1, 1] = (60, 0, 159, 99), (10, 0, 109, 99)
    count = np.array([1, 2])
    assert link(box, count, FacesConfig(min_iou=0.25)).tolist() == [[0, -1], [1, 0]]
    assert link(box, count, FacesConfig(min_iou=0.81))[1].tolist() == [1, 0]
    box[1, 1] = 0
    count = np.array([1, 1])
    assert link(box, count, FacesConfig(min_iou=0.25, max_gap=0))[1, 0] == 0
    far = box.copy()
    far[1, 0] = 100, 0, 199, 99  # exactly one side away
    assert link(far, count, FacesConfig())[1, 0] == 0
    far[1, 0] = 101, 0, 200, 99
    assert link(far, count, FacesConfig())[1, 0] == 1


def test_a_track_takes_one_detection_and_a_detection_one_track():
    def squares(*lefts):
        row = np.zeros((3, 4))
        row[: len(lefts)] = [(left, 0, left + 99, 99) for left in lefts]
        return row

    # Frame 1: both stand where track 0 was, none near track 1. Frame 3: one stands between tracks 0 and 2, nearer 0.
    box = np.stack([squares(0, 500), squares(5, 35), squares(0, 500, 40), squares(10, 900)])
    track = link(box, np.array([2, 2, 3, 2]), FacesConfig())
    assert track.tolist() == [[0, 1, -1], [0, 2, -1], [0, 1, 2], [0, 3, -1]]


@pytest.mark.parametrize("num_frames", [0, 1, 5])
def test_nobody_there(num_frames):
    result = run([], num_frames)
    assert result.empty == "no_face"
    assert result.arrays["valid"].shape == (num_frames,)
    assert not result.arrays["valid"].any()


def test_nobody_wanted():
    result = run([still(100)], 4, "none")
    assert result.empty == "no_face_chosen"
    assert not any(values.any() for values in result.arrays.values())
    assert result.arrays["box"].shape == (4, 4)


def test_an_unknown_choice_is_refused():
    with pytest.raises(ValueError, match=r"choice\.face is 'biggest', expected one of largest, left, right, none"):
        run([still(100)], 4, "biggest")


def test_choose_without_tracks():
    assert choose(np.zeros((3, 2, 4)), np.full((3, 2), -1), "largest", 0.2) is None


def test_overlap():
    """Boxes of dlib's kind: 0 to 9 are ten pixels."""
    one = np.array([[0, 0, 9, 9.0]])
    others = np.array([[0, 0, 9, 9], [5, 0, 14, 9], [10, 0, 19, 9], [0, 0, 4, 4.0]])
    assert overlap(one, others).tolist() == [pytest.approx([1, 50 / 150, 0, 0.25])]
    assert overlap(one, np.zeros((0, 4))).shape == (1, 0)
