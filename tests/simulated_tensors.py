"""Tensors of a simulated device, and what is counted of their use; ``simulated_device`` says what for."""

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map_only

CUDA = torch.device("cuda:0")
aten = torch.ops.aten

WAITS = {
    aten._local_scalar_dense: "item",
    aten.nonzero: "nonzero",
    aten.masked_select: "nonzero",
    aten.equal: "item",
    aten._linalg_check_errors: "item",
    aten._unique: "nonzero",
    aten._unique2: "nonzero",
    aten.unique_dim: "nonzero",
    aten.unique_consecutive: "nonzero",
    aten.bincount: "nonzero",
    aten.repeat_interleave: "nonzero",
}
"""Operations whose result, or its size, is wanted on the host: the program waits for the device."""

NO_KERNEL = {
    *(aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided),
    *(aten._unsafe_view, aten._reshape_alias, aten.lift_fresh, aten._linalg_check_errors, aten._local_scalar_dense),
}
"""Operations that launch nothing, besides views."""


def _batch_norm(
    x: Any, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float
) -> Any:
    normed = torch.native_batch_norm(x, weight, bias, mean, var, training, momentum, eps)
    return *normed, x.new_empty(0)


WHOLE = {aten.scaled_dot_product_attention, aten.batch_norm}
"""Made of others, but one kernel on CUDA."""

STAND_INS = {aten.cudnn_batch_norm: _batch_norm}
"""Operations that only CUDA has, computed by others."""

TAKES_HOST_INDICES = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}


@dataclass
class Counts:
    """What a program asked of the device."""

    uploads: int = 0
    upload_bytes: int = 0
    fetches: int = 0
    fetch_bytes: int = 0
    """Copies to the device and back."""
    waits: Counter[str] = field(default_factory=Counter)
    """Why the program waited for the device -> how often: ``upload``, ``fetch``, ``item``, ``nonzero``, and calls of
    ``synchronize``: ``event``, ``stream``, ``device``."""
    kernels: Counter[str] = field(default_factory=Counter)
    """Operation -> how often. Some launch more than one kernel: a lower bound."""

    @property
    def copies(self) -> int:
        """In both directions."""
        return self.uploads + self.fetches

    @property
    def stalls(self) -> Counter[str]:
        """The waits for something else than a result that was asked for."""
        return Counter({kind: n for kind, n in self.waits.items() if kind not in {"fetch", "event"}})

    def __sub__(self, before: "Counts") -> "Counts":
        return Counts(
            self.uploads - before.uploads,
            self.upload_bytes - before.upload_bytes,
            self.fetches - before.fetches,
            self.fetch_bytes - before.fetch_bytes,
            self.waits - before.waits,
            self.kernels - before.kernels,
        )


class OnDevice(torch.Tensor):
    """A tensor that says it is on cuda:0; ``host`` holds its values."""

    host: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> "OnDevice":
        # An inference tensor has no version counter, which views that C++ makes of it would share.
        with torch.inference_mode(mode=False):
            made: OnDevice = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
                cls, host.size(), strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype,
                device=CUDA, requires_grad=False,
            )  # fmt: skip
        made.host = host
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnDevice({self.host!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        composite = torch._C.DispatchKey.CompositeImplicitAutograd
        has_parts = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), composite)
        if has_parts and func.overloadpacket not in WHOLE:
            return func._op_dk(composite, *args, **kwargs)
        return active(func).operation(func, args, kwargs)


