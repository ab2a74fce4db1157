"""Clips for a measurement: the demo's drawn people, as movies of any size and length, or as folders of crops."""

import csv
from collections.abc import Iterable
from itertools import cycle, islice
from pathlib import Path

import cv2
import numpy as np
import torch

from extract.demo.clips import FPS, NUM_FRAMES, Drawing, Picture, Studio, movie
from extract.demo.mesh import FRAME_PX
from extract.demo.sound import SOUND_HZ, Samples
from extract.inputs.manifest import Clip
from extract.inputs.media import open_video
from extract.inputs.transcripts import HEADER, Word
from extract.stage import Context
from extract.stages.crop import Crop, CropConfig
from extract.stages.detections import Detections, DetectionsConfig
from extract.weights.resolving import resolve

SEED = 0
GREY = 118
"""Of what lies around the drawn picture on a larger canvas."""


def draw_movies(
    folder: Path, num_clips: int, frames_each: int, size: tuple[int, int] = (FRAME_PX, FRAME_PX)
) -> list[Clip]:
    """Movies with sound and transcripts; one that is longer than the demo's five seconds repeats them.

    Args:
        size: width and height; the drawn 256 pixels lie in the middle. The patch of such a face has at most 256
            pixels, so that ``superres`` sends every frame through its network.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clips = []
    studio = Studio(SEED)
    for drawing in islice(studio.drawings(), num_clips):
        video, words = folder / f"{drawing.id}.mp4", folder / f"{drawing.id}.words.csv"
        sound, said = _repeated(drawing, frames_each)
        _write_words(words, said)
        video.write_bytes(movie(_frames(studio, drawing, frames_each, size), sound, SEED, size))
        clips.append(Clip(id=drawing.id, video=video, transcript=words))
    return clips


def add_crops(clips: Iterable[Clip], folder: Path) -> list[Clip]:
    """The same clips with their faces given as JPEG of 112 pixels, as Aff-Wild2 has them."""
    detections = Detections(DetectionsConfig())
    detections.setup(Context(torch.device("cpu"), torch.float32, resolve("dlib-68-landmarks", detections)))
    crop = Crop(CropConfig())
    given = []
    for clip in clips:
        into = folder / clip.id
        into.mkdir(parents=True)
        for number, image in enumerate(decoded(clip), start=1):
            frame = [torch.from_numpy(image)]
            found: dict[str, torch.Tensor] = detections.compute({"frames.image": frame})  # type: ignore[assignment]
            if not found["valid"][0]:
                continue  # a frame without a crop, as in Aff-Wild2
            face = {"faces.landmarks": found["landmarks"][:, 0], "faces.box": found["box"][:, 0]}
            cut = crop.compute({"frames.image": frame, **face})["image"][0]
            cv2.imwrite(str(into / f"{number:05d}.jpg"), cut.cpu().numpy()[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        given.append(clip.model_copy(update={"crops": into}))
    return given


def decoded(clip: Clip) -> Iterable[Picture]:
    """Every frame of a clip's movie, RGB [H, W, 3]."""
    video = None if clip.video is None else open_video(clip.video)
    if video is None:
        raise ValueError(f"clip {clip.id} has no movie")
    with video:
        for frame in video.frames():
            if frame.image is not None:
                yield frame.image


def _frames(studio: Studio, drawing: Drawing, num_frames: int, size: tuple[int, int]) -> Iterable[Picture]:
    drawn = list(islice(studio.frames(drawing), num_frames))
    left, top = ((whole - FRAME_PX) // 2 for whole in size)
    canvas = np.full((size[1], size[0], 3), GREY, np.uint8)
    for picture in islice(cycle(drawn), num_frames):
        canvas[top : top + FRAME_PX, left : left + FRAME_PX] = picture
        yield canvas


def _repeated(drawing: Drawing, num_frames: int) -> tuple[Samples, list[Word]]:
    """Sound and words of so many frames."""
    period_s, duration_s = NUM_FRAMES / FPS, num_frames / FPS
    times = -(-num_frames // NUM_FRAMES)
    words = [
        Word(word.text, word.start_s + turn * period_s, word.end_s + turn * period_s)
        for turn in range(times)
        for word in drawing.words
    ]
    sound = np.tile(drawing.sound, times)[: round(duration_s * SOUND_HZ)]
    return sound, [word for word in words if word.end_s <= duration_s]


def _write_words(path: Path, words: Iterable[Word]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        writer.writerows((word.text, f"{word.start_s:.4f}", f"{word.end_s:.4f}") for word in words)
