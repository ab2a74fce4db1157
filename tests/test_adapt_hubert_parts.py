"""The parts of adapting HuBERT, each against something that is not ours."""

import sys
import types
from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.cluster import MiniBatchKMeans
from transformers import HubertModel

from extract.adapt import hubert_fairseq
from extract.adapt.folder import Folder, first_difference
from extract.adapt.hubert import adapt_hubert
from extract.adapt.hubert_batches import Recordings, ahead, ready_batch, ready_update
from extract.adapt.hubert_config import HubertAdaptConfig
from extract.adapt.hubert_crops import Crop, MicroBatch, Update, epoch_batches, steps_in, updates, whole_batches
from extract.adapt.hubert_features import TargetSource
from extract.adapt.hubert_loss import LossConfig
from extract.adapt.hubert_network import (
    HubertPretraining,
    PretrainingHead,
    head_of,
    load_encoder,
    new_mask_vector,
    recompute_layers,
)
from extract.adapt.hubert_sound import Heard, Recording, hear
from extract.adapt.hubert_targets import fit_clusters, nearest_cluster, rows_at, sampled_steps
from extract.adapt.hubert_training import SUMS, make_optimizer, rate_factor, summary, train_step
from extract.adapt.processes import Processes
from extract.errors import WeightsError
from extract.inputs.manifest import Clip
from extract.models import hubert, mfcc, random
from extract.stages.hubert import Hubert, HubertConfig
from extract.weights.resolving import resolve
from tests.adapt_speech import murmur, quick, write_speech
from tests.media_files import write_clip

CPU = torch.device("cpu")


def untrained():
    stage = Hubert(HubertConfig(weights="random", architecture="small"))
    return resolve("random", stage)


def network(feature_grad=1.0):
    encoder, mask_vector = load_encoder("small", untrained(), CPU)
    assert mask_vector is None
    head = PretrainingHead(64, 32, [7])
    head.draw(0)
    return HubertPretraining(encoder, new_mask_vector(64, 0), head, feature_grad)


def recording(tmp_path, seconds=4.0, *, normalise=False, name="a"):
    clip = Clip(id=name, audio=write_clip(tmp_path / f"{name}.wav", sound=murmur(3, seconds)), split="train")
    folder = Folder(tmp_path / "folder")
    return Recording(folder, hear(clip, folder), normalise=normalise)


# ---- network --------------------------------------------------------------------------------------------------------


