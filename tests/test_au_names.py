"""AU01, with two digits, wherever an action unit's name is written; AU1 is read as well."""

import ast
import re

import numpy as np
import pytest

from extract.au import AU_NAMES, AUS, au_name, au_number
from extract.demo.clips import _au_table
from extract.demo.schedule import Schedule
from extract.inputs.annotations import read_au
from fusion.scoring import score
from tests.conftest import ROOT


def test_names_have_two_digits_and_are_read_back():
    assert [au_name(number) for number in (1, 12)] == ["AU01", "AU12"]
    assert len(AU_NAMES) == len(AUS) == 12
    assert [au_number(name) for name in AU_NAMES] == [*AUS]


@pytest.mark.parametrize(("text", "number"), [("AU1", 1), ("au 01", 1), (" AU026 ", 26), ("Au12", 12)])
def test_every_spelling_is_read(text, number):
    assert au_number(text) == number


@pytest.mark.parametrize("text", ["AU0", "AU", "AU1_c", "1", "AU-1", "AU1.5", "mean", "", "AU99999"])
def test_other_names_are_no_aus(text):
    assert au_number(text) is None


def test_scores_are_written_with_two_digits():
    written = score([[1] * 12, [0] * 12], [[1] * 12, [1] * 12]).as_json()
    assert [*written["f1"]] == [*AU_NAMES, "mean"]
    assert [*written["annotated"]] == [*written["positive"]] == [*AU_NAMES]


def test_the_demos_labels_are_written_with_two_digits_and_read(tmp_path):
    schedule = Schedule(activations=np.eye(12), bursts=())
    (tmp_path / "labels.csv").write_text(_au_table(schedule))
    assert (tmp_path / "labels.csv").read_text().startswith("AU01,AU02,AU04,")
    assert (read_au(tmp_path / "labels.csv").au == schedule.labels).all()


def spelt_by_hand(text: str) -> list[str]:
    """Parts of f-strings that put a number behind ``AU``."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.JoinedStr)
        for one, following in zip(node.values, node.values[1:], strict=False)
        if isinstance(one, ast.Constant)
        and re.search(r"\bAU$", str(one.value))
        and isinstance(following, ast.FormattedValue)
    ]


def test_one_function_spells_the_names():
    assert spelt_by_hand('x = f"AU{n}"') != []
    assert spelt_by_hand('x = f"{n} AUs of AU files"') == []
    files = [path for package in ("extract", "fusion") for path in (ROOT / package).rglob("*.py")]
    found = {str(path.relative_to(ROOT)): spelt_by_hand(path.read_text(encoding="utf-8")) for path in files}
    assert [path for path, parts in found.items() if parts] == ["extract/au/__init__.py"]
