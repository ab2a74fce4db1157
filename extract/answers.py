"""Answers of paid or remote services, kept for good: no store, run or clip asks for the same thing twice."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from extract.errors import MachineError
from extract.files import LocalFiles

FOLDER = "answers"
"""Below the cache folder."""


class Answers:
    """JSON answers by the sha256 of what was asked, in the user's cache folder; every store shares them.

    An answer is on the disk, whole, before anybody uses it. Several threads and processes may ask at once: who asks
    for the same thing waits for the first one's answer.
    """

    def __init__(self, cache: Path) -> None:
        self._files = LocalFiles(cache / FOLDER)

    def get(self, key: str) -> dict[str, Any] | None:
        """The kept answer; None if there is none.

        Args:
            key: sha256, 64 hexadecimal digits.

        Raises:
            MachineError: it cannot be read. It is not asked for again unsaid: that may cost money.
        """
        name = _name(key)
        content = self._files.read(name)
        if content is None:
            return None
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            path = self._files.path(name)
            raise MachineError(f"{path}: a kept answer is damaged; delete it to ask the service (and pay) again")
        return answer

    def get_or_ask(self, key: str, ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The kept answer, else what ``ask`` gives, which is kept: fsynced and renamed before this returns.

        Raises:
            MachineError: as ``get``, or the disk is full.
        """
        answer = self.get(key)
        if answer is not None:
            return answer
        with self._files.locked(key[:2]):
            answer = self.get(key)  # another thread or process may have asked meanwhile
            if answer is None:
                answer = ask()
                self._files.write(_name(key), json.dumps(answer, ensure_ascii=False).encode())
        return answer


def _name(key: str) -> str:
    return f"{key[:2]}/{key}.json"
