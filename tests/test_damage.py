"""Damage to a store's own words: found, told of one clip alone, mended; and what is none."""

import json
import re
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from extract import verification
from extract.cli import app
from extract.config import ExtractConfig
from extract.errors import CorruptError
from extract.inputs.manifest import Clip, write_manifest
from extract.registry import STAGES
from extract.running import runner
from extract.running.fingerprints import fingerprint, sha256_of
from extract.running.selection import Options
from extract.store import Store
from tests.fusion_stores import add_instance
from tests.media_files import pictures, tone, write_clip

CONFIG = "extract: {instances: {hubert: {weights: random, architecture: small}, transcribe: {}, labels: {},\n"
CONFIG += " roberta: {weights: random, architecture: small, before_s: 0.3, after_s: 0.3}}}\n"
WORDS = "word,start_s,end_s\nfour,0.1,0.4\nwords,0.5,0.8\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two clips with sound, words and no labels, and their store."""
    folder = tmp_path_factory.mktemp("made")
    clips = []
    for name in "ab":
        video = write_clip(folder / f"{name}.mov", pictures(25), sound=tone(1))
        (folder / f"{name}.csv").write_text(WORDS)
        clips.append(Clip(id=name, video=video, transcript=folder / f"{name}.csv"))
    write_manifest(folder / "m.yaml", clips)
    (folder / "c.yaml").write_text(CONFIG)
    ended = command(folder, "run")
    assert ended.exit_code == 0, ended.output
    return folder


@pytest.fixture
def bench(made, tmp_path):
    shutil.copytree(made, tmp_path / "b")
    shutil.copy2(made / "m.yaml", tmp_path / "b/m.yaml")
    return tmp_path / "b"


def command(folder, name, *flags):
    files = ("--store", str(folder / "store.zarr"))
    if name in {"run", "plan", "verify"}:
        files += ("--manifest", str(folder / "m.yaml"), "-c", str(folder / "c.yaml"))
    return CliRunner().invoke(app, [name, *flags, *files])


def edit(path, act):
    node = json.loads(path.read_text())
    act(node)
    path.write_text(json.dumps(node))


# ---- rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "rows"),
    [
        ("hubert/feature", 30),
        ("hubert/centre_s", 30),
        ("roberta/token", 2),
        ("roberta/range", 20),
        ("transcribe/text", 1),
    ],
)
@pytest.mark.parametrize("recorded", [True, False])
def test_an_array_cut_short_is_found_on_every_clock(bench, array, rows, recorded):
    """Also in stores whose records say nothing of each array's rows, by the other arrays."""
    path = bench / "store.zarr/a" / array / "zarr.json"
    edit(path, lambda node: node["shape"].__setitem__(0, rows))
    if not recorded:
        if array == "roberta/token":
            pytest.skip("alone on its axis: nothing to compare it with")
        record = path.parent.parent / "zarr.json"
        edit(record, lambda node: node["attributes"]["provenance"].pop("rows"))
    found = command(bench, "verify")
    assert found.exit_code == 4
    assert f"clip a, {array}, metadata: {rows} rows" in found.stdout
    with pytest.raises(CorruptError, match=f"{rows} rows"):
        Store.open(bench / "store.zarr").read("a", *array.split("/"))
    assert command(bench, "verify", "--repair").exit_code == 0
    assert command(bench, "verify").exit_code == 0


def test_an_array_that_is_gone_is_found(bench):
    shutil.rmtree(bench / "store.zarr/a/hubert/centre_s")
    found = command(bench, "verify")
    assert found.exit_code == 4
    assert "clip a, hubert/centre_s, metadata: it is gone" in found.stdout


