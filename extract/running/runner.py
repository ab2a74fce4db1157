"""A run: what is missing is planned, checked, computed clip by clip, and reported."""

import logging
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, cast

from extract.config import ExtractConfig, Remembered, load_extract_config
from extract.devices import pick_device
from extract.errors import CorruptError
from extract.graph import upstream
from extract.inputs.manifest import Clip
from extract.records import Record
from extract.running import crashes, lease
from extract.running.clipwork import work_on
from extract.running.device import LocalEngine
from extract.running.fingerprints import Sources
from extract.running.handover import Before, ClipReport, Outcome, Working
from extract.running.isolation import IsolatedWorker, Job
from extract.running.planning import Plan, make_plan, refuse_stale, stale_downstream
from extract.running.selection import Options, choose, listed, with_lock
from extract.store import Store
from extract.weights.lock import flags_for, lock_file

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

WARNINGS = {
    "truncated_at_s": "the file is cut off; what decodes ends at {} s",
    "declared_frames": "the header declares {} frames, {rows} decode",
    "video_streams": "{0[count]} video streams; number {0[taken]} is taken",
    "audio_streams": "{0[count]} audio streams; number {0[taken]} is taken",
    "corrupt_frames": "frames decoded with errors: {0[count]}, the first at {0[first_s]} s",
    "undecodable_packets": "packets that do not decode: {0[count]} ({0[error]})",
    "frames_beyond_movie": "crops are numbered beyond the movie's last frame: {} times are continued",
    "unreadable_crops": "damaged crops, taken for absent: {0[count]}, the first {0[first]}",
    "repaired_pts": "presentation times repaired: {0[absent]} absent, {0[not_increasing]} not increasing",
    "start_assumed": "no presentation time on the sound; it is taken to begin at 0 s",
    "audio_gaps": "gaps in the sound, filled with silence ([start_s, duration_s]): {}",
    "audio_overlap_s": "{} s of overlapping sound left out",
    "clipped_samples": "samples beyond full scale, clipped: {}",
    "au_rows": "{} rows of AU labels for {rows} frames, within label_slack",
    "left_out_aus": "columns of the label file that are none of the twelve AUs are left out: {}",
    "expr_rows": "{} rows of expression labels for {rows} frames, within label_slack",
}
"""Notes of a record that a run tells of; the others are facts that need no eye."""


@dataclass(frozen=True)
class Failure:
    """One instance of one clip that could not be computed."""

    clip: str
    instance: str
    reason: str
    message: str
    cause: str | None = None
    """The instance whose failure this one follows from; None where it failed by itself."""


@dataclass(frozen=True)
class Notice:
    """Something that a user should know of a run, and which clip and instance it concerns."""

    message: str
    clip: str | None = None
    """None: it concerns the run."""
    instance: str | None = None

    def __str__(self) -> str:
        where = ", ".join([*([f"clip {self.clip}"] if self.clip else []), *([self.instance] if self.instance else [])])
        return f"{where}: {self.message}" if where else self.message


@dataclass
class Report:
    """What a run did."""

    run: str
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    """Instance -> how many clips of the run are ``done``, ``empty``, ``failed`` in the store now."""
    computed: int = 0
    """Instances of clips that this run finished: ``done`` or ``empty``."""
    failures: list[Failure] = field(default_factory=list)
    busy: list[Notice] = field(default_factory=list)
    """Clips that another run was working on, with which."""
    damaged: list[Notice] = field(default_factory=list)
    """Clips whose stored bytes fail their checksum; the messages name array and block."""
    warnings: list[Notice] = field(default_factory=list)
    untrained: list[str] = field(default_factory=list)
    """Instances with random weights."""
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """0 all done, 1 some clips failed or are another run's, 4 stored bytes are damaged."""
        if self.damaged:
            return CorruptError.exit_code
        return 1 if self.failures or self.busy else 0

    def count(self, instance: str, outcome: Outcome | None, clip: str) -> None:
        """Add how one instance of one clip stands."""
        counts = self.counts.setdefault(instance, Counter())
        if outcome is None:
            return
        counts[outcome.state] += 1
        if outcome.state == "failed":
            self.failures.append(Failure(clip, instance, outcome.reason or "", outcome.message or "", outcome.cause))


class Progress:
    """Receives how far the run is; the command line shows it. This one shows nothing."""

    def start(self, clips: int) -> None:
        """The work begins: so many clips have something to do."""

    def rows(self, count: int) -> None:
        """So many frames were gone through."""

    def clip(self, clip: str, failed: int) -> None:
        """A clip is through; ``failed`` clips of the run so far."""


