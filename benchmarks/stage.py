"""Where a load is put on: a daemon with its options, crowds of clients, and what both use."""

from __future__ import annotations

import os
import resource
import socket
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from benchmarks.hour import cpu_seconds
from tests.daemonprocess import ROOT, DaemonProcess
from tests.speech import CHECKPOINT

# Characters of a daemon's log that are shown when something has failed.
_LOG = 3000

# Seconds that a daemon, or a crowd, may take to be there, or to go.
_PATIENCE = 300.0


class Order(msgspec.Struct):
    """What a crowd is to do; see :mod:`benchmarks.crowd`.

    :ivar kind: idle, uploading, stalled or flooding.
    :ivar count: how many clients.
    :ivar endpoint: of the daemon; :meth:`Stage.clients` puts it in.
    :ivar reading: whether those who flood read the answers.
    :ivar frame: seconds of audio in a frame.
    :ivar text_seconds: the length of the message of which those who stall want the text.
    """

    kind: str
    count: int
    endpoint: str = ""
    reading: bool = True
    frame: float = 0.25
    text_seconds: float = 600.0


class Report(msgspec.Struct):
    """How it was for a crowd.

    :ivar lost: how many connections the daemon has ended.
    :ivar answers: how many answers came, where they are counted.
    :ivar accepted: seconds from the end of each upload until it was accepted.
    :ivar refused: how many errors came, by code.
    """

    lost: int = 0
    answers: int = 0
    accepted: list[float] = []
    refused: dict[str, int] = {}


class Memory(msgspec.Struct):
    """A process' memory in kB, as Linux sums it up (smaps_rollup): see proc_pid_smaps(5)."""

    rss: int
    pss: int
    anonymous: int


def memory(pid: int) -> Memory:
    """How much a process holds; raises :exc:`OSError` where it is gone."""
    fields = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value, *_ = line.split()
        fields[name] = int(value)
    return Memory(fields["Rss:"], fields["Pss:"], fields["Anonymous:"])


def descriptors(pid: int) -> int:
    """How many files, sockets and pipes a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def allow_descriptors() -> int:
    """Have as many of them as the system lets this process; answers how many."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def free_port() -> int:
    """A TCP port of the loopback interface that nobody has just now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


class Clients(ProcessProtocol):
    """A crowd, from its parent's side.

    :ivar begun: fires when all of them do what they are there for.
    :ivar report: how it was, once it has left.
    """

    transport: Any

    def __init__(self, reactor: Any, order: Order) -> None:
        self.begun: Deferred[None] = Deferred()
        self.report = Report()
        self._reactor = reactor
        self._left: Deferred[None] = Deferred()
        self._said = b""
        self._errors = b""
        reactor.spawnProcess(
            self,
            sys.executable,
            [sys.executable, "-m", "benchmarks.crowd"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.transport.write(msgspec.json.encode(order) + b"\n")

    @property
    def pid(self) -> int:
        """Its process id."""
        pid: int = self.transport.pid
        return pid

    def outReceived(self, data: bytes) -> None:
        """It says something."""
        self._said += data
        if b"\n" in self._said and not self.begun.called:
            self.begun.callback(None)

    def errReceived(self, data: bytes) -> None:
        """Something is wrong there."""
        self._errors += data

    def processEnded(self, reason: Failure) -> None:
        """It is gone."""
        wrong = AssertionError(f"a crowd has ended:\n{self._errors.decode()[-_LOG:]}")
        if not self.begun.called:
            self.begun.errback(wrong)
        try:
            self.report = msgspec.json.decode(self._said.split(b"\n")[-2], type=Report)
        except (IndexError, msgspec.DecodeError):
            self._left.errback(wrong)
        else:
            self._left.callback(None)

    async def leave(self) -> Report:
        """Have it end all its connections, and say how it was."""
        self.transport.closeStdin()
        await self._left.addTimeout(_PATIENCE, self._reactor)
        return self.report

    def kill(self) -> None:
        """End it, if it is still there."""
        if not self._left.called:
            self._left.addErrback(lambda _: None)
            self.transport.signalProcess("KILL")


def waited_seconds(pid: int) -> float:
    """How long a process' main thread could have run, and had no core (proc's schedstat)."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


class Usage:
    """The processor time of a daemon, its workers and a crowd since it was made."""

    def __init__(self, stage: Stage, crowd: Clients | None = None) -> None:
        self._clock = stage.reactor
        self._pid = stage.daemon.pid
        self._pids = {"daemon": [self._pid], "workers": stage.workers}
        if crowd is not None:
            self._pids["clients"] = [crowd.pid]
        self._begun = self._clock.seconds()
        self._used = self._seconds()

    def _seconds(self) -> dict[str, float]:
        used = {name: cpu_seconds(pids) for name, pids in self._pids.items()}
        return {**used, "waited": waited_seconds(self._pid)}

    def shares(self) -> dict[str, float]:
        """Shares of one core, by name; to be asked while all are there.

        ``waited``: the share of the time that the daemon waited for a core to run on.
        """
        passed = self._clock.seconds() - self._begun
        return {name: (now - self._used[name]) / passed for name, now in self._seconds().items()}


class Stage:
    """One daemon with the tests' tiny checkpoint; it ends with the ``async with``.

    :param folder: a directory for its state, which may be there.
    :param models: the directory for converted models, of all stages.
    :param options: more options for the daemon.
    :ivar port: where it is, on TCP of this machine.
    :ivar endpoint: the same, for clients.
    """

    daemon: DaemonProcess

    def __init__(self, reactor: Any, folder: Path, models: Path, *options: str) -> None:
        self.reactor = reactor
        self.state = folder / "state"
        self._models = models
        self.port = free_port()
        self.endpoint = f"tcp:127.0.0.1:{self.port}"
        self._options = (
            *("--model", str(CHECKPOINT)),
            *("--listen", f"tcp:{self.port}:interface=127.0.0.1"),
            *options,
        )
        self._crowds: list[Clients] = []

    async def __aenter__(self) -> Stage:
        self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.state / "models").symlink_to(self._models, target_is_directory=True)
        self.daemon = DaemonProcess(self.reactor, self.state, *self._options)
        await self.daemon.logged("ready: model").addTimeout(_PATIENCE, self.reactor)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        if kind is not None:
            print(self.daemon.log[-_LOG:], file=sys.stderr)
        for crowd in self._crowds:
            crowd.kill()
        await self.daemon.signal("KILL")

    @property
    def workers(self) -> list[int]:
        """The process ids of the daemon's workers."""
        return self.daemon.workers()

    def memory(self) -> Memory:
        """What the daemon's own process holds."""
        return memory(self.daemon.pid)

    def clients(self, order: Order) -> Clients:
        """Let a crowd come."""
        crowd = Clients(self.reactor, msgspec.structs.replace(order, endpoint=self.endpoint))
        self._crowds.append(crowd)
        return crowd

    async def pause(self, seconds: float) -> None:
        """Do nothing for so long."""
        await deferLater(self.reactor, seconds)
