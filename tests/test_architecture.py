"""Who may import whom, who may print, how long a file may be.

Imports are read from the syntax tree, so those inside functions and under ``TYPE_CHECKING`` count as well. Each check
is a function from a tree of files to findings; it is run on the repository, where it must find nothing, and on a small
bad example, where it must find what is wrong: a check that finds nothing anywhere would be no check.
"""

import ast
from collections.abc import Callable, Iterator

import pytest

from extract.registry import STAGES
from tests.conftest import ROOT

FUSION_MAY_IMPORT = {
    "store",
    "records",
    "timeline",
    "inputs.splits",
    "names",
    "errors",
    "au",
    "config",
    "files",
    "endings",
    "archives",
    "texts",
    "devices",
    "flags",
}
"""Rooms of ``extract`` that ``fusion`` uses. ``files`` holds no features: it makes a run's files durable; ``flags`` and
``endings`` are what both command lines share, ``devices`` is where both choose one."""

PREDICT_MAY_IMPORT = {
    "fusion/prediction.py": {"graph", "inputs", "running", "weights"},
    "fusion/prediction_tables.py": {"inputs"},
    "fusion/sharing.py": {"weights.table"},
    "fusion/model_card.py": {"weights.table"},
    "fusion/cli.py": {"console"},
    "fusion/__init__.py": {"running.report.Progress"},
}
"""Predicting runs an extraction: what plans and runs it, and what shows its progress. A shared run
names the licences of the weights that its features need."""

ONE_USER = {
    "zarr": {"extract/arrays.py"},
    "av": {
        *(f"extract/inputs/media/{name}.py" for name in ("decoding", "picture", "video", "audio")),
        "extract/demo/clips.py",
    },
    "yaml": {
        "extract/texts.py",
        "extract/inputs/manifest/nodes.py",
        "extract/config.py",
        "fusion/config.py",
        "fusion/runs.py",
    },
}
"""Packages behind one door (av: one decodes, the demo's encodes; yaml: one per file format, and what guards them)."""

PRINTS = {
    "cli.py",
    "cli_adapt.py",
    "cli_analysis.py",
    "cli_manifest.py",
    "cli_weights.py",
    "cli_share.py",
    "cli_tuning.py",
    "console.py",
    "endings.py",
}
"""What a command is made of: its arguments, what it shows, how it ends. Everything else returns values or raises."""

Tree = dict[str, str]
"""Path from the root -> text of a Python file."""


def packages() -> Tree:
    files = [path for package in ("extract", "fusion") for path in (ROOT / package).rglob("*.py")]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in files}


