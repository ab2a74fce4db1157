"""The work on one clip: its instances in order, in as few passes over the frames as possible, records last.

An instance's failure is written into its record and passed on to what it feeds; the clip's other instances continue.
"""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from extract.arrays import default_block_rows
from extract.errors import ClipError, CorruptError, MachineError
from extract.inputs.crops import GivenCrops, Pictures
from extract.inputs.manifest import Clip
from extract.running import crashes
from extract.running.budget import Budget
from extract.running.clip_inputs import ClipInputs
from extract.running.clip_stages import STOPS_THE_RUN, ClipStages
from extract.running.handover import Before, ClipReport, Outcome, Permit, Working
from extract.running.lease import LeaseLostError
from extract.running.ledger import Ledger
from extract.running.nodes import Node
from extract.running.order import Order
from extract.running.passes import GROUPS_IN_FLIGHT, FramePass
from extract.running.planning import Task as Planned
from extract.running.planning import plan_clip
from extract.running.reading import Reading
from extract.running.tasks import Job, Scope, Task, all_of
from extract.stage import SourceStage

T = TypeVar("T")


class ClipWork:
    """Works on one clip under its lease; ``ledger`` says, after ``go``, how every instance stands."""

    def __init__(
        self, run: Working, clip: Clip, tasks: Mapping[str, Planned], lease: Permit, before: Before, *, retry: bool
    ) -> None:
        self._clip, self._store, self._engine, self._settings = clip, run.store, run.engine, run.settings
        self._loop, self._budget = run.loop, run.budget
        self._scope = Scope(self._loop.scope)
        self._turns = Budget(self._loop, 1)
        self._scope.on_close.append(self._turns.wake)
        # If the process dies, what was begun is suspected: here one thing after the other.
        self._one_by_one = run.settings.engine == "serial" or before.died is not None
        self._expects, self._progressed = partial(run.expects, clip.id), partial(run.progressed, clip.id)
        own = run.plan.of(clip)
        self._prepared = own.prepared
        self._order = Order(own)
        self._inputs = ClipInputs(clip, self._order, run.store, run.engine, run.sources, run.settings)
        self.ledger = Ledger(run, clip, self._order, tasks, lease, before, retry=retry)
        self._clip_stages = ClipStages(run, clip, own, self._order, self._inputs, self.ledger, self._scope, self._read)

    async def go(self) -> None:
        """Compute what is missing.

        Raises:
            MachineError, LeaseLostError: the run or the clip stops here; finished blocks stay.
        """
        await self._write(self.ledger.give_up_hung)
        passes = self._order.passes(self.ledger.todo)
        self._num_passes = sum(bool(per_row) for per_row, _ in passes)
        try:
            await self._follow(passes)
        except LeaseLostError:
            raise  # the clip is another run's: not a record more
        except BaseException:
            # A clean stop is no crash; a killed process never comes here. A full disk must not hide its own error.
            with suppress(MachineError):
                await self._write(self.ledger.clear_attempts)
            raise

    async def _follow(self, passes: Sequence[tuple[list[str], list[str]]]) -> None:
        """One pass over the frames after the other, and beside them each clip stage as soon as it is fed."""
        await self._loop.run("decode", self.ledger.hash_sources, self._scope, patience_s=0)
        tasks: dict[str, Task[None]] = {}
        last: Task[None] | None = None
        for per_row, clip_stages in passes:
            steps = [(per_row, partial(self._pass, per_row))] if per_row else []
            for names, step in [*steps, *(([name], partial(self._clip_stages.go, name)) for name in clip_stages)]:
                before = [tasks[name] for name in self._order.below(names) if name in tasks]
                if names is per_row and last is not None:
                    before.append(last)
                task = self._loop.spawn(self._after(before, step))
                tasks |= dict.fromkeys(names, task)
                last = task if names is per_row else last
                if self._one_by_one:
                    await task
        await all_of(dict.fromkeys(tasks.values()))

    async def _after(self, before: Sequence[Task[None]], step: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await all_of(before)
            await step()
        except BaseException:
            self._scope.close()  # what stops one of them stops the clip
            raise

    def _write(self, work: Callable[[], T]) -> Job[T]:
        """Have something done to the store, or looked up there: one thing after the other, whatever ends."""
        return self._loop.run("write", work, None)

    def _begin(self, names: Sequence[str]) -> list[str]:
        """Those of ``names`` whose work can begin; the others are settled."""
        return [name for name in names if not self.ledger.settled_by_feeds(name) and self.ledger.begin(name)]

    # ---- one pass over the frames ------------------------------------------------------------------------------

    async def _pass(self, names: Sequence[str]) -> None:
        """Compute rows stages and the frames' times together."""
        names = await self._write(partial(self._begin, names))
        if not names:
            return
        order = self._order.with_helpers(names, self.ledger.todo)
        sources = [n for n in order if isinstance(self._order.instance(n).stage, SourceStage)]
        source = next(iter(sources), None)
        try:
            reading = self._inputs.reading()
            video = await self._open_pictures(sources, reading) if sources else None
            if source and video is None:
                for name in names:
                    await self._write(partial(self.ledger.finish, name, Outcome("empty", "no_video")))
                return
            with video or nullcontext():
                await self._run_pass(order, set(names), video, reading)
        except STOPS_THE_RUN:
            raise
        except Exception as error:  # noqa: BLE001 - decoding failed: nothing in this pass can be finished
            for name in names:
                await self._write(partial(self.ledger.fail, name, error, None if source == name else source))

    async def _run_pass(self, order: Sequence[str], names: set[str], video: Pictures | None, reading: Reading) -> None:
        known = self.ledger.outcomes.get(self._order.clock_of(order[-1]))
        num_frames = known.rows if known else None
        expected = num_frames if num_frames is not None else (video and video.declared_frames) or 0
        nodes = await self._write(lambda: [self._node(name, order, name in names, expected) for name in order])
        frame_pass = FramePass(
            nodes,
            video,
            num_frames,
            self._engine,
            self._loop,
            self._scope,
            self._budget,
            check=lambda: self.ledger.may_commit(names),
            progressed=lambda rows: self._progressed(rows / self._num_passes),
            committed=self.ledger.clear_attempts,
            reading=reading,
            in_flight=1 if self._one_by_one else GROUPS_IN_FLIGHT,
        )
        # Of a part of a recording the header says nothing.
        is_part = self._clip.start_s is not None or self._clip.end_s is not None
        self._expects(0 if num_frames is None and is_part else frame_pass.to_do(expected))
        rows = await frame_pass.run()
        await self._write(partial(self._finish_nodes, nodes, names, rows, video))

    def _finish_nodes(self, nodes: Sequence[Node], names: set[str], rows: int, video: Pictures | None) -> None:
        for node in [node for node in nodes if node.name in names]:
            self._finish_node(node, nodes, rows, video)

    def _finish_node(self, node: Node, nodes: Sequence[Node], rows: int, video: Pictures | None) -> None:
        """Record what came of an instance of a pass."""
        if node.error is not None:
            origin = next(n.name for n in nodes if n.error is node.error)
            self.ledger.fail(node.name, node.error, None if origin == node.name else origin)
            return
        if node.writer is not None:
            node.writer.finish(rows)
            if isinstance(video, GivenCrops) and isinstance(node.stage, SourceStage):
                video.note_unreadable(node.writer.valid())
        notes = video.notes if video and isinstance(node.stage, SourceStage) else None
        lengths = {output.name: rows for output in node.prepared.instance.kept}
        self.ledger.finish(node.name, replace(self._outcome_of_rows(node, rows), notes=notes, array_rows=lengths))

    def _outcome_of_rows(self, node: Node, rows: int) -> Outcome:
        if node.writer is None or node.writer.any_valid():
            return Outcome("done", rows=rows)
        return Outcome("empty", self.ledger.why_no_rows(node.name), rows=rows)

    def _node(self, name: str, order: Sequence[str], wanted: bool, expected_rows: int) -> Node:
        prepared = self._prepared[name]
        instance = prepared.instance
        from_pass, from_store = {}, {}
        for declared in instance.stage.inputs:
            source, array = instance.source_of(declared)
            if source in order:
                from_pass[declared] = f"{source}.{array}"
            else:
                from_store[declared] = self._store.read(self._clip.id, source, array)
        writer = None
        if wanted:
            chosen = instance.config.block_rows or self._settings.block_rows
            block_rows = chosen or default_block_rows(instance.kept)
            writer = self._store.writer(
                self._clip.id,
                name,
                instance.kept,
                fingerprint=self.ledger.fingerprint(name),
                rows=expected_rows,
                block_rows=block_rows,
            )
        is_source = isinstance(instance.stage, SourceStage)  # another stage of this name may serve other clips
        stage = instance.stage if is_source else self._engine.ready(prepared)
        return Node(prepared, stage, from_pass, from_store, writer, self._engine.batch_of(instance))

    async def _open_pictures(self, sources: Sequence[str], reading: Reading) -> Pictures | None:
        if len(sources) > 1:
            both = " and ".join(sources)
            raise ClipError(
                "unsupported", f"needs {both} at once, but this clip brings its crops separately from its movie"
            )
        clock = self.ledger.outcomes.get(self._order.clock_of(sources[0]))
        rows = clock.rows if clock else None
        return await self._read(partial(self._inputs.open_pictures, sources[0], rows, reading), reading)

    async def _read(self, work: Callable[[], T], reading: Reading) -> T:
        """Have a file of the clip read, which may hang; one after the other, so that the sound is read once."""
        turn = await self._turns.reserve(1, self._scope)
        try:
            return await self._loop.run("decode", work, self._scope, watch=reading.watch())
        finally:
            turn.release()


async def work_on(run: Working, clip: Clip, lease: Permit, before: Before, *, retry: bool) -> ClipReport:
    """Plan one clip anew, under its lease, and compute what it lacks.

    Raises:
        MachineError, WeightsError: the run ends here; finished blocks stay.
    """

    def planned() -> "Mapping[str, Planned] | ClipReport":
        # Another run may have finished it since the plan was made, and with other settings.
        try:
            tasks = plan_clip(run.plan, run.store, clip, run.sources, retry=retry)
        except CorruptError as error:
            return ClipReport(damaged=str(error))
        stale = [name for name, task in tasks.items() if task.need == "stale"]
        if stale and not run.overwrite:
            return ClipReport(busy=f"another run made {stale[0]} with other settings meanwhile")
        return tasks

    tasks = await run.loop.run("write", planned, None)
    if isinstance(tasks, ClipReport):
        return tasks
    work = ClipWork(run, clip, tasks, lease, before, retry=retry)
    try:
        with crashes.marked(run.store.files, clip.id, run.trace):
            await work.go()
    except LeaseLostError as error:
        return ClipReport(work.ledger.outcomes, work.ledger.worked, busy=str(error))
    except CorruptError as error:
        return ClipReport(work.ledger.outcomes, work.ledger.worked, damaged=str(error))
    return ClipReport(work.ledger.outcomes, work.ledger.worked)
