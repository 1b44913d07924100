"""What a worker is made of and given: a child process, how long things may take, a batch."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.protocols.amp import Command

from transcribed.recognition import Piece, WindowResult


class Child(Protocol):
    """A running child process, as a :class:`WorkerMachine` sees it.

    :ivar finished: fires when the process is gone, with a failure unless it exited with status 0.
        Commands without an answer fail before.
    """

    finished: Deferred[object]

    def callRemote(self, command: type[Command], **arguments: object) -> Deferred[dict[str, Any]]:
        """Send an AMP command; fires with the answer's values by name."""

    def ping(self) -> Deferred[object]:
        """Fires when the child has answered."""

    def shutdown(self) -> None:
        """Ask the child to exit when it likes."""

    def close(self) -> None:
        """Close the pipes, on which a child that listens exits at once."""

    def signal(self, name: str) -> None:
        """Send the signal ``KILL`` or ``TERM``; does nothing when the process is gone."""

    def memory(self) -> int | None:
        """Bytes of memory that the child has for itself; None where it cannot be known."""


@dataclass(frozen=True)
class Times:
    """How much a worker may take: of time, in seconds, and of memory.

    :ivar batch: for a batch of windows, whatever its length.
    :ivar batch_second: for a batch, on top, for each second of audio in it.
    :ivar ping: between an answer and the next ping.
    :ivar pong: to answer a ping.
    :ivar loading_pong: to answer a ping while the model is found or loaded, which may hold Python's
        global lock for long.
    :ivar terminate: to exit when asked to, before SIGTERM.
    :ivar kill: to exit after SIGTERM, before SIGKILL.
    :ivar growth: bytes of memory of its own, over what it had when it became ready; with more, it
        is replaced after its batch. A long batch takes some hundred MiB for a while.
    """

    batch: float = 60.0
    batch_second: float = 20.0
    ping: float = 15.0
    pong: float = 30.0
    loading_pong: float = 120.0
    terminate: float = 2.0
    kill: float = 3.0
    growth: int = 2 << 30


@dataclass
class Backoff:
    """Waits that double, each shortened by up to a half by chance.

    So workers that broke together do not march on in step.

    :ivar first: the first wait, seconds.
    :ivar limit: the longest, seconds.
    :ivar jitter: a number from 0 (shortest) to 1 (unshortened).
    """

    first: float
    limit: float
    jitter: Callable[[], float] = random.random
    _wait: float = 0.0

    def next(self) -> float:
        """How long to wait now, seconds."""
        self._wait = min(self.limit, self._wait * 2 or self.first)
        return self._wait * (0.5 + 0.5 * self.jitter())

    def reset(self) -> None:
        """Begin from the first wait again."""
        self._wait = 0.0


@dataclass
class Batch:
    """Windows to transcribe together, once."""

    pieces: Sequence[Piece]
    results: Deferred[list[WindowResult]] = field(default_factory=Deferred)

    @property
    def seconds(self) -> float:
        """How much audio is in it."""
        return sum(piece.seconds for piece in self.pieces)
