"""A folder of adapted weights says which clips it was trained on; records note whether theirs is among them."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import save_file

import extract
from extract.config import ExtractConfig
from extract.errors import WeightsError
from extract.graph import build_graph
from extract.inputs.manifest import Clip
from extract.models import swin
from extract.running.recipes import prepare
from tests.given_crops import draw_crops


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "adapted"
    path.mkdir()
    drawn = swin.random_weights("small")
    save_file({name: torch.from_numpy(values.copy()) for name, values in drawn.items()}, path / "model.safetensors")
    return path


def config(folder):
    entry = {"weights": str(folder), "architecture": "small", "resize": 64, "crop": 64}
    return ExtractConfig.model_validate({"instances": {"swin": entry, "again": {"stage": "swin", **entry}}})


def test_records_note_clips_that_the_weights_saw(tmp_path, folder):
    """By content: the same pictures under another name are the same clip."""
    for name, first in (("seen", 1), ("other", 5)):
        draw_crops(tmp_path / name, range(first, first + 3))
    clips = [Clip(id=name, crops=tmp_path / name, fps=25.0) for name in ("seen", "other")]
    assert extract.run(clips, tmp_path / "first.zarr", config(folder)).exit_code == 0
    before = {name: extract.open_store(tmp_path / "first.zarr").record(name, "swin") for name in ("seen", "other")}
    assert [record.saw_clip for record in before.values()] == [(), ()]

    (folder / "adapted.json").write_text(
        json.dumps({"trained_on": {"crops": [before["seen"].source["crops"]], "media": ["0" * 64]}, "epochs": 3})
    )
    (tmp_path / "seen").rename(tmp_path / "renamed")
    clips[0] = Clip(id="seen", crops=tmp_path / "renamed", fps=25.0)
    assert extract.run(clips, tmp_path / "second.zarr", config(folder)).exit_code == 0
    store = extract.open_store(tmp_path / "second.zarr")
    assert store.record("seen", "swin").saw_clip == ("swin",)
    assert store.record("seen", "swin").provenance["weights"]["swin"]["saw"] == ["crops"]
    assert store.record("other", "swin").saw_clip == ()
    assert store.record("other", "swin").provenance["weights"].keys() == {"swin"}
    assert store.record("seen", "frames").saw_clip == ()
    # What the folder says is part of its content, so features of before are stale.
    assert store.record("seen", "swin").recipe["weights"] != before["seen"].recipe["weights"]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"trained_on": ["x"]}',
        '{"trained_on": {"media": "0"}}',
        '{"trained_on": {"media": [3]}}',
        '{"trained_on": {"media": ["ABC"]}}',
        json.dumps({"trained_on": {"media": [hashlib.sha256(b"").hexdigest()[:16]]}}),
    ],
)
def test_a_damaged_list_is_refused_before_any_work(tmp_path, folder, text):
    (folder / "adapted.json").write_text(text)
    graph = build_graph(config(folder))
    with pytest.raises(WeightsError, match=r"adapted\.json: cannot be read .*whether these weights saw a test clip"):
        prepare(graph, tuple(graph), None, [], "cpu", lock=tmp_path / "weights.lock")
