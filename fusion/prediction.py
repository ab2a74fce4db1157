"""From videos to action unit probabilities per frame: the extraction that a run needs, then its network.

The run itself holds how its features were made (their recipes and the names of their weights), so no config is needed.
Features go to a store in the cache folder, one store per extraction: predicting again computes nothing.
"""

import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from extract.config import ExtractConfig, apply_overrides, load_extract_config, validated
from extract.devices import pick_device
from extract.errors import StaleError, UsageError, WeightsError
from extract.graph import Instance, build_graph, upstream
from extract.inputs.datasets.folder import clip_of_file
from extract.names import suggestion
from extract.running import runner
from extract.running.fingerprints import sha256_of
from extract.running.planning import make_plan
from extract.running.report import Progress
from extract.running.selection import Options
from extract.store import Store
from extract.weights.files import cache_folder, file_sha256
from extract.weights.table import RANDOM, TABLE
from fusion import sharing
from fusion.clip_scores import score_clips
from fusion.crop_kinds import AS_GIVEN, CROP, FACE, GIVEN, MIXED, WIDE, check_crops, cut_kinds, without_patch
from fusion.decisions import decide, shipped_with
from fusion.model_card import weights_in
from fusion.postprocess import describe
from fusion.prediction_tables import COLUMNS, Columns, Predicted, file_names, refuse_foreign, write
from fusion.runs import FittedModel, Run
from fusion.selection import FRAMES, first_difference

if TYPE_CHECKING:
    from extract.inputs.manifest import Clip

logger = logging.getLogger("fusion")

Crops: TypeAlias = Literal["as-given", "wide"]
PATCH: Mapping[Crops, str] = {"as-given": FACE, "wide": WIDE}


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
    crops: Crops | None = None,
    allow_other_crops: bool = False,
    columns: Columns = "default",
    raw: bool = False,
    progress: Progress | None = None,
) -> Predictions:
    """Write ``<video>.csv`` (time, probabilities and decisions per frame) and ``<video>.json`` for each video.

    A transcript beside a video (NAME.srt, .vtt, .csv or .json) gives its words. A video without sound, words or a face
    lacks these modalities; the network was trained to do without them.

    Args:
        videos: their files.
        run: folder of the fitted run, or of what ``fusion export`` made of it; None is the newest in ``runs/``.
        output: folder for the tables.
        config: built-in config or YAML file to extract with. None extracts as the run's own features were.
        set: ``a.b=c`` each, over that config, as in ``swin.weights=PATH`` for weights that have moved.
        device: ``auto``, ``cpu`` or ``cuda:N``.
        offline: use no network.
        fill: also give numbers for frames without a face, from sound and words alone. Otherwise their cells are empty.
        crops: how faces are cut for super-resolution: ``as-given``, as the tight crops that clips of a data set bring,
            or ``wide``. None: as those of the run's own clips.
        allow_other_crops: go on if that is not how the run's own clips had them; every table says so.
        columns: ``default``, or ``openface`` for the names that OpenFace 2 uses.
        raw: the network's own probabilities at threshold 0.5, without the post-processing that the run ships.
        progress: is told how far the extraction is.

    Raises:
        UsageError: no such run, or a file of another origin has the name of a table.
        StaleError: the config does not give the features that the run was fitted on.
        WeightsError: weights that the extraction needs are missing.
        MachineError: the disk or the GPU gave up.
    """
    crops, columns = crops_choice(crops), columns_choice(columns)  # Python does not check them
    where = Run(run) if run is not None else Run.newest()
    fitted = sharing.fitted_model(where)
    shipped = None if raw else shipped_with(where.path, fitted.aus)
    for line in describe(shipped) if shipped is not None else ():
        logger.info("post-processing: %s", line)
    torch_device = pick_device(device)
    clips, failed = _as_clips(videos)
    predictions = Predictions(where.path, failed=failed)
    names = file_names(clips)
    refuse_foreign(Path(output), names.values())

    extraction = _extraction(fitted, config, set, torch_device.type, crops)
    recipes = {"recipes": fitted.recipes, "config": extraction.model_dump(mode="json")}
    features = cache_folder() / "predict" / f"{sha256_of(recipes)[:16]}.zarr"
    # Features of an old version of a transcript are of no use to anybody: they are overwritten without asking.
    options = Options(stages=tuple(fitted.recipes), device=device, offline=offline, overwrite=True)
    listed = [clip for _, clip in clips.values()]
    try:
        made, opened, sources = make_plan(extraction, listed, features, options, torch_device.type)
    except WeightsError as error:
        raise WeightsError(f"{error}{_weights_of(fitted)}") from error
    whose = f"config {config}" if config else f"the extraction of run {where.path}"
    recipes_here = {name: made.prepared[name].recipe for name in fitted.recipes}
    predictions.warnings = _check_recipes(fitted, recipes_here, where, whose)
    kinds_here = cut_kinds(recipes_here)
    used_on = {
        name: dict.fromkeys((str(video) for video, _ in clips.values()), kind) for name, kind in kinds_here.items()
    }
    predictions.warnings += check_crops(fitted.crops, used_on, f"run {where.path}", allow=allow_other_crops)
    predictions.warnings += _warnings(fitted)
    report = runner.execute(made, opened, sources, features, extraction, torch_device, options, progress)
    logger.debug("%d instances computed in %.1f s -> %s", report.computed, report.seconds, features)

    store = Store.open(features)
    troubles = {f.clip: f"{f.cause or f.instance}: {f.message}" for f in reversed(report.failures)}
    troubles |= {notice.clip: notice.message for notice in (*report.busy, *report.damaged) if notice.clip}
    about = {
        "run": {"path": str(where.path), "epoch": fitted.epoch, "sha256": file_sha256(sharing.network_file(where))},
        "crops": {name: {"fitted": fitted.crops.get(name), "here": kind} for name, kind in kinds_here.items()},
        "recipes": dict(fitted.recipes),
    }
    for clip_id, (video, _) in clips.items():
        frames = store.record(clip_id, FRAMES)
        if clip_id in troubles:
            predictions.failed[video] = troubles[clip_id]
            continue
        if frames is None or frames.state != "done":
            predictions.failed[video] = f"{frames.reason if frames else 'no frames'}: there is no frame to predict for"
            continue
        scores = score_clips(store, [clip_id], fitted, torch_device)
        own = [str(notice) for notice in report.warnings if notice.clip == clip_id]
        facts = {"clip": clip_id, **about, "warnings": [*predictions.warnings, *own]}
        decided = decide(scores, shipped)
        written = write(Path(output), names[clip_id], video, scores, decided, facts, columns=columns, fill=fill)
        predictions.written.append(written)
    return predictions


