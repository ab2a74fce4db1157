"""How long the smoothing window should be: F1 over window lengths, overall and per action unit (the paper's Figure 4).

Windows are chosen on the split ``val`` alone. Further scores may stand beside as a curve; nothing is selected on them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from extract.au import au_name
from extract.au.metrics import confusion
from extract.errors import UsageError
from fusion.leaks import SelectedOn, check_disjoint
from fusion.post_config import NoFace
from fusion.scores import FrameScores
from fusion.smoothing import Unit, Windows, smoothed
from fusion.temperature import sigmoid
from fusion.thresholds import UNTUNED, best_thresholds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats: TypeAlias = NDArray[np.float64]
At: TypeAlias = Literal["tuned", "half"]

FRAMES = tuple(float(size) for size in range(1, 33))
"""Windows that are tried; the paper's figure goes from 2 to 32."""
SECONDS = (0.02, *(number / 20 for number in range(1, 23)))
"""In seconds: 0.02 (the frame alone, up to 50 a second), then 0.05 to 1.1, as long as 33 frames of 30 a second."""
WITHIN = 0.001
"""F1. The window chosen is the shortest that comes so near to the best: a tenth of a point is less than chance moves,
and long windows swallow short, rare action units first."""
SHOWN = {1, 2, 4, 6, 8, 12, 16, 24, 32} | {0.02, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8}
"""Lengths that a short table shows, beside the best one; a list of windows up to ``FEW`` is shown whole."""
FEW = 10


@dataclass(frozen=True)
class Curves:
    """F1 of some scores at every window, [W, A] each; NaN for AUs without annotation."""

    split: str
    clips: int
    source_videos: int
    half: Floats
    """Active where the smoothed probability is >= 0.5."""
    tuned: Floats
    """At each AU's best threshold on ``val`` for that very window."""

    def mean(self, at: At) -> Floats:
        """Mean over the annotated AUs, [W]; NaN if there is none."""
        values = self.tuned if at == "tuned" else self.half
        known = ~np.isnan(values).all(axis=0)
        return values[:, known].mean(axis=1) if known.any() else np.full(len(values), np.nan)


