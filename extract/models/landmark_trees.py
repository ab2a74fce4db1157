"""68 landmarks by cascades of regression trees (Kazemi and Sullivan 2014), read from dlib's file.

dlib's own evaluation holds Python's lock, so that threads wait for each other, and takes one face at a time. This one
takes a batch in array operations, most of which leave the lock, and gives dlib's points: it adds the same float32
numbers in the same order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from extract.models.dlib_file import floats, integers, read_words

MOST_FACES = 16
"""Evaluated together: the leaves of 16 faces, 4 MB, stay in a CPU's cache."""


@dataclass(frozen=True)
class LandmarkTrees:
    """C cascades of T trees, each of S splits, breadth first, and S + 1 leaves (a power of two); N points.

    A split compares two of P pixels. Their places are given from a point of the shape, and turn and grow with it.
    """

    mean_shape: NDArray[np.float32]  # [N, 2] x and y in units of the box
    pair: NDArray[np.int64]  # [2, C, T, S] the two pixels that a split compares
    threshold: NDArray[np.int16]  # [C, T, S] the first is brighter than the second by more: to the left
    leaf: NDArray[np.float32]  # [C, T, S + 1, 2 N] what is added to the shape
    anchor: NDArray[np.int64]  # [C, P] the point that a pixel's place is given from
    offset: NDArray[np.float32]  # [C, P, 2] its place from there, in the mean shape

    def __call__(self, images: Sequence[NDArray[np.uint8]], boxes: NDArray[np.int64]) -> NDArray[np.float32]:
        """Points [F, N, 2], x and y in whole pixels of the pictures.

        Args:
            images: F pictures, RGB [H, W, 3], C-contiguous, of any sizes; one with two faces comes twice.
            boxes: [F, 4] left, top, right, bottom of the outermost pixels; they may reach over the edge.
        """
        found = np.zeros((len(images), *self.mean_shape.shape), np.float32)
        for at in range(0, len(images), MOST_FACES):
            some = slice(at, at + MOST_FACES)
            found[some] = self._find(images[some], boxes[some])
        return found

    def _find(self, images: Sequence[NDArray[np.uint8]], boxes: NDArray[np.int64]) -> NDArray[np.int64]:
        corner, size = boxes[:, None, :2], boxes[:, None, 2:] - boxes[:, None, :2]
        shape = np.repeat(self.mean_shape[None], len(images), axis=0)  # [F, N, 2]
        sums = np.empty((1 + self.leaf.shape[1], *shape.shape), np.float32)
        for cascade, leaf in enumerate(self.leaf):
            place = self._turned(cascade, shape) + shape[:, self.anchor[cascade]]  # [F, P, 2]
            reached = self._reached(cascade, _brightness(images, _rounded(place, size, corner)))
            # dlib adds one tree after the other: in another order the sum has other last digits.
            sums[0] = shape
            np.take(leaf.reshape(-1, *shape.shape[1:]), reached, axis=0, out=sums[1:], mode="clip")
            np.add.reduce(sums, axis=0, out=shape)
        return _rounded(shape, size, corner)

    def _turned(self, cascade: int, shape: NDArray[np.float32]) -> NDArray[np.float32]:
        """The offsets of the pixels, turned and scaled as ``shape`` is against the mean shape, [F, P, 2].

        By the similarity of least squares (Umeyama 1991), which has a closed form in two dimensions.
        """
        mean, now = self.mean_shape.astype(np.float64), shape.astype(np.float64)
        mean, now = mean - mean.mean(axis=0), now - now.mean(axis=1, keepdims=True)
        spread = (mean * mean).sum()
        cos = ((mean * now).sum(axis=(1, 2)) / spread).astype(np.float32)[:, None]
        sin = ((mean[:, 0] * now[..., 1] - mean[:, 1] * now[..., 0]).sum(axis=1) / spread).astype(np.float32)[:, None]
        x, y = self.offset[cascade, :, 0], self.offset[cascade, :, 1]
        return np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)

    def _reached(self, cascade: int, pixels: NDArray[np.int16]) -> NDArray[np.int64]:
        """Number of the leaf [T, F], among all of the cascade, that each face [F, P] comes to in each tree."""
        _, trees, splits = self.threshold.shape
        first, second = self.pair[:, cascade].reshape(2, -1)
        columns = np.ascontiguousarray(pixels.T)
        brighter = np.take(columns, first, axis=0)
        brighter -= np.take(columns, second, axis=0)
        right = (brighter <= self.threshold[cascade].reshape(-1, 1)).reshape(-1)  # [T * S * F]
        faces = len(pixels)
        root = (np.arange(trees) * splits)[:, None]
        node: NDArray[np.int64] = np.zeros((trees, faces), np.int64)
        while node[0, 0] < splits:  # all trees are equally deep
            node = 2 * node + 1 + np.take(right, (root + node) * faces + np.arange(faces))
        node += (np.arange(trees) * (splits + 1))[:, None] - splits
        return node