def imports(path: str, text: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a module imports; ``from a import b`` gives ``a.b``."""
    package = path.split("/")[:-1]
    for node in ast.walk(ast.parse(text, path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node) in {"import_module", "__import__"}:
            name = node.args[0] if node.args else None
            yield node.lineno, name.value if isinstance(name, ast.Constant) and isinstance(name.value, str) else "?"


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


# -- the checks -------------------------------------------------------------------------------------------------------


def extract_imports_fusion(tree: Tree) -> list[str]:
    return [
        f"{path}:{line} imports {name}"
        for path, text in tree.items()
        if path.startswith("extract/")
        for line, name in imports(path, text)
        if inside(name, "fusion")
    ]


def au_imports_ours(tree: Tree) -> list[str]:
    return [
        f"{path}:{line} imports {name}"
        for path, text in tree.items()
        if path.startswith("extract/au/")
        for line, name in imports(path, text)
        if (inside(name, "extract") or inside(name, "fusion")) and not inside(name, "extract.au")
    ]


def fusion_imports_more_than_it_may(tree: Tree) -> list[str]:
    found = []
    for path, text in tree.items():
        if not path.startswith("fusion/"):
            continue
        allowed = FUSION_MAY_IMPORT | PREDICT_MAY_IMPORT.get(path, set())
        for line, name in imports(path, text):
            # `import extract` and `from extract import x` as well: the package's face reaches the runner.
            if inside(name, "extract") and not any(inside(name, f"extract.{room}") for room in allowed):
                found.append(f"{path}:{line} imports {name}")
    return found


def circles(tree: Tree) -> list[str]:
    """Modules that import each other, directly or not; imports inside functions and under TYPE_CHECKING count too."""
    modules = {path.removesuffix("/__init__.py").removesuffix(".py").replace("/", "."): path for path in tree}
    graph = {
        module: {target for _, name in imports(path, tree[path]) if (target := _module_of(name, modules)) != module}
        for module, path in modules.items()
    }
    found = []
    for start in sorted(graph):
        reached, stack = set(), [*graph[start]]
        while stack:
            at = stack.pop()
            if at is not None and at not in reached:
                reached.add(at)
                stack += graph[at]
        if start in reached:
            found.append(modules[start])
    return found


def _module_of(name: str, modules: dict[str, str]) -> str | None:
    """The module of ours that an import reaches: ``a.b.c`` is module ``a.b.c``, or something inside ``a.b``."""
    return next((at for at in (name, name.rpartition(".")[0]) if at in modules), None)


LOWER_ROOMS = ("inputs", "weights", "models", "stages")


def lower_rooms_know_the_upper(tree: Tree) -> list[str]:
    """``inputs``, ``weights``, ``models``, ``stages`` know nothing of a run; ``weights``, ``inputs`` know no stage."""
    found = []
    for path, text in tree.items():
        room = path.split("/")[1] if path.startswith("extract/") else ""
        if room not in LOWER_ROOMS:
            continue
        forbidden = ["running", "graph", "registry", "cli"]
        forbidden += [] if room == "stages" else ["stages"]
        forbidden += ["stage", "models"] if room == "weights" else []
        forbidden += ["stage", "models", "weights", "store"] if room == "inputs" else []
        found += [
            f"{path}:{line} imports {name}"
            for line, name in imports(path, text)
            if any(inside(name, f"extract.{other}") for other in forbidden)
        ]
    return found


STORE = ("store", "records", "arrays", "blocks", "damage", "clip_view", "frame_table")
CORE = (
    "extract/running/",
    *("extract/graph.py", "extract/cli", "extract/console.py", "extract/verification.py", "extract/stage.py"),
    *(f"extract/{module}.py" for module in STORE),
)


ALSO_A_PACKAGE = ("extract/running/runner.py", "timm")
"""There it is the library, whose version goes into records."""


def core_names_a_stage(tree: Tree) -> list[str]:
    """A stage's name as a string, or an import of its module: stages declare their roles instead."""
    found = []
    for path, text in tree.items():
        if not path.startswith(CORE):
            continue
        found += [
            f"{path}:{line} imports {name}" for line, name in imports(path, text) if inside(name, "extract.stages")
        ]
        found += [
            f"{path}:{node.lineno} names {node.value}"
            for node in ast.walk(ast.parse(text, path))
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node.value in STAGES
            and (path, node.value) != ALSO_A_PACKAGE
        ]
    return found


LONGEST_FILE, LONGEST_CLASS = 450, 250
"""Lines. What is longer is hard to read from top to bottom."""


def too_long(tree: Tree) -> list[str]:
    found = [f"{path}:{text.count(chr(10))} lines" for path, text in tree.items() if text.count("\n") > LONGEST_FILE]
    for path, text in tree.items():
        for node in ast.walk(ast.parse(text, path)):
            if isinstance(node, ast.ClassDef) and (node.end_lineno or 0) - node.lineno >= LONGEST_CLASS:
                found.append(f"{path}:{node.lineno} class {node.name}")
    return found


def imports_past_the_door(tree: Tree) -> list[str]:
    return [
        f"{path}:{line} imports {name}"
        for path, text in tree.items()
        for line, name in imports(path, text)
        if name.split(".")[0] in ONE_USER and path not in ONE_USER[name.split(".")[0]]
    ]


def imports_by_computed_name(tree: Tree) -> list[str]:
    """An import that the other checks cannot see."""
    return [f"{path}:{line}" for path, text in tree.items() for line, name in imports(path, text) if name == "?"]


def global_zarr_settings(tree: Tree) -> list[str]:
    """Zarr's config holds for the whole process: what one thread sets there, another one resets."""
    found = [
        f"{path}:{line}"
        for path, text in tree.items()
        for line, name in imports(path, text)
        if inside(name, "zarr.config") or inside(name, "zarr.core.config")
    ]
    found += [
        f"{path}:{node.lineno}"
        for path, text in tree.items()
        for node in ast.walk(ast.parse(text, path))
        if isinstance(node, ast.Attribute) and node.attr == "config" and getattr(node.value, "id", "") == "zarr"
    ]
    return found


def modules_called_utils(tree: Tree) -> list[str]:
    return [
        path for path in tree if {"utils", "util", "helpers"} & {part.removesuffix(".py") for part in path.split("/")}
    ]


def modules_that_shadow(tree: Tree) -> list[str]:
    """Modules named like something that their package offers: ``extract/run.py`` would replace ``extract.run``."""
    found = []
    for path, text in tree.items():
        if not path.endswith("/__init__.py"):
            continue
        folder = path.removesuffix("__init__.py")
        below = [inner.removeprefix(folder).split("/")[0] for inner in tree if inner.startswith(folder)]
        modules = {name.removesuffix(".py") for name in below}
        found += [f"{folder}{name}" for name in sorted(offered(text, folder.strip("/").replace("/", ".")) & modules)]
    return found


def offered(text: str, package: str) -> set[str]:
    """Names that a package binds itself: functions, classes, imports from its modules, lazy names, ``__all__``."""
    names: set[str] = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom) and node.module != package:  # `from extract import au` is the module
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            # `__all__ = ["run"]`, or a table {"run": "extract.running.runner"} from which __getattr__ imports lazily.
            keys = node.value.keys if isinstance(node.value, ast.Dict) else getattr(node.value, "elts", [])
            names |= {key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)}
    return names


