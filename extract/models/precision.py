"""The one place where values become the number type that is stored."""

from typing import TYPE_CHECKING

from extract.errors import ClipError

if TYPE_CHECKING:
    from torch import Tensor


def stored_as(values: "Tensor", dtype: str) -> "Tensor":
    """``values`` in the declared number type (``float16``, ``float32``).

    Raises:
        ClipError: ``overflow``, a finite value does not fit. What is not finite already passes: the runner names it.
    """
    import torch

    narrow: Tensor = values.to(getattr(torch, dtype))
    lost = narrow.isinf() & values.isfinite()
    if bool(lost.any()):
        worst = float(values[lost].abs().max())
        limit = torch.finfo(narrow.dtype).max
        raise ClipError("overflow", f"found {worst:.6g}, {dtype} holds at most {limit:g}; set dtype=float32")
    return narrow