def run(
    manifest: str | Path | Sequence[Clip] = "data_manifest.yaml",
    store: str | Path = "store.zarr",
    config: str | ExtractConfig | None = None,
    *,
    set: Sequence[str] = (),
    options: Options | None = None,
    progress: Progress | None = None,
) -> Report:
    """Compute what the store lacks of the manifest's clips; the same as ``extract run``.

    Args:
        manifest: its file, or the clips themselves.

    Raises:
        UsageError: config, manifest or flags are wrong, or the store is stale (nothing was changed).
        WeightsError: weights are missing (before any work).
        MachineError: disk, store or GPU gave up; what was finished stays.
    """
    options = with_lock(options or Options(), config, store)
    loaded = config if isinstance(config, ExtractConfig) else load_extract_config(config, set)
    clips = choose(listed(manifest, options), options)
    device = pick_device(options.device)
    made, opened, sources = make_plan(loaded, clips, store, options, device.type)
    remembered = None
    if options.remember:
        remembered = Remembered.of_model(config) if isinstance(config, ExtractConfig) else Remembered.of(config, set)
    report = execute(made, opened, sources, store, loaded, device, options, progress, remembered)
    # Here and not in ``execute``: who predicts compares the weights with those of the fitted run.
    unpinned = sorted({p.weights.spec for p in made.prepared.values() if p.weights and not p.weights.pinned})
    if unpinned:
        lock = cast(Path, options.lock)
        remedy = f"`extract weights fetch {' '.join(unpinned)}{flags_for(lock)}` pins them in {lock}"
        report.warnings.insert(0, Notice(f"weights that nobody has pinned: {', '.join(unpinned)}; {remedy}"))
    return report


def execute(
    made: Plan,
    opened: Store | None,
    sources: Sources,
    store: str | Path,
    config: ExtractConfig,
    device: "torch.device",
    options: Options,
    progress: Progress | None = None,
    remembered: Remembered | None = None,
) -> Report:
    """Do what ``make_plan`` planned; the second half of ``run``, with its errors."""
    report = Report(run=f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}")
    if opened and made.stale():
        if not options.overwrite:
            refuse_stale(made, opened)
        also = stale_downstream(made, opened)
        if also:
            report.warnings.append(Notice(f"stale from now on, computed only when asked for: {', '.join(also)}"))
    report.untrained = sorted(n for n, p in made.prepared.items() if p.weights and p.weights.untrained)
    engine = LocalEngine(device, config.run.cpu_threads)
    writable = Store.open(store, "a")
    if remembered is not None:
        writable.remember(remembered)
    _Run(made, writable, engine, sources, config, options, report, progress or Progress()).go()
    return report


def as_made(store: str | Path, config: str | None, overrides: Sequence[str]) -> tuple[ExtractConfig, Path]:
    """The config to look at a store with, as asked for or else as it was made, and the ``weights.lock`` of both.

    Raises:
        StoreError: there is no store.
        ConfigError: as of ``load_extract_config``.
    """
    remembered = None if config else Store.open(store).config()
    lock = lock_file(config or (remembered.name if remembered else None), store)
    return load_extract_config(config, overrides, remembered), lock


def plan(
    manifest: str | Path = "data_manifest.yaml",
    store: str | Path = "store.zarr",
    config: str | ExtractConfig | None = None,
    *,
    set: Sequence[str] = (),
    options: Options | None = None,
) -> tuple[Plan, Store | None]:
    """What ``run`` would do, and the store if there is one; nothing is written."""
    options = with_lock(options or Options(), config, store)
    loaded = config if isinstance(config, ExtractConfig) else load_extract_config(config, set)
    clips = choose(listed(manifest, options), options)
    made, opened, _ = make_plan(loaded, clips, store, options, pick_device(options.device).type)
    return made, opened


