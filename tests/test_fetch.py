"""Fetching weights from servers of this machine that behave like a model hub."""

import errno
import json
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from extract.cli import app
from extract.errors import MachineError, UsageError, WeightsError
from extract.stages.ghfeat import Ghfeat, GhfeatConfig
from extract.weights import fetch, files, resolving, table
from extract.weights.table import WeightsRow
from tests.hub import COMMIT, LATER, LOCK, get, lock, sha


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


def test_a_busy_server_is_asked_again(site, monkeypatch):
    slept = []
    monkeypatch.setattr(fetch.time, "sleep", slept.append)
    site.answers = [(429, {"Retry-After": "7"}), (503, {}), (429, {"Retry-After": "9999"})]
    get()
    assert slept == [7.0, 0.0, fetch.LONGEST_WAIT_S]
    site.answers = [(500, {})] * fetch.TRIES
    with pytest.raises(WeightsError, match="the server answered 500"):
        get("page")


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


def test_the_lock_of_a_store_that_is_not_there_yet(site, tmp_path):
    ended = CliRunner().invoke(app, ["weights", "fetch", "net", "--store", "new/deep/store.zarr"])
    assert ended.exit_code == 0, ended.output
    assert "1 fetched, 0 were here; pinned in new/deep/weights.lock" in ended.stdout
    assert set(json.loads((tmp_path / "new/deep/weights.lock").read_text())) == {"net"}
    assert not LOCK.exists()
    assert site.paths("storage")


def test_a_lock_that_cannot_be_written_is_seen_before_any_download(site, tmp_path, monkeypatch):
    (tmp_path / "taken").write_bytes(b"")
    for store in ("taken/store.zarr", "taken/deep/store.zarr"):
        ended = CliRunner().invoke(app, ["weights", "fetch", "net", "--store", store])
        assert ended.exit_code == 2, ended.output
        assert "a file stands where a folder belongs; name another --store" in ended.stderr

    def refuses(path, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuses)
    ended = CliRunner().invoke(app, ["weights", "fetch", "net", "--store", "new/store.zarr"])
    assert ended.exit_code == 5, ended.output
    assert "cannot write new/weights.lock: Permission denied" in ended.stderr
    assert site.requests == []


@pytest.mark.usefixtures("site")
def test_unknown_keys_and_packages_are_refused(monkeypatch):
    with pytest.raises(UsageError, match="weights 'nte': no such key; did you mean 'net'"):
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
