"""Left and right face of one movie: what is the same for both is computed once, and copied whole or not at all."""

import json
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import extract
from extract.errors import MachineError
from extract.inputs.manifest import Clip
from extract.running import lease
from extract.stages.hubert import Hubert
from extract.stages.roberta import Roberta
from extract.stages.transcribe import Transcribe
from extract.store import Store
from tests.media_files import pictures, tone, write_clip

CONFIG = """
extract:
  instances:
    frames: {}
    wave: {}
    hubert: {weights: random, architecture: small}
    transcribe: {}
    roberta: {weights: random, architecture: small}
  run: {clips: 2, cpu_threads: 2}
"""
COPYABLE = ("hubert", "transcribe", "roberta")
ONE_EACH = dict.fromkeys(COPYABLE, 1)


class Desk:
    """One movie with two people in it, and a run."""

    def __init__(self, root: Path) -> None:
        self.root, self.store_path = root, root / "store.zarr"
        (root / "c.yaml").write_text(CONFIG)
        (root / "words.csv").write_text("word,start_s,end_s\nhello,0.1,0.3\nthere,0.4,0.7\n")
        self.movie = write_clip(root / "movie.mov", pictures(20), sound=tone(0.8))

    def clip(self, face: str, **more: object) -> Clip:
        known = {"id": face, "video": self.movie, "transcript": self.root / "words.csv", "source_video": "movie"}
        return Clip(**{**known, "face": face, **more})

    def run(self, *clips: Clip, store: Path | None = None, **more: object):
        return extract.run(clips, store or self.store_path, str(self.root / "c.yaml"), device="cpu", **more)

    def both(self, **more: object):
        return self.run(self.clip("left"), self.clip("right"), **more)

    @property
    def store(self) -> Store:
        return Store.open(self.store_path)

    def chunks(self, clip: str, instance: str) -> dict[str, bytes]:
        folder = self.store_path / clip / instance
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("c.*")}

    def copied_from(self, clip: str, instance: str = "hubert"):
        return self.store.record(clip, instance).provenance.get("copied_from")


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


@pytest.fixture
def forwards(monkeypatch):
    """How often each copyable stage computed."""
    counted: Counter[str] = Counter()
    counting = threading.Lock()

    def count(stage_type):
        real = stage_type.compute

        def compute(self, inputs):
            with counting:
                counted[self.name] += 1
            return real(self, inputs)

        monkeypatch.setattr(stage_type, "compute", compute)

    for stage_type in (Hubert, Transcribe, Roberta):
        count(stage_type)
    return counted


@pytest.mark.parametrize("engine", ["serial", "lanes"])
def test_left_and_right_face_share_one_forward(desk, forwards, engine):
    report = desk.both(set=[f"run.engine={engine}"])
    assert report.exit_code == 0, report.failures
    assert forwards == ONE_EACH
    for name in COPYABLE:
        records = {face: desk.store.record(face, name) for face in ("left", "right")}
        assert desk.chunks("left", name) == desk.chunks("right", name) != {}
        (copy,) = [face for face, record in records.items() if "copied_from" in record.provenance]
        one, other = records[copy], records[{"left": "right", "right": "left"}[copy]]
        assert one.provenance["copied_from"] == {"left": "right", "right": "left"}[copy]
        same = ("state", "recipe", "source", "fingerprint", "rows", "notes")
        assert [getattr(one, field) for field in same] == [getattr(other, field) for field in same]
        assert one.provenance["rows"] == other.provenance["rows"]
        assert one.provenance["files"] == other.provenance["files"]
    # What copying gave is what computing gives.
    desk.run(desk.clip("right"), store=desk.root / "alone.zarr")
    assert forwards == dict.fromkeys(COPYABLE, 2)
    alone = Store.open(desk.root / "alone.zarr")
    for name, array in (("hubert", "feature"), ("hubert", "centre_s"), ("transcribe", "text"), ("roberta", "token")):
        for face in ("left", "right"):
            assert np.array_equal(desk.store.read(face, name, array).values, alone.read("right", name, array).values)
    before = desk.store.record("right", "hubert")
    assert desk.both().computed == 0
    assert desk.store.record("right", "hubert") == before


