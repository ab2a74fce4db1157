"""Durable files below one folder: what is written is on the disk, whole, or not there at all."""

import contextlib
import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from extract.errors import MachineError

TEMPORARY = ".partial"
"""Suffix of files that are not finished; swept by the next writer."""


NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}
"""What file systems without hard links say to one (exFAT, FUSE drivers, some shares)."""


class LocalFiles:
    """A folder of a local or mounted file system. Keys are paths below it, with ``/``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, key: str, data: bytes | memoryview) -> None:
        """Replace ``key`` by ``data``: written to a temporary name, fsynced, renamed, the folder fsynced.

        After a crash at any moment ``key`` is the old file, or the new one, or absent if there was none.

        Raises:
            MachineError: the disk is full, read-only or gone.
        """
        target = self.root / key
        temporary = target.parent / f".{target.name}.{uuid.uuid4().hex}{TEMPORARY}"
        with self._machine(f"cannot write {target}"):
            self._make_folder(target.parent)
            try:
                self._write_and_sync(temporary, data)
                os.replace(temporary, target)
            except BaseException:
                with contextlib.suppress(OSError):
                    temporary.unlink()
                raise
            self._sync_folder(target.parent)

    def create(self, key: str, data: bytes) -> bool:
        """Write ``key`` only if it does not exist; False if it does. Of several callers one gets True."""
        target = self.root / key
        temporary = target.parent / f".{target.name}.{uuid.uuid4().hex}{TEMPORARY}"
        with self._machine(f"cannot write {target}"):
            self._make_folder(target.parent)
            try:
                self._write_and_sync(temporary, data)
                self._link(temporary, target, data)
            except FileExistsError:
                return False
            finally:
                with contextlib.suppress(OSError):
                    temporary.unlink()
            self._sync_folder(target.parent)
        return True

    def read(self, key: str) -> bytes | None:
        """Content of ``key``; None if it is not there."""
        with self._machine(f"cannot read {self.root / key}"):
            try:
                return (self.root / key).read_bytes()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return None

    def delete(self, key: str) -> None:
        """Remove a file, or a folder with all below it. Nothing happens if it is not there."""
        target = self.root / key
        with self._machine(f"cannot delete {target}"):
            try:
                if target.is_dir():
                    shutil.rmtree(target)
                else:
                    target.unlink(missing_ok=True)
                self._sync_folder(target.parent)
            except FileNotFoundError:
                return

    def folders(self, key: str = "") -> list[str]:
        """Names of the folders directly below ``key``, sorted."""
        return sorted(entry.name for entry in self._scan(key) if entry.is_dir())

    def names(self, key: str = "") -> list[str]:
        """Names of the files directly below ``key``, sorted; unfinished ones left out."""
        return sorted(entry.name for entry in self._scan(key) if entry.is_file() and not is_temporary(entry.name))

    def sweep(self, key: str) -> int:
        """Delete the unfinished files that a killed writer left below ``key``, which must be the caller's alone.

        Returns how many.
        """
        swept = 0
        with self._machine(f"cannot sweep {self.root / key}"):
            for folder, _, names in os.walk(self.root / key):
                for name in filter(is_temporary, names):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(os.path.join(folder, name))
                        swept += 1
        return swept

    @contextlib.contextmanager
    def locked(self, key: str) -> Iterator[None]:
        """Hold the folder ``key`` against other processes that also ask for it here; freed by the system on death."""
        with self._machine(f"cannot lock {self.root / key}"):
            self._make_folder(self.root / key)
            handle = os.open(self.root / key, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
            except OSError as error:
                os.close(handle)
                # Some network file systems lock no folders; exclusive creation still guards the usual case.
                if error.errno not in {errno.EBADF, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL}:
                    raise
                handle = -1
        try:
            yield
        finally:
            if handle >= 0:
                os.close(handle)

    def _scan(self, key: str) -> list[os.DirEntry[str]]:
        with self._machine(f"cannot list {self.root / key}"):
            try:
                with os.scandir(self.root / key) as entries:
                    return list(entries)
            except (FileNotFoundError, NotADirectoryError):
                return []

    def _link(self, temporary: Path, target: Path, data: bytes) -> None:
        """Give a finished file its name unless it is taken (FileExistsError)."""
        try:
            os.link(temporary, target)  # exclusive, and shows the whole content at once
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            self._write_and_sync(target, data)  # a file system without links (exFAT, some shares)

    @staticmethod
    def _write_and_sync(path: Path, data: bytes | memoryview) -> None:
        with open(path, "xb", buffering=0) as file:
            view = memoryview(data).cast("B")
            while view:
                view = view[file.write(view) :]
            os.fsync(file.fileno())

    def _make_folder(self, folder: Path) -> None:
        """mkdir -p, each new entry fsynced in its parent: a file is not durable in a folder that is not."""
        if folder.is_dir():
            return
        self._make_folder(folder.parent)
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
        self._sync_folder(folder.parent)

    @staticmethod
    def _sync_folder(folder: Path) -> None:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.ENOTSUP}:  # file systems that sync no folders
                raise
        finally:
            os.close(handle)

    @staticmethod
    @contextlib.contextmanager
    def _machine(doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            remedy = "nothing finished is lost; mend the disk and run the same command again"
            raise MachineError(f"{doing}: {error.strerror or error}; {remedy}") from error


def is_temporary(name: str) -> bool:
    """Whether a file name is one of an unfinished write."""
    return name.startswith(".") and name.endswith(TEMPORARY)
