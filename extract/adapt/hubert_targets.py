"""What the network learns to name: clusters of a layer's features, fitted once, and each recording's clusters."""

import json
import logging
import pickle
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from extract.adapt.folder import Folder
from extract.adapt.hubert_features import Features, TargetSource
from extract.adapt.hubert_sound import Heard, Recording
from extract.adapt.processes import Processes
from extract.errors import UsageError, WeightsError

logger = logging.getLogger("extract")

QUANTISER, LABELS, SAMPLES = "quantiser.npz", "labels", "samples"

Floats = NDArray[np.float32]
Labels = NDArray[np.int16]


def make_labels(
    folder: Folder,
    heard: Sequence[Heard],
    looked_at: Sequence[Heard],
    source: TargetSource,
    clusters: int,
    most_frames: int,
    seed: int,
    given: Path | None,
    processes: Processes,
    tell: Callable[[str], None],
) -> None:
    """Write ``quantiser.npz`` and the clusters of every recording below ``labels/``; what is there already stays.

    Args:
        heard: recordings to train on, which alone decide the clusters.
        looked_at: others to be labelled with the same clusters.
        most_frames: steps that the clusters are fitted to.
        given: a quantiser to take in place of fitting one.

    Raises:
        UsageError: the sound does not fall into so many clusters.
        WeightsError: ``given`` is none, or of another size.
    """
    lacking = [one for one in (*heard, *looked_at) if not _labels(folder, one.clip).is_file()]
    has_quantiser = (folder.path / QUANTISER).is_file()
    if has_quantiser and not lacking:
        processes.wait()
        return
    width = source.width
    features = source.features(processes.device)
    if not has_quantiser and given is not None and processes.is_first:
        save_quantiser(folder, read_quantiser(given, clusters, width), source)
    elif not has_quantiser and given is None:
        wanted = sampled_steps([source.num_rows(one) for one in heard], most_frames, seed)
        own = processes.own(list(zip(heard, wanted, strict=True)))
        for number, (one, steps) in enumerate(own, start=1):
            tell(f"features to cluster: {number} of {len(own)}")
            if not (folder.path / SAMPLES / f"{one.clip}.npy").is_file():
                rows = rows_at(features, Recording(folder, one, normalise=source.normalise), steps, width)
                _write_array(folder, f"{SAMPLES}/{one.clip}.npy", rows)
        processes.wait()
        if processes.is_first:
            tell(f"fitting {clusters} clusters")
            rows = np.concatenate([np.load(folder.path / SAMPLES / f"{one.clip}.npy") for one in heard])
            save_quantiser(folder, fit_clusters(rows, clusters, seed), source)
            folder.remove(SAMPLES)
    processes.wait()
    centres = read_quantiser(folder.path / QUANTISER, clusters, width)
    own_lacking = processes.own(lacking)
    for number, one in enumerate(own_lacking, start=1):
        tell(f"clusters of each clip: {number} of {len(own_lacking)}")
        recording = Recording(folder, one, normalise=source.normalise)
        labels = [nearest_cluster(compute(), centres) for _, compute in features.chunks(recording)]
        _write_array(folder, f"{LABELS}/{one.clip}.npy", np.concatenate(labels))
    processes.wait()


def read_labels(folder: Folder, clip: str) -> Labels:
    """Cluster of every row of a recording's features, int16."""
    found: Labels = np.load(_labels(folder, clip), allow_pickle=False)
    return found


def _labels(folder: Folder, clip: str) -> Path:
    return folder.path / LABELS / f"{clip}.npy"


def sampled_steps(lengths: Sequence[int], most: int, seed: int) -> list[NDArray[np.int64]]:
    """Which steps of each recording the clusters are fitted to: all, or ``most`` of them drawn evenly."""
    total = sum(lengths)
    drawn = np.arange(total)
    if total > most:
        drawn = np.sort(np.random.default_rng([seed, 0xC1]).choice(total, most, replace=False))
    ends = np.cumsum(lengths)
    parts = np.split(drawn, np.searchsorted(drawn, ends[:-1]))
    return [part - (end - length) for part, end, length in zip(parts, ends, lengths, strict=True)]


