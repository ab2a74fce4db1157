"""The authors' pickle: its documented form loads, and nothing in a file is ever executed."""

import hashlib
import io
import pickle
import struct
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

from extract.cli import app
from extract.errors import UsageError, WeightsError
from extract.models.ghfeat import convert, loading, network, official
from extract.stages.ghfeat import Ghfeat, GhfeatConfig
from extract.weights.files import path_sha256
from extract.weights.resolving import resolve
from tests.golden_nets import drawn, ghfeat_rule

SOURCE = "def Encoder(*args):\n    raise SystemExit('this text must never run')\n"
KWARGS = {"size": 64, "filter": 16, "filter_max": 32, "num_layers": 14, "is_training": True, "num_gpus": 8, "depth": 18}


class Written:
    """Pickles as the class of that name of another program."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def __getstate__(self) -> Any:
        return self.state


@pytest.fixture
def dnnlib(monkeypatch):
    """The classes that the original program pickled; gone again before anything is read."""
    module = types.ModuleType("dnnlib.tflib.network")
    named = type("Network", (Written,), {"__module__": "dnnlib.tflib.network", "__qualname__": "Network"})
    module.Network = named  # type: ignore[attr-defined]
    with monkeypatch.context() as patched:
        for name in ("dnnlib", "dnnlib.tflib"):
            patched.setitem(sys.modules, name, types.ModuleType(name))
        patched.setitem(sys.modules, "dnnlib.tflib.network", module)
        yield named


def state(variables, **changes):
    """A network's state as the original writes it."""
    fields = {
        "version": 3,
        "name": "E_gpu0",
        "static_kwargs": KWARGS,
        "components": {},
        "build_module_src": SOURCE,
        "build_func_name": "Encoder",
        "variables": list(variables.items()),
    }
    return fields | changes


def small_variables(seed=0):
    """TensorFlow's variables of the small architecture."""
    rng = np.random.default_rng(seed)
    return {
        official.tensorflow_name(name): (rng.random(shape[2:] + shape[1::-1] if len(shape) == 4 else shape[::-1]) + 0.1)
        .astype(np.float32)
        for name, shape in network.shapes("small").items()
    }  # fmt: skip


def write(path, network_type, encoder, protocol=4):
    generator = state({"lod": np.float32(0)}, name="Gs", components={"mapping": network_type(state({}))})
    others = [network_type(state({"x": np.zeros(3, np.float32)}, name=name)) for name in ("G", "D")]
    with path.open("wb") as file:
        pickle.dump((network_type(encoder), *others, network_type(generator)), file, protocol)
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_documented_form_loads(tmp_path, dnnlib, protocol):
    variables = small_variables()
    path = write(tmp_path / "e.pkl", dnnlib, state(variables), protocol)
    del sys.modules["dnnlib.tflib.network"]  # nobody who reads it has this program
    found = official.read(path, "small")
    assert found.name == "E_gpu0"
    assert found.source_sha256 == hashlib.sha256(SOURCE.encode()).hexdigest()
    assert not found.source_is_known
    assert found.tensors.keys() == network.shapes("small").keys()
    kernel = variables["stage2_unit1/Convb/weight"]  # HWIO
    assert torch.equal(found.tensors["stages.1.0.conv_b.weight"], torch.from_numpy(kernel.transpose(3, 2, 0, 1)))
    assert torch.equal(found.tensors["heads.2.fc.weight"], torch.from_numpy(variables["LowLevel/weight"].T))
    network.from_tensors("small", found.tensors, "e.pkl")


