"""The chain of the original scripts: step after step, one picture at a time, files in between.

What USC's features are made with today are scripts of several projects, each run over all pictures before the next:
frames as PNG, faces cut out as PNG, Real-ESRGAN's ``inference_realesrgan.py`` (batch 1, PNG), FFHQ's alignment (dlib on
the doubled picture, Pillow at 4096 pixels, PNG), GH-Feat's ``extract_ghfeat.py`` (batch 4, npy), Swin (batch 1, npy),
HuBERT on the four seconds around each frame (npy), RoBERTa on the words around each frame (npy).

This is that chain with the networks, weights and precision of a config of ours, so that the two can be compared. The
originals take longer: their GH-Feat also draws each face again with StyleGAN, on a GPU all their networks but
Real-ESRGAN's compute in float32, and every script starts a Python of its own.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import dlib
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.drawn_clips import decoded
from benchmarks.machine import synchronise
from extract.config import ExtractConfig
from extract.graph import build_graph
from extract.inputs.manifest import Clip
from extract.inputs.media import open_video, read_audio
from extract.inputs.transcripts import read_transcript
from extract.models import hubert as hubert_model
from extract.models import realesrgan, speech
from extract.models import roberta as roberta_model
from extract.models import swin as swin_model
from extract.models.dlib_faces import shared_faces
from extract.models.ffhq import align as ffhq
from extract.models.ghfeat import levels, network
from extract.stage import Context, Stage
from extract.stages import ghfeat as ghfeat_stage
from extract.stages import swin as swin_stage
from extract.stages.hubert import HUBERT_STEPS
from extract.stages.wave import WAVE_HZ
from extract.weights.files import Weights
from extract.weights.loading import load_strictly
from extract.weights.resolving import resolve

WINDOW_S = 2.0
"""HuBERT hears so much before and after each frame."""
GHFEAT_BATCH = 4


@dataclass(frozen=True)
class Published:
    """How the scripts are set where a config of ours may be set otherwise."""

    upsample: int = 1
    """How often dlib's detector doubles the enlarged face: FFHQ's scripts say once."""
    transform_size: int = 4096
    """Of FFHQ's alignment."""


Picture = NDArray[np.uint8]
Step = Callable[[Clip, Path], None]
"""Works on one clip in the clip's folder."""


@dataclass(frozen=True)
class Scripts:
    """What all steps share."""

    stages: Mapping[str, Stage[Any]]
    """Instance -> our stage, whose settings and weights the step takes."""
    device: torch.device
    precision: torch.dtype
    settings: Published
    most_frames: int | None
    """Of each clip; None: all."""

    def weights(self, name: str) -> Weights:
        stage = self.stages[name]
        return resolve(stage.weights or "", stage)

    def moved(self, net: torch.nn.Module) -> Any:
        """The network where it computes."""
        return torch.nn.Module.to(net, self.device, self.precision)

    def stage_of_ours(self, name: str) -> Any:
        """A stage of ours on the CPU with one thread, to be called with one row at a time."""
        stage = self.stages[name]
        weights = self.weights(name) if stage.weights else None
        stage.setup(Context(torch.device("cpu"), torch.float32, weights))
        return stage

    def numbered(self, folder: Path) -> Iterator[tuple[int, Path]]:
        """Number of the frame and file, of what an earlier step left."""
        for number, path in files_by_number(folder).items():
            if not self.beyond(number):
                yield number, path

    def times(self, clip: Clip) -> Iterator[tuple[int, float]]:
        """Number and time in seconds of each frame."""
        video = open_video(_movie(clip))
        if video is None:
            raise ValueError(f"clip {clip.id} has no pictures")
        with video:
            for number, frame in enumerate(video.frames(lambda _: False), start=1):
                if self.beyond(number):
                    return
                yield number, frame.pts_s

    def beyond(self, number: int) -> bool:
        return self.most_frames is not None and number > self.most_frames


class NaiveChain:
    """The steps that a config asks for, with its networks loaded.

    Every step reads and writes below ``folder/<clip>/``: ``frames``, ``crop``, ``patch``, ``superres``, ``align``,
    ``landmarks``, ``ghfeat``, ``swin``, ``hubert``, ``roberta``, a file per frame, counted from 1.

    Args:
        config: as of our run; instances bear their stages' names.
        only: these steps; None: all that the config asks for.
        most_frames: of each clip; None: all.
    """

    def __init__(
        self,
        config: ExtractConfig,
        folder: Path,
        device: torch.device,
        precision: torch.dtype,
        *,
        settings: Published | None = None,
        only: Collection[str] | None = None,
        most_frames: int | None = None,
    ) -> None:
        self.folder, self._device = folder, device
        stages = {name: instance.stage for name, instance in build_graph(config).items()}
        scripts = Scripts(stages, device, precision, settings or Published(), most_frames)
        started = time.perf_counter()
        wanted = (stages.keys() if "crop" in stages else stages.keys() - {"frames"}) & (STEPS.keys() & (only or STEPS))
        self.steps = {name: make(scripts) for name, make in STEPS.items() if name in wanted}
        self.setup_s = time.perf_counter() - started

    def run(self, clips: Sequence[Clip]) -> dict[str, float]:
        """All steps over all clips; step -> seconds."""
        seconds: dict[str, float] = {}
        with torch.inference_mode():
            for name, step in self.steps.items():
                started = time.perf_counter()
                for clip in clips:
                    step(clip, self.folder / clip.id)
                synchronise(self._device)
                seconds[name] = time.perf_counter() - started
        return seconds


