"""Pictures of analyses: one look for all of them, saved as PNG and SVG, readable when printed in grey.

Lines differ by dashes and markers, bars by hatches, and every cell of a heatmap holds its number: colour only helps.
matplotlib is imported when a picture is drawn, through ``Figure`` and not ``pyplot``: no window, no global state.

::

    with styled():
        figure = new_figure(6.4, 4.0)
        axes = figure.subplots()
        axes.plot(x, y, label="thresholds tuned", **line_style(0))
    save_figure(figure, "runs/NAME/tune", "windows")
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from extract.files import LocalFiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")
DOTS_PER_INCH = 160

COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's, which colour-blind readers tell apart, without yellow (too pale on white); dark before light."""
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "----", "++++")
FILLS = ("#4d4d4d", "#ffffff", "#bdbdbd", "#e6e6e6", "#f2f2f2", "#d9d9d9", "#969696")

STYLE: dict[str, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#d9d9d9",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.0,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "svg.hashsalt": "fusion",  # else every SVG has random ids, and two runs differ
}
HEAT = "RdBu_r"
"""Grows darker with the size of a number, blue below zero and red above; in grey the number's own sign is left."""


@contextmanager
def styled() -> Iterator[None]:
    """Draw inside this: the settings of ``STYLE`` hold, and the caller's are as before afterwards."""
    import matplotlib as mpl
    from matplotlib import style

    with mpl.rc_context():
        mpl.rcdefaults()  # a matplotlibrc of the user's would change every picture
        style.use(STYLE)
        yield


def new_figure(width_in: float, height_in: float) -> "Figure":
    """An empty figure of that size in inches, whose parts make room for each other."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width_in, height_in), layout="constrained")


def line_style(number: int) -> dict[str, Any]:
    """Colour, dashes and marker of the line ``number`` (from 0), for ``axes.plot``; all differ up to 28 lines."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": DASHES[number % len(DASHES)],
        "marker": MARKERS[number % len(MARKERS)],
    }


def bar_style(number: int) -> dict[str, Any]:
    """Fill and hatch of the group of bars ``number`` (from 0), for ``axes.bar``; all differ up to seven groups."""
    return {
        "facecolor": FILLS[number % len(FILLS)],
        "hatch": HATCHES[number % len(HATCHES)],
        "edgecolor": "black",
        "linewidth": 0.6,
    }


def heatmap(
    axes: "Axes", values: ArrayLike, rows: Sequence[str], columns: Sequence[str], *, most: float = 1.0, digits: int = 2
) -> None:
    """Draw ``values`` [R, C] as cells as dark as they are large, positive or negative, each with its number.

    ``most`` is the size that is darkest. A value that is not there (NaN) is a dash on white.
    """
    found = np.asarray(values, dtype=np.float64)
    filled = np.nan_to_num(found) / most
    # The map's last quarter is left out: a number must stay readable on the darkest cell.
    axes.imshow(filled * 0.75, cmap=HEAT, vmin=-1.0, vmax=1.0, aspect="auto")
    for row, column in np.ndindex(found.shape):
        value = float(found[row, column])
        axes.text(
            column,
            row,
            "-" if np.isnan(value) else _short(value, digits),
            ha="center",
            va="center",
            fontsize=7.5,
            color="white" if abs(filled[row, column]) > 0.75 else "black",
        )
    axes.set_xticks(range(len(columns)), columns)
    if max(map(len, columns), default=0) > 3:  # side by side they would run into each other
        for label in axes.get_xticklabels():
            label.set(rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(True)


def save_figure(figure: "Figure", folder: str | Path, name: str) -> list[Path]:
    """Write ``folder/name.png`` and ``folder/name.svg``; each replaces the old file in one step.

    The same figure gives the same bytes: no date and no random ids are in them.

    Raises:
        MachineError: the disk is full, read-only or gone.
    """
    files = LocalFiles(Path(folder))
    found = []
    for kind in FORMATS:
        buffer = io.BytesIO()
        with styled():
            figure.savefig(
                buffer,
                format=kind,
                dpi=DOTS_PER_INCH,
                metadata={"Software": None} if kind == "png" else {"Date": None},
            )
        files.write(f"{name}.{kind}", buffer.getvalue())
        found.append(files.path(f"{name}.{kind}"))
    return found


def _short(value: float, digits: int) -> str:
    """``.32``, ``-.05``, ``1.00``, but ``0.5``: no leading zero before two digits, no negative zero."""
    text = f"{value:.{digits}f}"
    if not float(text):
        text = text.lstrip("-")
    return text.replace("0.", ".", 1) if digits > 1 and abs(float(text)) < 1 else text
