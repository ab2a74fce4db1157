"""What a run hands to the work on one clip, and what comes back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from extract.config import RunConfig
from extract.records import State
from extract.running.budget import Budget
from extract.running.device import LocalEngine
from extract.running.fingerprints import Sources
from extract.running.planning import Plan
from extract.running.tasks import Loop
from extract.running.twins import Twins
from extract.store import Store


@dataclass(frozen=True)
class Outcome:
    """How an instance stands for this clip."""

    state: State
    """``done``, ``empty`` or ``failed``."""
    reason: str | None = None
    message: str | None = None
    cause: str | None = None
    """Of ``failed``: the instance whose failure this one follows from; None where it failed by itself."""
    rows: int = 0
    """Rows in the store; 0 for ``empty`` without arrays."""
    notes: Mapping[str, Any] | None = None
    array_rows: Mapping[str, int] | None = None
    """Rows of each stored array."""


class Permit(Protocol):
    """What allows this process to write a clip: its lease."""

    def check(self) -> None:
        """Raise LeaseLostError if the clip may be another run's by now."""


@dataclass(frozen=True)
class Before:
    """What is known of earlier work on the clip."""

    died: str | None = None
    """How the process died that worked on it last, if the clip may be to blame."""
    given_up: Mapping[str, str] = field(default_factory=dict)
    """Instances at which this run's process for the clip hung, with what to say of them; they are not tried again."""


@dataclass(frozen=True)
class Working:
    """What a run works with, whatever the clip."""

    plan: Plan
    store: Store
    engine: LocalEngine
    sources: Sources
    provenance: Mapping[str, Any]
    expects: Callable[[str, int], None]
    """Called with a clip and how many frames are thought to be to do; 0: nobody knows."""
    progressed: Callable[[str, float], None]
    """Called with a clip and how many of the frames to do were gone through; a frame counts once over all passes."""
    settings: RunConfig
    overwrite: bool
    loop: Loop
    budget: Budget
    """Memory for decoded frames, in bytes."""
    twins: Twins
    trace: str
    """Where the fault handler writes if this process dies."""


@dataclass(frozen=True)
class ClipReport:
    """What came of one clip."""

    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    """How every instance stands."""
    worked: Mapping[str, Outcome] = field(default_factory=dict)
    """Those that this run worked on."""
    busy: str | None = None
    """Why the clip was left to another run."""
    damaged: str | None = None
    """Which stored bytes it met that are damaged."""
