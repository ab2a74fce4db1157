"""Arithmetic of the network on its device: float32 means float32, and a lost GPU is an error of the machine."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from extract.errors import MachineError


@contextmanager
def arithmetic(device: torch.device) -> Iterator[None]:
    """A context for running the network: TF32 is off, and a GPU that is full or lost raises MachineError.

    On the CPU, freed memory is kept for the next step meanwhile.
    """
    if device.type != "cuda":
        with _kept_memory():
            yield
        return
    try:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            yield
    except torch.OutOfMemoryError as error:
        raise MachineError(f"{device}: out of memory; lower fusion.training.batch, or use --device cpu") from error
    except torch.AcceleratorError as error:
        reason = str(error).splitlines()[0]
        raise MachineError(f"{device}: {reason}; run the same command to continue, or use --device cpu") from error


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
_LARGEST_KEPT = 1 << 30
_USUAL = 1 << 25
"""What glibc's own threshold grows to."""


@contextmanager
def _kept_memory() -> Iterator[None]:
    """A context in which memory that is freed stays with the process, where the C library is glibc.

    Otherwise each tensor of over 32 MB is new memory, which the system hands out as zeros, page by page: a quarter of
    the time of a step at the paper's shapes, and two thirds of that of a gather (benchmarks/fusion.py). Tables, which
    are larger than ``_LARGEST_KEPT`` where it matters, are given back as before.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):  # macOS, musl
        yield
        return
    libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
    libc.mallopt(_M_TRIM_THRESHOLD, 2 * _LARGEST_KEPT - 1)
    try:
        yield
    finally:
        libc.mallopt(_M_MMAP_THRESHOLD, _USUAL)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _USUAL)
        libc.malloc_trim(0)
