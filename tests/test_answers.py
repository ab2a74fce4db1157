"""Kept answers: whole or not there, asked for once, whoever asks."""

import hashlib
import threading
import time

import pytest

from extract.answers import Answers
from extract.errors import MachineError

KEY, OTHER = (hashlib.sha256(text).hexdigest() for text in (b"a", b"b"))


def never():
    raise AssertionError("asked again")


def test_an_answer_is_asked_for_once_and_outlives_the_process(tmp_path):
    asked = []
    assert Answers(tmp_path).get(KEY) is None
    answer = Answers(tmp_path).get_or_ask(KEY, lambda: asked.append(1) or {"words": ["ü", 1.5, None]})
    assert answer == {"words": ["ü", 1.5, None]}
    assert Answers(tmp_path).get_or_ask(KEY, never) == Answers(tmp_path).get(KEY) == answer
    assert asked == [1]
    assert Answers(tmp_path).get(OTHER) is None


def test_an_error_is_not_kept(tmp_path):
    answers = Answers(tmp_path)

    def fail():
        raise ValueError("the service is away")

    with pytest.raises(ValueError, match="the service is away"):
        answers.get_or_ask(KEY, fail)
    assert answers.get_or_ask(KEY, lambda: {"a": 1}) == {"a": 1}


def test_who_asks_for_the_same_waits_for_the_first_answer(tmp_path):
    """Sixteen threads, each with an object of its own, as processes have."""
    asked = []

    def ask():
        asked.append(1)
        time.sleep(0.05)
        return {"a": 1}

    found = []
    threads = [threading.Thread(target=lambda: found.append(Answers(tmp_path).get_or_ask(KEY, ask))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [{"a": 1}] * 16
    assert asked == [1]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff"])
def test_a_damaged_answer_is_not_paid_for_again_unsaid(tmp_path, content):
    answers = Answers(tmp_path)
    answers.get_or_ask(KEY, lambda: {"a": 1})
    (path,) = tmp_path.rglob("*.json")
    path.write_bytes(content)
    with pytest.raises(MachineError, match=rf"{path}: a kept answer is damaged; delete it to ask the service"):
        answers.get_or_ask(KEY, never)
