"""What a run's network says of every frame of some clips, annotated or not."""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from extract.store import Store
from fusion.device import arithmetic
from fusion.evaluation import check_sizes
from fusion.inference import frame_scores, predict_outputs
from fusion.loading import load_samples
from fusion.runs import FittedModel
from fusion.scores import FrameScores


def score_clips(store: Store, clips: Iterable[str], fitted: FittedModel, device: torch.device) -> FrameScores:
    """Scores of all frames of ``clips``, one clip in memory at a time; every label is -1.

    Raises:
        StaleError: rows of another size than the run was fitted on.
    """
    with arithmetic(device):
        fitted.model.to(device)
        parts = []
        for clip in clips:
            samples = load_samples(store, [clip], fitted.config, frames="all", labelled=False, aus=fitted.aus)
            check_sizes(samples, fitted)
            outputs = predict_outputs(fitted.model, samples, device, fitted.config.training.batch)
            parts.append(frame_scores(store, samples, outputs, fitted.tasks, fitted.config, {}))
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
        outputs={task: np.concatenate([part.outputs[task] for part in parts]) for task in parts[0].outputs},
        targets={task: np.concatenate([part.targets[task] for part in parts]) for task in parts[0].targets},
        aus=parts[0].aus,
        facts=parts[0].facts,
        **arrays,  # type: ignore[arg-type]
    )
