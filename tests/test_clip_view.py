"""One clip of a store for people who write Python: reading, times, tables of frames, and the example in the docs."""

import re
import runpy
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from extract.errors import CorruptError, ForeignError, StoreError, UnfinishedError, UsageError, WeightsError
from extract.files import LocalFiles
from extract.inputs.manifest import Clip, write_manifest
from extract.records import Record
from extract.running import runner
from extract.stage import Output
from extract.store import Store
from extract.timeline import Table
from tests.conftest import ROOT
from tests.fusion_stores import add_instance, planted_store
from tests.media_files import pictures, write_clip

T = 10
AUS = ["AU01", "AU02", "AU04", "AU06", "AU07", "AU10", "AU12", "AU15", "AU23", "AU24", "AU25", "AU26"]
WORDS = Table("word")
FRAMES_RECIPE = {"stage": "frames", "version": 1, "config": {"repair_pts": False}, "inputs": {}}
MENDED_RECIPE = FRAMES_RECIPE | {"config": {"repair_pts": True}}


@pytest.fixture
def store(tmp_path):
    return planted_store(tmp_path / "store.zarr", {"a": "train"}, num_frames=T)


@pytest.fixture
def clip(store):
    return Store.open(store.path).clip("a")


def swin_of(store, frames_recipe, **fields):
    """``swin`` made from the frames of that recipe."""
    recipe = {"stage": "swin", "inputs": {"crop": {"stage": "crop", "inputs": {"frames": frames_recipe}}}}
    add_instance(store, "a", "swin", {"feature": np.ones((T, 3), np.float16)}, recipe=recipe, **fields)


def add_words(store):
    words = {
        Output("text", WORDS, (), (), "str"): np.array(["bin", "blue"], dtype=object),
        Output("start_s", WORDS, (), (), "float64"): np.array([0.1, 0.2]),
        Output("end_s", WORDS, (), (), "float64"): np.array([0.3, 0.4]),
    }
    store.write_whole("a", "transcribe", words, fingerprint="f")
    store.write_record("a", "transcribe", Record("done", {}, {}, "f", rows=2))


# ---- reading --------------------------------------------------------------------------------------------------------


def test_a_clip_that_is_not_there_is_refused_with_the_nearest_name(tmp_path):
    store = planted_store(tmp_path / "s", {"anna_01": "train", "b": "val"}, num_frames=2)
    with pytest.raises(StoreError, match=r"no clip 'anna_1' is here; did you mean 'anna_01'\?"):
        store.clip("anna_1")
    with pytest.raises(StoreError, match=r"no clip '\.\./b' is here"):
        store.clip("../b")


def test_opening_a_clip_lists_no_folder(store, monkeypatch):
    """Of a store with thousands of clips the list takes seconds."""
    listed = []
    for method in ("folders", "names"):
        monkeypatch.setattr(LocalFiles, method, lambda _, key="": listed.append(key) or [])
    assert store.clip("a").id == "a"
    assert listed == []
    with pytest.raises(StoreError, match="no clip 'b' is here"):
        store.clip("b")
    assert listed == [""]  # for the nearest name


def test_a_link_or_a_file_is_no_clip(store):
    (store.path / "b").symlink_to("a", target_is_directory=True)
    (store.path / "c").write_bytes(b"")
    with pytest.raises(ForeignError, match="/b is a symbolic link, and none is followed here"):
        store.clip("b")
    with pytest.raises(StoreError, match="no clip 'c' is here"):
        store.clip("c")


def test_instances_and_records_are_those_of_the_clip(clip, store):
    assert clip.instances() == ["frames", "hubert", "labels", "swin"]
    assert clip.record("swin") == store.record("a", "swin")
    assert clip.record("ghfeat") is None


def test_an_array_need_not_be_named_where_there_is_one(clip, store):
    add_words(store)
    assert np.array_equal(clip.read("swin").values, store.read("a", "swin", "feature").values)
    assert np.array_equal(clip.read("hubert").values, store.read("a", "hubert", "feature").values)
    assert clip.read("transcribe").values.tolist() == ["bin", "blue"]
    assert clip.read("frames").values.tolist() == clip.read("frames", "pts_s").values.tolist()


