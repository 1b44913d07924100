"""One connection of a client, which may break at any moment."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.endpoints import clientFromString
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Factory

from tests.rawclient import BINARY, CLOSE, PING, PONG, TEXT, RawClient, frame

PATIENCE = 90.0
"""Seconds that an answer is waited for: longer than it takes to find out that a child hangs."""
CHUNK = 16 * 1024


class Lost(Exception):
    """The connection broke, or could not be made."""


class Line:
    """A connection that has said hello.

    :ivar events: what came unasked.
    """

    def __init__(self, reactor: Any, client: RawClient) -> None:
        self.events: list[dict[str, Any]] = []
        self._reactor = reactor
        self._client = client
        self._number = 0

    @classmethod
    async def open(cls, reactor: Any, endpoint: str, party: str) -> Line:
        """Connect and say hello; raises :exc:`Lost`."""
        line = cls(reactor, await handshaken(reactor, endpoint))
        answer = await line.ask(type="hello", party=party)
        if answer["type"] != "welcome":
            raise Lost(answer.get("code", ""))
        return line

    async def ask(self, **message: Any) -> dict[str, Any]:
        """The answer to a request; raises :exc:`Lost`."""
        return await self.answer(self.say(message))

    def say(self, *messages: dict[str, Any] | bytes) -> str:
        """Send messages and audio that have one answer; the reference that it will have."""
        self._number += 1
        ref = str(self._number)
        for message in messages:
            if isinstance(message, bytes):
                for start in range(0, len(message), CHUNK):
                    self._client.raw(frame(BINARY, message[start : start + CHUNK]))
            else:
                self._client.say(**message, ref=ref)
        return ref

    async def answer(self, ref: str) -> dict[str, Any]:
        """The answer to the request with this reference; raises :exc:`Lost`."""
        while True:
            waiting: Deferred[tuple[int, bytes] | None] = self._client.frames.get()
            waiting.addTimeout(PATIENCE, self._reactor)
            try:
                came = await waiting
            except (TimeoutError, CancelledError):
                self.cut()
                raise Lost("no answer") from None
            if came is None or came[0] == CLOSE:
                self.cut()
                raise Lost("closed")
            if came[0] == PING:
                self._client.raw(frame(PONG, came[1]))
            elif came[0] == TEXT:
                answer: dict[str, Any] = json.loads(came[1])
                if answer["type"] == "event":
                    self.events.append(answer)
                if answer.get("ref") == ref:
                    return answer

    def cut(self) -> None:
        """Break the connection."""
        self._client.transport.abortConnection()


async def handshaken(reactor: Any, endpoint: str) -> RawClient:
    """A websocket without a hello; raises :exc:`Lost`."""
    try:
        client: RawClient = await clientFromString(reactor, endpoint).connect(
            Factory.forProtocol(RawClient)
        )
    except (ConnectError, OSError) as e:
        raise Lost(type(e).__name__) from None
    # The raw client's own does not fire where the connection breaks before it is answered.
    opened: Deferred[None] = Deferred()

    for moment in (client.opened, client.lost):
        moment.addBoth(_fire, opened)
    client.handshake("/ws", "transcribed.v1", None)
    try:
        await opened.addTimeout(PATIENCE, reactor)
    except TimeoutError:
        client.transport.abortConnection()
        raise Lost("no answer to the handshake") from None
    if " 101 " not in client.status:
        client.transport.abortConnection()
        raise Lost(client.status or "closed")
    return client


def _fire(result: object, first: Deferred[None]) -> object:
    if not first.called:
        first.callback(None)
    return result
