import hashlib
import importlib.util
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from extract.cli import app
from extract.errors import WeightsError
from extract.models import random
from extract.registry import STAGES
from extract.stages.detections import Detections, DetectionsConfig
from extract.stages.hubert import Hubert, HubertConfig
from extract.stages.labels import Labels, LabelsConfig
from extract.stages.speech import Speech, SpeechConfig
from extract.stages.swin import Swin, SwinConfig
from extract.weights import table
from extract.weights.files import cache_folder, path_sha256
from extract.weights.resolving import Located, list_rows, resolve, verify
from extract.weights.table import TABLE, WeightsRow, by_key

SMALL = Swin(SwinConfig(weights="random", architecture="small", resize=64, crop=64))
TINY = Swin(SwinConfig())


def test_normal_numbers_are_the_golden_rules():
    """Known answer of the rule that the golden values were made with."""
    expected = [0.107316065, 1.591334673, -0.117412338]
    np.testing.assert_allclose(random.normal("golden", "probe", 3), expected, atol=5e-10)


def test_normal_numbers_equal_the_stored_ones(golden_dir):
    """Oracle: the first element of every tensor of a golden file, by its rule."""
    golden = np.load(golden_dir / "abaw5_fusion.npz")
    fan_in_of = {"gru": 2, "matrix": 1}
    checked = 0
    for name, text, first in zip(golden["names"], golden["shapes"], golden["first"], strict=True):
        shape = tuple(int(n) for n in str(text).split("x"))
        if len(shape) != 2:
            continue
        gain = fan_in_of["gru" if "_encoder." in str(name) else "matrix"]
        z = random.normal(str(golden["seed"]), str(name), shape).ravel()[0]
        assert np.float32(z * np.sqrt(gain / shape[1])) == pytest.approx(first, rel=1e-6), name
        checked += 1
    assert checked > 5


def test_drawn_tensors_keep_the_signals_size():
    shapes = {"fc.weight": (400, 300), "conv.weight": (64, 32, 3, 3), "norm.weight": (500,), "norm.bias": (500,)}
    drawn = random.draw(shapes | {"conv.parametrizations.weight.original0": (1, 1, 500)}, seed="s")
    assert all(values.dtype == np.float32 for values in drawn.values())
    assert drawn["fc.weight"].std() == pytest.approx(300**-0.5, rel=0.02)
    assert drawn["conv.weight"].std() == pytest.approx((2 / 288) ** 0.5, rel=0.02)
    for name in ("norm.weight", "conv.parametrizations.weight.original0"):
        assert drawn[name].mean() == pytest.approx(1, abs=0.02)
        assert drawn[name].std() == pytest.approx(0.1, rel=0.15)
    assert drawn["norm.bias"].mean() == pytest.approx(0, abs=0.02)
    assert drawn["norm.bias"].std() == pytest.approx(0.1, rel=0.15)


def test_drawn_tensors_depend_on_seed_and_name_alone():
    scalar = random.draw({"logit_scale": ()}, seed="s")["logit_scale"]
    assert isinstance(scalar, np.ndarray)
    assert scalar.shape == ()
    one = random.draw({"a": (3, 3), "b": (3, 3)}, seed="s")
    assert np.array_equal(one["b"], random.draw({"b": (3, 3)}, seed="s")["b"])
    assert not np.array_equal(one["a"], one["b"])
    assert not np.array_equal(one["b"], random.draw({"b": (3, 3)}, seed="t")["b"])


def test_random_weights_are_untrained_and_their_hash_is_stable():
    """The sha256 is in recipes: another drawing or hashing rule makes every such store stale."""
    found = resolve("random", SMALL)
    assert found.untrained
    assert (found.path, found.trained_on) == (None, "nothing")
    assert found.sha256 == resolve("random", SMALL).sha256
    assert found.sha256 == "0a2a2634b9059e5c85afce8db3ca960308093eb84d31841293c8e23c8ef3f8e6"
    other = Hubert(HubertConfig(weights="random", architecture="small"))
    assert resolve("random", other).sha256 != found.sha256


