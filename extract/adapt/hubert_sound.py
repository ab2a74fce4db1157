"""The sound that HuBERT is adapted on: which clips may be used, decoded once and kept on disk while it trains."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from extract.adapt.folder import Folder
from extract.adapt.hubert_config import Split
from extract.adapt.hubert_crops import HZ, steps_in
from extract.errors import ClipError, MachineError, StaleError, UsageError
from extract.inputs import media
from extract.inputs.manifest import Clip
from extract.inputs.parts import part_files
from extract.models.waveform import MOMENTS_OF, Moments
from extract.running.fingerprints import Sources

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("extract")

PARTS = ("media", "audio")
"""Files of a clip that its sound may come from; both count as seen, whichever it was."""
SILENT = 1 / 32768
"""Standard deviation up to which a recording is silence: the rounding of 16 bits."""
SHOWN = 5
SOUND = "sound"


@dataclass(frozen=True)
class Stamped:
    """A source file as it was when it was read."""

    size: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True)
class Heard:
    """What decoding a clip's sound came to."""

    clip: str
    split: Split
    source_video: str
    files: dict[str, Stamped]
    """Source part -> its file."""
    num_samples: int = 0
    mean: float = 0.0
    variance: float = 0.0
    left_out: str | None = None
    """Why it is not used: it has no sound, or silence. A result."""
    failed: str | None = None
    """Why it could not be read. An error of this clip."""

    @property
    def usable(self) -> bool:
        return self.left_out is None and self.failed is None

    @property
    def steps(self) -> int:
        """Of HuBERT over the whole recording."""
        return steps_in(self.num_samples / HZ)

    def as_json(self) -> dict[str, Any]:
        """For ``sound/<clip>.json``."""
        files = {part: [file.size, file.mtime_ns, file.sha256] for part, file in self.files.items()}
        return {**self.__dict__, "files": files}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Heard":
        """The reverse."""
        return cls(**values | {"files": {part: Stamped(*file) for part, file in values["files"].items()}})


class Recording:
    """Samples of one clip on the disk, scaled as the network wants them; read slice by slice, by any thread."""

    def __init__(self, folder: Folder, heard: Heard, *, normalise: bool) -> None:
        self.heard = heard
        self._path = folder.path / SOUND / f"{heard.clip}.f32"
        self._shift = heard.mean if normalise else 0.0
        self._scale = (heard.variance + 1e-7) ** -0.5 if normalise else 1.0

    def __len__(self) -> int:
        return self.heard.num_samples

    def __getitem__(self, part: slice) -> "torch.Tensor":
        """Consecutive samples, float32: of mean 0 and variance 1 over the whole recording, where that is wanted."""
        import torch

        start, stop, _ = part.indices(len(self))
        try:
            samples = np.fromfile(self._path, np.float32, count=stop - start, offset=4 * start)
        except OSError as error:
            raise MachineError(f"{self._path}: {error.strerror or error}; nothing finished is lost") from error
        if len(samples) != stop - start:
            raise MachineError(f"{self._path} ends early: remove it and its .json, and run the same command again")
        return torch.from_numpy(((samples - self._shift) * self._scale).astype(np.float32))


def chosen(
    clips: Sequence[Clip], splits: Sequence[Split] | None, *, transductive: bool
) -> tuple[list[Clip], list[Clip]]:
    """Clips to train on, and clips of ``val`` to look at, which are none where ``val`` is trained on.

    Args:
        splits: whose clips are trained on; None: train, or all splits if ``transductive``.

    Raises:
        UsageError: val or test are to be trained on without ``transductive``; no clips; a recording is in a training
            split and in another one.
    """
    every: tuple[Split, ...] = ("train", "val", "test")
    wanted = tuple(splits) if splits is not None else every if transductive else ("train",)
    held_out = [split for split in wanted if split != "train"]
    if held_out and not transductive:
        raise UsageError(
            f"adapt.hubert.splits names {' and '.join(held_out)}: scores on clips that the weights were adapted on are "
            "no scores on unseen clips; leave it out, or say --transductive, which the weights then carry"
        )
    training = [clip for clip in clips if clip.split in wanted]
    if not training:
        raise UsageError(
            f"no clip of the manifest is of split {' or '.join(wanted)}, which is what is trained on; set `split:`, "
            "for example with `extract manifest ... --split-by subject`"
        )
    if not transductive:
        seen = {clip.source_video: clip for clip in training}
        for clip in clips:
            twin = seen.get(clip.source_video)
            if twin is not None and clip.split is not None and clip.split not in wanted:
                raise _same_recording(twin, clip, f"source_video {clip.source_video}")
    looked_at = [] if "val" in wanted else [clip for clip in clips if clip.split == "val"]
    return training, looked_at


