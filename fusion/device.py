"""Arithmetic of the network on its device: float32 means float32, and a lost GPU is an error of the machine."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from extract.errors import MachineError


@contextmanager
def arithmetic(device: torch.device) -> Iterator[None]:
    """A context for running the network: TF32 is off, and a GPU that is full or lost raises MachineError."""
    if device.type != "cuda":
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
