"""What a run does with one clip: its instances in order, one pass over the frames where it can be one, records last.

An instance's failure is written into its record and passed on to what it feeds; the clip's other instances go on.
"""

import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
import torch

from extract.config import RunConfig
from extract.errors import ClipError, CorruptError, MachineError, WeightsError
from extract.graph import Instance, upstream
from extract.inputs import annotations, media, transcripts
from extract.inputs.crops import Assumed, Continued, GivenCrops, Pictures, list_crops
from extract.inputs.manifest import Clip
from extract.inputs.media import Audio
from extract.running import crashes
from extract.running.device import LocalEngine, Reading, apart
from extract.running.fingerprints import Sources, fingerprint, part_files, parts_of
from extract.running.lease import LeaseLostError
from extract.running.passes import FramePass, Node, as_declared, stored_form
from extract.running.planning import MAX_ATTEMPTS, Plan, Prepared, Task, plan_clip
from extract.stage import ClipResult, SourceStage
from extract.stages.crop import GivenCrop
from extract.stages.wave import SamplesOnDisk
from extract.store import Record, Rows, State, Store, default_block_rows
from extract.timeline import FrameClock, Regular

STOPS_THE_RUN = (MachineError, LeaseLostError, CorruptError, WeightsError)
"""No fault of the clip: not recorded as its failure."""

AUDIO_HZ = 16_000


@dataclass(frozen=True)
class Outcome:
    """How an instance stands for this clip."""

    state: State
    """``done``, ``empty`` or ``failed``."""
    reason: str | None = None
    message: str | None = None
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
    progressed: Callable[[int], None]
    """Called with the number of rows that were gone through."""
    settings: RunConfig
    overwrite: bool


