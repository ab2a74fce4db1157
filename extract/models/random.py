"""Weights drawn by parameter name: the same numbers on every torch, so that their sha256 is the same too."""

import math
import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray


def normal(seed: str, name: str, shape: int | tuple[int, ...]) -> NDArray[np.float64]:
    """Standard normal numbers of one tensor, float64, C order. Depends on seed, name and shape alone.

    ``normal("golden", "probe", 3)`` is 0.107316065, 1.591334673, -0.117412338 with NumPy 1.26 and 2.4.
    """
    bits = np.random.PCG64(zlib.crc32(f"{seed}:{name}".encode()))
    return np.random.Generator(bits).standard_normal(shape)


def draw(shapes: Mapping[str, tuple[int, ...]], seed: str) -> dict[str, NDArray[np.float32]]:
    """A network's tensors by name, scaled so that the signal neither dies out nor explodes on its way through.

    With z the tensor's normal numbers and fan_in the product of all axes but the first:

    ==============================================  =========================
    convolutions (three axes and more)              z sqrt(2 / fan_in)
    matrices                                        z sqrt(1 / fan_in)
    one axis called ``weight`` (a norm's scale)     1 + 0.1 z
    more axes, all but one of length 1              1 + 0.1 z (weight norm's magnitude)
    one axis called ``running_var`` (variances)     exp(0.2 z)
    every other one-axis tensor (biases, shifts)    0.1 z
    ==============================================  =========================
    """

    def one(name: str) -> NDArray[np.float32]:
        # np.asarray: of a tensor without axes, arithmetic makes a scalar.
        return np.asarray(_scaled(name, normal(seed, name, shapes[name])), np.float32)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # HuBERT's billion takes half a minute on one core
        return dict(zip(shapes, pool.map(one, shapes), strict=True))


def _scaled(name: str, z: NDArray[np.float64]) -> NDArray[Any]:
    is_vector = z.size == max(z.shape, default=1)
    if is_vector and (z.ndim > 1 or name.rpartition(".")[2] == "weight"):
        return 1 + 0.1 * z
    if name.rpartition(".")[2] == "running_var":
        return np.exp(0.2 * z)
    if z.ndim <= 1:
        return 0.1 * z
    gain = 2 if z.ndim > 2 else 1
    return z * math.sqrt(gain / math.prod(z.shape[1:]))
