"""What the stages of one clip are fed: its pictures, its sound, its other files, and arrays of the store."""

from typing import Any

import numpy as np
import torch

from extract.config import RunConfig
from extract.errors import UnfinishedError
from extract.inputs import media
from extract.inputs.crops import Assumed, Continued, GivenCrops, Pictures, list_crops
from extract.inputs.manifest import Clip
from extract.inputs.media import Audio, Sound
from extract.inputs.parts import part_files, read_part
from extract.running.device import LocalEngine
from extract.running.fingerprints import Sources
from extract.running.order import Order
from extract.running.reading import Reading
from extract.running.recipes import Prepared
from extract.stage import SourceStage, Stage
from extract.store import Store
from extract.timeline import Regular


class SamplesOnDisk:
    """Samples of a recording that is too long to be held; every slice is read anew, onto the stage's device."""

    def __init__(self, sound: Sound, device: torch.device) -> None:
        self._sound, self._device = sound, device

    def __len__(self) -> int:
        return len(self._sound)

    def __getitem__(self, part: slice) -> torch.Tensor:
        return torch.from_numpy(self._sound[part]).to(self._device)


class ClipInputs:
    """Opens and reads what one clip brings; the sound once, however many stages hear it."""

    def __init__(
        self, clip: Clip, order: Order, store: Store | None, engine: LocalEngine, sources: Sources, settings: RunConfig
    ) -> None:
        """``store``: None where there is none yet, and so nothing in it."""
        self._clip, self._order, self._store = clip, order, store
        self._engine, self._sources, self._settings = engine, sources, settings
        self._sounds: dict[int, Audio | None] = {}
        """Samples a second -> the sound; None: the clip has none."""

    def reading(self) -> Reading:
        """Watches the reading of the clip's recording, which must be the one that was hashed whenever it is opened."""
        parts = [part for part in ("media", "audio") if part_files(self._clip, part)]
        return Reading(self._settings.stall_s, lambda: self._sources.check_unchanged(self._clip, parts))

    def open_pictures(self, source: str, num_frames: int | None, reading: Reading) -> Pictures | None:
        """The pictures that the instance ``source`` enters with; None where the clip has none.

        Args:
            num_frames: rows of the clip's clock, which given crops need.
            reading: watches this thread, and every one that will decode.
        """
        stage = self._order.instance(source).stage
        folder = list_crops(self._clip.crops) if self._clip.crops else None
        if folder is not None and _reads(stage) == "crops":
            if num_frames is None:
                raise ValueError(f"{source} is opened before the clip's frames are counted")
            return GivenCrops(folder, num_frames)
        if self._clip.video is None:
            return Assumed(self._clip.fps, folder.num_frames) if folder and self._clip.fps else None
        video = media.open_video(
            self._clip.video,
            start_s=self._clip.start_s,
            end_s=self._clip.end_s,
            repair_pts=stage.config.repair_pts,
            watcher=reading,
        )
        return Continued(video, folder.num_frames) if folder and video else video

    def of_clip_stage(self, prepared: Prepared, reading: Reading) -> dict[str, Any] | None:
        """The declared inputs; None where the clip has no sound and the stage needs it."""
        instance = prepared.instance
        device = self._engine.device_of(instance.stage)
        inputs: dict[str, Any] = {}
        for declared in instance.stage.inputs:
            source, array = instance.source_of(declared)
            sound_hz = self.sound_hz(source)
            if sound_hz is not None:
                sound = self._read_sound(sound_hz, reading)
                if sound is None:
                    return None
                in_memory = sound.sound.in_memory
                inputs[declared] = torch.from_numpy(sound.samples) if in_memory else SamplesOnDisk(sound.sound, device)
                inputs[f"{declared.partition('.')[0]}.start_s"] = sound.start_s
                continue
            if self._store is None:
                raise UnfinishedError(f"clip {self._clip.id}: {source}/{array} is not made yet")
            values = self._store.read(self._clip.id, source, array).values
            is_text = values.dtype.kind in "OTU"
            inputs[declared] = values.tolist() if is_text else torch.from_numpy(values)
        for part in instance.stage.parts:
            for name, value in read_part(self._clip, part, instance.stage.aus).items():
                inputs[name] = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        return inputs

    def sound_hz(self, name: str) -> int | None:
        """Samples a second of what an instance takes from the clip's sound; None where it takes no sound."""
        stage = self._order.instance(name).stage
        if _reads(stage) != "sound":
            return None
        clock = stage.outputs[0].clock
        if not isinstance(clock, Regular):
            raise TypeError(f"stage {stage.name} reads sound, but gives {clock}, expected a regular clock of samples")
        return int(1 / clock.hop_s)

    def sound_notes(self, prepared: Prepared) -> dict[str, Any]:
        """What there is to say of the sound that an instance heard."""
        rates = {self.sound_hz(source) for source in prepared.instance.feeds.values()} & self._sounds.keys()
        heard = [self._sounds[hz] for hz in rates if hz is not None]
        return {name: value for sound in heard if sound for name, value in sound.notes.items()}

    def _read_sound(self, hz: int, reading: Reading) -> Audio | None:
        path = self._clip.audio or self._clip.video
        if path is None:
            return None
        if hz not in self._sounds:
            start_s, end_s = self._clip.start_s, self._clip.end_s
            self._sounds[hz] = media.read_audio(path, hz=hz, start_s=start_s, end_s=end_s, watcher=reading)
        return self._sounds[hz]


def _reads(stage: Stage[Any]) -> str | None:
    return stage.reads if isinstance(stage, SourceStage) else None
