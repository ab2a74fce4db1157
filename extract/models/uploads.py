"""Small arrays brought to a device without waiting for it."""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def uploaded(values: NDArray[Any], device: torch.device) -> Tensor:
    """On ``device``. A copy from ordinary memory would wait until the GPU has done all work before it."""
    held = torch.from_numpy(values)
    return held.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else held
