"""``extract adapt``: trains an encoder further on the manifest's own clips."""

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from extract.flags import AllowShared, AsJson, Config, Device, Manifest, Offline, Quiet, Set, reported

Stage = Annotated[str, typer.Option("--stage", help="Whose weights: hubert.")]
Folder = Annotated[
    Path | None,
    typer.Option("-o", "--output", help="Folder to write; an unfinished one is continued. (default: adapted/STAGE)"),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="What to begin with: a key, a folder, fairseq's .pt, or random. (default: as the config's instance says)",
        metavar="KEY|PATH|random",
    ),
]
Architecture = Annotated[
    str | None,
    typer.Option("--architecture", help="Of these weights, as in xlarge. (default: what the config's instance says)"),
]
Transductive = Annotated[
    bool,
    typer.Option(
        "--transductive",
        help="Train on clips of val and test as well. The weights and their model card say so, and fusion refuses to "
        "score these clips without --allow-leak, which every table then prints.",
    ),
]


@reported("extract")
def adapt(
    stage: Stage,
    manifest: Manifest = Path("data_manifest.yaml"),
    out: Folder = None,
    weights: Weights = None,
    architecture: Architecture = None,
    config: Config = None,
    set_: Set = None,
    transductive: Transductive = False,
    allow_shared_subjects: AllowShared = False,
    device: Device = "auto",
    offline: Offline = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> int:
    """Train an encoder further on the manifest's training clips, by itself: labels are never read.

    Settings are the config's section extract: adapt: STAGE:, as in --set adapt.hubert.steps=2000. Clips of val are only
    looked at, to log a loss on them and to choose the best weights; clips of test are not touched. A run that was
    interrupted or killed continues with the same command, with the same result.

    The folder holds best/ and last/ in the end, which the stage's weights: takes.

    Several GPUs: accelerate launch --num_processes 4 -m extract adapt --stage hubert ...
    """
    import json

    from extract.adapt import progress
    from extract.adapt.stages import adapter

    adapting = adapter(stage)
    output = out or Path("adapted") / stage
    first = os.environ.get("RANK", "0") == "0"  # the one of several processes that speaks
    with progress.shown(quiet or as_json or not first) as tell:
        done = adapting(
            manifest,
            output,
            config,
            set=set_ or (),
            weights=weights,
            architecture=architecture,
            transductive=transductive,
            allow_shared_subjects=allow_shared_subjects,
            device=device,
            offline=offline,
            tell=tell,
        )
    if not first:
        return done.exit_code
    if as_json:
        print(json.dumps({"folder": str(done.folder), "failures": done.failures, **done.metrics}, indent=1))
        return done.exit_code
    if not quiet:
        best = done.metrics["best"]
        print(f"{done.best}: {best['step']} updates on {done.metrics['training_s'] / 3600:.2f} h of sound")
        print(_line("training clips", best["accuracy"], None, None))
        if best["val_accuracy"] is not None:
            print(_line("val", best["val_accuracy"], best["val_majority"], best["val_margin_error"]))
        flags = [*(["-c", config] if config else []), *([] if str(manifest) == "data_manifest.yaml" else
                 ["--manifest", str(manifest)])]  # fmt: skip
        command = ["extract", "run", *flags, "--stage", stage, "--set", f"{stage}.weights={done.best}"]
        print(f"next: {shlex.join(command)}")
    for clip, why in done.failures.items():
        print(f"left out: {clip}: {why}")
    return done.exit_code


def _line(what: str, accuracy: float, majority: float | None, error: float | None) -> str:
    guess = "" if majority is None else f"; always the most frequent cluster: {100 * majority:.1f} %"
    doubt = (
        "" if error is None or majority is None else f" (margin {100 * (accuracy - majority):.1f} +- {100 * error:.1f})"
    )
    return f"{what}: {100 * accuracy:.1f} % of the hidden steps named right{guess}{doubt}"
