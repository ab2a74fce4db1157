"""A stand-in for Google's Speech-to-Text on this machine: the service's own messages over gRPC, and a count."""

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
from google.cloud.speech_v2.types import cloud_speech as types

Reply = Callable[[types.RecognizeRequest], types.RecognizeResponse]


class Refusal(Exception):
    """A reply that is an error."""

    def __init__(self, code: grpc.StatusCode, message: str = "so says the stand-in") -> None:
        super().__init__(message)
        self.code, self.message = code, message


def response(*words: tuple[str, float, float], language: str = "en-us") -> types.RecognizeResponse:
    """(text, start_s, end_s) as the service says it; nothing for no words."""
    infos = [
        types.WordInfo(word=text, start_offset=duration(start_s), end_offset=duration(end_s))
        for text, start_s, end_s in words
    ]
    if not infos:
        return types.RecognizeResponse()
    alternative = types.SpeechRecognitionAlternative(words=infos, transcript=" ".join(text for text, _, _ in words))
    return types.RecognizeResponse(
        results=[types.SpeechRecognitionResult(alternatives=[alternative], language_code=language)]
    )


def duration(seconds: float) -> dict[str, int]:
    whole = int(seconds // 1)
    return {"seconds": whole, "nanos": round((seconds - whole) * 1e9)}


def word_of(request: types.RecognizeRequest) -> str:
    """What a stand-in hears: a name for the sound."""
    return "w" + hashlib.sha256(request.content).hexdigest()[:8]


def hears_its_name(request: types.RecognizeRequest) -> types.RecognizeResponse:
    return response((word_of(request), 0.1, len(request.content) / 32_000 - 0.1))


def refusing(code: str, message: str = "so says the stand-in") -> Reply:
    """Answers everything with this code."""

    def reply(_: types.RecognizeRequest) -> types.RecognizeResponse:
        raise Refusal(grpc.StatusCode[code], message)

    return reply


class Service:
    """The server. ``reply`` may be changed at any time; ``asked`` is everything that was ever asked."""

    def __init__(self, reply: Reply = hears_its_name, port: int = 0) -> None:
        self.reply = reply
        self.asked: list[types.RecognizeRequest] = []
        self.answered: list[str] = []
        """``word_of`` of requests whose reply was handed to gRPC."""
        self._lock = threading.Lock()
        self._server = grpc.server(ThreadPoolExecutor(16))
        method = grpc.unary_unary_rpc_method_handler(
            self._recognize,
            request_deserializer=types.RecognizeRequest.deserialize,
            response_serializer=types.RecognizeResponse.serialize,
        )
        self._server.add_generic_rpc_handlers((
            grpc.method_handlers_generic_handler("google.cloud.speech.v2.Speech", {"Recognize": method}),
        ))
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self._secure_port = self._server.add_secure_port("127.0.0.1:0", grpc.local_server_credentials())
        self._server.start()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def secure_endpoint(self) -> str:
        """Another port of the same server, on which clients show credentials."""
        return f"127.0.0.1:{self._secure_port}"

    def _recognize(self, request, context):
        with self._lock:
            self.asked.append(request)
        try:
            answer = self.reply(request)
        except Refusal as refusal:
            context.abort(refusal.code, refusal.message)
        with self._lock:
            self.answered.append(word_of(request))
        return answer

    def stop(self) -> None:
        self._server.stop(None).wait()

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
