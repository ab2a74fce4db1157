"""Runs of the first format (schema 1): the same network under other names."""

import json
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

_GRU = re.compile(r"(?P<branch>.+\.encode)\.(?P<way>forwards|backwards)\.(?P<layer>\d+)\.(?P<part>\w+_l0)$")
_MOMENT = re.compile(r"(?P<branch>branches\.\w+)\.(?P<what>mean|scale)$")


def model_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a ``model.pt`` of schema 1 as this program writes it: twelve AUs, one task, renamed tensors."""
    config = json.loads(state["config"])
    if config["model"].get("missing") == "zeros":
        config["model"]["missing"] = "zero_output"
    tensors: Mapping[str, Tensor] = state["model"]
    return {
        **state,
        "config": json.dumps(config),
        "model": {renamed(name): value for name, value in tensors.items()},
    }


def renamed(name: str) -> str:
    """The name of a tensor of schema 1 in today's network.

    A GRU layer held one module per direction; mean and deviation of the inputs lay in the branch.
    """
    if match := _GRU.fullmatch(name):
        suffix = "_reverse" if match["way"] == "backwards" else ""
        return f"{match['branch']}.layers.{match['layer']}.{match['part']}{suffix}"
    if match := _MOMENT.fullmatch(name):
        return f"{match['branch']}.project.{match['what']}"
    return name
