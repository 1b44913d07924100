"""Keeps one connection to the daemon for as long as somebody wants one."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from transcribed.client._answers import AnyAnswer
from transcribed.client._connection import Connection, Unreachable
from transcribed.wire import Welcome

SETTLED = 30.0
"""Seconds after which a connection that breaks is not held against the daemon."""


Dial = Callable[[], Coroutine[Any, Any, tuple[Connection, Welcome]]]


class Owner(Protocol):
    """Whose link it is."""

    def connected(self, welcome: Welcome) -> None:
        """There is a new connection."""

    def received(self, answer: AnyAnswer) -> None:
        """An answer came."""

    def unreadable(self, ref: str) -> None:
        """The answer to a request makes no sense."""

    def broke(self, connection: Connection, reason: Unreachable, settled: bool) -> None:
        """The connection broke, after :data:`SETTLED` or not."""

    def gave_up(self, reason: Exception) -> None:
        """There is no connection to be had; the next :meth:`Link.want` begins anew."""


class Link:
    """At most one welcomed connection, and the attempts at the next one.

    :ivar connection: the present one; None while there is none.
    :ivar welcome: what the daemon said last; None before it ever did.
    :param dial: makes a connection, or raises.
    :param allowed: of (attempts before any welcome, attempts after).
    :param policy: seconds to wait after so many failures in a row.
    """

    _log = Logger()

    def __init__(
        self,
        owner: Owner,
        dial: Dial,
        clock: Any,
        allowed: tuple[int, int],
        policy: Callable[[int], float],
    ) -> None:
        self._owner = owner
        self._dial = dial
        self._clock = clock
        self._first_attempts, self._attempts = allowed
        self._policy = policy
        self._reaching: Deferred[tuple[Connection, Welcome]] | None = None
        self._since = 0.0
        self._failures = 0
        self.connection: Connection | None = None
        self.welcome: Welcome | None = None

    def want(self) -> None:
        """Begins to connect, unless there is a connection or will be one."""
        if self._reaching is None and self.connection is None:
            self._reaching = Deferred.fromCoroutine(self._keep_trying())
            self._reaching.addCallbacks(self._succeeded, self._failed)

    def answered(self) -> None:
        """A request was answered: the daemon is well."""
        self._failures = 0

    def cut(self) -> None:
        """Drops the connection on purpose, which is no failure."""
        if (connection := self.connection) is not None:
            connection.abort()
            self._lost(connection, Unreachable("the connection was dropped"), on_purpose=True)

    def close(self, at_once: bool) -> Deferred[None]:
        """Ends it all; fires when the connection is gone.

        :param at_once: do not wait for what is in the connection's buffer.
        """
        reaching, self._reaching = self._reaching, None
        if reaching is not None:
            reaching.cancel()
        connection, self.connection = self.connection, None
        if connection is None:
            return succeed(None)
        if at_once:
            connection.abort()
        else:
            connection.sendClose(1000)
        ended: Deferred[None] = Deferred()
        connection.ended.addCallback(ended.callback)
        return ended

    async def _keep_trying(self) -> tuple[Connection, Welcome]:
        while True:
            if self._failures:
                await deferLater(self._clock, self._policy(self._failures), lambda: None)
            try:
                return await self._dial()
            except Unreachable as e:
                self._failures += 1
                allowed = self._first_attempts if self.welcome is None else self._attempts
                if self._failures >= allowed:
                    raise
                self._log.debug("not connected: {why}", why=str(e))

    def _succeeded(self, result: tuple[Connection, Welcome]) -> None:
        self._reaching = None
        connection, self.welcome = result
        self.connection = connection
        self._since = self._clock.seconds()
        connection.received = self._owner.received
        connection.unread = self._owner.unreadable
        connection.lost = lambda reason: self._lost(connection, reason)
        self._owner.connected(self.welcome)

    def _failed(self, failure: Failure) -> None:
        if not isinstance(failure.value, CancelledError):
            self._reaching = None
            self._failures = 0
            assert isinstance(failure.value, Exception)
            self._owner.gave_up(failure.value)

    def _lost(self, connection: Connection, reason: Unreachable, on_purpose: bool = False) -> None:
        # What a connection that was dropped has to say concerns nobody any more.
        connection.received = lambda _: None
        connection.unread = lambda _: None
        connection.lost = lambda _: None
        if connection is not self.connection:
            return
        self.connection = None
        settled = self._clock.seconds() - self._since >= SETTLED
        if settled:
            self._failures = 0
        elif not on_purpose:
            self._failures += 1
        if self._failures >= self._attempts:
            self._failures = 0
            self._owner.gave_up(reason)
        else:
            self._owner.broke(connection, reason, settled)
