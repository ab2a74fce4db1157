"""How often the pipeline copies to and from a GPU and waits for it, counted on a simulated one.

``pytest -rP tests/test_device_traffic.py`` prints the counts.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import extract
from benchmarks.drawn_clips import draw_movies
from extract.config import ExtractConfig
from extract.models.realesrgan import random_weights
from extract.stage import Context
from extract.stages.align import Align, AlignConfig
from extract.stages.crop import Crop, CropConfig
from extract.stages.ghfeat import Ghfeat, GhfeatConfig
from extract.stages.landmarks import Landmarks, LandmarksConfig
from extract.stages.superres import Superres, SuperresConfig
from extract.stages.swin import Swin, SwinConfig
from extract.weights.resolving import resolve
from tests.simulated_device import Counts, SimulatedDevice
from tests.stages.test_superres import compact_file

COPIES_PER_FRAME = 2.0
STALLS_PER_FRAME = 0.0
"""What a run may ask for in its steady loop: copies in both directions, and waits for anything but a result."""

SR_LAUNCHES = 1_108
"""Kernels of one forward of x4plus, uncompiled, at most."""

BATCH = 8
CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
SMALL = {"weights": "random", "architecture": "small"}


# ---- stages by themselves ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """Of one stage's micro-batch."""

    inside: Counts
    """While it computed."""
    handed: Counts
    """While its inputs were brought to its device in the plain way: row by row where rows differ in size."""


def test_the_chain_of_pictures():
    """The first micro-batch fills what is made once for a size; the second is as all that follow."""
    with SimulatedDevice() as device:
        stages = ready()
        for seed in (1, 2):
            found = chain(device, stages, given(seed))
    for name, counted in found.items():
        inside = counted.inside
        print(f"{name:9} of {BATCH} rows: {inside.copies} copies, {dict(inside.stalls)} stalls,", end=" ")
        print(f"{inside.kernels.total()} launches; handed over in {counted.handed.copies} copies")
        assert inside.copies <= BATCH * COPIES_PER_FRAME, name
        assert not inside.stalls, name


def ready():
    """Small networks, as the runner sets them up."""
    stages = {
        "crop": Crop(CropConfig()),
        "superres": Superres(SuperresConfig(weights=str(compact_file()), input_px=56)),
        "landmarks": Landmarks(LandmarksConfig()),
        "align": Align(AlignConfig(output_size=64, transform_size=256)),
        "ghfeat": Ghfeat(GhfeatConfig(**SMALL)),
        "swin": Swin(SwinConfig(**SMALL, resize=64, crop=64)),
    }
    for stage in stages.values():
        weights = resolve(stage.weights, stage, offline=True) if stage.weights else None
        stage.setup(Context(CUDA if stage.device == "gpu" else CPU, torch.float32, weights))
    return stages


def given(seed):
    """Frames of 200 x 180 pixels, and where the eyes, nose and mouth of a turned face are in each."""
    random = torch.Generator().manual_seed(seed)
    frames = [torch.randint(0, 256, (180, 200, 3), dtype=torch.uint8, generator=random) for _ in range(BATCH)]
    marks = torch.zeros(BATCH, 68, 2)
    for row in range(BATCH):
        eyes = torch.tensor([[80.0, 80 + seed + row], [120.0, 82]])
        marks[row] = eyes.mean(dim=0)
        marks[row, 36:42], marks[row, 42:48] = eyes
        marks[row, 30], marks[row, 48], marks[row, 54] = torch.tensor([[100.0, 100], [85.0, 120], [116.0, 121]])
    box = torch.tensor([[65.0, 60, 140, 135]] * BATCH)
    return {"frames.image": frames, "faces.landmarks": marks, "faces.box": box}


def chain(device, stages, values):
    """Stage -> counts of one micro-batch that goes through all of them."""
    found = {}
    for name, stage in stages.items():
        with device.counted() as handed:
            batch = {declared: handed_over(stage, declared, values[declared]) for declared in stage.inputs}
        with device.counted() as inside:
            made = stage.compute(batch)
        values = values | {f"{name}.{array}": rows for array, rows in made.items()}
        found[name] = Found(inside, handed)
    return found


def handed_over(stage, declared, rows):
    where = CUDA if stage.device == "gpu" and declared not in stage.host_inputs else CPU
    return [row.to(where) for row in rows] if isinstance(rows, list) else rows.to(where)


def test_faces_of_several_sizes_share_a_forward():
    """On a GPU: reduced they are alike, and a forward of few rows costs nearly as much as one of many."""
    forwards = []
    sides = [200, 208, 200, 216, 60, 40]
    with SimulatedDevice():
        stage = Superres(SuperresConfig(weights=str(compact_file()), input_px=56))
        stage.setup(Context(CUDA, torch.float32, resolve(str(compact_file()), stage)))
        patches = [torch.full((side, side, 3), side, dtype=torch.uint8).to(CUDA) for side in sides]
        plain = stage._network
        stage._network = lambda images: forwards.append(len(images)) or plain(images)
        found = stage.compute({"crop.patch": patches, "crop.patch_box": torch.zeros(6, 4).to(CUDA)})
        means = [float(image.cpu().float().mean()) for image in found["image"]]
    assert forwards == [5, 1]
    assert [image.shape[0] for image in found["image"]] == [224, 224, 224, 224, 224, 160]
    assert means[0] == means[2]
    assert sorted(means) == [means[at] for at in (5, 4, 0, 2, 1, 3)]  # each where it belongs


