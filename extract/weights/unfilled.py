"""Networks built without numbers in their parameters: those come from a file, so nothing is drawn first."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


@contextlib.contextmanager
def unfilled() -> Iterator[None]:
    """Parameters of networks that are built inside stay as the memory was; buffers get their values.

    For libraries whose networks have buffers that no file holds (position tables, masks), which the meta device would
    lose. Memory that nobody wrote costs nothing; ``loading.fill`` puts the file's tensors in its place. What is drawn
    all the same, for tensors that become parameters later, leaves the global random state alone.
    """
    with torch.random.fork_rng(devices=[]), _NothingInPlace():
        yield


class _NothingInPlace(TorchFunctionMode):
    """Operations that write into a parameter do nothing: ``normal_``, ``zero_``, ``nn.init.trunc_normal_`` ..."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever ``func`` gives
        del types
        kwargs = kwargs or {}
        written = args[0] if args else kwargs.get("tensor")  # which torch.nn.init names, and passes by that name
        name = getattr(func, "__name__", "")
        in_place = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
        return written if in_place and isinstance(written, nn.Parameter) else func(*args, **kwargs)
