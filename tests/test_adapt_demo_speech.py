"""The demo's small HuBERT learns from the demo's speech, with the settings of ``make demo``."""

import math

import pytest

from extract.adapt.hubert import adapt_hubert
from extract.config import load_extract_config
from extract.demo.clips import Studio
from extract.inputs.manifest import Clip
from tests.media_files import write_clip


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Sound of the clips of seed 0: 24 to train on, the 12 of the other four people held out."""
    folder = tmp_path_factory.mktemp("speech")
    return [
        Clip(
            id=drawing.id,
            audio=write_clip(folder / f"{drawing.id}.wav", sound=drawing.sound),
            subject=drawing.subject.name,
            split="train" if drawing.split == "train" else "val",
        )
        for drawing in Studio(0).drawings()
    ]


@pytest.mark.slow
def test_it_names_hidden_steps_of_people_it_never_heard(clips, tmp_path):
    """By three standard errors over the clips, above who always names the most frequent cluster."""
    done = adapt_hubert(clips, tmp_path / "out", load_extract_config("demo"), device="cpu")
    best = done.metrics["best"]
    assert done.metrics["clips"] == {"train": 24, "val": 12}
    margin = best["val_accuracy"] - best["val_majority"]
    assert margin > 3 * best["val_margin_error"] > 0, best
    share = best["val_majority"]
    without_looking = -(share * math.log(share) + (1 - share) * math.log(1 - share))  # there are two clusters
    assert best["val_loss"] < 0.8 * without_looking
