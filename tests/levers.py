"""What the tests of the levers share: small networks, what a forward launches, a graph that can run on a CPU."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from extract.models import realesrgan
from extract.models.realesrgan import from_tensors


def rrdb_net(num_blocks: int = 2) -> torch.nn.Module:
    """An x4plus with fewer blocks, random, channels last."""
    tensors = {name: torch.from_numpy(values) for name, values in realesrgan.random_weights(num_blocks).items()}
    return from_tensors(tensors, "test").net.to(memory_format=torch.channels_last)


def planes(rows: int, side: int, kind: torch.dtype = torch.float32) -> Tensor:
    """Noise in [0, 1], [rows, 3, side, side], channels last."""
    found = torch.rand((rows, 3, side, side), generator=torch.Generator().manual_seed(rows), dtype=torch.float64)
    return found.to(kind).contiguous(memory_format=torch.channels_last)


class Launches(TorchDispatchMode):
    """Counts the operations that compute or copy: on a GPU each is a kernel to launch. Views are none."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.across: list[str] = []
        """Operations that touched two devices: copies."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        returned = [alias for one in func._schema.returns if (alias := one.alias_info) is not None]
        if not returned or any(alias.is_write for alias in returned):
            self.names[func.overloadpacket.__name__] += 1
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
        if len({tensor.device for tensor in tensors if tensor.dim()}) > 1:  # numbers ride along with the launch
            self.across.append(str(func))
        return out

    @property
    def total(self) -> int:
        return sum(self.names.values())


class FakeGraphs:
    """Captures as ``cuda_graph`` does, but computes anew on every replay, into the same memory as before."""

    def __init__(self) -> None:
        self.captured = self.replays = 0

    def capture(self, function: Callable[[Tensor], Tensor], given: Tensor) -> Callable[[], Tensor]:
        self.captured += 1
        result = function(given).clone()

        def replay() -> Tensor:
            self.replays += 1
            return result.copy_(function(given))

        return replay


class Block(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x):
        return x + torch.tanh(self.layer(x))


def call(net, x):
    return net(x)


def zeros(*shape):
    """An inference tensor, as all batches of the stages are."""
    with torch.inference_mode():
        return torch.zeros(shape)


def tower(*widths, kind=Block):
    torch.manual_seed(0)
    return nn.Sequential(*(kind(width) for width in widths)).eval().requires_grad_(False)


def graphs_made():
    return counters["stats"]["unique_graphs"]
