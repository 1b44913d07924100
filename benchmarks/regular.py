"""A well-behaved client, which measures what it is answered while others are not."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.task import LoopingCall, deferLater
from twisted.python.failure import Failure

from benchmarks.lightclient import LightClient, audio_frames, parse
from tests.speech import RATE, recording

ASKS = 20
"""So many times a second it asks how its message stands."""
EXCHANGES = 1
"""So many times a second it sends a message of a second, on a new connection."""
PATIENCE = 30.0
"""Seconds that answers are waited for when no more questions are asked."""
_STEP = 0.05


class Lap:
    """What was asked in some span of time, whenever it was answered.

    Where a question would have been asked while the one before waited for its answer, it counts as
    if it had been, and had got the same answer (as G. Tene's HdrHistogram corrects for what he
    calls coordinated omission): so a daemon that is stuck is measured as often as one that is not.

    :ivar status: seconds from each question to its answer.
    :ivar exchange: seconds from each connect to the message's being accepted.
    :ivar failed: how many questions and exchanges came to nothing. Of those that were still not
        answered in the end, the seconds until then are counted as well.
    """

    def __init__(self) -> None:
        self.status: list[float] = []
        self.exchange: list[float] = []
        self.failed = 0
        self.asked: dict[object, tuple[list[float], float]] = {}

    def ask(self, what: object, took: list[float]) -> None:
        """A question is asked, or an exchange is begun."""
        self.asked[what] = took, time.monotonic()

    def answered(self, what: object) -> None:
        """It has its answer."""
        if (asked := self.asked.pop(what, None)) is not None:
            took, since = asked
            waited = time.monotonic() - since
            took.append(waited)
            if took is self.status:
                missed = int(waited * ASKS)
                took += [waited - number / ASKS for number in range(1, missed + 1)]

    def fail(self, what: object) -> None:
        """It will have none; does nothing where it had one."""
        if what in self.asked:
            self.failed += 1
            self.answered(what)


class _Asker(LightClient):
    """Asks how a message stands."""

    def __init__(self, party: str, lost: Callable[[], None]) -> None:
        super().__init__(party)
        self.ready: Deferred[None] = Deferred()
        self._lost = lost
        self._numbers = itertools.count()
        self._laps: dict[str, Lap] = {}

    def heard(self, payload: bytes) -> None:
        """It was let in, its message was accepted, it is told how that stands."""
        answer = parse(payload)
        if answer.type == "welcome":
            self.say(type="submit", id="m", receiver="somebody")
            for frame in _A_SECOND:
                self.write(frame)
            self.say(type="end", id="m")
        elif answer.type == "accepted":
            self.ready.callback(None)
        elif (lap := self._laps.pop(answer.ref, None)) is not None:
            (lap.answered if answer.type == "status" else lap.fail)((self, answer.ref))

    def ask(self, lap: Lap) -> None:
        """How does it stand? Asks nothing while it waits for an answer."""
        if self.open and self.ready.called and not self._laps:
            ref = str(next(self._numbers))
            self._laps[ref] = lap
            lap.ask((self, ref), lap.status)
            self.say(type="status", id="m", ref=ref)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """This must not happen."""
        self.open = False
        for ref, lap in self._laps.items():
            lap.fail((self, ref))
        self._laps.clear()
        if self.ready.called:
            self._lost()
        else:
            self.ready.errback(reason)


class _Exchange(LightClient):
    """Connects, says hello, sends a message of a second, hears that it is accepted."""

    def __init__(self, party: str, lap: Lap) -> None:
        super().__init__(party)
        self._lap = lap
        lap.ask(self, lap.exchange)

    def heard(self, payload: bytes) -> None:
        """On to the next step."""
        kind = parse(payload).type
        if kind == "welcome":
            self.say(type="submit", id="m")
            for frame in _A_SECOND:
                self.write(frame)
            self.say(type="end", id="m")
        elif kind == "accepted":
            self._lap.answered(self)
            # What it costs to transcribe is not what is measured.
            self.say(type="cancel", id="m")
        else:
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It is over."""
        self._lap.fail(self)


_A_SECOND = audio_frames(recording(1)[0][:RATE].astype("<i2").tobytes(), RATE // 2)


class Regular:
    """The client: questions on one connection, and exchanges on others at their own pace."""

    def __init__(self, reactor: Any, endpoint: str) -> None:
        self._reactor = reactor
        self._endpoint = clientFromString(reactor, endpoint)
        self._lap = Lap()
        self._over = False
        self._number = 0
        self._asker: _Asker | None = None
        self._loops = [LoopingCall(self._ask), LoopingCall(self._exchange)]

    async def begin(self) -> None:
        """Begin to ask."""
        await self._connect()
        for loop, rate in zip(self._loops, (ASKS, EXCHANGES), strict=True):
            loop.clock = self._reactor
            loop.start(1 / rate, now=False)

    async def _connect(self) -> None:
        asker = _Asker("regular", self._lost)
        await self._endpoint.connect(Factory.forProtocol(lambda: asker))
        await asker.ready.addTimeout(PATIENCE, self._reactor)
        self._asker = asker

    def _lost(self) -> None:
        self._asker = None
        if not self._over:
            self._lap.failed += 1
            Deferred.fromCoroutine(self._connect()).addErrback(self._lost_again)

    def _lost_again(self, _: Failure) -> None:
        self._reactor.callLater(1 / EXCHANGES, self._lost)

    def _ask(self) -> None:
        if self._asker is not None:
            self._asker.ask(self._lap)

    def _exchange(self) -> None:
        self._number += 1
        exchange = _Exchange(f"regular-{self._number}", self._lap)
        lap = self._lap
        connected = self._endpoint.connect(Factory.forProtocol(lambda: exchange))

        def unreachable(failure: Failure) -> None:
            failure.trap(ConnectError)
            lap.fail(exchange)

        connected.addErrback(unreachable)

    def lap(self) -> Lap:
        """What was asked so far is one lap, and another begins."""
        done, self._lap = self._lap, Lap()
        return done

    async def settled(self, lap: Lap) -> Lap:
        """The lap when all was answered that will be."""
        waited = 0.0
        while lap.asked and waited < PATIENCE:
            await deferLater(self._reactor, _STEP)
            waited += _STEP
        for what in list(lap.asked):
            lap.fail(what)
        return lap

    def end(self) -> None:
        """Ask no more."""
        self._over = True
        for loop in self._loops:
            if loop.running:
                loop.stop()
        if self._asker is not None:
            self._asker.transport.abortConnection()
