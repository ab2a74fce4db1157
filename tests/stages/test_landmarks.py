import dlib
import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from extract.models.dlib_faces import shared_faces
from extract.stages.landmarks import Landmarks, LandmarksConfig
from extract.weights.resolving import resolve
from tests.contract import RowsContract, context


@pytest.fixture(scope="module")
def face(media_dir):
    """A square around one face, 300 pixels wide."""
    image = Image.open(media_dir / "one_face.jpg").convert("RGB")
    small = image.resize((image.width * 300 // image.height, 300), Image.Resampling.LANCZOS)
    left = (small.width - 300) // 2
    return np.array(small.crop((left, 0, left + 300, 300)))


def ready(**config):
    stage = Landmarks(LandmarksConfig(**config))
    stage.setup(context(stage))
    return stage


def batch(*faces, box=(60.0, 60, 240, 240)):
    boxes = torch.tensor([box] * len(faces))
    return {"superres.image": [torch.from_numpy(face) for face in faces], "superres.box": boxes}


class TestLandmarks(RowsContract):
    """On noise: the detector finds nothing and the known box counts."""

    ragged = frozenset({"superres.image"})

    def stage(self):
        return Landmarks(LandmarksConfig())

    def row(self, seed):
        rng = np.random.default_rng(seed)
        image = rng.integers(0, 256, (100 + seed, 120, 3), dtype=np.uint8)
        return {"superres.image": torch.from_numpy(image), "superres.box": torch.tensor([10.0, 10, 80 + seed, 80])}


@pytest.mark.parametrize("upsample", [0, 1])
def test_they_are_dlibs(face, upsample):
    weights = resolve("dlib-68-landmarks", Landmarks(LandmarksConfig()), offline=True)
    predictor = dlib.shape_predictor(str(weights.path))
    (found,) = dlib.get_frontal_face_detector()(face, upsample)
    expected = [(point.x, point.y) for point in predictor(face, found).parts()]
    box = (found.left() + 4.0, found.top() - 3.0, found.right() + 4.0, found.bottom())
    points = ready(upsample=upsample).compute(batch(face, box=box))["point"]
    assert points[0].tolist() == [list(point) for point in expected]


def test_the_known_box_where_the_detector_finds_none(face):
    dark = (face // 40).astype(np.uint8)
    weights = resolve("dlib-68-landmarks", Landmarks(LandmarksConfig()), offline=True)
    faces = shared_faces(weights)
    assert not len(faces.detect(dark, 0, 0.0)[0])
    points = ready().compute(batch(dark, box=(70.0, 80, 200, 210)))["point"][0]
    assert torch.equal(points, torch.from_numpy(faces.landmarks([dark], np.array([[70, 80, 200, 210]]))[0]))


def test_the_size_of_a_batch_changes_nothing(face):
    """To the bit; the stage's own is sixteen."""
    stage = ready()
    faces = [np.roll(face, (by, 2 * by), axis=(0, 1)) for by in range(18)]
    together = stage.compute(batch(*faces))["point"]
    alone = torch.cat([stage.compute(batch(one))["point"] for one in faces])
    assert torch.equal(together, alone)
    assert len({tuple(points.flatten().tolist()) for points in together}) == 18
    assert stage.batch == 16


def test_another_face_does_not_count(face):
    """The known box lies apart from the only face that the detector finds."""
    points = ready().compute(batch(face, box=(0.0, 0, 40, 40)))["point"][0]
    assert points.max() < 60


def test_the_detector_doubles_at_most_once():
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        LandmarksConfig(upsample=2)  # type: ignore[arg-type]