def rows_at(features: Features, recording: Recording, steps: NDArray[np.int64], width: int) -> Floats:
    """Features [n, D] of the steps named, in order."""
    found = [np.zeros((0, width), np.float32)]
    for first, compute in features.chunks(recording):
        rows = compute()
        inside = steps[(steps >= first) & (steps < first + len(rows))] - first
        found.append(rows[torch.from_numpy(inside).to(rows.device)].cpu().numpy())
    return np.concatenate(found)


def fit_clusters(rows: Floats, clusters: int, seed: int) -> Floats:
    """Centres [clusters, D] by scikit-learn's MiniBatchKMeans with fairseq's settings.

    Raises:
        UsageError: there are fewer different rows than clusters.
    """
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    if len(rows) < clusters:
        raise UsageError(f"{len(rows)} steps of sound cannot make {clusters} clusters; name fewer")
    different = _different(rows)
    if different < clusters:
        raise UsageError(
            f"the training clips' sound has {different} different steps, too few for {clusters} clusters; is it one "
            f"tone, or mostly silence? Name fewer: --set adapt.hubert.targets.clusters={max(2, different // 2)}"
        )
    fitting = MiniBatchKMeans(
        n_clusters=clusters,
        init="k-means++",
        max_iter=100,
        batch_size=10_000,
        n_init=20,
        tol=0.0,
        max_no_improvement=100,
        reassignment_ratio=0.0,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitting.fit(rows)
    return np.asarray(fitting.cluster_centers_, np.float32)


def _different(rows: Floats) -> int:
    """How many of the rows (of 20,000, where there are more) differ by more than rounding does."""
    some = rows[:: max(1, len(rows) // 20_000)]
    scale = max(float(np.abs(some).max()), 1e-30)
    return len(np.unique(np.round(some / scale, 4), axis=0))


def nearest_cluster(rows: Tensor, centres: Floats) -> Labels:
    """Of each row [n, D] the cluster whose centre is nearest: the least ``|x|^2 - 2 x c + |c|^2``; int16 [n]."""
    table = torch.from_numpy(centres).to(rows.device)
    nearer = 2 * rows @ table.T - table.square().sum(dim=1)  # |x|^2 is the same for all
    found: Labels = nearer.argmax(dim=1).cpu().numpy().astype(np.int16)
    return found


def save_quantiser(folder: Folder, centres: Floats, source: TargetSource) -> None:
    """Write the clusters: ``centre`` [clusters, D], and what they are of."""

    def write(file: BinaryIO) -> None:
        np.savez(file, centre=centres, source=np.array(json.dumps(source.as_json())))

    folder.write_by(QUANTISER, write)


def read_quantiser(path: Path, clusters: int, width: int) -> Floats:
    """Centres [clusters, D] of a ``quantiser.npz``.

    Raises:
        WeightsError: there is none, it is damaged, or of another shape.
    """
    try:
        with np.load(path, allow_pickle=False) as found:
            centres: NDArray[Any] = found["centre"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, pickle.UnpicklingError, EOFError) as error:
        raise WeightsError(
            f"quantiser {path}: cannot be read ({error}); expected .npz with the array `centre` [clusters, D] "
            "(of scikit-learn's object: `numpy.savez(PATH, centre=kmeans.cluster_centers_)`)"
        ) from None
    if centres.shape != (clusters, width):
        raise WeightsError(
            f"quantiser {path}: centres of shape {list(centres.shape)}, expected [{clusters}, {width}] by "
            "targets.clusters and the width of the features"
        )
    return np.asarray(centres, np.float32)


def _write_array(folder: Folder, key: str, values: NDArray[Any]) -> None:
    def write(file: BinaryIO) -> None:
        np.save(file, values, allow_pickle=False)

    folder.write_by(key, write)
