"""Curves for TensorBoard: one event file per process in the folder ``events/``."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Curves:
    """Writes the numbers of each look; the file is made with the first one.

    An adaptation that was interrupted and continued has several files, which TensorBoard shows as one curve.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def write(self, entry: Mapping[str, Any]) -> None:
        """Add one entry of the history; its place on the axis is ``step``."""
        from tensorboardX import SummaryWriter

        if self._writer is None:
            self._writer = SummaryWriter(str(self._folder))
        for name, value in entry.items():
            if name not in {"epoch", "step"} and value is not None and math.isfinite(value):
                self._writer.add_scalar(name, value, entry["step"])
        self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()
