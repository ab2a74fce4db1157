"""One manner for both programs: the same flags, the same prefixes, the same endings."""

import logging
import subprocess
import sys
from collections import defaultdict

import pytest
import typer
from typer.testing import CliRunner

from extract import cli as extract_cli
from extract import flags
from extract.errors import UsageError
from fusion import cli as fusion_cli
from fusion import evaluation
from tests.conftest import ROOT

APPS = {"extract": extract_cli.app, "fusion": fusion_cli.app}
SHARED = {"--device", "--offline", "--quiet", "--verbose", "--json"}


def options(program):
    """(command, option) of every command of a program."""

    def walk(command, path):
        below = getattr(command, "commands", None)  # typer brings a click of its own, so types say nothing
        if below is None:
            yield from ((" ".join(path), one) for one in command.params if one.param_type_name == "option")
        for name, inner in (below or {}).items():
            yield from walk(inner, [*path, name])

    yield from walk(typer.main.get_command(APPS[program]), [program])


def test_one_thing_has_one_name_and_one_short_form():
    spellings = defaultdict(set)
    shorts = defaultdict(set)
    for program in APPS:
        for _, option in options(program):
            long = next(name for name in option.opts if name.startswith("--"))
            short = [name for name in option.opts if not name.startswith("--")]
            spellings[long].add((*short, option.metavar if long in {"--config", "--set", "--device"} else None))
            for name in short:
                shorts[name].add(long)
    assert {name: ways for name, ways in spellings.items() if len(ways) > 1} == {}
    assert {name: long for name, long in shorts.items() if len(long) > 1} == {}
    assert shorts.keys() == {"-c", "-o", "-q", "-v"}
    assert "--out" not in spellings


def test_shared_flags_say_the_same_in_every_command():
    said = defaultdict(set)
    for program in APPS:
        for _, option in options(program):
            for name in SHARED & set(option.opts):
                said[name].add((option.help, option.default))
    assert said.keys() == SHARED
    assert {name: texts for name, texts in said.items() if len(texts) > 1} == {}


def test_fusion_has_q_v_and_json_everywhere():
    found = defaultdict(set)
    for command, option in options("fusion"):
        found[command] |= set(option.opts)
    computing = {
        f"fusion {name}" for name in ("fit", "evaluate", "predict", "submit", "ablate", "crossval", "ensemble")
    }
    assert found.keys() == computing | {"fusion export", "fusion tune", "fusion correlate"}
    for command, names in found.items():
        assert {"-q", "-v", "--json", *(["--device"] if command in computing else [])} <= names


@pytest.mark.parametrize("module", ["extract", "extract.cli", "fusion", "fusion.cli"])
def test_a_module_runs_as_its_program(module, tmp_path):
    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False, cwd=ROOT
        )

    program = module.partition(".")[0]
    command = {"extract": ["status", "--store"], "fusion": ["evaluate", "--run"]}[program]
    ended = run(*command, str(tmp_path / "nowhere"))
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"{program}: ")
    assert "Usage" in run("--help").stdout


@pytest.mark.parametrize("program", APPS)
def test_errors_begin_with_the_programs_name(program, tmp_path):
    command = {"extract": ["status", "--store"], "fusion": ["fit", "--features"]}[program]
    ended = CliRunner().invoke(APPS[program], [*command, str(tmp_path / "nowhere")])
    assert ended.exit_code == 2
    assert ended.stderr.startswith(f"{program}: store ")
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["run"], ["verify"], ["fit"], ["evaluate"], ["predict", "a.mp4"]])
def test_quiet_and_verbose_exclude_each_other(arguments):
    program = "fusion" if arguments[0] in {"fit", "evaluate", "predict"} else "extract"
    ended = CliRunner().invoke(APPS[program], [*arguments, "-q", "-v"])
    assert ended.exit_code == 2
    assert ended.stderr == f"{program}: -q and -v exclude each other\n"


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ([], "info\nwarning: warn\nerror: err\n"),
        (["-q"], "error: err\n"),
        (["-v"], "debug\ninfo\nwarning: warn\nerror: err\n"),
    ],
)
@pytest.mark.parametrize("logger", ["extract.running", "fusion"])
def test_messages_of_both_packages_go_one_way(monkeypatch, flag, said, logger):
    """Each line once, on standard error, with its level where that matters."""

    def evaluate(*_, **__):
        log = logging.getLogger(logger)
        log.debug("debug")
        log.info("info")
        log.warning("warn")
        log.error("err")
        raise UsageError("enough")

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    ended = CliRunner().invoke(fusion_cli.app, ["evaluate", *flag])
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr == f"{said}fusion: enough\n"


def test_a_command_ends_with_the_code_that_it_returns():
    with pytest.raises(typer.Exit) as end:
        flags.reported("x")(lambda: 1)()
    assert end.value.exit_code == 1