def test_launches_of_a_forward_of_real_esrgan(tmp_path):
    """All 23 blocks are alike: what the second one adds is counted."""
    launches = []
    with SimulatedDevice() as device:
        for blocks in (1, 2):
            path = tmp_path / f"{blocks}.safetensors"
            save_file({name: torch.from_numpy(values) for name, values in random_weights(blocks).items()}, path)
            stage = Superres(SuperresConfig(weights=str(path), input_px=16))
            stage.setup(Context(CUDA, torch.float32, resolve(str(path), stage)))
            patch, box = torch.zeros(16, 16, 3, dtype=torch.uint8).to(CUDA), torch.zeros(2, 4).to(CUDA)
            with device.counted() as counts:
                stage.compute({"crop.patch": [patch] * 2, "crop.patch_box": box})
            launches.append(counts.kernels.total())
    whole = launches[0] + 22 * (launches[1] - launches[0])
    print(f"x4plus: {whole} launches a forward, {launches[1] - launches[0]} of them in each of its 23 blocks")
    assert whole <= SR_LAUNCHES


# ---- whole runs ----------------------------------------------------------------------------------------------------

FRAMES = 16
"""Of half of the clip; rows are computed and stored in groups of as many."""


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    (drawn,) = draw_movies(tmp_path_factory.mktemp("clip"), 1, 2 * FRAMES)
    return drawn


@pytest.fixture(scope="module")
def config():
    """float32 on both devices: the same recipe, and the same bytes."""
    exact = {"precision": "float32"}
    return ExtractConfig(
        instances={
            "superres": {"weights": str(compact_file()), "input_px": 56} | exact,
            "align": {"output_size": 64, "transform_size": 256} | exact,
            "ghfeat": SMALL | exact,
            "swin": SMALL | {"resize": 64, "crop": 64} | exact,
        },
        run={"cpu_threads": 1, "block_rows": FRAMES},
    )


@pytest.fixture(scope="module")
def counted(clip, config, tmp_path_factory):
    """Counts of half of the clip and of all of it, and the store of the latter."""
    folder = tmp_path_factory.mktemp("stores")
    counts = []
    for name, part in (("half", clip.model_copy(update={"end_s": FRAMES / 25 - 0.01})), ("whole", clip)):
        with SimulatedDevice() as device:
            report = extract.run([part], folder / name, config, device="cuda:0")
        assert report.exit_code == 0, report.failures
        assert extract.open_store(folder / name).record(clip.id, "ghfeat").rows == FRAMES * (1 + (name == "whole"))
        counts.append(device.counts)
    return *counts, folder / "whole"


def test_a_run_in_its_steady_loop(counted):
    """What the second half adds: set-up, and what is done once a clip, are not in it."""
    half, whole, _ = counted
    added = whole - half
    copies, stalls = added.copies / FRAMES, added.stalls.total() / FRAMES
    print(
        f"per frame {added.uploads / FRAMES:.2f} copies to the device ({added.upload_bytes / FRAMES:,.0f} bytes),",
        end=" ",
    )
    print(f"{added.fetches / FRAMES:.2f} back ({added.fetch_bytes / FRAMES:,.0f}), {stalls:.2f} stalls", end=" ")
    print(f"({dict(added.stalls)} in {FRAMES} frames), {added.kernels.total() / FRAMES:.1f} launches")
    assert copies <= COPIES_PER_FRAME
    assert stalls <= STALLS_PER_FRAME


def test_values_are_those_of_the_cpu(counted, clip, config, tmp_path):
    """To the last bit, but for what is made of aligned pictures: on a GPU these are computed another way."""
    assert extract.run([clip], tmp_path / "s.zarr", config, device="cpu").exit_code == 0
    here, there = chunks(tmp_path / "s.zarr"), chunks(counted[2])
    differing = {path.parts[1:3] for path in here.keys() | there.keys() if here.get(path) != there.get(path)}
    assert len(here) > 16
    assert differing <= {("ghfeat", "code")}
    code, expected = (
        extract.open_store(store).read(clip.id, "ghfeat", "code").values.astype(np.float64)
        for store in (counted[2], tmp_path / "s.zarr")
    )
    assert np.linalg.norm(code - expected) < 1e-2 * np.linalg.norm(expected)


def chunks(store):
    return {path.relative_to(store): path.read_bytes() for path in store.rglob("c.*")}


def test_every_frame_goes_once_through_every_stage(clip, config, tmp_path, monkeypatch):
    rows = Counter()
    for kind in (Crop, Superres, Landmarks, Align, Ghfeat, Swin):

        def compute(self, batch, real=kind.compute):
            rows[self.name] += len(batch[self.inputs[0]])
            return real(self, batch)

        monkeypatch.setattr(kind, "compute", compute)
    assert extract.run([clip], tmp_path / "s.zarr", config, device="cpu").exit_code == 0
    faces = int(extract.open_store(tmp_path / "s.zarr").read(clip.id, "crop", "point").valid.sum())
    assert faces > FRAMES
    assert rows == dict.fromkeys(("crop", "superres", "landmarks", "align", "ghfeat", "swin"), faces)
