"""Fetching weights from servers of this machine that behave like a model hub, its storage, and a release page."""

import email.message
import errno
import hashlib
import io
import json
import threading
import urllib.error
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from typer.testing import CliRunner

from extract.cli import app
from extract.config import ExtractConfig
from extract.errors import MachineError, UsageError, WeightsError
from extract.inputs.manifest import Clip
from extract.models import swin
from extract.running import runner
from extract.running.selection import Options
from extract.stages.ghfeat import Ghfeat, GhfeatConfig
from extract.stages.swin import Swin, SwinConfig
from extract.weights import fetch, files, resolving, table
from extract.weights.lock import LOCK as WEIGHTS_LOCK
from extract.weights.lock import lock_file
from extract.weights.table import HUB, WeightsRow
from tests.contract import context
from tests.test_crops import draw_crops

COMMIT, LATER = "c" * 40, "d" * 40
LOCK = Path(WEIGHTS_LOCK)
WHOLE_TABLE = table.TABLE


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Site:
    """What the servers hold, and what they were asked."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.head = COMMIT
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.cut_after: list[int] = []
        """Bytes after which the storage closes the next answers."""
        self.answers: list[tuple[int, dict[str, str]]] = []
        """Codes that the next requests get instead."""
        self.ranges = True
        self.lie_about: dict[str, str] = {}
        """File -> sha256 that the hub claims."""

    def paths(self, server=None):
        return [path for name, path, _ in self.requests if server in {None, name}]


def handler(site, name, elsewhere):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            """Quiet."""

        def do_GET(self):
            site.requests.append((name, self.path, dict(self.headers)))
            if site.answers:
                code, headers = site.answers.pop(0)
                self.answer(code, b"", headers)
            elif self.path.startswith("/api/models/"):
                self.listing()
            elif "/resolve/" in self.path or self.path.startswith("/releases/"):
                self.answer(302, b"", {"Location": f"{elsewhere()}/blob/{self.path.rpartition('/')[2]}"})
            else:
                self.blob(self.path.rpartition("/")[2])

        def listing(self):
            revision = self.path.partition("/revision/")[2].partition("?")[0]
            siblings = [{"rfilename": "README.md", "size": 3}]
            for file, data in site.files.items():
                entry = {"rfilename": file, "size": len(data)}
                if file.endswith((".safetensors", ".bin")):
                    entry["lfs"] = {"sha256": site.lie_about.get(file, sha(data)), "size": len(data)}
                siblings.append(entry)
            body = {"sha": site.head if revision == "main" else revision, "siblings": siblings}
            self.answer(200, json.dumps(body).encode())

        def blob(self, file):
            if file not in site.files:
                self.answer(404, b"")
                return
            data = site.files[file]
            etag = f'"{sha(data)[:16]}"'
            asked = self.headers.get("Range")
            start = int(asked[6:].rstrip("-")) if asked and site.ranges else 0
            if self.headers.get("If-Range") not in {None, etag}:
                start = 0
            if start > len(data):
                self.answer(416, b"")
                return
            body = data[start:]
            headers = {"ETag": etag}
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            cut = site.cut_after.pop(0) if site.cut_after else None
            self.answer(206 if start else 200, body, headers, cut)

        def answer(self, code, body, headers=None, cut=None):
            self.send_response(code)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body if cut is None else body[:cut])
            if cut is not None:
                self.close_connection = True

    return Handler


@contextmanager
def serving(make):
    server = ThreadingHTTPServer(("127.0.0.1", 0), make)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A hub and its storage; the cache and weights.lock in an empty folder; no waiting."""
    site = Site()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AU_FUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    # The servers here speak plain http; what the real settings forbid has tests of its own at the end.
    monkeypatch.setattr(fetch, "REDIRECT_SCHEMES", {"http"})
    monkeypatch.setattr(fetch, "TOKEN_SCHEMES", {"http"})
    monkeypatch.setattr(fetch, "BACKOFF_S", 0.0)
    with (
        serving(handler(site, "storage", lambda: "")) as storage,
        serving(handler(site, "hub", lambda: storage)) as hub,
    ):
        monkeypatch.setenv("HF_ENDPOINT", hub)
        site.hub, site.storage = hub, storage
        row = WeightsRow(
            key="net", stages=("swin",), architecture="small", source=f"{HUB}/some/net", files=("config.json",),
            licence="MIT", trained_on="noise", sha256=None,
        )  # fmt: skip
        released = b"released" * 1000
        release = WeightsRow(
            key="page", stages=("swin",), architecture="small",
            source="https://example.org/releases", files=("net.pth",), licence="BSD-3-Clause",
            trained_on="noise", sha256=sha(released), download=f"{hub}/releases/v1/net.pth",
        )  # fmt: skip
        monkeypatch.setattr(table, "TABLE", table.by_key((row, release)))
        site.files = {
            "config.json": b"{}",
            "model.safetensors": bytes(range(256)) * 400,
            "pytorch_model.bin": b"not taken",
            "net.pth": released,
        }
        yield site


