"""The demo from end to end, by the commands a person would type: draw, extract, fit, evaluate, table.

python tools/demo.py            seed 0: demo/
python tools/demo.py 1 2 3      these seeds, each in demo/seed_N/, and the table over them
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import fusion
from fusion.evaluation import Evaluation, interval, mean

DEMO = Path("demo")
BASELINES = {"zeros": "all zero", "ones": "all one", "prior": "prior"}


def run(*command: object) -> float:
    """Run one command of this environment, shown first; its seconds."""
    words = [str(word) for word in command]
    print(f"\n$ {' '.join(words)}", flush=True)
    began = time.monotonic()
    done = subprocess.run([Path(sys.executable).with_name(words[0]), *words[1:]], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    return time.monotonic() - began


def demo(seed: int) -> Evaluation:
    """Everything for one seed; leaves ``metrics.json`` beside the store."""
    home = DEMO if seed == 0 else DEMO / f"seed_{seed}"
    manifest = Path("data_manifest.yaml") if seed == 0 else home / "manifest.yaml"
    store, fitted = home / "store.zarr", home / "run"
    shutil.rmtree(fitted, ignore_errors=True)  # a finished run is not fitted again
    seconds = {
        "draw": run("extract", "demo", *(["--seed", seed] if seed else [])),
        "extract": run("extract", "run", "-c", "demo", "--manifest", manifest, "--store", store),
        "fit": run("fusion", "fit", "-q", "-c", "demo", "--features", store, "-o", fitted),
        "evaluate": run("fusion", "evaluate", "--features", store, "--run", fitted),
    }
    found = fusion.evaluate(store, fitted)
    told = {
        "seed": seed,
        "seconds": {name: round(value, 1) for name, value in seconds.items()}
        | {"sum": round(sum(seconds.values()), 1)},
        "machine": {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()},
        "test": found.as_json(),
    }
    (home / "metrics.json").write_text(json.dumps(told, indent=1) + "\n")
    print(f"\n{home / 'metrics.json'} written; {', '.join(f'{k} {v:.0f} s' for k, v in seconds.items())}")
    return found


def table(seeds: Sequence[int], found: Sequence[Evaluation]) -> str:
    """Mean F1 on held-out subjects per seed and over seeds, with what guessing reaches."""
    scores = [[one.scores.mean_f1, *(mean(one.scores.baselines[name]["f1"]) for name in BASELINES)] for one in found]
    rows = list(zip(map(str, seeds), scores, (one.draws for one in found), strict=True))
    if len(rows) > 1:  # the seeds' clips are independent, so draws may be averaged one by one
        rows.append(("mean", np.mean(scores, axis=0).tolist(), np.mean([one.draws for one in found], axis=0)))
    columns = ["F1", "95 % over clips", *BASELINES.values(), "margin"]
    lines = [f"{'seed':<6}" + "".join(f"{column:>17}" for column in columns)]
    for name, (f1, *guesses), draws in rows:
        low, high = interval(draws)
        cells = [f"{100 * f1:.1f}", f"{100 * low:.1f} to {100 * high:.1f}"]
        cells += [f"{100 * guess:.1f}" for guess in (*guesses, f1 - max(guesses))]
        lines.append(f"{name:<6}" + "".join(f"{cell:>17}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    seeds = [int(word) for word in sys.argv[1:]] or [0]
    found = [demo(seed) for seed in seeds]
    print(f"\n{table(seeds, found)}\n(percent; clips drawn by a program, encoders untrained: see docs/demo.md)")


if __name__ == "__main__":
    main()
