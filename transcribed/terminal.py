"""What the ``transcribe`` command shows and how it runs: output, progress, signals, exit status."""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, TextIO

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import globalLogBeginner

from transcribed import errors
from transcribed.client import Client, Event, Status, Unreachable
from transcribed.task import (
    INTERRUPTED,
    NO_TEXT,
    NOT_NOW,
    REFUSED,
    UNFORESEEN,
    UNREACHABLE,
    UNREADABLE,
    USAGE,
    Common,
    Task,
)

POLL = 1.0
"""Seconds between two looks at how a transcription goes."""
_REDRAW = 0.1
_WIDTH = 24


class OutputFailed(Exception):
    """The output went nowhere."""


class Terminal:
    """The two outputs of the command.

    :param out: for what was asked for; written out before anything else happens.
    :param err: for people; with a bar where it is a terminal, else with a line now and then.
    :param clock: for the bar's rate.
    """

    def __init__(self, common: Common, out: BinaryIO, err: TextIO, clock: Any) -> None:
        self._json = common.json
        self._quiet = common.quiet
        self._out = out
        self._err = err
        self._clock = clock
        self._bars = err.isatty() and not common.quiet
        self._drawn = False
        self._last = 0.0

    async def connect(self, client: Client) -> None:
        """Connects, and passes on what the daemon warns of."""
        welcome = await client.connect()
        if welcome.warning and not self._quiet:
            self.warn(f"the daemon warns: {welcome.warning}")

    def write(self, answer: msgspec.Struct, text: str) -> None:
        """Puts out `text`, or with ``--json`` the answer itself, as one line.

        :raises OutputFailed: it may not have got to where it should.
        """
        if self._json:
            self.write_json(answer)
        else:
            self._put(text.encode())

    def write_json(self, answer: msgspec.Struct) -> None:
        """Puts out an answer of which only ``--json`` says anything."""
        if self._json:
            fields = msgspec.to_builtins(answer)
            fields.pop("ref", None)
            self._put(msgspec.json.encode(fields))

    def _put(self, line: bytes) -> None:
        self.clear()
        try:
            self._out.write(line + b"\n")
            self._out.flush()
            _sync(self._out)
        except (OSError, ValueError) as e:
            why = getattr(e, "strerror", None) or e
            raise OutputFailed(f"the output cannot be written: {why}") from e

    def warn(self, text: str) -> None:
        """Puts a line on stderr."""
        self.clear()
        print("transcribe: " + " ".join(text.split()), file=self._err, flush=True)

    def clear(self) -> None:
        """Takes the bar away."""
        if self._drawn:
            self._drawn = False
            self._err.write("\r\x1b[K")
            self._err.flush()

    def _draw(self, part: float | None, text: str) -> None:
        bar = ""
        if part is not None:
            full = round(min(max(part, 0.0), 1.0) * _WIDTH)
            bar = f"[{'#' * full}{'.' * (_WIDTH - full)}] {min(part, 1.0):4.0%}  "
        self._drawn = True
        self._err.write(f"\r\x1b[K{bar}{text}")
        self._err.flush()

    def sending(self, total: int | None) -> Callable[[int], None] | None:
        """What is to be told how many bytes are sent, of about `total`."""
        if not self._bars:
            return None
        begun = self._clock.seconds()

        def sent(count: int) -> None:
            now = self._clock.seconds()
            if now - self._last >= _REDRAW:
                self._last = now
                rate = count / max(now - begun, 1e-3)
                text = f"{count / 1e6:.1f} MB sent, {rate / 1e6:.2f} MB/s"
                self._draw(count / total if total else None, text)

        return sent

    @contextmanager
    def waiting(self, ask: Callable[[], Deferred[Status]], wait: bool) -> Iterator[None]:
        """Shows how a transcription goes, for the length of a ``with``.

        :param ask: gives the status.
        :param wait: whether there is anything to wait for.
        """
        if self._quiet or not wait:
            yield
            return
        shown = ""

        async def look() -> None:
            nonlocal shown
            found = await ask()
            if self._bars:
                self._draw(found.progress, f"{found.id}: {found.state}")
            elif found.state != shown and found.state not in ("ready", "failed"):
                self.warn(f"{found.id} is {found.state}")
            shown = found.state

        loop = LoopingCall(lambda: Deferred.fromCoroutine(look()))
        loop.clock = self._clock
        # Whatever keeps us from looking, the fetch itself will say.
        loop.start(POLL, now=True).addErrback(lambda _: None)
        try:
            yield
        finally:
            if loop.running:
                loop.stop()
            self.clear()

    async def watch(self, client: Client, columns: Callable[[Event], list[Any]]) -> None:
        """Puts out each event, until the connection is lost for good, which is raised."""
        ended: Deferred[None] = Deferred()

        def show(event: Event) -> None:
            try:
                self.write(event, "\t".join(str(column) for column in columns(event)))
            except OutputFailed as e:
                subscription.stop()
                ended.errback(e)

        subscription = await client.subscribe(show, ended.errback)
        await ended


