"""When each token of a text is spoken: the path of its cross-attention through the sound.

The method is that of Whisper's own word timestamps: heads whose attention follows the speech, smoothed, averaged, and a
monotonic path through them by dynamic time warping (Sakoe and Chiba 1978).
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

POSITIONS_PER_S = 50
"""Of the encoder, side by side."""
MEDIAN_POSITIONS = 7
"""Width of the median over time that takes single spikes out."""


def token_times(attention: "Tensor", num_prompt: int) -> NDArray[np.float64]:
    """Where each token of the text begins and the last one ends, seconds, float64 [N + 1]; never decreasing.

    A position attends to what the token *after* it says: the row of the prompt's last token follows the first token of
    the text, and so on; the row of the text's last token says where the text ends.

    Args:
        attention: [H, P + N + 1, F], weights of H heads for the prompt, the text and the end token, over the F
            positions that the piece fills; what lies on the silence behind it is cut off.
        num_prompt: P, at least 1.
    """
    matrix = _evidence(attention)[num_prompt - 1 : -1]  # [N + 1, F]
    return first_columns(-matrix.cpu().double().numpy()) / POSITIONS_PER_S


def _evidence(attention: "Tensor") -> "Tensor":
    """Mean over heads of weights that are comparable between tokens, [rows, F]."""
    import torch

    weights = attention.float()
    tiny = torch.finfo(torch.float32).tiny
    weights = weights / weights.sum(-1, keepdim=True).clamp_min(tiny)  # as if the cut positions had never been there
    # Over the tokens: a position that all attend to says nothing.
    std, mean = torch.std_mean(weights, dim=-2, keepdim=True, correction=0)
    weights = (weights - mean) / std.clamp_min(tiny)
    return _median(weights).mean(0)


def _median(weights: "Tensor") -> "Tensor":
    """Running median over the last axis, mirrored at its ends; of a shorter axis, itself."""
    from torch.nn import functional

    side = MEDIAN_POSITIONS // 2
    if weights.shape[-1] <= side:
        return weights
    around = functional.pad(weights, (side, side), mode="reflect").unfold(-1, MEDIAN_POSITIONS, 1)
    return around.sort(-1).values[..., side]


def first_columns(cost: NDArray[np.float64]) -> NDArray[np.int64]:
    """Column at which the cheapest path enters each row, [R]; the first one is 0.

    The path leads from the upper left to the lower right corner by steps down, right or both at once, and costs the sum
    of the cells that it visits. Where steps cost the same, right is preferred, then down, as in Whisper's program.

    Args:
        cost: [R, C], finite.
    """
    rows, columns = cost.shape
    # Anti-diagonals, each computed at once from the two before it: cell (i, j) lies on diagonal i + j at place i.
    best = np.full((3, rows + 1), np.inf)  # of the last three diagonals; place 0 stands above the first row
    step = np.zeros((rows + columns - 1, rows), dtype=np.int8)  # 0 both, 1 down, 2 right
    flat, number = np.ascontiguousarray(cost).ravel(), np.arange(rows)
    for diagonal in range(rows + columns - 1):
        first, last = max(0, diagonal - columns + 1), min(rows, diagonal + 1)
        before, above = best[(diagonal - 2) % 3], best[(diagonal - 1) % 3]
        both, down, right = before[first:last], above[first:last], above[first + 1 : last + 1]
        chosen = np.where((both < down) & (both < right), 0, np.where((down < both) & (down < right), 1, 2))
        came = np.where(chosen == 0, both, np.where(chosen == 1, down, right))
        if diagonal == 0:
            came = np.zeros(1)
        now = best[diagonal % 3]
        now[:] = np.inf
        places = number[first:last]
        now[first + 1 : last + 1] = came + flat[places * columns + (diagonal - places)]
        step[diagonal, first:last] = chosen
    found = np.zeros(rows, dtype=np.int64)
    i, j = rows - 1, columns - 1
    while i > 0 or j > 0:
        move = 1 if j == 0 else 2 if i == 0 else int(step[i + j, i])
        if move != 2:
            found[i] = j
            i -= 1
        j -= move != 1
    return found