def refuse_twins(training: Sequence[Heard], others: Sequence[Clip]) -> None:
    """Refuse clips of other splits whose file is that of a training clip, under whatever name it goes.

    Files of another size are not read.

    Raises:
        UsageError: names both clips.
    """
    by_size: dict[int, list[tuple[Heard, Stamped]]] = {}
    for heard in training:
        for file in heard.files.values():
            by_size.setdefault(file.size, []).append((heard, file))
    sources = Sources()
    for clip in others:
        for part in PARTS:
            for path in part_files(clip, part):
                same = by_size.get(path.stat().st_size, []) if path.is_file() else []
                if not same:
                    continue
                sha256 = sources.source(clip, [part])[part]
                for heard, file in same:
                    if file.sha256 == sha256:
                        raise _same_recording(heard, clip, f"{path.name} with sha256 {sha256[:12]}...")


def _same_recording(training: "Clip | Heard", other: Clip, shared: str) -> UsageError:
    name = training.clip if isinstance(training, Heard) else training.id
    return UsageError(
        f"clips {name} ({training.split}) and {other.id} ({other.split}) are one recording ({shared}), so that weights "
        f"adapted on {training.split} would have heard {other.split}: give both the same `split:`, or say "
        "--transductive, which the weights then carry"
    )


def hear(clip: Clip, folder: Folder) -> Heard:
    """A clip's sound, decoded to 16 kHz mono into the folder ``sound/``, unless that was done before.

    Raises:
        StaleError: its file changed since.
        MachineError: the disk gave up.
    """
    known = folder.read_json(f"{SOUND}/{clip.id}.json")
    if known is not None:
        heard = Heard.from_json(known)
        for part, file in heard.files.items():
            for path in part_files(clip, part):
                if not path.exists() or (path.stat().st_size, path.stat().st_mtime_ns) != (file.size, file.mtime_ns):
                    raise StaleError(
                        f"{folder.path} was begun with another {path}; restore it, or name another folder with -o"
                    )
        return heard
    heard = _decode(clip, folder)
    folder.write_json(f"{SOUND}/{clip.id}.json", heard.as_json())
    return heard


def _decode(clip: Clip, folder: Folder) -> Heard:
    if clip.split is None:
        raise ValueError(f"clip {clip.id} has no split")
    heard: dict[str, Any] = {"clip": clip.id, "split": clip.split, "source_video": clip.source_video}
    path, sources, files = clip.audio or clip.video, Sources(), {}
    if path is None:
        return Heard(**heard, files={}, left_out="it has no sound: only crops")
    try:
        for part in PARTS:
            for file in part_files(clip, part):
                status = os.stat(file) if file.exists() else None
                sha256 = sources.source(clip, [part])[part]
                if status is not None:
                    files[part] = Stamped(status.st_size, status.st_mtime_ns, sha256)
        audio = media.read_audio(path, hz=HZ, start_s=clip.start_s, end_s=clip.end_s)
    except ClipError as error:
        return Heard(**heard, files=files, failed=f"{error.reason}: {error}")
    if audio is None or not len(audio.sound):
        return Heard(**heard, files=files, left_out="it has no audio stream" if audio is None else "it has no sample")
    moments, sound = Moments(), audio.sound
    pieces = [slice(start, start + MOMENTS_OF) for start in range(0, len(sound), MOMENTS_OF)]

    def write(file: BinaryIO) -> None:
        import torch

        for piece in pieces:
            samples = sound[piece]
            moments.add(torch.from_numpy(samples))
            file.write(samples.tobytes())

    folder.write_by(f"{SOUND}/{clip.id}.f32", write)
    mean, variance = float(moments.mean), float(moments.variance)
    silent = "it is silent" if variance <= SILENT**2 else None
    return Heard(**heard, files=files, num_samples=len(sound), mean=mean, variance=variance, left_out=silent)


def refuse_too_little(training: Sequence[Heard], least_s: float, clusters: int) -> list[Heard]:
    """The recordings that can be trained on: once each, and none that is shorter than ``least_s``.

    Left and right faces of one movie are two clips with one sound.

    Raises:
        UsageError: none is left, or fewer seconds than clusters.
    """
    usable, seen = [], {}
    for heard in training:
        if not heard.usable or heard.steps < steps_in(least_s):
            continue
        same = (heard.num_samples, heard.mean, heard.variance, *sorted(f.sha256 for f in heard.files.values()))
        if same not in seen:
            seen[same] = heard
            usable.append(heard)
    if not usable:
        why = [f"{heard.clip}: {heard.failed or heard.left_out or f'shorter than {least_s:g} s'}" for heard in training]
        more = f"; and {len(why) - SHOWN} more" if len(why) > SHOWN else ""
        raise UsageError(
            f"none of the {len(why)} training clips has sound to train on ({'; '.join(why[:SHOWN])}{more}); is the "
            "sound in another file (`audio:` of the manifest)?"
        )
    seconds = sum(heard.num_samples for heard in usable) / HZ
    if seconds < clusters:
        raise UsageError(
            f"the training clips hold {seconds:.1f} s of sound, fewer seconds than the {clusters} clusters that it is "
            f"to be sorted into; name fewer: --set adapt.hubert.targets.clusters={max(2, int(seconds) // 4)}"
        )
    return usable
