import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zarr

from extract.arrays import DurableStore, default_block_rows
from extract.errors import CorruptError, StoreError, UnfinishedError
from extract.files import LocalFiles
from extract.records import Record
from extract.stage import VALID, Output
from extract.store import Store
from extract.timeline import FRAMES

FEATURE = Output("feature", FRAMES, ("feature",), (5,), "float16")
LANDMARKS = Output("landmarks", FRAMES, ("face", "point", "xy"), (2, 3, 2), "float32", compress=True)


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store.zarr", "a")


def fill(store, rows=23, block_rows=16, hint=0, fingerprint="f"):
    """One instance, written block by block; returns what was written."""
    values = np.arange(rows * 5, dtype=np.float16).reshape(rows, 5)
    valid = np.arange(rows) % 3 > 0
    store.write_record("clip", "swin", Record("partial", {}, {}, fingerprint))
    writer = store.writer("clip", "swin", (FEATURE, VALID), fingerprint=fingerprint, rows=hint, block_rows=block_rows)
    for block in range(math.ceil(rows / block_rows)):
        part = slice(block * block_rows, min((block + 1) * block_rows, rows))
        writer.commit(block, {"feature": values[part], "valid": valid[part]})
    writer.finish(rows)
    store.write_record("clip", "swin", Record("done", {}, {}, fingerprint, rows=rows))
    return values, valid


def chunks(store, array="feature"):
    folder = store.path / "clip/swin" / array
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith("c.")}


@pytest.mark.parametrize("hint", [0, 7, 23, 100, 2**31 - 1])
def test_reads_what_was_written_whatever_the_header_said(tmp_path, hint):
    store = Store.open(tmp_path / "s", "a")
    values, valid = fill(store, hint=hint)
    rows = Store.open(tmp_path / "s").read("clip", "swin", "feature")
    assert np.array_equal(rows.values, values)
    assert np.array_equal(rows.valid, valid)
    assert chunks(store).keys() == {"c.0.0", "c.1.0"}


def test_a_hint_does_not_change_a_byte(tmp_path):
    stores = [Store.open(tmp_path / str(hint), "a") for hint in (0, 7, 23, 100)]
    for store, hint in zip(stores, (0, 7, 23, 100), strict=True):
        fill(store, hint=hint)
    assert all(chunks(store) == chunks(stores[0]) for store in stores)


def test_a_header_that_declares_two_thousand_million_rows_costs_no_more_than_one_that_is_right(tmp_path, monkeypatch):
    """Counted: every file that is written or removed, whoever asks for it."""
    asked = []
    for name in ("write", "create", "delete"):
        real = getattr(LocalFiles, name)
        monkeypatch.setattr(
            LocalFiles,
            name,
            lambda self, key, *rest, name=name, real=real: (asked.append((name, key)), real(self, key, *rest))[1],
        )
    removed = []
    monkeypatch.setattr(DurableStore, "delete", lambda _, key: removed.append(key))  # Zarr's own way to a file
    counts = []
    for hint in (23, 2**31 - 1):
        asked.clear()
        fill(Store.open(tmp_path / str(hint), "a"), hint=hint)
        counts.append(len(asked))
    assert removed == []
    assert counts[1] == counts[0] + 2  # the metadata of both arrays once more


def test_an_array_is_never_created_larger_than_any_clip(store):
    writer = store.writer("clip", "swin", (FEATURE,), fingerprint="f", rows=2**31 - 1, block_rows=256)
    assert zarr.open_group(store.path, mode="r")["clip/swin/feature"].shape == (2**20, 5)
    writer.commit(2**12, {"feature": np.ones((256, 5), np.float16)})  # and a clip that is longer grows it
    assert zarr.open_group(store.path, mode="r")["clip/swin/feature"].shape == (2**20 + 256, 5)


