"""Google Cloud Speech-to-Text, version 2 of its interface: short recordings, with the times of words."""

import hashlib
import json
import math
import random
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import TYPE_CHECKING, Any

from pydantic import Field

from extract.answers import Answers
from extract.errors import ClipError, ServiceError
from extract.inputs.transcripts import Word
from extract.recognition.words import Heard
from extract.stage import StageConfig

if TYPE_CHECKING:
    from google.cloud.speech_v2 import SpeechClient
    from torch import Tensor

HZ = 16_000
MAX_PIECE_S = 55.0
"""The service takes a minute at most in one request that holds the sound itself."""

RETRIED = {"UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "ABORTED", "INTERNAL"}
"""Codes after which the same request may succeed; no other request is repeated."""
STOPPING = {"UNAVAILABLE", "RESOURCE_EXHAUSTED"}
"""Of those, codes that would meet every other clip as well: the network or the service is down, or the quota is used up
for good."""
FORBIDDEN = {"PERMISSION_DENIED", "UNAUTHENTICATED"}
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0
"""Before the second request, and before later ones, which wait twice as long each; a random half of it is left out."""
REQUEST_S = 90.0
"""How long one request may take: the service answers in less time than the piece lasts."""

CREDENTIALS = (
    "set GOOGLE_APPLICATION_CREDENTIALS to the key file of a service account, or run `gcloud auth application-default "
    "login`; or leave google out: --set transcribe.engines=[given,whisper]"
)


class GoogleConfig(StageConfig):
    """How the service is asked. ``model`` alone changes answers."""

    model: str = Field(default="long", min_length=1)
    """The service's name for it: ``long``, ``short``, ``chirp_2`` ...; not every region and language has every one."""
    location: str = Field(default="global", pattern="^[a-z0-9-]+$")
    """Region that computes: ``global``, ``us-central1``, ``europe-west4`` ..."""
    project: str | None = None
    """Project that pays; None: that of the credentials, or of GOOGLE_CLOUD_PROJECT."""
    endpoint: str | None = None
    """Another address, ``host:port``. One on this machine (127.0.0.1, localhost) is spoken to without encryption,
    credentials or cost: a stand-in for the service."""
    price_per_minute: float | None = Field(default=None, ge=0)
    """As the service's price list has it, in any currency; ``extract plan`` then says the cost."""
    parallel: int = Field(default=4, ge=1, le=32)
    """Requests at once, for each clip."""
    deadline_s: float = Field(default=300.0, gt=0)
    """How long a piece is tried for, waits included."""

    def of_recipe(self) -> dict[str, Any]:
        return {"model": self.model}

    @property
    def on_this_machine(self) -> bool:
        """Whether ``endpoint`` is a stand-in."""
        return self.endpoint is not None and self.endpoint.rpartition(":")[0] in {"127.0.0.1", "localhost"}


class Connection:
    """A client, and the project that pays."""

    def __init__(self, client: "SpeechClient", project: str) -> None:
        self.client, self.project = client, project

    @classmethod
    def open(cls, config: GoogleConfig) -> "Connection":
        """Find credentials; nothing is sent yet.

        Raises:
            ServiceError: the package, the credentials or the project are missing; the message says what to set, and
                holds nothing of a credential.
        """
        try:
            import grpc
            from google.api_core.client_options import ClientOptions
            from google.auth import default
            from google.auth.exceptions import GoogleAuthError
            from google.cloud.speech_v2 import SpeechClient
            from google.cloud.speech_v2.services.speech.transports import SpeechGrpcTransport
        except ImportError as error:
            raise ServiceError(f"engine google needs {error.name}: pip install 'au-fusion[google]'") from error
        if config.on_this_machine:
            channel = grpc.insecure_channel(config.endpoint)
            return cls(SpeechClient(transport=SpeechGrpcTransport(channel=channel)), config.project or "stand-in")
        try:
            credentials, project = default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
        except (GoogleAuthError, OSError, ValueError) as error:
            raise ServiceError(f"engine google has no credentials ({type(error).__name__}): {CREDENTIALS}") from None
        payer = config.project or project
        if not payer:
            raise ServiceError(
                "engine google knows no project that pays: set GOOGLE_CLOUD_PROJECT, or --set "
                "transcribe.google.project=ID"
            )
        address = "speech.googleapis.com" if config.location == "global" else f"{config.location}-speech.googleapis.com"
        options = ClientOptions(api_endpoint=config.endpoint or address)
        return cls(SpeechClient(credentials=credentials, client_options=options), payer)


class Google:
    """The service as an ``Engine``: one request per piece; every answer is kept before the next step is taken.

    Args:
        language: BCP-47 (``en-US``), as the service lists them.
        answers: kept ones are taken without asking, whoever asked.
        connection: None: nothing may be sent, and a piece without a kept answer is an error.
    """

    name = "google"
    max_piece_s = MAX_PIECE_S

    def __init__(self, config: GoogleConfig, language: str, answers: Answers, connection: Connection | None) -> None:
        self._config, self._language = config, language
        self._answers, self._connection = answers, connection

    def describe(self) -> dict[str, Any]:
        """See ``Engine``."""
        try:
            version = f"v2, google-cloud-speech {metadata.version('google-cloud-speech')}"
        except metadata.PackageNotFoundError:  # kept answers are read without it
            version = "v2"
        return {"engine": self.name, "version": version, "model": self._config.model, "language": self._language}

    def recognise(self, pieces: "Sequence[Tensor]") -> list[Heard]:
        """See ``Engine``.

        Raises:
            ClipError: ``service_refused``: the service does not take this sound; ``service_failed``: it fails at it.
            ServiceError: it would fail at every other clip as well: credentials, quota, network.
        """
        stopped = threading.Event()
        with ThreadPoolExecutor(self._config.parallel, thread_name_prefix="google") as pool:
            asked = [pool.submit(self._answer, piece, stopped) for piece in pieces]
        failed = [error for one in asked if (error := one.exception()) is not None]
        if failed:  # what stops the run comes first, and what gave up because of another's failure last
            raise min(failed, key=lambda error: (not isinstance(error, ServiceError), isinstance(error, _GaveUpError)))
        return [heard_of(one.result()) for one in asked]

    def is_kept(self, piece: "Tensor") -> bool:
        """Whether the piece's answer is there, so that nothing is sent or paid for."""
        return self._answers.get(self._key(_pcm(piece))) is not None

    def _answer(self, piece: "Tensor", stopped: threading.Event) -> Mapping[str, Any]:
        if stopped.is_set():
            raise _GaveUpError
        sound = _pcm(piece)
        try:
            kept = self._answers.get_or_ask(self._key(sound), lambda: self._asked(sound, stopped))
        except BaseException:
            stopped.set()  # nothing more is sent of a clip that fails
            raise
        response: Mapping[str, Any] = kept["response"]
        return response

    def _identity(self) -> dict[str, Any]:
        """All that changes an answer, beside the sound."""
        asked = {"engine": self.name, "api": "v2", "hz": HZ, "features": ["word_time_offsets"]}
        return {**asked, "model": self._config.model, "language": self._language}

    def _key(self, sound: bytes) -> str:
        return hashlib.sha256(json.dumps(self._identity(), sort_keys=True).encode() + b"\0" + sound).hexdigest()

    def _asked(self, sound: bytes, stopped: threading.Event) -> dict[str, Any]:
        """Ask the service, and again where that may help, until ``deadline_s``."""
        if self._connection is None:
            raise ServiceError(
                "engine google: --offline, and the answer for a piece of sound is not among those kept; run without it"
            )
        from google.api_core.exceptions import GoogleAPICallError

        until, pause_s = time.monotonic() + self._config.deadline_s, FIRST_WAIT_S
        while True:
            try:
                return {"asked": self._identity(), "response": self._sent(self._connection, sound, until)}
            except GoogleAPICallError as error:
                code = error.grpc_status_code.name if error.grpc_status_code else "UNKNOWN"
                waits_s = pause_s * random.uniform(0.5, 1)
                if code not in RETRIED or "metadata from plugin" in str(error.message):  # credentials, by gRPC's words
                    raise _permanent(code, error) from None
                if time.monotonic() + waits_s > until:
                    raise _given_up(code, error, self._config.deadline_s) from None
                if stopped.wait(waits_s):
                    raise _GaveUpError from None
                pause_s = min(2 * pause_s, LONGEST_WAIT_S)

    def _sent(self, connection: Connection, sound: bytes, until: float) -> dict[str, Any]:
        """One request; the service's answer as plain values."""
        from google.cloud.speech_v2.types import cloud_speech as types

        request = types.RecognizeRequest(
            recognizer=f"projects/{connection.project}/locations/{self._config.location}/recognizers/_",
            config=types.RecognitionConfig(
                explicit_decoding_config=types.ExplicitDecodingConfig(
                    encoding=types.ExplicitDecodingConfig.AudioEncoding.LINEAR16,
                    sample_rate_hertz=HZ,
                    audio_channel_count=1,
                ),
                model=self._config.model,
                language_codes=[self._language],
                features=types.RecognitionFeatures(enable_word_time_offsets=True),
            ),
            content=sound,
        )
        timeout_s = min(REQUEST_S, max(until - time.monotonic(), 1.0))
        # Its own way of trying again would hide from ours what was sent.
        response = connection.client.recognize(request=request, retry=None, timeout=timeout_s)
        written = types.RecognizeResponse.to_json(response, preserving_proto_field_name=True, indent=None)
        plain: dict[str, Any] = json.loads(written)
        return plain


class _GaveUpError(Exception):
    """Another piece of the same clip failed for good."""


def _permanent(code: str, error: Exception) -> ClipError | ServiceError:
    if code in FORBIDDEN or code in RETRIED:
        return ServiceError(f"engine google: the service refuses the credentials ({code}): {CREDENTIALS}")
    return ClipError("service_refused", f"engine google: the service answers {code}: {_said(error)}")


def _given_up(code: str, error: Exception, deadline_s: float) -> ClipError | ServiceError:
    tried = f"engine google: {code} for {deadline_s:g} s: {_said(error)}"
    if code not in STOPPING:
        return ClipError("service_failed", tried)
    if code == "RESOURCE_EXHAUSTED":
        remedy = "raise the project's quota for Speech-to-Text or wait until it is renewed"
    else:
        remedy = "is there a network?"
    return ServiceError(f"{tried}; {remedy}. What was answered is kept: run the same command to continue")


def _said(error: Exception) -> str:
    text = str(getattr(error, "message", error)).strip()
    return (text.splitlines() or ["no reason given"])[0][:300]


def _pcm(piece: "Tensor") -> bytes:
    """16-bit samples, little-endian."""
    return bytes((piece.clamp(-1, 1) * 32767).round().short().numpy().astype("<i2").tobytes())


def billed_s(samples: int) -> int:
    """Seconds of a request of so many samples on the bill: each is rounded up to a whole second."""
    return math.ceil(samples / HZ)


def heard_of(response: Mapping[str, Any]) -> Heard:
    """Words of an answer (``RecognizeResponse`` as JSON), the first alternative of each result.

    A result whose words have no times (some models give none) shares the time since the result before by letters;
    ``spread_words`` counts such words.
    """
    words: list[Word] = []
    language, spread, before_s = None, 0, 0.0
    for result in response.get("results", []):
        alternatives = result.get("alternatives") or [{}]
        end_s = _seconds(result.get("result_end_offset"))
        listed = alternatives[0].get("words") or []
        if any("end_offset" in word for word in listed):
            for word in listed:
                words.append(Word(word["word"], _seconds(word.get("start_offset")), _seconds(word.get("end_offset"))))
        else:
            texts = str(alternatives[0].get("transcript", "")).split()
            words += _shared(texts, before_s, max(end_s, before_s))
            spread += len(texts)
        language = language or result.get("language_code") or None
        before_s = max(before_s, end_s)
    return Heard(tuple(words), language, {"spread_words": spread} if spread else {})


def _shared(texts: Sequence[str], start_s: float, end_s: float) -> list[Word]:
    letters = sum(map(len, texts))
    words, before = [], 0
    for text in texts:
        first, last = ((start_s + (end_s - start_s) * count / letters) for count in (before, before + len(text)))
        words.append(Word(text, first, last))
        before += len(text)
    return words


def _seconds(offset: str | None) -> float:
    """Of a duration as protocol buffers write it, ``1.300s``; absent is 0."""
    return float(offset.removesuffix("s")) if offset else 0.0
