"""A pretended GPU on the CPU: tensors that say they are on cuda:0, compute at once on the CPU, and are counted.

    with SimulatedDevice() as device:
        big = torch.ones(3).to("cuda")      # a copy to the device, for which the program waits
        (big + 1).sum().item()              # two kernels, and a wait for the result
    device.counts

What torch does on CUDA without saying so is counted as well: a ``new_tensor``, a mask as an index, a list as an index.
A copy to the device lets the program go on only if it is ``non_blocking`` and comes from pinned memory. Results are
those of the CPU, so that a run on this device can be compared with one on the CPU. It knows no time, no graphs and no
``torch.compile``. With a real GPU in the machine it is the same: that one is not touched.
"""

# ruff: noqa: ARG005 - what stands for a function of torch takes what that one takes

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from tests.simulated_tensors import CUDA, Counts, OnDevice, Traffic, active

__all__ = ["Counts", "OnDevice", "SimulatedDevice"]


class SimulatedDevice(Traffic):
    """The device; only one at a time. Threads that are started inside the block see it too."""

    def __init__(self) -> None:
        super().__init__()
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "SimulatedDevice":
        if Traffic.active is not None:
            raise RuntimeError("one simulated device at a time")
        torch._C._ensureCUDADeviceGuardSet()  # or C++ would ask a driver which device is current
        run = threading.Thread.run

        def run_with_device(thread: threading.Thread) -> None:
            with _Routing(self):
                run(thread)

        self._open.enter_context(mock.patch.object(threading.Thread, "run", run_with_device))
        for name, value in self._of_torch_cuda().items():
            self._open.enter_context(mock.patch.object(torch.cuda, name, value))
        # Its parser refuses another stream than CUDA's before anybody is asked.
        self._open.enter_context(mock.patch.object(torch.Tensor, "record_stream", _record_stream))
        self._open.enter_context(_Routing(self))
        # Parameters are replaced when a module moves: filled anew, they would keep their own type.
        replaced = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        self._open.callback(torch.__future__.set_overwrite_module_params_on_conversion, replaced)
        Traffic.active = self
        return self

    def __exit__(self, *raised: object) -> None:
        Traffic.active = None
        self._open.close()

    # ---- torch.cuda --------------------------------------------------------------------------------------------

    def _of_torch_cuda(self) -> dict[str, Any]:
        current = threading.local()

        def current_stream(device: object = None) -> _Stream:
            del device
            if not hasattr(current, "stream"):
                current.stream = _Stream()
            found: _Stream = current.stream
            return found

        @contextlib.contextmanager
        def stream(chosen: "_Stream | None") -> Iterator[None]:
            before = current_stream()
            current.stream = chosen or before
            yield
            current.stream = before

        return {
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "get_device_name": lambda device=None: "simulated",
            "set_device": lambda device: None,
            "empty_cache": lambda: None,
            "mem_get_info": lambda device=None: (64 << 30, 80 << 30),
            "synchronize": lambda device=None: self.wait("device"),
            "current_stream": current_stream,
            "default_stream": current_stream,
            "stream": stream,
            "Stream": _Stream,
            "Event": _Event,
        }


class _Stream:
    """All is done at once, so that there is nothing to order; only waits are counted."""

    def __init__(self, device: object = None, priority: int = 0) -> None:
        self.device, self.priority = device, priority

    def synchronize(self) -> None:
        active().wait("stream")

    def query(self) -> bool:
        return True

    def wait_stream(self, other: "_Stream") -> None:
        """On the device: the program goes on."""

    def wait_event(self, event: "_Event") -> None:
        """Likewise."""

    def record_event(self, event: "_Event | None" = None) -> "_Event":
        event = event or _Event()
        event.record(self)
        return event


class _Event:
    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
        del enable_timing, blocking, interprocess
        self._at_s = 0.0

    def record(self, stream: _Stream | None = None) -> None:
        del stream
        self._at_s = time.perf_counter()

    def wait(self, stream: _Stream | None = None) -> None:
        """On the device: the program goes on."""

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        active().wait("event")

    def elapsed_time(self, end: "_Event") -> float:
        return (end._at_s - self._at_s) * 1e3


