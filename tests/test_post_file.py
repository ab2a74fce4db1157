"""Settings of post-processing, and the file that a run ships: what is refused, and by which words."""

import json
import re

import pytest
from pydantic import ValidationError

from extract.au import AUS
from extract.errors import ConfigError, CorruptError, UsageError
from fusion.post_config import PostConfig
from fusion.post_fitting import fit_post
from fusion.postprocess import PostProcess, describe
from tests.made_scores import drawn

# ---- the file ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted():
    val = drawn(17)
    return fit_post(
        val,
        PostConfig(temperature=True, thresholds="tuned", pairs="paper", check_pairs=False, smooth_by_au={"AU12": 10}),
    )


def changed(fitted, **values):
    plain = json.loads(json.dumps(fitted.as_json()))
    for path, value in values.items():
        at = plain
        *above, last = path.split("__")
        for key in above:
            at = at[key]
        if value is None:
            del at[last]
        else:
            at[last] = value
    return plain


def test_the_file_gives_an_equal_object(fitted, tmp_path):
    path = tmp_path / "postprocess.json"
    path.write_text(json.dumps(fitted.as_json(), allow_nan=False))
    assert PostProcess.read(path, AUS) == fitted
    assert fitted.windows.sizes[6] == 10


def test_the_file_is_read_by_names(fitted):
    """A run with the same AUs in another order gets its own order."""
    order = tuple(reversed(AUS))
    found = PostProcess.from_json(changed(fitted), order, "f")
    assert found.aus == order
    assert found.thresholds == tuple(reversed(fitted.thresholds))
    assert found.windows.sizes == tuple(reversed(fitted.windows.sizes))


def test_a_file_of_other_action_units(fitted):
    message = (
        "runs/x/postprocess.json: thresholds of other action units: none of AU09; AU26 not among the run's "
        "AU01, AU02, AU04, AU06, AU07, AU10, AU12, AU15, AU23, AU24, AU25, AU09; it belongs to another run"
    )
    with pytest.raises(UsageError, match=re.escape(message)):
        PostProcess.from_json(changed(fitted), (*AUS[:-1], 9), "runs/x/postprocess.json")
    with pytest.raises(UsageError, match="AU26 not among the run's"):
        PostProcess.from_json(changed(fitted), AUS[:-1], "f")
    with pytest.raises(
        UsageError, match="f: thresholds of other action units: none of AU09; it belongs to another run"
    ):
        PostProcess.from_json(changed(fitted), (*AUS, 9), "f")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"treshold": {}}, "f:\n  treshold: unknown key; did you mean 'thresholds'"),
        ({"thresholds": None}, "f:\n  thresholds: Field required"),
        ({"schema": 2}, "schema: Input should be 1, found 2"),
        ({"thresholds__AU01": 1.5}, "thresholds.AU01: .* less than or equal to 1, found 1.5"),
        ({"thresholds__AU01": "high"}, "thresholds.AU01: .* valid number"),
        ({"thresholds__AU01": None}, "f: thresholds: none of AU01"),
        ({"thresholds__AU99": 0.5}, "f: thresholds: AU99 not among the run's"),
        ({"temperature__AU02": 0.0}, "temperature.AU02: .* greater than 0"),
        ({"temperature__AU02": None}, "f: temperature: none of AU02"),
        ({"smooth__by_au__AU04": -6}, "smooth.by_au.AU04: .* greater than 0"),
        ({"smooth__by_au__AU04": 2.5}, "smooth.by_au: AU04 has 2.5 frames, expected a whole number"),
        ({"smooth__unit": "hours"}, "smooth.unit: .*'frames' or 'seconds'"),
        ({"pairs": {"AU24": ["AU05"]}}, "f: pairs: AU24 from AU05: the run has no AU05"),
        ({"order": ["smooth", "sharpen"]}, "order.1: "),
        ({"no_face": "guess"}, "no_face: "),
        ({"selected_on__sha256": None}, "selected_on.sha256: Field required"),
    ],
)
def test_damaged_values(fitted, change, message):
    with pytest.raises(UsageError, match=message):
        PostProcess.from_json(changed(fitted, **change), AUS, "f")


