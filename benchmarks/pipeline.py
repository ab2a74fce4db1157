"""The whole pipeline, end to end: ours against the naive chain of the original scripts, in one interleaved run.

    python -m benchmarks.pipeline [--device cpu|cuda] [--pairs 5] [--movies | --crops | --demo] [-o FILE.json]
                                  [--text FILE.txt]

Three cases: movies whose faces are small enough that Real-ESRGAN runs on every frame; crops of 112 pixels that are
given, as in Aff-Wild2; and, on a CPU, the demo's own config, our two engines alone. On a CPU with small networks (the
demo's, and a small Real-ESRGAN), on a GPU with the published sizes and the published precision of ours; weights are
random. Each round runs every contender once: the overlapping engine, the serial engine, the naive chain (on fewer
frames). Loading the networks is left out of every speed, and reported. Ends with 1 if a gate fails, with 2 if the
machine was too restless; numbers are printed all the same.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import extract
from benchmarks import pipeline_configs
from benchmarks.drawn_clips import add_crops, draw_movies
from benchmarks.machine import commit, gemm_gflops, load_per_core, name_of, said_after
from benchmarks.naive_chain import NaiveChain
from benchmarks.naive_gates import Gate, check
from extract.config import ExtractConfig, load_extract_config
from extract.inputs.manifest import Clip
from extract.running.recipes import DEFAULT_PRECISION
from extract.running.report import Progress

ENGINES = ("lanes", "serial")
"""What ``run.engine`` may be, the fastest first."""
NAIVE = "naive"
GOALS = {
    "cpu": "goal on 2 cores: the serial engine takes at least 1.6 times as long",
    "cuda": "goals on an H100 with 16 cores: at least 350 frames/s end to end, GPU busy at least 0.90",
}
CANVAS = {"cpu": (256, 256), "cuda": (640, 360)}


@dataclass(frozen=True)
class Sizes:
    """How much is done in a round."""

    clips: int
    frames: int
    """Of all clips, by each engine of ours."""
    naive_frames: int
    """By the naive chain: the first ones of each clip."""


DEMO_CLIPS, DEMO_FRAMES = 9, 125
"""A quarter of the demo's, whole: of few clips the last one, which has the lanes for itself, takes much of the time."""

SIZES = {"cpu": Sizes(4, 256, 12), "cuda": Sizes(8, 2000, 48)}


@dataclass(frozen=True)
class Measured:
    """One run of one contender."""

    frames: int
    work_s: float
    setup_s: float
    cores: float
    """Of the CPU that were busy, on average."""
    shares: Mapping[str, float]
    """Lane -> part of the time that it was busy; of the naive chain, step -> part of the time that it took."""

    @property
    def per_s(self) -> float:
        return self.frames / self.work_s


@dataclass
class Contender:
    """All runs of one contender in one case."""

    name: str
    run: Callable[[Path], Measured]
    rounds: list[Measured] = field(default_factory=list)


@dataclass(frozen=True)
class Ratio:
    """How many times as long ``other`` takes for a frame as ``ours``: of the rounds' ratios."""

    ours: str
    other: str
    median: float
    low: float
    high: float
    """10 % and 90 % quantile."""

    def __str__(self) -> str:
        return f"{self.other} takes {self.median:.2f} times as long as {self.ours} [{self.low:.2f}, {self.high:.2f}]"


# ---- contenders ----------------------------------------------------------------------------------------------------


class Stopwatch(Progress):
    """Notes when a run has its networks and begins to work."""

    began_s = 0.0
    cpu_s = 0.0

    def start(self, sizes: Mapping[str, int]) -> None:
        del sizes
        self.began_s, self.cpu_s = time.perf_counter(), used_cpu_s()


def ours(config: ExtractConfig, clips: Sequence[Clip], engine: str, device: torch.device, store: Path) -> Measured:
    """One run of ours into a new store."""
    config = config.model_copy(update={"run": config.run.model_copy(update={"engine": engine})})
    watch, started = Stopwatch(), time.perf_counter()
    report = extract.run(clips, store, config, device=str(device), progress=watch)
    ended = time.perf_counter()
    if report.exit_code:
        raise RuntimeError(f"the {engine} engine failed: {report.failures}")
    work_s = ended - watch.began_s
    frames = sum(record.rows for record in _records(store, clips))
    cores = (used_cpu_s() - watch.cpu_s) / work_s
    return Measured(frames, work_s, watch.began_s - started, cores, report.speed.busy if report.speed else {})


