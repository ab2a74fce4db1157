"""Stores that somebody's disk, editor or script has been at: every command ends with a code of its own and a reason."""

import json
import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from extract.cli import app
from extract.errors import AuFusionError
from extract.records import Record
from extract.store import Store
from tests.media_files import pictures, write_clip

CONFIG = "extract: {instances: {colour: {}, rank: {}}, run: {cpu_threads: 1, block_rows: 16}}\n"
CODES = {0, 1, 2, 4}
"""What a command may end with here. 5 would blame the machine, 70 is a bug of the program."""


def extract(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    trouble = result.exception
    assert trouble is None or isinstance(trouble, SystemExit), repr(trouble)
    return result


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store of two clips, made once."""
    from extract.registry import STAGES
    from tests import toy_stages

    root = tmp_path_factory.mktemp("made")
    for name in ("a", "b"):
        write_clip(root / f"{name}.mov", pictures(20))
    (root / "c.yaml").write_text(CONFIG)
    (root / "m.yaml").write_text("version: 1\nclips:\n- {id: a, video: a.mov}\n- {id: b, video: b.mov}\n")
    with pytest.MonkeyPatch.context() as patch:
        for stage in toy_stages.TOYS:
            patch.setitem(STAGES, stage.name, stage)
        result = extract("run", "-c", root / "c.yaml", "--manifest", root / "m.yaml", "--store", root / "s.zarr")
        assert result.exit_code == 0, result.output
    return root


@pytest.fixture
def store(made, tmp_path, toys):
    """A copy to be spoiled; its videos lie beside it."""
    del toys
    shutil.copytree(made / "s.zarr", tmp_path / "s.zarr")
    for name in ("a.mov", "b.mov", "c.yaml", "m.yaml"):
        shutil.copy2(made / name, tmp_path / name)
    return tmp_path / "s.zarr"


def on(store: Path, command: str, *arguments: str, config: bool = True):
    """One command on a store, with its own manifest and config where it takes them."""
    flags = ["--store", store]
    if command not in {"status", "failed"}:
        flags += ["--manifest", store.parent / "m.yaml"]
        flags += ["-c", store.parent / "c.yaml"] if config else []
    return extract(command, *flags, *arguments)


def values(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in sorted(store.rglob("c.*")) if path.is_file()}


def repaired(store: Path, made: Path) -> None:
    """``verify --repair`` gives back the bytes that were there, and every command is content."""
    result = on(store, "verify", "--repair")
    assert result.exit_code == 0, result.output
    assert values(store) == values(made / "s.zarr")
    for command in ("verify", "run", "status", "failed"):
        assert on(store, command).exit_code == 0, command
    assert (Store.open(store).record("a", "colour") or Record("partial", {}, {}, "")).state == "done"


# ---- records --------------------------------------------------------------------------------------------------------

FIELDS = ("state", "recipe", "source", "fingerprint", "rows", "reason", "message", "attempts", "notes", "provenance")
INSIDE = ("provenance.files", "provenance.weights", "provenance.untrained", "provenance.rows", "recipe.inputs",
          "recipe.config", "recipe.stage", "source.media")  # fmt: skip
VALUES = {
    "null": None, "number": 3, "nan": float("nan"), "text": "x", "list of lists": [[1]], "mapping": {},
    "inner nulls": {"media": None, "mean": None, "colour": None},
}  # fmt: skip
ABSENT = object()


def spoil(path: Path, key: str, value: object) -> None:
    node = json.loads(path.read_text())
    *above, last = key.split(".")
    at = node["attributes"]
    for part in above:
        at = at[part]
    if value is ABSENT:
        at.pop(last, None)
    else:
        at[last] = value
    path.write_text(json.dumps(node))


# Each value in every third field, shifted: a field meets two or three of them. All 144 pairs were tried (4 minutes).
PAIRS = [
    pytest.param(key, value, id=f"{key}-{name}")
    for j, key in enumerate([*FIELDS, *INSIDE])
    for i, (name, value) in enumerate([*VALUES.items(), ("absent", ABSENT)])
    if (i + j) % 3 == 0
]


@pytest.mark.parametrize(("key", "value"), PAIRS)
def test_a_spoilt_record_ends_no_command_in_an_error_of_ours(store, made, key, value):
    before = (store / "a/colour/zarr.json").read_bytes()
    spoil(store / "a/colour/zarr.json", key, value)
    same = json.loads(before) == json.loads((store / "a/colour/zarr.json").read_bytes())
    for command in ("status", "failed", "verify", "plan", "run", "status"):
        result = on(store, command)
        assert result.exit_code in CODES, (command, result.output)
        if result.exit_code == 4:
            assert "clip a, " in result.output
    assert Store.open(store).record("b", "colour").state == "done"
    if same:
        return
    result = on(store, "verify", "--repair")
    assert result.exit_code in {0, 2}, result.output
    assert values(store) == values(made / "s.zarr")


# ---- metadata above and below the records ---------------------------------------------------------------------------

SPOILT = {
    "empty": b"",
    "not json": b"{",
    "zeros": bytes(300),
    "not text": b"\xff\xfe\x00",
    "deep": b"[" * 100_000,
    "list": b"[]",
    "null": b"null",
    "attributes null": b'{"zarr_format": 3, "node_type": "group", "attributes": null}',
    "attributes list": b'{"zarr_format": 3, "node_type": "group", "attributes": []}',
    "attributes text": b'{"zarr_format": 3, "node_type": "group", "attributes": "x"}',
    "no attributes": b'{"zarr_format": 3, "node_type": "group"}',
    "format null": b'{"attributes": {"format": null, "schema": 1}}',
    "schema text": b'{"attributes": {"format": "au-fusion", "schema": "1"}}',
    "schema null": b'{"attributes": {"format": "au-fusion", "schema": null}}',
    "nan": b'{"attributes": {"format": "au-fusion", "schema": NaN}}',
    "gone": None,
}
WHERE = {"root": "", "clip": "a", "record": "a/colour", "array": "a/colour/mean"}


def put(path: Path, data: bytes | None) -> None:
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)


PLACED = [
    pytest.param(where, data, id=f"{place}-{name}")
    for j, (place, where) in enumerate(WHERE.items())
    for i, (name, data) in enumerate(SPOILT.items())
    if (i + j) % 2 == 0 or place == "root"
]


@pytest.mark.parametrize(("where", "data"), PLACED)
def test_spoilt_metadata_ends_no_command_in_an_error_of_ours_and_is_mended(store, made, where, data):
    put(store / where / "zarr.json", data)
    for command in ("status", "failed", "verify", "plan", "run"):
        result = on(store, command)
        assert result.exit_code in CODES, (command, result.output)
        if where == "":
            assert result.exit_code == 4, (command, result.output)
            assert "verify --repair" in result.output
    repaired(store, made)


def test_a_store_of_another_schema_is_not_made_into_this_one(store):
    root = store / "zarr.json"
    root.write_text(root.read_text().replace('"schema": 1', '"schema": 2'))
    before = root.read_bytes()
    result = on(store, "verify", "--repair")
    assert (result.exit_code, root.read_bytes()) == (2, before)
    assert "schema 2, this program knows 1" in result.output


def test_a_foreign_zarr_folder_is_not_made_into_a_store(store, tmp_path):
    other = tmp_path / "theirs"
    (other / "x").mkdir(parents=True)
    (other / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    before = (other / "zarr.json").read_bytes()
    result = extract("verify", "--repair", "--store", other, "--manifest", store.parent / "m.yaml")
    assert result.exit_code == 2
    assert (other / "zarr.json").read_bytes() == before


def test_a_damaged_clip_leaves_the_others_to_their_run(store):
    """The other clip still lacks something: it is computed in the same run."""
    shutil.rmtree(store / "b/rank")
    put(store / "a/colour/zarr.json", b"{")
    result = on(store, "run")
    assert result.exit_code == 4
    assert "damaged: clip a, instance colour" in result.output
    assert Store.open(store).record("b", "rank").state == "done"


def test_an_array_kept_by_an_earlier_config_is_no_damage(store):
    """``keep`` is in no recipe: a repair without it leaves the picture's corner where it is."""
    assert on(store, "run", "--set", "colour.keep=[corner]").exit_code == 0
    path = store / "a/colour/mean/c.0.0"
    path.write_bytes(bytes(path.stat().st_size))
    assert on(store, "verify", "--repair").exit_code == 0
    assert on(store, "verify").exit_code == 0


# ---- things of others in a store ------------------------------------------------------------------------------------


def as_file(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.write_text("mine")


def as_folder(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.mkdir()
    (path / "mine.txt").write_text("mine")


def as_link(path: Path) -> None:
    elsewhere = path.parents[len(path.parts) - 1 - path.parts.index("s.zarr")] / "elsewhere"
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)


PLACES = ("a", "a/zarr.json", "a/colour", "a/colour/zarr.json", "a/colour/mean", "a/colour/mean/zarr.json",
          "a/colour/mean/c.0.0")  # fmt: skip


@pytest.mark.parametrize("become", [as_file, as_folder, as_link])
@pytest.mark.parametrize("place", PLACES)
def test_what_stands_in_the_way_is_one_clips_damage_and_stays(store, place, become):
    shutil.rmtree(store / "b/rank")
    become(store / place)
    outside = {path: path.read_bytes() for path in store.parent.glob("elsewhere/**/*") if path.is_file()}
    mine = [path for path in store.rglob("mine.txt")]
    for command, more in (("status", ()), ("failed", ()), ("verify", ()), ("plan", ()), ("run", ()),
                          ("verify", ("--repair",)), ("run", ())):  # fmt: skip
        result = on(store, command, *more)
        assert result.exit_code in CODES, (command, result.output)
    assert Store.open(store).record("b", "rank").state == "done"
    assert all(path.read_bytes() == data for path, data in outside.items())
    assert all(path.exists() for path in mine)
    assert "Traceback" not in on(store, "failed", "-v").output


@pytest.mark.parametrize("name", [b"\xff\xfe", b"with space", "ünï".encode(), b"new\nline", b".hidden", b"-rf"])
def test_folders_named_in_no_way_of_ours_are_left_alone(store, name):
    for folder in (store, store / "a", store / "a/colour"):
        strange = os.path.join(os.fsencode(folder), name)
        os.mkdir(strange)
        with open(os.path.join(strange, b"zarr.json"), "wb") as file:
            file.write(b"{")
    for command in ("status", "failed", "plan", "run"):
        result = on(store, command)
        assert result.exit_code in CODES, (command, result.output)
        result.output.encode()
    if name != b"-rf":
        assert on(store, "verify").exit_code == 0
    assert os.path.exists(os.path.join(os.fsencode(store), name, b"zarr.json"))


# ---- inspect -o -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["nowhere/x.png", "folder.png", "a.mov/x.png"])
def test_a_sheet_that_cannot_be_written_is_refused_before_it_is_drawn(store, out):
    (store.parent / "folder.png").mkdir()
    result = extract("inspect", "a", "-o", store.parent / out, "--manifest", store.parent / "m.yaml", "--store", store)
    assert result.exit_code == 2
    assert "expected a file in a folder that is there" in result.output


def test_a_disk_that_takes_no_sheet_is_the_machines_fault(store, monkeypatch):
    from PIL import Image

    from extract import inspection

    class Sheet(Image.Image):
        def save(self, _path):
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(inspection, "inspect", lambda *_, **__: Sheet())
    result = extract("inspect", "a", "-o", store.parent / "x.png", "--store", store)
    assert result.exit_code == 5
    assert "x.png: cannot be written (Permission denied)" in result.output


def test_hostile_stores_raise_only_errors_of_ours(store):
    put(store / "a/colour/zarr.json", b'{"attributes": {"state": "done"}}')
    with pytest.raises(AuFusionError, match=r"clip a, instance colour: damaged record .*verify --repair"):
        Store.open(store).record("a", "colour")


@pytest.mark.parametrize("size", [0, 1, 2, 4])
def test_an_array_whose_rows_were_cut_narrower_is_damage(store, made, size):
    """Its chunks pass their checksums: only part of each row would be read."""
    path = store / "a/colour/mean/zarr.json"
    node = json.loads(path.read_text())
    node["shape"][1] = size
    path.write_text(json.dumps(node))
    assert on(store, "verify").exit_code == 4
    repaired(store, made)


def as_written_before(store: Path, instance: str) -> None:
    """A record of the time when each array's rows were not kept."""
    path = store / "a" / instance / "zarr.json"
    node = json.loads(path.read_text())
    del node["attributes"]["provenance"]["rows"]
    path.write_text(json.dumps(node))


def edit_array(store: Path, array: str, **metadata: object) -> None:
    path = store / "a" / array / "zarr.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | metadata))


@pytest.mark.parametrize("array", ["colour/mean", "colour/valid", "rank/place"])
def test_an_array_that_its_stage_declares_and_the_store_lacks_is_damage(store, made, array):
    as_written_before(store, array.partition("/")[0])
    shutil.rmtree(store / "a" / array)
    result = on(store, "verify")
    assert result.exit_code == 4
    assert f"clip a, {array}, metadata: it is gone" in result.output
    repaired(store, made)


def test_every_array_of_a_clip_stage_cut_alike_is_damage(store, made):
    """Nothing in the record or beside the array tells; its one block does."""
    as_written_before(store, "rank")
    path = store / "a/rank/zarr.json"
    path.write_text(path.read_text().replace('"rows": 20', '"rows": 10'))
    edit_array(store, "rank/place", shape=[10])
    edit_array(store, "rank/valid", shape=[10])
    result = on(store, "verify")
    assert result.exit_code == 4
    assert "clip a, rank/place, metadata: 10 rows, its block holds 20" in result.output
    repaired(store, made)


def test_values_read_as_another_type_are_damage(store, made):
    """The bytes pass their checksum, and say something else."""
    edit_array(store, "colour/mean", data_type="int32", fill_value=0)
    result = on(store, "verify")
    assert result.exit_code == 4
    assert "rows of int32 (3,), its stage gives float32 (3,)" in result.output
    repaired(store, made)


@pytest.mark.parametrize(
    "metadata",
    [
        {"attributes": []},
        {"attributes": "x"},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0, 3]}}},
        {"data_type": "float16"},
        {"codecs": [{"name": "bytes", "configuration": {"endian": "little"}}]},
    ],
)
def test_metadata_that_zarr_takes_and_we_did_not_write_is_damage_and_mended(store, made, metadata):
    """The last one has no checksum: blocks made again under it would have none for ever after."""
    edit_array(store, "colour/mean", **metadata)
    assert on(store, "verify").exit_code == 4
    repaired(store, made)
