"""Sixty minutes need hardly more memory than three: peak of a whole run, in a process of its own."""

import subprocess
import sys
import wave
from pathlib import Path

import av
import numpy as np
import pytest

from extract.inputs.manifest import Clip, write_manifest

pytestmark = [
    pytest.mark.slow,
    # Not ``ru_maxrss``: a process inherits that of the one that started it.
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc"),
]

AT_MOST = 1.2
PICTURES_PER_S = 2

PROGRAM = """
import re, sys
{before}
from extract.running import runner
from extract.running.selection import Options
report = runner.run({manifest!r}, {store!r}, {config!r}, options=Options(stages=({stage!r},)))
print(report.exit_code, report.failures, file=sys.stderr)
print(report.exit_code, re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""

ATTEND_TO_LITTLE = """
from torch.nn import functional
attention = functional.scaled_dot_product_attention
functional.scaled_dot_product_attention = lambda q, k, v, **more: attention(q, k[:, :, :512], v[:, :, :512], **more)
"""
"""Every step attends to ten seconds: the arithmetic of attention grows with the square of the length (an hour of it
takes minutes), its memory does not. Queries, keys and values are all there."""


def peak_of(tmp_path: Path, name: str, video: Path, stage: str, config: str, before: str = "") -> int:
    """KiB."""
    write_manifest(tmp_path / f"{name}.yaml", [Clip(id=name, video=video)])
    (tmp_path / "config.yaml").write_text(config)
    paths = {
        "manifest": tmp_path / f"{name}.yaml",
        "store": tmp_path / f"{name}.zarr",
        "config": tmp_path / "config.yaml",
    }
    program = PROGRAM.format(before=before, stage=stage, **{key: str(path) for key, path in paths.items()})
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr
    code, peak_kib = map(int, ended.stdout.split())
    assert code == 0, ended.stderr
    return peak_kib


def write_sound(path: Path, minutes: int) -> Path:
    second = np.random.default_rng(0).normal(0, 3000, 16_000).astype("<i2").tobytes()
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        for _ in range(60 * minutes):
            file.writeframes(second)
    return path


def write_video(path: Path, minutes: int) -> Path:
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=PICTURES_PER_S)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.full((48 * 3 // 2, 64), 128, np.uint8), format="yuv420p")
        for number in range(60 * minutes * PICTURES_PER_S):
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_hubert_of_an_hour_of_sound(tmp_path):
    config = "extract: {instances: {hubert: {weights: random, architecture: small}}, run: {cpu_threads: 2}}"
    peaks = {}
    for minutes in (3, 60):
        sound = write_sound(tmp_path / f"{minutes}.wav", minutes)
        peaks[minutes] = peak_of(tmp_path, f"m{minutes}", sound, "hubert", config, ATTEND_TO_LITTLE)
    assert peaks[60] <= AT_MOST * peaks[3], peaks


def test_faces_of_an_hour_of_video(tmp_path):
    config = "extract: {instances: {faces: {}}, run: {cpu_threads: 2}}"
    peaks = {}
    for minutes in (3, 60):
        video = write_video(tmp_path / f"{minutes}.mkv", minutes)
        peaks[minutes] = peak_of(tmp_path, f"m{minutes}", video, "faces", config)
    assert peaks[60] <= AT_MOST * peaks[3], peaks