def crops_choice(text: str | None) -> Crops | None:
    """The value of ``--crops``; raises UsageError for another word."""
    for known in PATCH:
        if text == known:
            return known
    if text is None:
        return None
    raise UsageError(f"--crops {text}: no such way; {suggestion(text, list(PATCH))}")


def columns_choice(text: str) -> Columns:
    """The value of ``--columns``; raises UsageError for another word."""
    for known in COLUMNS:
        if text == known:
            return known
    raise UsageError(f"--columns {text}: no such names; {suggestion(text, COLUMNS)}")


# ---- which extraction ----------------------------------------------------------------------------------------------


def _extraction(
    fitted: FittedModel, config: str | None, overrides: Sequence[str], device_kind: str, crops: Crops | None
) -> ExtractConfig:
    """The config that gives the run's features, with the run's precisions where the device supports them.

    A run on given crops gets the like of them, unless the config or ``crops`` says otherwise.
    """
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
    tight = set(fitted.crops.values()) and set(fitted.crops.values()) <= {GIVEN, AS_GIVEN}
    patch = PATCH[crops] if crops is not None else FACE if tight else None
    for name in upstream(graph, fitted.recipes):
        said = "patch" in entries[name].stage_fields and crops is None
        if graph[name].stage.name == CROP and patch is not None and not said:
            entries[name] = entries[name].model_copy(update={"patch": patch})
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
        if without_patch(here) == without_patch(wanted):
            continue
        difference = first_difference(_comparable(wanted), _comparable(here))
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


def _comparable(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe without what has a check of its own: precisions, and the choice between wide and tight patches."""
    inputs = {slot: _comparable(below) for slot, below in recipe["inputs"].items()}
    return {key: value for key, value in without_patch(recipe).items() if key != "precision"} | {"inputs": inputs}


def _weights_of(fitted: FittedModel) -> str:
    """For the message that weights are missing: what the run knows them by, where it was fitted with files."""
    files = {sha256: spec for sha256, spec in fitted.weights.items() if spec not in TABLE and spec != RANDOM}
    named = dict.fromkeys((name, sha256) for name, sha256 in weights_in(fitted.recipes) if sha256 in files)
    lines = [f"\n  {name}: {files[sha256]}, sha256 {sha256}" for name, sha256 in named]
    if not lines:
        return ""
    return "\nthe run was fitted with these files; name yours with --set INSTANCE.weights=PATH:" + "".join(lines)


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
    mixed = [name for name, kind in fitted.crops.items() if kind == MIXED]
    if mixed:
        found.append(f"the run was fitted on a mixture of given and cut crops: {', '.join(mixed)}")
    return found


# ---- which videos, which numbers -----------------------------------------------------------------------------------


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
