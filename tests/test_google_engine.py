"""The engine google against a server on this machine that speaks the service's own messages."""

import threading
import time

import grpc
import numpy as np
import pytest
import torch
from google.cloud.speech_v2.types import cloud_speech as types

from extract.answers import Answers
from extract.errors import ClipError, ServiceError
from extract.inputs.transcripts import Word
from extract.recognition import google
from extract.recognition.google import Connection, Google, GoogleConfig, heard_of
from tests.speech_service import Refusal, Service, refusing, response, word_of

HZ = 16_000


@pytest.fixture
def service():
    with Service() as service:
        yield service


@pytest.fixture
def engine(service, tmp_path, monkeypatch):
    """An engine of the service, with short waits; ``language``, ``answers`` and settings as asked."""
    monkeypatch.setattr(google, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(google, "LONGEST_WAIT_S", 0.05)

    def made(language="en-US", folder="cache", connected=True, **settings):
        config = GoogleConfig(endpoint=service.endpoint, **settings)
        connection = Connection.open(config) if connected else None
        return Google(config, language, Answers(tmp_path / folder), connection)

    return made


def pieces(*seconds):
    generator = torch.Generator().manual_seed(0)
    return [0.1 * torch.randn(int(length * HZ), generator=generator) for length in seconds]


def test_what_is_asked(service, engine):
    """16-bit samples in place of floats, one request per piece, in the v2 interface's terms."""
    (piece,) = pieces(1.5)
    engine("de-CH", model="chirp_2", location="europe-west4", project="mine").recognise([piece])
    (asked,) = service.asked
    assert asked.recognizer == "projects/mine/locations/europe-west4/recognizers/_"
    assert (asked.config.model, list(asked.config.language_codes)) == ("chirp_2", ["de-CH"])
    decoding = asked.config.explicit_decoding_config
    assert decoding.encoding == types.ExplicitDecodingConfig.AudioEncoding.LINEAR16
    assert (decoding.sample_rate_hertz, decoding.audio_channel_count) == (HZ, 1)
    assert asked.config.features.enable_word_time_offsets
    sent = np.frombuffer(asked.content, "<i2") / 32767
    assert np.abs(sent - piece.numpy()).max() <= 0.5 / 32767 + 1e-7


def test_words_come_in_the_order_of_the_pieces(service, engine):
    found = engine(parallel=3).recognise(pieces(1, 2, 3, 4, 5))
    assert [heard.words[0].end_s for heard in found] == pytest.approx([0.9, 1.9, 2.9, 3.9, 4.9])
    assert {heard.words[0].text for heard in found} == {word_of(request) for request in service.asked}
    assert all(heard.language == "en-us" for heard in found)


def test_nothing_heard_is_an_answer_and_kept(service, engine):
    service.reply = lambda _: response()
    for _ in range(2):
        (heard,) = engine().recognise(pieces(1))
        assert (heard.words, heard.language) == ((), None)
    assert len(service.asked) == 1


def test_words_out_of_order_stay_as_said(service, engine):
    """``merge`` sorts them: pieces and words alike."""
    service.reply = lambda _: response(("b", 1, 1.5), ("a", 0.25, 0.75))
    (heard,) = engine().recognise(pieces(2))
    assert heard.words == (Word("b", 1.0, 1.5), Word("a", 0.25, 0.75))


@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "UNAVAILABLE", "INTERNAL", "ABORTED", "DEADLINE_EXCEEDED"])
def test_what_may_pass_is_tried_again(service, engine, code):
    def reply(request):
        if len(service.asked) < 4:
            raise Refusal(grpc.StatusCode[code])
        return response((word_of(request), 0, 1))

    service.reply = reply
    (heard,) = engine().recognise(pieces(1))
    assert heard.words[0].text == word_of(service.asked[0])
    assert len(service.asked) == 4
    assert len({request.content for request in service.asked}) == 1


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "OUT_OF_RANGE"])
def test_a_permanent_error_fails_the_clip_at_once(service, engine, code):
    service.reply = refusing(code, "no such model in this region")
    with pytest.raises(ClipError, match=f"answers {code}: no such model in this region") as caught:
        engine(parallel=1).recognise(pieces(1, 2, 3))
    assert caught.value.reason == "service_refused"
    assert len(service.asked) == 1