# ---- pictures ------------------------------------------------------------------------------------------------------


def frames(scripts: Scripts) -> Step:
    """The movie as PNG; nothing where crops are given."""

    def step(clip: Clip, folder: Path) -> None:
        pictures: Iterable[Picture] = () if clip.crops is not None else decoded(clip)
        into = _made(folder / "frames")
        for number, picture in enumerate(pictures, start=1):
            if scripts.beyond(number):
                break
            write_png(into / f"{number:05d}.png", picture)

    return step


def crops(scripts: Scripts) -> Step:
    """Detector and landmarks on each frame; the aligned crop, and the patch as Real-ESRGAN is to see it."""
    from PIL import Image

    detections, crop = scripts.stage_of_ours("detections"), scripts.stage_of_ours("crop")
    most_px = scripts.stages["superres"].config.input_px if "superres" in scripts.stages else None

    def reduced(patch: Picture) -> Picture:
        if most_px is None or max(patch.shape[:2]) <= most_px:
            return patch
        shrink = most_px / max(patch.shape[:2])
        size = (round(patch.shape[1] * shrink), round(patch.shape[0] * shrink))
        return np.asarray(Image.fromarray(patch).resize(size, Image.Resampling.LANCZOS))

    def cut(path: Path) -> tuple[Picture, Picture] | None:
        image = [torch.from_numpy(read_picture(path))]
        found = detections.compute({"frames.image": image})
        if not found["valid"][0]:
            return None
        face = {f"faces.{name}": found[name][:, 0] for name in ("landmarks", "box")}  # the best score
        made = crop.compute({"frames.image": image, **face})
        return made["image"][0].cpu().numpy(), np.ascontiguousarray(made["patch"][0].cpu().numpy())

    def given(path: Path) -> tuple[Picture, Picture]:
        return (picture := read_picture(path)), picture

    def step(clip: Clip, folder: Path) -> None:
        faces, patches = _made(folder / "crop"), _made(folder / "patch")
        for number, path in scripts.numbered(clip.crops or folder / "frames"):
            pictures = given(path) if clip.crops is not None else cut(path)
            if pictures is not None:
                write_png(faces / f"{number:05d}.png", pictures[0])
                write_png(patches / f"{number:05d}.png", reduced(pictures[1]))

    return step


def superres(scripts: Scripts) -> Step:
    """As ``inference_realesrgan.py``."""
    upscaler = realesrgan.load(scripts.weights("superres"))
    scripts.moved(upscaler.net)
    config = scripts.stages["superres"].config
    settings = realesrgan.Inference(config.tile, config.tile_pad, config.pre_pad, config.outscale)

    def step(clip: Clip, folder: Path) -> None:
        del clip
        into = _made(folder / "superres")
        for number, path in scripts.numbered(folder / "patch"):
            write_png(into / f"{number:05d}.png", realesrgan.enhance(upscaler, read_picture(path), settings))

    return step


def align(scripts: Scripts) -> Step:
    """As FFHQ's ``download_ffhq.py`` and the scripts made of it: a picture in which no face is found is left out."""
    weights = scripts.weights("landmarks")
    faces, predictor = shared_faces(weights), dlib.shape_predictor(str(weights.path))
    size, settings = scripts.stages["align"].config.output_size, scripts.settings

    def step(clip: Clip, folder: Path) -> None:
        del clip
        pictures, points = _made(folder / "align"), _made(folder / "landmarks")
        for number, path in scripts.numbered(folder / "superres"):
            picture = read_picture(path)
            found, _ = faces.detect(picture, settings.upsample, 0.0)
            if not len(found):
                continue
            shape = predictor(picture, dlib.rectangle(*found[0].astype(int).tolist()))
            marks = np.array([(point.x, point.y) for point in shape.parts()], np.float32)
            image = [torch.from_numpy(picture)]
            plan = ffhq.plan(torch.from_numpy(marks)[None], image, size)
            if not plan.valid[0]:
                continue
            aligned = ffhq.align(image, plan, size, settings.transform_size, "pillow")[0]
            np.save(points / f"{number:05d}.npy", marks)
            write_png(pictures / f"{number:05d}.png", aligned.numpy())

    return step


