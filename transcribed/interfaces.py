"""What the rooms know of each other: the interfaces that the core calls out through."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from twisted.internet.defer import Deferred

from transcribed.clock import Reading
from transcribed.disk import Disk
from transcribed.recognition import Model, Piece, StoredWindow, Transcription, WindowResult
from transcribed.transcript import Change, State, Transcript


@dataclass(frozen=True)
class PoolStatus:
    """How a pool of recognizers is, for people and for readiness checks.

    :ivar model: the model's name: what was asked for until it is resolved.
    :ivar precision: what the workers compute in, e.g. ``float32``; None until one is ready.
    :ivar workers: how many workers there shall be; 0 until the model is resolved.
    :ivar threads: how many threads each computes with; 0 until the model is resolved.
    :ivar ready: how many workers have the model loaded, idle or busy.
    :ivar warning: the model's warning, if it has one.
    :ivar problem: why no worker is ready, as far as known; None when one is, or when it is merely
        starting.
    """

    model: str
    precision: str | None
    workers: int
    threads: int
    ready: int
    warning: str | None
    problem: str | None


class IRecognizerPool(Protocol):
    """Worker processes that transcribe windows, one batch a worker at a time.

    :ivar model: the model, once it is resolved.
    :ivar idle: how many workers could take a batch now.
    :ivar whenFree: called whenever `idle` has grown, and once `model` is known. Set it before
        :meth:`start`.
    """

    model: Model | None
    whenFree: Callable[[], None]

    @property
    def idle(self) -> int: ...

    def status(self) -> PoolStatus:
        """How the pool is now."""

    def start(self) -> None:
        """Resolve the model, then start the workers; keep trying until :meth:`stop`."""

    def stop(self) -> Deferred[None]:
        """End every child process, busy or not; fires when all are gone. Windows in work fail."""

    def transcribe(self, pieces: Sequence[Piece]) -> Deferred[list[WindowResult]]:
        """Have an idle worker transcribe a batch of windows, all in one language: one try.

        The results are in the order of the windows. Fails with
        :exc:`transcribed.errors.RecognitionFailed` for all of them when the worker dies, hangs past
        its deadline, or answers with an error or rubbish. Only to be called while `idle` is not 0.
        """


class ITranscriptStore(Protocol):
    """The durable record of all transcripts. Each answer comes after its commit is on disk.

    See :class:`transcribed.storage._base.SQLStore` for what each method answers and raises.
    """

    def close(self) -> None: ...
    def accept(self, new: Transcript) -> Deferred[Transcript]: ...
    def look(self, owner: str, id: str, party: str, now: float) -> Deferred[Transcript]: ...
    def collect(self, owner: str, id: str, party: str, now: float) -> Deferred[Transcript]: ...
    def acknowledge(self, owner: str, id: str, party: str, now: float) -> Deferred[Change]: ...
    def cancel(self, owner: str, id: str, now: float) -> Deferred[Change]: ...
    def listing(self, party: str, now: float) -> Deferred[list[Transcript]]: ...
    def begin(self, key: str) -> Deferred[Change | None]: ...
    def finish(self, key: str, model: str) -> Deferred[Change | None]: ...
    def fail(self, key: str, reason: str) -> Deferred[Change | None]: ...
    def expire(self, now: float) -> Deferred[list[Transcript]]: ...
    def follow(self, reading: Reading) -> Deferred[float]: ...
    def unfinished(self) -> Deferred[list[Transcript]]: ...
    def live(self) -> Deferred[dict[str, State]]: ...


class IIntake(Protocol):
    """A recording's audio on its way into the spool; see :class:`transcribed.spool.Intake`."""

    size: int

    @property
    def sha256(self) -> str: ...
    def write(self, data: bytes) -> None: ...
    def keep(self) -> Deferred[None]: ...
    def discard(self) -> None: ...


class ISpool(Protocol):
    """The files of the transcripts; see :class:`transcribed.spool.Spool`."""

    disk: Disk

    def audio_path(self, key: str) -> Path: ...
    def take_in(self, key: str) -> IIntake: ...
    def recover(self, key: str, size: int) -> Deferred[list[StoredWindow] | None]: ...
    def keep_window(self, key: str, window: StoredWindow) -> Deferred[None]: ...
    def keep_text(self, key: str, transcription: Transcription) -> Deferred[bool]: ...
    def read_text(self, key: str) -> Deferred[Transcription | None]: ...
    def drop_audio(self, key: str) -> Deferred[None]: ...
    def drop(self, key: str) -> Deferred[None]: ...
    def sweep(self, live: Mapping[str, State]) -> Deferred[int]: ...
    def drop_again(self) -> Deferred[None]: ...
    def leaves(self, key: str) -> bool: ...


class Reception(Protocol):
    """Whom uploads tell.

    :ivar wake: is called when there is something to transcribe.
    """

    wake: Callable[[], None]

    def changed(self, transcript: Transcript, progress: float) -> None:
        """A transcript was accepted."""

    def in_doubt(self, transcript: Transcript) -> None:
        """It is not known whether a transcript was accepted. Its audio is there."""

    def uploaded(self, owner: str, id: str) -> None:
        """An upload of that name is over, however it ended."""


class ISessionPeer(Protocol):
    """The client's end of a session, as the session sees it.

    :ivar address: where it is; see :func:`transcribed.addresses.source`.
    :ivar bearer: the token that it has shown already, in the handshake.
    """

    address: str | None
    bearer: str | None

    def send(self, payload: bytes) -> None:
        """Send a text frame; does nothing once the connection is closing."""

    def close(self, code: int, reason: str) -> None:
        """Close the connection with a websocket close code."""

    def pause(self) -> None:
        """Read nothing more from the client for now; what was read already still comes."""

    def resume(self) -> None:
        """Read on."""
