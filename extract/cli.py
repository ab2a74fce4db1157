"""``extract``: arguments and printing only. Heavy imports wait until a command needs them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from extract import cli_adapt, cli_manifest, cli_weights, endings
from extract.errors import CorruptError, MachineError, StaleError, UsageError, WeightsError
from extract.flags import (
    AllowShared,
    AsJson,
    Clips,
    Config,
    ConfigOfStore,
    Device,
    Limit,
    Manifest,
    Offline,
    Overwrite,
    Quiet,
    Retry,
    Set,
    Shard,
    Stages,
    StorePath,
    Verbose,
    reported,
)

if TYPE_CHECKING:
    from extract.running.selection import Options

app = typer.Typer(
    help="From raw videos to per-frame multimodal features in one resumable Zarr store.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(cli_manifest.app, name="manifest")
app.add_typer(cli_weights.app, name="weights")
app.command("adapt")(cli_adapt.adapt)


@app.command()
@reported("extract")
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

    options = Options(
        stages=stage or (),
        clips=clip or (),
        limit=limit,
        shard=shard,
        device=device,
        retry=retry,
        offline=offline,
        allow_shared_subjects=allow_shared_subjects,
        overwrite=overwrite,
    )
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
@reported("extract")
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
    """Show what a run would do (the same as run --dry-run); exit 2 if it would be refused."""
    from extract.running.selection import Options

    options = Options(
        stages=stage or (),
        clips=clip or (),
        limit=limit,
        shard=shard,
        device=device,
        retry=retry,
        offline=offline,
        allow_shared_subjects=allow_shared_subjects,
    )
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
    from extract.running.sending import sendings

    made, opened = runner.plan(manifest, store, config, set=overrides or (), options=options)
    sent = sendings(made, opened)
    if as_json:
        print(json.dumps(console.plan_json(made, sent), indent=1))
    else:
        console.show_plan(made, sent)
    if opened and not options.overwrite:
        refuse_stale(made, opened)
    if made.damaged:
        raise _damaged(list(made.damaged.values()))
    return 0


@app.command()
@reported("extract")
def status(store: StorePath = "store.zarr", as_json: AsJson = False) -> int:
    """Show how complete each instance of the store is."""
    from extract import console
    from extract.store import Store

    damaged = console.show_status(Store.open(store), as_json=as_json)
    if damaged:
        raise _damaged([notice.message for notice in damaged])
    return 0


@app.command()
@reported("extract")
def failed(store: StorePath = "store.zarr", verbose: Verbose = False, as_json: AsJson = False) -> int:
    """List what failed and why."""
    from extract import console
    from extract.store import Store

    console.show_failed(Store.open(store), as_json=as_json, verbose=verbose)
    return 0


@app.command()
@reported("extract")
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

    if verification.root_is_damaged(store):
        if not repair:
            raise CorruptError(f"store {store}: zarr.json is damaged or gone; `extract verify --repair` rebuilds it")
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
@reported("extract")
def inspect_(
    clip: Annotated[str, typer.Argument(help="Clip of the manifest.")],
    manifest: Manifest = Path("data_manifest.yaml"),
    store: StorePath = "store.zarr",
    config: ConfigOfStore = None,
    set_: Set = None,
    frames: Annotated[int, typer.Option("--frames", help="How many frames, spread over the clip.", min=1)] = 8,
    out: Annotated[Path | None, typer.Option("-o", "--output", help="PNG to write. (default: CLIP.png)")] = None,
    device: Device = "auto",
) -> int:
    """Draw a contact sheet: frame with box and landmarks, crop, super-resolved, aligned."""
    from extract import console, inspection
    from extract.store import Store

    path = out or Path(f"{clip}.png")
    if path.suffix.lower() != ".png":
        raise UsageError(f"-o {path}: expected a name that ends in .png")
    if path.is_dir() or not path.parent.is_dir():  # seen before minutes of computing
        raise UsageError(f"-o {path}: expected a file in a folder that is there")
    console.say_config(Store.open(store), config)
    sheet = inspection.inspect(clip, manifest, store, config, set=set_ or (), frames=frames, device=device)
    try:
        sheet.save(path)
    except OSError as error:
        raise MachineError(f"-o {path}: cannot be written ({error.strerror or error}); name another") from None
    print(f"{path}: {sheet.width} x {sheet.height} pixels")
    return 0


@app.command()
@reported("extract")
def demo(
    seed: Annotated[int, typer.Option("--seed", help="Seed; another one draws other people and clips.", min=0)] = 0,
    out: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for the clips. (default: demo, or demo/seed_N)")
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


def _damaged(messages: Sequence[str]) -> CorruptError:
    more = f" (and {len(messages) - 1} more)" if len(messages) > 1 else ""
    return CorruptError(f"{messages[0]}{more}")


def main() -> None:
    """Entry point of the console script."""
    endings.run_program("extract", app)


if __name__ == "__main__":
    main()
