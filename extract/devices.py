"""Which device a command computes on; both programs choose it here."""

import torch

from extract.errors import UsageError

KINDS = ("cpu", "cuda")


def pick_device(name: str) -> torch.device:
    """The device that ``--device`` names: ``auto`` (the first GPU, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        UsageError: another name, or a GPU that torch does not see.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name}: expected auto, cpu or cuda:N") from None
    if device.type not in KINDS:
        raise UsageError(f"--device {name}: expected auto, cpu or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {name}: torch sees {torch.cuda.device_count()} GPUs on this machine; --device cpu always works"
        )
    return device
