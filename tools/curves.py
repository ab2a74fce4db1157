"""Draws a clip's predicted probabilities over its true labels, a panel for each action unit: a PNG.

    fusion predict demo/clips/S10_1.mp4 --run demo/run -o demo
    python tools/curves.py demo/S10_1.csv demo/clips/S10_1.au.csv -o demo/curves.png

The first file is what `fusion predict` wrote, the second a label file of the same movie (a row per frame).
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from extract.au import AUS, au_name
from extract.inputs.annotations import read_au

COLUMNS, PANEL_W, PANEL_H, MARGIN, TOP = 3, 380, 120, 16, 30
SCALE = 2
"""Drawn at twice the size and reduced: Pillow's lines have no soft edges."""
BACKGROUND, AXIS, TRUE, LINE, TEXT = (255, 255, 255), (190, 190, 190), (253, 216, 160), (24, 90, 170), (40, 40, 40)


def read_predicted(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Times [T] and probabilities [T, 12] of a table of `fusion predict`; NaN where it has no number."""
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    times = np.array([float(row["pts_s"]) for row in rows])
    named = [f"{au_name(au)}_p" for au in AUS]
    return times, np.array([[float(row[name]) if row[name] else np.nan for name in named] for row in rows])


def draw(times: NDArray[np.float64], predicted: NDArray[np.float64], true: NDArray[np.int8], title: str) -> Image.Image:
    """Twelve panels: probability over time as a line, frames labelled active as bands behind it."""
    rows = -(-len(AUS) // COLUMNS)
    size = (COLUMNS * PANEL_W + MARGIN, rows * PANEL_H + TOP + MARGIN)
    sheet = Image.new("RGB", (size[0] * SCALE, size[1] * SCALE), BACKGROUND)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13 * SCALE)
    pen.text((MARGIN * SCALE, 8 * SCALE), title, fill=TEXT, font=font)
    span = float(times[-1] - times[0]) or 1.0
    for i, au in enumerate(AUS):
        left, top = MARGIN + i % COLUMNS * PANEL_W, TOP + i // COLUMNS * PANEL_H

        def at(time_s: float, value: float, left: int = left, top: int = top) -> tuple[float, float]:
            x = left + (time_s - times[0]) / span * (PANEL_W - MARGIN)
            return x * SCALE, (top + 20 + (1 - value) * (PANEL_H - 34)) * SCALE

        pen.text((left * SCALE, (top + 2) * SCALE), au_name(au), fill=TEXT, font=font)
        step = span / max(len(times) - 1, 1)
        for time_s, active in zip(times, true[:, i], strict=True):
            if active == 1:
                pen.rectangle((*at(time_s - step / 2, 1.0), *at(time_s + step / 2, 0.0)), fill=TRUE)
        for value in (0.0, 0.5, 1.0):
            pen.line((*at(times[0], value), *at(times[-1], value)), fill=AXIS, width=1)
        for k in range(1, len(times)):
            before, after = predicted[k - 1, i], predicted[k, i]
            if not np.isnan(before) and not np.isnan(after):
                pen.line((*at(times[k - 1], before), *at(times[k], after)), fill=LINE, width=2 * SCALE)
    return sheet.resize(size, Image.Resampling.LANCZOS)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predicted", type=Path, help="table of `fusion predict`")
    parser.add_argument("labels", type=Path, help="label file of the same movie")
    parser.add_argument("-o", "--output", type=Path, required=True, help="PNG to write")
    asked = parser.parse_args(arguments)
    times, predicted = read_predicted(asked.predicted)
    true = read_au(asked.labels).au
    if len(true) != len(times):
        raise SystemExit(f"{asked.labels}: {len(true)} rows of labels for {len(times)} frames of {asked.predicted}")
    span = f"{asked.predicted.stem}, {times[0]:.1f} to {times[-1]:.1f} s"
    title = f"{span}: probability, 0 to 1 (line), and frames labelled active (bands)"
    draw(times, predicted, true, title).save(asked.output, optimize=True)
    print(f"{asked.output}: {len(times)} frames of {asked.predicted.stem}")


if __name__ == "__main__":
    main()
