"""Durable files below one folder: a write is on the disk completely or not at all."""

import contextlib
import errno
import fcntl
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

from extract.errors import ForeignError, MachineError, UsageError

TEMPORARY = ".partial"
"""Suffix of files that are not finished; swept by the next writer."""


IN_THE_WAY = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ELOOP}
"""Errors for a file in the place of a folder, or the reverse: the disk is not to blame."""

NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}
"""Errors of file systems without hard links (exFAT, FUSE drivers, some shares)."""


class LocalFiles:
    """A folder of a local or mounted file system. Keys are paths below it, with ``/``.

    A key never leads out of the folder: no empty part, ``.`` or ``..``, and no symbolic link on the way. The folder
    itself may be one.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, key: str) -> Path:
        """Where ``key`` lies; ``""`` is the folder itself.

        Raises:
            UsageError: it would lead out of the folder by its letters.
            ForeignError: a symbolic link stands on the way.
        """
        parts = key.split("/") if key else []
        if any(part in {"", ".", ".."} or "\0" in part for part in parts):
            raise UsageError(f"{key!r} names nothing below {self.root}")
        at = self.root
        for part in parts:
            at /= part
            if at.is_symlink():
                raise ForeignError(f"{at} is a symbolic link, and none is followed here: put the folder itself there")
        return at

    def write(self, key: str, data: bytes | memoryview) -> None:
        """Replace ``key`` by ``data``: written to a temporary name, fsynced, renamed, the folder fsynced.

        After a crash at any moment ``key`` is the old file, or the new one, or absent if there was none.

        Raises:
            MachineError: the disk is full, read-only or gone.
        """
        target = self.path(key)
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
        target = self.path(key)
        if os.path.lexists(target):  # nothing is written then, so nothing is left behind by a kill
            return False
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
        """Content of ``key``; None if it does not exist."""
        path = self.path(key)
        with self._machine(f"cannot read {path}"):
            try:
                return path.read_bytes()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return None

    def delete(self, key: str) -> None:
        """Remove a file, if it exists."""
        target = self.path(key)
        with self._machine(f"cannot delete {target}"):
            try:
                target.unlink()
                self._sync_folder(target.parent)
            except FileNotFoundError:
                return

    def delete_folder(self, key: str, names: re.Pattern[str], last: str) -> None:
        """Remove a folder of which every entry is a file with one of ``names``, the file ``last`` as the last one.

        There is no other way to remove a folder here: nothing that somebody put there is ever lost.

        Raises:
            ForeignError: it holds something else; nothing is removed.
        """
        target = self.path(key)
        entries = self._scan(key)
        for entry in entries:
            known = names.fullmatch(entry.name) or is_temporary(entry.name)
            if not known or not entry.is_file(follow_symlinks=False):
                raise ForeignError(f"{entry.path} is none of ours: {target} is not removed; move it elsewhere")
        with self._machine(f"cannot delete {target}"):
            for entry in sorted(entries, key=lambda entry: entry.name == last):
                os.unlink(entry.path)
            with contextlib.suppress(FileNotFoundError):
                target.rmdir()
                self._sync_folder(target.parent)

    def folders(self, key: str = "") -> list[str]:
        """Names of the folders directly below ``key``, sorted, without links to folders."""
        return sorted(entry.name for entry in self._scan(key) if entry.is_dir(follow_symlinks=False))

    def names(self, key: str = "") -> list[str]:
        """Names of the files directly below ``key``, sorted, without links and unfinished files."""
        files = (entry.name for entry in self._scan(key) if entry.is_file(follow_symlinks=False))
        return sorted(name for name in files if not is_temporary(name))

    def sweep(self, key: str) -> int:
        """Delete the unfinished files that a killed writer left below ``key``, which must be the caller's alone.

        Returns how many.
        """
        swept, top = 0, self.path(key)
        with self._machine(f"cannot sweep {top}"):
            for folder, _, names in os.walk(top):
                for name in filter(is_temporary, names):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(os.path.join(folder, name))
                        swept += 1
        return swept

    def write_locked(self, key: str, data: bytes) -> None:
        """``write`` a file that several callers replace, one after another, without what killed ones left of theirs."""
        target = self.path(key)
        with self.locked(key.rpartition("/")[0]) as alone:
            for entry in self._scan(key.rpartition("/")[0]) if alone else ():
                if entry.name.startswith(f".{target.name}.") and is_temporary(entry.name):
                    with contextlib.suppress(OSError):
                        os.unlink(entry.path)
            self.write(key, data)

    @contextlib.contextmanager
    def locked(self, key: str) -> Iterator[bool]:
        """Lock the folder ``key`` against other callers of this; the system releases the lock if the process dies.

        Gives whether there is a lock: some network file systems have none.
        """
        folder = self.path(key)
        with self._machine(f"cannot lock {folder}"):
            self._make_folder(folder)
            handle = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
            except OSError as error:
                os.close(handle)
                # Exclusive creation still guards the usual case.
                if error.errno not in {errno.EBADF, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL}:
                    raise
                handle = -1
        try:
            yield handle >= 0
        finally:
            if handle >= 0:
                os.close(handle)

    def _scan(self, key: str) -> list[os.DirEntry[str]]:
        path = self.path(key)
        with self._machine(f"cannot list {path}"):
            try:
                with os.scandir(path) as entries:
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
            if error.errno in IN_THE_WAY:
                remedy = "something else stands where a file or folder of ours belongs: move it elsewhere"
                raise ForeignError(f"{doing}: {error.strerror}; {remedy}") from error
            remedy = "nothing finished is lost; mend the disk and run the same command again"
            raise MachineError(f"{doing}: {error.strerror or error}; {remedy}") from error


def is_temporary(name: str) -> bool:
    """Whether a file name is one of an unfinished write."""
    return name.startswith(".") and name.endswith(TEMPORARY)