def naive(
    config: ExtractConfig,
    clips: Sequence[Clip],
    device: torch.device,
    precision: torch.dtype,
    frames: int,
    folder: Path,
) -> Measured:
    """One run of the scripts' chain into a new folder."""
    torch.set_num_threads(cores())
    each = max(1, frames // len(clips))
    chain = NaiveChain(config, folder, device, precision, most_frames=each)
    cpu_s, started = used_cpu_s(), time.perf_counter()
    steps = chain.run(clips)
    work_s = time.perf_counter() - started
    shares = {name: seconds / work_s for name, seconds in steps.items()}
    return Measured(each * len(clips), work_s, chain.setup_s, (used_cpu_s() - cpu_s) / work_s, shares)


def _records(store: Path, clips: Sequence[Clip]) -> list[Any]:
    opened = extract.open_store(store)
    return [opened.record(clip.id, "frames") for clip in clips]


def used_cpu_s() -> float:
    """Seconds of CPU of this process and its ended children."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def cores() -> int:
    return len(os.sched_getaffinity(0))


# ---- a case --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Clips, and how they are worked on."""

    name: str
    clips: Sequence[Clip]
    config: ExtractConfig
    device: torch.device
    precision: torch.dtype
    naive_frames: int
    """0: the naive chain is left out."""

    def contenders(self) -> list[Contender]:
        found = [Contender(engine, self._ours(engine)) for engine in ENGINES]
        return [*found, Contender(NAIVE, self._naive)] if self.naive_frames else found

    def _ours(self, engine: str) -> Callable[[Path], Measured]:
        return lambda folder: ours(self.config, self.clips, engine, self.device, folder)

    def _naive(self, folder: Path) -> Measured:
        return naive(self.config, self.clips, self.device, self.precision, self.naive_frames, folder)


def measure(
    case: Case, pairs: int, folder: Path, say: Callable[[str], None]
) -> tuple[list[Contender], list[Ratio], bool]:
    """Gates, then rounds; the bool says whether all gates hold."""
    also = "; the naive chain does the first frames of each" if case.naive_frames else ", without the naive chain"
    say(f"\n{case.name}: {len(case.clips)} clips{also}")
    gates: Sequence[Gate] = ()
    if case.naive_frames:
        wordiest = max(case.clips, key=lambda clip: clip.transcript.stat().st_size if clip.transcript else 0)
        gates = check(case.config, wordiest, folder / "gates", case.device, case.precision)
    for gate in gates:
        say(f"  gate {gate}")
    equal = all(gate.holds for gate in gates)
    contenders = case.contenders()
    for number in range(pairs):
        # Every round begins with another one: none has the caches of the one before it always.
        turn = number % len(contenders)
        for contender in [*contenders[turn:], *contenders[:turn]]:
            contender.rounds.append(contender.run(folder / contender.name))
        if number == 0:
            gate = engines_agree(folder)
            say(f"  gate {gate}")
            equal = equal and gate.holds
        for contender in contenders:
            shutil.rmtree(folder / contender.name)
    for contender in contenders:
        say(f"  {described(contender)}")
    pairings = [(ENGINES[0], contender.name) for contender in contenders if contender.name != ENGINES[0]]
    found = [ratio(contenders, first, other) for first, other in pairings]
    for one in found:
        say(f"  {one}")
    return contenders, found, equal


def engines_agree(folder: Path) -> Gate:
    """Whether the engines' stores hold the same blocks, byte for byte."""
    first, second = (
        {path.relative_to(folder / name): path.read_bytes() for path in (folder / name).rglob("c.*")}
        for name in ENGINES
    )
    other = [path for path in first.keys() | second.keys() if first.get(path) != second.get(path)]
    found = f"{len(first)} blocks, {len(other)} of them differ between the engines"
    return Gate("engines", bool(first) and not other, found)


def ratio(contenders: Sequence[Contender], first: str, other: str) -> Ratio:
    by_name = {contender.name: contender.rounds for contender in contenders}
    times = [mine.per_s / theirs.per_s for mine, theirs in zip(by_name[first], by_name[other], strict=True)]
    if len(times) == 1:
        return Ratio(first, other, times[0], times[0], times[0])
    low, *_, high = statistics.quantiles(times, n=10, method="inclusive")
    return Ratio(first, other, statistics.median(times), low, high)


def described(contender: Contender) -> str:
    rounds = contender.rounds
    per_s, work_s, busy, setup_s = (
        statistics.median(values)
        for values in zip(*((one.per_s, one.work_s, one.cores, one.setup_s) for one in rounds), strict=True)
    )
    names = dict.fromkeys(name for one in rounds for name in one.shares)
    shares = {name: statistics.median(one.shares.get(name, 0.0) for one in rounds) for name in names}
    what = "of the time" if contender.name == NAIVE else "busy"
    told = f"; {what}: " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items()) if shares else ""
    speed = f"{contender.name:7} {per_s:9.2f} frames/s ({rounds[-1].frames} frames in {work_s:.1f} s"
    return f"{speed}, {busy:.1f} cores busy; set-up {setup_s:.1f} s{told})"


