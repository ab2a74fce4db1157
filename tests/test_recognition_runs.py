"""Given transcripts and a recogniser in one store: who needs weights, what is in whose source, what becomes stale."""

import sys
import types
from typing import ClassVar

import pytest
import yaml
from typer.testing import CliRunner

import extract
from extract.cli import app
from extract.errors import ConfigError, ManifestError, StaleError, WeightsError
from extract.inputs.manifest import Clip, load_manifest, write_manifest
from extract.inputs.transcripts import Word
from extract.recognition.words import Heard
from extract.running.selection import Options
from extract.store import Store
from tests.spoken import write_bursts
from tests.spoken import write_manifest as write_clips


class Stub:
    """Hears one word in every piece; counts what it is loaded for."""

    name, max_piece_s = "whisper", 30.0
    loaded: ClassVar[list[str | None]] = []

    def __init__(self, language):
        self.language = language

    @classmethod
    def load(cls, _architecture, _weights, _device, _precision, *, language):
        cls.loaded.append(language)
        return cls(language)

    def speaking(self, language):
        if language == "xx":
            raise ConfigError("the stub knows no 'xx'")
        return self if language == self.language else type(self)(language)

    def describe(self):
        return {"engine": self.name, "version": "stub", "model": "stub", "language": self.language}

    def recognise(self, pieces):
        return [Heard((Word("heard", 0.25, 0.5),), self.language or "en") for _ in pieces]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two clips, one with a transcript; a folder of weights ``w``; nothing in the cache."""
    module = types.ModuleType("extract.recognition.whisper")
    module.Whisper = Stub
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(Stub, "loaded", [])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AU_FUSION_CACHE", str(tmp_path / "cache"))
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "model.safetensors").write_bytes(b"weights")
    write_bursts(tmp_path / "a.wav", 1.0, 2.0)
    (tmp_path / "words.csv").write_text("word,start_s,end_s\ngiven,0,1\n")
    write_clips(tmp_path, given={"audio": "gone.wav", "transcript": "words.csv"}, heard={"audio": "a.wav"})
    return tmp_path


def run(*engines, clips=(), overwrite=False, offline=True, **settings):
    transcribe = {"engines": list(engines), **settings}
    with open("c.yaml", "w", encoding="utf-8") as file:
        yaml.safe_dump({"extract": {"instances": {"transcribe": transcribe}, "run": {"cpu_threads": 1}}}, file)
    options = Options(clips=clips, device="cpu", overwrite=overwrite, offline=offline)
    return extract.run(config="c.yaml", options=options)


def record(clip):
    return Store.open("store.zarr").record(clip, "transcribe")


def words(clip):
    return Store.open("store.zarr").read(clip, "transcribe", "text").values.tolist()


@pytest.mark.usefixtures("folder")
def test_a_clip_with_a_transcript_needs_no_sound_no_weights_and_loads_nothing():
    """Its sound is not even there."""
    assert run("given", "whisper", clips=["given"]).exit_code == 0
    assert words("given") == ["given"]
    assert record("given").provenance["weights"] == {}
    assert record("given").provenance["provided"] == "transcript"
    assert set(record("given").source) == {"transcript"}
    assert Stub.loaded == []


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("weights", ["whisper-small", "elsewhere/w"])
def test_missing_weights_name_the_clips_and_the_ways_out_before_any_work(folder, weights):
    says = r"(?s)transcribe: .*Needed for heard \(no transcript of their own\): name a transcript for them .* --set "
    with pytest.raises(WeightsError, match=says + r"transcribe\.engines=\[given\]") as caught:
        run("given", "whisper", weights=weights)
    if weights == "whisper-small":
        assert "`extract weights fetch whisper-small`" in str(caught.value)
    assert not (folder / "store.zarr").exists()


@pytest.mark.usefixtures("folder")
def test_a_bare_run_takes_whisper_where_no_transcript_is_and_the_demo_never_does():
    def transcribed(clip, *config):
        flags = ["--stage", "transcribe", "--clip", clip, "--device", "cpu", "--offline", *config]
        return CliRunner().invoke(app, ["run", *flags])

    assert transcribed("given").exit_code == 0
    refused = transcribed("heard")
    assert refused.exit_code == 3
    assert "weights 'whisper-small' are not on this machine" in refused.output
    assert transcribed("heard", "-c", "demo").exit_code == 0
    assert (record("given").recipe, record("heard").reason) == (record("heard").recipe, "no_transcript")


@pytest.mark.usefixtures("folder")
def test_both_kinds_share_a_recipe_and_only_one_has_a_recogniser_in_its_source():
    assert run("given", "whisper", weights="w").exit_code == 0
    assert (words("given"), words("heard")) == (["given"], ["heard", "heard"])
    given, heard = record("given"), record("heard")
    assert (
        given.recipe
        == heard.recipe
        == {
            "stage": "transcribe",
            "version": 1,
            "config": {"engines": ["given"]},
            "inputs": {},
        }
    )
    assert set(given.source) == {"transcript"}
    assert set(heard.source) == {"audio", "choice.made_with.transcribe"}
    made = heard.source["choice.made_with.transcribe"]
    assert (made["engine"], made["precision"], len(made["weights"])) == ("whisper", "float32", 64)
    assert heard.provenance["weights"]["transcribe"]["sha256"] == made["weights"]
    assert given.provenance["weights"] == {}
    assert heard.notes["engine"] == "whisper"
    assert Stub.loaded == [None]  # once


def test_a_finished_store_needs_no_weights(folder):
    run("given", "whisper", weights="w")
    (folder / "w").rename(folder / "elsewhere")
    report = run("given", "whisper", weights="w")
    assert (report.exit_code, report.computed) == (0, 0)
    write_bursts(folder / "b.wav", 1.0)
    write_clips(folder, heard={"audio": "a.wav"}, new={"audio": "b.wav"})
    with pytest.raises(WeightsError, match=r"Needed for new \(no transcript"):
        run("given", "whisper", weights="w")


@pytest.mark.usefixtures("folder")
def test_a_store_of_given_transcripts_stays_and_only_empty_clips_become_stale():
    assert run("given").exit_code == 0
    assert (record("heard").state, record("heard").reason) == ("empty", "no_transcript")
    before = record("given")
    with pytest.raises(StaleError, match=r"transcribe: clip heard: source audio: none -> .*; source choice\.made_with"):
        run("given", "whisper", weights="w")
    assert run("given", "whisper", weights="w", overwrite=True).computed == 1
    assert words("heard") == ["heard", "heard"]
    assert record("given") == before


@pytest.mark.usefixtures("folder")
def test_what_recognises_concerns_recognised_clips_alone(folder):
    run("given", "whisper", weights="w")
    for changed, says in (
        ({"language": "de"}, "source choice.made_with.transcribe.language: none -> de"),
        ({"voice_gate": False}, "source choice.made_with.transcribe.voice_gate: True -> False"),
    ):
        with pytest.raises(StaleError, match=f"transcribe: clip heard: {says}\n"):
            run("given", "whisper", weights="w", **changed)
    (folder / "w" / "model.safetensors").write_bytes(b"others")
    with pytest.raises(StaleError, match=r"clip heard: source choice\.made_with\.transcribe\.weights: .*\.\.\. -> "):
        run("given", "whisper", weights="w")
    report = run("given", "whisper", weights="w", language="de", overwrite=True)
    assert (report.exit_code, report.computed) == (0, 1)
    assert record("heard").notes["language"] == "de"


def test_a_transcript_that_comes_later_takes_the_recognisers_place(folder):
    run("given", "whisper", weights="w")
    (folder / "late.csv").write_text("word,start_s,end_s\nlate,0,1\n")
    write_clips(folder, heard={"audio": "a.wav", "transcript": "late.csv"})
    with pytest.raises(StaleError, match="source transcript: none -> "):
        run("given", "whisper", weights="w")
    run("given", "whisper", weights="w", overwrite=True)
    assert words("heard") == ["late"]


def test_the_clips_language(folder):
    write_clips(folder, heard={"audio": "a.wav", "language": "de-CH"})
    run("given", "whisper", weights="w", language="en")
    assert (record("heard").notes["language"], record("heard").source["choice.language"]) == ("de", "de-CH")
    assert Stub.loaded == ["en"]  # one network for all languages


def test_no_sound_and_hardly_any(folder):
    write_bursts(folder / "short.wav", pause_s=0.02)
    write_clips(folder, short={"audio": "short.wav"}, crops={"crops": "crops", "fps": 25})
    (folder / "crops").mkdir()
    assert run("given", "whisper", weights="w").exit_code == 0
    assert (record("short").state, record("short").reason) == ("empty", "too_short")
    assert (record("crops").state, record("crops").reason) == ("empty", "no_audio")


# ---- the manifest ---------------------------------------------------------------------------------------------------


def test_a_language_in_the_manifest_is_written_and_read(tmp_path):
    clips = (
        Clip(id="a", audio=tmp_path / "a.wav", language="zh-Hant-TW"),
        Clip(id="b", audio=tmp_path / "b.wav", language="no"),  # Norwegian, no boolean
        Clip(id="c", audio=tmp_path / "c.wav"),
    )
    write_manifest(tmp_path / "m.yaml", clips)
    assert "language: zh-Hant-TW" in (tmp_path / "m.yaml").read_text()
    assert load_manifest(tmp_path / "m.yaml") == clips


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("english", "language is 'english'; expected a language of BCP-47 such as en, en-US or zh-Hant"),
        ("EN", "language is 'EN'; expected a language of BCP-47"),
        ("12", "language is '12'; expected a language of BCP-47"),
        ("[en]", "language is .*; expected text"),
    ],
)
def test_a_language_that_is_none(tmp_path, written, says):
    path = tmp_path / "m.yaml"
    path.write_text(f"version: 1\nclips:\n- id: a\n  audio: a.wav\n  language: {written}\n")
    with pytest.raises(ManifestError, match=rf"m\.yaml:5: {says}"):
        load_manifest(path)