class _Run:
    """The clips of a plan, one after the other."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        engine: LocalEngine,
        sources: Sources,
        config: ExtractConfig,
        options: Options,
        report: Report,
        progress: Progress,
    ) -> None:
        self.plan, self.store, self.engine = plan, store, engine
        self.settings, self.options, self.report, self.progress = config.run, options, report, progress
        self.computing = _computing(plan)
        provenance = {"run": report.run, "time": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", "versions": versions()}
        self.working = Working(
            plan, store, engine, sources, provenance, progress.rows, config.run, overwrite=options.overwrite
        )
        self.isolated = IsolatedWorker(
            Job(
                config,
                options.stages,
                plan.clips,
                str(store.path),
                str(engine.device),
                options.offline,
                options.lock,
                options.overwrite,
                provenance,
                self.computing,
            ),
            store,
        )

    def go(self) -> None:
        started = time.monotonic()
        waiting = {clip for clip, _ in (*self.plan.todo(), *self.plan.stale())}
        with closing(self.isolated):
            self._set_up(any_work=bool(waiting))
            for clip in self.plan.clips:
                try:
                    refresh_attributes(self.store, clip)
                except CorruptError as error:  # one clip's folder is not as it should be; the others continue
                    self.plan.damaged.setdefault(clip.id, str(error))
            waiting -= self.plan.damaged.keys()
            self.progress.start(len(waiting))
            for clip in self.plan.clips:
                if clip.id in waiting:
                    try:
                        done = self._clip(clip)
                    except CorruptError as error:
                        done = ClipReport(_standing(self.plan, clip.id), damaged=str(error))
                else:
                    done = ClipReport(_standing(self.plan, clip.id), damaged=self.plan.damaged.get(clip.id))
                self._count(clip, done)
                if clip.id in waiting:
                    self.progress.clip(clip.id, len({failure.clip for failure in self.report.failures}))
        self.report.seconds = time.monotonic() - started

    def _set_up(self, *, any_work: bool) -> None:
        """Load the models, wherever they will compute: wrong weights show here, before any work."""
        if self.settings.isolate != "always":
            for name in self.computing:
                self.engine.ready(self.plan.prepared[name])
        elif any_work:
            self.isolated.start()

    def _clip(self, clip: Clip) -> ClipReport:
        with lease.held(self.store.files, clip.id, self.report.run) as held:
            if isinstance(held, lease.Holder):
                return ClipReport(_standing(self.plan, clip.id), busy=str(held))
            for instance in self.store.files.folders(clip.id):  # beside them, others may be asking for the lease
                self.store.files.sweep(f"{clip.id}/{instance}")
            before = Before(crashes.left_by_the_dead(self.store.files, clip.id))
            if self._apart(clip, before):
                return self.isolated.work(clip, held, before, self.progress.rows, retry=self.options.retry)
            return work_on(self.working, clip, held, before, retry=self.options.retry)

    def _apart(self, clip: Clip, before: Before) -> bool:
        """Whether the clip gets a process of its own: a process died at it, the last time or twice in earlier runs."""
        if self.settings.isolate != "auto":
            return self.settings.isolate == "always"
        records = [task.record for task in self.plan.tasks[clip.id].values()]
        return before.died is not None or any(record and record.reason == "crashed" for record in records)

    def _count(self, clip: Clip, done: ClipReport) -> None:
        self.report.busy += [Notice(done.busy, clip.id)] if done.busy else []
        self.report.damaged += [Notice(done.damaged, clip.id)] if done.damaged else []
        self.report.computed += sum(outcome.state != "failed" for outcome in done.worked.values())
        self.report.warnings += _warnings(clip.id, done.worked)
        for name, prepared in self.plan.prepared.items():
            if prepared.instance.kept:
                self.report.count(name, done.outcomes.get(name), clip.id)


def refresh_attributes(store: Store, clip: Clip) -> None:
    """Write what the manifest says of a clip besides its sources; nothing of it is in a fingerprint."""
    known = {"subject": clip.subject, "source_video": clip.source_video, "split": clip.split}
    store.set_attributes(clip.id, known)


def _computing(plan: Plan) -> list[str]:
    """Instances that compute something in this run, and those that feed them in memory, feeding ones first."""
    names = {task.name for _, task in [*plan.todo(), *plan.stale()]}
    feeding = {n for n in upstream(plan.graph, names) if any(not o.kept for o in plan.graph[n].stage.outputs)}
    return [name for name in plan.prepared if name in names | feeding]


def _standing(plan: Plan, clip: str) -> dict[str, Outcome]:
    return {
        name: _as_recorded(task.record)
        for name, task in plan.tasks[clip].items()
        if task.record and task.need in {"finished", "crashed"}
    }


def _as_recorded(record: Record) -> Outcome:
    return Outcome(record.state, record.reason, record.message, record.cause, record.rows)


def _warnings(clip: str, outcomes: Mapping[str, Outcome]) -> list[Notice]:
    return [
        Notice(WARNINGS[note].format(value, rows=outcome.rows), clip, name)
        for name, outcome in outcomes.items()
        for note, value in (outcome.notes or {}).items()
        if note in WARNINGS
    ]


def versions() -> dict[str, str]:
    """Versions of what the values may depend on, for the record."""
    names = ("au-fusion", "torch", "av", "dlib-bin", "numpy", "pillow", "soxr", "timm", "transformers", "zarr")
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found
