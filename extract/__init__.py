"""From raw videos to per-frame multimodal features in one resumable Zarr store.

``extract.run`` is the command ``extract run``; ``extract.open_store`` opens what it wrote.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from extract.running.runner import Report
    from extract.store import Store

__all__ = ["open_store", "run"]


def run(*args: Any, **kwargs: Any) -> "Report":  # noqa: ANN401 - the signature is runner.run's
    """Compute what the store lacks; arguments, result and errors as of ``extract.running.runner.run``."""
    from extract.running import runner  # here, because torch takes seconds to import

    return runner.run(*args, **kwargs)


def open_store(path: str | Path) -> "Store":
    """Open a store for reading. Raises StoreError if it is none of ours."""
    from extract.store import Store

    return Store.open(path)
