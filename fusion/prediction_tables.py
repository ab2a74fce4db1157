"""What ``fusion predict`` writes for a video: a table of its frames, and the facts that say what the numbers mean."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from extract.au import au_name
from extract.errors import UsageError
from extract.files import LocalFiles
from extract.inputs.datasets.folder import OPENFACE_HEADER, PREDICTION_HEADER
from fusion.decisions import Decided
from fusion.scores import FrameScores

if TYPE_CHECKING:
    from extract.inputs.manifest import Clip

Columns: TypeAlias = Literal["default", "openface"]
COLUMNS: tuple[Columns, ...] = ("default", "openface")

FACTS_BEGIN = '{\n "video": '
UNITS: dict[Columns, dict[str, str]] = {
    "default": {
        "frame": "number of the video frame, from 0",
        "pts_s": "presentation time in seconds",
        "valid": "1 where a face was found; 0 where only sound, words or nothing is known",
        "AUxx_p": "probability in [0, 1]; empty where valid is 0, unless filled",
        "AUxx": "1 where the probability reaches the threshold; empty where valid is 0, unless filled",
    },
    "openface": {
        "frame": "number of the video frame, from 1, as OpenFace 2 counts",
        "face_id": "always 0: one person per video",
        "timestamp": "presentation time in seconds; OpenFace has (frame - 1) / frame rate here",
        "success": "1 where a face was found, else 0",
        "AUxx_r": "intensity from 0 to 5; only of runs that were fitted on intensities",
        "AUxx_c": "presence, 0 or 1: whether the probability reaches the threshold; empty where success is 0, unless "
        "filled (OpenFace writes 0 there)",
        "not written": "confidence, gaze, pose, landmarks: the run does not measure them",
    },
}
"""Of each form of the table: what its columns mean."""


@dataclass(frozen=True)
class Predicted:
    """What was written for one video."""

    video: Path
    table: Path
    """``<video>.csv``"""
    facts: Path
    """``<video>.json``"""
    frames: int
    present: Mapping[str, int]
    """Modality -> frames that have it."""


def file_names(clips: "Mapping[str, tuple[Path, Clip]]") -> dict[str, str]:
    """Clip -> name of its files without suffix: the video's own, or the clip's id if two videos share a name."""
    taken = Counter(video.stem.lower() for video, _ in clips.values())
    return {clip: video.stem if taken[video.stem.lower()] == 1 else clip for clip, (video, _) in clips.items()}


def refuse_foreign(output: Path, names: Iterable[str]) -> None:
    """Raise UsageError if a table or its facts would replace labels, a transcript or any other file not ours."""
    if output.exists() and not output.is_dir():
        raise UsageError(f"-o {output}: is a file; name a folder")
    tables, facts = (PREDICTION_HEADER.encode(), OPENFACE_HEADER.encode()), (FACTS_BEGIN.encode(),)
    for name in names:
        for path, marks in ((output / f"{name}.csv", tables), (output / f"{name}.json", facts)):
            try:
                begins = path.read_bytes()[: max(map(len, marks))]
            except FileNotFoundError:
                continue
            except OSError as error:
                raise UsageError(
                    f"{path}: cannot be replaced ({error.strerror}); name another folder with -o"
                ) from None
            if not begins.startswith(marks):
                raise UsageError(f"{path}: exists and is not a prediction; name another folder with -o")


def write(
    output: Path,
    name: str,
    video: Path,
    scores: FrameScores,
    decided: Decided,
    about: Mapping[str, Any],
    *,
    columns: Columns = "default",
    fill: bool = False,
) -> Predicted:
    """Write ``<name>.csv`` and ``<name>.json`` for one video.

    Args:
        output: the folder.
        scores: of this video's clip alone.
        about: further facts: run, recipes, warnings.
        columns: which form of table.
        fill: give numbers for frames without a face, too.
    """
    present = dict(scores.present)
    # A run that reads no pictures needs no face: there it is enough that something is heard or read.
    valid = scores.face & np.any([*present.values()], axis=0)
    shown = np.ones_like(valid) if fill else valid  # without a face the numbers only reflect sound and words
    if columns == "openface":
        header, cells = _openface(scores, decided, valid, shown)
    else:
        header, cells = _default(scores, decided, valid, shown)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(zip(*cells, strict=True))
    counts = {modality: int(flags.sum()) for modality, flags in present.items()}
    facts = {
        "video": video.name,
        **about,
        "frames": len(scores),
        "valid": int(valid.sum()),
        "filled": fill,
        "present": counts,
        "aus": list(scores.au_names),
        "thresholds": dict(decided.thresholds),
        "postprocess": decided.facts,
        "columns": columns,
        "units": UNITS[columns],
    }
    files = LocalFiles(output)
    files.write(f"{name}.csv", table.getvalue().encode())
    files.write(f"{name}.json", (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode())
    return Predicted(video, output / f"{name}.csv", output / f"{name}.json", len(scores), counts)


def _default(
    scores: FrameScores, decided: Decided, valid: NDArray[np.bool_], shown: NDArray[np.bool_]
) -> tuple[list[str], list[Iterable[Any]]]:
    names = scores.au_names
    header = ["frame", "pts_s", "valid", *scores.present, *(f"{au}_p" for au in names), *names]
    columns: list[Iterable[Any]] = [
        range(len(scores)),
        (f"{time:.6f}" for time in scores.pts_s),
        *(flags.astype(int).tolist() for flags in (valid, *scores.present.values())),
        *(_where(shown, [f"{value:.6f}" for value in au]) for au in decided.probabilities.T),
        *(_where(shown, [str(int(value)) for value in au]) for au in decided.decisions.T),
    ]
    return header, columns


def _openface(
    scores: FrameScores, decided: Decided, valid: NDArray[np.bool_], shown: NDArray[np.bool_]
) -> tuple[list[str], list[Iterable[Any]]]:
    """The columns of OpenFace 2's csv (its wiki, "Output format") that a run can fill."""
    names = scores.au_names
    rated = tuple(au_name(number) for number in scores.facts.get("intensity_aus", ()))  # a task of its own
    intensity = scores.outputs["intensity"] if rated else np.empty((len(scores), 0), dtype=np.float32)
    header = [*OPENFACE_HEADER.rstrip(",").split(","), *(f"{au}_r" for au in rated), *(f"{au}_c" for au in names)]
    columns: list[Iterable[Any]] = [
        range(1, len(scores) + 1),
        [0] * len(scores),
        (f"{time:.6f}" for time in scores.pts_s),
        valid.astype(int).tolist(),
        *(_where(shown, [f"{min(max(value, 0.0), 5.0):.2f}" for value in intensity[:, k]]) for k in range(len(rated))),
        *(_where(shown, [str(int(value)) for value in au]) for au in decided.decisions.T),
    ]
    return header, columns


def _where(shown: NDArray[np.bool_], cells: list[str]) -> list[str]:
    return [cell if show else "" for cell, show in zip(cells, shown, strict=True)]
