"""A clip stage's compute, in a lane: the whole clip in, arrays as the store will hold them out."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from extract.errors import ClipError
from extract.running.clip_inputs import ClipInputs
from extract.running.device import LocalEngine
from extract.running.recipes import Prepared
from extract.running.rows import as_declared, stored_form
from extract.stage import ClipStage, Output, Stage
from extract.timeline import FrameClock, Regular


@dataclass(frozen=True)
class Result:
    """What a clip stage gave, as the store will hold it."""

    stored: Mapping[Output, NDArray[Any]]
    rows: Mapping[str, int]
    """Output -> how many; none at all where there is nothing."""
    notes: Mapping[str, Any]
    empty: str | None


def compute_clip(engine: LocalEngine, prepared: Prepared, stage: Stage[Any], inputs: Mapping[str, Any]) -> Result:
    """A clip stage's compute, in a lane. What its results are fetched for belongs to it: errors of a GPU show there."""
    name = prepared.instance.name
    device = engine.device_of(stage)
    start = time.perf_counter()
    with engine.guarded(name, whole_clip=True):
        on_device = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in inputs.items()}
        result = cast("ClipStage[Any]", stage).compute(on_device)
        if result.empty and not result.arrays:
            return Result({}, {}, result.notes, result.empty)
        arrays = as_declared(stage, result.arrays, None)
        if set(arrays) != {output.name for output in stage.outputs}:
            raise ClipError("broken_promise", f"gave {sorted(arrays)}, declares more")
        stored = {}
        for output in prepared.instance.kept:
            values = arrays[output.name]
            is_text = output.dtype == "str"
            stored[output] = np.asarray(values, dtype=object) if is_text else stored_form(values, output, prepared)
    if device.type == "cuda":  # its results were waited for
        engine.add_computed(time.perf_counter() - start)
    return Result(stored, {name: len(values) for name, values in arrays.items()}, result.notes, result.empty)


def check_rows(
    prepared: Prepared,
    output: Output,
    rows: int,
    inputs: Mapping[str, Any],
    num_frames: int | None,
    brought: ClipInputs,
) -> None:
    """Raise ClipError where an array is not as long as its clock says."""
    if isinstance(output.clock, FrameClock) and rows != num_frames:
        raise ClipError("broken_promise", f"{output.name}: {rows} rows, expected {num_frames}, one per frame")
    if isinstance(output.clock, Regular):
        for declared in prepared.instance.stage.inputs:
            sound_hz = brought.sound_hz(prepared.instance.source_of(declared)[0])
            if sound_hz is None:
                continue
            duration_s = Fraction(len(inputs[declared]), sound_hz)
            expected = output.clock.num_steps(duration_s)
            if rows != expected:
                heard = f"{float(duration_s):.2f} s at hop {output.clock.hop_s}"
                found = f"{rows} steps, expected {expected} for {heard}; was the audio cut?"
                raise ClipError("broken_promise", f"{output.name}: {found}")
