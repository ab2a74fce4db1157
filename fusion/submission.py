"""The files that the ABAW challenge takes: decisions of twelve action units for every frame of the test videos.

::

    abaw3    <video>.txt each: header AU1,AU2,...,AU26, then one row of 0/1 per frame of the movie
    abaw5    one file: header image_location,AU1,...,AU26, rows <video>/00001.jpg,0,1,... in the order of the sample

Every frame has a row, also those without a face: ``fill`` says what stands there. Two people of one recording are two
videos, ``<video>_left`` and ``<video>_right``.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from extract.au import AU_NAMES, AUS
from extract.devices import pick_device
from extract.errors import UsageError
from extract.files import LocalFiles
from extract.names import suggestion
from extract.store import Store
from fusion import sharing
from fusion.admission import before_scoring
from fusion.clip_scores import score_clips
from fusion.decisions import decide, shipped_with
from fusion.evaluation import check_features
from fusion.postprocess import PostProcess
from fusion.runs import Run
from fusion.scores import FrameScores
from fusion.selection import FRAMES, feature_sources, select_clips
from fusion.submission_files import HEADER, LOCATION_HEADER, Form, form_of, location, read_expected, read_sample, some

Fill: TypeAlias = Literal["run", "nearest", "interpolate", "hold"]
FILLS: tuple[Fill, ...] = ("run", "nearest", "interpolate", "hold")


@dataclass(frozen=True)
class VideoRows:
    """One video's numbers, T frames."""

    probabilities: NDArray[np.float64]
    """[T, 12]; NaN where nothing is known."""
    decisions: NDArray[np.bool_]
    """[T, 12]; meaningless where ``probabilities`` is NaN."""
    face: NDArray[np.bool_]
    """[T]"""
    thresholds: NDArray[np.float64]
    """[12]"""


@dataclass
class Written:
    """What ``submit`` wrote."""

    path: Path
    form: Form
    fill: Fill
    videos: int = 0
    rows: int = 0
    filled: dict[str, int] = field(default_factory=dict)
    """Video -> frames without a face, which were filled."""
    without_face: list[str] = field(default_factory=list)
    """Videos in which no frame has a face: their rows are the network's, from sound and words."""
    extended: dict[str, int] = field(default_factory=dict)
    """Video -> rows beyond its last frame, which repeat that."""
    cut: dict[str, int] = field(default_factory=dict)
    """Video -> frames beyond the last row that was asked for."""
    left_out: list[str] = field(default_factory=list)
    """Videos with scores that nobody asked for."""
    warnings: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """What was written, and what a reader must know of it."""
        found = [f"{self.path}: {self.rows:,} rows of {self.videos} videos, format {self.form}"]
        if self.filled:
            count = sum(self.filled.values())
            found.append(f"filled ({self.fill}): {count:,} frames without a face in {len(self.filled)} videos")
        if self.without_face:
            found.append(f"no face in any frame, from sound and words alone: {some(self.without_face)}")
        if self.extended:
            found.append(f"rows beyond the last frame, which repeat it: {_counts(self.extended)}")
        if self.cut:
            found.append(f"frames beyond the rows asked for, left out: {_counts(self.cut)}")
        if self.left_out:
            found.append(f"videos that were not asked for, left out: {some(self.left_out)}")
        return [*found, *(f"warning: {line}" for line in self.warnings)]

    def as_json(self) -> dict[str, Any]:
        """The same as plain values, for ``--json``."""
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in ((name, getattr(self, name)) for name in self.__dataclass_fields__)
        }