def _rounded(place: NDArray[np.float32], size: NDArray[np.int64], corner: NDArray[np.int64]) -> NDArray[np.int64]:
    """Whole pixels of the picture; ``place`` is in units of the box. Halves go up, as dlib has it."""
    pixel = place * size.astype(np.float64)
    pixel += corner
    pixel += 0.5
    return np.floor(pixel, out=pixel).astype(np.int64)


def _brightness(images: Sequence[NDArray[np.uint8]], place: NDArray[np.int64]) -> NDArray[np.int16]:
    """[F, P] mean of red, green and blue, rounded down, at ``place`` [F, P, 2]; 0 outside of the picture."""
    height, width = np.array([image.shape[:2] for image in images]).T[:, :, None]
    x, y = place[..., 0], place[..., 1]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    at = (y * width + x)[:, None] * 3 + np.arange(3)[:, None]  # [F, 3, P]
    colours = np.empty(at.shape, np.uint8)
    for colour, image, index in zip(colours, images, at, strict=True):
        np.take(image.reshape(-1), index, out=colour, mode="clip")
    bright: NDArray[np.int16] = colours.sum(axis=1, dtype=np.int16) // 3 * inside
    return bright


def read_landmark_trees(path: Path) -> LandmarkTrees:
    """The trees of a file that dlib's ``shape_predictor`` wrote.

    Raises:
        ValueError: it is no such file, or its trees are of different depths.
    """
    words = _Words(read_words(path))
    _expect(integers(words.take(1)), 1, "version")
    rows, columns = np.abs(integers(words.take(2))).tolist()  # dlib writes the sizes of a matrix as negative numbers
    mean_shape = floats(words.take(2 * rows * columns))
    numbers, cascades = len(mean_shape), words.count()
    trees, splits = integers(words.take(2, stay=True)).tolist()
    if trees < 1 or splits < 1 or (splits + 1) & splits:
        raise ValueError(f"{trees} trees of {splits} splits, expected one less than a power of two")
    # A tree: number of splits, two pixels and a threshold of each, number of leaves, a column of floats of each.
    at_leaves = 1 + 4 * splits
    length = at_leaves + 1 + (splits + 1) * (2 + 2 * numbers)
    forest = words.take(cascades * (1 + trees * length)).reshape(cascades, -1)
    tree = forest[:, 1:].reshape(cascades, trees, length)
    split = tree[..., 1:at_leaves].reshape(cascades, trees, splits, 4)
    leaf = tree[..., at_leaves + 1 :].reshape(cascades, trees, splits + 1, 2 + 2 * numbers)
    _expect(integers(forest[:, 0]), trees, "trees")
    _expect(integers(tree[..., 0]), splits, "splits")
    _expect(integers(tree[..., at_leaves]), splits + 1, "leaves")
    _expect(np.abs(integers(leaf[..., :2])), [numbers, 1], "numbers in a leaf")
    anchor = integers(_lists(words, cascades, each=1)[..., 0])
    offset = _lists(words, cascades, each=4)
    pair = integers(split[..., :2])
    for name, index, end in (("pixel", pair, anchor.shape[1]), ("anchor", anchor, numbers // 2)):
        if index.min() < 0 or index.max() >= end:
            worst = index.min() if index.min() < 0 else index.max()
            raise ValueError(f"{name} {worst} of {end}")
    return LandmarkTrees(
        mean_shape.reshape(-1, 2),
        np.ascontiguousarray(np.moveaxis(pair, -1, 0), np.int64),
        # Differences of brightness are whole numbers: more than 1.5 is more than 1.
        np.floor(floats(split[..., 2:])[..., 0]).clip(-256, 256).astype(np.int16),
        floats(leaf[..., 2:]),
        anchor.astype(np.int64),
        floats(offset).reshape(cascades, -1, 2),
    )


class _Words:
    """Those of a file, taken in order."""

    def __init__(self, words: NDArray[np.uint32]) -> None:
        self._words = words
        self._at = 0

    def take(self, number: int, *, stay: bool = False) -> NDArray[np.uint32]:
        taken = self._words[self._at : self._at + number]
        if len(taken) < number:
            raise ValueError(f"it ends after {len(self._words)} numbers")
        self._at += 0 if stay else number
        return taken

    def count(self) -> int:
        return int(integers(self.take(1))[0])


def _lists(words: _Words, number: int, each: int) -> NDArray[np.uint32]:
    """A list of ``number`` lists of one length, all with their lengths in front: [number, length, each] words."""
    _expect(integers(words.take(1)), number, "lists")
    length = int(integers(words.take(1, stay=True))[0])
    found = words.take(number * (1 + length * each)).reshape(number, -1)
    _expect(integers(found[:, 0]), length, "entries")
    return found[:, 1:].reshape(number, length, each)


def _expect(found: NDArray[np.int32], value: object, what: str) -> None:
    if (found != value).any():
        raise ValueError(f"its {what} are {np.unique(found)[:4]}, expected {value} everywhere")
