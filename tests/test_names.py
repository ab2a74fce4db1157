"""Names that are paths: nothing outside a store, and nothing in it that is not the store's, is written or removed."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from extract.config import ExtractConfig
from extract.damage import Damage
from extract.errors import ConfigError, CorruptError, UsageError
from extract.files import LocalFiles
from extract.graph import build_graph
from extract.inputs.manifest import Clip
from extract.running import crashes, runner
from extract.running.selection import Options
from extract.stage import Output
from extract.store import Store
from extract.timeline import FRAMES
from tests.media_files import pictures, write_clip

BAD = ["../../victim/data", "..", ".", "", "a/b", "/elsewhere/x", "a\\b", "a\0b", "zarr.json", "é", "x" * 121, ".lease"]
MEAN = Output("mean", FRAMES, ("channel",), (3,), "float32")


@pytest.fixture
def victim(tmp_path):
    """A folder of somebody's, with folders in it."""
    folder = tmp_path / "victim" / "data"
    (folder / "photos").mkdir(parents=True)
    (folder / "photos" / "1.jpg").write_bytes(b"the only copy")
    (folder / "zarr.json").write_text("{}")
    return tmp_path / "victim"


def listing(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def store(tmp_path):
    store = Store.open(tmp_path / "runs" / "s.zarr", "a")
    writer = store.writer("a", "colour", [MEAN], fingerprint="one", rows=4, block_rows=4)
    writer.commit(0, {"mean": np.ones((4, 3), np.float32)})
    return store


# ---- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BAD)
def test_an_instance_is_named_like_a_clip(name):
    with pytest.raises(ConfigError, match=r"instance .* cannot name a folder of the store; expected 1 to 120 of A-Z"):
        build_graph(ExtractConfig(instances={name: {"stage": "hubert", "weights": "random"}}))


def test_an_input_is_named_like_a_clip():
    with pytest.raises(ConfigError, match=r"instance '\.\./wave' cannot name a folder"):
        build_graph(ExtractConfig(instances={"hubert": {"weights": "random", "inputs": {"wave": "../wave"}}}))


def test_instances_that_differ_in_case_alone_would_share_a_folder():
    entry = {"stage": "hubert", "weights": "random"}
    with pytest.raises(ConfigError, match="'Voice' and 'voice' differ only in case"):
        build_graph(ExtractConfig(instances={"Voice": entry, "voice": entry}))


def test_a_config_removes_nothing_elsewhere(tmp_path, victim):
    before = listing(victim)
    clip = Clip(id="a", video=write_clip(tmp_path / "a.mov", pictures(3)))
    config = ExtractConfig(instances={"../../victim/data": {"stage": "frames"}})
    with pytest.raises(ConfigError, match="victim/data"):
        runner.run([clip], tmp_path / "runs" / "s.zarr", config, options=Options())
    assert listing(victim) == before
    assert not (tmp_path / "runs").exists()


# ---- keys -----------------------------------------------------------------------------------------------------------

ACTS = {
    "write": lambda files, key: files.write(key, b"x"),
    "create": lambda files, key: files.create(key, b"x"),
    "read": lambda files, key: files.read(key),
    "delete": lambda files, key: files.delete(key),
    "folders": lambda files, key: files.folders(key),
    "names": lambda files, key: files.names(key),
    "sweep": lambda files, key: files.sweep(key),
    "locked": lambda files, key: files.locked(key).__enter__(),
}


@pytest.mark.usefixtures("victim")
@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
@pytest.mark.parametrize("key", ["../victim/data", "a/../../victim", "/etc/passwd", "a//b", "./a", "a/", "a\0"])
def test_a_key_that_leads_elsewhere_is_refused(tmp_path, act, key):
    before = listing(tmp_path)
    with pytest.raises(UsageError, match="names nothing below"):
        act(LocalFiles(tmp_path / "victim"), key)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
@pytest.mark.parametrize("key", ["link", "link/photos", "inner/link/photos"])
def test_no_link_is_followed(tmp_path, victim, act, key):
    root = tmp_path / "s"
    (root / "inner").mkdir(parents=True)
    for place in (root, root / "inner"):
        (place / "link").symlink_to(victim / "data", target_is_directory=True)
    before = listing(victim)
    with pytest.raises(UsageError, match="is a symbolic link, and none is followed here"):
        act(LocalFiles(root), key)
    assert listing(victim) == before


def test_the_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "s.zarr").symlink_to(tmp_path / "disk")
    LocalFiles(tmp_path / "s.zarr").write("a/b", b"x")
    assert (tmp_path / "disk/a/b").read_bytes() == b"x"


