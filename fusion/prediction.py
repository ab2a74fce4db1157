"""From videos to action unit probabilities per frame: the extraction that a run needs, then its network.

The run itself holds how its features were made (their recipes and the names of their weights), so no config is needed.
Features go to a store in the cache folder, one store per extraction: predicting again computes nothing.
"""

import csv
import io
import itertools
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from extract.au import AU_NAMES
from extract.config import ExtractConfig, apply_overrides, load_extract_config, validated
from extract.devices import pick_device
from extract.errors import StaleError, UsageError
from extract.files import LocalFiles
from extract.graph import Instance, build_graph
from extract.inputs.datasets.folder import PREDICTION_HEADER, clip_of_file
from extract.running import runner
from extract.running.fingerprints import sha256_of
from extract.running.planning import make_plan
from extract.running.report import Progress
from extract.running.selection import Options
from extract.store import Store
from extract.weights.files import cache_folder, file_sha256
from extract.weights.table import TABLE
from fusion.config import ContextModality, FrameModality
from fusion.data import Samples
from fusion.device import arithmetic
from fusion.evaluation import check_sizes
from fusion.inference import predict_outputs
from fusion.loading import load_samples
from fusion.runs import MODEL, FittedModel, Run
from fusion.selection import FRAMES, first_difference

if TYPE_CHECKING:
    from extract.inputs.manifest import Clip

logger = logging.getLogger("fusion")

THRESHOLD = 0.5
UNITS = {
    "frame": "number of the video frame, from 0",
    "pts_s": "presentation time in seconds",
    "valid": "1 where a face was found; 0 where only sound, words or nothing is known",
    "AUxx_p": "probability in [0, 1]; empty where valid is 0, unless filled",
    "AUxx": "1 where the probability reaches the threshold; empty where valid is 0, unless filled",
}


@dataclass(frozen=True)
class Predicted:
    """What was written for one video."""

    video: Path
    table: Path
    """``<video>.csv``"""
    facts: Path
    """``<video>.json``"""
    frames: int
    present: Mapping[str, int]
    """Modality -> frames that have it."""


@dataclass
class Predictions:
    """The result of ``predict``."""

    run: Path
    written: list[Predicted] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)
    """Video without a table -> why."""
    warnings: list[str] = field(default_factory=list)
    """What applies to all videos."""

    @property
    def exit_code(self) -> int:
        """0, or 1 if a video has no table."""
        return 1 if self.failed else 0

    def lines(self) -> list[str]:
        """A line for each video that has a table."""
        return [
            f"{one.video}: {one.frames} frames ({', '.join(f'{name} {count}' for name, count in one.present.items())}) "
            f"-> {one.table}, {one.facts.name}"
            for one in self.written
        ]

    def as_json(self) -> dict[str, Any]:
        """The same as plain values, for ``--json``."""
        return {
            "run": str(self.run),
            "written": [
                {
                    "video": str(one.video),
                    "table": str(one.table),
                    "facts": str(one.facts),
                    "frames": one.frames,
                    "present": dict(one.present),
                }
                for one in self.written
            ],
            "failed": {str(video): reason for video, reason in self.failed.items()},
            "warnings": self.warnings,
        }


