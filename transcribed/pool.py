"""The pool of workers: finds the model, shares out the cores, hands windows to idle workers."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

from twisted.internet.defer import Deferred, fail, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from transcribed import cores
from transcribed.children import Starter, process_starter
from transcribed.commands import LoadModel, ResolveModel
from transcribed.errors import RecognitionFailed
from transcribed.interfaces import PoolStatus
from transcribed.recognition import Model, Piece, WindowResult, decode, encode
from transcribed.work import Backoff, Batch, Child, Times
from transcribed.workermachine import WorkerMachine

#: How long a worker may take to load the model, seconds.
LOADING = 600.0

#: The first and the longest wait between tries to start a worker, and to find the model, seconds.
WORKER_BACKOFF = (0.5, 30.0)
RESOLVER_BACKOFF = (0.5, 60.0)

Loss = Literal["died", "hung", "grown", "other"]
"""Why a child is of no more use: gone by itself, silent, too large, or anything else."""

# How a worker's reasons begin; see transcribed.workermachine.
_LOSSES: tuple[tuple[str, Loss], ...] = (
    ("died", "died"),
    ("went away", "died"),
    ("hung", "hung"),
    ("has grown", "grown"),
)

# Distinct reasons for failing to load that are remembered as logged.
_MOST_REASONS = 100


class RecognizerPool:
    """See :class:`transcribed.interfaces.IRecognizerPool`; over child processes.

    One short-lived child finds the model, however long that takes; then the workers are started.
    Whatever fails is tried again, with growing pauses, until :meth:`stop`.

    :ivar whenLost: called whenever a child has to be started again, with the kind of reason.
    """

    def __init__(
        self,
        asked_model: str,
        cache_dir: str,
        dtype: str,
        workers: int | None,
        threads: int | None,
        language: str,
        reactor: IReactorTime,
        starter: Starter | None = None,
        *,
        times: Times = Times(),  # noqa: B008  (frozen)
        loading: float = LOADING,
        jitter: Callable[[], float] = random.random,
        resources: Callable[[], tuple[int, int | None]] | None = None,
    ) -> None:
        """Make a pool that is not started yet.

        :param asked_model: a Hub name, a directory, ``embedded`` or ``auto``.
        :param cache_dir: where the children may unpack and convert models.
        :param dtype: what CTC models compute in; one of :data:`transcribed.recognition.DTYPES`.
        :param workers: how many workers; None to choose.
        :param threads: how many threads each; None to choose.
        :param language: what the workers warm up for.
        :param reactor: for time.
        :param starter: makes the children; by default real processes.
        :param loading: how long a worker may take to load the model, seconds.
        :param jitter: see :class:`transcribed.work.Backoff`.
        :param resources: the cores and the bytes of memory (None: unknown) that may be used; by
            default those of this machine.
        """
        self.model: Model | None = None
        self.whenFree: Callable[[], None] = lambda: None
        self.whenLost: Callable[[Loss], None] = lambda kind: None
        self._asked = asked_model
        self._cache = cache_dir
        self._dtype = dtype
        self._wanted = (workers, threads)
        self._language = language
        self._reactor = reactor
        self._start_child = starter or process_starter(reactor)
        self._times = times
        self._loading = loading
        self._jitter = jitter
        self._resources = resources or cores.this_machine
        self._resolver: WorkerMachine | None = None
        self._workers: list[WorkerMachine] = []
        self._threads = 0
        self._ready: set[WorkerMachine] = set()
        self._free: deque[WorkerMachine] = deque()
        self._precision: str | None = None
        self._problem: str | None = None
        self._told: set[str] = set()
        self._stopping = False

    @property
    def idle(self) -> int:
        """How many workers could take a batch now."""
        return len(self._free)

    def status(self) -> PoolStatus:
        """How the pool is now."""
        return PoolStatus(
            model=self._asked if self.model is None else self.model.name,
            precision=self._precision,
            workers=len(self._workers),
            threads=self._threads,
            ready=len(self._ready),
            warning=None if self.model is None else self.model.warning,
            problem=None if self._ready else self._problem,
        )

    def start(self) -> None:
        """Begin to find the model, and go on by itself; once."""

        def resolve(child: Child) -> Deferred[object]:
            answer = child.callRemote(
                ResolveModel, asked=self._asked, cache=self._cache, dtype=self._dtype
            )
            return answer.addCallback(lambda box: decode(Model, box["model"]))

        self._resolver = self._make("resolver", 1, resolve, None, RESOLVER_BACKOFF)
        self._resolver.start()

    def stop(self) -> Deferred[None]:
        """End every child; fires when all are gone. Windows in work fail, and no more are taken."""
        self._stopping = True
        self._free.clear()
        machines = [*([self._resolver] if self._resolver else []), *self._workers]
        waiting = []
        for machine in machines:
            done: Deferred[None] = Deferred()
            machine.stopped.addCallback(_tee, done)
            waiting.append(done)
            machine.stop()
        return gatherResults(waiting).addCallback(self._allStopped)

    def transcribe(self, pieces: Sequence[Piece]) -> Deferred[list[WindowResult]]:
        """Have an idle worker transcribe a batch of windows: one try.

        Fails with :exc:`transcribed.errors.RecognitionFailed` when the worker dies, hangs past its
        deadline, is stopped, or answers with an error or rubbish; and when no worker is idle.
        """
        if not self._free:
            return fail(RecognitionFailed("no worker is idle"))
        batch = Batch(pieces)
        # The worker that has waited longest: another try then goes to another worker.
        self._free.popleft().work(batch)
        return batch.results

    # What the workers tell: transcribed.workermachine.Owner.

    def prepared(self, worker: WorkerMachine, answer: object) -> None:
        """A worker has loaded the model, or the resolver has found it."""
        self._problem = None
        self._told.clear()
        if isinstance(answer, Model):
            worker.stop()
            if not self._stopping:
                self._startWorkers(answer)
            return
        self._precision = str(answer)
        self._ready.add(worker)
        _log.info("{worker} is ready", worker=worker.name)
        self.freed(worker)

    def freed(self, worker: WorkerMachine) -> None:
        """A worker could take a batch."""
        if not self._stopping:
            self._free.append(worker)
            self._tellFree()

    def lost(self, worker: WorkerMachine, reason: str) -> None:
        """A worker is no longer ready, or did not get there."""
        was_ready = worker in self._ready
        self._ready.discard(worker)
        if worker in self._free:
            self._free.remove(worker)
        self._problem = f"{worker.name} {reason}"
        self.whenLost(kind_of_loss(reason))
        if was_ready:
            _log.warn("{worker} {reason}; starting it again", worker=worker.name, reason=reason)
        elif reason not in self._told:
            if len(self._told) >= _MOST_REASONS:
                self._told.clear()
            self._told.add(reason)
            _log.error("{worker} {reason}; trying again", worker=worker.name, reason=reason)

    def _startWorkers(self, model: Model) -> None:
        count, memory = self._resources()
        workers, threads = cores.share_out(
            count, memory, model.size, model.shared, *self._wanted, model.device
        )
        _log.info(
            "{workers} workers of {threads} threads for {model}",
            workers=workers,
            threads=threads,
            model=model.name,
        )
        if model.warning is not None:
            _log.warn("{model}: {reason}", model=model.name, reason=model.warning)
        if workers * threads > count:
            _log.warn("that is more than the {cores} cores there are", cores=count)

        def load(child: Child) -> Deferred[object]:
            answer = child.callRemote(
                LoadModel, model=encode(model), threads=threads, language=self._language
            )
            return answer.addCallback(lambda box: box["precision"])

        self.model = model
        self._threads = threads
        self._workers = [
            self._make(f"worker {number}", threads, load, self._loading, WORKER_BACKOFF)
            for number in range(1, workers + 1)
        ]
        for worker in self._workers:
            worker.start()
        self._tellFree()

    def _make(
        self,
        name: str,
        threads: int,
        prepare: Callable[[Child], Deferred[object]],
        patience: float | None,
        waits: tuple[float, float],
    ) -> WorkerMachine:
        return WorkerMachine(
            name,
            self,
            self._reactor,
            lambda: self._start_child(name, threads),
            prepare,
            patience,
            Backoff(*waits, self._jitter),
            self._times,
        )

    def _tellFree(self) -> None:
        try:
            self.whenFree()
        except Exception:
            _log.failure("whoever waits for a free worker failed")

    def _allStopped(self, ignored: object) -> None:
        self._ready.clear()


def kind_of_loss(reason: str) -> Loss:
    """The kind of a reason that a worker gives; the reason itself may be anything."""
    return next((kind for begin, kind in _LOSSES if reason.startswith(begin)), "other")


def _tee(result: None, also: Deferred[None]) -> None:
    also.callback(result)


_log = Logger()
