"""The work on one clip: its instances in order, in as few passes over the frames as possible, records last.

An instance's failure is written into its record and passed on to what it feeds; the clip's other instances continue.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np

from extract.arrays import default_block_rows
from extract.errors import ClipError, CorruptError, MachineError, WeightsError
from extract.graph import Instance
from extract.inputs.crops import GivenCrops, Pictures
from extract.inputs.manifest import Clip
from extract.running import crashes
from extract.running.clip_inputs import ClipInputs
from extract.running.handover import Before, ClipReport, Outcome, Permit, Working
from extract.running.lease import LeaseLostError
from extract.running.ledger import Ledger
from extract.running.nodes import Node
from extract.running.order import Order
from extract.running.passes import FramePass
from extract.running.planning import Task, plan_clip
from extract.running.recipes import Prepared
from extract.running.rows import as_declared, stored_form
from extract.stage import ClipResult, Output, SourceStage
from extract.timeline import FrameClock, Regular

STOPS_THE_RUN = (MachineError, LeaseLostError, CorruptError, WeightsError)
"""The clip is not to blame: these are not recorded as its failure."""


class ClipWork:
    """Works on one clip under its lease; ``ledger`` says, after ``go``, how every instance stands."""

    def __init__(
        self, run: Working, clip: Clip, tasks: Mapping[str, Task], lease: Permit, before: Before, *, retry: bool
    ) -> None:
        self._clip, self._store, self._engine, self._settings = clip, run.store, run.engine, run.settings
        self._progressed = run.progressed
        own = run.plan.of(clip)
        self._prepared = own.prepared
        self._order = Order(own)
        self._inputs = ClipInputs(clip, self._order, run.store, run.engine, run.sources, run.settings)
        self.ledger = Ledger(run, clip, self._order, tasks, lease, before, retry=retry)

    def go(self) -> None:
        """Compute what is missing.

        Raises:
            MachineError, LeaseLostError: the run or the clip stops here; finished blocks stay.
        """
        self.ledger.give_up_hung()
        try:
            for per_row, clip_stages in self._order.passes(self.ledger.todo):
                self._pass(per_row)
                for name in clip_stages:
                    self._clip_stage(name)
        except LeaseLostError:
            raise  # the clip is another run's: not a record more
        except BaseException:
            # A clean stop is no crash; a killed process never comes here. A full disk must not hide its own error.
            with suppress(MachineError):
                self.ledger.clear_attempts()
            raise

    # ---- one pass over the frames ------------------------------------------------------------------------------

    def _pass(self, names: Sequence[str]) -> None:
        """Compute rows stages and the frames' times together."""
        names = [name for name in names if not self.ledger.settled_by_feeds(name) and self.ledger.begin(name)]
        if not names:
            return
        order = self._order.with_helpers(names, self.ledger.todo)
        sources = [n for n in order if isinstance(self._order.instance(n).stage, SourceStage)]
        source = next(iter(sources), None)
        try:
            video = self._open_pictures(sources) if sources else None
            if source and video is None:
                for name in names:
                    self.ledger.finish(name, Outcome("empty", "no_video"))
                return
            with video or nullcontext():
                self._run_pass(order, set(names), video)
        except STOPS_THE_RUN:
            raise
        except Exception as error:  # noqa: BLE001 - decoding failed: nothing in this pass can be finished
            for name in names:
                self.ledger.fail(name, error, None if source == name else source)

    def _run_pass(self, order: Sequence[str], names: set[str], video: Pictures | None) -> None:
        known = self.ledger.outcomes.get(self._order.clock_of(order[-1]))
        num_frames = known.rows if known else None
        expected = num_frames if num_frames is not None else (video and video.declared_frames) or 0
        nodes = [self._node(name, order, name in names, expected) for name in order]
        frame_pass = FramePass(
            nodes,
            video,
            num_frames,
            self._engine,
            check=lambda: self.ledger.may_commit(names),
            progressed=self._progressed,
            committed=self.ledger.clear_attempts,
            reading=self._inputs.reading(),
            memory_bytes=self._settings.memory_gb * 1e9,
        )
        rows = frame_pass.run()
        for node in nodes:
            if node.name not in names:
                continue
            if node.error is not None:
                origin = next(n.name for n in nodes if n.error is node.error)
                self.ledger.fail(node.name, node.error, None if origin == node.name else origin)
                continue
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
        return Outcome("empty", self._why_no_rows(node.prepared.instance), rows=rows)

    def _why_no_rows(self, instance: Instance) -> str:
        """The reason of an empty input, else the stage's own."""
        feeds = [self.ledger.outcomes.get(source) for source in self._order.recorded_feeds(instance.name)]
        inherited = next((feed.reason for feed in feeds if feed and feed.state == "empty"), None)
        if not inherited and not instance.is_clip_stage and self._clip.video is None:
            pictures = self._order.instance(self._order.pictures_of(instance.name)).stage
            inherited = "no_video" if pictures.clock else None
        return inherited or getattr(instance.stage, "empty_reason", None) or "no_rows"

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
        return Node(prepared, stage, from_pass, from_store, writer, instance.config.batch or stage.batch)

    def _open_pictures(self, sources: Sequence[str]) -> Pictures | None:
        if len(sources) > 1:
            both = " and ".join(sources)
            raise ClipError(
                "unsupported", f"needs {both} at once, but this clip brings its crops separately from its movie"
            )
        clock = self.ledger.outcomes.get(self._order.clock_of(sources[0]))
        return self._inputs.open_pictures(sources[0], clock.rows if clock else None)

    # ---- clip stages -------------------------------------------------------------------------------------------

    def _clip_stage(self, name: str) -> None:
        if self.ledger.settled_by_feeds(name) or not self.ledger.begin(name):
            return
        prepared = self._prepared[name]
        stage = self._engine.ready(prepared)
        try:
            inputs = self._inputs.of_clip_stage(prepared)
            if inputs is None:
                self.ledger.finish(name, Outcome("empty", "no_audio"))
                return
            with self._engine.guarded(name, whole_clip=True):
                result = stage.compute(inputs)  # type: ignore[attr-defined]
                outcome = self._write_result(prepared, result, inputs)
            notes = {**self._inputs.sound_notes(prepared), **(outcome.notes or {})}
            self.ledger.finish(name, replace(outcome, notes=notes))
        except STOPS_THE_RUN:
            raise
        except Exception as error:  # noqa: BLE001 - one clip's failure; the record holds its trace
            self.ledger.fail(name, error)

    def _write_result(self, prepared: Prepared, result: ClipResult, inputs: Mapping[str, Any]) -> Outcome:
        stage, name = prepared.instance.stage, prepared.instance.name
        if result.empty and not result.arrays:
            return Outcome("empty", result.empty, notes=result.notes)
        arrays = as_declared(stage, result.arrays, None)
        if set(arrays) != {output.name for output in stage.outputs}:
            raise ClipError("broken_promise", f"gave {sorted(arrays)}, declares more")
        for output in stage.outputs:
            self._check_rows(prepared, output, len(arrays[output.name]), inputs)
        stored = {}
        for output in prepared.instance.kept:
            values = arrays[output.name]
            is_text = output.dtype == "str"
            stored[output] = np.asarray(values, dtype=object) if is_text else stored_form(values, output, name)
        self.ledger.may_commit([name])
        self._store.write_whole(self._clip.id, name, stored, fingerprint=self.ledger.fingerprint(name))
        rows = len(next(iter(stored.values())))
        valid = next((values for output, values in stored.items() if output.name == "valid"), None)
        reason = result.empty
        if reason is None and valid is not None and not valid.any():
            reason = self._why_no_rows(prepared.instance)
        lengths = {output.name: len(values) for output, values in stored.items()}
        return Outcome("empty" if reason else "done", reason, rows=rows, notes=result.notes, array_rows=lengths)

    def _check_rows(self, prepared: Prepared, output: Output, rows: int, inputs: Mapping[str, Any]) -> None:
        """Raise ClipError where an array is not as long as its clock says."""
        name = prepared.instance.name
        if isinstance(output.clock, FrameClock):
            expected = self.ledger.outcomes[self._order.clock_of(name)].rows
            if rows != expected:
                message = f"{output.name}: {rows} rows, expected {expected}, one per frame"
                raise ClipError("broken_promise", message)
        if isinstance(output.clock, Regular):
            for declared in prepared.instance.stage.inputs:
                sound_hz = self._inputs.sound_hz(prepared.instance.source_of(declared)[0])
                if sound_hz is None:
                    continue
                duration_s = Fraction(len(inputs[declared]), sound_hz)
                expected = output.clock.num_steps(duration_s)
                if rows != expected:
                    heard = f"{float(duration_s):.2f} s at hop {output.clock.hop_s}"
                    found = f"{rows} steps, expected {expected} for {heard}; was the audio cut?"
                    raise ClipError("broken_promise", f"{output.name}: {found}")


def work_on(run: Working, clip: Clip, lease: Permit, before: Before, *, retry: bool) -> ClipReport:
    """Plan one clip anew, under its lease, and compute what it lacks.

    Raises:
        MachineError, WeightsError: the run ends here; finished blocks stay.
    """
    # Another run may have finished it since the plan was made, and with other settings.
    try:
        tasks = plan_clip(run.plan, run.store, clip, run.sources, retry=retry)
    except CorruptError as error:
        return ClipReport(damaged=str(error))
    stale = [name for name, task in tasks.items() if task.need == "stale"]
    if stale and not run.overwrite:
        return ClipReport(busy=f"another run made {stale[0]} with other settings meanwhile")
    work = ClipWork(run, clip, tasks, lease, before, retry=retry)
    try:
        with crashes.recorded(run.store.files, clip.id):
            work.go()
    except LeaseLostError as error:
        return ClipReport(work.ledger.outcomes, work.ledger.worked, busy=str(error))
    except CorruptError as error:
        return ClipReport(work.ledger.outcomes, work.ledger.worked, damaged=str(error))
    return ClipReport(work.ledger.outcomes, work.ledger.worked)