def prints_outside_cli(tree: Tree) -> list[str]:
    return [
        f"{path}:{node.lineno}"
        for path, text in tree.items()
        if path.split("/")[-1] not in PRINTS
        for node in ast.walk(ast.parse(text, path))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    ]


OK: Tree = {
    "extract/__init__.py": "",
    "extract/au/__init__.py": "",
    "extract/au/losses.py": "import torch\nfrom extract.au import AUS\nfrom . import metrics",
    "extract/arrays.py": "import zarr\nfrom zarr.storage import LocalStore\nzarr.open_array(config=1)",
    "extract/store.py": "from extract import arrays",
    "extract/inputs/media/decoding.py": "import av.container",
    "extract/cli.py": "from extract import store\ndef main():\n    print('x')",
    "extract/avatar.py": "import fusions, available, zarrish\nprinted = print_ = 1\nprint_(2)",
    "fusion/__init__.py": "from fusion.training import fit",
    "fusion/data.py": "from extract.store import Store\nfrom extract.au.metrics import f1\nimport extract.errors",
    "fusion/prediction.py": "def predict():\n    from extract.running.runner import run",
}

BAD: list[tuple[Callable[[Tree], list[str]], str, str, str]] = [
    (extract_imports_fusion, "extract/x.py", "import fusion", ":1 imports fusion"),
    (extract_imports_fusion, "extract/x.py", "def f():\n    from fusion.data import t", ":2 imports fusion.data.t"),
    (extract_imports_fusion, "extract/x.py", "if TYPE_CHECKING:\n    import fusion.cli as d", ":2 imports fusion.cli"),
    (extract_imports_fusion, "extract/a/x.py", "import_module('fusion.cli')", ":1 imports fusion.cli"),
    (au_imports_ours, "extract/au/x.py", "from extract.errors import E", ":1 imports extract.errors.E"),
    (au_imports_ours, "extract/au/x.py", "from extract import errors", ":1 imports extract.errors"),
    (au_imports_ours, "extract/au/x.py", "from ..errors import E", ":1 imports extract.errors.E"),
    (au_imports_ours, "extract/au/x.py", "from .. import errors", ":1 imports extract.errors"),
    (
        fusion_imports_more_than_it_may,
        "fusion/x.py",
        "from extract.running.runner import r",
        ":1 imports extract.running.runner.r",
    ),
    (fusion_imports_more_than_it_may, "fusion/x.py", "import extract", ":1 imports extract"),
    (fusion_imports_more_than_it_may, "fusion/x.py", "from extract import run", ":1 imports extract.run"),
    (
        fusion_imports_more_than_it_may,
        "fusion/prediction.py",
        "import extract.media",
        ":1 imports extract.media",
    ),
    (
        lower_rooms_know_the_upper,
        "extract/inputs/x.py",
        "import extract.running.lease",
        ":1 imports extract.running.lease",
    ),
    (lower_rooms_know_the_upper, "extract/models/x.py", "from extract import graph", ":1 imports extract.graph"),
    (lower_rooms_know_the_upper, "extract/weights/x.py", "from extract.stage import S", ":1 imports extract.stage.S"),
    (lower_rooms_know_the_upper, "extract/inputs/x.py", "import extract.stages.crop", ":1 imports extract.stages.crop"),
    (lower_rooms_know_the_upper, "extract/inputs/a/x.py", "from extract import store", ":1 imports extract.store"),
    (core_names_a_stage, "extract/running/x.py", "x = 'swin'", ":1 names swin"),
    (core_names_a_stage, "extract/cli.py", "import extract.stages.swin", ":1 imports extract.stages.swin"),
    (imports_past_the_door, "extract/x.py", "import zarr.codecs as c", ":1 imports zarr.codecs"),
    (imports_past_the_door, "fusion/x.py", "def f():\n    import av", ":2 imports av"),
    (imports_past_the_door, "extract/store.py", "from yaml import dump", ":1 imports yaml.dump"),
    (too_long, "extract/x.py", "x = 1\n" * 451, ":451 lines"),
    (too_long, "extract/x.py", "class C:\n" + "    x = 1\n" * 250, ":1 class C"),
    (imports_by_computed_name, "extract/x.py", "importlib.import_module(name)", ":1"),
    (global_zarr_settings, "extract/arrays.py", "def f():\n    with zarr.config.set({}):\n        pass", ":2"),
    (global_zarr_settings, "extract/arrays.py", "from zarr import config", ":1"),
    (global_zarr_settings, "extract/arrays.py", "from zarr.core.config import config as c", ":1"),
    (modules_called_utils, "extract/stages/utils.py", "", ""),
    (modules_called_utils, "fusion/utils/x.py", "", ""),
    (prints_outside_cli, "extract/x.py", "def f():\n    print('x')", ":2"),
]
"""Check, path and text of a bad module, and what the finding says behind the path."""

