"""Memory for decoded frames: bounded whatever their size, and no byte of what is stored depends on the bound."""

import gc
import subprocess
import sys
import weakref
from pathlib import Path

import av
import numpy as np
import pytest

import extract
from extract.config import ExtractConfig
from extract.inputs.manifest import Clip, write_manifest
from extract.inputs.media import open_video, picture
from extract.running.selection import Options
from tests.bench import Bench
from tests.media_files import pictures, write_clip
from tests.test_vision_chain import INSTANCES, faces
from tests.toy_stages import AfterRank, Colour, expected_mean

SWIN = {"weights": "random", "architecture": "small", "resize": 64, "crop": 64}


def chunks(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("c.*")}


def test_the_bytes_are_those_of_whole_groups(media_dir, tmp_path):
    """Slices of six frames, which end within the groups of 32, through all the vision stages."""
    memory_gb = 4 * 5.5 * 320 * 180 * 3 / 1e9
    path = tmp_path / "face.mkv"
    write_clip(path, faces(media_dir, 35))
    clip = Clip(id="face", video=path)
    stored = []
    for number, memory in enumerate((1.0, memory_gb)):
        config = ExtractConfig(instances={**INSTANCES, "swin": SWIN}, run={"memory_gb": memory, "block_rows": 32})
        report = extract.run([clip], tmp_path / f"{number}.zarr", config, options=Options(stages=("ghfeat", "swin")))
        assert report.exit_code == 0, report.failures
        stored.append(chunks(tmp_path / f"{number}.zarr"))
    assert {"face/ghfeat/code/c.0.0", "face/ghfeat/code/c.1.0", "face/swin/feature/c.1.0"} <= stored[0].keys()
    assert stored[0] == stored[1]


@pytest.fixture
def held(monkeypatch):
    """Decoded frames that are in memory: now, and the most at once."""
    now, most = set(), [0]
    real = picture.upright_rgb

    def rgb(frame, reformatter):
        image = real(frame, reformatter)
        now.add(id(image))
        most[0] = max(most[0], len(now))
        weakref.finalize(image, now.discard, id(image))
        return image

    monkeypatch.setattr(picture, "upright_rgb", rgb)
    return most


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize(("row_by_row", "at_most"), [(True, 4 * 3 + 1), (False, 32 + 2 * 3 + 1)])
def test_frames_are_let_go_when_those_who_read_them_have_computed(tmp_path, monkeypatch, held, row_by_row, at_most):
    """Three frames to a slice. A stage that needs its micro-batch whole keeps the frames of its group, and no more."""
    for stage in (Colour, AfterRank):
        monkeypatch.setattr(stage, "row_by_row", row_by_row)
    bench = Bench(tmp_path)
    images = bench.add("a", 96)
    bytes_of_one = images[0].nbytes
    report = bench.run(config=(f"run.memory_gb={4 * 2.5 * bytes_of_one / 1e9}", "run.block_rows=64"))
    assert report.exit_code == 0, report.failures
    assert 3 <= held[0] <= at_most
    assert np.abs(bench.store.read("a", "colour", "mean").values - expected_mean(images)).max() < 1e-4


def test_a_decoded_frame_goes_without_the_garbage_collector(tmp_path):
    """A frame in a circle of references waits for it: 50 MB of 8K each, for some hundred frames."""
    path = write_clip(tmp_path / "a.mov", pictures(20))
    gc.collect()
    gc.disable()
    try:
        assert sum(1 for _ in open_video(path).frames()) == 20
        alive = sum(type(thing) is av.VideoFrame for thing in gc.get_objects())
    finally:
        gc.enable()
    assert alive <= 2


@pytest.mark.slow
def test_a_movie_of_8k_stays_within_the_memory(tmp_path):
    """32 of its frames are 3.2 GB as RGB, and three such groups were held at once."""
    path = tmp_path / "large.mkv"
    with av.open(path, "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 7680, 4320, "yuvj420p"
        frame = av.VideoFrame.from_ndarray(np.full((4320 * 3 // 2, 7680), 128, np.uint8), format="yuvj420p")
        for number in range(40):
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    write_manifest(tmp_path / "m.yaml", [Clip(id="large", video=path)])
    program = (
        "import re; from pathlib import Path; from extract.running import runner;"
        "from extract.running.selection import Options;"
        f"report = runner.run({str(tmp_path / 'm.yaml')!r}, {str(tmp_path / 's.zarr')!r}, set=['run.cpu_threads=2'],"
        " options=Options(stages=('faces',)));"
        # Not getrusage: its peak includes that of the process that started this one.
        "print(report.exit_code, re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    code, peak_kib = map(int, ended.stdout.split())
    assert code == 0
    assert peak_kib < 2.5e6, f"{peak_kib / 1e6:.2f} GB"
