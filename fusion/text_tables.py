"""Plain tables of results that fit 100 columns, and the same as CSV."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 100
TITLE, CELL = 18, 6
AUS_PER_BLOCK = (WIDTH - TITLE) // CELL - 1
"""Columns of AUs side by side, with one of means: 12."""


def au_table(columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> list[str]:
    """Lines of a table with a column per AU and a last one of means; more AUs than fit go below each other."""
    lines: list[str] = []
    for start in range(0, len(columns) - 1, AUS_PER_BLOCK):
        shown = slice(start, min(start + AUS_PER_BLOCK, len(columns) - 1))
        last = slice(-1, None) if shown.stop == len(columns) - 1 else slice(0, 0)
        lines.append(_au_row("", [*columns[shown], *columns[last]]))
        lines += [_au_row(title, [*cells[shown], *cells[last]]) for title, cells in rows.items()]
    return lines


def _au_row(title: str, cells: Sequence[str]) -> str:
    return (f"{title:<{TITLE}}" + "".join(f"{cell:>{CELL}}" for cell in cells)).rstrip()


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose columns are as wide as they must be; the first is text, the others are numbers."""
    whole = [header, *rows]
    widths = [max(len(row[place]) for row in whole) for place in range(len(header))]
    return [
        "  ".join(
            f"{cell:<{width}}" if place == 0 else f"{cell:>{width}}"
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in whole
    ]


def wrapped(text: str, indent: str = "  ") -> list[str]:
    """``text`` in lines of at most 100 columns, the second and later ones indented."""
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > WIDTH:
            lines.append(line)
            line = indent + word
        else:
            line = f"{line} {word}" if line else word
    return [*lines, line] if line else lines


def percent(value: float | None) -> str:
    """``45.1``; a dash for what is not there (None or NaN)."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def signed(value: float | None) -> str:
    """``+1.2`` points; a dash for what is not there."""
    if value is None:
        return "-"
    text = f"{100 * value:+.1f}"
    return "+0.0" if text == "-0.0" else text


def span(interval: tuple[float, float] | None, *, sign: bool = False) -> str:
    """``38.2 to 49.9``; a dash without an interval."""
    if interval is None:
        return "-"
    return " to ".join(signed(end) if sign else percent(end) for end in interval)


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys, under a line of those keys. What is not there (None) is an empty cell."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
