"""Tries the corpus: makes files, runs the program on them, judges, and finds out whose fault a broken promise is."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.hostile import media, small, trial
from tests.hostile.trial import START, Tally, Violation, command, watched

Say = Callable[[str], None]


def _nothing(_: str) -> None: ...


def manifest_of(entries: Sequence[str]) -> str:
    """A manifest with the clips ``{...}``."""
    return "version: 1\nclips:\n" + "".join(f"- {entry}\n" for entry in entries)


def try_media(
    numbers: Sequence[int], sources: Path, root: Path, tally: Tally, seed: int = 0, say: Say = _nothing
) -> None:
    """Run the files ``numbers`` as the clips of one manifest; those of a command that broke a promise again, by halves.

    Args:
        sources: the folder of real media.
        root: an empty folder.
    """
    work, store = root / "work", root / "store.zarr"
    work.mkdir(parents=True)
    files = [media.make(number, sources, work, seed) for number in numbers]
    waiting = {file.clip: file for file in files}
    before = trial.left_as_it_was(root.parent, [root])
    while waiting:
        entries = [f"{{id: {clip}, {file.key}: {file.path.name}}}" for clip, file in waiting.items()]
        (work / "m.yaml").write_text(manifest_of(entries))
        inside = trial.left_as_it_was(work)
        stages = [word for stage in trial.MEDIA_STAGES for word in ("--stage", stage)]
        arguments = command(
            "run", "--json", "--manifest", "m.yaml", "--store", str(store), *stages, settings=trial.MEDIA_SETTINGS
        )
        ended = watched(arguments, work, store)
        tally.add(ended)
        instances = (*_VISUAL, "hubert")
        found = trial.judge_run(ended, store, waiting, instances, "the run")
        found += trial.changes(inside, trial.left_as_it_was(work), "the run")
        of_all = [violation for violation in found if violation.what not in waiting]
        if of_all and len(numbers) > 1:
            say(f"a promise was broken, tried again by halves: {of_all[0]}")
            for half in (numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]):
                folder = root / f"{half[0]}-{half[-1]}"
                try_media(half, sources, folder, tally, seed, say)
            return
        for violation in found:
            file = waiting.get(violation.what, files[0])
            tally.violations.append(Violation(file.clip, f"{violation.message} [{file.description}]"))
            say(f"VIOLATION {tally.violations[-1]}")
        if ended.stopped is None:
            tally.count(store, waiting, instances)
            break
        tally.files["stopped"] += 1
        del waiting[ended.stopped[0] if ended.stopped[0] in waiting else files[0].clip]
        shutil.rmtree(store, ignore_errors=True)  # the clip that was stopped at would be busy, or partial
    tally.violations += trial.changes(before, trial.left_as_it_was(root.parent, [root]), "outside")


_VISUAL = ("frames", "detections", "faces")


def try_alone(case: small.Case, sources: Path, root: Path, tally: Tally, say: Say = _nothing) -> None:
    """Run one command with a broken manifest, config or weights."""
    work, store = root / "work", root / "store.zarr"
    work.mkdir(parents=True)
    shutil.copyfile(sources / "one_face.mp4", work / small.VIDEO)
    (work / "m.yaml").write_text(manifest_of([f"{{id: a, video: {small.VIDEO}}}"]))
    case.build(work / case.file)
    given = {
        "manifest": ("--manifest", case.file, "--stage", "frames"),
        "config": ("--manifest", "m.yaml", "-c", case.file),
        "weights": ("--manifest", "m.yaml", "--stage", "hubert"),
    }[case.kind]
    settings = ("hubert.architecture=small", f"hubert.weights={case.file}") if case.kind == "weights" else ()
    before = trial.left_as_it_was(root.parent, [store])
    ended = watched(command("run", "--json", "--store", str(store), *given, settings=settings), work)
    found = trial.judge_words(ended, case.name)
    if not found and ended.code not in case.codes:
        expected = " or ".join(map(str, case.codes))
        message = f"exit code {ended.code}, expected {expected}: {ended.err[-300:]}{ended.out[-300:]}"
        found.append(Violation(case.name, message))
    if not found and ended.code in {2, 3} and list(store.glob("*/*/zarr.json")):
        found.append(Violation(case.name, f"exit code {ended.code}, and yet work was begun"))
    spared = {str(root.parent / name) for name in ("said.out", "said.err")} | {
        str(work.parent / name) for name in _OURS
    }
    after = trial.left_as_it_was(root.parent, [store])
    found += [v for v in trial.changes(before, after, case.name) if not v.message.startswith(tuple(spared))]
    _add(case.name, ended, tally)
    tally.files["stopped" if ended.stopped else f"exit {ended.code}"] += 1
    tally.reasons[f"{case.kind}: {'stopped' if ended.stopped else f'exit {ended.code}'}"] += 1
    tally.violations += found
    for violation in found:
        say(f"VIOLATION {violation}")


_OURS = ("said.out", "said.err", "home")
"""What ``watched`` itself makes beside the folder of the files."""


def _add(name: str, ended: trial.Ended, tally: Tally) -> None:
    """Time and memory of a command that has no clips."""
    ended.seconds = {name: sum(ended.seconds.values())}
    ended.peaks = {name: max(ended.peaks.values(), default=0)}
    tally.add(ended)


def try_clips(cases: Sequence[small.Case], sources: Path, root: Path, tally: Tally, say: Say = _nothing) -> None:
    """Run broken labels and transcripts as the clips of one manifest."""
    work, store = root / "work", root / "store.zarr"
    work.mkdir(parents=True)
    shutil.copyfile(sources / "one_face.mp4", work / small.VIDEO)
    waiting = {case.name.replace(".", "-"): case for case in cases}
    for case in cases:
        case.build(work / case.file)
    instances = ("frames", "labels", "transcribe")
    stages = [word for stage in instances for word in ("--stage", stage)]
    while waiting:
        keys = {"labels": "labels: {{au: {0}}}", "transcript": "transcript: {0}"}
        entries = [
            f"{{id: {clip}, video: {small.VIDEO}, {keys[case.kind].format(case.file)}}}"
            for clip, case in waiting.items()
        ]
        (work / "m.yaml").write_text(manifest_of(entries))
        before = trial.left_as_it_was(work)
        settings = ("run.cpu_threads=1", "run.stall_s=20", "transcribe.engines=[given]")
        ended = watched(
            command("run", "--json", "--manifest", "m.yaml", "--store", str(store), *stages, settings=settings),
            work,
            store,
        )
        tally.add(ended)
        found = trial.judge_run(ended, store, waiting, instances, "the run")
        found += trial.changes(before, trial.left_as_it_was(work), "the run")
        of_all = [violation for violation in found if violation.what not in waiting]
        if of_all and len(waiting) > 1:
            say(f"a promise was broken, tried again by halves: {of_all[0]}")
            listed = list(waiting.values())
            for half in (listed[: len(listed) // 2], listed[len(listed) // 2 :]):
                try_clips(half, sources, root / f"{half[0].name}-{len(half)}", tally, say)
            return
        tally.violations += found
        for violation in found:
            say(f"VIOLATION {violation}")
        if ended.stopped is None:
            tally.count(store, waiting, instances)
            break
        tally.files["stopped"] += 1
        del waiting[ended.stopped[0] if ended.stopped[0] in waiting else next(iter(waiting))]
        shutil.rmtree(store, ignore_errors=True)


def largest(numbers: dict[str, float] | dict[str, int]) -> tuple[str, float]:
    """The clip or command of the largest number, and that number."""
    among = {name: number for name, number in numbers.items() if name != START} or {"nothing": 0}
    name = max(among, key=lambda key: among[key])
    return name, among[name]
