"""For tests of recognition: bursts of noise with pauses between them, and files that name them."""

import wave
from pathlib import Path

import numpy as np
import yaml

HZ = 16_000


def write_bursts(path: Path, *lengths_s: float, pause_s: float = 1.6, seed: int = 0) -> Path:
    """A pause, then bursts of these lengths with a pause behind each: one piece each, of 0.4 s more."""
    random = np.random.default_rng(seed)
    pause = np.zeros(round(pause_s * HZ))
    parts = [pause]
    for length_s in lengths_s:
        parts += [np.clip(random.normal(0, 0.1, round(length_s * HZ)), -1, 1), pause]
    return write_wav(path, np.concatenate(parts))


def write_wav(path: Path, samples: np.ndarray) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(HZ)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


def write_config(folder, service, run=(), **settings):
    asked = {"endpoint": service.endpoint, "price_per_minute": 0.06, **settings}
    transcribe = {"engines": ["given", "google"], "language": "en-US", "google": asked}
    run = {"cpu_threads": 1, **dict(run)}
    (folder / "c.yaml").write_text(yaml.safe_dump({"extract": {"instances": {"transcribe": transcribe}, "run": run}}))


def write_manifest(folder, **clips):
    listed = [{"id": name, **entry} for name, entry in clips.items()]
    (folder / "data_manifest.yaml").write_text(yaml.safe_dump({"version": 1, "clips": listed}))
