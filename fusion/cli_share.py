"""``fusion export`` and ``fusion submit``: arguments and printing only; heavy imports wait until they are needed."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from extract.flags import AsJson, Device, Quiet, Verbose, reported

if TYPE_CHECKING:
    from fusion.submission_check import Defect

SHOWN = 40
"""Defects that are printed; --json has all."""


@reported("fusion")
def export(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    run: Annotated[
        Path | None, typer.Argument(help="Folder of the run. (default: the newest in runs/)", metavar="[RUN]")
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> int:
    """Write a run as one folder to share: `fusion predict --run FOLDER` works with it on any machine."""
    del verbose  # `reported` reads it
    from fusion import sharing

    folder = sharing.export(run, output)
    if as_json:
        print(json.dumps({"folder": str(folder), "files": sorted(path.name for path in folder.iterdir())}, indent=1))
    elif not quiet:
        for path in sorted(folder.iterdir()):
            print(f"{path}  {path.stat().st_size:,} bytes")
        print(f"use it with `fusion predict VIDEO --run {folder}`")
    return 0


@reported("fusion")
def submit(
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="abaw3: a file per video; abaw5: one file for all (also ABAW6 and later).",
            metavar="FORMAT",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder (abaw3) or file (abaw5) to write.")
    ] = None,
    run: Annotated[Path | None, typer.Option("--run", help="Folder of the run. (default: the newest in runs/)")] = None,
    features: Annotated[str, typer.Option("--features", help="Feature store.")] = "store.zarr",
    split: Annotated[str, typer.Option("--split", help="train, val or test; labels are not needed.")] = "test",
    scores: Annotated[
        Path | None, typer.Option("--scores", help="Saved scores (.npz) to use in place of --features and --split.")
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option("--predictions", help="Folder of tables by `fusion predict` to use in place of a run."),
    ] = None,
    sample: Annotated[
        Path | None, typer.Option("--sample", help="The challenge's sample file: which rows, in which order (abaw5).")
    ] = None,
    expected: Annotated[
        Path | None, typer.Option("--expected", help="The challenge's list of rows per video, lines NAME,COUNT.")
    ] = None,
    fill: Annotated[
        str | None,
        typer.Option(
            "--fill",
            help="Frames without a face: run, nearest, interpolate or hold. (default: as the run decides)",
            metavar="HOW",
        ),
    ] = None,
    check: Annotated[
        Path | None, typer.Option("--check", help="Only check this file (abaw5) or folder (abaw3); nothing is written.")
    ] = None,
    device: Device = "auto",
    allow_other_crops: Annotated[
        bool, typer.Option("--allow-other-crops", help="Accept crops of another kind than in the fit.")
    ] = False,
    allow_leak: Annotated[
        bool, typer.Option("--allow-leak", help="Accept clips that adapted weights were trained on.")
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> int:
    """Write the files that the ABAW challenge takes, or check such files."""
    del verbose  # `reported` reads it
    from fusion import submission, submission_check

    if check is not None:
        submission_check.refuse_needless(output=output, scores=scores, predictions=predictions, fill=fill, run=run)
        defects = submission_check.check(check, form, sample=sample, expected=expected)
        return _told(defects, check, quiet=quiet, as_json=as_json)
    written = submission.submit(
        form,
        output,
        run=run,
        features=features,
        split=split,
        scores=scores,
        predictions=predictions,
        sample=sample,
        expected=expected,
        fill=fill,
        device=device,
        allow_other_crops=allow_other_crops,
        allow_leak=allow_leak,
    )
    if as_json:
        print(json.dumps(written.as_json(), indent=1))
    elif not quiet:
        print("\n".join(written.lines()))
    return 0


def _told(defects: "list[Defect]", path: Path, *, quiet: bool, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"path": str(path), "defects": [defect.as_json() for defect in defects]}, indent=1))
        return 1 if defects else 0
    for defect in defects[:SHOWN]:
        print(defect)
    if len(defects) > SHOWN:
        print(f"and {len(defects) - SHOWN} more; --json lists all")
    if not quiet:
        print(f"{path}: {len(defects) or 'no'} defect{'s' if len(defects) != 1 else ''} found")
    return 1 if defects else 0