def submit(
    form: str | None,
    output: str | Path | None,
    *,
    run: str | Path | None = None,
    features: str | Path = "store.zarr",
    split: str = "test",
    scores: Path | None = None,
    predictions: Path | None = None,
    sample: Path | None = None,
    expected: Path | None = None,
    fill: str | None = None,
    device: str = "auto",
    allow_other_crops: bool = False,
    allow_leak: bool = False,
) -> Written:
    """Write the decisions of a run on the clips of a split, in one of the challenge's forms.

    Args:
        form: ``abaw3`` or ``abaw5``.
        output: the folder (``abaw3``) or file (``abaw5``) to write; nothing may be there yet.
        run: folder of the run; None is the newest in ``runs/``, or with ``scores`` the folder that they lie in.
        features: the store.
        split: its clips are the videos; their labels are not needed.
        scores: saved scores to use in place of run, store and split.
        predictions: folder of tables by ``fusion predict``, to use in place of them; a table's name is the video's.
        sample: the challenge's sample: which rows in which order; ``abaw5`` only.
        expected: the challenge's list of rows per video. Without it a video has as many as the store has frames.
        fill: what stands in rows of frames without a face. ``nearest``: the decisions of the nearest frame with one, of
            two equally near the earlier. ``interpolate``: probabilities linear between the neighbours, held at the
            ends, then the thresholds. ``hold``: the decisions of the last frame with a face, before the first those
            of the first. ``run``: what the run itself decides there, as `fusion evaluate` counts it: from sound and
            words, or as its post-processing fills in. None: ``run``, or ``nearest`` if tables lack such numbers.
        device: ``auto``, ``cpu`` or ``cuda:N``.
        allow_other_crops: accept crops of another kind than in the fit.
        allow_leak: accept clips that the features' adapted weights were trained on.

    Raises:
        UsageError: sources that exclude each other, a video without scores, or something is in the output's place.
    """
    chosen = form_of(form)
    _fill(fill, {})  # a word that is none is refused before anything is read
    if output is None:
        raise UsageError(f"-o is missing: name the {'folder' if chosen == 'abaw3' else 'file'} to write")
    if sample is not None and chosen == "abaw3":
        raise UsageError("--sample orders the rows of abaw5; for abaw3 give --expected")
    target = Path(output)
    _refuse_existing(target, chosen)
    order = read_sample(sample) if sample is not None else None
    counts = read_expected(expected) if expected is not None else None
    videos, warnings = _videos(
        run,
        features,
        split,
        scores,
        predictions,
        device,
        allow_other_crops=allow_other_crops,
        allow_leak=allow_leak,
    )
    how = _fill(fill, videos)
    written = Written(target, chosen, how, warnings=warnings)

    asked: list[str] = list(dict.fromkeys(video for video, _ in order)) if order is not None else list(counts or {})
    absent = [video for video in asked if video not in videos]
    if absent:
        source = predictions or scores or f"split {split} of {features}"
        raise UsageError(
            f"{len(absent)} videos of {sample or expected} have no scores in {source}: {some(absent)}; "
            "submissions need every video. Do clips bear the challenge's names (VIDEO, VIDEO_left)?"
        )
    if asked:
        written.left_out = sorted(set(videos) - set(asked))
    lengths = dict(counts or {})
    for video, frame in order or ():
        lengths[video] = max(lengths.get(video, 0), frame)
    decided = {}
    for video in asked or sorted(videos):
        rows = _filled(video, videos[video], how, written)
        decided[video] = _of_length(video, rows, lengths.get(video, len(rows)), written)
    written.videos = len(decided)
    if chosen == "abaw3":
        for video, rows in decided.items():
            _write(target / f"{video}.txt", [HEADER, *map(_row, rows)])
        written.rows = sum(map(len, decided.values()))
        return written
    if order is None:
        order = [(video, frame) for video, rows in decided.items() for frame in range(1, len(rows) + 1)]
    lines = (f"{location(video, frame)},{_row(decided[video][frame - 1])}" for video, frame in order)
    _write(target, [LOCATION_HEADER, *lines])
    written.rows = len(order)
    return written


# ---- where the numbers come from -----------------------------------------------------------------------------------


def _videos(
    run: str | Path | None,
    features: str | Path,
    split: str,
    scores: Path | None,
    predictions: Path | None,
    device: str,
    *,
    allow_other_crops: bool,
    allow_leak: bool,
) -> tuple[dict[str, VideoRows], list[str]]:
    """Video -> its numbers; and what a reader must know of them."""
    if predictions is not None:
        if scores is not None or run is not None:
            raise UsageError("--predictions holds decisions already; leave out --run and --scores")
        return _of_predictions(predictions)
    if scores is not None:
        found = FrameScores.read(scores)
        return _of_scores(found, shipped_with(Path(run) if run is not None else scores.parent, found.aus)), []
    where = Run(run) if run is not None else Run.newest()
    fitted = sharing.fitted_model(where)
    store, whose = Store.open(features), f"run {where.path}"
    selection = select_clips(store, split, fitted.config.instances, labelled=False)
    if not selection.clips:
        splits = sorted({str(store.attributes(clip).get("split") or "none") for clip in store.clips()})
        raise UsageError(
            f"{features}: no clip in split {split}; its clips are in: {', '.join(splits) or 'it has none'}"
        )
    sources = feature_sources(store, selection.clips, (FRAMES, *fitted.config.instances))
    check_features(fitted, sources, whose)
    warnings = before_scoring(
        fitted, store, selection, sources, whose, allow_other_crops=allow_other_crops, allow_leak=allow_leak
    )
    shipped = shipped_with(where.path, fitted.aus)
    return _of_scores(score_clips(store, selection.clips, fitted, pick_device(device)), shipped), warnings


def _of_scores(scores: FrameScores, shipped: PostProcess | None) -> dict[str, VideoRows]:
    """The decisions that the run makes of these scores, by its clips."""
    absent = [name for name, number in zip(AU_NAMES, AUS, strict=True) if number not in scores.aus]
    if absent:
        raise UsageError(f"the challenge wants {len(AUS)} action units; these scores lack {', '.join(absent)}")
    columns = [scores.aus.index(number) for number in AUS]
    decided = decide(scores, shipped)
    thresholds = np.array([decided.thresholds[name] for name in AU_NAMES])
    found = {}
    for index, clip in enumerate(scores.clips):
        rows = np.flatnonzero(scores.clip == index)
        found[clip] = VideoRows(
            decided.probabilities[rows][:, columns], decided.decisions[rows][:, columns], scores.face[rows], thresholds
        )
    return found


