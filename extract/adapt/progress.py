"""How an adaptation shows where it is: a bar on a terminal, else a plain line every half minute."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from extract.adapt.hubert_training import Progress

EVERY_S = 30.0


@contextmanager
def shown(quiet: bool) -> "Iterator[Callable[[Progress], None] | None]":
    """What to give as ``tell``; None when quiet."""
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
            task = bar.add_task("adapt", info="", total=None)

            def draw(now: "Progress") -> None:
                if now.doing:
                    bar.update(task, description=now.doing)
                else:
                    bar.update(task, description="updates", total=now.steps, completed=now.step, info=info(now))

            yield draw
    else:
        last = time.monotonic()

        def line(now: "Progress") -> None:
            nonlocal last
            if time.monotonic() - last >= EVERY_S:
                last = time.monotonic()
                sys.stderr.write(f"{now.doing or f'update {now.step}/{now.steps}: {info(now)}'}\n")

        yield line


def info(now: "Progress") -> str:
    """The numbers of a line."""
    seen = "" if now.val_accuracy is None else f", val {100 * now.val_accuracy:.1f} %"
    return f"loss {now.loss:.3f}, {100 * now.accuracy:.1f} % right, {now.sound_s:.0f} s of sound/s{seen}"
