"""Fitting: it learns, it repeats itself, it goes on after any interruption, it refuses what it should."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from extract.au import AUS
from extract.devices import pick_device
from extract.errors import CorruptError, MachineError, StaleError, StoreError, UsageError
from extract.store import Store
from fusion import stepping, training
from fusion.config import FusionConfig
from fusion.device import arithmetic
from fusion.model import FusionModel
from fusion.runs import Run
from fusion.stepping import train_step
from fusion.tasks import Objective, tasks_of
from fusion.training import fit
from tests.fusion_stores import add_clip, add_instance, planted_store, remove_instance

SWIN = {"kind": "frame", "instance": "swin", "array": "feature", "project": 32}
HUBERT = {"kind": "steps", "instance": "hubert", "array": "feature", "before_s": 0.06, "after_s": 0.06, "project": 8}


def small_config(*, modalities=None, model=None, **settings) -> FusionConfig:
    return FusionConfig.model_validate({
        "modalities": modalities or {"swin": SWIN, "hubert": HUBERT},
        "model": {"hidden": 4, "head": 32} | (model or {}),
        "training": {"batch": 32, "max_epochs": 4, "min_epoch_steps": 3} | settings,
    })


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """Drawn once: writing durably takes longer than fitting."""
    path = tmp_path_factory.mktemp("drawn") / "store.zarr"
    planted_store(path, {"a": "train", "b": "train", "c": "val"}, num_frames=30, swin_size=16)
    return path


@pytest.fixture
def store(drawn: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drawn, tmp_path / "store.zarr"))


def tensors(run: Path, name: str = "model.pt") -> dict[str, torch.Tensor]:
    return torch.load(run / name, weights_only=True)["model"]


def assert_same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


# ---- it learns -------------------------------------------------------------------------------------------------------


def test_four_clips_are_overfitted_with_the_default_settings(tmp_path):
    """300 frames; the labels are a function of the features, so nothing stands between the net and F1 = 1."""
    planted_store(tmp_path / "store.zarr")
    config = FusionConfig.model_validate({"modalities": {"swin": SWIN | {"project": 512}}})
    (train,) = fit(tmp_path / "store.zarr", tmp_path / "run", config)
    assert train.split == "train"
    assert train.frames == 300
    assert train.scores.mean_f1 > 0.95
    assert train.scores.mean_f1 > np.nanmean(train.scores.baselines["majority"]["f1"]) + 0.5


def test_the_clipped_step_follows_the_loss_downhill(store):
    """train_step returns the loss before its step; on one batch the loss falls."""
    config = small_config(model={"dropout": 0, "modality_dropout": 0})
    samples = training.load_samples(Store.open(store), ["a", "b"], config)
    torch.manual_seed(0)
    model = FusionModel({"swin": 16, "hubert": 32}, config)
    training.standardise(model, samples)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batch = samples.batch(np.arange(60))
    objective = Objective(tasks_of(config, AUS), config.loss, AUS)
    before = objective(model(batch.inputs), batch.targets).item()
    steps = [train_step(model, objective, batch, optimizer, config.training).item() for _ in range(20)]
    assert steps[0] == pytest.approx(before)
    assert steps[-1] < 0.7 * steps[0]
    train_step(model, objective, batch, optimizer, config.training.model_copy(update={"clip_norm": 1e-3}))
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(p.grad) for p in model.parameters()]))
    assert norm.item() == pytest.approx(1e-3, rel=1e-2)


def test_inputs_are_standardised_by_the_training_split(store):
    fit(store, store.parent / "run", small_config(max_epochs=1))
    state = tensors(store.parent / "run")
    opened = Store.open(store)
    for name, split in (("train", "ab"), ("val", "c")):
        rows = np.concatenate([opened.read(clip, "swin", "feature").values for clip in split]).astype(np.float64)
        mean, scale = (state[f"branches.swin.project.{what}"].numpy() for what in ("mean", "scale"))
        assert np.allclose(mean, rows.mean(axis=0), rtol=1e-6) == (name == "train")
        assert np.allclose(scale, 1 / rows.std(axis=0), rtol=1e-5) == (name == "train")


def test_without_standardise_features_enter_as_they_are(store):
    fit(store, store.parent / "run", small_config(max_epochs=1, model={"standardise": False}))
    state = tensors(store.parent / "run")
    assert (state["branches.swin.project.mean"] == 0).all()
    assert (state["branches.swin.project.scale"] == 1).all()


def test_early_stopping_keeps_the_best_epoch(store, monkeypatch):
    """Validation scores as planned."""
    planned, seen = [0.2, 0.5, 0.4, 0.5, 0.1, 0.9], []

    def score_as_planned(model, *_):
        seen.append({key: value.clone() for key, value in model.state_dict().items()})
        return {"val_loss": 1.0, "val_score": planned[len(seen) - 1], "val_au": planned[len(seen) - 1]}

    monkeypatch.setattr(training, "validate", score_as_planned)
    found = fit(store, store.parent / "run", small_config(max_epochs=9, patience=3))
    log = [json.loads(line) for line in (store.parent / "run" / "log.jsonl").read_text().splitlines()]
    assert [entry["val_au"] for entry in log] == pytest.approx([0.2, 0.5, 0.4, 0.5, 0.1])  # three no better than 0.5
    assert {evaluation.epoch for evaluation in found} == {2}
    assert_same_tensors(tensors(store.parent / "run"), seen[1])


def test_the_score_of_val_is_the_mean_f1_of_its_annotated_frames(store):
    val, _ = fit(store, store.parent / "run", small_config())
    log = [json.loads(line) for line in (store.parent / "run" / "log.jsonl").read_text().splitlines()]
    assert log[val.epoch - 1]["val_score"] == log[val.epoch - 1]["val_au"] == pytest.approx(val.scores.mean_f1)


def test_the_learning_rate_rises_over_the_first_steps(store, monkeypatch):
    rates = []
    real = stepping.train_step

    def noting(model, objective, batch, optimizer, *rest, **more):
        rates.append(optimizer.param_groups[0]["lr"])
        return real(model, objective, batch, optimizer, *rest, **more)

    monkeypatch.setattr(stepping, "train_step", noting)
    fit(store, store.parent / "run", small_config(warmup_steps=6, lr=0.012, max_epochs=2))
    assert rates == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.010, 0.012, 0.012, 0.012])


def interrupt_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Let the next step but ``steps`` be interrupted."""
    real, done = stepping.train_step, []

    def interrupted(*arguments, **more):
        if len(done) == steps:
            raise KeyboardInterrupt
        done.append(1)
        return real(*arguments, **more)

    monkeypatch.setattr(stepping, "train_step", interrupted)