def test_two_in_flight_take_turns(desk, forwards, monkeypatch):
    """The second one has begun when the first one computes, and waits."""
    real = Hubert.compute

    def compute(self, inputs):
        until = time.monotonic() + 20
        while time.monotonic() < until:
            records = [desk.store.record(face, "hubert") for face in ("left", "right")]
            if all(record is not None and record.state == "partial" for record in records):
                return real(self, inputs)
            time.sleep(0.01)
        raise AssertionError("the other clip was not begun")

    monkeypatch.setattr(Hubert, "compute", compute)
    report = desk.both(stages=("hubert",), set=["run.engine=lanes"])
    assert report.exit_code == 0, report.failures
    assert forwards["hubert"] == 1


def test_what_an_earlier_run_computed_is_copied(desk, forwards):
    """Also where that clip is not among those of this run; how it was computed is said of the copy too."""
    desk.run(desk.clip("left"))
    left = desk.store.record("left", "hubert")
    of_then = {**left.provenance, "device": "cuda:0", "levers": {"compile": True}, "versions": {"torch": "1"}}
    desk.store.write_record("left", "hubert", replace(left, provenance=of_then))
    desk.run(desk.clip("right"))
    assert forwards == ONE_EACH
    found = desk.store.record("right", "hubert").provenance
    assert {name: found[name] for name in ("device", "levers", "versions")} == {
        name: of_then[name] for name in ("device", "levers", "versions")
    }
    assert found["copied_from"] == "left"
    assert found["run"] != of_then["run"]


@pytest.mark.parametrize(
    ("instance", "more"),
    [
        ("hubert", {"end_s": 0.6}),
        ("hubert", {"audio": "other.wav"}),
        ("transcribe", {"transcript": "other.csv"}),
        ("roberta", {"transcript": "other.csv"}),
    ],
)
def test_another_source_is_another_value(desk, forwards, instance, more):
    write_clip(desk.root / "other.wav", sound=tone(0.7, frequency_hz=300))
    (desk.root / "other.csv").write_text("word,start_s,end_s\nbye,0.1,0.3\n")
    more = {key: desk.root / value if isinstance(value, str) else value for key, value in more.items()}
    assert desk.run(desk.clip("left"), desk.clip("right", **more)).exit_code == 0
    assert forwards[instance] == 2
    assert desk.copied_from("left", instance) is desk.copied_from("right", instance) is None


def test_the_same_bytes_by_another_name_are_the_same_source(desk, forwards):
    copy = desk.root / "copy.mov"
    copy.write_bytes(desk.movie.read_bytes())
    desk.run(desk.clip("left"), desk.clip("right", video=copy))
    assert forwards == ONE_EACH


def test_another_recipe_is_another_value(desk, forwards):
    desk.run(desk.clip("left"))
    desk.run(desk.clip("right"), set=["hubert.layer=1"])
    assert forwards["hubert"] == 2
    assert desk.copied_from("right") is None


def damage(desk):
    (chunk,) = (desk.store_path / "left" / "hubert" / "feature").glob("c.*")
    data = bytearray(chunk.read_bytes())
    data[100] ^= 1
    chunk.write_bytes(data)


def lose_a_block(desk):
    (chunk,) = (desk.store_path / "left" / "hubert" / "centre_s").glob("c.*")
    chunk.unlink()


def lose_an_array(desk):
    desk.store.arrays.delete("left", "hubert", "centre_s")


def damage_the_record(desk):
    (desk.store_path / "left" / "hubert" / "zarr.json").write_text("{")


def begin_anew(desk):
    record = desk.store.record("left", "hubert")
    desk.store.write_record("left", "hubert", replace(record, state="partial"))


