"""Where the network runs, and that float32 means float32 there."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from extract.errors import MachineError, UsageError


def resolve_device(name: str) -> torch.device:
    """``auto`` (a GPU if torch sees one), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        UsageError: another name, or a GPU that torch does not see.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name}: expected auto, cpu or cuda:N") from None
    if device.type not in {"cpu", "cuda"}:
        raise UsageError(f"--device {name}: expected auto, cpu or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: torch sees {torch.cuda.device_count()} GPUs; --device cpu always works")
    return device


@contextmanager
def arithmetic(device: torch.device) -> Iterator[None]:
    """Run the network inside: without TF32, and a GPU that is full or lost as MachineError."""
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
        raise MachineError(f"{device}: {reason}; run the same command again to go on, or use --device cpu") from error
