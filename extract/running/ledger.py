"""The ledger of one clip: how each of its instances stands, and the records that say so in the store."""

import traceback
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from extract.errors import ClipError
from extract.graph import upstream
from extract.inputs.manifest import Clip
from extract.inputs.parts import part_files
from extract.records import Record
from extract.running.fingerprints import fingerprint, parts_of
from extract.running.handover import Before, Outcome, Permit, Working
from extract.running.order import Order
from extract.running.planning import MAX_ATTEMPTS, Task

HOW = ("device", "levers", "versions")
"""Parts of the provenance that say how values were computed: a copy has those of the original."""


class Ledger:
    """Outcomes and records of one clip, written under its lease."""

    def __init__(
        self,
        run: Working,
        clip: Clip,
        order: Order,
        tasks: Mapping[str, Task],
        lease: Permit,
        before: Before,
        *,
        retry: bool,
    ) -> None:
        self._clip, self._order, self._tasks, self._lease, self._before = clip, order, tasks, lease, before
        self._plan, self._own = run.plan, run.plan.of(clip)
        self._store, self._engine, self._sources, self._provenance = run.store, run.engine, run.sources, run.provenance
        # Attempts of earlier runs count only if the clip may have killed one of them: a preemption is no crash.
        self._attempts_count = before.died is not None and not retry
        self.todo = {n for n, t in tasks.items() if t.need in {"missing", "partial", "failed", "stale", "replaced"}}
        self.outcomes: dict[str, Outcome] = {}
        """The outcome of every instance that is finished or was worked on."""
        self.worked: dict[str, Outcome] = {}
        """Outcomes of this run, to be reported."""
        self._begun: dict[str, Record] = {}
        for name, task in tasks.items():
            if task.need in {"finished", "crashed"} and task.record:
                known = task.record
                self.outcomes[name] = Outcome(
                    known.state, known.reason, known.message, known.cause, known.rows, known.notes
                )

    def hash_sources(self) -> None:
        """Read what fingerprints need before it is asked for: gigabytes, in a lane where nobody else waits for them."""
        for name in sorted(self.todo):
            with suppress(ClipError):  # said when the instance begins
                self._sources.source(self._clip, parts_of(self._own.graph, name, self._clip))

    def fingerprint(self, name: str) -> str:
        """The fingerprint under which a begun instance's arrays are made."""
        return self._begun[name].fingerprint

    def may_commit(self, names: Collection[str]) -> None:
        """Raise if another run has taken the clip, or if a source is not what was hashed: then no row is stored."""
        self._lease.check()
        parts = {part for name in names for part in parts_of(self._own.graph, name, self._clip)}
        self._sources.check_unchanged(self._clip, sorted(parts))

    def settled_by_feeds(self, name: str) -> bool:
        """Record ``failed`` or ``empty`` where an input failed, or is empty without arrays."""
        for source in self._order.recorded_feeds(name):
            known = self.outcomes.get(source)
            if known and known.state == "failed":
                self._settle(name, replace(known, cause=known.cause or source, rows=0, notes=None, array_rows=None))
                return True
            if known and known.state == "empty" and known.rows == 0:
                self._settle(name, Outcome("empty", known.reason))
                return True
        return False

    def why_no_rows(self, name: str) -> str:
        """Reason of an instance that has no row with values: that of an empty input, else the stage's own."""
        instance = self._order.instance(name)
        feeds = [self.outcomes.get(source) for source in self._order.recorded_feeds(name)]
        inherited = next((feed.reason for feed in feeds if feed and feed.state == "empty"), None)
        if not inherited and not instance.is_clip_stage and self._clip.video is None:
            pictures = self._order.instance(self._order.pictures_of(name)).stage
            inherited = "no_video" if pictures.clock else None
        return inherited or getattr(instance.stage, "empty_reason", None) or "no_rows"

    def _settle(self, name: str, outcome: Outcome) -> None:
        """Record an outcome that follows from the inputs. If an input failed, blocks of an earlier run are kept."""
        if self._order.instance(name).kept:
            try:
                self._begun[name] = self._fresh_record(name)
            except ClipError as error:
                self._begun[name] = self._bare_record(name)
                if outcome.state == "empty":  # a result, but of what? Without its source it has no fingerprint
                    outcome = Outcome("failed", error.reason, str(error))
            if outcome.state == "failed" and self._keeps_what_it_has(name, outcome):
                return
            if outcome.state != "failed":
                self._lease.check()
                self._store.write_record(self._clip.id, name, self._begun[name])
                self._store.keep_only(self._clip.id, name, self._begun[name].fingerprint)
        self._write(name, outcome)

    def begin(self, name: str) -> bool:
        """Record the attempt before the work; False (and ``failed``) if the work cannot begin."""
        if not self._order.instance(name).kept:
            return True
        try:
            record = self._fresh_record(name)
        except ClipError as error:
            self._begun[name] = self._bare_record(name)
            if not self._keeps_what_it_has(name, Outcome("failed", error.reason, str(error))):
                self.fail(name, error)
            return False
        old = self._tasks[name].record
        same = old is not None and old.fingerprint == record.fingerprint
        attempts = old.attempts if old is not None and same and self._attempts_count else 0
        if attempts >= MAX_ATTEMPTS:
            self._begun[name] = replace(record, attempts=attempts)
            message = (
                f"the process died {attempts} times while working on this, the last time by: {self._before.died}; "
                "`--retry` tries again"
            )
            self.fail(name, ClipError("crashed", message))
            return False
        self._begun[name] = replace(record, attempts=attempts + 1)
        self._lease.check()
        self._store.write_record(self._clip.id, name, self._begun[name])
        self._store.keep_only(self._clip.id, name, record.fingerprint)
        return True

    def give_up_hung(self) -> None:
        """Record the instances at which the clip's process hung; they are not tried again."""
        for name in [name for name in self._own.prepared if name in self._before.given_up]:
            self.todo.discard(name)
            error = ClipError("stalled", self._before.given_up[name])
            try:
                self._begun[name] = self._fresh_record(name)
            except ClipError:
                self._begun[name] = self._bare_record(name)
            if not self._keeps_what_it_has(name, Outcome("failed", error.reason, str(error))):
                self.fail(name, error)

    def _keeps_what_it_has(self, name: str, outcome: Outcome) -> bool:
        """Report a failure without recording it if the store holds a finished instance: an unmounted drive must not
        cost finished work."""
        old = self._tasks[name].record
        if old is None or not old.finished:
            return False
        self.outcomes[name] = self.worked[name] = outcome
        return True

    def _fresh_record(self, name: str) -> Record:
        parts = parts_of(self._own.graph, name, self._clip)
        # A clip stage on stored arrays (faces, labels) needs no media: a recorded hash stands for a file that is gone.
        instance = self._order.instance(name)
        from_store = instance.is_clip_stage and all(self._order.instance(n).kept for n in instance.feeds.values())
        source = self._sources.source(self._clip, parts, believe_gone=from_store)
        prepared = self._own.prepared[name]
        bare = self._bare_record(name)
        return replace(
            bare,
            source=source,
            fingerprint=fingerprint(prepared.recipe_sha256, source),
            provenance={
                **bare.provenance,
                "weights": self._named_weights(name, source),
                "files": self._sources.files(self._clip, parts),
            },
        )

    def _named_weights(self, name: str, source: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """The weights of an instance and its inputs, and for adapted ones whether they were trained on this source."""
        weights = {n: self._own.prepared[n].weights for n in upstream(self._own.graph, [name])}
        named: dict[str, dict[str, Any]] = {}
        for instance, used in weights.items():
            if used is not None:
                named[instance] = {"spec": used.spec, "sha256": used.sha256}
                saw = sorted(part for part, seen in used.adapted_on.items() if source.get(part) in seen)
                if saw:
                    named[instance]["saw"] = saw
        return named

    def _bare_record(self, name: str) -> Record:
        prepared = self._own.prepared[name]
        weights = [self._own.prepared[n].weights for n in upstream(self._own.graph, [name])]
        provenance = {
            **self._provenance,
            "device": str(self._engine.device_of(prepared.instance.stage)),
            "levers": self._engine.levers_of(prepared.instance),
            "weights": self._named_weights(name, {}),
            "untrained": any(used.untrained for used in weights if used is not None),
        }
        part = self._plan.graph[name].stage.provided_by  # of the config's stage: what stands in for it provides nothing
        if part is not None and part_files(self._clip, part):
            provenance["provided"] = part
        return Record("partial", prepared.recipe, {}, "", provenance=provenance)

    def clear_attempts(self) -> None:
        self._lease.check()
        for name, record in self._begun.items():
            if record.attempts and record.state == "partial":
                cleared = replace(record, attempts=0)
                self._store.write_record(self._clip.id, name, cleared)
                self._begun[name] = cleared  # not before: a signal in between would leave the store's as it was

    def finish(self, name: str, outcome: Outcome) -> None:
        """Write the final record, after checking that the source is still the one that was hashed."""
        try:
            if self._order.instance(name).kept:
                self._sources.check_unchanged(self._clip, parts_of(self._own.graph, name, self._clip))
        except ClipError as error:
            self.fail(name, error)
        else:
            self._write(name, outcome)

    def note_copied(self, name: str, clip: str, original: Record) -> None:
        """Say in the record of a begun instance whose values it holds, and how those were computed."""
        begun = self._begun[name]
        how = {part: original.provenance[part] for part in HOW if part in original.provenance}
        self._begun[name] = replace(begun, provenance={**begun.provenance, **how, "copied_from": clip})

    def fail(self, name: str, error: Exception, cause: str | None = None) -> None:
        if isinstance(error, ClipError):
            reason, message = error.reason, str(error)
        else:
            reason = "unexpected"
            message = "".join(traceback.format_exception(error)).strip()
        self._write(name, Outcome("failed", reason, message, cause))

    def _write(self, name: str, outcome: Outcome) -> None:
        self.outcomes[name] = outcome
        if not self._order.instance(name).kept:
            return
        self.worked[name] = outcome
        record = replace(
            self._begun[name],
            state=outcome.state,
            reason=outcome.reason,
            message=outcome.message,
            cause=outcome.cause,
            rows=outcome.rows,
            notes=dict(outcome.notes or {}),
            provenance={**self._begun[name].provenance, "rows": dict(outcome.array_rows or {})},
            attempts=self._begun[name].attempts if outcome.reason == "crashed" else 0,
        )
        self._begun[name] = record
        self._lease.check()
        self._store.write_record(self._clip.id, name, record)