def make_it_one_of_before(desk):
    """Two hours at once, before there was ``max_s``; its arrays say otherwise, but the record decides."""
    record = desk.store.record("left", "hubert")
    desk.store.write_record("left", "hubert", replace(record, rows=360_000))


@pytest.mark.parametrize(
    "spoil", [damage, lose_a_block, lose_an_array, damage_the_record, begin_anew, make_it_one_of_before]
)
def test_what_is_not_whole_is_not_copied(desk, forwards, spoil):
    desk.run(desk.clip("left"))
    expected = desk.store.read("left", "hubert", "feature").values
    spoil(desk)
    report = desk.run(desk.clip("right"))
    assert report.exit_code == 0, report.failures
    assert forwards["hubert"] == 2
    assert desk.copied_from("right") is None
    assert np.array_equal(desk.store.read("right", "hubert", "feature").values, expected)


def test_what_is_computed_anew_while_it_is_read_is_not_copied(desk, forwards, monkeypatch):
    """Another run finishes the other clip's instance between its first and its second array."""
    desk.run(desk.clip("left"))
    real = Store.read

    def read(self, clip, instance, array):
        found = real(self, clip, instance, array)
        if (clip, instance, array) == ("left", "hubert", "feature"):
            record = self.record(clip, instance)
            self.write_record(clip, instance, replace(record, provenance={**record.provenance, "run": "another"}))
        return found

    monkeypatch.setattr(Store, "read", read)
    desk.run(desk.clip("right"))
    assert forwards["hubert"] == 2
    assert desk.copied_from("right") is None


@pytest.mark.parametrize("then", [{"fingerprint": "0" * 64}, {"state": "empty", "reason": "no_audio"}])
def test_the_record_counts_as_it_is_now(desk, forwards, monkeypatch, then):
    """The other clip was finished when the run was planned; before its values were asked for, it was made another."""
    desk.run(desk.clip("left"))
    real = Hubert.setup

    def setup(self, context):
        real(self, context)
        desk.store.write_record("left", "hubert", replace(desk.store.record("left", "hubert"), **then))

    monkeypatch.setattr(Hubert, "setup", setup)
    assert desk.both().exit_code == 0
    assert forwards["hubert"] == 2
    assert desk.copied_from("right") is None


def test_who_cannot_copy_from_one_clip_copies_from_the_next(desk, forwards):
    desk.run(desk.clip("left"), desk.clip("largest"))
    damage(desk)
    desk.run(desk.clip("right"))
    assert forwards["hubert"] == 1
    assert desk.copied_from("right") == "largest"


def test_where_the_first_fails_the_second_computes(desk, forwards, monkeypatch):
    counting = Hubert.compute

    def compute(self, inputs):
        if not forwards["hubert"]:
            forwards["hubert"] += 1
            raise RuntimeError("once")
        return counting(self, inputs)

    monkeypatch.setattr(Hubert, "compute", compute)
    report = desk.both(stages=("hubert",))
    assert [failure.instance for failure in report.failures] == ["hubert"]
    assert forwards["hubert"] == 2
    monkeypatch.setattr(Hubert, "compute", counting)
    assert desk.both(stages=("hubert",)).exit_code == 0  # the failed one takes what the other has
    assert forwards["hubert"] == 2


def test_a_copy_that_was_cut_off_is_made_anew(desk, forwards, monkeypatch):
    desk.run(desk.clip("left"))
    with monkeypatch.context() as patched:
        real = Store.write_whole

        def write_whole(self, clip, instance, arrays, *, fingerprint):
            first = dict(list(arrays.items())[:1])
            real(self, clip, instance, first, fingerprint=fingerprint)
            raise MachineError("the disk is full")

        patched.setattr(Store, "write_whole", write_whole)
        with pytest.raises(MachineError, match="the disk is full"):
            desk.run(desk.clip("right"), stages=("hubert",))
    assert desk.store.record("right", "hubert").state == "partial"
    assert desk.run(desk.clip("right")).exit_code == 0
    assert forwards == ONE_EACH
    assert desk.chunks("left", "hubert") == desk.chunks("right", "hubert")


