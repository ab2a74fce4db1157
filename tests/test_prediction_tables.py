"""Tables of ``fusion predict``: the run's post-processing, OpenFace's column names, and what the facts say of both."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import fusion
from extract.au import AU_NAMES, AUS
from extract.errors import CorruptError, UsageError
from extract.inputs.datasets.folder import clip_of_file
from fusion.decisions import decide, shipped_with
from fusion.post_config import PostConfig
from fusion.postprocess import FILE, PostProcess
from fusion.prediction_tables import refuse_foreign, write
from fusion.scores import FrameScores
from fusion.smoothing import Windows
from tests.test_prediction import cache, fitted, movie, rewrite, table, tone  # noqa: F401 - fixtures

NUM_FRAMES = 6
FACE = np.array([1, 1, 0, 1, 1, 1], dtype=bool)


def scores(aus=AUS, **facts):
    random = np.random.default_rng(3)
    logits = (2 * random.standard_normal((NUM_FRAMES, len(aus)))).astype(np.float32)
    return FrameScores(
        clips=("talk",),
        source_videos=("talk",),
        clip=np.zeros(NUM_FRAMES, dtype=np.int64),
        frame=np.arange(NUM_FRAMES),
        pts_s=0.5 + np.arange(NUM_FRAMES) / 25,
        present={"swin": FACE, "hubert": np.ones(NUM_FRAMES, dtype=bool)},
        face=FACE,
        logits=logits,
        labels=np.full(logits.shape, -1, dtype=np.int8),
        aus=aus,
        **facts,
    )


def post(aus=AUS, window=3.0, threshold=0.3, pairs=None):
    return PostProcess(
        aus=aus,
        windows=Windows((window,) * len(aus), "frames"),
        no_face="network",
        temperature=(1.0,) * len(aus),
        pairs=pairs or {},
        thresholds=tuple(threshold + 0.01 * k for k in range(len(aus))),
        order=PostConfig().order,
    )


def written(folder, what, decided, **options):
    found = write(folder, "talk", Path("talk.mp4"), what, decided, {"clip": "talk"}, **options)
    return table(found.table), json.loads(found.facts.read_text())


# ---- what the run ships --------------------------------------------------------------------------------------------


def test_probabilities_and_decisions_are_post_processed(tmp_path):
    """Oracle: the mean of logits over i-1 to i+1 where frames exist, the logistic function, each AU's threshold."""
    shown, shipped = scores(), post()
    columns, facts = written(tmp_path, shown, decide(shown, shipped), fill=True)
    logits = shown.logits.astype(float)
    smooth = np.stack([logits[max(i - 1, 0) : i + 2].mean(axis=0) for i in range(NUM_FRAMES)])
    expected = 1 / (1 + np.exp(-smooth))
    for k, name in enumerate(AU_NAMES):
        found = np.array(columns[f"{name}_p"], dtype=float)
        np.testing.assert_allclose(found, expected[:, k], rtol=0, atol=1e-6)
        assert [int(value) for value in columns[name]] == (expected[:, k] >= 0.3 + 0.01 * k).astype(int).tolist()
    assert facts["thresholds"] == {name: pytest.approx(0.3 + 0.01 * k) for k, name in enumerate(AU_NAMES)}
    assert facts["postprocess"]["smooth"]["by_au"]["AU12"] == 3
    assert "smoothing over 3 frames" in facts["postprocess"]["summary"][0]
    assert "report" not in facts["postprocess"]


def test_without_post_processing_it_is_the_network_at_half(tmp_path):
    shown = scores()
    columns, facts = written(tmp_path, shown, decide(shown, None), fill=True)
    expected = 1 / (1 + np.exp(-shown.logits.astype(float)))
    np.testing.assert_allclose(np.array(columns["AU26_p"], dtype=float), expected[:, -1], rtol=0, atol=1e-6)
    assert [int(value) for value in columns["AU26"]] == (shown.logits[:, -1] >= 0).astype(int).tolist()
    assert facts["postprocess"] is None
    assert set(facts["thresholds"].values()) == {0.5}


