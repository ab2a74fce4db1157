"""A function of batches that is always called with the same number of rows: as it is, or replayed as a CUDA graph.

What is compiled or captured is made for one shape. A batch with fewer rows is filled up with zeros, whose results are
dropped. A row's values depend on that row alone, so what fills the rest changes no bit of it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UPS = 3
"""Calls before a capture: cuDNN and cuBLAS choose their kernels and take their workspaces."""

Function = Callable[[Tensor], Tensor]
Replay = Callable[[], Tensor]
"""Computes on the tensor it was captured with; the result lies in the same memory each time."""
Capture = Callable[[Function, Tensor], Replay]


class FixedRows:
    """``function`` for batches of ``example``'s shape, full or at least more than half full.

    Args:
        function: rows in, as many rows out.
        example: a full batch: its shape, type, device and memory format are those that ``function`` will see.
        capture: makes the replay. None: ``function`` is called, and several threads may call it at once. A replay has
            one input and one output in memory, so one thread on one stream replays it.
    """

    def __init__(self, function: Function, example: Tensor, capture: Capture | None = None) -> None:
        self._function = function
        with torch.inference_mode():
            self._example = torch.zeros_like(example)
        self._replay = capture(function, self._example) if capture else None

    def takes(self, batch: Tensor) -> bool:
        """Whether it is of the shape, and full enough: half of the rows or fewer are done sooner without filling up.

        Depends on nothing but the batch, so that a run that was interrupted gives the same bits as an unbroken one.
        """
        of_its_kind = batch.shape[1:] == self._example.shape[1:] and batch.dtype == self._example.dtype
        return of_its_kind and len(self._example) // 2 < len(batch) <= len(self._example)

    def __call__(self, batch: Tensor) -> Tensor:
        """What ``function`` gives for these rows."""
        rows = len(batch)
        with torch.inference_mode():
            given = self._example if self._replay else torch.empty_like(self._example)
            given[:rows].copy_(batch, non_blocking=True)
            if rows < len(given):
                given[rows:].zero_()
            if self._replay is None:
                return self._function(given)[:rows]
            return self._replay()[:rows].clone()


def cuda_graph(function: Function, given: Tensor) -> Replay:
    """Capture ``function(given)`` as a CUDA graph with a memory pool of its own.

    Raises:
        RuntimeError: ``function`` waits for the device or copies from pageable memory, which no graph can hold.
    """
    with torch.cuda.device(given.device), torch.inference_mode():
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                function(given)
        before = torch.cuda.current_stream()
        before.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        try:
            # On this device's stream: torch's own one for captures is of the device that captured first.
            # thread_local: decoding threads may pin memory meanwhile.
            with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
                result = function(given)
        finally:
            torch.cuda.set_stream(before)  # which a capture that is refused does not do in every version
        torch.cuda.synchronize()  # whoever replays it may do so on another stream

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
