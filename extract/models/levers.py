"""A stage's network and what makes it fast: compiled blocks, a CUDA graph, batches of a fixed size.

None of it is in a recipe, for none changes a value by more than rounding (tests/test_levers.py).
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from extract.models.compiled import Kinds, allow_variants, compiled
from extract.models.fixed_rows import Capture, FixedRows, cuda_graph

log = logging.getLogger(__name__)

CAPTURES: dict[str, Capture] = {"cuda": cuda_graph}
"""Device type -> how a function is captured there."""


class Levered:
    """A network, called as it is or, with ``fast``, by a faster way for its usual batches.

    Args:
        net: on its device, in its precision; it stays as it is.
        call: how ``net`` is used: batch in, as many rows out.
        kinds: classes of the blocks that it repeats; () compiles nothing.
        example: the usual batch: its rows, shape, type, device and memory format are those of what is compiled.
            Batches of other shapes, and those of half the rows or fewer, go through the plain network.
        fast: compile, and capture where the device can.
    """

    def __init__(
        self,
        net: nn.Module,
        call: Callable[[nn.Module, Tensor], Tensor],
        kinds: Kinds,
        example: Tensor,
        *,
        fast: bool,
    ) -> None:
        self.net, self._call = net, call
        self._fixed: FixedRows | None = None
        self.levers: dict[str, Any] = {"compile": False, "graphs": False, "batch": len(example)}
        """What is in force, for the provenance."""
        if fast:
            self._make_fast(kinds, example)

    def __call__(self, batch: Tensor) -> Tensor:
        """What ``call`` gives for ``batch``."""
        if self._fixed is not None and self._fixed.takes(batch):
            return self._fixed(batch)
        return self._call(self.net, batch)

    def _make_fast(self, kinds: Kinds, usual: Tensor) -> None:
        with torch.inference_mode():
            example = torch.zeros_like(usual)
        twin = compiled(self.net, kinds, self._call, example)
        net, call = twin or self.net, self._call

        def function(batch: Tensor) -> Tensor:
            allow_variants()
            return call(net, batch)

        capture = CAPTURES.get(example.device.type)
        if capture is not None:
            try:
                self._fixed = FixedRows(function, example, capture)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                log.warning(
                    "%s does not go into a CUDA graph and is launched step by step, slower: %s",
                    type(net).__name__,
                    next(iter(str(error).splitlines()), type(error).__name__),
                )
        self.levers |= {"compile": twin is not None, "graphs": self._fixed is not None}
        if self._fixed is None and twin is not None:
            self._fixed = FixedRows(function, example)
