"""Small stages of each kind for tests of what surrounds stages."""

import threading
from collections import Counter

import numpy as np
import torch

from extract.stage import VALID, ClipResult, ClipStage, Output, RowsStage, StageConfig
from extract.timeline import FRAMES

computed: Counter[str] = Counter()
"""Rows that each toy stage computed since the counter was cleared."""
_counting = threading.Lock()


def count(stage: str, rows: int) -> None:
    """Add to ``computed``; stages compute in several threads at once."""
    with _counting:
        computed[stage] += rows


class ColourConfig(StageConfig):
    gain: float = 1.0
    dtype: str = "float32"
    darkest: float = 0.0
    """Frames with a mean below it are found wanting."""


class Colour(RowsStage[ColourConfig]):
    """Mean colour of a frame; and, transient, the frame's top left pixel."""

    name = "colour"
    version = 1
    config_type = ColourConfig
    inputs = ("frames.image",)
    batch = 8
    empty_reason = "no_face"

    @property
    def outputs(self):
        return (
            Output("mean", FRAMES, ("channel",), (3,), self.config.dtype),
            Output("corner", FRAMES, ("channel",), (3,), "uint8", kept=False),
            VALID,
        )

    def compute(self, batch):
        images = batch["frames.image"]
        count(self.name, len(images))
        mean = torch.stack([image.float().mean(dim=(0, 1)) for image in images]) * self.config.gain
        return {
            "mean": mean,
            "corner": torch.stack([image[0, 0] for image in images]),
            "valid": mean.mean(dim=1) >= self.config.darkest,
        }


class Contrast(RowsStage[StageConfig]):
    """Corner minus mean: reads one input that is kept and one that is not."""

    name = "contrast"
    version = 1
    config_type = StageConfig
    inputs = ("colour.corner", "colour.mean")
    batch = 16

    @property
    def outputs(self):
        return (Output("difference", FRAMES, ("channel",), (3,), "float32"), VALID)

    def compute(self, batch):
        count(self.name, len(batch["colour.mean"]))
        return {"difference": batch["colour.corner"].float() - batch["colour.mean"].float()}


class Rank(ClipStage[StageConfig]):
    """Each frame's place among the clip's frames by brightness."""

    name = "rank"
    version = 1
    config_type = StageConfig
    inputs = ("colour.mean", "colour.valid")

    @property
    def outputs(self):
        return (Output("place", FRAMES, (), (), "int32"), VALID)

    def compute(self, inputs):
        count(self.name, 1)
        order = inputs["colour.mean"].sum(dim=1).argsort(stable=True)
        place = torch.zeros(len(order), dtype=torch.int32)
        place[order] = torch.arange(len(order), dtype=torch.int32)
        return ClipResult({"place": place, "valid": inputs["colour.valid"]})


class AfterRank(RowsStage[StageConfig]):
    """Pixels and a clip stage's array: needs a second pass over the frames."""

    name = "after_rank"
    version = 1
    config_type = StageConfig
    inputs = ("frames.image", "rank.place")

    @property
    def outputs(self):
        return (Output("value", FRAMES, (), (), "float32"), VALID)

    def compute(self, batch):
        count(self.name, len(batch["rank.place"]))
        first = torch.stack([image[0, 0, 0].float() for image in batch["frames.image"]])
        return {"value": first + 1000 * batch["rank.place"].float()}


TOYS = (Colour, Contrast, Rank, AfterRank)


def expected_mean(images: list[np.ndarray]) -> np.ndarray:
    """What ``colour`` must give for frames stored without loss."""
    return np.stack([image.astype(np.float64).mean(axis=(0, 1)) for image in images])
