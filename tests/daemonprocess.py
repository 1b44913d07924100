"""A real daemon: twistd in a process of its own, on a unix socket, watched through its log."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from tests.rawclient import BINARY, RawClient, frame, greet

ROOT = Path(__file__).parent.parent
CHUNK = 64 * 1024


class DaemonProcess(ProcessProtocol):
    """One run of the daemon.

    :ivar endpoint: where it listens, for clients.
    :ivar log: all that it has written.
    :ivar ended: fires with its exit code, None where a signal ended it.

    :param logger: what makes its log; by default twistd's own.
    """

    transport: Any

    def __init__(
        self,
        reactor: Any,
        state: Path,
        *options: str,
        listen: bool = True,
        twist: bool = False,
        logger: str | None = None,
    ) -> None:
        self.log = ""
        self.ended: Deferred[int | None] = Deferred()
        self._reactor = reactor
        self._waiting: list[tuple[str, Deferred[None]]] = []
        # Not below trial's folder: a unix socket's path may have 107 bytes only.
        self._folder = tempfile.TemporaryDirectory()
        self.endpoint = f"unix:{self._folder.name}/socket"
        if listen:
            options = (*options, "--listen", self.endpoint)
        twistd = [str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile="]
        if logger is not None:
            twistd += ["--logger", logger]
        program = [sys.executable, "-m", "twisted"] if twist else [sys.executable, *twistd]
        self.transport = reactor.spawnProcess(
            self,
            sys.executable,
            [*program, "transcribed", "--state", str(state), *options],
            env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        pid: int = self.transport.pid
        return pid

    def outReceived(self, data: bytes) -> None:
        """It has written something."""
        self.log += data.decode(errors="replace")
        for waiting in list(self._waiting):
            if waiting[0] in self.log:
                self._waiting.remove(waiting)
                waiting[1].callback(None)

    errReceived = outReceived

    def processEnded(self, reason: Failure) -> None:
        """It is gone."""
        for _, waiting in self._waiting:
            waiting.errback(AssertionError(f"the daemon has ended:\n{self.log}"))
        self._waiting.clear()
        self._folder.cleanup()
        end: Any = reason.value
        self.ended.callback(0 if reason.check(ProcessDone) else end.exitCode)

    def logged(self, text: str) -> Deferred[None]:
        """Fires when `text` is in the log; fails when the daemon ends without it."""
        done: Deferred[None] = Deferred()
        if text in self.log:
            done.callback(None)
        else:
            self._waiting.append((text, done))
        return done

    def signal(self, name: str) -> Deferred[int | None]:
        """Send it a signal; fires when it has ended."""
        if not self.ended.called:
            self.transport.signalProcess(name)
        return self.ended

    def workers(self) -> list[int]:
        """The process ids of its workers."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [int(pid) for pid in children]

    async def greet(self, party: str) -> RawClient:
        """A client of it that has said hello."""
        await self.logged("listening on")
        return await greet(self._reactor, self.endpoint, party)


def feed(client: RawClient, audio: bytes) -> None:
    """Send some of a recording's audio."""
    for start in range(0, len(audio), CHUNK):
        client.raw(frame(BINARY, audio[start : start + CHUNK]))


async def submit(client: RawClient, id: str, audio: bytes, **more: Any) -> dict[str, Any]:
    """Send a whole recording; the daemon's answer."""
    client.say(type="submit", id=id, **more)
    feed(client, audio)
    return await client.ask(type="end", id=id)
