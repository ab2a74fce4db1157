"""What a network said of every frame of some clips, beside their labels: the file that all analysis reads.

Scores are saved with the run, so that smoothing, thresholds and tables never run the network again.
"""

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from extract.au import AUS, au_name
from extract.errors import CorruptError

SCHEMA = 1


@dataclass(frozen=True)
class FrameScores:
    """N frames, ordered by clip and frame. All frames of each clip are there, annotated or not."""

    clips: tuple[str, ...]
    source_videos: tuple[str, ...]
    """Of each clip: the recording that it was cut from. Clips of one recording are not independent."""
    clip: NDArray[np.int64]
    """[N]: index into ``clips``."""
    frame: NDArray[np.int64]
    """[N]: row on the clip's frame clock."""
    pts_s: NDArray[np.float64]
    """[N] seconds on the clip's clock."""
    present: Mapping[str, NDArray[np.bool_]]
    """Modality -> [N]: whether the frame has it."""
    face: NDArray[np.bool_]
    """[N]: whether every modality that reads pictures is present; if none does, whether any is."""
    logits: NDArray[np.float32]
    """[N, A]: of the action units; A is 0 for a run without that task."""
    labels: NDArray[np.int8]
    """[N, A]: 0, 1, or -1 where not annotated."""
    aus: tuple[int, ...] = AUS
    """[A]: numbers of the action units, in the order of the columns."""
    outputs: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """Further task (``expr``, ``va``, ``intensity``) -> [N, width] as the network gives them."""
    targets: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Further task -> its labels, [N] or [N, width]."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Plain values: which run, epoch, store and split; what was untrained, drawn or left out."""

    def __len__(self) -> int:
        return len(self.clip)

    @property
    def au_names(self) -> tuple[str, ...]:
        """Names of the columns of ``logits`` and ``labels``."""
        return tuple(au_name(number) for number in self.aus)

    @property
    def source_video(self) -> NDArray[np.int64]:
        """[N]: the number of each frame's recording, from 0 in the order in which they first occur."""
        numbers = {name: number for number, name in enumerate(dict.fromkeys(self.source_videos))}
        of_clip = np.array([numbers[name] for name in self.source_videos], dtype=np.int64)
        return of_clip[self.clip]

    def as_bytes(self) -> bytes:
        """The content of a ``.npz`` file without pickled objects."""
        arrays: dict[str, Any] = {
            name: getattr(self, name) for name in ("clip", "frame", "pts_s", "face", "logits", "labels")
        }
        for kind in ("present", "outputs", "targets"):
            arrays |= {f"{kind}.{name}": values for name, values in getattr(self, kind).items()}
        plain = {
            "schema": SCHEMA,
            "clips": self.clips,
            "source_videos": self.source_videos,
            "aus": self.aus,
            "facts": self.facts,
        }
        buffer = io.BytesIO()
        np.savez_compressed(buffer, json=np.array(json.dumps(plain)), **arrays)
        return buffer.getvalue()

    @classmethod
    def read(cls, path: Path) -> "FrameScores":
        """The scores that ``as_bytes`` wrote to ``path``.

        Raises:
            CorruptError: the file is damaged or of another version.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            plain = json.loads(str(arrays.pop("json")))
            if plain["schema"] != SCHEMA:
                raise CorruptError(f"{path}: schema {plain['schema']}, this program knows {SCHEMA}; evaluate again")
            values: dict[str, Any] = {"present": {}, "outputs": {}, "targets": {}}
            for name, array in arrays.items():
                kind, _, key = name.partition(".")
                if key:
                    values[kind][key] = array
                else:
                    values[name] = array
            values |= {name: tuple(plain[name]) for name in ("clips", "source_videos", "aus")}
            return cls(**values, facts=plain["facts"])
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise CorruptError(f"{path}: damaged ({error}); remove it and evaluate again") from error
