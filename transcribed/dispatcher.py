"""Between the scheduler and the pool: deals windows out to idle workers, and sees each recording
through to its text or its failure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from transcribed.errors import RecognitionFailed
from transcribed.interfaces import IRecognizerPool, ISpool, ITranscriptStore
from transcribed.job import Dealt, Job
from transcribed.recognition import Model, StoredWindow, WindowResult, stitch
from transcribed.scheduler import Scheduler
from transcribed.transcript import Change, State, Transcript

RETRY_STORING = 10.0
"""Seconds until an outcome that could not be stored, e.g. for a full disk, is stored again."""


class Dispatcher:
    """Keeps the pool's workers busy with the scheduler's windows.

    :param changed: is called after each change of a transcript, with its progress.
    :param monotonic: seconds of a clock that never jumps.
    :ivar in_work: how many windows workers have.
    :ivar computed: is called after each batch with the seconds of audio in its windows, and the
        seconds that it took.
    :ivar failed_try: is called when a try of a window has failed that counts.
    """

    _log = Logger()

    def __init__(
        self,
        scheduler: Scheduler,
        pool: IRecognizerPool,
        store: ITranscriptStore,
        spool: ISpool,
        clock: IReactorTime,
        changed: Callable[[Transcript, float], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.in_work = 0
        self.computed: Callable[[Sequence[float], float], None] = lambda audio, seconds: None
        self.failed_try: Callable[[], None] = lambda: None
        self._scheduler = scheduler
        self._pool = pool
        self._store = store
        self._spool = spool
        self._clock = clock
        self._changed = changed
        self._monotonic = monotonic
        self._draining = False
        self._steps: set[Deferred[None]] = set()
        self._retries: dict[str, IDelayedCall] = {}

    def pump(self) -> None:
        """Give every idle worker windows, as far as there are any; conclude what is complete."""
        model = self._pool.model
        if self._draining or model is None:
            return
        self._scheduler.use(model)
        for job in self._scheduler.due():
            self._watch(self._catch_up(job))
        while self._pool.idle and (batch := self._scheduler.next(self._pool.idle)):
            self._watch(self._transcribe(batch, model))

    async def _catch_up(self, job: Job) -> None:
        if job.reason is not None:
            await self._fail(job, job.reason)
        elif job.complete:
            await self._conclude(job)
        else:
            await self._begin(job)

    def _watch(self, step: Coroutine[Any, Any, None]) -> None:
        work = self._logged(step)
        self._steps.add(work)
        work.addBoth(lambda _: self._steps.discard(work))

    def _logged(self, step: Coroutine[Any, Any, None]) -> Deferred[None]:
        return Deferred.fromCoroutine(step).addErrback(
            lambda f: self._log.failure("a window's bookkeeping failed", f)
        )

    def drain(self) -> Deferred[None]:
        """Deal out nothing more; fires when the windows in work are done and stored."""
        self._draining = True
        for call in self._retries.values():
            call.cancel()
        self._retries.clear()
        waiting: list[Deferred[None]] = []
        for work in self._steps:
            done: Deferred[None] = Deferred()
            work.addBoth(done.callback)
            waiting.append(done)
        return gatherResults(waiting, consumeErrors=True).addCallback(lambda _: None)

    async def _transcribe(self, batch: list[Dealt], model: Model) -> None:
        # The worker is taken before anything is waited for: `idle` must not promise it twice.
        answer = self._timed(batch)
        for dealt in batch:
            await self._begin(dealt.job)
        try:
            results = await answer
        except RecognitionFailed as e:
            steps = [self._retry(dealt, str(e), len(batch) == 1) for dealt in batch]
        else:
            steps = [
                self._keep(dealt, result, model)
                for dealt, result in zip(batch, results, strict=True)
            ]
        await gatherResults([self._logged(step) for step in steps])

    def _timed(self, batch: list[Dealt]) -> Deferred[list[WindowResult]]:
        """Have a worker do a batch, and tell how long that took."""
        began = self._monotonic()
        self.in_work += len(batch)

        def over(outcome: list[WindowResult] | Failure) -> list[WindowResult] | Failure:
            self.in_work -= len(batch)
            if not isinstance(outcome, Failure):
                self.computed([dealt.seconds for dealt in batch], self._monotonic() - began)
            return outcome

        return self._pool.transcribe([dealt.piece for dealt in batch]).addBoth(over)

    async def _begin(self, job: Job) -> None:
        if job.begun or job.open:
            return
        job.begun = True
        try:
            change = await self._store.begin(job.key)
        except Exception:
            # Nothing rests on it: its text is stored from either state.
            self._log.failure("a recording's beginning was not stored")
            return
        if change is not None:
            job.transcript = change.after
            if change.moved:
                self._changed(change.after, job.progress)

    async def _keep(self, dealt: Dealt, result: WindowResult, model: Model) -> None:
        if not self._scheduler.wants(dealt):
            return
        self._scheduler.done(dealt, result)
        job = dealt.job
        if job.complete:
            await self._conclude(job)
            return
        # Not of an upload, nor before it is told that an accepted one is in work.
        if job.transcript.state is State.TRANSCRIBING:
            self._changed(job.transcript, job.progress)
        try:
            await self._spool.keep_window(
                job.key, StoredWindow(model.mark, dealt.window.position, result)
            )
        except OSError as e:
            # It is kept in memory; only a restart would have to repeat it.
            self._log.warn("a window of {key} was not stored: {error}", key=job.key, error=e)

    async def _retry(self, dealt: Dealt, reason: str, alone: bool) -> None:
        if self._draining or not self._scheduler.wants(dealt):
            # A worker that is stopped is no fault of the window: the next start takes it up. And
            # of an upload that broke off, the audio was taken away.
            return
        job = dealt.job
        if alone:
            self.failed_try()
        again = self._scheduler.failed(dealt, alone)
        self._log.warn(
            "window {position} of {owner}/{id} failed{among}: {reason}; {then}",
            position=dealt.window.position,
            owner=job.transcript.owner,
            id=job.transcript.id,
            among="" if alone else " among others",
            reason=reason,
            then="it is tried again" if again else "given up",
        )
        if again:
            self.pump()
        else:
            await self._fail(job, reason)

    async def _conclude(self, job: Job) -> None:
        """All windows are there: store the text, then say so, then delete the audio."""
        assert job.model is not None
        try:
            transcription = stitch([job.results[w.position] for w in job.windows])
        except Exception:
            self._log.failure("the results of {key} make no text", key=job.key)
            await self._fail(job, "the windows' results make no text")
            return
        try:
            await self._begin(job)
            kept = await self._spool.keep_text(job.key, transcription)
            change = await self._store.finish(job.key, job.model.name) if kept else None
        except Exception as e:
            self._again(job, e, self._conclude)
            return
        if kept:
            await self._over(job, change, 1.0)
        else:
            # It was deleted meanwhile. Where nobody asked for that, it has failed.
            await self._fail(job, "the audio is lost")

    async def _fail(self, job: Job, reason: str) -> None:
        self._scheduler.give_up(job, reason)
        if job.open:
            # It is said so once it is accepted, if it ever is.
            return
        try:
            change = await self._store.fail(job.key, reason)
        except Exception as e:
            self._again(job, e, lambda job: self._fail(job, reason))
            return
        await self._over(job, change, job.progress)

    async def _over(self, job: Job, change: Change | None, progress: float) -> None:
        """The outcome is stored: say so, and delete what is not needed any more."""
        self._scheduler.remove(job.key)
        # Where it was stored by a try that failed, nobody was told.
        if change is not None and (change.moved or job.in_doubt):
            self._changed(change.after, progress)
        await (self._spool.drop_audio if change is not None else self._spool.drop)(job.key)

    def _again(
        self, job: Job, error: Exception, step: Callable[[Job], Coroutine[Any, Any, None]]
    ) -> None:
        """An outcome could not be stored: try again later. Its audio is kept until then."""
        job.in_doubt = True
        self._log.error(
            "the outcome of {owner}/{id} was not stored: {error}; trying again in {seconds} s",
            owner=job.transcript.owner,
            id=job.transcript.id,
            error=repr(error),
            seconds=RETRY_STORING,
        )
        if self._draining:
            return

        def retry() -> None:
            del self._retries[job.key]
            if self._scheduler.get(job.key) is job:
                self._watch(step(job))

        self._retries[job.key] = self._clock.callLater(RETRY_STORING, retry)
