"""A run: what is missing is planned, checked, computed clip by clip, and reported."""

import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from extract.config import ExtractConfig, Remembered, load_extract_config
from extract.devices import pick_device
from extract.errors import CorruptError
from extract.graph import upstream
from extract.inputs.manifest import Clip
from extract.records import Record
from extract.running import crashes, lease
from extract.running.budget import Budget
from extract.running.clipwork import work_on
from extract.running.compiling import compile_wanted
from extract.running.device import LocalEngine, cores
from extract.running.fingerprints import Sources
from extract.running.handover import Before, ClipReport, Outcome, Working
from extract.running.isolation import END_S, PROGRESS, Isolation, Job
from extract.running.lanes import make_lanes, one_thread
from extract.running.lease import LeaseLostError
from extract.running.planning import Plan, make_plan, refuse_stale, stale_downstream
from extract.running.report import WARNINGS, Notice, Progress, Report, Speed
from extract.running.selection import Options, choose, listed, with_lock
from extract.running.tasks import Loop, all_of
from extract.running.twins import Twins
from extract.store import Store
from extract.weights.lock import flags_for, lock_file

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

USUAL_FPS = 30
BYTES_PER_FRAME = 8_000
"""Of a movie, about: 2 Mbit/s at 30 frames a second."""


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
    compiled = compile_wanted(config.run.compile, device.type, lambda: _frames_to_do(made), _compiled_before(made))
    engine = LocalEngine(device, compiled=compiled, block_rows=config.run.block_rows, offline=options.offline)
    writable = Store.open(store, "a")
    if remembered is not None:
        writable.remember(remembered)
    with crashes.traced(writable.files) as trace:
        _Run(made, writable, engine, sources, config, options, report, progress or Progress(), trace).go()
    crashes.sweep(writable.files)
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
    """The clips of a plan, several in flight."""

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
        trace: str,
    ) -> None:
        self.plan, self.store, self.engine = plan, store, engine
        self.settings, self.options, self.report, self.progress = config.run, options, report, progress
        self.computing = _computing(plan)
        serial = config.run.engine == "serial"
        self.lanes = make_lanes(config.run.engine, config.run.cpu_threads or cores(), config.run.clips)
        self.loop = Loop(self.lanes)
        self.places = Budget(self.loop, 1 if serial else config.run.clips)
        """One for each clip in flight; all of them for a clip that is worked on alone."""
        self.loop.scope.on_close.append(self.places.wake)
        provenance = {"run": report.run, "time": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", "versions": versions()}
        self.working = Working(
            plan,
            store,
            engine,
            sources,
            provenance,
            progress.expect,
            self._progressed,
            config.run,
            overwrite=options.overwrite,
            loop=self.loop,
            budget=Budget(self.loop, config.run.memory_bytes(engine.device.type)),
            twins=Twins(plan, store, self.loop),
            trace=trace,
        )
        # Models are loaded in each process: no more than one for the few clips that crashed.
        self.isolated = Isolation(
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
                engine.compiled,
                self.computing,
            ),
            store,
            self.loop,
            processes=self.places.total if config.run.isolate == "always" else 1,
        )
        self.reports: dict[str, ClipReport] = {}
        self.frames = 0.0

    def go(self) -> None:
        started = time.monotonic()
        waiting = {clip.id for clip in _clips_with_work(self.plan)}
        with one_thread():
            for clip in self.plan.clips:
                try:
                    refresh_attributes(self.store, clip)
                except CorruptError as error:  # one clip's folder is not as it should be; the others continue
                    self.plan.damaged.setdefault(clip.id, str(error))
            waiting -= self.plan.damaged.keys()
            for clip in self.plan.clips:
                if clip.id not in waiting:
                    self._clean_up_behind_the_dead(clip)
            to_do = [clip for clip in self.plan.clips if clip.id in waiting]
            self.loop.drive(self._all(to_do))
        for clip in self.plan.clips:
            done = self.reports.get(clip.id)
            self._count(clip, done or ClipReport(_standing(self.plan, clip.id), damaged=self.plan.damaged.get(clip.id)))
        self.report.seconds = time.monotonic() - started

    def _clean_up_behind_the_dead(self, clip: Clip) -> None:
        """A run that was killed right after a clip's last record left its lease, and nothing to do."""
        files = self.store.files
        if (files.root / clip.id / lease.NAME).exists():
            held = lease.take(files, clip.id, self.report.run)
            if isinstance(held, lease.Lease):
                files.delete(f"{clip.id}/{crashes.NAME}")
                held.release()

    async def _set_up(self, *, any_work: bool) -> None:
        """Load the models where they will compute: wrong weights show here, before any work."""

        def load() -> None:
            for name in self.computing:
                self.engine.ready(self.plan.prepared[name])

        if self.settings.isolate != "always":
            lane = "cpu" if self.engine.device.type == "cpu" else "gpu"
            await self.loop.run(lane, load, self.loop.scope, patience_s=0)
        elif any_work:
            await self.loop.run("apart", self.isolated.start, self.loop.scope, patience_s=END_S)

    async def _all(self, clips: Sequence[Clip]) -> None:
        started = time.monotonic()
        try:
            await self._set_up(any_work=bool(clips))
            self.lanes.busy.seconds.clear()  # of the work, not of loading
            began = time.monotonic()
            self.progress.start({clip.id: _bytes_of(clip) for clip in clips})
            await self._work_on(clips)
        finally:
            self.isolated.close()  # before the lanes end: a process dies with the thread that began it
        if clips:
            self.report.speed = self._speed(time.monotonic() - began, began - started)

    async def _work_on(self, clips: Sequence[Clip]) -> None:
        waiting = deque(clips)
        failed = 0

        async def work() -> None:
            nonlocal failed
            while waiting:
                clip = waiting.popleft()
                try:
                    done = await self._clip(clip)
                except CorruptError as error:
                    done = ClipReport(_standing(self.plan, clip.id), damaged=str(error))
                except Exception as error:  # the run ends here; what the other clips have is committed
                    self.loop.stop(error)
                    raise
                self.reports[clip.id] = done
                failed += any(outcome.state == "failed" for outcome in done.outcomes.values())
                self.progress.clip(clip.id, failed)

        await all_of([self.loop.spawn(work()) for _ in range(min(self.places.total, len(waiting)))])

    async def _clip(self, clip: Clip) -> ClipReport:
        files = self.store.files
        held = await self._write(lambda: lease.take(files, clip.id, self.report.run))
        if isinstance(held, lease.Holder):
            return ClipReport(_standing(self.plan, clip.id), busy=str(held))
        try:
            before = await self._write(lambda: self._admitted(clip))
            apart = self._apart(clip, before)
            # If a clip killed the process that worked on several, only the one to blame may be begun a second time.
            alone = before.died is not None and not apart
            place = await self.places.reserve(self.places.total if alone else 1, self.loop.scope)
            try:
                if apart:
                    told = partial(self._told_apart, clip.id)
                    return await self.isolated.work(clip, held, before, told, retry=self.options.retry)
                return await work_on(self.working, clip, held, before, retry=self.options.retry)
            except LeaseLostError as error:
                return ClipReport(_standing(self.plan, clip.id), busy=str(error))
            finally:
                place.release()
        finally:
            await self._write(held.release)

    def _admitted(self, clip: Clip) -> Before:
        """Clean up behind a run that was killed; beside them, others may be asking for the lease."""
        for instance in self.store.files.folders(clip.id):
            self.store.files.sweep(f"{clip.id}/{instance}")
        return Before(crashes.left_by_the_dead(self.store.files, clip.id))

    def _write(self, work: Callable[[], T]) -> Awaitable[T]:
        return self.loop.run("write", work, None)

    def _told_apart(self, clip: str, what: str, value: Any) -> None:  # noqa: ANN401 - as the process says it
        tell = self._progressed if what == PROGRESS else self.progress.expect
        tell(clip, value)

    def _progressed(self, clip: str, frames: float) -> None:
        self.frames += frames
        self.progress.frames(clip, frames)

    def _speed(self, seconds: float, setup_s: float) -> Speed:
        busy = dict(self.lanes.busy.seconds)
        if self.engine.device.type == "cuda":
            busy["gpu"] = self.engine.computed_s  # the lane itself only launches
        shares = {lane: busy[lane] / seconds / self.lanes.threads.get(lane, 1) for lane in sorted(busy)}
        return Speed(round(self.frames), seconds, setup_s, shares)

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


