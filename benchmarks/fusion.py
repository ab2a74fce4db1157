"""The fusion network at the paper's shapes: gathering, training and predicting, each with its equality gate.

    python -m benchmarks.fusion [--device cpu|cuda] [--pairs 7] [--frames 3000] [--only gather,loader]
                                [-o FILE.json] [--text FILE.txt]

On a CPU, one core, in turn with what each is measured by:

    gather    a batch of 256 from tables in memory, as a share of a plain copy of as many bytes (tokens, pooled)
    loader    the same without Swin, against a loader of files and slices (benchmarks/released_loader.py)
    predict   512 consecutive frames by distinct rows, against plain batches of windows: every row cast, standardised
              and projected, in a process that leaves memory to malloc; and what distinct rows alone are worth
              (their goal is for pooled Swin features: a frame's tokens are its own, nothing can share them)
    fit       the loop of ``fusion fit``, as a share of the bare step on one batch that lies ready

With ``--device cuda``: samples per second of the captured step, and what of it ``fit`` reaches, for two batch sizes,
two precisions, tables on the GPU and in memory. Features are random float16 numbers. Ends with 1 if a gate fails, with
2 if the machine was too restless.
"""

import argparse
import copy
import itertools
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.gates import GateError, require
from benchmarks.machine import commit, gemm_gflops, load_per_core, name_of, ratios, said_after, seconds
from benchmarks.plain_projection import PlainProjection
from benchmarks.released_loader import ReleasedLoader
from extract.au import AUS
from extract.timeline import centred_windows, neighbours
from fusion.config import FusionConfig
from fusion.data import Batch, Ints, Rows, Samples, Windows
from fusion.device import arithmetic
from fusion.epochs import epoch_batches
from fusion.inference import predict_outputs
from fusion.model import FusionModel
from fusion.resuming import State
from fusion.runs import Run
from fusion.selection import FRAMES, FeatureSource
from fusion.stepping import TrainStep, make_optimizer
from fusion.tables import Home
from fusion.tasks import Objective, tasks_of
from fusion.training import CHECK_STEPS, Loaded, Progress, Split, standardise, train

CPU = torch.device("cpu")
BATCH = 256
PREDICTED = 512
"""Consecutive frames."""
SIZES = {"swin": 49 * 768, "pooled": 768, "code": 9_984, "sound": 1_280, "words": 1_024}
TOKENS_PER_FRAME = 15
"""Tokens of the words within two seconds of a frame, about."""
CODES = ("still", "motion", "sound", "words")
"""The modalities but Swin."""
GOALS = {"gather": 0.5, "loader": 6.0, "predict": 2.0, "fit": 0.95}
GPU_STEPS = 100
"""Of an epoch, at least."""
H100_GOAL = 40_000
"""Samples per second of the captured step at batch 256."""


@dataclass(frozen=True)
class Row:
    """One ratio."""

    what: str
    samples_per_s: float
    """Of ours."""
    ratio: float
    low: float
    high: float
    """Median, and the range of four rounds in five."""
    goal: float | None
    gate: str

    def __str__(self) -> str:
        goal = "" if self.goal is None else f"  goal {self.goal:g}{'' if self.ratio >= self.goal else ' MISSED'}"
        spread = f"{self.ratio:6.2f} [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.what:34} {self.samples_per_s:9,.0f} samples/s {spread}{goal}\n{'':34} gate: {self.gate}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--frames", type=int, default=3000, help="a minute of 25 fps has 1500")
    parser.add_argument("--steps", type=int, default=4, help="of fit, each round, on a CPU")
    parser.add_argument("--only", default=",".join(GOALS), help="on a CPU; default: %(default)s")
    parser.add_argument("--text", type=Path, help="what is printed, as a file too")
    parser.add_argument("-o", "--output", type=Path)
    asked = parser.parse_args()
    if asked.pairs < 2:
        parser.error("--pairs: at least 2, for a range")
    lines: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = torch.device(asked.device)
    load, before = load_per_core(), gemm_gflops(device, torch.float32)
    cores = len(os.sched_getaffinity(0))
    facts = {"device": name_of(device), "threads": 1, "cores": cores, "torch": torch.__version__, "commit": commit()}
    say("{device}; {cores} cores; torch {torch}; commit {commit}".format_map(facts))
    say(f"GEMM {before:,.0f} GFLOP/s; load per core {load:.2f}")
    say(f"{asked.frames} frames, batches of {BATCH}; medians of {asked.pairs} rounds, range of four in five")
    rows, failed = [], False
    made = on_gpu(asked.frames, asked.pairs, device) if device.type == "cuda" else on_cpu(asked)
    for name, make in made:
        try:
            for row in make():
                rows.append(row)
                say(str(row))
        except GateError as error:
            say(f"{name}: NOT EQUAL: {error}; its speed says nothing")
            failed = True
    after = said_after(before, device, torch.float32, say, load)
    if asked.text:
        asked.text.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if asked.output:
        whole = facts | {"gemm_gflops": before} | {"after": asdict(after), "rows": [asdict(row) for row in rows]}
        asked.output.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return 1 if failed else 0 if after.quiet else 2


