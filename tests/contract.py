"""Promises that every stage keeps. A stage's test inherits them and adds its own oracle.

Subclass RowsContract or ClipContract in a class named ``Test...`` and say how to make the stage and its inputs; the
tests are inherited. The methods take no fixtures, so that tests/test_contract_catches.py can run them on stages that
are wrong on purpose.
"""

import copy
import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from extract.errors import EMPTY_REASONS
from extract.registry import STAGES
from extract.stage import ClipResult, ClipStage, Context, Output, RowsStage, Stage
from extract.timeline import FrameClock, Regular, Table
from extract.weights import resolving

CPU = torch.device("cpu")


def context(stage: Stage[Any]) -> Context:
    """What the runner gives on a CPU; ``weights`` of the config must be ``random``, a path, or in a package."""
    spec = stage.weights
    resolved = (
        None
        if spec is None or spec in stage.weightless
        else resolving.resolve(spec, stage, cache=Path("no-such-cache"), offline=True)
    )
    return Context(CPU, torch.float32, resolved)


def assert_declared(output: Output, values: Any, num_rows: int) -> None:
    if isinstance(values, list):  # rows that differ in size
        assert None in output.sizes, f"{output.name}: a list, though its rows are of one size"
        assert len(values) == num_rows, output.name
        for row in values:
            fits = [want in {None, have} for want, have in zip(output.sizes, row.shape, strict=True)]
            assert all(fits), f"{output.name}: a row of {tuple(row.shape)}"
            assert row.dtype == getattr(torch, output.dtype), output.name
        return
    assert isinstance(values, Tensor)
    assert tuple(values.shape) == (num_rows, *output.sizes), f"{output.name}: {tuple(values.shape)}"
    # Models compute wider than the store keeps: float32 may stand for float16, which the runner narrows it to.
    allowed = {getattr(torch, output.dtype)} | ({torch.float32} if output.dtype == "float16" else set())
    assert values.dtype in allowed, f"{output.name}: {values.dtype}, declared {output.dtype}"
    assert values.isfinite().all(), f"{output.name} is not finite"


def assert_near(found: Tensor, expected: Tensor, what: str, relative: float = 1e-5) -> None:
    """Within ``relative`` of the largest value, in float32; whole numbers and coarser types within one last place."""
    if not expected.numel():
        assert not found.numel(), what
        return
    if found.is_floating_point():
        relative = max(relative, torch.finfo(found.dtype).eps)
        room = relative * float(expected.abs().max())
    else:
        room = float(found.dtype == torch.uint8)
    off = (found.double() - expected.double()).abs().max()
    assert float(off) <= room, f"{what}: {float(off)} apart, at most {room}"


