"""What the machine does at the moment: its matrix-product peak and its load, so that ratios can be believed."""

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

PROBE_S = 1.0
MOST_LOAD = 1.5
"""Processes that want to run, per core: more, and others were at work."""
MOST_DRIFT = 0.15
"""Share by which the peak may change during a run; beyond it the run says nothing."""


def synchronise(device: torch.device) -> None:
    """Wait until the device is through."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of one call, the device idle before and after."""
    synchronise(device)
    start = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - start


def gemm_gflops(device: torch.device, precision: torch.dtype) -> float:
    """Matrix product of random square matrices, GFLOP/s: the best of a second's calls."""
    side = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(side, side, device=device).to(precision) for _ in range(2))
    seconds(lambda: a @ b, device)
    best, until = float("inf"), time.perf_counter() + PROBE_S
    while time.perf_counter() < until:
        best = min(best, seconds(lambda: a @ b, device))
    return 2 * side**3 / best / 1e9


def name_of(device: torch.device) -> str:
    """As people call it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{model or platform.processor() or 'CPU'}, {torch.get_num_threads()} thread(s)"


def commit() -> str:
    """Of the repository, with a ``+`` where files were changed; ``unknown`` without git."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def load_per_core() -> float:
    """Processes that want to run, per core."""
    return os.getloadavg()[0] / len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class After:
    """The machine at the end of a measurement."""

    gemm_gflops: float
    load_per_core: float
    quiet: bool
    """Whether the numbers can be believed."""


def said_after(
    before: float,
    device: torch.device,
    precision: torch.dtype,
    say: Callable[[str], object] = print,
    load_before: float = 0.0,
) -> After:
    """Say how far the peak has moved from ``before`` (GFLOP/s), and the greater load of before and after."""
    after = gemm_gflops(device, precision)
    drift, load = abs(after / before - 1), max(load_before, load_per_core())
    say(f"GEMM after it {after:,.0f} GFLOP/s ({drift:.0%} apart); most load per core {load:.2f}")
    quiet = drift <= MOST_DRIFT and load <= MOST_LOAD
    if not quiet:
        say("the machine was too restless for these numbers")
    return After(after, load, quiet)


def ratios(
    ours: Callable[[], object], other: Callable[[], object], device: torch.device, pairs: int
) -> tuple[float, float, float, float]:
    """Median seconds of ours; how many times as long the other takes: median, 10 % and 90 % quantile of the pairs."""
    ours(), other()  # both warm
    mine, times = [], []
    for _ in range(pairs):
        mine.append(seconds(ours, device))
        times.append(seconds(other, device) / mine[-1])
    low, *_, high = statistics.quantiles(times, n=10, method="inclusive")
    return statistics.median(mine), statistics.median(times), low, high
