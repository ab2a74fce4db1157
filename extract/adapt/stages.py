"""Which stages can be adapted, and what does it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from extract.errors import UsageError
from extract.names import suggestion

if TYPE_CHECKING:
    from extract.adapt.hubert import Adapted

ADAPTABLE = ("hubert",)


def adapter(stage: str) -> "Callable[..., Adapted]":
    """The function that adapts the weights of a stage.

    Raises:
        UsageError: none does.
    """
    if stage == "hubert":
        from extract.adapt.hubert import adapt_hubert

        return adapt_hubert
    raise UsageError(f"--stage {stage}: cannot be adapted; {suggestion(stage, ADAPTABLE)}")
