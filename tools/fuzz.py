"""Tries the program on 400 hostile files and counts what came of them; exit 1 if a promise was broken.

Damaged media in groups that are one manifest each, then broken manifests, configs, weights, labels and transcripts. The
files are made anew in a temporary folder from ../shared/media; the same seed makes the same files.
"""

import argparse
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.hostile import corpus, media, small
from tests.hostile.trial import ROOT, Tally


def say(text: str) -> None:
    print(text, flush=True)


def numbers_of(text: str | None) -> list[int]:
    """``3,10-19`` -> the numbers; None: all."""
    if text is None:
        return list(range(media.COUNT))
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def show(name: str, tally: Tally) -> None:
    """What came of the files of one kind."""
    say(f"\n{name}: {_counts(tally.files)}")
    for reason, count in sorted(tally.reasons.items()):
        say(f"  {count:5d}  {reason}")
    slowest, seconds = corpus.largest(tally.seconds)
    hungriest, peak = corpus.largest(tally.peaks)
    say(f"  slowest {seconds:.1f} s ({slowest}); peak memory {peak / 1e9:.2f} GB ({hungriest})")


def _counts(counter: Counter[str]) -> str:
    return f"{counter.total()} files: " + ", ".join(f"{count} {name}" for name, count in counter.most_common())


def try_all(
    numbers: Sequence[int],
    cases: Sequence[small.Case],
    sources: Path,
    folder: Path,
    arguments: argparse.Namespace,
    damaged: Tally,
    broken: Tally,
) -> None:
    """Fill the tallies."""
    for first in range(0, len(numbers), arguments.group):
        group = numbers[first : first + arguments.group]
        corpus.try_media(group, sources, folder / f"media-{first}", damaged, arguments.seed, say)
        say(f"{first + len(group)} of {len(numbers)} media files: {_counts(damaged.files)}")
    for case in cases:
        if case.kind not in {"labels", "transcript"}:
            corpus.try_alone(case, sources, folder / case.name, broken, say)
    for kind in ("labels", "transcript"):
        of_kind = [case for case in cases if case.kind == kind]
        if of_kind:
            corpus.try_clips(of_kind, sources, folder / kind, broken, say)
    say(f"small files: {_counts(broken.files)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--media", type=Path, default=ROOT.parent / "shared" / "media", help="folder of real clips")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--group", type=int, default=25, help="files of one manifest")
    parser.add_argument("--only", help="numbers of media files, as in 3,10-19; nothing else is tried")
    parser.add_argument("--cases", help="part of the names of small files; nothing else is tried")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was counted is shown, and nothing is left running
    if not arguments.media.is_dir():
        sys.exit(
            f"{arguments.media}: no such folder; the files are made of the real clips there, --media DIR names them"
        )
    sources, started = arguments.media.resolve(), time.monotonic()
    damaged, broken = Tally(), Tally()
    numbers = numbers_of(arguments.only) if arguments.only or not arguments.cases else []
    cases = [case for case in small.cases() if (arguments.cases or "") in case.name] if not arguments.only else []
    whole = False
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, suppress(KeyboardInterrupt):
        try_all(numbers, cases, sources, Path(folder), arguments, damaged, broken)
        whole = True
    show("damaged media", damaged)
    show("broken manifests, configs, weights, labels, transcripts", broken)
    violations = damaged.violations + broken.violations
    say(f"\n{len(violations)} promises broken, {time.monotonic() - started:.0f} s{'' if whole else ', interrupted'}")
    for violation in violations:
        say(f"  {violation}")
    sys.exit(1 if violations or not whole else 0)


if __name__ == "__main__":
    main()
