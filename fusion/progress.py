"""How a fit shows where it is: a bar on a terminal, else a plain line every half minute."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fusion.training import Progress

EVERY_S = 30.0


@contextmanager
def shown(quiet: bool) -> Iterator[Callable[[Progress], None] | None]:
    """What to give ``fit`` as ``progress``; None when quiet."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[info]}"),
        )
        with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("epoch 1", info="")

            def draw(now: Progress) -> None:
                title = f"epoch {now.epoch}/{now.max_epochs}"
                bar.update(task, description=title, total=now.steps, completed=now.step, info=_info(now))

            yield draw
    else:
        last = time.monotonic()

        def line(now: Progress) -> None:
            nonlocal last
            if time.monotonic() - last >= EVERY_S:
                last = time.monotonic()
                where = f"epoch {now.epoch}/{now.max_epochs}, step {now.step}/{now.steps}"
                sys.stderr.write(f"{where}: {_info(now)}\n")

        yield line


def _info(now: Progress) -> str:
    best = "" if now.val_score is None else f", best val {100 * now.val_score:.1f}"
    return f"loss {now.loss:.4f}, {now.samples_s:.0f} samples/s{best}"
