"""``FrameScores`` for tests of what is computed from them: planted, drawn, or from golden values."""

from collections.abc import Sequence

import numpy as np

from extract.au import AUS
from fusion.scores import FrameScores


def scores_of(
    lengths: Sequence[int],
    logits: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    aus: Sequence[int] = AUS,
    fps: float | Sequence[float] = 30.0,
    face: np.ndarray | None = None,
    names: Sequence[str] | None = None,
    videos: Sequence[str] | None = None,
    split: str = "val",
    **further,
) -> FrameScores:
    """Clips of these lengths, one after the other, on regular clocks."""
    total = sum(lengths)
    names = tuple(names or (f"{split}{number}" for number in range(len(lengths))))
    rates = [fps] * len(lengths) if isinstance(fps, int | float) else fps
    frame = np.concatenate([np.arange(length) for length in lengths]).astype(np.int64)
    pts_s = np.concatenate([np.arange(n) / rate for n, rate in zip(lengths, rates, strict=True)])
    return FrameScores(
        clips=names,
        source_videos=tuple(videos or names),
        clip=np.repeat(np.arange(len(lengths)), lengths),
        frame=frame,
        pts_s=pts_s.astype(np.float64),
        present={"swin": np.ones(total, dtype=np.bool_)},
        face=np.ones(total, dtype=np.bool_) if face is None else face,
        logits=np.asarray(logits, dtype=np.float32).reshape(total, len(aus)),
        labels=np.full((total, len(aus)), -1, dtype=np.int8) if labels is None else labels.astype(np.int8),
        aus=tuple(aus),
        facts={"split": split},
        **further,
    )


def drawn(
    seed: int, lengths: Sequence[int] = (40, 1, 25, 60), *, aus: Sequence[int] = AUS, split: str = "val", **further
) -> FrameScores:
    """Labels in runs of some frames, logits that know them a little, some -1."""
    random = np.random.default_rng(seed)
    total, width = sum(lengths), len(aus)
    labels = (np.repeat(random.random((total // 5 + 1, width)), 5, axis=0)[:total] < 0.35).astype(np.int8)
    logits = 1.5 * (2 * labels - 1) + random.normal(-0.4, 2.0, (total, width))
    labels[random.random(labels.shape) < 0.1] = -1
    return scores_of(lengths, logits, labels, aus=aus, split=split, **further)
