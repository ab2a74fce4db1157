"""The built-in configs: one default for shell and Python, the paper's readings, all of them usable."""

import numpy as np
import pytest
import torch
import yaml

from extract.config import load_extract_config
from extract.graph import build_graph
from fusion.config import FusionConfig, load_fusion_config
from fusion.model import FusionModel
from tests.fusion_stores import add_clip, add_instance

PAPER = ["swin", "ghfeat", "ghfeat_context", "hubert", "roberta"]


def test_python_and_shell_have_one_default_with_all_five_branches():
    assert list(FusionConfig().used) == list(load_fusion_config().used) == PAPER
    assert FusionConfig().modalities == load_fusion_config("default").modalities
    assert FusionConfig.model_validate({"training": {"lr": 1}}).modalities == FusionConfig().modalities
    context = FusionConfig().used["ghfeat_context"]
    assert (context.kind, context.before, context.after, context.stride) == ("context", 4, 4, 1)


@pytest.mark.parametrize("name", ["default", "paper_frozen", "code", "demo", "encoders"])
def test_every_modality_reads_an_array_that_its_config_extracts(name):
    graph = build_graph(load_extract_config(name))
    for modality in load_fusion_config(name).used.values():
        names = [output.name for output in graph[modality.instance].stage.outputs]
        assert modality.array in names, f"{name}: {modality.instance} gives {names}"


def test_paper_frozen_is_the_papers_network_with_its_widths():
    """512 + 128 + 3 x 128 inputs of the head; 49 x 768 tokens of Swin, 9,984 distinct values of GH-Feat."""
    config = load_fusion_config("paper_frozen")
    sizes = {"swin": 49 * 768, "ghfeat": 9984, "ghfeat_context": 9984, "hubert": 1280, "roberta": 1024}
    with torch.device("meta"):
        model = FusionModel(sizes, config)
    assert list(config.used) == PAPER
    assert [model.branch(name).width for name in PAPER] == [512, 128, 128, 128, 128]
    assert model.head[0].in_features == 1024
    assert (config.model.readout, config.model.standardise, config.model.missing) == (
        "final_state",
        False,
        "zero_input",
    )
    assert (config.post.preset, config.data.drop_partial_frames) == ("paper", True)


def test_code_takes_eight_frames_over_two_seconds_and_the_last_output():
    config = load_fusion_config("code")
    context = config.used["ghfeat_context"]
    assert (context.frames, context.span_s, config.model.readout) == (8, 2.0, "last_output")
    training = config.training
    assert (training.lr, training.weight_decay, training.max_epochs) == (1e-5, 1e-4, 15)
    assert (training.max_epoch_steps, training.schedule, training.patience) == (500, "plateau", 5)


@pytest.mark.parametrize(
    ("name", "context"), [("default", "window"), ("paper_frozen", "window"), ("code", "utterance")]
)
def test_code_alone_reads_words_within_their_utterances(name, context):
    """Two seconds on either side in all of them, and every token of them."""
    config = build_graph(load_extract_config(name))["roberta"].stage.config
    assert (config.context, config.pool, config.before_s, config.after_s) == (context, "tokens", 2.0, 2.0)


@pytest.mark.parametrize(("name", "alone"), [("paper_frozen", 0), ("code", 12)])
def test_they_fit_features_of_their_shapes(name, alone, tmp_path):
    """A tiny corpus with the real sizes of all five arrays, through one epoch.

    In a clip of 0.24 s none of the code's eight frames exists: the nearest are 2/7 s away.
    """
    from extract.store import Store
    from fusion.training import fit

    random = np.random.default_rng(0)
    store = Store.open(tmp_path / "store.zarr", "a")
    valid = np.array([1, 1, 0, 1, 1, 1], dtype=np.bool_)
    for clip, split in (("a", "train"), ("b", "train"), ("c", "val")):
        add_clip(store, clip, split=split)
        add_instance(store, clip, "frames", {"pts_s": np.arange(6) / 25})
        add_instance(store, clip, "labels", {"au": random.integers(0, 2, (6, 12)).astype(np.int8)})
        for instance, array, shape in (("swin", "token", (49, 768)), ("ghfeat", "code", (9984,))):
            values = random.standard_normal((6, *shape)).astype(np.float16) * valid.reshape(-1, *[1] * len(shape))
            add_instance(store, clip, instance, {array: values, "valid": valid})
        sound = random.standard_normal((11, 1280)).astype(np.float16)
        add_instance(store, clip, "hubert", {"feature": sound, "centre_s": (320 * np.arange(11) + 200) / 16000})
        words = random.standard_normal((3, 1024)).astype(np.float16)
        ranges = np.array([[0, 0], [0, 2], [0, 2], [1, 3], [2, 3], [3, 3]], dtype=np.int32)
        add_instance(store, clip, "roberta", {"range": ranges, "token": words})
    val, train = fit(tmp_path / "store.zarr", tmp_path / "run", name, set=["training.max_epochs=1"])
    assert train.missing == {"swin": 2, "ghfeat": 2, "ghfeat_context": alone, "hubert": 0, "roberta": 4}
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["fusion"]
    assert kept["model"]["missing"] == "zero_input"
    assert 0 <= val.scores.mean_f1 <= 1
