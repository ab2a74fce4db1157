"""``fusion``: arguments and printing only. Heavy imports wait until a command needs them."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from extract import endings
from extract.flags import AsJson, Device, Offline, Quiet, Verbose, reported
from fusion import cli_analysis, cli_share, cli_tuning
from fusion.cli_analysis import AllowLeak, AllowOtherCrops, Features, RunPath, SkipFailed, StrictSplits

app = typer.Typer(
    help="Action unit models on stored features: fit one, evaluate it, predict with it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
@reported("fusion", f"{endings.INTERRUPTED} (with -o and the run's folder if you gave none)")
def fit(
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Folder of the run; an unfinished run is continued. (default: runs/DATE_TIME)"
        ),
    ] = None,
    features: Features = "store.zarr",
    config: Annotated[
        str | None,
        typer.Option(
            "-c",
            "--config",
            help="Built-in config or YAML file. (default: that of the run which is continued, else of the store)",
            metavar="NAME|PATH",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a setting, as in training.lr=1e-4; may be repeated.", metavar="A.B=C"),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", help="Fit so many runs, OUTPUT_seed0 and so on; print mean and deviation.", min=2),
    ] = None,
    device: Device = "auto",
    skip_failed: SkipFailed = False,
    strict_splits: StrictSplits = False,
    allow_leak: AllowLeak = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> int:
    """Fit the fusion network on the split train, with early stopping on the split val. An interrupted fit continues."""
    from fusion import progress, training
    from fusion import seeds as over

    with progress.shown(quiet or as_json) as shown:
        choices: dict[str, Any] = {
            "set": set_ or (),
            "device": device,
            "skip_failed": skip_failed,
            "strict_splits": strict_splits,
            "allow_leak": allow_leak,
            "progress": shown,
        }
        if seeds is not None:
            several = over.fit_seeds(features, seeds, output, config, **choices)
        else:
            found = training.fit(features, output, config, **choices)
    if seeds is not None:
        if as_json:
            _print_json(several.as_json())
        elif not quiet:
            print(several.text(verbose))
    elif as_json:
        _print_json({evaluation.split: evaluation.as_json() for evaluation in found})
    elif not quiet:
        print("\n\n".join(evaluation.text(verbose) for evaluation in found))
    return 0


@app.command()
@reported("fusion")
def predict(
    videos: Annotated[list[Path], typer.Argument(help="Video files.", metavar="VIDEO...")],
    run: RunPath = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the tables.")] = Path(),
    config: Annotated[
        str | None,
        typer.Option(
            "-c",
            "--config",
            help="Built-in config or YAML file. (default: as the run's features were made)",
            metavar="NAME|PATH",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a setting, as in swin.weights=PATH; may be repeated.", metavar="A.B=C"),
    ] = None,
    device: Device = "auto",
    offline: Offline = False,
    fill: Annotated[bool, typer.Option("--fill", help="Also give numbers for frames without a face.")] = False,
    crops: Annotated[
        str | None,
        typer.Option(
            "--crops",
            help="Cut faces for super-resolution as given crops are (as-given) or wide. (default: as in the fit)",
            metavar="as-given|wide",
        ),
    ] = None,
    allow_other_crops: AllowOtherCrops = False,
    columns: Annotated[
        str, typer.Option("--columns", help="default, or openface: the names that OpenFace 2 uses.", metavar="NAMES")
    ] = "default",
    raw: Annotated[bool, typer.Option("--raw", help="Without the post-processing that the run ships.")] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> int:
    """Write VIDEO.csv (time, probabilities and decisions per frame) and VIDEO.json (what they mean) for each video."""
    del verbose  # `reported` reads it
    from extract import console
    from fusion import prediction

    with console.progress(quiet or as_json) as progress:
        found = prediction.predict(
            videos,
            run,
            output=output,
            config=config,
            set=set_ or (),
            device=device,
            offline=offline,
            fill=fill,
            crops=prediction.crops_choice(crops),
            allow_other_crops=allow_other_crops,
            columns=prediction.columns_choice(columns),
            raw=raw,
            progress=progress,
        )
    if as_json:
        _print_json(found.as_json())
        return found.exit_code
    if not quiet:
        for line in (f"run {found.run}", *found.lines()):
            print(line)
        for warning in found.warnings:
            typer.echo(f"warning: {warning}", err=True)
    for video, reason in found.failed.items():
        typer.echo(f"failed: {video}: {reason}", err=True)
    return found.exit_code


for command in (
    cli_analysis.evaluate,
    cli_tuning.tune,
    cli_analysis.ablate,
    cli_tuning.correlate,
    cli_analysis.crossval,
    cli_analysis.ensemble,
    cli_share.export,
    cli_share.submit,
):
    app.command()(command)


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, indent=1))


def main() -> None:
    """Entry point of the console script."""
    endings.run_program("fusion", app)


if __name__ == "__main__":
    main()
