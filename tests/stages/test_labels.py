import pytest
import torch
from pydantic import ValidationError

from extract.errors import ClipError
from extract.running.report import WARNINGS
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


def full(num_frames, seed=0, *, listed=False, rows=None, **without):
    """Every kind: of nine action units, valence and arousal, intensities."""
    num_rows = num_frames if rows is None else rows
    generator = torch.Generator().manual_seed(seed)
    given = clip(num_frames, au(num_rows, seed)[:, :9], expr(num_rows, seed))
    va = 2 * torch.rand(num_rows, 2, generator=generator) - 1
    intensity = torch.randint(-1, 6, (num_rows, 9), generator=generator, dtype=torch.int8)
    table = {"labels.intensity": intensity, "labels.intensity_left_out": (), "labels.intensity_listed": listed}
    named = ("au", "expr", "va", "intensity")
    return {**given, "labels.va": va, **table, "labels.au_listed": listed, "labels.named": named, **without}


NINE = LabelsConfig(aus=(1, 2, 4, 5, 6, 9, 12, 15, 17), also=("intensity", "va"))


class TestFurtherLabels(ClipContract):
    def stage(self):
        return Labels(NINE)

    def clips(self):
        return [
            ClipInputs(full(9), num_frames=9),
            ClipInputs(full(30, rows=29), num_frames=30),
            ClipInputs(full(4, **dict.fromkeys(["labels.au", "labels.expr", "labels.va", "labels.intensity"])), 4),
            ClipInputs(full(12, **{"labels.va": None}), num_frames=12),
            ClipInputs(full(9, seed=1), num_frames=9),
        ]


def test_what_there_is_depends_on_the_config():
    assert [output.name for output in Labels(LabelsConfig()).outputs] == ["au", "expr"]
    assert Labels(LabelsConfig()).parts == ("labels",)
    assert [(output.name, output.sizes) for output in Labels(NINE).outputs] == [
        ("au", (9,)),
        ("expr", ()),
        ("va", (2,)),
        ("intensity", (9,)),
    ]
    assert Labels(NINE).parts == ("labels", "labels.va", "labels.intensity")


def test_further_kinds_are_taken_as_they_are_and_filled_with_their_own_mark():
    inputs = full(20, rows=19)
    result = Labels(NINE).compute(inputs)
    assert torch.equal(result.arrays["va"][:19], inputs["labels.va"])
    assert result.arrays["va"][19:].tolist() == [[-5, -5]]
    assert torch.equal(result.arrays["intensity"][:19], inputs["labels.intensity"])
    assert result.arrays["intensity"][19:].tolist() == [[-1] * 9]
    assert result.notes == {"au_rows": 19, "expr_rows": 19, "va_rows": 19, "intensity_rows": 19, "frames": 20}
    alone = Labels(NINE).compute(full(5, **dict.fromkeys(["labels.au", "labels.expr", "labels.intensity"])))
    assert (alone.arrays["au"] == -1).all()
    assert alone.empty is None
    assert (Labels(NINE).compute(full(5, **{"labels.va": None})).arrays["va"] == -5).all()
    with pytest.raises(ClipError, match="16 label rows for 20 frames"):
        Labels(NINE).compute(full(20, **{"labels.va": torch.zeros(16, 2)}))


def test_a_list_of_frames_may_end_early_but_not_beyond_the_clip():
    inputs = full(75, rows=30, listed=True, **{"labels.expr": None, "labels.va": None})
    result = Labels(NINE).compute(inputs)
    assert torch.equal(result.arrays["au"][:30], inputs["labels.au"])
    assert (result.arrays["au"][30:] == -1).all()
    assert (result.arrays["intensity"][30:] == -1).all()
    assert result.notes == {}
    beyond = full(75, rows=78, listed=True, **{"labels.expr": None, "labels.va": None})
    with pytest.raises(ClipError, match="78 label rows for 75 frames"):
        Labels(NINE).compute(beyond)


def test_files_that_the_config_does_not_name_are_told_of():
    named = {"labels.named": ("au", "va", "intensity")}
    assert Labels(LabelsConfig()).compute({**clip(5, au(5)), **named}).notes == {"not_imported": "va, intensity"}
    nothing = Labels(LabelsConfig()).compute({**clip(5), **named})
    assert (nothing.empty, nothing.notes) == ("no_labels", {"not_imported": "va, intensity"})
    assert "not_imported" in WARNINGS


@pytest.mark.parametrize("aus", [(), (1, 1), (0, 1), (10_000,)])
def test_a_list_of_aus_that_is_none_is_refused(aus):
    with pytest.raises(ValidationError, match="expected numbers of action units, each once"):
        LabelsConfig(aus=aus)


def test_a_kind_that_is_none_is_refused():
    with pytest.raises(ValidationError, match="'va' or 'intensity'"):
        LabelsConfig(also=("au",))
