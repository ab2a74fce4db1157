"""Flags that several commands take, each under one name, and how a command ends."""

import functools
import logging
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
        "-c", "--config", help="Built-in config or YAML file. (default: as the store was made)", metavar="NAME|PATH"
    ),
]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Override a setting, as in swin.batch=8.", metavar="A.B=C")
]
Stages = Annotated[
    list[str] | None, typer.Option("--stage", help="Instances (or all of a stage), and what feeds them.")
]
Clips = Annotated[list[str] | None, typer.Option("--clip", help="Only these clips.")]
Limit = Annotated[int | None, typer.Option("--limit", help="Only the first N clips.", min=1)]
Shard = Annotated[str | None, typer.Option("--shard", help="The k-th of n parts of the clips.", metavar="K/N")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda:N.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Compute stale instances again.")]
Retry = Annotated[bool, typer.Option("--retry", help="Try clips again that crashed the process twice.")]
Offline = Annotated[bool, typer.Option("--offline", help="Use no network (this version never does).")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no warnings.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Whole messages and tracebacks.")]
AllowShared = Annotated[
    bool,
    typer.Option("--allow-shared-subjects", help="Take one subject or source video in several splits."),
]
ManifestOut = Annotated[Path, typer.Option("-o", "--out", help="Manifest to write; an existing file is refused.")]
Update = Annotated[
    bool, typer.Option("--update", help="Add new clips to the manifest that is there; all else in it stays.")
]
AsJson = Annotated[bool, typer.Option("--json", help="For machines.")]


def reported(command: Callable[P, int]) -> Callable[P, None]:
    """End with the exit code that the command returns or that its error carries; print errors as plain lines."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        with endings.reported("extract", f"extract: {endings.INTERRUPTED}"):
            code = command(*args, **kwargs)
        raise typer.Exit(code)

    return wrapped


def set_up_logging(quiet: bool, verbose: bool) -> None:
    """Say on standard error what `-q` and `-v` leave of the program's own messages."""
    if quiet and verbose:
        raise UsageError("-q and -v exclude each other")
    level = logging.ERROR if quiet else logging.DEBUG if verbose else logging.WARNING
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("extract").setLevel(level)
