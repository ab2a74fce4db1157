"""Post-processing as a run ships it: from a network's scores to probabilities and decisions, in named steps.

::

    logits -> smooth -> / temperature -> sigmoid -> pairs -> probability -> >= threshold -> decision

Pure functions of ``FrameScores``: the network never runs again. ``post_fitting.fit_post`` makes a ``PostProcess``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from extract import texts
from extract.au import au_name
from extract.config import Frozen, validated
from extract.errors import CorruptError, UsageError
from fusion import post_config
from fusion.leaks import SelectedOn, check_disjoint
from fusion.pairs import Pairs, corrected, equation
from fusion.post_config import NoFace
from fusion.scores import FrameScores
from fusion.smoothing import Unit, Windows, smoothed
from fusion.temperature import sigmoid
from fusion.thresholds import UNTUNED

Floats: TypeAlias = NDArray[np.float64]
Decisions: TypeAlias = NDArray[np.int8]

FILE = "postprocess.json"
"""Its name in the folder of a run."""
SCHEMA = 1

STEP_NAMES: Mapping[post_config.Step, str] = {"smooth": "+smooth", "thresholds": "+threshold", "pairs": "+AUcorr"}
"""As rows of a table; the first row is ``base``."""


@dataclass(frozen=True)
class Step:
    """What is known after one step: a row of the paper's Tables 2 and 3."""

    name: str
    """``base``, ``+smooth``, ``+threshold``, ``+AUcorr``."""
    probabilities: Floats
    """[N, A] in [0, 1]."""
    decisions: Decisions
    """[N, A]: 0 or 1."""


@dataclass(frozen=True)
class PostProcess:
    """Fitted post-processing of the scores of one list of AUs. Sequences are in the order of ``aus``."""

    aus: tuple[int, ...]
    windows: Windows
    no_face: NoFace
    temperature: tuple[float, ...]
    """[A]: smoothed logits are divided by it; 1 where it was not fitted."""
    pairs: Pairs
    thresholds: tuple[float, ...]
    """[A]: active where the probability is >= this."""
    order: tuple[post_config.Step, ...]
    """In which the steps are shown, and in which they were fitted."""
    preset: str = "default"
    selected_on: SelectedOn | None = None
    """None if nothing here was chosen on data."""
    notices: tuple[str, ...] = ()
    """What a reader of its numbers should know: thresholds that could not be tuned, equations that were dropped."""
    report: Mapping[str, Any] = field(default_factory=dict)
    """Plain values: F1 in steps and calibration on the scores that it was selected on."""

    def probabilities(self, scores: FrameScores) -> Floats:
        """Of every frame and AU after all steps: [N, A] in [0, 1].

        Raises:
            UsageError: the scores are of other AUs.
        """
        return corrected(self._smooth_probabilities(scores), self.aus, self.pairs)

    def decisions(self, scores: FrameScores) -> Decisions:
        """1 where an AU counts as active, else 0: [N, A]. See ``probabilities`` for errors."""
        return self._decided(self.probabilities(scores))

    def steps(self, scores: FrameScores) -> tuple[Step, ...]:
        """What is decided after each step, ``base`` (logit >= 0) first, then in ``order``.

        The last step equals ``probabilities`` and ``decisions``. A step that changes nothing is there all the same, so
        that tables of different runs have the same rows. Filling in frames without a face and the temperature belong
        to ``+smooth``. Raises as ``probabilities``.
        """
        at_half = np.full(len(self.aus), UNTUNED)
        thresholds, smooth = at_half, self._smooth_probabilities(scores)
        probabilities = sigmoid(scores.logits)
        found = [Step("base", probabilities, (scores.logits >= 0).astype(np.int8))]
        for step in self.order:
            if step == "smooth":
                probabilities = smooth
            elif step == "pairs":
                probabilities = corrected(smooth, self.aus, self.pairs)
            else:
                thresholds = np.array(self.thresholds)
            found.append(Step(STEP_NAMES[step], probabilities, _at_least(probabilities, thresholds)))
        return tuple(found)

    def _smooth_probabilities(self, scores: FrameScores) -> Floats:
        if scores.aus != self.aus:
            raise UsageError(f"post-processing of {_names(self.aus)} on scores of {_names(scores.aus)}")
        return sigmoid(smoothed(scores, self.windows, self.no_face) / np.array(self.temperature))

    def _decided(self, probabilities: Floats) -> Decisions:
        return _at_least(probabilities, np.array(self.thresholds))

    # ---- the file ----------------------------------------------------------------------------------------------

    def as_json(self) -> dict[str, Any]:
        """Plain values by AU name, for ``postprocess.json``; ``from_json`` gives an equal object."""
        names = [au_name(number) for number in self.aus]
        return {
            "schema": SCHEMA,
            "preset": self.preset,
            "aus": names,
            "order": list(self.order),
            "smooth": {"unit": self.windows.unit, "by_au": dict(zip(names, self.windows.sizes, strict=True))},
            "no_face": self.no_face,
            "temperature": dict(zip(names, self.temperature, strict=True)),
            "pairs": {au_name(target): [au_name(one) for one in sources] for target, sources in self.pairs.items()},
            "thresholds": dict(zip(names, self.thresholds, strict=True)),
            "selected_on": None if self.selected_on is None else _plain(asdict(self.selected_on)),
            "notices": list(self.notices),
            "report": dict(self.report),
        }

    @classmethod
    def from_json(cls, values: object, aus: Sequence[int], whose: str) -> "PostProcess":
        """What ``as_json`` gave, in the order of ``aus``, the run's own AUs.

        Args:
            whose: the file, for messages.

        Raises:
            UsageError: it is of other AUs, which the message names.
            ConfigError: a key is unknown or missing, or a value is none that can be.
        """
        found = validated(_File, values, whose)
        names = [au_name(number) for number in aus]
        if set(found.aus) != set(names) or len(found.aus) != len(names):
            raise UsageError(
                f"{whose}: thresholds of other action units: {_difference(found.aus, names)}; it belongs to another "
                "run: take this run's own file, or fit again"
            )
        for key, by_au in (
            ("smooth.by_au", found.smooth.by_au),
            ("temperature", found.temperature),
            ("thresholds", found.thresholds),
        ):
            if set(by_au) != set(names):
                raise UsageError(f"{whose}: {key}: {_difference(list(by_au), names)}; take the file as `fit` wrote it")
        number = dict(zip(names, aus, strict=True))
        for target, sources in found.pairs.items():
            if unknown := [name for name in (target, *sources) if name not in names]:
                raise UsageError(f"{whose}: pairs: {target} from {', '.join(sources)}: the run has no {unknown[0]}")
        for name, size in found.smooth.by_au.items():
            if found.smooth.unit == "frames" and size != int(size):
                raise UsageError(f"{whose}: smooth.by_au: {name} has {size} frames, expected a whole number")
        return cls(
            aus=tuple(aus),
            windows=Windows(tuple(found.smooth.by_au[name] for name in names), found.smooth.unit),
            no_face=found.no_face,
            temperature=tuple(found.temperature[name] for name in names),
            pairs={number[target]: tuple(number[one] for one in sources) for target, sources in found.pairs.items()},
            thresholds=tuple(found.thresholds[name] for name in names),
            order=found.order,
            preset=found.preset,
            selected_on=None if found.selected_on is None else SelectedOn(**found.selected_on.model_dump()),
            notices=found.notices,
            report=found.report,
        )

    @classmethod
    def read(cls, path: Path, aus: Sequence[int]) -> "PostProcess":
        """The file ``path`` of a run with these AUs.

        Raises:
            CorruptError: it is no JSON.
            UsageError: as ``from_json``, or there is no such file.
        """
        try:
            values = json.loads(texts.read_text(path))
        except FileNotFoundError:
            raise UsageError(f"{path}: no such file; fit the run again, or name its folder with --run") from None
        except (OSError, ValueError) as error:
            raise CorruptError(f"{path}: damaged ({error})", "`fusion tune --apply` writes it anew") from error
        return cls.from_json(values, aus, str(path))


