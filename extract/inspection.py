"""A contact sheet of one clip: what the vision stages see, from the frame to the aligned face."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from extract.devices import pick_device
from extract.errors import CorruptError, UsageError, run_command
from extract.graph import build_graph
from extract.inputs import media
from extract.inputs.crops import GivenCrops, Pictures, list_crops
from extract.inputs.manifest import Clip, load_manifest
from extract.running.device import LocalEngine
from extract.running.planning import ClipPlan, make_plan
from extract.running.runner import as_made
from extract.running.selection import Options, choose
from extract.stage import RowsStage
from extract.stages.crop import GivenCrop
from extract.store import Store

TILE_PX = 224
GAP_PX = 6
CAPTION_PX = 16
BACKGROUND, ABSENT, TEXT = (24, 24, 24), (60, 60, 60), (235, 235, 235)
BOX_COLOUR, POINT_COLOUR = (80, 220, 80), (255, 210, 0)

SHOWN = {"crop": "crop", "superres": "super-resolved", "align": "aligned"}
"""Stages whose pictures are shown, in this order, beside the frame."""

WANTING = {"crop": "no crop", "superres": "too small", "landmarks": "no landmarks", "align": "no square"}
"""What it means when a stage marks a row as not valid."""


@dataclass
class Look:
    """One frame and what was made of it."""

    row: int
    time_s: float
    score: float | None = None
    """The detector's; ``None`` where no face was found, or the crop was given."""
    frame: NDArray[np.uint8] | None = None
    box: NDArray[np.float32] | None = None
    landmarks: NDArray[np.float32] | None = None
    """In the frame's pixels."""
    pictures: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    """Stage -> its picture."""
    wanting: str | None = None
    """Why later pictures are missing."""


def inspect(
    clip: str,
    manifest: str | Path = "data_manifest.yaml",
    store: str | Path = "store.zarr",
    config: str | None = None,
    *,
    set: Sequence[str] = (),
    frames: int = 8,
    device: str = "auto",
) -> Image.Image:
    """The contact sheet of ``frames`` frames spread over the clip. Writes nothing.

    Raises:
        UsageError: no such clip, no picture stage in the config, or its faces are not in the store yet, or stale.
        WeightsError: a stage's weights are missing.
        ClipError: the clip's pictures cannot be read.
    """
    loaded, lock = as_made(store, config, set)
    graph = build_graph(loaded)
    last = next((n for stage in reversed(SHOWN) for n, i in graph.items() if i.stage.name == stage), None)
    if last is None:
        raise UsageError(f"the config has no instance of {', '.join(SHOWN)}: there is nothing to look at")
    options = Options(stages=(last,), clips=(clip,), device=device, lock=lock)
    (chosen,) = choose(load_manifest(Path(manifest)), options)
    picked = pick_device(device)
    plan, opened, _ = make_plan(loaded, [chosen], store, options, picked.type)
    if clip in plan.damaged:
        raise CorruptError(plan.damaged[clip])
    own = plan.of(chosen)
    for name, prepared in own.prepared.items():
        need = plan.tasks[clip][name].need
        if prepared.instance.stage.name in {"frames", "faces"} and need != "finished":
            found = f"clip {clip}: {name} is {need} in {store}"
            command = run_command(store, f"--stage {name}", f"--clip {clip}")
            raise UsageError(f"{found}; `{command}` first")
    looks = _look(own, chosen, cast(Store, opened), LocalEngine(picked), frames)
    there = {prepared.instance.stage.name for prepared in own.prepared.values()}
    return draw(looks, [stage for stage in SHOWN if stage in there], chosen.id)


def _look(own: ClipPlan, clip: Clip, store: Store, engine: LocalEngine, count: int) -> list[Look]:
    by_stage = {prepared.instance.stage.name: name for name, prepared in own.prepared.items()}
    pts_s = store.read(clip.id, by_stage["frames"], "pts_s").values
    rows = np.unique(((np.arange(count) + 0.5) * len(pts_s) / count).astype(int))
    looks = {int(row): Look(int(row), float(pts_s[row])) for row in rows}
    given = isinstance(own.prepared[by_stage["crop"]].instance.stage, GivenCrop)
    for row, image in _images(own, clip, by_stage, looks, len(pts_s), given=given):
        look = looks[row]
        have: dict[str, Any] = {f"{by_stage['frames']}.image": [torch.from_numpy(image)]}
        if given:
            stage = own.prepared[by_stage["crop"]].instance.stage
            arrays = cast(GivenCrop, stage).arrays([torch.from_numpy(image)])
            have = {f"{by_stage['crop']}.{name}": values for name, values in arrays.items()}
            look.pictures["crop"] = image
        else:
            look.frame = image
            faces = {name: store.read(clip.id, by_stage["faces"], name) for name in ("box", "score", "landmarks")}
            valid = faces["box"].valid
            if valid is not None and not valid[row]:
                look.wanting = "no face"
                continue
            have |= {f"{by_stage['faces']}.{n}": torch.from_numpy(r.values[row : row + 1]) for n, r in faces.items()}
            look.score = float(faces["score"].values[row])
            look.box, look.landmarks = faces["box"].values[row], faces["landmarks"].values[row]
        _make_pictures(own, engine, look, have)
    for look in looks.values():
        if look.frame is None and not look.pictures:
            look.wanting = "no crop" if given else "no picture"
    return list(looks.values())