@dataclass(frozen=True)
class Tuning:
    """What every window length gives."""

    aus: tuple[int, ...]
    unit: Unit
    sizes: tuple[float, ...]
    """[W] rising, in ``unit``."""
    at: At
    """Which curve of ``val`` the windows are chosen by."""
    val: Curves
    reported: Curves | None = None
    """Of further scores, with the thresholds of ``val``; never selected on."""
    leak: str | None = None
    """The sentence to print if ``reported`` shares clips or recordings with ``val``."""

    @property
    def best(self) -> int:
        """Place in ``sizes`` of the window for all AUs: the shortest within ``WITHIN`` of the best mean F1."""
        return _shortest(self.val.mean(self.at))

    @property
    def best_by_au(self) -> tuple[int | None, ...]:
        """The same for each AU by its own F1; None for an AU that ``val`` has no positive of."""
        values = self.val.tuned if self.at == "tuned" else self.val.half
        return tuple(_shortest(column) if np.nanmax(column, initial=0.0) > 0 else None for column in values.T)

    @property
    def best_size(self) -> float:
        """Length of the best window, in ``unit``."""
        return self.sizes[self.best]

    @property
    def setting(self) -> str:
        """The best window as ``--set`` takes it."""
        name = "smooth" if self.unit == "frames" else "smooth_s"
        return f"post.{name}={self.best_size:g}"

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``tune.json``; what is not defined is None."""
        names = [au_name(number) for number in self.aus]
        own = [None if place is None else self.sizes[place] for place in self.best_by_au]
        curves = {"val": self.val} | ({} if self.reported is None else {"reported": self.reported})
        return {
            "unit": self.unit,
            "sizes": list(self.sizes),
            "selected_by": f"mean F1 on {self.val.split}, {_title(self.at)}",
            "rule": _rule(),
            "best": self.best_size,
            "setting": self.setting,
            "best_by_au": dict(zip(names, own, strict=True)),
            "leak": self.leak,
            **{
                key: {
                    "split": found.split,
                    "clips": found.clips,
                    "source_videos": found.source_videos,
                    **{
                        at: {
                            "mean": _plain(found.mean(at)),
                            **{name: _plain(column) for name, column in zip(names, values.T, strict=True)},
                        }
                        for at, values in _both(found)
                    },
                }
                for key, found in curves.items()
            },
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row per split, thresholds and window, for ``tune.csv``."""
        found = []
        for curves in filter(None, (self.val, self.reported)):
            for at, values in _both(curves):
                for size, mean, by_au in zip(self.sizes, curves.mean(at), values, strict=True):
                    plain = _plain(np.append(mean, by_au))
                    names = ("mean", *(au_name(number) for number in self.aus))
                    found.append(
                        {"split": curves.split, "thresholds": _title(at), "window": size, "unit": self.unit}
                        | dict(zip(names, plain, strict=True))
                    )
        return found

    def text(self, verbose: bool = False) -> str:
        """The answer, then a table of windows in percent; all windows and each AU's own if ``verbose``."""
        best, mean = self.best, self.val.mean(self.at)
        lines = [
            f"best window: {self._length(best)}, mean F1 {_percent(mean[best])} on {self.val.split} {_title(self.at)} "
            f"(at {self._length(0)}: {_percent(mean[0])})",
            f"{self.val.clips} clips of {self.val.source_videos} source videos; chosen is {_rule()} ({self.setting})",
        ]
        if self.leak is not None:
            lines.append(self.leak)
        columns = [
            (f"{curves.split} {'tuned' if at == 'tuned' else 'at .5'}", curves.mean(at))
            for curves in (self.val, self.reported)
            if curves is not None
            for at in ("half", "tuned")
        ]
        lines += ["", f"{'window':<14}" + "".join(f"{title[:16]:>17}" for title, _ in columns)]
        for place in range(len(self.sizes)) if verbose else self._shown:
            cells = "".join(f"{_percent(values[place]):>17}" for _, values in columns)
            lines.append(f"{self._length(place):<14}{cells}{'  <- best' if place == best else ''}")
        if self.reported is not None:
            lines.append(f"{self.reported.split}: thresholds of {self.val.split}; nothing was selected on it")
        own = self._own_windows()
        if not verbose:
            return "\n".join([*lines, *own[-1:], "-v: all windows, and each action unit's own"])
        return "\n".join([*lines, "", *own])

    def pictures(self) -> "dict[str, Figure]":
        """``tune``: the curves of mean F1, and how F1 of each AU changes against the shortest window."""
        from fusion.pictures import heatmap, line_style, new_figure, styled

        shown = [place for place in self._shown if place] or [0]
        with styled():
            figure = new_figure(9.6, 0.8 + 0.3 * max(len(self.aus), 9))
            left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
            number = 0
            for curves in filter(None, (self.val, self.reported)):
                for at in ("tuned", "half"):
                    left.plot(
                        self.sizes,
                        100 * curves.mean(at),
                        label=f"{curves.split}, {_title(at)}",
                        markevery=max(1, len(self.sizes) // 10),
                        **line_style(number),
                    )
                    number += 1
            left.axvline(self.best_size, color="#7f7f7f", linewidth=0.8, linestyle="--")
            left.set(xlabel=f"window ({self._unit})", ylabel="mean F1 (%)")
            left.set_title(f"Best on {self.val.split}: {self._length(self.best)}")
            left.legend()
            values = self.val.tuned if self.at == "tuned" else self.val.half
            change = 100 * (values - values[0])[shown].T  # [A, shown], in points
            heatmap(
                right,
                change,
                [au_name(number) for number in self.aus],
                [f"{self.sizes[place]:g}" for place in shown],
                most=max(1.0, float(np.nanmax(np.abs(change), initial=0.0))),
                digits=1,
            )
            right.set(xlabel=f"window ({self._unit})")
            right.set_title(f"Change of F1 against {self._length(0)} (points)")
        return {"tune": figure}

    @property
    def _shown(self) -> list[int]:
        """Places of a short table: always the first and the best."""
        places = range(len(self.sizes))
        return [
            place for place in places if len(places) <= FEW or place in {0, self.best} or self.sizes[place] in SHOWN
        ]

    @property
    def _unit(self) -> str:
        return "frames" if self.unit == "frames" else "s"

    def _length(self, place: int) -> str:
        size = self.sizes[place]
        return "1 frame" if (self.unit, size) == ("frames", 1) else f"{size:g} {self._unit}"

    def _own_windows(self) -> list[str]:
        """A line for each AU with its own best window, and their mean."""
        values = self.val.tuned if self.at == "tuned" else self.val.half
        lines = [f"{'':<14}{'own window':>12}{'F1':>8}{'at best':>9}{'at ' + self._length(0):>12}"]
        gained = []
        for number, place, column in zip(self.aus, self.best_by_au, values.T, strict=True):
            if place is None:
                absent = "not annotated" if np.isnan(column[0]) else "no positive"
                lines.append(f"{au_name(number):<14}{'-':>12}  {absent} in {self.val.split}")
                gained.append(column[0])
            else:
                cells = f"{_percent(column[place]):>8}{_percent(column[self.best]):>9}{_percent(column[0]):>12}"
                lines.append(f"{au_name(number):<14}{self._length(place):>12}{cells}")
                gained.append(column[place])
        known = np.array(gained)[~np.isnan(gained)]
        mean = float(known.mean()) if len(known) else float("nan")
        lines.append(f"each action unit at its own window: mean F1 {_percent(mean)}, on the frames it was chosen on")
        return lines


def tune(
    val: FrameScores,
    *,
    unit: Unit = "frames",
    sizes: Sequence[float] | None = None,
    no_face: NoFace = "network",
    at: At = "tuned",
    reported: FrameScores | None = None,
    allow_leak: bool = False,
) -> Tuning:
    """F1 at every window length, after smoothing alone: without temperature and equations between AUs.

    Args:
        val: what the windows are chosen on.
        sizes: window lengths in ``unit``; None: ``FRAMES`` or ``SECONDS``.
        no_face: see ``PostConfig.no_face``.
        at: choose by F1 with each AU's best threshold, or by F1 at 0.5.
        reported: further scores, shown beside with the thresholds of ``val``.
        allow_leak: show them even if they share clips or recordings with ``val``; ``Tuning.leak`` then says so.

    Raises:
        UsageError: nothing is annotated in ``val``, a window is none, ``reported`` is of other AUs, or it shares clips
            or recordings with ``val``.
    """
    wanted = tuple(sorted({float(size) for size in (sizes or {"frames": FRAMES, "seconds": SECONDS}[unit])}))
    for size in wanted:
        if not 0 < size < float("inf") or (unit == "frames" and size != int(size)):
            expected = "a whole number from 1" if unit == "frames" else "a number above 0"
            raise UsageError(f"a window of {size:g} {unit}: expected {expected}")
    if not (val.labels >= 0).any():
        raise UsageError(f"split {val.facts.get('split', 'val')}: no annotated frame to choose a window on")
    leak = None
    if reported is not None:
        if reported.aus != val.aus:
            raise UsageError(f"windows chosen for {', '.join(val.au_names)}, reported {', '.join(reported.au_names)}")
        leak = check_disjoint(SelectedOn.of(val), reported, allow_leak, "windows")
    everything = [val] if reported is None else [val, reported]
    half: list[list[Floats]] = [[] for _ in everything]
    tuned: list[list[Floats]] = [[] for _ in everything]
    for size in wanted:
        windows = Windows((size,) * len(val.aus), unit)
        thresholds = np.empty(0)
        for place, scores in enumerate(everything):
            probabilities = sigmoid(smoothed(scores, windows, no_face))
            if scores is val:
                thresholds = best_thresholds(val.labels, probabilities).thresholds
            half[place].append(_f1(scores, probabilities, UNTUNED))
            tuned[place].append(_f1(scores, probabilities, thresholds))
    found = [
        Curves(
            split=str(scores.facts.get("split", name)),
            clips=len(scores.clips),
            source_videos=len(set(scores.source_videos)),
            half=np.array(half[place]),
            tuned=np.array(tuned[place]),
        )
        for place, (scores, name) in enumerate(zip(everything, ("val", "reported"), strict=False))
    ]
    return Tuning(val.aus, unit, wanted, at, found[0], found[1] if reported is not None else None, leak)


def _f1(scores: FrameScores, probabilities: Floats, thresholds: Floats | float) -> Floats:
    counts = confusion(scores.labels, (probabilities >= thresholds).astype(np.int8))
    return np.where(counts.annotated > 0, counts.f1, np.nan)


def _shortest(f1: Floats) -> int:
    """The first place within ``WITHIN`` of the best."""
    return int(np.flatnonzero(f1 >= f1.max() - WITHIN)[0])


def _rule() -> str:
    return f"the shortest within {100 * WITHIN:.1f} points of the best"


def _both(curves: Curves) -> tuple[tuple[At, Floats], tuple[At, Floats]]:
    return ("half", curves.half), ("tuned", curves.tuned)


def _title(at: At) -> str:
    return "with tuned thresholds" if at == "tuned" else "at 0.5"


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.1f}"


def _plain(values: Floats) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
