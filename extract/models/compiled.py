"""The repeated blocks of a network, compiled: ``torch.compile`` sees one block, and all of its kind run the result."""

import copy
import functools
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from extract.errors import UsageError
from extract.weights.files import cache_folder

log = logging.getLogger(__name__)

CACHE = "compiled"
"""Folder beside ``weights`` in the cache: what was compiled once is loaded by later runs."""
VARIANTS = 64
"""Shapes and strides of one kind of block that may be compiled; torch's own 8 are fewer than the 9 of ResNet-50."""
FEWEST = 3
"""Blocks of one kind that make compiling them worth its time."""

HOW: dict[str, Any] = {
    "fullgraph": True,
    "dynamic": False,
    "options": {"fx_graph_cache": True, "fx_graph_remote_cache": False},
}
"""Arguments of ``torch.compile``: whole blocks, for one shape, kept on this machine and nowhere else."""

Kinds = tuple[type[nn.Module], ...]

_this_thread = threading.local()


def compiled(
    net: nn.Module, kinds: Kinds, call: Callable[[nn.Module, Tensor], Tensor], example: Tensor
) -> nn.Module | None:
    """A twin of ``net`` on the same tensors, whose blocks of these kinds are compiled for ``call(twin, example)``.

    ``net`` itself stays as it is, for other shapes. A block is compiled whole or not at all, for one shape.

    Args:
        example: an inference tensor, as all later batches must be: torch compiles anew for any other.

    Returns:
        None where there is no such block, or where this machine cannot compile; a warning says why.
    """
    twin = _twin(net)
    blocks = [module for module in twin.modules() if isinstance(module, kinds)]
    if not blocks:
        return None
    _prepare_torch()
    allow_variants()
    for block in blocks:
        block.compile(**HOW)
    try:
        with torch.inference_mode():
            call(twin, example)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, OSError) as error:  # dynamo's and inductor's are RuntimeErrors; a compiler may be missing
        _warn(next(iter(str(error).strip().splitlines()), type(error).__name__))
        return None
    return twin


def most_repeated(net: nn.Module) -> Kinds:
    """The kind of block that a network repeats most, for networks of any builder; empty where it repeats none.

    A block stands in a Sequential or ModuleList and consists of several layers.
    """
    lists = [module for module in net.modules() if isinstance(module, (nn.Sequential, nn.ModuleList))]
    blocks = [child for parent in lists for child in parent if not isinstance(child, (nn.Sequential, nn.ModuleList))]
    counted = Counter(type(block) for block in blocks if any(True for _ in block.children()))
    return tuple(kind for kind, count in counted.most_common(1) if count >= FEWEST)


def _twin(net: nn.Module) -> nn.Module:
    """The same modules once more, around the same tensors."""
    return copy.deepcopy(net, {id(tensor): tensor for tensor in [*net.parameters(), *net.buffers()]})


def _prepare_torch() -> None:
    """Let torch keep compiled code beside the weights, unless the user named a folder."""
    try:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / CACHE))
    except UsageError as error:
        log.info("compiled code is kept in the folder for temporary files: %s", error)


def allow_variants() -> None:
    """Let the calling thread compile a block anew for VARIANTS shapes: torch keeps this setting for each thread."""
    if not getattr(_this_thread, "prepared", False):
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
        _this_thread.prepared = True


@functools.cache  # once per reason, not per network
def _warn(reason: str) -> None:
    log.warning(
        "torch.compile does not work here, the networks run as they are, slower: %s%s; run.compile=off leaves it alone",
        reason,
        "; is a C compiler (gcc) installed?" if "compiler" in reason.lower() or "gcc" in reason else "",
    )
