"""What is asked of the daemon and not answered yet, and how an upload is fed to the socket."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from transcribed.client._connection import Connection
from transcribed.client._source import Source


@dataclass(eq=False)
class Request:
    """A message that waits for its answer.

    :ivar answers: the structures that answer it.
    :ivar source: the audio that follows it; None for all but ``submit``.
    :ivar sent_on: the connection on which its answer is awaited.
    :ivar times: on how many connections it was sent.
    """

    message: dict[str, Any]
    answers: tuple[type, ...]
    deferred: Deferred[Any]
    source: Source | None = None
    progress: Callable[[int], object] | None = None
    sent_on: Connection | None = None
    times: int = 0

    @property
    def kind(self) -> str:
        """Its ``type`` on the wire."""
        return str(self.message["type"])


@implementer(IPushProducer)
@dataclass(eq=False)
class Upload:
    """One run of a submit: its frames, at the pace of the connection.

    It is the transport's producer from :meth:`run` until :meth:`stop`.
    """

    request: Request
    connection: Connection
    stopped: bool = False
    _paused: bool = False
    _reading: Deferred[bytes | None] | None = None
    _waiting: list[Deferred[None]] = field(default_factory=list)

    async def run(self) -> None:
        """Sends ``submit``, the audio and ``end``, unless it is stopped meanwhile.

        Raises whatever reading the audio raises.
        """
        source, message = self.request.source, self.request.message
        assert source is not None
        digest, sent = hashlib.sha256(), 0
        self.connection.registerProducer(self, True)
        try:
            self.connection.send(message)
            async with aclosing(source.frames()) as frames:
                while (frame := await self._read(frames)) is not None:
                    await self._room()
                    if self.stopped:
                        return
                    self.connection.send_audio(frame)
                    digest.update(frame)
                    sent += len(frame)
                    if self.request.progress is not None:
                        self.request.progress(sent)
                    # The callback may have closed or cancelled.
                    if self.stopped:
                        return
            if not self.stopped:
                self.connection.send(
                    {
                        "type": "end",
                        "id": message["id"],
                        "ref": message["ref"],
                        "sha256": digest.hexdigest(),
                    }
                )
        finally:
            self.stop()

    async def _read(self, frames: AsyncGenerator[bytes, None]) -> bytes | None:
        self._reading = Deferred.fromCoroutine(_next(frames))
        try:
            return await self._reading
        except CancelledError:
            if self.stopped:
                return None
            raise

    def stop(self) -> None:
        """Nothing more is sent, nor waited for."""
        if not self.stopped:
            self.stopped = True
            if self.connection.transport is not None:
                self.connection.unregisterProducer()
            if self._reading is not None and not self._reading.called:
                self._reading.cancel()
        self.resumeProducing()

    def _room(self) -> Deferred[None]:
        if self.stopped or not self._paused:
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        return waiting

    def pauseProducing(self) -> None:
        """The transport's: its buffer is full."""
        self._paused = True

    def resumeProducing(self) -> None:
        """The transport's: its buffer is empty."""
        self._paused = False
        waiting, self._waiting = self._waiting, []
        for deferred in waiting:
            deferred.callback(None)

    def stopProducing(self) -> None:
        """The transport's: the connection is gone."""
        self.stop()


async def _next(frames: AsyncGenerator[bytes, None]) -> bytes | None:
    return await anext(frames, None)
