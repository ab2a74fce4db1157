import pytest
import torch

from extract.errors import ClipError
from extract.stages.labels import Labels, LabelsConfig
from tests.contract import ClipContract, ClipInputs


def au(num_rows, seed=0):
    return torch.randint(-1, 2, (num_rows, 12), generator=torch.Generator().manual_seed(seed), dtype=torch.int8)


def expr(num_rows, seed=0):
    return torch.randint(-1, 8, (num_rows,), generator=torch.Generator().manual_seed(seed), dtype=torch.int8)


def clip(num_frames, au=None, expr=None):
    named = tuple(kind for kind, rows in (("au", au), ("expr", expr)) if rows is not None)
    return {
        "frames.pts_s": torch.arange(num_frames) / 25,
        "labels.au": au,
        "labels.au_left_out": (),
        "labels.au_listed": False,
        "labels.expr": expr,
        "labels.named": named,
    }


def run(*args, **config):
    return Labels(LabelsConfig(**config)).compute(clip(*args))


class TestLabels(ClipContract):
    def stage(self):
        return Labels(LabelsConfig())

    def clips(self):
        return [
            ClipInputs(clip(9, au(9), expr(9)), num_frames=9),
            ClipInputs(clip(30, au(29)), num_frames=30),
            ClipInputs(clip(4), num_frames=4),
            ClipInputs(clip(12, None, expr(14)), num_frames=12),
            ClipInputs(clip(9, au(9, seed=1), expr(9)), num_frames=9),
        ]


def test_rows_are_taken_as_they_are():
    result = run(20, au(20), expr(20))
    assert torch.equal(result.arrays["au"], au(20))
    assert torch.equal(result.arrays["expr"], expr(20))
    assert result.notes == {}


@pytest.mark.parametrize("num_rows", [73, 74, 76, 77])
def test_a_row_or_two_off_is_filled_or_cut_and_noted(num_rows):
    result = run(75, au(num_rows), expr(75))
    common = min(num_rows, 75)
    assert torch.equal(result.arrays["au"][:common], au(num_rows)[:common])
    assert (result.arrays["au"][common:] == -1).all()
    assert torch.equal(result.arrays["expr"], expr(75))
    assert result.notes == {"au_rows": num_rows, "frames": 75}


@pytest.mark.parametrize("num_rows", [0, 72, 78])
def test_more_is_refused(num_rows):
    with pytest.raises(ClipError, match=f"{num_rows} label rows for 75 frames, expected at most 2 more") as caught:
        run(75, au(num_rows))
    assert caught.value.reason == "labels_mismatch"
    with pytest.raises(ClipError, match=f"{num_rows} label rows"):
        run(75, au(75), expr(num_rows))


def test_slack_is_a_setting():
    assert run(75, au(70), label_slack=5).notes["au_rows"] == 70
    with pytest.raises(ClipError, match="74 label rows for 75 frames, expected at most 0"):
        run(75, au(74), label_slack=0)


def test_the_kind_that_is_absent_is_not_annotated():
    result = run(5, None, expr(5))
    assert (result.arrays["au"] == -1).all()
    assert (run(5, au(5)).arrays["expr"] == -1).all()


def test_no_file_is_empty():
    result = run(5)
    assert result.empty == "no_labels"
    assert result.arrays == {}
