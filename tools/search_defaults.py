"""The search behind the defaults of ``fusion.training``: learning rate, warm-up and weight decay on planted features.

    python tools/search_defaults.py [-o docs/fusion-defaults.txt]

Features of frozen encoders are drawn, with what makes real ones hard: every clip has an offset of its own (a person, a
room), labels depend on two modalities at once and are wrong in 5 % of frames, frames of a clip are alike, and rare AUs
are rare. What the numbers say about real corpora is how sensitive a fit is to these settings, not how good it can be.
"""

import argparse
import itertools
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from extract.records import Record
from extract.stage import Output
from extract.store import Store
from extract.timeline import FRAMES, Table
from fusion.config import FusionConfig
from fusion.evaluation import evaluate
from fusion.training import fit

RATES = (3e-4, 1e-3, 3e-3, 1e-2)
WARMUPS = (0, 20, 100)
DECAYS = (1e-5,)
SEEDS = (1, 2, 3)
SPLITS = {"train": 12, "val": 4, "test": 6}
FRAMES_PER_CLIP, SWIN, GHFEAT, HUBERT = 200, 128, 192, 48
STEPS = Table("step")


def draw(path: Path, seed: int) -> None:
    """A store of planted features for 22 clips of 12 seconds."""
    random = np.random.default_rng(seed)
    store = Store.open(path, "a")
    reads = {name: random.standard_normal((size, 12)) / np.sqrt(size) for name, size in
             (("swin", SWIN), ("ghfeat", GHFEAT), ("hubert", HUBERT))}  # fmt: skip
    mix = random.dirichlet((1.0, 1.0, 1.0), 12).T  # [3, 12]: how much of each modality an AU shows in
    priors = np.linspace(0.03, 0.6, 12)
    for split, count in SPLITS.items():
        for number in range(count):
            clip = f"{split}{number}"
            store.set_attributes(clip, {"subject": clip, "source_video": clip, "split": split})
            hidden = _slow(random, FRAMES_PER_CLIP, 12)  # [T, 12]: the activity of each AU
            hidden = hidden - np.diag(np.quantile(hidden, 1 - priors, axis=0))
            labels = (hidden > 0) ^ (random.random(hidden.shape) < 0.05)
            arrays: dict[str, NDArray[Any]] = {}
            for row, (name, size) in enumerate((("swin", SWIN), ("ghfeat", GHFEAT))):
                noise = 0.7 * random.standard_normal((FRAMES_PER_CLIP, size))
                offset = 0.7 * random.standard_normal(size)
                arrays[name] = (hidden * mix[row]) @ reads[name].T * 3 + offset + noise
            at = np.minimum(np.arange(2 * FRAMES_PER_CLIP - 1) // 2, FRAMES_PER_CLIP - 1)
            sound = (hidden[at] * mix[2]) @ reads["hubert"].T * 3 + random.standard_normal((len(at), HUBERT))
            _write(store, clip, "frames", {"pts_s": np.arange(FRAMES_PER_CLIP) / 25})
            _write(store, clip, "labels", {"au": labels.astype(np.int8)})
            present = np.ones(FRAMES_PER_CLIP, dtype=np.bool_)
            _write(store, clip, "swin", {"feature": arrays["swin"].astype(np.float16), "valid": present})
            _write(store, clip, "ghfeat", {"code": arrays["ghfeat"].astype(np.float16), "valid": present})
            centre_s = (320 * np.arange(len(at)) + 200) / 16000
            _write(store, clip, "hubert", {"feature": sound.astype(np.float16), "centre_s": centre_s})


def _slow(random: np.random.Generator, frames: int, width: int) -> NDArray[np.float64]:
    """Noise that is alike within half a second, deviation 1."""
    kernel = np.hanning(15)
    rough = random.standard_normal((frames + 14, width))
    columns = [np.convolve(column, kernel, "valid") for column in rough.T]
    smooth: NDArray[np.float64] = np.stack(columns, axis=1)
    smooth /= smooth.std()
    return smooth


def _write(store: Store, clip: str, instance: str, arrays: dict[str, NDArray[Any]]) -> None:
    clock = STEPS if instance == "hubert" else FRAMES
    outputs = {Output(name, clock, ("feature",) * (values.ndim - 1), values.shape[1:], str(values.dtype)): values
               for name, values in arrays.items()}  # fmt: skip
    store.write_whole(clip, instance, outputs, fingerprint=f"{instance}-{clip}")
    recipe = {"stage": instance, "version": 1, "config": {}}
    rows = len(next(iter(arrays.values())))
    store.write_record(clip, instance, Record("done", recipe, {}, f"{instance}-{clip}", rows))


def settings(rate: float, warmup: int, decay: float, seed: int) -> FusionConfig:
    """The default network on the planted arrays."""
    return FusionConfig.model_validate({
        "modalities": {
            "swin": {"kind": "frame", "instance": "swin", "array": "feature", "project": 128},
            "ghfeat": {"kind": "frame", "instance": "ghfeat", "array": "code", "project": 64},
            "ghfeat_context": {"kind": "context", "instance": "ghfeat", "array": "code", "project": 32},
            "hubert": {
                "kind": "steps", "instance": "hubert", "array": "feature", "before_s": 0.3, "after_s": 0.3,
                "project": 32,
            },
        },
        "model": {"hidden": 16, "head": 128},
        "training": {
            "lr": rate, "warmup_steps": warmup, "weight_decay": decay, "seed": seed, "min_epoch_steps": 1, "batch": 128,
        },
    })  # fmt: skip


def main() -> None:
    """Fit every combination on every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-o", "--output", type=Path, help="write the table to this file, too")
    chosen = parser.parse_args()
    logging.getLogger("fusion").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    began = time.monotonic()
    found: dict[tuple[float, int, float], list[tuple[float, float, int]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            store = Path(folder) / f"store{seed}.zarr"
            draw(store, seed)
            for rate, warmup, decay in itertools.product(RATES, WARMUPS, DECAYS):
                run = Path(folder) / f"{seed}-{rate}-{warmup}-{decay}"
                val, _ = fit(store, run, settings(rate, warmup, decay, seed), device="cpu")
                test = evaluate(store, run, device="cpu")
                scores = (val.scores.mean_f1, test.scores.mean_f1, val.epoch)
                found.setdefault((rate, warmup, decay), []).append(scores)
    lines = [
        f"{len(SEEDS)} planted corpora of {SPLITS['train']} + {SPLITS['val']} + {SPLITS['test']} clips, mean F1 in %",
        "(deviation over seeds) at the best epoch",
        f"{'lr':>8} {'warm-up':>8} {'decay':>8} {'val':>14} {'test':>14} {'epoch':>6}",
    ]
    for (rate, warmup, decay), rows in found.items():
        val_f1, test_f1, epoch = np.array(rows).T
        lines.append(
            f"{rate:8.0e} {warmup:8d} {decay:8.0e} {100 * val_f1.mean():7.1f} ({100 * val_f1.std(ddof=1):3.1f}) "
            f"{100 * test_f1.mean():7.1f} ({100 * test_f1.std(ddof=1):3.1f}) {epoch.mean():6.1f}"
        )
    lines.append(f"{time.monotonic() - began:.0f} s on one core, torch {torch.__version__}")
    text = "\n".join(lines)
    print(text)
    if chosen.output:
        chosen.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