def test_a_linked_clip_is_not_written_through(tmp_path, victim, store):
    (store.path / "b").symlink_to(victim / "data", target_is_directory=True)
    assert store.clips() == ["a"]
    before = listing(victim)
    clip = Clip(id="b", video=write_clip(tmp_path / "b.mov", pictures(3)))
    report = runner.run([clip], store.path, ExtractConfig(instances={"frames": {}}), options=Options())
    assert report.exit_code == 4
    assert "symbolic link" in report.damaged[0].message
    assert listing(victim) == before


def test_the_crash_mark_is_not_written_through_a_link(tmp_path):
    (tmp_path / "s/a").mkdir(parents=True)
    (tmp_path / "diary.txt").write_text("dear diary")
    (tmp_path / "s/a" / crashes.NAME).symlink_to(tmp_path / "diary.txt")
    with pytest.raises(UsageError, match="symbolic link"), crashes.marked(LocalFiles(tmp_path / "s"), "a", ".crash.x"):
        pass
    assert (tmp_path / "diary.txt").read_text() == "dear diary"


# ---- what is removed ------------------------------------------------------------------------------------------------


def test_only_arrays_of_ours_are_removed(store):
    """Beside them stands what somebody put there."""
    folder = store.path / "a/colour"
    (folder / "notes").mkdir()
    (folder / "notes/todo.txt").write_text("look at frame 7")
    store.keep_only("a", "colour", "another")
    assert "notes" in os.listdir(folder)
    assert "mean" not in os.listdir(folder)
    assert (folder / "notes/todo.txt").read_text() == "look at frame 7"


@pytest.mark.parametrize("what", ["file", "folder", "link"])
def test_an_array_that_holds_more_than_its_chunks_is_left_and_named(store, what):
    folder = store.path / "a/colour/mean"
    if what == "file":
        (folder / "thesis.tex").write_text("chapter 1")
    elif what == "folder":
        (folder / "c.9.0").mkdir()
    else:
        (folder / "c.9.0").symlink_to(store.path / "zarr.json")
    before = listing(store.path)
    with pytest.raises(CorruptError, match=r"clip a, colour/mean: .* is none of ours.*move it elsewhere"):
        store.keep_only("a", "colour", "another")
    with pytest.raises(CorruptError, match="is none of ours"):
        store.delete_block(Damage("a", "colour", "mean", -1, "damaged metadata"))
    assert listing(store.path) == before


def test_an_array_with_damaged_metadata_is_removed_all_the_same(store):
    (store.path / "a/colour/mean/zarr.json").write_bytes(b"{")
    store.keep_only("a", "colour", "one")
    assert not (store.path / "a/colour/mean").exists()


def test_metadata_goes_last(store, monkeypatch):
    """A removal that is cut short must not leave chunks that a new array would take for its own."""
    gone = []
    real = os.unlink
    monkeypatch.setattr(os, "unlink", lambda path, **keys: gone.append(Path(path).name) or real(path, **keys))
    store.keep_only("a", "colour", "another")
    assert gone == ["c.0.0", "zarr.json"]
    assert json.loads((store.path / "zarr.json").read_text())["attributes"]["format"] == "au-fusion"
