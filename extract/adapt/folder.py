"""The folder that ``extract adapt`` writes, in which an interrupted run continues.

::

    FOLDER/adapt.json       what it was begun with; a continued run must be the same
           sound/           the clips' sound, decoded (removed at the end)
           quantiser.npz    the clusters;  labels/  each clip's, step by step
           checkpoint.pt    the state of training (removed at the end)
           log.csv          a line per look at val; events/ the same for TensorBoard
           best/  last/     what ``weights:`` takes; made at the end
           metrics.json     the result; written last

Every file is replaced by a rename: a crash leaves the previous version.
"""

import contextlib
import csv
import io
import json
import os
import pickle
import shutil
import uuid
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from extract.errors import CorruptError, MachineError, StaleError, UsageError
from extract.files import TEMPORARY, LocalFiles

BEGUN, CHECKPOINT, LOG, EVENTS, METRICS = "adapt.json", "checkpoint.pt", "log.csv", "events", "metrics.json"


class Folder:
    """One adaptation."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._files = LocalFiles(self.path)

    @property
    def finished(self) -> bool:
        return (self.path / METRICS).is_file()

    def check_ours(self) -> None:
        """Refuse a path that holds something else, or a result.

        Raises:
            UsageError: see above.
        """
        if self.finished:
            raise UsageError(f"{self.path} is finished; name another folder with -o, or remove it")
        begun = (self.path / BEGUN).is_file()
        if self.path.exists() and not begun and (not self.path.is_dir() or any(self.path.iterdir())):
            raise UsageError(f"{self.path}: holds something else (no {BEGUN}); name another folder with -o")

    def begin(self, facts: Mapping[str, Any]) -> bool:
        """Note what decides the values; True if a folder is continued that was begun with the very same.

        Raises:
            StaleError: with something else; the message names the first difference.
        """
        begun = self.read_json(BEGUN)
        if begun is None:
            self.write_json(BEGUN, facts)
            return False
        wanted = json.loads(json.dumps(facts))
        difference = first_difference(begun, wanted)
        if difference is not None:
            raise StaleError(
                f"{self.path} was begun with something else ({difference}); give the same config, weights, manifest "
                "and device to continue it, or name another folder with -o"
            )
        return True

    # ---- files -------------------------------------------------------------------------------------------------

    def write_by(self, key: str, write: Callable[[BinaryIO], None]) -> None:
        """Replace ``key`` by what ``write`` puts into a file, however much: it never lies in memory whole.

        Raises:
            MachineError: the disk is full, read-only or gone.
        """
        target = self._files.path(key)
        temporary = target.parent / f".{target.name}.{uuid.uuid4().hex}{TEMPORARY}"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("xb") as file:
                    write(file)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, target)
                _sync(target.parent)
            except BaseException:
                with contextlib.suppress(OSError):
                    temporary.unlink()
                raise
        except OSError as error:
            raise MachineError(
                f"cannot write {target}: {error.strerror or error}; nothing finished is lost; mend the disk and run "
                "the same command again"
            ) from error

    def write_json(self, key: str, values: Mapping[str, Any]) -> None:
        """Replace a JSON file."""
        self._files.write(key, (json.dumps(values, indent=1) + "\n").encode())

    def read_json(self, key: str) -> dict[str, Any] | None:
        """A JSON file; None if there is none.

        Raises:
            CorruptError: it is damaged.
        """
        data = self._files.read(key)
        if data is None:
            return None
        try:
            found = json.loads(data)
        except ValueError as error:
            raise self._damaged(key, error) from None
        if not isinstance(found, dict):
            raise self._damaged(key, "no JSON object")
        return found

    def write_log(self, history: Sequence[Mapping[str, Any]]) -> None:
        """One line per look at ``val``. The file is replaced whole: a resumed run may repeat a look."""
        table = io.StringIO()
        writer = csv.DictWriter(table, list(history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        self._files.write(LOG, table.getvalue().encode())

    def sweep(self) -> None:
        """Remove the unfinished files that a killed run left."""
        self._files.sweep("")

    def remove(self, *keys: str) -> None:
        """Remove files and folders that the result does not need."""
        for key in keys:
            path = self._files.path(key)
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                self._files.delete(key)

    # ---- the state of training ---------------------------------------------------------------------------------

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace the state of training."""
        import torch

        self.write_by(CHECKPOINT, lambda file: torch.save(dict(state), file))

    def checkpoint(self) -> dict[str, Any] | None:
        """The state of training, its tensors on the CPU; None if none was written yet.

        Raises:
            CorruptError: the file is damaged.
        """
        import torch

        path = self.path / CHECKPOINT
        if not path.is_file():
            return None
        try:
            _check_sums(path)
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (zipfile.BadZipFile, RuntimeError, pickle.UnpicklingError) as error:
            raise self._damaged(CHECKPOINT, error) from error
        return state

    def _damaged(self, key: str, error: object) -> CorruptError:
        reason = str(error).splitlines()[0]
        return CorruptError(f"{self.path / key}: damaged ({reason}); remove {self.path} and adapt anew")


def _check_sums(path: Path) -> None:
    """Compare the checksums that torch.save writes; torch.load ignores them."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"bad checksum of {damaged}")


def first_difference(begun: Any, wanted: Any, at: str = "") -> str | None:  # noqa: ANN401 - JSON values
    """The first place where two JSON values differ, in words; None if they are equal."""
    if isinstance(begun, dict) and isinstance(wanted, dict):
        for key in sorted({*begun, *wanted}):
            where = f"{at}.{key}" if at else key
            found = first_difference(begun.get(key), wanted.get(key), where)
            if found is not None:
                return found
        return None
    return None if begun == wanted else f"{at}: {begun!r:.60} -> {wanted!r:.60}"


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
