"""Bad files: each gives one clear line and the designed exit code; the other clips are finished."""

import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from extract.cli import app
from extract.inputs.media import decoding
from extract.store import Store
from tests.media_files import cut_short, overwrite_packets, pictures, tone, write_clip

pytestmark = pytest.mark.usefixtures("toys")

CONFIG = "extract: {instances: {colour: {}, after_rank: {}}}"
HUBERT = ("--stage", "hubert", "--set", "hubert.weights=random", "--set", "hubert.architecture=small")


class Desk:
    """Clips on a desk, and the command."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.entries: list[str] = []
        (root / "c.yaml").write_text(CONFIG)

    def add(self, clip: str, **keys: str) -> None:
        self.entries.append(f"- {{id: {clip}, " + ", ".join(f"{k}: {v}" for k, v in keys.items()) + "}")

    def run(self, *flags: str):
        """All instances of the config, or those that ``--stage`` flags name."""
        (self.root / "m.yaml").write_text("version: 1\nclips:\n" + "\n".join(self.entries) + "\n")
        arguments = ["run", "--manifest", "m.yaml", "-c", "c.yaml", "--set", "run.cpu_threads=1"]
        return CliRunner().invoke(app, [*arguments, *flags])

    def record(self, clip: str, instance: str):
        return Store.open(self.root / "store.zarr").record(clip, instance)

    def lines(self, result, clip: str) -> list[str]:
        return [line for line in result.stderr.splitlines() if f"clip {clip}," in line]


@pytest.fixture
def desk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = Desk(tmp_path)
    write_clip(tmp_path / "good.mov", pictures(20), sound=tone(0.8))
    made.add("good", video="good.mov")
    return made


def failed_alone(desk, result, clip, reason, *instances):
    """The named instances failed for that reason, told in one line, and the good clip is finished."""
    assert result.exit_code == 1, result.stderr
    (line,) = desk.lines(result, clip)
    assert line.startswith(f"failed: clip {clip}, stage {instances[0]}: {reason}: ")
    assert line.endswith(f"(so also {', '.join(instances[1:])})") or not instances[1:]
    assert {desk.record(clip, name).state for name in instances} == {"failed"}
    assert {desk.record(clip, name).reason for name in instances} == {reason}
    assert {desk.record("good", name).state for name in instances} == {"done"}
    assert "run the same command to try again" in result.stderr
    return line


VISUAL = ("frames", "colour", "rank", "after_rank")


def test_not_a_video(desk, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"this is a text about videos" * 100)
    desk.add("bad", video="bad.mp4")
    line = failed_alone(desk, desk.run(), "bad", "unreadable", *VISUAL)
    assert "bad.mp4" in line
    assert desk.record("bad", "rank").cause == "frames"


def test_a_file_of_no_bytes(desk, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"")
    desk.add("bad", video="bad.mp4")
    failed_alone(desk, desk.run(), "bad", "unreadable", *VISUAL)
    failed_alone(desk, desk.run(*HUBERT), "bad", "unreadable", "hubert")


def test_a_file_that_is_not_there(desk):
    desk.add("gone", video="gone.mp4")
    line = failed_alone(desk, desk.run(), "gone", "missing_file", *VISUAL)
    assert "gone.mp4: no such file; is the path right?" in line


def test_a_video_stream_without_frames(desk, tmp_path):
    whole = write_clip(tmp_path / "bad.mov", pictures(5), codec="libx264", pix_fmt="yuv420p")
    overwritten = overwrite_packets(whole, 0)
    shutil.move(overwritten, tmp_path / "spoilt.mov")
    desk.add("bad", video="spoilt.mov")
    failed_alone(desk, desk.run(), "bad", "no_frames", *VISUAL)


def test_a_truncated_video_is_done_and_told(desk, tmp_path):
    whole = write_clip(tmp_path / "long.mkv", pictures(60), sound=tone(2.4))
    shutil.move(cut_short(whole, 0.5), tmp_path / "torn.mkv")
    desk.add("torn", video="torn.mkv")
    result = desk.run()
    assert result.exit_code == 0, result.stderr
    record = desk.record("torn", "frames")
    assert record.state == "done"
    assert 0 < record.rows < 60
    end_s = record.notes["truncated_at_s"]
    assert end_s == pytest.approx(record.rows / 25, abs=0.08)
    assert f"warning: clip torn, frames: the file is cut off; what decodes ends at {end_s} s" in result.stderr
    sound = desk.run(*HUBERT)
    assert 0 < desk.record("torn", "hubert").notes["truncated_at_s"] < 2.4
    assert "warning: clip torn, hubert: the file is cut off" in sound.stderr


def test_no_sound_is_empty_and_undecodable_sound_is_a_failure(desk, tmp_path):
    write_clip(tmp_path / "silent.mov", pictures(5))
    desk.add("silent", video="silent.mov")
    loud = write_clip(tmp_path / "loud.mkv", pictures(5), sound=tone(1.0), sound_codec="flac")
    shutil.move(overwrite_packets(loud, 1), tmp_path / "noise.mkv")
    desk.add("noise", video="noise.mkv")
    failed_alone(desk, desk.run(*HUBERT), "noise", "audio_undecodable", "hubert")
    assert desk.run().exit_code == 0
    assert (desk.record("silent", "hubert").state, desk.record("silent", "hubert").reason) == ("empty", "no_audio")


def test_a_sound_file_has_empty_visual_instances(desk, tmp_path):
    write_clip(tmp_path / "voice.wav", sound=tone(1.0))
    desk.add("voice", audio="voice.wav")
    assert desk.run(*HUBERT).exit_code == 0
    assert desk.run("--stage", "after_rank", "--stage", "labels", "--set", "labels.label_slack=2").exit_code == 0
    for name in (*VISUAL, "labels"):
        assert (desk.record("voice", name).state, desk.record("voice", name).reason) == ("empty", "no_video"), name
    assert desk.record("voice", "hubert").rows == 49


def test_sound_shorter_than_a_step_is_empty(desk, tmp_path):
    write_clip(tmp_path / "blip.wav", sound=tone(0.02))
    desk.add("blip", audio="blip.wav")
    assert desk.run(*HUBERT).exit_code == 0
    assert desk.record("blip", "hubert").reason == "too_short"


def test_one_frame(desk, tmp_path):
    write_clip(tmp_path / "one.mov", pictures(1))
    desk.add("one", video="one.mov")
    assert desk.run().exit_code == 0
    assert desk.record("one", "after_rank").rows == 1


def test_a_header_that_lies_is_told_and_believed_in_nothing(desk, tmp_path):
    path = write_clip(tmp_path / "liar.avi", pictures(10))
    data = path.read_bytes()
    # AVI: the main header's dwTotalFrames and the stream header's dwLength.
    place = data.index(b"avih") + 8 + 16
    data = data[:place] + (98).to_bytes(4, "little") + data[place + 4 :]
    place = data.index(b"strh") + 8 + 32
    path.write_bytes(data[:place] + (98).to_bytes(4, "little") + data[place + 4 :])
    desk.add("liar", video="liar.avi")
    result = desk.run()
    assert result.exit_code == 0
    assert desk.record("liar", "after_rank").rows == 10
    assert "clip liar, frames: the header declares 98 frames, 10 decode" in result.stderr


@pytest.mark.parametrize(
    ("rows", "state"), [(18, "done"), (19, "done"), (20, "done"), (22, "done"), (17, "failed"), (23, "failed")]
)
def test_labels_a_row_or_two_off_are_kept_and_more_are_refused(desk, tmp_path, rows, state):
    (tmp_path / "l.csv").write_text("AU1\n" + "1\n" * rows)
    write_clip(tmp_path / "x.mov", pictures(20))
    desk.add("x", video="x.mov", labels="{au: l.csv}")
    result = desk.run("--stage", "labels", "--set", "labels.label_slack=2")
    record = desk.record("x", "labels")
    assert record.state == state
    if state == "failed":
        assert result.exit_code == 1
        assert record.reason == "labels_mismatch"
        assert f"{rows} label rows for 20 frames" in record.message or f"{rows}" in record.message
    else:
        assert result.exit_code == 0
        au = Store.open("store.zarr").read("x", "labels", "au").values
        assert au[:, 0].tolist() == [1] * min(rows, 20) + [-1] * (20 - min(rows, 20))
        assert (record.notes == {}) == (rows == 20)
        assert ("within label_slack" in result.stderr) == (rows != 20)


@pytest.mark.parametrize("time", [Fraction(1, 25), None], ids=["goes back", "absent"])
def test_times_that_are_absent_or_do_not_increase(desk, tmp_path, monkeypatch, time):
    """No container that we can write keeps such times; the decoder is made to give frame 3 another one."""
    odd = write_clip(tmp_path / "odd.mov", pictures(6))
    desk.add("odd", video="odd.mov")
    real = decoding.decoded

    def decoded(container, stream, damage):
        for number, frame in enumerate(real(container, stream, damage)):
            if Path(container.name).name == odd.name and number == 3:
                frame.pts = None if time is None else int(time / frame.time_base)
            yield frame

    monkeypatch.setattr(decoding, "decoded", decoded)
    line = failed_alone(desk, desk.run(), "odd", "bad_times", *VISUAL)
    assert "repair_pts" in line
    again = desk.run("--set", "frames.repair_pts=true", "--overwrite")
    assert again.exit_code == 0, again.stderr
    assert "clip odd, frames: presentation times repaired" in again.stderr
    times = Store.open("store.zarr").read("odd", "frames", "pts_s").values
    assert np.allclose(times, np.arange(6) / 25)


def test_a_store_of_another_schema_and_a_folder_that_is_not_ours_exit_2(desk, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/thesis.docx").write_text("years")
    result = desk.run("--store", "docs")
    assert result.exit_code == 2
    assert "something else here" in result.stderr
    assert desk.run("--stage", "frames").exit_code == 0
    root = tmp_path / "store.zarr/zarr.json"
    root.write_text(root.read_text().replace('"schema": 1', '"schema": 9'))
    result = desk.run("--stage", "frames")
    assert result.exit_code == 2
    assert "schema 9" in result.stderr
