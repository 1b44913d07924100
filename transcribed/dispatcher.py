"""Between the scheduler and the pool: deals windows out to idle workers, and sees each recording
through to its text or its failure.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from transcribed.errors import RecognitionFailed
from transcribed.interfaces import IRecognizerPool, ISpool, ITranscriptStore
from transcribed.recognition import StoredWindow, Window, WindowResult, stitch
from transcribed.scheduler import Job, Scheduler
from transcribed.transcript import Change, Transcript

RETRY_STORING = 10.0
"""Seconds until an outcome that could not be stored, e.g. for a full disk, is stored again."""


class Dispatcher:
    """Keeps the pool's workers busy with the scheduler's windows.

    :param changed: is called after each change of a transcript, with its progress.
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
    ) -> None:
        self._scheduler = scheduler
        self._pool = pool
        self._store = store
        self._spool = spool
        self._clock = clock
        self._changed = changed
        self._draining = False
        self._in_work: set[Deferred[None]] = set()
        self._retries: dict[str, IDelayedCall] = {}

    def pump(self) -> None:
        """Give every idle worker a window, as far as there are any."""
        while not self._draining and self._pool.idle and self._pool.model is not None:
            dealt = self._scheduler.next(self._pool.model)
            if dealt is None:
                return
            job, window = dealt
            self._watch(self._conclude(job) if window is None else self._transcribe(job, window))

    def _watch(self, step: Coroutine[Any, Any, None]) -> None:
        work = Deferred.fromCoroutine(step)
        self._in_work.add(work)
        work.addErrback(lambda f: self._log.failure("a window's bookkeeping failed", f))
        work.addBoth(lambda _: self._in_work.discard(work))

    def drain(self) -> Deferred[None]:
        """Deal out nothing more; fires when the windows in work are done and stored."""
        self._draining = True
        for call in self._retries.values():
            call.cancel()
        self._retries.clear()
        waiting: list[Deferred[None]] = []
        for work in self._in_work:
            done: Deferred[None] = Deferred()
            work.addBoth(done.callback)
            waiting.append(done)
        return gatherResults(waiting, consumeErrors=True).addCallback(lambda _: None)

    async def _transcribe(self, job: Job, window: Window) -> None:
        # The worker is taken before anything is waited for: `idle` must not promise it twice.
        answer = self._pool.transcribe(job.audio, window, job.transcript.language)
        await self._begin(job)
        try:
            result = await answer
        except RecognitionFailed as e:
            await self._retry(job, window, str(e))
        else:
            await self._keep(job, window, result)

    async def _begin(self, job: Job) -> None:
        if job.begun:
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

    async def _keep(self, job: Job, window: Window, result: WindowResult) -> None:
        if self._scheduler.get(job.key) is not job:
            return
        self._scheduler.done(job, window, result)
        if job.complete:
            await self._conclude(job)
            return
        self._changed(job.transcript, job.progress)
        model = self._pool.model
        assert model is not None
        try:
            await self._spool.keep_window(
                job.key, StoredWindow(model.mark, window.position, result)
            )
        except OSError as e:
            # It is kept in memory; only a restart would have to repeat it.
            self._log.warn("a window of {key} was not stored: {error}", key=job.key, error=e)
        self.pump()

    async def _retry(self, job: Job, window: Window, reason: str) -> None:
        if self._draining or self._scheduler.get(job.key) is not job:
            # A worker that is stopped is no fault of the window: the next start takes it up.
            return
        again = self._scheduler.failed(job, window)
        self._log.warn(
            "window {position} of {owner}/{id} failed: {reason}; {then}",
            position=window.position,
            owner=job.transcript.owner,
            id=job.transcript.id,
            reason=reason,
            then="it is tried again" if again else "given up",
        )
        if again:
            self.pump()
        else:
            await self._fail(job, reason)

    async def _conclude(self, job: Job) -> None:
        """All windows are there: store the text, then say so, then delete the audio."""
        assert job.windows is not None and self._pool.model is not None
        try:
            transcription = stitch([job.results[w.position] for w in job.windows])
        except Exception:
            self._log.failure("the results of {key} make no text", key=job.key)
            await self._fail(job, "the windows' results make no text")
            return
        try:
            await self._begin(job)
            kept = await self._spool.keep_text(job.key, transcription)
            change = await self._store.finish(job.key, self._pool.model.name) if kept else None
        except Exception as e:
            self._again(job, e, self._conclude)
            return
        if kept:
            await self._over(job, change, 1.0)
        else:
            # It was deleted meanwhile. Where nobody asked for that, it has failed.
            await self._fail(job, "the audio is lost")

    async def _fail(self, job: Job, reason: str) -> None:
        self._scheduler.stop(job)
        try:
            change = await self._store.fail(job.key, reason)
        except Exception as e:
            self._again(job, e, lambda job: self._fail(job, reason))
            return
        await self._over(job, change, job.progress)

    async def _over(self, job: Job, change: Change | None, progress: float) -> None:
        """The outcome is stored: say so, and delete what is not needed any more."""
        self._scheduler.remove(job.key)
        if change is not None and change.moved:
            self._changed(change.after, progress)
        await (self._spool.drop_audio if change is not None else self._spool.drop)(job.key)

    def _again(
        self, job: Job, error: Exception, step: Callable[[Job], Coroutine[Any, Any, None]]
    ) -> None:
        """An outcome could not be stored: try again later. Its audio is kept until then."""
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
