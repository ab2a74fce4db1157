"""Unknown names in a config at every level, and the config that a store was made with."""

import json

import pytest
from typer.testing import CliRunner

from extract.cli import app
from extract.config import ExtractConfig, Remembered, known_keys, load_extract_config
from extract.errors import ConfigError
from extract.graph import build_graph
from extract.running.runner import as_made, run
from extract.store import Store
from fusion import cli as fusion_cli
from fusion.config import FusionConfig, load_fusion_config
from tests.bench import Bench
from tests.media_files import pictures, write_clip

INSTANCE_KEYS = "inputs, keep, block_rows, batch, precision"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("modalities.ghfeet=null", "modalities has no 'ghfeet' to leave out; did you mean 'ghfeat'"),
        (
            "modalities.zzz=null",
            "fusion.modalities has no 'zzz' to leave out; known: swin, ghfeat, ghfeat_context",
        ),
        ("training.epochs=3", "training.epochs: unknown key; did you mean 'max_epochs'"),
        (
            "training.zzz=null",
            "training.zzz: unknown key; known: lr, warmup_steps, schedule, weight_decay",
        ),
        ("modell.hidden=3", "modell: unknown key; did you mean 'model'"),
        ("zzz=null", "zzz: unknown key; known: modalities, tasks, data, model, loss, training, post"),
        ("modalities.swin.projekt=3", "modalities.swin.frame.projekt: unknown key; did you mean 'project'"),
        (
            "modalities.hubert.zzz=3",
            "zzz: unknown key; known: instance, array, project, encoder, kind, before_s, after_s",
        ),
        ("loss.poss_weight=null", "loss.poss_weight: unknown key; did you mean 'pos_weight'"),
    ],
)
def test_an_unknown_name_of_fusion_is_told_with_those_of_its_level(override, message):
    with pytest.raises(ConfigError, match=message):
        load_fusion_config(None, [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "run.zzz=1",
            "run.zzz: unknown key; known: block_rows, engine, clips, compile, cpu_threads, memory_gb, isolate, stall_s",
        ),
        ("run.memory=1", "run.memory: unknown key; did you mean 'memory_gb'"),
        ("hubrt=null", "extract.instances has no 'hubrt' to leave out; did you mean 'hubert'"),
        ("swin.sise=3", "sise: unknown key; did you mean 'resize'"),
        ("swin.zzz=null", f"zzz: unknown key; known: .*{INSTANCE_KEYS}"),
        ("faces.zzz=3", f"zzz: unknown key; known: .*{INSTANCE_KEYS}"),
        ("swim.resize=3", "instance swim: no stage 'swim'; did you mean 'swin'"),
    ],
)
def test_an_unknown_name_of_extract_is_told_with_those_of_its_level(override, message):
    with pytest.raises(ConfigError, match=message):
        build_graph(load_extract_config(None, [override]))


def test_an_own_name_is_no_unknown_one():
    graph = build_graph(load_extract_config(None, ["voice.stage=hubert", "voice.weights=random"]))
    assert graph["voice"].stage.name == "hubert"


def test_known_keys_are_found_through_mappings_and_unions():
    assert known_keys(FusionConfig, ("modalities", "x", "context")) == [
        "instance", "array", "project", "encoder", "kind", "before", "after", "stride", "frames", "span_s"
    ]  # fmt: skip
    assert "stage" in known_keys(ExtractConfig, ("instances", "x"))
    assert known_keys(FusionConfig, ("no", "such")) == []


# ---- the store's config ---------------------------------------------------------------------------------------------


@pytest.fixture
def bench(tmp_path, toys):
    del toys
    bench = Bench(tmp_path)
    bench.add("a", 20)
    return bench


def test_a_run_leaves_its_config_and_what_overrode_it(bench):
    bench.run("colour", config=("colour.gain=2.0", "fusion.training.lr=0.5"))
    kept = bench.store.config()
    assert kept.name == str(bench.root / "c.yaml")
    assert kept.sections["extract"]["instances"]["colour"] == {"gain": 2.0}
    assert kept.sections["extract"]["run"] == {"block_rows": 16}
    assert kept.sections["fusion"] == {"training": {"lr": 0.5}}
    loaded, lock = as_made(bench.store_path, None, ["colour.darkest=9"])
    assert loaded.instances["colour"].stage_fields == {"gain": 2.0, "darkest": 9}
    assert lock == bench.root / "weights.lock"
    assert as_made(bench.store_path, "default", [])[0] == load_extract_config("default")
    assert bench.store.clips() == ["a"]


