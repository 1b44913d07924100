"""Many clients of one kind in a process of their own: ``python -m benchmarks.crowd`` is one.

Its parent (:class:`benchmarks.stage.Clients`) writes an :class:`Order` on its stdin. It writes an
empty line when all of them have begun, and when its stdin ends a :class:`Report`. What the daemon
ends comes again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString
from twisted.internet.interfaces import IHalfCloseableProtocol, IPullProducer
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.stdio import StandardIO
from twisted.internet.task import LoopingCall, react
from twisted.python.failure import Failure
from zope.interface import implementer

from benchmarks.lightclient import LightClient, audio_frames, parse, request
from benchmarks.stage import Order, Report, allow_descriptors
from tests.speech import RATE, recording

SPEECH = 60
"""Seconds of speech that is said over and over."""
SHORTEST, LONGEST = 10.0, 60.0
"""Seconds of a message, from and to."""
AT_ONCE = 100
"""So many connections are being opened at any moment."""
RETRY = 0.5
"""Seconds until one that was refused or dropped comes again."""
BATCH = 64 * 1024
"""So many bytes of requests are sent at once."""
TICK = 0.01
"""Seconds between the moments at which uploads send: each has its own, in turn."""
EVENTS = 10
"""So many messages a second change for those who have stopped reading."""
KEPT = 20
"""So many messages later one is cancelled."""


class Member(LightClient):
    """One of the crowd."""

    def __init__(self, crowd: Crowd, number: int) -> None:
        super().__init__(f"{crowd.order.kind}-{number}")
        self.crowd = crowd
        self.number = number

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The daemon does not want it any more, as clients end nothing."""
        self.open = False
        self.crowd.lost(self)


class Idler(Member):
    """Subscribes, and does nothing."""

    def heard(self, payload: bytes) -> None:
        """It was let in, or has subscribed."""
        kind = parse(payload).type
        if kind == "welcome":
            self.say(type="subscribe")
        elif kind == "subscribed":
            self.crowd.begun(self)


class Uploader(Member):
    """Says one message after the other; cancels each once it is accepted."""

    def __init__(self, crowd: Crowd, number: int) -> None:
        super().__init__(crowd, number)
        self._message = 0
        self._left = 0
        self._at = 0
        self._ended = 0.0

    def heard(self, payload: bytes) -> None:
        """The message was accepted, cancelled, or refused."""
        crowd, answer = self.crowd, parse(payload)
        if answer.type == "welcome":
            crowd.begun(self)
            # Not all in the same step: their messages do not begin at once, either.
            self._begin(crowd.rng.uniform(0, LONGEST))
        elif answer.type == "accepted":
            crowd.report.accepted.append(time.monotonic() - self._ended)
            self.say(type="cancel", id=answer.id)
        elif answer.type == "cancelled":
            self._begin(crowd.rng.uniform(SHORTEST, LONGEST))
        elif answer.type == "error":
            self._left = 0
            crowd.refused(answer.code)
            crowd.reactor.callLater(RETRY, self._begin, LONGEST)

    def _begin(self, seconds: float) -> None:
        if self.open:
            self._message += 1
            self._left = max(1, round(seconds / self.crowd.order.frame))
            self._at = self.crowd.rng.randrange(len(self.crowd.frames))
            self.say(type="submit", id=f"m{self._message}", ttl=600)

    def due(self) -> None:
        """It is time to send a frame."""
        if not self._left:
            return
        self._at = (self._at + 1) % len(self.crowd.frames)
        self.write(self.crowd.frames[self._at])
        self._left -= 1
        if not self._left:
            self._ended = time.monotonic()
            self.say(type="end", id=f"m{self._message}")


@implementer(IPullProducer)
class _Asker(Member):
    """Asks as fast as the daemon reads.

    :ivar requests: what it asks, again and again.
    :ivar reading: whether it reads the answers.
    """

    requests = b""
    reading = False

    def ask(self) -> None:
        """Begin."""
        self.crowd.begun(self)
        if not self.reading:
            self.transport.pauseProducing()
        self.transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        """All was sent: send more."""
        self.write(self.requests)

    def stopProducing(self) -> None:
        """The connection is gone."""


class Staller(_Asker):
    """Subscribes, asks for a long text all the time, and does not read."""

    def __init__(self, crowd: Crowd, number: int) -> None:
        super().__init__(crowd, number)
        self.party = Feeder.receiver
        self.requests = request(type="fetch", owner=Feeder.owner, id="long", wait=False) * 50

    def heard(self, payload: bytes) -> None:
        """The last thing that it hears."""
        kind = parse(payload).type
        if kind == "welcome":
            self.say(type="subscribe")
        elif kind == "subscribed":
            self.ask()