def test_nothing_is_copied_for_a_source_that_changed_meanwhile(desk, forwards, monkeypatch):
    """Hashed as the left one's, swapped before the copy is written: the clip fails, and stores no row."""
    copy = desk.root / "copy.mov"
    copy.write_bytes(desk.movie.read_bytes())
    desk.run(desk.clip("left"), stages=("hubert",))
    real = Store.read

    def read(self, clip, instance, array):
        write_clip(copy, pictures(20), sound=tone(0.8, frequency_hz=200))
        return real(self, clip, instance, array)

    monkeypatch.setattr(Store, "read", read)
    report = desk.run(desk.clip("right", video=copy), stages=("hubert",))
    assert [failure.reason for failure in report.failures] == ["source_changed"]
    assert desk.chunks("right", "hubert") == {}
    assert forwards["hubert"] == 1


def test_a_clip_that_was_lost_to_another_run_gets_no_copy(desk, forwards, monkeypatch):
    desk.run(desk.clip("left"), stages=("hubert",))
    real = Store.read

    def read(self, clip, instance, array):
        (desk.store_path / "right" / lease.NAME).unlink(missing_ok=True)
        return real(self, clip, instance, array)

    monkeypatch.setattr(Store, "read", read)
    report = desk.run(desk.clip("right"), stages=("hubert",))
    assert [notice.clip for notice in report.busy] == ["right"]
    assert desk.chunks("right", "hubert") == {}
    assert desk.store.record("right", "hubert").state == "partial"
    assert forwards["hubert"] == 1


def test_without_sound_there_is_nothing_to_copy(desk, forwards):
    silent = write_clip(desk.root / "silent.mov", pictures(5))
    desk.run(desk.clip("left", video=silent), desk.clip("right", video=silent), stages=("hubert",))
    for face in ("left", "right"):
        record = desk.store.record(face, "hubert")
        assert (record.state, record.reason) == ("empty", "no_audio")
    assert forwards["hubert"] == 0


@pytest.mark.slow
def test_a_process_of_its_own_copies_too(desk):
    desk.run(desk.clip("left"), stages=("hubert",))
    report = desk.run(desk.clip("right"), stages=("hubert",), set=["run.isolate=always", "run.clips=1"])
    assert report.exit_code == 0, report.failures
    assert desk.copied_from("right") == "left"
    assert desk.chunks("left", "hubert") == desk.chunks("right", "hubert") != {}


# ---- stores made before recordings were cut ------------------------------------------------------------------------


def test_a_long_clip_of_before_is_stale_and_a_short_one_is_not(desk, forwards):
    """300 s have 14,999 steps. Rows and notes of the record decide; no recipe has changed."""
    desk.run(desk.clip("left"), stages=("hubert",))
    record = desk.store.record("left", "hubert")
    assert "max_s" not in json.dumps(record.recipe)
    for rows, notes in ((14_999, {}), (15_000, {"chunks": 2})):
        desk.store.write_record("left", "hubert", replace(record, rows=rows, notes=notes))
        assert desk.run(desk.clip("left"), stages=("hubert",)).computed == 0
    desk.store.write_record("left", "hubert", replace(record, rows=15_000))
    message = r"hubert: clip left: recipe hubert\.max_s: none, 15000 steps at once -> 300\n.*--overwrite"
    with pytest.raises(extract.errors.StaleError, match=message):
        desk.run(desk.clip("left"), stages=("hubert",))
    assert desk.run(desk.clip("left"), stages=("hubert",), overwrite=True).computed == 1
    assert forwards["hubert"] == 2
    assert desk.store.record("left", "hubert").rows == record.rows
