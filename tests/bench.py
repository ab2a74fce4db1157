"""A folder with small clips, toy stages, a config and a store, for tests of a run."""

from pathlib import Path

import numpy as np
import pytest

from extract.inputs.manifest import Clip, write_manifest
from extract.running import runner
from extract.running.report import Report
from extract.running.selection import Options
from extract.store import Store
from tests.media_files import pictures, write_clip
from tests.toy_stages import Colour, computed

FRAMES = 40


EVERYTHING = "extract: {instances: {colour: {}, contrast: {}, rank: {}, after_rank: {}, labels: {}}}"


class Bench:
    """A folder with clips, a manifest, a config and a store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store_path = root / "store.zarr"
        self.clips: dict[str, Clip] = {}
        (root / "c.yaml").write_text(EVERYTHING)

    def add(self, name: str, num_frames: int = FRAMES, **keys: object) -> list[np.ndarray]:
        images = pictures(num_frames)
        video = write_clip(self.root / f"{name}.mov", images)
        self.clips[name] = Clip(id=name, video=video, **keys)
        return images

    def run(self, *stages: str, config: tuple[str, ...] = (), manifest: bool = True, **options: object) -> Report:
        if manifest:
            write_manifest(self.root / "m.yaml", list(self.clips.values()))
        return runner.run(
            self.root / "m.yaml",
            self.store_path,
            str(self.root / "c.yaml"),
            set=["run.block_rows=16", *config],
            options=Options(stages=stages, **options),
        )

    @property
    def store(self) -> Store:
        return Store.open(self.store_path)

    def record(self, clip: str, instance: str):
        return self.store.record(clip, instance)

    def files(self) -> dict[str, bytes]:
        """Every chunk of the store."""
        found = sorted(self.store_path.rglob("c.*"))
        return {str(path.relative_to(self.store_path)): path.read_bytes() for path in found}


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


class Stop(BaseException):
    """Ends a run from outside, as a kill does: no handler of ours may swallow it."""


def stop_after(monkeypatch, rows):
    real = Colour.compute

    def compute(self, batch):
        if computed["colour"] >= rows:
            raise Stop
        return real(self, batch)

    monkeypatch.setattr(Colour, "compute", compute)
