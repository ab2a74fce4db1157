"""What set-up, landmarks and RoBERTa cost: each in turn with the plain way, with its equality gate.

    python -m benchmarks.setup [--device cpu|cuda] [--pairs 7] [--threads 1] [--architecture base] [--minutes 3]

The plain way hashes weights at every plan, reads dlib's landmark file once per stage, asks dlib for the landmarks of
one face after the other, and gives the network one text at a time. Weights of RoBERTa are random, of the published
sizes. Ends with 1 if a gate fails, with 2 if the machine was too restless.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dlib
import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from benchmarks.gates import GateError, require
from benchmarks.machine import gemm_gflops, name_of, ratios, said_after
from extract.models import dlib_faces
from extract.models import roberta as models
from extract.running.recipes import DEFAULT_PRECISION
from extract.stage import Context
from extract.stages import roberta
from extract.stages.detections import Detections, DetectionsConfig
from extract.stages.landmarks import Landmarks, LandmarksConfig
from extract.stages.roberta import Roberta, RobertaConfig
from extract.weights import hashes
from extract.weights.files import Weights, path_sha256
from extract.weights.hashes import remembered_sha256
from extract.weights.resolving import resolve

CPU = torch.device("cpu")
WEIGHTS_MB = 400


@dataclass(frozen=True)
class Pair:
    """One thing done our way and the plain way."""

    name: str
    ours: Callable[[], object]
    plain: Callable[[], object]
    device: torch.device
    gate: Callable[[], str]
    """What was compared; raises GateError."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU; two contend on a shared machine")
    parser.add_argument("--architecture", default="base", choices=("large", "base", "small"))
    parser.add_argument("--minutes", type=float, default=3.0, help="of speech")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = torch.device(asked.device)
    precision = getattr(torch, DEFAULT_PRECISION[device.type])
    before = gemm_gflops(device, precision)
    print(f"{name_of(device)}; torch {torch.__version__}; {precision}; GEMM {before:,.0f} GFLOP/s")
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for pair in (
            hashed(Path(folder)),
            landmark_file(),
            *landmarks(),
            *texts(asked.architecture, asked.minutes, device, precision),
        ):
            try:
                gate = pair.gate()
            except GateError as error:
                print(f"{pair.name}: NOT EQUAL: {error}; its speed says nothing")
                failed = True
                continue
            seconds, times, low, high = ratios(pair.ours, pair.plain, pair.device, asked.pairs)
            print(
                f"{pair.name}: {seconds:.4g} s; the plain way takes {times:.3g} times as long [{low:.3g}, {high:.3g}]; "
                f"{gate}",
                flush=True,
            )
    quiet = said_after(before, device, precision).quiet
    return 1 if failed else 0 if quiet else 2


def hashed(folder: Path) -> Pair:
    """A plan of three stages that share a file of weights, in a process that has just begun."""
    path = folder / "model.safetensors"
    with path.open("wb") as file:
        for number in range(WEIGHTS_MB):
            file.write(np.random.default_rng(number).bytes(1 << 20))
    cache = folder / "cache"
    cache.mkdir()
    hashes.SETTLED_S = 0.0  # the file has just been written

    def ours() -> list[str]:
        hashes._seen.clear()
        return [remembered_sha256(path, cache) for _ in range(3)]

    def plain() -> list[str]:
        return [path_sha256(path) for _ in range(3)]

    def gate() -> str:
        require(ours() == plain() == ours(), "another sha256")
        return f"the same sha256 of {WEIGHTS_MB} MB for three stages"

    return Pair("weights hashed", ours, plain, CPU, gate)


def landmark_file() -> Pair:
    """``detections`` and ``landmarks`` of one run set up."""
    stages: list[Any] = [Detections(DetectionsConfig()), Landmarks(LandmarksConfig())]
    weights = [resolve(stage.config.weights, stage, offline=True) for stage in stages]

    def set_up(forget: Callable[[], None]) -> list[Any]:
        dlib_faces._read.cache_clear()
        for stage, own in zip(stages, weights, strict=True):
            stage.setup(Context(CPU, torch.float32, own))
            forget()
        return [stage._faces for stage in stages]

    def ours() -> list[Any]:
        return set_up(lambda: None)

    def plain() -> list[Any]:
        return set_up(dlib_faces._read.cache_clear)

    def gate() -> str:
        picture = np.random.default_rng(0).integers(0, 256, (120, 120, 3), dtype=np.uint8)
        points = [faces.landmarks([picture], np.array([[20, 20, 90, 90]])) for faces in (*ours(), *plain())]
        require(all(np.array_equal(one, points[0]) for one in points), "other landmarks")
        return "the same landmarks"

    return Pair("dlib's landmark file for two stages", ours, plain, CPU, gate)