def test_one_of_several_arrays_must_be_named(clip, store):
    add_instance(store, "a", "labels", {"au": np.zeros((T, 12), np.int8), "expr": np.zeros(T, np.int8)})
    with pytest.raises(UsageError, match="clip a: labels holds au, expr; name one of them"):
        clip.read("labels")


def test_an_instance_that_is_not_there_is_refused_with_the_nearest_name(clip):
    with pytest.raises(
        UnfinishedError, match=r"swim: absent \(did you mean 'swin'\?\); `extract run --store \S+ --clip a"
    ):
        clip.read("swim")
    with pytest.raises(UnfinishedError, match=r"swim/feature: absent \(did you mean 'swin'\?\)"):
        clip.read("swim", "feature")


@pytest.mark.parametrize("array", ["feature", "valid"])
def test_a_block_that_is_gone_is_not_read_as_zeros(clip, store, array):
    (block,) = (
        path for path in (store.path / "a/swin" / array).rglob("*") if path.is_file() and path.suffix != ".json"
    )
    block.unlink()
    with pytest.raises(CorruptError, match=rf"clip a, swin/{array}, block 0: its file is gone; `extract verify --rep"):
        clip.read("swin")
    with pytest.raises(CorruptError, match=rf"clip a, swin/{array}, block 0: its file is gone"):
        clip.frame_table("labels", "swin")


def test_rows_unpack_into_values_and_validity(clip):
    values, valid = clip.read("swin")
    assert values.shape == (T, 64)
    assert valid.all()
    assert clip.read("hubert").valid is None


# ---- times ----------------------------------------------------------------------------------------------------------


def test_rows_on_the_frame_clock_have_the_times_of_the_frames(clip):
    assert np.array_equal(clip.read("swin").times_s, np.arange(T) / 25)
    assert np.array_equal(clip.read("labels", "au").times_s, np.arange(T) / 25)
    assert np.array_equal(clip.read("frames", "pts_s").times_s, np.arange(T) / 25)


def test_steps_have_the_times_of_their_middles(clip):
    assert np.array_equal(clip.read("hubert").times_s, (320 * np.arange(2 * T - 1) + 200) / 16000)


def test_words_have_a_start_and_an_end(clip, store):
    add_words(store)
    assert clip.read("transcribe").times_s.tolist() == [[0.1, 0.3], [0.2, 0.4]]


def test_tokens_have_no_times(clip, store):
    arrays = {"range": np.zeros((T, 2), np.int32), "token": np.ones((4, 5), np.float16)}
    add_instance(store, "a", "roberta", arrays)
    assert clip.read("roberta", "token").times_s is None
    assert len(clip.read("roberta", "range").times_s) == T


def test_times_are_read_only_when_asked_for(clip, store, monkeypatch):
    add_instance(store, "a", "frames", {"pts_s": np.arange(T) / 25}, state="partial")
    rows = clip.read("swin")
    assert rows.values.shape == (T, 64)
    with pytest.raises(StoreError, match="clip a, swin: the store does not hold pts_s of the frames it was made from"):
        _ = rows.times_s
    add_instance(store, "a", "frames", {"pts_s": np.arange(T) / 30})
    times_s = rows.times_s
    assert times_s[1] == 1 / 30
    monkeypatch.setattr(type(clip), "_times_s", None)
    assert rows.times_s is times_s


def test_of_two_frames_instances_the_one_that_the_recipe_names_gives_the_times(clip, store):
    add_instance(store, "a", "frames", {"pts_s": np.arange(T) / 25}, recipe=FRAMES_RECIPE)
    add_instance(store, "a", "mended", {"pts_s": np.arange(T) / 30}, recipe=MENDED_RECIPE)
    swin_of(store, MENDED_RECIPE)
    assert clip.read("swin").times_s[1] == 1 / 30
    swin_of(store, FRAMES_RECIPE)
    assert clip.read("swin").times_s[1] == 1 / 25
    assert clip.read("mended").times_s[1] == 1 / 30


def test_two_frames_instances_are_not_guessed_between(clip, store):
    add_instance(store, "a", "mended", {"pts_s": np.arange(T) / 30})
    with pytest.raises(StoreError, match="may have been made from the frames of frames or mended; read pts_s of the"):
        _ = clip.read("swin").times_s


