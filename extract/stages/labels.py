"""Annotations of a clip, one row per frame."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from extract.au import AUS
from extract.errors import ClipError
from extract.inputs.annotations import NOT_ANNOTATED
from extract.stage import ClipResult, ClipStage, Output, StageConfig
from extract.timeline import FRAMES

if TYPE_CHECKING:
    from torch import Tensor


class LabelsConfig(StageConfig):
    label_slack: int = Field(default=2, ge=0)
    """Rows that a label file may lack or have too many at its end: annotators' decoders drop or repeat a frame."""


class Labels(ClipStage[LabelsConfig]):
    """Action units and expression as annotated, -1 where not. Own fingerprint, input to no other stage."""

    name = "labels"
    version = 1
    config_type = LabelsConfig
    inputs = ("frames.pts_s",)
    parts = ("labels",)
    reread = frozenset({"labels"})

    @property
    def outputs(self) -> tuple[Output, ...]:
        return (
            Output("au", FRAMES, ("au",), (len(AUS),), "int8"),
            Output("expr", FRAMES, (), (), "int8"),
        )

    def compute(self, inputs: Mapping[str, Any]) -> ClipResult:
        """``labels.au``: int8 [N, 12] or None; ``labels.expr``: int8 [N] or None; row i belongs to frame i.

        ``labels.left_out``: names of the label file's columns that are none of the twelve action units.
        """
        num_frames = len(inputs["frames.pts_s"])
        au, expr = inputs["labels.au"], inputs["labels.expr"]
        if au is None and expr is None:
            return ClipResult({}, empty="no_labels")
        sizes = {"au": (len(AUS),), "expr": ()}
        arrays: dict[str, Any] = {}
        notes: dict[str, Any] = {}
        for name, rows in (("au", au), ("expr", expr)):
            arrays[name] = self._fitted(rows, num_frames, sizes[name])
            if rows is not None and len(rows) != num_frames:
                notes[f"{name}_rows"] = len(rows)
        if notes:
            notes["frames"] = num_frames
        if inputs["labels.left_out"]:
            notes["left_out_aus"] = ", ".join(inputs["labels.left_out"])
        return ClipResult(arrays, notes)

    def _fitted(self, rows: "Tensor | None", num_frames: int, sizes: tuple[int, ...]) -> "Tensor":
        """``rows`` with one row per frame: cut, or filled with -1, at the end."""
        import torch

        fitted = torch.full((num_frames, *sizes), NOT_ANNOTATED, dtype=torch.int8)
        if rows is None:
            return fitted
        slack = self.config.label_slack
        if abs(len(rows) - num_frames) > slack:
            raise ClipError(
                "labels_mismatch",
                f"{len(rows)} label rows for {num_frames} frames, expected at most {slack} more or fewer; "
                "are they this video's labels?",
            )
        common = min(len(rows), num_frames)
        fitted[:common] = rows[:common]
        return fitted
