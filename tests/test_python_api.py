"""The functions that people call from Python: visible signatures, quick imports, and the page that shows them."""

import inspect
import re
import subprocess
import sys

import numpy as np
import pytest

import extract
import fusion
from extract.au import AU_NAMES
from extract.errors import UsageError
from extract.running import runner
from extract.running.selection import Options
from fusion import evaluation, prediction, training
from tests.conftest import ROOT
from tests.media_files import greys, tone, write_clip
from tools.curves import read_predicted

CONFIG = """\
extract:
  instances:
    labels: {}
    hubert: {weights: random, architecture: small}
fusion:
  modalities:
    sound: {kind: steps, instance: hubert, array: feature, before_s: 0.1, after_s: 0.1, project: 4}
  model: {hidden: 4, head: 8}
"""
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("function", [fusion.fit, fusion.evaluate, fusion.predict])
def test_every_argument_is_explained(function):
    for name in inspect.signature(function).parameters:
        assert re.search(rf"^        {name}: ", function.__doc__, re.MULTILINE), name


def test_the_package_shows_its_functions_and_nothing_made_up():
    assert (fusion.fit, fusion.evaluate, fusion.predict) == (training.fit, evaluation.evaluate, prediction.predict)
    assert {"fit", "evaluate", "predict"} <= set(dir(fusion))
    with pytest.raises(AttributeError, match="module 'fusion' has no attribute 'train'"):
        fusion.train  # noqa: B018


def test_run_shows_every_option_of_a_run():
    parameters = inspect.signature(extract.run).parameters
    options = inspect.signature(Options).parameters
    single = [name for name in options if name not in {"remember", "lock"}]
    assert [*parameters] == ["manifest", "store", "config", "set", *single, "options", "progress"]
    for name in single:
        assert parameters[name].default == options[name].default
        assert re.search(rf"^        {name}: ", extract.run.__doc__, re.MULTILINE), name


def test_run_hands_every_option_on(monkeypatch):
    seen = []
    monkeypatch.setattr(runner, "run", lambda *_, **keys: seen.append(keys["options"]))
    values = {
        "stages": ("swin",), "clips": ("a",), "limit": 3, "shard": "1/2", "device": "cpu", "overwrite": True,
        "retry": True, "offline": True, "allow_shared_subjects": True,
    }  # fmt: skip
    extract.run("m.yaml", **values)
    extract.run("m.yaml", options=Options(**values))
    assert seen == [Options(**values)] * 2
    with pytest.raises(UsageError, match="give `options` or single settings, not both"):
        extract.run("m.yaml", limit=1, options=Options())


def test_importing_both_packages_is_light():
    heavy = "{'torch', 'zarr', 'numpy', 'pydantic', 'av'}"
    code = f"import sys, extract, fusion; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


@pytest.fixture
def recordings(tmp_path, monkeypatch):
    """What the page assumes: three videos with labels in a manifest, a config, and a video that is new."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AU_FUSION_CACHE", str(tmp_path / "cache"))
    lines = ["version: 1", "clips:"]
    for number, (clip, split) in enumerate((("talk01", "train"), ("talk02", "train"), ("talk03", "test"))):
        pictures = greys(12)
        write_clip(tmp_path / f"{clip}.mov", pictures, sound=tone(0.48, frequency_hz=200.0 * (number + 1)))
        rows = np.random.default_rng(number).integers(0, 2, (12, 12))
        (tmp_path / f"{clip}.csv").write_text("\n".join([",".join(AU_NAMES), *(",".join(map(str, r)) for r in rows)]))
        lines.append(f"  - {{id: {clip}, video: {clip}.mov, labels: {{au: {clip}.csv}}, split: {split}}}")
    (tmp_path / "my_videos.yaml").write_text("\n".join(lines) + "\n")
    (tmp_path / "my_config.yaml").write_text(CONFIG)
    write_clip(tmp_path / "new.mov", greys(10), sound=tone(0.4)).rename(tmp_path / "new.mp4")
    return tmp_path


def test_the_page_runs_as_it_stands(recordings, capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)  # noqa: S102 - the page of this repository
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "0 []"
    assert 0 <= float(printed[1].split()[0]) <= 1
    assert printed[2] == "predictions/new.csv 10 {}"
    assert (recordings / "predictions/new.json").is_file()
    assert printed[3].split()[:2] == ["0.000000", "1"]
    assert names["pts_s"].shape == (12,)
    times, probabilities = read_predicted(recordings / "predictions/new.csv")
    np.testing.assert_allclose(times, np.arange(10) / 25, atol=1e-6)
    assert probabilities.shape == (10, 12)
    assert ((probabilities > 0) & (probabilities < 1)).all()
    said = re.search(r"^    (2 run .*)$", PAGE, re.MULTILINE)
    assert printed[4] == said[1]