Made = Iterator[tuple[str, Callable[[], Iterator[Row]]]]


def on_cpu(asked: argparse.Namespace) -> Made:
    """What to measure on a CPU."""
    samples = paper(asked.frames)
    makers: Mapping[str, Callable[[], Iterator[Row]]] = {
        "gather": lambda: as_in_a_fit(gathered(samples, asked.pairs)),
        "loader": lambda: as_in_a_fit(loaded(samples, asked.pairs)),
        "predict": lambda: predicted(samples, asked.pairs),
        "fit": lambda: as_in_a_fit(fitted(samples, asked.pairs, asked.steps)),
    }
    for name in asked.only.split(","):
        yield name, makers[name]


def as_in_a_fit(rows: Iterator[Row]) -> Iterator[Row]:
    """Freed memory is kept, by ours and by what it is measured by."""
    with arithmetic(CPU):
        yield from rows


# ---- random features at the paper's shapes -------------------------------------------------------------------------


def paper(frames: int, *, pooled: bool = False, home: Home | None = None) -> Samples:
    """One clip of 25 fps with five modalities; its tables lie in ``home``."""
    home = home or Home("memory", CPU, "random numbers")
    random = np.random.default_rng(0)
    pts_s, centre_s = np.arange(frames) / 25, (320 * np.arange(2 * frames) + 200) / 16_000
    swin = "pooled" if pooled else "swin"
    start = np.arange(frames) // 8
    word_ranges = np.stack([start, start + random.integers(TOKENS_PER_FRAME - 5, TOKENS_PER_FRAME + 1, frames)], 1)
    rows = {"code": frames, swin: frames, "sound": 2 * frames, "words": int(word_ranges.max())}
    tables = {(name, "x"): drawn(number, SIZES[name]).to(home.device) for name, number in rows.items()}
    own = neighbours(frames, 0, 0)
    return Samples(
        clips=("clip",),
        clip=np.zeros(frames, dtype=np.int64),
        frame=np.arange(frames),
        pts_s=pts_s,
        targets={"au": torch.from_numpy(random.integers(0, 2, (frames, len(AUS))).astype(np.int8))},
        aus=AUS,
        tables=tables,
        row_times={(name, "x"): None for name in rows},
        sources={"swin": (swin, "x"), "still": ("code", "x"), "motion": ("code", "x")}
        | {name: (name, "x") for name in ("sound", "words")},
        windows={
            "swin": Windows(own),
            "still": Windows(own),
            "motion": Windows(neighbours(frames, 4, 4)),
            "sound": Windows(centred_windows(centre_s, pts_s, 2.0, 2.0)),
            "words": Windows(word_ranges.astype(np.int64)),
        },
        home=home,
    )


def drawn(rows: int, size: int) -> torch.Tensor:
    """Random float16 [rows, size], of few numbers drawn: a gather does not care."""
    some = np.random.default_rng(size).standard_normal(1 << 20).astype(np.float16)
    return torch.from_numpy(np.resize(some, (rows, size)))