# ---- the command ---------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parsed(arguments)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = torch.device("cuda:0" if asked.device == "cuda" else "cpu")
    lines: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    facts = machine(device)
    say("{device}; {cores} cores; torch {torch}; {precision}; commit {commit}".format_map(facts))
    say("GEMM {gemm_gflops:,.0f} GFLOP/s; load per core {load_per_core:.2f}".format_map(facts))
    say(f"{GOALS[device.type]}; medians of {asked.pairs} rounds, ratios with the range of four rounds in five")
    with tempfile.TemporaryDirectory() as name:
        results = [measured_case(case, asked.pairs, Path(name), say) for case in cases(asked, Path(name), device)]
    equal = all(result["equal"] for result in results)
    say("\nall gates hold" if equal else "\na gate failed: these speeds say nothing")
    torch.set_num_threads(1)
    precision = getattr(torch, DEFAULT_PRECISION[device.type])
    after = said_after(facts["gemm_gflops"], device, precision, say, facts["load_per_core"])
    if asked.text:
        asked.text.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if asked.output:
        whole = {"before": facts, "after": asdict(after), "cases": results}
        asked.output.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return 1 if not equal else 0 if after.quiet else 2


def machine(device: torch.device) -> dict[str, Any]:
    """What can be said of it now."""
    torch.set_num_threads(1)
    precision = DEFAULT_PRECISION[device.type]
    return {
        "device": name_of(device),
        "cores": cores(),
        "torch": torch.__version__,
        "precision": precision,
        "commit": commit(),
        "gemm_gflops": gemm_gflops(device, getattr(torch, precision)),
        "load_per_core": load_per_core(),
    }


def measured_case(case: Case, pairs: int, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """One case as JSON has it."""
    contenders, found, equal = measure(case, pairs, folder / case.name, say)
    return {
        "case": case.name,
        "equal": equal,
        "rounds": {contender.name: [asdict(one) for one in contender.rounds] for contender in contenders},
        "ratios": [asdict(one) for one in found],
    }


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pairs", type=int, default=5, help="rounds, in each of which every contender runs once")
    parser.add_argument("--clips", type=int, help="how many; 4 on a CPU, 8 on a GPU")
    parser.add_argument("--frames", type=int, help="of all clips together; 256 on a CPU, 2000 on a GPU")
    parser.add_argument("--naive-frames", type=int, help="that the naive chain does; 12 on a CPU, 48 on a GPU")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--movies", action="store_true", help="only this case")
    only.add_argument("--crops", action="store_true", help="only this case")
    only.add_argument("--demo", action="store_true", help="only this case")
    parser.add_argument("-o", "--output", type=Path, help="all numbers as JSON")
    parser.add_argument("--text", type=Path, help="what is printed, as a file too")
    return parser.parse_args(arguments)


def cases(asked: argparse.Namespace, folder: Path, device: torch.device) -> list[Case]:
    """Those that are asked for, their clips drawn."""
    usual, precision = SIZES[device.type], getattr(torch, DEFAULT_PRECISION[device.type])
    chosen = next((name for name in ("movies", "crops", "demo") if getattr(asked, name)), None)
    found = []
    if chosen != "demo":
        make = pipeline_configs.published if device.type == "cuda" else pipeline_configs.small
        (folder / "weights").mkdir()
        config = make(folder / "weights")
        num_clips, frames = asked.clips or usual.clips, asked.frames or usual.frames
        clips = draw_movies(folder / "clips", num_clips, max(1, frames // num_clips), CANVAS[device.type])
        naive_frames = asked.naive_frames or usual.naive_frames
        if chosen != "crops":
            found.append(Case("movies", clips, config, device, precision, naive_frames))
        if chosen != "movies":
            found.append(Case("crops", add_crops(clips, folder / "faces"), config, device, precision, naive_frames))
    if chosen == "demo" or (chosen is None and device.type == "cpu"):
        demo = load_extract_config("demo", [pipeline_configs.LEFT_OUT])
        many = draw_movies(folder / "demo_clips", DEMO_CLIPS, asked.frames or DEMO_FRAMES)
        found.append(Case("demo", many, demo, device, precision, 0))
    return found


if __name__ == "__main__":
    sys.exit(main())
