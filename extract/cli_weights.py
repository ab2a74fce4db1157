"""``extract weights``: what the table names, what is on this machine, fetching and converting."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from extract.errors import WeightsError
from extract.flags import AsJson, Config, Offline, Set, Stages, StorePath, reported

app = typer.Typer(help="List, fetch, verify and convert model weights.", no_args_is_help=True)


@app.command("list")
@reported("extract")
def weights_list(config: Config = None, store: StorePath = "store.zarr", as_json: AsJson = False) -> int:
    """Every row of the table and whether its files are here (no file is read)."""
    from extract import console
    from extract.weights import files, resolving
    from extract.weights.lock import lock_file

    console.show_weights(resolving.list_rows(files.cache_folder(), lock_file(config, store)), as_json=as_json)
    return 0


@app.command("fetch")
@reported("extract")
def weights_fetch(
    key: Annotated[list[str] | None, typer.Argument(help="Keys. (default: what the config's instances need)")] = None,
    config: Config = None,
    set_: Set = None,
    stage: Stages = None,
    store: StorePath = "store.zarr",
    offline: Offline = False,
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
    fetched = fetch.fetch(keys, lock=lock, say=lambda text: print(text, flush=True))
    print(f"{len(fetched)} fetched, {len(keys) - len(fetched)} were here; pinned in {lock}")
    flags = [*(["-c", config] if config else []), *(["--store", store] if store != "store.zarr" else [])]
    print(f"next: {shlex.join(['extract', 'run', *flags])}")
    return 0


def _keys_needed(config: str | None, overrides: list[str] | None, stages: list[str] | None) -> list[str]:
    """Keys of the table that a run with these flags would ask for."""
    from extract.config import load_extract_config
    from extract.graph import build_graph, select, upstream
    from extract.weights import table

    graph = build_graph(load_extract_config(config, overrides or ()))
    specs = (graph[n].stage.weights for n in upstream(graph, select(graph, stages or ())))
    return [spec for spec in dict.fromkeys(specs) if spec in table.TABLE]


@app.command("convert")
@reported("extract")
def weights_convert(
    file: Annotated[Path, typer.Argument(help="GH-Feat's ghfeat-encoder-*.pkl, as its authors offer it.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--output", help="File to write. (default: FILE.safetensors)")
    ] = None,
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


@app.command("verify")
@reported("extract")
def weights_verify(config: Config = None, store: StorePath = "store.zarr", as_json: AsJson = False) -> int:
    """Hash the files that are here; exit 3 if one is not what the table or weights.lock names."""
    from extract import console
    from extract.weights import files, resolving
    from extract.weights.lock import lock_file

    rows = resolving.verify(files.cache_folder(), lock_file(config, store))
    console.show_weights(rows, as_json=as_json)
    wrong = [row.row.key for row in rows if row.state == "wrong"]
    if wrong:
        raise WeightsError(f"not the pinned bytes: {', '.join(wrong)}")
    return 0