def ghfeat(scripts: Scripts) -> Step:
    """As ``extract_ghfeat.py``, without its generator: the network's norms are not folded, its levels are repeated."""
    stage, weights = scripts.stages["ghfeat"], scripts.weights("ghfeat")
    net = network.build(stage.config.architecture)
    counters = {
        name: torch.zeros((), dtype=torch.long) for name in net.state_dict() if name.endswith("batches_tracked")
    }
    load_strictly(net, counters | weights.tensors(), weights.spec, assign=True)
    scripts.moved(net)
    side = ghfeat_stage.SIZES[stage.config.architecture][0]

    def step(clip: Clip, folder: Path) -> None:
        del clip
        into, files = _made(folder / "ghfeat"), list(scripts.numbered(folder / "align"))
        for start in range(0, len(files), GHFEAT_BATCH):
            some = files[start : start + GHFEAT_BATCH]
            images = torch.from_numpy(np.stack([read_picture(path) for _, path in some])).to(scripts.device)
            planes = ghfeat_stage.prepare(images, side, stage.config.resize).to(scripts.precision)
            codes = levels.unfold(net(planes)).float().cpu().numpy()  # [B, 14, 1024]
            for (number, _), code in zip(some, codes, strict=True):
                np.save(into / f"{number:05d}.npy", code)

    return step


def swin(scripts: Scripts) -> Step:
    stage = scripts.stages["swin"]
    net = scripts.moved(swin_model.load(stage.config.architecture, scripts.weights("swin")))

    def step(clip: Clip, folder: Path) -> None:
        del clip
        into = _made(folder / "swin")
        for number, path in scripts.numbered(folder / "crop"):
            image = torch.from_numpy(read_picture(path))[None].to(scripts.device)
            grid = net.forward_features(swin_stage.prepare(image, stage.config).to(scripts.precision)).float()
            found = grid.flatten(1, 2) if stage.config.output == "tokens" else grid.mean(dim=(1, 2))
            np.save(into / f"{number:05d}.npy", found[0].cpu().numpy())

    return step


# ---- sound and words -----------------------------------------------------------------------------------------------


def hubert(scripts: Scripts) -> Step:
    """A forward over the window of every frame, normalised by itself."""
    config: Any = scripts.stages["hubert"].config
    model: Any = hubert_model.load(config.architecture, scripts.weights("hubert"))
    final_norm = speech.keep_layers(model, config.layer)
    scripts.moved(model)
    last = scripts.moved(final_norm) if config.layer == "last" else torch.nn.Identity()
    reach = round(WINDOW_S * WAVE_HZ)

    def step(clip: Clip, folder: Path) -> None:
        into, sound = _made(folder / "hubert"), read_audio(_movie(clip), hz=WAVE_HZ)
        if sound is None:
            return
        samples = sound.samples
        for number, at_s in scripts.times(clip):
            middle = round((at_s - sound.start_s) * WAVE_HZ)
            window = samples[max(middle - reach, 0) : max(middle + reach, 0)]
            num_steps = HUBERT_STEPS.num_steps(Fraction(len(window), WAVE_HZ))
            if num_steps:
                wave = torch.from_numpy(window).to(scripts.device)
                kind = {"normalise": config.normalise, "precision": scripts.precision}
                hidden = speech.hidden_states(model, last, wave, num_steps, **kind)
                np.save(into / f"{number:05d}.npy", hidden.float().cpu().numpy())

    return step


def roberta(scripts: Scripts) -> Step:
    """A forward over the words around every frame, however often they were read before."""
    config, weights = scripts.stages["roberta"].config, scripts.weights("roberta")
    tokenizer = roberta_model.load_tokenizer(config.architecture, weights)
    net = scripts.moved(roberta_model.load(config.architecture, weights))

    def step(clip: Clip, folder: Path) -> None:
        into = _made(folder / "roberta")
        words = read_transcript(clip.transcript).words if clip.transcript else ()
        for number, at_s in scripts.times(clip):
            met = [w.text for w in words if w.start_s <= at_s + config.after_s and w.end_s >= at_s - config.before_s]
            if met:
                ids = tokenizer.encode(" ".join(met), add_special_tokens=False).ids[: roberta_model.MAX_TOKENS - 2]
                given = torch.tensor([[roberta_model.BEGIN, *ids, roberta_model.END]], device=scripts.device)
                np.save(into / f"{number:05d}.npy", net(given).last_hidden_state[0, 1:-1].float().cpu().numpy())

    return step


STEPS: Mapping[str, Callable[[Scripts], Step]] = {
    "frames": frames,
    "crop": crops,
    "superres": superres,
    "align": align,
    "ghfeat": ghfeat,
    "swin": swin,
    "hubert": hubert,
    "roberta": roberta,
}
"""In the order in which they are run; each for an instance of that name."""


# ---- files ---------------------------------------------------------------------------------------------------------


def read_picture(path: Path) -> Picture:
    """RGB [H, W, 3]."""
    found = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if found is None:
        raise ValueError(f"{path} is no picture")
    return np.ascontiguousarray(found[:, :, ::-1], np.uint8)


def write_png(path: Path, picture: Picture) -> None:
    cv2.imwrite(str(path), picture[:, :, ::-1])


def files_by_number(folder: Path) -> dict[int, Path]:
    """What a step left: number of the frame -> file, in order."""
    return {int(path.stem): path for path in sorted(folder.iterdir())}


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _movie(clip: Clip) -> Path:
    if clip.video is None:
        raise ValueError(f"clip {clip.id} has no movie, which the chain takes times and sound from")
    return clip.video
