"""What a run tells of its progress, and what the line on the terminal makes of it."""

from types import SimpleNamespace

import pytest

from extract import console
from extract.console import _Shown
from extract.inputs import media
from extract.inputs.manifest import write_manifest
from extract.running import runner
from extract.running.report import Progress
from extract.running.selection import Options
from tests.bench import Stop, stop_after

pytestmark = pytest.mark.usefixtures("toys")


class Told(Progress):
    def __init__(self):
        self.expected, self.done, self.through = {}, {}, []

    def expect(self, clip, frames):
        self.expected[clip] = frames

    def frames(self, clip, count):
        self.done[clip] = self.done.get(clip, 0) + count

    def clip(self, clip, failed):  # noqa: ARG002
        self.through.append(clip)


def run(bench, *stages):
    told = Told()
    write_manifest(bench.root / "m.yaml", list(bench.clips.values()))
    settings = ["run.block_rows=16", "run.engine=serial"]
    where = (bench.root / "m.yaml", bench.store_path, str(bench.root / "c.yaml"))
    return runner.run(*where, set=settings, options=Options(stages=stages), progress=told), told


def test_every_frame_counts_once(bench):
    bench.add("a", 40)
    report, told = run(bench, "after_rank")  # two passes over the frames
    assert told.done == {"a": 40}
    assert (report.speed.num_frames, told.through) == (40, ["a"])


def test_what_the_store_has_is_no_work_done(bench, monkeypatch):
    """Else a resumed run would show the decoder's speed, and its end as near."""
    bench.add("a", 40)
    with monkeypatch.context() as patch:
        stop_after(patch, 24)
        with pytest.raises(Stop):
            run(bench, "colour")
    assert len([name for name in bench.files() if name.startswith("a/colour/mean/")]) == 1
    report, told = run(bench, "colour")
    assert told.expected == {"a": 24}
    assert told.done == {"a": 24}
    assert report.speed.num_frames == 24


def test_a_header_may_claim_any_number_of_frames(bench, monkeypatch):
    bench.add("a", 40)
    real = media.open_video

    def open_video(*args, **how):
        video = real(*args, **how)
        video.declared_frames = 2**40
        return video

    monkeypatch.setattr(media, "open_video", open_video)
    report, told = run(bench, "colour")
    assert told.expected == {"a": 2**40}
    assert report.speed.num_frames == 40


def test_of_a_part_of_a_recording_the_header_says_nothing(bench):
    bench.add("a", 40)
    bench.add("b", 40, start_s=0.2, end_s=0.6)
    _, told = run(bench, "colour")
    assert told.expected == {"a": 40, "b": 0}
    assert 0 < told.done["b"] < 40


@pytest.fixture
def shown(monkeypatch):
    """A line at 10 s after the start of a run of three clips, of 100, 100 and 200 bytes."""
    now = SimpleNamespace(s=0.0)
    monkeypatch.setattr(console.time, "monotonic", lambda: now.s)
    line = _Shown()
    line.start({"a": 100, "b": 100, "c": 200})
    now.s = 10.0
    return line


def test_the_line(shown):
    shown.expect("a", 50)
    shown.frames("a", 20)
    # 50 frames in 100 bytes, so 200 in all: 180 are left, at 2 a second.
    assert shown.line() == "clips 0/3, 2.0 frames/s, ETA 0:01:30, 0 failed"
    shown.frames("a", 30)
    shown.clip("a", 1)
    assert shown.line() == "clips 1/3, 5.0 frames/s, ETA 0:00:30, 1 failed"


def test_a_clip_whose_header_says_nothing_counts_by_its_bytes(shown):
    shown.expect("a", 50)
    shown.expect("b", 0)
    shown.frames("a", 10)
    shown.frames("b", 10)
    # Still 200 frames in all: 180 are left, at 2 a second.
    assert shown.line() == "clips 0/3, 2.0 frames/s, ETA 0:01:30, 0 failed"


def test_without_frames_the_clips_are_counted(shown):
    assert shown.line() == "clips 0/3, 0.0 frames/s, ETA unknown, 0 failed"
    shown.clip("a", 0)
    assert shown.line() == "clips 1/3, 0.0 frames/s, ETA 0:00:20, 0 failed"


def test_unknown_until_a_clip_was_opened(shown):
    shown.frames("a", 10)
    assert shown.line() == "clips 0/3, 1.0 frames/s, ETA unknown, 0 failed"