def predict(
    videos: Iterable[str | Path],
    run: str | Path | None = None,
    *,
    output: str | Path = ".",
    config: str | None = None,
    set: Sequence[str] = (),
    device: str = "auto",
    offline: bool = False,
    fill: bool = False,
    progress: Progress | None = None,
) -> Predictions:
    """Write ``<video>.csv`` (time, probabilities and decisions per frame) and ``<video>.json`` for each video.

    A transcript beside a video (NAME.srt, .vtt, .csv or .json) gives its words. A video without sound, words or a face
    lacks these modalities; the network was trained to do without them.

    Args:
        videos: their files.
        run: folder of the fitted run; None is the newest in ``runs/``.
        output: folder for the tables.
        config: built-in config or YAML file to extract with. None extracts as the run's own features were.
        set: ``a.b=c`` each, over that config, as in ``swin.weights=PATH`` for weights that have moved.
        device: ``auto``, ``cpu`` or ``cuda:N``.
        offline: use no network.
        fill: also give numbers for frames without a face, from sound and words alone. Otherwise their cells are empty.
        progress: is told how far the extraction is.

    Raises:
        UsageError: no such run, or a file of another origin has the name of a table.
        StaleError: the config does not give the features that the run was fitted on.
        WeightsError: weights that the extraction needs are missing.
        MachineError: the disk or the GPU gave up.
    """
    where = Run(run) if run is not None else Run.newest()
    fitted = where.model()
    torch_device = pick_device(device)
    clips, failed = _as_clips(videos)
    predictions = Predictions(where.path, failed=failed)
    names = _file_names(clips)
    _refuse_foreign(Path(output), names.values())

    extraction = _extraction(fitted, config, set, torch_device.type)
    recipes = {"recipes": fitted.recipes, "config": extraction.model_dump(mode="json")}
    features = cache_folder() / "predict" / f"{sha256_of(recipes)[:16]}.zarr"
    # Features of an old version of a transcript are of no use to anybody: they are overwritten without asking.
    options = Options(stages=tuple(fitted.recipes), device=device, offline=offline, overwrite=True)
    listed = [clip for _, clip in clips.values()]
    made, opened, sources = make_plan(extraction, listed, features, options, torch_device.type)
    whose = f"config {config}" if config else f"the extraction of run {where.path}"
    predictions.warnings = _check_recipes(
        fitted, {name: made.prepared[name].recipe for name in fitted.recipes}, where, whose
    )
    predictions.warnings += _warnings(fitted)
    report = runner.execute(made, opened, sources, features, extraction, torch_device, options, progress)
    logger.debug("%d instances computed in %.1f s -> %s", report.computed, report.seconds, features)

    store = Store.open(features)
    troubles = {f.clip: f"{f.cause or f.instance}: {f.message}" for f in reversed(report.failures)}
    troubles |= {notice.clip: notice.message for notice in (*report.busy, *report.damaged) if notice.clip}
    identity = {"path": str(where.path), "epoch": fitted.epoch, "sha256": file_sha256(where.path / MODEL)}
    for clip_id, (video, _) in clips.items():
        frames = store.record(clip_id, FRAMES)
        if clip_id in troubles:
            predictions.failed[video] = troubles[clip_id]
            continue
        if frames is None or frames.state != "done":
            predictions.failed[video] = f"{frames.reason if frames else 'no frames'}: there is no frame to predict for"
            continue
        samples = load_samples(store, [clip_id], fitted.config, frames="all", labelled=False)
        check_sizes(samples, fitted)
        with arithmetic(torch_device):
            model = fitted.model.to(torch_device)
            outputs = predict_outputs(model, samples, torch_device, fitted.config.training.batch)
            logits = outputs[:, fitted.tasks[0].columns]
        own = [str(notice) for notice in report.warnings if notice.clip == clip_id]
        pts_s = store.read(clip_id, FRAMES, "pts_s").values
        predictions.written.append(
            _write(
                Path(output), names[clip_id], video, fitted, samples, pts_s, logits,
                {"clip": clip_id, "run": identity, "warnings": [*predictions.warnings, *own]}, fill=fill,
            )
        )  # fmt: skip
    return predictions


# ---- which extraction ----------------------------------------------------------------------------------------------


def _extraction(fitted: FittedModel, config: str | None, overrides: Sequence[str], device_kind: str) -> ExtractConfig:
    """The config that gives the run's features, with the run's precisions where the device supports them."""
    if config is not None:
        wanted = load_extract_config(config, overrides)
    else:
        section = apply_overrides(_rebuilt(fitted), "extract", overrides)
        wanted = validated(ExtractConfig, section, "the extraction of the run")
    graph = build_graph(wanted)
    absent = [name for name in fitted.recipes if name not in graph]
    if absent:
        raise StaleError(
            f"config {config} has no instance {absent[0]}, whose features the run was fitted on; leave out -c"
        )
    entries = {name: instance.config for name, instance in graph.items()}
    for name, precision in _precisions(fitted, graph).items():
        available = device_kind == "cuda" or precision == "float32"
        if entries[name].precision == "auto" and available:
            entries[name] = entries[name].model_copy(update={"precision": precision})
    return wanted.model_copy(update={"instances": entries})


