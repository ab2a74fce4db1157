"""docs/fusion.md against the code: every setting with its default, and what the built-in configs are said to read."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import pytest
import yaml
from pydantic_core import PydanticUndefined

from extract.config import Frozen
from fusion.cli import app
from fusion.config import AnyModality, FusionConfig, load_fusion_config
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "fusion.md").read_text(encoding="utf-8")
KINDS = ("frame", "context", "steps", "tokens")


def rows_below(title: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its header."""
    section = PAGE.split(f"\n{title}\n", 1)[1].split("\n#", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def value(cell: str) -> Any:
    """What a cell says, as YAML would read it."""
    return yaml.safe_load(cell.strip("`"))


def dumped(default: object) -> object:
    """A default as YAML holds it."""
    return dict(default) if isinstance(default, Mapping) else default


def settings(model: type[Frozen], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Name and default of every setting of a config class and of those in it."""
    for name, field in model.model_fields.items():
        if isinstance(field.default, Frozen):
            yield from settings(type(field.default), f"{prefix}{name}.")
        else:
            yield prefix + name, field.default


def test_the_table_of_settings_has_each_with_its_default():
    listed = {name.strip("`"): default for name, default, _ in rows_below("### The rest")}
    found = dict(settings(FusionConfig))
    assert [*listed] == [*found]
    assert listed.pop("modalities") == "those of `default.yaml`"
    del found["modalities"]
    assert {name: value(cell) for name, cell in listed.items()} == {
        name: dumped(default) for name, default in found.items()
    }


def test_the_table_of_modalities_has_each_setting_of_each_kind():
    listed: dict[tuple[str, str], Any] = {}
    for name, kinds, default, _ in rows_below("### Modalities"):
        for kind in kinds.split(", "):
            assert (kind, name.strip("`")) not in listed
            listed[kind, name.strip("`")] = default if default == "required" else value(default)
    found: dict[tuple[str, str], Any] = {}
    for model in get_args(AnyModality):
        (kind,) = get_args(model.model_fields["kind"].annotation)
        for name, field in model.model_fields.items():
            required = field.default is PydanticUndefined or name == "kind"
            found[kind, name] = "required" if required else field.default
    assert {kind for kind, _ in found} == set(KINDS)
    assert listed == found


@pytest.mark.parametrize(("config", "column"), [("default", 3), ("paper_frozen", 4), ("code", 5)])
def test_the_readings_are_those_of_the_configs(config, column):
    loaded = load_fusion_config(config).model_dump(mode="json")
    rows = [row for row in rows_below("## The paper and us") if row[0].startswith("`")]
    assert len(rows) > 15
    for row in rows:
        found: Any = loaded
        for part in row[0].strip("`").split("."):
            found = found[part]
        assert value(row[column]) == found, f"{config}: {row[0]}"


def test_every_command_is_on_the_page():
    for command in app.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__
        assert re.search(rf"`?fusion {name}\b", PAGE), name


def test_every_setting_that_the_text_names_exists():
    known = {name for name, _ in settings(FusionConfig)}
    named = set(re.findall(r"\b((?:data|model|loss|training|post)\.[a-z_]+)\b", PAGE)) - {
        "model.pt",
        "model.safetensors",
    }
    assert named - known == set()


def test_its_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (ROOT / "docs" / target).is_file(), target
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in PAGE.splitlines()
        if line.startswith("#")
    }
    for anchor in re.findall(r"\]\(#([^)]+)\)", PAGE):
        assert anchor in headings, anchor