@pytest.mark.parametrize("code", ["UNAUTHENTICATED", "PERMISSION_DENIED"])
def test_lost_credentials_stop_the_run_at_once(service, engine, code):
    service.reply = refusing(code, "key AIzaSECRET was revoked")
    with pytest.raises(
        ServiceError, match=f"refuses the credentials .{code}.: set GOOGLE_APPLICATION_CREDENTIALS"
    ) as c:
        engine(parallel=1).recognise(pieces(1, 2))
    assert c.value.exit_code == 3
    assert "SECRET" not in str(c.value)
    assert len(service.asked) == 1


@pytest.mark.parametrize(
    ("code", "error", "says"),
    [
        ("RESOURCE_EXHAUSTED", ServiceError, "raise the project's quota.*What was answered is kept"),
        ("UNAVAILABLE", ServiceError, r"is there a network\?.*What was answered is kept"),
        ("INTERNAL", ClipError, "INTERNAL for 0.2 s"),
    ],
)
def test_what_does_not_pass_ends_at_the_deadline(service, engine, code, error, says):
    service.reply = refusing(code)
    start = time.monotonic()
    with pytest.raises(error, match=says):
        engine(deadline_s=0.2).recognise(pieces(1))
    assert time.monotonic() - start < 5
    assert len(service.asked) >= 3  # waits 0.01, 0.02, 0.04, 0.05 ... at most