def test_it_is_written_only_when_it_differs(bench):
    bench.run("colour")
    before = (bench.store_path / "config.json").stat().st_ino
    bench.run("colour")
    assert (bench.store_path / "config.json").stat().st_ino == before
    bench.run("colour", config=("run.cpu_threads=1",))
    assert (bench.store_path / "config.json").stat().st_ino != before


def test_a_programs_config_is_kept_too(bench):
    config = ExtractConfig(instances={"colour": {"gain": 3.0}})
    run(list(bench.clips.values()), bench.store_path, config)
    assert as_made(bench.store_path, None, [])[0].instances["colour"].stage_fields == {"gain": 3.0}


def test_repair_takes_it_and_says_so(bench):
    """With the default's settings the damaged block would have been of another recipe: refused, or worse."""
    bench.run("colour", config=("colour.gain=2.0",))
    path = bench.store_path / "a/colour/mean/c.0.0"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    kept = (bench.store_path / "config.json").read_bytes()
    files = ["--manifest", str(bench.root / "m.yaml"), "--store", str(bench.store_path)]
    ended = CliRunner().invoke(app, ["verify", "--repair", *files])
    assert ended.exit_code == 0, ended.output
    assert f"config: the config that the store was made with ({bench.root / 'c.yaml'}); -c NAME|PATH" in ended.stderr
    assert path.read_bytes() == whole
    assert (bench.store_path / "config.json").read_bytes() == kept


def test_a_store_that_does_not_know_says_so(bench):
    bench.run("colour")
    (bench.store_path / "config.json").unlink()
    assert bench.store.config() is None
    loaded, _ = as_made(bench.store_path, None, [])
    assert loaded == load_extract_config(None)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"7", b"[" * 100_000, b'{"name": "x", "extract": 7}', b'{"extract": {}}']
)
def test_a_damaged_one_is_named(bench, content):
    bench.run("colour")
    (bench.store_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.json is damaged; remove it, or name a config with -c"):
        as_made(bench.store_path, None, [])


def test_one_that_was_handed_on_is_checked_like_any_other(bench):
    bench.run("colour")
    told = {"name": "c", "extract": {"instances": {"../../x": {"stage": "frames"}}, "runn": {}}, "fusion": {}}
    (bench.store_path / "config.json").write_text(json.dumps(told))
    with pytest.raises(ConfigError, match=r"the store was made with \(c\), section extract:\n  runn: unknown key"):
        as_made(bench.store_path, None, [])


def test_fit_takes_it_and_says_so(tmp_path):
    """A store of the demo's config has no GH-Feat of 9,984 values, and its own modalities."""
    store = Store.open(tmp_path / "s.zarr", "a")
    store.remember(Remembered.of("demo", ["fusion.training.seed=7"]))
    store.set_attributes("a", {"subject": None, "source_video": "a", "split": "train"})
    ended = CliRunner().invoke(fusion_cli.app, ["fit", "--features", str(tmp_path / "s.zarr")])
    assert "config: the config that the store was made with (demo); -c NAME|PATH takes another" in ended.stderr
    assert ended.exit_code == 2  # nothing is computed for the clip
    assert "its labels were never imported" in ended.stderr
    assert f"compute what is missing with `extract run --store {tmp_path}/s.zarr -c demo --stage" in ended.stderr
    config = load_fusion_config(None, [], store.config())
    assert config.training.seed == 7
    assert config.instances == load_fusion_config("demo").instances


def test_inspect_takes_it_and_says_so(tmp_path):
    video = write_clip(tmp_path / "a.mov", pictures(5))
    (tmp_path / "m.yaml").write_text(f"version: 1\nclips: [{{id: a, video: {video}}}]\n")
    files = ["--manifest", str(tmp_path / "m.yaml"), "--store", str(tmp_path / "s.zarr")]
    runner = CliRunner()
    assert runner.invoke(app, ["run", "-c", "demo", "--stage", "faces", *files]).exit_code == 0
    ended = runner.invoke(app, ["inspect", "a", "-o", str(tmp_path / "a.png"), *files])
    assert "the store was made with (demo)" in ended.stderr
    assert ended.exit_code == 0, ended.output
