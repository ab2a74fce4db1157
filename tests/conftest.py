"""What tests of several files use: real media, golden values, toy stages, folders of videos."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.bench import bench  # noqa: F401 - a fixture of several files
from tests.fresh_compiler import compiled_folder, graphs, only_traced  # noqa: F401 - likewise
from tests.hub import site  # noqa: F401 - likewise

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def media_dir() -> Path:
    """Real clips that stand for what users bring; they lie beside the repository, not in it."""
    folder = ROOT.parent / "shared" / "media"
    if not folder.is_dir():
        pytest.skip("no ../shared/media beside the repository: tests on real clips left out")
    return folder


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Values computed by the original programs; $GOLDEN names a folder made with other seeds."""
    return Path(os.environ.get("GOLDEN", ROOT / "tests" / "golden"))


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry with the toy stages in it."""
    from extract.registry import STAGES
    from tests import toy_stages

    for stage in toy_stages.TOYS:
        monkeypatch.setitem(STAGES, stage.name, stage)
    toy_stages.computed.clear()


@pytest.fixture
def videos(tmp_path: Path) -> Callable[..., Path]:
    """Makes empty files below the folder ``v`` and returns it; a scan opens none of them."""
    root = tmp_path / "v"
    root.mkdir()

    def touch(*names: str) -> Path:
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        return root

    return touch


@pytest.fixture
def cuda() -> "torch.device":
    """The first GPU. Without one the test is skipped; REQUIRE_GPU=1 makes that a failure."""
    import torch

    if not torch.cuda.is_available():
        if os.environ.get("REQUIRE_GPU"):
            pytest.fail("REQUIRE_GPU is set, but torch finds no GPU")
        pytest.skip("no GPU")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda:0")
