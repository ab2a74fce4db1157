"""Where the 14 levels of a GH-Feat code lie among the values that are kept.

The encoder gives 14 x 1024 numbers, but levels 8 to 13 repeat a shorter vector 2, 4 or 8 times to fill 1024 places.
What is kept are the distinct ones, level after level: 8 x 1024 + 2 x 512 + 2 x 256 + 2 x 128 = 9,984.

========  ===========  ======  ==============  ============  ==================================
level     values each  copies  kept at         encoder map   generator layers of (pixels)
========  ===========  ======  ==============  ============  ==================================
0 to 3    1024         1       0 to 4095       res6, 4x4     4, 4, 8, 8
4 to 7    1024         1       4096 to 8191    res5, 8x8     16, 16, 32, 32
8, 9      512          2       8192 to 9215    res4, 16x16   64, 64
10, 11    256          4       9216 to 9727    res4          128, 128
12, 13    128          8       9728 to 9983    res4          256, 256
========  ===========  ======  ==============  ============  ==================================

A level's values are the AdaIN parameters of one generator layer: first all scales, then all shifts.
"""

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

COPIES = (1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 4, 4, 8, 8)
"""How often each of the 14 levels repeats its values in the encoder's full output."""


def level_slices(width: int = 1024) -> tuple[slice, ...]:
    """Level -> its place in a code of distinct values. ``width``: places of a level, 1024 in the published encoder."""
    ends = accumulate((width // copies for copies in COPIES), initial=0)
    return tuple(slice(start, stop) for start, stop in pairwise(ends))


def num_values(width: int = 1024) -> int:
    """Distinct values of a code: 9,984 of the published encoder's 14,336."""
    return sum(width // copies for copies in COPIES)


def unfold(code: "Tensor") -> "Tensor":
    """``code`` [..., 9984] as the encoder gives it, [..., 14, 1024]: every level repeated until it is full.

    A short level v becomes v v, v v v v ...: whole copies one after the other, no zeros.

    Raises:
        ValueError: the last axis is no code's.
    """
    import torch

    width = code.shape[-1] * 1024 // num_values()
    if width % max(COPIES) or num_values(width) != code.shape[-1] or not width:
        raise ValueError(f"{code.shape[-1]} values are no GH-Feat code; the published encoder's has {num_values()}")
    places = zip(level_slices(width), COPIES, strict=True)
    levels = [torch.cat([code[..., where]] * copies, dim=-1) for where, copies in places]
    return torch.stack(levels, dim=-2)
