"""The daemon of one run: started, killed, started again; and what its clients look at."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.task import deferLater

from tests.daemonprocess import DaemonProcess
from tests.speech import CHECKPOINT
from torture.evidence import traces
from torture.ledger import Ledger, Recording
from torture.line import Line, Lost

T = TypeVar("T")

STARTING = 60.0
"""Seconds that a daemon may take to listen."""
RETRY = 0.05
"""Seconds until a client that could not connect tries again."""
_LAST_CHILDREN = 10.0
_SHOWN = 1500


class Over(Exception):
    """The time of a run is over: clients give up."""


class _Reactor:
    """The reactor, which adds to the environment of the processes that it starts."""

    def __init__(self, reactor: Any, environment: Mapping[str, str]) -> None:
        self._reactor = reactor
        self._environment = environment

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def spawnProcess(self, *arguments: Any, env: Mapping[str, str], **more: Any) -> Any:
        own = dict(self._environment)
        path = os.pathsep.join(filter(None, (own.pop("PYTHONPATH", ""), env.get("PYTHONPATH"))))
        return self._reactor.spawnProcess(
            *arguments, env={**env, **own, "PYTHONPATH": path}, **more
        )


class Rig:
    """What a fault works with.

    :ivar quick: whether the run is to be short.
    :ivar rng: where chance comes from.
    :ivar ledger: the books.
    :ivar state: the daemon's state directory.
    :ivar inject: a directory for what is to reach the daemon and its children; see
        :mod:`torture.injected`.
    :ivar numbers: for messages: those that are alive at a time are to be near each other.
    :ivar injected: how many faults were injected.
    :ivar starts: how many daemons were started.
    :ivar internal: whether an `internal` error is no broken promise just now.
    :ivar watchers: are called with each thing that a client tells to have done or heard.
    :ivar over: whether the run's time is over.
    """

    def __init__(self, reactor: Any, folder: Path, models: Path, seed: int, quick: bool) -> None:
        self.reactor = reactor
        self.quick = quick
        self.rng = random.Random(seed)
        self.ledger = Ledger()
        self.state = folder / "state"
        self.inject = folder / "inject"
        self.inject.mkdir()
        shutil.copy(Path(__file__).with_name("injected.py"), self.inject / "sitecustomize.py")
        self.numbers = itertools.count()
        self.injected = 0
        self.starts = 0
        self.internal = False
        self.over = False
        self.options: tuple[str, ...] = ()
        self.environment: dict[str, str] = {"PYTHONPATH": str(self.inject)}
        self._models = models
        # Where many run side by side, somebody else could take the port between two daemons.
        self._port = None if quick else _free_port()
        self._daemon: DaemonProcess | None = None
        self._expected = False
        self._logs: list[str] = []
        self._children: set[int] = set()
        self.watchers: list[Callable[[str], None]] = []

    # The daemon.

    @property
    def daemon(self) -> DaemonProcess:
        """The one that runs, or is the latest."""
        assert self._daemon is not None
        return self._daemon

    def launch(self) -> DaemonProcess:
        """Start a daemon."""
        if not (self.state / "models").is_symlink():
            self.state.mkdir(mode=0o700, exist_ok=True)
            # Converting the checkpoint anew each time would only take time.
            (self.state / "models").symlink_to(self._models, target_is_directory=True)
        self.starts += 1
        self._expected = False
        self._daemon = DaemonProcess(
            _Reactor(self.reactor, self.environment),
            self.state,
            *("--model", str(CHECKPOINT)),
            *self.options,
            *(("--listen", f"tcp:{self._port}:interface=127.0.0.1") if self._port else ()),
        )
        daemon = self._daemon
        daemon.ended.addCallback(self._ended, daemon)
        return daemon

    def _ended(self, code: int | None, daemon: DaemonProcess) -> int | None:
        self._logs.append(daemon.log)
        if not self._expected:
            self.ledger.broken(f"the daemon has ended by itself ({code}): {daemon.log[-_SHOWN:]}")
        return code

    async def logged(self, text: str, patience: float = STARTING) -> bool:
        """Whether the daemon writes `text` before it ends and in time."""
        try:
            await self.daemon.logged(text).addTimeout(patience, self.reactor)
        except (AssertionError, TimeoutError, CancelledError):
            return False
        return True

    def children(self) -> list[int]:
        """The process ids of the daemon's children."""
        try:
            children = self.daemon.workers()
        except OSError:
            return []
        self._children.update(children)
        return children

    async def kill(self) -> None:
        """SIGKILL."""
        self._expected = True
        self.children()
        await self.daemon.signal("KILL")

    async def stop(self) -> None:
        """SIGTERM; it must end well."""
        self._expected = True
        self.children()
        ended: Deferred[None] = Deferred()
        self.daemon.signal("TERM").addCallback(tell, ended)
        try:
            await ended.addTimeout(STARTING, self.reactor)
        except (TimeoutError, CancelledError):
            self.ledger.broken("the daemon does not stop")
            await self.kill()
            return
        # Its exit status does not say it: twistd ends by the signal that it was sent.
        if "stopped: " not in self.daemon.log:
            self.ledger.broken(f"the daemon did not stop well: {self.daemon.log[-_SHOWN:]}")

    async def no_orphans(self) -> None:
        """All children must go soon after their daemons."""
        for _ in range(int(_LAST_CHILDREN / RETRY)):
            left = [pid for pid in self._children if _is_ours(pid)]
            if not left:
                return
            await self.pause(RETRY)
        self.ledger.broken(f"{len(left)} children outlive their daemons")
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def end(self) -> None:
        """Whatever still runs is killed."""
        self.over = True
        if self._daemon is not None:
            await self.kill()

    @property
    def logs(self) -> str:
        """All that its daemons have written."""
        return "".join(self._logs)

    # For clients.

    def endpoint(self) -> str:
        """Where the daemon listens: one of its places."""
        if self._port is None or self.rng.random() < 0.5:
            return self.daemon.endpoint
        return f"tcp:127.0.0.1:{self._port}"

    async def line(self, party: str) -> Line:
        """A connection, as soon as there is a daemon; raises :exc:`Over`."""
        while True:
            self.check()
            try:
                return await Line.open(self.reactor, self.endpoint(), party)
            except Lost:
                await self.pause(RETRY)

    async def pause(self, seconds: float) -> None:
        """Do nothing for so long."""
        await deferLater(self.reactor, seconds)

    def check(self) -> None:
        """Raises :exc:`Over` when it is."""
        if self.over:
            raise Over

    def happened(self, event: str) -> None:
        """A client tells what it has just done or heard."""
        for watcher in list(self.watchers):
            watcher(event)

    async def event(self, name: str, times: int, patience: float) -> None:
        """Comes back when `name` has happened so many times, or after `patience` seconds."""
        done: Deferred[None] = Deferred()
        left = times

        def watch(event: str) -> None:
            nonlocal left
            left -= event == name
            if left == 0 and not done.called:
                done.callback(None)

        self.watchers.append(watch)
        with contextlib.suppress(TimeoutError, CancelledError):
            await done.addTimeout(patience, self.reactor)
        self.watchers.remove(watch)

    def traces(self, recording: Recording) -> list[str]:
        """The files of the spool that hold anything of a recording."""
        return traces(self.state / "spool", recording)


def tell(result: T, also: Deferred[None]) -> T:
    """A callback that tells another who waits, and who may have given up."""
    if not also.called:
        also.callback(None)
    return result


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _is_ours(pid: int) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return b"ampoule" in command and state != "Z"
