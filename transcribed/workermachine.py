"""One worker process through its lives: started, prepared, idle, busy, broken, started again.

A machine without knowledge of how processes are made or what the pool does with them: a child is
anything that speaks AMP and can be signalled, time is a clock. What a state needs to be left again
(timers, the batch) is that state's data, and every way out of it closes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

from automat import TypeMachineBuilder
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import ConnectionClosed, ProcessDone, ProcessTerminated
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from transcribed.commands import TranscribeWindows
from transcribed.errors import ModelUnavailable, RecognitionFailed
from transcribed.recognition import WindowResult, decode_results, encode_pieces
from transcribed.work import Backoff, Batch, Child, Times


class Owner(Protocol):
    """Whom a :class:`WorkerMachine` tells. None of these may raise."""

    def prepared(self, worker: WorkerMachine, answer: object) -> None:
        """`worker` has become ready for its first batch; `answer` is what preparing it gave."""

    def freed(self, worker: WorkerMachine) -> None:
        """`worker` has become ready for its next batch."""

    def lost(self, worker: WorkerMachine, reason: str) -> None:
        """`worker` is not ready and will start again by itself."""


class _Inputs(Protocol):
    # None of these returns anything, so that each may be called from within another's output, e.g.
    # by whoever waited for a result: Automat then does it right after.

    def start(self) -> None: ...

    def work(self, batch: Batch) -> None: ...

    def stop(self) -> None: ...

    def _prepared(self, answer: object) -> None:
        """The child is ready for its first batch."""

    def _answered(self, answer: object) -> None:
        """A batch's results, or the RecognitionFailed that a healthy child declared."""

    def _outgrown(self, answer: object, reason: str) -> None:
        """As :meth:`_answered`, of a child that has become too large to go on."""

    def _broken(self, reason: str) -> None:
        """The child, alive or not, is of no more use."""

    def _ended(self, reason: str) -> None:
        """The child is gone. Nothing is heard of it after this."""

    def _retry(self) -> None:
        """It was waited long enough."""


@dataclass
class _Core:
    worker: WorkerMachine
    owner: Owner
    clock: IReactorTime
    start_child: Callable[[], Child]
    prepare: Callable[[Child], Deferred[object]]
    patience: float | None
    backoff: Backoff
    times: Times
    stopped: Deferred[None] = field(default_factory=Deferred)
    # The process; from its start until it has ended, whatever the state.
    child: Child | None = None
    # What memory it had when it became ready, bytes.
    memory: int | None = None

    @property
    def growth(self) -> int:
        """How much larger the process has become, bytes."""
        now = None if self.child is None else self.child.memory()
        return 0 if now is None or self.memory is None else now - self.memory

    def tell(self, message: Callable[[Child], object]) -> None:
        if self.child is not None:
            message(self.child)


@runtime_checkable
class _Timers(Protocol):
    def close(self) -> None:
        """End them."""


@dataclass
class _Timer:
    """A delayed call that may be put off and is surely ended."""

    clock: IReactorTime
    call: IDelayedCall | None = None

    def set(self, delay: float, what: Callable[[], object]) -> None:
        self.close()
        self.call = self.clock.callLater(delay, what)

    def close(self) -> None:
        if self.call is not None and self.call.active():
            self.call.cancel()
        self.call = None


class _Pings:
    """Asks a child now and then whether it is there, until closed."""

    def __init__(self, c: _Inputs, s: _Core, pong: float) -> None:
        self._c, self._s = c, s
        self._pong = pong
        self._timer: _Timer | None = _Timer(s.clock)
        self._timer.set(s.times.ping, self._ping)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.close()
            self._timer = None

    def _ping(self) -> None:
        assert self._timer is not None and self._s.child is not None
        late = f"hung: no answer within {self._pong:g} s"
        self._timer.set(self._pong, lambda: self._c._broken(late))
        maybeDeferred(self._s.child.ping).addCallbacks(self._answered, self._failed)

    def _answered(self, ignored: object) -> None:
        if self._timer is not None:
            self._timer.set(self._s.times.ping, self._ping)

    def _failed(self, failure: Failure) -> None:
        if self._timer is not None:
            self._c._broken(describe(failure))


@dataclass
class _Loading:
    deadline: _Timer
    pings: _Pings | None = None

    def close(self) -> None:
        self.deadline.close()
        if self.pings is not None:
            self.pings.close()


@dataclass
class _Busy:
    batch: Batch
    deadline: _Timer
    pings: _Pings

    def close(self) -> None:
        self.deadline.close()
        self.pings.close()

    def deliver(self, answer: object) -> None:
        if isinstance(answer, RecognitionFailed):
            self.batch.results.errback(answer)
        else:
            self.batch.results.callback(cast("list[WindowResult]", answer))

    def fail(self, reason: str) -> None:
        self.close()
        self.batch.results.errback(RecognitionFailed(f"the worker {reason}"))


