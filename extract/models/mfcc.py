"""Mel cepstra of 16 kHz speech, as Kaldi computes them: what HuBERT's first targets are clusters of.

Kaldi's ``compute-mfcc-feats`` with its defaults, no dither and no energy, and differences over time (Furui 1986): 13
cepstra, 13 first and 13 second differences, 100 rows a second.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

HOP, SEEN, HZ = 160, 400, 16_000
"""Samples from row to row (10 ms), those that a row sees (25 ms)."""
FFT, BANKS, CEPSTRA = 512, 23, 13
LOWEST_HZ, HIGHEST_HZ = 20.0, 8000.0
PREEMPHASIS, WINDOW_POWER, LIFTER = 0.97, 0.85, 22
LEAST_ENERGY = 2.0**-23
"""float32's epsilon: the logarithm of silence."""
WIDTH = 3 * CEPSTRA
ROWS = 6000
"""Rows that are computed together (a minute)."""


def num_rows(num_samples: int) -> int:
    """Rows of so many samples; only whole windows count."""
    return max(0, (num_samples - SEEN) // HOP + 1)


def mfcc(wave: "Callable[[int, int], Tensor]", num_samples: int) -> "Tensor":
    """float32 [rows, 39]: cepstra, their first and second differences.

    Args:
        wave: gives samples [start, stop) in [-1, 1].
    """
    import torch

    rows = num_rows(num_samples)
    parts = []
    for start in range(0, rows, ROWS):
        stop = min(start + ROWS, rows)
        parts.append(cepstra(wave(HOP * start, HOP * (stop - 1) + SEEN)))
    values = torch.cat(parts)
    first = differences(values)
    return torch.cat([values, first, differences(first)], dim=1).float()


def cepstra(wave: "Tensor") -> "Tensor":
    """float64 [rows, 13] of samples [n]."""
    import torch

    frames = wave.double().unfold(0, SEEN, HOP)  # [rows, 400]
    frames = frames - frames.mean(dim=1, keepdim=True)
    before = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
    window = torch.hann_window(SEEN, periodic=False, dtype=torch.float64, device=wave.device) ** WINDOW_POWER
    spectrum = torch.fft.rfft((frames - PREEMPHASIS * before) * window, n=FFT).abs().square()[:, :-1]  # [rows, 256]
    energy = (spectrum @ _banks().T.to(wave.device)).clamp(min=LEAST_ENERGY).log()
    bank, order = torch.arange(BANKS) + 0.5, torch.arange(CEPSTRA)
    cosines = torch.cos(math.pi / BANKS * bank[:, None].double() * order) * math.sqrt(2 / BANKS)
    cosines[:, 0] = math.sqrt(1 / BANKS)
    lift = 1 + LIFTER / 2 * torch.sin(math.pi * order.double() / LIFTER)
    found: Tensor = energy @ (cosines * lift).to(wave.device)
    return found


def differences(values: "Tensor") -> "Tensor":
    """Slopes over five rows [rows, D]; the first and last row are repeated beyond the ends."""
    import torch

    padded = torch.cat([values[:1].expand(2, -1), values, values[-1:].expand(2, -1)])
    return (2 * (padded[4:] - padded[:-4]) + padded[3:-1] - padded[1:-3]) / 10


def _banks() -> "Tensor":
    """[23, 256]: triangles of equal width in mel over the bins of the spectrum below the highest."""
    import torch

    def mel(hz: "Tensor") -> "Tensor":
        return 1127.0 * torch.log1p(hz / 700.0)

    ends = mel(torch.tensor([LOWEST_HZ, HIGHEST_HZ], dtype=torch.float64))
    edges = torch.linspace(float(ends[0]), float(ends[1]), BANKS + 2, dtype=torch.float64)
    bins = mel(torch.arange(FFT // 2, dtype=torch.float64) * HZ / FFT)[None]
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0)
