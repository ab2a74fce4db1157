"""Files for the ABAW challenge: every row by hand, and a checker that names each defect by file and line."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from extract.au import AU_NAMES, AUS
from extract.errors import UnfinishedError, UsageError
from fusion.cli import app
from fusion.clip_scores import joined
from fusion.config import FusionConfig
from fusion.decisions import decide
from fusion.inference import predict_outputs
from fusion.loading import load_samples
from fusion.postprocess import FILE
from fusion.prediction_tables import write
from fusion.runs import Run
from fusion.scores import FrameScores
from fusion.submission import submit
from fusion.submission_check import check
from fusion.submission_files import HEADER, LOCATION_HEADER, parse_location, read_expected, read_sample
from fusion.training import fit
from tests.fusion_stores import add_clip, add_instance, planted_store, remove_instance
from tests.test_prediction_tables import post

CONFIG = FusionConfig.model_validate({
    "modalities": {
        "swin": {"kind": "frame", "instance": "swin", "array": "feature", "project": 8},
        "hubert": {"kind": "steps", "instance": "hubert", "array": "feature", "project": 4},
    },
    "model": {"head": 8, "hidden": 4},
    "post": {"preset": "none"},
    "training": {"max_epochs": 1, "min_epoch_steps": 1},
})
VIDEOS = {"video49_left": 4, "10-60-1280x720": 7, "video49_right": 3}


def scores_of(video, face, logits=None):
    """Scores of one video whose AU k is active in frame t where bit k of t + 1 is set, unless told."""
    face = np.array(face, dtype=bool)
    if logits is None:
        logits = np.array([[1.0 if (t + 1) >> k & 1 else -1.0 for k in range(12)] for t in range(len(face))])
    values = np.asarray(logits, dtype=np.float32)
    return FrameScores(
        clips=(video,),
        source_videos=(video,),
        clip=np.zeros(len(face), dtype=np.int64),
        frame=np.arange(len(face)),
        pts_s=np.arange(len(face)) / 30,
        present={"swin": face},
        face=face,
        logits=values,
        labels=np.full(values.shape, -1, dtype=np.int8),
    )


def row(number):
    """The row of a frame whose AUs are the bits of ``number``."""
    return ",".join(str(number >> k & 1) for k in range(12))


@pytest.fixture
def saved(tmp_path):
    """``scores.npz`` of VIDEOS, every frame with a face."""
    whole = joined([scores_of(video, [1] * count) for video, count in VIDEOS.items()])
    (tmp_path / "scores.npz").write_bytes(whole.as_bytes())
    return tmp_path / "scores.npz"


def listed(tmp_path, counts=VIDEOS):
    (tmp_path / "expected.txt").write_text("".join(f"{video},{count}\n" for video, count in counts.items()))
    return tmp_path / "expected.txt"


def sampled(tmp_path, rows, end=","):
    """A sample as ABAW5 gives it, its rows ending with a bare comma, or as ABAW6 with dummy values."""
    lines = [LOCATION_HEADER, *(f"{video}/{frame:05d}.jpg{end}" for video, frame in rows)]
    (tmp_path / "sample.txt").write_text("\n".join(lines) + "\n")
    return tmp_path / "sample.txt"


def every_row(counts=VIDEOS):
    return [(video, frame) for video, count in counts.items() for frame in range(1, count + 1)]


# ---- writing -------------------------------------------------------------------------------------------------------


def test_abaw3_is_a_file_per_video_with_a_row_per_frame(saved, tmp_path):
    written = submit("abaw3", tmp_path / "out", scores=saved, expected=listed(tmp_path))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"{video}.txt" for video in VIDEOS}
    for video, count in VIDEOS.items():
        text = (tmp_path / "out" / f"{video}.txt").read_bytes().decode()
        assert text == "\n".join([HEADER, *(row(t + 1) for t in range(count))]) + "\n"
    assert (written.videos, written.rows) == (3, 14)
    assert check(tmp_path / "out", expected=listed(tmp_path)) == []


def test_the_header_is_the_challenges():
    assert HEADER == "AU1,AU2,AU4,AU6,AU7,AU10,AU12,AU15,AU23,AU24,AU25,AU26"


@pytest.mark.parametrize("end", [",", "," + "0," * 11 + "1"])
def test_abaw5_is_one_file_in_the_order_of_the_sample(saved, tmp_path, end):
    order = [("video49_right", 1), ("video49_right", 2), *every_row({"10-60-1280x720": 7}), ("video49_left", 3)]
    sample = sampled(tmp_path, order, end)
    written = submit("abaw5", tmp_path / "out.txt", scores=saved, sample=sample)
    lines = (tmp_path / "out.txt").read_bytes().decode().split("\n")
    assert lines[0] == LOCATION_HEADER
    assert lines[1:] == [*(f"{video}/{frame:05d}.jpg,{row(frame)}" for video, frame in order), ""]
    assert written.rows == len(order)
    assert check(tmp_path / "out.txt", sample=sample) == []


def test_a_sample_may_name_frames_in_any_order(saved, tmp_path):
    order = [("10-60-1280x720", 7), ("video49_left", 1), ("10-60-1280x720", 2)]
    submit("abaw5", tmp_path / "out.txt", scores=saved, sample=sampled(tmp_path, order))
    lines = (tmp_path / "out.txt").read_text().splitlines()[1:]
    assert lines == [f"{video}/{frame:05d}.jpg,{row(frame)}" for video, frame in order]


def test_aus_go_by_number_not_by_place(saved, tmp_path):
    """A run may know more action units, in another order."""
    whole = FrameScores.read(saved)
    aus = (9, *reversed(AUS))
    logits = np.concatenate([np.full((len(whole), 1), 9, np.float32), whole.logits[:, ::-1]], axis=1)
    other = FrameScores(**{**vars(whole), "aus": aus, "logits": logits, "labels": np.full(logits.shape, -1, np.int8)})
    (tmp_path / "other.npz").write_bytes(other.as_bytes())
    for name in ("scores", "other"):
        submit("abaw5", tmp_path / f"{name}.txt", scores=tmp_path / f"{name}.npz")
    assert (tmp_path / "other.txt").read_bytes() == (tmp_path / "scores.txt").read_bytes()


def test_abaw5_without_a_sample_goes_by_name_and_frame(saved, tmp_path):
    submit("abaw5", tmp_path / "out.txt", scores=saved)
    places = [line.split(",")[0] for line in (tmp_path / "out.txt").read_text().splitlines()[1:]]
    assert places == [f"{video}/{frame:05d}.jpg" for video in sorted(VIDEOS) for frame in range(1, VIDEOS[video] + 1)]
    assert check(tmp_path / "out.txt", expected=listed(tmp_path)) == []


def test_counts_that_differ_are_met_and_told(saved, tmp_path):
    """Crops may reach beyond the decoded movie: the last row is repeated. Rows that nobody expects are left out."""
    expected = listed(tmp_path, {"video49_left": 6, "10-60-1280x720": 5})
    written = submit("abaw3", tmp_path / "out", scores=saved, expected=expected)
    left = (tmp_path / "out" / "video49_left.txt").read_text().splitlines()[1:]
    assert left == [row(1), row(2), row(3), row(4), row(4), row(4)]
    assert (tmp_path / "out" / "10-60-1280x720.txt").read_text().splitlines()[1:] == [row(t) for t in range(1, 6)]
    assert (written.extended, written.cut) == ({"video49_left": 2}, {"10-60-1280x720": 2})
    assert written.left_out == ["video49_right"]
    told = "\n".join(written.lines())
    assert "rows beyond the last frame, which repeat it: video49_left 2" in told
    assert "left out: video49_right" in told


GAPS = [0, 1, 0, 0, 0, 0, 1, 0]
FILLED = {
    "run": [1, 2, 3, 4, 5, 6, 7, 8],
    "nearest": [2, 2, 2, 2, 7, 7, 7, 7],
    "hold": [2, 2, 2, 2, 2, 2, 7, 7],
}


@pytest.mark.parametrize(("how", "rows"), FILLED.items())
def test_frames_without_a_face_are_filled(tmp_path, how, rows):
    """Frames 2 and 7 have a face; between them the nearest switches in the middle of the gap."""
    (tmp_path / "s.npz").write_bytes(scores_of("v", GAPS).as_bytes())
    written = submit("abaw3", tmp_path / "out", scores=tmp_path / "s.npz", fill=how)
    assert (tmp_path / "out" / "v.txt").read_text().splitlines()[1:] == [row(number) for number in rows]
    assert written.filled == {"v": 6}
    assert (written.fill, f"filled ({how}): 6 frames without a face in 1 videos" in written.lines()) == (how, True)


def test_of_two_equally_near_the_earlier_counts(tmp_path):
    (tmp_path / "s.npz").write_bytes(scores_of("v", [1, 0, 1]).as_bytes())
    submit("abaw3", tmp_path / "out", scores=tmp_path / "s.npz", fill="nearest")
    assert (tmp_path / "out" / "v.txt").read_text().splitlines()[1:] == [row(1), row(1), row(3)]


def test_interpolation_is_of_probabilities_with_the_runs_thresholds(tmp_path):
    """AU1 rises from .2 to .8 in five steps: .2 .32 .44 .56 .68 .8, then is held; its threshold is .5."""
    face = [1, 0, 0, 0, 0, 1, 0]
    logit = np.full((7, 12), -9.0)
    logit[0, 0], logit[5, 0] = np.log(0.2 / 0.8), np.log(0.8 / 0.2)
    logit[1:5, 0] = 9.0  # of frames without a face, which must not count
    (tmp_path / "s.npz").write_bytes(scores_of("v", face, logit).as_bytes())
    (tmp_path / FILE).write_text(json.dumps(post(window=1, threshold=0.5).as_json()))
    submit("abaw3", tmp_path / "out", scores=tmp_path / "s.npz", fill="interpolate")
    first = [line.split(",")[0] for line in (tmp_path / "out" / "v.txt").read_text().splitlines()[1:]]
    assert first == ["0", "0", "0", "1", "1", "1", "1"]


def test_a_video_without_any_face_has_the_runs_rows(tmp_path):
    (tmp_path / "s.npz").write_bytes(scores_of("v", [0, 0]).as_bytes())
    written = submit("abaw3", tmp_path / "out", scores=tmp_path / "s.npz", fill="nearest")
    assert written.without_face == ["v"]
    assert (tmp_path / "out" / "v.txt").read_text().splitlines()[1:] == [row(1), row(2)]


def test_the_runs_post_processing_decides(saved, tmp_path):
    (tmp_path / FILE).write_text(json.dumps(post(window=1, threshold=0.73).as_json()))
    submit("abaw3", tmp_path / "out", scores=saved)
    # Logit 1 is .731: AU1's threshold .73 is reached, AU2's .74 and those above are not.
    values = {line for line in (tmp_path / "out" / "10-60-1280x720.txt").read_text().splitlines()[1:]}
    assert values == {row(0), row(1)}


def test_the_tables_of_predict_serve_as_well(tmp_path):
    """Frames without a face have no numbers there, so the nearest ones stand in unless asked otherwise."""
    shown = scores_of("v", GAPS)
    about = {"warnings": ["untrained encoders"]}
    write(tmp_path / "p", "v", tmp_path / "v.mp4", shown, decide(shown, None), about)
    written = submit("abaw3", tmp_path / "out", predictions=tmp_path / "p")
    assert (written.fill, written.warnings) == ("nearest", ["untrained encoders"])
    assert (tmp_path / "out" / "v.txt").read_text().splitlines()[1:] == [row(number) for number in FILLED["nearest"]]
    with pytest.raises(UsageError, match=r"video v: frames without a face have no numbers; predict with --fill"):
        submit("abaw3", tmp_path / "other", predictions=tmp_path / "p", fill="run")
    write(tmp_path / "p", "v", tmp_path / "v.mp4", shown, decide(shown, None), about, columns="openface")
    with pytest.raises(UsageError, match=r"v\.csv: is no table by `fusion predict` with its default columns"):
        submit("abaw3", tmp_path / "other", predictions=tmp_path / "p")


def test_interpolation_leaves_frames_with_a_face_as_they_were_decided(tmp_path):
    """A table rounds: .4999999 is written as .500000 beside the decision 0."""
    logits = np.full((3, 12), -4e-7)
    shown = scores_of("v", [1, 0, 1], logits)
    write(tmp_path / "p", "v", tmp_path / "v.mp4", shown, decide(shown, None), {})
    assert "0.500000" in (tmp_path / "p" / "v.csv").read_text()
    submit("abaw3", tmp_path / "out", predictions=tmp_path / "p", fill="interpolate")
    first, _, last = (tmp_path / "out" / "v.txt").read_text().splitlines()[1:]
    assert first == last == row(0)


def test_a_run_on_a_split_without_labels(tmp_path):
    """The challenge's test videos have none. Oracle: the evaluation's own network on the same store."""
    store = planted_store(tmp_path / "s", {"a": "train", "x_left": "test", "x_right": "test"}, num_frames=12)
    fit(tmp_path / "s", tmp_path / "run", CONFIG)
    for clip in ("x_left", "x_right"):
        add_clip(store, clip, split="test", source_video="x")
        remove_instance(store, clip, "labels")
    result = CliRunner().invoke(
        app,
        ["submit", "--format", "abaw5", "-o", str(tmp_path / "out.txt"), "--run", str(tmp_path / "run"), "--features",
         str(tmp_path / "s")],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "24 rows of 2 videos, format abaw5" in result.stdout
    lines = (tmp_path / "out.txt").read_text().splitlines()[1:]
    model = Run(tmp_path / "run").model()
    samples = load_samples(store, ["x_left", "x_right"], model.config, frames="all", labelled=False)
    logits = predict_outputs(model.model, samples, next(model.model.parameters()).device)
    assert lines == [
        f"{video}/{frame + 1:05d}.jpg,{','.join(str(int(value >= 0)) for value in logits[12 * k + frame])}"
        for k, video in enumerate(("x_left", "x_right"))
        for frame in range(12)
    ]


def test_a_run_on_unfinished_features_is_refused(tmp_path):
    store = planted_store(tmp_path / "s", {"a": "train", "x": "test"}, num_frames=12)
    fit(tmp_path / "s", tmp_path / "run", CONFIG)
    add_instance(store, "x", "swin", {}, state="failed", reason="crashed", message="died")
    with pytest.raises(UnfinishedError, match=r"swin failed \(crashed: died\)"):
        submit("abaw3", tmp_path / "out", run=tmp_path / "run", features=tmp_path / "s")


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        (None, {}, r"--format is missing: abaw3 .* or abaw5"),
        ("abaw4", {}, r"--format abaw4: no such form; did you mean 'abaw"),
        ("abaw3", {"fill": "nearby"}, r"--fill nearby: no such way; did you mean 'nearest'"),
        ("abaw3", {"sample": "sample.txt"}, r"--sample orders the rows of abaw5; for abaw3 give --expected"),
        ("abaw3", {"predictions": "p"}, r"--predictions holds decisions already; leave out --run and --scores"),
    ],
)
def test_what_cannot_be_meant_is_refused(saved, tmp_path, form, options, message):
    options = {name: tmp_path / value if name != "fill" else value for name, value in options.items()}
    with pytest.raises(UsageError, match=message):
        submit(form, tmp_path / "out", scores=saved, **options)
    assert not (tmp_path / "out").exists()


def test_videos_without_scores_are_named(saved, tmp_path):
    expected = listed(tmp_path, VIDEOS | {"video37": 9, "104-17-720x480": 2})
    with pytest.raises(UsageError, match=r"2 videos of .*expected\.txt have no scores .*: video37, 104-17-720x480;"):
        submit("abaw3", tmp_path / "out", scores=saved, expected=expected)
    with pytest.raises(UsageError, match=r"1 videos of .*sample\.txt have no scores"):
        submit("abaw5", tmp_path / "out", scores=saved, sample=sampled(tmp_path, [("video37", 1)]))
    with pytest.raises(UsageError, match=r"-o is missing: name the folder"):
        submit("abaw3", None, scores=saved)


def test_scores_of_fewer_aus_are_refused(saved, tmp_path):
    whole = FrameScores.read(saved)
    few = FrameScores(**{**vars(whole), "aus": AUS[:4], "logits": whole.logits[:, :4], "labels": whole.labels[:, :4]})
    (tmp_path / "few.npz").write_bytes(few.as_bytes())
    with pytest.raises(UsageError, match=rf"the challenge wants 12 action units; these scores lack {AU_NAMES[4]}, "):
        submit("abaw3", tmp_path / "out", scores=tmp_path / "few.npz")


def test_nothing_is_replaced(saved, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").touch()
    with pytest.raises(UsageError, match=r"holds something already; name a new folder"):
        submit("abaw3", tmp_path / "out", scores=saved)
    with pytest.raises(UsageError, match=r"exists already; name a new file"):
        submit("abaw5", tmp_path / "out" / "x", scores=saved)


# ---- the challenge's lists -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video1;5\n", r"list\.txt:1: found 'video1;5', expected NAME,COUNT"),
        ("name,count\nvideo1,0\n", r"list\.txt:2: found 'video1,0'"),
        ("video1,5\n\nvideo1,6\n", r"list\.txt:3: video video1 is there twice"),
        ("video1,-5\n", r"list\.txt:1: found"),
        ("\n", r"no line NAME,COUNT"),
    ],
)
def test_a_malformed_list_is_named_by_line(tmp_path, text, message):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(UsageError, match=message):
        read_expected(tmp_path / "list.txt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{LOCATION_HEADER}\nvideo1/1.jpg,\n", r"sample\.txt:2: found 'video1/1\.jpg', expected VIDEO/00001\.jpg"),
        ("v/00001.jpg,\nv/00002.jpg,\nv/00001.jpg,\n", r"sample\.txt:3: v/00001\.jpg is there already, in line 1"),
        ("image_location,AU1\n", r"no row VIDEO/00001\.jpg"),
    ],
)
def test_a_malformed_sample_is_named_by_line(tmp_path, text, message):
    (tmp_path / "sample.txt").write_text(text)
    with pytest.raises(UsageError, match=message):
        read_sample(tmp_path / "sample.txt")


def test_lists_may_come_from_another_system(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfname,count\r\nvideo1, 5\r\n")
    assert read_expected(tmp_path / "list.txt") == {"video1": 5}
    with pytest.raises(UsageError, match=r"gone\.txt: cannot be read \(No such file"):
        read_expected(tmp_path / "gone.txt")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("v_left/00012.jpg", ("v_left", 12)),
        ("v/100000.jpg", ("v", 100000)),
        ("v/000001.jpg", None),
        ("v/00000.jpg", None),
        ("v/00001.png", None),
        ("a/v/00001.jpg", None),
        ("v/0001.jpg", None),
    ],
)
def test_places_of_pictures(text, place):
    assert parse_location(text) == place