class ClipWork:
    """Works on one clip under its lease. ``outcomes`` says, after ``go``, how every instance it worked on stands."""

    def __init__(
        self, run: "Working", clip: Clip, tasks: Mapping[str, Task], lease: Permit, before: Before, *, retry: bool
    ) -> None:
        self.clip, self.lease = clip, lease
        self.store, self.engine, self.sources, self.settings = run.store, run.engine, run.sources, run.settings
        self.provenance, self.progressed = run.provenance, run.progressed
        own = run.plan.of(clip)
        self.graph, self.prepared = own.graph, own.prepared
        self.tasks = tasks
        self.before = before
        # Attempts of earlier runs count only if the clip may have killed one of them: a preemption is no crash.
        self.attempts_count = before.died is not None and not retry
        self.todo = {n for n, t in tasks.items() if t.need in {"missing", "partial", "failed", "stale", "replaced"}}
        self.worked: dict[str, Outcome] = {}
        """Outcomes of this run, to be reported."""
        self.outcomes: dict[str, Outcome] = {}
        self._begun: dict[str, Record] = {}
        self._wave: Audio | None = None

    def go(self) -> None:
        """Compute what is to do.

        Raises:
            MachineError, LeaseLostError: the run or the clip stops here; finished blocks stay.
        """
        for name, task in self.tasks.items():
            if task.need in {"finished", "crashed"} and task.record:
                known = task.record
                self.outcomes[name] = Outcome(known.state, known.reason, known.message, known.rows, known.notes)
        for name in [name for name in self.prepared if name in self.before.given_up]:
            self._give_up(name)
        levels = self._levels()
        try:
            for level in sorted(set(levels.values())):
                names = [name for name in self.prepared if levels[name] == level and name in self.todo]
                per_row = [name for name in names if not self._instance(name).is_clip_stage]
                for pictures in dict.fromkeys(map(self._pictures_of, per_row)):  # each decodes in its own way
                    self._pass([name for name in per_row if self._pictures_of(name) == pictures])
                for name in names:
                    if self._instance(name).is_clip_stage:
                        self._clip_stage(name)
        except LeaseLostError:
            raise  # the clip is another run's: not a record more
        except BaseException:
            # A clean stop is no crash; a killed process never comes here. A full disk must not hide its own error.
            with suppress(MachineError):
                self._clear_attempts()
            raise

    # ---- order -------------------------------------------------------------------------------------------------

    def _levels(self) -> dict[str, int]:
        """Instance -> number of the pass it belongs to: what a clip stage or other pictures feed waits for the next.

        So given crops wait for the frames: how many there are must be known first.
        """
        levels: dict[str, int] = {}
        for name, prepared in self.prepared.items():
            instance = prepared.instance
            below = 0
            for source in instance.feeds.values():
                waits = not instance.is_clip_stage and (
                    self._instance(source).is_clip_stage or self._pictures_of(source) != self._pictures_of(name)
                )
                below = max(below, levels[source] + int(waits))
            levels[name] = below
        return levels

    def _instance(self, name: str) -> Instance:
        return self.prepared[name].instance

    def _pictures_of(self, name: str) -> str:
        """What is decoded for ``name``, which is no clip stage: its frames instance, or given crops."""
        instance = self._instance(name)
        if isinstance(instance.stage, SourceStage):
            return name
        feeds = [instance.source_of(declared) for declared in instance.stage.inputs]
        in_memory = [source for source, array in feeds if array not in {o.name for o in self._instance(source).kept}]
        per_row = [source for source, _ in feeds if not self._instance(source).is_clip_stage]
        below = (*in_memory, *per_row)
        return self._pictures_of(below[0]) if below else self._frames_of(name)

    # ---- one pass over the frames ------------------------------------------------------------------------------

    def _pass(self, names: Sequence[str]) -> None:
        """Compute rows stages and the frames' times together."""
        names = [name for name in names if not self._settled_by_feeds(name) and self._begin(name)]
        if not names:
            return
        helpers = [n for n in self._feeding_in_memory(names) if n not in names]
        order = [n for n in self.prepared if n in {*names, *helpers}]
        sources = [n for n in order if isinstance(self._instance(n).stage, SourceStage)]
        source = next(iter(sources), None)
        try:
            video = self._open_video(sources) if sources else None
            if source and video is None:
                for name in names:
                    self._finish(name, Outcome("empty", "no_video"))
                return
            with video or nullcontext():
                self._run_pass(order, set(names), video)
        except STOPS_THE_RUN:
            raise
        except Exception as error:  # noqa: BLE001 - decoding failed: nothing in this pass can be finished
            for name in names:
                self._fail(name, error, source)

    def _run_pass(self, order: Sequence[str], names: set[str], video: Pictures | None) -> None:
        known = self.outcomes.get(self._frames_of(order[-1]))
        num_frames = known.rows if known else None
        expected = num_frames if num_frames is not None else (video and video.declared_frames) or 0
        nodes = [self._node(name, order, name in names, expected) for name in order]
        frame_pass = FramePass(
            nodes,
            video,
            num_frames,
            self.engine,
            check=lambda: self._may_commit(names),
            progressed=self.progressed,
            committed=self._clear_attempts,
            reading=self._reading(),
            memory_bytes=self.settings.memory_gb * 1e9,
        )
        rows = frame_pass.run()
        for node in nodes:
            if node.name not in names:
                continue
            if node.error is not None:
                origin = next(n.name for n in nodes if n.error is node.error)
                self._fail(node.name, node.error, origin)
                continue
            if node.writer is not None:
                node.writer.finish(rows)
                if isinstance(video, GivenCrops):
                    video.note_unreadable(node.writer.valid())
            notes = video.notes if video and isinstance(node.stage, SourceStage) else None
            lengths = {output.name: rows for output in node.prepared.instance.kept}
            self._finish(node.name, replace(self._outcome_of_rows(node, rows), notes=notes, array_rows=lengths))

    def _outcome_of_rows(self, node: Node, rows: int) -> Outcome:
        if node.writer is None or node.writer.any_valid():
            return Outcome("done", rows=rows)
        return Outcome("empty", self._why_no_rows(node.prepared.instance), rows=rows)

    def _why_no_rows(self, instance: Instance) -> str:
        """The reason of an input that is empty, else the stage's own."""
        feeds = [self.outcomes.get(source) for source in self._recorded_feeds(instance.name)]
        inherited = next((feed.reason for feed in feeds if feed and feed.state == "empty"), None)
        if not inherited and not instance.is_clip_stage and self.clip.video is None:
            pictures = self._instance(self._pictures_of(instance.name)).stage
            inherited = None if isinstance(pictures, GivenCrop) else "no_video"
        return inherited or getattr(instance.stage, "empty_reason", None) or "no_rows"

    def _node(self, name: str, order: Sequence[str], wanted: bool, expected_rows: int) -> Node:
        prepared = self.prepared[name]
        instance = prepared.instance
        from_pass, from_store = {}, {}
        for declared in instance.stage.inputs:
            source, array = instance.source_of(declared)
            if source in order:
                from_pass[declared] = f"{source}.{array}"
            else:
                from_store[declared] = self._read(source, array)
        writer = None
        if wanted:
            chosen = instance.config.block_rows or self.settings.block_rows
            block_rows = chosen or default_block_rows(instance.kept)
            writer = self.store.writer(
                self.clip.id,
                name,
                instance.kept,
                fingerprint=self._begun[name].fingerprint,
                rows=expected_rows,
                block_rows=block_rows,
            )
        is_source = isinstance(instance.stage, SourceStage)  # another stage of this name may serve other clips
        stage = instance.stage if is_source else self.engine.ready(prepared)
        return Node(prepared, stage, from_pass, from_store, writer, instance.config.batch or stage.batch)

    def _feeding_in_memory(self, names: Sequence[str]) -> list[str]:
        """Instances that must be computed again (or decoded) because what they feed is not in the store."""
        needed: list[str] = []
        stack = list(names)
        while stack:
            instance = self._instance(stack.pop())
            for declared in instance.stage.inputs:
                source, array = instance.source_of(declared)
                kept = {output.name for output in self._instance(source).kept}
                if (array not in kept or source in self.todo & set(names)) and source not in needed:
                    needed.append(source)
                    stack.append(source)
        return needed

    def _frames_of(self, name: str) -> str:
        """The frames instance that ``name`` rests on."""
        return next(n for n in upstream(self.graph, [name]) if self._instance(n).stage.name == "frames")

    def _open_video(self, sources: Sequence[str]) -> Pictures | None:
        if len(sources) > 1:
            told = f"needs {' and '.join(sources)} at once; this clip brings its crops apart from its movie"
            raise ClipError("unsupported", told)
        (source,) = sources
        folder = list_crops(self.clip.crops) if self.clip.crops else None
        if folder is not None and isinstance(self._instance(source).stage, GivenCrop):
            return GivenCrops(folder, self.outcomes[self._frames_of(source)].rows)
        if self.clip.video is None:
            return Assumed(self.clip.fps, folder.num_frames) if folder and self.clip.fps else None
        path, reading = self.clip.video, self._reading()
        video = apart(
            lambda: media.open_video(
                path,
                start_s=self.clip.start_s,
                end_s=self.clip.end_s,
                repair_pts=self._instance(source).stage.config.repair_pts,
                watcher=reading,
            ),
            reading,
        )
        return Continued(video, folder.num_frames) if folder and video else video

    # ---- clip stages -------------------------------------------------------------------------------------------

    def _clip_stage(self, name: str) -> None:
        if self._settled_by_feeds(name) or not self._begin(name):
            return
        prepared = self.prepared[name]
        stage = self.engine.ready(prepared)
        try:
            inputs = self._clip_inputs(prepared)
            if inputs is None:
                self._finish(name, Outcome("empty", "no_audio"))
                return
            with self.engine.guarded(name, whole_clip=True):
                result = stage.compute(inputs)  # type: ignore[attr-defined]
                outcome = self._write_result(prepared, result, inputs)
            heard = any(self._instance(source).stage.name == "wave" for source in prepared.instance.feeds.values())
            of_the_sound = self._wave.notes if heard and self._wave else {}
            self._finish(name, replace(outcome, notes={**of_the_sound, **(outcome.notes or {})}))
        except STOPS_THE_RUN:
            raise
        except Exception as error:  # noqa: BLE001 - one clip's failure; the record holds its trace
            self._fail(name, error)

    def _clip_inputs(self, prepared: Prepared) -> dict[str, Any] | None:
        """The declared inputs on the stage's device; None where the clip has no sound and the stage needs it."""
        instance = prepared.instance
        device = self.engine.device_of(instance.stage)
        inputs: dict[str, Any] = {}
        for declared in instance.stage.inputs:
            source, array = instance.source_of(declared)
            if self._instance(source).stage.name == "wave":
                wave = self._read_wave()
                if wave is None:
                    return None
                held = wave.sound.in_memory
                inputs[declared] = (
                    torch.from_numpy(wave.samples).to(device) if held else SamplesOnDisk(wave.sound, device)
                )
                inputs[f"{declared.partition('.')[0]}.start_s"] = wave.start_s
                continue
            values = self._read(source, array).values
            is_text = values.dtype.kind in "OTU"
            inputs[declared] = values.tolist() if is_text else torch.from_numpy(values).to(device)
        for part in instance.stage.parts:
            if part == "labels":
                au, expr = self.clip.labels.au, self.clip.labels.expr
                read = annotations.read_au(au) if au else None
                inputs["labels.au"] = torch.from_numpy(read.au) if read else None
                inputs["labels.left_out"] = read.left_out if read else ()
                inputs["labels.expr"] = torch.from_numpy(annotations.read_expr(expr)) if expr else None
            elif part == "transcript":
                given = self.clip.transcript
                inputs[part] = transcripts.read_transcript(given) if given else None
            elif part == "choice.face":
                inputs[part] = self.clip.face
        return inputs

    def _write_result(self, prepared: Prepared, result: ClipResult, inputs: Mapping[str, Any]) -> Outcome:
        stage, name = prepared.instance.stage, prepared.instance.name
        if result.empty and not result.arrays:
            return Outcome("empty", result.empty, notes=result.notes)
        arrays = as_declared(stage, result.arrays, None)
        if set(arrays) != {output.name for output in stage.outputs}:
            raise ClipError("broken_promise", f"gave {sorted(arrays)}, declares more")
        for output in stage.outputs:
            self._check_rows(name, output.clock, output.name, len(arrays[output.name]), inputs)
        stored = {}
        for output in prepared.instance.kept:
            values = arrays[output.name]
            is_text = output.dtype == "str"
            stored[output] = np.asarray(values, dtype=object) if is_text else stored_form(values, output, name)
        self._may_commit([name])
        self.store.write_whole(self.clip.id, name, stored, fingerprint=self._begun[name].fingerprint)
        rows = len(next(iter(stored.values())))
        valid = next((values for output, values in stored.items() if output.name == "valid"), None)
        reason = result.empty
        if reason is None and valid is not None and not valid.any():
            reason = self._why_no_rows(prepared.instance)
        lengths = {output.name: len(values) for output, values in stored.items()}
        return Outcome("empty" if reason else "done", reason, rows=rows, notes=result.notes, array_rows=lengths)

    def _check_rows(self, name: str, clock: object, array: str, rows: int, inputs: Mapping[str, Any]) -> None:
        if isinstance(clock, FrameClock):
            expected = self.outcomes[self._frames_of(name)].rows
            if rows != expected:
                raise ClipError("broken_promise", f"{array}: {rows} rows, expected {expected}, one per frame")
        samples = inputs.get("wave.samples")
        if isinstance(clock, Regular) and samples is not None:
            duration_s = Fraction(len(samples), AUDIO_HZ)
            expected = clock.num_steps(duration_s)
            if rows != expected:
                told = f"{rows} steps, expected {expected} for {float(duration_s):.2f} s at hop {clock.hop_s}"
                raise ClipError("broken_promise", f"{array}: {told}; was the audio cut?")

    def _read_wave(self) -> Audio | None:
        if self._wave is None:
            path = self.clip.audio or self.clip.video
            if path is None:
                return None
            reading = self._reading()
            self._wave = apart(
                lambda: media.read_audio(
                    path, hz=AUDIO_HZ, start_s=self.clip.start_s, end_s=self.clip.end_s, watcher=reading
                ),
                reading,
            )
        return self._wave

    def _reading(self) -> Reading:
        """Watches the reading of the clip's recording, which must be the one that was hashed whenever it is opened."""
        parts = [part for part in ("media", "audio") if part_files(self.clip, part)]
        return Reading(self.settings.stall_s, lambda: self.sources.check_unchanged(self.clip, parts))

    def _may_commit(self, names: Collection[str]) -> None:
        """Raise if the clip is another run's by now, or if a source is not what was hashed: then no row is stored."""
        self.lease.check()
        parts = {part for name in names for part in parts_of(self.graph, name, self.clip)}
        self.sources.check_unchanged(self.clip, sorted(parts))

    def _read(self, source: str, array: str) -> Rows:
        return self.store.read(self.clip.id, source, array)

    # ---- records -----------------------------------------------------------------------------------------------

    def _settled_by_feeds(self, name: str) -> bool:
        """Record ``failed`` or ``empty`` where an input failed, or is empty without arrays."""
        for source in self._recorded_feeds(name):
            known = self.outcomes.get(source)
            if known and known.state == "failed":
                origin = "" if (known.message or "").startswith("from ") else f"from {source}: "
                self._settle(name, replace(known, message=f"{origin}{known.message}", rows=0, notes=None))
                return True
            if known and known.state == "empty" and known.rows == 0:
                self._settle(name, Outcome("empty", known.reason))
                return True
        return False

    def _recorded_feeds(self, name: str) -> list[str]:
        """What feeds ``name`` and has a record; for what only flows through memory, what feeds that."""
        found: list[str] = []
        for source in self._instance(name).feeds.values():
            found += [source] if self._instance(source).kept else self._recorded_feeds(source)
        return list(dict.fromkeys(found))

    def _settle(self, name: str, outcome: Outcome) -> None:
        """Record an outcome that comes from the inputs. Blocks of an earlier run stay when an input failed."""
        if self._instance(name).kept:
            try:
                self._begun[name] = self._fresh_record(name)
            except ClipError as error:
                self._begun[name] = self._bare_record(name)
                if outcome.state == "empty":  # a result, but of what? Without its source it has no fingerprint
                    outcome = Outcome("failed", error.reason, str(error))
            if outcome.state == "failed" and self._keeps_what_it_has(name, outcome):
                return
            if outcome.state != "failed":
                self.lease.check()
                self.store.write_record(self.clip.id, name, self._begun[name])
                self.store.keep_only(self.clip.id, name, self._begun[name].fingerprint)
        self._write(name, outcome)

    def _begin(self, name: str) -> bool:
        """Write the attempt into the record before the work; False (and ``failed``) if it cannot begin."""
        if not self._instance(name).kept:
            return True
        try:
            record = self._fresh_record(name)
        except ClipError as error:
            self._begun[name] = self._bare_record(name)
            if not self._keeps_what_it_has(name, Outcome("failed", error.reason, str(error))):
                self._fail(name, error)
            return False
        old = self.tasks[name].record
        same = old is not None and old.fingerprint == record.fingerprint
        attempts = old.attempts if old is not None and same and self.attempts_count else 0
        if attempts >= MAX_ATTEMPTS:
            self._begun[name] = replace(record, attempts=attempts)
            told = (
                f"the process died {attempts} times while working on this, the last time by: {self.before.died}; "
                "`--retry` tries again"
            )
            self._fail(name, ClipError("crashed", told))
            return False
        self._begun[name] = replace(record, attempts=attempts + 1)
        self.lease.check()
        self.store.write_record(self.clip.id, name, self._begun[name])
        self.store.keep_only(self.clip.id, name, record.fingerprint)
        return True

    def _give_up(self, name: str) -> None:
        """Record an instance at which the clip's process hung."""
        self.todo.discard(name)
        error = ClipError("stalled", self.before.given_up[name])
        try:
            self._begun[name] = self._fresh_record(name)
        except ClipError:
            self._begun[name] = self._bare_record(name)
        if not self._keeps_what_it_has(name, Outcome("failed", error.reason, str(error))):
            self._fail(name, error)

    def _keeps_what_it_has(self, name: str, outcome: Outcome) -> bool:
        """Report a failure without recording it, where the store holds a finished instance: nothing of it is lost
        because a drive is not mounted today."""
        old = self.tasks[name].record
        if old is None or not old.finished:
            return False
        self.outcomes[name] = self.worked[name] = outcome
        return True

    def _fresh_record(self, name: str) -> Record:
        parts = parts_of(self.graph, name, self.clip)
        # A clip stage on stored arrays (faces, labels) needs no media: a recorded hash stands for a file that is gone.
        instance = self._instance(name)
        from_store = instance.is_clip_stage and all(self._instance(n).kept for n in instance.feeds.values())
        source = self.sources.source(self.clip, parts, believe_gone=from_store)
        prepared = self.prepared[name]
        return replace(
            self._bare_record(name),
            source=source,
            fingerprint=fingerprint(prepared.recipe_sha256, source),
            provenance={**self._bare_record(name).provenance, "files": self.sources.files(self.clip, parts)},
        )

    def _bare_record(self, name: str) -> Record:
        prepared = self.prepared[name]
        weights = {n: self.prepared[n].weights for n in upstream(self.graph, [name])}
        named = {n: w for n, w in weights.items() if w}
        provenance = {
            **self.provenance,
            "device": str(self.engine.device_of(prepared.instance.stage)),
            "weights": {n: {"spec": w.spec, "sha256": w.sha256} for n, w in named.items()},
            "untrained": any(w.untrained for w in named.values()),
        }
        provided = {"crop": self.clip.crops and "crops", "transcribe": self.clip.transcript and "transcript"}
        if part := provided.get(prepared.instance.stage.name):
            provenance["provided"] = part
        return Record("partial", prepared.recipe, {}, "", provenance=provenance)

    def _clear_attempts(self) -> None:
        self.lease.check()
        for name, record in self._begun.items():
            if record.attempts and record.state == "partial":
                self._begun[name] = replace(record, attempts=0)
                self.store.write_record(self.clip.id, name, self._begun[name])

    def _finish(self, name: str, outcome: Outcome) -> None:
        """Write the final record, after the source was seen to be the one that was hashed."""
        try:
            if self._instance(name).kept:
                self.sources.check_unchanged(self.clip, parts_of(self.graph, name, self.clip))
        except ClipError as error:
            self._fail(name, error)
        else:
            self._write(name, outcome)

    def _fail(self, name: str, error: Exception, origin: str | None = None) -> None:
        if isinstance(error, ClipError):
            reason, message = error.reason, str(error)
        else:
            reason = "unexpected"
            message = "".join(traceback.format_exception(error)).strip()
        if origin and origin != name:
            message = f"from {origin}: {message}"
        self._write(name, Outcome("failed", reason, message))

    def _write(self, name: str, outcome: Outcome) -> None:
        self.outcomes[name] = outcome
        if not self._instance(name).kept:
            return
        self.worked[name] = outcome
        record = replace(
            self._begun[name],
            state=outcome.state,
            reason=outcome.reason,
            message=outcome.message,
            rows=outcome.rows,
            notes=dict(outcome.notes or {}),
            provenance={**self._begun[name].provenance, "rows": dict(outcome.array_rows or {})},
            attempts=self._begun[name].attempts if outcome.reason == "crashed" else 0,
        )
        self._begun[name] = record
        self.lease.check()
        self.store.write_record(self.clip.id, name, record)


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
        return ClipReport(busy=f"{clip.id}: another run made {stale[0]} with other settings meanwhile")
    work = ClipWork(run, clip, tasks, lease, before, retry=retry)
    try:
        with crashes.recorded(run.store.files, clip.id):
            work.go()
    except LeaseLostError as error:
        return ClipReport(work.outcomes, work.worked, busy=str(error))
    except CorruptError as error:
        return ClipReport(work.outcomes, work.worked, damaged=str(error))
    return ClipReport(work.outcomes, work.worked)
