"""What ``extract adapt --stage hubert`` refuses, leaves out, or says; before any update where it can."""

import numpy as np
import pytest
from typer.testing import CliRunner

from extract.adapt.hubert import adapt_hubert
from extract.adapt.hubert_config import HubertAdaptConfig
from extract.cli import app
from extract.config import load_extract_config
from extract.errors import ConfigError, ManifestError, UsageError, WeightsError
from extract.inputs.manifest import Clip
from tests.adapt_speech import murmur, quick, write_speech
from tests.media_files import pictures, write_clip

UNTRAINED = {"weights": "random", "architecture": "small", "device": "cpu"}


def adapt(clips, tmp_path, config=None, **more):
    return adapt_hubert(clips, tmp_path / "out", config or quick(), **UNTRAINED | more)


def sound(tmp_path, name, wave, split="train", **more):
    return Clip(id=name, audio=write_clip(tmp_path / f"{name}.wav", sound=wave), split=split, **more)


def test_a_recording_in_train_and_test_is_refused_by_name(tmp_path):
    clips = [
        sound(tmp_path, "talk_1", murmur(0), source_video="talk"),
        sound(tmp_path, "talk_2", murmur(1), "test", source_video="talk"),
    ]
    message = r"talk_1 \(train\) and talk_2 \(test\) are one recording \(source_video talk\).*--transductive"
    with pytest.raises(UsageError, match=message):
        adapt(clips, tmp_path)
    with pytest.raises(UsageError, match=message):  # one person in two splits may be accepted, one recording not
        adapt(clips, tmp_path, allow_shared_subjects=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_copy_of_a_training_file_under_another_name_is_refused(tmp_path, split):
    """Nothing but the bytes says that they are one recording."""
    clips = [sound(tmp_path, "a", murmur(0, 7.0)), sound(tmp_path, "b", murmur(0, 7.0), split)]
    with pytest.raises(UsageError, match=rf"a \(train\) and b \({split}\) are one recording \(b.wav with sha256 \w+"):
        adapt(clips, tmp_path)


def test_one_subject_in_two_splits(tmp_path):
    clips = [
        sound(tmp_path, "a", murmur(0, 7.0), subject="anna"),
        sound(tmp_path, "b", murmur(1, 7.0), "test", subject="anna"),
    ]
    with pytest.raises(ManifestError, match=r"subject anna: train: a; test: b"):
        adapt(clips, tmp_path)
    assert adapt(clips, tmp_path, allow_shared_subjects=True).exit_code == 0


def test_val_and_test_are_trained_on_only_where_it_is_said(tmp_path):
    clips = [sound(tmp_path, "a", murmur(0, 7.0)), sound(tmp_path, "b", murmur(1, 7.0), "test")]
    with pytest.raises(UsageError, match=r"adapt.hubert.splits names test: .* say --transductive"):
        adapt(clips, tmp_path, quick(splits=("train", "test")))


def test_fewer_seconds_than_clusters(tmp_path):
    clips = [sound(tmp_path, "a", murmur(0, 3.0)), sound(tmp_path, "b", murmur(1, 2.0))]
    with pytest.raises(UsageError, match=r"hold 5.0 s of sound, fewer seconds than the 6 clusters.*clusters=2"):
        adapt(clips, tmp_path)


def test_no_training_clip_has_sound(tmp_path):
    video = write_clip(tmp_path / "a.mov", pictures(5))
    clips = [
        Clip(id="a", video=video, split="train"),
        sound(tmp_path, "b", np.zeros(64_000)),
        sound(tmp_path, "c", murmur(0, 0.5)),
    ]
    why = r"none of the 3 training clips has sound.*a: it has no audio stream; b: it is silent; c: shorter than 0.6 s"
    with pytest.raises(UsageError, match=why):
        adapt(clips, tmp_path)


@pytest.mark.parametrize("split", ["", "val"])
def test_no_training_clip_at_all(tmp_path, split):
    manifest = write_speech(tmp_path / "s", {"a": split})
    with pytest.raises(UsageError, match=r"no clip of the manifest is of split train.*--split-by subject"):
        adapt(manifest, tmp_path)


def test_silence_and_broken_files_are_left_out_and_told(tmp_path, caplog):
    """Absence is a result (exit 0); what cannot be read is a failure (exit 1), and the rest is done."""
    (tmp_path / "torn.wav").write_bytes(b"RIFF nothing")
    clips = [
        sound(tmp_path, "a", murmur(0, 7.0)),
        sound(tmp_path, "hush", np.full(32_000, 0.01)),
        Clip(id="gone", audio=tmp_path / "gone.wav", split="val"),
    ]
    done = adapt(clips[:2], tmp_path / "one")
    assert (done.exit_code, dict(done.failures)) == (0, {})
    assert "clip hush is left out: it is silent" in caplog.text
    done = adapt([*clips, Clip(id="torn", audio=tmp_path / "torn.wav", split="train")], tmp_path / "two")
    assert done.exit_code == 1
    assert {clip: why.split(":")[0] for clip, why in done.failures.items()} == {
        "gone": "missing_file",
        "torn": "unreadable",
    }


def test_a_tone_falls_into_few_clusters(tmp_path):
    """Cepstra of a pure tone whose period fits the hop are all the same."""
    wave = 0.5 * np.sin(2 * np.pi * np.arange(16_000 * 8) / 160)
    targets = {"clusters": 6, "features": "mfcc"}
    with pytest.raises(UsageError, match=r"has \d different steps, too few for 6 clusters; is it one tone"):
        adapt([sound(tmp_path, "a", wave)], tmp_path, quick(targets=targets))


def test_twins_of_one_movie_count_once(tmp_path):
    """Two faces of one recording: its sound is trained on once, and both are among those that were heard."""
    wave = write_clip(tmp_path / "both.wav", sound=murmur(0, 7.0))
    clips = [Clip(id=name, audio=wave, source_video="both", split="train") for name in ("both_left", "both_right")]
    done = adapt(clips, tmp_path)
    assert done.metrics["clips"]["train"] == 1
    assert done.metrics["training_s"] == pytest.approx(7.0)


def test_weights_that_are_not_there_and_heads_that_do_not_fit(tmp_path):
    clips = [sound(tmp_path, "a", murmur(0, 7.0))]
    with pytest.raises(WeightsError, match=r"hubert-xlarge-ll60k.*are not on this machine"):
        adapt_hubert(clips, tmp_path / "out", quick(), device="cpu")
    with pytest.raises(WeightsError, match=r"'random' have no head \(head.safetensors\).*head=new makes one"):
        adapt(clips, tmp_path, quick(head="kept"))
    with pytest.raises(WeightsError, match=r"targets.layer is 3, but architecture small has layers 1 to 2"):
        adapt(clips, tmp_path, quick(targets={"clusters": 6, "features": "layer", "layer": 3}))
    with pytest.raises(WeightsError, match=r"quantiser .*none.npz: cannot be read .*numpy.savez"):
        adapt(clips, tmp_path, quick(targets={"clusters": 6, "quantiser": str(tmp_path / "none.npz")}))
    np.savez(tmp_path / "q.npz", centre=np.zeros((5, 39)))
    with pytest.raises(WeightsError, match=r"centres of shape \[5, 39\], expected \[6, 39\]"):
        adapt(clips, tmp_path / "2", quick(targets={"clusters": 6, "quantiser": str(tmp_path / "q.npz")}))


def test_a_diverging_run_says_what_to_do(tmp_path):
    clips = [sound(tmp_path, "a", murmur(0, 7.0))]
    with pytest.raises(UsageError, match=r"training diverged before update \d: .*--set adapt.hubert.lr=3.3e\+29"):
        adapt(clips, tmp_path, quick(lr=1e30, head_lr=1e30))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"least_s": 20.0}, "least_s 20 is more than crop_s 15.6"),
        ({"device_s": 10.0}, "crop_s 15.6 is more than device_s 10, which holds no crop then"),
        ({"steps": 400}, "head_steps 500 leave nothing of steps 400 for the network"),
        ({"least_s": 0.5, "mask_steps": 23}, "least_s 0.5: too short for spans of mask_steps 23"),
        ({"targets": {"features": "mfcc", "layer": 2}}, "features is mfcc, which no network computes: leave layer out"),
        ({"targets": {"clusters": 40_000}}, "less than or equal to 32767"),
    ],
)
def test_settings_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        HubertAdaptConfig(**changes)


