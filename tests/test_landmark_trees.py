"""Oracle: dlib itself, with its published file and with small ones that it trains here."""

import importlib.util
from pathlib import Path

import dlib
import numpy as np
import pytest

from extract.models.dlib_file import CHUNK_BYTES, floats, integers, read_words
from extract.models.landmark_trees import MOST_FACES, read_landmark_trees
from tests.contract import at_once

PACKAGE = importlib.util.find_spec("face_recognition_models")
assert PACKAGE is not None
PUBLISHED = Path(str(PACKAGE.origin)).parent / "models" / "shape_predictor_68_face_landmarks.dat"


def picture(seed, height, width):
    """Large blotches with noise: brightness differs from place to place as on a face."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 230, (height // 16 + 1, width // 16 + 1, 3))
    blotches = np.kron(coarse, np.ones((16, 16, 1)))[:height, :width]
    return (blotches + rng.integers(0, 26, (height, width, 3))).astype(np.uint8)


def faces(number, seed=0):
    """Pictures of several sizes and boxes, whole pixels: some reach over the edge, the last is far away."""
    rng = np.random.default_rng(seed)
    images = [picture(seed + k, int(rng.integers(90, 300)), int(rng.integers(90, 300))) for k in range(number)]
    corner, side = rng.integers(-60, 120, (number, 2)), rng.integers(30, 250, (number, 2))
    boxes = np.concatenate([corner, corner + side], axis=1)
    boxes[-1] += 5000
    return images, boxes


def of_dlib(path, images, boxes):
    predictor = dlib.shape_predictor(str(path))
    shapes = [predictor(image, dlib.rectangle(*box.tolist())) for image, box in zip(images, boxes, strict=True)]
    return np.array([[(point.x, point.y) for point in shape.parts()] for shape in shapes])


@pytest.fixture(scope="module")
def published():
    return read_landmark_trees(PUBLISHED)


def trained(path, points=7, depth=2, cascades=3, trees=20):
    """A file of dlib's for ``points`` points at random places, of which it learns little."""
    options = dlib.shape_predictor_training_options()
    options.tree_depth, options.cascade_depth, options.num_trees_per_cascade_level = depth, cascades, trees
    options.oversampling_amount, options.feature_pool_size, options.num_threads = 2, 30, 1
    rng = np.random.default_rng(points)
    images = [picture(seed, 100, 120) for seed in range(12)]
    places = [[dlib.point(*place) for place in rng.integers(20, 80, (points, 2)).tolist()] for _ in images]
    shapes = [[dlib.full_object_detection(dlib.rectangle(15, 15, 85, 90), place)] for place in places]
    dlib.train_shape_predictor(images, shapes, options).save(str(path))
    return path


