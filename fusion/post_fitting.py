"""Fits post-processing on the scores of the split ``val``: temperature, equations between AUs, thresholds."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from extract.au import au_name
from extract.au.calibration import reliability
from extract.au.metrics import confusion
from extract.errors import UsageError
from fusion.leaks import SelectedOn
from fusion.pairs import PAPER_PAIRS, Checked, Pairs, check_pairs, corrected, equation, known_pairs, mine_pairs
from fusion.post_config import PostConfig
from fusion.postprocess import PostProcess
from fusion.scores import FrameScores
from fusion.smoothing import Windows, smoothed
from fusion.temperature import (
    TEMPERATURES,
    best_temperatures,
    negative_log_likelihood,
    sigmoid,
)
from fusion.thresholds import PAPER_THRESHOLDS, UNTUNED, best_thresholds, held_out

Floats: TypeAlias = NDArray[np.float64]

FEW_VIDEOS = 10
"""Preset ``default`` chooses nothing on fewer source videos unless asked to by name: on the demo's six, thresholds and
equations between AUs cost up to 3 points on other people, more than their interval (docs/demo.md)."""


def fit_post(val: FrameScores, config: PostConfig, train_labels: ArrayLike | None = None) -> PostProcess:
    """Post-processing as ``config`` wants it, selected on ``val``.

    Args:
        val: scores of the split ``val``, all frames of its clips.
        train_labels: [M, A]: 0, 1 or -1, of the training split; only for ``pairs: mined``.

    Raises:
        UsageError: ``pairs: mined`` without training labels.
        ConfigError: the config names an AU that the scores do not have.
    """
    settled, aus = config.resolved(), val.aus
    videos = len(np.unique(val.source_video[(val.labels >= 0).any(axis=1)]))
    left_alone: dict[str, Any] = {}
    if config.preset == "default" and videos < FEW_VIDEOS:
        unasked = {"thresholds": UNTUNED, "pairs": "none"}
        left_alone = {name: value for name, value in unasked.items() if getattr(config, name) is None}
        settled = settled.model_copy(update=left_alone)
    windows = Windows.of(settled, val.au_names)
    logits = smoothed(val, windows, settled.no_face)
    report: dict[str, Any] = {}
    notices: list[str] = []
    if left_alone:
        kept = {"thresholds": f"thresholds stay {UNTUNED}", "pairs": "no equation is used"}
        notices.append(
            f"{videos} source videos in split {val.facts.get('split', 'val')} are too few to choose on: "
            f"{', '.join(kept[name] for name in left_alone)} "
            "(post.thresholds=tuned and post.pairs=paper choose all the same)"
        )

    temperature = np.ones(len(aus))
    if settled.temperature:
        temperature = best_temperatures(val.labels, logits)
        report["temperature"] = _calibration(val, logits, temperature)
        notices += _temperature_notices(val, temperature)
    smooth = sigmoid(logits / temperature)

    fixed, about_fixed = _fixed_thresholds(settled, aus)
    notices += about_fixed
    tuned = settled.thresholds == "tuned"
    before_pairs = tuned and settled.order.index("thresholds") < settled.order.index("pairs")
    thresholds = fixed
    if before_pairs:
        thresholds = _tuned(val, smooth, settled, report, notices)
    judge = _judge(val, None if tuned and not before_pairs else thresholds)

    pairs, tried, about_pairs = _pairs(settled, val, smooth, train_labels, judge)
    notices += about_pairs
    if tried:
        report["pairs_tried"] = [str(one) for one in tried]
    if tuned and not before_pairs:
        thresholds = _tuned(val, corrected(smooth, aus, pairs), settled, report, notices)
    if tuned:
        notices += [
            f"{name}: no positive in split {val.facts.get('split', 'val')}, so its threshold stays {UNTUNED}"
            for name, positive in zip(val.au_names, (val.labels == 1).any(axis=0), strict=True)
            if not positive
        ]
    selected = tuned or settled.temperature or bool(tried)
    post = PostProcess(
        aus=aus,
        windows=windows,
        no_face=settled.no_face,
        temperature=tuple(temperature.tolist()),
        pairs=pairs,
        thresholds=tuple(thresholds.tolist()),
        order=settled.order,
        preset=settled.preset,
        selected_on=SelectedOn.of(val) if selected else None,
        notices=tuple(notices),
    )
    return replace(post, report={**report, "f1": _f1_in_steps(post, val)})


def without_val(config: PostConfig, aus: Sequence[int]) -> PostProcess:
    """What can be had where no clip is in the split ``val``: smoothing, and what is fixed beforehand.

    Thresholds that should be tuned stay 0.5; equations that should be checked or mined, and temperatures, are left
    out. A notice says so. Raises ConfigError as ``fit_post``.
    """
    settled = config.resolved()
    thresholds, notices = _fixed_thresholds(settled, aus)
    pairs: Pairs = {}
    left_out = [f"thresholds stay {UNTUNED}"] if settled.thresholds == "tuned" else []
    if settled.pairs == "paper" and not settled.check_pairs:
        pairs, about_pairs = known_pairs(PAPER_PAIRS, aus)
        notices += about_pairs
    elif settled.pairs != "none":
        left_out.append("no equation between action units is used")
    if settled.temperature:
        left_out.append("no temperature is fitted")
    if left_out:
        notices.append(f"no clip in split val to select on: {', '.join(left_out)}")
    return PostProcess(
        aus=tuple(aus),
        windows=Windows.of(settled, [au_name(number) for number in aus]),
        no_face=settled.no_face,
        temperature=(1.0,) * len(aus),
        pairs=pairs,
        thresholds=tuple(thresholds.tolist()),
        order=settled.order,
        preset=settled.preset,
        notices=tuple(notices),
    )


def _fixed_thresholds(settled: PostConfig, aus: Sequence[int]) -> tuple[Floats, list[str]]:
    """The thresholds before any tuning, [A], and what to say of them."""
    if settled.thresholds == "paper":
        unknown = [au_name(number) for number in aus if number not in PAPER_THRESHOLDS]
        notice = f"the paper has no threshold for {', '.join(unknown)}: {UNTUNED} is used"
        found = np.array([PAPER_THRESHOLDS.get(number, UNTUNED) for number in aus])
        return found, [notice] if unknown else []
    value = settled.thresholds if isinstance(settled.thresholds, float) else UNTUNED
    return np.full(len(aus), value), []


def _tuned(
    val: FrameScores, probabilities: Floats, settled: PostConfig, report: dict[str, Any], notices: list[str]
) -> Floats:
    """The best thresholds [A], but ``UNTUNED`` where a check says so; ``report`` and ``notices`` get what it found."""
    thresholds = best_thresholds(val.labels, probabilities).thresholds
    annotated = (val.labels >= 0).any(axis=1)
    if not settled.check_thresholds or len(np.unique(val.source_video[annotated])) < 2:
        return thresholds
    checked = held_out(val.labels[annotated], probabilities[annotated], val.source_video[annotated])
    positive = (val.labels == 1).any(axis=0)
    report["thresholds_checked"] = {
        name: {"untuned": float(before), "tuned_on_other_videos": float(after), "standard_error": float(error)}
        for name, before, after, error, any_at_all in zip(
            val.au_names, checked.untuned, checked.tuned, checked.error, positive, strict=True
        )
        if any_at_all
    }
    lost = positive & ~checked.holds & (thresholds != UNTUNED)
    if lost.any():
        names = ", ".join(name for name, one in zip(val.au_names, lost, strict=True) if one)
        notices.append(
            f"{names}: threshold stays {UNTUNED}: one tuned on some source videos of split "
            f"{val.facts.get('split', 'val')} is not better on its others by a standard error "
            "(post.thresholds=tuned uses it all the same)"
        )
    return np.where(lost, UNTUNED, thresholds)


def _judge(val: FrameScores, thresholds: Floats | None) -> Callable[[int, Floats], float]:
    """F1 on ``val`` of one AU's probabilities [N], at its threshold or its best one (None); NaN without a positive."""

    def f1_of(number: int, probabilities: Floats) -> float:
        column = val.aus.index(number)
        labels, scores = val.labels[:, [column]], probabilities[:, None]
        if not (labels == 1).any():
            return float("nan")
        if thresholds is None:
            return float(best_thresholds(labels, scores).f1[0])
        return float(confusion(labels, (scores >= thresholds[column]).astype(np.int8)).f1[0])

    return f1_of


