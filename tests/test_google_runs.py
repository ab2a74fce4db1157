"""Runs with the engine google: what is sent, what it costs, and that nothing is ever paid for twice."""

import json
import math
import time

import pytest
import yaml
from typer.testing import CliRunner

from extract.cli import app
from extract.recognition import google
from extract.store import Store
from tests.speech_service import Service, hears_its_name, refusing, word_of
from tests.spoken import write_bursts, write_config, write_manifest, write_wav


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AU_FUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(google, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(google, "LONGEST_WAIT_S", 0.05)
    return tmp_path


@pytest.fixture
def service(folder):
    with Service() as service:
        write_config(folder, service)
        yield service


def command(*arguments):
    return CliRunner().invoke(app, [*arguments, "-c", "c.yaml", "--device", "cpu"])


def words(store, clip):
    return Store.open(store).read(clip, "transcribe", "text").values.tolist()


def test_twins_and_another_store_are_paid_for_once(folder, service):
    """Left and right face of one movie, at work at the same time; and all once more for a second store."""
    write_bursts(folder / "a.wav", 1.0, 2.0, 0.5)
    write_manifest(folder, a_left={"audio": "a.wav"}, a_right={"audio": "a.wav"}, a={"audio": "a.wav", "end_s": 4.0})

    def reply(request):
        time.sleep(0.05)  # so that both twins ask before there is an answer
        return hears_its_name(request)

    service.reply = reply
    assert command("run").exit_code == 0
    assert words("store.zarr", "a_left") == words("store.zarr", "a_right") == sorted_by_place(service, 3)
    assert words("store.zarr", "a") == words("store.zarr", "a_left")[:1]
    assert len(service.asked) == 3
    assert command("run", "--store", "other.zarr").exit_code == 0
    assert words("other.zarr", "a_left") == words("store.zarr", "a_left")
    assert len(service.asked) == 3


def sorted_by_place(service, count):
    """The words of the pieces of 1, 2 and 0.5 s, in that order."""
    by_length = {len(request.content): word_of(request) for request in service.asked}
    assert len(by_length) == count
    short, middle, long = sorted(by_length)
    return [by_length[middle], by_length[long], by_length[short]]


def test_a_plan_says_minutes_and_cost_and_sends_nothing(folder, service):
    """Pieces of 1.4 and 2.4 s, each rounded up to whole seconds: 5 s, at 0.06 a minute; a given transcript is free."""
    write_bursts(folder / "a.wav", 1.0, 2.0)
    write_wav(folder / "silent.wav", 0 * load_noise(60))
    (folder / "words.csv").write_text("word,start_s,end_s\nhi,0,1\n")
    write_manifest(
        folder,
        a={"audio": "a.wav"},
        silent={"audio": "silent.wav"},
        given={"audio": "a.wav", "transcript": "words.csv"},
        gone={"audio": "gone.wav"},
        part={"audio": "gone.wav", "start_s": 10, "end_s": 40},
    )
    planned = command("plan")
    assert planned.exit_code == 0
    assert "transcribe would send 0.6 minutes (of 2 clips by what is loud enough" in planned.stdout
    assert "of 1 by their whole length, for their sound cannot be read here); cost 0.04 at 0.06" in planned.stdout
    assert "not counted, for their sound cannot be read here: gone" in planned.stdout
    told = json.loads(command("plan", "--json").stdout)
    sent = {clip: needs["transcribe"].get("seconds_to_send", "nothing") for clip, needs in told.items()}
    assert sent == {"a": 5, "silent": 0, "given": "nothing", "gone": None, "part": 30}
    assert service.asked == []
    assert not (folder / "cache").exists()

    write_manifest(folder, a={"audio": "a.wav"}, silent={"audio": "silent.wav"})
    assert command("run").exit_code == 0
    billed = sum(math.ceil(len(request.content) / 32_000) for request in service.asked)
    assert billed == 5
    again = json.loads(command("plan", "--store", "other.zarr", "--json").stdout)
    assert again["a"]["transcribe"]["seconds_to_send"] == 0  # answered before
    assert "transcribe would send" not in command("plan").stdout


def load_noise(seconds):
    import numpy as np

    return np.random.default_rng(0).normal(0, 0.1, seconds * 16_000)


def test_without_a_price_the_plan_says_how_to_set_it(folder, service):
    write_config(folder, service, price_per_minute=None)
    write_bursts(folder / "a.wav", 1.0)
    write_manifest(folder, a={"audio": "a.wav"})
    assert "for the cost, say the price: --set transcribe.google.price_per_minute=PRICE" in command("plan").stdout


def test_a_minute_of_silence_is_not_sent(folder, service):
    write_wav(folder / "silent.wav", 0 * load_noise(60))
    write_manifest(folder, silent={"audio": "silent.wav"})
    assert command("run").exit_code == 0
    record = Store.open("store.zarr").record("silent", "transcribe")
    assert (record.state, record.reason) == ("empty", "no_speech")
    assert service.asked == []


def test_the_record_says_who_heard_it(folder, service):
    write_bursts(folder / "a.wav", 1.0)
    write_manifest(folder, a={"audio": "a.wav", "language": "de-AT"})
    assert command("run").exit_code == 0
    record = Store.open("store.zarr").record("a", "transcribe")
    assert record.notes["engine"] == "google"
    assert (record.notes["model"], record.notes["language"], record.notes["pieces"]) == ("long", "en-us", 1)
    assert record.notes["version"].startswith("v2, google-cloud-speech ")
    assert record.source["choice.language"] == "de-AT"
    assert record.source["choice.made_with.transcribe"]["model"] == "long"
    assert [list(request.config.language_codes) for request in service.asked] == [["de-AT"]]


def test_a_refused_clip_fails_and_the_others_are_done(folder, service):
    write_bursts(folder / "a.wav", 1.0)
    write_bursts(folder / "b.wav", 2.0)
    write_manifest(folder, a={"audio": "a.wav"}, b={"audio": "b.wav"})

    def reply(request):
        if len(request.content) < 2 * 32_000:
            return refusing("INVALID_ARGUMENT", "not this one")(request)
        return hears_its_name(request)

    service.reply = reply
    result = command("run")
    assert result.exit_code == 1
    assert "the service answers INVALID_ARGUMENT: not this one" in result.output
    store = Store.open("store.zarr")
    assert [(store.record(c, "transcribe").state, store.record(c, "transcribe").reason) for c in "ab"] == [
        ("failed", "service_refused"),
        ("done", None),
    ]


def test_an_isolated_process_passes_on_that_the_service_is_lost(folder, service):
    write_config(folder, service, run={"isolate": "always", "clips": 1})
    write_bursts(folder / "a.wav", 1.0)
    write_manifest(folder, a={"audio": "a.wav"})
    service.reply = refusing("UNAUTHENTICATED")
    result = command("run")
    assert result.exit_code == 3
    assert "the service refuses the credentials (UNAUTHENTICATED): set GOOGLE_APPLICATION_CREDENTIALS" in result.output
    assert Store.open("store.zarr").record("a", "transcribe").state == "partial"
    assert len(service.asked) == 1


def test_a_used_up_quota_stops_the_run_and_no_clip_fails(folder, service):
    write_config(folder, service, run={"clips": 1}, deadline_s=0.1, parallel=1)
    for name in "abc":
        write_bursts(folder / f"{name}.wav", 1.0, 2.0, seed=ord(name))
    write_manifest(folder, **{name: {"audio": f"{name}.wav"} for name in "abc"})

    def reply(request):
        if len(service.answered) < 3:
            return hears_its_name(request)
        return refusing("RESOURCE_EXHAUSTED", "Quota exceeded")(request)

    service.reply = reply
    result = command("run")
    assert result.exit_code == 3
    assert "Quota exceeded; raise the project's quota" in result.output
    assert "run the same command to continue" in result.output
    store = Store.open("store.zarr")
    assert [store.record(name, "transcribe") and store.record(name, "transcribe").state for name in "abc"] == [
        "done",
        "partial",
        None,
    ]
    service.reply, before = hears_its_name, set(service.answered)
    asked = len(service.asked)
    assert command("run").exit_code == 0
    assert len(service.asked) - asked == 3
    assert not before & {word_of(request) for request in service.asked[asked:]}


def test_no_credentials_end_the_run_before_any_work(folder, monkeypatch):
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT", "GCLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(folder))
    monkeypatch.setattr("google.auth.compute_engine._metadata._NO_GCE_CHECK", True)
    write_bursts(folder / "a.wav", 1.0)
    (folder / "words.csv").write_text("word,start_s,end_s\nhi,0,1\n")
    write_manifest(folder, a={"audio": "a.wav"}, given={"audio": "a.wav", "transcript": "words.csv"})
    google_config = {"engines": ["given", "google"], "language": "en-US"}
    (folder / "c.yaml").write_text(yaml.safe_dump({"extract": {"instances": {"transcribe": google_config}}}))
    result = command("run")
    assert result.exit_code == 3
    assert "set GOOGLE_APPLICATION_CREDENTIALS" in result.output
    assert "--set transcribe.engines=[given,whisper]" in result.output
    assert Store.open("store.zarr").record("a", "transcribe") is None
    assert command("plan").exit_code == 0  # which says the cost before there is an account
    assert command("run", "--clip", "given").exit_code == 0  # which sends nothing
    offline = command("run", "--offline")
    assert offline.exit_code == 3
    assert "--offline, and the answer for a piece of sound is not among those kept" in offline.output
