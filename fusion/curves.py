"""Training curves for TensorBoard: one event file per process in the run's folder ``events/``."""

import math
from pathlib import Path
from typing import Any


class Curves:
    """Writes the numbers of each epoch; the file is made with the first one.

    A run that was interrupted and continued has several files, which TensorBoard shows as one curve.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def write(self, entry: dict[str, Any]) -> None:
        """Add one epoch's entry of the history; its step on the axis is ``steps``."""
        from tensorboardX import SummaryWriter

        if self._writer is None:
            self._writer = SummaryWriter(str(self._folder))
        for name, value in entry.items():
            if name not in {"epoch", "steps"} and value is not None and math.isfinite(value):
                self._writer.add_scalar(name, value, entry["steps"])
        self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()
