"""The commands ``tune`` and ``correlate``: arguments and printing only; heavy imports wait until they are needed."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from extract.flags import AsJson, Quiet, Verbose, reported
from fusion.cli_analysis import AllowLeak, Features, Output, RunPath

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fusion.result_files import Result


@reported("fusion")
def tune(
    run: RunPath = None,
    unit: Annotated[str, typer.Option("--unit", help="frames, or seconds: the same at every frame rate.")] = "frames",
    size: Annotated[
        list[float] | None, typer.Option("--size", help="A window to try; may be repeated. (default: the usual ones)")
    ] = None,
    at: Annotated[
        str, typer.Option("--at", help="Choose by F1 with each AU's best threshold (tuned) or at 0.5 (half).")
    ] = "tuned",
    report: Annotated[
        str | None, typer.Option("--report", help="Also show this split's saved scores, with what val chose.")
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Write the chosen window, with new thresholds, into the run.")
    ] = False,
    features: Features = "store.zarr",
    output: Output = None,
    allow_leak: AllowLeak = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> int:
    """Sweep the smoothing window on the run's scores of val. The network does not run."""
    from extract.errors import UsageError
    from extract.names import suggestion
    from fusion import saved_scores
    from fusion.runs import Run
    from fusion.smoothing import Unit
    from fusion.tuning import At

    for option, value, known in (("--unit", unit, ("frames", "seconds")), ("--at", at, ("tuned", "half"))):
        if value not in known:
            raise UsageError(f"{option} {value}: {suggestion(value, known)}")
    where = Run(run) if run is not None else Run.newest()
    found = saved_scores.tune(
        where.path,
        features=features,
        unit=cast(Unit, unit),
        sizes=size,
        at=cast(At, at),
        report=report,
        apply=apply,
        allow_leak=allow_leak,
    )
    _show(found, found.pictures(), output or where.path / "tune", "tune", quiet, verbose, as_json)
    if apply and not (quiet or as_json):
        typer.echo(f"applied: {found.setting}, thresholds chosen anew -> {where.path}/postprocess.json", err=True)
    return 0


@reported("fusion")
def correlate(
    run: RunPath = None,
    split: Annotated[str, typer.Option("--split", help="Whose saved scores: val, or one that was evaluated.")] = "val",
    raw: Annotated[bool, typer.Option("--raw", help="The network's own probabilities.")] = False,
    output: Output = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> int:
    """Correlate the action units of labels and predictions, and expressions where they are labelled."""
    from fusion import saved_scores
    from fusion.runs import Run

    where = Run(run) if run is not None else Run.newest()
    found = saved_scores.correlate(where.path, split=split, raw=raw)
    _show(found, found.pictures(), output or where.path / "correlate", split, quiet, verbose, as_json)
    return 0


def _show(
    result: "Result",
    pictures: "dict[str, Figure]",
    folder: Path,
    name: str,
    quiet: bool,
    verbose: bool,
    as_json: bool,
) -> None:
    """Print a result, and write it as JSON, CSV and pictures."""
    from fusion.pictures import save_figure
    from fusion.result_files import write_result

    print(json.dumps(result.as_json(), indent=1) if as_json else result.text(verbose))
    files = write_result(result, folder, name)
    for picture, figure in pictures.items():
        files += save_figure(figure, folder, f"{name}_{picture}")
    if not (quiet or as_json):
        typer.echo(f"written: {folder}/ {', '.join(path.name for path in files)}", err=True)
