"""``extract manifest``: from a folder or data set to a manifest."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from extract.errors import UsageError
from extract.flags import ManifestOut, Update, reported
from extract.names import suggestion

SHOWN = 10
"""Lines of a list before it is cut."""

HELD_OUT_SHARE = 0.1
"""Share of the clips that ``--split-by`` gives to val and to test by default."""

app = typer.Typer(help="Make a manifest of a folder or data set.", no_args_is_help=True)


@app.command("folder")
@reported("extract")
def manifest_folder(
    root: Annotated[Path, typer.Argument(help="Folder of videos and sound files, with what lies below it.")],
    out: ManifestOut,
    update: Update = False,
    split_by: Annotated[
        str | None,
        typer.Option(
            "--split-by",
            help="Put clips without a split into train, val and test; those of one subject or source video together.",
            metavar="subject|source_video",
        ),
    ] = None,
    val: Annotated[float | None, typer.Option("--val", help="Share of the clips for val. (default: 0.1)")] = None,
    test: Annotated[float | None, typer.Option("--test", help="Share of the clips for test. (default: 0.1)")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the splits. (default: 0)", min=0)] = None,
    allow_shared_subjects: Annotated[
        bool, typer.Option("--allow-shared-subjects", help="Keep only clips of one source video together.")
    ] = False,
) -> int:
    """List the videos and sound files of a folder.

    NAME.srt, .vtt, .json or .csv beside a video gives its words, NAME.csv with AU columns its labels.
    """
    from extract.inputs.datasets.folder import own_file, scan_folder
    from extract.inputs.manifest import refuse_existing
    from extract.inputs.manifest.update import make

    rule = _split_rule(split_by, val, test, seed, allow_shared_subjects=allow_shared_subjects)
    if not update:
        refuse_existing(out)  # before a scan that may take long
    scan = scan_folder(root)
    comment = (
        "Made by `extract manifest folder`. Edit it: with `--update` that command adds what is new and keeps the rest."
    )
    made = make(out, scan.clips, comment, root=root, own=own_file, update=update, rule=rule)
    videos = sum(clip.video is not None for clip in scan.clips)
    kinds = f"{videos} videos, {len(scan.clips) - videos} sound files"
    print(
        f"{out}: {len(scan.clips)} clips ({kinds})" if not made.known else f"{root}: {len(scan.clips)} clips ({kinds})"
    )
    words = sum(clip.transcript is not None for clip in scan.clips)
    labels = sum(clip.labels.au is not None for clip in scan.clips)
    if words or labels:
        print(f"with a transcript: {words}; with labels: {labels}")
    if scan.left_out:
        counts = ", ".join(f"{count} {suffix}" for suffix, count in scan.left_out.items())
        print(f"left out: {counts}")
    for note in scan.notes:
        print(f"note: {note}")
    _show_made(out, made)
    return 0


@app.command("affwild2")
@reported("extract")
def manifest_affwild2(
    root: Annotated[Path, typer.Argument(help="Folder of Aff-Wild2: annotations, cropped_aligned, movies.")],
    out: ManifestOut,
    update: Update = False,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the 90/10 split of the training set.", min=0)] = 0,
    fps: Annotated[float | None, typer.Option("--fps", help="Frame rate of crops that have no movie.")] = None,
) -> int:
    """Official splits (validation is test), annotations, given crops, two faces of one movie."""
    from extract.inputs.datasets.affwild2 import KNOWN, own_file, scan_affwild2
    from extract.inputs.manifest import load_manifest, refuse_existing
    from extract.inputs.manifest.update import make

    if not update:
        refuse_existing(out)  # before a scan that may take long
    there = load_manifest(out) if update and out.exists() else ()
    known = {clip.source_video: clip.split for clip in there if clip.split is not None}
    found = scan_affwild2(root, seed=seed, fps=fps, known=known)
    comment = f"Aff-Wild2, by `extract manifest affwild2`, seed {seed}. With `--update` it adds what is new."
    made = make(out, found.clips, comment, root=root, own=own_file, update=update)
    splits = ", ".join(f"{name} {sum(c.split == name for c in found.clips)}" for name in ("train", "val", "test"))
    print(f"{root if made.known else out}: {len(found.clips)} clips ({splits})")
    for what, sets in found.counts.items():
        for official, number in sets.items():
            print(f"  {what}, {official}: {number:,} (others counted {KNOWN[what][official]})")
    for note in found.notes:
        print(f"note: {note}")
    _show_left_out(found.left_out)
    _show_made(out, made)
    return 0


FoldOf = Annotated[
    int | None, typer.Option("--fold", help="Published fold that is the test split: 1, 2 or 3. (default: no splits)")
]
ValShare = Annotated[
    float,
    typer.Option("--val", help="With --fold: share of the other people that is the val split; 0 for none."),
]
ValSeed = Annotated[int, typer.Option("--seed", help="Seed of who is in the val split.", min=0)]
CropsFps = Annotated[float | None, typer.Option("--fps", help="Frame rate of crops that have no movie.")]


@app.command("disfa")
@reported("extract")
def manifest_disfa(
    root: Annotated[Path, typer.Argument(help="Folder of DISFA: ActionUnit_Labels, movies.")],
    out: ManifestOut,
    update: Update = False,
    threshold: Annotated[
        int, typer.Option("--threshold", help="Least intensity, 1 to 5, that counts as present; state it in results.")
    ] = 2,
    side: Annotated[str, typer.Option("--side", help="Camera.", metavar="left|right")] = "left",
    fold: FoldOf = None,
    val: ValShare = HELD_OUT_SHARE,
    seed: ValSeed = 0,
    fps: CropsFps = None,
) -> int:
    """Intensities and presence of twelve action units, movies or given crops, the published folds."""
    from extract.inputs.datasets.disfa import KNOWN, scan_disfa

    if side not in {"left", "right"}:
        raise UsageError(f"--side {side}: expected left or right; {suggestion(side, ['left', 'right'])}")
    known = _known_people(out, update=update)
    scan = scan_disfa(
        root,
        _label_folder(out),
        threshold=threshold,
        side="left" if side == "left" else "right",
        fold=fold,
        val=val,
        seed=seed,
        fps=fps,
        known=known,
    )
    comment = (
        f"DISFA, by `extract manifest disfa`. Present: intensity {threshold} or more. {_fold_text(fold, val, seed)}"
    )
    return _made_of_codes(scan, comment, KNOWN, root, out, update=update, fold=fold)


@app.command("bp4d")
@reported("extract")
def manifest_bp4d(
    root: Annotated[Path, typer.Argument(help="Folder of BP4D: AUCoding, movies or cropped faces.")],
    out: ManifestOut,
    update: Update = False,
    first_frame: Annotated[
        int, typer.Option("--first-frame", help="Number that the codes give to a movie's first frame: 0 or 1.")
    ] = 1,
    fold: FoldOf = None,
    val: ValShare = HELD_OUT_SHARE,
    seed: ValSeed = 0,
    fps: CropsFps = None,
) -> int:
    """Codes of the part of each task that was coded, intensities where there are any, the published folds."""
    from extract.inputs.datasets.bp4d import KNOWN, scan_bp4d

    known = _known_people(out, update=update)
    scan = scan_bp4d(
        root, _label_folder(out), first_frame=first_frame, fold=fold, val=val, seed=seed, fps=fps, known=known
    )
    comment = f"BP4D, by `extract manifest bp4d`. Codes count frames from {first_frame}. {_fold_text(fold, val, seed)}"
    return _made_of_codes(scan, comment, KNOWN, root, out, update=update, fold=fold)


def _known_people(out: Path, *, update: bool) -> dict[str, str]:
    """Person -> split of an existing manifest; without ``update`` that is refused, before a scan that may take long."""
    from extract.inputs.manifest import load_manifest, refuse_existing

    if not update:
        refuse_existing(out)
    there = load_manifest(out) if update and out.exists() else ()
    return {clip.subject: clip.split for clip in there if clip.subject is not None and clip.split is not None}


def _label_folder(out: Path) -> Path:
    """Where the label files of the manifest ``out`` lie: beside it."""
    from extract.inputs.manifest import absolute

    return absolute(out.parent / f"{out.stem}_labels", Path.cwd())


def _fold_text(fold: int | None, val: float, seed: int) -> str:
    return "No splits." if fold is None else f"Test: fold {fold} of 3; val: {val:g} of the other people, seed {seed}."


def _made_of_codes(
    scan: Any,  # noqa: ANN401 - datasets.coded.CodedScan, whose module is imported late
    comment: str,
    published: Mapping[str, str],
    root: Path,
    out: Path,
    *,
    update: bool,
    fold: int | None,
) -> int:
    """Write manifest and label files, and print what there is."""
    from extract.inputs.datasets.coded import own_file, write_labels
    from extract.inputs.manifest.update import make

    write_labels(scan.label_files)  # first: a manifest names files that are there
    made = make(
        out, scan.clips, f"{comment} With `--update` it adds what is new.", root=root, own=own_file, update=update
    )
    splits = ", ".join(f"{name} {sum(c.split == name for c in scan.clips)}" for name in ("train", "val", "test"))
    print(f"{root if made.known else out}: {len(scan.clips)} clips{f' ({splits})' if fold is not None else ''}")
    for what, number in scan.counts.items():
        print(f"  {what}: {number:,} (published: {published[what]})")
    if fold is None:
        print("note: no splits; --fold 1, 2 or 3 takes the published ones")
    names = ",".join(map(str, scan.aus))
    rated = any(clip.labels.intensity is not None for clip in scan.clips)
    also = " --set 'labels.also=[intensity]'" if rated else ""
    print(f"next: extract run --manifest {out} --set 'labels.aus=[{names}]'{also}")
    _show_left_out(scan.left_out)
    _show_made(out, made)
    return 0


def _show_left_out(left_out: Mapping[str, str]) -> None:
    for name, why in list(left_out.items())[:SHOWN]:
        print(f"left out: {name}: {why}")
    if len(left_out) > SHOWN:
        print(f"left out: {len(left_out) - SHOWN} more")


def _split_rule(
    split_by: str | None, val: float | None, test: float | None, seed: int | None, *, allow_shared_subjects: bool
) -> Any:  # noqa: ANN401 - manifest.update.SplitRule, whose module is imported late
    from extract.inputs.manifest.update import SplitRule

    if split_by is None:
        if any(given is not None for given in (val, test, seed)) or allow_shared_subjects:
            raise UsageError(
                "--val, --test, --seed and --allow-shared-subjects say how to split: give --split-by as well"
            )
        return None
    if split_by not in {"subject", "source_video"}:
        hint = suggestion(split_by, ["subject", "source_video"])
        raise UsageError(f"--split-by {split_by}: expected subject or source_video; {hint}")
    if split_by == "subject" and allow_shared_subjects:
        raise UsageError("--split-by subject and --allow-shared-subjects exclude each other")
    return SplitRule(
        "subject" if split_by == "subject" else "source_video",
        val=HELD_OUT_SHARE if val is None else val,
        test=HELD_OUT_SHARE if test is None else test,
        seed=seed or 0,
        allow_shared_subjects=allow_shared_subjects,
    )


def _show_made(out: Path, made: Any) -> None:  # noqa: ANN401 - manifest.update.Made, whose module is imported late
    if made.known:
        print(f"{out}: {made.known} clips were there, {len(made.added)} added{_named(clip.id for clip in made.added)}")
    if made.gone:
        print(f"{len(made.gone)} no longer found, left as they are{_named(made.gone)}")
    if made.elsewhere:
        print(f"{made.elsewhere} of another folder, left as they are")
    if made.splits is not None:
        by_split = "; ".join(f"{name}: {clips} ({groups})" for name, (clips, groups) in made.splits.items())
        print(f"clips of each split (groups that stay together): {by_split}; {made.assigned} assigned now")
    if made.kept_out:
        print(f"{made.kept_out} say `split: null` and stay without one")
    for note in made.notes:
        print(f"note: {note}")


def _named(names: Iterable[str]) -> str:
    """``: a, b``, cut after SHOWN names."""
    listed = list(names)
    more = ", ..." if len(listed) > SHOWN else ""
    return f": {', '.join(listed[:SHOWN])}{more}" if listed else ""