def _of_predictions(folder: Path) -> tuple[dict[str, VideoRows], list[str]]:
    """The tables of ``fusion predict`` in a folder, by the names of their files."""
    tables = sorted(folder.glob("*.csv")) if folder.is_dir() else []
    found: dict[str, VideoRows] = {}
    warnings: dict[str, None] = {}
    for path in tables:
        with path.open(newline="") as file:
            header, *rows = list(csv.reader(file)) or [[]]
        names = [*(f"{au}_p" for au in AU_NAMES), *AU_NAMES]
        if header[:3] != ["frame", "pts_s", "valid"] or not set(names) <= set(header):
            raise UsageError(
                f"{path}: is no table by `fusion predict` with its default columns and all twelve action units"
            )
        try:
            values = np.array([[cell or "nan" for cell in row] for row in rows], dtype=np.float64)
            facts = json.loads(path.with_suffix(".json").read_bytes())
            thresholds = np.array([float(facts["thresholds"][name]) for name in AU_NAMES])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path}: the table or its .json is damaged ({error}); predict again") from None
        values = values.reshape(len(rows), len(header))
        probabilities, decisions = (
            values[:, [header.index(name) for name in part]] for part in (names[:12], names[12:])
        )
        found[path.stem] = VideoRows(probabilities, decisions == 1, values[:, 2] == 1, thresholds)
        warnings |= dict.fromkeys(facts.get("warnings", ()))
    if not found:
        raise UsageError(f"--predictions {folder}: no table by `fusion predict` there")
    return found, list(warnings)


# ---- every frame gets a row ----------------------------------------------------------------------------------------


def _filled(video: str, rows: VideoRows, how: Fill, written: Written) -> NDArray[np.bool_]:
    """Decisions of all frames, [T, 12]."""
    known = np.flatnonzero(rows.face)
    without = len(rows.face) - len(known)
    if without and not len(known):
        written.without_face.append(video)
    elif without:
        written.filled[video] = without
    if not without or not len(known) or how == "run":
        if np.isnan(rows.probabilities[~rows.face]).any():
            raise UsageError(
                f"video {video}: frames without a face have no numbers; predict with --fill"
                + (", or use another --fill than run here" if len(known) else "")
            )
        return rows.decisions
    every = np.arange(len(rows.face))
    if how == "interpolate":
        between = [np.interp(every, known, au[known]) for au in rows.probabilities.T]
        return np.where(rows.face[:, None], rows.decisions, np.stack(between, axis=1) >= rows.thresholds)
    return rows.decisions[_nearest(every, known) if how == "nearest" else _before(every, known)]


def _nearest(every: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each frame the nearest known one; of two equally near the earlier."""
    after = np.searchsorted(known, every).clip(max=len(known) - 1)
    before = (after - 1).clip(min=0)
    nearer = np.abs(every - known[before]) <= np.abs(known[after] - every)
    found: NDArray[np.int64] = np.where(nearer, known[before], known[after])
    return found


def _before(every: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each frame the last known one up to it; before the first, the first."""
    found: NDArray[np.int64] = known[(np.searchsorted(known, every, side="right") - 1).clip(min=0)]
    return found


def _of_length(video: str, rows: NDArray[np.bool_], length: int, written: Written) -> NDArray[np.bool_]:
    """Exactly ``length`` rows: cut, or with the last one repeated, as crops may reach beyond the decoded movie."""
    if len(rows) > length:
        written.cut[video] = len(rows) - length
    elif len(rows) < length:
        if not len(rows):
            raise UsageError(f"video {video}: has no frame, {length} rows are expected; was it extracted?")
        written.extended[video] = length - len(rows)
        rows = np.concatenate([rows, np.repeat(rows[-1:], length - len(rows), axis=0)])
    return rows[:length]


# ---- files ---------------------------------------------------------------------------------------------------------


def _row(decisions: Sequence[bool] | NDArray[np.bool_]) -> str:
    return ",".join("1" if active else "0" for active in decisions)


def _write(path: Path, lines: Sequence[str]) -> None:
    LocalFiles(path.parent).write(path.name, ("\n".join(lines) + "\n").encode())


def _refuse_existing(target: Path, form: Form) -> None:
    if form == "abaw3":
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UsageError(f"-o {target}: holds something already; name a new folder, or remove it")
    elif target.exists():
        raise UsageError(f"-o {target}: exists already; name a new file, or remove it")


def _fill(text: str | None, videos: Mapping[str, VideoRows]) -> Fill:
    for known in FILLS:
        if text == known:
            return known
    if text is None:
        return "nearest" if any(np.isnan(rows.probabilities).any() for rows in videos.values()) else "run"
    raise UsageError(f"--fill {text}: no such way; {suggestion(text, FILLS)}")


def _counts(of_video: Mapping[str, int]) -> str:
    return some([f"{video} {count}" for video, count in of_video.items()])
