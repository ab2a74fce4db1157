"""Values that another clip of the store has already: the left and the right face of one movie share its sound.

A fingerprint is a hash of everything that decides values, so equal fingerprints mean equal values, whichever clip they
belong to. A clip stage that costs more to compute than to copy (``ClipStage.copyable``) is computed for one of such
clips and copied for the others. Two of them that are worked on at once take turns: the second one finds the values of
the first. Only clips in other processes (``run.isolate: always``, other runs) may compute the same at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from extract.errors import CorruptError, StoreError
from extract.graph import Instance
from extract.records import Record
from extract.running.budget import Budget, Hold
from extract.running.planning import Plan
from extract.running.recipes import sound_record
from extract.running.tasks import Loop, Scope
from extract.stage import ClipStage, Output
from extract.store import Store


@dataclass(frozen=True)
class Copy:
    """Values of another clip with the same fingerprint."""

    clip: str
    record: Record
    stored: Mapping[Output, NDArray[Any]]


class Turn:
    """Whose turn it is to compute or copy one fingerprint, until ``release``."""

    def __init__(self, turns: "dict[str, Turn]", key: str, loop: Loop) -> None:
        self._turns, self._key = turns, key
        self._budget = Budget(loop, 1)
        self._asked = 0
        self._hold: Hold | None = None

    async def take(self, scope: Scope) -> None:
        """Wait for it. Raises StoppedError when ``scope`` ends meanwhile."""
        scope.on_close.append(self._budget.wake)
        self._asked += 1
        try:
            self._hold = await self._budget.reserve(1, scope)
        except BaseException:
            self._leave()
            raise

    def release(self) -> None:
        """Give it to the next."""
        if self._hold is not None:
            self._hold.release()
        self._leave()

    def _leave(self) -> None:
        self._asked -= 1
        if not self._asked:
            self._turns.pop(self._key, None)


class Twins:
    """What this process knows of clips that share values."""

    def __init__(self, plan: Plan, store: Store, loop: Loop) -> None:
        self._plan, self._store, self._loop = plan, store, loop
        self._turns: dict[str, Turn] = {}
        self._having: dict[str, dict[str, list[str]]] = {}
        """Instance -> fingerprint -> clips whose records said, when they were last read, that they have its values."""

    @staticmethod
    def may_share(instance: Instance) -> bool:
        """Whether an instance is worth copying."""
        return isinstance(instance.stage, ClipStage) and instance.stage.copyable and bool(instance.kept)

    async def turn(self, fingerprint: str, scope: Scope) -> Turn:
        """Wait until no other clip of this process computes or copies the same."""
        turn = self._turns.setdefault(fingerprint, Turn(self._turns, fingerprint, self._loop))
        await turn.take(scope)
        return turn

    def add(self, name: str, fingerprint: str, clip: str) -> None:
        """A clip has finished the instance ``name``."""
        clips = self._clips_by_fingerprint(name).setdefault(fingerprint, [])
        if clip not in clips:
            clips.append(clip)

    def of(self, instance: Instance, fingerprint: str, clip: str) -> Copy | None:
        """Values for ``clip`` out of the store; None if no other clip has them whole."""
        for donor in self._clips_by_fingerprint(instance.name).get(fingerprint, ()):
            found = self._read(donor, instance, fingerprint) if donor != clip else None
            if found is not None:
                return found
        return None

    def _clips_by_fingerprint(self, name: str) -> dict[str, list[str]]:
        if name not in self._having:
            having: dict[str, list[str]] = {}
            for clip in self._store.clips():
                task = self._plan.tasks.get(clip, {}).get(name)
                record = task.record if task else sound_record(self._store, clip, name)
                if record is not None and record.state == "done":
                    having.setdefault(record.fingerprint, []).append(clip)
            self._having[name] = having
        return self._having[name]

    def _read(self, donor: str, instance: Instance, fingerprint: str) -> Copy | None:
        """Nobody keeps the donor from being written meanwhile, so its record must be the same before and after: who
        computes an instance anew says so in the record first, and what they finish is of another run."""
        before = sound_record(self._store, donor, instance.name)
        if before is None or before.state != "done" or before.fingerprint != fingerprint:
            return None
        if instance.stage.outdated(before.rows, before.notes):
            return None
        try:
            stored = {output: self._store.read(donor, instance.name, output.name).values for output in instance.kept}
        except (CorruptError, StoreError):  # damaged, or not there: that clip's own matter, and `verify` tells of it
            return None
        if sound_record(self._store, donor, instance.name) != before:
            return None
        return Copy(donor, before, stored)