def test_times_of_frames_that_were_made_anew_in_another_way_are_refused(clip, store):
    swin_of(store, FRAMES_RECIPE)
    add_instance(store, "a", "frames", {"pts_s": np.arange(T) / 30}, recipe=MENDED_RECIPE)
    with pytest.raises(StoreError, match=r"does not hold pts_s of .*--clip a --stage swin --overwrite` makes it again"):
        _ = clip.read("swin").times_s


def test_times_of_another_recording_are_refused(clip, store):
    for instance in ("frames", "swin"):
        record = store.record("a", instance)
        store.write_record("a", instance, replace(record, source={"media": f"bytes of {instance}"}))
    with pytest.raises(StoreError, match="does not hold pts_s of the frames it was made from"):
        _ = clip.read("swin").times_s


def test_another_number_of_frames_is_refused(clip, store):
    add_instance(store, "a", "frames", {"pts_s": np.arange(T + 1) / 25})
    with pytest.raises(StoreError, match="swin/feature: 10 rows, expected 11, one for each time; `extract run"):
        _ = clip.read("swin").times_s
    with pytest.raises(StoreError, match="labels/au: 10 rows, expected 11, one for each time; `extract run"):
        clip.frame_table("labels")


@pytest.mark.usefixtures("toys")
def test_the_times_of_a_real_run(tmp_path):
    video = write_clip(tmp_path / "a.mov", pictures(12))
    write_manifest(tmp_path / "m.yaml", [Clip(id="a", video=video)])
    (tmp_path / "c.yaml").write_text(
        "extract: {instances: {mended: {stage: frames, repair_pts: true}, colour: {}, rank: {},"
        " other: {stage: colour, inputs: {frames: mended}}}}"
    )
    assert runner.run(tmp_path / "m.yaml", tmp_path / "s", str(tmp_path / "c.yaml")).exit_code == 0
    clip = Store.open(tmp_path / "s").clip("a")
    for instance in ("colour", "rank", "other"):
        assert np.allclose(clip.read(instance).times_s, np.arange(12) / 25)
    table = clip.frame_table("colour", "rank", "other")
    assert list(table.columns) == [
        "pts_s",
        *("colour.mean", "colour.valid"),
        *("rank.place", "rank.valid"),
        *("other.mean", "other.valid"),
    ]


# ---- tables of frames -----------------------------------------------------------------------------------------------


def test_a_frame_table_holds_every_array_on_the_frame_clock(clip, store):
    arrays = {"range": np.zeros((T, 2), np.int32), "token": np.ones((4, 5), np.float16)}
    add_instance(store, "a", "roberta", arrays)
    table = clip.frame_table("swin", "labels", "roberta")
    assert list(table.columns) == ["pts_s", "swin.feature", "swin.valid", "labels.au", "roberta.range"]
    assert len(table) == T
    assert np.array_equal(table["pts_s"], np.arange(T) / 25)
    assert np.array_equal(table["swin.feature"], store.read("a", "swin", "feature").values)
    assert table["swin.valid"].dtype == np.bool_
    assert np.array_equal(table["labels.au"], store.read("a", "labels", "au").values)
    assert table.dims["swin.feature"] == ("axis1",)


def test_a_column_that_is_not_there_is_refused_with_those_that_are(clip):
    with pytest.raises(KeyError, match=r"'swin': the table of clip a has pts_s, swin\.feature, swin\.valid"):
        clip.frame_table("swin")["swin"]


def test_an_instance_on_another_clock_is_refused_with_what_to_do(clip):
    expected = r"hubert has one row per step, a frame table .*`rows = clip\.read\('hubert', 'feature'\)`.*rows\.times_s"
    with pytest.raises(UsageError, match=expected):
        clip.frame_table("swin", "hubert")


def test_a_frame_table_of_nothing_is_refused(clip):
    with pytest.raises(UsageError, match=r"frame_table\(\) needs at least one instance, of frames, hubert"):
        clip.frame_table()


def test_a_frame_table_of_unfinished_or_empty_instances_is_refused(clip, store):
    add_instance(store, "a", "swin", {"feature": np.ones((T, 3))}, state="partial")
    with pytest.raises(UnfinishedError, match=r"swin: partial; `extract run --store \S+ --clip a --stage swin` first"):
        clip.frame_table("swin")
    add_instance(store, "a", "labels", {}, state="empty", reason="no_labels")
    with pytest.raises(StoreError, match=r"clip a, labels: nothing to read, labels is empty \(no_labels\)"):
        clip.frame_table("labels")