def test_misspelt_settings_name_the_nearest():
    with pytest.raises(ConfigError, match=r"adapt.hubert.step: unknown key; did you mean 'steps'\?"):
        load_extract_config("demo", ["adapt.hubert.step=3"])
    with pytest.raises(ConfigError, match=r"adapt.huber: unknown key; did you mean 'hubert'\?"):
        load_extract_config("demo", ["adapt.huber.steps=3"])


def test_the_command_ends_as_the_design_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_speech(tmp_path, {"a": "test"})
    common = ["adapt", "--manifest", "m.yaml", "--weights", "random", "--architecture", "small"]
    for stage, code, message in (
        ("hubert", 2, "extract: no clip of the manifest is of split train"),
        ("huber", 2, "extract: --stage huber: cannot be adapted; did you mean 'hubert'?"),
    ):
        found = CliRunner().invoke(app, [*common, "--stage", stage])
        assert (found.exit_code, found.stdout) == (code, "")
        assert found.stderr.startswith(message)
    found = CliRunner().invoke(app, ["adapt", "--stage", "hubert", "--manifest", "m.yaml", "--transductive"])
    assert found.exit_code == 3
    assert "`extract weights fetch hubert-xlarge-ll60k` gets them" in found.stderr
    assert "val_" not in found.stderr
