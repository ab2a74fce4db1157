"""``crop.patch: face``: frames of a movie go through super-resolution as a data set's given crops do."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import extract
from extract.config import ExtractConfig
from extract.errors import ConfigError
from extract.graph import build_graph, upstream
from extract.inputs.manifest import Clip
from extract.running.fingerprints import sha256_of
from extract.running.recipes import prepare
from extract.stages.superres import Superres
from fusion.crop_kinds import FACE, WIDE, crop_recipes
from tests.test_vision_chain import INSTANCES, faces, write_clip

VISUAL = INSTANCES | {
    "swin": {"weights": "random", "architecture": "small", "resize": 64, "crop": 64, "normalise": "per_image"}
}
NUM_FRAMES = 9


def recipe(crop, name="superres"):
    graph = build_graph(ExtractConfig.model_validate({"instances": {**INSTANCES, "crop": crop}}))
    return prepare(graph, upstream(graph, [name]), None, [], "cpu", lock=Path("weights.lock"))[name].recipe


def test_recipes_made_before_there_was_a_choice_are_those_of_the_default():
    """Oracle: the sha256 that the version before it gave, and the recipe's plain text."""
    assert recipe({}) == recipe({"patch": "wide"})
    (crop,) = crop_recipes(recipe({}))
    assert crop["config"] == {}
    assert crop["stage"] == "crop"
    assert sha256_of(recipe({}, "landmarks")) == BEFORE
    (other,) = crop_recipes(recipe({"patch": "face"}))
    assert other == {**crop, "config": {"patch": "face"}}


BEFORE = "d2a186ea4b04d11217471e1865006c53d48d7f8de05bcb1598cd5f802a286eb8"
"""Of ``landmarks`` in INSTANCES, as commit 1dc29f8 computed it."""


def test_both_programs_call_the_patches_alike():
    graph = build_graph(ExtractConfig.model_validate({"instances": {"crop": {"patch": FACE}}}))
    assert graph["crop"].stage.config.patch == FACE
    assert graph["crop"].stage.config.model_copy(update={"patch": WIDE}).of_recipe() == {}


def test_another_patch_is_refused():
    with pytest.raises(ConfigError, match=r"patch.*'wide' or 'face'"):
        build_graph(ExtractConfig.model_validate({"instances": {"crop": {"patch": "tight"}}}))


@pytest.fixture(scope="module")
def both(media_dir, tmp_path_factory):
    """The pictures that superres got, and the stores: of a movie with ``patch: face``, and of its crops as files."""
    root = tmp_path_factory.mktemp("both")
    write_clip(root / "face.mkv", faces(media_dir, NUM_FRAMES))
    got: dict[str, list[bytes]] = {}
    plain = Superres.compute

    def run(name, clip, crop):
        seen = got.setdefault(name, [])

        def compute(self, batch):
            seen.extend(patch.numpy().tobytes() for patch in batch["crop.patch"])
            assert {tuple(patch.shape) for patch in batch["crop.patch"]} == {(112, 112, 3)}
            return plain(self, batch)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Superres, "compute", compute)
            config = ExtractConfig.model_validate({"instances": {**VISUAL, "crop": crop}, "run": {"engine": "serial"}})
            report = extract.run([clip], root / f"{name}.zarr", config)
        assert report.exit_code == 0, report.failures
        return extract.open_store(root / f"{name}.zarr")

    movie = run("movie", Clip(id="a", video=root / "face.mkv"), {"patch": "face", "keep": ["image"]})
    images = movie.read("a", "crop", "image")
    assert images.valid.all()
    (root / "crops").mkdir()
    for number, image in enumerate(images.values, start=1):
        Image.fromarray(image).save(root / "crops" / f"{number:05d}.png")
    given = run("given", Clip(id="a", video=root / "face.mkv", crops=root / "crops"), {})
    return got, movie, given, images.values


def test_superres_gets_exactly_the_crops(both):
    got, _, _, images = both
    assert images.shape == (NUM_FRAMES, 112, 112, 3)
    assert got["movie"] == [image.tobytes() for image in images]


def test_features_equal_those_of_given_crops_to_the_bit(both):
    got, movie, given, _ = both
    assert got["movie"] == got["given"]
    for instance, array in (("landmarks", "point"), ("ghfeat", "code"), ("swin", "feature")):
        one, other = (store.read("a", instance, array) for store in (movie, given))
        assert one.valid.all()
        assert hashlib.sha256(one.values.tobytes()).hexdigest() == hashlib.sha256(other.values.tobytes()).hexdigest()
        assert np.array_equal(one.valid, other.valid)


def test_wide_patches_give_other_features(both, media_dir, tmp_path):
    """What the setting is for: one recipe, one face, other numbers."""
    _, movie, _, _ = both
    write_clip(tmp_path / "face.mkv", faces(media_dir, NUM_FRAMES))
    extract.run([Clip(id="a", video=tmp_path / "face.mkv")], tmp_path / "s.zarr", ExtractConfig(instances=VISUAL))
    wide = extract.open_store(tmp_path / "s.zarr")
    codes = [store.read("a", "ghfeat", "code").values.astype(float) for store in (movie, wide)]
    assert np.abs(codes[0] - codes[1]).max() > 0.01 * np.abs(codes[0]).max()
    assert np.array_equal(*(store.read("a", "swin", "feature").values for store in (movie, wide)))
    assert json.dumps(wide.record("a", "ghfeat").recipe).count("patch") == 0
