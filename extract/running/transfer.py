"""Between host and device: page-locked memory, copies that nobody waits for, and the one wait for what is fetched.

Called in the thread that launches, but for ``Fetch.wait``.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from extract.models.uploads import uploaded

Values = Tensor | list[Tensor]


def upload(values: Values, device: torch.device) -> Values:
    """Rows to the device: one copy where they are of one size."""
    if isinstance(values, Tensor):
        return _pinned(values).to(device, non_blocking=True)
    ready = _of_one_size(values)
    if isinstance(ready, Tensor):
        return list(_pinned(ready).to(device, non_blocking=True).unbind())
    return [_pinned(row).to(device, non_blocking=True) for row in ready]


def index(at: NDArray[Any], device: torch.device) -> Tensor:
    """Row numbers on the device."""
    return uploaded(at.astype(np.int64, copy=False), device)


class Fetch:
    """Rows on their way to the host, on a stream of their own; ``wait`` may be called in another thread."""

    def __init__(self, values: Mapping[str, Values], stream: torch.cuda.Stream, began: torch.cuda.Event) -> None:
        """``began``: recorded on the computing stream when this work's first kernel was launched."""
        self._began = began
        ready = {name: _of_one_size(rows) for name, rows in values.items()}
        self._computed = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._computed.record(torch.cuda.current_stream(stream.device))
        stream.wait_event(self._computed)
        with torch.cuda.stream(stream):
            self._host = {name: _copied(rows, stream) for name, rows in ready.items()}
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(stream)
        self._lists = {name for name, rows in values.items() if isinstance(rows, list)}

    def wait(self) -> tuple[Mapping[str, Values], float]:
        """The rows on the host, and the seconds that the device took to compute them."""
        self._copied.synchronize()
        host = {name: list(rows) if name in self._lists else rows for name, rows in self._host.items()}
        return host, self._began.elapsed_time(self._computed) / 1e3


def _of_one_size(values: Values) -> Values:
    alike = isinstance(values, list) and len({(row.shape, row.dtype) for row in values}) == 1
    return _stacked(values) if alike and isinstance(values, list) else values


def _copied(values: Values, stream: torch.cuda.Stream) -> Values:
    if isinstance(values, list):
        return [_one_copied(row, stream) for row in values]
    return _one_copied(values, stream)


def _one_copied(values: Tensor, stream: torch.cuda.Stream) -> Tensor:
    if values.device.type == "cpu":
        return values
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    values.record_stream(stream)  # its memory is not another's until it is copied
    return host


def _stacked(rows: list[Tensor]) -> Tensor:
    """Rows of one size as one Tensor: the one that they are views of, if they are all of it."""
    base = rows[0]._base
    whole = base is not None and base.shape == (len(rows), *rows[0].shape) and base.is_contiguous()
    if base is not None and whole and all(row._base is base for row in rows):
        step = rows[0].numel()
        if all(row.storage_offset() == base.storage_offset() + i * step for i, row in enumerate(rows)):
            return base
    return torch.stack(rows)


def _pinned(values: Tensor) -> Tensor:
    return values if values.is_pinned() else values.pin_memory()