def stream(*values):
    """dlib's form of whole numbers, written here from its description."""
    data = bytearray()
    for value in values:
        size = max(1, -(-abs(value).bit_length() // 8))
        data += bytes([size | (128 if value < 0 else 0)]) + abs(value).to_bytes(size, "little")
    return bytes(data)


def test_the_points_are_dlibs_to_the_last_one(published):
    images, boxes = faces(2 * MOST_FACES + 3)
    expected = of_dlib(PUBLISHED, images, boxes)
    assert np.array_equal(published(images, boxes), expected)
    assert len(np.unique(expected.reshape(len(images), -1), axis=0)) == len(images)


def test_batches_and_threads_change_no_point(published):
    images, boxes = faces(8, seed=50)
    together = published(images, boxes)
    alone = at_once(lambda row: published(images[row : row + 1], boxes[row : row + 1]), range(8))
    assert np.array_equal(np.concatenate(alone), together)
    assert published([], np.zeros((0, 4), np.int64)).shape == (0, 68, 2)


@pytest.mark.parametrize(
    ("points", "depth", "cascades", "trees"), [(7, 2, 3, 20), (3, 1, 1, 1), (12, 5, 2, 9), (68, 3, 2, 5)]
)
def test_files_of_other_depths(tmp_path, points, depth, cascades, trees):
    path = trained(tmp_path / "trained.dat", points, depth, cascades, trees)
    images, boxes = faces(6, seed=9)
    found = read_landmark_trees(path)
    assert found.leaf.shape == (cascades, trees, 2**depth, 2 * points)
    assert np.array_equal(found(images, boxes), of_dlib(path, images, boxes))


def test_numbers_of_every_length_and_sign(tmp_path):
    path = tmp_path / "numbers"
    values = [0, 1, -1, 255, -255, 256, 65535, 65536, -(2**24 - 1)]
    path.write_bytes(stream(*values))
    assert integers(read_words(path)).tolist() == values
    path.write_bytes(stream(3, -1, -5, 0, 12345678, -20, 0, 0))
    assert floats(read_words(path)).tolist() == [1.5, -5, np.float32(12345678 * 2.0**-20), 0]


@pytest.mark.parametrize("first", [1, 300])
def test_chains_that_never_meet(tmp_path, first):
    """Every value is 1, so that a chain begun in the middle of a number goes on as if it were right."""
    path = tmp_path / "numbers"
    values = [first, *[1] * (2 * CHUNK_BYTES), 7]
    path.write_bytes(stream(*values))
    assert integers(read_words(path)).tolist() == values


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "its bytes are not dlib's integers"),
        (bytes(5000), "its bytes are not dlib's integers"),
        (stream(*[1] * 9000) + bytes(30_000) + stream(*[1] * 9000), "its bytes are not dlib's integers"),
        (b"<html>not found</html>" * 900, "its bytes are not dlib's integers"),
        (stream(1, 2**24), "its bytes are not dlib's integers"),
        (stream(2, -4, -1), r"its version are \[2\], expected 1 everywhere"),
        (stream(1, -4, -1, 5), "it ends after 4 numbers"),
        (stream(1, -2, -1, 1, 0, 1, 0, 1, 500, 14), "500 trees of 14 splits, expected one less than a power of two"),
    ],
)
def test_other_files_are_refused(tmp_path, data, message):
    path = tmp_path / "marks.dat"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_landmark_trees(path)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The numbers of a file with one cascade of two trees of one split, 3 points.

    0 version, 1 and 2 size of the mean shape, 15 cascades, 16 trees, then a tree: 17 splits, 18 and 19 pixels,
    22 leaves, 23 and 24 size of the first; 51 and on the second tree; 85 lists of anchors, 86 length of the first.
    """
    path = trained(tmp_path_factory.mktemp("small") / "small.dat", points=3, depth=1, cascades=1, trees=2)
    numbers = integers(read_words(path)).tolist()
    assert stream(*numbers) == path.read_bytes()
    assert [numbers[at] for at in (0, 15, 16, 17, 22, 51, 56, 85, 86)] == [1, 1, 2, 1, 2, 1, 2, 1, 30]
    return numbers


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (15, 9, "it ends after"),
        (16, 0, "0 trees of 1 splits"),
        (51, 3, r"its splits are \[1 3\], expected 1 everywhere"),
        (56, 3, r"its leaves are \[2 3\], expected 2 everywhere"),
        (57, -7, r"its numbers in a leaf are \[1 6 7\], expected \[6, 1\] everywhere"),
        (18, 30, "pixel 30 of 30"),
        (19, -1, "pixel -1 of 30"),
        (85, 2, r"its lists are \[2\], expected 1 everywhere"),
        (87, 3, "anchor 3 of 3"),
    ],
)
def test_a_number_that_does_not_fit(tmp_path, small, place, value, message):
    path = tmp_path / "marks.dat"
    path.write_bytes(stream(*small[:place], value, *small[place + 1 :]))
    with pytest.raises(ValueError, match=message):
        read_landmark_trees(path)


def test_a_file_of_gigabytes_is_not_read(tmp_path):
    path = tmp_path / "marks.dat"
    with path.open("wb") as file:
        file.truncate(20 * 10**9)  # holes: it takes no room
    with pytest.raises(ValueError, match=r"it has 20 GB, expected 0\.1"):
        read_landmark_trees(path)
