"""Rows of arrays on their way: checked against what a stage declares, picked, joined, narrowed to the store's types."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from extract.errors import ClipError
from extract.running import transfer
from extract.running.recipes import Prepared
from extract.running.tasks import Promise
from extract.stage import Output, Stage

Values = Tensor | list[Tensor]
"""B rows: one Tensor where they are of one size, else a list."""


def as_declared(stage: Stage[Any], computed: Mapping[str, Any], num_rows: int | None) -> dict[str, Values]:
    """What a stage gave, if it is what it declared (``valid`` may be absent).

    Raises:
        ClipError: ``broken_promise``: a name, a number of rows, a size or a type is another.
    """
    declared = {output.name: output for output in stage.outputs}
    if set(computed) | {"valid"} != set(declared) | {"valid"} or (set(computed) - set(declared)):
        raise ClipError("broken_promise", f"gave {sorted(computed)}, declares {sorted(declared)}")
    values = {}
    for name, array in computed.items():
        output = declared[name]
        if num_rows is not None and len(array) != num_rows:
            raise ClipError("broken_promise", f"{name}: {len(array)} rows for {num_rows} given")
        is_text = output.dtype == "str"
        if is_text and not (isinstance(array, list) and all(isinstance(row, str) for row in array)):
            raise ClipError("broken_promise", f"{name}: declares text, gave something else")
        for row in array if isinstance(array, list) and not is_text else ():
            _check_form(output, tuple(row.shape), row.dtype)
        if isinstance(array, Tensor):
            _check_form(output, tuple(array.shape[1:]), array.dtype)
        values[name] = array
    return values


def fixed(values: Values, output: Output) -> Values:
    """Rows as whoever is fed gets them: one Tensor where ``output`` declares fixed sizes, else a list.

    Raises:
        ClipError: ``broken_promise``: the rows of a fixed-size output differ in size.
    """
    if None in output.sizes or isinstance(values, Tensor):
        return values
    for row in values:
        _check_form(output, tuple(row.shape), row.dtype)
    return torch.stack(values) if values else no_rows(output)


def stored_form(values: Values, output: Output, prepared: Prepared) -> NDArray[Any]:
    """Values as the store holds them.

    Raises:
        ClipError: ``not_finite`` or ``overflow``; says which setting may help.
    """
    name, in_half = prepared.instance.name, prepared.precision == "float16"
    tensor = torch.stack(values) if isinstance(values, list) else values
    if not tensor.is_floating_point():
        return tensor.cpu().numpy().astype(output.dtype, copy=False)
    array = tensor.float().cpu().numpy() if tensor.dtype == torch.bfloat16 else tensor.cpu().numpy()
    narrow = array.dtype == np.float16
    if np.isnan(array).any() or (not narrow and not np.isfinite(array).all()):
        helps = f"; float16 ends at 65504: --set {name}.precision=bfloat16" if in_half else ""
        raise ClipError("not_finite", f"{output.name}: NaN or infinity among the computed values{helps}")
    with np.errstate(over="ignore"):
        stored = array.astype(output.dtype, copy=False)
    if not np.isfinite(stored).all():
        most = float(np.abs(array.astype(np.float64)).max())
        also = f" --set {name}.precision=bfloat16" if in_half else ""
        said = f"{output.name}: {most:.4g} does not fit {output.dtype}; --set {name}.dtype=float32{also}"
        raise ClipError("overflow", said)
    return stored


def _check_form(output: Output, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    fits = len(sizes) == len(output.sizes) and all(
        want in {None, have} for want, have in zip(output.sizes, sizes, strict=True)
    )
    if not fits:
        raise ClipError("broken_promise", f"{output.name}: rows of {sizes}, declares {output.sizes}")
    name = str(dtype).removeprefix("torch.")
    # Models compute wider than the store keeps; the runner narrows and looks for overflow.
    wider = output.dtype == "float16" and name in {"float32", "bfloat16"}
    if name != output.dtype and not wider:
        raise ClipError("broken_promise", f"{output.name}: {name}, declares {output.dtype}")


def as_stored(values: Values, stage: Stage[Any], name: str) -> Values:
    declared = next(output.dtype for output in stage.outputs if output.name == name)
    if isinstance(values, list) or not values.is_floating_point():
        return values
    return values.to(getattr(torch, declared))


def own(values: Values) -> Values:
    """Rows that keep no larger picture alive: a patch cut out of a frame is a view of all of it."""
    if not isinstance(values, list):
        return values
    return [row if row.untyped_storage().nbytes() == row.nbytes else row.clone() for row in values]


class Piece:
    """Consecutive results on their way to later nodes: some rows of one array, in rising order."""

    def __init__(self, rows: NDArray[np.int64], values: Values) -> None:
        self.rows, self.values = rows, values
        """Where they were made."""
        self.host: Values | None = None
        """Fetched from the device."""
        self.fetching: Promise[None] | None = None
        """Until then."""
        self._uploaded: Values | None = None

    @property
    def num_bytes(self) -> int:
        """Of the values, without copies elsewhere."""
        return sum(row.nbytes for row in self.values) if isinstance(self.values, list) else self.values.nbytes

    def on(self, device: torch.device) -> Values:
        """The values where a stage wants them. Called by one thread for each device."""
        made_on = self.values.device if isinstance(self.values, Tensor) else _device_of(self.values)
        if made_on is None or made_on.type == device.type:
            return self.values
        if device.type == "cpu":
            if self.host is None:
                raise RuntimeError("rows of a device are wanted before they were fetched")
            return self.host
        if self._uploaded is None:
            self._uploaded = transfer.upload(self.values, device)
        return self._uploaded


def take(pieces: Sequence[Piece], rows: NDArray[np.int64], device: torch.device) -> Values:
    """``rows`` (each in one of ``pieces``), on ``device``; no copy where they are a piece as it stands."""
    parts: list[Values] = []
    for piece in pieces:
        wanted = rows[np.isin(rows, piece.rows, assume_unique=True)]
        if len(wanted) == 0:
            continue
        values = piece.on(device)
        if len(wanted) < len(piece.rows):
            at = np.searchsorted(piece.rows, wanted)
            if isinstance(values, list):
                values = [values[i] for i in at]
            elif at[-1] - at[0] + 1 == len(at):  # neighbours
                values = values[at[0] : at[-1] + 1]
            else:
                values = values[transfer.index(at, device)]
        parts.append(values)
    return parts[0] if len(parts) == 1 else join(parts)


def choose(values: Values, chosen: NDArray[np.bool_]) -> Values:
    """Those rows. By number: of a mask the device would have to say how many it names."""
    if chosen.all():
        return values
    at = np.flatnonzero(chosen)
    return [values[i] for i in at] if isinstance(values, list) else values[transfer.index(at, values.device)]


def join(pieces: list[Values]) -> Values:
    if isinstance(pieces[0], list):
        return [row for piece in pieces for row in piece]
    return torch.cat(cast(list[Tensor], pieces))


def no_rows(output: Output) -> Values:
    if None in output.sizes:
        return []
    sizes = cast(tuple[int, ...], output.sizes)
    return torch.zeros((0, *sizes), dtype=getattr(torch, output.dtype))


def _device_of(values: list[Tensor]) -> torch.device | None:
    return next((row.device for row in values), None)
