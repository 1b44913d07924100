"""What a party can ask for: submit, fetch, ack, status, list, cancel, and to be told of changes.

Over the store, the spool and the scheduler; knows no connection and no frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from transcribed.errors import Busy, Failed, Gone, NotFetched, TranscribedError, UnknownId
from transcribed.interfaces import IRecognizerPool, ISpool, ITranscriptStore
from transcribed.job import Job
from transcribed.recognition import Transcription
from transcribed.scheduler import Scheduler
from transcribed.transcript import ENDED, UNFINISHED, State, Transcript
from transcribed.upload import Terms, Upload, Uploads
from transcribed.waits import Waits
from transcribed.wire import SAMPLE_BYTES, Submit

RETRY_TAKING_UP = 30.0
"""Seconds until what an earlier daemon left, and could not be taken up, is tried again."""
RETRY_SHUTDOWN = 5.0
"""Seconds after which a client may try again when the daemon was stopping."""

Watcher = Callable[[Transcript, float], None]


@dataclass(frozen=True)
class View:
    """A transcript as a party may see it, with its progress, 0 to 1."""

    transcript: Transcript
    progress: float


@dataclass(frozen=True)
class Delivery:
    """A transcript and its text."""

    transcript: Transcript
    transcription: Transcription


@dataclass(frozen=True)
class Waiting:
    """The text is not there yet.

    :ivar outcome: fires with it, or fails as :meth:`Desk.fetch` does; cancel it to wait no more.
    """

    outcome: Deferred[Delivery]


class Desk:
    """Serves all parties.

    :ivar closing: whether new recordings are refused as the daemon is stopping.
    :ivar wake: is called when there is something to transcribe.
    :ivar now: the time of day, in seconds since the epoch.
    :ivar observers: are told of each change of every transcript.
    """

    _log = Logger()

    def __init__(
        self,
        terms: Terms,
        store: ITranscriptStore,
        spool: ISpool,
        scheduler: Scheduler,
        pool: IRecognizerPool,
        clock: IReactorTime,
        now: Callable[[], float],
    ) -> None:
        self.terms = terms
        self.store = store
        self.closing = False
        self.wake: Callable[[], None] = lambda: None
        self._spool = spool
        self._scheduler = scheduler
        self._clock = clock
        self.now = now
        self.observers: list[Watcher] = []
        self._uploads = Uploads(terms, store, spool, scheduler, pool, clock, now, self)
        self._left: dict[str, Transcript] = {}
        self._resume_again = False
        self._take_up_at = 0.0
        self._watchers: dict[str, list[Watcher]] = {}
        self._delivering: set[Deferred[None]] = set()
        self._waiting = Waits()

    @property
    def open_uploads(self) -> int:
        """How many recordings are coming in."""
        return len(self._uploads)

    def refusing(self) -> str | None:
        """Why a new recording would be refused now, whoever sent it; None where it would not."""
        if self.closing:
            return "the daemon is shutting down"
        return self._uploads.refusing()

    # Submitting

    def open_upload(
        self, party: str, request: Submit, refused: Callable[[TranscribedError], None]
    ) -> Upload:
        """Start to take a recording in.

        :param refused: is called when the upload ends by another's doing.

        Raises :exc:`Busy` or :exc:`Unsupported`.
        """
        if self.closing:
            raise Busy("the daemon is shutting down", RETRY_SHUTDOWN)
        return self._uploads.open(party, request, refused)

    def in_doubt(self, transcript: Transcript) -> None:
        """It is not known whether a transcript was accepted: it is taken up later, if it was."""
        self._left[transcript.key] = transcript

    def uploaded(self, owner: str, id: str) -> None:
        """An upload is over: whoever waits for it, and for no other, is to look again."""
        uploads = self._uploads.named(owner, id)
        self._waiting.wake_uploads(
            (owner, id), lambda party: any(each.is_for(party) for each in uploads)
        )

    # Delivering

    async def fetch(self, party: str, owner: str, id: str, wait: bool) -> Delivery | View | Waiting:
        """The text, or how it stands when it is not there and the party will not `wait` for it.

        Raises :exc:`UnknownId`, :exc:`Gone`, :exc:`Failed`, or :exc:`Busy` when too many wait.
        """
        try:
            transcript = await self.store.collect(owner, id, party, self.now())
        except UnknownId:
            uploading = self._uploads.for_party(owner, id, party)
            if uploading is None:
                raise
            transcript = uploading
        if transcript.state is State.FAILED:
            raise Failed(transcript.reason or "the transcription failed")
        if transcript.state is State.READY:
            transcription = await self._spool.read_text(transcript.key)
            if transcription is None:
                raise Gone("the transcript is deleted")
            return Delivery(transcript, transcription)
        if not wait:
            return self._view(transcript)
        self._waiting.check(party)
        outcome = Deferred.fromCoroutine(self._outcome(party, transcript))
        return Waiting(self._waiting.counted(party, outcome))

    async def _outcome(self, party: str, transcript: Transcript) -> Delivery:
        owner, id = transcript.owner, transcript.id
        while True:
            uploading = transcript.state is State.UPLOADING
            await self._waiting.change((owner, id), party if uploading else None)
            delivered: Deferred[None] = Deferred()
            self._delivering.add(delivered)
            try:
                answer = await self.fetch(party, owner, id, wait=False)
            finally:
                self._delivering.remove(delivered)
                delivered.callback(None)
            if isinstance(answer, Delivery):
                return answer
            assert isinstance(answer, View)
            transcript = answer.transcript

    async def settle(self) -> None:
        """Come back when all who were waiting for a text that is there have been sent it."""
        while self._delivering:
            await gatherResults(list(self._delivering))
        # It is sent right after it was got.
        await deferLater(self._clock, 0.0)

    async def acknowledge(self, party: str, owner: str, id: str) -> Transcript:
        """`party` has the text; when both sides have it, it is deleted when this answers.

        Raises :exc:`UnknownId`, :exc:`NotFetched`, or :exc:`Gone`.
        """
        try:
            change = await self.store.acknowledge(owner, id, party, self.now())
        except UnknownId:
            if self._uploads.for_party(owner, id, party) is None:
                raise
            raise NotFetched from None
        try:
            if change.after.state in ENDED:
                await self._spool.drop(change.after.key)
        finally:
            self._moved(change.before, change.after)
        return change.after

    async def status(self, party: str, owner: str, id: str) -> View:
        """How it stands; raises :exc:`UnknownId` or :exc:`Gone`."""
        try:
            transcript = await self.store.look(owner, id, party, self.now())
        except UnknownId:
            uploading = self._uploads.for_party(owner, id, party)
            if uploading is None:
                raise
            transcript = uploading
        return self._view(transcript)

    async def listing(self, party: str) -> list[View]:
        """All that the party is a side of, and has not acked."""
        stored = await self.store.listing(party, self.now())
        names = {(t.owner, t.id) for t in stored}
        uploading = [t for t in self._uploads.seen_by(party) if (t.owner, t.id) not in names]
        return [self._view(t) for t in (*stored, *uploading)]

    async def cancel(self, party: str, owner: str, id: str, upload_ended: bool = False) -> None:
        """Delete it: nothing is left of audio and text when this answers.

        :param upload_ended: an upload of that name was discarded just now, so there was something.

        Raises :exc:`UnknownId`, also for any but the owner, or :exc:`OSError` if something stays.
        """
        if owner != party:
            raise UnknownId
        settling = []
        for upload in self._uploads.named(owner, id):
            if upload.settled is None:
                upload.cancel()
                upload_ended = True
            else:
                # What is just being kept is kept first, so that there is something to cancel.
                settling.append(upload.settled)
        await gatherResults(settling)
        keys = self._uploads.remains(owner, id)
        change = None
        try:
            change = await self.store.cancel(owner, id, self.now())
        except UnknownId:
            if not upload_ended and not keys:
                raise
        else:
            self._give_up(change.after.key)
            keys.append(change.after.key)
        try:
            await _all([self._spool.drop(key) for key in keys])
        finally:
            if change is not None:
                self._moved(change.before, change.after)

    # Telling

    def watch(self, party: str, watcher: Watcher) -> Callable[[], None]:
        """Have `watcher` called at each change of the party's transcripts; answers how to stop."""
        self._watchers.setdefault(party, []).append(watcher)

        def stop() -> None:
            watchers = self._watchers[party]
            watchers.remove(watcher)
            if not watchers:
                del self._watchers[party]

        return stop

    def changed(self, transcript: Transcript, progress: float) -> None:
        """A transcript has changed: tell those who watch and those who wait."""
        if transcript.state is not State.TRANSCRIBING:
            self._log.info(
                "{t.owner}/{t.id} for {t.receiver}, {t.seconds} s, is {t.state}", t=transcript
            )
        watchers = list(self.observers)
        for party in {transcript.owner, transcript.receiver}:
            watchers += self._watchers.get(party, [])
        for watcher in watchers:
            try:
                watcher(transcript, progress)
            except Exception:
                self._log.failure("a watcher failed")
        if transcript.state not in UNFINISHED:
            self._waiting.wake((transcript.owner, transcript.id))

    def _moved(self, before: Transcript, after: Transcript) -> None:
        if before.state is not after.state:
            self.changed(after, self._progress(after))

    def _view(self, transcript: Transcript) -> View:
        return View(transcript, self._progress(transcript))

    def _progress(self, transcript: Transcript) -> float:
        if transcript.state in (State.READY, State.PURGED):
            return 1.0
        job = self._scheduler.get(transcript.key)
        return job.progress if job is not None else 0.0

    # Keeping house

    def _give_up(self, key: str) -> None:
        """It is not to be transcribed any more."""
        self._scheduler.remove(key)
        self._left.pop(key, None)

    async def resume(self) -> tuple[int, int]:
        """Go on where an earlier daemon stopped, however it stopped.

        To be called before anything else is asked; when it has failed, :meth:`keep_house` calls it
        again. Answers how many recordings go on, and how many leftover files were deleted.
        """
        self._resume_again = False
        try:
            for transcript in await self.store.unfinished():
                # Not this daemon's own: as the store answers in order, they are still in the queue.
                if self._scheduler.get(transcript.key) is None:
                    self._left[transcript.key] = transcript
            swept = await self._spool.sweep(await self.store.live())
        except BaseException:
            self._resume_again = True
            raise
        try:
            await self.purge()
        except Exception:
            self._log.failure("what has expired could not be purged; it is tried again")
        return await self._take_up(), swept

    async def _take_up(self) -> int:
        """Queue what an earlier daemon left, and say how much; what fails stays for later."""
        resumed = 0
        for transcript in list(self._left.values()):
            size = transcript.frames * transcript.channels * SAMPLE_BYTES
            try:
                windows = await self._spool.recover(transcript.key, size)
                lost = windows is None and await self.store.fail(
                    transcript.key, "the audio is lost"
                )
            except Exception:
                self._log.failure("a recording could not be taken up; it is tried again")
                continue
            # Unless it was cancelled or has expired meanwhile.
            if self._left.pop(transcript.key, None) is None:
                continue
            if lost:
                self.changed(lost.after, 0.0)
            elif windows is not None:
                path = self._spool.audio_path(transcript.key)
                self._scheduler.add(Job(transcript, path, windows))
            resumed += 1
        self.wake()
        return resumed

    async def purge(self) -> None:
        """Delete what has expired, and what could not be deleted before.

        Raises, at its end, what went wrong: :exc:`OSError` for files that cannot be deleted.
        """
        expired = await self.store.expire(self.now())
        for transcript in expired:
            self._give_up(transcript.key)
        drops = [self._spool.drop(transcript.key) for transcript in expired]
        try:
            await _all([*drops, self._spool.drop_again()])
        finally:
            for transcript in expired:
                self.changed(transcript, 0.0)

    async def keep_house(self) -> None:
        """To be called every now and then: :meth:`purge`, and take up what could not be.

        Ends uploads that bring nothing, too. Raises as :meth:`purge` does, at its end.
        """
        self._uploads.drop_idle()
        try:
            await self.purge()
        finally:
            if (self._left or self._resume_again) and self._clock.seconds() >= self._take_up_at:
                self._take_up_at = self._clock.seconds() + RETRY_TAKING_UP
                await self._go_on()

    async def _go_on(self) -> None:
        try:
            if self._resume_again:
                resumed, swept = await self.resume()
                self._log.info(
                    "resumed {resumed} recordings, deleted {swept} leftover files",
                    resumed=resumed,
                    swept=swept,
                )
            else:
                await self._take_up()
        except Exception:
            self._log.failure("what an earlier daemon left could still not be taken up")


async def _all(works: Sequence[Deferred[None]]) -> None:
    """Come back when all have ended, and raise what one of them did."""
    outcomes: list[Any] = await DeferredList(works, consumeErrors=True)
    failures = [failure for success, failure in outcomes if not success]
    # What nobody foresaw goes first: files that cannot be deleted are in the log already.
    for failure in sorted(failures, key=lambda failure: failure.check(OSError) is not None):
        failure.raiseException()