# ---- the same again, and going on ------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_run_and_leaves_the_callers_random_state_alone(store):
    state = torch.get_rng_state()
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        fit(store, store.parent / name, small_config(seed=seed))
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_tensors(tensors(store.parent / "one"), tensors(store.parent / "two"))
    assert not torch.equal(
        tensors(store.parent / "one")["head.0.weight"], tensors(store.parent / "three")["head.0.weight"]
    )


@pytest.mark.parametrize(("steps_done", "minutes"), [(0, 5.0), (4, 5.0), (7, 5.0), (2, 0.0), (7, 0.0)])
def test_a_resumed_run_equals_an_unbroken_one(store, monkeypatch, steps_done, minutes):
    """Stopped after so many steps (4 an epoch): before the first epoch is over, between epochs, inside one.

    With a checkpoint after every step (0 minutes between them) no step is made twice.
    """
    whole, broken = store.parent / "whole", store.parent / "broken"
    config = small_config(checkpoint_minutes=minutes)
    expected = fit(store, whole, config)
    real = stepping.train_step
    interrupt_after(monkeypatch, steps_done)
    with pytest.raises(KeyboardInterrupt):
        fit(store, broken, config)
    assert not Run(broken).finished
    again = []
    monkeypatch.setattr(stepping, "train_step", lambda *a, **more: (again.append(1), real(*a, **more))[1])
    torch.manual_seed(99)  # the state of the process that goes on must not matter
    found = fit(store, broken)
    assert_same_tensors(tensors(broken), tensors(whole))
    assert_same_tensors(tensors(broken, "checkpoint.pt"), tensors(whole, "checkpoint.pt"))
    epochs = json.loads((whole / "log.jsonl").read_text().splitlines()[-1])["epoch"]
    assert len(again) == 4 * epochs - (steps_done if minutes == 0 else steps_done // 4 * 4)
    for name in ("log.jsonl", "log.csv", "config.yaml", "scores/val.npz", "postprocess.json"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
    assert [e.scores.as_json() for e in found] == [e.scores.as_json() for e in expected]


def test_a_stop_between_model_and_checkpoint_is_mended(store, monkeypatch):
    whole, broken = store.parent / "whole", store.parent / "broken"
    fit(store, whole, small_config())
    real, saved = Run.save_checkpoint, []

    def interrupted(run, state):
        saved.append(1)
        if len(saved) == 2:
            raise KeyboardInterrupt
        real(run, state)

    monkeypatch.setattr(Run, "save_checkpoint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(store, broken, small_config())
    fit(store, broken, small_config())
    assert_same_tensors(tensors(broken), tensors(whole))
    assert (broken / "log.jsonl").read_bytes() == (whole / "log.jsonl").read_bytes()


def interrupt_after_first_epoch(store: Path, run: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_log", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fit(store, run, small_config())


def test_an_unfinished_run_goes_on_only_with_its_own_config_features_and_clips(store, monkeypatch):
    run = store.parent / "run"
    interrupt_after_first_epoch(store, run, monkeypatch)
    with pytest.raises(StaleError, match=r"begun with another config \(training\.lr: 0\.001 against 0\.1\)"):
        fit(store, run, small_config(lr=0.1))
    opened = Store.open(store, "a")
    au = opened.read("a", "labels", "au").values
    add_instance(opened, "a", "labels", {"au": au}, fingerprint="edited")
    with pytest.raises(StaleError, match=r"other clips, features or labels \(fingerprints\.labels\.a: .*'edited'"):
        fit(store, run)
    add_instance(opened, "a", "labels", {"au": au})
    add_clip(opened, "c", split="train")
    with pytest.raises(StaleError, match=r"other clips, features or labels \(clips"):
        fit(store, run)
    add_clip(opened, "c", split="val")
    assert fit(store, run)[0].split == "val"


def test_a_finished_run_is_not_touched(store):
    fit(store, store.parent / "run", small_config(max_epochs=1))
    before = (store.parent / "run" / "model.pt").read_bytes()
    with pytest.raises(UsageError, match="is finished; name another folder with -o"):
        fit(store, store.parent / "run", small_config(max_epochs=1))
    assert (store.parent / "run" / "model.pt").read_bytes() == before


def test_a_folder_of_something_else_is_refused(store):
    (store.parent / "notes").mkdir()
    (store.parent / "notes" / "todo.txt").write_text("keep me")
    with pytest.raises(UsageError, match=r"notes: holds something else \(no config\.yaml\)"):
        fit(store, store.parent / "notes", small_config())


def test_two_processes_cannot_begin_one_run(store):
    Run(store.parent / "run").begin(small_config())
    with pytest.raises(UsageError, match="begun by another process"):
        Run(store.parent / "run").begin(small_config())


def test_damaged_and_foreign_files_are_refused(store):
    run = store.parent / "run"
    fit(store, run, small_config(max_epochs=1))
    whole = (run / "model.pt").read_bytes()
    tensors_bytes = tensors(run)["head.0.weight"].numpy().tobytes()
    (run / "model.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptError, match=r"model\.pt: damaged"):
        Run(run).model()
    flipped = bytearray(whole)
    flipped[whole.index(tensors_bytes) + 5] ^= 1
    (run / "model.pt").write_bytes(flipped)
    with pytest.raises(CorruptError, match=r"model\.pt: damaged \(bad checksum"):
        Run(run).model()
    torch.save({"schema": 99}, run / "model.pt")
    with pytest.raises(StoreError, match="schema 99, this program knows 2"):
        Run(run).model()
    with pytest.raises(UsageError, match=r"nowhere: no such folder; known: .*/run"):
        Run(store.parent / "nowhere").model()


def test_runs_without_a_name_never_share_a_folder(tmp_path):
    first = Run.new(tmp_path)
    first.begin(small_config())
    assert Run.new(tmp_path).path != first.path


def test_the_run_holds_what_is_needed_to_repeat_it(store):
    run = store.parent / "run"
    config = small_config(max_epochs=1)
    fit(store, run, config)
    assert {path.name for path in run.iterdir()} == {
        "config.yaml", "checkpoint.pt", "model.pt", "log.jsonl", "log.csv", "metrics.json", "postprocess.json",
        "scores", "events",
    }  # fmt: skip
    assert Run(run).config() == config
    fitted = Run(run).model()
    assert fitted.config == config
    assert fitted.sizes == {"swin": 16, "hubert": 32}
    assert fitted.clips == {"train": ("a", "b"), "val": ("c",)}
    assert fitted.recipes.keys() == {"frames", "swin", "hubert"}
    assert json.loads((run / "metrics.json").read_text()).keys() == {"val", "train"}


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_nothing_to_train_on(tmp_path):
    planted_store(tmp_path / "store.zarr", {"a": "test", "b": "test"}, num_frames=4)
    with pytest.raises(UsageError, match=r"no labelled clip in split train; clips per split: test 2"):
        fit(tmp_path / "store.zarr", tmp_path / "run", small_config())
    assert not (tmp_path / "run").exists()
    planted_store(tmp_path / "one.zarr", {"a": "train"}, num_frames=1)
    with pytest.raises(UsageError, match="split train has 1 annotated frames"):
        fit(tmp_path / "one.zarr", tmp_path / "run", small_config())


def test_a_modality_without_a_row_is_refused(store):
    opened = Store.open(store, "a")
    for clip in "ab":
        add_instance(opened, clip, "hubert", {}, state="empty", reason="no_audio")
    with pytest.raises(UsageError, match=r"modality hubert: no row in split train; .*modalities\.hubert=null"):
        fit(store, store.parent / "run", small_config())


def test_a_clip_without_sound_is_trained_on_all_the_same(store):
    add_instance(Store.open(store, "a"), "b", "hubert", {}, state="empty", reason="no_audio")
    val, train = fit(store, store.parent / "run", small_config(max_epochs=1))
    assert train.missing == {"swin": 0, "hubert": 30}
    assert train.frames == 60
    assert val.missing["hubert"] == 0


def test_skip_failed_is_reported(store):
    opened = Store.open(store, "a")
    remove_instance(opened, "b", "swin")
    with pytest.raises(StoreError, match="b: swin was never computed"):
        fit(store, store.parent / "run", small_config())
    _, train = fit(store, store.parent / "run", small_config(max_epochs=1), skip_failed=True)
    assert train.left_out == {"b": "swin was never computed"}
    assert (train.clips, train.frames) == (1, 30)


def test_a_loss_that_is_not_finite_stops_and_names_its_batch(store, monkeypatch):
    """The second step of the second epoch; the checkpoint of the first is kept and can be evaluated."""
    real, done = stepping.train_step, []

    def poisoned(*arguments, **more):
        done.append(1)
        loss = real(*arguments, **more)
        return loss * float("nan") if len(done) == 6 else loss

    monkeypatch.setattr(stepping, "train_step", poisoned)
    run = store.parent / "run"
    message = (
        r"epoch 2, step 2: the loss is nan\. Its 15 frames are of clips a, b; the checkpoint before it is kept in "
        r".*run\. Lower fusion\.training\.lr \(0\.001\), and name another folder"
    )
    with pytest.raises(UsageError, match=message):
        fit(store, run, small_config(batch=16))
    assert len(Run(run).checkpoint()["history"]) == 1
    assert Run(run).model().epoch == 1


def test_a_full_disk_is_the_machines_trouble(store, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("extract.files.LocalFiles._write_and_sync", staticmethod(full))
    with pytest.raises(MachineError, match="No space left on device"):
        fit(store, store.parent / "run", small_config())


def test_people_on_both_sides_are_warned_about(store, caplog):
    add_clip(Store.open(store, "a"), "c", split="val", subject="a")
    with caplog.at_level("WARNING", logger="fusion"):
        fit(store, store.parent / "run", small_config(max_epochs=1))
    assert "subject a lies in several splits: train: a; val: c; expect scores on val that are too high" in caplog.text


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (torch.OutOfMemoryError("tried to allocate"), r"cuda: out of memory; lower fusion\.training\.batch"),
        (
            torch.AcceleratorError("CUDA error: device lost\nmore"),
            r"cuda: CUDA error: device lost; run the same command",
        ),
    ],
)
def test_a_gpu_that_gives_up_is_the_machines_trouble_and_settings_are_put_back(trouble, message):
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic

    def run():
        with arithmetic(torch.device("cuda")):
            assert not torch.backends.cudnn.allow_tf32
            raise trouble

    with pytest.raises(MachineError, match=message):
        run()
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic) == before


def test_devices():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UsageError, match=r"--device gpu: expected auto, cpu or cuda:N"):
        pick_device("gpu")
    with pytest.raises(UsageError, match=r"--device meta: expected auto, cpu or cuda:N"):
        pick_device("meta")
    with pytest.raises(UsageError, match=r"--device cuda:99: torch sees \d+ GPUs on this machine"):
        pick_device("cuda:99")
