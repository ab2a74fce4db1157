"""Where the features of a split lie while they are used: on the GPU, in memory, or in one packed file.

The place is chosen from what is free and changes no value: a batch is gathered where its table lies.
"""

import logging
import mmap
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from extract.errors import ConfigError, MachineError

logger = logging.getLogger("fusion")

Place: TypeAlias = Literal["gpu", "memory", "file"]
SHARE = 0.8
"""Part of the free memory that tables may fill; the rest is for the network, batches and the page cache."""
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Home:
    """One place for tables, and why it was chosen."""

    place: Place
    device: torch.device
    """Of the tables."""
    reason: str

    def allocate(self, rows: int, size: int, dtype: np.dtype[Any]) -> Tensor:
        """An uninitialised table [rows, size].

        Raises:
            MachineError: the disk or the memory is too small.
        """
        kind = _torch_type(dtype)
        try:
            if self.place == "file":
                return _in_file(rows, size, dtype)
            return torch.empty((rows, size), dtype=kind, device=self.device)
        except (MemoryError, RuntimeError) as error:  # torch's out-of-memory errors are RuntimeErrors
            gigabytes = rows * size * dtype.itemsize / 1e9
            raise MachineError(
                f"{gigabytes:.1f} GB of features do not fit ({self.place}: {str(error).splitlines()[0]}); "
                "use --set training.tables=file"
            ) from error


def choose_home(wanted: str, num_bytes: int, device: torch.device) -> Home:
    """The fastest place that ``num_bytes`` of tables fit in, or the one that is ``wanted``.

    Raises:
        ConfigError: the GPU was asked for, and the fit runs on another device.
    """
    cpu = torch.device("cpu")
    needed = f"{num_bytes / 1e9:.1f} GB"
    if wanted != "auto":
        if wanted == "gpu" and device.type != "cuda":
            raise ConfigError(
                f"fusion.training.tables is {wanted}, and the device is {device}: memory, file or auto is meant"
            )
        place: Place = wanted  # type: ignore[assignment]  # checked by the config
        return Home(place, device if place == "gpu" else cpu, f"{needed}, as training.tables says")
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if num_bytes <= SHARE * free:
            return Home("gpu", device, f"{needed}, {free / 1e9:.1f} GB free there")
    free = free_memory()
    reason = f"{needed}, {free / 1e9:.1f} GB of memory free"
    if num_bytes <= SHARE * free:
        return Home("memory", cpu, reason)
    return Home("file", cpu, reason)


def free_memory() -> int:
    """Bytes that this process may still take: of the machine, and of its container if that has a limit."""
    with Path("/proc/meminfo").open() as lines:
        fields = dict(line.split(":", 1) for line in lines)
    free = int(fields["MemAvailable"].split()[0]) * 1024
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
    except OSError:
        return free  # no container, or one of another kind
    return free if limit == "max" else max(0, min(free, int(limit) - used))


def _in_file(rows: int, size: int, dtype: np.dtype[Any]) -> Tensor:
    """A table in a file without a name: the system frees it when the table, or the process, is gone."""
    num_bytes = rows * size * dtype.itemsize
    if not num_bytes:
        return torch.empty((rows, size), dtype=_torch_type(dtype))
    folder = tempfile.gettempdir()
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            # Taken now: a page of a sparse file that finds the disk full later kills the process (SIGBUS).
            os.posix_fallocate(file.fileno(), 0, num_bytes)
        except OSError as error:
            raise MachineError(
                f"{folder}: no room for {num_bytes / 1e9:.1f} GB of features ({error.strerror}); "
                "set TMPDIR to a larger disk"
            ) from error
        mapped = mmap.mmap(file.fileno(), num_bytes)
    values: NDArray[Any] = np.frombuffer(mapped, dtype=dtype).reshape(rows, size)
    return torch.from_numpy(values)


def _torch_type(dtype: np.dtype[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype=dtype)).dtype
