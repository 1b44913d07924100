"""What the parts of :mod:`benchmarks.daemon` work with: daemons, engines, clients and speech."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy
from twisted.internet.task import deferLater

from benchmarks.bare import BareEngine
from tests.daemonprocess import DaemonProcess
from tests.speech import RATE, recording
from transcribed.client import Client, Transcript
from transcribed.cores import available_cores, available_memory, share_out
from transcribed.recognition import Model, Piece, SpooledAudio, Window, cut

LANGUAGE = "sv"

# Seconds of audio in a frame of an upload at the speed of speech.
_FRAME = 0.25

# Characters of a daemon's log that are shown when a part has failed.
_LOG = 3000


@dataclass(frozen=True)
class Options:
    """What is asked for on the command line; None stands for a part's own default.

    :ivar messages: how many short messages :func:`benchmarks.delays.scheduling` sends.
    :ivar seconds: the length of the long recording.
    """

    model: str | None
    dtype: str
    workers: int | None
    threads: int | None
    rounds: int
    messages: int | None
    seconds: int


@dataclass(frozen=True)
class Row:
    """A line of the table; what is empty is not applicable.

    :ivar met: whether the target was; None where there is none.
    """

    what: str
    daemon: str
    bare: str = ""
    ratio: float | None = None
    target: str = ""
    met: bool | None = None


@dataclass(frozen=True)
class Outcome:
    """What a part has found: lines for the table, and figures for the file."""

    rows: list[Row]
    figures: dict[str, Any] = field(default_factory=dict)


class Speech:
    """Recorded speech of a length, mono at 16 kHz: in memory for clients, in a file for engines."""

    def __init__(self, path: Path, seconds: int) -> None:
        samples, _ = recording(seconds)
        self._samples = samples[: seconds * RATE].astype(numpy.dtype("<i2"))
        self._samples.tofile(path)
        self._spooled = SpooledAudio(str(path), RATE, 1)

    def audio(self, start: int = 0, seconds: int | None = None) -> bytes:
        """s16le samples from second `start` on; by default all."""
        stop = None if seconds is None else (start + seconds) * RATE
        return self._samples[start * RATE : stop].tobytes()

    def piece(self, start: int, seconds: int) -> Piece:
        """The same as a window for an engine: a recording of its own."""
        first, last = start * RATE, (start + seconds) * RATE
        return Piece(self._spooled, Window(0, first, last, first, last), LANGUAGE)

    def pieces(self, model: Model) -> list[Piece]:
        """The windows that the daemon cuts it into."""
        windows = cut(len(self._samples), RATE, model.core, model.context)
        return [Piece(self._spooled, window, LANGUAGE) for window in windows]


class Rig:
    """What one part has started; all of it ends with the ``async with``.

    To be told first: :meth:`resolve`.

    :ivar model: the model, resolved.
    :ivar workers: how many processes the daemon and the bare engine have.
    :ivar threads: how many threads each of them computes with.
    """

    model: Model
    workers: int
    threads: int

    def __init__(
        self, reactor: Any, options: Options, asked: str, folder: Path, models: Path
    ) -> None:
        """Make a rig for a part.

        :param asked: the model, as the daemon is told.
        :param folder: an empty directory of the part's own.
        :param models: the directory for unpacked and converted models, of all parts.
        """
        self.reactor = reactor
        self.options = options
        self._asked = asked
        self._folder = folder
        self._models = models
        self._engines: list[BareEngine] = []
        self._daemons: list[DaemonProcess] = []
        self._clients: list[Client] = []

    async def __aenter__(self) -> Rig:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        if kind is not None:
            for daemon in self._daemons:
                print(daemon.log[-_LOG:], file=sys.stderr)
        for client in self._clients:
            await client.close()
        for daemon in self._daemons:
            await daemon.signal("KILL")
        for engine in self._engines:
            await engine.stop()

    async def resolve(self) -> None:
        """Find the model, and settle how many workers there shall be."""
        resolver = BareEngine(self.reactor, 1, 1)
        self._engines.append(resolver)
        o = self.options
        self.model = await resolver.resolve(self._asked, str(self._models), o.dtype)
        self._engines.remove(resolver)
        await resolver.stop()
        self.workers, self.threads = share_out(
            available_cores(),
            available_memory(),
            self.model.size,
            self.model.shared,
            o.workers,
            o.threads,
            self.model.device,
        )

    def tell(self, what: str) -> None:
        """Say on stderr how far it is."""
        print(f"  {what}", file=sys.stderr, flush=True)

    def speech(self, seconds: int) -> Speech:
        """Recorded speech of this length."""
        return Speech(self._folder / f"speech-{seconds}", seconds)

    async def engine(self, processes: int, direct: bool = False) -> BareEngine:
        """Loaded processes without a daemon; see :mod:`benchmarks.bare`."""
        engine = BareEngine(self.reactor, processes, self.threads)
        self._engines.append(engine)
        await engine.load(self.model, LANGUAGE, direct)
        return engine

    async def daemon(self) -> DaemonProcess:
        """A daemon of which all workers are ready."""
        state = self._folder / "state"
        state.mkdir(mode=0o700)
        (state / "models").symlink_to(self._models, target_is_directory=True)
        settings = {
            "model": self._asked,
            "dtype": self.options.dtype,
            "workers": self.workers,
            "threads": self.threads,
            "language": LANGUAGE,
            "max-queue": 100_000,
            "max-seconds": 86400,
        }
        flags = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
        daemon = DaemonProcess(self.reactor, state, *flags)
        self._daemons.append(daemon)
        for number in range(self.workers):
            await daemon.logged(f"worker {number + 1} is ready")
        return daemon

    def client(self, daemon: DaemonProcess, party: str) -> Client:
        """A connection of a party."""
        path = daemon.endpoint.removeprefix("unix:")
        client = Client(f"ws+unix:{path}", party, reactor=self.reactor)
        self._clients.append(client)
        return client

    async def send(
        self, client: Client, id: str, audio: bytes, paced: bool = False
    ) -> tuple[float, Transcript]:
        """Have a recording transcribed: the seconds from its end to its text, and that text.

        :param paced: whether it is sent at the speed of speech.
        """
        ended = math.nan

        async def frames() -> AsyncIterator[bytes]:
            nonlocal ended
            begun = time.monotonic()
            step = int(_FRAME * RATE) * 2
            for number, at in enumerate(range(0, len(audio), step)):
                late = begun + (number + 1) * _FRAME - time.monotonic()
                if paced and late > 0:
                    await deferLater(self.reactor, late)
                yield audio[at : at + step]
            # Now the client sends its `end`.
            ended = time.monotonic()

        await client.submit(id, frames())
        transcript = await client.fetch(id)
        took = time.monotonic() - ended
        await client.ack(id)
        assert isinstance(transcript, Transcript)
        return took, transcript

    async def pause(self, seconds: float) -> None:
        """Do nothing for so long."""
        await deferLater(self.reactor, seconds)


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that at least this share of `values` does not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