def landmarks() -> Iterator[Pair]:
    """64 faces, sixteen at a time, in one thread and in one on every core: dlib keeps Python's lock."""
    stage = Landmarks(LandmarksConfig())
    weights = resolve(stage.config.weights, stage, offline=True)
    faces, predictor = dlib_faces.shared_faces(weights), dlib.shape_predictor(str(weights.path))
    rng = np.random.default_rng(3)
    images = [rng.integers(0, 256, (200, 200, 3), dtype=np.uint8) for _ in range(64)]
    boxes = np.tile([40, 40, 160, 160], (64, 1)) + rng.integers(-20, 20, (64, 4))

    def plain(some: slice) -> NDArray[np.float32]:
        pairs = zip(images[some], boxes[some].tolist(), strict=True)
        shapes = [predictor(image, dlib.rectangle(*box)).parts() for image, box in pairs]
        return np.array([[(point.x, point.y) for point in shape] for shape in shapes], np.float32)

    def together(some: slice) -> NDArray[np.float32]:
        return faces.landmarks(images[some], boxes[some])

    def in_threads(way: Callable[[slice], NDArray[np.float32]], threads: int) -> Callable[[], NDArray[np.float32]]:
        pool = ThreadPoolExecutor(threads)
        return lambda: np.concatenate(list(pool.map(way, [slice(at, at + 16) for at in range(0, 64, 16)])))

    def gate() -> str:
        require(np.array_equal(in_threads(together, 2)(), plain(slice(0, 64))), "other points than dlib's")
        return "dlib's own points"

    for threads in (1, os.cpu_count() or 1):
        name = f"landmarks of 64 faces in {threads} thread(s)"
        yield Pair(name, in_threads(together, threads), in_threads(plain, threads), CPU, gate)


def texts(architecture: str, minutes: float, device: torch.device, precision: torch.dtype) -> Iterator[Pair]:
    """The words around every frame of a recording at 30 frames a second, 2.5 words a second."""
    stage = Roberta(RobertaConfig.model_validate({"weights": "random", "architecture": architecture}))
    bytewise = models.load_tokenizer
    # The published vocabularies are not at hand: every byte is a token, so words of one letter make texts of the usual
    # length, about 20 tokens.

    def load_tokenizer(architecture: str, weights: Weights) -> Tokenizer:
        del architecture
        return bytewise("small", weights)

    models.load_tokenizer = load_tokenizer
    try:
        stage.setup(Context(device, precision, resolve("random", stage)))
    finally:
        models.load_tokenizer = bytewise
    count = round(150 * minutes)
    begin = np.cumsum(np.random.default_rng(1).uniform(0.2, 0.6, count))
    words = "abcdefghijklmnopqrstuvwxyz"
    inputs = {
        "transcribe.text": [words[i] for i in np.random.default_rng(2).integers(0, len(words), count)],
        "transcribe.start_s": torch.from_numpy(begin),
        "transcribe.end_s": torch.from_numpy(begin + 0.15),
        "frames.pts_s": torch.arange(round(minutes * 60 * 30), dtype=torch.float64) / 30,
    }
    together = roberta.TOKENS_AT_ONCE

    def encoded(tokens_at_once: int) -> Any:
        roberta.TOKENS_AT_ONCE = tokens_at_once
        try:
            return stage.compute(inputs)
        finally:
            roberta.TOKENS_AT_ONCE = together

    def gate() -> str:
        found, alone = encoded(together), encoded(1)
        apart = float((found.arrays["token"] - alone.arrays["token"]).norm() / alone.arrays["token"].norm())
        most = 1e-5 if precision == torch.float32 else 4e-3
        require(apart <= most, f"{apart:.1e} relative from one at a time, at most {most:.0e}")
        counts = f"{found.notes['texts']} texts in {found.notes['forwards']} forwards, not {alone.notes['forwards']}"
        return f"{counts}; {apart:.1e} relative from one at a time (at most {most:.0e})"

    yield Pair(f"RoBERTa {architecture}", lambda: encoded(together), lambda: encoded(1), device, gate)


if __name__ == "__main__":
    sys.exit(main())
