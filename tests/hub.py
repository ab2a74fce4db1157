"""Servers of this machine that behave like a model hub, its storage, and a release page."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from extract.weights import fetch, table
from extract.weights.lock import LOCK as WEIGHTS_LOCK
from extract.weights.table import HUB, WeightsRow

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
