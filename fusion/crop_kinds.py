"""Whether face crops were given or cut from a movie: one recipe, other pixels, so a run must not mix them unnoticed.

::

    given      the clip brought its crops (``crops:`` of the manifest): a tight, padded picture of 112 pixels
    as_given   cut from the movie with ``crop.patch: face``: super-resolution gets the same tight picture
    cut        cut from the movie: super-resolution gets a wide patch of the frame's own pixels
    mixed      some clips are of the first two kinds, some of the third

Only instances that are made from crops have a kind: sound, words and labels are the same either way.
"""

import copy
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from extract.errors import StaleError
from extract.records import Record

logger = logging.getLogger("fusion")

GIVEN, AS_GIVEN, CUT, MIXED = "given", "as_given", "cut", "mixed"
CROP = "crop"
"""Stage, and source part's singular: ``crops`` in a record's source means that the clip brought them."""
PART = "crops"
WIDE, FACE = "wide", "face"
"""Values of ``crop.patch``; recipes do not name ``wide``."""
SHOWN = 6
"""Clips that a message lists before it only counts."""
WORDS = {
    GIVEN: "crops that the clips brought (tight pictures of 112 px)",
    AS_GIVEN: "crops cut as given ones are (crop.patch: face)",
    CUT: "crops cut from the movies (a wide patch for super-resolution)",
    MIXED: "a mixture of given and cut crops",
}

TIGHT = (
    "`extract run --set crop.patch=face` into another store cuts crops as given ones are, and so does `fusion predict` "
    "unless --crops, --set or -c say otherwise"
)
REMEDIES = {
    GIVEN: TIGHT,
    AS_GIVEN: TIGHT,
    CUT: "extract from the movies, without `crops:` in the manifest and with crop.patch=wide; for `fusion predict` "
    "leave out --crops",
}
"""Kind of the fit -> how to get the like of it."""


def crop_recipes(recipe: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The recipes of stage ``crop`` among a recipe and all that it is made from."""
    if recipe.get("stage") == CROP:
        yield recipe
    for below in recipe.get("inputs", {}).values():
        yield from crop_recipes(below)


def kind_of(record: Record) -> str | None:
    """``given``, ``as_given`` or ``cut``; None where no crop is involved, or the instance has no rows."""
    cut = cut_kinds({"": record.recipe}).get("")
    if cut is None or record.state != "done":
        return None
    return GIVEN if PART in record.source else cut


def cut_kinds(recipes: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Instance -> ``as_given`` or ``cut``, for recipes of features that are made from movies."""
    found = {}
    for instance, recipe in recipes.items():
        crops = list(crop_recipes(recipe))
        if crops:
            found[instance] = AS_GIVEN if all(crop["config"].get("patch") == FACE for crop in crops) else CUT
    return found


def together(kinds: Iterable[str]) -> str | None:
    """The one word for the kinds of several clips; None of none."""
    found = set(kinds)
    if len(found) > 1:
        return GIVEN if found == {GIVEN, AS_GIVEN} else MIXED
    return found.pop() if found else None


def differ(fitted: str, used: str) -> bool:
    """Whether a run that was fitted on one kind meets pixels of another kind. A mixture has seen both."""
    tight = {GIVEN, AS_GIVEN}
    return fitted != MIXED and fitted != used and not {fitted, used} <= tight


def check_crops(
    fitted: Mapping[str, str], used: Mapping[str, Mapping[str, str]], whose: str, *, allow: bool
) -> list[str]:
    """Compare the kinds of crops that a run was fitted on with those that it is used on.

    Args:
        fitted: instance -> kind, as the run records it; empty for a run of an earlier version.
        used: instance -> clip -> kind.
        whose: names the run, for messages.
        allow: give a warning in place of the error (``--allow-other-crops``).

    Returns:
        Warnings: which instances differ.

    Raises:
        StaleError: the message names run, instance, both kinds and some clips.
    """
    if not fitted and any(used.values()):
        logger.info(
            "%s does not say whether its crops were given or cut from movies: it is of an earlier version", whose
        )
    alike: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for instance, kinds in used.items():
        kind = fitted.get(instance)
        clips = tuple(clip for clip, other in kinds.items() if kind is not None and differ(kind, other))
        here = together(kinds[clip] for clip in clips)
        if kind is not None and here is not None:
            alike.setdefault((kind, here, clips), []).append(instance)
    found = [
        f"instance{'s' if len(instances) > 1 else ''} {', '.join(instances)}: {whose} was fitted on {WORDS[kind]}, but "
        f"it is used on {WORDS[here]}: {some([*clips])}"
        for (kind, here, clips), instances in alike.items()
    ]
    if found and not allow:
        remedies = {REMEDIES[kind] for kind, _, _ in alike}
        raise StaleError("\n".join([*found, *sorted(remedies), "--allow-other-crops goes on all the same"]))
    return [f"other crops than in the fit: {line}" for line in found]


def mixtures(kinds: Mapping[str, Mapping[str, str]]) -> list[str]:
    """A line for each instance whose clips have given and cut crops."""
    found = []
    for instance, of_clip in kinds.items():
        if together(of_clip.values()) == MIXED:
            cut = [clip for clip, kind in of_clip.items() if kind == CUT]
            found.append(
                f"instance {instance}: {len(of_clip) - len(cut)} clips brought their crops (tight pictures), those of "
                f"{len(cut)} were cut from the movie (a wide patch): {some(cut)}"
            )
    return found


def some(clips: list[str]) -> str:
    """Names for a message, the first few of many."""
    return ", ".join(clips[:SHOWN]) + (f" and {len(clips) - SHOWN} more" if len(clips) > SHOWN else "")


# ---- one recipe for both kinds -------------------------------------------------------------------------------------


def without_patch(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe in which every ``crop`` is that of ``patch: wide``; ``check_crops`` is what tells them apart."""
    changed = copy.deepcopy(dict(recipe))
    for crop in crop_recipes(changed):
        crop["config"].pop("patch", None)
    return changed