def describe(failure: Failure) -> str:
    """What happened to a worker, as the predicate of a sentence; never text or audio."""
    error = failure.value
    if isinstance(error, ModelUnavailable):
        return f"cannot load the model: {error}"
    if isinstance(error, ProcessTerminated):
        return f"died of signal {error.signal}" if error.signal else f"died ({error.exitCode})"
    if isinstance(error, ProcessDone | ConnectionClosed):
        return "went away"
    return f"answered with an error or rubbish ({type(error).__name__})"


def _loading(c: _Inputs, s: _Core) -> _Loading:
    deadline = _Timer(s.clock)
    try:
        s.child = child = s.start_child()
    except Exception as e:
        c._ended(f"could not be started: {e}")
        return _Loading(deadline)
    if s.patience is not None:
        late = f"hung: not ready within {s.patience:g} s"
        deadline.set(s.patience, lambda: c._broken(late))
    child.finished.addCallbacks(lambda _: c._ended("went away"), lambda f: c._ended(describe(f)))
    prepared = maybeDeferred(s.prepare, child)
    prepared.addCallbacks(c._prepared, lambda failure: c._broken(describe(failure)))
    return _Loading(deadline, _Pings(c, s, s.times.loading_pong))


def _idle(c: _Inputs, s: _Core, answer: object) -> _Pings:
    return _Pings(c, s, s.times.pong)


def _busy(c: _Inputs, s: _Core, batch: Batch) -> _Busy:
    assert s.child is not None
    seconds = s.times.batch + s.times.batch_second * batch.seconds
    busy = _Busy(batch, _Timer(s.clock), _Pings(c, s, s.times.pong))
    busy.deadline.set(seconds, lambda: c._broken(f"hung: no result within {seconds:g} s"))

    def over(answer: object) -> None:
        growth = s.growth
        if growth > s.times.growth:
            c._outgrown(answer, f"has grown by {growth >> 20} MiB")
        else:
            c._answered(answer)

    def answered(box: dict[str, Any]) -> None:
        try:
            results = decode_results(box["results"])
        except Exception:
            results = []
        if len(results) == len(batch.pieces):
            over(results)
        else:
            c._broken("answered with rubbish")

    def failed(failure: Failure) -> None:
        if isinstance(failure.value, RecognitionFailed):
            over(failure.value)
        else:
            c._broken(describe(failure))

    asked = maybeDeferred(s.child.callRemote, TranscribeWindows, pieces=encode_pieces(batch.pieces))
    asked.addCallbacks(answered, failed)
    return busy


def _waiting(c: _Inputs, s: _Core, reason: str) -> _Timer:
    s.child = None
    timer = _Timer(s.clock)
    timer.set(s.backoff.next(), c._retry)
    return timer


def _stopping(c: _Inputs, s: _Core) -> _Timer:
    timer = _Timer(s.clock)

    def terminate() -> None:
        s.tell(lambda child: child.signal("TERM"))
        timer.set(s.times.kill, lambda: s.tell(lambda child: child.signal("KILL")))

    timer.set(s.times.terminate, terminate)
    return timer


