"""The demo from end to end, by the commands a person would type: draw, adapt, extract, fit, score, predict, pictures.

    python tools/demo.py            seed 0: demo/
    python tools/demo.py 1 2 3      these seeds, each in demo/seed_N/; steps and ablation of each, a table over them
    python tools/demo.py -v         with everything that the commands print

Halfway through the extraction it ends the program with `kill -9` and starts it again, to show that nothing is lost.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import extract
import fusion
from extract.errors import AuFusionError
from fusion.assessment import Evaluation
from fusion.scoring import mean
from fusion.text_tables import span

DEMO = Path("demo")
BASELINES = {"zeros": "all zero", "ones": "all one", "prior": "prior"}
SHOWN_CLIP = "S10_1"
"""Of somebody in the test split: the pictures are of people the model never saw."""
LOOK_EVERY_S = 1.0
ADAPTED = "hubert_adapted"
"""Instance, and folder of its weights; the model reads the untrained one, whose numbers docs/demo.md has."""


class Commands:
    """Runs commands of this environment; what they print goes to a file, and to the screen with ``-v``."""

    def __init__(self, log: Path, *, verbose: bool) -> None:
        self._log, self._verbose = log, verbose
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("", encoding="utf-8")

    def run(self, *command: object) -> float:
        """One command, to its end; its seconds."""
        return self.wait(self.start(*command), time.monotonic())

    def start(self, *command: object) -> "subprocess.Popen[bytes]":
        words = [str(word) for word in command]
        print(f"$ {' '.join(words)}", flush=True)
        with self._log.open("a", encoding="utf-8") as log:
            log.write(f"\n$ {' '.join(words)}\n")
        program = str(Path(sys.executable).with_name(words[0]))
        out = None if self._verbose else self._log.open("ab")
        try:
            return subprocess.Popen([program, *words[1:]], stdout=out, stderr=subprocess.STDOUT if out else None)
        finally:
            if out:
                out.close()

    def wait(self, process: "subprocess.Popen[bytes]", began: float) -> float:
        code = process.wait()
        if code:
            tail = "" if self._verbose else self._log.read_text(encoding="utf-8", errors="replace")[-3000:]
            raise SystemExit(f"{tail}\nthat ended with exit code {code}; {self._log} has all of it")
        return time.monotonic() - began


def adapt(commands: Commands, manifest: Path, folder: Path) -> tuple[float, tuple[str, ...]]:
    """Adapt the small HuBERT to the training clips' speech, unless that was done before; the seconds, and the flags
    that give the extraction a second HuBERT with the adapted weights beside the untrained one."""
    seconds = 0.0
    if not (folder / "metrics.json").is_file():
        asked = ("--stage", "hubert", "-c", "demo", "--manifest", manifest, "--device", "cpu", "-o", folder)
        seconds = commands.run("extract", "adapt", *asked)
    settings = {"stage": "hubert", "architecture": "small", "weights": folder / "best"}
    return seconds, tuple(word for name, value in settings.items() for word in ("--set", f"{ADAPTED}.{name}={value}"))


def in_words(metrics: Mapping[str, Any]) -> str:
    """What the adapted HuBERT learned."""
    accuracy, majority = 100 * metrics["best"]["val_accuracy"], 100 * metrics["best"]["val_majority"]
    return (
        f"HuBERT adapted to {metrics['training_s']:.0f} s of speech: {accuracy:.1f} % of hidden steps of val named "
        f"right, {majority:.1f} % by always naming the most frequent cluster"
    )


def extract_with_a_kill(commands: Commands, manifest: Path, store: Path, also: Sequence[str] = ()) -> tuple[float, str]:
    """Extract, killed once when half of the clips are through; the seconds, and what happened."""
    command = ("extract", "run", "-c", "demo", "--manifest", manifest, "--store", store, *also)
    clips = manifest.read_text(encoding="utf-8").count("\n- id:")
    began = time.monotonic()
    before = finished_clips(store)
    process = commands.start(*command)
    killed = None
    while killed is None and process.poll() is None:
        time.sleep(LOOK_EVERY_S)
        through = finished_clips(store)
        if clips / 2 <= through < clips:
            process.send_signal(signal.SIGKILL)
            killed = through
    if killed is None:
        late = "was complete before" if before == clips else "finished before it could be killed"
        return commands.wait(process, began), f"the extraction {late}: nothing was killed"
    process.wait()
    files = finished_files(store)
    commands.run(*command)
    untouched = sum(finished_files(store).get(path) == stamp for path, stamp in files.items())
    return time.monotonic() - began, (
        f"the extraction was killed (kill -9) with {killed} of {clips} clips finished and run again: "
        f"{untouched} of {len(files)} files of what was finished were kept as they were"
    )


def finished_clips(store: Path) -> int:
    """Clips whose instances all have a finished record."""
    try:
        opened = extract.open_store(store)
        records = list(opened.survey())
    except AuFusionError:
        return 0  # not begun, or a record is being written
    clips: dict[str, list[bool]] = {}
    for clip, _, record in records:
        clips.setdefault(clip, []).append(getattr(record, "finished", False))
    most = max(map(len, clips.values()), default=0)
    return sum(len(states) == most and all(states) for states in clips.values())


def finished_files(store: Path) -> dict[Path, tuple[int, int]]:
    """Blocks of instances whose record says that they are finished -> size and time of writing."""
    records = extract.open_store(store).survey()
    finished = [store / clip / name for clip, name, record in records if getattr(record, "finished", False)]
    found = {path: path.stat() for folder in finished for path in folder.glob("*/c.*")}
    return {path: (status.st_size, status.st_mtime_ns) for path, status in found.items()}


def home_of(seed: int) -> Path:
    """The folder of a seed."""
    return DEMO if seed == 0 else DEMO / f"seed_{seed}"


def demo(seed: int, *, verbose: bool) -> Evaluation:
    """Everything for one seed; leaves ``metrics.json`` and two pictures beside the store."""
    home = home_of(seed)
    manifest = Path("data_manifest.yaml") if seed == 0 else home / "manifest.yaml"
    store, fitted, clip = home / "store.zarr", home / "run", home / "clips" / SHOWN_CLIP
    commands = Commands(home / "log.txt", verbose=verbose)
    shutil.rmtree(fitted, ignore_errors=True)  # a finished run is not fitted again
    seconds = {"draw": commands.run("extract", "demo", *(["--seed", seed] if seed else []))}
    seconds["adapt"], second_hubert = adapt(commands, manifest, home / ADAPTED)
    seconds["extract"], killed = extract_with_a_kill(commands, manifest, store, second_hubert)
    seconds["fit"] = commands.run("fusion", "fit", "-q", "-c", "demo", "--features", store, "-o", fitted)
    seconds["evaluate"] = commands.run("fusion", "evaluate", "--features", store, "--run", fitted)
    seconds["predict"] = commands.run("fusion", "predict", f"{clip}.mp4", "-q", "--run", fitted, "-o", home)
    sheet, curves = home / "contact_sheet.png", home / "curves.png"
    common = ("--manifest", manifest, "--store", store, "--frames", 4)
    seconds["pictures"] = commands.run("extract", "inspect", SHOWN_CLIP, *common, "-o", sheet)
    drawn = ("tools/curves.py", home / f"{SHOWN_CLIP}.csv", f"{clip}.au.csv", "-o", curves)
    seconds["pictures"] += commands.run("python", *drawn)
    found = fusion.evaluate(store, fitted)
    adapted = json.loads((home / ADAPTED / "metrics.json").read_text())
    facts = {
        "seed": seed,
        "seconds": {name: round(value, 1) for name, value in seconds.items()}
        | {"sum": round(sum(seconds.values()), 1)},
        "machine": {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()},
        "killed": killed,
        "adapted": adapted["best"],
        "test": found.as_json(),
    }
    (home / "metrics.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(f"\n{killed}\n{in_words(adapted)}\npictures: {sheet}, {curves}; numbers: {home / 'metrics.json'}")
    print(f"seconds: {', '.join(f'{name} {value:.0f}' for name, value in seconds.items())}")
    return found


def in_detail(seed: int, found: Evaluation) -> str:
    """F1 in steps and what each modality is worth, with intervals."""
    home = home_of(seed)
    ablation = fusion.ablate(home / "store.zarr", home / "run")
    return f"seed {seed}\n{found.text()}\n\n{ablation.text()}"


def worse_than_base(found: Evaluation) -> bool:
    """Whether post-processing lowers mean F1 by more than the interval of the difference."""
    gain = found.steps[-1].over_base
    return gain is not None and gain[1] is not None and gain[1][1] < 0


def in_one_line(found: Evaluation) -> str:
    """The result, what guessing reaches, and what it was measured on."""
    best = max(mean(found.scores.baselines[name]["f1"]) for name in BASELINES)
    return (
        f"mean F1 {100 * found.scores.mean_f1:.1f} on people it never saw; best trivial baseline {100 * best:.1f}; "
        "drawn clips, untrained encoders"
    )


def table(seeds: Sequence[int], found: Sequence[Evaluation]) -> str:
    """Mean F1 on held-out subjects per seed and over seeds, with what guessing reaches."""
    scores = [[one.scores.mean_f1, *(mean(one.scores.baselines[name]["f1"]) for name in BASELINES)] for one in found]
    rows = [(str(seed), one, span(each.interval)) for seed, one, each in zip(seeds, scores, found, strict=True)]
    if len(rows) > 1:
        deviation = float(np.std([f1 for f1, *_ in scores], ddof=1))
        rows.append(("mean", np.mean(scores, axis=0).tolist(), f"deviation {100 * deviation:.1f}"))
    columns = ["F1", "95 % interval", *BASELINES.values(), "margin"]
    lines = [f"{'seed':<6}" + "".join(f"{column:>17}" for column in columns)]
    for name, (f1, *guesses), doubt in rows:
        cells = [f"{100 * f1:.1f}", doubt]
        cells += [f"{100 * guess:.1f}" for guess in (*guesses, f1 - max(guesses))]
        lines.append(f"{name:<6}" + "".join(f"{cell:>17}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="*", type=int, default=[0])
    parser.add_argument("-v", "--verbose", action="store_true", help="show what the commands print")
    asked = parser.parse_args()
    found = [demo(seed, verbose=asked.verbose) for seed in asked.seeds]
    if len(found) > 1:
        for seed, one in zip(asked.seeds, found, strict=True):
            print(f"\n{in_detail(seed, one)}")
    if asked.verbose or len(found) > 1:
        print(f"\n{table(asked.seeds, found)}\n(percent; clips drawn by a program, encoders untrained: docs/demo.md)")
    if len(found) == 1:
        print(f"\n{in_one_line(found[0])}")
    worse = [str(seed) for seed, one in zip(asked.seeds, found, strict=True) if worse_than_base(one)]
    if worse:
        sys.exit(f"post-processing is worse than the network alone: seed {', '.join(worse)}")


if __name__ == "__main__":
    main()
