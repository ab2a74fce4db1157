"""What a changed setting, source or version means for what the store holds."""

import numpy as np
import pytest

from extract.au import AUS
from extract.errors import StaleError
from extract.inputs.manifest import Labels
from tests.bench import FRAMES, Stop, stop_after
from tests.toy_stages import Colour, computed, expected_mean

pytestmark = pytest.mark.usefixtures("toys")


def test_a_changed_setting_is_refused_by_name_and_nothing_is_touched(bench):
    bench.add("a")
    bench.add("b", 10)
    bench.run()
    before = bench.files()
    computed.clear()
    with pytest.raises(StaleError) as refusal:
        bench.run("contrast", config=("colour.gain=2.0",))
    text = str(refusal.value)
    assert "colour: 2 clips (first a): recipe gain: 1.0 -> 2.0" in text
    assert "contrast: 2 clips (first a): recipe colour.gain: 1.0 -> 2.0" in text
    assert "then also stale: rank, after_rank" in text
    assert "--overwrite" in text
    assert bench.files() == before
    assert computed == {}


def test_overwrite_computes_what_was_asked_and_what_feeds_it(bench):
    images = bench.add("a")
    bench.run()
    rank = bench.record("a", "rank").fingerprint
    computed.clear()
    report = bench.run("contrast", config=("colour.gain=2.0",), overwrite=True)
    assert report.exit_code == 0
    assert [str(notice) for notice in report.warnings] == [
        "stale from now on, computed only when asked for: rank, after_rank"
    ]
    assert computed == {"colour": FRAMES, "contrast": FRAMES}
    assert np.abs(bench.store.read("a", "colour", "mean").values - 2 * expected_mean(images)).max() < 1e-3
    assert bench.record("a", "rank").fingerprint == rank
    with pytest.raises(StaleError, match=r"rank: clip a: recipe colour.gain: 1.0 -> 2.0"):
        bench.run("rank", config=("colour.gain=2.0",))


def test_a_changed_media_byte_is_refused_by_name(bench):
    bench.add("a")
    bench.run("colour")
    path = bench.clips["a"].video
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(StaleError, match=r"colour: clip a: source media: \w{12}\.\.\. -> \w{12}\.\.\."):
        bench.run("colour")
    assert bench.run("colour", overwrite=True).exit_code == 0


def test_a_raised_version_is_stale(bench, monkeypatch):
    bench.add("a")
    bench.run("colour")
    monkeypatch.setattr(Colour, "version", 2)
    with pytest.raises(StaleError, match="recipe version: 1 -> 2"):
        bench.run("colour")


def test_a_partial_instance_of_other_settings_is_stale_too(bench, monkeypatch):
    bench.add("a")
    with monkeypatch.context() as patch:
        stop_after(patch, 16)
        with pytest.raises(Stop):
            bench.run("colour")
    with pytest.raises(StaleError, match="gain"):
        bench.run("colour", config=("colour.gain=2.0",))


def test_a_source_that_is_gone_leaves_what_is_finished_readable(bench):
    bench.add("a")
    bench.run("colour")
    bench.clips["a"].video.unlink()
    assert bench.run("colour").exit_code == 0
    assert bench.store.read("a", "colour", "mean").values.shape == (FRAMES, 3)
    report = bench.run("contrast")
    assert [(f.instance, f.reason) for f in report.failures] == [("contrast", "missing_file")]


def test_batch_and_block_rows_are_in_no_recipe(bench):
    bench.add("a")
    bench.run("colour")
    assert bench.run("colour", config=("colour.batch=4", "colour.block_rows=32", "run.cpu_threads=1")).computed == 0


def test_labels_are_imported_again_without_asking(bench, tmp_path):
    labels = tmp_path / "a.csv"
    labels.write_text("AU1,AU2\n" + "1,0\n" * FRAMES)
    bench.add("a", labels=Labels(au=labels))
    bench.run("colour", "labels")
    assert bench.store.read("a", "labels", "au").values[:, :3].tolist() == [[1, 0, -1]] * FRAMES
    labels.write_text("AU1,AU2\n" + "0,1\n" * FRAMES)
    computed.clear()
    assert bench.run("colour", "labels").computed == 1
    assert bench.store.read("a", "labels", "au").values[:, :3].tolist() == [[0, 1, -1]] * FRAMES
    assert computed == {}


def test_nothing_of_the_config_is_left_out_of_the_recipe(bench):
    bench.add("a", 2)
    bench.run("colour")
    fields = Colour.config_type.model_fields
    assert set(bench.record("a", "colour").recipe["config"]) == set(fields)


