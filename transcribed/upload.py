"""Recordings on their way in: spooled, transcribed as far as they are there, and accepted.

What is left to do when an upload ends is then little more than its last window. Where it ends in
any other way than being accepted, nothing is left of it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from transcribed.errors import (
    BadAudio,
    Busy,
    Gone,
    TooLong,
    TranscribedError,
    UnknownId,
    Unsupported,
)
from transcribed.interfaces import IIntake, IRecognizerPool, ISpool, ITranscriptStore, Reception
from transcribed.job import Job
from transcribed.scheduler import RETRY_FULL_QUEUE, Scheduler, share
from transcribed.tally import Tally
from transcribed.transcript import State, Transcript
from transcribed.wire import MAX_CHANNELS, MAX_RATE, SAMPLE_BYTES, Submit

RETRY_IDLE = 1.0
"""Seconds after which a client may send again what had stopped to come in."""


@dataclass(frozen=True)
class Terms:
    """What the daemon offers.

    :ivar ttl: seconds that a transcript is kept when the client does not say.
    :ivar language: what a recording is transcribed as when the client does not say.
    :ivar max_seconds: the longest recording.
    :ivar max_bytes: the same in bytes.
    :ivar max_uploads: the most recordings that come in at once; see
        :func:`transcribed.scheduler.share` for how many of one owner.
    :ivar idle_seconds: how long an upload may bring nothing.
    """

    ttl: float
    language: str
    max_seconds: float
    max_bytes: int = 2**60
    max_uploads: int = 2**60
    idle_seconds: float = 60.0

    @property
    def most_bytes(self) -> int:
        """The most bytes of one recording, as both limits have it, whatever its channels."""
        longest = int(self.max_seconds * MAX_RATE) * MAX_CHANNELS * SAMPLE_BYTES
        return min(self.max_bytes, longest)


class Upload:
    """A recording on its way in; made by :meth:`Uploads.open`.

    After any error that it raises, nothing is left of it, but for what cannot be deleted:
    :meth:`Uploads.remains` has that.

    :ivar settled: once it is being kept, fires when that is decided.
    """

    _log = Logger()

    def __init__(
        self,
        uploads: Uploads,
        job: Job,
        intake: IIntake,
        refused: Callable[[TranscribedError], None],
    ) -> None:
        self.settled: Deferred[None] | None = None
        self._over = False
        self._uploads = uploads
        self._draft = job.transcript
        self._job = job
        self._intake = intake
        self._refused = refused
        self._frame_bytes = self._draft.channels * SAMPLE_BYTES
        terms = uploads.terms
        frames = int(terms.max_seconds * self._draft.rate)
        self._limit = min(frames * self._frame_bytes, terms.most_bytes)
        self._asked = False
        self._is_new = False
        self._heard = uploads.passed()

    def is_for(self, party: str) -> bool:
        """Whether `party` is a side of it."""
        return party in (self._draft.owner, self._draft.receiver)

    @property
    def transcript(self) -> Transcript:
        """What is known of it so far. Its time begins when it is accepted."""
        now = self._uploads.now()
        return replace(
            self._draft,
            frames=self._frames,
            created=now,
            expires=now + self._draft.expires - self._draft.created,
        )

    @property
    def _frames(self) -> int:
        return self._intake.size // self._frame_bytes

    def write(self, data: bytes) -> None:
        """More audio; raises :exc:`TooLong` or :exc:`Busy`."""
        try:
            if self._intake.size + len(data) > self._limit:
                raise TooLong(
                    f"more audio than {self._limit} bytes, "
                    f"{self._limit / self._frame_bytes / self._draft.rate:g} seconds"
                )
            self._heard = self._uploads.passed()
            frames = (self._intake.size + len(data)) // self._frame_bytes
            self._uploads.hold(self._job, frames / self._draft.rate)
            self._intake.write(data)
        except BaseException:
            self.discard()
            raise
        self._offer()

    def _offer(self) -> None:
        """Have transcribed what no further audio can change."""
        if self._is_new:
            self._uploads.transcribe(self._job, self._frames)
        elif not self._asked and self._uploads.worth_asking(self._draft, self._frames):
            self._asked = True
            # Without an answer it is transcribed once it is accepted.
            self._uploads.is_new(self._draft).addCallback(self._answered).addErrback(
                lambda f: self._log.failure("it was not found out whether an upload is new", f)
            )

    def _answered(self, is_new: bool) -> None:
        self._is_new = is_new
        if not self._over:
            self._offer()

    def discard(self) -> None:
        """Leave nothing of it; does nothing where it is over already."""
        if not self._over:
            self._drop()
            self._end()

    def _drop(self) -> None:
        self._intake.discard()
        self._uploads.dropped(self._draft)

    def cancel(self) -> None:
        """The owner has cancelled it on another connection."""
        self.discard()
        self._refused(Gone("the upload was cancelled"))

    def drop_if_idle(self) -> None:
        """End it where it has brought nothing for too long."""
        idle = self._uploads.passed() - self._heard
        if self.settled is None and idle > self._uploads.terms.idle_seconds:
            self.discard()
            self._refused(Busy(f"no audio came for {idle:.0f} s", RETRY_IDLE))

    def _end(self) -> None:
        self._over = True
        self._uploads.over(self, self._job)

    async def finish(self, sha256: str | None) -> Transcript:
        """All audio is there: keep it.

        Answers with the transcript, or the one that the same submission made before. Raises
        :exc:`BadAudio`, :exc:`IdTaken`, or :exc:`Busy` when the disk is full.
        """
        self.settled = Deferred()
        try:
            return await self._keep(sha256)
        finally:
            self._end()
            self.settled.callback(None)

    async def _keep(self, sha256: str | None) -> Transcript:
        try:
            self._check(sha256)
            await self._intake.keep()
        except BaseException:
            self._drop()
            raise
        new = replace(self.transcript, state=State.QUEUED, sha256=self._intake.sha256)
        try:
            kept = await self._uploads.accept(new, self._job)
        except TranscribedError:
            self._drop()
            raise
        if kept.key != new.key:
            self._drop()
        return kept

    def _check(self, sha256: str | None) -> None:
        if not self._intake.size:
            raise BadAudio("there is no audio")
        if self._intake.size % self._frame_bytes:
            raise BadAudio(f"the audio is not whole frames of {self._frame_bytes} bytes")
        if sha256 is not None and sha256.lower() != self._intake.sha256:
            raise BadAudio("the audio's digest is another")


class Uploads:
    """All recordings on their way in."""

    def __init__(
        self,
        terms: Terms,
        store: ITranscriptStore,
        spool: ISpool,
        scheduler: Scheduler,
        pool: IRecognizerPool,
        clock: IReactorTime,
        now: Callable[[], float],
        reception: Reception,
    ) -> None:
        self.terms = terms
        self._store = store
        self._spool = spool
        self._scheduler = scheduler
        self._pool = pool
        self._clock = clock
        self.now = now
        self._reception = reception
        self._uploads: dict[tuple[str, str], list[Upload]] = {}
        self._of_party = Tally()
        self._remains: dict[str, tuple[str, str]] = {}

    def __len__(self) -> int:
        """How many there are."""
        return self._of_party.total()

    def refusing(self) -> str | None:
        """Why none would be taken now, whoever sent it; None where one would."""
        if len(self) >= self.terms.max_uploads:
            return "too many recordings are coming in"
        return self._scheduler.refusing() or self._spool.disk.refusing()

    def passed(self) -> float:
        """Seconds, of a clock that is never set."""
        return self._clock.seconds()

    def open(
        self, party: str, request: Submit, refused: Callable[[TranscribedError], None]
    ) -> Upload:
        """Start to take a recording in.

        :param refused: is called when the upload ends by another's doing.

        Raises :exc:`Busy` or :exc:`Unsupported`.
        """
        language = request.language or self.terms.language
        self._check_language(language)
        if len(self) >= self.terms.max_uploads:
            raise Busy("too many recordings are coming in", RETRY_FULL_QUEUE)
        if self._of_party[party] >= share(self.terms.max_uploads):
            raise Busy("you have too many recordings coming in", RETRY_FULL_QUEUE)
        now = self.now()
        draft = Transcript(
            key=uuid.uuid4().hex,
            owner=party,
            id=request.id,
            receiver=request.receiver or party,
            rate=request.rate,
            channels=request.channels,
            frames=0,
            sha256="",
            language=language,
            state=State.UPLOADING,
            created=now,
            expires=now + (request.ttl or self.terms.ttl),
        )
        job = Job(draft, self._spool.audio_path(draft.key), open=True)
        self._scheduler.open(job)
        try:
            intake = self._spool.take_in(draft.key)
        except BaseException:
            self._scheduler.remove(draft.key)
            raise
        upload = Upload(self, job, intake, refused)
        self._uploads.setdefault((party, request.id), []).append(upload)
        self._of_party[party] += 1
        return upload

    def _check_language(self, language: str) -> None:
        model = self._pool.model
        if model is None:
            # Not known yet: it is found out when the recording is transcribed.
            return
        known = model.languages if model.languages is not None else (self.terms.language,)
        if language not in known:
            raise Unsupported("the model does not have this language")

    def for_party(self, owner: str, id: str, party: str) -> Transcript | None:
        """An upload of that name, if `party` is a side of it."""
        for upload in self._uploads.get((owner, id), ()):
            if upload.is_for(party):
                return upload.transcript
        return None

    def named(self, owner: str, id: str) -> list[Upload]:
        """The uploads of that name: more than one where a client sends it again."""
        return list(self._uploads.get((owner, id), ()))

    def seen_by(self, party: str) -> Iterator[Transcript]:
        """What `party` is a side of, each name once."""
        for uploads in self._uploads.values():
            for upload in uploads:
                if upload.is_for(party):
                    yield upload.transcript
                    break

    def drop_idle(self) -> None:
        """End those that have brought nothing for too long."""
        for upload in [upload for uploads in self._uploads.values() for upload in uploads]:
            upload.drop_if_idle()

    def remains(self, owner: str, id: str) -> list[str]:
        """The keys of uploads of that name that are over, and could not be deleted yet."""
        self._remains = {k: v for k, v in self._remains.items() if self._spool.leaves(k)}
        return [key for key, name in self._remains.items() if name == (owner, id)]

    # For an upload

    def dropped(self, draft: Transcript) -> None:
        """Its files were to be deleted."""
        if self._spool.leaves(draft.key):
            self._remains[draft.key] = draft.owner, draft.id

    def hold(self, job: Job, seconds: float) -> None:
        """So much is there of an upload; raises :exc:`Busy` where it is too much for the queue."""
        self._scheduler.hold(job, seconds)

    def worth_asking(self, draft: Transcript, frames: int) -> bool:
        """Whether there may be a window to transcribe, and no other upload that brings the same."""
        model = self._pool.model
        # Where it is not known, there may be by the time that it is.
        enough = model is None or frames > model.longest * draft.rate
        return enough and len(self.named(draft.owner, draft.id)) == 1

    def is_new(self, draft: Transcript) -> Deferred[bool]:
        """Whether nothing has that name yet: what is sent again is not transcribed again."""

        def not_found(failure: Failure) -> bool:
            # Others are of one that is gone: its name is kept for a while.
            failure.trap(TranscribedError)
            return isinstance(failure.value, UnknownId)

        found = self._store.look(draft.owner, draft.id, draft.owner, self.now())
        return found.addCallbacks(lambda _: False, not_found)

    def transcribe(self, job: Job, frames: int) -> None:
        """So many frames of an upload are there to be transcribed."""
        if self._scheduler.grow(job, frames):
            self._reception.wake()

    async def accept(self, new: Transcript, job: Job) -> Transcript:
        """Record an upload whose audio is kept; answers as the store does."""
        try:
            kept = await self._store.accept(new)
        except TranscribedError:
            raise
        except BaseException:
            # It is not known whether the record is there. The audio stays, and is taken up: if
            # there is no record, it is dropped in the end.
            self._reception.in_doubt(new)
            raise
        if kept.key == new.key:
            self._scheduler.accept(job, new)
            self._reception.changed(new, job.progress)
            self._reception.wake()
        return kept

    def over(self, upload: Upload, job: Job) -> None:
        """An upload has ended. Of one that was not accepted, no window is transcribed any more."""
        owner, id = job.transcript.owner, job.transcript.id
        uploads = self._uploads[owner, id]
        uploads.remove(upload)
        self._of_party.less(owner)
        if not uploads:
            del self._uploads[owner, id]
        if job.open:
            self._scheduler.remove(job.key)
        self._reception.uploaded(owner, id)