def config_of(**training: object) -> FusionConfig:
    """The paper's network."""

    def sequence(kind: str, instance: str) -> dict[str, object]:
        return {"kind": kind, "instance": instance, "array": "x", "project": 64}

    return FusionConfig.model_validate({
        "modalities": {
            "swin": {"kind": "frame", "instance": "swin", "array": "x", "project": 512},
            "still": {"kind": "frame", "instance": "code", "array": "x", "project": 128},
            "motion": sequence("context", "code"),
            "sound": sequence("steps", "sound"),
            "words": sequence("tokens", "words"),
        },
        "training": {"batch": BATCH, "max_epochs": 1, "min_epoch_steps": 1} | training,
    })


def only(samples: Samples, names: tuple[str, ...]) -> Samples:
    """The same frames with some modalities."""
    return replace(samples, windows={name: samples.windows[name] for name in names})


def mixed(samples: Samples, number: int = 8) -> Iterator[Ints]:
    """Endless batches of frames drawn at random."""
    random = np.random.default_rng(1)
    return itertools.cycle([random.permutation(len(samples))[:BATCH] for _ in range(number)])


# ---- gathering -----------------------------------------------------------------------------------------------------


def gathered(samples: Samples, pairs: int) -> Iterator[Row]:
    """Against copying as many bytes from memory to memory, all of it touched before."""
    for what, subject in (("tokens", samples), ("pooled", paper(len(samples), pooled=True))):
        batches = mixed(subject)
        first = subject.batch(next(batches))
        sources = [rows.values for rows in first.inputs.values()]
        targets = [torch.empty_like(values).copy_(values) for values in sources]
        gate = slices_are_equal(subject, next(batches))

        def copy(targets: list[torch.Tensor] = targets, sources: list[torch.Tensor] = sources) -> None:
            for target, source in zip(targets, sources, strict=True):
                target.copy_(source)

        took, share, low, high = ratios(lambda s=subject, b=batches: s.batch(next(b)), copy, CPU, pairs)  # type: ignore[misc]
        num_bytes = sum(values.nbytes for values in sources)
        what = f"gather, {what}, {num_bytes / took / 1e9:.1f} GB/s"
        yield Row(what, BATCH / took, share, low, high, GOALS["gather"], gate)


def slices_are_equal(samples: Samples, index: Ints) -> str:
    """Each window is the slice of its table."""
    batch = samples.batch(index)
    for name, rows in batch.inputs.items():
        table = samples.tables[samples.sources[name]]
        for column, values in enumerate(columns(rows)):
            start, stop = samples.windows[name].ranges[index[column]]
            require(torch.equal(values, table[start:stop]), f"{name} of frame {index[column]} is not its window")
    return f"the {len(index)} windows of each modality are the slices of their tables, bit for bit"


def columns(rows: Rows) -> Iterator[torch.Tensor]:
    """The window of each sample, [length, D]."""
    rectangle = rows.values.view(*rows.shape, -1)
    for column, length in enumerate(rows.lengths.tolist()):
        yield rectangle[:length, column]


def loaded(samples: Samples, pairs: int) -> Iterator[Row]:
    """Against files and slices; without Swin, whose pictures that loader decodes."""
    subject = only(samples, CODES)

    def array(name: str) -> NDArray[np.float16]:
        return samples.tables[name, "x"].numpy()

    with tempfile.TemporaryDirectory() as folder:
        released = ReleasedLoader(
            Path(folder), array("code"), array("sound"), array("words"),
            samples.windows["sound"].ranges, samples.windows["words"].ranges, samples.labels.numpy(),
        )  # fmt: skip
        batches, others = mixed(subject), mixed(subject)
        index = next(mixed(subject))
        found, theirs = subject.batch(index), released.batch(index.tolist())
        for name, padded in zip(CODES, theirs, strict=False):
            ours = columns(found.inputs[name])
            for values, other in zip(ours, padded.view(len(index), -1, padded.shape[-1]), strict=True):
                require(torch.equal(values, other[: len(values)]), f"{name}: other rows than the files hold")
                require(not other[len(values) :].any(), f"{name}: more rows in the files")
        require(torch.equal(found.targets["au"], theirs[-1]), "other labels")
        gate = f"all rows and labels of {len(index)} samples equal, bit for bit"
        took, times, low, high = ratios(
            lambda: subject.batch(next(batches)), lambda: released.batch(next(others).tolist()), CPU, pairs
        )
    yield Row("loader, against files and slices", BATCH / took, times, low, high, GOALS["loader"], gate)