def test_the_metadata_are_what_zarr_would_have_written(tmp_path):
    """An array that was cut and one that had the right size from the start: the same bytes."""
    texts = []
    for hint in (23, 100, 0):
        store = Store.open(tmp_path / str(hint), "a")
        fill(store, hint=hint)
        texts.append((store.path / "clip/swin/feature/zarr.json").read_text())
    assert texts[0] == texts[1] == texts[2]


def test_blocks_behind_the_last_row_are_removed(store):
    """What an earlier attempt wrote, whose decoder gave more frames."""
    writer = store.writer("clip", "swin", (FEATURE,), fingerprint="f", rows=0, block_rows=16)
    for block in range(3):
        writer.commit(block, {"feature": np.ones((16, 5), np.float16)})
    writer.finish(17)
    assert chunks(store).keys() == {"c.0.0", "c.1.0"}


def test_any_zarr_reads_it(store):
    values, _ = fill(store)
    array = zarr.open_group(store.path, mode="r")["clip/swin/feature"]
    assert np.array_equal(array[...], values)
    assert array.metadata.dimension_names == ("frame", "feature")


def test_blocks_of_zeros_are_written(store):
    writer = store.writer("clip", "swin", (FEATURE, VALID), fingerprint="f", rows=20, block_rows=16)
    for block, rows in ((0, 16), (1, 4)):
        writer.commit(block, {"feature": np.zeros((rows, 5), np.float16), "valid": np.zeros(rows, bool)})
    assert chunks(store).keys() == {"c.0.0", "c.1.0"}
    assert chunks(store, "valid").keys() == {"c.0", "c.1"}


def test_blocks_of_zeros_are_written_when_a_run_is_continued(store):
    """Also into arrays that exist: 256 frames without a face are no gap in the file."""
    values = {"feature": np.zeros((16, 5), np.float16), "valid": np.zeros(16, bool)}
    for block in (0, 1):
        writer = store.writer("clip", "swin", (FEATURE, VALID), fingerprint="f", rows=32, block_rows=16)
        assert writer.blocks == set(range(block))
        writer.commit(block, values)
    assert chunks(store, "valid").keys() == {"c.0", "c.1"}
    assert chunks(store).keys() == {"c.0.0", "c.1.0"}


def test_threads_that_open_two_clips_at_once_both_write_blocks_of_zeros(store, monkeypatch):
    """One thread is done with opening while the other one is amid it: no setting may be taken back between them."""
    for clip in ("a", "b"):
        store.writer(clip, "swin", (FEATURE,), fingerprint="f", rows=16, block_rows=16)
    both_are_opening, first_has_opened = threading.Barrier(2), threading.Event()
    open_array = zarr.open_array

    def open_side_by_side(*args, path, **kwargs):
        both_are_opening.wait(timeout=30)
        if path.startswith("b/"):
            assert first_has_opened.wait(timeout=30)
        return open_array(*args, path=path, **kwargs)

    def work(clip):
        writer = store.writer(clip, "swin", (FEATURE,), fingerprint="f", rows=16, block_rows=16)
        first_has_opened.set()
        writer.commit(0, {"feature": np.zeros((16, 5), np.float16)})

    monkeypatch.setattr(zarr, "open_array", open_side_by_side)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(work, ("a", "b")))
    for clip in ("a", "b"):
        assert (store.path / clip / "swin/feature/c.0.0").is_file()


def test_a_block_counts_when_every_array_has_its_file(store):
    fill(store)
    (store.path / "clip/swin/valid/c.1").unlink()
    writer = store.writer("clip", "swin", (FEATURE, VALID), fingerprint="f", rows=23, block_rows=16)
    assert writer.blocks == {0}


def test_a_resumed_writer_keeps_the_grid_of_the_arrays(store):
    fill(store, block_rows=16)
    writer = store.writer("clip", "swin", (FEATURE, VALID), fingerprint="f", rows=23, block_rows=256)
    assert writer.block_rows == 16
    assert writer.blocks == {0, 1}


