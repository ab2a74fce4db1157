"""A loader that does, sample by sample, what the public training code of USC (ABAW5) does; its picture work left out.

Written after its description, not copied. GH-Feat lies in one ``.npy`` file per frame: of each sample its own is
opened, and those of its eight neighbours. Sound and words are arrays per video, of which a slice is taken; a batch is
a list of samples that is padded and stacked.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class ReleasedLoader:
    """Batches of one video.

    Args:
        folder: of the files, which are written here.
        codes: [T, D], one file per frame.
        sound: [S, D].
        words: [K, D].
        sound_ranges: [T, 2], the steps of each frame; half-open.
        word_ranges: [T, 2].
        labels: [T, A].
    """

    def __init__(
        self,
        folder: Path,
        codes: NDArray[np.float16],
        sound: NDArray[np.float16],
        words: NDArray[np.float16],
        sound_ranges: NDArray[np.int64],
        word_ranges: NDArray[np.int64],
        labels: NDArray[np.int8],
    ) -> None:
        self.folder, self.num_frames = folder, len(codes)
        self.sound, self.words, self.labels = sound, words, labels
        self.sound_ranges, self.word_ranges = sound_ranges, word_ranges
        for number, code in enumerate(codes):
            np.save(folder / f"{number:06}.npy", code)

    def sample(self, frame: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Code [D], codes around it [9, D], steps [S, D], words [W, D], labels [A]."""
        own = np.load(self.folder / f"{frame:06}.npy")
        around = [
            own if other == frame else np.load(self.folder / f"{other:06}.npy")
            for other in range(max(0, frame - 4), min(self.num_frames, frame + 5))
        ]
        steps = self.sound[slice(*self.sound_ranges[frame])]
        words = self.words[slice(*self.word_ranges[frame])]
        return (
            torch.from_numpy(own),
            torch.from_numpy(np.stack(around)),
            torch.from_numpy(steps),
            torch.from_numpy(words),
            torch.from_numpy(self.labels[frame]),
        )

    def batch(self, frames: Sequence[int]) -> tuple[Tensor, ...]:
        """Codes [B, D], codes around [B, 9, D], steps [B, S, D], words [B, W, D], labels [B, A]."""
        codes, around, steps, words, labels = zip(*map(self.sample, frames), strict=True)
        return (
            torch.stack(codes),
            pad_sequence(list(around), batch_first=True),
            pad_sequence(list(steps), batch_first=True),
            pad_sequence(list(words), batch_first=True),
            torch.stack(labels),
        )
