"""This machine: one device, stages set up once, the next frames decoded while these are computed."""

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from extract.endings import uninterrupted
from extract.errors import ClipError, MachineError, WeightsError
from extract.inputs.media import Watcher
from extract.running.recipes import Prepared
from extract.stage import Context, Stage

Item = TypeVar("Item")
_END = object()

POLL_S = 0.5
"""How often the wait for the decoding thread checks its progress."""
LET_GO_S = 10.0
"""How long a decoding thread that is no longer needed may take to finish its frame before it is abandoned."""


class LocalEngine:
    """Sets stages up and guards their device."""

    def __init__(self, device: torch.device, cpu_threads: int = 0) -> None:
        self.device = device
        self.cpu_threads = cpu_threads or len(os.sched_getaffinity(0))
        torch.set_num_threads(self.cpu_threads)
        if device.type == "cuda":  # float32 means float32: TF32 keeps 10 bits of the fraction
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
        self._ready: dict[str, Stage[Any]] = {}

    def ready(self, prepared: Prepared) -> Stage[Any]:
        """The instance's stage with its weights loaded; once per run."""
        instance = prepared.instance
        if instance.name not in self._ready:
            device = self.device_of(instance.stage)
            precision = getattr(torch, prepared.precision) if instance.stage.device == "gpu" else torch.float32
            try:
                with self.guarded(instance.name):
                    instance.stage.setup(Context(device, precision, prepared.weights, self.cpu_threads))
            except ImportError as error:
                raise WeightsError(
                    f"instance {instance.name}: {error}; install what requirements.lock names"
                ) from error
            self._ready[instance.name] = instance.stage
        return self._ready[instance.name]

    def device_of(self, stage: Stage[Any]) -> torch.device:
        """Where a stage computes."""
        return self.device if stage.device == "gpu" else torch.device("cpu")

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
    return ClipError("out_of_memory", "too long for the memory; cut it with start_s and end_s, or use --device cpu")


class Reading(Watcher):
    """Watches the thread that reads a file: whether it makes progress, and whether it opened the right file.

    Args:
        stall_s: seconds without a sign of life after which the file counts as stalled.
        on_open: called in the reading thread right after a file was opened.
    """

    def __init__(self, stall_s: float, on_open: Callable[[], None] = lambda: None) -> None:
        self.stall_s = stall_s
        self._on_open = on_open
        self._moved = time.monotonic()

    def opened(self) -> None:
        """A file was opened. Raises what ``on_open`` raises."""
        self.moved()
        self._on_open()

    def moved(self) -> None:
        """A packet was read, a frame was decoded."""
        self._moved = time.monotonic()

    def check(self, waiting_since: float) -> None:
        """Raise ClipError ``stalled`` if nothing moved since ``stall_s`` seconds; only waiting counts.

        ``waiting_since``: time.monotonic() of when the caller began to wait.
        """
        if time.monotonic() - max(self._moved, waiting_since) > self.stall_s:
            raise ClipError(
                "stalled",
                f"nothing was read or decoded for {self.stall_s:g} s; is its disk or share still there? the next run "
                "tries again, run.stall_s sets the time",
            )


@contextlib.contextmanager
def ahead(items: Iterator[Item], reading: Reading, depth: int = 1) -> Iterator[Iterator[Item]]:
    """Draw ``items`` in a thread, at most ``depth`` ahead: decoding continues while the models compute.

    An exception of the producer is raised where its item would have come, and ClipError ``stalled`` when it hangs.
    Leaving the block ends the producer; one that hangs in a decoder is left behind, for no thread can be ended.
    """
    waiting: queue.Queue[Any] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(item: object) -> bool:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                waiting.put(item, timeout=0.1)
                return True
        return False

    def produce() -> None:
        try:
            for item in items:
                reading.moved()
                if not put((item, None)):
                    return
            put((_END, None))
        except BaseException as error:  # noqa: BLE001 - carried over to the consumer's thread
            put((_END, error))
        finally:
            close = getattr(items, "close", None)
            if close:
                close()

    def next_item() -> Any:  # noqa: ANN401 - an item, or the end
        since = time.monotonic()
        while True:
            try:
                return waiting.get(timeout=POLL_S)
            except queue.Empty:
                reading.check(since)

    def consume() -> Iterator[Item]:
        while True:
            item, error = next_item()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item

    thread = threading.Thread(target=produce, name="decoding", daemon=True)
    patience_s = LET_GO_S
    try:
        thread.start()
        yield consume()
    except ClipError as error:
        patience_s = 0.0 if error.reason == "stalled" else LET_GO_S
        raise
    finally:
        with uninterrupted():  # what the thread reads is closed next
            stop.set()
            if thread.ident is not None:
                thread.join(patience_s)


def apart(read: Callable[[], Item], reading: Reading) -> Item:
    """Run ``read`` in a thread, because it may hang. Raises what it raises, or ClipError ``stalled``."""
    with ahead((read() for _ in range(1)), reading) as results:
        return next(results)
