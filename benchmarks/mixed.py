"""A steady mixed load: clients that send messages, and some that do what clients do wrong."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.endpoints import clientFromString
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from benchmarks.bare import together
from tests.rawclient import BINARY, TEXT, RawClient, connect, frame, greet
from tests.speech import RATE, recording
from transcribed.client import Client, Transcript

PAIRS = 8
"""So many pairs write to each other."""
PAUSE = (0.2, 1.0)
"""Seconds, from and to, between two things that a client does."""
LENGTH = (1, 6)
"""Seconds, from and to, of a message."""
CONVERSATION = 10
"""So many messages a pair exchanges before it connects anew."""
LONG, LONG_EVERY = 120, 60
"""Seconds of a long recording, and between two of them."""
TTL, SHORT_TTL = 60.0, 2.0
"""Seconds that a message is kept, and one that is to expire."""
SCRAPE = 5.0
"""Seconds between two looks at the metrics."""
_SPEECH = 60


class Mixed:
    """All clients.

    :param port: where the daemon is, on TCP of this machine.
    :ivar counts: how often what was done.
    :ivar failures: what went otherwise than it must.
    """

    def __init__(self, reactor: Any, port: int, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self._reactor = reactor
        self._url = f"ws://127.0.0.1:{port}/ws"
        self._endpoint = f"tcp:127.0.0.1:{port}"
        self._rng = random.Random(seed)
        self._speech = recording(_SPEECH)[0][: _SPEECH * RATE].astype("<i2").tobytes()
        self._over = False
        self._number = 0
        self._running: list[Deferred[None]] = []
        self._pausing: set[Deferred[None]] = set()

    def start(self) -> None:
        """Let them come."""
        jobs: list[Callable[[], Awaitable[None]]] = [self._pair] * PAIRS
        jobs += [self._cancel, self._break_off, self._babble, self._watch, self._long]
        jobs += [self._expire, self._scrape]
        self._running = [Deferred.fromCoroutine(self._repeat(job)) for job in jobs]

    async def stop(self) -> None:
        """Have each finish what it does, and leave."""
        self._over = True
        for pause in list(self._pausing):
            pause.cancel()
        await gatherResults(self._running)

    async def once(self) -> None:
        """All of it once, one after the other."""
        for job in (self._exchange_once, self._cancel, self._break_off, self._babble, self._watch):
            await job()
        await self._look()

    async def _repeat(self, job: Callable[[], Awaitable[None]]) -> None:
        while not self._over:
            try:
                await job()
            except Exception:
                self.failures.append(f"{job.__name__}: {Failure().getTraceback()}")
                await self._pause(1.0)

    async def _pause(self, seconds: float | None = None) -> None:
        if self._over:
            return
        if seconds is None:
            seconds = self._rng.uniform(*PAUSE)
        pause: Deferred[None] = deferLater(self._reactor, seconds)
        self._pausing.add(pause)
        try:
            await pause
        except CancelledError:
            if not self._over:
                raise
        finally:
            self._pausing.discard(pause)

    def _client(self) -> Client:
        self._number += 1
        return Client(self._url, f"party-{self._number}", reactor=self._reactor)

    def _audio(self, seconds: float | None = None) -> bytes:
        # Hardly one is as long as another, as in life: what is kept for each length grows.
        length = 2 * int(RATE * (seconds or self._rng.uniform(*LENGTH)))
        start = 2 * self._rng.randrange((len(self._speech) - length) // 2)
        return self._speech[start : start + length]

    # Those who behave

    async def _pair(self) -> None:
        """Two write to each other; both take each text, and ack it."""
        both = self._client(), self._client()
        parties = f"party-{self._number - 1}", f"party-{self._number}"
        for number in range(CONVERSATION):
            sides = (0, 1) if number % 2 else (1, 0)
            sender, receiver = (both[side] for side in sides)
            owner, other = (parties[side] for side in sides)
            await self._exchange(sender, receiver, owner, other, f"m{number}")
            await self._pause()
            if self._over:
                break
        for client in both:
            await client.close()
        self.counts["conversations"] += 1

    async def _exchange_once(self) -> None:
        sender, receiver = self._client(), self._client()
        parties = f"party-{self._number - 1}", f"party-{self._number}"
        await self._exchange(sender, receiver, *parties, "m")
        await sender.close()
        await receiver.close()

    async def _exchange(
        self, sender: Client, receiver: Client, owner: str, other: str, id: str
    ) -> None:
        await sender.submit(id, self._audio(), receiver=other, ttl=TTL)
        texts = await together([sender.fetch(id), receiver.fetch(id, owner=owner)])
        if not all(isinstance(text, Transcript) for text in texts):
            raise AssertionError("no text")
        await sender.ack(id)
        acked = await receiver.ack(id, owner=owner)
        if not acked.purged:
            raise AssertionError("both have the text, and it is still there")
        self.counts["messages"] += 1

    async def _long(self) -> None:
        """A long recording, in pieces as they come."""
        client = self._client()

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(LONG // 10):
                yield self._audio(10)
                await self._pause(0.05)

        await client.submit("long", pieces(), ttl=10 * TTL)
        await client.fetch("long")
        await client.ack("long")
        await client.close()
        self.counts["long recordings"] += 1
        await self._pause(LONG_EVERY)

    async def _watch(self) -> None:
        """Subscribes, waits for a text, and lets the connection break; then takes it."""
        raw = await greet(self._reactor, self._endpoint, f"watcher-{self._number}")
        client = Client(self._url, f"watcher-{self._number}", reactor=self._reactor)
        self._number += 1
        await raw.ask(type="subscribe")
        await client.submit("m", self._audio(), ttl=TTL)
        raw.say(type="fetch", id="m")
        await self._pause(self._rng.uniform(0.0, 0.2))
        raw.transport.abortConnection()
        await raw.lost
        await client.fetch("m")
        await client.ack("m")
        await client.close()
        self.counts["reconnects"] += 1
        await self._pause()

    async def _expire(self) -> None:
        """A message that nobody fetches."""
        client = self._client()
        await client.submit("m", self._audio(), ttl=SHORT_TTL)
        await client.close()
        self.counts["left to expire"] += 1
        await self._pause()

    async def _cancel(self) -> None:
        """A message that is cancelled: while it comes in, waits, is in work, or is there."""
        client = self._client()
        accepted = client.submit("m", self._audio(), ttl=TTL)
        if self._rng.random() < 0.3:
            await client.cancel("m")
            await accepted.addErrback(lambda _: None)
        else:
            await accepted
            await self._pause(self._rng.choice((0.0, 0.05, 0.5)))
            await client.cancel("m")
        await client.close()
        self.counts["cancelled"] += 1
        await self._pause()

    async def _scrape(self) -> None:
        """Looks at the metrics, as monitoring does."""
        await self._look()
        await self._pause(SCRAPE)

    async def _look(self) -> None:
        for path in ("/metrics", "/health", "/ready"):
            page = _Page(path)
            await clientFromString(self._reactor, self._endpoint).connect(_factory(page))
            if not (await page.whole).startswith(b"HTTP/1.1 200"):
                raise AssertionError(f"no {path}")
        self.counts["pages"] += 1

    # Those who do not

    async def _break_off(self) -> None:
        """An upload whose connection breaks."""
        raw = await greet(self._reactor, self._endpoint, "breaker")
        raw.say(type="submit", id="m")
        raw.raw(frame(BINARY, self._audio()))
        await self._pause(self._rng.uniform(0.0, 0.2))
        raw.transport.abortConnection()
        await raw.lost
        self.counts["broken uploads"] += 1
        await self._pause()

    async def _babble(self) -> None:
        """What no client should send."""
        raw = await connect(self._reactor, self._endpoint)
        kind = self._rng.choice(("stranger", "binary", "nonsense", "much", "huge", "frame"))
        if kind != "stranger":
            await raw.ask(type="hello", party="babbler")
        if kind == "stranger":
            raw.say(type="list")
        elif kind == "binary":
            for _ in range(10):
                raw.raw(frame(BINARY, b"audio"))
        elif kind == "nonsense":
            for _ in range(10):
                raw.raw(frame(TEXT, self._rng.choice((b"{", b"[]", b'{"type":"x"}', b"\xff"))))
        elif kind == "much":
            raw.raw(b"".join(frame(TEXT, b'{"type":1}') for _ in range(100)))
        elif kind == "huge":
            raw.raw(frame(TEXT, b" " * 100_000))
        else:
            raw.raw(frame(3, b"no such opcode"))
        await _closed(raw)
        self.counts["babblers"] += 1
        await self._pause()


def _factory(page: _Page) -> Factory:
    return Factory.forProtocol(lambda: page)


async def _closed(raw: RawClient) -> None:
    """All that is said until the connection is gone."""
    while await raw.frames.get() is not None:
        pass


class _Page(Protocol):
    """Asks for a page.

    :ivar whole: fires with the answer.
    """

    transport: Any

    def __init__(self, path: str) -> None:
        self.whole: Deferred[bytes] = Deferred()
        self._path = path
        self._data = b""

    def connectionMade(self) -> None:
        """Ask."""
        lines = f"GET {self._path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        self.transport.write(lines.encode())

    def dataReceived(self, data: bytes) -> None:
        """Some of the answer."""
        self._data += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """That was it."""
        self.whole.callback(self._data)