def test_answers_that_came_before_a_failure_are_kept(service, engine):
    """The third of five pieces is refused; what was paid for before is not asked for again."""

    def reply(request):
        if len(request.content) == 3 * HZ * 2:
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT)
        return response((word_of(request), 0, 1))

    service.reply = reply
    with pytest.raises(ClipError):
        engine(parallel=1).recognise(pieces(1, 2, 3, 4, 5))
    asked = len(service.asked)
    assert asked == 3
    service.reply = lambda request: response((word_of(request), 0, 1))
    engine(parallel=1).recognise(pieces(1, 2, 3, 4, 5))
    assert [len(request.content) // (2 * HZ) for request in service.asked[asked:]] == [3, 4, 5]


def test_a_server_that_dies_midway_and_comes_back(service, engine):
    """The third request never gets an answer; another server on the same port answers it."""
    dying = threading.Event()

    def reply(request):
        if len(service.answered) == 2:
            dying.set()
            time.sleep(0.5)
        return response((word_of(request), 0, 1))

    service.reply = reply
    found = []
    client = engine(parallel=1, deadline_s=20)
    asking = threading.Thread(target=lambda: found.extend(client.recognise(pieces(1, 2, 3, 4))))
    asking.start()
    assert dying.wait(10)
    service.stop()
    with Service(port=service.port) as second:
        asking.join(20)
        assert [len(request.content) // (2 * HZ) for request in second.asked] == [3, 4]
    assert len(found) == 4
    assert len(service.asked) == 3


def test_another_language_or_model_is_another_question_and_another_region_is_not(service, engine):
    (piece,) = pieces(1)
    for settings in ({}, {"location": "us-central1", "project": "other"}, {"model": "short"}):
        engine(**settings).recognise([piece])
    engine("en-GB").recognise([piece])
    assert [(r.config.model, r.config.language_codes[0]) for r in service.asked] == [
        ("long", "en-US"),
        ("short", "en-US"),
        ("long", "en-GB"),
    ]


def test_offline_takes_kept_answers_and_sends_nothing(service, engine):
    known, new = pieces(1, 2)
    (heard,) = engine().recognise([known])
    offline = engine(connected=False)
    assert offline.recognise([known]) == [heard]
    assert (offline.is_kept(known), offline.is_kept(new)) == (True, False)
    with pytest.raises(ServiceError, match="--offline, and the answer for a piece of sound is not among those kept"):
        offline.recognise([known, new])
    assert len(service.asked) == 1


def test_words_without_times_share_their_results_time_by_letters():
    """Closed form: 2 + 3 letters over the second that the result took."""
    said = {
        "results": [
            {"alternatives": [{"transcript": "ab"}], "result_end_offset": "1s", "language_code": "en-us"},
            {
                "alternatives": [{"transcript": "cd efg", "words": [{"word": "cd"}, {"word": "efg"}]}],
                "result_end_offset": "2.500s",
            },
            {"result_end_offset": "3s"},
        ]
    }
    heard = heard_of(said)
    assert heard.words == (Word("ab", 0.0, 1.0), Word("cd", 1.0, 1.6), Word("efg", 1.6, 2.5))
    assert heard.notes == {"spread_words": 3}
    assert heard_of({}).words == ()


# ---- credentials ----------------------------------------------------------------------------------------------------


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """A machine without any credentials."""
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT", "GCLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setattr("google.auth.compute_engine._metadata._NO_GCE_CHECK", True)


@pytest.mark.usefixtures("nowhere")
def test_no_credentials():
    with pytest.raises(
        ServiceError, match=r"no credentials .*set GOOGLE_APPLICATION_CREDENTIALS.*gcloud auth"
    ) as caught:
        Connection.open(GoogleConfig())
    assert caught.value.exit_code == 3


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize("content", ["no json, PRIVATE", '{"type": "service_account", "private_key": "PRIVATE"}', "{}"])
def test_damaged_credentials_are_never_shown(monkeypatch, tmp_path, content):
    path = tmp_path / "key.json"
    path.write_text(content)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    with pytest.raises(ServiceError, match="no credentials") as caught:
        Connection.open(GoogleConfig(project="mine"))
    shown = [caught.value, caught.value.__cause__] if not caught.value.__suppress_context__ else [caught.value]
    assert not any("PRIVATE" in str(error) for error in shown)


@pytest.mark.usefixtures("nowhere")
def test_no_project(monkeypatch):
    from google.auth.credentials import AnonymousCredentials

    monkeypatch.setattr("google.auth.default", lambda **_: (AnonymousCredentials(), None))
    with pytest.raises(ServiceError, match=r"set GOOGLE_CLOUD_PROJECT, or --set transcribe\.google\.project=ID"):
        Connection.open(GoogleConfig())


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "google.cloud.speech_v2", None)
    with pytest.raises(ServiceError, match=r"needs google\.cloud\.speech_v2: pip install 'au-fusion\[google\]'"):
        Connection.open(GoogleConfig())


def test_credentials_that_cannot_be_renewed_stop_the_run_at_once(service, tmp_path):
    """Over an encrypted channel of this machine: gRPC asks the plug-in for a token, which fails as revoked ones do."""
    from google.auth.exceptions import RefreshError
    from google.cloud.speech_v2 import SpeechClient
    from google.cloud.speech_v2.services.speech.transports import SpeechGrpcTransport

    asked = []

    def revoked(_context, callback):
        asked.append(1)
        callback((), RefreshError("invalid_grant: TOKEN"))

    plugin = grpc.metadata_call_credentials(revoked)
    channel = grpc.secure_channel(
        service.secure_endpoint, grpc.composite_channel_credentials(grpc.local_channel_credentials(), plugin)
    )
    client = SpeechClient(transport=SpeechGrpcTransport(channel=channel))
    engine = Google(GoogleConfig(deadline_s=60), "en-US", Answers(tmp_path), Connection(client, "mine"))
    start = time.monotonic()
    with pytest.raises(ServiceError, match=r"refuses the credentials .UNAVAILABLE.: set GOOGLE_APPLICATION") as caught:
        engine.recognise(pieces(1))
    assert time.monotonic() - start < 20
    assert "TOKEN" not in str(caught.value)
    assert (len(asked), service.asked) == (1, [])