CHECKS = [*dict.fromkeys(row[0] for row in BAD), modules_that_shadow, circles]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_packages(check):
    tree = packages()
    assert {"extract/au/__init__.py", "fusion/__init__.py", *(f"extract/{module}.py" for module in STORE)} <= set(tree)
    assert check(tree) == []


@pytest.mark.parametrize(("check", "path", "text", "finding"), BAD)
def test_the_check_itself(check, path, text, finding):
    assert check(OK) == []
    assert check(OK | {path: text}) == [path + finding]


def test_no_file_of_tests_or_tools_is_too_long():
    folders = [ROOT / "tests", ROOT / "tools", ROOT / "benchmarks"]
    files = [path for folder in folders for path in folder.rglob("*.py")]
    tree = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in files}
    assert {"tests/test_architecture.py", "tools/demo.py"} <= set(tree)
    assert too_long(tree) == []


@pytest.mark.parametrize(
    "back",
    ["import extract.a", "def f():\n    from extract import a", "if TYPE_CHECKING:\n    from extract.a import x"],
)
def test_circles_are_found_through_other_modules_and_wherever_the_import_stands(back):
    tree = {"extract/a.py": "from extract.b import y", "extract/b.py": "import extract.c", "extract/c.py": "x = 1"}
    assert circles(tree) == []
    assert circles(tree | {"extract/c.py": back}) == ["extract/a.py", "extract/b.py", "extract/c.py"]


def test_a_module_of_its_own_shadows_nothing():
    init = "from extract import run\ndef start():\n    from extract.x import run"
    assert modules_that_shadow({"extract/__init__.py": init, "extract/run.py": ""}) == []


@pytest.mark.parametrize(
    "init",
    [
        "def run(): ...",
        "from extract.running.runner import run",
        "from extract.running.runner import start as run",
        '__all__ = ["run"]',
        '_LAZY = {"run": "extract.running.runner"}',
    ],
)
def test_every_way_to_offer_a_function_counts(init):
    assert modules_that_shadow(OK) == []
    tree = {"extract/__init__.py": init, "extract/running/runner.py": "", "extract/run.py": ""}
    assert modules_that_shadow(tree) == ["extract/run"]
    del tree["extract/run.py"]
    assert modules_that_shadow(tree) == []