def test_instances_of_different_frames_make_no_table(clip, store):
    add_instance(store, "a", "frames", {"pts_s": np.arange(T) / 25}, recipe=FRAMES_RECIPE)
    add_instance(store, "a", "mended", {"pts_s": np.arange(T) / 30}, recipe=MENDED_RECIPE)
    swin_of(store, MENDED_RECIPE)
    with pytest.raises(UsageError, match="swin and frames were made from different frames; make a frame table of each"):
        clip.frame_table("frames", "swin")


def test_a_damaged_array_is_never_left_out_of_a_table(clip, store):
    (store.path / "a/swin/feature/zarr.json").write_bytes(b"{}")
    with pytest.raises(CorruptError, match="clip a, swin/feature: damaged metadata; `extract verify --repair`"):
        clip.frame_table("swin")


def test_an_array_that_is_gone_is_never_left_out_of_a_table(clip, store):
    rows = {"rows": {"feature": T, "token": T}}
    add_instance(store, "a", "swin", {"feature": np.ones((T, 3))}, provenance=rows)
    with pytest.raises(CorruptError, match="clip a, swin/token: it is gone; `extract verify --repair`"):
        clip.frame_table("swin")


# ---- tables for pandas and xarray -----------------------------------------------------------------------------------


@pytest.fixture
def table(clip, store):
    arrays = {"point": np.arange(T * 6, dtype=np.float32).reshape(T, 3, 2), "valid": np.ones(T, np.bool_)}
    arrays["weight"] = np.zeros((T, 12), np.float32)  # twelve values that are no action units
    add_instance(store, "a", "landmarks", arrays)
    add_instance(store, "a", "swin", {"feature": np.arange(T * 3, dtype=np.float16).reshape(T, 3)})
    return clip.frame_table("swin", "landmarks", "labels")


POINTS = [f"landmarks.point.{point}.{axis}" for point in (0, 1, 2) for axis in (0, 1)]
LANDMARKS = [*POINTS, "landmarks.valid", *(f"landmarks.weight.{i}" for i in range(12))]
NAMES = ["pts_s", *(f"swin.feature.{i}" for i in range(3)), *LANDMARKS, *(f"labels.{au}" for au in AUS)]


