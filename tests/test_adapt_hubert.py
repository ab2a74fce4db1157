"""``extract adapt --stage hubert`` as a whole: what it leaves, who may use it, and that nothing disturbs it."""

import csv
import json
import os
import signal
import socket
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import HubertModel

import extract
from extract.adapt.hubert import adapt_hubert
from extract.adapt.hubert_targets import fit_clusters, nearest_cluster
from extract.config import ExtractConfig
from extract.errors import CorruptError, StaleError, UsageError
from extract.inputs.manifest import load_manifest
from extract.models import hubert
from extract.weights.files import file_sha256, path_sha256
from tests.adapt_speech import command, quick, start, write_speech

SPLITS = {"a": "train", "b": "train", "c": "val", "d": "val", "e": "test", "f": ""}
UNTRAINED = {"weights": "random", "architecture": "small", "device": "cpu"}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_speech(tmp_path_factory.mktemp("speech"), SPLITS)


@pytest.fixture(scope="module")
def adapted(manifest, tmp_path_factory):
    return adapt_hubert(manifest, tmp_path_factory.mktemp("adapted") / "out", quick(), **UNTRAINED)


def test_the_folder_is_what_transformers_reads(adapted):
    """Its own loader takes every tensor, and gives what the stage computes with."""
    folder = adapted.best
    model, told = HubertModel.from_pretrained(folder, output_loading_info=True)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    from extract.stages.hubert import Hubert, HubertConfig
    from extract.weights.resolving import resolve

    stage = Hubert(HubertConfig(weights=str(folder), architecture="small"))
    ours = hubert.load("small", resolve(str(folder), stage))
    wave = torch.randn(1, 8000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = model.eval()(wave).last_hidden_state
        assert torch.allclose(ours(wave).last_hidden_state, theirs, atol=1e-6)
    tensors = load_file(folder / "model.safetensors")
    assert torch.equal(tensors["masked_spec_embed"], model.masked_spec_embed.detach())
    # All of it was trained: nothing is as it was drawn, but the head began anew.
    drawn = hubert.random_weights("small")
    assert all(not np.array_equal(drawn[name], tensors[name].numpy()) for name in drawn)
    assert json.loads((folder / "preprocessor_config.json").read_text())["do_normalize"] is True
    assert set(load_file(folder / "head.safetensors")) == {"proj.weight", "proj.bias", "table"}


def test_the_stage_takes_it_as_weights_and_the_record_knows_who_was_heard(adapted, manifest, tmp_path):
    entries = {"weights": str(adapted.best), "architecture": "small"}
    config = ExtractConfig.model_validate({"instances": {"hubert_adapted": {"stage": "hubert", **entries}}})
    assert extract.run(manifest, tmp_path / "s.zarr", config, stages=["hubert_adapted"]).exit_code == 0
    store = extract.open_store(tmp_path / "s.zarr")
    records = {clip: store.record(clip, "hubert_adapted") for clip in SPLITS}
    assert {clip for clip, record in records.items() if record.saw_clip} == {"a", "b"}
    assert records["a"].provenance["weights"]["hubert_adapted"]["saw"] == ["audio"]


def test_what_it_says_of_itself(adapted, manifest):
    said = json.loads((adapted.best / "adapted.json").read_text())
    files = {clip.id: file_sha256(clip.audio) for clip in load_manifest(manifest)}
    assert said["trained_on"] == {"audio": sorted([files["a"], files["b"]])}
    assert (said["clips"], said["chosen_on"], said["transductive"]) == (["a", "b"], ["c", "d"], False)
    card = (adapted.best / "README.md").read_text()
    for fact in (files["a"], said["base"]["sha256"], "6 clusters of mel cepstra", "2 clips of train", "untrained",
                 "training split alone", "2 clips of val"):  # fmt: skip
        assert fact in card
    assert (adapted.best / "quantiser.npz").is_file()
    assert adapted.exit_code == 0
    assert adapted.metrics["best"]["step"] in {3, 6}
    assert adapted.metrics["last"]["step"] == 6


def log_of(folder):
    with (folder / "log.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_log_and_what_is_left(adapted):
    rows = log_of(adapted.folder)
    assert [int(row["step"]) for row in rows] == [3, 6]
    best = min(rows, key=lambda row: float(row["val_loss"]))
    assert adapted.metrics["best"]["val_loss"] == pytest.approx(float(best["val_loss"]))
    assert list((adapted.folder / "events").iterdir())
    left = {path.name for path in adapted.folder.iterdir()}
    assert left == {"adapt.json", "best", "events", "labels", "last", "log.csv", "metrics.json", "quantiser.npz"}


def test_targets_are_the_nearest_of_clusters_fitted_to_train_alone(adapted, manifest):
    from extract.inputs.media import read_audio
    from extract.models.mfcc import mfcc

    with np.load(adapted.folder / "quantiser.npz") as found:
        centres = found["centre"]
    assert {path.stem for path in (adapted.folder / "labels").iterdir()} == {"a", "b", "c", "d"}
    of_clip = {}
    for clip in ("a", "b", "c"):
        sound = torch.from_numpy(read_audio(manifest.parent / f"{clip}.wav").samples)
        rows = mfcc(lambda start, stop, sound=sound: sound[start:stop], len(sound))
        of_clip[clip] = rows.numpy()
        distances = torch.cdist(rows.double(), torch.from_numpy(centres).double())
        labels = np.load(adapted.folder / "labels" / f"{clip}.npy")
        assert np.array_equal(labels, distances.argmin(dim=1).numpy())
        assert np.array_equal(labels, nearest_cluster(rows, centres))
    assert np.array_equal(centres, fit_clusters(np.concatenate([of_clip["a"], of_clip["b"]]), 6, 0))


def test_the_same_again_and_another_seed(adapted, manifest, tmp_path):
    again = adapt_hubert(manifest, tmp_path / "again", quick(), **UNTRAINED)
    assert path_sha256(again.best) == path_sha256(adapted.best)
    other = adapt_hubert(manifest, tmp_path / "other", quick(seed=1), **UNTRAINED)
    assert path_sha256(other.best) != path_sha256(adapted.best)


def test_a_finished_folder_and_a_strange_one_are_left_alone(adapted, manifest, tmp_path):
    with pytest.raises(UsageError, match=r"out is finished; name another folder with -o, or remove it"):
        adapt_hubert(manifest, adapted.folder, quick(), **UNTRAINED)
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(UsageError, match=r"holds something else \(no adapt.json\)"):
        adapt_hubert(manifest, tmp_path, quick(), **UNTRAINED)


class Stop(Exception):
    pass


def interrupted(manifest, output, after, **changes):
    """An adaptation that ends in the midst of its updates."""

    def tell(now):
        if now.step >= after:
            raise Stop

    with pytest.raises(Stop):
        adapt_hubert(manifest, output, quick(**changes), **UNTRAINED, tell=tell)


def test_a_folder_goes_on_only_with_what_it_was_begun_with(manifest, tmp_path):
    out = tmp_path / "out"
    interrupted(manifest, out, 5)
    with pytest.raises(StaleError, match=r"begun with something else \(config.lr: 0.001 -> 0.002\)"):
        adapt_hubert(manifest, out, quick(lr=2e-3), **UNTRAINED)
    with pytest.raises(StaleError, match=r"clips.e: None -> .*; give the same"):
        adapt_hubert(manifest, out, quick(), **UNTRAINED, transductive=True)
    sound = manifest.parent / "a.wav"
    before = sound.stat()
    os.utime(sound, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    with pytest.raises(StaleError, match=r"begun with another .*a\.wav; restore it"):
        adapt_hubert(manifest, out, quick(), **UNTRAINED)
    os.utime(sound, ns=(before.st_atime_ns, before.st_mtime_ns))
    checkpoint = out / "checkpoint.pt"
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: len(whole) // 2] + bytes(64) + whole[len(whole) // 2 + 64 :])
    with pytest.raises(CorruptError, match=r"checkpoint.pt: damaged .*; remove .*out and adapt anew"):
        adapt_hubert(manifest, out, quick(), **UNTRAINED)
    checkpoint.write_bytes(whole)
    assert adapt_hubert(manifest, out, quick(ahead=1, checkpoint_minutes=0), **UNTRAINED).exit_code == 0


def test_a_stop_between_two_updates_loses_none(manifest, tmp_path, adapted, monkeypatch):
    def stop(_, step, __):
        if step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("extract.adapt.hubert_training._check_finite", stop)
        with pytest.raises(KeyboardInterrupt):
            adapt_hubert(manifest, tmp_path / "out", quick(), **UNTRAINED)
    saved = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)
    assert saved["step"] == 5
    done = adapt_hubert(manifest, tmp_path / "out", quick(), **UNTRAINED)
    assert path_sha256(done.best) == path_sha256(adapted.best)


LONGER = {"steps": 24, "eval_steps": 4}


def wait_for(process, what, limit_s=90.0):
    began = time.monotonic()
    while not what():
        if process.poll() is not None or time.monotonic() - began > limit_s:
            pytest.fail(str(process.communicate(timeout=5)))
        time.sleep(0.003)


@pytest.mark.slow
def test_killed_halfway_and_run_again_is_the_unbroken_one_to_the_bit(manifest, tmp_path):
    """kill -9 of one thread on a CPU; folder by folder, log included."""
    whole = start(command(manifest, tmp_path / "whole", **LONGER))
    torn = tmp_path / "torn"
    process = start(command(manifest, torn, **LONGER))
    log = torn / "log.csv"
    wait_for(process, lambda: log.is_file() and log.read_text().count("\n") >= 4)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (torn / "metrics.json").exists()
    assert 12 <= torch.load(torn / "checkpoint.pt", weights_only=True)["step"] < 24
    again = start(command(manifest, torn, **LONGER))
    for one in (whole, again):
        assert one.communicate() == ("", "")
        assert one.returncode == 0
    assert "1 process of 1 thread" in json.loads((torn / "metrics.json").read_text())["computed_on"]
    for name in ("best", "last"):
        assert path_sha256(torn / name) == path_sha256(tmp_path / "whole" / name)
    assert log.read_bytes() == (tmp_path / "whole" / "log.csv").read_bytes()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.slow
def test_two_processes_are_one(manifest, tmp_path):
    """With the variables that ``accelerate launch`` gives each of them; on CPUs they talk through gloo."""
    pytest.importorskip("accelerate")
    two, one = tmp_path / "two", tmp_path / "one"
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = [start(command(manifest, two), **shared, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)]
    adapt_hubert(manifest, one, quick(), **UNTRAINED)
    for process in started:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out) == (0, ""), err
    assert "2 processes" in json.loads((two / "metrics.json").read_text())["computed_on"]
    for name in ("model.safetensors", "head.safetensors"):
        ours, theirs = load_file(one / "last" / name), load_file(two / "last" / name)
        assert ours.keys() == theirs.keys()
        for key, values in ours.items():
            assert float((values - theirs[key]).norm() / values.norm()) <= 1e-5, key
    for ours, theirs in zip(log_of(one), log_of(two), strict=True):
        assert {k: float(v) for k, v in theirs.items()} == pytest.approx(
            {k: float(v) for k, v in ours.items()}, rel=1e-5
        )


def test_transductive_weights_carry_it(manifest, tmp_path):
    done = adapt_hubert(manifest, tmp_path / "out", quick(steps=3), **UNTRAINED, transductive=True)
    said = json.loads((done.best / "adapted.json").read_text())
    assert said["transductive"] is True
    assert said["clips"] == ["a", "b", "c", "d", "e"]
    assert said["chosen_on"] == []
    assert "**Transductive**" in (done.best / "README.md").read_text()
    assert done.metrics["best"]["val_loss"] is None
    assert done.metrics["best"]["step"] == done.metrics["last"]["step"]


def test_adapting_goes_on_with_head_and_clusters_and_remembers_who_was_heard_before(adapted, tmp_path):
    others = write_speech(tmp_path / "others", {"x": "train", "y": "val"}, duration_s=7.0)
    targets = {"clusters": 6, "quantiser": str(adapted.best / "quantiser.npz"), "features": "mfcc"}
    config = quick(targets=targets, head="kept", head_steps=0)
    done = adapt_hubert(others, tmp_path / "out", config, weights=str(adapted.best), architecture="small", device="cpu")
    with np.load(done.best / "quantiser.npz") as new, np.load(adapted.best / "quantiser.npz") as old:
        assert np.array_equal(new["centre"], old["centre"])
    said, before = (json.loads((at / "adapted.json").read_text())["trained_on"] for at in (done.best, adapted.best))
    assert set(before["audio"]) < set(said["audio"])
    assert len(said["audio"]) == 3


def test_bfloat16_and_recomputed_layers(adapted, manifest, tmp_path):
    """Other arithmetic, about the same loss; what is saved stays float32."""
    done = adapt_hubert(manifest, tmp_path / "out", quick(precision="bfloat16", recompute=True), **UNTRAINED)
    ours, exact = log_of(done.folder)[0], log_of(adapted.folder)[0]
    assert float(ours["val_loss"]) != float(exact["val_loss"])
    assert float(ours["val_loss"]) == pytest.approx(float(exact["val_loss"]), rel=0.05)
    assert {values.dtype for values in load_file(done.best / "model.safetensors").values()} == {torch.float32}