def _rebuilt(fitted: FittedModel) -> dict[str, Any]:
    """A section ``extract:`` with the run's recipes; an input is named after its slot where that name is free."""
    instances: dict[str, dict[str, Any]] = {}
    recipes: dict[str, Mapping[str, Any]] = dict(fitted.recipes)

    def named(slot: str, recipe: Mapping[str, Any]) -> str:
        candidates = itertools.chain([slot], (f"{slot}_{number}" for number in itertools.count(2)))
        name = next(name for name in candidates if recipes.get(name, recipe) == recipe)
        recipes[name] = recipe
        add(name)
        return name

    def add(name: str) -> None:
        if name in instances:
            return
        recipe = recipes[name]
        entry = instances[name] = {"stage": recipe["stage"], **recipe["config"]}
        if "weights" in recipe:
            entry["weights"] = _spec_of(recipe["weights"], fitted)
        entry["inputs"] = {slot: named(slot, below) for slot, below in recipe["inputs"].items()}

    for name in fitted.recipes:
        add(name)
    return {"instances": instances}


def _spec_of(sha256: str, fitted: FittedModel) -> str:
    """What a config calls these weights: as the run's clips did, else as the table does.

    Clips that brought their crops needed no detector, so the run does not say what its weights were called.
    """
    known = (row.key for row in TABLE.values() if row.sha256 == sha256)
    return fitted.weights.get(sha256) or next(known, sha256)


def _precisions(fitted: FittedModel, graph: Mapping[str, Instance]) -> dict[str, str]:
    """Instance of ``graph`` -> its precision in the run's recipes, inputs included."""
    found: dict[str, str] = {}
    stack = list(fitted.recipes.items())
    while stack:
        name, recipe = stack.pop()
        if "precision" in recipe:
            found[name] = recipe["precision"]
        feeds = graph[name].feeds
        stack += [(feeds[slot], below) for slot, below in recipe["inputs"].items() if slot in feeds]
    return {name: precision for name, precision in found.items() if graph[name].stage.device == "gpu"}


def _check_recipes(fitted: FittedModel, recipes: Mapping[str, Any], where: Run, whose: str) -> list[str]:
    """Refuse features of other recipes; return a warning for each that differs only in precision.

    Raises:
        StaleError: the message names the instance and the first field that differs.
    """
    warnings = []
    for name, wanted in fitted.recipes.items():
        here = recipes[name]
        if here == wanted:
            continue
        difference = first_difference(_without_precision(wanted), _without_precision(here))
        if difference is not None:
            raise StaleError(
                f"instance {name}: run {where.path} was fitted on other features than {whose} gives now "
                f"({difference}); use the config and weights of the fit, or fit again"
            )
        warnings.append(
            f"{name}: computed with another precision than for training ({first_difference(wanted, here)}); "
            "probabilities may differ in the last digits"
        )
    return warnings


def _without_precision(recipe: Mapping[str, Any]) -> dict[str, Any]:
    inputs = {slot: _without_precision(below) for slot, below in recipe["inputs"].items()}
    return {key: value for key, value in recipe.items() if key != "precision"} | {"inputs": inputs}


def _warnings(fitted: FittedModel) -> list[str]:
    """What a reader of the numbers must know about the run."""
    found = []
    if fitted.untrained:
        found.append(f"untrained encoders (random weights): {', '.join(fitted.untrained)}")
    if fitted.drawn:
        seen = sum(len(clips) for clips in fitted.clips.values())
        found.append(
            f"the training data are synthetic, drawn by a program ({fitted.drawn} of {seen} clips): "
            "the probabilities say nothing about people"
        )
    return found


# ---- what is written -----------------------------------------------------------------------------------------------


