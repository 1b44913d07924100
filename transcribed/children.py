"""Worker processes as they really are: started through ampoule, spoken to in AMP, listened to.

Importing ampoule installs a reactor, so it is imported when the first process is started. The
worker's own module is never imported here: only its name is handed to the child.
"""

from __future__ import annotations

import contextlib
import os
import re
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall, IProcessTransport, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import InvalidLogLevelError, Logger, LogLevel
from twisted.protocols.amp import AMP, Command
from twisted.python.failure import Failure

import transcribed
from transcribed.work import Child

#: Makes a child process from a name for the log and the number of threads it may compute with.
Starter = Callable[[str, int], Child]

#: Bytes of a line of a child's output that are logged.
LONGEST_LINE = 4096

# The descriptors that ampoule's bootstrap speaks AMP on.
_TO_CHILD, _FROM_CHILD = 3, 4

# How long after its exit a child's pipes are read. Its own children could hold them open for good.
_LAST_WORDS = 1.0

# What Twisted's textFileLogObserver writes in front of a message in the child.
_HEADER = re.compile(r"\S+ \[[^\]]*#([a-z]+)\] ")

# What proc(5) says of a process's own memory.
_SIZE = re.compile(r"^(RssAnon|VmSwap):\s*(\d+) kB$", re.MULTILINE)

# Products of so many shapes are kept; a window has some 20, and hardly a message is as long as
# another one. With their default of 1024 a worker grew by half a MB for each new one, to a GB
# (docs/design.rst).
_SHAPES = "64"

_PASSED = re.compile(
    r"PATH|HOME|USER|LANG|LANGUAGE|LC_\w+|TZ|TMPDIR|XDG_CACHE_HOME|HF_\w+|LD_LIBRARY_PATH|LD_PRELOAD"
    r"|(?:HTTPS?|ALL|NO)_PROXY|(?:https?|all|no)_proxy|SSL_CERT_(?:FILE|DIR)|REQUESTS_CA_BUNDLE"
)


