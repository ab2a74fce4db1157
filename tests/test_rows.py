"""Rows on their way through a run: what a stage gets and what the store takes."""

import re

import pytest
import torch

from extract.config import InstanceConfig
from extract.errors import ClipError
from extract.graph import Instance
from extract.running.recipes import Prepared
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


HALVES = Output("mean", FRAMES, ("channel",), (3,), "float16")


def colour_in(precision):
    instance = Instance("tint", Colour(ColourConfig()), FRAMES, InstanceConfig())
    return Prepared(instance, {}, "", None, precision)


@pytest.mark.parametrize(
    ("values", "precision", "message"),
    [
        (torch.full((2, 3), 70_000.0), "float32", "mean: 7e+04 does not fit float16; --set tint.dtype=float32"),
        (
            torch.full((2, 3), torch.inf).half(), "float16",
            "mean: inf does not fit float16; --set tint.dtype=float32 --set tint.precision=bfloat16",
        ),
        (torch.full((2, 3), torch.nan), "float32", "mean: NaN or infinity among the computed values"),
        (
            torch.full((2, 3), torch.inf), "float16",
            "mean: NaN or infinity among the computed values; float16 ends at 65504: --set tint.precision=bfloat16",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_stored_names_the_setting_that_helps(values, precision, message):
    with pytest.raises(ClipError, match=rf"{re.escape(message)}$"):
        stored_form(values, HALVES, colour_in(precision))