def test_no_file_and_no_json(tmp_path):
    path = tmp_path / "postprocess.json"
    with pytest.raises(UsageError, match=r"postprocess\.json: no such file; fit the run again"):
        PostProcess.read(path, AUS)
    path.write_text('{"schema": 1')
    with pytest.raises(CorruptError, match=r"postprocess\.json: damaged \(.*\); `fusion tune --apply` writes it anew"):
        PostProcess.read(path, AUS)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(CorruptError, match="damaged"):
        PostProcess.read(path, AUS)
    path.write_text("[1]")
    with pytest.raises(ConfigError, match="found"):
        PostProcess.read(path, AUS)


def test_what_a_reader_is_told(fitted):
    assert describe(fitted)[:3] == [
        "preset default: smoothing over 6 to 10 frames, per AU; frames without a face: scored from what else there is",
        "AU24 <- (AU24 + AU04) / 2",
        "AU26 <- (AU26 + AU01 + AU02) / 3",
    ]
    assert describe(fitted)[3].startswith("temperature ")
    assert "selected on split val: 4 clips of 4 source videos" in describe(fitted)
    plain = fit_post(drawn(0), PostConfig(preset="none", smooth_s=0.2, no_face="mask"))
    assert describe(plain) == [
        "preset none: smoothing over 0.2 s; frames without a face: left out of their neighbours' windows"
    ]


# ---- the config -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"smooth": 6, "smooth_s": 0.2}, "smooth: 6 frames and smooth_s: 0.2 s; name one of the two"),
        ({"smooth": 0}, "greater than or equal to 1"),
        ({"smooth_s": 0}, "greater than 0"),
        ({"smooth_s": float("inf")}, "less than or equal to|finite"),
        ({"smooth_by_au": {"AX12": 6}}, "'AX12' is no action unit; did you mean 'AU12'"),
        ({"smooth_by_au": {"AU12": 6, "au 12": 7}}, "AU12 is there twice"),
        ({"smooth_by_au": {"AU12": 0}}, "found 0.0, expected a window above 0"),
        ({"smooth_by_au": {"AU12": 0.5}}, "AU12 has 0.5 frames, expected a whole number"),
        ({"smooth_s": 0.2, "smooth_by_au": {"AU12": 5000}}, "AU12 has 5000.0 s, expected at most 3600"),
        ({"thresholds": "tund"}, "found 'tund'; did you mean 'tuned'"),
        ({"thresholds": 1.0}, "found 1.0, expected a number between 0 and 1"),
        ({"thresholds": True}, "found True, expected a number between 0 and 1"),
        ({"no_face": "zero"}, "no_face"),
        ({"preset": "papers"}, "preset"),
        ({"smoth": 6}, "smoth"),
    ],
)
def test_configs_that_are_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        PostConfig(**values)


def test_presets():
    default, paper, none = (PostConfig(preset=name).resolved() for name in ("default", "paper", "none"))
    fields = ("smooth", "pairs", "check_pairs", "thresholds")
    assert [getattr(default, name) for name in fields] == [6, "paper", True, "tuned"]
    assert [getattr(paper, name) for name in fields] == [6, "paper", False, "tuned"]
    assert [getattr(none, name) for name in fields] == [1, "none", False, 0.5]
    assert (default.order, paper.order) == (("smooth", "pairs", "thresholds"), ("smooth", "thresholds", "pairs"))
    own = PostConfig(preset="none", smooth_s=0.2, thresholds="tuned", smooth_by_au={"AU1": 1}).resolved()
    assert (own.smooth, own.smooth_s, own.thresholds, own.smooth_by_au) == (None, 0.2, "tuned", {"AU01": 1})
    assert PostConfig(**json.loads(own.model_dump_json())) == own