def child_environment(threads: int, environ: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of a worker that computes with `threads` threads.

    Of `environ` only what finding Python, the model, the Hub and certificates needs is passed on.
    """
    passed = {name: value for name, value in environ.items() if _PASSED.fullmatch(name)}
    home = str(Path(transcribed.__file__).resolve().parent.parent)
    # Where the package is installed it is found anyway; in front of the standard library the
    # directory of everybody's packages would do harm.
    own = [] if home in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")) else [home]
    paths = [*own, *filter(None, environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **passed,
        **({"PYTHONPATH": os.pathsep.join(paths)} if paths else {}),
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        # oneDNN, and ideep between it and torch, which keep what they have made for a shape.
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": _SHAPES,
        "LRU_CACHE_CAPACITY": _SHAPES,
    }


def process_starter(
    clock: IReactorTime,
    worker: str = "transcribed.worker.Worker",
    environ: Mapping[str, str] = os.environ,
) -> Starter:
    """A starter of real processes on the installed reactor.

    :param worker: the full name of an ampoule ``AMPChild`` that is made without arguments.
    """

    def start(name: str, threads: int) -> Child:
        from ampoule.main import ProcessStarter

        child = ProcessChild(name, clock)
        starter = ProcessStarter(env=child_environment(threads, environ), packages=())
        starter.startPythonProcess(child, starter.childReactor, worker)
        return child

    return start


class ProcessChild(ProcessProtocol):
    """The parent's end of one process: a transport for AMP, a drain for what the child prints."""

    # For AMP, which takes this for its transport.
    disconnecting = False

    def __init__(self, name: str, clock: IReactorTime) -> None:
        """Make the end of a process that is not started yet; `name` is for the log."""
        self.name = name
        self.finished: Deferred[object] = Deferred()
        self.amp = cast(Any, AMP)()
        self._clock = clock
        self._last_words: IDelayedCall | None = None
        self._output = {1: LineLog(name), 2: LineLog(name)}

    # What a WorkerMachine wants.

    def callRemote(self, command: type[Command], **arguments: object) -> Deferred[dict[str, Any]]:
        """See :class:`transcribed.work.Child`."""
        answer: Deferred[dict[str, Any]] = self.amp.callRemote(command, **arguments)
        return answer

    def ping(self) -> Deferred[object]:
        """See :class:`transcribed.work.Child`."""
        # Not ampoule's Ping: 24.10 answers it with text where AMP wants bytes, and that error ends
        # the child.
        from ampoule.commands import Echo

        answer: Deferred[object] = self.amp.callRemote(Echo, data=b"ping")
        return answer

    def shutdown(self) -> None:
        """See :class:`transcribed.work.Child`."""
        from ampoule.commands import Shutdown

        # It fails where the child goes away without answering, which is just as well.
        self.amp.callRemote(Shutdown).addErrback(lambda failure: None)

    def close(self) -> None:
        """See :class:`transcribed.work.Child`."""
        self._closeAll(0, _TO_CHILD, _FROM_CHILD)

    def signal(self, name: str) -> None:
        """See :class:`transcribed.work.Child`."""
        if self.transport is not None:
            with contextlib.suppress(ProcessExitedAlready):
                self.transport.signalProcess(name)

    def memory(self) -> int | None:
        """See :class:`transcribed.work.Child`."""
        pid = getattr(self.transport, "pid", None)
        try:
            status = Path(f"/proc/{pid}/status").read_text("ascii", "replace")
        except OSError:
            return None
        # Not what is mapped from files, which all workers share. What is swapped out counts.
        sizes = dict(_SIZE.findall(status))
        if "RssAnon" not in sizes:
            return None
        return 1024 * sum(map(int, sizes.values()))

    # What AMP wants of its transport.

    def write(self, data: bytes) -> None:
        """Send to the child; to nobody when it has closed its end, and is ended soon for that."""
        with contextlib.suppress(KeyError):
            self._process.writeToChild(_TO_CHILD, data)

    def loseConnection(self) -> None:
        """AMP could not make sense of what came: the child is of no more use."""
        self.signal("KILL")

    def getPeer(self) -> str:
        """For AMP's log."""
        return self.name

    def getHost(self) -> str:
        """For AMP's log."""
        return "the daemon"

    # What the reactor tells.

    def connectionMade(self) -> None:
        self.amp.makeConnection(self)

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        if childFD != _FROM_CHILD:
            self._output[childFD].feed(data)
            return
        try:
            self.amp.dataReceived(data)
        except Exception:
            # E.g. an answer that nobody asked for. The reactor would close this pipe and leave the
            # child alive without it.
            _log.failure("{name} sent what is not AMP", name=self.name)
            self.signal("KILL")

    def processExited(self, reason: Failure) -> None:
        self._last_words = self._clock.callLater(
            _LAST_WORDS, self._closeAll, 0, 1, 2, _TO_CHILD, _FROM_CHILD
        )

    def processEnded(self, reason: Failure) -> None:
        if self._last_words is not None and self._last_words.active():
            self._last_words.cancel()
        for output in self._output.values():
            output.close()
        self.amp.connectionLost(reason)
        if isinstance(reason.value, ProcessDone):
            self.finished.callback(None)
        else:
            self.finished.errback(reason)

    @property
    def _process(self) -> IProcessTransport:
        assert self.transport is not None
        return self.transport

    def _closeAll(self, *descriptors: int) -> None:
        for descriptor in descriptors:
            self._process.closeChildFD(descriptor)


class LineLog:
    """Logs what a child prints, by lines, however they were cut on the way.

    Lines that Twisted formatted in the child keep their level. Of a line that is too long, the
    beginning is logged.
    """

    def __init__(self, name: str) -> None:
        """Make a log for one stream of the child called `name`."""
        self._name = name
        self._rest = b""
        self._skipping = False
        self._level = LogLevel.info

    def feed(self, data: bytes) -> None:
        """Some bytes came."""
        *lines, rest = (self._rest + data).split(b"\n")
        for line in lines:
            if not self._skipping:
                self._emit(line)
            self._skipping = False
        if self._skipping:
            rest = b""
        elif len(rest) > LONGEST_LINE:
            self._emit(rest)
            self._skipping = True
            rest = b""
        self._rest = rest

    def close(self) -> None:
        """No more will come."""
        self._emit(self._rest)
        self._rest = b""

    def _emit(self, data: bytes) -> None:
        if not data.strip():
            return
        line = data[:LONGEST_LINE].decode("utf-8", "replace").rstrip()
        if len(data) > LONGEST_LINE:
            line += "…"
        header = _HEADER.match(line)
        if header:
            self._level = _level(header[1])
            line = line[header.end() :]
        elif not line.startswith("\t"):
            # Twisted begins the further lines of a message with a tab.
            self._level = LogLevel.info
        _log.emit(self._level, "{name}: {line}", name=self._name, line=line)


def _level(name: str) -> Any:
    try:
        return LogLevel.levelWithName(name)
    except InvalidLogLevelError:
        return LogLevel.info


_log = Logger()
