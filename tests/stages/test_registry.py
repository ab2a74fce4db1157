import subprocess
import sys
from pathlib import Path

import pytest

import extract.stages
from extract.registry import STAGES, by_name
from extract.stage import SourceStage
from extract.stages.frames import Frames, FramesConfig
from extract.stages.wave import Wave, WaveConfig
from extract.timeline import Regular


def test_names_files_and_classes_agree():
    """One stage per file, and each of them in the registry."""
    files = Path(extract.stages.__file__).parent.glob("*.py")
    assert set(STAGES) == {path.stem for path in files if path.stem != "__init__"}
    for name, stage in STAGES.items():
        assert stage.__module__ == f"extract.stages.{name}"
        assert stage.__name__.lower() == name


def test_a_name_given_twice_is_refused():
    class Other(Frames):
        name = "frames"

    with pytest.raises(ValueError, match="two stages are named 'frames': Frames, Other"):
        by_name((Frames, Wave, Other))


def test_every_input_is_an_output_of_some_stage():
    default = [
        stage for stage in STAGES.values() if not any(f.is_required() for f in stage.config_type.model_fields.values())
    ]
    given = {f"{stage.name}.{output.name}" for stage in default for output in stage(stage.config_type()).outputs}
    for stage in STAGES.values():
        assert set(stage.inputs) <= given, stage.name


def test_planning_needs_no_heavy_import():
    heavy = "torch timm transformers dlib safetensors zarr cv2 scipy spandrel PIL"
    script = f"import sys, extract.registry; print([name for name in '{heavy}'.split() if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"


def test_sources_declare_the_clips_times_pictures_and_sound():
    frames, wave = Frames(FramesConfig()), Wave(WaveConfig())
    assert isinstance(frames, SourceStage)
    assert isinstance(wave, SourceStage)
    assert {(o.name, o.dtype, o.sizes, o.kept) for o in frames.outputs} == {
        ("pts_s", "float64", (), True),
        ("image", "uint8", (None, None, 3), False),
    }
    (samples,) = wave.outputs
    assert (samples.name, samples.dtype, samples.sizes, samples.kept) == ("samples", "float32", (), False)
    assert isinstance(samples.clock, Regular)
    assert samples.clock.num_steps(samples.clock.hop_s * 16_000) == 16_000
    assert FramesConfig().repair_pts is False
