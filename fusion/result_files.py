"""Files of a result: all of it as JSON, its table as CSV."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from extract.files import LocalFiles
from fusion.text_tables import as_csv


class Result(Protocol):
    """What every analysis gives."""

    def as_json(self) -> dict[str, Any]:
        """All of it as plain values."""

    def rows(self) -> Sequence[Mapping[str, Any]]:
        """Its table: rows with the same keys."""

    def text(self, verbose: bool = False) -> str:
        """What a command prints, at most 100 columns wide."""


def write_result(result: Result, folder: str | Path, name: str) -> list[Path]:
    """Write ``name.json`` and ``name.csv``; each replaces the old file in one step.

    Raises:
        MachineError: the disk is full, read-only or gone.
    """
    files = LocalFiles(Path(folder))
    files.write(f"{name}.json", (json.dumps(result.as_json(), indent=1, allow_nan=False) + "\n").encode())
    files.write(f"{name}.csv", as_csv(result.rows()).encode())
    return [files.path(f"{name}.json"), files.path(f"{name}.csv")]
