"""What the commands print: tables on standard output, progress on standard error."""

import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from extract.config import Remembered
from extract.errors import CorruptError
from extract.running.planning import Plan
from extract.running.report import Failure, Notice, Progress, Report, Speed
from extract.running.sending import Sending
from extract.store import Store
from extract.verification import Checked, SourcesChecked
from extract.weights.resolving import Located

PLAIN_LINE_EVERY_S = 30.0
STATES = ("done", "empty", "partial", "failed")
SHOWN = 20
"""Lines of a list before it is cut (`-v` and `--json` show all)."""


# ---- progress -------------------------------------------------------------------------------------------------------


class _Shown(Progress):
    """Counts, and composes the line that subclasses show."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.through = self.failed = 0
        self._sizes: Mapping[str, int] = {}
        self._expected: dict[str, int] = {}
        """Clip -> frames, of those that were opened."""
        self._done: Counter[str] = Counter()
        """Clip -> frames that were gone through."""

    def start(self, sizes: Mapping[str, int]) -> None:
        self.started, self._sizes = time.monotonic(), sizes

    def expect(self, clip: str, frames: int) -> None:
        if frames:  # else nobody knows: it counts by its bytes
            self._expected[clip] = frames

    def frames(self, clip: str, count: float) -> None:
        self._done[clip] += count  # type: ignore[assignment]

    def clip(self, clip: str, failed: int) -> None:
        self.through, self.failed = self.through + 1, failed
        self._expected[clip] = round(self._done[clip])  # no more will come

    @property
    def frames_per_s(self) -> float:
        """Since the start."""
        return sum(self._done.values()) / max(time.monotonic() - self.started, 1e-9)

    def seconds_left(self) -> float | None:
        """For the whole run; None where nothing is known yet. Clips that were not opened count by their bytes."""
        if not self.frames_per_s:  # sound or words alone: all that is known is how many clips are done
            elapsed = time.monotonic() - self.started
            return (len(self._sizes) - self.through) * elapsed / self.through if self.through else None
        opened = sum(self._sizes.get(clip, 0) for clip, frames in self._expected.items() if frames)
        if not opened:
            return None
        unopened = sum(size for clip, size in self._sizes.items() if clip not in self._expected)
        frames = sum(self._expected.values()) * (1 + unopened / opened)
        return max(frames - sum(self._done.values()), 0) / self.frames_per_s

    def line(self) -> str:
        left = self.seconds_left()
        eta = "unknown" if left is None else str(timedelta(seconds=round(left)))
        clips = f"clips {self.through}/{len(self._sizes)}"
        return f"{clips}, {self.frames_per_s:.1f} frames/s, ETA {eta}, {self.failed} failed"


class _PlainProgress(_Shown):
    """A line every half minute: for log files."""

    def __init__(self) -> None:
        super().__init__()
        self._printed = time.monotonic()

    def frames(self, clip: str, count: float) -> None:
        super().frames(clip, count)
        self._print_now_and_then()

    def clip(self, clip: str, failed: int) -> None:
        super().clip(clip, failed)
        self._print_now_and_then()

    def _print_now_and_then(self) -> None:
        if time.monotonic() - self._printed >= PLAIN_LINE_EVERY_S:
            self._printed = time.monotonic()
            print(self.line(), file=sys.stderr, flush=True)


class _BarProgress(_Shown):
    """A bar on a terminal."""

    def __init__(self, bar: Bar) -> None:
        super().__init__()
        self._bar = bar
        self._task = bar.add_task("extract", total=None, info="")

    def start(self, sizes: Mapping[str, int]) -> None:
        super().start(sizes)
        self._bar.update(self._task, total=len(sizes))

    def frames(self, clip: str, count: float) -> None:
        super().frames(clip, count)
        self._bar.update(self._task, info=self._info())

    def clip(self, clip: str, failed: int) -> None:
        super().clip(clip, failed)
        self._bar.update(self._task, completed=self.through, info=self._info())

    def _info(self) -> str:
        return self.line().partition(", ")[2]


@contextlib.contextmanager
def progress(quiet: bool) -> Iterator[Progress]:
    """A bar on a terminal, else a plain line every half minute; nothing when quiet."""
    if quiet:
        yield Progress()
    elif sys.stderr.isatty():
        columns = (TextColumn("clips"), BarColumn(), MofNCompleteColumn())
        with Bar(*columns, TextColumn("{task.fields[info]}"), console=Console(stderr=True), transient=True) as bar:
            yield _BarProgress(bar)
    else:
        yield _PlainProgress()


# ---- run and plan ---------------------------------------------------------------------------------------------------


def report_json(report: Report) -> dict[str, Any]:
    """The report as JSON values."""
    return {
        "run": report.run,
        "exit_code": report.exit_code,
        "seconds": round(report.seconds, 3),
        "computed": report.computed,
        "speed": report.speed and speed_json(report.speed),
        "instances": {name: dict(counts) for name, counts in report.counts.items()},
        "failures": [vars(failure) for failure in report.failures],
        "busy": [vars(notice) for notice in report.busy],
        "damaged": [vars(notice) for notice in report.damaged],
        "warnings": [vars(notice) for notice in report.warnings],
        "untrained": report.untrained,
    }


def speed_json(speed: Speed) -> dict[str, Any]:
    """How fast the run was, as JSON values."""
    return {
        "num_frames": speed.num_frames,
        "frames_per_s": round(speed.frames_per_s, 2),
        "seconds": round(speed.seconds, 3),
        "setup_s": round(speed.setup_s, 3),
        "busy": {lane: round(share, 3) for lane, share in speed.busy.items()},
        "bottleneck": speed.bottleneck,
    }


def show_report(report: Report, store: str, *, quiet: bool, verbose: bool) -> None:
    """Counts per instance, then what a user must know: warnings, failures, skipped clips, the next command."""
    if not quiet:
        _print_counts(report.counts)
        _print_list("warning", [str(notice) for notice in report.warnings], sys.stderr, verbose=verbose)
        if report.untrained:
            print(f"untrained (random weights): {', '.join(report.untrained)}")
    _print_list("failed", _failure_lines(report.failures, verbose=verbose), sys.stderr, verbose=verbose)
    _print_list("skipped, another run holds it", [str(notice) for notice in report.busy], sys.stderr, verbose=verbose)
    _print_list("damaged", [notice.message for notice in report.damaged], sys.stderr, verbose=verbose)
    if report.failures:
        print(f"run the same command to try again; `extract failed --store {store} -v` tells more", file=sys.stderr)
    if report.busy:
        print("run the same command when the other run has finished", file=sys.stderr)
    if not quiet:
        print(f"{report.computed} computed in {report.seconds:.1f} s -> {store}")
        if report.speed is not None and report.speed.num_frames:
            print(_speed_line(report.speed))


def _speed_line(speed: Speed) -> str:
    rate = f"{speed.num_frames} frames, {speed.frames_per_s:.1f} frames/s, models loaded in {speed.setup_s:.1f} s"
    shares = ", ".join(f"{lane} {share:.0%}" for lane, share in speed.busy.items())
    return f"{rate}; busy: {shares}; bottleneck: {speed.bottleneck}"


def plan_json(plan: Plan, sendings: Mapping[str, Sending]) -> dict[str, Any]:
    """Clip -> instance -> what it needs, and how many seconds a paid or remote service would be sent."""
    found: dict[str, Any] = {
        clip: {name: {"need": task.need, "changes": list(task.changes)} for name, task in tasks.items()}
        for clip, tasks in plan.tasks.items()
    }
    for name, sending in sendings.items():
        for clip in [*sending.heard, *sending.guessed, *sending.unknown]:
            found[clip][name]["seconds_to_send"] = sending.seconds_of(clip)
    return found


def show_plan(plan: Plan, sendings: Mapping[str, Sending]) -> None:
    """Per instance, how many clips are finished and how many would be computed, and why; then what would be sent."""
    needs: dict[str, Counter[str]] = {name: Counter() for name in plan.prepared}
    for tasks in plan.tasks.values():
        for name, task in tasks.items():
            needs[name]["not checked" if task.unchecked else task.need] += 1
    print(f"{len(plan.clips)} clips")
    for name, counts in needs.items():
        summary = ", ".join(f"{count} {need}" for need, count in sorted(counts.items()))
        if not summary:
            planned = any(clip.id not in plan.damaged for clip in plan.clips)
            summary = "not needed: the clips bring their crops" if planned else "not planned: the clips are damaged"
        feeds = ", ".join(plan.graph[name].feeds.values())
        print(f"  {name:<12} {summary}" + (f"   <- {feeds}" if feeds else ""))
    for name, sending in sendings.items():
        print(f"{name} would send {_sending_line(name, sending)}")


def _sending_line(name: str, sending: Sending) -> str:
    counted = f"of {len(sending.heard)} clips by what is loud enough to be speech and was not answered before"
    if sending.guessed:
        counted += f", of {len(sending.guessed)} by their whole length, for their sound cannot be read here"
    line = f"{sending.minutes:.1f} minutes ({counted})"
    if sending.cost is None:
        line += f"; for the cost, say the price: --set {sending.price_setting.format(instance=name)}=PRICE"
    else:
        line += f"; cost {sending.cost:.2f} at {sending.price_per_minute:g} a minute"
    if sending.unknown:
        line += f"; not counted, for their sound cannot be read here: {_first(sending.unknown)}"
    return line


def _first(clips: Sequence[str]) -> str:
    return ", ".join(clips[:SHOWN]) + (f" and {len(clips) - SHOWN} more" if len(clips) > SHOWN else "")


# ---- the store ------------------------------------------------------------------------------------------------------


def say_config(store: Store, asked: str | None) -> None:
    """Say which config a command uses when `-c` names none."""
    if asked is None:
        print(Remembered.taken(store.config()), file=sys.stderr)


def show_status(store: Store, *, as_json: bool) -> list[Notice]:
    """States, rows and recipes per instance. Returns a notice of each damaged record."""
    counts: dict[str, Counter[str]] = {}
    rows: Counter[str] = Counter()
    recipes: dict[str, set[str]] = {}
    untrained: set[str] = set()
    clips = store.clips()
    damaged: list[Notice] = []
    for clip, name, record in store.survey(clips):
        if isinstance(record, CorruptError):
            damaged.append(Notice(str(record), clip, name))
            continue
        counts.setdefault(name, Counter())[record.state] += 1
        rows[name] += record.rows
        recipes.setdefault(name, set()).add(json.dumps(record.recipe, sort_keys=True))
        if record.provenance.get("untrained"):
            untrained.add(name)
    if as_json:
        by_instance = {
            name: {**states, "rows": rows[name], "recipes": len(recipes[name]), "untrained": name in untrained}
            for name, states in sorted(counts.items())
        }
        whole = {
            "store": str(store.path),
            "clips": len(clips),
            "instances": by_instance,
            "damaged": [vars(notice) for notice in damaged],
        }
        print(json.dumps(whole, indent=1))
        return damaged
    print(f"{store.path}: {len(clips)} clips")
    remarks = {
        name: ", ".join(
            [f"{rows[name]} rows"]
            + (["untrained"] if name in untrained else [])
            + ([f"{len(recipes[name])} recipes"] if len(recipes[name]) > 1 else [])
        )
        for name in counts
    }
    _print_counts(counts, remarks)
    return damaged


def show_failed(store: Store, *, as_json: bool, verbose: bool) -> None:
    """Every failed record with its reason; damaged records are reported by ``verify``."""
    found = [
        Failure(clip, name, record.reason or "", record.message or "", record.cause)
        for clip, name, record in store.survey()
        if not isinstance(record, CorruptError) and record.state == "failed"
    ]
    if as_json:
        print(json.dumps([vars(failure) for failure in found], indent=1))
        return
    if not found:
        print("nothing failed")
        return
    for line in _failure_lines(found, verbose=verbose):
        print(line)
    print(f"{len(found)} failed; `extract run` tries them again (crashed ones with --retry)")


def show_damage(checked: Checked) -> None:
    """What ``verify`` found."""
    for damage in checked.damage:
        block = "metadata" if damage.block < 0 else f"block {damage.block}"
        of = f"{damage.instance}/{damage.array or 'record'}" if damage.instance else "attributes"
        print(f"clip {damage.clip}, {of}, {block}: {damage.message}")
    print(f"{checked.instances} finished instances of {checked.clips} clips read, {len(checked.damage)} damaged")
    if checked.unfinished:
        print(f"{checked.unfinished} instances are not finished; `extract run` computes the rest")


def show_sources(found: SourcesChecked) -> None:
    """What ``verify --sources`` found."""
    for line in found.changed:
        print(line)
    if found.gone:
        shown = ", ".join(found.gone[:SHOWN]) + (" ..." if len(found.gone) > SHOWN else "")
        print(f"not checked, a file is gone: {shown}")
    print(f"{found.files} sources read, {len(found.changed)} changed, {len(found.gone)} clips with files gone")


def show_weights(rows: Sequence[Located], *, as_json: bool) -> None:
    """The weights table."""
    if as_json:
        listed = [
            {"key": r.row.key, "stage": ", ".join(r.row.stages), "state": r.state, "sha256": r.sha256,
             "path": str(r.path),
             "expected": r.pinned, "licence": r.row.licence, "source": r.row.source}
            for r in rows
        ]  # fmt: skip
        print(json.dumps(listed, indent=1))
        return
    table = Table(box=None, pad_edge=False, header_style="")
    for column in ("key", "stage", "state", "licence", "source"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(row.row.key, ", ".join(row.row.stages), row.state, row.row.licence, row.row.source)
    Console().print(table)


# ---- pieces ---------------------------------------------------------------------------------------------------------


def _print_counts(counts: Mapping[str, Counter[str]], remarks: Mapping[str, str] | None = None) -> None:
    if not counts:
        return
    states = [state for state in STATES if any(c[state] for c in counts.values())]
    print(f"  {'instance':<14}" + "".join(f"{state:>8}" for state in states))
    for name, states_of in counts.items():
        numbers = "".join(f"{states_of[state] or '.':>8}" for state in states)
        print(f"  {name:<14}{numbers}" + (f"   {remarks[name]}" if remarks else ""))


def _print_list(what: str, lines: Sequence[str], file: Any, *, verbose: bool) -> None:  # noqa: ANN401 - a text stream
    shown = lines if verbose else lines[:SHOWN]
    for line in shown:
        print(f"{what}: {line}", file=file)
    if len(lines) > len(shown):
        print(f"{what}: and {len(lines) - len(shown)} more (-v shows all)", file=file)


def _failure_lines(failures: Sequence[Failure], *, verbose: bool) -> list[str]:
    """One line per cause, followed by the instances that failed only because of it."""
    causes = {(f.clip, f.instance): f for f in failures if f.cause is None}
    so_also: dict[tuple[str, str], list[str]] = {cause: [] for cause in causes}
    for failure in failures:
        origin = (failure.clip, failure.cause or "")
        if origin in so_also:
            so_also[origin].append(failure.instance)
        else:  # its cause keeps no record: a transient instance
            causes.setdefault((failure.clip, failure.instance), failure)
    lines = []
    for cause, failure in causes.items():
        behind = f" (so also {', '.join(so_also[cause])})" if so_also.get(cause) else ""
        lines.append(_failure_line(failure, verbose=verbose) + behind)
    return lines


def _failure_line(failure: Failure, *, verbose: bool) -> str:
    lines = failure.message.splitlines() or [""]
    # Of a traceback the last line is the error itself.
    message = failure.message if verbose else lines[-1] if failure.reason == "unexpected" else lines[0]
    cause = f"from {failure.cause}: " if failure.cause else ""
    return f"clip {failure.clip}, stage {failure.instance}: {failure.reason}: {cause}{message}"
