"""What adaptation and fusion share about action units: names, losses, metrics. Imports nothing else of ours."""

import re

AUS = (1, 2, 4, 6, 7, 10, 12, 15, 23, 24, 25, 26)
"""The twelve action units of Aff-Wild2 (ABAW), in the order of every table, array and file."""

NOT_ANNOTATED = -1
"""Where an AU, its intensity or an expression was not annotated."""

AFFECT_NOT_ANNOTATED = -5.0
"""Where valence or arousal was not annotated: -1 is one of their values (Aff-Wild2's own mark)."""

LOWEST_INTENSITY = 0.0
"""The least intensity of an AU; labels below it are not annotated."""

HIGHEST_INTENSITY = 5
"""FACS intensities: 0 (absent), 1 to 5 (A to E)."""

LOWEST_AFFECT = -1.0
"""The least valence or arousal; labels below it are not annotated."""

EXPRESSIONS = ("neutral", "anger", "disgust", "fear", "happiness", "sadness", "surprise", "other")
"""Aff-Wild2's classes, in the order of their numbers."""

NUM_EXPRESSIONS = len(EXPRESSIONS)

_NAME = re.compile(r"au\s*0*([1-9][0-9]{0,3})", re.IGNORECASE)


def au_name(number: int) -> str:
    """The name of an AU wherever one is written: ``AU01``, ``AU12``."""
    return f"AU{number:02d}"


def expression_names(count: int) -> tuple[str, ...]:
    """Names of ``count`` classes of expression: Aff-Wild2's if there are eight."""
    return EXPRESSIONS if count == NUM_EXPRESSIONS else tuple(f"class {number}" for number in range(count))


def challenge_name(number: int) -> str:
    """The name of an AU in the files of the ABAW challenges: ``AU1``, ``AU12``."""
    return f"AU{number}"


def au_number(name: str) -> int | None:
    """The number in an AU's name, however it is spelled (``AU1``, ``AU01``, ``au 1``); None if it is no AU."""
    match = _NAME.fullmatch(name.strip())
    return int(match[1]) if match else None


AU_NAMES = tuple(au_name(number) for number in AUS)
"""Names of the twelve, as column titles and JSON keys."""
