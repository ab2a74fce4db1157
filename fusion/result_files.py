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


def write_result(result: Result, folder: str | Path, name: str, tasks: Sequence[Mapping[str, Any]] = ()) -> list[Path]:
    """Write ``name.json`` and ``name.csv``; each replaces the old file in one step.

    Metrics of tasks beside action units, ``tasks``, go into ``name_tasks.csv``. A table without rows is not written.

    Raises:
        MachineError: the disk is full, read-only or gone.
    """
    files = LocalFiles(Path(folder))
    files.write(f"{name}.json", (json.dumps(result.as_json(), indent=1, allow_nan=False) + "\n").encode())
    tables = {table: rows for table, rows in ((name, result.rows()), (f"{name}_tasks", tasks)) if rows}
    for table, rows in tables.items():
        files.write(f"{table}.csv", as_csv(rows).encode())
    return [files.path(f"{name}.json"), *(files.path(f"{table}.csv") for table in tables)]
