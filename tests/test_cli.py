"""Commands as scripts see them: exit codes, lines, JSON."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from extract.cli import app
from extract.store import Store
from tests.media_files import pictures, write_clip

ROOT = Path(__file__).resolve().parents[1]


def extract(*arguments):
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def folder(tmp_path, monkeypatch, toys):
    del toys
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        write_clip(tmp_path / f"{name}.mov", pictures(20))
    (tmp_path / "a.jpg").write_bytes(b"picture")
    (tmp_path / "c.yaml").write_text("extract: {instances: {colour: {}}, run: {cpu_threads: 1}}\n")
    assert extract("manifest", "folder", ".", "-o", "data_manifest.yaml").exit_code == 0
    return tmp_path


@pytest.mark.parametrize("program", ["extract", "fusion"])
def test_help_answers_in_under_a_second_and_imports_nothing_heavy(program):
    code = f"import sys, {program}.cli as c\ntry: c.app(['--help'])\nexcept SystemExit: pass\n"
    heavy = "print(sorted({'torch', 'zarr', 'timm', 'transformers', 'dlib', 'av'} & set(sys.modules)), file=sys.stderr)"
    spent = []
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code + heavy], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Seconds of the processor: on a machine that others use too, the clock on the wall tells of them.
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert "Usage" in done.stdout
    assert done.stderr.splitlines()[-1] == "[]"
    assert min(spent) < 1.0


def test_manifest_folder_counts_what_it_took_and_left(folder):
    result = extract("manifest", "folder", str(folder), "-o", "again.yaml")
    assert result.exit_code == 0
    assert "again.yaml: 2 clips (2 videos, 0 sound files)" in result.stdout
    assert "1 .jpg" in result.stdout


@pytest.mark.usefixtures("folder")
def test_a_run_prints_counts_and_a_second_one_computes_nothing():
    result = extract("run", "-c", "c.yaml")
    assert result.exit_code == 0
    assert "colour" in result.stdout
    assert "4 computed in" in result.stdout
    told = json.loads(extract("run", "-c", "c.yaml", "--json").stdout)
    assert (told["exit_code"], told["computed"]) == (0, 0)
    assert told["instances"] == {"frames": {"done": 2}, "colour": {"done": 2}}


@pytest.mark.usefixtures("folder")
def test_quiet_says_nothing_when_all_is_well():
    result = extract("run", "-c", "c.yaml", "-q")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_plan_and_dry_run_say_what_would_be_done_and_write_nothing(folder):
    for arguments in (("plan",), ("run", "--dry-run")):
        result = extract(*arguments, "-c", "c.yaml")
        assert result.exit_code == 0
        assert "2 clips" in result.stdout
        assert "2 missing" in result.stdout
    assert not (folder / "store.zarr").exists()
    told = json.loads(extract("plan", "-c", "c.yaml", "--json").stdout)
    assert told["a"]["colour"] == {"need": "missing", "changes": []}


@pytest.mark.usefixtures("folder")
def test_stale_exits_2_in_run_and_plan():
    extract("run", "-c", "c.yaml")
    for command in ("run", "plan"):
        result = extract(command, "-c", "c.yaml", "--set", "colour.gain=2.0")
        assert result.exit_code == 2
        assert "recipe gain: 1.0 -> 2.0" in result.stderr


@pytest.fixture
def shared(folder):
    """The clips a and b, of one person, in two splits; run all the same."""
    path = folder / "data_manifest.yaml"
    text = path.read_text()
    for clip, split in (("a", "train"), ("b", "test")):
        text = text.replace(f"video: {clip}.mov\n", f"video: {clip}.mov\n  subject: anna\n  split: {split}\n")
    path.write_text(text)
    return folder


@pytest.mark.parametrize("command", [("run",), ("plan",), ("run", "--dry-run"), ("run", "--clip", "a")])
def test_one_person_in_two_splits_is_refused_before_any_work(shared, command):
    result = extract(*command, "-c", "c.yaml")
    assert result.exit_code == 2
    assert result.stderr == (
        "extract: data_manifest.yaml: one subject or recording is in several splits, so scores would be too good:\n"
        "  subject anna: train: a (line 4); test: b (line 8)\n"
        "give all clips of one subject or recording the same `split:`, or leave out `subject:` where it is not known; "
        "`--allow-shared-subjects` accepts them as they are\n"
    )
    assert not (shared / "store.zarr").exists()
    assert extract(*command, "-c", "c.yaml", "--allow-shared-subjects").exit_code == 0


def test_only_run_and_plan_refuse_shared_people(shared):
    """What is there can be read, checked and mended whatever the splits are."""
    assert extract("run", "-c", "c.yaml", "--allow-shared-subjects").exit_code == 0
    flip(shared / "store.zarr/a/colour/mean/c.0.0")
    assert extract("verify", "-c", "c.yaml", "--sources").exit_code == 4
    mended = extract("verify", "-c", "c.yaml", "--repair", "--sources")
    assert mended.exit_code == 0, mended.stderr
    assert extract("status").exit_code == 0
    inspected = extract("inspect", "a", "-c", "c.yaml")
    assert "several splits" not in inspected.stderr


@pytest.mark.usefixtures("folder")
def test_status_tells_states_rows_and_as_json():
    extract("run", "-c", "c.yaml")
    result = extract("status")
    assert result.exit_code == 0
    assert "store.zarr: 2 clips" in result.stdout
    assert "40 rows" in result.stdout
    told = json.loads(extract("status", "--json").stdout)
    assert told["instances"]["colour"] == {"done": 2, "rows": 40, "recipes": 1, "untrained": False}
    missing = extract("status", "--store", "nowhere.zarr")
    assert missing.exit_code == 2
    assert "nothing is here" in missing.stderr


def test_failed_lists_reasons_and_the_next_command(folder):
    assert extract("run", "-c", "c.yaml").exit_code == 0
    assert extract("failed").stdout == "nothing failed\n"
    (folder / "b.mov").write_bytes(b"no video")
    assert extract("run", "-c", "c.yaml", "--overwrite").exit_code == 1
    result = extract("failed")
    assert result.exit_code == 0
    assert "clip b, stage frames: unreadable: " in result.stdout
    assert "2 failed; `extract run` tries them again" in result.stdout
    told = json.loads(extract("failed", "--json").stdout)
    assert [(row["clip"], row["instance"], row["reason"], row["cause"]) for row in told] == [
        ("b", "colour", "unreadable", "frames"),
        ("b", "frames", "unreadable", None),
    ]


def test_status_names_clip_and_instance_of_a_damaged_record(folder):
    extract("run", "-c", "c.yaml")
    (folder / "store.zarr/b/colour/zarr.json").write_text("{")
    result = extract("status", "--json")
    assert result.exit_code == 4
    (damaged,) = json.loads(result.stdout)["damaged"]
    assert (damaged["clip"], damaged["instance"]) == ("b", "colour")
    assert "zarr.json is damaged" in damaged["message"]


def flip(path: Path, at: int = 3) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_verify_finds_a_flipped_byte_and_repair_mends_it(folder):
    extract("run", "-c", "c.yaml")
    chunk = folder / "store.zarr/a/colour/mean/c.0.0"
    whole = {str(path): path.read_bytes() for path in (folder / "store.zarr").rglob("c.*")}
    clean = extract("verify", "-c", "c.yaml")
    assert clean.exit_code == 0
    assert "4 finished instances of 2 clips read, 0 damaged" in clean.stdout
    flip(chunk)
    found = extract("verify", "-c", "c.yaml")
    assert found.exit_code == 4
    assert "clip a, colour/mean, block 0: " in found.stdout
    assert "--repair" in found.stderr
    mended = extract("verify", "-c", "c.yaml", "--repair")
    assert mended.exit_code == 0, mended.stderr
    assert "repaired: 1" in mended.stdout
    assert {str(path): path.read_bytes() for path in (folder / "store.zarr").rglob("c.*")} == whole
    assert extract("verify", "-c", "c.yaml").exit_code == 0


@pytest.mark.parametrize(
    "spoil",
    [
        lambda store: (store / "a/colour/valid/c.0").unlink(),
        lambda store: (store / "a/colour/mean/zarr.json").write_text("{}"),
        lambda store: (store / "a/colour/zarr.json").write_text("{"),
        lambda store: flip(store / "a/frames/pts_s/c.0"),
    ],
    ids=["chunk gone", "array metadata", "record", "frame times"],
)
def test_repair_mends_whatever_is_damaged(folder, spoil):
    extract("run", "-c", "c.yaml")
    store = Store.open("store.zarr")
    before = store.read("a", "colour", "mean").values
    spoil(folder / "store.zarr")
    assert extract("verify", "-c", "c.yaml").exit_code == 4
    mended = extract("verify", "-c", "c.yaml", "--repair")
    assert mended.exit_code == 0, mended.stderr
    assert (store.read("a", "colour", "mean").values == before).all()
    assert extract("run", "-c", "c.yaml", "--json").exit_code == 0


@pytest.mark.parametrize("of_the_record", [False, True])
def test_repair_with_other_settings_is_refused_and_removes_nothing(folder, of_the_record):
    extract("run", "-c", "c.yaml")
    chunk = folder / "store.zarr/a/colour/mean/c.0.0"
    record = folder / "store.zarr/a/colour/zarr.json"
    if of_the_record:
        record.write_text(record.read_text().replace('"gain": 1.0', '"gain": 3.0'))
    else:
        flip(chunk)
    before = record.read_bytes()
    result = extract("verify", "-c", "c.yaml", "--set", "colour.gain=2.0", "--repair")
    assert result.exit_code == 2, result.stderr
    assert chunk.exists()
    assert record.read_bytes() == before
    assert extract("verify", "-c", "c.yaml", "--repair").exit_code == 0


def test_repair_without_the_video_removes_nothing(folder):
    extract("run", "-c", "c.yaml")
    chunk = folder / "store.zarr/a/colour/mean/c.0.0"
    flip(chunk)
    (folder / "a.mov").unlink()
    result = extract("verify", "-c", "c.yaml", "--repair")
    assert result.exit_code == 4
    assert "cannot be computed again" in result.stderr
    assert "Nothing was removed" in result.stderr
    assert chunk.exists()
    assert Store.open("store.zarr").record("a", "colour").state == "done"


@pytest.mark.usefixtures("folder")
def test_verify_of_a_clip_that_is_not_there():
    extract("run", "-c", "c.yaml")
    result = extract("verify", "--clip", "z")
    assert result.exit_code == 2
    assert "--clip z: the store has no such clip" in result.stderr


def test_damaged_attributes_of_a_clip_are_made_anew(folder):
    extract("run", "-c", "c.yaml")
    (folder / "store.zarr/a/zarr.json").write_text("{")
    assert extract("run", "-c", "c.yaml").exit_code == 0
    assert Store.open("store.zarr").attributes("a")["source_video"] == "a"


def test_verify_sources_finds_a_change_that_kept_size_and_time(folder):
    extract("run", "-c", "c.yaml")
    path = folder / "a.mov"
    before = path.stat()
    flip(path, before.st_size - 1)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert extract("run", "-c", "c.yaml").exit_code == 0
    assert extract("verify", "-c", "c.yaml").exit_code == 0
    result = extract("verify", "-c", "c.yaml", "--sources")
    assert result.exit_code == 2
    assert "clip a, colour: source media has other bytes" in result.stdout
    assert "2 sources read, 1 changed, 0 clips with files gone" in result.stdout
    path.unlink()
    gone = extract("verify", "--sources")
    assert gone.exit_code == 0
    assert "not checked, a file is gone: a" in gone.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--manifest", "none.yaml"), "none.yaml"),
        (("run", "-c", "none.yaml"), "config none.yaml"),
        (("run", "--stage", "iresnet"), "--stage iresnet"),
        (("run", "-c", "c.yaml", "--clip", "z"), "--clip z: the manifest has no such clip"),
        (("run", "-c", "c.yaml", "--device", "tpu"), "--device tpu: expected auto, cpu"),
        (("run", "-c", "c.yaml", "--device", "cuda:99"), "--device cuda:99: torch sees"),
        (("run", "-c", "c.yaml", "-q", "-v"), "-q and -v exclude each other"),
    ],
)
def test_usage_errors_exit_2_with_one_line(folder, arguments, message):
    result = extract(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (folder / "store.zarr").exists()


def test_the_default_config_without_weights_exits_3_before_any_work(folder, monkeypatch):
    monkeypatch.setenv("AU_FUSION_CACHE", str(folder / "cache"))
    result = extract("run", "--offline")
    assert result.exit_code == 3
    for key in ("swin-tiny", "hubert-xlarge-ll60k"):
        assert key in result.stderr
    assert "--set swin.weights=PATH" in result.stderr
    assert not (folder / "store.zarr").exists()


def test_weights_list_and_verify(folder, monkeypatch):
    monkeypatch.setenv("AU_FUSION_CACHE", str(folder / "cache"))
    assert "dlib-68-landmarks" in extract("weights", "list").stdout
    told = {row["key"]: row["state"] for row in json.loads(extract("weights", "verify", "--json").stdout)}
    assert told["dlib-68-landmarks"] == "ok"
    assert told["swin-tiny"] == "missing"
