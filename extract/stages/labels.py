"""Annotations of a clip, one row per frame."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from extract.au import AFFECT_NOT_ANNOTATED, AUS, NOT_ANNOTATED
from extract.errors import ClipError
from extract.stage import ClipResult, ClipStage, Output, StageConfig
from extract.timeline import FRAMES

if TYPE_CHECKING:
    from torch import Tensor


class LabelsConfig(StageConfig):
    added: ClassVar[frozenset[str]] = frozenset({"aus", "also"})

    label_slack: int = Field(default=2, ge=0)
    """Rows that a label file may lack or have too many at its end: annotators' decoders drop or repeat a frame."""
    aus: tuple[int, ...] = AUS
    """Numbers of the action units that ``au`` and ``intensity`` hold, in the order of their columns."""
    also: tuple[Literal["va", "intensity"], ...] = ()
    """Arrays beside ``au`` and ``expr``: valence and arousal, intensities of the action units."""

    @field_validator("aus")
    @classmethod
    def _each_once(cls, aus: tuple[int, ...]) -> tuple[int, ...]:
        if not aus or len(set(aus)) != len(aus) or not all(1 <= number <= 9999 for number in aus):
            raise ValueError(f"{list(aus)}: expected numbers of action units, each once, such as [1, 2, 4]")
        return aus

    @field_validator("also")
    @classmethod
    def _in_one_order(cls, also: tuple[str, ...]) -> tuple[str, ...]:
        """However it was written: a recipe says it one way."""
        return tuple(kind for kind in ("va", "intensity") if kind in also)


class Labels(ClipStage[LabelsConfig]):
    """Action units and expression as annotated, -1 where not. Own fingerprint, input to no other stage.

    Valence and arousal (-5 where not annotated, as -1 is a value of theirs) and intensities (-1) where the config asks
    for them; ``au`` and ``expr`` are always there.
    """

    name = "labels"
    version = 1
    config_type = LabelsConfig
    inputs = ("frames.pts_s",)
    reread = frozenset({"labels", "labels.va", "labels.intensity"})

    def __init__(self, config: LabelsConfig) -> None:
        super().__init__(config)
        # A file that is not asked for is no part of the source: an edit of it leaves the instance alone.
        self.parts = ("labels", *(f"labels.{kind}" for kind in config.also))

    @property
    def aus(self) -> tuple[int, ...]:
        """What the config names."""
        return self.config.aus

    @property
    def outputs(self) -> tuple[Output, ...]:
        """``au`` and ``expr``, and what ``also`` names."""
        width = len(self.config.aus)
        further = {
            "va": Output("va", FRAMES, ("affect",), (2,), "float32"),
            "intensity": Output("intensity", FRAMES, ("au",), (width,), "int8"),
        }
        return (
            Output("au", FRAMES, ("au",), (width,), "int8"),
            Output("expr", FRAMES, (), (), "int8"),
            *(further[kind] for kind in self.config.also),
        )

    def compute(self, inputs: Mapping[str, Any]) -> ClipResult:
        """``labels.au``: int8 [N, A] or None; ``labels.expr``: int8 [N] or None; row i belongs to frame i.

        ``labels.va`` float32 [N, 2] and ``labels.intensity`` int8 [N, A], or None, where the config asks for them.
        For the two tables of action units, ``..._listed``: row N - 1 is the last annotated frame, and the clip may be
        longer; ``..._left_out``: names of columns that are not asked for. ``labels.named``: kinds that the manifest
        names.
        """
        num_frames = len(inputs["frames.pts_s"])
        kinds = [output.name for output in self.outputs]
        missed: dict[str, Any] = {}
        if not_imported := [kind for kind in inputs["labels.named"] if kind not in kinds]:
            missed["not_imported"] = ", ".join(not_imported)
        if all(inputs[f"labels.{kind}"] is None for kind in kinds):
            return ClipResult({}, missed, empty="no_labels")
        arrays: dict[str, Any] = {}
        notes: dict[str, Any] = {}
        for output in self.outputs:
            rows = inputs[f"labels.{output.name}"]
            listed = inputs.get(f"labels.{output.name}_listed", False)
            arrays[output.name] = self._fitted(output, rows, num_frames, listed=listed)
            if rows is not None and len(rows) != num_frames and not (listed and len(rows) < num_frames):
                notes[f"{output.name}_rows"] = len(rows)
        if notes:
            notes["frames"] = num_frames
        if left_out := [name for kind in kinds for name in inputs.get(f"labels.{kind}_left_out", ())]:
            notes["left_out_aus"] = ", ".join(left_out)
        return ClipResult(arrays, notes | missed)

    def _fitted(self, output: Output, rows: "Tensor | None", num_frames: int, *, listed: bool) -> "Tensor":
        """``rows`` with one row per frame: cut, or filled with what says `not annotated`, at the end."""
        import torch

        absent = AFFECT_NOT_ANNOTATED if output.name == "va" else NOT_ANNOTATED
        sizes = [size for size in output.sizes if size is not None]  # all of them are
        fitted = torch.full((num_frames, *sizes), absent, dtype=getattr(torch, output.dtype))
        if rows is None:
            return fitted
        slack = self.config.label_slack
        if abs(len(rows) - num_frames) > slack and not (listed and len(rows) < num_frames):
            raise ClipError(
                "labels_mismatch",
                f"{len(rows)} label rows for {num_frames} frames, expected at most {slack} more or fewer; "
                "are they this video's labels?",
            )
        common = min(len(rows), num_frames)
        fitted[:common] = rows[:common]
        return fitted