# ---- predicting ----------------------------------------------------------------------------------------------------


def network(samples: Samples, config: FusionConfig, device: torch.device = CPU) -> FusionModel:
    torch.manual_seed(0)
    sizes = {name: samples.tables[source].shape[1] for name, source in samples.sources.items()}
    model = FusionModel(sizes, config)
    standardise(model, samples)
    return model.to(device)


def predicted(samples: Samples, pairs: int) -> Iterator[Row]:
    """Against batches whose windows are gathered whole, every row of them projected."""
    yield from predicted_of(samples, pairs, "tokens", None)
    yield from predicted_of(paper(len(samples), pooled=True), pairs, "pooled", GOALS["predict"])


def predicted_of(samples: Samples, pairs: int, swin: str, goal: float | None) -> Iterator[Row]:
    """The same, with Swin's tokens (a row of 37,632 values that each frame has for itself) or its pooled feature."""
    model = network(samples, config_of()).eval()
    start = len(samples) // 3
    index = np.arange(start, min(start + PREDICTED, len(samples)))
    other = copy.deepcopy(model)
    for branch in other.branches.values():
        branch.project = PlainProjection(branch.project)  # type: ignore[arg-type]

    def by_distinct_rows() -> NDArray[np.float32]:
        return predict_outputs(model, samples, CPU, BATCH, index=index)

    def as_evaluate_does() -> NDArray[np.float32]:
        with arithmetic(CPU):
            return by_distinct_rows()

    @torch.inference_mode()
    def plain(net: FusionModel) -> NDArray[np.float32]:
        parts = [index[i : i + BATCH] for i in range(0, len(index), BATCH)]
        return np.concatenate([net(samples.batch(part).inputs).numpy() for part in parts])

    def row(what: str, ours: Callable[[], NDArray[np.float32]], net: FusionModel, goal: float | None) -> Row:
        apart = float(np.abs(ours() - plain(net)).max())
        require(apart <= 1e-4, f"outputs {apart:.1e} apart")
        took, times, low, high = ratios(ours, lambda: plain(net), CPU, pairs)
        gate = f"outputs of {len(index)} frames in a row {apart:.1e} apart at most (1e-4)"
        return Row(f"predict, {swin}; {what}", len(index) / took, times, low, high, goal, gate)

    # The plain way is that of a plain process, whose memory is new for every large tensor.
    yield row("plain rows, plain memory", as_evaluate_does, other, GOALS["predict"])
    yield from as_in_a_fit(row("distinct rows alone", by_distinct_rows, net, goal) for net in (model,))


# ---- training ------------------------------------------------------------------------------------------------------


def trainer(samples: Samples, config: FusionConfig, device: torch.device) -> TrainStep:
    model = network(samples, config, device).train()
    objective = Objective(tasks_of(config, samples.aus), config.loss, samples.aus).to(device)
    optimizer = make_optimizer(model, config.training, device)
    return TrainStep(model, objective, samples, optimizer, config.training, device)


def loop(samples: Samples, config: FusionConfig, device: torch.device, step: TrainStep) -> Progress:
    """How an epoch of ``fusion fit`` ended, but for what follows it: checkpoint, log."""
    told: list[Progress] = []
    nothing = FeatureSource({}, {}, False, {}, ())
    sources = dict.fromkeys((FRAMES, *config.instances), nothing)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder) / "run")
        run.begin(config)
        train(
            run, Loaded(Split("train", samples, {}), None, sources), config, tasks_of(config, samples.aus),
            step.model, step.objective, step.optimizer, device, State(), told.append,
        )  # fmt: skip
    return told[-1]


