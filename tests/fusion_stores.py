"""Small feature stores for the tests of ``fusion``, written through the real store."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from extract.records import Record
from extract.stage import Output
from extract.store import Store
from extract.timeline import FRAMES, Table

Array = NDArray[Any]
STEPS = Table("step")


def add_clip(store: Store, clip: str, *, split: str | None = "train", **attributes: str) -> None:
    """A clip and its attributes; it is its own source video and subject unless told."""
    store.set_attributes(clip, {"subject": clip, "source_video": clip, "split": split} | attributes)


def add_instance(
    store: Store,
    clip: str,
    instance: str,
    arrays: Mapping[str, Array],
    *,
    state: Any = "done",
    recipe: Mapping[str, Any] | None = None,
    **fields: Any,
) -> None:
    """An instance with its record, in place of what was there."""
    remove_instance(store, clip, instance)
    fingerprint = fields.pop("fingerprint", f"{instance}-{clip}")
    outputs = {
        Output(
            name,
            STEPS if instance == "hubert" or name == "token" else FRAMES,
            tuple(f"axis{axis}" for axis in range(1, values.ndim)),
            values.shape[1:],
            str(values.dtype),
        ): values
        for name, values in arrays.items()
    }
    store.write_whole(clip, instance, outputs, fingerprint=fingerprint)
    rows = len(next(iter(arrays.values()))) if arrays else 0
    record = Record(
        state=state,
        recipe=recipe or {"stage": instance, "version": 1, "config": {}},
        source=fields.pop("source", {}),
        fingerprint=fingerprint,
        rows=rows,
        **fields,
    )
    store.write_record(clip, instance, record)


def remove_instance(store: Store, clip: str, instance: str) -> None:
    """As if it had never been computed."""
    shutil.rmtree(store.path / clip / instance, ignore_errors=True)


def planted_store(
    path: Path,
    clips: Mapping[str, str] = {"a": "train", "b": "train", "c": "train", "d": "train"},
    *,
    num_frames: int = 75,
    swin_size: int = 64,
    hubert_size: int = 32,
    seed: int = 0,
) -> Store:
    """Clips of 25 fps with ``swin/feature`` (float16) and ``hubert/feature``; labels are a function of Swin alone.

    AU k is active in the frames in which its own direction of feature space is above a quantile, so that the AUs
    have priors from 0.05 to 0.6, as in Aff-Wild2.
    """
    store = Store.open(path, "a")
    random = np.random.default_rng(seed)
    directions = random.standard_normal((swin_size, 12))
    scores, swins = [], []
    for _ in clips:
        swin = (3 + 0.5 * random.standard_normal((num_frames, swin_size))).astype(np.float16)
        swins.append(swin)
        scores.append(swin.astype(np.float64) @ directions)
    thresholds = [np.quantile(np.concatenate(scores)[:, k], q) for k, q in enumerate(np.linspace(0.4, 0.95, 12))]
    for (clip, split), swin, score in zip(clips.items(), swins, scores, strict=True):
        add_clip(store, clip, split=split)
        steps = 2 * num_frames - 1
        add_instance(store, clip, "frames", {"pts_s": np.arange(num_frames) / 25})
        add_instance(store, clip, "labels", {"au": (score > thresholds).astype(np.int8)})
        add_instance(store, clip, "swin", {"feature": swin, "valid": np.ones(num_frames, dtype=np.bool_)})
        hubert = random.standard_normal((steps, hubert_size)).astype(np.float16)
        add_instance(store, clip, "hubert", {"feature": hubert, "centre_s": (320 * np.arange(steps) + 200) / 16000})
    return store


MIXED = {
    "face": {"kind": "frame", "instance": "swin", "array": "feature", "project": 8},
    "motion": {"kind": "context", "instance": "ghfeat", "array": "code", "project": 4},
    "spread": {"kind": "context", "instance": "ghfeat", "array": "code", "before": 2, "after": 2, "stride": 3}
    | {"project": 4},
    "sound": {"kind": "steps", "instance": "hubert", "array": "feature", "before_s": 0.3, "after_s": 0.3, "project": 4},
    "words": {"kind": "tokens", "instance": "roberta", "array": "token", "project": 4},
}
"""Modalities of every kind of window over a ``mixed_store``."""


def mixed_store(path: Path, clips: Mapping[str, str], *, num_frames: int = 40, seed: int = 0) -> Store:
    """Clips of 25 fps with an instance for each kind of modality, random everywhere, and holes in all of them.

    The last clip has neither sound nor words.
    """
    store = Store.open(path, "a")
    random = np.random.default_rng(seed)
    for number, (clip, split) in enumerate(clips.items()):
        add_clip(store, clip, split=split)
        add_instance(store, clip, "frames", {"pts_s": np.arange(num_frames) / 25})
        add_instance(store, clip, "labels", {"au": random.integers(-1, 2, (num_frames, 12)).astype(np.int8)})
        for instance, array, size in (("swin", "feature", 6), ("ghfeat", "code", 5)):
            valid = random.random(num_frames) > 0.2
            valid[8:30] &= number != 1  # a hole that is wider than any window
            values = random.standard_normal((num_frames, size)).astype(np.float16) + 2
            add_instance(store, clip, instance, {array: values * valid[:, None], "valid": valid})
        if number == len(clips) - 1:
            add_instance(store, clip, "hubert", {}, state="empty")
            add_instance(store, clip, "roberta", {}, state="empty")
            continue
        steps = num_frames  # the sound ends half way
        sound = {"feature": random.standard_normal((steps, 7)).astype(np.float16)}
        add_instance(store, clip, "hubert", sound | {"centre_s": (320 * np.arange(steps) + 200) / 16000})
        start = np.arange(num_frames) // 7 * 3
        stop = start + np.arange(num_frames) // 7 % 4  # a word set has 0 to 3 tokens
        token = random.standard_normal((int(stop.max()) + 2, 3)).astype(np.float32)
        ranges = np.stack([start, stop], axis=1).astype(np.int32)
        add_instance(store, clip, "roberta", {"range": ranges, "token": token})
    return store
