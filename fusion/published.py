"""Published results on Aff-Wild2, to print beside one's own. They are copied from papers, not measured here.

USC is *Multi-modal Facial Action Unit Detection with Large Pre-trained Models for the 5th ABAW* (2023); its ``test`` is
the official validation set and its ``val`` a tenth of the official training set, as ``extract manifest affwild2``
splits them. All values are mean F1 of the positive class over the 12 AUs, in [0, 1].
"""

from collections.abc import Mapping, Sequence

from fusion.config import AnyModality

STEPS = ("base", "+smooth", "+threshold", "+AUcorr")
"""The order of post-processing in USC's Tables 2 and 3."""

USC_STEPS: Mapping[str, Mapping[str, float]] = {
    "val": dict(zip(STEPS, (0.450, 0.455, 0.460, 0.475), strict=True)),
    "test": dict(zip(STEPS, (0.499, 0.508, 0.514, 0.523), strict=True)),
}
"""Split -> step -> mean F1 (USC, Tables 2 and 3)."""

USC_ABLATION: Mapping[str, Mapping[frozenset[str], float]] = {
    "val": {
        frozenset(): 0.450,
        frozenset({"swin"}): 0.426,
        frozenset({"ghfeat", "ghfeat context"}): 0.425,
        frozenset({"ghfeat"}): 0.450,
        frozenset({"ghfeat context"}): 0.447,
        frozenset({"hubert"}): 0.449,
        frozenset({"roberta"}): 0.449,
    },
    "test": {
        frozenset(): 0.499,
        frozenset({"swin"}): 0.451,
        frozenset({"ghfeat", "ghfeat context"}): 0.489,
        frozenset({"ghfeat"}): 0.493,
        frozenset({"ghfeat context"}): 0.492,
        frozenset({"hubert"}): 0.478,
        frozenset({"roberta"}): 0.491,
    },
}
"""Split -> branches whose input was zeroed -> mean F1 before post-processing (USC, Table 5)."""

OFFICIAL_VALIDATION: Sequence[tuple[str, float]] = (
    ("organisers' baseline, ABAW3 2022", 0.390),
    ("Netease Fuxi, ABAW3 2022", 0.525),
    ("USC, ABAW5 2023", 0.523),
    ("HSE, ABAW5 2023 (thresholds tuned on this very set)", 0.545),
    ("USTC AUD-TGN, ABAW6 2024", 0.537),
    ("HSEmotion, ABAW10 2026", 0.547),
)
"""Mean F1 that others report on the official validation set, the split ``test``."""

SOURCE = "published numbers are the authors' own, from papers, not measured here"


def steps(names: Sequence[str], split: str) -> dict[str, float]:
    """USC's mean F1 of each of the steps ``names``; empty where the paper has no such order or split.

    Thresholds tuned after AUcorr are another method than thresholds tuned before it, so only the paper's order counts.
    """
    if tuple(names) != STEPS[: len(names)]:
        return {}
    return {name: USC_STEPS.get(split, {})[name] for name in names if split in USC_STEPS}


def ablation(modalities: Mapping[str, AnyModality], removed: Sequence[str], split: str) -> float | None:
    """USC's mean F1 without the input of ``removed``, recognised by instance and kind; None if the paper has none."""
    branches = frozenset(
        modalities[name].instance.partition("_")[0] + (" context" if modalities[name].kind == "context" else "")
        for name in removed
    )
    return USC_ABLATION.get(split, {}).get(branches)
