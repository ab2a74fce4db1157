"""Weight files made to fill a machine or to upset a reader: refused with a message, unread where they are too large."""

import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from extract.archives import too_large
from extract.errors import CorruptError, UsageError, WeightsError
from extract.models.ghfeat import official
from extract.weights import files
from extract.weights.files import Weights
from fusion.runs import Run
from tests.conftest import ROOT

MEGABYTE = 1 << 20


def read(path):
    return Weights(str(path), "", "", "", path=path).tensors()


def bomb(path, members=4, megabytes=64):
    """Zeros that compress a thousand times, under the names that torch.save uses."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        for number in range(members):
            archive.writestr(f"archive/data/{number}", bytes(megabytes * MEGABYTE))
    return path


def test_a_zip_bomb_is_refused_unread(tmp_path, monkeypatch):
    path = bomb(tmp_path / "net.pth")
    assert path.stat().st_size < MEGABYTE
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(WeightsError, match=r"net\.pth: it would unpack to 268 MB from 0\.3; .*it is not read"):
        read(path)


def test_a_shared_runs_model_is_no_bomb_either(tmp_path):
    bomb(tmp_path / "model.pt")
    with pytest.raises(CorruptError, match=r"would unpack to .*do you trust the source of this run"):
        Run(tmp_path).model()


def test_a_list_of_members_that_cannot_be_read_is_no_way_past(tmp_path):
    """What one reader of archives gives up on, another may unpack."""
    path = bomb(tmp_path / "net.pth")
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") : data.index(b"PK\x01\x02") + 4] = b"PK\x09\x09"  # the first entry of the list
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=r"its list of members cannot be read \(.*\): it is not read"):
        read(path)


@pytest.mark.parametrize("legacy", [True, False])
def test_what_torch_saves_is_none(tmp_path, legacy):
    tensors = {f"layer{n}.weight": torch.zeros(300, 300) for n in range(5)}
    torch.save(tensors, tmp_path / "net.pth", _use_new_zipfile_serialization=not legacy)
    assert too_large(tmp_path / "net.pth", (tmp_path / "net.pth").stat().st_size) is None
    assert read(tmp_path / "net.pth").keys() == tensors.keys()


def _empty_zip(path):
    zipfile.ZipFile(path, "w").close()


def _truncated(path):
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-500])


def _safetensors_that_lies(path):
    save_file({"a": torch.zeros(4)}, path)
    path.write_bytes(path.read_bytes().replace(b"[4]", b"[9]"))


ODD = {
    "list.pth": lambda path: torch.save([torch.zeros(2)], path),
    "tensor.pth": lambda path: torch.save(torch.zeros(2), path),
    "int_keys.pth": lambda path: torch.save({0: torch.zeros(2)}, path),
    "numbers.pth": lambda path: torch.save({"a": 1.0}, path),
    "none.pth": lambda path: torch.save(None, path),
    "nested.pth": lambda path: torch.save({"model": {"model": [1]}}, path),
    "empty.pth": lambda path: path.write_bytes(b""),
    "text.pth": lambda path: path.write_text("once upon a time"),
    "zip.pth": _empty_zip,
    "truncated.pth": _truncated,
    "empty.safetensors": lambda path: path.write_bytes(b""),
    "header.safetensors": lambda path: path.write_bytes((1 << 62).to_bytes(8, "little") + b"{}"),
    "lies.safetensors": _safetensors_that_lies,
    "pickle.safetensors": lambda path: path.write_bytes(pickle.dumps({"a": 1})),
}


@pytest.mark.parametrize("name", ODD)
def test_what_holds_no_tensors_by_name_is_told(tmp_path, name):
    path = tmp_path / name
    ODD[name](path)
    with pytest.raises(WeightsError) as refused:
        read(path)
    assert str(path) in str(refused.value)
    assert refused.value.exit_code == 3


@pytest.mark.parametrize("content", ["[]", "7", "null", "{", "\x00"], ids=repr)
def test_a_hubs_config_of_another_shape_is_told(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(WeightsError, match=r"config\.json"):
        Weights("x", "", "", "", path=tmp_path).read_json("config.json")


@pytest.mark.parametrize("version", [[3], {}, (3,), None, "3", 3.0, True, 1, b"3"], ids=repr)
def test_a_pickle_with_an_odd_version_is_told(tmp_path, version):
    found = official._Network()
    found.state = {"name": "E", "static_kwargs": {}, "build_module_src": "", "build_func_name": "f", "variables": []}
    found.state["version"] = version
    with pytest.raises(WeightsError, match="not of the released form: version: "):
        official._encoder_state((found,), tmp_path / "x.pkl")


@pytest.mark.parametrize(
    ("shape", "order", "dtype"),
    [((10**30,), "C", "f4"), ((-1,), "C", "f4"), ("ab", "C", "f4"), ((2,), "Q", "f4"), ((2,), "C", ["f4"])],
    ids=str,
)
def test_an_array_of_an_odd_form_is_told(tmp_path, shape, order, dtype):
    record = official._Array(bytes(8), official._DType(dtype), shape, order)
    with pytest.raises(WeightsError, match="variable v is no plain array"):
        official._variables([("v", record)], tmp_path / "x.pkl")


# ---- no home --------------------------------------------------------------------------------------------------------


def test_without_a_home_the_variable_to_set_is_named(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("AU_FUSION_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(UsageError, match=r"no home folder and HOME is not set; set AU_FUSION_CACHE to a folder"):
        files.cache_folder()
    monkeypatch.setenv("AU_FUSION_CACHE", "/somewhere")
    assert files.cache_folder() == Path("/somewhere")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user without a passwd entry")
def test_a_user_without_home_and_passwd_entry():
    """As containers run: `docker run --user 12345`."""
    env = {name: value for name, value in os.environ.items() if name not in {"HOME", "AU_FUSION_CACHE"}}
    program = (
        "import os; from extract.errors import UsageError; from extract.weights import files; os.setuid(54321)\n"
        "try: files.cache_folder()\n"
        "except UsageError as error: print(error)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], env=env, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert "this user (54321) has no home folder and HOME is not set; set AU_FUSION_CACHE" in ended.stdout, ended.stderr
