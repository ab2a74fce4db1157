import errno
import os
from pathlib import Path

import pytest

from extract.errors import MachineError
from extract.files import LocalFiles, is_temporary


@pytest.fixture
def files(tmp_path):
    return LocalFiles(tmp_path)


@pytest.fixture
def calls(monkeypatch):
    """Every fsync and rename, in order, as (what, name); a temporary name is told as ``new:NAME``."""
    made = []

    def shown(path):
        name = Path(path).name
        return f"new:{name.split('.')[1]}" if is_temporary(name) else name

    fsync, replace = os.fsync, os.replace

    def recording_fsync(handle):
        made.append(("fsync", shown(os.readlink(f"/proc/self/fd/{handle}"))))
        fsync(handle)

    def recording_replace(old, new):
        made.append(("rename", f"{shown(old)} {shown(new)}"))
        replace(old, new)

    monkeypatch.setattr("extract.files.os.fsync", recording_fsync)
    monkeypatch.setattr("extract.files.os.replace", recording_replace)
    return made


def test_writes_syncs_renames_and_syncs_the_folder_in_this_order(files, calls, tmp_path):
    (tmp_path / "a").mkdir()
    files.write("a/b", b"content")
    assert calls == [("fsync", "new:b"), ("rename", "new:b b"), ("fsync", "a")]
    assert files.read("a/b") == b"content"


def test_new_folders_are_synced_in_their_parents(files, calls, tmp_path):
    files.write("a/b/c", b"content")
    assert calls[:2] == [("fsync", tmp_path.name), ("fsync", "a")]
    assert calls[-1] == ("fsync", "b")


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(files, tmp_path, monkeypatch):
    files.write("a", b"old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("extract.files.os.fsync", full)
    with pytest.raises(MachineError, match=r"cannot write .*a: No space left.*run the same command again"):
        files.write("a", b"new")
    assert files.read("a") == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_create_gives_the_name_to_one_caller(files, tmp_path):
    assert files.create("a", b"first")
    assert not files.create("a", b"second")
    assert files.read("a") == b"first"
    assert os.listdir(tmp_path) == ["a"]


def test_create_is_exclusive_without_links_too(files, monkeypatch):
    """exFAT and some network shares know no hard links."""

    def refused(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("extract.files.os.link", refused)
    assert files.create("a", b"first")
    assert not files.create("a", b"second")
    assert files.read("a") == b"first"


def test_sweeps_what_killed_writers_left_and_nothing_else(files, tmp_path):
    files.write("clip/array/c.0", b"kept")
    (tmp_path / "clip/array/.c.1.0a1b.partial").write_bytes(b"half")
    assert files.names("clip/array") == ["c.0"]
    assert files.sweep("clip") == 1
    assert os.listdir(tmp_path / "clip/array") == ["c.0"]


def test_absent_things_are_none_or_empty_not_errors(files):
    assert files.read("no/such") is None
    assert files.names("no/such") == []
    assert files.folders("no") == []
    files.delete("no/such")
    assert files.sweep("no") == 0


def test_an_unreadable_place_is_the_machines_fault(files, monkeypatch):
    def broken(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", broken)
    with pytest.raises(MachineError, match=r"cannot read .*Input/output error"):
        files.read("a")


def test_a_short_write_is_continued(files, monkeypatch):
    """``write`` of the system may take less than it was given."""
    import builtins

    real = builtins.open

    def stingy(path, *args, **kwargs):
        file = real(path, *args, **kwargs)
        if "xb" in args:
            write = file.write

            class Stingy:
                def __enter__(self):
                    return self

                def __exit__(self, *_):
                    file.close()

                def write(self, data):
                    return write(data[:3])

                def fileno(self):
                    return file.fileno()

            return Stingy()
        return file

    monkeypatch.setattr("builtins.open", stingy)
    files.write("a", b"0123456789")
    monkeypatch.undo()
    assert files.read("a") == b"0123456789"


def test_a_file_of_several_callers_is_written_without_what_killed_ones_left(files, tmp_path):
    left = tmp_path / "clip" / f".zarr.json.{'0' * 32}.partial"
    others = [
        left.with_name(".lease.1.partial"),
        left.with_name("zarr.json.partial"),
        left.parent / "a/.zarr.json.1.partial",
    ]
    for path in (left, *others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    files.write_locked("clip/zarr.json", b"whole")
    assert files.read("clip/zarr.json") == b"whole"
    assert not left.exists()
    assert all(path.exists() for path in others)


def test_without_locks_nothing_of_others_is_removed(files, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOTSUP, "no locks here")

    monkeypatch.setattr("extract.files.fcntl.flock", refuse)
    left = tmp_path / "clip" / ".zarr.json.1.partial"
    left.parent.mkdir()
    left.write_bytes(b"perhaps being written")
    files.write_locked("clip/zarr.json", b"whole")
    assert files.read("clip/zarr.json") == b"whole"
    assert left.exists()


def test_what_is_there_already_is_not_written_at_all(files, monkeypatch):
    """Zarr asks for the groups above each new array to be made; a kill then must leave nothing beside them."""
    files.write("clip/zarr.json", b"there")
    monkeypatch.setattr(LocalFiles, "_write_and_sync", lambda *_: pytest.fail("written"))
    assert not files.create("clip/zarr.json", b"again")