@pytest.mark.parametrize("package", ["pandas", "xarray"])
def test_a_package_that_is_missing_is_named(table, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(WeightsError, match=f"FrameTable.to_{package} needs {package}: pip install {package}"):
        getattr(table, f"to_{package}")()


def test_what_pandas_is_given(table, monkeypatch):
    """Without pandas here: which columns, in which order, with which values."""
    fake = SimpleNamespace(
        DataFrame=lambda values, columns: dict(zip(columns, values.T, strict=True)),
        concat=lambda parts, axis: SimpleNamespace(
            columns={name: values for part in parts for name, values in part.items()},
            axis=axis,
            index=SimpleNamespace(),
        ),
    )
    monkeypatch.setitem(sys.modules, "pandas", fake)
    frame = table.to_pandas()
    assert (frame.axis, frame.index.name) == (1, "frame")
    assert list(frame.columns) == NAMES
    assert np.array_equal(frame.columns["landmarks.point.2.1"], table["landmarks.point"][:, 2, 1])
    assert np.array_equal(frame.columns["labels.AU12"], table["labels.au"][:, AUS.index("AU12")])


def test_what_xarray_is_given(table, monkeypatch):
    fake = SimpleNamespace(Dataset=lambda variables, coords, attrs: (variables, coords, attrs))
    monkeypatch.setitem(sys.modules, "xarray", fake)
    variables, coordinates, attributes = table.to_xarray()
    assert attributes == {"clip": "a"}
    assert {name: axes for name, (axes, _) in variables.items()} == {
        "swin.feature": ("frame", "swin.feature.axis1"),
        "landmarks.point": ("frame", "landmarks.point.axis1", "landmarks.point.axis2"),
        "landmarks.valid": ("frame",),
        "landmarks.weight": ("frame", "landmarks.weight.axis1"),
        "labels.au": ("frame", "labels.au.axis1"),
    }
    assert variables["swin.feature"][1] is table["swin.feature"]
    assert set(coordinates) == {"pts_s", "labels.au.axis1"}
    assert coordinates["pts_s"] == ("frame", table["pts_s"])
    assert coordinates["labels.au.axis1"][1].tolist() == AUS


def test_action_units_are_named_as_the_record_says(clip, store, monkeypatch):
    """Twelve of DISFA's are not the usual twelve; an array of another width has no names."""
    aus = [1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26]
    arrays = {
        "au": np.zeros((T, 12), np.int8),
        "intensity": np.ones((T, 12), np.int8),
        "va": np.zeros((T, 2), np.float32),
    }
    add_instance(store, "a", "labels", arrays, recipe={"stage": "labels", "config": {"aus": aus}})
    table = clip.frame_table("labels")
    assert table.aus == {"labels.au": tuple(aus), "labels.intensity": tuple(aus)}
    given = {}
    fake = SimpleNamespace(
        DataFrame=lambda values, columns: given.update(dict(zip(columns, values.T, strict=True))),
        concat=lambda *_, **__: SimpleNamespace(index=SimpleNamespace()),
    )
    monkeypatch.setitem(sys.modules, "pandas", fake)
    table.to_pandas()
    names = [f"AU{number:02d}" for number in aus]
    assert set(given) == {
        *("pts_s", "labels.va.0", "labels.va.1"),
        *(f"labels.{name}" for name in names),
        *(f"labels.intensity.{name}" for name in names),
    }
    assert (given["labels.intensity.AU05"] == 1).all()
    add_instance(store, "a", "labels", {"au": np.zeros((T, 9), np.int8)}, recipe={"stage": "labels", "config": {}})
    assert clip.frame_table("labels").aus == {}


def test_a_table_is_shown_in_short(table):
    shown = repr(table).splitlines()
    assert shown[0] == f"clip a, {T} frames"
    assert shown[1] == f"  pts_s  float64 [{T}]"
    assert shown[-1] == f"  labels.au  int8 [{T}, 12]"


def test_a_pandas_data_frame(table):
    pytest.importorskip("pandas")
    frame = table.to_pandas()
    assert list(frame.columns) == NAMES
    assert len(frame) == T
    assert np.array_equal(frame["swin.feature.2"], table["swin.feature"][:, 2])
    assert frame["landmarks.valid"].dtype == np.bool_


def test_an_xarray_data_set(table):
    pytest.importorskip("xarray")
    data = table.to_xarray()
    assert np.array_equal(data["labels.au"].sel({"labels.au.axis1": "AU12"}), table["labels.au"][:, AUS.index("AU12")])
    assert np.array_equal(data["pts_s"], table["pts_s"])


# ---- the docs -------------------------------------------------------------------------------------------------------


def test_the_example_in_the_docs_runs(tmp_path, monkeypatch, capsys):
    planted_store(tmp_path / "store.zarr", {"interview": "train"}, num_frames=T)
    examples = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/store.md").read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "example.py").write_text("\n".join(examples))
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path("example.py")
    assert capsys.readouterr().out == "['frames', 'hubert', 'labels', 'swin']\n"
    assert names["rows"].values.shape == (2 * T - 1, 32)
    assert names["rows"].times_s.shape == (2 * T - 1,)
    assert list(names["table"].columns) == ["pts_s", "swin.feature", "swin.valid", "labels.au"]
    assert names["smiles"].tolist() == names["table"]["pts_s"][names["table"]["labels.au"][:, 6] == 1].tolist()


def test_the_example_in_the_readme_runs(tmp_path, monkeypatch):
    pytest.importorskip("pandas")
    planted_store(tmp_path / "store.zarr", {"talk01": "train"}, num_frames=T, swin_size=768)
    (example,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "example.py").write_text(example)
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path("example.py")
    table, frame = names["table"], names["frame"]
    assert np.array_equal(table["pts_s"], np.arange(T) / 25)
    assert table["swin.feature"].shape == (T, 768)
    columns = list(frame.columns)
    assert (columns[1], columns[-12]) == ("swin.feature.0", "labels.AU01")
    assert len(columns) == 1 + 768 + 1 + 12
