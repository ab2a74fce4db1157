"""What fetching refuses, where tokens go, where the lock lies, and the way from the hub into a run."""

import email.message
import io
import json
import urllib.error

import numpy as np
import pytest
import safetensors.numpy
from typer.testing import CliRunner

from extract.cli import app
from extract.config import ExtractConfig
from extract.errors import WeightsError
from extract.inputs.manifest import Clip
from extract.models import swin
from extract.running import runner
from extract.running.selection import Options
from extract.stages.swin import Swin, SwinConfig
from extract.weights import fetch, resolving, table
from extract.weights.lock import lock_file
from extract.weights.table import HUB, WeightsRow
from tests.contract import context
from tests.hub import LOCK, WHOLE_TABLE, get
from tests.test_crops import draw_crops


@pytest.fixture
def as_set(site, monkeypatch):
    """The settings as users have them."""
    del site
    monkeypatch.setattr(fetch, "REDIRECT_SCHEMES", frozenset({"https"}))
    monkeypatch.setattr(fetch, "TOKEN_SCHEMES", frozenset({"https"}))


class _Sent(Exception):
    """What a request would have carried."""


def command(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (401, r"no access \(401\): accept the licence at .*some/net and set HF_TOKEN"),
        (403, r"no access \(403\)"),
        (404, r"not there \(404\): http://127"),
        (418, r"the server answered 418"),
    ],
)
def test_refusals_say_what_to_do(site, code, message):
    site.answers = [(code, {})]
    with pytest.raises(WeightsError, match=message) as refused:
        get()
    assert f"or put config.json, model.safetensors or pytorch_model.bin from {HUB}/some/net into" in str(refused.value)
    assert len(site.requests) == 1


def test_endless_redirects_end(site):
    site.answers = [(302, {"Location": "/again"})] * 20
    with pytest.raises(WeightsError, match="the server answered 302"):
        get()


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"net": 1}',
        '{"net": {"sha256": 1, "files": {}}}',
        '{"net": {"sha256": "a", "files": {"model.safetensors": []}}}',
        '{"net": {"sha256": "a", "files": {"model.safetensors": {"sha256": 7}}}}',
        '{"net": {"sha256": "a", "files": {}, "commit": ["main"]}}',
    ],
)
@pytest.mark.usefixtures("site")
def test_a_damaged_lock_is_refused(text):
    LOCK.write_text(text)
    with pytest.raises(WeightsError, match=r"weights\.lock: (cannot be read|is no weights\.lock)"):
        get()


