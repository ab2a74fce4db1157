"""Tables, windows and refusals, on stores written through the real store."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from extract.au import AUS
from extract.errors import ConfigError, CorruptError, StoreError, UnfinishedError, UsageError
from extract.store import Store
from fusion.config import FusionConfig
from fusion.data import Samples, Windows, moments
from fusion.loading import load_samples
from fusion.selection import all_damage_named, feature_sources, first_difference, select_clips, shared_people
from fusion.tables import Home
from fusion.training import fit
from tests.fusion_stores import add_clip, add_instance, planted_store, remove_instance

CONFIG = FusionConfig.model_validate({
    "modalities": {
        "face": {"kind": "frame", "instance": "swin", "array": "feature"},
        "motion": {"kind": "context", "instance": "swin", "array": "feature", "before": 2, "after": 1},
        "sound": {"kind": "steps", "instance": "hubert", "array": "feature", "before_s": 0.1, "after_s": 0.1},
    }
})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store.zarr", "a")


def add_video(store: Store, clip: str, *, num_frames: int, valid=None, au=None, steps: int = 30, offset: float = 0.0):
    """A clip whose features say where they are: row t of Swin is (t, clip's offset), step s of HuBERT is s."""
    add_clip(store, clip)
    t = np.arange(num_frames)
    valid = np.ones(num_frames, dtype=np.bool_) if valid is None else np.asarray(valid, dtype=np.bool_)
    swin = np.stack([t, np.full(num_frames, offset)], axis=1).astype(np.float32) * valid[:, None]
    au = np.zeros((num_frames, 12), dtype=np.int8) if au is None else au
    add_instance(store, clip, "frames", {"pts_s": t / 25})
    add_instance(store, clip, "labels", {"au": au})
    add_instance(store, clip, "swin", {"feature": swin, "valid": valid})
    hubert = np.arange(steps, dtype=np.float16)[:, None]
    add_instance(store, clip, "hubert", {"feature": hubert, "centre_s": (320 * np.arange(steps) + 200) / 16000})


def rows_of(samples, modality: str, i: int) -> list[float]:
    """First feature of every row that sample ``i`` gets of a modality."""
    windows = samples.windows[modality]
    rows = np.arange(*windows.ranges[i])
    rows = rows if windows.rows is None else windows.rows[rows]
    return samples.tables[samples.sources[modality]][rows, 0].tolist()


def gathered(rows, i: int) -> list[float]:
    """The same, from a batch."""
    length = int(rows.lengths[i])
    values = rows.values if rows.place is None else rows.values[rows.place]
    return values.view(*rows.shape, -1)[:length, i, 0].tolist()


# ---- windows ---------------------------------------------------------------------------------------------------------


def test_every_window_of_every_frame(store):
    """Against the definitions of design section 7, in fractions."""
    valid = {"a": [1, 1, 0, 0, 1, 1, 1, 0, 1, 1], "b": [1] * 6}
    for clip, flags in valid.items():
        add_video(store, clip, num_frames=len(flags), valid=flags)
    samples = load_samples(store, ["a", "b"], CONFIG)
    assert len(samples) == 16
    for i in range(16):
        clip, t = samples.clips[samples.clip[i]], samples.frame[i]
        flags = valid[clip]
        assert rows_of(samples, "face", i) == ([t] if flags[t] else [])
        near = [u for u in range(t - 2, t + 2) if 0 <= u < len(flags) and flags[u]]
        assert rows_of(samples, "motion", i) == near
        now = Fraction(int(t), 25)
        centres = [Fraction(320 * s + 200, 16000) for s in range(30)]
        heard = [s for s, c in enumerate(centres) if now - Fraction(1, 10) <= c < now + Fraction(1, 10)]
        assert rows_of(samples, "sound", i) == heard


def test_modalities_of_one_array_share_its_table_and_keep_the_stored_type(store):
    add_video(store, "a", num_frames=5)
    samples = load_samples(store, ["a"], CONFIG)
    assert samples.tables.keys() == {("swin", "feature"), ("hubert", "feature")}
    assert samples.tables["swin", "feature"].dtype == torch.float32
    assert samples.tables["hubert", "feature"].dtype == torch.float16


def test_rows_of_more_axes_are_flattened(store):
    add_video(store, "a", num_frames=3)
    tokens = np.arange(3 * 4 * 5, dtype=np.float16).reshape(3, 4, 5)
    add_instance(store, "a", "swin", {"feature": tokens, "valid": np.ones(3, dtype=np.bool_)})
    samples = load_samples(store, ["a"], CONFIG)
    np.testing.assert_array_equal(samples.tables["swin", "feature"].numpy(), tokens.reshape(3, 20))


@pytest.mark.parametrize("distinct", [False, True])
@pytest.mark.parametrize("length", [None, 12])
def test_a_batch_is_the_slices_of_its_windows(distinct, length):
    """On a rectangle, time first; below a window's end lies some row of the table, never anything else."""
    random = np.random.default_rng(0)
    table = torch.from_numpy(random.standard_normal((50, 3)).astype(np.float32))
    start = random.integers(0, 50, 40)
    ranges = np.stack([start, np.minimum(start + random.integers(0, 9, 40), 50)], axis=1)
    ranges[7] = (50, 50)
    samples = samples_of(table, Windows(ranges))
    index = random.permutation(40)
    rows = samples.batch(index, lengths={"m": length} if length else None, distinct=distinct).inputs["m"]
    assert rows.shape == (length or 8, 40)
    assert rows.lengths.tolist() == (ranges[index, 1] - ranges[index, 0]).tolist()
    assert (len(rows.values) < 51) == distinct
    values = rows.values if rows.place is None else rows.values[rows.place]
    for column, sample in enumerate(index):
        inside = values.view(*rows.shape, 3)[: rows.lengths[column], column]
        torch.testing.assert_close(inside, table[slice(*ranges[sample])], rtol=0, atol=0)
    assert all((value == table).all(dim=1).any() for value in values)
    with pytest.raises(ValueError, match="a window of 8 rows does not fit a rectangle of length 5"):
        samples.batch(index, lengths={"m": 5})


def samples_of(table: torch.Tensor, windows: Windows) -> Samples:
    """Samples of one modality ``m``."""
    number = len(windows.ranges)
    return Samples(
        clips=("a",),
        clip=np.zeros(number, dtype=np.int64),
        frame=np.arange(number),
        pts_s=np.arange(number) / 25,
        targets={"au": torch.zeros(number, 12, dtype=torch.int8)},
        aus=AUS,
        tables={("m", "x"): table},
        row_times={("m", "x"): None},
        sources={"m": ("m", "x")},
        windows={"m": windows},
        home=Home("memory", torch.device("cpu"), ""),
    )


# ---- samples ---------------------------------------------------------------------------------------------------------


def test_a_frame_with_any_annotation_is_a_sample_unless_partial_frames_are_dropped(store):
    au = np.zeros((4, 12), dtype=np.int8)
    au[1] = -1
    au[2, 5] = -1
    add_video(store, "a", num_frames=4, au=au)
    samples = load_samples(store, ["a"], CONFIG)
    assert samples.frame.tolist() == [0, 2, 3]
    assert [rows_of(samples, "face", i) for i in range(3)] == [[0], [2], [3]]
    np.testing.assert_array_equal(samples.labels.numpy(), au[[0, 2, 3]])
    strict = CONFIG.model_copy(update={"data": CONFIG.data.model_copy(update={"drop_partial_frames": True})})
    assert load_samples(store, ["a"], strict).frame.tolist() == [0, 3]


def test_empty_instances_are_missing_not_zero(store):
    add_video(store, "a", num_frames=4)
    add_video(store, "b", num_frames=3, valid=[0, 0, 0])
    nothing = {"feature": np.zeros((3, 2), np.float32), "valid": np.zeros(3, np.bool_)}
    add_instance(store, "b", "swin", nothing, state="empty", reason="no_face")
    add_instance(store, "b", "hubert", {}, state="empty", reason="no_audio")
    samples = load_samples(store, ["a", "b"], CONFIG)
    assert samples.missing() == {"face": 3, "motion": 3, "sound": 3}
    assert len(samples.tables["swin", "feature"]) == 4  # rows without a face take no memory
    assert samples.batch(np.arange(7)).inputs["face"].lengths.tolist() == [1, 1, 1, 1, 0, 0, 0]


def test_nothing_at_all_of_a_modality(store):
    add_video(store, "a", num_frames=3)
    add_instance(store, "a", "hubert", {}, state="empty", reason="no_audio")
    batch = load_samples(store, ["a"], CONFIG).batch(np.arange(3))
    assert batch.inputs["sound"].lengths.tolist() == [0, 0, 0]


# ---- refusals --------------------------------------------------------------------------------------------------------


def broken_store(store: Store) -> None:
    for clip in "abcde":
        add_video(store, clip, num_frames=3)
    add_instance(store, "b", "hubert", {}, state="failed", reason="audio_undecodable", message="no sample decodes")
    add_instance(store, "c", "swin", {}, state="partial")
    remove_instance(store, "d", "swin")
    add_instance(store, "e", "labels", {}, state="empty", reason="no_labels")


def test_unfinished_clips_are_refused_by_name_with_the_next_command(store):
    broken_store(store)
    with pytest.raises(UnfinishedError) as refusal:
        select_clips(store, "train", CONFIG.instances)
    message = str(refusal.value)
    assert "3 clips of split train" in message
    assert "b: hubert failed (audio_undecodable: no sample decodes)" in message
    assert "c: swin is not finished" in message
    assert "d: swin was never computed" in message
    assert f"`extract run --store {store.path} --stage swin --stage hubert`" in message
    assert "--skip-failed" in message
    assert "--retry" not in message


def test_skip_failed_leaves_them_out_and_says_so(store):
    broken_store(store)
    selection = select_clips(store, "train", CONFIG.instances, skip_failed=True)
    assert selection.clips == ("a",)
    assert selection.unlabelled == ("e",)
    assert selection.skipped.keys() == {"b", "c", "d"}
    assert "audio_undecodable" in selection.skipped["b"]


def test_a_crashed_clip_needs_retry(store):
    add_video(store, "a", num_frames=3)
    add_instance(store, "a", "swin", {}, state="failed", reason="crashed", message="died twice")
    with pytest.raises(UnfinishedError, match=r"1 clip of split train(.|\n)*--stage swin --retry"):
        select_clips(store, "train", CONFIG.instances)


def test_other_splits_are_not_looked_at(store):
    broken_store(store)
    for clip in "bcde":
        add_clip(store, clip, split="test")
    assert select_clips(store, "train", CONFIG.instances).clips == ("a",)
    assert select_clips(store, "val", CONFIG.instances).clips == ()


def test_two_recipes_are_refused_with_the_field_that_differs(store):
    for clip, crop in (("a", 224), ("b", 224), ("c", 112)):
        add_clip(store, clip)
        recipe = {"stage": "swin", "config": {"resize": 256, "crop": crop}}
        add_instance(store, clip, "swin", {"feature": np.zeros((2, 3), np.float16)}, recipe=recipe)
    assert feature_sources(store, ["a", "b"], ["swin"])["swin"].recipe["config"]["crop"] == 224
    with pytest.raises(UsageError, match=r"instance swin: clips a and c.*config\.crop: 224 against 112.*--overwrite"):
        feature_sources(store, ["a", "b", "c"], ["swin"])


def test_untrained_encoders_are_known(store):
    add_video(store, "a", num_frames=2)
    assert not feature_sources(store, ["a"], ["swin"])["swin"].untrained
    add_instance(store, "a", "swin", {"feature": np.zeros((2, 2), np.float16)}, provenance={"untrained": True})
    assert feature_sources(store, ["a"], ["swin"])["swin"].untrained


def test_first_difference_names_the_path():
    assert first_difference({"a": {"b": [1, 2]}}, {"a": {"b": [1, 2]}}) is None
    assert first_difference({"a": {"b": 1}, "c": 2}, {"a": {"b": 1}}) == "c: 2 against None"
    assert first_difference({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}) == "a.b: [1, 2] against [1, 3]"


def one(kind: str, instance: str, array: str = "feature") -> FusionConfig:
    return FusionConfig.model_validate({"modalities": {"x": {"kind": kind, "instance": instance, "array": array}}})


def test_a_modality_of_the_wrong_kind_or_array_is_refused(store):
    add_video(store, "a", num_frames=5)
    with pytest.raises(
        ConfigError, match=r"kind frame: hubert/feature of clip a has 30 rows, expected 5, one per frame"
    ):
        load_samples(store, ["a"], one("frame", "hubert"))
    with pytest.raises(ConfigError, match=r"modality x: swin has no `centre_s`.*kind be frame\?"):
        load_samples(store, ["a"], one("steps", "swin"))
    with pytest.raises(ConfigError, match=r"clip a: instance swin has no array 'token'; known: feature, valid"):
        load_samples(store, ["a"], one("frame", "swin", "token"))
    with pytest.raises(ConfigError, match=r"labels/au holds int8; a modality needs floating-point numbers"):
        load_samples(store, ["a"], one("frame", "labels", "au"))


def test_labels_of_another_length_are_refused(store):
    add_video(store, "a", num_frames=5, au=np.zeros((4, 12), dtype=np.int8))
    with pytest.raises(StoreError, match=r"clip a: labels/au is \(4, 12\), expected \[5 frames, 12 AUs\]"):
        load_samples(store, ["a"], CONFIG)


def test_rows_of_another_size_are_refused(store):
    add_video(store, "a", num_frames=5)
    add_video(store, "b", num_frames=5)
    add_instance(store, "b", "swin", {"feature": np.zeros((5, 9), np.float32), "valid": np.ones(5, np.bool_)})
    with pytest.raises(StoreError, match=r"clip b: swin/feature has 9 values per row, the clips before it have 2"):
        load_samples(store, ["a", "b"], CONFIG)


def test_people_and_recordings_in_several_splits_are_named(store):
    add_clip(store, "a", subject="s1", source_video="v1")
    add_clip(store, "b", subject="s1", source_video="v2")
    add_clip(store, "c", subject="s2", source_video="v1")
    add_clip(store, "d", subject="s3", source_video="v3")
    assert shared_people(store, {"a": "train", "b": "val", "c": "val", "d": "val"}) == [
        "subject s1 lies in several splits: train: a; val: b",
        "source_video v1 lies in several splits: train: a; val: c",
    ]
    assert shared_people(store, {"a": "train", "d": "val"}) == []


def test_a_clip_without_attributes_shares_nothing(store):
    for clip in "ab":
        store.set_attributes(clip, {"split": "train"})
    assert shared_people(store, {"a": "train", "b": "val"}) == []


# ---- statistics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_moments_are_numpys_whatever_the_chunk(chunk):
    random = np.random.default_rng(0)
    table = (100 + random.standard_normal((230, 5)) * [1, 1e-3, 10, 0.1, 5]).astype(np.float32)
    mean, deviation = moments(torch.from_numpy(table), chunk)
    np.testing.assert_allclose(mean.numpy(), table.astype(np.float64).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(deviation.numpy(), table.astype(np.float64).std(axis=0), rtol=1e-6)


def test_half_precision_rows_are_added_up_in_double():
    table = torch.full((100_000, 1), 1000.0, dtype=torch.float16)
    table[::2] += 1
    mean, deviation = moments(table)
    assert mean.item() == pytest.approx(1000.5)
    assert deviation.item() == pytest.approx(0.5)


def test_constant_features_keep_their_scale():
    table = torch.tensor([[0.0, 0.1, 3.0], [0.0, 0.1, 4.0]], dtype=torch.float16).repeat(999, 1)
    mean, deviation = moments(table, 100)
    assert deviation.tolist() == [1.0, 1.0, 0.5]
    assert torch.isfinite((table - mean) / deviation).all()
    # 1000 and the float32 after it: a deviation that is rounding, by which nothing must be divided.
    rounding = torch.tensor([[1000.0], [np.nextafter(np.float32(1000), np.float32(2000))]])
    assert rounding[0] != rounding[1]
    assert moments(rounding)[1].item() == 1
    with pytest.raises(ValueError, match="no rows"):
        moments(torch.empty(0, 3))


TOKENS = FusionConfig.model_validate({
    "modalities": {"words": {"kind": "tokens", "instance": "roberta", "array": "token", "project": 4}}
})


def spoken_store(path, ranges, tokens=6):
    """A clip with words, and one before it and one after it without; token k holds the value k."""
    store = Store.open(path, "a")
    for clip in ("a", "b", "c"):
        add_clip(store, clip)
        add_instance(store, clip, "frames", {"pts_s": np.arange(len(ranges)) / 25})
        add_instance(store, clip, "labels", {"au": np.ones((len(ranges), 12), dtype=np.int8)})
        add_instance(store, clip, "roberta", {}, state="empty", reason="no_words")
    arrays = {"range": np.int32(ranges), "token": np.tile(np.arange(tokens, dtype=np.float32)[:, None], (1, 3))}
    add_instance(store, "b", "roberta", arrays)
    return store


def test_tokens_are_the_rows_that_range_names(tmp_path):
    """Frames share rows, and a clip without words lacks the modality in every frame."""
    ranges = [[0, 2], [0, 2], [2, 2], [1, 6], [0, 0]]
    samples = load_samples(spoken_store(tmp_path / "s.zarr", ranges), ["a", "b", "c"], TOKENS)
    assert samples.missing() == {"words": 5 + 2 + 5}
    batch = samples.batch(np.arange(5, 10))
    words = batch.inputs["words"]
    assert words.lengths.tolist() == [2, 2, 0, 5, 0]
    assert [gathered(words, i) for i in range(5)] == [[0, 1], [0, 1], [], [1, 2, 3, 4, 5], []]
    assert len(samples.tables["roberta", "token"]) == 6


@pytest.mark.parametrize("ranges", [[[0, 7]], [[-1, 2]], [[3, 2]]])
def test_a_range_beyond_its_tokens_is_refused(tmp_path, ranges):
    with pytest.raises(StoreError, match=r"clip b: roberta/range does not fit 6 tokens and 1 frames"):
        load_samples(spoken_store(tmp_path / "s.zarr", ranges), ["b"], TOKENS)


def test_tokens_of_an_instance_without_range_are_refused(tmp_path):
    store = planted_store(tmp_path / "s.zarr")
    config = FusionConfig.model_validate({
        "modalities": {"words": {"kind": "tokens", "instance": "hubert", "array": "feature"}}
    })
    with pytest.raises(ConfigError, match="modality words: hubert has no `range` and so no tokens; should its kind"):
        load_samples(store, ["a"], config)


# ---- damage ----------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.fixture
def damaged(tmp_path) -> Store:
    """Five clips: a record, attributes and two blocks are damaged in train and val; one block in test, one unused."""
    splits = {"a": "train", "b": "train", "c": "val", "d": "test", "e": "val"}
    store = planted_store(tmp_path / "s.zarr", splits, num_frames=6, swin_size=3)
    (store.path / "a/swin/zarr.json").write_text("{")
    flip(store.path / "b/swin/feature/c.0.0")
    flip(store.path / "c/labels/au/c.0.0")
    (store.path / "e/zarr.json").write_text("[]")
    flip(store.path / "d/swin/feature/c.0.0")
    flip(store.path / "b/hubert/feature/c.0.0")
    return store


SWIN_ONLY = FusionConfig.model_validate({
    "modalities": {"swin": {"kind": "frame", "instance": "swin", "array": "feature"}},
    "training": {"max_epochs": 1},
})


def test_a_fit_names_all_that_is_damaged_at_once(damaged):
    with pytest.raises(CorruptError) as refusal:
        fit(damaged.path, damaged.path.parent / "run", SWIN_ONLY)
    head, *lines, remedy = str(refusal.value).splitlines()
    assert head == f"{damaged.path}: 4 damaged records and blocks:"
    assert [line.split(":")[0] for line in lines] == [
        "  clip a, instance swin",
        "  clip b, swin/feature, block 0",
        "  clip c, labels/au, block 0",
        "  clip e",
    ]
    assert remedy == "`extract verify --repair` computes them again"
    assert not (damaged.path.parent / "run").exists()


def test_skip_failed_does_not_hide_damage(damaged):
    with pytest.raises(CorruptError, match="4 damaged"):
        fit(damaged.path, damaged.path.parent / "run", SWIN_ONLY, skip_failed=True)


def test_an_evaluation_names_the_damage_of_its_split_alone(damaged):
    (damaged.path / "e/zarr.json").unlink()
    found = r"1 damaged record or block:\n  clip d, swin/feature, block 0: [^\n]+\n`"
    with pytest.raises(CorruptError, match=found), all_damage_named(damaged, ["test"], ["swin"]):
        load_samples(damaged, ["d"], SWIN_ONLY)


def test_damage_that_the_list_does_not_know_is_told_all_the_same(damaged):
    """A run's own file, for instance."""
    (damaged.path / "e/zarr.json").unlink()
    found = r"1 damaged record or block:\n  model.pt: bits"
    with pytest.raises(CorruptError, match=found), all_damage_named(damaged, [], []):
        raise CorruptError("model.pt: bits")
