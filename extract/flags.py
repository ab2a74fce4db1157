"""What the command lines of ``extract`` and ``fusion`` share: flags, messages on standard error, exit codes."""

import functools
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ParamSpec

import typer

from extract import endings
from extract.errors import UsageError

P = ParamSpec("P")

Manifest = Annotated[Path, typer.Option("--manifest", help="Clips to work on.")]
StorePath = Annotated[str, typer.Option("--store", help="Feature store.")]
Config = Annotated[
    str | None, typer.Option("-c", "--config", help="Built-in config or YAML file.", metavar="NAME|PATH")
]
ConfigOfStore = Annotated[
    str | None,
    typer.Option(
        "-c",
        "--config",
        help="Built-in config or YAML file. (default: the config that the store was made with)",
        metavar="NAME|PATH",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a setting, as in swin.batch=8; may be repeated.", metavar="A.B=C"),
]
Stages = Annotated[
    list[str] | None,
    typer.Option(
        "--stage", help="Only this instance, or all instances of this stage, and their inputs; may be repeated."
    ),
]
Clips = Annotated[list[str] | None, typer.Option("--clip", help="Only these clips.")]
Limit = Annotated[int | None, typer.Option("--limit", help="Only the first N clips.", min=1)]
Shard = Annotated[str | None, typer.Option("--shard", help="The k-th of n parts of the clips.", metavar="K/N")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda:N.", metavar="DEVICE")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Compute stale instances again.")]
Retry = Annotated[bool, typer.Option("--retry", help="Try clips again that crashed the process twice.")]
Offline = Annotated[bool, typer.Option("--offline", help="Use no network.")]
Quiet = Annotated[
    bool,
    typer.Option("-q", "--quiet", help="Only errors and what was asked for: no progress, warnings or summary."),
]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="More detail: whole messages, tracebacks, times.")]
AllowShared = Annotated[
    bool,
    typer.Option("--allow-shared-subjects", help="Allow one subject or source video in several splits."),
]
ManifestOut = Annotated[
    Path,
    typer.Option("-o", "--output", help="Manifest to write; an existing file is refused without --update."),
]
Update = Annotated[
    bool, typer.Option("--update", help="Add new clips to the existing manifest and keep all else in it.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def reported(
    program: str, after_interrupt: str = endings.INTERRUPTED
) -> Callable[[Callable[P, int]], Callable[P, None]]:
    """Decorate a command: it exits with the code that it returns or that its error carries.

    Errors become lines on standard error that begin with the program's name; only an unforeseen one shows a traceback.
    The command's own ``quiet`` and ``verbose``, where it has them, decide what is logged.
    """

    def decorate(command: Callable[P, int]) -> Callable[P, None]:
        @functools.wraps(command)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
            with endings.reported(program, f"{program}: {after_interrupt}"):
                _set_up_logging(quiet=bool(kwargs.get("quiet")), verbose=bool(kwargs.get("verbose")))
                code = command(*args, **kwargs)
            raise typer.Exit(code)

        return wrapped

    return decorate


def _set_up_logging(*, quiet: bool, verbose: bool) -> None:
    """Send the log messages of both packages to standard error; -q leaves only errors, -v adds details."""
    if quiet and verbose:
        raise UsageError("-q and -v exclude each other")
    for name in ("extract", "fusion"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO)
        if _HANDLER not in logger.handlers:
            logger.addHandler(_HANDLER)


class _ToStandardError(logging.Handler):
    """Writes to ``sys.stderr`` as it is when the message comes: tests and notebooks replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        sys.stderr.write(f"{level}{record.getMessage()}\n")


_HANDLER = _ToStandardError()