def _images(
    own: ClipPlan, clip: Clip, by_stage: Mapping[str, str], looks: Mapping[int, Look], num_frames: int, *, given: bool
) -> list[tuple[int, NDArray[np.uint8]]]:
    """The pictures of the rows to look at: the clip's frames, or its crops."""
    if given and clip.crops is not None:
        pictures: Pictures | None = GivenCrops(list_crops(clip.crops), num_frames)
    elif clip.video is not None:
        config = own.prepared[by_stage["frames"]].instance.stage.config
        pictures = media.open_video(clip.video, start_s=clip.start_s, end_s=clip.end_s, repair_pts=config.repair_pts)
    else:
        pictures = None
    if pictures is None:
        raise UsageError(f"clip {clip.id} has no video: there is nothing to look at")
    with pictures:
        frames = pictures.frames(lambda index: index in looks)
        return [(frame.index, frame.image) for frame in frames if frame.index in looks and frame.image is not None]


def _make_pictures(own: ClipPlan, engine: LocalEngine, look: Look, have: dict[str, Any]) -> None:
    """Run the row through the stages until one marks it as not valid."""
    for name, prepared in own.prepared.items():
        instance = prepared.instance
        wanted = {declared: ".".join(instance.source_of(declared)) for declared in instance.stage.inputs}
        if not isinstance(instance.stage, RowsStage) or any(source not in have for source in wanted.values()):
            continue
        if instance.stage.name not in {*SHOWN, *WANTING}:
            continue
        stage = cast("RowsStage[Any]", engine.ready(prepared))
        device = engine.device_of(stage)
        batch: dict[str, Tensor | list[Tensor]] = {}
        for declared, source in wanted.items():
            rows = [row.to(device) for row in have[source]]
            batch[declared] = rows if _is_ragged(own, source) else torch.stack(rows)
        made = stage.compute(batch)
        if not bool(cast(Tensor, made.pop("valid", torch.ones(1)))[0]):
            look.wanting = WANTING[stage.name]
            return
        have |= {f"{name}.{array}": rows for array, rows in made.items()}
        if stage.name in SHOWN:
            look.pictures[stage.name] = made["image"][0].cpu().numpy()


def _is_ragged(own: ClipPlan, source: str) -> bool:
    """Whether rows of ``instance.array`` differ in size."""
    name, _, array = source.partition(".")
    return any(None in output.sizes for output in own.prepared[name].instance.stage.outputs if output.name == array)


# ---- drawing -------------------------------------------------------------------------------------------------------


def draw(looks: Sequence[Look], stages: Sequence[str], title: str) -> Image.Image:
    """One line of tiles per frame under a line of headings, frame number, time and score below each.

    Args:
        stages: whose pictures stand beside the frame, keys of SHOWN.
    """
    with_frame = any(look.frame is not None for look in looks) or not stages
    headings = (["frame"] if with_frame else []) + [SHOWN[stage] for stage in stages]
    step = TILE_PX + GAP_PX
    width, height = GAP_PX + len(headings) * step, GAP_PX + CAPTION_PX + len(looks) * (step + CAPTION_PX)
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    for column, heading in enumerate(headings):
        label = f"{title}: {heading}" if column == 0 else heading
        pen.text((GAP_PX + column * step, GAP_PX // 2), label, TEXT, font)
    for line, look in enumerate(looks):
        top = GAP_PX + CAPTION_PX + line * (step + CAPTION_PX)
        if with_frame:
            sheet.paste(_framed(look), (GAP_PX, top))
        for column, stage in enumerate(stages, start=int(with_frame)):
            left = GAP_PX + column * step
            sheet.paste(_tile(look.pictures.get(stage)), (left, top))
            if look.wanting and stage not in look.pictures:
                pen.text((left + 8, top + TILE_PX // 2 - 8), f"not valid: {look.wanting}", TEXT, font)
        pen.text((GAP_PX, top + TILE_PX), caption(look), TEXT, font)
    return sheet


def caption(look: Look) -> str:
    """The caption of a frame."""
    score = f"   score {look.score:.2f}" if look.score is not None else ""
    wanting = f"   not valid: {look.wanting}" if look.wanting else ""
    return f"frame {look.row}   {look.time_s:.3f} s{score}{wanting}"


def _tile(picture: NDArray[np.uint8] | None) -> Image.Image:
    if picture is None:
        return Image.new("RGB", (TILE_PX, TILE_PX), ABSENT)
    return _fitted(Image.fromarray(picture))[0]


def _framed(look: Look) -> Image.Image:
    """The frame with box and landmarks."""
    if look.frame is None:
        return _tile(None)
    tile, scale, (left, top) = _fitted(Image.fromarray(look.frame))
    pen = ImageDraw.Draw(tile)
    if look.box is not None:
        x0, y0, x1, y1 = ((look.box + 0.5) * scale + (left, top, left, top)).tolist()
        pen.rectangle((x0, y0, x1, y1), outline=BOX_COLOUR)
    for x, y in ((look.landmarks + 0.5) * scale + (left, top)).tolist() if look.landmarks is not None else ():
        pen.point([(x, y), (x + 1, y), (x, y + 1), (x + 1, y + 1)], POINT_COLOUR)
    return tile


def _fitted(picture: Image.Image) -> tuple[Image.Image, float, tuple[int, int]]:
    """A square tile that keeps the picture's shape; with its scale and the position of its corner."""
    scale = TILE_PX / max(picture.size)
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    corner = ((TILE_PX - size[0]) // 2, (TILE_PX - size[1]) // 2)
    tile = Image.new("RGB", (TILE_PX, TILE_PX), BACKGROUND)
    tile.paste(picture.resize((size[0], size[1]), Image.Resampling.LANCZOS), corner)
    return tile, scale, corner