def _pairs(
    settled: PostConfig,
    val: FrameScores,
    smooth: Floats,
    train_labels: ArrayLike | None,
    judge: Callable[[int, Floats], float],
) -> tuple[Pairs, list[Checked], list[str]]:
    """The equations to use, those that were tried on ``val``, and what to say of those that are not used."""
    if settled.pairs == "none":
        return {}, [], []
    if settled.pairs == "paper":
        pairs, notices = known_pairs(PAPER_PAIRS, val.aus)
        if not settled.check_pairs:
            return pairs, [], notices
        tried = check_pairs(pairs, smooth, val.aus, judge)
        notices += [_dropped(one) for one in tried if not one.helps]
    else:
        if train_labels is None:
            raise UsageError("post.pairs: mined needs the labels of the training split, and there are none")
        tried, notices = mine_pairs(train_labels, smooth, val.aus, judge), []
    return {one.target: one.sources for one in tried if one.helps}, tried, notices


def _dropped(one: Checked) -> str:
    if np.isnan(one.f1_without):
        return f"{equation(one.target, one.sources)} not used: no positive of {au_name(one.target)} to check it on"
    change = f"{100 * one.f1_without:.1f} without it, {100 * one.f1_with:.1f} with it"
    return f"{equation(one.target, one.sources)} not used: F1 on val {change}"


