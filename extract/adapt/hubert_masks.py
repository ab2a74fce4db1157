"""Which steps are hidden from the network: spans of equal length at random places, as many in every row."""

import numpy as np
from numpy.typing import NDArray

LEAST_SPANS = 2


def draw_masks(
    rows: int, steps: int, random: np.random.Generator, *, share: float = 0.8, span: int = 10
) -> NDArray[np.bool_]:
    """bool [rows, steps], True where a step is hidden.

    fairseq's "static" spans: ``share * steps / span`` of them, rounded up or down by chance, begin at different places
    and may overlap; 0.8 and 10 hide 57 % of a long row. Then steps of every row are uncovered at random until all
    rows hide as many as the row that hid fewest: each row of a batch counts the same.

    No span reaches the last step: starts are drawn from [0, steps - span).

    Args:
        random: where all chance comes from; the same state gives the same masks.

    Raises:
        ValueError: the rows are too short for the spans.
    """
    masks = np.zeros((rows, steps), dtype=bool)
    for row in masks:
        spans = max(LEAST_SPANS, int(share * steps / span + random.random()))
        if steps - span < spans:
            raise ValueError(f"{steps} steps are too few for {spans} spans of {span}")
        for start in random.choice(steps - span, spans, replace=False):
            row[start : start + span] = True
    fewest = int(masks.sum(axis=1).min())
    for row in masks:
        hidden = np.flatnonzero(row)
        row[random.choice(hidden, len(hidden) - fewest, replace=False)] = False
    return masks
