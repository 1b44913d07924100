"""Which window is next: a bounded queue of recordings, cut into windows, fair between owners.

Pure: no reactor, no I/O. Owners take turns, a window a turn, so that nobody waits for another's
long recording; an owner's recordings are transcribed in the order they came in.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from transcribed.errors import Busy
from transcribed.interfaces import SpooledAudio
from transcribed.recognition import Model, StoredWindow, Window, WindowResult, cut
from transcribed.transcript import Transcript

RETRY_FULL_QUEUE = 10.0
"""Seconds after which a client may try again when the queue was full."""
MAX_TRIES = 3
"""So often a window is tried before its recording is given up."""


@dataclass(eq=False)
class Job:
    """A recording on its way through the recognizers.

    :ivar stored: results that an earlier daemon left; those of the model in use are not made again.
    :ivar begun: whether the store knows that it is in work.
    :ivar windows: how it is cut; None while the model is not known.
    :ivar waiting: the windows that no worker has yet.
    :ivar results: by the windows' positions.
    :ivar tries: failed tries by the windows' positions.
    """

    transcript: Transcript
    audio: SpooledAudio
    stored: list[StoredWindow] = field(default_factory=list)
    begun: bool = False
    windows: list[Window] | None = None
    waiting: deque[Window] = field(default_factory=deque)
    results: dict[int, WindowResult] = field(default_factory=dict)
    tries: dict[int, int] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The transcript's key."""
        return self.transcript.key

    @property
    def progress(self) -> float:
        """Windows done of windows in all, 0 to 1."""
        return round(len(self.results) / len(self.windows), 4) if self.windows else 0.0

    @property
    def complete(self) -> bool:
        """Whether every window has its result."""
        return self.windows is not None and len(self.results) == len(self.windows)

    def cut_for(self, model: Model) -> None:
        """Cut it as `model` asks, and pick up the results that this very model left."""
        t = self.transcript
        self.windows = cut(t.frames, t.rate, model.core, model.context)
        self.results = {
            stored.position: stored.result
            for stored in self.stored
            if stored.model == model.mark and stored.position < len(self.windows)
        }
        self.stored = []
        self.waiting = deque(w for w in self.windows if w.position not in self.results)


class Scheduler:
    """All recordings that are waiting or in work.

    :param limit: the most recordings that may be there at once, those being uploaded included.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._jobs: dict[str, Job] = {}
        self._turns: OrderedDict[str, deque[Job]] = OrderedDict()
        self._reserved = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def reserve(self) -> None:
        """Keep a place for a recording that is coming in; raises :exc:`Busy`."""
        if len(self._jobs) + self._reserved >= self.limit:
            raise Busy("the queue is full", RETRY_FULL_QUEUE)
        self._reserved += 1

    def release(self) -> None:
        """Give a place back, whether the recording came in or not."""
        self._reserved -= 1

    def add(self, job: Job) -> None:
        """Queue a recording. What was accepted is never refused here."""
        self._jobs[job.key] = job
        self._turns.setdefault(job.transcript.owner, deque()).append(job)

    def get(self, key: str) -> Job | None:
        """The recording, while it is here."""
        return self._jobs.get(key)

    def next(self, model: Model) -> tuple[Job, Window | None] | None:
        """The window whose turn it is, or None when all are dealt out.

        A job whose windows all have their results already is dealt out once, without a window.
        """
        while self._turns:
            owner, jobs = next(iter(self._turns.items()))
            self._turns.move_to_end(owner)
            job = jobs[0]
            fresh = job.windows is None
            if fresh:
                job.cut_for(model)
            window = job.waiting.popleft() if job.waiting else None
            if not job.waiting:
                jobs.popleft()
                if not jobs:
                    del self._turns[owner]
            if window is not None or fresh:
                return job, window
        return None

    def done(self, job: Job, window: Window, result: WindowResult) -> None:
        """A window has its result."""
        job.results[window.position] = result

    def failed(self, job: Job, window: Window) -> bool:
        """A try of a window failed: queue it again, first in line; False when it had its last."""
        tries = job.tries[window.position] = job.tries.get(window.position, 0) + 1
        if tries >= MAX_TRIES:
            return False
        if job.key in self._jobs:
            jobs = self._turns.setdefault(job.transcript.owner, deque())
            if job not in jobs:
                jobs.appendleft(job)
            job.waiting.appendleft(window)
        return True

    def stop(self, job: Job) -> None:
        """Deal out no more of a recording's windows."""
        owner = job.transcript.owner
        jobs = self._turns.get(owner)
        if jobs is not None and job in jobs:
            jobs.remove(job)
            if not jobs:
                del self._turns[owner]
        job.waiting.clear()

    def remove(self, key: str) -> Job | None:
        """Take a recording out: finished, failed, cancelled or expired. Answers with it."""
        job = self._jobs.pop(key, None)
        if job is not None:
            self.stop(job)
        return job