def _sync(out: BinaryIO) -> None:
    """A text that is in a file is on the disk before it is acked."""
    try:
        if stat.S_ISREG(os.fstat(out.fileno()).st_mode):
            os.fsync(out.fileno())
    except ValueError:
        # Not a file of the system's, such as a test's.
        return


async def perform(task: Task, reactor: Any, terminal: Terminal, **options: Any) -> int:
    """Runs a task to its exit status; all that goes wrong is one line on stderr.

    :param options: more of :class:`~transcribed.client.Client`'s.
    """
    common = task.common
    try:
        client = Client(
            common.url,
            common.party,
            common.token,
            reactor=reactor,
            cafile=common.cafile,
            **options,
        )
    except OSError as e:
        terminal.warn(f"{common.cafile} cannot be read: {e.strerror}")
        return USAGE
    except ValueError as e:
        terminal.warn(str(e))
        return USAGE
    try:
        return await task.job(client, terminal)
    except CancelledError:
        return INTERRUPTED
    except Exception as e:
        code, words = explain(e)
        terminal.warn(words)
        return code
    finally:
        terminal.clear()
        await client.close()


def explain(error: Exception) -> tuple[int, str]:
    """The exit status for an error, and what to say."""
    from transcribed.audiofile import UnreadableFile

    if isinstance(error, errors.Busy):
        after = f"try again in {error.retry_after:g} s"
        return NOT_NOW, f"{error.code}: {error.reason} ({after})"
    if isinstance(error, errors.Gone | errors.Failed | errors.UnknownId):
        return NO_TEXT, f"{error.code}: {error.reason}"
    if isinstance(error, errors.TranscribedError):
        return REFUSED, f"{error.code}: {error.reason}"
    if isinstance(error, Unreachable):
        return UNREACHABLE, str(error)
    if isinstance(error, UnreadableFile):
        return UNREADABLE, str(error)
    if isinstance(error, OutputFailed):
        return UNFORESEEN, str(error)
    return UNFORESEEN, f"unforeseen: {type(error).__name__}: {error}"


def run(task: Task) -> int:
    """Runs a task in a reactor of its own, until it is done or interrupted."""
    from twisted.internet import reactor as installed

    reactor: Any = installed
    # What libraries log is not for those who use a command; and never a traceback.
    globalLogBeginner.beginLoggingTo([], discardBuffer=True, redirectStandardIO=False)
    codes: list[int] = []

    def start() -> None:
        terminal = Terminal(task.common, sys.stdout.buffer, sys.stderr, reactor)
        done = Deferred.fromCoroutine(perform(task, reactor, terminal))

        def interrupt(number: int, _: object) -> None:
            # The second time nobody wants to wait for a good end.
            signal.signal(number, signal.SIG_DFL)
            codes.append(128 + number)
            reactor.callFromThread(done.cancel)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, interrupt)
        done.addBoth(finished)

    def finished(code: object) -> None:
        codes.append(code if isinstance(code, int) else UNFORESEEN)
        reactor.stop()

    reactor.callWhenRunning(start)
    reactor.run(installSignalHandlers=False)
    _leave_stdout()
    return codes[0]


def _leave_stdout() -> None:
    """Keeps the interpreter from complaining, at its end, of an output that is gone."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
