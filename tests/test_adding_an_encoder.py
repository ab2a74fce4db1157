"""docs/adding-an-encoder.md does what it says: its config and its commands, its stage and its test, as they stand."""

import csv
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file
from timm.models import get_pretrained_cfg
from typer.testing import CliRunner

import extract
from extract.au import AUS
from extract.cli import app as extract_app
from extract.config import ExtractConfig, load_extract_config
from extract.errors import WeightsError
from extract.graph import build_graph
from extract.inputs.manifest import Clip, Labels, write_manifest
from extract.registry import STAGES
from extract.running.planning import make_plan
from extract.running.selection import Options
from extract.timeline import Regular
from extract.weights.table import TABLE
from fusion.cli import app as fusion_app
from fusion.config import load_fusion_config
from tests.conftest import ROOT
from tests.media_files import pictures, tone, write_clip
from tests.stages.test_speech import official

DOC = (ROOT / "docs" / "adding-an-encoder.md").read_text(encoding="utf-8")
BY_CONFIG, BY_A_FILE = DOC.split("\n## By a file\n")


def blocks(text: str, language: str) -> list[str]:
    """Fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def named_blocks(text: str) -> dict[str, str]:
    """Blocks that follow a line which names their file."""
    return dict(re.findall(r"^`([\w./]+)`:\n\n```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE))


# -- by config --------------------------------------------------------------------------------------------------------


def talking(root: Path, name: str, frames: list[NDArray[np.uint8]], seed: int) -> Clip:
    """A movie with a face in every frame, sound and labels."""
    video = root / f"{name}.mp4"
    sound = tone(len(frames) / 25, frequency_hz=200 * seed)
    write_clip(video, frames, codec="mpeg4", pix_fmt="yuv420p", sound=sound, sound_codec="aac")
    (root / "labels").mkdir(exist_ok=True)
    labels = root / "labels" / f"{name}.csv"
    header = ",".join(f"AU{au}" for au in AUS)
    rows = np.random.default_rng(seed).integers(0, 2, (len(frames), len(AUS)))
    np.savetxt(labels, rows, fmt="%d", delimiter=",", header=header, comments="")
    return Clip(id=name, video=video, labels=Labels(au=labels), split="train")


def test_by_config_the_commands_run_as_they_stand(media_dir, tmp_path, monkeypatch):
    """DINOv2 and WavLM on random weights: extracted, fitted, and predicted from another movie."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AU_FUSION_CACHE", str(tmp_path / "cache"))
    with av.open(media_dir / "one_face.mp4") as movie:
        frames = [frame.to_ndarray(format="rgb24") for frame in itertools.islice(movie.decode(video=0), 15)]
    lengths = {"a": 6, "b": 5}
    clips = [talking(tmp_path, "a", frames[:6], 1), talking(tmp_path, "b", frames[6:11], 2)]
    write_manifest(tmp_path / "data_manifest.yaml", clips)
    talking(tmp_path, "talk", frames[11:], 3)

    (config,) = blocks(BY_CONFIG, "yaml")
    (tmp_path / "my.yaml").write_text(config)
    (commands,) = blocks(BY_CONFIG, "sh")
    for line in commands.splitlines():
        program, *arguments = shlex.split(line)
        result = CliRunner().invoke({"extract": extract_app, "fusion": fusion_app}[program], arguments)
        assert result.exit_code == 0, f"{line}\n{result.stdout}\n{result.stderr}"

    store = extract.open_store("store.zarr")
    for clip, num_frames in lengths.items():
        dinov2, wavlm = store.read(clip, "dinov2", "feature"), store.read(clip, "wavlm", "feature")
        assert dinov2.values.shape == (num_frames, 384)
        assert dinov2.valid is not None
        assert dinov2.valid.all()
        assert len(wavlm.values) >= (num_frames * 640 - 400) // 320 + 1  # AAC rounds up to whole packets
        assert wavlm.values.shape[1:] == (768,)
        assert np.isfinite(dinov2.values).all()
        assert np.isfinite(wavlm.values).all()
        assert dinov2.values.std(axis=0).max() > 0
        assert store.record(clip, "dinov2").recipe["config"]["image_px"] == 224
    with (tmp_path / "talk.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert all(row["dinov2"] == row["wavlm"] == "1" and 0 < float(row["AU12_p"]) < 1 for row in rows)


def test_whole_frames_and_weights_that_are_gone(tmp_path):
    """Pictures of ``frames`` instead of crops, sound through a folder's WavLM; then the folder is not needed again."""
    official("wavlm").save_pretrained(tmp_path / "weights")
    clip = Clip(id="a", video=write_clip(tmp_path / "a.mov", pictures(4), sound=tone(0.3)))
    picture = {"architecture": "test_vit", "image_px": 64, "interpolation": "bilinear", "pool": "avg"}
    picture |= {"mean": [0.5] * 3, "std": [0.5] * 3, "weights": "random", "inputs": {"crop": "frames"}}
    sound = {"family": "wavlm", "weights": str(tmp_path / "weights"), "width": 48, "normalise": True}
    config = ExtractConfig.model_validate({
        "instances": {"scene": {"stage": "timm", **picture}, "wavlm": {"stage": "speech", **sound}}
    })
    report = extract.run([clip], tmp_path / "store.zarr", config)
    assert (report.exit_code, report.failures) == (0, [])
    store = extract.open_store(tmp_path / "store.zarr")
    assert store.read("a", "scene", "feature").values.shape == (4, 64)
    assert store.read("a", "wavlm", "feature").values.shape == (14, 48)
    shutil.rmtree(tmp_path / "weights")
    plan, _, _ = make_plan(config, [clip], tmp_path / "store.zarr", Options(), "cpu")
    assert plan.tasks["a"]["wavlm"].need == "finished"
    other = ExtractConfig.model_validate({"instances": {"wavlm": {"stage": "speech", **sound, "layer": 1}}})
    with pytest.raises(WeightsError, match=r"wavlm: weights .* are no key .* and no such path"):
        make_plan(other, [clip], tmp_path / "store.zarr", Options(), "cpu")


# -- the presets ------------------------------------------------------------------------------------------------------


def test_every_row_for_any_encoder_has_a_preset_that_fits_it():
    """The built-in config ``encoders``: sizes known without weights, and what the rows of the table demand."""
    graph = build_graph(load_extract_config("encoders"))
    presets = {
        instance.stage.weights: instance.stage
        for instance in graph.values()
        if instance.stage.name in {"timm", "speech"}
    }
    assert set(presets) == {key for key, row in TABLE.items() if {"timm", "speech"} & set(row.stages)}
    for key, stage in presets.items():
        row = TABLE[str(key)]
        assert stage.name in row.stages
        assert stage.architecture == row.architecture
        assert {name: getattr(stage.config, name) for name in row.settings} == row.settings
    widths = {
        name: graph[name].stage.outputs[0].sizes for name in graph if graph[name].stage.name in {"timm", "speech"}
    }
    assert widths == {
        "dinov2_small": (384,),
        "dinov2_base": (768,),
        "clip_vit_b16": (768,),
        "wavlm_base_plus": (768,),
        "wavlm_large": (1024,),
        "wav2vec2_large": (1024,),
    }
    asked = {modality.instance for modality in load_fusion_config("encoders").modalities.values() if modality}
    assert asked <= set(graph)


PUBLISHED = {
    "dinov2_small": "vit_small_patch14_dinov2.lvd142m",
    "dinov2_base": "vit_base_patch14_dinov2.lvd142m",
    "clip_vit_b16": "vit_base_patch16_clip_quickgelu_224.openai",
}
"""Preset -> timm's name for the architecture with the tag of the weights that the preset's row fetches."""


def test_pictures_are_prepared_as_timm_says_each_published_model_wants_them():
    """Oracle: timm's own config of the weights, which only this test reads."""
    instances = build_graph(load_extract_config("encoders"))
    assert set(PUBLISHED) == {name for name, instance in instances.items() if instance.stage.name == "timm"}
    for name, tagged in PUBLISHED.items():
        config, timms = instances[name].stage.config, get_pretrained_cfg(tagged)
        assert timms is not None
        row = TABLE[config.weights]
        assert row.source.endswith(f"/{timms.hf_hub_id}")  # the very weights that timm's config is about
        assert (config.architecture, config.mean, config.std) == (tagged.split(".")[0], timms.mean, timms.std)
        assert config.interpolation == timms.interpolation
        assert (config.image_px, config.pool, config.dtype) == (224, "token", "float16")
        # DINOv2's 518 px are not kept, on purpose: they would be five times the patches.
        assert timms.input_size == (3, *[518 if "dinov2" in name else config.image_px] * 2)


def test_sound_is_prepared_as_each_published_model_wants_it():
    """``do_normalize`` of each ``preprocessor_config.json``, which is not at hand offline, and the clock."""
    stages = {
        name: instance.stage
        for name, instance in build_graph(load_extract_config("encoders")).items()
        if instance.stage.name == "speech"
    }
    normalised = {"wavlm_base_plus": False, "wavlm_large": True, "wav2vec2_large": True}
    assert {name: stage.config.normalise for name, stage in stages.items()} == normalised
    for stage in stages.values():
        assert (stage.config.layer, stage.config.dtype) == ("last", "float16")
        assert stage.steps == Regular(hop_s=Fraction(1, 50), window_s=Fraction(1, 40))


def test_the_document_names_every_preset_and_every_field():
    names = [name for name in load_extract_config("encoders").instances if name != "labels"]
    fields = [field for stage in ("timm", "speech") for field in STAGES[stage].config_type.model_fields]
    assert [name for name in names + fields if f"`{name}`" not in BY_CONFIG] == []


# -- by a file --------------------------------------------------------------------------------------------------------


def insert_before(path: Path, line: str, new: str) -> None:
    """Put text before the first line that begins so."""
    text = path.read_text(encoding="utf-8")
    assert f"\n{line}" in text
    path.write_text(text.replace(f"\n{line}", f"\n{new}{line}", 1), encoding="utf-8")


def contents(root: Path) -> dict[str, str]:
    return {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in root.rglob("*.py")}


@pytest.mark.slow
def test_by_a_file_four_files_are_touched_and_the_tests_pass(media_dir, tmp_path):
    """On a copy of the repository: the new tests, all of those that look at every stage and every row of weights, and
    the page's commands as they stand."""
    for name in ("extract", "fusion", "tests", "tools", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "golden", "*.flac"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    before = contents(tmp_path)
    new_files = named_blocks(BY_A_FILE)
    new_tests = [name for name in new_files if name.startswith("tests/")]
    for name, text in new_files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    registered, row = (re.sub(r"^\+", "", block, flags=re.MULTILINE) for block in blocks(BY_A_FILE, "diff"))
    imported, entry = registered.splitlines(keepends=True)
    insert_before(tmp_path / "extract/registry.py", "from extract.stages.faces", imported)
    insert_before(tmp_path / "extract/registry.py", "    Swin,", entry)
    insert_before(tmp_path / "extract/weights/table.py", '    WeightsRow(\n        key="swin-tiny"', row)

    after = contents(tmp_path)
    assert {name for name in after if after[name] != before.get(name)} == {
        "extract/stages/eigenfaces.py",
        "tests/stages/test_eigenfaces.py",
        "extract/registry.py",
        "extract/weights/table.py",
    }
    assert len(after["extract/registry.py"].splitlines()) == len(before["extract/registry.py"].splitlines()) + 2

    environment = {"GOLDEN": str(ROOT / "tests" / "golden")} | os.environ  # they are not in the copy
    environment |= {"PYTHONPATH": str(tmp_path), "AU_FUSION_CACHE": str(tmp_path / "cache")}

    def in_the_copy(module: str, *arguments: str) -> None:
        command = [sys.executable, "-m", module, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{module} {arguments}\n{done.stdout}\n{done.stderr}"

    of_all_stages = ["tests/stages/test_registry.py", "tests/test_graph.py", "tests/test_architecture.py"]
    in_the_copy("pytest", "-q", "-p", "no:cacheprovider", *new_tests, *of_all_stages, "tests/test_weights.py")
    in_the_copy("ruff", "check", *new_files)

    with av.open(media_dir / "one_face.mp4") as movie:
        frames = [frame.to_ndarray(format="rgb24") for frame in itertools.islice(movie.decode(video=0), 10)]
    write_manifest(tmp_path / "data_manifest.yaml", [talking(tmp_path, "a", frames, 1)])
    drawn = np.random.default_rng(0).normal(0, 0.1, (64, 257)).astype(np.float32)
    save_file({"weight": drawn[:, 1:].copy(), "bias": drawn[:, 0].copy()}, tmp_path / "eigenfaces.safetensors")
    (commands,) = blocks(BY_A_FILE, "sh")
    for line in commands.replace("\\\n", "").splitlines():
        in_the_copy(*shlex.split(line))
    found = extract.open_store(tmp_path / "store.zarr").read("a", "eigenfaces", "feature")
    assert found.values.shape == (10, 64)
    assert found.valid is not None
    assert found.valid.all()
    assert found.values.std(axis=0).min() > 0
    (fitted,) = (tmp_path / "runs").iterdir()
    assert (fitted / "model.pt").is_file()
