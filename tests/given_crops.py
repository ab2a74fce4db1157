"""Folders of drawn crops, and runs over clips that bring them."""

import numpy as np
from PIL import Image

import extract
from extract.config import ExtractConfig
from extract.running.selection import Options

CONFIG = ExtractConfig(
    instances={
        "labels": {},
        "detections": {},
        "faces": {},
        "swin": {"weights": "random", "architecture": "small", "resize": 64, "crop": 64},
        "hubert": {"weights": "random", "architecture": "small"},
    }
)


def draw_crops(folder, numbers, suffix="png", size=112):
    """A picture of noise for every number."""
    folder.mkdir(exist_ok=True)
    for number in numbers:
        image = np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / f"{number:05d}.{suffix}")
    return folder


def run(tmp_path, clip, config=CONFIG, **options):
    report = extract.run([clip], tmp_path / "store.zarr", config, options=Options(**options))
    return report, extract.open_store(tmp_path / "store.zarr")