def assert_same(found: Any, expected: Any, what: str) -> None:
    """Equal to the bit, through mappings and lists."""
    if isinstance(expected, Mapping):
        assert set(found) == set(expected), what
        for key in expected:
            assert_same(found[key], expected[key], f"{what}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), what
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert_same(a, b, f"{what}[{i}]")
    elif isinstance(expected, Tensor):
        assert found.dtype == expected.dtype, what
        assert torch.equal(found, expected), f"{what} differs"
    else:
        assert found == expected, what


def at_once(compute: Callable[[Any], Any], inputs: Sequence[Any]) -> list[Any]:
    """``compute`` of each, all begun together in threads of their own."""
    begin = threading.Barrier(len(inputs))

    def begun(given: Any) -> Any:
        begin.wait()
        return compute(given)

    with ThreadPoolExecutor(len(inputs)) as pool:
        return list(pool.map(begun, inputs))


Row = Mapping[str, Tensor]


class StageContract:
    def stage(self) -> Stage[Any]:
        """A new stage, not set up."""
        raise NotImplementedError

    def ready(self) -> Any:
        stage = self.stage()
        stage.setup(context(stage))
        return stage

    def test_is_registered_under_its_name(self):
        assert STAGES[self.stage().name] is type(self.stage())

    def test_declarations_are_consistent(self):
        stage = self.stage()
        names = [output.name for output in stage.outputs]
        assert len(set(names)) == len(names)
        assert isinstance(stage.config, stage.config_type)
        assert stage.version >= 1
        for output in stage.outputs:
            assert len(output.dims) == len(output.sizes), output.name
            assert not (output.kept and None in output.sizes), f"{output.name}: kept arrays have fixed sizes"


class RowsContract(StageContract):
    """Promises of a rows stage. ``row(seed)`` gives one row's inputs; different seeds, different rows."""

    ragged: frozenset[str] = frozenset({"frames.image"})
    """Inputs that arrive as a list."""
    precision_across_sizes = 1e-5

    def row(self, seed: int) -> Row:
        raise NotImplementedError

    def batch(self, *seeds: int) -> dict[str, Any]:
        rows = [self.row(seed) for seed in seeds]
        return {
            name: [row[name] for row in rows] if name in self.ragged else torch.stack([row[name] for row in rows])
            for name in rows[0]
        }

    def test_writes_what_it_declares(self):
        stage: RowsStage[Any] = self.ready()
        found = stage.compute(self.batch(1, 2, 3))
        declared = {output.name: output for output in stage.outputs}
        assert found.keys() | {"valid"} == declared.keys() | {"valid"}
        assert "valid" in declared or "valid" not in found
        for name, values in found.items():
            assert_declared(declared[name], values, 3)

    def test_a_row_does_not_depend_on_its_companions(self):
        """Bitwise at the same place of an equally large batch, whatever else is in it."""
        stage: RowsStage[Any] = self.ready()
        one, other = stage.compute(self.batch(1, 2, 3, 4)), stage.compute(self.batch(5, 6, 3, 7))
        for name in one:
            assert_same(one[name][2], other[name][2], name)

    def test_a_row_does_not_depend_on_the_size_of_its_batch(self):
        """And stands where its input stood."""
        stage: RowsStage[Any] = self.ready()
        together = stage.compute(self.batch(4, 1, 3, 2, 1))
        for i, seed in enumerate((4, 1, 3, 2, 1)):
            alone = stage.compute(self.batch(seed))
            for name in together:
                if stage.row_by_row:
                    assert_same(together[name][i], alone[name][0], f"{name}, row {i}, computed row by row")
                assert_near(together[name][i], alone[name][0], f"{name}, row {i}", self.precision_across_sizes)

    def test_rows_differ(self):
        """Else nothing above could fail."""
        stage: RowsStage[Any] = self.ready()
        found = stage.compute(self.batch(1, 2))
        assert any(not torch.equal(values[0], values[1]) for values in found.values())

    def test_leaves_its_inputs_alone(self):
        stage: RowsStage[Any] = self.ready()
        batch = self.batch(1, 2)
        before = copy.deepcopy(batch)
        stage.compute(batch)
        assert_same(batch, before, "input")

    def test_gives_the_same_values_twice(self):
        stage: RowsStage[Any] = self.ready()
        first = copy.deepcopy(stage.compute(self.batch(1, 2)))
        stage.compute(self.batch(3, 4))
        assert_same(stage.compute(self.batch(1, 2)), first, "output")
        assert_same(self.ready().compute(self.batch(1, 2)), first, "output of a new stage")

    def test_threads_may_compute_at_once(self):
        """On one stage, each a batch of its own."""
        stage: RowsStage[Any] = self.ready()
        batches = [self.batch(1, 2), self.batch(3, 4), self.batch(5, 6), self.batch(2, 7)]
        in_turn = [copy.deepcopy(stage.compute(batch)) for batch in batches]
        for found, expected in zip(at_once(stage.compute, batches), in_turn, strict=True):
            for name in expected:
                for i in range(2):
                    assert_near(found[name][i], expected[name][i], f"{name}, row {i}", self.precision_across_sizes)


@dataclasses.dataclass(frozen=True)
class ClipInputs:
    """One clip for a clip stage."""

    inputs: Mapping[str, Any]
    num_frames: int | None = None
    """Rows expected on the frame clock."""
    duration_s: Fraction | None = None
    """Of the recording, for regular clocks."""
    start_s: float = 0.0
    """Of the recording."""


class ClipContract(StageContract):
    """Promises of a clip stage. ``clips()`` gives clips of several lengths, unsorted, empty ones too."""

    def clips(self) -> list[ClipInputs]:
        raise NotImplementedError

    def test_writes_what_it_declares(self):
        stage: ClipStage[Any] = self.ready()
        declared = {output.name: output for output in stage.outputs}
        for clip in self.clips():
            found = stage.compute(clip.inputs)
            assert found.empty is None or found.empty in EMPTY_REASONS
            if found.empty is not None and not found.arrays:
                continue
            assert found.arrays.keys() == declared.keys()
            lengths = {output.clock: len(found.arrays[name]) for name, output in declared.items()}
            for name, values in found.arrays.items():
                output = declared[name]
                of_table = isinstance(output.clock, Table)  # its rows are one for all its columns
                num_rows = lengths[output.clock] if of_table else self._num_rows(output, clip)
                if output.dtype == "str":
                    assert isinstance(values, list)
                    assert [type(value) for value in values] == [str] * num_rows
                    continue
                assert_declared(output, values, num_rows)

    def test_steps_stand_on_their_clock(self):
        """``centre_s`` of a regular clock is that clock's own: increasing, from the recording's start."""
        stage: ClipStage[Any] = self.ready()
        clocks = [output.clock for output in stage.outputs if output.name == "centre_s"]
        for clip in self.clips():
            centres = stage.compute(clip.inputs).arrays.get("centre_s")
            for clock in clocks if centres is not None else ():
                assert isinstance(clock, Regular)
                assert isinstance(centres, Tensor)
                exact = [clip.start_s + float(clock.window_s / 2 + k * clock.hop_s) for k in range(len(centres))]
                assert_near(centres, torch.tensor(exact, dtype=torch.float64), "centre_s", 1e-12)

    def test_a_clip_does_not_depend_on_the_clips_before_it(self):
        stage: ClipStage[Any] = self.ready()
        clips = self.clips()
        in_turn = [self._snapshot(stage.compute(clip.inputs)) for clip in clips]
        for clip, before in zip(reversed(clips), reversed(in_turn), strict=True):
            assert_same(self._snapshot(stage.compute(clip.inputs)), before, "output")
            assert_same(self._snapshot(self.ready().compute(clip.inputs)), before, "output of a new stage")

    def test_clips_differ(self):
        """Else nothing above could fail."""
        stage: ClipStage[Any] = self.ready()
        found = [self._snapshot(stage.compute(clip.inputs)) for clip in self.clips()]
        assert len({repr(result) for result in found}) > 1

    def test_leaves_its_inputs_alone(self):
        stage: ClipStage[Any] = self.ready()
        for clip in self.clips():
            before = copy.deepcopy(clip.inputs)
            stage.compute(clip.inputs)
            assert_same(clip.inputs, before, "input")

    def test_threads_may_compute_at_once(self):
        """On one stage, each a clip of its own."""
        stage: ClipStage[Any] = self.ready()
        clips = [clip.inputs for clip in self.clips()]
        in_turn = [self._snapshot(stage.compute(inputs)) for inputs in clips]
        for result, expected in zip(at_once(stage.compute, clips), in_turn, strict=True):
            found = self._snapshot(result)
            assert_same({**found, "arrays": {}}, {**expected, "arrays": {}}, "what is said of the clip")
            assert_same(sorted(found["arrays"]), sorted(expected["arrays"]), "arrays")
            for name, values in expected["arrays"].items():
                if isinstance(values, Tensor):
                    assert found["arrays"][name].shape == values.shape, name
                    assert_near(found["arrays"][name], values, name)
                else:
                    assert_same(found["arrays"][name], values, name)

    @staticmethod
    def _snapshot(result: ClipResult) -> dict[str, Any]:
        return {"arrays": copy.deepcopy(dict(result.arrays)), "notes": dict(result.notes), "empty": result.empty}

    @staticmethod
    def _num_rows(output: Output, clip: ClipInputs) -> int:
        if isinstance(output.clock, FrameClock):
            assert clip.num_frames is not None
            return clip.num_frames
        assert isinstance(output.clock, Regular)
        assert clip.duration_s is not None
        return output.clock.num_steps(clip.duration_s)
