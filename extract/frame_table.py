"""A clip's arrays as columns with one row per frame, for notebooks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from extract.au import au_name
from extract.errors import WeightsError

TIMES = "pts_s"


@dataclass(frozen=True, eq=False, repr=False)
class FrameTable:
    """Columns on the frame clock of one clip: ``table["swin.feature"]`` is [T, D]."""

    clip: str
    columns: Mapping[str, NDArray[Any]]
    """``pts_s`` [T], seconds; then ``instance.array`` [T, ...] for every array. ``instance.valid`` [T], where an
    instance has it, says which rows hold values: the others are 0."""
    dims: Mapping[str, tuple[str, ...]]
    """Column -> names of its axes after the first."""
    aus: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Column of action units -> their numbers, in the order of its values: ``labels.au``, ``labels.intensity``."""

    def __getitem__(self, column: str) -> NDArray[Any]:
        if column not in self.columns:
            raise KeyError(f"{column!r}: the table of clip {self.clip} has {', '.join(self.columns)}")
        return self.columns[column]

    def __len__(self) -> int:
        return len(self.columns[TIMES])

    def __repr__(self) -> str:
        lines = [f"  {name}  {values.dtype} {list(values.shape)}" for name, values in self.columns.items()]
        return "\n".join([f"clip {self.clip}, {len(self)} frames", *lines])

    def to_pandas(self) -> Any:  # noqa: ANN401 - a pandas.DataFrame
        """A ``pandas.DataFrame`` with a row per frame.

        An array with several values per frame becomes a column for each: ``swin.feature.0``, ``landmarks.point.0.1``;
        the action units of ``labels.au`` become ``labels.AU01`` ..., of ``labels.intensity`` ``labels.intensity.AU01``.

        Raises:
            WeightsError: pandas is not installed.
        """
        try:
            pandas = import_module("pandas")
        except ModuleNotFoundError as error:
            raise WeightsError("FrameTable.to_pandas needs pandas: pip install pandas") from error
        parts = [
            pandas.DataFrame(values.reshape(len(values), -1), columns=self._flat_names(name))
            for name, values in self.columns.items()
        ]
        frame = pandas.concat(parts, axis=1)
        frame.index.name = "frame"
        return frame

    def to_xarray(self) -> Any:  # noqa: ANN401 - an xarray.Dataset
        """An ``xarray.Dataset`` with a variable for each array and ``pts_s`` as a coordinate of the axis ``frame``.

        Other axes are named after their array, ``swin.feature.feature``: two arrays may use one name for different
        sizes.

        Raises:
            WeightsError: xarray is not installed.
        """
        try:
            xarray = import_module("xarray")
        except ModuleNotFoundError as error:
            raise WeightsError("FrameTable.to_xarray needs xarray: pip install xarray") from error
        variables, coordinates = {}, {TIMES: ("frame", self.columns[TIMES])}
        for name, values in self.columns.items():
            if name == TIMES:
                continue
            axes = [f"{name}.{dim}" for dim in self.dims[name]]
            variables[name] = (("frame", *axes), values)
            if name in self.aus:
                coordinates[axes[0]] = (axes[0], np.array([au_name(number) for number in self.aus[name]]))
        return xarray.Dataset(variables, coords=coordinates, attrs={"clip": self.clip})

    def _flat_names(self, name: str) -> list[str]:
        """A name for every value of a row."""
        if name in self.aus:
            return [f"{name.removesuffix('au').removesuffix('.')}.{au_name(number)}" for number in self.aus[name]]
        return [".".join([name, *map(str, place)]) for place in product(*map(range, self.columns[name].shape[1:]))]