def test_drawn_tensors_are_not_shared():
    found = resolve("random", SMALL)
    found.tensors()["norm.weight"].zero_()
    assert found.tensors()["norm.weight"].any()


def test_the_table():
    assert {"swin-tiny", "hubert-xlarge-ll60k", "roberta-large", "realesrgan-x4plus", "ghfeat-ffhq-256"} <= set(TABLE)
    assert {"dinov2-small", "clip-vit-b16", "wavlm-base-plus", "wav2vec2-large-lv60"} <= set(TABLE)
    for key, row in TABLE.items():
        assert row.key == key
        assert row.licence
        assert row.trained_on
        assert row.source.startswith("https://" if row.package is None else "Python package")
        assert row.sha256 is None or len(row.sha256) == 64
        for stage in row.stages:
            assert row.settings.keys() <= STAGES[stage].config_type.model_fields.keys(), key


def test_a_key_given_twice_is_refused():
    row = TABLE["swin-tiny"]
    with pytest.raises(ValueError, match="weights key 'swin-tiny' is taken"):
        by_key([row, row])


def test_the_landmark_file_comes_with_its_package():
    found = resolve("dlib-68-landmarks", Detections(DetectionsConfig()))
    assert found.path is not None
    assert found.path.name == "shape_predictor_68_face_landmarks.dat"
    assert found.sha256 == TABLE["dlib-68-landmarks"].sha256
    assert "research" in found.licence
    assert not found.untrained


@pytest.mark.parametrize(
    ("spec", "stage", "parts"),
    [
        (
            "swin-tiny",
            TINY,
            [
                "model.safetensors or pytorch_model.bin",
                "huggingface.co/timm",
                "MIT",
                "swin.weights=PATH",
            ],
        ),
        (
            "hubert-xlarge-ll60k",
            Hubert(HubertConfig()),
            ["config.json", "huggingface.co/facebook/hubert-xlarge-ll60k", "Apache-2.0", "hubert.weights=PATH"],
        ),
    ],
)
def test_missing_weights_are_named_with_the_way_to_get_them(tmp_path, spec, stage, parts):
    with pytest.raises(WeightsError, match="are not on this machine and a run fetches nothing") as caught:
        resolve(spec, stage, cache=tmp_path)
    for part in [*parts, str(tmp_path / "weights" / spec)]:
        assert part in str(caught.value)
    assert caught.value.exit_code == 3
    with pytest.raises(WeightsError, match=r"--offline forbids fetching them: .* --set mine\.weights=PATH"):
        resolve(spec, stage, cache=tmp_path, offline=True, instance="mine")


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("AU_FUSION_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    with pytest.raises(WeightsError, match=str(tmp_path)):
        resolve("swin-tiny", TINY)
    monkeypatch.delenv("AU_FUSION_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "au-fusion"


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(WeightsError, match="install the package face-recognition-models"):
        resolve("dlib-68-landmarks", Detections(DetectionsConfig()), cache=tmp_path)


def test_weights_of_another_stage_or_architecture_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="'swin-tiny' belong to stage swin, not to hubert"):
        resolve("swin-tiny", Hubert(HubertConfig()), cache=tmp_path)
    with pytest.raises(WeightsError, match=r"base, the config says xlarge; use --set h\.architecture=base"):
        resolve("hubert-base-ls960", Hubert(HubertConfig()), cache=tmp_path, instance="h")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"family": "hubert"}, r"'wavlm-large' are of family wavlm, the config says hubert; use --set w\.family=wavlm"),
        ({"width": 768}, r"'wavlm-large' are of width 1024, the config says 768; use --set w\.width=1024"),
    ],
)
def test_weights_of_other_settings_are_refused(tmp_path, said, message):
    """Before they are fetched: they are not even here."""
    config = {"family": "wavlm", "weights": "wavlm-large", "width": 1024, "normalise": True} | said
    with pytest.raises(WeightsError, match=message):
        resolve("wavlm-large", Speech(SpeechConfig(**config)), cache=tmp_path, instance="w")