def test_predict_applies_what_the_run_ships_unless_raw(fitted, tmp_path):  # noqa: F811
    run = rewrite(fitted / "run", tmp_path / "run")
    (run / FILE).unlink()
    video = movie(tmp_path / "a.mov", sound=tone(0.4))
    plain = fusion.predict([video], run, output=tmp_path / "plain", fill=True)
    (run / FILE).write_text(json.dumps(post(window=1, threshold=0.85, pairs={24: (4,)}).as_json()))
    fusion.predict([video], run, output=tmp_path / "post", fill=True)
    fusion.predict([video], run, output=tmp_path / "raw", fill=True, raw=True)
    before, after, raw = (table(tmp_path / name / "a.csv") for name in ("plain", "post", "raw"))
    assert raw == before
    assert plain.exit_code == 0
    p4, p24 = (np.array(before[f"AU{au}_p"], dtype=float) for au in ("04", "24"))
    np.testing.assert_allclose(np.array(after["AU24_p"], dtype=float), (p4 + p24) / 2, rtol=0, atol=2e-6)
    assert after["AU12_p"] == before["AU12_p"]
    assert set(after["AU12"]) == {"0"}  # no probability of a network after one epoch reaches 0.91
    facts = json.loads((tmp_path / "post" / "a.json").read_text())
    assert facts["thresholds"]["AU12"] == pytest.approx(0.91)
    assert facts["postprocess"]["pairs"] == {"AU24": ["AU04"]}
    assert json.loads((tmp_path / "raw" / "a.json").read_text())["postprocess"] is None


def test_post_processing_of_other_aus_or_damaged_is_refused_before_any_work(fitted, tmp_path, cache):  # noqa: F811
    run = rewrite(fitted / "run", tmp_path / "run")
    (run / FILE).write_text(json.dumps(post(AUS[:4]).as_json()))
    with pytest.raises(UsageError, match=r"postprocess\.json: thresholds of other action units"):
        fusion.predict([movie(tmp_path / "a.mov")], run, output=tmp_path)
    (run / FILE).write_text("{")
    with pytest.raises(CorruptError, match=r"postprocess\.json: damaged"):
        fusion.predict([tmp_path / "a.mov"], run, output=tmp_path)
    assert not cache.exists()
    assert shipped_with(tmp_path, AUS) is None


# ---- OpenFace's names ----------------------------------------------------------------------------------------------


def test_openface_columns(tmp_path):
    shown = scores()
    decided = decide(shown, post())
    columns, facts = written(tmp_path, shown, decided, columns="openface")
    assert list(columns) == ["frame", "face_id", "timestamp", "success", *(f"{name}_c" for name in AU_NAMES)]
    assert columns["frame"] == ["1", "2", "3", "4", "5", "6"]
    assert set(columns["face_id"]) == {"0"}
    assert [float(value) for value in columns["timestamp"]] == pytest.approx((0.5 + np.arange(6) / 25).tolist())
    assert columns["success"] == ["1", "1", "0", "1", "1", "1"]
    for k, name in enumerate(AU_NAMES):
        wanted = [str(int(value)) if face else "" for value, face in zip(decided.decisions[:, k], FACE, strict=True)]
        assert columns[f"{name}_c"] == wanted
    assert facts["columns"] == "openface"
    explained = set(facts["units"])
    assert {"frame", "face_id", "timestamp", "success", "AUxx_c"} <= explained


def test_intensities_are_written_where_the_run_has_them(tmp_path):
    rated = np.tile(np.array([[-0.2, 1.234, 6.0]], dtype=np.float32), (NUM_FRAMES, 1))
    shown = scores(outputs={"intensity": rated}, facts={"intensity_aus": [1, 6, 12]})
    columns, _ = written(tmp_path, shown, decide(shown, None), columns="openface", fill=True)
    assert [name for name in columns if name.endswith("_r")] == ["AU01_r", "AU06_r", "AU12_r"]
    assert (columns["AU01_r"][0], columns["AU06_r"][0], columns["AU12_r"][0]) == ("0.00", "1.23", "5.00")


def test_a_table_of_either_form_is_ours_and_openfaces_own_is_not(tmp_path):
    """Else a second prediction would be refused, or would replace what OpenFace measured."""
    shown = scores()
    for columns in ("default", "openface"):
        written(tmp_path, shown, decide(shown, None), columns=columns)
        refuse_foreign(tmp_path, ["talk"])
        # Nor is it taken for labels or words of the movie beside it.
        (tmp_path / "talk.mp4").touch()
        clip = clip_of_file(tmp_path / "talk.mp4", "x")
        assert clip.transcript is None
    with (tmp_path / "talk.csv").open("w") as file:
        csv.writer(file).writerow(["frame", "face_id", "timestamp", "confidence", "success", "AU01_r"])
    with pytest.raises(UsageError, match=r"talk\.csv: exists and is not a prediction"):
        refuse_foreign(tmp_path, ["talk"])


def test_a_run_without_pictures_is_valid_where_it_hears_something(tmp_path):
    heard = np.array([0, 1, 1, 1, 0, 0], dtype=bool)
    shown = scores()
    deaf = FrameScores(**{**vars(shown), "present": {"hubert": heard}, "face": np.ones(NUM_FRAMES, dtype=bool)})
    columns, _ = written(tmp_path, deaf, decide(deaf, None))
    assert columns["valid"] == ["0", "1", "1", "1", "0", "0"]
    assert [bool(value) for value in columns["AU12_p"]] == heard.tolist()