def test_names_that_numpy_1_and_2_write(tmp_path, dnnlib):
    """``numpy.core`` became ``numpy._core``; Fortran order and the order of bytes are said in the record."""
    variables = small_variables()
    turned = {name: np.asfortranarray(values) for name, values in variables.items()}
    turned["Conv0/batch_norm/beta"] = turned["Conv0/batch_norm/beta"].astype(">f4")
    path = write(tmp_path / "new.pkl", dnnlib, state(turned), protocol=3)
    data = path.read_bytes()
    assert b"cnumpy._core.multiarray\n" in data
    old = tmp_path / "old.pkl"
    old.write_bytes(data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    expected = official.from_tensorflow(variables, "small", "as they are")
    for file in (path, old):
        for name, values in official.read(file, "small").tensors.items():
            assert torch.equal(values, expected[name]), name


def test_the_whole_released_size(tmp_path, golden_dir, dnnlib):
    """372 variables, 151,850,304 numbers; through the file to the golden codes."""
    golden = np.load(golden_dir / "ghfeat.npz")
    variables = drawn(golden, ghfeat_rule)
    path = tmp_path / "ghfeat-encoder-ffhq-256.pkl"
    write(path, dnnlib, state(variables, static_kwargs=KWARGS | {"size": 256, "depth": 50}))
    del variables
    try:
        stage = Ghfeat(GhfeatConfig(weights=str(path)))
        model = loading.load("resnet50-256", resolve(str(path), stage))
    finally:
        path.unlink()  # 0.6 GB that pytest would keep
    picture = torch.from_numpy(golden["image"][:1]).permute(0, 3, 1, 2).float() / 255 * 2 - 1
    with torch.inference_mode():
        code = model(picture)[0].numpy()
    expected = golden["output"][0, :8].ravel()
    assert np.linalg.norm(code[:8192] - expected) <= 2e-5 * np.linalg.norm(expected)


# ---- files that must be refused ------------------------------------------------------------------------------------


def short(text: str) -> bytes:
    """Opcode SHORT_BINUNICODE."""
    return b"\x8c" + bytes([len(text.encode())]) + text.encode()


def call(module: str, name: str, *arguments: bytes) -> bytes:
    """Protocol 4: module.name(*arguments), and the end."""
    return b"\x80\x04" + short(module) + short(name) + b"\x93(" + b"".join(arguments) + b"tR."


def live(sentinel: Path) -> dict[str, bytes]:
    """Pickles that make a file when anything of them is run."""
    touch = f"__import__('pathlib').Path({str(sentinel)!r}).touch()"
    shell = f"touch {sentinel}"
    texts = {"os": shell, "posix": shell, "eval": touch, "exec": touch}
    arrays = pickle.dumps(np.zeros(2))
    return {
        "os.system": call("os", "system", short(texts["os"])),
        "posix.system": call("posix", "system", short(texts["posix"])),
        "builtins.eval": call("builtins", "eval", short(texts["eval"])),
        "builtins.exec": call("builtins", "exec", short(texts["exec"])),
        "pathlib.Path.touch": call("pathlib", "Path.touch", call("pathlib", "Path", short(str(sentinel)))[2:-1]),
        "subprocess.call": call("subprocess", "call", b"]" + short("touch") + b"a" + short(str(sentinel)) + b"a"),
        "os.popen": call("os", "popen", short(shell)),
        "pickle.loads": call(
            "_pickle", "loads", b"B" + struct.pack("<I", len(inner := call("os", "system", short(shell)))) + inner
        ),
        "GLOBAL of protocol 0": f"cos\nsystem\n(V{shell}\ntR.".encode(),
        "INST": f"(V{shell}\nios\nsystem\n.".encode(),
        "OBJ": b"\x80\x02(cos\nsystem\n" + f"V{shell}\n".encode() + b"o.",
        "behind a whole array": arrays[:-1] + b"0" + call("os", "system", short(shell))[2:],
        "within the state of a network": b"\x80\x04" + short("dnnlib.tflib.network") + short("Network")
        + b"\x93)\x81}" + short("x") + call("os", "system", short(shell))[2:-1] + b"sb\x85.",
    }  # fmt: skip


BROKEN: dict[str, bytes] = {
    "builtins.getattr": call("builtins", "getattr", short("x"), short("upper")),
    "builtins.__import__": call("builtins", "__import__", short("os")),
    "another name of an allowed module": call("_codecs", "decode", short("x")),
    "numpy.load": call("numpy", "load", short("/etc/passwd")),
    "numpy.core.multiarray.fromfile": call("numpy.core.multiarray", "fromfile", short("/etc/passwd")),
    "a part of an allowed class": call("dnnlib.tflib.network", "Network.__init__", short("x")),
    "torch.load": call("torch", "load", short("x")),
    "an extension code": b"\x80\x04\x82\x01.",
    "PERSID": b"Pabc\n.",
    "BINPERSID": b"\x80\x04" + short("abc") + b"Q.",
    "a place far beyond the memory": b"\x80\x04Nr\xf0\xff\xff\xff0N.",
    "a length beyond the file": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"abc.",
    "no end": call("numpy", "dtype", short("f4"))[:-1],
    "cut off": pickle.dumps(np.zeros(100), 4)[:-40],
    "empty": b"",
    "text": b"<!DOCTYPE html><html>Dropbox: this file was removed</html>",
    "noise": bytes(np.random.default_rng(0).integers(0, 256, 500, dtype=np.uint8)),
    "numbers": pickle.dumps([1, 2, 3]),
    "a dict of arrays": pickle.dumps({"a": np.zeros(3)}),
    "an empty tuple": pickle.dumps(()),
    "a network never filled": b"\x80\x04" + short("dnnlib.tflib.network") + short("Network") + b"\x93)\x81\x85.",
    "too deep": b"\x80\x04" + b"(" * 100_000 + b"t" * 100_000 + b".",
}  # fmt: skip


@pytest.mark.parametrize("kind", list(live(Path("x"))))
def test_what_would_run_is_refused(tmp_path, kind):
    """Oracle: Python's own unpickler does run it."""
    sentinel, path = tmp_path / "it_ran", tmp_path / "e.pkl"
    data = live(sentinel)[kind]
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=r"e\.pkl asks for .*refused, nothing was executed"):
        official.read(path, "small")
    assert not sentinel.exists()
    module = types.ModuleType("dnnlib.tflib.network")
    module.Network = type("Network", (), {})  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patched:
        for name in ("dnnlib", "dnnlib.tflib", "dnnlib.tflib.network"):
            patched.setitem(sys.modules, name, module)
        opened = pickle.load(io.BytesIO(data))
    if hasattr(opened, "close"):  # os.popen
        opened.close()
    assert sentinel.exists(), "the file is harmless, so the test above says nothing"


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_is_refused(tmp_path, kind):
    path = tmp_path / "e.pkl"
    path.write_bytes(BROKEN[kind])
    told = {"PERSID": "asks for the persistent object 'abc'", "BINPERSID": "asks for the persistent object 'abc'"}
    told["a place far beyond the memory"] = r"damaged one \(LONG_BINPUT 4294967280 at 2 opcodes\)"
    any_of_them = r"(asks for|is no pickle of weights, or a damaged one|holds|: the)"
    with pytest.raises(WeightsError, match=rf"e\.pkl .*{told.get(kind, any_of_them)}"):
        official.read(path, "small")


