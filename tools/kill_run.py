"""Kill an extraction at random moments and show that nothing finished is lost or changed.

    [STAGE=swin] python tools/kill_run.py --media FOLDER [--kills 30] [--seed 0]

An unbroken run makes the reference. Then the same run is started again and again (``--retry``) and killed with
SIGKILL at a random moment of its work, until it has been killed often enough; each time a run gets through, its store
is compared with the reference and a new store begun. Checked after every kill and at the end:

* a block that was finished (all arrays of its instance have their file) is never written again: same inode;
* at most one block per instance and clip is unfinished, so at most that one is computed again;
* every chunk equals the reference byte for byte.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

BLOCK_ROWS = 16
SETTINGS = (
    f"run.block_rows={BLOCK_ROWS}",
    "run.cpu_threads=1",
    "swin.weights=random",
    "swin.architecture=small",
    "swin.resize=64",
    "swin.crop=64",
    "superres.weights=lanczos",
    "superres.outscale=2",
    "align.output_size=64",
    "align.transform_size=256",
    "ghfeat.weights=random",
    "ghfeat.architecture=small",
)
STAGE = os.environ.get("STAGE", "crop")
"""``swin`` adds a model, and seconds of imports to every run; ``ghfeat`` the stages that keep nothing as well."""


def command(manifest: Path, store: Path, *flags: str) -> list[str]:
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    return [
        *(sys.executable, "-m", "extract.cli", "run", "--manifest", str(manifest), "--store", str(store)),
        *("--stage", STAGE, "-q", *settings, *flags),
    ]


def chunks(store: Path) -> dict[str, Path]:
    return {str(path.relative_to(store)): path for path in store.rglob("c.*") if not path.name.endswith(".partial")}


def blocks(store: Path) -> tuple[set[tuple[str, int]], set[tuple[str, int]]]:
    """((clip/instance, block) finished, begun): the block's file exists in every array, or only in some."""
    arrays: dict[str, dict[str, set[int]]] = defaultdict(dict)
    for metadata in store.glob("*/*/*/zarr.json"):
        array = metadata.parent
        present = {int(path.name.split(".")[1]) for path in array.glob("c.*")}
        arrays[str(array.parent.relative_to(store))][array.name] = present
    finished, begun = set(), set()
    for instance, by_array in arrays.items():
        every, some = set.intersection(*by_array.values()), set.union(*by_array.values())
        finished |= {(instance, block) for block in every}
        begun |= {(instance, block) for block in some - every}
    return finished, begun


def inodes(store: Path, finished: set[tuple[str, int]]) -> dict[str, int]:
    """Inode of every chunk that belongs to a finished block."""
    return {
        name: path.stat().st_ino
        for name, path in chunks(store).items()
        if (name.rsplit("/", 2)[0], int(path.name.split(".")[1])) in finished
    }


def check(holds: bool, what: str) -> None:
    if not holds:
        sys.exit(f"FAILED: {what}")


def is_at_work(store: Path, pid: int) -> bool:
    """Whether the process holds a lease; one of a killed run before it does not count."""
    for lease in store.glob("*/.lease"):
        try:
            if json.loads(lease.read_text())["pid"] == pid:
                return True
        except (OSError, ValueError):
            continue
    return False


def run_and_kill(manifest: Path, store: Path, delay_s: float) -> bool:
    """Start a run and kill it ``delay_s`` after its work begins. False if it got through before."""
    process = subprocess.Popen(command(manifest, store, "--retry"))
    try:
        while process.poll() is None and not is_at_work(store, process.pid):
            time.sleep(0.005)
        deadline = time.monotonic() + delay_s
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
    finally:
        code = process.wait()
    check(code in {0, -signal.SIGKILL}, f"the run ended with {code}")
    return code != 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--media", type=Path, required=True, help="folder of clips")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest-s", type=float, default=2.0, help="latest moment of a kill after work began")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        manifest = root / "m.yaml"
        make = [sys.executable, "-m", "extract.cli", "manifest", "folder", str(arguments.media), "-o", str(manifest)]
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
        subprocess.run(command(manifest, root / "reference.zarr"), check=True)
        reference = {name: path.read_bytes() for name, path in chunks(root / "reference.zarr").items()}
        kills, stores, partial = 0, 0, 0
        kept: dict[str, int] = {}
        store = root / "0.zarr"
        while kills < arguments.kills:
            killed = run_and_kill(manifest, store, rng.uniform(0.0, arguments.longest_s))
            kills += killed
            finished, begun = blocks(store)
            now = inodes(store, finished)
            check(kept.items() <= now.items(), "a finished block was written again or lost")
            by_instance = {instance for instance, _ in begun}
            check(len(begun) == len(by_instance), f"several unfinished blocks of one instance: {sorted(begun)}")
            for name, path in chunks(store).items():
                check(path.read_bytes() == reference[name], f"{name} differs from the unbroken run")
            partial += len(begun)
            kept = now
            print(f"kill {kills}: {len(finished)} blocks finished, {len(begun)} begun", flush=True)
            if not killed:
                check(chunks(store).keys() == reference.keys(), "a finished run lacks chunks")
                stores += 1
                store, kept = root / f"{stores}.zarr", {}
        subprocess.run(command(manifest, store, "--retry"), check=True)
        check(inodes(store, blocks(store)[0]).items() >= kept.items(), "the last run wrote a finished block again")
        check(
            {name: path.read_bytes() for name, path in chunks(store).items()} == reference,
            "the continued store differs from the unbroken one",
        )
        leftovers = [path for path in store.rglob("*.partial")] + list(store.glob("*/.lease"))
        check(not leftovers, f"left behind: {leftovers}")
        print(
            f"{kills} kills over {stores + 1} stores: {len(reference)} chunks equal the unbroken run byte for byte, "
            f"no finished block written twice, {partial} blocks found half written and made whole"
        )


if __name__ == "__main__":
    main()