def test_hidden_steps_are_those_of_transformers():
    """Its own forward pass, given the same mask and vector."""
    ours = network().eval()
    config = ours.encoder.config
    config.update({"apply_spec_augment": True, "mask_time_prob": 0.05})
    theirs = HubertModel(config).eval()
    theirs.load_state_dict({**ours.encoder.state_dict(), "masked_spec_embed": ours.mask_vector.detach()})
    wave = torch.randn(3, 320 * 30 + 400, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(3, 31, generator=torch.Generator().manual_seed(1)) < 0.5
    with torch.no_grad():
        expected = theirs(wave, mask_time_indices=mask).last_hidden_state
        conv, hidden = ours.hidden(wave, mask)
        assert torch.allclose(hidden, expected, atol=1e-6)
        assert torch.equal(conv, theirs.feature_extractor(wave))
        assert not torch.allclose(hidden, theirs(wave, mask_time_indices=~mask).last_hidden_state, atol=1e-2)
        assert torch.equal(ours.train().hidden(wave, mask)[1], hidden)  # nothing is left to chance in training


def loss_of(net, **more):
    wave = torch.randn(2, 320 * 30 + 400, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 31, dtype=torch.bool)
    mask[:, 5:17] = True
    clusters = torch.arange(62).view(2, 31) % 7
    return net(wave, [clusters], mask, LossConfig(), **more)


def test_a_warming_head_leaves_the_encoder_alone():
    net = network()
    warm, whole = loss_of(net, head_only=True), loss_of(net)
    assert warm.total.item() == pytest.approx(whole.total.item())
    warm.total.backward()
    assert all(p.grad is None for p in [*net.encoder.parameters(), net.mask_vector])
    assert all(p.grad is not None for p in net.head.parameters())
    whole.total.backward()
    assert all(p.grad is not None for p in net.parameters())


def test_a_damped_gradient_reaches_the_convolutions_alone():
    gradients = []
    for factor in (1.0, 0.25):
        net = network(factor)
        loss_of(net).total.backward()
        gradients.append({name: p.grad for name, p in net.named_parameters()})
    for name, whole in gradients[0].items():
        factor = 0.25 if "feature_extractor" in name else 1.0
        assert torch.allclose(gradients[1][name], factor * whole, rtol=1e-4, atol=1e-6), name


def test_recomputed_layers_give_the_same_gradients():
    plain, frugal = network().train(), network().train()
    recompute_layers(frugal.encoder)

    for net in (plain, frugal):
        loss_of(net).total.backward()
    for (name, ours), theirs in zip(plain.named_parameters(), frugal.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad), name


def test_a_new_head_is_drawn_as_torch_and_fairseq_draw_one():
    head = PretrainingHead(64, 32, [500])
    head.draw(3)
    bound = 1 / 8  # torch's Linear: U(-1/sqrt(64), 1/sqrt(64)) for weight and bias
    weight, table = head.proj.weight.detach(), head.table.detach()
    assert bound * 0.99 < float(weight.abs().max()) <= bound
    assert abs(float(weight.std()) - bound / np.sqrt(3)) < 0.003
    assert (float(table.min()) >= 0, 0.999 < float(table.max()) < 1) == (True, True)
    assert abs(float(table.mean()) - 0.5) < 0.01
    with pytest.raises(WeightsError, match=r"here: its head knows 500 clusters, the config says .* 20"):
        head_of(dict(head.state_dict()), 20, 0, "here")


# ---- crops ----------------------------------------------------------------------------------------------------------


def test_an_epoch_hears_everything_once_but_for_the_ends():
    config = HubertAdaptConfig(crop_s=5.0, least_s=1.0, device_s=20.0, batch_s=40.0)
    lengths = [steps_in(seconds) for seconds in (61.0, 4.0, 12.3, 0.8, 5.0)]
    for epoch in range(5):
        seen = [Counter() for _ in lengths]
        for batch in epoch_batches(lengths, config, epoch):
            assert batch.steps * len(batch.crops) <= steps_in(20.0)
            assert {crop.steps for crop in batch.crops} == {batch.steps}
            assert steps_in(1.0) * 0.9 <= batch.steps <= steps_in(5.0)
            for crop in batch.crops:
                seen[crop.recording].update(range(crop.first, crop.first + crop.steps))
                assert crop.first + crop.steps <= lengths[crop.recording]
                assert crop.samples.stop <= 320 * (lengths[crop.recording] - 1) + 400
        assert all(set(count.values()) <= {1} for count in seen)
        heard = [len(count) / length for count, length in zip(seen, lengths, strict=True)]
        assert heard[0] > 0.9
        assert heard[3] == 0.0  # too short
    assert epoch_batches(lengths, config, 0) == epoch_batches(lengths, config, 0)
    assert epoch_batches(lengths, config, 0) != epoch_batches(lengths, config, 1)


def test_updates_can_begin_anywhere():
    config = HubertAdaptConfig(steps=23, head_steps=0, crop_s=5.0, device_s=10.0, batch_s=20.0)
    lengths = [steps_in(seconds) for seconds in (61.0, 33.0, 12.3)]
    whole = list(updates(lengths, config))
    assert [update.step for update in whole] == list(range(23))
    assert list(updates(lengths, config, 9)) == whole[9:]
    total = [sum(batch.steps * len(batch.crops) for batch in update.batches) for update in whole]
    assert 0.5 * steps_in(20.0) < min(total)
    assert max(total) < 1.6 * steps_in(20.0)


def test_looks_take_whole_recordings_in_the_same_way():
    config = HubertAdaptConfig(crop_s=5.0, least_s=1.0, device_s=12.0)
    batches = whole_batches([steps_in(13.0), steps_in(0.5), steps_in(3.0)], config)
    assert [(batch.crops[0].recording, len(batch.crops), batch.steps) for batch in batches] == [
        (0, 2, steps_in(5.0)),
        (2, 1, steps_in(3.0)),
    ]


@pytest.mark.parametrize("label_hz", [50, 100])
def test_a_crops_clusters_are_those_of_its_own_steps(tmp_path, label_hz):
    """The labels are their own numbers: step k of the recording has label k (at 100 Hz 2 k)."""
    sound = recording(tmp_path)
    labels = np.arange(200 * label_hz // 50, dtype=np.int16)
    batch = MicroBatch((0, 0, 0), (Crop(0, 11, 99), Crop(0, 100, 99)))
    ready = ready_batch(batch, Recordings([sound], [labels], label_hz), HubertAdaptConfig())
    for row, crop in zip(ready.clusters, batch.crops, strict=True):
        assert torch.equal(row, (crop.first + torch.arange(99)) * (label_hz // 50))
    assert torch.equal(ready.wave[0], sound[320 * 11 : 320 * 109 + 400])
    assert torch.equal(ready.mask.sum(dim=1), ready.mask.sum(dim=1)[:1].expand(2))


def test_what_is_ready_ahead_is_dealt_out_and_counted_whole(tmp_path):
    config = HubertAdaptConfig(steps=3, head_steps=0, crop_s=1.0, least_s=0.6, device_s=1.0, batch_s=3.0, mask_steps=5)
    data = Recordings([recording(tmp_path)], [np.zeros(200, np.int16)], 50)
    by_number = {
        number: [list(ahead(updates(data.lengths, config), data, config, Processes(i, number, CPU)))
                 for i in range(number)]
        for number in (1, 2)
    }  # fmt: skip
    for one, first, second in zip(*by_number[1], *by_number[2], strict=True):
        assert one.sample_size == first.sample_size == second.sample_size
        assert one.sample_size == sum(int(batch.mask.sum()) for batch in one.batches)
        masks = [batch.mask for batch in (*first.batches, *second.batches)]
        assert len(masks) == len(one.batches)
        assert {mask.numpy().tobytes() for mask in masks} == {batch.mask.numpy().tobytes() for batch in one.batches}


# ---- features and clusters ------------------------------------------------------------------------------------------

# torchaudio 2.11.1 (compliance.kaldi.mfcc of 16 kHz with use_energy=False, functional.compute_deltas) of the samples
# 0.1 * normal("golden", "mfcc", 1360): cepstra 0, 1, 12 and first differences 0, 1, 12 of its 7 rows.
KALDI = np.array([
    [7.0928, -31.0961, -2.6317, -0.2958, -0.9976, -1.5777],
    [7.6797, -31.5555, -10.8446, -0.3168, -1.1575, -2.4497],
    [5.3204, -35.8544, -6.4140, -0.3185, -0.5619, 0.8374],
    [6.3951, -34.5047, -12.9893, 0.0236, 0.1538, 1.5729],
    [6.1426, -32.4312, 2.6276, 0.2465, 0.9388, -0.8379],
    [7.3867, -32.4981, -7.5008, -0.0761, 0.4949, -1.6692],
    [6.0572, -32.1638, -13.3477, -0.1501, 0.0869, -3.7798],
])


def test_cepstra_are_kaldis():
    samples = torch.from_numpy((0.1 * random.normal("golden", "mfcc", 1360)).astype(np.float32))
    found = mfcc.mfcc(lambda start, stop: samples[start:stop], len(samples))
    assert found.shape == (7, 39)
    columns = found[:, [0, 1, 12, 13, 14, 25]].numpy()
    assert np.abs(columns - KALDI).max() < 2e-4
    again = found[:, 13:26]
    assert torch.allclose(mfcc.differences(again), found[:, 26:], atol=1e-5)


def test_long_cepstra_are_those_of_the_whole(monkeypatch):
    samples = torch.from_numpy(murmur(5, 3.0).astype(np.float32))
    whole = mfcc.mfcc(lambda start, stop: samples[start:stop], len(samples))
    monkeypatch.setattr(mfcc, "ROWS", 37)
    assert torch.allclose(mfcc.mfcc(lambda start, stop: samples[start:stop], len(samples)), whole, atol=1e-5)
    assert len(whole) == mfcc.num_rows(len(samples)) == (len(samples) - 400) // 160 + 1


def test_features_of_a_layer_are_transformers_hidden_states(tmp_path):
    """Raw output of layer 1, of the normalised recording; chunks lose no step."""
    sound = recording(tmp_path, normalise=True)
    source = TargetSource(untrained(), "small", 1, True)
    samples = sound[0 : len(sound)]
    assert abs(float(samples.mean())) < 1e-4
    assert abs(float(samples.std()) - 1) < 1e-4
    model = hubert.load("small", untrained())
    with torch.no_grad():
        expected = model(samples[None], output_hidden_states=True).hidden_states[1][0]
    chunks = source.features(CPU).chunks(sound)
    found = torch.cat([compute() for _, compute in chunks])
    assert len(found) == sound.heard.steps
    assert torch.allclose(found, expected, atol=1e-5)


def test_chunks_join_without_a_gap(tmp_path, monkeypatch):
    monkeypatch.setattr("extract.adapt.hubert_features.CHUNK_STEPS", 60)
    sound = recording(tmp_path)
    features = TargetSource(untrained(), "small", 2, True).features(CPU)
    chunks = [(first, compute()) for first, compute in features.chunks(sound)]
    assert [first for first, _ in chunks] == [0, 60, 120]
    assert sum(len(rows) for _, rows in chunks) == sound.heard.steps == 199
    wanted = np.array([0, 59, 60, 150, 198])
    rows = rows_at(features, sound, wanted, 64)
    joined = torch.cat([rows for _, rows in chunks]).numpy()
    assert np.array_equal(rows, joined[wanted])


def test_sampled_steps_are_even_and_all_where_there_are_few():
    parts = sampled_steps([1000, 0, 3000], 800, 0)
    assert [len(part) for part in parts] == [pytest.approx(200, abs=40), 0, pytest.approx(600, abs=40)]
    assert sum(map(len, parts)) == 800
    assert all(part.max() < length for part, length in zip(parts[::2], (1000, 3000), strict=True))
    assert [part.tolist() for part in sampled_steps([3, 2], 5, 0)] == [[0, 1, 2], [0, 1]]


def test_clusters_are_scikit_learns():
    rows = np.random.default_rng(0).normal(size=(900, 5)).astype(np.float32)
    rows[:300] += 4
    centres = fit_clusters(rows, 4, 0)
    theirs = MiniBatchKMeans(
        4, init="k-means++", max_iter=100, batch_size=10_000, n_init=20, tol=0.0, max_no_improvement=100,
        reassignment_ratio=0.0, random_state=0,
    ).fit(rows)  # fmt: skip
    assert np.allclose(centres, theirs.cluster_centers_)
    assert np.array_equal(nearest_cluster(torch.from_numpy(rows), centres), theirs.predict(rows))


# ---- schedule, sums, state ------------------------------------------------------------------------------------------


def test_rates_rise_and_fall_linearly():
    config = HubertAdaptConfig(steps=100, head_steps=20, warmup_steps=10)
    encoder = [rate_factor(step, 20, config) for step in range(100)]
    head = [rate_factor(step, 0, config) for step in range(100)]
    assert encoder[:20] == [0.0] * 20
    assert encoder[20:30] == pytest.approx(np.linspace(0.1, 1.0, 10))
    assert encoder[30:] == pytest.approx(np.linspace(1.0, 0.0, 71)[:-1])
    assert head[:10] == pytest.approx(np.linspace(0.1, 1.0, 10))
    assert head[10:] == pytest.approx(np.linspace(1.0, 0.0, 91)[:-1])


def test_an_update_is_the_gradient_of_the_mean_over_all_steps_that_count(tmp_path):
    """Parts of other lengths, each with other numbers of hidden steps, add up to one mean."""
    config = HubertAdaptConfig(steps=3, head_steps=0, warmup_steps=1, clip=1e9, mask_steps=5)
    data = Recordings([recording(tmp_path)], [np.arange(199, dtype=np.int16) % 7], 50)
    batches = (MicroBatch((0, 0), (Crop(0, 0, 90), Crop(0, 95, 90))), MicroBatch((0, 1), (Crop(0, 40, 120),)))
    ready = ready_update(Update(0, 0, batches), data, config, Processes(0, 1, CPU))
    net, plain = network().train(), network().train()
    optimizer = make_optimizer(net, config)
    sums = torch.zeros(len(SUMS), dtype=torch.float64)
    train_step(net, optimizer, ready, config, Processes(0, 1, CPU), sums)
    losses = [plain(batch.wave, [batch.clusters], batch.mask, LossConfig()) for batch in ready.batches]
    assert ready.sample_size == sum(loss.sample_size for loss in losses)
    (sum(loss.total for loss in losses) / ready.sample_size).backward()
    for (name, ours), theirs in zip(net.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6), name
    assert sums[2] == ready.sample_size
    assert sums[0].item() == pytest.approx(sum(loss.masked[0].loss.item() for loss in losses))


def test_the_error_of_a_margin_counts_recordings():
    """The jackknife over recordings of equal size gives the same."""
    rng = np.random.default_rng(1)
    count = np.full(12, 200.0)
    correct, guessed = rng.integers(40, 90, 12).astype(float), rng.integers(20, 60, 12).astype(float)
    found = summary(np.stack([2.5 * count, correct, count, guessed, 0.1 * count], axis=1))
    assert found["loss"] == pytest.approx(2.5)
    margins = (correct - guessed) / 200
    assert found["accuracy"] - found["majority"] == pytest.approx(margins.mean())
    assert found["margin_error"] == pytest.approx(margins.std(ddof=1) / np.sqrt(12))


def test_the_first_difference_is_named():
    assert first_difference({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == "a.c: 2 -> 3"
    assert first_difference({"a": [1]}, {"a": [1]}) is None
    heard = Heard("a", "train", "a", {}, 16_000, 0.1, 0.2)
    assert Heard.from_json(heard.as_json()) == heard
    assert heard.steps == 49


# ---- fairseq's own files --------------------------------------------------------------------------------------------


def fairseq_name(name):
    """What fairseq calls a tensor of the layer-norm variant, written down from its modules."""
    parts = name.split(".")
    if parts[0] == "feature_extractor":
        inner = "0" if parts[3] == "conv" else "2.1"
        return ".".join([*parts[:3], inner, parts[4]])
    if parts[0] == "feature_projection":
        return ".".join([{"projection": "post_extract_proj"}.get(parts[1], parts[1]), parts[2]])
    if parts[1] == "pos_conv_embed":
        last = {"original0": "weight_g", "original1": "weight_v"}.get(parts[-1], parts[-1])
        return f"encoder.pos_conv.0.{last}"
    if parts[1] == "layers":
        inner = ".".join(parts[3:-1])
        inner = inner.replace("attention.", "self_attn.").replace("feed_forward.intermediate_dense", "fc1")
        inner = inner.replace("feed_forward.output_dense", "fc2")
        inner = "self_attn_layer_norm" if inner == "layer_norm" else inner
        return ".".join([*parts[:3], inner, parts[-1]])
    return name


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A file as fairseq's trainer writes one: tensors under ``model``, plain settings, the task's dictionary."""
    module = types.ModuleType("fairseq.data.dictionary")

    class Dictionary:
        def __init__(self):
            self.symbols = ["<s>", "<pad>", "</s>", "<unk>", *map(str, range(6))]

    Dictionary.__module__, Dictionary.__qualname__ = module.__name__, "Dictionary"
    module.Dictionary = Dictionary
    for name, made in (("fairseq", types.ModuleType("fairseq")), ("fairseq.data", types.ModuleType("data"))):
        monkeypatch.setitem(sys.modules, name, made)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    drawn = {name: torch.from_numpy(values) for name, values in hubert.random_weights("small").items()}
    generator = torch.Generator().manual_seed(2)
    model = {fairseq_name(name): values.half() for name, values in drawn.items()}
    model["mask_emb"] = torch.rand(64, generator=generator)
    model["final_proj.weight"] = torch.randn(32, 64, generator=generator)
    model["final_proj.bias"] = torch.randn(32, generator=generator)
    model["label_embs_concat"] = torch.rand(10, 32, generator=generator)  # 6 clusters and 4 special symbols
    path = tmp_path / "hubert.pt"
    torch.save({"args": None, "cfg": {"model": {"label_rate": 50}}, "model": model, "best_loss": 1.5,
                "task_state": {"dictionaries": [Dictionary()]}}, path)  # fmt: skip
    for name in ("fairseq", "fairseq.data", module.__name__):
        monkeypatch.delitem(sys.modules, name)
    return path, model, drawn


def test_a_checkpoint_of_fairseq_is_read_without_fairseq(checkpoint):
    path, model, drawn = checkpoint
    weights, head = hubert_fairseq.read(path, str(path))
    loaded = hubert.load("small", weights).state_dict()
    assert loaded.keys() == drawn.keys()
    for name, values in drawn.items():
        assert torch.equal(loaded[name], values.half().float()), name
    _, vector = load_encoder("small", weights, CPU)
    assert torch.equal(vector, model["mask_emb"])
    kept = head_of(head, 6, hubert_fairseq.OFFSET, "x")
    assert kept.classes == (10,)
    assert torch.equal(kept.plain.table, model["label_embs_concat"])
    assert torch.equal(kept.plain.weight, model["final_proj.weight"])


def test_adapting_goes_on_from_fairseqs_head(checkpoint, tmp_path):
    """Cluster k is its class k + 4, and the four special rows stay in the table."""
    path, _, _ = checkpoint
    manifest = write_speech(tmp_path / "s", {"a": "train", "b": "train"})
    config = quick(head="kept", head_steps=0, steps=2, targets={"clusters": 6, "features": "mfcc"})
    done = adapt_hubert(manifest, tmp_path / "out", config, weights=str(path), architecture="small", device="cpu")
    from safetensors import safe_open

    with safe_open(done.best / "head.safetensors", "pt") as head:
        assert head.metadata() == {"offset": "4"}
        assert head.get_slice("table").get_shape() == [10, 32]
    again = adapt_hubert(
        manifest, tmp_path / "again", config, weights=str(done.best), architecture="small", device="cpu"
    )
    with safe_open(again.best / "head.safetensors", "pt") as head:
        assert head.metadata() == {"offset": "4"}


def test_a_checkpoint_that_asks_for_code_is_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return (print, ("executed",))

    torch.save({"model": {"x": torch.zeros(1)}, "task_state": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(WeightsError, match=r"trap.pt cannot be read without executing .*: it asks for print"):
        hubert_fairseq.read(tmp_path / "trap.pt", "x")
    torch.save({"model": {"x": torch.zeros(1)}}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"no HuBERT of fairseq's pre-training: expected final_proj.*found x"):
        hubert_fairseq.read(tmp_path / "other.pt", "x")
    (tmp_path / "torn.pt").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(WeightsError, match=r"torn.pt"):
        hubert_fairseq.read(tmp_path / "torn.pt", "x")
