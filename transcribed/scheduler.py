"""Which windows are next: a bounded queue of recordings, cut into windows, fair between owners.

Pure: no reactor, no I/O.

Between owners it is start-time fair queueing (P. Goyal, H. Vin, H. Cheng: Start-time Fair Queuing,
SIGCOMM 1996) over seconds of audio: an owner's next window starts, in virtual time, where the
owner's last one finished, or now if that is later; the earliest start is next. So whoever just
comes waits for nobody's backlog, and a flood gets its owner a share and no more.

Within an owner the recording with the fewest seconds left is next, so that a short message
overtakes a long recording; now and then it is the oldest one's turn all the same.

By these rules alone, newcomers that never end could keep somebody waiting for ever. So an owner
that was passed over for very long is next whoever comes.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import ceil, inf

from transcribed.errors import Busy
from transcribed.job import Dealt, Job
from transcribed.recognition import Model, Window, WindowResult
from transcribed.transcript import Transcript

RETRY_FULL_QUEUE = 10.0
"""Seconds after which a client may try again when the queue was full."""
_FULL_SHARE = "your share of the queue is full"
SHARE = 0.5
"""The most of all places that one owner gets, so that no owner takes them all."""
MAX_TRIES = 3
"""So often a window is tried, alone, before its recording is given up."""
OLDEST_TURN = 4
"""Every so many turns of an owner go to its oldest recording, however many short ones come in."""
PATIENCE = 10
"""So many windows, for each owner that waits, are dealt to others before an owner is next."""
MAX_BATCH = 16
"""The most windows in a batch, so that the question and the answer fit into an AMP value."""


def share(limit: int) -> int:
    """So many of `limit` places one owner gets.

    It is the same for an owner who is alone, as a service is that relays for others under one name:
    half must be enough for it, or the limit twice as high.
    """
    return max(1, int(limit * SHARE))


@dataclass(eq=False)
class _Owner:
    """Whose turn it may be.

    :ivar served: the number of the last window dealt to it.
    :ivar seconds: how much audio of it is here.
    :ivar finish: its finish tag: where its windows end in virtual time, in seconds of audio.
    :ivar turns: how often it was its turn.
    :ivar jobs: its recordings, the oldest first.
    """

    served: int
    seconds: float = 0.0
    finish: float = 0.0
    turns: int = 0
    jobs: list[Job] = field(default_factory=list)

    def next(self) -> Job | None:
        """Whose first waiting window is next."""
        jobs = (job for job in self.jobs if job.waiting)
        if self.turns % OLDEST_TURN == OLDEST_TURN - 1:
            return next(jobs, None)
        return min(jobs, key=lambda job: job.seconds_left, default=None)

    @property
    def in_work(self) -> bool:
        """Whether a worker has a window of it."""
        return any(job.in_work for job in self.jobs)


class Scheduler:
    """All recordings that are coming in, waiting or in work.

    :param limit: the most recordings that may be there at once; see :func:`share` for how many of
        one owner.
    :param limit_seconds: the most seconds of audio, all told.
    :param limit_seconds_of_owner: the most of one owner.
    :ivar seconds: how many seconds of audio there are.
    """

    def __init__(
        self,
        limit: int,
        limit_seconds: float = inf,
        limit_seconds_of_owner: float = inf,
    ) -> None:
        self.limit = limit
        self.limit_seconds = limit_seconds
        self.limit_seconds_of_owner = limit_seconds_of_owner
        self.seconds = 0.0
        self._model: Model | None = None
        self._jobs: dict[str, Job] = {}
        self._owners: dict[str, _Owner] = {}
        self._due: list[Job] = []
        self._time = 0.0
        self._number = 0

    def __len__(self) -> int:
        """How many recordings were accepted and are not finished."""
        return sum(not job.open for job in self._jobs.values())

    # Recordings

    def use(self, model: Model) -> None:
        """Cut all recordings for this model, those that are here and those to come."""
        if model != self._model:
            self._model = model
            for job in self._jobs.values():
                self._cut(job, model)

    def _cut(self, job: Job, model: Model) -> None:
        job.cut_for(model)
        if job.complete:
            self._due.append(job)

    def open(self, job: Job) -> None:
        """Keep a place for a recording that is coming in; raises :exc:`Busy`."""
        if (reason := self.refusing()) is not None:
            raise Busy(reason, RETRY_FULL_QUEUE)
        owner = self._owners.get(job.transcript.owner)
        if owner is not None and (
            len(owner.jobs) >= share(self.limit) or owner.seconds >= self.limit_seconds_of_owner
        ):
            raise Busy(_FULL_SHARE, RETRY_FULL_QUEUE)
        self.add(job)

    def refusing(self) -> str | None:
        """Why nothing more is taken, whoever sends it; None where there is room."""
        if len(self._jobs) >= self.limit or self.seconds >= self.limit_seconds:
            return "the queue is full"
        return None

    def hold(self, job: Job, seconds: float) -> None:
        """So many seconds of a recording that is coming in are there; raises :exc:`Busy`."""
        more = seconds - job.held
        if self.seconds + more > self.limit_seconds:
            raise Busy("the queue is full", RETRY_FULL_QUEUE)
        if self._owners[job.transcript.owner].seconds + more > self.limit_seconds_of_owner:
            raise Busy(_FULL_SHARE, RETRY_FULL_QUEUE)
        self._hold(job, seconds)

    def _hold(self, job: Job, seconds: float) -> None:
        more, job.held = seconds - job.held, seconds
        self._owners[job.transcript.owner].seconds += more
        # Sums of fractions drift.
        self.seconds = self.seconds + more if self._jobs else 0.0

    def add(self, job: Job) -> None:
        """Queue a recording. What was accepted is never refused here."""
        self._jobs[job.key] = job
        owner = self._owners.setdefault(job.transcript.owner, _Owner(self._count()))
        owner.jobs.append(job)
        self._hold(job, job.transcript.seconds)
        if self._model is not None:
            self._cut(job, self._model)

    def grow(self, job: Job, frames: int) -> bool:
        """So much is there of a recording that is coming in; whether windows are waiting now."""
        job.frames = frames
        job.cut()
        return bool(job.waiting)

    def accept(self, job: Job, transcript: Transcript) -> None:
        """All is there of a recording that was coming in."""
        job.open = False
        job.transcript = transcript
        job.frames = transcript.frames
        self._hold(job, transcript.seconds)
        job.cut()
        if job.in_work or job.results or job.reason is not None:
            self._due.append(job)

    def due(self) -> list[Job]:
        """What has become due without a worker's doing, once: to begin, to conclude, or to fail.

        A recording that was in work before it was accepted, one that an earlier daemon had all
        windows of, one that was given up before it was accepted.
        """
        due, self._due = self._due, []
        return [job for job in due if self._jobs.get(job.key) is job]

    def get(self, key: str) -> Job | None:
        """The recording, while it is here."""
        return self._jobs.get(key)

    def remove(self, key: str) -> Job | None:
        """Take a recording out: finished, failed, cancelled or expired. Answers with it."""
        job = self._jobs.pop(key, None)
        if job is not None:
            job.drop_windows()
            owner = job.transcript.owner
            self._hold(job, 0.0)
            self._owners[owner].jobs.remove(job)
            self._forget(owner)
        return job

    # Windows

    def next(self, idle: int) -> list[Dealt]:
        """The windows that one of `idle` workers is to do together; none when none is waiting."""
        firsts = ((owner, owner.next()) for owner in self._owners.values())
        turns = [(self._rank(owner, job), owner, job) for owner, job in firsts if job is not None]
        if not turns:
            return []
        _, owner, job = min(turns, key=lambda turn: turn[1].served)
        if self._number - owner.served <= PATIENCE * len(turns):
            _, owner, job = min(turns)
            # Not by what goes along in a batch, nor out of turn: others still start before that.
            self._time = max(self._time, owner.finish)
        owner.turns += 1
        head = self._deal(owner, job)
        batch = [head, *self._companions(head, idle)]
        self._forget(*self._owners)
        return batch

    def _count(self) -> int:
        self._number += 1
        return self._number

    def _rank(self, owner: _Owner, job: Job) -> tuple[float, float, int]:
        """The smallest is next: whose window starts first.

        Of those that start together the one that is done first, so that a short message waits for
        nobody's long window; then the one that waits longest. No two are the same.
        """
        start = max(self._time, owner.finish)
        return start, start + job.seconds(job.waiting[0]), owner.served

    def _deal(self, owner: _Owner, job: Job) -> Dealt:
        dealt = job.take()
        owner.finish = max(self._time, owner.finish) + dealt.seconds
        owner.served = self._count()
        return dealt

    def _companions(self, head: Dealt, idle: int) -> Iterator[Dealt]:
        """What goes along with a short window: others, in their order, as far as they fit in."""
        assert self._model is not None
        limit = self._model.batch

        def short(job: Job, window: Window) -> bool:
            # One that has failed goes alone: it is not to cost its neighbours their tries.
            return (
                job.transcript.language == head.job.transcript.language
                and job.seconds(window) < limit
                and window.position not in job.tries
            )

        if not short(head.job, head.window):
            return
        # No worker is to stay without a window because another has several.
        waiting = 1
        left = limit - head.seconds
        turns: list[tuple[tuple[float, float, int], _Owner, list[tuple[float, int, Job]]]] = []
        for owner in self._owners.values():
            jobs = [
                (job.seconds_left, number, job)
                for number, job in enumerate(owner.jobs)
                if job.waiting and short(job, job.waiting[0])
            ]
            if jobs:
                waiting += sum(len(job.waiting) for _, _, job in jobs)
                jobs = [entry for entry in jobs if entry[-1].seconds(entry[-1].waiting[0]) <= left]
            if jobs:
                heapq.heapify(jobs)
                turns.append((self._rank(owner, jobs[0][-1]), owner, jobs))
        heapq.heapify(turns)
        room = min(MAX_BATCH, ceil(waiting / idle)) - 1
        while turns and room and left > 0:
            _, owner, jobs = heapq.heappop(turns)
            _, number, job = heapq.heappop(jobs)
            if job.seconds(job.waiting[0]) <= left:
                dealt = self._deal(owner, job)
                left -= dealt.seconds
                room -= 1
                yield dealt
                if job.waiting and short(job, job.waiting[0]):
                    heapq.heappush(jobs, (job.seconds_left, number, job))
            if jobs:
                heapq.heappush(turns, (self._rank(owner, jobs[0][-1]), owner, jobs))

    def wants(self, dealt: Dealt) -> bool:
        """Whether a window's result is still of use."""
        return dealt in dealt.job.in_work

    def done(self, dealt: Dealt, result: WindowResult) -> None:
        """A window has its result."""
        dealt.job.in_work.discard(dealt)
        dealt.job.results[dealt.window.position] = result
        self._forget(dealt.job.transcript.owner)

    def failed(self, dealt: Dealt, alone: bool) -> bool:
        """A try of a window failed: queue it again; False when it had its last.

        :param alone: whether it was alone: if not, it may have been another's fault, and does not
            count.
        """
        tries = dealt.job.tries.get(dealt.window.position, 0) + alone
        dealt.job.tries[dealt.window.position] = tries
        if tries >= MAX_TRIES:
            return False
        dealt.job.put_back(dealt)
        return True

    def give_up(self, job: Job, reason: str) -> None:
        """It cannot be transcribed: deal out no more of its windows."""
        job.reason = reason
        job.drop_windows()

    def _forget(self, *names: str) -> None:
        """Forget what these owners were dealt, where it makes no difference any more.

        That is once virtual time has passed it, or nobody waits whom it could put last.
        """
        waiting = any(job.waiting for job in self._jobs.values())
        gone = []
        for name in names if waiting else list(self._owners):
            owner = self._owners[name]
            if owner.finish <= self._time or not (waiting or owner.in_work):
                owner.finish = self._time
                if not owner.jobs:
                    del self._owners[name]
            elif not owner.jobs:
                gone.append((owner.finish, name))
        # Whoever comes for the first time starts at the present virtual time: as long as only such
        # ones come, it stands still.
        for _, name in sorted(gone)[: -self.limit]:
            del self._owners[name]
