"""Texts from outside are read whole, but neither waited for nor built when they are bombs."""

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from extract import texts

LIBYAML = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


def test_bytes_come_whole(tmp_path):
    for data in (b"", b"a\r\nb", bytes(3 * 2**20)):
        (tmp_path / "f").write_bytes(data)
        assert texts.read_bytes(tmp_path / "f") == data


@pytest.mark.parametrize("data", [b"a\r\nb\rc\n", b"\xef\xbb\xbfa\nb\nc\n"])
def test_text_is_what_python_reads(tmp_path, data):
    (tmp_path / "f").write_bytes(data)
    assert texts.read_text(tmp_path / "f") == (tmp_path / "f").read_text(encoding="utf-8-sig") == "a\nb\nc\n"


def test_a_folder_and_a_missing_file_are_what_they_are_elsewhere(tmp_path):
    with pytest.raises(IsADirectoryError):
        texts.read_bytes(tmp_path)
    with pytest.raises(FileNotFoundError):
        texts.read_bytes(tmp_path / "none")


def test_what_has_no_end_is_given_up(tmp_path):
    with pytest.raises(OSError, match="larger than 32 MB") as caught:
        texts.read_bytes(Path("/dev/zero"))
    assert caught.value.errno == errno.EFBIG
    with (tmp_path / "f").open("wb") as file:
        file.truncate(texts.MOST_BYTES + 1)
    with pytest.raises(OSError, match="larger than 32 MB"):
        texts.read_bytes(tmp_path / "f")


def test_a_pipe_is_read_to_its_end_and_not_waited_for_without_one(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "p")
    monkeypatch.setattr(texts, "WAIT_S", 0.2)
    with pytest.raises(TimeoutError, match=r"gave nothing for 0\.2 s"):
        texts.read_bytes(tmp_path / "p")
    monkeypatch.setattr(texts, "WAIT_S", 20.0)

    def write() -> None:
        with (tmp_path / "p").open("wb") as pipe:
            pipe.write(b"first ")
            pipe.flush()
            time.sleep(0.3)
            pipe.write(b"second")

    writer = threading.Thread(target=write)
    writer.start()
    assert texts.read_bytes(tmp_path / "p") == b"first second"
    writer.join()


def test_deep_nesting_is_refused_before_libyaml_dies_of_it():
    for text in ("[" * 100_000 + "]" * 100_000, "{a: " * 50_000 + "}" * 50_000, "- " * 101 + "x"):
        with pytest.raises(yaml.MarkedYAMLError, match="nested deeper than 100"):
            texts.refuse_bombs(text, LIBYAML)
    texts.refuse_bombs("[" * 100 + "]" * 100, LIBYAML)
    texts.refuse_bombs("- [x]\n" * 1000, LIBYAML)


def test_aliases_that_stand_for_too_much_are_refused():
    def doubling(steps: int) -> str:
        lines = ["a0: &a0 [x, y]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, steps))]
        return "\n".join(lines)

    texts.refuse_bombs(doubling(16), yaml.SafeLoader)
    for steps in (20, 60):
        with pytest.raises(yaml.MarkedYAMLError, match="repeat too many values"):
            texts.refuse_bombs(doubling(steps), yaml.SafeLoader)
    with pytest.raises(yaml.MarkedYAMLError, match=r"`\*a` stands within what it names"):
        texts.refuse_bombs("&a [*a]", yaml.SafeLoader)


def test_values_are_those_of_safe_load():
    text = "a: &x {b: 1, c: [null, 2.5]}\nd: {<<: *x, e: yes}\n"
    assert texts.load_yaml(text) == yaml.safe_load(text)
    with pytest.raises(yaml.YAMLError, match="python/object"):
        texts.load_yaml("!!python/object/apply:os.getcwd []")


def test_a_deep_manifest_is_a_line_and_no_dead_process(tmp_path):
    (tmp_path / "m.yaml").write_text("version: 1\nclips: " + "[" * 100_000 + "]" * 100_000)
    command = [sys.executable, "-m", "extract.cli", "plan", "--manifest", "m.yaml"]
    ended = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 2
    assert ended.stderr == "extract: m.yaml:2: not YAML: lists and mappings nested deeper than 100\n"