class _Routing(TorchFunctionMode):
    """Takes what torch's own argument parser would start CUDA for, in one thread."""

    def __init__(self, device: SimulatedDevice) -> None:
        super().__init__()
        self._device = device
        self._special: dict[Any, Callable[..., Any]] = {
            torch.Tensor.to: self._to,
            torch.Tensor.cuda: lambda x, device=None, non_blocking=False, **more: self._to(
                x, CUDA, non_blocking=non_blocking, **more
            ),
            torch.Tensor.tolist: lambda x: _on_host(x).tolist(),
            torch.Tensor.numpy: self._numpy,
            torch.Tensor.new_tensor: self._new_tensor,
            torch.Tensor.pin_memory: lambda x, device=None: device_of(x).pin(x.clone()),
            torch.Tensor.is_pinned: lambda x, device=None: device_of(x).is_pinned(x),
            torch.Tensor.__getitem__: lambda x, index: x.__getitem__(_indices(index)),
            torch.Tensor.__setitem__: lambda x, index, value: x.__setitem__(_indices(index), value),
            torch.where: _where,
            torch.Tensor.where: lambda x, condition, other: _where(condition, x, other),
        }

        def device_of(x: torch.Tensor) -> SimulatedDevice:
            if isinstance(x, OnDevice):
                raise RuntimeError("only memory of the host can be pinned")  # noqa: TRY004 - as torch
            return device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in {torch.tensor, torch.as_tensor, torch.asarray}:
            return self._from_data(func, *args, **kwargs)
        if func in self._special:
            return self._special[func](*args, **kwargs)
        pinned = kwargs.pop("pin_memory", False)
        if _is_cuda(kwargs.get("device")):
            return self._made_there(func, args, kwargs)
        made = func(*args, **kwargs)
        return self._device.pin(made) if pinned else made

    def _made_there(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """``zeros``, ``arange``, ``empty_like`` ... with ``device="cuda"``."""
        del kwargs["device"]
        if any(isinstance(value, OnDevice) for value in tree_flatten(args)[0]):
            return func(*args, **kwargs)
        made = func(*args, **kwargs, device="cpu")
        if isinstance(made, torch.Tensor):
            if "empty" not in func.__name__ and made.numel():
                self._device.launched(f"aten.{func.__name__}")
            return OnDevice(made)
        return made

    def _to(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        copy = kwargs.pop("copy", False)
        device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*args, **kwargs)  # type: ignore[attr-defined]
        form = {"dtype": dtype or x.dtype}
        form |= {"memory_format": memory_format} if memory_format is not None else {}
        if device is not None and device.type == "cuda" and not isinstance(x, OnDevice):
            return self._device.upload(x, non_blocking=non_blocking, **form)
        if device is not None and device.type == "cpu":
            return x.to(device, non_blocking=non_blocking, copy=copy, **form)
        if device is not None and device.type != "cuda":  # meta
            return x.to(device, copy=copy, **form)
        return x.to(copy=copy, **form)

    @staticmethod
    def _numpy(x: torch.Tensor, **kwargs: Any) -> Any:
        if isinstance(x, OnDevice):
            raise TypeError(
                "can't convert cuda:0 device type tensor to numpy; copy it to host memory with .cpu() first"
            )
        return x.numpy(**kwargs)

    def _new_tensor(self, x: torch.Tensor, data: Any, **kwargs: Any) -> torch.Tensor:
        return self._from_data(torch.tensor, data, **{"dtype": x.dtype, "device": x.device} | kwargs)

    def _from_data(self, func: Any, data: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        wanted = kwargs.pop("device", None)
        if isinstance(data, OnDevice):
            made = data if func is torch.as_tensor else data.clone()
            made = made.to(kwargs.get("dtype") or made.dtype)
            return made if wanted is None or _is_cuda(wanted) else made.cpu()
        made = func(data, *args, **kwargs)
        return self._device.upload(made) if _is_cuda(wanted) else made


def _record_stream(x: torch.Tensor, stream: _Stream) -> None:
    """Nothing is freed early here."""
    del x, stream


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _where(condition: torch.Tensor, *values: Any) -> Any:
    """Plain numbers as numbers of the host: torch would make them on the device, past this module."""
    like = next((value for value in values if isinstance(value, torch.Tensor)), None)
    if like is not None:
        kinds = [torch.result_type(like, value) for value in values]
        values = tuple(
            value if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=kind)
            for value, kind in zip(values, kinds, strict=True)
        )
    return torch.where(condition, *values)


def _on_host(x: torch.Tensor) -> torch.Tensor:
    return x.cpu() if isinstance(x, OnDevice) else x


def _indices(index: Any) -> Any:
    """Lists and arrays as tensors on the host: torch makes these of them too, before it copies them."""
    if isinstance(index, tuple):
        return tuple(_indices(part) for part in index)
    if isinstance(index, (list, np.ndarray)):
        return torch.as_tensor(index)
    return index
