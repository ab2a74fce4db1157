"""The device of a run: stages set up on it once, and what guards it."""

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from extract.answers import Answers
from extract.config import LARGEST_BATCH
from extract.errors import ClipError, MachineError, WeightsError
from extract.graph import Instance
from extract.running.recipes import Prepared
from extract.running.rows import Values
from extract.running.transfer import Fetch
from extract.stage import Context, RowsStage, Stage
from extract.weights.files import cache_folder

HOST = torch.device("cpu")


class LocalEngine:
    """Sets stages up and guards their device."""

    def __init__(
        self, device: torch.device, *, compiled: bool = False, block_rows: int | None = None, offline: bool = False
    ) -> None:
        """``block_rows``: what the config sets for all arrays; no micro-batch is larger than a block."""
        self._offline = offline
        self.device = device
        self.compiled, self._block_rows = compiled, block_rows
        self.computed_s = 0.0
        """Seconds that a GPU computed: micro-batches by its own clock, whole clips by ours."""
        self._adding = threading.Lock()
        if device.type == "cuda":  # float32 means float32: TF32 keeps 10 bits of the fraction
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
        self._copies: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._ready: dict[tuple[str, type[Stage[Any]]], Stage[Any]] = {}

    def ready(self, prepared: Prepared) -> Stage[Any]:
        """The instance's stage with its weights loaded; once per run."""
        instance = prepared.instance
        key = (instance.name, type(instance.stage))  # what stands in for it serves other clips
        if key not in self._ready:
            device = self.device_of(instance.stage)
            precision = getattr(torch, prepared.precision) if instance.stage.device == "gpu" else torch.float32
            batch = self.batch_of(instance)
            context = Context(
                device,
                precision,
                prepared.weights,
                self.compiled,
                batch,
                answers=Answers(cache_folder()) if instance.stage.external else None,
                offline=self._offline,
            )
            try:
                with self.guarded(instance.name):
                    instance.stage.setup(context)
            except ImportError as error:
                raise WeightsError(
                    f"instance {instance.name}: {error}; install what requirements.lock names"
                ) from error
            self._ready[key] = instance.stage
        return self._ready[key]

    def device_of(self, stage: Stage[Any]) -> torch.device:
        """Where a stage computes."""
        return self.device if stage.device == "gpu" or stage.follows_device else HOST

    def lane_of(self, stage: Stage[Any]) -> str:
        """The lane in which a clip stage works."""
        if stage.external:
            return "service"
        return "cpu" if self.device_of(stage).type == "cpu" else "gpu"

    def device_for(self, stage: Stage[Any], declared: str) -> torch.device:
        """Where it wants an input."""
        return HOST if declared in stage.host_inputs else self.device_of(stage)

    def batch_of(self, instance: Instance) -> int:
        """Rows of a micro-batch: as the config says, or as suits the device; a power of two."""
        stage = instance.stage
        suits = stage.device_batch if self.device_of(stage).type == "cuda" else None
        rows = min(instance.config.batch or suits or stage.batch, instance.config.block_rows or LARGEST_BATCH)
        return 1 << (min(rows, self._block_rows or rows).bit_length() - 1)

    def levers_of(self, instance: Instance) -> dict[str, Any]:
        """What was done for speed, for the record: it changes no recipe."""
        batch = {"batch": self.batch_of(instance)} if isinstance(instance.stage, RowsStage) else {}
        return {**instance.stage.levers, **batch}

    def add_computed(self, seconds: float) -> None:
        """Add to ``computed_s``, in any lane."""
        with self._adding:
            self.computed_s += seconds

    def mark(self) -> torch.cuda.Event:
        """Now, on the computing stream."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event

    def fetch(self, values: Mapping[str, Values], began: torch.cuda.Event) -> Fetch:
        """Begin to copy results to the host, behind what computes them."""
        if self._copies is None:
            raise RuntimeError("results of a CPU are on the host")
        return Fetch(values, self._copies, began)

    @staticmethod
    @contextlib.contextmanager
    def guarded(name: str, *, whole_clip: bool = False) -> Iterator[None]:
        """Turn a lost or full GPU into MachineError: the clip is not to blame.

        A clip stage takes what the clip's length asks for (``whole_clip``): a full memory is then that clip's failure.
        Errors of a GPU show when its results are fetched, so that belongs inside the block.
        """
        try:
            yield
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise _memory_is_full(name, whole_clip=whole_clip) from error
        except RuntimeError as error:
            text = str(error)
            if "DefaultCPUAllocator" in text:
                raise _memory_is_full(name, whole_clip=whole_clip) from error
            lost = any(mark in text for mark in ("CUDA error", "cuDNN error", "CUBLAS_STATUS"))
            if lost or isinstance(error, getattr(torch, "AcceleratorError", ())):
                raise MachineError(f"instance {name}: the GPU gave up: {text.splitlines()[0]}") from error
            raise


def _memory_is_full(name: str, *, whole_clip: bool) -> ClipError | MachineError:
    if not whole_clip:
        return MachineError(f"instance {name}: the memory is full; set a smaller {name}.batch and run again")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        remedy = "cut it with start_s and end_s, or use --device cpu"
    else:
        remedy = "cut it with start_s and end_s"
    return ClipError("out_of_memory", f"instance {name}: too long for the memory; {remedy}")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
