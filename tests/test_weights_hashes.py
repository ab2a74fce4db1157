"""How often bytes of weights are read: once per file, until its stamp changes."""

import json
import os
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from extract.errors import UsageError
from extract.stages.detections import Detections, DetectionsConfig
from extract.stages.landmarks import Landmarks, LandmarksConfig
from extract.stages.swin import Swin, SwinConfig
from extract.weights import files, hashes, resolving
from extract.weights.files import path_sha256
from extract.weights.hashes import MEMO, remembered_sha256

LONG_AGO_S = 3600.0


@pytest.fixture(autouse=True)
def read(monkeypatch) -> Counter[str]:
    """A process that knows no hash, and keeps one of every file; how often each was read, by name."""
    reads: Counter[str] = Counter()

    def counted(path: Path) -> str:
        reads[path.name] += 1
        return real(path)

    real = files.file_sha256
    monkeypatch.setattr(hashes, "file_sha256", counted)
    monkeypatch.setattr(hashes, "_seen", {})
    monkeypatch.setattr(hashes, "WORTH_A_NOTE", 0)
    return reads


@pytest.fixture
def later(monkeypatch):
    """The clock as it will stand in an hour: no file's time can be set back, for its ctime is the kernel's."""
    monkeypatch.setattr(hashes, "time", SimpleNamespace(time=lambda: time.time() + LONG_AGO_S))


def new_process(monkeypatch) -> None:
    monkeypatch.setattr(hashes, "_seen", {})


@pytest.fixture
def cache(tmp_path) -> Path:
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path) -> Path:
    """Weights as the hub has them."""
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "model.safetensors").write_bytes(b"tensors")
    (tmp_path / "w" / "config.json").write_bytes(b"{}")
    return tmp_path / "w"


@pytest.mark.usefixtures("later")
def test_a_file_is_read_once_by_all_runs(monkeypatch, read, cache, folder):
    expected = path_sha256(folder)
    for _ in range(3):  # stages of one process
        assert remembered_sha256(folder, cache) == expected
    assert read == {"model.safetensors": 1, "config.json": 1}
    for _ in range(2):  # runs
        new_process(monkeypatch)
        assert remembered_sha256(folder, cache) == expected
    assert read.total() == 2
    assert sorted(json.loads((cache / MEMO).read_text())) == sorted(map(str, folder.iterdir()))


@pytest.mark.usefixtures("later")
def test_a_small_file_is_remembered_by_the_process_alone(monkeypatch, read, cache, folder):
    monkeypatch.setattr(hashes, "WORTH_A_NOTE", len(b"tensors"))
    for _ in range(2):
        remembered_sha256(folder, cache)
    new_process(monkeypatch)
    remembered_sha256(folder, cache)
    assert read == {"model.safetensors": 1, "config.json": 2}


def rewritten(file: Path) -> None:
    """Other bytes, as many of them, and the old time of the last change: only the ctime tells."""
    before = file.stat()
    file.write_bytes(b"others!")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(file: Path) -> None:
    """Another file of the same size and times takes the name."""
    other = file.with_name("other")
    other.write_bytes(b"others!")
    before = file.stat()
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(file)


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("change", [rewritten, replaced, lambda file: file.write_bytes(b"longer than before")])
@pytest.mark.parametrize("same_process", [True, False])
def test_a_changed_file_is_read_again(monkeypatch, read, cache, folder, change, same_process):
    file = folder / "model.safetensors"
    before = remembered_sha256(file, cache)
    time.sleep(0.02)  # the kernel's clock ticks every 4 ms
    change(file)
    if not same_process:
        new_process(monkeypatch)
    after = remembered_sha256(file, cache)
    assert after == path_sha256(file) != before
    assert read["model.safetensors"] == 2


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("number", range(4), ids=["inode", "size", "mtime", "ctime"])
def test_every_number_of_the_stamp_counts(monkeypatch, read, cache, folder, number):
    file = folder / "model.safetensors"
    remembered_sha256(file, cache)
    entries = json.loads((cache / MEMO).read_text())
    stamp = file.stat()
    assert entries[str(file)][:4] == [stamp.st_ino, stamp.st_size, stamp.st_mtime_ns, stamp.st_ctime_ns]
    entries[str(file)][number] += 1
    (cache / MEMO).write_text(json.dumps(entries))
    new_process(monkeypatch)
    remembered_sha256(file, cache)
    assert read.total() == 2


@pytest.mark.parametrize(("age_s", "believed"), [(0.0, False), (1.9, False), (2.1, True)])
def test_a_file_that_has_just_changed_is_not_remembered(monkeypatch, read, cache, folder, age_s, believed):
    """It could change again within one tick of the file system's clock."""
    file = folder / "model.safetensors"
    monkeypatch.setattr(hashes, "time", SimpleNamespace(time=lambda: file.stat().st_ctime + age_s))
    for _ in range(2):
        remembered_sha256(file, cache)
    assert read.total() == (1 if believed else 2)
    assert (cache / MEMO).exists() is believed