def losses_are_equal(samples: Samples, config: FusionConfig, device: torch.device) -> str:
    """The loop does on each batch of its epoch what the bare step does."""
    config = config.model_copy(update={"training": config.training.model_copy(update={"warmup_steps": 0})})
    step = trainer(samples, config, device)
    torch.manual_seed(1)
    found = loop(samples, config, device, step).loss
    step = trainer(samples, config, device)
    torch.manual_seed(1)
    batches = epoch_batches(samples, np.arange(len(samples)), config, 1)
    losses = [float(step(step.gather(index))) for index in batches]
    looks = CHECK_STEPS if device.type == "cuda" else 1
    expected = statistics.mean(losses[(len(losses) - 1) // looks * looks :])
    require(abs(found - expected) <= 1e-5, f"last loss {found:.7f}, the bare step's {expected:.7f}")
    return f"after {len(losses)} steps the loss is the bare step's, {abs(found - expected):.1e} apart (1e-5)"


def fitted(samples: Samples, pairs: int, steps: int) -> Iterator[Row]:
    """In turn with as many bare steps; both train the same network."""
    config = config_of(max_epoch_steps=steps)
    gate = losses_are_equal(samples, config, CPU)
    step = trainer(samples, config, CPU)
    batch = step.gather(np.arange(BATCH))
    step(batch)
    shares, rates = [], []
    for _ in range(pairs):
        rates.append(loop(samples, config, CPU, step).samples_s)
        shares.append(rates[-1] / bare_rate(step, batch, steps, CPU))
    yield Row("fit, share of the bare step", statistics.median(rates), *spread(shares), GOALS["fit"], gate)


def bare_rate(step: TrainStep, batch: Batch, steps: int, device: torch.device) -> float:
    """Samples per second on one batch that lies on the device."""
    return len(batch) * steps / seconds(lambda: [step(batch) for _ in range(steps)], device)


def spread(values: list[float]) -> tuple[float, float, float]:
    """Median, 10 % and 90 % quantile."""
    low, *_, high = statistics.quantiles(values, n=10, method="inclusive")
    return statistics.median(values), low, high


# ---- on a GPU ------------------------------------------------------------------------------------------------------


def on_gpu(frames: int, pairs: int, device: torch.device) -> Made:
    """Two batch sizes, two precisions, two places of the tables."""
    for place in ("gpu", "memory"):
        home = Home("gpu", device, "") if place == "gpu" else Home("memory", CPU, "")
        samples = replace(paper(frames, home=home), pinned=place == "memory")
        for batch, precision in itertools.product((BATCH, 1024), ("float32", "bfloat16")):
            config = config_of(batch=batch, precision=precision, graph="on", min_epoch_steps=GPU_STEPS)
            name = f"{place}, batch {batch}, {precision}"
            yield name, lambda name=name, s=samples, c=config: on_gpu_fitted(name, s, c, pairs, device)  # type: ignore[misc]


def on_gpu_fitted(name: str, samples: Samples, config: FusionConfig, pairs: int, device: torch.device) -> Iterator[Row]:
    """The captured step alone, and the loop of ``fit`` as a share of it, in turn."""
    with arithmetic(device):
        gate = losses_are_equal(samples, config, device)
        step = trainer(samples, config, device)
        batch = step.gather(np.arange(config.training.batch)).to(device)
        loop(samples, config, device, step)  # captures
        bare, rates = [], []
        for _ in range(pairs):
            bare.append(bare_rate(step, batch, GPU_STEPS, device))
            rates.append(loop(samples, config, device, step).samples_s)
    shares = [rate / each for rate, each in zip(rates, bare, strict=True)]
    goal = 1.0 if config.training.batch == BATCH else None
    speeds = spread([each / H100_GOAL for each in bare])
    yield Row(f"captured step, {name}, / {H100_GOAL}", statistics.median(bare), *speeds, goal, gate)
    yield Row(f"fit, share of it, {name}", statistics.median(rates), *spread(shares), GOALS["fit"], gate)


if __name__ == "__main__":
    sys.exit(main())