def _clips_with_work(plan: Plan) -> list[Clip]:
    waiting = {clip for clip, _ in (*plan.todo(), *plan.stale())}
    return [clip for clip in plan.clips if clip.id in waiting]


def _compiled_before(plan: Plan) -> bool | None:
    """Whether what was begun and not finished was compiled."""
    begun = [task.record for _, task in plan.todo() if task.need == "partial" and task.record]
    found = {record.provenance.get("levers", {}).get("compile") for record in begun} - {None}
    return any(found) if found else None


def _frames_to_do(plan: Plan) -> int:
    return sum(_frames_of(clip, plan) for clip in _clips_with_work(plan))


def _frames_of(clip: Clip, plan: Plan) -> int:
    """As recorded, or guessed by the size of the recording and the clip's times: no file is opened for it."""
    graph = plan.of(clip).graph
    records = [task.record for name, task in plan.tasks[clip.id].items() if graph[name].stage.clock]
    recorded = next((record.rows for record in records if record and record.rows), None)
    if recorded is not None:
        return recorded
    guessed = _bytes_of(clip) // BYTES_PER_FRAME
    if clip.end_s is None:
        return guessed
    return min(guessed, round(float(clip.end_s - (clip.start_s or 0)) * USUAL_FPS))


def _bytes_of(clip: Clip) -> int:
    """Of its recording; 0 where that is not there."""
    path = clip.video or clip.audio
    try:
        return path.stat().st_size if path else 0
    except OSError:
        return 0


def refresh_attributes(store: Store, clip: Clip) -> None:
    """Write what the manifest says of a clip besides its sources; nothing of it is in a fingerprint."""
    known = {"subject": clip.subject, "source_video": clip.source_video, "split": clip.split}
    store.set_attributes(clip.id, known)


def _computing(plan: Plan) -> list[str]:
    """Instances that compute something in this run, and those that feed them in memory, feeding ones first."""
    waiting = [*plan.todo(), *plan.stale()]
    graphs = {clip.id: plan.of(clip).graph for clip in _clips_with_work(plan)}
    # What a clip brings along loads nothing.
    names = {task.name for clip, task in waiting if graphs[clip][task.name] is plan.graph[task.name]}
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