def test_an_unknown_spec_is_refused():
    with pytest.raises(WeightsError, match=r"'swin-huge' are no key \(swin-tiny for this stage\) and no such path"):
        resolve("swin-huge", TINY)
    with pytest.raises(WeightsError, match=r"'swin-tinny' are no key \(did you mean 'swin-tiny'\?\) and no such path"):
        resolve("swin-tinny", TINY)


def test_a_stage_without_weights_draws_none():
    with pytest.raises(WeightsError, match="stage labels has no random weights"):
        resolve("random", Labels(LabelsConfig()))


def fill(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_a_key_whose_files_are_there(tmp_path):
    folder = tmp_path / "weights" / "hubert-xlarge-ll60k"
    fill(folder, config__json="{}", preprocessor_config__json="{}")
    with pytest.raises(WeightsError, match=r"lacks .*model\.safetensors or pytorch_model\.bin"):
        resolve("hubert-xlarge-ll60k", Hubert(HubertConfig()), cache=tmp_path)
    fill(folder, pytorch_model__bin="x")
    found = resolve("hubert-xlarge-ll60k", Hubert(HubertConfig()), cache=tmp_path)
    assert found.path == folder
    assert found.trained_on == "Libri-Light, 60,000 h"
    assert found.sha256 == path_sha256(folder)


def test_bytes_other_than_the_tables_are_refused(tmp_path, monkeypatch):
    row = WeightsRow("k", ("swin",), "tiny", "https://x", (), "MIT", "y", sha256="0" * 64)
    monkeypatch.setitem(TABLE, "k", row)
    fill(tmp_path / "weights" / "k", model__safetensors="x")
    with pytest.raises(
        WeightsError, match=f"has sha256 [0-9a-f]{{64}}, expected {'0' * 64}; get it anew from https://x"
    ):
        resolve("k", TINY, cache=tmp_path)


def test_hash_of_a_folder(tmp_path):
    """Over sorted names and hashes; hidden files do not count, every other byte and name does."""
    fill(tmp_path, model__bin="abc", config__json="{}")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "vocab.txt").write_text("a b")
    names = {"config.json": b"{}", "model.bin": b"abc", "sub/vocab.txt": b"a b"}
    lines = "".join(f"{name}\0{hashlib.sha256(data).hexdigest()}\n" for name, data in names.items())
    expected = hashlib.sha256(lines.encode()).hexdigest()
    assert path_sha256(tmp_path) == expected
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text("x")
    (tmp_path / ".gitattributes").write_text("x")
    assert path_sha256(tmp_path) == expected
    (tmp_path / "sub" / "vocab.txt").rename(tmp_path / "sub" / "words.txt")
    assert path_sha256(tmp_path) != expected
    assert path_sha256(tmp_path / "model.bin") == hashlib.sha256(b"abc").hexdigest()


def test_a_folder_without_tensors_is_refused(tmp_path):
    fill(tmp_path, config__json="{}")
    with pytest.raises(WeightsError, match=r"holds none of model\.safetensors and pytorch_model\.bin"):
        resolve(str(tmp_path), SMALL)


def test_a_path_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    fill(tmp_path, model__bin="abc")
    assert resolve("~/model.bin", SMALL).path == tmp_path / "model.bin"


