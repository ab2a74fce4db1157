"""The command line: what it prints, and what it ends with."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from extract.au import AU_NAMES
from extract.errors import ConfigError
from fusion import training
from fusion.cli import app
from fusion.config import FusionConfig, load_fusion_config
from tests.fusion_stores import planted_store

SMALL: dict[str, Any] = {
    "modalities": {"swin": {"kind": "frame", "instance": "swin", "array": "feature", "project": 8}},
    "model": {"head": 8},
    "training": {"max_epochs": 2, "min_epoch_steps": 2},
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("drawn") / "store.zarr"
    planted_store(path, {"a": "train", "b": "val", "c": "test"}, num_frames=12, swin_size=8)
    return path


@pytest.fixture
def folder(drawn: Path, tmp_path: Path, monkeypatch) -> Path:
    """A working folder with a store and a config."""
    shutil.copytree(drawn, tmp_path / "store.zarr")
    (tmp_path / "small.yaml").write_text(yaml.safe_dump({"fusion": SMALL}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fusion(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.usefixtures("folder")
def test_fit_then_evaluate():
    fitted = fusion("fit", "-c", "small.yaml", "-o", "runs/first")
    assert fitted.exit_code == 0, fitted.output
    assert "split val of store.zarr: 12 annotated frames of 1 clip" in fitted.stdout
    assert "epoch 2/2: loss" in fitted.stderr
    shown = fusion("evaluate")
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert re.match(r"mean F1 \d+\.\d % \(1 source video\), best trivial predictor \d+\.\d \(all one\)", lines[0])
    assert lines[1].startswith("run runs/first (epoch")
    assert "no interval: 1 source video; an interval takes 4 or more" in lines
    head = next(number for number, line in enumerate(lines) if line.split() == [*AU_NAMES, "mean"])
    steps = ["F1 base", "F1 +smooth", "F1 +AUcorr", "F1 +threshold"]
    trivial = ["all zero", "all one", "majority", "random at prior"]
    titles = [line[:18].strip() for line in lines[head + 1 :]]
    assert titles[:6] == [*steps, "all one", "F1_our"]
    assert titles[6] in trivial
    assert titles[7:] == ["positive frames"]
    verbose = fusion("evaluate", "-v").stdout.splitlines()
    titles = [line[:18].strip() for line in verbose[head + 1 : verbose.index("", head)]]
    more = ["precision", "recall", "PR-AUC", "calibration error", "annotated", "positive"]
    assert titles == [*steps, *trivial, "F1_our", *trivial, *more]
    written = Path("runs/first/evaluate")
    assert {path.name for path in written.iterdir()} == {f"test.{kind}" for kind in ("json", "csv", "png", "svg")}
    assert json.loads((written / "test.json").read_text())["step"] == "+threshold"


def test_json_holds_the_numbers_of_the_table(folder):
    assert fusion("fit", "-q", "-c", "small.yaml", "-o", "runs/first").exit_code == 0
    found = json.loads(fusion("evaluate", "--json", "--run", "runs/first", "--split", "val").stdout)
    assert (found["split"], found["frames"], found["run"]) == ("val", 12, "runs/first")
    kept = json.loads((folder / "runs/first/metrics.json").read_text())  # of the network alone
    assert kept["val"]["f1"] == found["steps"][0]["f1"]
    table = fusion("evaluate", "--split", "val").stdout.splitlines()
    row = [line for line in table if line.startswith("F1 ")][-1]  # after the last step
    f1 = [None if cell == "-" else float(cell) for cell in row.split()[-13:]]
    assert f1 == pytest.approx([100 * value for value in found["f1"].values()], abs=0.051)


def test_quiet_prints_only_the_result(folder):
    found = fusion("fit", "-q", "--json", "-c", "small.yaml")
    assert found.stderr == ""
    assert json.loads(found.stdout).keys() == {"val", "train"}
    assert len(list((folder / "runs").iterdir())) == 1


@pytest.mark.usefixtures("folder")
def test_an_interrupted_fit_ends_with_130_and_goes_on_with_its_own_config(monkeypatch):
    real = training.epoch_batches

    def interrupted(*arguments):
        if arguments[-1] == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(training, "epoch_batches", interrupted)
    stopped = fusion("fit", "-c", "small.yaml", "-o", "runs/first")
    assert stopped.exit_code == 130
    assert "run the same command to continue" in stopped.stderr
    monkeypatch.setattr(training, "epoch_batches", real)
    refused = fusion("fit", "-o", "runs/first", "-c", "small.yaml", "--set", "training.lr=0.5")
    assert refused.exit_code == 2
    assert "training.lr: 0.001 against 0.5" in refused.stderr
    went_on = fusion("fit", "-o", "runs/first")
    assert went_on.exit_code == 0, went_on.output
    assert "continues after epoch 1" in went_on.stderr


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fit", "--features", "nowhere.zarr"), "fusion: store nowhere.zarr: nothing is here"),
        (("fit", "--set", "training.rate=1"), "training.rate: unknown key"),
        (("fit", "-c", "nowhere.yaml"), "config nowhere.yaml: No such file"),
        (("fit", "-c", "small.yaml", "--device", "tpu"), "--device tpu: expected auto, cpu or cuda:N"),
        (("evaluate",), "no fitted model in runs/"),
        (("evaluate", "--run", "runs/none"), "run runs/none: no such folder; `fusion fit -o runs/none` makes it"),
    ],
)
def test_errors_are_one_line_and_exit_2(arguments, message):
    found = fusion(*arguments)
    assert found.exit_code == 2
    assert message in found.stderr
    assert "Traceback" not in found.output
    assert found.stdout == ""


def test_help_leaves_torch_alone():
    """Its time is measured in test_cli.py."""
    code = (
        "import sys; from fusion.cli import main; sys.argv = ['fusion', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'zarr', 'numpy', 'pydantic'} & set(sys.modules)), file=sys.stderr)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "evaluate" in found.stdout
    assert found.stderr.strip() == "[]"


# ---- config ----------------------------------------------------------------------------------------------------------


def config_file(folder: Path, **section) -> str:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"extract": {"instances": {"anything": {}}}, "fusion": section}, sort_keys=False))
    return str(path)


def test_the_section_is_read_and_overridden(tmp_path):
    spec = config_file(tmp_path, **SMALL)
    config = load_fusion_config(spec, ["training.lr=1e-4", "fusion.model.readout=last_output"])
    assert config.training.lr == 1e-4
    assert config.model.readout == "last_output"
    assert config.used["swin"].project == 8
    assert load_fusion_config(config_file(tmp_path)) == FusionConfig()


def test_a_modality_can_be_left_out(tmp_path):
    two = SMALL["modalities"] | {"sound": {"kind": "steps", "instance": "hubert", "array": "feature"}}
    spec = config_file(tmp_path, modalities=two)
    assert load_fusion_config(spec).instances == ("swin", "hubert")
    assert load_fusion_config(spec, ["modalities.sound=null"]).instances == ("swin",)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"modalities": {}}, "modalities: none is in use"),
        ({"modalities": {"a.b": SMALL["modalities"]["swin"]}}, r"'a\.b' cannot be a name"),
        ({"modalities": {"x": {"kind": "words", "instance": "a", "array": "b"}}}, "modalities.x: .*'frame', 'context'"),
        ({"modalities": {"x": {"kind": "frame", "instance": "a", "array": "b", "before": 1}}}, "before: unknown key"),
        ({"model": {"readout": "mean"}}, "model.readout: Input should be 'final_state' or 'last_output'"),
        ({"training": {"batch": 1}}, "training.batch: .*greater than or equal to 2, found 1"),
        ({"loss": {"pos_weight": [1, -2]}}, "loss.pos_weight: .*expected positive numbers, one per AU"),
        ({"model": {"missing": "zeros"}}, "model.missing: .*zeros is now named zero_output"),
        ({"model": {"kind": "linear"}}, "model.kind linear takes one modality of kind frame, found frame, frame"),
        ({"model": {"kind": "transformer", "width": 30}}, "width 30 is not a multiple of heads 4"),
        ({"model": {"encoder": "attention", "heads": 5}}, "2 . hidden = 128 is not a multiple of heads 5"),
        ({"tasks": {}}, "tasks: none; name at least one of au, expr, va, intensity"),
        ({"tasks": {"au": 0}}, "tasks: weights must be positive"),
        ({"tasks": {"pain": 1}}, "tasks.pain.*: Input should be 'au'"),
        (
            {"modalities": {"x": {"kind": "context", "instance": "a", "array": "b", "frames": 8}}},
            "frames and span_s go together",
        ),
        (
            {
                "modalities": {
                    "x": {"kind": "context", "instance": "a", "array": "b", "frames": 8, "span_s": 2, "stride": 2}
                }
            },
            "by before, after and stride, or by frames and span_s, not by both",
        ),
    ],
)
def test_what_a_config_must_not_say(tmp_path, section, message):
    with pytest.raises(ConfigError, match=message):
        load_fusion_config(config_file(tmp_path, **section))


# ---- names that a person types ---------------------------------------------------------------------------------------


@pytest.fixture
def fitted_folder(folder: Path) -> Path:
    for name in ("first", "second"):
        assert fusion("fit", "-q", "-c", "small.yaml", "-o", f"runs/{name}").exit_code == 0
    return folder


@pytest.mark.usefixtures("fitted_folder")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--run", "runs/frist"), "run runs/frist: no such folder; did you mean 'runs/first'?"),
        (("--run", "second"), "run second: no such folder; did you mean 'runs/second'?"),
        (("--run", "runs/zzz"), "run runs/zzz: no such folder; known: runs/first, runs/second"),
        (("--run", "store.zarr"), "run store.zarr: it has no model.pt yet"),
        (("--split", "tset"), "--split tset: no such split; did you mean 'test'?"),
        (("--split", "holdout"), "--split holdout: no such split; known: train, val, test"),
    ],
)
def test_a_misspelt_run_or_split_is_told_with_the_nearest(arguments, message):
    found = fusion("evaluate", *arguments)
    assert found.exit_code == 2
    assert message in found.stderr


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("modalities.swin.instance=swim", "no clip has an instance 'swim'; did you mean 'swin'?\ncompute what is"),
        ("modalities.swin.array=featur", "instance swin has no array 'featur'; did you mean 'feature'?"),
        ("modalities.swin.array=zzz", "instance swin has no array 'zzz'; known: feature, valid"),
        ("modalities.swim=null", "fusion.modalities has no 'swim' to leave out; did you mean 'swin'?"),
        ("modalities.swim.project=3", "--set modalities.swim.project: no such modality; did you mean 'swin'? (a new"),
        ("modalities.swin.projct=3", "modalities.swin.frame.projct: unknown key; did you mean 'project'?"),
        ("training.max_epoch=3", "training.max_epoch: unknown key; did you mean 'max_epochs'?"),
        ("fusoin.training.lr=3", "fusoin: unknown key; did you mean 'fusion'?"),
    ],
)
def test_a_misspelt_setting_is_told_with_the_nearest(setting, message):
    found = fusion("fit", "-c", "small.yaml", "-o", "runs/first", "--set", setting)
    assert found.exit_code == 2
    assert message in found.stderr
    assert not Path("runs").exists()


@pytest.mark.usefixtures("folder")
def test_a_misspelt_config_is_told_with_the_nearest():
    found = fusion("fit", "-c", "demoo")
    assert found.exit_code == 2
    assert "config demoo: No such file or directory; did you mean 'demo'?" in found.stderr


@pytest.mark.usefixtures("folder")
def test_an_instance_that_is_not_there_and_like_no_other_is_to_be_computed():
    found = fusion("fit", "-c", "small.yaml", "--set", "modalities.swin.instance=roberta")
    assert "did you mean" not in found.stderr
    assert (
        "roberta was never computed\nno clip has an instance 'roberta'; fit without it: --set modalities."
        in found.stderr
    )
    assert "compute what is missing with `extract run --stage roberta`" in found.stderr


def test_a_new_modality_may_be_made_of_overrides(tmp_path):
    new = ["modalities.sound.kind=steps", "modalities.sound.instance=hubert", "modalities.sound.array=feature"]
    config = load_fusion_config(config_file(tmp_path, **SMALL), new)
    assert config.instances == ("swin", "hubert")


def test_a_given_object_is_overridden_too():
    config = FusionConfig.model_validate(SMALL)
    assert load_fusion_config(config) == config
    changed = load_fusion_config(config, ["training.lr=0.5", "extract.instances.x=null"])
    assert (changed.training.lr, config.training.lr) == (0.5, 1e-3)
    assert changed.modalities == config.modalities
    with pytest.raises(ConfigError, match=r"the given config, section fusion:\n  training\.rate: unknown key"):
        load_fusion_config(config, ["training.rate=1"])