def test_arrays_of_another_fingerprint_go_and_the_others_stay(store):
    fill(store, fingerprint="old")
    store.keep_only("clip", "swin", "old")
    assert store.has("clip", "swin", "feature")
    store.keep_only("clip", "swin", "new")
    assert not store.has("clip", "swin", "feature")


@pytest.mark.parametrize("state", ["partial", "failed"])
def test_an_unfinished_array_is_not_read(store, state):
    fill(store)
    store.write_record("clip", "swin", Record(state, {}, {}, "f", reason="unreadable", message="why"))
    with pytest.raises(UnfinishedError, match=rf"clip clip, swin/feature: {state}.*--clip clip --stage swin"):
        store.read("clip", "swin", "feature")


def test_what_was_never_begun_is_not_read(store):
    with pytest.raises(UnfinishedError, match="nobody, swin/feature: absent"):
        store.read("nobody", "swin", "feature")


def test_an_empty_instance_without_arrays_says_why(store):
    store.write_record("clip", "hubert", Record("empty", {}, {}, "f", reason="no_audio"))
    with pytest.raises(StoreError, match=r"nothing to read, hubert is empty \(no_audio\)"):
        store.read("clip", "hubert", "feature")


@pytest.mark.parametrize("array", ["feature", "valid"])
def test_a_flipped_bit_is_found_and_never_read(store, array):
    fill(store)
    path = next((store.path / "clip/swin" / array).glob("c.1*"))
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    (damage,) = store.damage("clip", "swin")
    assert (damage.array, damage.block) == (array, 1)
    with pytest.raises(CorruptError, match=rf"swin/{array}.*checksum.*--repair"):
        store.read("clip", "swin", "feature")


def test_a_compressed_block_is_checked_too(store):
    store.write_record("clip", "swin", Record("partial", {}, {}, "f"))
    writer = store.writer("clip", "swin", (LANDMARKS,), fingerprint="f", rows=8, block_rows=8)
    values = np.random.default_rng(0).normal(size=(8, 2, 3, 2)).astype(np.float32)
    writer.commit(0, {"landmarks": values})
    store.write_record("clip", "swin", Record("done", {}, {}, "f", rows=8))
    assert np.array_equal(store.read("clip", "swin", "landmarks").values, values)
    path = store.path / "clip/swin/landmarks/c.0.0.0.0"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)
    assert [d.block for d in store.damage("clip", "swin")] == [0]


def test_a_block_that_is_gone_is_never_made_up(store):
    fill(store)
    (store.path / "clip/swin/feature/c.0.0").unlink()
    assert [d.message for d in store.damage("clip", "swin")] == ["its file is gone"]
    with pytest.raises(CorruptError, match="block 0: its file is gone"):
        store.read("clip", "swin", "feature")


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"attributes": 3}'])
def test_a_damaged_record_is_reported(store, content):
    fill(store)
    (store.path / "clip/swin/zarr.json").write_bytes(content)
    with pytest.raises(CorruptError, match="damaged"):
        store.record("clip", "swin")


def test_damaged_metadata_of_an_array_is_found(store):
    fill(store)
    (store.path / "clip/swin/feature/zarr.json").write_bytes(b"{}")
    (damage,) = store.damage("clip", "swin")
    assert damage.block == -1
    with pytest.raises(CorruptError, match="damaged metadata"):
        store.read("clip", "swin", "feature")


def test_a_writer_makes_an_array_with_damaged_metadata_anew(store):
    fill(store)
    (store.path / "clip/swin/feature/zarr.json").write_bytes(b"{}")
    writer = store.writer("clip", "swin", (FEATURE, VALID), fingerprint="f", rows=23, block_rows=16)
    assert writer.blocks == set()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"separator": "."', '"separator": "/"'),
        ('"shape": [\n    23', '"shape": [\n    22'),
        ('"fingerprint": "f"', '"fingerprint": "g"'),
    ],
)
def test_metadata_that_is_not_what_was_written_is_found_and_never_read(store, old, new):
    fill(store)
    path = store.path / "clip/swin/feature/zarr.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert len(store.damage("clip", "swin")) == 1
    with pytest.raises(CorruptError, match="swin/feature: "):
        store.read("clip", "swin", "feature")