def get(*keys):
    told = []
    return fetch.fetch(keys or ("net",), say=told.append), "\n".join(told)


def lock():
    return json.loads(LOCK.read_text())


def test_a_hub_is_resolved_once_and_locked(site, tmp_path):
    fetched, told = get()
    assert fetched == ["net"]
    folder = tmp_path / "cache/weights/net"
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == [
        "config.json",
        "model.safetensors",
    ]
    assert (folder / "model.safetensors").read_bytes() == site.files["model.safetensors"]
    pin = lock()["net"]
    assert (pin["commit"], pin["sha256"]) == (COMMIT, files.path_sha256(folder))
    assert pin["files"]["model.safetensors"] == {"sha256": sha(site.files["model.safetensors"]), "size": 102_400}
    assert "licence MIT; trained on noise" in told
    assert site.paths("hub") == [
        "/api/models/some/net/revision/main?blobs=true",
        f"/some/net/resolve/{COMMIT}/config.json",
        f"/some/net/resolve/{COMMIT}/model.safetensors",
    ]
    assert site.paths("storage") == ["/blob/config.json", "/blob/model.safetensors"]


def test_what_is_here_is_not_asked_for_again(site):
    get()
    asked = len(site.requests)
    fetched, told = get()
    assert (fetched, len(site.requests)) == ([], asked)
    assert told == "net: is here, as pinned"


def test_a_branch_that_moved_changes_nothing(site, tmp_path):
    """On another machine with the same lock: the commit of then, not the newest."""
    get()
    before = lock()
    for path in (tmp_path / "cache/weights/net").iterdir():
        path.unlink()
    site.head, site.requests[:] = LATER, []
    get()
    assert lock() == before
    assert f"/api/models/some/net/revision/{COMMIT}?blobs=true" in site.paths("hub")
    assert not any(LATER in path for path in site.paths())


def test_a_commit_whose_bytes_changed_is_refused(site, tmp_path):
    get()
    for path in (tmp_path / "cache/weights/net").iterdir():
        path.unlink()
    site.files["config.json"] = b'{"other": 1}'
    with pytest.raises(WeightsError, match=r"config\.json gave sha256 \w{64}, expected \w{64}; nothing was installed"):
        get()
    assert not (tmp_path / "cache/weights/net/config.json").exists()


def test_a_hash_that_the_hub_announced_must_be_that_of_the_bytes(site, tmp_path):
    site.lie_about["model.safetensors"] = "0" * 64
    with pytest.raises(WeightsError, match=rf"expected {'0' * 64}; nothing was installed") as refused:
        get()
    assert refused.value.exit_code == 3
    assert not LOCK.exists()
    assert not (tmp_path / "cache/weights/net/model.safetensors").exists()
    assert not (tmp_path / "cache/weights/net/.model.safetensors.part").exists()


