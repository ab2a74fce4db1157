"""Sound, manifests and settings for the tests of ``extract adapt --stage hubert``."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from extract.config import ExtractConfig
from extract.inputs.manifest import Clip, write_manifest
from tests.media_files import write_clip

ROOT = Path(__file__).resolve().parents[1]

QUICK: dict[str, Any] = {
    "targets": {"clusters": 6},
    "steps": 6,
    "head_steps": 2,
    "warmup_steps": 2,
    "lr": 1e-3,
    "head_lr": 2e-3,
    "batch_s": 4.5,
    "device_s": 2.2,
    "crop_s": 1.0,
    "least_s": 0.6,
    "eval_steps": 3,
    "mask_steps": 5,
}
"""Seconds of computing: nothing is learned in it."""


def murmur(seed: int, duration_s: float = 4.0) -> np.ndarray[Any, Any]:
    """Noise whose colour and strength change four times a second, as syllables do: float64 [n] at 16 kHz."""
    random = np.random.default_rng([seed, 0xADA])
    pieces = []
    for _ in range(round(4 * duration_s)):
        noise = random.standard_normal(4000 + 64)
        width = int(random.integers(1, 64))
        pieces.append(np.convolve(noise, np.ones(width) / width, "valid")[:4000] * random.uniform(0.02, 0.3))
    return np.clip(np.concatenate(pieces), -0.99, 0.99)


def write_speech(folder: Path, splits: Mapping[str, str], **more: float) -> Path:
    """A manifest ``m.yaml`` of sound files, one per clip -> split; every clip is a recording of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    clips = []
    for number, (name, split) in enumerate(splits.items()):
        path = write_clip(folder / f"{name}.wav", sound=murmur(number, **more))
        clips.append(Clip.model_validate({"id": name, "audio": path, "split": split or None}))
    write_manifest(folder / "m.yaml", clips, "")
    return folder / "m.yaml"


def quick(**changes: Any) -> ExtractConfig:
    """A config with QUICK settings, changed."""
    return ExtractConfig.model_validate({"adapt": {"hubert": QUICK | changes}})


def command(manifest: Path, output: Path, **changes: Any) -> list[str]:
    """The same as arguments of ``python``: ``-m extract adapt ...``."""
    flat: dict[str, Any] = {}
    for name, value in (QUICK | changes).items():
        inner = value if isinstance(value, dict) else {}
        flat |= {f"{name}.{key}": one for key, one in inner.items()} if inner else {name: value}
    sets = [word for name, value in flat.items() for word in ("--set", f"adapt.hubert.{name}={value}")]
    fixed = ["-m", "extract", "adapt", "--stage", "hubert", "--weights", "random", "--architecture", "small"]
    return [*fixed, "--device", "cpu", "-q", "--manifest", str(manifest), "-o", str(output), *sets]


def start(arguments: list[str], **environment: str) -> "subprocess.Popen[str]":
    """A process of its own, of one thread."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **threads, **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
