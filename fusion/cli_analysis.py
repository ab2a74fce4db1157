"""The commands ``evaluate``, ``ablate``, ``ensemble`` and ``crossval``: arguments and printing only.

``fusion.cli`` registers them. Heavy imports wait until a command needs them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from extract import endings
from extract.flags import AsJson, Device, Quiet, Verbose, reported

if TYPE_CHECKING:
    from fusion.result_files import Result

Features = Annotated[str, typer.Option("--features", help="Feature store.")]
RunPath = Annotated[Path | None, typer.Option("--run", help="Folder of the run. (default: the newest in runs/)")]
SkipFailed = Annotated[
    bool, typer.Option("--skip-failed", help="Leave out clips whose features failed or are unfinished.")
]
Split = Annotated[str, typer.Option("--split", help="train, val or test.")]
StrictSplits = Annotated[
    bool, typer.Option("--strict-splits", help="Refuse a subject or source video that lies in several splits.")
]
AllowLeak = Annotated[
    bool,
    typer.Option("--allow-leak", help="Report on clips that something was chosen or adapted on; every table says so."),
]
AllowOtherCrops = Annotated[
    bool,
    typer.Option("--allow-other-crops", help="Use a run fitted on given crops on cut ones, or the other way round."),
]
Published = Annotated[
    bool, typer.Option("--published", help="Print published numbers beside; for Aff-Wild2 in its official split.")
]
Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", help="Folder for JSON, CSV and pictures. (default: in the run's folder)"),
]


@reported("fusion")
def evaluate(
    run: RunPath = None,
    features: Features = "store.zarr",
    split: Split = "test",
    withhold: Annotated[
        bool, typer.Option("--withhold", help="Also score without each modality; takes a pass for each.")
    ] = False,
    output: Output = None,
    device: Device = "auto",
    skip_failed: SkipFailed = False,
    allow_other_crops: AllowOtherCrops = False,
    strict_splits: StrictSplits = False,
    allow_leak: AllowLeak = False,
    published: Published = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> int:
    """Print F1 of every action unit after each step, beside trivial predictors that never look at a face."""
    from fusion import evaluation
    from fusion.evaluation_picture import draw_evaluation
    from fusion.runs import Run

    found = evaluation.evaluate(
        features,
        run,
        split=split,
        device=device,
        skip_failed=skip_failed,
        withhold=withhold,
        published=published,
        allow_other_crops=allow_other_crops,
        strict_splits=strict_splits,
        allow_leak=allow_leak,
    )
    # An exported folder is left as it is.
    folder = output or (Path(found.run) if Run(found.run).finished else Path()) / "evaluate"
    tasks = [row for head in found.heads for row in head.rows()]
    _show(found, folder, split, tasks, verbose=verbose, as_json=as_json)
    _say_files(draw_evaluation(found, folder, split), folder, split, quiet=quiet or as_json)
    return 0


@reported("fusion", f"{endings.INTERRUPTED}; finished retrained networks are kept")
def ablate(
    run: RunPath = None,
    features: Features = "store.zarr",
    split: Split = "test",
    way: Annotated[
        list[str] | None,
        typer.Option("--way", help="zero_input, missing or retrained; may be repeated. (default: the first two)"),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option("--without", help="A modality, or several joined by +; may be repeated. (default: each)"),
    ] = None,
    post: Annotated[bool, typer.Option("--post", help="Score with the run's post-processing.")] = False,
    output: Output = None,
    device: Device = "auto",
    skip_failed: SkipFailed = False,
    allow_leak: AllowLeak = False,
    allow_other_crops: AllowOtherCrops = False,
    published: Published = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> int:
    """Print what each modality is worth: mean F1 without its input, with it missing, or retrained without it."""
    from typing import cast

    from fusion import analysis
    from fusion.ablation import Way
    from fusion.ablation_picture import draw_ablation

    found = analysis.ablate(
        features,
        run,
        split=split,
        ways=[cast(Way, one) for one in way or ("zero_input", "missing")],
        without=without or (),
        post=post,
        device=device,
        skip_failed=skip_failed,
        allow_leak=allow_leak,
        allow_other_crops=allow_other_crops,
        published=published,
    )
    folder = output or Path(found.about.run) / "ablate"
    _show(found, folder, split, verbose=verbose, as_json=as_json)
    _say_files(draw_ablation(found, folder, split), folder, split, quiet=quiet or as_json)
    return 0


@reported("fusion")
def ensemble(
    candidates: Annotated[
        list[Path], typer.Argument(help="Folders of runs, or files of scores (.npz).", metavar="RUN|FILE...")
    ],
    features: Features = "store.zarr",
    split: Annotated[str, typer.Option("--split", help="The split that the choice is scored on.")] = "test",
    choose_on: Annotated[str, typer.Option("--choose-on", help="The split that the choice is made on.")] = "val",
    metric: Annotated[str, typer.Option("--metric", help="f1_our or f1: what the choice maximises.")] = "f1_our",
    folds: Annotated[int, typer.Option("--folds", help="Folds of source videos for the nested score.", min=2)] = 5,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for JSON, CSV and pictures.")] = Path(
        "runs/ensemble"
    ),
    device: Device = "auto",
    skip_failed: SkipFailed = False,
    allow_leak: AllowLeak = False,
    allow_other_crops: AllowOtherCrops = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> int:
    """Choose the best of several runs for each action unit, beside a nested score and the mean of their logits."""
    from typing import cast

    from extract.errors import UsageError
    from extract.names import suggestion
    from fusion import analysis
    from fusion.ensemble import METRICS, Metric
    from fusion.evaluation_picture import draw_ensemble

    if metric not in METRICS:
        raise UsageError(f"--metric {metric}: no such metric; {suggestion(metric, METRICS)}")
    found = analysis.ensemble(
        features,
        candidates,
        choose_on=choose_on,
        report_on=None if split == choose_on else split,
        metric=cast(Metric, metric),
        num_folds=folds,
        device=device,
        skip_failed=skip_failed,
        allow_leak=allow_leak,
        allow_other_crops=allow_other_crops,
    )
    _show(found, output, "ensemble", verbose=verbose, as_json=as_json)
    _say_files(draw_ensemble(found, output), output, "ensemble", quiet=quiet or as_json)
    return 0


@reported("fusion", f"{endings.INTERRUPTED}; finished folds are kept")
def crossval(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the folds; finished folds in it are kept.")],
    features: Features = "store.zarr",
    folds: Annotated[int, typer.Option("--folds", help="Number of folds.", min=2)] = 5,
    pool: Annotated[
        list[str] | None,
        typer.Option(
            "--pool", help="A split whose clips are parted into folds; may be repeated. (default: train, val)"
        ),
    ] = None,
    first: Annotated[
        str | None,
        typer.Option("--first", help="A pooled split that is fold 1 as it is, as an official validation set."),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            "-c",
            "--config",
            help="Built-in config or YAML file. (default: the config that the store was made with)",
            metavar="NAME|PATH",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a setting, as in training.lr=1e-4; may be repeated.", metavar="A.B=C"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the folds.", min=0)] = 0,
    device: Device = "auto",
    skip_failed: SkipFailed = False,
    allow_leak: AllowLeak = False,
    allow_other_crops: AllowOtherCrops = False,
    published: Published = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> int:
    """Fit a network per fold of recordings and people, and score every clip by one that saw neither."""
    from fusion import cross_fitting
    from fusion.evaluation_picture import draw_evaluation

    found = cross_fitting.crossval(
        features,
        output,
        config,
        set=set_ or (),
        k=folds,
        pool=pool or ("train", "val"),
        first=first,
        seed=seed,
        device=device,
        skip_failed=skip_failed,
        allow_leak=allow_leak,
        allow_other_crops=allow_other_crops,
        published=published,
    )
    _show(found, output, "crossval", verbose=verbose, as_json=as_json)
    _say_files(draw_evaluation(found.pooled, output, "crossval"), output, "crossval", quiet=quiet or as_json)
    return 0


def _show(
    result: "Result",
    folder: Path,
    name: str,
    tasks: Sequence[Mapping[str, Any]] = (),
    *,
    verbose: bool,
    as_json: bool,
) -> None:
    """Print a result and write it as JSON and CSV."""
    from fusion.result_files import write_result

    print(json.dumps(result.as_json(), indent=1) if as_json else result.text(verbose))
    write_result(result, folder, name, tasks)


def _say_files(pictures: list[Path], folder: Path, name: str, *, quiet: bool) -> None:
    if not quiet:
        kinds = ["json", "csv", *(path.suffix[1:] for path in pictures)]
        typer.echo(f"written: {folder / name}.{{{','.join(kinds)}}}", err=True)
