"""Memory shared by all clips in flight, in bytes: whoever needs some waits for a turn."""

from collections import deque

from extract.running.tasks import Loop, Promise, Scope, StoppedError


class Hold:
    """Bytes that were granted, until ``release``."""

    def __init__(self, budget: "Budget", amount: int) -> None:
        self._budget, self.amount = budget, amount

    def shrink(self, amount: int) -> None:
        """Give back all but ``amount``."""
        self._budget.give_back(max(self.amount - amount, 0))
        self.amount = min(self.amount, amount)

    def release(self) -> None:
        """Give everything back. A second call does nothing."""
        self.shrink(0)


class Budget:
    """So much may be held at once. First come, first served: a large request is not overtaken for ever.

    A holder must not ask for more, so that nobody waits for one who waits. A request for more than there is gets the
    whole, alone. Whoever reserves under a scope adds ``wake`` to its ``on_close``.
    """

    def __init__(self, loop: Loop, total: int) -> None:
        self.total = total
        self.held = 0
        self.most = 0
        """The most that was held at once."""
        self._loop = loop
        self._asking: deque[tuple[int, Scope, Promise[Hold]]] = deque()

    async def reserve(self, amount: int, scope: Scope) -> Hold:
        """Wait for ``amount``. Raises StoppedError when ``scope`` ends meanwhile."""
        promise: Promise[Hold] = self._loop.promise()
        self._asking.append((min(amount, self.total), scope, promise))
        self._grant()
        return await promise

    def give_back(self, amount: int) -> None:
        """Of a Hold."""
        self.held -= amount
        self._grant()

    def wake(self) -> None:
        """A scope was closed: those of it who wait must hear of it."""
        self._grant()

    def _grant(self) -> None:
        for ended in [entry for entry in self._asking if entry[1].closed]:
            self._asking.remove(ended)
            self._loop.fail(ended[2], StoppedError())
        while self._asking and (self.held + self._asking[0][0] <= self.total or self.held <= 0):
            amount, _, promise = self._asking.popleft()
            self.held += amount
            self.most = max(self.most, self.held)
            self._loop.keep(promise, Hold(self, amount))
