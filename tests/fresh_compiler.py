"""Fixtures of the tests that compile: nothing compiled before counts, and no compiler or GPU is needed."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.levers import FakeGraphs


@pytest.fixture
def compiled_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where compiled code goes, empty; torch has forgotten what it compiled, and no variable stays."""
    import torch
    from torch._dynamo.utils import counters

    from extract.models import compiled

    monkeypatch.setenv("AU_FUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "put back at the end")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    compiled._warn.cache_clear()
    torch._dynamo.reset()
    counters.clear()
    return tmp_path / "cache" / "compiled"


@pytest.fixture
def only_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch.compile makes of a block is run by torch itself: no compiler, no seconds."""
    from extract.models import compiled

    monkeypatch.setattr(compiled, "HOW", {"fullgraph": True, "dynamic": False, "backend": "eager"})


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> "FakeGraphs":
    """What a CPU captures instead of CUDA graphs."""
    from extract.models import levers
    from tests.levers import FakeGraphs

    fake = FakeGraphs()
    monkeypatch.setitem(levers.CAPTURES, "cpu", fake.capture)
    return fake