def test_states(tmp_path, monkeypatch):
    row = WeightsRow("k", ("swin",), "tiny", "https://x", (), "MIT", "y", sha256=None)
    monkeypatch.setattr(table, "TABLE", {"k": row, "dlib-68-landmarks": TABLE["dlib-68-landmarks"]})
    lock = tmp_path / "weights.lock"
    assert [entry.state for entry in list_rows(tmp_path, lock)] == ["missing", "present"]
    fill(tmp_path / "weights" / "k", model__safetensors="abc")
    assert [entry.state for entry in list_rows(tmp_path, lock)] == ["unpinned", "present"]
    checked = verify(tmp_path, lock)
    assert [entry.state for entry in checked] == ["unpinned", "ok"]
    assert checked[0].sha256 == path_sha256(tmp_path / "weights" / "k")
    assert checked[0].path == tmp_path / "weights" / "k"
    assert Located(TABLE["dlib-68-landmarks"], tmp_path, (), "0" * 64, "1" * 64).state == "wrong"


def test_the_lock_beside_a_store_or_config_is_the_one_that_counts(tmp_path, monkeypatch):
    row = WeightsRow("k", ("swin",), "tiny", "https://x", (), "MIT", "y", sha256=None)
    monkeypatch.setattr(table, "TABLE", {"k": row})
    monkeypatch.setenv("AU_FUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "cache/weights/k", model__safetensors="abc")
    (tmp_path / "proj").mkdir()
    (tmp_path / "proj/exp.yaml").write_text("extract: {}\n")
    (tmp_path / "proj/weights.lock").write_text(json.dumps({"k": {"sha256": "0" * 64, "commit": None, "files": {}}}))
    assert CliRunner().invoke(app, ["weights", "verify"]).exit_code == 0  # nobody has pinned them here
    for flags in (["-c", "proj/exp.yaml"], ["--store", "proj/store.zarr"]):
        found = CliRunner().invoke(app, ["weights", "verify", *flags, "--json"])
        assert (found.exit_code, found.stderr) == (3, "extract: not the pinned bytes: k\n")
        assert json.loads(found.stdout)[0]["expected"] == "0" * 64
        assert "present" not in CliRunner().invoke(app, ["weights", "list"]).stdout
        assert "present" in CliRunner().invoke(app, ["weights", "list", *flags]).stdout


class Code:
    """What a malicious checkpoint holds: something that acts when it is read."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_code_in_a_checkpoint_is_not_executed(tmp_path):
    touched = tmp_path / "touched"
    torch.save({"norm.weight": torch.zeros(1), "x": Code(touched)}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(Code(touched), protocol=2))
    for name in ("a.pth", "b.pth"):
        with pytest.raises(WeightsError, match="what may hold code is never executed"):
            resolve(str(tmp_path / name), SMALL).tensors()
    assert not touched.exists()
    pickle.loads((tmp_path / "b.pth").read_bytes())
    assert touched.exists()  # it would have been


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "a.bin"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", b"PK\x03\x04 broken"])
def test_a_damaged_file_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=f"{name} (is no weights file|cannot be read)"):
        resolve(str(tmp_path / name), SMALL).tensors()


def test_a_cut_checkpoint_is_refused(tmp_path):
    torch.save({"a": torch.arange(100_000)}, tmp_path / "a.pth")
    whole = (tmp_path / "a.pth").read_bytes()
    assert zipfile.is_zipfile(tmp_path / "a.pth")
    (tmp_path / "a.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="is no weights file, or a damaged one"):
        resolve(str(tmp_path / "a.pth"), SMALL).tensors()


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"model": {"x": 1}}])
def test_something_else_than_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="expected tensors by name"):
        resolve(str(tmp_path / "a.pth"), SMALL).tensors()


def test_files_give_back_what_was_saved(tmp_path):
    saved = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.float16)}
    save_file(saved, tmp_path / "model.safetensors")
    torch.save({"state_dict": saved, "epoch": 3}, tmp_path / "a.pth")
    for spec in (tmp_path, tmp_path / "a.pth"):
        found = resolve(str(spec), SMALL)
        tensors = found.tensors()
        assert tensors.keys() == saved.keys()
        assert all(torch.equal(tensors[name], saved[name]) for name in saved)
        assert not found.untrained
