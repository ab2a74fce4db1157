"""Whether the naive chain computes what ours computes, where the algorithm is the same."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import extract
from benchmarks.naive_chain import STEPS, NaiveChain, Published, files_by_number, read_picture
from extract.config import ExtractConfig, InstanceConfig
from extract.graph import build_graph
from extract.inputs.manifest import Clip
from extract.models import realesrgan
from extract.models.ghfeat.levels import unfold
from extract.stage import Context, RowsStage
from extract.store import Store
from extract.weights.resolving import resolve

LEVELS_SHARE, ALIGN_SHARE = 0.999, 0.985
"""Least share of values within one level (crops, enlarged pictures), and of equal pixels (aligned pictures)."""
ROUNDING = 0.005
"""By how much less of our enlarged pictures may be within one level of float32 than of the scripts', in float16."""
APART = {torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 4e-2}
"""Most relative L2 distance of features by the networks' precision; a float16 store adds a rounding of 2e-4."""
STORED = 5e-4
WHOLE_APART = 0.2
"""Most median distance of GH-Feat through both whole chains: levels and landmarks that are one off add up."""


GATE_FRAMES = 12
"""Pictures of the clip that are compared; words of all."""


@dataclass(frozen=True)
class Gate:
    """One comparison."""

    step: str
    holds: bool
    found: str

    def __str__(self) -> str:
        return f"{self.step:18} {'' if self.holds else 'NOT EQUAL: '}{self.found}"


def check(config: ExtractConfig, clip: Clip, folder: Path, device: torch.device, precision: torch.dtype) -> list[Gate]:
    """Both ways over one clip, the scripts set as ours are: ``upsample`` and ``transform_size`` of the config.

    Each step is compared with our stage, fed what the step was fed; then what came of the whole chains. HuBERT is not:
    the scripts give it a window of each frame, ours the whole recording, as the authors' own data were made.
    """
    compared, steps = done_both_ways(config, clip, folder, device, precision)
    return compared.gates(steps)


def done_both_ways(
    config: ExtractConfig, clip: Clip, folder: Path, device: torch.device, precision: torch.dtype
) -> "tuple[Compared, list[str]]":
    """What both made of the clip, below ``folder``, and the steps of the chain.

    Raises:
        RuntimeError: our run failed.
    """
    stages = {name: instance.stage for name, instance in build_graph(config).items()}
    settings = Published(stages["landmarks"].config.upsample, stages["align"].config.transform_size)
    steps: list[str] = []
    for only, most in ((STEPS.keys() - {"hubert", "roberta"}, GATE_FRAMES), ({"roberta"}, None)):
        chain = NaiveChain(config, folder / "naive", device, precision, settings=settings, only=only, most_frames=most)
        chain.run([clip])
        steps += chain.steps
    report = extract.run([clip], folder / "store", _keeping_crops(config), device=str(device))
    if report.exit_code:
        raise RuntimeError(f"clip {clip.id}: our run failed: {report.failures}")
    store = Store.open(folder / "store")
    return Compared(config, store, clip, folder / "naive" / clip.id, device, precision), steps


def _keeping_crops(config: ExtractConfig) -> ExtractConfig:
    entry = config.instances.get("crop") or InstanceConfig()
    keeping = InstanceConfig.model_validate(entry.model_dump() | {"keep": ("image",)})
    return config.model_copy(update={"instances": {**config.instances, "crop": keeping}})


