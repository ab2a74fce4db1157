"""``fusion``: arguments and printing only. Heavy imports wait until a command needs them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from extract import endings
from extract.flags import AsJson, Device, Offline, Quiet, Verbose, reported
from fusion import cli_share

if TYPE_CHECKING:
    from fusion.evaluation import Evaluation

app = typer.Typer(
    help="Action unit models on stored features: fit one, evaluate it, predict with it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Features = Annotated[str, typer.Option("--features", help="Feature store.")]
RunPath = Annotated[Path | None, typer.Option("--run", help="Folder of the run. (default: the newest in runs/)")]
SkipFailed = Annotated[
    bool, typer.Option("--skip-failed", help="Leave out clips whose features failed or are unfinished.")
]

StrictSplits = Annotated[
    bool, typer.Option("--strict-splits", help="Refuse a subject or source video that lies in several splits.")
]
AllowLeak = Annotated[
    bool, typer.Option("--allow-leak", help="Score clips that adapted weights were trained on; the table says so.")
]
AllowOtherCrops = Annotated[
    bool,
    typer.Option("--allow-other-crops", help="Use a run fitted on given crops on cut ones, or the other way round."),
]


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
    device: Device = "auto",
    skip_failed: SkipFailed = False,
    strict_splits: StrictSplits = False,
    allow_leak: AllowLeak = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> int:
    """Fit the fusion network on the split train, with early stopping on the split val. An interrupted fit continues."""
    del verbose  # `reported` reads it
    from fusion import training

    found = training.fit(
        features,
        output,
        config,
        set=set_ or (),
        device=device,
        skip_failed=skip_failed,
        strict_splits=strict_splits,
        allow_leak=allow_leak,
    )
    if as_json:
        _print_json({evaluation.split: evaluation.as_json() for evaluation in found})
    elif not quiet:
        print("\n\n".join(render(evaluation) for evaluation in found))
    return 0


@app.command()
@reported("fusion")
def evaluate(
    run: RunPath = None,
    features: Features = "store.zarr",
    split: Annotated[str, typer.Option("--split", help="train, val or test.")] = "test",
    device: Device = "auto",
    skip_failed: SkipFailed = False,
    allow_other_crops: AllowOtherCrops = False,
    strict_splits: StrictSplits = False,
    allow_leak: AllowLeak = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> int:
    """Print F1 of every action unit by both definitions, beside trivial predictors that never look at a face."""
    del quiet, verbose  # `reported` reads them
    from fusion import evaluation

    found = evaluation.evaluate(
        features,
        run,
        split=split,
        device=device,
        skip_failed=skip_failed,
        allow_other_crops=allow_other_crops,
        strict_splits=strict_splits,
        allow_leak=allow_leak,
    )
    if as_json:
        _print_json(found.as_json())
    else:
        print(render(found))
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


def render(evaluation: "Evaluation") -> str:
    """The table of an evaluation: percentages, a column per AU; a dash where an AU has no annotation."""
    from extract.au import AU_NAMES
    from fusion.evaluation import by_name

    scores = evaluation.scores
    lines = [
        f"run {evaluation.run} (epoch {evaluation.epoch}), features {evaluation.features}, split {evaluation.split}: "
        f"{evaluation.frames} annotated frames of {evaluation.clips} clips",
        _row("", [*AU_NAMES, "mean"]),
    ]
    titles = {"zeros": "all zero", "ones": "all one", "majority": "majority", "prior": "random at prior"}
    for title, metric, values in (("F1", "f1", scores.f1), ("F1_our", "f1_our", scores.f1_our)):
        lines.append(_row(title, _percent(by_name(values))))
        lines += [
            _row(f"  {titles[name]}", _percent(by_name(found[metric]))) for name, found in scores.baselines.items()
        ]
    if evaluation.interval is not None:
        low, high = _percent({"low": evaluation.interval[0], "high": evaluation.interval[1]})
        lines.append(f"mean F1, 95 % bootstrap interval over {evaluation.clips} clips: {low} to {high}")
    lines += [
        _row("annotated", [str(count) for count in scores.annotated]),
        _row("positive", [str(count) for count in scores.positive]),
    ]
    missing = [f"{name} {count}" for name, count in evaluation.missing.items() if count]
    if missing:
        lines.append(f"frames without a modality, scored all the same: {', '.join(missing)}")
    lines += [f"left out: clip {clip}: {reason}" for clip, reason in evaluation.left_out.items()]
    if evaluation.untrained:
        lines.append(
            f"untrained: {', '.join(evaluation.untrained)} (random weights: the numbers say nothing about the method)"
        )
    if evaluation.drawn:
        lines.append(f"synthetic: {evaluation.drawn} of {evaluation.clips} clips are drawn by a program")
    lines += [f"warning: {line}" for line in evaluation.warnings]
    return "\n".join(lines)


def _row(title: str, cells: list[str]) -> str:
    return f"{title:<17}" + "".join(f"{cell:>6}" for cell in cells)


def _percent(values: "dict[str, float | None]") -> list[str]:
    return ["-" if value is None else f"{100 * value:.1f}" for value in values.values()]


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, indent=1))


app.command()(cli_share.export)
app.command()(cli_share.submit)


def main() -> None:
    """Entry point of the console script."""
    endings.run_program("fusion", app)


if __name__ == "__main__":
    main()
