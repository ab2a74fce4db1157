"""The command ``fusion``: arguments and printing only. What is heavy is imported when a command runs."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from extract import endings

if TYPE_CHECKING:
    from extract.config import Remembered
    from fusion.evaluation import Evaluation

app = typer.Typer(
    help="Action unit models on stored features: fit, evaluate, predict for a movie.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Features = Annotated[Path, typer.Option("--features", help="The feature store.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda:N.")]
SkipFailed = Annotated[bool, typer.Option("--skip-failed", help="Leave out clips with failed or unfinished features.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also say where time goes.")]
Json = Annotated[bool, typer.Option("--json", help="The result as JSON.")]


@app.callback()
def _program() -> None:
    """Makes typer keep subcommands, whatever their number."""


@app.command()
def fit(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the run; an unfinished one goes on. (default: runs/TIME)"),
    ] = None,
    features: Features = Path("store.zarr"),
    config: Annotated[
        str | None,
        typer.Option("--config", "-c", help="Built-in config or YAML file. (default: as the features were made)"),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting, such as training.lr=1e-4. Repeatable.")
    ] = None,
    device: Device = "auto",
    skip_failed: SkipFailed = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """Fit the fusion network on split train, stopping early by split val. Run it again to go on after a stop."""
    after_interrupt = "run the same command to continue, with `-o` and the run's folder if you gave none"
    with _log_to_stderr(quiet=quiet, verbose=verbose), _errors_as_exit_codes(after_interrupt):
        from fusion import training
        from fusion.config import load_fusion_config

        # A run that goes on has its own config; only what was asked for here must agree with it.
        asked = config is not None or bool(overrides) or output is None or not (output / "config.yaml").is_file()
        remembered = _config_of(features) if asked and config is None else None
        wanted = load_fusion_config(config, overrides or [], remembered) if asked else None
        found = training.fit(features, output, wanted, device=device, skip_failed=skip_failed)
        if as_json:
            _print_json({evaluation.split: evaluation.as_json() for evaluation in found})
        else:
            typer.echo("\n\n".join(render(evaluation) for evaluation in found))


@app.command()
def evaluate(
    run: Annotated[Path | None, typer.Option("--run", help="Folder of the run. (default: newest under runs/)")] = None,
    features: Features = Path("store.zarr"),
    split: Annotated[str, typer.Option("--split", help="train, val or test.")] = "test",
    device: Device = "auto",
    skip_failed: SkipFailed = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """Both F1 definitions per action unit, beside predictors that never look at a face."""
    with _log_to_stderr(quiet=quiet, verbose=verbose), _errors_as_exit_codes("nothing was changed"):
        from fusion import evaluation

        found = evaluation.evaluate(features, run, split=split, device=device, skip_failed=skip_failed)
        if as_json:
            _print_json(found.as_json())
        else:
            typer.echo(render(found))


@app.command()
def predict(
    videos: Annotated[list[Path], typer.Argument(help="Movies.", metavar="VIDEO...")],
    run: Annotated[Path | None, typer.Option("--run", help="Folder of the run. (default: newest under runs/)")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the tables.")] = Path(),
    config: Annotated[
        str | None, typer.Option("--config", "-c", help="Extract by this config. (default: as the run's features were)")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting, such as swin.weights=PATH. Repeatable.")
    ] = None,
    device: Device = "auto",
    offline: Annotated[bool, typer.Option("--offline", help="Use no network.")] = False,
    fill: Annotated[bool, typer.Option("--fill", help="Numbers for frames without a face, too.")] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """Write VIDEO.csv (time, probabilities and decisions per frame) and VIDEO.json (what they mean) for each movie."""
    after_interrupt = "run the same command to continue"
    with _log_to_stderr(quiet=quiet, verbose=verbose), _errors_as_exit_codes(after_interrupt):
        from extract import console
        from fusion import prediction

        with console.progress(quiet or as_json) as progress:
            found = prediction.predict(
                videos,
                run,
                output=output,
                config=config,
                set=overrides or (),
                device=device,
                offline=offline,
                fill=fill,
                progress=progress,
            )
        if as_json:
            _print_json(found.as_json())
        else:
            for line in [] if quiet else [f"run {found.run}", *found.lines()]:
                typer.echo(line)
            for warning in [] if quiet else found.warnings:
                typer.echo(f"warning: {warning}", err=True)
            for video, why in found.failed.items():
                typer.echo(f"failed: {video}: {why}", err=True)
        raise typer.Exit(found.exit_code)


def _config_of(features: Path) -> "Remembered | None":
    """The config that the store of features was made with, which is said."""
    from extract.config import Remembered
    from extract.store import Store

    kept = Store.open(features).config()
    logging.getLogger("fusion").info(Remembered.taken(kept))
    return kept


def render(evaluation: "Evaluation") -> str:
    """The table: percentages, one column per AU. A dash stands for an AU without a single annotation."""
    from fusion.evaluation import NAMES, named

    scores = evaluation.scores
    lines = [
        f"run {evaluation.run} (epoch {evaluation.epoch}), features {evaluation.features}, split {evaluation.split}: "
        f"{evaluation.frames} annotated frames of {evaluation.clips} clips",
        _row("", [*NAMES, "mean"]),
    ]
    titles = {"zeros": "all zero", "ones": "all one", "majority": "majority", "prior": "random at prior"}
    for title, metric, values in (("F1", "f1", scores.f1), ("F1_our", "f1_our", scores.f1_our)):
        lines.append(_row(title, _percent(named(values))))
        lines += [_row(f"  {titles[name]}", _percent(named(found[metric]))) for name, found in scores.baselines.items()]
    if evaluation.interval is not None:
        low, high = _percent({"low": evaluation.interval[0], "high": evaluation.interval[1]})
        lines.append(f"mean F1, 95 % bootstrap interval over {evaluation.clips} clips: {low} to {high}")
    lines += [
        _row("annotated", [str(count) for count in scores.annotated]),
        _row("positive", [str(count) for count in scores.positive]),
    ]
    lacking = [f"{name} {count}" for name, count in evaluation.missing.items() if count]
    if lacking:
        lines.append(f"counted without a modality: {', '.join(lacking)} frames")
    lines += [f"left out: clip {clip}: {reason}" for clip, reason in evaluation.left_out.items()]
    if evaluation.untrained:
        lines.append(f"untrained: {', '.join(evaluation.untrained)} (random weights: the numbers prove nothing)")
    if evaluation.drawn:
        lines.append(f"drawn: {evaluation.drawn} of {evaluation.clips} clips show no person but a program's drawing")
    return "\n".join(lines)


def _row(title: str, cells: list[str]) -> str:
    return f"{title:<17}" + "".join(f"{cell:>6}" for cell in cells)


def _percent(values: "dict[str, float | None]") -> list[str]:
    return ["-" if value is None else f"{100 * value:.1f}" for value in values.values()]


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, indent=1))


@contextmanager
def _log_to_stderr(*, quiet: bool, verbose: bool) -> Iterator[None]:
    logger = logging.getLogger("fusion")
    logger.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _errors_as_exit_codes(after_interrupt: str) -> AbstractContextManager[None]:
    """One clear line instead of a traceback for every error that is foreseen; 130 after Ctrl-C."""
    return endings.reported("error", f"interrupted: {after_interrupt}")


def main() -> None:
    """Entry point of the console script."""
    endings.run_program("fusion", app)


if __name__ == "__main__":
    main()