def test_an_absent_source_is_no_damage(bench):
    """What has no words is `empty`; without the recording it is told as the failure that it is."""
    manifest = bench / "m.yaml"
    manifest.write_text(manifest.read_text() + "- id: gone\n  video: nowhere.mp4\n")
    ended = command(bench, "run")
    assert ended.exit_code == 1
    assert Store.open(bench / "store.zarr").record("gone", "roberta").reason == "missing_file"
    found = command(bench, "verify")
    assert found.exit_code == 0, found.output
    write_clip(bench / "nowhere.mp4", pictures(25), codec="libx264", pix_fmt="yuv420p", sound=tone(1))
    assert command(bench, "run").exit_code == 0
    assert Store.open(bench / "store.zarr").record("gone", "roberta").reason == "no_transcript"


def test_a_record_settled_without_its_source_by_an_earlier_version(bench):
    """It says `empty` and has no fingerprint: nothing is damaged, and the next run settles it."""
    record = bench / "store.zarr/a/roberta/zarr.json"
    edit(
        record, lambda node: node["attributes"].update(state="empty", reason="no_transcript", source={}, fingerprint="")
    )
    assert command(bench, "verify").exit_code == 0
    assert command(bench, "run").exit_code == 0
    assert Store.open(bench / "store.zarr").record("a", "roberta").state == "done"


# ---- records --------------------------------------------------------------------------------------------------------

WRONG = [None, [], {"a": 1}, "text", -1, 1.5, True]
FIELDS = {
    "state": (str,),
    "recipe": (dict,),
    "source": (dict,),
    "fingerprint": (str,),
    "rows": (int,),
    "reason": (str, type(None)),
    "attempts": (int,),
    "notes": (dict,),
    "provenance": (dict,),
}


@pytest.mark.parametrize(
    ("field", "value"),
    [(f, v) for f, kinds in FIELDS.items() for v in WRONG if type(v) not in kinds or v == -1],
)
def test_a_record_of_another_shape_is_one_clips_damage(bench, field, value):
    record = bench / "store.zarr/a/hubert/zarr.json"
    edit(record, lambda node: node["attributes"].__setitem__(field, value))
    store = Store.open(bench / "store.zarr")
    with pytest.raises(CorruptError, match=f"clip a, instance hubert: damaged record .*{field}"):
        store.record("a", "hubert")
    assert [(d.clip, d.instance, d.array) for d in verification.check(store).damage] == [("a", "hubert", "")]
    for name in ("status", "failed"):
        ended = command(bench, name)
        assert not isinstance(ended.exception, TypeError | AttributeError | KeyError), name
        assert ended.exit_code == (4 if name == "status" else 0)


def test_the_other_clips_go_on_and_the_record_is_mended(bench):
    (bench / "store.zarr/a/hubert/zarr.json").write_bytes(b"\0\0")
    shutil.rmtree(bench / "store.zarr/b")
    ended = command(bench, "run")
    assert ended.exit_code == 4, ended.output
    assert "clip a, instance hubert: zarr.json is damaged" in ended.output
    assert Store.open(bench / "store.zarr").record("b", "hubert").state == "done"
    planned = command(bench, "plan")
    assert planned.exit_code == 4
    assert "clip a, instance hubert: zarr.json is damaged" in planned.output
    repaired = command(bench, "verify", "--repair")
    assert repaired.exit_code == 0, repaired.output
    assert Store.open(bench / "store.zarr").record("a", "hubert").state == "done"


def test_a_plan_of_damaged_clips_alone_says_so(bench):
    (bench / "store.zarr/a/hubert/zarr.json").write_bytes(b"\0\0")
    mixed = command(bench, "plan")
    assert "not planned" not in mixed.stdout
    assert re.search(r"^  hubert +1 finished", mixed.stdout, re.MULTILINE)
    planned = command(bench, "plan", "--clip", "a")
    assert (mixed.exit_code, planned.exit_code) == (4, 4)
    assert re.search(r"^  hubert +not planned: the clips are damaged   <- wave$", planned.stdout, re.MULTILINE)
    assert "crops" not in planned.stdout


def test_a_clips_own_words_are_mended(bench):
    (bench / "store.zarr/a/zarr.json").write_bytes(b"{")
    found = command(bench, "verify")
    assert found.exit_code == 4
    assert "clip a, attributes" in found.stdout
    assert command(bench, "verify", "--repair").exit_code == 0
    assert Store.open(bench / "store.zarr").attributes("a")["source_video"] == "a"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"attributes": 7}', None])
