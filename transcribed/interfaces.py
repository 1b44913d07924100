"""What the rooms know of each other: the interfaces that the core calls out through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from twisted.internet.defer import Deferred

from transcribed.recognition import Model, Window, WindowResult


@dataclass(frozen=True)
class SpooledAudio:
    """Audio on disk: interleaved little-endian signed 16-bit samples.

    :ivar path: the file.
    :ivar rate: frames a second, Hz.
    :ivar channels: samples a frame.
    """

    path: str
    rate: int
    channels: int


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
    """Worker processes that transcribe windows, one window a worker at a time.

    :ivar model: the model, once it is resolved.
    :ivar idle: how many workers could take a window now.
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

    def transcribe(
        self, audio: SpooledAudio, window: Window, language: str
    ) -> Deferred[WindowResult]:
        """Have an idle worker transcribe a window: one try.

        Fails with :exc:`transcribed.errors.RecognitionFailed` when the worker dies, hangs past its
        deadline, or answers with an error or rubbish. Only to be called while `idle` is not 0.
        """
