"""One client's conversation: what it sends, worked on in order.

Requests are worked on one after the other, so that answers come in the order of the requests; only
a fetch that waits lets others pass.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from transcribed import wire
from transcribed.conversation import converse
from transcribed.interfaces import ISessionPeer
from transcribed.requests import Core, Host, send_failure


@dataclass(frozen=True)
class Chunk:
    """Some bytes of a binary frame; `begins` with its first ones."""

    data: bytes
    begins: bool


class Session:
    """Takes what a client sends, in order, a request at a time."""

    def __init__(self, host: Host, peer: ISessionPeer) -> None:
        self._core = Core(host, peer)
        self._machine = converse(self._core)
        self._peer = peer
        self._queue: deque[Chunk | wire.AnyRequest | wire.Unparsable] = deque()
        self._running = False
        self._paused = False
        self._core.expect_hello()

    def text(self, payload: bytes) -> None:
        """A text frame came."""
        try:
            self._take(wire.parse(payload))
        except wire.Unparsable as e:
            self._take(e)

    def audio(self, data: bytes, begins: bool) -> None:
        """Some bytes of a binary frame came, `begins` with its first ones."""
        self._take(Chunk(data, begins))

    def lost(self) -> None:
        """The connection is gone: what was not begun is not done."""
        self._core.closed = True
        self._queue.clear()
        self._machine.lost()

    def _take(self, item: Chunk | wire.AnyRequest | wire.Unparsable) -> None:
        self._queue.append(item)
        self._work()

    def _work(self) -> None:
        if self._running:
            return
        self._running = True
        while self._queue and not self._core.answering:
            item = self._queue.popleft()
            if self._core.closed:
                continue
            try:
                self._hear(item)
            except Exception:
                self._stumble(Failure(), item)
            step, self._core.step = self._core.step, None
            if step is not None:
                self._core.answering = True
                done = Deferred.fromCoroutine(step)
                done.addErrback(self._stumble, item).addCallback(self._stepped)
        self._running = False
        if self._core.answering != self._paused and not self._core.closed:
            # Nothing more is read while a request is in work: the queue holds one read at most.
            self._paused = self._core.answering
            (self._peer.pause if self._core.answering else self._peer.resume)()

    def _stepped(self, _: None) -> None:
        self._core.answering = False
        held, self._core.held = self._core.held, []
        for event in held:
            self._core.send(event)
        self._work()

    def _hear(self, item: Chunk | wire.AnyRequest | wire.Unparsable) -> None:
        match item:
            case Chunk():
                self._machine.audio(item.data, item.begins)
            case wire.Unparsable(type="submit"):
                self._machine.bad_submit(item.error, item.ref, item.id)
            case wire.Unparsable(type="end"):
                self._machine.bad_end(item.error, item.ref, item.id)
            case wire.Unparsable():
                self._machine.bad(item.error, item.ref)
            case wire.Hello():
                self._machine.hello(item)
            case wire.Submit():
                self._machine.submit(item)
            case wire.End():
                self._machine.end(item)
            case _:
                self._machine.ask(item)

    def _stumble(self, failure: Failure, item: object) -> None:
        ref = getattr(item, "ref", None)
        id = getattr(item, "id", None)
        owner = getattr(item, "owner", None) or (self._core.party if id else None)
        send_failure(self._core, failure, ref, id, owner)