def test_the_root_is_made_anew_by_the_command_that_is_named(bench, content):
    root = bench / "store.zarr/zarr.json"
    if content is None:
        root.unlink()
    else:
        root.write_bytes(content)
    found = command(bench, "verify")
    assert found.exit_code == 4
    assert "`extract verify --repair` rebuilds it" in found.output
    assert command(bench, "verify", "--repair").exit_code == 0
    assert command(bench, "status").exit_code == 0


def test_a_folder_without_a_record_of_ours_is_not_made_a_store(tmp_path):
    (tmp_path / "store.zarr/photos").mkdir(parents=True)
    (tmp_path / "store.zarr/zarr.json").write_text("{")
    (tmp_path / "m.yaml").write_text("version: 1\nclips: [{id: a, video: a.mp4}]\n")
    (tmp_path / "c.yaml").write_text(CONFIG)
    assert command(tmp_path, "verify", "--repair").exit_code != 0
    assert (tmp_path / "store.zarr/zarr.json").read_text() == "{"


def test_the_api_lists_what_is_damaged(bench):
    (bench / "store.zarr/a/frames/zarr.json").write_bytes(b"{")
    clips = [Clip(id="a", video=bench / "a.mov")]
    report = runner.run(clips, bench / "store.zarr", ExtractConfig(instances={"frames": {}}), options=Options())
    assert report.exit_code == 4
    assert "clip a, instance frames" in report.damaged[0].message


# ---- records of networks that this program does not know ------------------------------------------------------------


def made_by(store, stage, config, features):
    """An instance ``stage`` of clip ``a`` with two rows, as a run with that config would have left it."""
    stage_type = STAGES[stage]
    recipe = {"stage": stage, "version": stage_type.version, "config": config, "weights": "0" * 64, "inputs": {}}
    arrays = {"feature": np.ones((2, features), np.float16)}
    arrays |= {"valid": np.ones(2, np.bool_)} if stage == "timm" else {"centre_s": np.array([0.0125, 0.0325])}
    made_under = fingerprint(sha256_of(recipe), {})
    add_instance(store, "a", stage, arrays, recipe=recipe, fingerprint=made_under)


PICTURES = {"image_px": 64, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3, "pool": "avg"}
PICTURES |= {"dtype": "float16"}


@pytest.mark.parametrize(
    ("architecture", "features", "message"),
    [
        ("vit_of_another_release", 3, None),  # how wide its features are is not known here
        ("test_vit", 64, None),
        ("test_vit", 3, r"rows of float16 \(3,\), its stage gives float16 \(64,\)"),
    ],
)
def test_an_unknown_architecture_does_not_stop_the_check_of_a_store(bench, architecture, features, message):
    store = Store.open(bench / "store.zarr", "a")
    made_by(store, "timm", PICTURES | {"architecture": architecture}, features)
    checked = verification.check(store)
    assert checked.clips == 2
    assert [(d.instance, d.array) for d in checked.damage] == ([("timm", "feature")] if message else [])
    assert all(re.search(message, damage.message) for damage in checked.damage)
    assert command(bench, "verify").exit_code == (4 if message else 0)


@pytest.mark.parametrize(("features", "wrong"), [(50, False), (48, True)])
def test_speech_of_a_width_that_random_weights_cannot_have_is_checked(bench, features, wrong):
    """A recipe names no weights: any width of a published network may be right."""
    store = Store.open(bench / "store.zarr", "a")
    config = {"family": "wavlm", "width": 50, "layer": "last", "normalise": True, "dtype": "float16"}
    made_by(store, "speech", config, features)
    found = [(damage.instance, damage.array, damage.message) for damage in verification.check(store).damage]
    message = "rows of float16 (48,), its stage gives float16 (50,)"
    assert found == ([("speech", "feature", message)] if wrong else [])
