"""What a run's network says of every frame of some clips, annotated or not."""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from extract.store import Store
from fusion.config import ContextModality, FrameModality, FusionConfig
from fusion.data import Samples, load_samples
from fusion.device import arithmetic
from fusion.evaluation import check_sizes, predict_logits
from fusion.runs import FittedModel, aus_of
from fusion.scores import FrameScores
from fusion.selection import FRAMES


def score_clips(store: Store, clips: Iterable[str], fitted: FittedModel, device: torch.device) -> FrameScores:
    """Scores of all frames of ``clips``, one clip in memory at a time; every label is -1.

    Raises:
        StaleError: rows of another size than the run was fitted on.
    """
    with arithmetic(device):
        fitted.model.to(device)
        parts = []
        for clip in clips:
            samples = load_samples(store, [clip], fitted.config, labelled=False)
            check_sizes(samples, fitted)
            logits = predict_logits(fitted.model, samples, device, fitted.config.training.batch)
            parts.append(_of_clip(store, clip, samples, logits, fitted.config, aus_of(fitted)))
    return joined(parts)


def joined(parts: list[FrameScores]) -> FrameScores:
    """One object for the scores of several clips, in the order given; at least one."""
    sizes = np.cumsum([0, *(len(part.clips) for part in parts)])

    def all_of(values: list[NDArray[np.generic]]) -> NDArray[np.generic]:
        return np.concatenate(values)

    arrays = {
        name: all_of([getattr(part, name) for part in parts]) for name in ("frame", "pts_s", "face", "logits", "labels")
    }
    return FrameScores(
        clips=tuple(clip for part in parts for clip in part.clips),
        source_videos=tuple(video for part in parts for video in part.source_videos),
        clip=np.concatenate([part.clip + start for part, start in zip(parts, sizes, strict=False)]),
        present={name: np.concatenate([part.present[name] for part in parts]) for name in parts[0].present},
        aus=parts[0].aus,
        facts=parts[0].facts,
        **arrays,  # type: ignore[arg-type]
    )


def reads_pictures(config: FusionConfig) -> tuple[str, ...]:
    """The modalities that are made from pictures, frame by frame."""
    return tuple(name for name, used in config.used.items() if isinstance(used, FrameModality | ContextModality))


def _of_clip(
    store: Store,
    clip: str,
    samples: Samples,
    logits: NDArray[np.float32],
    config: FusionConfig,
    aus: tuple[int, ...],
) -> FrameScores:
    present = {name: ranges[:, 0] < ranges[:, 1] for name, ranges in samples.ranges.items()}  # [T] each
    pictures = [present[name] for name in reads_pictures(config)]
    count = len(logits)
    return FrameScores(
        clips=(clip,),
        source_videos=(str(store.attributes(clip).get("source_video") or clip),),
        clip=np.zeros(count, dtype=np.int64),
        frame=np.arange(count),
        pts_s=np.asarray(store.read(clip, FRAMES, "pts_s").values, dtype=np.float64),
        present=present,
        face=np.all(pictures, axis=0) if pictures else np.ones(count, dtype=np.bool_),
        logits=logits,
        labels=np.full(logits.shape, -1, dtype=np.int8),
        aus=aus,
    )