def test_enough_of_both_kinds():
    assert len(live(Path("x"))) + len(BROKEN) >= 30


def test_a_text_that_is_embedded_never_runs(tmp_path, dnnlib):
    """The authors' loader executes it."""
    sentinel = tmp_path / "it_ran"
    source = f"open({str(sentinel)!r}, 'w')"
    found = official.read(write(tmp_path / "e.pkl", dnnlib, state(small_variables(), build_module_src=source)), "small")
    assert found.source_sha256 == hashlib.sha256(source.encode()).hexdigest()
    assert not sentinel.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 1}, "version: 1"),
        ({"variables": None}, "variables: nothing"),
        ({"build_module_src": 3}, "build_module_src: int"),
        ({"static_kwargs": [1]}, "static_kwargs: list"),
        ({"variables": [("a", 1, 2)]}, "a variable is tuple, expected a name and an array"),
        ({"variables": [(1, np.zeros(2, np.float32))]}, "a variable is tuple"),
        ({"variables": [("a", np.float32(1))] * 2}, "variable a is there twice"),
        ({"variables": [("a", "text")]}, "variable a is no plain array: it is str"),
        ({"variables": [("a", np.array([{}, None], object))]}, "variable a is no plain array: its values are list"),
        ({"variables": [("a", np.array(["x"]))]}, "variable a is no plain array: its type is dtype"),
        ({"static_kwargs": KWARGS | {"depth": 50}}, "not an encoder small: depth 50, expected 18"),
        ({"static_kwargs": KWARGS | {"size": 256}}, "not an encoder small: size 256, expected 64"),
    ],
)
def test_another_state_is_named(tmp_path, dnnlib, changes, message):
    path = write(tmp_path / "e.pkl", dnnlib, state(small_variables()) | changes)
    with pytest.raises(WeightsError, match=message):
        official.read(path, "small")


