"""Draw the demo's clips and write them as if somebody had recorded them: movies, labels, transcripts."""

import csv
import io
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from dataclasses import dataclass
from fractions import Fraction
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any, Literal, cast

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from extract.au import AU_NAMES
from extract.demo.mesh import FRAME_PX, Mesh, Pose
from extract.demo.portrait import Floats, load_portrait
from extract.demo.schedule import Schedule, draw_schedules
from extract.demo.sound import SOUND_HZ, Samples, load_words, speak
from extract.demo.subjects import Recording, Subject, draw_recording, draw_subject
from extract.files import LocalFiles
from extract.inputs.manifest import Clip, Labels
from extract.inputs.media import DRAWN
from extract.inputs.transcripts import HEADER, Word

FPS, NUM_FRAMES = 25, 125
AMPLITUDE = 1.2
"""Of all displacements: what people do when asked to pose."""
SPLITS = {"train": (0, 1, 2, 3, 4, 5, 6, 7), "val": (8, 9), "test": (10, 11)}
"""Split -> numbers of its subjects: nobody is in two."""
CLIPS_EACH = 3
MIN_OPENING_PX, FULL_OPENING_PX = 0.8, 2.3
"""Between these the teeth come into view."""

Picture = NDArray[np.uint8]
Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Drawing:
    """One clip, before it is drawn."""

    id: str
    split: str
    subject: Subject
    schedule: Schedule
    recording: Recording
    sound: Samples
    words: list[Word]
    seed: tuple[int, ...]


class Studio:
    """Everything that clips of one seed are drawn from."""

    def __init__(self, seed: int) -> None:
        portrait = load_portrait()
        self.seed = seed
        self.mesh = Mesh(portrait)
        self._head = portrait.head.astype(np.float64)
        self._textures = (portrait.texture, portrait.closed)

    def drawings(self, only: set[str] | None = None) -> Iterator[Drawing]:
        """The clips of this seed in order; with ``only``, these ids."""
        voices = load_words()
        pts_s = np.arange(NUM_FRAMES) / FPS
        for split, numbers in SPLITS.items():
            # A split's schedules are drawn together, so that every unit occurs often enough in each.
            random = np.random.default_rng([self.seed, 2, list(SPLITS).index(split)])
            schedules = iter(draw_schedules(CLIPS_EACH * len(numbers), pts_s, random))
            for number in numbers:
                subject = draw_subject(self.mesh, self._textures, self._head, number, self.seed)
                for take in range(CLIPS_EACH):
                    schedule = next(schedules)
                    own = (self.seed, 3, number, take)
                    clip_random = np.random.default_rng(own)
                    recording = draw_recording(clip_random)
                    sound, words = speak(voices[subject.voice], schedule.bursts, NUM_FRAMES / FPS, clip_random)
                    clip_id = f"{subject.name}_{take + 1}"
                    if only is None or clip_id in only:
                        yield Drawing(clip_id, split, subject, schedule, recording, sound, words, own)

    def frames(self, drawing: Drawing) -> Iterator[Picture]:
        """RGB [256, 256, 3] of every frame."""
        random = np.random.default_rng([*drawing.seed, 4])
        for index, activations in enumerate(drawing.schedule.activations):
            yield self._recorded(self.face(drawing, activations, index / NUM_FRAMES), drawing, random)

    def places(self, subject: Subject, activations: Floats) -> Floats:
        """[V, 2]: where the mesh's points are when the units [12] are that active."""
        moved = np.tensordot(AMPLITUDE * activations * subject.gains, self.mesh.units, axes=1)
        return self.mesh.held(self.mesh.places + subject.neutral + moved)

    def face(self, drawing: Drawing, activations: Floats, through: float) -> Picture:
        """RGB [512, 512, 3] before the camera; ``through`` is how far into the clip, 0 to 1."""
        subject, recording = drawing.subject, drawing.recording
        places = self.places(subject, activations)
        opening = (self.mesh.opening_px(places) - MIN_OPENING_PX) / (FULL_OPENING_PX - MIN_OPENING_PX)
        share = float(np.clip(opening, 0, 1))
        texture = cv2.addWeighted(subject.texture, share, subject.closed, 1 - share, 0)
        turn = recording.turn_deg + recording.drift_deg * (through - 0.5)
        pose = Pose(turn, recording.scale, recording.shift)
        picture = self.mesh.picture(self.mesh.shaded(cast(Picture, texture), activations), places, pose)
        return picture[:, ::-1] if subject.mirrored else picture

    def _recorded(self, picture: Picture, drawing: Drawing, random: np.random.Generator) -> Picture:
        """What a cheap camera makes of it."""
        recording = drawing.recording
        seen: NDArray[Any] = cv2.resize(picture, (FRAME_PX, FRAME_PX), interpolation=cv2.INTER_AREA)
        if recording.resolution < 1:
            side = round(FRAME_PX * recording.resolution)
            seen = cv2.resize(seen, (side, side), interpolation=cv2.INTER_AREA)
            seen = cv2.resize(seen, (FRAME_PX, FRAME_PX), interpolation=cv2.INTER_LINEAR)
        seen = cv2.GaussianBlur(seen, (0, 0), recording.blur_px)
        noisy = seen + recording.noise * random.standard_normal(seen.shape, dtype=np.float32)
        return np.asarray(np.clip(np.rint(noisy), 0, 255), np.uint8)


