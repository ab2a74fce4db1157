"""Kill and stop an extraction at random moments and show that nothing finished is lost or changed.

    [STAGE=swin] python tools/kill_run.py --media FOLDER [--kills 30] [--stops 30] [--seed 0]

An unbroken run makes the reference. Then the same run is started again and again (``--retry``) and killed with
SIGKILL at a random moment of its work, until it has been killed often enough; each time a run gets through, its store
is compared with the reference and a new store begun. Checked after every kill and at the end:

* a block that was finished (all arrays of its instance have their file) is never written again: same inode;
* at most one block per instance and clip is unfinished, so at most that one is computed again;
* every chunk equals the reference byte for byte.

Then the same with SIGHUP, SIGINT and SIGTERM in turn, without ``--retry``. Checked besides: the run ends with 129, 130
or 143 (0 if it got through), says so in one line, leaves no lease, no unfinished file and no process of its own, and
neither a record nor a later run calls a clip crashed. Half of the signals come at any moment since the start, while
modules are imported.
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
from collections import Counter, defaultdict
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


STOPS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
SAYS = "extract: interrupted; run the same command to continue\n"
MOST_STARTING_S = 4.0
"""A signal without regard to the work comes at most so late after the start: imports take most of it."""


def heed() -> None:
    """In the child: a shell that runs this in the background has SIGINT ignored, which children inherit."""
    for how in STOPS:
        signal.signal(how, signal.SIG_DFL)


def heeds(pid: int) -> bool:
    """Whether the process handles the signals by now; before, the interpreter's defaults end it, at no work."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (max(STOPS) - 1) & 1)
    return False


def children(pid: int) -> list[int]:
    """Processes whose parent it is."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
        except (OSError, ValueError):
            continue
    return found


def run_and_stop(manifest: Path, store: Path, how: signal.Signals, delay_s: float, *, at_work: bool) -> bool:
    """Start a run and stop it ``delay_s`` after its work, or it itself, began. False if it got through before."""
    process = subprocess.Popen(command(manifest, store), stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    own: list[int] = []
    try:
        while process.poll() is None and not (is_at_work(store, process.pid) if at_work else heeds(process.pid)):
            time.sleep(0.005)
        deadline = time.monotonic() + delay_s
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        if process.poll() is None:
            own = children(process.pid)
            process.send_signal(how)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    code = process.returncode
    check(code in {0, 128 + how}, f"{how.name}: the run ended with {code}: {said}")
    check(said == (SAYS if code else ""), f"{how.name}: the run ended with {code} and said {said!r}")
    left = [path for path in store.rglob("*.partial")] + list(store.glob("*/.lease")) + list(store.glob("*/.crash"))
    check(not left, f"{how.name} left behind: {left}")
    check(not [pid for pid in own if Path(f"/proc/{pid}").exists()], f"{how.name} left processes behind")
    for record in store.glob("*/*/zarr.json"):
        attributes = json.loads(record.read_text()).get("attributes", {})
        shown = {key: attributes.get(key) for key in ("state", "reason", "attempts")}
        check(shown["state"] in {"done", "empty", "partial"}, f"{how.name}: {record} says {shown}")
        check(not shown["attempts"], f"{how.name}: {record} counts an attempt: {shown}")
    return code != 0


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


class Compared:
    """Stores that are begun, broken off and continued, beside the reference."""

    def __init__(self, root: Path, manifest: Path, reference: dict[str, bytes]) -> None:
        self.manifest, self.reference, self._root = manifest, reference, root
        self.stores = self.partial = 0
        self._begin()

    def _begin(self) -> None:
        self.stores += 1
        self.store = Path(tempfile.mkdtemp(dir=self._root)) / "s.zarr"
        self._kept: dict[str, int] = {}

    def after(self, broken_off: bool) -> bool:
        """Check the store after a run, and begin a new one if the run got through; whether it was broken off."""
        self._finished, self._begun = blocks(self.store)
        now = inodes(self.store, self._finished)
        check(self._kept.items() <= now.items(), "a finished block was written again or lost")
        by_instance = {instance for instance, _ in self._begun}
        check(len(self._begun) == len(by_instance), f"several unfinished blocks of one instance: {sorted(self._begun)}")
        for name, path in chunks(self.store).items():
            check(path.read_bytes() == self.reference[name], f"{name} differs from the unbroken run")
        self.partial += len(self._begun)
        self._kept = now
        if not broken_off:
            check(chunks(self.store).keys() == self.reference.keys(), "a finished run lacks chunks")
            self._begin()
        return broken_off

    def tell(self, what: str) -> None:
        """Print how far the store is."""
        print(f"{what}: {len(self._finished)} blocks finished, {len(self._begun)} begun", flush=True)

    def end(self, *flags: str) -> str:
        """Let the last run through, compare all, and say what was seen."""
        store = self.store
        subprocess.run(command(self.manifest, store, *flags), check=True)
        check(
            inodes(store, blocks(store)[0]).items() >= self._kept.items(), "the last run wrote a finished block again"
        )
        check(
            {name: path.read_bytes() for name, path in chunks(store).items()} == self.reference,
            "the continued store differs from the unbroken one",
        )
        leftovers = [path for path in store.rglob("*.partial")] + list(store.glob("*/.lease"))
        check(not leftovers, f"left behind: {leftovers}")
        return (
            f"{self.stores} stores: {len(self.reference)} chunks equal the unbroken run byte for byte, "
            f"no finished block written twice, {self.partial} blocks found half written and made whole"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--media", type=Path, required=True, help="folder of clips")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--stops", type=int, default=30)
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
        compared = Compared(root, manifest, reference)
        for number in range(1, arguments.kills + 1):
            while not compared.after(run_and_kill(manifest, compared.store, rng.uniform(0.0, arguments.longest_s))):
                continue
            compared.tell(f"kill {number}")
        kills = compared.end("--retry")
        compared = Compared(root, manifest, reference)
        ended: Counter[int] = Counter()
        for number in range(1, arguments.stops + 1):
            how, at_work = STOPS[number % len(STOPS)], number % 2 == 0
            longest_s = arguments.longest_s if at_work else MOST_STARTING_S
            while not compared.after(
                run_and_stop(manifest, compared.store, how, rng.uniform(0.0, longest_s), at_work=at_work)
            ):
                ended[0] += 1
            ended[128 + how] += 1
            compared.tell(f"stop {number}, {how.name}")
        stops = compared.end()
        codes = ", ".join(f"{code}: {count}" for code, count in sorted(ended.items()))
        print(f"{arguments.kills} kills over {kills}")
        print(f"{arguments.stops} stops over {stops}; exit codes {codes}")


if __name__ == "__main__":
    main()