@pytest.mark.usefixtures("later")
def test_a_file_that_changes_while_it_is_read_is_not_remembered(monkeypatch, cache, folder):
    file = folder / "model.safetensors"

    def changes(path: Path) -> str:
        found = files.file_sha256(path)
        time.sleep(0.02)
        rewritten(file)
        return found

    monkeypatch.setattr(hashes, "file_sha256", changes)
    before = remembered_sha256(file, cache)
    monkeypatch.setattr(hashes, "file_sha256", files.file_sha256)
    assert remembered_sha256(file, cache) == path_sha256(file) != before


DAMAGED = {
    "no JSON": "{",
    "no object": "[]",
    "nested": "[" * 100_000,
    "no entry": '{"FILE": 1}',
    "short": '{"FILE": [1, 2, 3, 4]}',
    "of other types": '{"FILE": [1, 2, 3, true, "SHA"]}',
    "no sha256": '{"FILE": [INODE, 7, MTIME, CTIME, "abc"]}',
    "huge": '{"FILE": [INODE, 7, MTIME, CTIME, "SHA"]}' + " " * hashes.MOST_NOTED,
}


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_memo_is_as_none(read, cache, folder, text):
    file = folder / "model.safetensors"
    found = file.stat()
    values = {"FILE": file, "INODE": found.st_ino, "MTIME": found.st_mtime_ns, "CTIME": found.st_ctime_ns}
    for name, value in {**values, "SHA": "0" * 64}.items():
        text = text.replace(name, str(value))
    (cache / MEMO).write_text(text)
    assert remembered_sha256(file, cache) == path_sha256(file)
    assert read.total() == 1
    assert list(json.loads((cache / MEMO).read_text())) == [str(file)]  # written anew


@pytest.mark.usefixtures("later")
def test_files_that_are_gone_are_forgotten(cache, folder):
    remembered_sha256(folder, cache)
    (folder / "config.json").unlink()
    (folder / "more.safetensors").write_bytes(b"more")
    remembered_sha256(folder, cache)
    kept = {Path(name).name for name in json.loads((cache / MEMO).read_text())}
    assert kept == {"model.safetensors", "more.safetensors"}


@pytest.mark.usefixtures("later")
def test_a_memo_that_cannot_be_written_fails_nobody(monkeypatch, read, cache, folder):
    (cache / MEMO).mkdir()
    expected = path_sha256(folder)
    assert remembered_sha256(folder, cache) == expected
    new_process(monkeypatch)
    assert remembered_sha256(folder, cache / "is not there") == expected
    assert not (cache / "is not there").exists()
    new_process(monkeypatch)
    monkeypatch.setattr(hashes, "cache_folder", no_home)
    for _ in range(2):
        assert remembered_sha256(folder) == expected
    assert read.total() == 6  # each process remembers


def no_home() -> Path:
    raise UsageError("this user has no home folder")


@pytest.mark.usefixtures("later")
def test_three_stages_and_another_run_read_the_landmark_file_once(monkeypatch, read, cache):
    stages = [Detections(DetectionsConfig()), Landmarks(LandmarksConfig()), Landmarks(LandmarksConfig(upsample=1))]
    for _ in range(2):
        new_process(monkeypatch)
        found = {resolving.resolve("dlib-68-landmarks", stage, cache=cache).sha256 for stage in stages}
    assert len(found) == 1
    assert read == {"shape_predictor_68_face_landmarks.dat": 1}


@pytest.mark.usefixtures("later")
def test_verify_and_hashes_of_a_swapped_file_read_the_bytes(monkeypatch, read, cache, folder):
    """``extract weights verify`` promises to hash: it asks no memo."""
    assert remembered_sha256(folder / "model.safetensors", cache)
    entries = json.loads((cache / MEMO).read_text())
    lies = {name: [*entry[:4], "0" * 64] for name, entry in entries.items()}
    (cache / MEMO).write_text(json.dumps(lies))
    new_process(monkeypatch)
    assert remembered_sha256(folder / "model.safetensors", cache) == "0" * 64  # the memo is asked, where it counts
    located = [entry for entry in resolving.verify(cache, cache / "no.lock") if entry.row.package]
    assert [entry.state for entry in located] == ["ok"]
    assert read["shape_predictor_68_face_landmarks.dat"] == 0  # by ``files``' own function, which is not counted


@pytest.mark.usefixtures("later")
def test_local_weights_of_a_stage_are_read_once(monkeypatch, read, cache, folder):
    stage = Swin(SwinConfig(weights=str(folder)))
    for _ in range(3):
        new_process(monkeypatch)
        assert resolving.resolve(str(folder), stage, cache=cache).sha256 == path_sha256(folder)
    assert read == {"model.safetensors": 1, "config.json": 1}
