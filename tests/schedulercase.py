"""A scheduler and recordings for it, for the tests of the queue."""

from __future__ import annotations

from pathlib import Path

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import MODEL
from transcribed.job import Dealt, Job
from transcribed.recognition import Model, StoredWindow, Word, WordsResult, cut
from transcribed.scheduler import (
    Scheduler,
)
from transcribed.transcript import State, Transcript

RATE = 8000
BATCHING = msgspec.structs.replace(MODEL, batch=30.0)


def result(*words: str) -> WordsResult:
    return WordsResult([Word(word, 0.0, 1.0, 1.0) for word in words])


def job(
    key: str,
    owner: str = "anna",
    windows: int = 1,
    seconds: float | None = None,
    stored: list[StoredWindow] | None = None,
    language: str = "sv",
    open: bool = False,
) -> Job:
    """A recording that `MODEL` cuts into so many windows, or of so many seconds."""
    if seconds is None:
        seconds = MODEL.core * windows + MODEL.context
        assert len(cut(int(seconds) * RATE, RATE, MODEL.core, MODEL.context)) == windows
    transcript = Transcript(
        key=key,
        owner=owner,
        id=key,
        receiver=owner,
        rate=RATE,
        channels=1,
        frames=0 if open else int(seconds * RATE),
        sha256="",
        language=language,
        state=State.UPLOADING if open else State.QUEUED,
        created=0.0,
        expires=1.0,
    )
    return Job(transcript, Path(f"/spool/{key}.audio"), stored or [], open)


def name(dealt: Dealt) -> str:
    """A window's recording and its position."""
    return f"{dealt.job.key}{dealt.window.position}"


class SchedulerTestCase(SynchronousTestCase):
    """Has a scheduler, and at the end nothing must be left in it that was taken out."""

    model: Model = MODEL

    def setUp(self) -> None:
        self.scheduler = Scheduler(100)
        self.scheduler.use(self.model)

    def add(self, *jobs: Job) -> None:
        for each in jobs:
            self.scheduler.add(each)

    def batch(self, idle: int = 1) -> list[str]:
        """The next batch, by names."""
        return [name(dealt) for dealt in self.scheduler.next(idle)]

    def deal(self) -> Dealt:
        """The next window, which there must be, alone."""
        (dealt,) = self.scheduler.next(1)
        return dealt

    def dealt(self, most: int = 1000) -> list[str]:
        """What is dealt out from now on, one by one."""
        names: list[str] = []
        while len(names) < most and (batch := self.batch()):
            self.assertEqual(len(batch), 1)
            names += batch
        return names

    def finish(self, *batch: Dealt) -> None:
        """They are transcribed, and recordings that are complete are taken out."""
        for dealt in batch:
            self.scheduler.done(dealt, result())
            if dealt.job.complete:
                self.scheduler.remove(dealt.job.key)

    def assertNothingLeft(self) -> None:
        self.assertEqual(len(self.scheduler), 0)
        self.assertEqual(self.scheduler._jobs, {})
        self.assertEqual(self.scheduler._owners, {})
        self.assertEqual(self.scheduler.due(), [])
        self.assertEqual(self.scheduler.next(1), [])
