"""From stored features to action unit probabilities per frame.

``fusion.fit``, ``fusion.evaluate`` and ``fusion.predict`` do what the commands of the same names do. They import torch,
which takes seconds, only when they are called.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from extract.running.runner import Progress
    from fusion.config import FusionConfig
    from fusion.evaluation import Evaluation
    from fusion.prediction import Predictions

__all__ = ["evaluate", "fit", "predict"]


def fit(
    features: str | Path,
    output: str | Path | None = None,
    config: "str | FusionConfig | None" = None,
    *,
    set: Sequence[str] = (),
    device: str = "auto",
    skip_failed: bool = False,
) -> "list[Evaluation]":
    """Fit the network on the split ``train`` of a feature store, stop early by the split ``val``, and write a run.

    The same features, config, machine and number of threads give the same run, whether interrupted or not.

    Args:
        features: the store.
        output: folder of the run; an unfinished run there is continued. None is a new folder in ``runs/``, named
            after the date and time.
        config: a built-in config, a YAML file, or the settings themselves. None is the config of the run that is
            continued, else the one that the store was made with, else ``default``.
        set: ``a.b=c`` each, over that config, as in ``training.lr=1e-4``.
        device: ``auto``, ``cpu`` or ``cuda:N``.
        skip_failed: leave out clips whose features failed or are unfinished.

    Returns:
        The scores of the best epoch on ``val`` (if there is that split) and on ``train``.

    Raises:
        extract.errors.AuFusionError: one of its subclasses, as ``fusion.training.fit`` lists them.
    """
    from fusion import training

    return training.fit(features, output, config, set=set, device=device, skip_failed=skip_failed)


def evaluate(
    features: str | Path,
    run: str | Path | None = None,
    *,
    split: str = "test",
    device: str = "auto",
    skip_failed: bool = False,
) -> "Evaluation":
    """Score a fitted run on one split of a feature store; an AU counts as active where its logit is >= 0.

    Args:
        features: the store.
        run: folder of the run; None is the newest in ``runs/``.
        split: ``train``, ``val`` or ``test``.
        device: ``auto``, ``cpu`` or ``cuda:N``.
        skip_failed: leave out clips whose features failed or are unfinished.

    Raises:
        extract.errors.AuFusionError: one of its subclasses, as ``fusion.evaluation.evaluate`` lists them.
    """
    from fusion import evaluation

    return evaluation.evaluate(features, run, split=split, device=device, skip_failed=skip_failed)


def predict(
    videos: Iterable[str | Path],
    run: str | Path | None = None,
    *,
    output: str | Path = ".",
    config: str | None = None,
    set: Sequence[str] = (),
    device: str = "auto",
    offline: bool = False,
    fill: bool = False,
    progress: "Progress | None" = None,
) -> "Predictions":
    """Write ``<video>.csv`` (time, probabilities and decisions per frame) and ``<video>.json`` for each video.

    A transcript beside a video (NAME.srt, .vtt, .csv or .json) gives its words. A video without sound, words or a face
    lacks these modalities; the network was trained to do without them.

    Args:
        videos: their files.
        run: folder of the fitted run; None is the newest in ``runs/``.
        output: folder for the tables.
        config: built-in config or YAML file to extract with. None extracts as the run's own features were.
        set: ``a.b=c`` each, over that config, as in ``swin.weights=PATH`` for weights that have moved.
        device: ``auto``, ``cpu`` or ``cuda:N``.
        offline: use no network.
        fill: also give numbers for frames without a face, from sound and words alone. Otherwise their cells are empty.
        progress: is told how far the extraction is.

    Raises:
        extract.errors.AuFusionError: one of its subclasses, as ``fusion.prediction.predict`` lists them.
    """
    from fusion import prediction

    return prediction.predict(
        videos,
        run,
        output=output,
        config=config,
        set=set,
        device=device,
        offline=offline,
        fill=fill,
        progress=progress,
    )
