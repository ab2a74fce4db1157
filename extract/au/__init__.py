"""What adaptation and fusion share about action units: names, losses, metrics. Imports nothing else of ours."""

import re

AUS = (1, 2, 4, 6, 7, 10, 12, 15, 23, 24, 25, 26)
"""The twelve action units of Aff-Wild2 (ABAW), in the order of every table, array and file."""

_NAME = re.compile(r"au\s*0*([1-9][0-9]{0,3})", re.IGNORECASE)


def au_name(number: int) -> str:
    """The name of an AU wherever one is written: ``AU01``, ``AU12``."""
    return f"AU{number:02d}"


def au_number(name: str) -> int | None:
    """The number in an AU's name, however it is spelled (``AU1``, ``AU01``, ``au 1``); None if it is no AU."""
    match = _NAME.fullmatch(name.strip())
    return int(match[1]) if match else None


AU_NAMES = tuple(au_name(number) for number in AUS)
"""Names of the twelve, as column titles and JSON keys."""
