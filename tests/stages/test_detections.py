import functools
import importlib.util
from collections import Counter
from itertools import islice
from pathlib import Path

import dlib
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from extract.errors import WeightsError
from extract.inputs.media import open_video
from extract.models import dlib_faces
from extract.stages.detections import Detections, DetectionsConfig, reduced
from extract.stages.landmarks import Landmarks, LandmarksConfig
from tests.contract import RowsContract, at_once, context

PACKAGE = importlib.util.find_spec("face_recognition_models")
assert PACKAGE is not None
MODELS = Path(str(PACKAGE.origin)).parent / "models"


def ready(**config):
    stage = Detections(DetectionsConfig(**config))
    stage.setup(context(stage))
    return stage


def read(path, step=1):
    """Every ``step``-th frame, C-contiguous uint8."""
    video = open_video(path)
    assert video is not None
    with video:
        return [frame.image for frame in islice(video.frames(), 0, None, step)]


def detect(stage, images):
    return stage.compute({"frames.image": [torch.from_numpy(image) for image in images]})


def drawn_face(seed):
    """A pale ellipse with two dark eyes, a nose and a mouth before a grey wall: enough for a lenient detector."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:200, :240].astype(float)
    cx, cy = 120 + 10 * rng.standard_normal(2)
    image = np.full((200, 240), 90.0)

    def spot(dx, dy, wide, high, value):
        image[((x - cx - dx) / wide) ** 2 + ((y - cy - dy) / high) ** 2 < 1] = value

    spot(0, 0, 52, 68, 200)
    for side in (-1, 1):
        spot(side * 21, -14, 9, 5, 40)
        spot(side * 21, -26, 13, 3, 70)
    spot(0, 12, 6, 10, 150)
    spot(0, 34, 20, 5, 80)
    noisy = image + 4 * rng.standard_normal(image.shape)
    return np.repeat(noisy.clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


class TestDetections(RowsContract):
    def stage(self):
        return Detections(DetectionsConfig(score_threshold=-0.6, max_faces=3))

    def row(self, seed):
        return {"frames.image": torch.from_numpy(drawn_face(seed))}

    def test_the_drawn_rows_hold_something(self):
        assert int(self.ready().compute(self.batch(1, 2, 3))["count"].sum()) > 0


@pytest.fixture(scope="module")
def stage():
    return ready()


@pytest.fixture(scope="module")
def face(media_dir):
    return read(media_dir / "one_face.mp4", step=71)[0]


@pytest.mark.parametrize(("name", "frames"), [("one_face.mp4", 72), ("grid_bbaf2n.mpg", 75), ("grid_swiz3n.mpg", 75)])
def test_one_face_in_every_frame(stage, media_dir, name, frames):
    images = read(media_dir / name)
    assert len(images) == frames
    found = detect(stage, images[::3])
    assert found["count"].tolist() == [1] * len(images[::3])
    assert found["valid"].all()


def test_a_cartoon_has_no_face(stage, media_dir):
    found = detect(stage, read(media_dir / "no_face.mp4", step=12))
    assert not found["valid"].any()
    assert all(not found[name].any() for name in ("box", "score", "landmarks", "count"))


def test_equals_dlib_at_native_size(stage, face):
    """Oracle: dlib called as its own examples do, on a picture no wider than detect_px."""
    rectangles, scores, _ = dlib.get_frontal_face_detector().run(face, 0, 0.0)
    predictor = dlib.shape_predictor(str(MODELS / "shape_predictor_68_face_landmarks.dat"))
    points = [(point.x, point.y) for point in predictor(face, rectangles[0]).parts()]
    edges = [rectangles[0].left(), rectangles[0].top(), rectangles[0].right(), rectangles[0].bottom()]
    found = detect(stage, [face])
    assert found["box"][0, 0].tolist() == edges
    assert float(found["score"][0, 0]) == pytest.approx(scores[0], rel=1e-6)
    assert found["landmarks"][0, 0].tolist() == [list(point) for point in points]
    assert not found["box"][0, 1:].any()


def test_a_wide_picture_is_reduced_and_its_box_scaled_back(stage, face):
    """Each pixel made 3 x 3: what was at pixel centre x is now at 3 x + 1."""
    wide = np.ascontiguousarray(face.repeat(3, axis=0).repeat(3, axis=1))
    small, large = detect(stage, [face]), detect(stage, [wide])
    assert large["count"].tolist() == [1]
    assert (large["box"][0, 0] - (3 * small["box"][0, 0] + 1)).abs().max() <= 1e-3
    off = (large["landmarks"][0, 0] - (3 * small["landmarks"][0, 0] + 1)).norm(dim=-1)
    assert off.mean() < 6  # of a face 3 * 100 pixels wide; found at native size, so not on a grid of 3
    assert (large["landmarks"] % 3 != 1).any()


def test_reduction_is_by_area_and_keeps_the_shape():
    """Stripes finer than the reduced picture become their mean, in place of a beat of black and white."""
    stripes = np.zeros((300, 1200, 3), np.uint8)
    stripes[:, ::2] = 255
    small = reduced(stripes, 400)
    assert small.shape == (100, 400, 3)
    assert np.abs(small.astype(int) - 127.5).max() < 30
    assert small.flags.c_contiguous
    assert reduced(small, 400) is small
    ramp = np.repeat(np.arange(240, dtype=np.uint8)[None, :, None], 4, axis=0).repeat(3, axis=2)
    centre = 3 * (np.arange(80) + 0.5) - 0.5  # of three pixels each
    assert np.abs(reduced(ramp, 80)[0, 1:-1, 0] - centre[1:-1]).max() <= 0.5


def test_several_faces_best_first(stage, media_dir):
    one, two = (read(media_dir / f"grid_{name}.mpg", step=74)[0] for name in ("bbaf2n", "swiz3n"))
    both = np.ascontiguousarray(np.concatenate([two, one], axis=1))  # 720 wide: reduced to 640
    found = detect(stage, [both])
    assert found["count"].tolist() == [2]
    score, box = found["score"][0], found["box"][0]
    assert score[0] > score[1] > 0.2
    assert sorted([float(box[0, 0]) > 360, float(box[1, 0]) > 360]) == [False, True]
    best = detect(ready(max_faces=1), [both])
    assert best["count"].tolist() == [1]
    assert torch.equal(best["box"][0, 0], box[0])
    high = detect(ready(score_threshold=float(score[0] + score[1]) / 2), [both])
    assert high["count"].tolist() == [1]


def test_threads_and_batches_change_nothing(stage, media_dir):
    """Eight threads, each with a few rows, as the engine cuts them; one row, four and all at once."""
    images = read(media_dir / "grid_lbax4n.mpg", step=5)
    together = detect(stage, images)
    for size in (1, 4):
        units = [images[at : at + size] for at in range(0, len(images), size)]
        found = at_once(lambda unit: detect(stage, unit), units[:8])
        for name, expected in together.items():
            joined = torch.cat([unit[name] for unit in found])
            assert torch.equal(joined, expected[: len(joined)]), (name, size)


@pytest.fixture
def unread(monkeypatch):
    """As in a new process; how often the landmark file was read, and how many detectors there are."""
    made = Counter()

    def count(module, name):
        real = getattr(module, name)

        def make(*arguments):
            made[name] += 1
            return real(*arguments)

        monkeypatch.setattr(module, name, make)

    count(dlib_faces, "read_landmark_trees")
    count(dlib, "get_frontal_face_detector")
    monkeypatch.setattr(dlib_faces, "_read", functools.lru_cache(maxsize=1)(dlib_faces._read.__wrapped__))
    return made


def test_the_landmark_file_is_read_once_for_all_stages(unread):
    """Two stages that are set up at the same time, a third and a fourth later; a detector for each that works."""
    stages = [Detections(DetectionsConfig()), Landmarks(LandmarksConfig())]
    at_once(lambda stage: stage.setup(context(stage)), stages)
    stages += [ready(), ready(upsample=1)]
    assert unread == {"read_landmark_trees": 1}
    assert len({id(stage._faces) for stage in stages}) == 1
    small = [np.zeros((80, 80, 3), np.uint8)] * 5
    for stage in (stages[0], *stages[2:]):
        detect(stage, small)
    assert unread["get_frontal_face_detector"] == 1
    at_once(lambda images: detect(stages[0], images), [small] * 3)
    assert 1 <= unread["get_frontal_face_detector"] <= 3


def test_another_landmark_file_of_the_same_name_is_read(tmp_path, unread):
    path = tmp_path / "marks.dat"
    path.write_bytes((MODELS / "shape_predictor_68_face_landmarks.dat").read_bytes())
    first = ready(weights=str(path))
    with path.open("ab") as file:
        file.write(bytes([1, 7]))  # one more number
    assert ready(weights=str(path))._faces is not first._faces
    assert unread["read_landmark_trees"] == 2


def test_strided_pictures_are_read_right(stage, face):
    """A view with padded rows, as decoders give them, is the same picture."""
    padded = np.zeros((face.shape[0], face.shape[1] + 8, 3), np.uint8)
    padded[:, : face.shape[1]] = face
    strided = torch.from_numpy(padded)[:, : face.shape[1]]
    assert not strided.is_contiguous()
    found, expected = stage.compute({"frames.image": [strided]}), detect(stage, [face])
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_pictures_of_any_size(stage):
    found = detect(stage, [np.zeros(shape, np.uint8) for shape in ((1, 1, 3), (2000, 3, 3), (2, 3000, 3))])
    assert found["count"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (MODELS / "shape_predictor_5_face_landmarks.dat", "gives 5 landmarks, expected 68"),
        (Path(__file__), "is no dlib landmark file"),
    ],
)
def test_another_file_is_refused(file, message):
    with pytest.raises(WeightsError, match=message):
        ready(weights=str(file))


@pytest.mark.parametrize("wrong", [{"max_faces": 0}, {"max_faces": 128}, {"upsample": -1}, {"detect_px": 79}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        DetectionsConfig(**wrong)


def test_random_weights_are_refused():
    with pytest.raises(WeightsError, match="stage detections has no random weights"):
        ready(weights="random")