class Flooder(_Asker):
    """Asks how a message of its own stands."""

    def __init__(self, crowd: Crowd, number: int) -> None:
        super().__init__(crowd, number)
        self.reading = crowd.order.reading
        one = request(type="status", id="m")
        self.requests = one * (BATCH // len(one))

    def heard(self, payload: bytes) -> None:
        """First that its message was accepted, then how it stands."""
        self.crowd.report.answers += 1
        if b'"status"' in payload:
            return
        answer = parse(payload)
        if answer.type == "welcome":
            self.say(type="submit", id="m")
            self.write(self.crowd.frames[0])
            self.say(type="end", id="m")
        elif answer.type == "accepted":
            self.ask()
        else:
            self.crowd.refused(answer.code)


class Feeder(Member):
    """Sends a long message, and once its text is there, small ones all the time."""

    owner, receiver = "feeder", "stalled"

    def __init__(self, crowd: Crowd, number: int) -> None:
        super().__init__(crowd, number)
        self.party = self.owner
        self._message = 0
        self._feeding = LoopingCall(self._feed)
        self._feeding.clock = crowd.reactor

    def heard(self, payload: bytes) -> None:
        """Its long message was accepted, or its text is there."""
        answer = parse(payload)
        if answer.type == "welcome":
            self._submit("long", self.crowd.order.text_seconds)
        elif answer.type == "accepted" and answer.id == "long":
            self.say(type="fetch", id="long")
        elif answer.type == "transcript":
            self.crowd.begun(self)
            self._feeding.start(1 / EVENTS)
        elif answer.type == "error":
            self.crowd.refused(answer.code)

    def _submit(self, id: str, seconds: float) -> None:
        frames = self.crowd.frames
        self.say(type="submit", id=id, receiver=self.receiver)
        for number in range(max(1, round(seconds / self.crowd.order.frame))):
            self.write(frames[number % len(frames)])
        self.say(type="end", id=id)

    def _feed(self) -> None:
        self._message += 1
        self._submit(f"e{self._message}", self.crowd.order.frame)
        if self._message > KEPT:
            self.say(type="cancel", id=f"e{self._message - KEPT}")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It is gone."""
        if self._feeding.running:
            self._feeding.stop()
        super().connectionLost(reason)


KINDS: dict[str, type[Member]] = {
    "idle": Idler,
    "uploading": Uploader,
    "stalled": Staller,
    "flooding": Flooder,
}


class Crowd:
    """All of them.

    :param begun: is called when all have begun.
    :ivar frames: speech, as binary frames.
    """

    def __init__(self, reactor: Any, order: Order, begun: Callable[[], None]) -> None:
        self.reactor = reactor
        self.order = order
        self.report = Report()
        self.rng = random.Random(1)
        speech = recording(SPEECH)[0][: SPEECH * RATE].astype("<i2").tobytes()
        self.frames = audio_frames(speech, int(order.frame * RATE) * 2)
        self._endpoint = clientFromString(reactor, order.endpoint)
        self._kind = KINDS[order.kind]
        self._when_begun = begun
        self._waiting = list(range(order.count, 0, -1))
        self._begun: set[int] = set()
        self._over = False
        self._slots: list[list[Member]] = [[] for _ in range(max(1, round(order.frame / TICK)))]
        self._slot = 0
        self._ticking = LoopingCall.withCount(self._tick)
        self._ticking.clock = reactor

    def start(self) -> None:
        """Come."""
        if self._kind is Staller:
            self._open(0)
        else:
            self._open_all()
        if self._kind is Uploader:
            self._ticking.start(TICK)

    def stop(self) -> Report:
        """How it was; nobody comes any more."""
        self._over = True
        if self._ticking.running:
            self._ticking.stop()
        return self.report

    def _open_all(self) -> None:
        for _ in range(min(AT_ONCE, len(self._waiting))):
            self._open(self._waiting.pop())

    def _open(self, number: int) -> None:
        if self._over:
            return
        # The first of those who stall is who sends them something.
        member = self._kind(self, number) if number else Feeder(self, number)

        def unreachable(_: Failure) -> None:
            self.refused("unreachable")
            self.reactor.callLater(RETRY, self._open, number)

        connected = self._endpoint.connect(Factory.forProtocol(lambda: member))
        connected.addErrback(unreachable)

    def begun(self, member: Member) -> None:
        """One does what it is there for."""
        self._slots[member.number % len(self._slots)].append(member)
        if member.number in self._begun:
            return
        self._begun.add(member.number)
        if not member.number:
            self._open_all()
        elif self._waiting:
            self._open(self._waiting.pop())
        elif len(self._begun - {0}) == self.order.count:
            self._when_begun()

    def lost(self, member: Member) -> None:
        """One is gone."""
        slot = self._slots[member.number % len(self._slots)]
        if member in slot:
            slot.remove(member)
        if not self._over:
            self.report.lost += 1
            self.reactor.callLater(RETRY, self._open, member.number)

    def refused(self, code: str) -> None:
        """One was told that it cannot have what it wants."""
        self.report.refused[code] = self.report.refused.get(code, 0) + 1

    def _tick(self, count: int) -> None:
        # More than one where this process was late.
        for _ in range(count):
            self._slot = (self._slot + 1) % len(self._slots)
            for member in self._slots[self._slot]:
                if isinstance(member, Uploader):
                    member.due()


@implementer(IHalfCloseableProtocol)
class _Parent(Protocol):
    """The parent's end."""

    transport: Any

    def __init__(self, reactor: Any) -> None:
        self.over: Deferred[None] = Deferred()
        self._reactor = reactor
        self._crowd: Crowd | None = None
        self._line = b""

    def dataReceived(self, data: bytes) -> None:
        """The order comes."""
        self._line += data
        if self._crowd is None and self._line.endswith(b"\n"):
            order = msgspec.json.decode(self._line, type=Order)
            self._crowd = Crowd(self._reactor, order, lambda: self.transport.write(b"\n"))
            self._crowd.start()

    def readConnectionLost(self) -> None:
        """It is over."""
        if self._crowd is not None:
            self.transport.write(msgspec.json.encode(self._crowd.stop()) + b"\n")
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """The parent is gone."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """All is said."""
        self.over.callback(None)


def _work(reactor: Any) -> Deferred[None]:
    parent = _Parent(reactor)
    StandardIO(parent, reactor=reactor)
    return parent.over


if __name__ == "__main__":
    allow_descriptors()
    react(_work)