def _build() -> Callable[[_Core], _Inputs]:
    machine = TypeMachineBuilder(_Inputs, _Core)
    new = machine.state("New")
    loading = machine.state("Loading", _loading)
    idle = machine.state("Idle", _idle)
    busy = machine.state("Busy", _busy)
    dying = machine.state("Dying")
    waiting = machine.state("Backoff", _waiting)
    stopping = machine.state("Stopping", _stopping)
    stopped = machine.state("Stopped")

    new.upon(_Inputs.start).to(loading).returns(None)

    @loading.upon(_Inputs._prepared).to(idle)
    def becomeReady(c: _Inputs, s: _Core, loading: _Loading, answer: object) -> None:
        loading.close()
        assert s.child is not None
        s.memory = s.child.memory()
        s.owner.prepared(s.worker, answer)

    @idle.upon(_Inputs.work).to(busy)
    def begin(c: _Inputs, s: _Core, pings: _Pings, batch: Batch) -> None:
        pings.close()

    @busy.upon(_Inputs._answered).to(idle)
    def finish(c: _Inputs, s: _Core, work: _Busy, answer: object) -> None:
        work.close()
        if not isinstance(answer, RecognitionFailed):
            s.backoff.reset()
        work.deliver(answer)
        s.owner.freed(s.worker)

    @busy.upon(_Inputs._outgrown).to(dying)
    def replace(c: _Inputs, s: _Core, work: _Busy, answer: object, reason: str) -> None:
        work.close()
        # Whatever it answered, it was a healthy one: the next may come at once.
        s.backoff.reset()
        s.tell(lambda child: child.signal("KILL"))
        s.owner.lost(s.worker, reason)
        work.deliver(answer)

    # Broken: killed at once, but nothing new is started until it is gone.

    def breakDown(c: _Inputs, s: _Core, timers: _Timers, reason: str) -> None:
        timers.close()
        s.tell(lambda child: child.signal("KILL"))
        s.owner.lost(s.worker, reason)

    loading.upon(_Inputs._broken).to(dying)(breakDown)
    idle.upon(_Inputs._broken).to(dying)(breakDown)

    @busy.upon(_Inputs._broken).to(dying)
    def breakDownAtWork(c: _Inputs, s: _Core, work: _Busy, reason: str) -> None:
        s.tell(lambda child: child.signal("KILL"))
        s.owner.lost(s.worker, reason)
        work.fail(reason)

    def end(c: _Inputs, s: _Core, timers: _Timers, reason: str) -> None:
        timers.close()
        s.owner.lost(s.worker, reason)

    loading.upon(_Inputs._ended).to(waiting)(end)
    idle.upon(_Inputs._ended).to(waiting)(end)

    @busy.upon(_Inputs._ended).to(waiting)
    def endAtWork(c: _Inputs, s: _Core, work: _Busy, reason: str) -> None:
        s.owner.lost(s.worker, reason)
        work.fail(reason)

    dying.upon(_Inputs._ended).to(waiting).returns(None)
    waiting.upon(_Inputs._retry).to(loading).returns(None)

    # Stopping.

    @new.upon(_Inputs.stop).to(stopped)
    def never(c: _Inputs, s: _Core) -> None:
        s.stopped.callback(None)

    @waiting.upon(_Inputs.stop).to(stopped)
    def giveUp(c: _Inputs, s: _Core, timer: _Timer) -> None:
        timer.close()
        s.stopped.callback(None)

    @idle.upon(_Inputs.stop).to(stopping)
    def dismiss(c: _Inputs, s: _Core, pings: _Pings) -> None:
        pings.close()
        s.tell(lambda child: child.shutdown())

    @loading.upon(_Inputs.stop).to(stopping)
    def interrupt(c: _Inputs, s: _Core, loading: _Loading) -> None:
        loading.close()
        s.tell(lambda child: child.close())

    @busy.upon(_Inputs.stop).to(stopping)
    def interruptWork(c: _Inputs, s: _Core, work: _Busy) -> None:
        # Not shutdown: a child that is asked to exit may first finish the batch.
        s.tell(lambda child: child.close())
        work.fail("is being stopped")

    dying.upon(_Inputs.stop).to(stopping).returns(None)

    @stopping.upon(_Inputs._ended).to(stopped)
    def gone(c: _Inputs, s: _Core, timer: _Timer, reason: str) -> None:
        timer.close()
        s.child = None
        s.stopped.callback(None)

    # A batch may be given to a worker that breaks in the same moment.

    def refuse(c: _Inputs, s: _Core, batch: Batch) -> None:
        batch.results.errback(RecognitionFailed("the worker is not there"))

    new.upon(_Inputs.work).loop()(refuse)
    loading.upon(_Inputs.work, nodata=True).loop()(refuse)
    busy.upon(_Inputs.work, nodata=True).loop()(refuse)
    dying.upon(_Inputs.work).loop()(refuse)
    waiting.upon(_Inputs.work, nodata=True).loop()(refuse)
    stopping.upon(_Inputs.work, nodata=True).loop()(refuse)
    stopped.upon(_Inputs.work).loop()(refuse)

    # Late news of what is over: an answer that crossed a signal, errors of commands when the child
    # was being killed anyway.
    dying.upon(_Inputs._prepared).loop().returns(None)
    stopping.upon(_Inputs._prepared).loop().returns(None)
    dying.upon(_Inputs._answered).loop().returns(None)
    stopping.upon(_Inputs._answered).loop().returns(None)
    dying.upon(_Inputs._outgrown).loop().returns(None)
    stopping.upon(_Inputs._outgrown).loop().returns(None)
    dying.upon(_Inputs._broken).loop().returns(None)
    waiting.upon(_Inputs._broken).loop().returns(None)
    stopping.upon(_Inputs._broken).loop().returns(None)
    stopped.upon(_Inputs._broken).loop().returns(None)
    stopping.upon(_Inputs.stop).loop().returns(None)
    stopped.upon(_Inputs.stop).loop().returns(None)
    return machine.build()


_Machine = _build()


class WorkerMachine:
    """One worker: a child process that is replaced whenever it breaks, until stopped.

    :ivar name: for the log, e.g. ``worker 2``.
    :ivar stopped: fires when the worker was stopped and its process is gone.
    """

    def __init__(
        self,
        name: str,
        owner: Owner,
        clock: IReactorTime,
        start_child: Callable[[], Child],
        prepare: Callable[[Child], Deferred[object]],
        patience: float | None,
        backoff: Backoff,
        times: Times,
    ) -> None:
        """Make a worker that is not started yet.

        :param start_child: starts the process; may raise.
        :param prepare: brings a new child to where it can take windows.
        :param patience: how long `prepare` may take, seconds; None for as long as it likes.
        :param backoff: of this worker alone. Reset when a batch has succeeded.
        """
        self.name = name
        core = _Core(self, owner, clock, start_child, prepare, patience, backoff, times)
        self.stopped = core.stopped
        self._machine = _Machine(core)

    def start(self) -> None:
        """Start the process; once."""
        self._machine.start()

    def work(self, batch: Batch) -> None:
        """Transcribe a batch; only while idle. Its `results` always fires.

        It fails with :exc:`RecognitionFailed` when the worker cannot, breaks or is stopped.
        """
        self._machine.work(batch)

    def stop(self) -> None:
        """End the process for good; see :attr:`stopped`."""
        self._machine.stop()