def test_a_record_of_an_unknown_state_is_damaged(store):
    fill(store)
    path = store.path / "clip/swin/zarr.json"
    path.write_text(path.read_text().replace('"done"', '"dnne"'))
    with pytest.raises(CorruptError, match="state 'dnne'"):
        store.record("clip", "swin")


def test_blocks_of_an_unfinished_instance_are_checked_too(store):
    fill(store)
    store.write_record("clip", "swin", Record("partial", {}, {}, "f"))
    (store.path / "clip/swin/feature/c.0.0").unlink()
    path = store.path / "clip/swin/valid/c.1"
    path.write_bytes(bytes(len(path.read_bytes())))
    assert [(d.array, d.block) for d in store.damage("clip", "swin")] == [("valid", 1)]


def test_a_store_that_is_being_made_is_no_foreign_folder(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s/.zarr.json.0af1.partial").write_bytes(b"{")  # a run was killed while it made the store
    Store.open(tmp_path / "s", "a").write_record("clip", "swin", Record("done", {}, {}, "f"))
    assert Store.open(tmp_path / "s").record("clip", "swin").state == "done"


def test_words_are_stored_as_text(store):
    words = Output("text", FRAMES, (), (), "str")
    store.write_whole("clip", "transcribe", {words: np.array(["bin", "", "über"], dtype=object)}, fingerprint="f")
    store.write_record("clip", "transcribe", Record("done", {}, {}, "f", rows=3))
    assert store.read("clip", "transcribe", "text").values.tolist() == ["bin", "", "über"]


def test_an_array_without_rows_is_whole(store):
    store.write_whole("clip", "words", {FEATURE: np.zeros((0, 5), np.float16)}, fingerprint="f")
    store.write_record("clip", "words", Record("done", {}, {}, "f"))
    assert store.read("clip", "words", "feature").values.shape == (0, 5)
    assert store.damage("clip", "words") == []


# ---- opening --------------------------------------------------------------------------------------------------------


def test_an_absent_store_is_refused_with_the_next_command(tmp_path):
    with pytest.raises(StoreError, match="nothing is here; `extract run --store"):
        Store.open(tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("mode", ["r", "a"])
def test_a_folder_that_is_not_ours_is_left_alone(tmp_path, mode):
    (tmp_path / "thesis.docx").write_text("years of work")
    with pytest.raises(StoreError, match="something else here"):
        Store.open(tmp_path, mode)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.docx"]


def test_a_file_is_no_store(tmp_path):
    (tmp_path / "video.mp4").write_bytes(b"")
    with pytest.raises(StoreError, match="something else here"):
        Store.open(tmp_path / "video.mp4", "a")


def test_another_zarr_folder_is_not_ours(tmp_path):
    zarr.open_group(tmp_path / "z", mode="w")
    with pytest.raises(StoreError, match="not one of ours"):
        Store.open(tmp_path / "z", "a")


def test_another_schema_is_refused(store):
    root = json.loads((store.path / "zarr.json").read_text())
    root["attributes"]["schema"] = 2
    (store.path / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(StoreError, match="schema 2, this program knows 1"):
        Store.open(store.path, "a")


def test_an_object_store_is_refused_before_a_folder_of_that_name_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match="object stores are not read or written by this version"):
        Store.open("s3://bucket/store.zarr", "a")
    assert list(tmp_path.iterdir()) == []


# ---- block size -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "dtype", "rows"),
    [
        (9984, "float16", 512),
        (768, "float16", 4096),
        (49 * 768, "float16", 256),
        (1, "bool", 4096),
        (512, "float32", 4096),
    ],
)
def test_block_rows_are_the_power_of_two_nearest_8_mb_between_256_and_4096(width, dtype, rows):
    assert default_block_rows((Output("x", FRAMES, ("f",), (width,), dtype), VALID)) == rows