class Traffic:
    """Computes operations of the device on the host, and counts them."""

    active: "Traffic | None" = None

    def __init__(self) -> None:
        self.counts = Counts()
        self._lock = threading.Lock()
        self._pinned: dict[int, Any] = {}  # address -> storage, held so that no other gets that address

    @contextlib.contextmanager
    def counted(self) -> Iterator[Counts]:
        """The counts of a block alone; filled when it ends."""
        before, found = deepcopy(self.counts), Counts()
        yield found
        found.__dict__.update((self.counts - before).__dict__)

    # ---- copies ------------------------------------------------------------------------------------------------

    def upload(self, values: torch.Tensor, *, non_blocking: bool = False, **form: Any) -> OnDevice:
        """A copy on the device; ``form``: ``dtype``, ``memory_format``. Types change on the host, before."""
        host = values.detach().to(copy=True, **form)
        self._count_upload(host.nbytes, waits=not (non_blocking and self.is_pinned(values)))
        return OnDevice(host)

    def fetch(self, values: torch.Tensor, *, non_blocking: bool = False, **form: Any) -> torch.Tensor:
        """A copy on the host, in pinned memory if the program does not wait for it. Types change there, after."""
        self._count_fetch(values.nbytes, waits=not non_blocking)
        host = values.to(copy=True, **form)
        return self.pin(host) if non_blocking else host

    def pin(self, values: torch.Tensor) -> torch.Tensor:
        storage = values.untyped_storage()
        self._pinned[storage.data_ptr()] = storage
        return values

    def is_pinned(self, values: torch.Tensor) -> bool:
        return values.untyped_storage().data_ptr() in self._pinned

    def wait(self, kind: str) -> None:
        with self._lock:
            self.counts.waits[kind] += 1

    def launched(self, kernel: str) -> None:
        with self._lock:
            self.counts.kernels[kernel] += 1

    def _count_upload(self, num_bytes: int, *, waits: bool) -> None:
        with self._lock:
            self.counts.uploads += 1
            self.counts.upload_bytes += num_bytes
            self.counts.waits += Counter(upload=waits)

    def _count_fetch(self, num_bytes: int, *, waits: bool) -> None:
        with self._lock:
            self.counts.fetches += 1
            self.counts.fetch_bytes += num_bytes
            self.counts.waits += Counter(fetch=waits)

    # ---- operations --------------------------------------------------------------------------------------------

    def operation(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """Compute one operation of aten on the host's values."""
        packet = func.overloadpacket
        given = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
        known = {id(value.host): value for value in given if isinstance(value, OnDevice)}
        args, kwargs = tree_map_only(OnDevice, lambda value: value.host, (args, dict(kwargs)))
        if packet is aten.copy_:
            return self._copy(*given[:2], non_blocking=args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        target = kwargs.get("device")
        if packet is aten._to_copy and target is not None and target.type == "cpu":
            form = {name: kwargs[name] for name in ("dtype", "memory_format") if kwargs.get(name) is not None}
            return self.fetch(args[0], non_blocking=kwargs.get("non_blocking", False), **form)
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        kwargs = {name: value for name, value in kwargs.items() if name != "pin_memory"}
        self._check_devices(func, given)
        if packet in TAKES_HOST_INDICES:
            self._count_indices(packet, given, args)
        elif packet in WAITS and not (packet is aten.repeat_interleave and kwargs.get("output_size") is not None):
            self.wait(WAITS[packet])
        if packet is aten._local_scalar_dense:
            self._count_fetch(given[0].element_size(), waits=False)  # counted as ``item``
        result = STAND_INS.get(packet, func)(*args, **kwargs)
        results = [value for value in tree_flatten(result)[0] if isinstance(value, torch.Tensor)]
        for value in results:
            if id(value) in known and value.shape != known[id(value)].shape:
                raise NotImplementedError(f"{func} changed a shape in place")
        if packet not in NO_KERNEL and not _is_view(func) and any(value.numel() for value in results):
            self.launched(str(packet))
        if target is not None and target.type == "cpu":
            return result
        # What an operation in place returns is its argument.
        return tree_map_only(torch.Tensor, lambda x: known[id(x)] if id(x) in known else OnDevice(x), result)

    def _copy(self, into: torch.Tensor, source: torch.Tensor, *, non_blocking: bool) -> torch.Tensor:
        """``into.copy_(source)``, one of which at least is on the device."""
        host = source.host if isinstance(source, OnDevice) else source
        if not isinstance(into, OnDevice):
            self._count_fetch(source.nbytes, waits=not (non_blocking and self.is_pinned(into)))
            into.copy_(host)
        elif isinstance(source, OnDevice):
            into.host.copy_(host)
            self.launched("aten.copy_")
        else:
            self._count_upload(into.nbytes, waits=not (non_blocking and self.is_pinned(source)))
            into.host.copy_(host)
        return into

    @staticmethod
    def _check_devices(func: Any, given: list[torch.Tensor]) -> None:
        """As torch: a number on the host may take part, more may not."""
        strangers = [value for value in given if not isinstance(value, OnDevice) and value.ndim]
        if strangers and func.overloadpacket not in TAKES_HOST_INDICES:
            shapes = [tuple(value.shape) for value in strangers]
            raise RuntimeError(f"{func}: expected all tensors to be on the same device; on the CPU: {shapes}")

    def _count_indices(self, packet: Any, given: list[torch.Tensor], args: Any) -> None:
        if not isinstance(given[0], OnDevice):
            raise RuntimeError("indices are on the device, the indexed tensor is on the CPU")  # noqa: TRY004 - as torch
        indices = [index for index in args[1] if index is not None]
        hosts = {id(value) for value in given if not isinstance(value, OnDevice)}
        for index in indices:
            if id(index) in hosts:
                self._count_upload(index.nbytes, waits=True)
        masks = [index for index in indices if index.dtype in {torch.bool, torch.uint8}]
        is_fill = packet is not aten.index and len(args) > 2 and args[2].numel() == 1 and len(indices) == 1
        if masks and not is_fill:
            self.wait("nonzero")


def active(asked: object = "torch.cuda") -> Traffic:
    """The device of the moment. Raises RuntimeError: there is none any more."""
    if Traffic.active is None:
        raise RuntimeError(f"{asked}: the simulated device is gone")
    return Traffic.active


def _is_view(func: Any) -> bool:
    """Whether the result lies in the memory of an argument, which is not written."""
    aliases = [argument.alias_info for argument in func._schema.arguments if argument.alias_info is not None]
    return bool(aliases) and not any(alias.is_write for alias in aliases)
