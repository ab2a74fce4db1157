"""The clip stages of one clip, each on its own: read, compute or copy, write, record last."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeVar

from extract.errors import ClipError, CorruptError, MachineError, WeightsError
from extract.inputs.manifest import Clip
from extract.running.clip_inputs import ClipInputs
from extract.running.handover import Outcome, Working
from extract.running.lease import LeaseLostError
from extract.running.ledger import Ledger
from extract.running.order import Order
from extract.running.planning import ClipPlan
from extract.running.reading import Reading
from extract.running.recipes import Prepared
from extract.running.tasks import Job, Scope
from extract.running.twins import Copy
from extract.running.whole_clips import Result, check_rows, compute_clip
from extract.timeline import FrameClock

T = TypeVar("T")

STOPS_THE_RUN = (MachineError, LeaseLostError, CorruptError, WeightsError)
"""The clip is not to blame: these are not recorded as its failure."""


class ReadsFile(Protocol):
    """Has a file of the clip read, in a lane that may hang."""

    def __call__(self, work: Callable[[], T], reading: Reading) -> Awaitable[T]: ...


class ClipStages:
    """Works on them as they are fed; what becomes of each, ``ledger`` says."""

    def __init__(
        self,
        run: Working,
        clip: Clip,
        plan: ClipPlan,
        order: Order,
        inputs: ClipInputs,
        ledger: Ledger,
        scope: Scope,
        read: ReadsFile,
    ) -> None:
        self._clip, self._prepared, self._order = clip.id, plan.prepared, order
        self._store, self._engine, self._loop, self._twins = run.store, run.engine, run.loop, run.twins
        self._inputs, self._ledger, self._scope, self._read = inputs, ledger, scope, read

    def _write(self, work: Callable[[], T]) -> Job[T]:
        return self._loop.run("write", work, None)

    async def go(self, name: str) -> None:
        """Compute one of them, or take what another clip has."""
        if not await self._write(lambda: not self._ledger.settled_by_feeds(name) and self._ledger.begin(name)):
            return
        prepared = self._prepared[name]
        if not self._twins.may_share(prepared.instance):
            await self._compute(prepared)
            return
        fingerprint = self._ledger.fingerprint(name)
        turn = await self._twins.turn(fingerprint, self._scope)
        try:
            if not await self._copied(prepared, fingerprint):
                await self._compute(prepared)
                if self._ledger.outcomes[name].state == "done":
                    await self._write(partial(self._twins.add, name, fingerprint, self._clip))
        finally:
            turn.release()

    async def _compute(self, prepared: Prepared) -> None:
        name = prepared.instance.name
        try:
            reading = self._inputs.reading()
            inputs = await self._read(partial(self._inputs.of_clip_stage, prepared, reading), reading)
            if inputs is None:
                await self._write(partial(self._ledger.finish, name, Outcome("empty", "no_audio")))
                return
            result = await self._computed(prepared, inputs)
            outcome = await self._write(partial(self._write_result, prepared, result, inputs))
            notes = {**self._inputs.sound_notes(prepared), **(outcome.notes or {})}
            await self._write(partial(self._ledger.finish, name, replace(outcome, notes=notes)))
        except STOPS_THE_RUN:
            raise
        except Exception as error:  # noqa: BLE001 - one clip's failure; the record holds its trace
            await self._write(partial(self._ledger.fail, name, error))

    async def _copied(self, prepared: Prepared, fingerprint: str) -> bool:
        """Whether another clip had these very values, and this one has them now, or has failed to take them."""
        instance = prepared.instance
        try:
            found = await self._write(partial(self._twins.of, instance, fingerprint, self._clip))
            if found is None:
                return False
            await self._write(partial(self._write_copy, instance.name, found))
        except STOPS_THE_RUN:
            raise
        except Exception as error:  # noqa: BLE001 - as of what is computed
            await self._write(partial(self._ledger.fail, instance.name, error))
        return True

    def _write_copy(self, name: str, found: Copy) -> None:
        self._ledger.may_commit([name])
        self._store.write_whole(self._clip, name, found.stored, fingerprint=self._ledger.fingerprint(name))
        self._ledger.note_copied(name, found.clip, found.record)
        lengths = {output.name: len(values) for output, values in found.stored.items()}
        done = Outcome("done", rows=found.record.rows, notes=found.record.notes, array_rows=lengths)
        self._ledger.finish(name, done)

    async def _computed(self, prepared: Prepared, inputs: Mapping[str, Any]) -> Result:
        """What a clip stage gives. Where the memory does not suffice it is tried again, with nothing beside it."""
        stage = self._engine.ready(prepared)
        lane = self._engine.lane_of(stage)
        work = partial(compute_clip, self._engine, prepared, stage, inputs)
        try:
            return await self._loop.run(lane, work, self._scope, patience_s=0)
        except ClipError as error:
            if error.reason != "out_of_memory":
                raise
        return await self._loop.run_alone(lane, work, self._scope)

    def _write_result(self, prepared: Prepared, result: Result, inputs: Mapping[str, Any]) -> Outcome:
        name, stored = prepared.instance.name, result.stored
        if result.empty and not result.rows:
            return Outcome("empty", result.empty, notes=result.notes)
        outputs = prepared.instance.stage.outputs
        on_frames = any(isinstance(output.clock, FrameClock) for output in outputs)
        num_frames = self._ledger.outcomes[self._order.clock_of(name)].rows if on_frames else None
        for output in outputs:
            check_rows(prepared, output, result.rows[output.name], inputs, num_frames, self._inputs)
        self._ledger.may_commit([name])
        self._store.write_whole(self._clip, name, stored, fingerprint=self._ledger.fingerprint(name))
        rows = len(next(iter(stored.values())))
        valid = next((values for output, values in stored.items() if output.name == "valid"), None)
        reason = result.empty
        if reason is None and valid is not None and not valid.any():
            reason = self._ledger.why_no_rows(name)
        lengths = {output.name: len(values) for output, values in stored.items()}
        return Outcome("empty" if reason else "done", reason, rows=rows, notes=result.notes, array_rows=lengths)
