"""The weights of tests/golden, drawn again by name (the rules of its README)."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from extract.models.random import normal


def drawn(golden: Mapping[str, Any], rule: Any, *, prefix: str = "", keys: str = "") -> dict[str, Any]:
    """Name -> float32 array of every tensor that the file lists, in its order, checked by the first elements."""
    seed = str(golden["seed"])
    tensors = {}
    for name, text in zip(golden[f"{keys}names"], golden[f"{keys}shapes"], strict=True):
        shape = tuple(int(size) for size in str(text).split("x"))
        tensors[str(name)] = rule(str(name), shape, normal(seed, f"{prefix}{name}", shape)).astype(np.float32)
    first = [values.flat[0] for values in tensors.values()]
    assert np.array_equal(first, golden[f"{keys}first"]), "the numbers are not drawn as the golden ones were"
    return tensors


def ghfeat_rule(name: str, shape: tuple[int, ...], z: Any) -> Any:
    """TensorFlow layout: the last axis is the output."""
    last = name.rpartition("/")[2]
    if last == "gamma":
        return 1 + 0.1 * z
    if last == "moving_variance":
        return np.exp(0.2 * z)
    if last != "weight":
        return 0.1 * z
    gain = 2.0
    if name.endswith("Convc/weight"):
        gain = 0.5
    elif name.startswith(("HighLevel", "MidLevel", "LowLevel")):
        gain = 0.25
    elif name.startswith(("fpn", "fuse")):
        gain = 1.0
    return z * math.sqrt(gain / math.prod(shape[:-1]))


def rrdb_rule(name: str, shape: tuple[int, ...], z: Any) -> Any:
    if name == "conv_last.bias":
        return 0.5 + 0.1 * z
    if name.endswith(".bias"):
        return 0.1 * z
    gain = {"conv_body.weight": 1.0, "conv_last.weight": 0.003}.get(name, 2.0)
    if name.startswith("body.") and name.endswith(".conv5.weight"):
        gain = 50.0
    return z * math.sqrt(gain / math.prod(shape[1:]))


def srvgg_rule(name: str, shape: tuple[int, ...], z: Any) -> Any:
    if name.endswith(".bias"):
        return 0.1 * z
    if len(shape) == 1:
        return 0.25 + 0.05 * z
    return z * math.sqrt((0.05 if name == "body.10.weight" else 2.0) / math.prod(shape[1:]))
