"""A fitted network on frames: outputs of samples, and the scores of every frame of some clips.

No row is projected twice. Consecutive frames share most of the rows of their windows (of 200 HuBERT steps, 2 are new),
so each row is projected once and the windows are gathered afterwards, for whole clips: no window crosses clips. On a
CPU the input products of a GRU's first layer are shared in the same way (``fusion.recurrence``).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from extract.store import Store
from fusion.config import ContextModality, FrameModality, FusionConfig
from fusion.data import Ints, Rows, Samples, Windows, gather, sent
from fusion.model import FusionModel
from fusion.scores import FrameScores
from fusion.tasks import Task

GROUP = 4096
"""Samples whose distinct rows are projected together, at least; a clip is never divided."""
CHUNK_VALUES = 1 << 24
"""Values of the rows that are projected in one call, about; as float32 they take 64 MB."""


@torch.inference_mode()
def predict_outputs(
    model: FusionModel,
    samples: Samples,
    device: torch.device,
    batch_size: int = 256,
    *,
    index: Ints | None = None,
    without: Mapping[str, str] | None = None,
) -> NDArray[np.float32]:
    """Outputs of every sample, [N, W], in the order of ``samples``. The model is left in eval mode.

    Args:
        index: the samples wanted [N'], increasing; None: all.
        without: modality -> how it is taken away, as ``FusionModel.forward`` has it.
    """
    model.eval()
    index = np.arange(len(samples)) if index is None else index
    parts = [np.empty((0, model.num_outputs), dtype=np.float32)]
    for group in _groups(samples.clip[index]):
        wanted = index[group]
        shared = {name: _Projected(model, samples, name, wanted, device) for name in samples.windows}
        for start in range(0, len(wanted), batch_size):
            part = wanted[start : start + batch_size]
            inputs = _inputs(samples, part, shared, device, times=model.reads_times)
            parts.append(model(inputs, without).float().cpu().numpy())
    return np.concatenate(parts)


def _groups(clip: Ints) -> Iterator[slice]:
    """Slices of whole clips, each of at least ``GROUP`` samples but the last."""
    bounds = [0, *(np.flatnonzero(np.diff(clip)) + 1).tolist(), len(clip)]
    start = 0
    for stop in bounds[1:]:
        if stop - start >= GROUP or stop == len(clip):
            if stop > start:
                yield slice(start, stop)
            start = stop


class _Projected:
    """The distinct rows of one modality's windows, projected once."""

    def __init__(self, model: FusionModel, samples: Samples, name: str, index: Ints, device: torch.device) -> None:
        self.windows = samples.windows[name]
        table = samples.tables[samples.sources[name]]
        used = _used(self.windows, index, len(table))
        self.rows = np.flatnonzero(used)  # [U] table rows
        # Samples without the modality point at any row.
        self.place = sent(torch.from_numpy((np.cumsum(used) - 1).clip(0)), device)
        """[R]: table row -> its place among the distinct ones."""
        self.gates = model.reads_gates(name, device)
        parts = [torch.zeros(0, 0, device=device)] if not len(self.rows) else []
        chunk = max(1, CHUNK_VALUES // max(1, table.shape[1]))
        for start in range(0, len(self.rows), chunk):
            wanted = sent(torch.from_numpy(self.rows[start : start + chunk]), table.device)
            rows = gather(table, wanted, pinned=samples.pinned).to(device, non_blocking=True)
            parts.append(model.entered(name, rows, gates=self.gates))
        self.values: Tensor = torch.cat(parts)
        """[U, project], or gates [U, 6 * hidden]; [0, 0] if no sample has the modality."""


def _used(windows: Windows, index: Ints, rows: int) -> NDArray[np.bool_]:
    """[R]: which table rows some window of samples ``index`` holds."""
    ranges = windows.ranges[index][windows.lengths[index] > 0]
    counted = rows if windows.rows is None else len(windows.rows)
    edges = np.bincount(ranges[:, 0], minlength=counted + 1) - np.bincount(ranges[:, 1], minlength=counted + 1)
    inside = np.cumsum(edges)[:counted] > 0
    if windows.rows is None:
        return inside
    used = np.zeros(rows, dtype=np.bool_)
    used[windows.rows[inside]] = True
    return used


def _inputs(
    samples: Samples, index: Ints, shared: Mapping[str, _Projected], device: torch.device, *, times: bool
) -> dict[str, Rows]:
    """The windows of samples ``index`` on ``device``, of rows that are projected already."""
    at = sent(torch.from_numpy(index), device)
    inputs = {}
    for name, projected in shared.items():
        rows, lengths = samples.window_rows(name, index, at)
        if len(projected.rows):
            values, place = projected.values, projected.place[rows].flatten()
        else:
            values = projected.values.new_zeros(1, 0)
            place = torch.zeros_like(rows).flatten()
        found_times = samples.times(name, rows, lengths, at) if times else None
        short = samples.short(name, index, len(rows), device)
        shape = len(rows), len(index)
        inputs[name] = Rows(values, lengths, shape, place, found_times, short, projected=True, gates=projected.gates)
    return inputs


# ---- scores --------------------------------------------------------------------------------------------------------


def frame_scores(
    store: Store,
    samples: Samples,
    outputs: NDArray[np.float32],
    tasks: Sequence[Task],
    config: FusionConfig,
    facts: Mapping[str, Any],
) -> FrameScores:
    """The outputs [N, W] of every frame of some clips, with what analysis needs of the store beside them."""
    present = {name: windows.lengths > 0 for name, windows in samples.windows.items()}
    columns = {task.name: outputs[:, task.columns] for task in tasks}
    targets = {task: labels.numpy() for task, labels in samples.targets.items()}
    none = np.empty((len(samples), 0), dtype=np.float32)
    if config.data.drop_partial_frames and "au" in targets:
        partial = np.any(targets["au"] < 0, axis=1)  # in no metric, as they are in no training
        targets["au"] = np.where(partial[:, None], -1, targets["au"]).astype(np.int8)
    return FrameScores(
        clips=samples.clips,
        source_videos=tuple(store.attributes(clip).get("source_video") or clip for clip in samples.clips),
        clip=samples.clip,
        frame=samples.frame,
        pts_s=samples.pts_s,
        present=present,
        face=has_face(present, config),
        logits=columns.pop("au", none),
        labels=targets.pop("au", none.astype(np.int8)),
        aus=samples.aus if "au" in config.tasks else (),
        outputs=columns,
        targets=targets,
        facts={**facts, "intensity_aus": list(samples.aus)} if "intensity" in config.tasks else facts,
    )


def has_face(present: Mapping[str, NDArray[np.bool_]], config: FusionConfig) -> NDArray[np.bool_]:
    """[N]: whether every modality that reads pictures is present; if none does, whether any modality is."""
    pictures = [
        present[name] for name, modality in config.used.items() if isinstance(modality, FrameModality | ContextModality)
    ]
    found: NDArray[np.bool_] = np.all(pictures, axis=0) if pictures else np.any([*present.values()], axis=0)
    return found
