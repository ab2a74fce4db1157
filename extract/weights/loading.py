"""From tensors to networks: every tensor that a network has, and no other."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from extract.errors import WeightsError
from extract.weights.files import Weights

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def check_config(weights: Weights, architecture: str, expected: object, fields: Sequence[str]) -> None:
    """What no tensor's shape shows (heads, norms, strides) must be as ``config.json`` says, where there is one.

    Args:
        expected: the config that the network was built from; its attributes ``fields`` are compared.

    Raises:
        WeightsError: lists the fields that differ.
    """
    found = weights.read_json("config.json")
    if found is None:
        return
    wanted = {name: _plain(getattr(expected, name)) for name in fields}
    wrong = [
        f"{name} {found[name]!r}, expected {wanted[name]!r}"
        for name in fields
        if name in found and _plain(found[name]) != wanted[name]
    ]
    if wrong:
        raise WeightsError(
            f"weights {weights.spec!r}: config.json is not of architecture {architecture}: {'; '.join(wrong)}"
        )


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def load_strictly(model: "nn.Module", tensors: "Mapping[str, Tensor]", spec: str, *, assign: bool = False) -> None:
    """Fill ``model``: every tensor that it has, and no other, each of the same shape.

    Args:
        assign: take the tensors themselves instead of copying them (for a model on the meta device).

    Raises:
        WeightsError: lists what is missing, unexpected, and of another shape.
    """
    _check_fit(model.state_dict(), tensors, spec)
    model.load_state_dict(dict(tensors), assign=assign)


def fill(
    model: "nn.Module",
    tensors: "dict[str, Tensor]",
    spec: str,
    device: "torch.device | str" = "cpu",
    precision: "torch.dtype | None" = None,
) -> None:
    """``load_strictly`` for a network without numbers, straight onto ``device``.

    One tensor after another: ``tensors`` is empty in the end, so the network is not in memory twice. The network owns
    its numbers: none lies in the file any more.

    Args:
        model: built on the meta device or in ``unfilled()``.
        tensors: as ``Weights.tensors`` gives them.
        precision: of the floating point numbers; the network's own when absent.

    Raises:
        WeightsError: lists what is missing, unexpected, and of another shape.
    """
    import torch

    wanted = model.state_dict()
    _check_fit(wanted, tensors, spec)
    placed = {}
    for name, own in wanted.items():
        kind = precision if precision and own.is_floating_point() else own.dtype
        placed[name] = torch.empty(own.shape, dtype=kind, device=device)
        placed[name].copy_(tensors.pop(name))
    model.load_state_dict(placed, assign=True)
    model.to(device, precision)  # the buffers that no file holds


def _check_fit(wanted: "Mapping[str, Tensor]", found: "Mapping[str, Tensor]", spec: str) -> None:
    wanted_shapes, found_shapes = (
        {name: tuple(tensor.shape) for name, tensor in tensors.items()} for tensors in (wanted, found)
    )
    faults = listed(wanted_shapes, found_shapes)
    if faults:
        raise WeightsError(f"weights {spec!r} do not fit: {faults}. Is the architecture in the config the right one?")


def listed(
    wanted: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    more: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """What is missing, unexpected and of another shape, in words; empty where nothing is. ``more``: further faults."""
    faults: dict[str, Sequence[str]] = {
        "missing": sorted(wanted.keys() - found.keys()),
        "unexpected": sorted(found.keys() - wanted.keys()),
        "of another shape": [
            f"{name} {found[name]}, expected {wanted[name]}"
            for name in sorted(wanted.keys() & found.keys())
            if found[name] != wanted[name]
        ],
        **(more or {}),
    }
    return "; ".join(f"{len(names)} {kind} ({_few(names)})" for kind, names in faults.items() if names)


def _few(names: Sequence[str], most: int = 5) -> str:
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