def test_from_the_hub_into_a_run(site, tmp_path, monkeypatch):
    """A small Swin in the official file format: missing, fetched by what the config needs, pinned, tampered with."""
    tensors = {name: values for name, values in swin.random_weights("small").items()}
    site.files = {"model.safetensors": safetensors.numpy.save(tensors)}
    row = WeightsRow("tiny", ("swin",), "small", f"{HUB}/some/tiny", (), "MIT", "noise", None)
    dlib = table.TABLE.get("dlib-68-landmarks")
    monkeypatch.setattr(table, "TABLE", table.by_key([row, *([dlib] if dlib else [])]))
    (tmp_path / "c.yaml").write_text(
        "extract: {instances: {swin: {weights: tiny, architecture: small, resize: 64, crop: 64, inputs: {crop: crop}}}}"
    )
    stage = Swin(SwinConfig(weights="tiny", architecture="small", resize=64, crop=64))
    with pytest.raises(WeightsError, match=r"a run fetches nothing: .*`extract weights fetch tiny` gets them"):
        resolving.resolve("tiny", stage)
    offline = command("weights", "fetch", "tiny", "--offline")
    assert (offline.exit_code, site.requests) == (3, [])
    assert "not here, and --offline forbids fetching: tiny" in offline.stderr
    result = command("weights", "fetch", "tiny", "-c", tmp_path / "c.yaml")
    assert result.exit_code == 0, result.output
    assert f"1 fetched, 0 were here; pinned in {tmp_path / LOCK}\nnext: extract run" in result.stdout
    listed = json.loads(command("weights", "list", "--json").stdout)
    assert [entry["state"] for entry in listed] == ["present"]
    assert [entry["state"] for entry in json.loads(command("weights", "verify", "--json").stdout)] == ["ok"]

    path = tmp_path / "cache/weights/tiny"
    resolved = resolving.resolve("tiny", stage)
    stage.setup(context(Swin(SwinConfig(weights=str(path), architecture="small", resize=64, crop=64))))
    assert {name: values.numpy().tobytes() for name, values in resolved.tensors().items()} == {
        name: np.ascontiguousarray(values).tobytes() for name, values in tensors.items()
    }

    with (path / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(WeightsError, match=r"has sha256 \w+, expected by weights\.lock \w+; get it anew from"):
        resolving.resolve("tiny", stage)
    verified = command("weights", "verify")
    assert verified.exit_code == 3
    assert "not the pinned bytes: tiny" in verified.stderr


@pytest.mark.usefixtures("as_set")
def test_a_token_never_goes_over_plain_http(site, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    site.answers = [(404, {})]
    with pytest.raises(WeightsError, match="404"):
        get()
    assert site.requests
    assert all("Authorization" not in headers for _, _, headers in site.requests)


@pytest.mark.usefixtures("as_set")
@pytest.mark.parametrize(
    ("location", "goes"),
    [
        ("https://hub.example/other", True),
        ("https://hub.example:8443/other", False),
        ("https://storage.example/blob", False),
        ("https://hub.example.evil.example/x", False),
        ("https://hub.example@evil.example/x", False),
    ],
)
def test_a_token_goes_to_the_same_origin_alone(monkeypatch, location, goes):
    """Asked for at https://hub.example, and sent on from there."""
    monkeypatch.setenv("HF_TOKEN", "secret")
    carried = []

    def opens(request, timeout):
        del timeout
        carried.append(request.get_header("Authorization"))
        if len(carried) == 1:
            headers = email.message.Message()
            headers["Location"] = location
            raise urllib.error.HTTPError(request.full_url, 302, "Found", headers, io.BytesIO())
        raise _Sent

    monkeypatch.setattr(fetch._OPENER, "open", opens)
    row = WeightsRow("net", ("swin",), "small", f"{HUB}/some/net", (), "MIT", "noise", None)
    with pytest.raises(_Sent), fetch._opened("https://hub.example/api", row):
        pass
    assert carried == ["Bearer secret", "Bearer secret" if goes else None]


@pytest.mark.usefixtures("as_set")
@pytest.mark.parametrize("location", ["http://elsewhere.example/x", "ftp://elsewhere.example/x", "file:///etc/passwd"])
def test_a_redirect_leads_to_https_alone(site, location):
    site.answers = [(302, {"Location": location})]
    with pytest.raises(WeightsError, match=r"sends on to an address of (http|ftp|file), expected https"):
        get()


@pytest.mark.parametrize("code", [403, 404, 400])
def test_no_message_shows_what_signs_an_address(site, code):
    signed = "/blob/model.safetensors?X-Amz-Signature=abcdef&token=1#part"
    site.answers = [(302, {"Location": signed}), (code, {})]
    with pytest.raises(WeightsError) as refused:
        get()
    assert "Signature" not in str(refused.value)
    assert "token=" not in str(refused.value)
    assert fetch._shown("https://user:word@host.example:8/a/b?c=d#e") == "https://host.example:8/a/b"


def test_the_lock_is_looked_for_beside_config_and_store_and_nowhere_else(tmp_path, monkeypatch):
    for name in ("here", "experiment", "stores"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    config, store = tmp_path / "experiment/c.yaml", tmp_path / "stores/s.zarr"
    config.write_text("extract: {}")
    (tmp_path / "here" / LOCK).write_text("{}")  # of another experiment, where one happens to stand
    assert lock_file(str(config), store) == config.parent / LOCK
    assert lock_file("default", store) == store.parent / LOCK
    assert lock_file(None, None) == LOCK
    (store.parent / LOCK).write_text("{}")
    assert lock_file(str(config), store) == store.parent / LOCK
    (config.parent / LOCK).write_text("{}")
    assert lock_file(str(config), store) == config.parent / LOCK


def test_a_run_takes_the_lock_of_its_store_and_names_what_nobody_pinned(site, tmp_path, monkeypatch):
    tensors = dict(swin.random_weights("small"))
    site.files = {"model.safetensors": safetensors.numpy.save(tensors)}
    row = WeightsRow("tiny", ("swin",), "small", f"{HUB}/some/tiny", (), "MIT", "noise", None)
    monkeypatch.setattr(table, "TABLE", table.by_key([row, WHOLE_TABLE["dlib-68-landmarks"]]))
    (tmp_path / "experiment").mkdir()
    config = ExtractConfig(instances={"swin": {"weights": "tiny", "architecture": "small", "resize": 64, "crop": 64}})
    store = tmp_path / "experiment/s.zarr"
    clip = Clip(id="a", crops=draw_crops(tmp_path / "crops", [1, 2]), fps=25)
    (tmp_path / "cache/weights/tiny").mkdir(parents=True)
    (tmp_path / "cache/weights/tiny/model.safetensors").write_bytes(site.files["model.safetensors"])
    report = runner.run([clip], store, config, options=Options(stages=("swin",)))
    told = [notice.message for notice in report.warnings if "pinned" in notice.message]
    where = store.parent / LOCK
    command = f"extract weights fetch tiny --store {store.parent}/store.zarr"
    assert told == [f"weights that nobody has pinned: tiny; `{command}` pins them in {where}"]
    pin = {"tiny": {"sha256": "0" * 64, "files": {}}}
    LOCK.write_text(json.dumps(pin))  # where one happens to stand: not heeded
    assert runner.run([clip], store, config, options=Options(stages=("swin",))).exit_code == 0
    (store.parent / LOCK).write_text(json.dumps(pin))
    other = Clip(id="b", crops=draw_crops(tmp_path / "others", [1]), fps=25)  # what is finished needs no file
    with pytest.raises(WeightsError, match=rf"expected by {store.parent / LOCK} 0{{64}}"):
        runner.run([clip, other], store, config, options=Options(stages=("swin",)))
