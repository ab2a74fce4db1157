"""What no file of the repository says: the host of a package registry, a path of somebody's machine."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

# In pieces, so that this file does not find itself.
HOSTS = [
    ".".join(parts) for parts in (("pypi", "org"), ("files", "pythonhosted"), ("registry", "npmjs"), ("deb", "debian"))
]
FOLDERS = ["work", "farm", "root", "home", "Users", "tmp"]
MACHINE = re.compile("|".join([*map(re.escape, HOSTS), rf"(?<![A-Za-z0-9_.~])/(?:{'|'.join(FOLDERS)})/"]))


def of_one_machine(text: str) -> list[str]:
    """Registry hosts and absolute paths of somebody's machine in a text."""
    return MACHINE.findall(text)


def tracked_files() -> list[Path]:
    """What is in the repository; a user's own manifest beside it may well hold absolute paths."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("no git, or no repository here: which files are tracked cannot be told")
    listed = subprocess.run([git, "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def test_no_file_names_a_registry_or_a_machine():
    files = tracked_files()
    assert ROOT / "pyproject.toml" in files
    texts = {path: path.read_bytes().decode("utf-8", errors="replace") for path in files if path.suffix != ".npz"}
    assert {str(path): found for path, text in texts.items() if (found := of_one_machine(text))} == {}


@pytest.mark.parametrize(
    "text", [f"https://{host}/simple" for host in HOSTS] + [f"x = '/{name}/a'" for name in FOLDERS]
)
def test_the_search_itself(text):
    assert of_one_machine(text)


@pytest.mark.parametrize(
    "text",
    # Put together here, so that this file holds none of them.
    [f"{before}{name}{after}" for name in FOLDERS for before, after in (("../", "/a"), ("~/", "/x"), ("a/", "/b"))]
    + ["homework/", "roots/a", "/opt/a"],
)
def test_what_the_search_leaves_alone(text):
    assert not of_one_machine(text)