def _temperature_notices(val: FrameScores, temperature: Floats) -> list[str]:
    notices = []
    for name, labels, value in zip(val.au_names, val.labels.T, temperature.tolist(), strict=True):
        if not ((labels == 1).any() and (labels == 0).any()):
            notices.append(f"{name}: one class only, so its temperature stays 1")
        elif not TEMPERATURES[0] * 1.01 < value < TEMPERATURES[1] * 0.99:
            notices.append(f"{name}: temperature {value:.2f} at the end of what is searched")
    return notices


def _calibration(val: FrameScores, logits: Floats, temperature: Floats) -> dict[str, dict[str, float | None]]:
    """AU name -> temperature, and log loss and calibration error before and after it."""
    columns = {
        "temperature": temperature,
        "nll_before": negative_log_likelihood(val.labels, logits),
        "nll_after": negative_log_likelihood(val.labels, logits / temperature),
        "ece_before": reliability(val.labels, sigmoid(logits)).error,
        "ece_after": reliability(val.labels, sigmoid(logits / temperature)).error,
    }
    return {
        name: {key: _or_none(values[column]) for key, values in columns.items()}
        for column, name in enumerate(val.au_names)
    }


def _f1_in_steps(post: PostProcess, val: FrameScores) -> dict[str, dict[str, float | None]]:
    """Step -> AU name -> F1 on ``val``, and ``mean`` over the annotated AUs."""
    found = {}
    for step in post.steps(val):
        counts = confusion(val.labels, step.decisions)
        f1 = np.where(counts.annotated > 0, counts.f1, np.nan)
        by_name = {name: _or_none(value) for name, value in zip(val.au_names, f1, strict=True)}
        known = f1[~np.isnan(f1)]
        found[step.name] = {**by_name, "mean": float(known.mean()) if len(known) else None}
    return found


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