def _as_clips(videos: Iterable[str | Path]) -> "tuple[dict[str, tuple[Path, Clip]], dict[Path, str]]":
    """Clip -> (video, clip), each content once; and the videos that cannot be read, with why."""
    clips: dict[str, tuple[Path, Clip]] = {}
    failed: dict[Path, str] = {}
    for video in dict.fromkeys(Path(video) for video in videos):
        if video.exists() and not video.is_file():
            failed[video] = "is not a file"  # reading a named pipe could wait forever
            continue
        try:
            clip = clip_of_file(video, file_sha256(video)[:8])
        except OSError as error:
            failed[video] = f"cannot be read ({error.strerror})"
            continue
        clips.setdefault(clip.id, (video, clip))
    return clips, failed


def _file_names(clips: Mapping[str, "tuple[Path, Clip]"]) -> dict[str, str]:
    """Clip -> name of its files without suffix: the video's own, or the clip's id if two videos share a name."""
    taken = Counter(video.stem.lower() for video, _ in clips.values())
    return {clip: video.stem if taken[video.stem.lower()] == 1 else clip for clip, (video, _) in clips.items()}


def _refuse_foreign(output: Path, names: Iterable[str]) -> None:
    """Raise UsageError if a table or its facts would replace labels, a transcript or any other file not ours."""
    if output.exists() and not output.is_dir():
        raise UsageError(f"-o {output}: is a file; name a folder")
    for name in names:
        for path, mark in ((output / f"{name}.csv", PREDICTION_HEADER), (output / f"{name}.json", '{\n "video": ')):
            try:
                begins = path.read_bytes()[: len(mark)]
            except FileNotFoundError:
                continue
            except OSError as error:
                raise UsageError(
                    f"{path}: cannot be replaced ({error.strerror}); name another folder with -o"
                ) from None
            if begins != mark.encode():
                raise UsageError(f"{path}: exists and is not a prediction; name another folder with -o")


def _write(
    output: Path,
    name: str,
    video: Path,
    fitted: FittedModel,
    samples: Samples,
    pts_s: NDArray[np.float64],
    logits: NDArray[np.float32],
    about: Mapping[str, Any],
    *,
    fill: bool,
) -> Predicted:
    present = {name: windows.lengths > 0 for name, windows in samples.windows.items()}  # [T] each
    pictures = [
        present[name]
        for name, modality in fitted.config.used.items()
        if isinstance(modality, FrameModality | ContextModality)
    ]
    valid = np.all(pictures, axis=0) if pictures else np.any(list(present.values()), axis=0)
    shown = np.ones_like(valid) if fill else valid  # without a face the numbers only reflect sound and words
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))  # [T, 12]
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["frame", "pts_s", "valid", *present, *(f"{au}_p" for au in AU_NAMES), *AU_NAMES])
    columns: list[Iterable[Any]] = [
        range(len(pts_s)),
        (f"{time:.6f}" for time in pts_s),
        *(flags.astype(int).tolist() for flags in (valid, *present.values())),
        *([f"{value:.6f}" if show else "" for value, show in zip(au, shown, strict=True)] for au in probabilities.T),
        # Logit 0 is probability 0.5.
        *([str(int(value >= 0)) if show else "" for value, show in zip(au, shown, strict=True)] for au in logits.T),
    ]
    writer.writerows(zip(*columns, strict=True))
    counts = {name: int(flags.sum()) for name, flags in present.items()}
    facts = {
        "video": video.name,
        **about,
        "frames": len(pts_s),
        "valid": int(valid.sum()),
        "filled": fill,
        "present": counts,
        "aus": list(AU_NAMES),
        "thresholds": dict.fromkeys(AU_NAMES, THRESHOLD),
        "units": UNITS,
        "recipes": dict(fitted.recipes),
    }
    files = LocalFiles(output)
    files.write(f"{name}.csv", table.getvalue().encode())
    files.write(f"{name}.json", (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode())
    return Predicted(video, output / f"{name}.csv", output / f"{name}.json", len(pts_s), counts)
