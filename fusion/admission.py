"""What must hold of clips before a run is fitted or scored on them: their crops, their weights, their people."""

from collections.abc import Iterable, Mapping

from extract.errors import UsageError
from extract.store import Store
from fusion.crop_kinds import check_crops, mixtures, some, together
from fusion.runs import FittedModel
from fusion.selection import FeatureSource, Selection, shared_people


def kinds(sources: Mapping[str, FeatureSource]) -> dict[str, str]:
    """Instance -> kind of all its clips' crops, for ``FittedModel.crops``; instances without crops are left out."""
    found = {instance: together(source.crops.values()) for instance, source in sources.items()}
    return {instance: kind for instance, kind in found.items() if kind is not None}


def before_fit(
    store: Store,
    split_of: Mapping[str, str],
    sources: Mapping[str, FeatureSource],
    *,
    strict_splits: bool = False,
    allow_leak: bool = False,
) -> list[str]:
    """Warnings about clips that a fit is to use.

    Args:
        split_of: clip -> split, of the clips in use.
        sources: what the store says of the run's instances on these clips.
        strict_splits: refuse people or recordings in several splits.
        allow_leak: accept clips of ``val`` that the features' adapted weights were trained on.

    Raises:
        UsageError: see these two; the message names the clips.
    """
    shared = shared_people(store, split_of)
    _refuse(shared, strict_splits, "put them into one split, or leave out --strict-splits")
    warnings = [f"{line}; expect scores on val that are too high" for line in shared]
    warnings += [f"{line}; the run counts as fitted on a mixture" for line in mixtures(_crops(sources))]
    watched = [clip for clip, split in split_of.items() if split != "train"]
    return warnings + _leaks(sources, watched, "stopping early on them flatters the run", allow=allow_leak)


def before_scoring(
    fitted: FittedModel,
    store: Store,
    selection: Selection,
    sources: Mapping[str, FeatureSource],
    whose: str,
    *,
    allow_other_crops: bool = False,
    strict_splits: bool = False,
    allow_leak: bool = False,
) -> list[str]:
    """Warnings about the clips that a run is to be scored on, for every table of these scores.

    Args:
        whose: names the run, for messages.
        allow_other_crops: accept crops of another kind than in the fit.
        strict_splits: refuse people or recordings that the run was fitted on.
        allow_leak: accept clips that the features' adapted weights were trained on.

    Raises:
        StaleError: other crops.
        UsageError: the other two; the message names the clips.
    """
    warnings = check_crops(fitted.crops, _crops(sources), whose, allow=allow_other_crops)
    if selection.split == "train":
        return warnings
    # Of a clip that this store lacks nothing is known; by its name it is a source video, as by default.
    split_of = dict.fromkeys(fitted.clips.get("train", ()), "train")
    split_of |= dict.fromkeys(selection.clips, selection.split)
    shared = shared_people(store, split_of)
    _refuse(shared, strict_splits, "score it on other clips, or leave out --strict-splits")
    warnings += [f"{line}; these scores are too high for other people" for line in shared]
    return warnings + _leaks(sources, selection.clips, "their scores are too high", allow=allow_leak)


def _crops(sources: Mapping[str, FeatureSource]) -> dict[str, Mapping[str, str]]:
    return {instance: source.crops for instance, source in sources.items()}


def _refuse(lines: list[str], strict: bool, remedy: str) -> None:
    if lines and strict:
        raise UsageError("\n".join([*lines, f"--strict-splits refuses this: {remedy}"]))


def _leaks(sources: Mapping[str, FeatureSource], clips: Iterable[str], so: str, *, allow: bool) -> list[str]:
    watched = set(clips)
    found = []
    for instance, source in sources.items():
        seen = [clip for clip in source.adapted_on if clip in watched]
        if seen:
            found.append(
                f"instance {instance}: its weights were adapted on {len(seen)} of these clips ({some(seen)}): {so}"
            )
    if found and not allow:
        raise UsageError(
            "\n".join(found) + "\nextract with weights that were adapted on the split train alone, or score all the "
            "same with --allow-leak, which every table then says"
        )
    return [f"--allow-leak: {line}" for line in found]
