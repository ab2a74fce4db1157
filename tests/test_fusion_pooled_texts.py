"""Texts pooled to one row per frame, from the words of a transcript to a fitted network."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

import extract
from extract.config import ExtractConfig
from extract.errors import ConfigError
from extract.inputs.manifest import Clip, Labels
from fusion.config import FusionConfig
from fusion.training import fit
from tests.media_files import greys, write_clip

RATE, FRAMES = 5, 500
WORDS = ["smile", "frown", "table", "window", "seven", "blue"]
CONTEXTS = ["window", "utterance"]
CONFIG = {
    "modalities": {"words": {"kind": "tokens", "instance": "roberta", "array": "feature", "project": 16}},
    "model": {"hidden": 16, "layers": 1, "head": 32, "dropout": 0.0, "modality_dropout": 0.0},
    "loss": {"pos_weight": "none", "soft_margin_weight": "none"},
    "post": {"preset": "none"},
    "training": {"batch": 32, "max_epochs": 8, "lr": 0.01},
}


def transcript(seed):
    """A word every .6 s, in runs of three with silence behind them."""
    random = np.random.default_rng(seed)
    starts = [at + 0.6 * k for at in np.arange(0.5, FRAMES / RATE - 4, 4.0) for k in range(3)]
    return [(str(random.choice(WORDS)), round(float(start), 3), round(float(start) + 0.5, 3)) for start in starts]


def labels(words):
    """AU 12: "smile" is among the frame's words; AU 25: there is any."""
    rows = []
    for t in np.arange(FRAMES) / RATE:
        met = {word for word, start, end in words if start <= t + 0.2 + 1e-9 and end >= t - 0.2 - 1e-9}
        rows.append((int("smile" in met), int(bool(met))))
    return np.array(rows)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """By context: two clips, labelled by their words."""
    root = tmp_path_factory.mktemp("pooled")
    movie = write_clip(root / "grey.mov", greys(20) * (FRAMES // 20), rate=RATE)
    clips = []
    for number, split in enumerate(("train", "val")):
        words = transcript(number)
        table = "".join(f"{word},{start},{end}\n" for word, start, end in words)
        (root / f"{split}.csv").write_text(f"word,start_s,end_s\n{table}")
        np.savetxt(root / f"{split}_au.csv", labels(words), "%d", ",", header="AU12,AU25", comments="")
        clips.append(
            Clip(
                id=split,
                video=movie,
                transcript=root / f"{split}.csv",
                labels=Labels(au=root / f"{split}_au.csv"),
                source_video=split,
                subject=split,
                split=split,
            )
        )
    made = {}
    for context in CONTEXTS:
        settings = {"weights": "random", "architecture": "small", "before_s": 0.2, "after_s": 0.2, "pool": "mean"}
        instances = {"labels": {"aus": [12, 25]}, "roberta": settings | {"context": context}}
        made[context] = root / f"{context}.zarr"
        assert extract.run(clips, made[context], ExtractConfig(instances=instances)).exit_code == 0
    return made


@pytest.mark.parametrize("context", CONTEXTS)
def test_what_is_said_is_learned_from_one_row_per_frame(stores, tmp_path, context):
    """On held-out texts: a word is heard out of the mean of its window, and silence is a missing modality."""
    val, train = fit(stores[context], tmp_path / "run", FusionConfig.model_validate(CONFIG))
    silent = {split: int((labels(transcript(seed))[:, 1] == 0).sum()) for seed, split in enumerate(("train", "val"))}
    assert train.missing == {"words": silent["train"]}
    assert val.missing == {"words": silent["val"]}
    found = dict(zip(val.scores.aus, val.scores.f1, strict=True))
    spoken = labels(transcript(1))
    assert f1_score(spoken[:, 0], spoken[:, 1]) < 0.5  # to say "smile" whenever anybody speaks
    assert found[12] > 0.9
    assert found[25] > 0.99


@pytest.mark.parametrize("context", CONTEXTS)
def test_no_window_has_more_than_one_row(stores, context):
    store = extract.open_store(stores[context])
    ranges = store.read("train", "roberta", "range").values
    lengths = ranges[:, 1] - ranges[:, 0]
    assert lengths.tolist() == labels(transcript(0))[:, 1].tolist()
    assert int(ranges.max()) == len(store.read("train", "roberta", "feature").values) < FRAMES / 3


def test_a_row_per_text_is_no_row_per_frame(stores, tmp_path):
    """``kind: frame`` would take the texts for frames."""
    face = {"words": {"kind": "frame", "instance": "roberta", "array": "feature"}}
    with pytest.raises(ConfigError, match=r"roberta/feature of clip train has \d+ rows, expected 500, one per frame"):
        fit(stores["window"], tmp_path / "run", FusionConfig.model_validate(CONFIG | {"modalities": face}))