class Compared:
    """One clip, done by both."""

    def __init__(
        self, config: ExtractConfig, store: Store, clip: Clip, naive: Path, device: torch.device, precision: torch.dtype
    ) -> None:
        self._config, self._store, self._clip, self._naive = config, store, clip, naive
        self._device, self._precision = device, precision
        self._apart = APART[precision]

    def gates(self, steps: Iterable[str]) -> list[Gate]:
        known: Mapping[str, Callable[[], list[Gate]]] = {
            "crop": self._crop,
            "superres": self._superres,
            "align": self._landmarks_and_align,
            "ghfeat": self._ghfeat,
            "swin": self._swin,
            "roberta": self._roberta,
        }
        return [gate for name in steps if name in known for gate in known[name]()]

    def _crop(self) -> list[Gate]:
        stored, valid = self._stored("crop", "image")
        ours = {row + 1: stored[row] for row in np.flatnonzero(valid[:GATE_FRAMES]).tolist()}
        return [_levels("crop", ours, self._pictures("crop"))]

    def _superres(self) -> list[Gate]:
        patches, theirs = self._pictures("patch"), self._pictures("superres")
        images = [torch.from_numpy(patch) for patch in patches.values()]
        boxes = torch.zeros(len(images), 4)
        found = self._stage("superres", {"crop.patch": images, "crop.patch_box": boxes})["image"]
        ours = {number: image.cpu().numpy() for number, image in zip(patches, found, strict=True)}
        if self._precision == torch.float32:
            return [_levels("superres", ours, theirs)]
        # Two ways to round apart by more than either is from float32, which is therefore the judge.
        exact = self._superres_in_float32(patches)
        plain, fast = _within_one(theirs, exact), _within_one(ours, exact)
        told = f"{fast:.3%} of the levels within 1 of float32, the scripts' {plain:.3%} (at most {ROUNDING:.1%} fewer)"
        return [Gate("superres", fast >= plain - ROUNDING, told)]

    def _superres_in_float32(self, patches: Mapping[int, NDArray[np.uint8]]) -> dict[int, NDArray[np.uint8]]:
        stage: Any = build_graph(self._config)["superres"].stage
        upscaler = realesrgan.load(resolve(stage.config.weights, stage))
        upscaler.net.to(self._device)
        config = stage.config
        settings = realesrgan.Inference(config.tile, config.tile_pad, config.pre_pad, config.outscale)
        return {number: realesrgan.enhance(upscaler, patch, settings) for number, patch in patches.items()}

    def _landmarks_and_align(self) -> list[Gate]:
        enlarged, points = self._pictures("superres"), self._arrays("landmarks")
        if not points:
            return [Gate("align", False, f"the chain found no face in any of {len(enlarged)} enlarged pictures")]
        images = [torch.from_numpy(enlarged[number]) for number in points]
        boxes = torch.stack([_around(marks) for marks in points.values()])
        ours = self._stage("landmarks", {"superres.image": images, "superres.box": boxes})["point"]
        equal = float((ours.numpy() == np.stack(list(points.values()))).all(axis=(1, 2)).mean())
        marks = torch.from_numpy(np.stack(list(points.values())))
        made = self._stage("align", {"superres.image": images, "landmarks.point": marks})["image"].cpu().numpy()
        off = np.abs(made.astype(int) - np.stack(list(self._pictures("align").values())))
        same, most = float((off == 0).all(axis=-1).mean()), int(off.max())
        found = f"{same:.2%} of the pixels equal, {most} level apart at most (at least {ALIGN_SHARE:.1%}, 1)"
        return [
            Gate("landmarks", equal == 1, f"{equal:.0%} of the frames equal to the last bit"),
            Gate("align", same >= ALIGN_SHARE and most <= 1, found),
        ]

    def _ghfeat(self) -> list[Gate]:
        theirs = self._arrays("ghfeat")
        if not theirs:
            return [Gate("ghfeat", False, "the chain has no aligned picture")]
        images = torch.from_numpy(np.stack([self._pictures("align")[number] for number in theirs]))
        code = unfold(self._stage("ghfeat", {"align.image": images})["code"].cpu()).numpy()
        stored, valid = self._stored("ghfeat", "code")
        common = [number for number in theirs if valid[number - 1]]
        whole = [_distance(unfold(torch.from_numpy(stored[n - 1]).float()).numpy(), theirs[n]) for n in common]
        median = float(np.median(whole))
        found = f"median of {len(common)} frames {median:.1e} apart (at most {WHOLE_APART:g})"
        return [
            self._near("ghfeat", code, np.stack(list(theirs.values()))),
            Gate("ghfeat, whole chain", median <= WHOLE_APART, found),
        ]

    def _swin(self) -> list[Gate]:
        theirs, output = self._arrays("swin"), self._output("swin")
        images = torch.from_numpy(np.stack([self._pictures("crop")[number] for number in theirs]))
        ours = self._stage("swin", {"crop.image": images})[output].cpu().numpy()
        stored, _ = self._stored("swin", output)
        whole = np.stack([stored[number - 1] for number in theirs])
        expected = np.stack(list(theirs.values()))
        # A crop may be one level off in a thousandth of its values.
        return [self._near("swin", ours, expected), self._near("swin, whole chain", whole, expected, STORED + 1e-3)]

    def _roberta(self) -> list[Gate]:
        theirs = self._arrays("roberta")
        if self._store.record(self._clip.id, "roberta").state == "empty":  # type: ignore[union-attr]
            return [Gate("roberta", not theirs, f"no words; the chain has {len(theirs)} files")]
        token, _ = self._stored("roberta", "token")
        ranges, _ = self._stored("roberta", "range")
        spoken = {number: span for number, span in enumerate(ranges.tolist(), start=1) if span[0] < span[1]}
        if spoken.keys() != theirs.keys():
            return [Gate("roberta", False, f"words at {len(spoken)} frames, in the chain at {len(theirs)}")]
        ours = np.concatenate([token[start:stop] for start, stop in spoken.values()])
        return [self._near("roberta", ours, np.concatenate(list(theirs.values())), STORED)]

    # ---- what both left ----------------------------------------------------------------------------------------

    def _pictures(self, step: str) -> dict[int, NDArray[np.uint8]]:
        return {number: read_picture(path) for number, path in files_by_number(self._naive / step).items()}

    def _arrays(self, step: str) -> dict[int, NDArray[Any]]:
        return {number: np.load(path) for number, path in files_by_number(self._naive / step).items()}

    def _stored(self, instance: str, array: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        read = self._store.read(self._clip.id, instance, array)
        return read.values, np.ones(len(read.values), np.bool_) if read.valid is None else read.valid

    def _stage(self, name: str, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Our stage's own micro-batches of these rows."""
        stage: RowsStage[Any] = build_graph(self._config)[name].stage  # type: ignore[assignment]
        device = self._device if stage.device == "gpu" else torch.device("cpu")
        weights = resolve(stage.weights, stage) if stage.weights else None
        stage.setup(Context(device, self._precision if stage.device == "gpu" else torch.float32, weights))
        rows = len(next(iter(batch.values())))
        pieces = []
        for start in range(0, rows, stage.batch):
            part = {key: values[start : start + stage.batch] for key, values in batch.items()}
            pieces.append(stage.compute({key: _moved(values, device) for key, values in part.items()}))
        return {
            key: [row for piece in pieces for row in piece[key]]
            if isinstance(pieces[0][key], list)
            else torch.cat([piece[key] for piece in pieces])  # type: ignore[misc]
            for key in pieces[0]
        }

    def _output(self, name: str) -> str:
        return build_graph(self._config)[name].stage.outputs[0].name

    def _near(self, step: str, ours: NDArray[Any], theirs: NDArray[Any], more: float = 0.0) -> Gate:
        apart, most = _distance(ours, theirs), self._apart + more
        return Gate(step, apart <= most, f"{apart:.1e} relative (at most {most:.1e})")


def _moved(values: Any, device: torch.device) -> Any:
    return [row.to(device) for row in values] if isinstance(values, list) else values.to(device)


def _around(marks: NDArray[np.float32]) -> Tensor:
    """A box around landmarks: what the detector finds overlaps it."""
    return torch.from_numpy(np.concatenate([marks.min(axis=0), marks.max(axis=0)]))


def _distance(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    """Relative L2; 1 where the shapes differ."""
    if ours.shape != theirs.shape:
        return 1.0
    wide = theirs.astype(np.float64)
    return float(np.linalg.norm(ours.astype(np.float64) - wide) / max(float(np.linalg.norm(wide)), 1e-12))


def _within_one(ours: Mapping[int, NDArray[Any]], theirs: Mapping[int, NDArray[Any]]) -> float:
    """Share of the levels that are equal or neighbours; 0 where pictures are missing or of other sizes."""
    if not ours or ours.keys() != theirs.keys() or any(ours[n].shape != theirs[n].shape for n in ours):
        return 0.0
    return float(np.concatenate([(np.abs(ours[n].astype(int) - theirs[n]) <= 1).ravel() for n in ours]).mean())


def _levels(step: str, ours: Mapping[int, NDArray[Any]], theirs: Mapping[int, NDArray[Any]]) -> Gate:
    """Pictures by number, compared level by level."""
    share = _within_one(ours, theirs)
    found = f"{share:.3%} of the levels of {len(theirs)} pictures within 1 (at least {LEVELS_SHARE:.1%})"
    return Gate(step, share >= LEVELS_SHARE, found)