def demo_clips(folder: Path) -> tuple[Clip, ...]:
    """The manifest's entries for clips that lie in ``folder``."""
    return tuple(
        Clip(
            id=f"S{number:02d}_{take}",
            video=folder / f"S{number:02d}_{take}.mp4",
            transcript=folder / f"S{number:02d}_{take}.words.csv",
            labels=Labels(au=folder / f"S{number:02d}_{take}.au.csv"),
            subject=f"S{number:02d}",
            split=cast(Split, split),
        )
        for split, numbers in SPLITS.items()
        for number in numbers
        for take in range(1, CLIPS_EACH + 1)
    )


def write_demo(folder: Path, seed: int, say: Callable[[str], None]) -> int:
    """Draw the clips that ``folder`` lacks, in a process for each of two cores; how many were drawn."""
    lacking = [clip.id for clip in demo_clips(folder) if clip.video is not None and not clip.video.is_file()]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), initializer=_leave_stops_to_the_parent) as pool:
        try:
            _draw(pool, folder, seed, lacking, say)
        except BaseException:
            # Their shares take minutes; a clip's movie is written last, so an existing movie is whole.
            for process in active_children():
                process.terminate()
            raise
    return len(lacking)


def _draw(
    pool: ProcessPoolExecutor, folder: Path, seed: int, lacking: Sequence[str], say: Callable[[str], None]
) -> None:
    shares = [share for share in (lacking[::2], lacking[1::2]) if share]
    running = [pool.submit(write_clips, folder, seed, share) for share in shares]
    left = set(lacking)
    while left:
        done = {clip for clip in left if (folder / f"{clip}.mp4").is_file()}
        left -= done
        for clip in sorted(done):
            say(clip)
        if all(share.done() for share in running):
            break
        wait(running, timeout=1, return_when=FIRST_EXCEPTION)
    for share in running:
        share.result()  # raises what went wrong there


def _leave_stops_to_the_parent() -> None:
    """Ctrl-C reaches every process of a terminal; the one that has the others answers it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def write_clips(folder: Path, seed: int, ids: Sequence[str]) -> None:
    """Draw and write these clips. A clip's movie is written last, by rename: an existing movie is complete."""
    cv2.setNumThreads(1)  # two processes are faster than two threads here, and much faster than both
    threadpool_limits(1)
    files = LocalFiles(folder)
    studio = Studio(seed)
    for drawing in studio.drawings(set(ids)):
        files.write(f"{drawing.id}.au.csv", _au_table(drawing.schedule).encode())
        files.write(f"{drawing.id}.words.csv", _word_table(drawing.words).encode())
        files.write(f"{drawing.id}.mp4", movie(studio.frames(drawing), drawing.sound, seed))


def movie(frames: Iterable[Picture], sound: Samples, seed: int, size: tuple[int, int] = (FRAME_PX, FRAME_PX)) -> bytes:
    """H.264 and AAC in MP4, ``size`` (width, height) in pixels. The file says of itself that it was drawn."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        container.metadata["comment"] = f"{DRAWN}: extract demo --seed {seed}"
        video = container.add_stream("libx264", rate=FPS)
        video.width, video.height = size
        video.pix_fmt = "yuv420p"
        # One thread: the same bytes whatever the machine's number of cores.
        video.codec_context.thread_count = 1
        video.options = {"crf": "20", "preset": "veryfast"}
        audio = container.add_stream("aac", rate=SOUND_HZ, layout="mono")
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        block = audio.codec_context.frame_size or 1024
        for start in range(0, len(sound), block):
            heard = av.AudioFrame.from_ndarray(sound[None, start : start + block], format="fltp", layout="mono")
            heard.sample_rate, heard.pts, heard.time_base = SOUND_HZ, start, Fraction(1, SOUND_HZ)
            container.mux(audio.encode(heard))
        container.mux(audio.encode())
    return buffer.getvalue()


def _au_table(schedule: Schedule) -> str:
    rows = [",".join(AU_NAMES), *(",".join(map(str, row)) for row in schedule.labels.tolist())]
    return "\n".join(rows) + "\n"


def _word_table(words: list[Word]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows((word.text, f"{word.start_s:.4f}", f"{word.end_s:.4f}") for word in words)
    return text.getvalue()