def test_a_token_goes_to_the_hub_and_no_further(site, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    get()
    seen = {
        name: [headers.get("Authorization") for n, _, headers in site.requests if n == name]
        for name in ("hub", "storage")
    }
    assert set(seen["hub"]) == {"Bearer secret"}
    assert set(seen["storage"]) == {None}


def test_a_release_page_is_followed_and_checked(site, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    get("page")
    assert (tmp_path / "cache/weights/page/net.pth").read_bytes() == site.files["net.pth"]
    assert site.paths() == ["/releases/v1/net.pth", "/blob/net.pth"]
    assert all("Authorization" not in headers for _, _, headers in site.requests)
    assert lock()["page"]["commit"] is None


def test_a_release_of_other_bytes_is_not_installed(site, tmp_path):
    site.files["net.pth"] = b"evil"
    with pytest.raises(WeightsError, match=rf"gave sha256 {sha(b'evil')}, expected"):
        get("page")
    assert not (tmp_path / "cache/weights/page/net.pth").exists()


def test_a_cut_download_goes_on_where_it_was(site):
    site.cut_after = [10**9, 30_000, 50_000]  # config.json whole, then the tensors twice cut
    _, told = get()
    asked = [headers.get("Range") for name, path, headers in site.requests if path == "/blob/model.safetensors"]
    assert asked == [None, "bytes=30000-", "bytes=80000-"]
    assert "again from byte 80000" in told
    assert lock()["net"]["files"]["model.safetensors"]["sha256"] == sha(site.files["model.safetensors"])


def test_a_command_that_gave_up_is_continued_by_the_next(site, tmp_path):
    site.cut_after = [10**9] + [10_000] * fetch.TRIES
    with pytest.raises(
        WeightsError, match=r"broke off 4 times .*; 40000 bytes are kept: run the same command to contin"
    ):
        get()
    assert (tmp_path / "cache/weights/net/.model.safetensors.part").stat().st_size == 40_000
    site.requests.clear()
    get()
    assert [headers.get("Range") for _, path, headers in site.requests if path == "/blob/model.safetensors"] == [
        "bytes=40000-"
    ]


def test_a_file_that_changed_meanwhile_begins_anew(site):
    """The ETag of what is here is not the server's: the whole file comes, not a mixture."""
    site.cut_after = [10**9] + [10_000] * fetch.TRIES
    with pytest.raises(WeightsError, match="broke off"):
        get()
    site.files["model.safetensors"] = b"newer" * 9_000
    get()
    assert lock()["net"]["files"]["model.safetensors"]["sha256"] == sha(b"newer" * 9_000)


def test_a_server_without_ranges_begins_anew(site):
    site.ranges, site.cut_after = False, [10**9, 30_000]
    get()
    assert lock()["net"]["files"]["model.safetensors"]["size"] == 102_400


def test_more_than_the_file_has_begins_anew(site, tmp_path):
    folder = tmp_path / "cache/weights/net"
    folder.mkdir(parents=True)
    (folder / ".model.safetensors.part").write_bytes(b"x" * 200_000)
    (folder / ".model.safetensors.part.etag").write_text(f'"{sha(site.files["model.safetensors"])[:16]}"')
    get()
    assert (folder / "model.safetensors").read_bytes() == site.files["model.safetensors"]


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


def test_a_busy_server_is_asked_again(site, monkeypatch):
    slept = []
    monkeypatch.setattr(fetch.time, "sleep", slept.append)
    site.answers = [(429, {"Retry-After": "7"}), (503, {}), (429, {"Retry-After": "9999"})]
    get()
    assert slept == [7.0, 0.0, fetch.LONGEST_WAIT_S]
    site.answers = [(500, {})] * fetch.TRIES
    with pytest.raises(WeightsError, match="the server answered 500"):
        get("page")


def test_endless_redirects_end(site):
    site.answers = [(302, {"Location": "/again"})] * 20
    with pytest.raises(WeightsError, match="the server answered 302"):
        get()


@pytest.mark.usefixtures("site")
def test_no_network_is_told_with_the_way_by_hand(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        WeightsError,
        match=r"cannot reach 127\.0\.0\.1:9 \(.*refused\); is this machine offline\? Else put config\.json",
    ):
        get()


def test_a_page_that_is_no_hub_is_told(site):
    site.files.pop("config.json")
    with pytest.raises(WeightsError, match=r"does not list config\.json; was the repository changed"):
        get()
    site.answers = [(200, {})]
    with pytest.raises(WeightsError, match="gave no JSON object; is HF_ENDPOINT a model hub"):
        get()


@pytest.mark.usefixtures("site")
def test_a_full_disk_stops_the_machine(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fetch.os, "fsync", full)
    with pytest.raises(MachineError, match="No space left on device") as refused:
        get()
    assert refused.value.exit_code == 5


def test_two_at_once_fetch_once(site, tmp_path):
    results = []
    threads = [threading.Thread(target=lambda: results.append(get())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert site.paths("storage").count("/blob/model.safetensors") == 1
    assert (tmp_path / "cache/weights/net/model.safetensors").read_bytes() == site.files["model.safetensors"]
    assert set(lock()) == {"net"}


def test_files_put_by_hand_are_pinned_as_they_are(site, tmp_path):
    folder = tmp_path / "cache/weights/net"
    folder.mkdir(parents=True)
    for name in ("config.json", "pytorch_model.bin"):
        (folder / name).write_bytes(site.files[name])
    fetched, told = get()
    assert (fetched, site.requests) == ([], [])
    assert "put by hand; pinned in weights.lock as it is" in told
    assert lock()["net"]["commit"] is None
    (folder / "config.json").write_bytes(b"{ }")
    with pytest.raises(WeightsError, match=r"pinned is \w+; remove it and run `extract weights fetch net` again"):
        get()


@pytest.mark.usefixtures("site")
def test_unknown_keys_and_packages_are_refused(monkeypatch):
    with pytest.raises(UsageError, match="weights 'nte': no such key; `extract weights list` shows them"):
        get("nte")
    row = WeightsRow(
        "packed", ("swin",), None, "a package", ("x",), "MIT", "noise", None, package="no_such_package_here"
    )
    monkeypatch.setattr(table, "TABLE", table.by_key((row,)))
    with pytest.raises(UsageError, match="come with the package no-such-package-here: install that"):
        get("packed")


@pytest.mark.usefixtures("site")
def test_what_no_program_can_fetch_is_left_to_the_user(tmp_path, monkeypatch):
    """Everything else is fetched first; once the file is there it is pinned as it is."""
    page = WeightsRow(
        "page", ("ghfeat",), "small", "https://example.org/paper", ("e.pkl",), "none given", "noise", None, by_hand=True
    )
    monkeypatch.setattr(table, "TABLE", table.TABLE | {"page": page})
    place = tmp_path / "cache" / "weights" / "page" / "e.pkl"
    with pytest.raises(WeightsError) as caught:
        get("page", "net")
    told = str(caught.value)
    assert "net fetched; left to you:\npage: no program can fetch them: get e.pkl from the page" in told
    assert f"https://example.org/paper (licence: none given) as {place}" in told
    assert told.endswith("then run the same command again")
    stage = Ghfeat(GhfeatConfig(weights="page", architecture="small"))
    with pytest.raises(
        WeightsError, match=r"there is no .*e\.pkl; no program can fetch them: .*--set ghfeat.weights=PATH"
    ):
        resolving.resolve("page", stage, cache=tmp_path / "cache")
    place.parent.mkdir(parents=True)
    place.write_bytes(b"a pickle")
    assert "page: is here, put by hand; pinned in weights.lock as it is" in get("page")[1]
    assert resolving.resolve("page", stage, cache=tmp_path / "cache").path == place


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


def command(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


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
    assert "not the bytes that the table" in verified.stderr


# ---- what the real settings forbid ----------------------------------------------------------------------------------


@pytest.fixture
def as_set(site, monkeypatch):
    """The settings as users have them."""
    del site
    monkeypatch.setattr(fetch, "REDIRECT_SCHEMES", frozenset({"https"}))
    monkeypatch.setattr(fetch, "TOKEN_SCHEMES", frozenset({"https"}))


@pytest.mark.usefixtures("as_set")
def test_a_token_never_goes_over_plain_http(site, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    site.answers = [(404, {})]
    with pytest.raises(WeightsError, match="404"):
        get()
    assert site.requests
    assert all("Authorization" not in headers for _, _, headers in site.requests)


class _Sent(Exception):
    """What a request would have carried."""


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


# ---- where the lock lies --------------------------------------------------------------------------------------------


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
    assert told == [f"weights that nobody has pinned: tiny; `extract weights fetch tiny` pins them in {where}"]
    pin = {"tiny": {"sha256": "0" * 64, "files": {}}}
    LOCK.write_text(json.dumps(pin))  # where one happens to stand: not heeded
    assert runner.run([clip], store, config, options=Options(stages=("swin",))).exit_code == 0
    (store.parent / LOCK).write_text(json.dumps(pin))
    other = Clip(id="b", crops=draw_crops(tmp_path / "others", [1]), fps=25)  # what is finished needs no file
    with pytest.raises(WeightsError, match=rf"expected by {store.parent / LOCK} 0{{64}}"):
        runner.run([clip, other], store, config, options=Options(stages=("swin",)))