def check_no_leak(post: PostProcess, scores: FrameScores, allow_leak: bool = False) -> str | None:
    """Refuse to report scores of clips or recordings that ``post`` was selected on.

    Returns:
        None if there is no overlap; else, if allowed, the sentence that every table must print.

    Raises:
        UsageError: there is an overlap, and ``allow_leak`` is off.
    """
    if post.selected_on is None:
        return None
    return check_disjoint(post.selected_on, scores, allow_leak, "thresholds and equations")


def describe(post: PostProcess) -> list[str]:
    """A few lines for a reader: windows, equations, thresholds and where they are from."""
    unit = {"frames": "frames", "seconds": "s"}[post.windows.unit]
    sizes = sorted(set(post.windows.sizes))
    windows = f"{sizes[0]:g} {unit}" if len(sizes) == 1 else f"{sizes[0]:g} to {sizes[-1]:g} {unit}, per AU"
    faceless = {
        "network": "scored from what else there is",
        "interpolate": "interpolated between frames with a face",
        "mask": "left out of their neighbours' windows",
    }[post.no_face]
    lines = [
        f"preset {post.preset}: smoothing over {windows if sizes else 'nothing'}; frames without a face: {faceless}",
        *(equation(target, sources) for target, sources in post.pairs.items()),
    ]
    if any(one != 1 for one in post.temperature):
        lines.append(f"temperature {min(post.temperature):.2f} to {max(post.temperature):.2f}")
    if post.selected_on is not None:
        clips, videos = len(post.selected_on.clips), len(post.selected_on.source_videos)
        lines.append(f"selected on split {post.selected_on.split}: {clips} clips of {videos} source videos")
    return [*lines, *post.notices]


def _at_least(probabilities: Floats, thresholds: Floats) -> Decisions:
    return (probabilities >= thresholds).astype(np.int8)


def _names(aus: Sequence[int]) -> str:
    return ", ".join(au_name(number) for number in aus) or "no action unit"


def _difference(found: Sequence[str], expected: Sequence[str]) -> str:
    """``no AU04; AU99 is not the run's``."""
    missing = [name for name in expected if name not in found]
    foreign = [name for name in found if name not in expected]
    parts = [f"none of {', '.join(missing)}"] if missing else []
    parts += [f"{', '.join(foreign)} not among the run's {', '.join(expected)}"] if foreign else []
    return "; ".join(parts) or f"one is there twice: {', '.join(found)}"


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Smooth(Frozen):
    unit: Unit
    by_au: Mapping[str, _Positive]


class _Selected(Frozen):
    split: str
    clips: tuple[str, ...]
    source_videos: tuple[str, ...]
    annotated: int = Field(ge=0)
    sha256: str


class _File(Frozen):
    """``postprocess.json``."""

    schema_: Literal[1] = Field(alias="schema")
    preset: str
    aus: tuple[str, ...]
    order: tuple[post_config.Step, ...]
    smooth: _Smooth
    no_face: NoFace
    temperature: Mapping[str, _Positive]
    pairs: Mapping[str, tuple[str, ...]]
    thresholds: Mapping[str, _Share]
    selected_on: _Selected | None
    notices: tuple[str, ...]
    report: Mapping[str, Any]