def test_what_came_later_is_left_out_of_the_recipe_while_it_is_as_it_was(bench, tmp_path):
    """Stores made before `aus` and `also` stay up to date, and so does what does not use them."""
    labels = tmp_path / "a.csv"
    labels.write_text("AU1,AU2\n" + "1,0\n" * FRAMES)
    bench.add("a", labels=Labels(au=labels))
    bench.run("labels")
    before = bench.record("a", "labels")
    assert before.recipe["config"] == {"label_slack": 2}
    assert before.aus == AUS
    said = ("labels.aus=[1,2,4,6,7,10,12,15,23,24,25,26]", "labels.also=[]")
    assert bench.run("labels", config=said).computed == 0
    with pytest.raises(StaleError, match=r"aus: none -> \[2, 1\]"):
        bench.run("labels", config=("labels.aus=[2,1]",))
    assert bench.run("labels", config=("labels.aus=[2,1]", "labels.also=[intensity,va]"), overwrite=True).computed == 1
    record = bench.record("a", "labels")
    assert record.recipe["config"] == {"label_slack": 2, "aus": [2, 1], "also": ["va", "intensity"]}
    assert record.aus == (2, 1)
    assert bench.store.read("a", "labels", "au").values.tolist() == [[0, 1]] * FRAMES
    assert bench.run("labels", config=("labels.aus=[2,1]", "labels.also=[va,intensity]")).computed == 0


def test_a_label_file_that_is_not_asked_for_changes_nothing(bench, tmp_path):
    """Nor does its edit; asked for, it is imported again without asking."""
    au, va = tmp_path / "a.csv", tmp_path / "va.csv"
    au.write_text("AU1,AU2\n" + "1,0\n" * FRAMES)
    bench.add("a", labels=Labels(au=au))
    bench.run("labels")
    before, source = bench.files(), bench.record("a", "labels").source
    va.write_text("valence,arousal\n" + "0.5,-0.5\n" * FRAMES)
    bench.clips["a"] = bench.clips["a"].model_copy(update={"labels": Labels(au=au, va=va)})
    assert bench.run("labels").computed == 0
    assert (bench.files(), bench.record("a", "labels").source) == (before, source)
    asked = ("labels.also=[va]",)
    bench.run("labels", config=asked, overwrite=True)
    assert bench.record("a", "labels").source.keys() == source.keys() | {"labels.va"}
    assert bench.store.read("a", "labels", "va").values.tolist() == [[0.5, -0.5]] * FRAMES
    va.write_text("valence,arousal\n" + "-5,1\n" * FRAMES)
    assert bench.run("labels", config=asked).computed == 1
    assert bench.store.read("a", "labels", "va").values.tolist() == [[-5, 1]] * FRAMES


def test_overwrite_without_the_video_loses_nothing(bench):
    """A drive that is not mounted today must not cost what was finished."""
    bench.add("a")
    bench.run("colour")
    before = bench.files()
    away = bench.clips["a"].video.rename(bench.root / "away.mov")
    report = bench.run("colour", config=("colour.gain=2.0",), overwrite=True)
    assert [(f.instance, f.reason) for f in report.failures] == [("colour", "missing_file")]
    assert bench.files() == before
    assert bench.record("a", "colour").state == "done"
    assert bench.run("colour").exit_code == 0
    away.rename(bench.clips["a"].video)


def test_labels_are_imported_again_also_without_the_video(bench, tmp_path):
    labels = tmp_path / "a.csv"
    labels.write_text("AU1\n" + "1\n" * FRAMES)
    bench.add("a", labels=Labels(au=labels))
    bench.run("labels")
    bench.clips["a"].video.unlink()
    labels.write_text("AU1\n" + "0\n" * FRAMES)
    assert bench.run("labels").exit_code == 0
    assert (bench.store.read("a", "labels", "au").values[:, 0] == 0).all()


def test_many_changed_files_are_one_line(bench):
    for name in "abcd":
        bench.add(name, 2)
    bench.run("colour")
    for name in "abcd":
        path = bench.clips[name].video
        path.write_bytes(path.read_bytes() + name.encode())
    with pytest.raises(StaleError) as refusal:
        bench.run("colour")
    lines = [line for line in str(refusal.value).splitlines() if "colour:" in line]
    assert len(lines) == 1
    assert "4 clips (first a): source media: " in lines[0]
