"""Recipes and sources: what makes an instance stale, and what leaves it alone."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from extract.config import ExtractConfig
from extract.errors import StaleError, WeightsError
from extract.graph import build_graph, upstream
from extract.inputs.manifest import Clip, Labels
from extract.running import runner
from extract.running.fingerprints import Sources, fingerprint, parts_of
from extract.running.planning import differences
from extract.running.recipes import prepare
from extract.running.selection import Options
from extract.stages.detections import Detections
from extract.stages.swin import Swin, SwinConfig
from tests.media_files import pictures, write_clip

SMALL = {"architecture": "small", "resize": 64, "crop": 64}


def recipes(**instances):
    config = ExtractConfig(instances=instances)
    graph = build_graph(config)
    return prepare(graph, tuple(graph), None, [], "cpu", lock=Path("weights.lock"))


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "swin.safetensors"
    drawn = Swin(SwinConfig(weights="random", **SMALL)).random_weights()
    save_file({name: torch.from_numpy(array) for name, array in drawn.items()}, path)
    return path


def test_a_recipe_is_the_same_for_a_file_under_another_name(weights, tmp_path):
    twin = tmp_path / "elsewhere.safetensors"
    twin.write_bytes(weights.read_bytes())
    one, other = (recipes(swin={"weights": str(path), **SMALL})["swin"] for path in (weights, twin))
    assert one.recipe_sha256 == other.recipe_sha256
    assert str(tmp_path) not in str(one.recipe)


def test_every_field_of_every_stage_is_in_its_recipe():
    made = recipes(
        swin={"weights": "random", **SMALL}, hubert={"weights": "random", "architecture": "small"}, labels={}
    )
    for name, prepared in made.items():
        kind = type(prepared.instance.stage.config)
        fields = set(kind.model_fields) - kind.added  # which a recipe names only where they are set
        assert set(prepared.recipe["config"]) | {"weights"} == fields | {"weights"}, name
        assert ("weights" in prepared.recipe) == ("weights" in fields), name


def test_what_feeds_an_instance_is_in_its_recipe():
    near, far = (recipes(crop={}, detections={"detect_px": px})["crop"] for px in (640, 480))
    assert near.recipe_sha256 != far.recipe_sha256
    assert differences(near.recipe, far.recipe) == ["faces.detections.detect_px: 640 -> 480"]


def test_precision_is_in_the_recipe_of_gpu_stages_and_auto_follows_the_device():
    config = ExtractConfig(instances={"swin": {"weights": "random", **SMALL}})
    graph = build_graph(config)
    cpu, cuda = (prepare(graph, tuple(graph), None, [], kind, lock=Path("weights.lock")) for kind in ("cpu", "cuda"))
    assert (cpu["swin"].recipe["precision"], cuda["swin"].recipe["precision"]) == ("float32", "float16")
    assert "precision" not in cpu["detections"].recipe


def test_missing_weights_are_all_named_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("AU_FUSION_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"(?s)swin: .*swin-tiny.*\nhubert: .*hubert-xlarge-ll60k"):
        recipes(swin={"weights": "swin-tiny"}, hubert={"weights": "hubert-xlarge-ll60k", "architecture": "xlarge"})


def test_the_sources_of_an_instance_are_the_parts_that_it_or_its_inputs_read(tmp_path):
    graph = build_graph(ExtractConfig(instances={"swin": {"weights": "random", **SMALL}, "hubert": {}, "labels": {}}))
    clip = Clip(id="a", video=tmp_path / "a.mp4", transcript=tmp_path / "a.srt", labels=Labels(au=tmp_path / "a.csv"))
    assert parts_of(graph, "hubert", clip) == ("media",)
    assert parts_of(graph, "detections", clip) == ("media",)
    assert parts_of(graph, "swin", clip) == ("choice.face", "media")
    assert parts_of(graph, "labels", clip) == ("labels", "media")
    cut = clip.model_copy(update={"start_s": 1.0, "audio": tmp_path / "a.wav"})
    assert parts_of(graph, "hubert", cut) == ("audio", "choice.span")
    assert parts_of(graph, "detections", cut) == ("choice.span", "media")


def test_a_fingerprint_hangs_on_bytes_and_choices_not_on_paths(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"film")
    (tmp_path / "b.mp4").write_bytes(b"film")
    one, other = (
        Sources().source(Clip(id="x", video=tmp_path / n), ("media", "choice.face")) for n in ("a.mp4", "b.mp4")
    )
    assert one == other
    left = Sources().source(Clip(id="x", video=tmp_path / "a.mp4", face="left"), ("media", "choice.face"))
    assert fingerprint("r", one) != fingerprint("r", left)


# ---- on a store -----------------------------------------------------------------------------------------------------


class Table:
    """One clip without faces, real stages, a store."""

    def __init__(self, root):
        self.root = root
        self.clip = Clip(id="a", video=write_clip(root / "a.mov", pictures(3)))

    def run(self, instances, **options):
        from extract.inputs.manifest import write_manifest

        write_manifest(self.root / "m.yaml", [self.clip])
        config = ExtractConfig(instances=instances)
        return runner.run(self.root / "m.yaml", self.root / "s.zarr", config, options=Options(**options))


@pytest.fixture
def table(tmp_path):
    return Table(tmp_path)


def test_another_face_recomputes_no_detection(table, monkeypatch):
    table.run({"faces": {}})
    calls = []
    monkeypatch.setattr(Detections, "compute", lambda *_: calls.append(1))
    for face in ("none", "largest"):
        table.clip = table.clip.model_copy(update={"face": face})
        with pytest.raises(StaleError, match=rf"^(?!.*detections:).*faces: clip a: source choice.face: \w+ -> {face}"):
            _one_line(table.run, {"faces": {}})
        assert table.run({"faces": {}}, overwrite=True).computed == 1
    assert calls == []


def _one_line(run, *arguments):
    try:
        run(*arguments)
    except StaleError as error:
        raise StaleError(str(error).replace("\n", " ")) from None


def test_a_changed_weight_file_is_refused_by_name(table, weights):
    instances = {"swin": {"weights": str(weights), **SMALL}}
    table.run(instances)
    tensors = load_file(weights)
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, weights)
    with pytest.raises(StaleError, match=r"swin: clip a: recipe weights: \w{12}\.\.\. -> \w{12}\.\.\."):
        table.run(instances)


def test_a_finished_instance_needs_no_weight_file(table, weights):
    instances = {"swin": {"weights": str(weights), **SMALL}}
    table.run(instances)
    weights.unlink()
    report = table.run(instances)
    assert (report.exit_code, report.computed) == (0, 0)
    with pytest.raises(WeightsError, match="swin"):
        table.run({"swin": {**instances["swin"], "normalise": "imagenet"}})


def test_an_edited_transcript_leaves_hubert_alone(tmp_path):
    table = Table(tmp_path)
    (tmp_path / "a.srt").write_text("1\n")
    table.clip = table.clip.model_copy(update={"transcript": tmp_path / "a.srt"})
    hubert = {"hubert": {"weights": "random", "architecture": "small"}}
    table.run(hubert)
    (tmp_path / "a.srt").write_text("2\n")
    assert table.run(hubert).computed == 0


def test_what_the_store_holds_decides_on_precision(table):
    swin = {"weights": "random", **SMALL}
    table.run({"swin": {**swin, "precision": "bfloat16"}})
    assert table.run({"swin": swin}).computed == 0
    with pytest.raises(StaleError, match="recipe precision: bfloat16 -> float32"):
        table.run({"swin": {**swin, "precision": "float32"}})


def test_precision_follows_the_store_also_for_clips_it_does_not_hold(table):
    table.run({"swin": {"weights": "random", **SMALL, "precision": "bfloat16"}})
    table.clip = table.clip.model_copy(update={"id": "b"})
    table.run({"swin": {"weights": "random", **SMALL}})
    from extract.store import Store

    record = Store.open(table.root / "s.zarr").record("b", "swin")
    assert record.recipe["precision"] == "bfloat16"


def test_upstream_is_in_the_graphs_order():
    graph = build_graph(ExtractConfig(instances={"swin": {"weights": "random", **SMALL}}))
    assert upstream(graph, ["faces"]) == ("frames", "detections", "faces")
