import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from extract.models.ffhq import align as ffhq
from extract.stages.align import Align, AlignConfig
from tests.contract import RowsContract


def face(seed, side=120):
    """A smooth picture and the eyes and mouth of a turned face in it."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    image = np.array(coarse.resize((side, side), Image.Resampling.BICUBIC))
    marks = np.zeros((68, 2))
    marks[36:42], marks[42:48], marks[48], marks[54] = (-0.5, 0), (0.5, 0.02 * seed), (-0.4, 1), (0.4, 1)
    return torch.from_numpy(image), torch.from_numpy(marks * (20 + seed) + side / 2 - 10).float()


class Rows(RowsContract):
    ragged = frozenset({"superres.image"})

    def row(self, seed):
        image, marks = face(seed, 120 + 8 * (seed % 3))
        return {"superres.image": image, "landmarks.point": marks}


class TestTorch(Rows):
    def stage(self):
        return Align(AlignConfig(output_size=64, transform_size=128))


class TestPillow(Rows):
    def stage(self):
        return Align(AlignConfig(output_size=64, transform_size=128, method="pillow"))


def batch(*faces):
    return {"superres.image": [image for image, _ in faces], "landmarks.point": torch.stack([m for _, m in faces])}


def test_both_ways_are_the_functions():
    """Whether the pictures come as a list or, all of one size, as one tensor."""
    faces = [face(1), face(4, 90)]
    for method in ("torch", "pillow"):
        stage = Align(AlignConfig(method=method))
        found = stage.compute(batch(*faces))["image"]
        assert found.shape == (2, 256, 256, 3)  # type: ignore[union-attr]
        for (image, marks), aligned in zip(faces, found, strict=True):
            preparations = ffhq.plan(marks[None], [image], 256)
            assert preparations.valid.all()
            assert torch.equal(aligned, ffhq.align([image], preparations, 256, 1024, method)[0])  # type: ignore[arg-type]
        alike = batch(face(1), face(2))
        stacked = alike | {"superres.image": torch.stack(alike["superres.image"])}
        assert torch.equal(stage.compute(stacked)["image"], stage.compute(alike)["image"])  # type: ignore[arg-type]


def test_rows_without_a_square_are_not_valid():
    image, marks = face(1)
    rows = [(image, marks), (image, torch.full((68, 2), 40.0)), (image, marks + 5000), (image, marks * 0.05)]
    found = Align(AlignConfig(output_size=64, transform_size=64)).compute(batch(*rows))
    assert found["valid"].tolist() == [True, False, False, False]  # type: ignore[union-attr]
    assert not found["image"][1:].any()  # type: ignore[union-attr]


def test_ffhqs_own_size():
    assert Align(AlignConfig(output_size=1024, transform_size=4096)).outputs[0].sizes == (1024, 1024, 3)


def test_a_transform_smaller_than_the_result():
    with pytest.raises(ValidationError, match="transform_size is 256, expected at least output_size = 512"):
        AlignConfig(output_size=512, transform_size=256)
