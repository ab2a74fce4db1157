"""Rows on their way through a run: what a stage gets and what the store takes."""

import pytest
import torch

from extract.errors import ClipError
from extract.running.rows import as_declared, fixed, stored_form
from extract.stage import Output
from extract.stages.crop import CropConfig, GivenCrop
from extract.timeline import FRAMES
from tests.toy_stages import Colour, ColourConfig

FIXED = Output("image", FRAMES, ("y", "x", "rgb"), (4, 4, 3), "uint8", kept=False)
RAGGED = Output("patch", FRAMES, ("y", "x", "rgb"), (None, None, 3), "uint8", kept=False)


def pictures(*sides: int) -> list[torch.Tensor]:
    return [torch.full((side, side, 3), side, dtype=torch.uint8) for side in sides]


def test_rows_of_a_fixed_size_become_one_tensor_and_others_stay_a_list():
    whole = fixed(pictures(4, 4), FIXED)
    assert isinstance(whole, torch.Tensor)
    assert tuple(whole.permute(0, 3, 1, 2).shape) == (2, 3, 4, 4)
    assert [tuple(row.shape) for row in fixed(pictures(2, 3), RAGGED)] == [(2, 2, 3), (3, 3, 3)]
    assert tuple(fixed([], FIXED).shape) == (0, 4, 4, 3)


def test_rows_of_a_fixed_size_that_differ_are_named():
    with pytest.raises(ClipError, match=r"image: rows of \(3, 3, 3\), declares \(4, 4, 3\)"):
        fixed(pictures(4, 3), FIXED)


def test_given_crops_arrive_as_cut_ones_do():
    stage = GivenCrop(CropConfig())
    given = stage.arrays(pictures(112, 112))
    (image,) = [output for output in stage.outputs if output.name == "image"]
    assert tuple(fixed(given["image"], image).shape) == (2, 112, 112, 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mean": torch.zeros(2, 3)}, "gave ['mean'], declares"),
        ({"mean": torch.zeros(3, 3), "corner": torch.zeros(2, 3).byte()}, "mean: 3 rows for 2 given"),
        ({"mean": torch.zeros(2, 4), "corner": torch.zeros(2, 3).byte()}, "mean: rows of (4,), declares (3,)"),
        ({"mean": torch.zeros(2, 3), "corner": torch.zeros(2, 3)}, "corner: float32, declares uint8"),
    ],
)
def test_what_a_stage_gives_must_be_what_it_declares(values, message):
    with pytest.raises(ClipError) as caught:
        as_declared(Colour(ColourConfig()), values, 2)
    assert message in str(caught.value)
    assert caught.value.reason == "broken_promise"


def test_an_overflow_names_the_setting_that_helps():
    output = Output("mean", FRAMES, ("channel",), (3,), "float16")
    with pytest.raises(ClipError, match=r"mean: 7e\+04 does not fit float16; --set colour.dtype=float32"):
        stored_form(torch.full((2, 3), 70_000.0), output, "colour")
