"""One training step: gather, forward, backward, clip, update; on a GPU replayed as a captured CUDA graph.

The two ways run the same code on the same numbers. A graph needs fixed shapes and addresses: the rectangle of each
modality is padded to one of a few lengths, and each batch is copied into the buffers that the graph reads.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from extract.errors import ConfigError
from fusion.config import TrainingConfig
from fusion.data import Batch, Samples
from fusion.model import FusionModel
from fusion.tasks import Objective

logger = logging.getLogger("fusion")

Replay: TypeAlias = Callable[[], None]
Capture: TypeAlias = Callable[[Replay], Replay]
"""Runs a step's work once while recording it, and returns what repeats it."""

WARM_STEPS = 3
"""Steps before a capture: cuDNN and cuBLAS choose and allocate in the first ones. They leave no trace."""


def make_optimizer(model: FusionModel, settings: TrainingConfig, device: torch.device) -> torch.optim.Optimizer:
    """AdamW; on a GPU fused, with a learning rate that a captured graph reads anew in every step."""
    if device.type != "cuda":
        return torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    rate = torch.tensor(settings.lr, device=device)
    return torch.optim.AdamW(
        model.parameters(), lr=rate, weight_decay=settings.weight_decay, fused=True, capturable=True
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate, in place where it is a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Load a state dict whose tensors lie on the CPU.

    A learning rate that is a tensor stays the one that it was, on its device: torch would put the loaded one in its
    place, and of a rate on the CPU a graph keeps the value of the moment in which it was captured.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict(dict(saved))
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(rate, Tensor):
            group["lr"] = rate.copy_(torch.as_tensor(group["lr"]))


def graph_wanted(settings: TrainingConfig, device: torch.device) -> bool:
    """Whether steps are captured.

    Raises:
        ConfigError: graphs are demanded, and the device has none.
    """
    if settings.graph == "on" and device.type != "cuda":
        raise ConfigError(f"fusion.training.graph is on, and the device is {device}: auto or off is meant")
    return settings.graph != "off" and device.type == "cuda"


class TrainStep:
    """Trains a model on batches of samples; calling it with the numbers of B samples makes one step."""

    def __init__(
        self,
        model: FusionModel,
        objective: Objective,
        samples: Samples,
        optimizer: torch.optim.Optimizer,
        settings: TrainingConfig,
        device: torch.device,
        *,
        distinct: bool = False,
        capture: Capture | None = None,
    ) -> None:
        self.model, self.objective, self.samples = model, objective, samples
        self.optimizer, self.settings, self.device = optimizer, settings, device
        self.distinct = distinct
        self.capture = capture
        if capture is None and graph_wanted(settings, device):
            self.capture = captured
        self._graphs: dict[tuple[Any, ...], _Graph] = {}

    def batches(self, indices: Iterable[NDArray[np.int64]]) -> Iterator[Batch]:
        """The batches of samples ``indices``, gathered where the tables lie; for a GPU one step ahead."""
        if not self.samples.pinned:
            yield from map(self.gather, indices)
            return
        with ThreadPoolExecutor(1, "gather") as thread:
            waiting: deque[Future[Batch]] = deque()
            for index in indices:
                waiting.append(thread.submit(self.gather, index))
                if len(waiting) > 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def gather(self, index: NDArray[np.int64]) -> Batch:
        """The samples ``index`` [B]; with graphs on rectangles of few different lengths."""
        lengths = None
        if self.capture is not None:
            lengths = {
                name: bucket(int(windows.lengths[index].max(initial=0)), windows.longest)
                for name, windows in self.samples.windows.items()
            }
        batch = self.samples.batch(index, lengths=lengths, times=self.model.reads_times, distinct=self.distinct)
        return with_spare_rows(batch) if self.capture is not None else batch

    def __call__(self, batch: Batch) -> Tensor:
        """One step on a batch; the loss before it, a scalar on the device, not yet waited for."""
        if self.capture is None:
            batch = batch.to(self.device)
            return train_step(self.model, self.objective, batch, self.optimizer, self.settings)
        key = layout_of(batch)
        graph = self._graphs.get(key)
        if graph is None:
            try:
                graph = self._graphs[key] = self._captured(batch)
            except RuntimeError as error:
                if self.settings.graph == "on" or isinstance(error, torch.OutOfMemoryError):
                    raise
                reason = str(error).splitlines()[0]
                logger.warning("training.graph: no graph can be captured here (%s); steps run without", reason)
                self.capture = None
                return self(batch)
        copy_batch(batch, graph.batch)
        graph.replay()
        return graph.loss.clone()

    def _captured(self, batch: Batch) -> "_Graph":
        """A graph for batches of this layout; model, optimiser and random state are afterwards as before."""
        if self.capture is None:
            raise RuntimeError("this step is not captured")
        static = empty_like(batch, self.device)
        copy_batch(batch, static)
        loss = torch.zeros((), device=self.device)  # float32, as of every loss of a network in 32 or 16 bits

        def work() -> None:
            found = train_step(self.model, self.objective, static, self.optimizer, self.settings, waits=False)
            loss.copy_(found)

        with _untouched(self.model, self.optimizer, self.device):
            # Gradients must come from the graph's own memory.
            self.optimizer.zero_grad(set_to_none=True)
            replay = self.capture(work)
        return _Graph(static, loss, replay)


@dataclass
class _Graph:
    batch: Batch
    """What it reads."""
    loss: Tensor
    """What it writes."""
    replay: Replay


def train_step(
    model: FusionModel,
    objective: Objective,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    settings: TrainingConfig,
    *,
    waits: bool = True,
) -> Tensor:
    """One step on ``batch``; returns the loss before it, a scalar on the device.

    Args:
        waits: whether the host may wait for the gradient's norm to be checked; a captured step must not.
    """
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(batch_device(batch).type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
        outputs = model(batch.inputs)
    loss: Tensor = objective(outputs, batch.targets)  # which widens 16 bits
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm, foreach=None if waits else True)
    optimizer.step()
    return loss.detach()


def captured(work: Replay) -> Replay:
    """``work`` as a CUDA graph.

    Raises:
        RuntimeError: ``work`` waits for the device, which no graph can hold.
    """
    before = torch.cuda.current_stream()
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(before)
    with torch.cuda.stream(aside):
        for _ in range(WARM_STEPS):
            work()
    before.wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    try:
        # thread_local: the thread that gathers the next batch may pin memory meanwhile.
        with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
            work()
    finally:
        torch.cuda.set_stream(before)  # which a capture that is refused does not do in every version
    return graph.replay


# ---- batches of fixed shape ----------------------------------------------------------------------------------------


def bucket(length: int, longest: int) -> int:
    """The length that a rectangle of ``length`` rows is padded to: few different ones, at most an eighth longer.

    Multiples of 1/8 of the power of two below, never more than the split's longest window.
    """
    if length <= 8:
        return max(1, min(8, longest))
    step = 1 << (length.bit_length() - 4)
    return min(-(-length // step) * step, longest)


def with_spare_rows(batch: Batch) -> Batch:
    """The batch with the number of distinct rows rounded up, so that few layouts occur; spare rows repeat the last."""
    inputs = {}
    for name, rows in batch.inputs.items():
        if rows.place is not None:
            spare = bucket(len(rows.values), math.prod(rows.shape)) - len(rows.values)
            values = torch.cat([rows.values, rows.values[-1:].expand(spare, -1)])
            rows = replace(rows, values=values)
        inputs[name] = rows
    return Batch(inputs, batch.targets, batch.size)


def layout_of(batch: Batch) -> tuple[Any, ...]:
    """What must be equal for two batches to share a graph."""
    return (
        batch.size,
        *(
            (name, rows.shape, len(rows.values), rows.place is None, None if rows.short is None else len(rows.short))
            for name, rows in batch.inputs.items()
        ),
    )


def batch_device(batch: Batch) -> torch.device:
    """Where a batch lies."""
    return next(iter(batch.inputs.values())).values.device


def empty_like(batch: Batch, device: torch.device) -> Batch:
    """A batch of the same layout on ``device``."""

    def room(tensor: Tensor | None) -> Any:  # noqa: ANN401 - None stays None
        return None if tensor is None else torch.empty_like(tensor, device=device)

    inputs = {
        name: replace(
            rows,
            values=room(rows.values),
            lengths=room(rows.lengths),
            place=room(rows.place),
            times=room(rows.times),
            short=room(rows.short),
        )
        for name, rows in batch.inputs.items()
    }
    return Batch(inputs, {task: room(target) for task, target in batch.targets.items()}, batch.size)


def copy_batch(source: Batch, target: Batch) -> None:
    """Write the values of one batch into the tensors of another of the same layout, without waiting."""
    for name, rows in source.inputs.items():
        into = target.inputs[name]
        for one, other in (
            (rows.values, into.values),
            (rows.lengths, into.lengths),
            (rows.place, into.place),
            (rows.times, into.times),
            (rows.short, into.short),
        ):
            if one is not None and other is not None:
                other.copy_(one, non_blocking=True)
    for task, labels in source.targets.items():
        target.targets[task].copy_(labels, non_blocking=True)


@contextmanager
def _untouched(model: FusionModel, optimizer: torch.optim.Optimizer, device: torch.device) -> Iterator[None]:
    """A context after which parameters, buffers, optimiser and random state are as before, at the same addresses.

    An optimiser without state yet has zeros afterwards, which is the state that its first step begins with.
    """
    values = {name: value.clone() for name, value in model.state_dict().items()}
    moments = {
        id(parameter): {key: value.clone() for key, value in state.items() if isinstance(value, Tensor)}
        for parameter, state in optimizer.state.items()
    }
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:  # a capture that is refused has made its warm steps already
        with torch.no_grad():
            for name, value in model.state_dict().items():
                value.copy_(values[name])
            for parameter, state in optimizer.state.items():
                before = moments.get(id(parameter), {})
                for key, value in state.items():
                    if isinstance(value, Tensor):
                        value.copy_(before[key]) if key in before else value.zero_()
