"""``extract``: arguments and printing only. Heavy imports wait until a command needs them."""

import functools
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer

from extract import endings
from extract.errors import CorruptError, MachineError, StaleError, UsageError, WeightsError

if TYPE_CHECKING:
    from extract.running.selection import Options

P = ParamSpec("P")

SHOWN = 10
"""Lines of a list before it is cut."""

HELD_OUT_SHARE = 0.1
"""Share of the clips that ``manifest folder --split-by`` gives to val and to test unless told."""

app = typer.Typer(
    help="From raw videos to per-frame multimodal features in one resumable Zarr store.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
manifest_app = typer.Typer(help="Make a manifest of a folder or data set.", no_args_is_help=True)
weights_app = typer.Typer(help="Model weights: what the table names, what is here.", no_args_is_help=True)
app.add_typer(manifest_app, name="manifest")
app.add_typer(weights_app, name="weights")

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
ManifestOut = Annotated[Path, typer.Option("-o", "--out", help="Manifest to write; one that is there is refused.")]
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


@app.command()
@reported
def run(
    manifest: Manifest = Path("data_manifest.yaml"),
    store: StorePath = "store.zarr",
    config: Config = None,
    set_: Set = None,
    stage: Stages = None,
    clip: Clips = None,
    limit: Limit = None,
    shard: Shard = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    retry: Retry = False,
    allow_shared_subjects: AllowShared = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    offline: Offline = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> int:
    """Compute what the store lacks: resumes, skips what is done, tries failed clips again."""
    from extract import console
    from extract.running import runner
    from extract.running.selection import Options

    _log(quiet, verbose)
    options = Options(stage or (), clip or (), limit, shard, device, overwrite, retry, offline, allow_shared_subjects)
    if dry_run:
        return _plan(manifest, store, config, set_, options, as_json=as_json)
    with console.progress(quiet or as_json) as progress:
        report = runner.run(manifest, store, config, set=set_ or (), options=options, progress=progress)
    if as_json:
        print(json.dumps(console.report_json(report), indent=1))
    else:
        console.show_report(report, store, quiet=quiet, verbose=verbose)
    return report.exit_code


@app.command()
@reported
def plan(
    manifest: Manifest = Path("data_manifest.yaml"),
    store: StorePath = "store.zarr",
    config: Config = None,
    set_: Set = None,
    stage: Stages = None,
    clip: Clips = None,
    limit: Limit = None,
    shard: Shard = None,
    device: Device = "auto",
    retry: Retry = False,
    allow_shared_subjects: AllowShared = False,
    offline: Offline = False,
    as_json: AsJson = False,
) -> int:
    """Say what a run would do (run --dry-run); exit 2 where it would refuse."""
    from extract.running.selection import Options

    options = Options(stage or (), clip or (), limit, shard, device, False, retry, offline, allow_shared_subjects)
    return _plan(manifest, store, config, set_, options, as_json=as_json)


def _plan(
    manifest: Path,
    store: str,
    config: str | None,
    overrides: list[str] | None,
    options: "Options",
    *,
    as_json: bool,
) -> int:
    from extract import console
    from extract.running import runner
    from extract.running.planning import refuse_stale

    made, opened = runner.plan(manifest, store, config, set=overrides or (), options=options)
    if as_json:
        print(json.dumps(console.plan_json(made), indent=1))
    else:
        console.show_plan(made)
    if opened and not options.overwrite:
        refuse_stale(made, opened)
    if made.damaged:
        raise _damaged(list(made.damaged.values()))
    return 0


@app.command()
@reported
def status(store: StorePath = "store.zarr", as_json: AsJson = False) -> int:
    """Say how far every instance of the store is."""
    from extract import console
    from extract.store import Store

    damaged = console.show_status(Store.open(store), as_json=as_json)
    if damaged:
        raise _damaged([notice.message for notice in damaged])
    return 0


@app.command()
@reported
def failed(store: StorePath = "store.zarr", verbose: Verbose = False, as_json: AsJson = False) -> int:
    """List what failed and why."""
    from extract import console
    from extract.store import Store

    console.show_failed(Store.open(store), as_json=as_json, verbose=verbose)
    return 0


@app.command()
@reported
def verify(
    manifest: Manifest = Path("data_manifest.yaml"),
    store: StorePath = "store.zarr",
    config: ConfigOfStore = None,
    set_: Set = None,
    clip: Clips = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Compute damaged blocks again (needs the manifest).")
    ] = False,
    sources: Annotated[bool, typer.Option("--sources", help="Also hash every source file again.")] = False,
    device: Device = "auto",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Check every stored block against its checksum; exit 4 if any is damaged."""
    from extract import console, verification
    from extract.store import Store

    _log(quiet, verbose)
    if verification.root_is_damaged(store):
        if not repair:
            raise CorruptError(f"store {store}: zarr.json is damaged or gone; `extract verify --repair` makes it anew")
        Store.make_root_anew(Path(store))
        print(f"{store}/zarr.json: made anew")
    opened = Store.open(store)
    checked = verification.check(opened, clip or ())
    console.show_damage(checked)
    if checked.damage and not repair:
        raise CorruptError(f"{len(checked.damage)} damaged; `extract verify --repair` computes them again")
    code = 0
    if checked.damage:
        console.say_config(opened, config)
        with console.progress(quiet) as progress:
            report = verification.repair(checked, manifest, store, config, set_ or (), device, progress)
        console.show_report(report, store, quiet=quiet, verbose=verbose)
        left = verification.check(opened, clip or ()).damage
        if left:
            raise CorruptError(f"{len(left)} still damaged, first: {left[0]}")
        print(f"repaired: {len(checked.damage)}")
        code = report.exit_code
    if sources:
        found = verification.check_sources(manifest, opened, clip or ())
        console.show_sources(found)
        if found.changed:
            raise StaleError(
                "source files have changed: `touch` them, then `extract run --overwrite` computes them again"
            )
    return code


@app.command("inspect")
@reported
def inspect_(
    clip: Annotated[str, typer.Argument(help="Clip of the manifest.")],
    manifest: Manifest = Path("data_manifest.yaml"),
    store: StorePath = "store.zarr",
    config: ConfigOfStore = None,
    set_: Set = None,
    frames: Annotated[int, typer.Option("--frames", help="How many frames, spread over the clip.", min=1)] = 8,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="PNG to write. (default: CLIP.png)")] = None,
    device: Device = "auto",
) -> int:
    """Draw a contact sheet: frame with box and landmarks, crop, super-resolved, aligned."""
    from extract import console, inspection
    from extract.store import Store

    path = out or Path(f"{clip}.png")
    if path.suffix.lower() != ".png":
        raise UsageError(f"--out {path}: expected a name that ends in .png")
    if path.is_dir() or not path.parent.is_dir():  # seen before minutes of computing
        raise UsageError(f"--out {path}: expected a file in a folder that is there")
    console.say_config(Store.open(store), config)
    sheet = inspection.inspect(clip, manifest, store, config, set=set_ or (), frames=frames, device=device)
    try:
        sheet.save(path)
    except OSError as error:
        raise MachineError(f"--out {path}: cannot be written ({error.strerror or error}); name another") from None
    print(f"{path}: {sheet.width} x {sheet.height} pixels")
    return 0


@app.command()
@reported
def demo(
    seed: Annotated[int, typer.Option("--seed", help="Another seed, other people and clips.", min=0)] = 0,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for them. (default: demo, or demo/seed_N)")
    ] = None,
    quiet: Quiet = False,
) -> int:
    """Draw the demo clips: faces warped by known action units, with speech, words and labels (about a minute)."""
    try:
        from extract.demo import make
    except ImportError as error:
        raise WeightsError(f"drawing needs {error.name}: pip install 'au-fusion[demo]'") from error

    made = make.make_demo(seed, out, (lambda _: None) if quiet else (lambda text: print(f"drawn: {text}", flush=True)))
    print(f"{made.clips}: {made.drawn} clips drawn, {made.there} were there; {made.manifest} describes them")
    print(f"next: extract run -c demo --manifest {made.manifest} --store {made.clips.parent / 'store.zarr'}")
    return 0


@manifest_app.command("folder")
@reported
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
    seed: Annotated[int | None, typer.Option("--seed", help="Another seed, other splits. (default: 0)", min=0)] = None,
    allow_shared_subjects: Annotated[
        bool, typer.Option("--allow-shared-subjects", help="Keep only clips of one source video together.")
    ] = False,
) -> int:
    """Take videos and sound files by suffix; NAME.srt|vtt|csv beside a video are its words and labels."""
    from extract.inputs.datasets.folder import own_file, scan_folder
    from extract.inputs.manifest import refuse_existing
    from extract.inputs.manifest_update import make

    parting = _parting(split_by, val, test, seed, allow_shared_subjects=allow_shared_subjects)
    if not update:
        refuse_existing(out)  # before a scan that may take long
    scan = scan_folder(root)
    comment = (
        "Made by `extract manifest folder`. Edit it: with `--update` that command adds what is new and keeps the rest."
    )
    made = make(out, scan.clips, comment, root=root, own=own_file, update=update, parting=parting)
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
        told = ", ".join(f"{count} {suffix}" for suffix, count in scan.left_out.items())
        print(f"left out: {told}")
    for note in scan.notes:
        print(f"note: {note}")
    _show_made(out, made)
    return 0


@manifest_app.command("affwild2")
@reported
def manifest_affwild2(
    root: Annotated[Path, typer.Argument(help="Folder of Aff-Wild2: annotations, cropped_aligned, movies.")],
    out: ManifestOut,
    update: Update = False,
    seed: Annotated[int, typer.Option("--seed", help="Of the 90/10 parting of the training set.", min=0)] = 0,
    fps: Annotated[float | None, typer.Option("--fps", help="Take crops without a movie to have this rate.")] = None,
) -> int:
    """Official splits (validation is test), annotations, given crops, two faces of one movie."""
    from extract.inputs.datasets.affwild2 import KNOWN, own_file, scan_affwild2
    from extract.inputs.manifest import load_manifest, refuse_existing
    from extract.inputs.manifest_update import make

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
    for name, why in list(found.left_out.items())[:SHOWN]:
        print(f"left out: {name}: {why}")
    if len(found.left_out) > SHOWN:
        print(f"left out: {len(found.left_out) - SHOWN} more")
    _show_made(out, made)
    return 0


def _parting(
    split_by: str | None, val: float | None, test: float | None, seed: int | None, *, allow_shared_subjects: bool
) -> Any:  # noqa: ANN401 - manifest_update.Parting, whose module is imported late
    from extract.inputs.manifest_update import Parting

    if split_by is None:
        if any(given is not None for given in (val, test, seed)) or allow_shared_subjects:
            raise UsageError(
                "--val, --test, --seed and --allow-shared-subjects say how to split: give --split-by as well"
            )
        return None
    if split_by not in {"subject", "source_video"}:
        raise UsageError(f"--split-by {split_by}: expected subject or source_video")
    if split_by == "subject" and allow_shared_subjects:
        raise UsageError("--split-by subject and --allow-shared-subjects exclude each other")
    return Parting(
        "subject" if split_by == "subject" else "source_video",
        val=HELD_OUT_SHARE if val is None else val,
        test=HELD_OUT_SHARE if test is None else test,
        seed=seed or 0,
        allow_shared_subjects=allow_shared_subjects,
    )


def _show_made(out: Path, made: Any) -> None:  # noqa: ANN401 - manifest_update.Made, whose module is imported late
    if made.known:
        print(f"{out}: {made.known} clips were there, {len(made.added)} added{_named(clip.id for clip in made.added)}")
    if made.gone:
        print(f"{len(made.gone)} no longer found, left as they are{_named(made.gone)}")
    if made.elsewhere:
        print(f"{made.elsewhere} of another folder, left as they are")
    if made.splits is not None:
        told = "; ".join(f"{name}: {clips} ({groups})" for name, (clips, groups) in made.splits.items())
        print(f"clips of each split (groups that stay together): {told}; {made.assigned} assigned now")
    if made.kept_out:
        print(f"{made.kept_out} say `split: null` and stay without one")
    for note in made.notes:
        print(f"note: {note}")


def _damaged(told: Sequence[str]) -> CorruptError:
    more = f" (and {len(told) - 1} more)" if len(told) > 1 else ""
    return CorruptError(f"{told[0]}{more}")


def _named(names: Iterable[str]) -> str:
    """``: a, b``, cut after SHOWN names."""
    listed = list(names)
    more = ", ..." if len(listed) > SHOWN else ""
    return f": {', '.join(listed[:SHOWN])}{more}" if listed else ""


@weights_app.command("list")
@reported
def weights_list(as_json: AsJson = False) -> int:
    """Every row of the table and whether its files are here (no file is read)."""
    from extract import console
    from extract.weights import files, resolving

    console.show_weights(resolving.list_rows(files.cache_folder()), as_json=as_json)
    return 0


@weights_app.command("fetch")
@reported
def weights_fetch(
    key: Annotated[list[str] | None, typer.Argument(help="Keys. (default: what the config's instances need)")] = None,
    config: Config = None,
    set_: Set = None,
    stage: Stages = None,
    store: StorePath = "store.zarr",
    offline: Annotated[bool, typer.Option("--offline", help="Only check what is here.")] = False,
) -> int:
    """Fetch published weights into the cache and pin them in weights.lock, beside the config's file or the store."""
    from extract.weights import fetch, files, resolving, table
    from extract.weights.lock import lock_file

    keys = key or _keys_needed(config, set_, stage)
    if offline:
        needed = [table.TABLE[name] for name in keys if name in table.TABLE]
        lacking = [row.key for row in needed if resolving.locate(row, files.cache_folder())[1]]
        if lacking:
            raise WeightsError(f"not here, and --offline forbids fetching: {', '.join(lacking)}")
    lock = lock_file(config, store)
    fetched = fetch.fetch(keys, lock=lock, told=lambda text: print(text, flush=True))
    print(f"{len(fetched)} fetched, {len(keys) - len(fetched)} were here; pinned in {lock}")
    print("next: extract run")
    return 0


def _keys_needed(config: str | None, overrides: list[str] | None, stages: list[str] | None) -> list[str]:
    """Keys of the table that a run with these flags would ask for."""
    from extract.config import load_extract_config
    from extract.graph import build_graph, select, upstream
    from extract.weights import table

    graph = build_graph(load_extract_config(config, overrides or ()))
    specs = (getattr(graph[n].stage.config, "weights", None) for n in upstream(graph, select(graph, stages or ())))
    return [spec for spec in dict.fromkeys(specs) if spec in table.TABLE]


@weights_app.command("convert")
@reported
def weights_convert(
    file: Annotated[Path, typer.Argument(help="GH-Feat's ghfeat-encoder-*.pkl, as its authors offer it.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="File to write. (default: FILE.safetensors)")] = None,
    architecture: Annotated[str, typer.Option("--architecture", help="resnet50-256 or resnet18-256.")] = "resnet50-256",
) -> int:
    """Make plain safetensors of GH-Feat's pickle. Nothing in the file is executed."""
    from extract.models.ghfeat import convert

    path = out or file.with_suffix(".safetensors")
    made = convert.convert(file, path, architecture)
    print(f"{path}: {made.num_tensors} tensors of network {made.name}, sha256 {made.sha256}")
    same = "the published" if made.source_is_known else "NOT the published"
    print(f"the file's own definition of the network is {same} one (sha256 {made.source_sha256}); it was not executed")
    print(f"next: extract run --stage ghfeat --set ghfeat.weights={path}")
    return 0


@weights_app.command("verify")
@reported
def weights_verify(as_json: AsJson = False) -> int:
    """Hash the files that are here; exit 3 if one is not what the table names."""
    from extract import console
    from extract.weights import files, resolving

    rows = resolving.verify(files.cache_folder())
    console.show_weights(rows, as_json=as_json)
    wrong = [row.row.key for row in rows if row.state == "wrong"]
    if wrong:
        raise WeightsError(f"not the bytes that the table names: {', '.join(wrong)}")
    return 0


def _log(quiet: bool, verbose: bool) -> None:
    if quiet and verbose:
        raise UsageError("-q and -v exclude each other")
    level = logging.ERROR if quiet else logging.DEBUG if verbose else logging.WARNING
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("extract").setLevel(level)


def main() -> None:
    """Entry point of the console script."""
    endings.run_program("extract", app)


if __name__ == "__main__":
    main()
