"""A worker process in memory: real AMP on both ends, answers that the test gives when it likes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ampoule.commands import Echo, Shutdown
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.protocols.amp import AMP, Command
from twisted.python.failure import Failure

from transcribed.commands import LoadModel, ResolveModel, TranscribeWindows
from transcribed.work import Child


class FakeChild:
    """A child (:class:`transcribed.work.Child`) that does what the test says.

    Nothing happens before :meth:`flush`, as nothing comes from a process before the reactor turns.

    :ivar asked: the commands that arrived, with their arguments.
    :ivar signals: what it was sent; KILL ends it.
    :ivar hushed: whether it leaves pings without an answer.
    :ivar stubborn: whether only KILL ends it.
    :ivar alive: whether it still runs.
    :ivar size: bytes of memory; None where that cannot be known.
    """

    def __init__(self, name: str, threads: int) -> None:
        self.name = name
        self.threads = threads
        self.finished: Deferred[object] = Deferred()
        self.asked: list[tuple[type[Command], dict[str, Any]]] = []
        self.signals: list[str] = []
        self.hushed = self.stubborn = self.closed = False
        self.alive = True
        self.size: int | None = 1 << 30
        self._waiting: dict[type[Command], Deferred[dict[str, object]]] = {}
        self._todo: list[Callable[[], None]] = []
        self._near: Any = AMP()
        self._far: Any = _Far(self)
        self._near.makeConnection(_Wire(self, lambda data: self._near_sent(data)))
        self._far.makeConnection(_Wire(self, lambda data: self.send(data)))

    # For the worker machine.

    def callRemote(self, command: type[Command], **arguments: object) -> Deferred[dict[str, Any]]:
        answer: Deferred[dict[str, Any]] = self._near.callRemote(command, **arguments)
        return answer

    def ping(self) -> Deferred[object]:
        answer: Deferred[object] = self._near.callRemote(Echo, data=b"ping")
        return answer

    def shutdown(self) -> None:
        self._near.callRemote(Shutdown).addErrback(lambda failure: None)

    def close(self) -> None:
        self.closed = True
        if not self.stubborn:
            self._todo.append(lambda: self.die(code=255))

    def signal(self, name: str) -> None:
        if self.alive:
            self.signals.append(name)
            if name == "KILL":
                self._todo.append(lambda: self.die(signal=9))

    def memory(self) -> int | None:
        return self.size if self.alive else None

    # For the test.

    def flush(self) -> bool:
        """Let what is under way arrive; whether there was anything."""
        todo, self._todo = self._todo, []
        for step in todo:
            step()
        return bool(todo)

    def count(self, command: type[Command]) -> int:
        """How often `command` arrived."""
        return sum(asked is command for asked, _ in self.asked)

    def answer(self, command: type[Command], **values: object) -> None:
        """Answer the last `command`."""
        self._waiting.pop(command).callback(values)

    def refuse(self, command: type[Command], error: Exception) -> None:
        """Fail the last `command`."""
        self._waiting.pop(command).errback(error)

    def send(self, data: bytes) -> None:
        """Write bytes to the parent."""
        if self.alive:
            self._todo.append(lambda: self._near.dataReceived(data) if self.alive else None)

    def die(self, signal: int | None = None, code: int | None = None) -> None:
        """End, now."""
        if not self.alive:
            return
        self.alive = False
        bad = signal or code
        why = Failure(ProcessTerminated(code, signal, 0) if bad else ProcessDone(0))
        self._near.connectionLost(why)
        if bad:
            self.finished.errback(why)
        else:
            self.finished.callback(None)

    def _near_sent(self, data: bytes) -> None:
        self._todo.append(lambda: self._far.dataReceived(data) if self.alive else None)

    def arrived(self, command: type[Command], arguments: dict[str, Any]) -> Any:
        self.asked.append((command, arguments))
        if command is Echo and not self.hushed:
            return {"response": arguments["data"]}
        if command is Shutdown and not self.stubborn:
            self._todo.append(self.die)
            return {}
        waiting: Deferred[dict[str, object]] = Deferred()
        self._waiting[command] = waiting
        return waiting


class _Far(AMP):
    def __init__(self, child: FakeChild) -> None:
        super().__init__()
        self._child = child

    @ResolveModel.responder
    def resolve(self, **arguments: Any) -> Any:
        return self._child.arrived(ResolveModel, arguments)

    @LoadModel.responder
    def load(self, **arguments: Any) -> Any:
        return self._child.arrived(LoadModel, arguments)

    @TranscribeWindows.responder
    def transcribe(self, **arguments: Any) -> Any:
        return self._child.arrived(TranscribeWindows, arguments)

    def echo(self, **arguments: Any) -> Any:
        return self._child.arrived(Echo, arguments)

    Echo.responder(echo)

    def shutdown(self) -> Any:
        return self._child.arrived(Shutdown, {})

    Shutdown.responder(shutdown)


class _Wire:
    """The transport of either end. Losing it ends the child, as it does a real one."""

    disconnecting = False

    def __init__(self, child: FakeChild, write: Callable[[bytes], None]) -> None:
        self._child = child
        self.write = write

    def loseConnection(self) -> None:
        self._child._todo.append(lambda: self._child.die(code=255))

    def getPeer(self) -> str:
        return self._child.name

    def getHost(self) -> str:
        return "the test"


class FakeStarter:
    """Starts :class:`FakeChild` processes and keeps them all.

    :ivar children: all that were started, in order.
    :ivar broken: how many of the next starts fail.
    """

    def __init__(self) -> None:
        self.children: list[FakeChild] = []
        self.broken = 0

    def __call__(self, name: str, threads: int) -> Child:
        if self.broken:
            self.broken -= 1
            raise OSError(11, "no more processes")
        self.children.append(FakeChild(name, threads))
        return self.children[-1]

    def flush(self) -> None:
        """Let everything that is under way arrive."""
        while [child for child in self.children if child.flush()]:
            pass

    def alive(self, name: str) -> FakeChild:
        """The running child of that name."""
        [child] = [child for child in self.children if child.name == name and child.alive]
        return child