def test_an_array_whose_bytes_are_too_few(tmp_path, dnnlib):
    path = write(tmp_path / "e.pkl", dnnlib, state({"a": np.zeros(4, np.float32)}), protocol=3)
    data = path.read_bytes()
    zeros = b"C\x10" + bytes(16)
    assert zeros in data
    path.write_bytes(data.replace(zeros, b"C\x0f" + bytes(15)))
    with pytest.raises(WeightsError, match="variable a is no plain array: buffer size must be a multiple"):
        official.read(path, "small")


def changed(name, values):
    return small_variables() | {name: values}


def without(name):
    return {key: values for key, values in small_variables().items() if key != name}


BIAS, VARIANCE = "stage5/Conva/bias", "Conv0/batch_norm/moving_variance"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (without(BIAS), rf"1 missing \({BIAS}\)"),
        (without(BIAS) | {"stage5/Conva/bias2": np.zeros(128, np.float32)}, "1 missing .*1 unexpected .*Conva/bias2"),
        (changed(BIAS, np.zeros(3, np.float32)), rf"1 of another shape \({BIAS} \(3,\), expected \(128,\)\)"),
        (changed(BIAS, np.zeros(128)), rf"1 not float32 \({BIAS}\)"),
        (changed(BIAS, np.full(128, np.nan, np.float32)), rf"1 not finite \({BIAS}\)"),
        (changed(VARIANCE, np.full(16, -1, np.float32)), rf"1 negative \({VARIANCE}\)"),
        ({}, r"\d+ missing \(Conv0/.*and \d+ more\)"),
    ],
)
def test_other_variables_are_listed(variables, message):
    with pytest.raises(WeightsError, match=f"here: not the variables of a GH-Feat encoder small: .*{message}"):
        official.from_tensorflow(variables, "small", "here")


# ---- convert -------------------------------------------------------------------------------------------------------


def test_converted_weights_are_the_same(tmp_path, dnnlib):
    path = write(tmp_path / "e.pkl", dnnlib, state(small_variables()))
    out = tmp_path / "made" / "e.safetensors"
    result = CliRunner().invoke(app, ["weights", "convert", str(path), "-o", str(out), "--architecture", "small"])
    assert result.exit_code == 0, result.output
    assert path_sha256(out) in result.stdout
    assert "NOT the published one" in result.stdout
    found, expected = safetensors.torch.load_file(out), official.read(path, "small").tensors
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    config = GhfeatConfig(weights=str(out), architecture="small")
    loading.load("small", resolve(str(out), Ghfeat(config)))


def test_another_definition_is_told_when_loading(tmp_path, dnnlib, caplog, monkeypatch):
    path = write(tmp_path / "e.pkl", dnnlib, state(small_variables()))
    weights = resolve(str(path), Ghfeat(GhfeatConfig(weights=str(path), architecture="small")))
    loading.load("small", weights)
    assert "another definition of the network than the published one" in caplog.text
    caplog.clear()
    monkeypatch.setattr(official, "KNOWN_SOURCE_SHA256", hashlib.sha256(SOURCE.encode()).hexdigest())
    loading.load("small", weights)
    assert not caplog.text


def test_convert_says_what_it_cannot_do(tmp_path):
    with pytest.raises(UsageError, match="--architecture big: no such architecture; known: resnet50-256"):
        convert.convert(tmp_path / "e.pkl", tmp_path / "e.safetensors", "big")
    with pytest.raises(UsageError, match=r"-o .*e\.pkl: expected a name that ends in \.safetensors"):
        convert.convert(tmp_path / "e.pkl", tmp_path / "e.pkl", "small")
    with pytest.raises(WeightsError, match=r"e\.pkl cannot be read: .*No such file"):
        convert.convert(tmp_path / "e.pkl", tmp_path / "e.safetensors", "small")
