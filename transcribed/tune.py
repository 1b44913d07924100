"""``transcribed tune``: what each way to share out the cores gives, on this machine.

For each split into workers and threads it starts the pool that the daemon would start, and measures
it. The splits are measured in turns, some rounds, and their medians shown: whatever else the
machine does meanwhile so strikes all of them alike.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from transcribed.audiofile import AudioFile, UnreadableFile
from transcribed.cores import fitting_workers, share_out, this_machine
from transcribed.errors import RecognitionFailed
from transcribed.interfaces import IRecognizerPool
from transcribed.pool import LOADING, RecognizerPool
from transcribed.recognition import Piece, SpooledAudio, Window
from transcribed.wire import SAMPLE_BYTES

WINDOW = 20
"""Seconds of audio in the windows that keep the workers busy."""
MESSAGE = 5
"""Seconds of audio in the short message."""
BUSY = 10.0
"""Seconds that the workers are kept busy for, about; with two windows each at the least."""
MOST_SPLITS = 8
"""So many ways to share out the cores are tried, besides one thread and what ``auto`` chooses."""

# Seconds of a long recording that are used: enough for windows that are not all alike.
_USED = 10 * WINDOW

# Seconds between two looks at whether all workers are ready.
_TICK = 0.01


class TuneFailed(Exception):
    """There is nothing to measure; the text says why."""


@dataclass(frozen=True, order=True)
class Split:
    """A way to share out the cores."""

    workers: int
    threads: int

    def __str__(self) -> str:
        return f"{self.workers} x {self.threads}"


@dataclass(frozen=True)
class Measured:
    """What a split gave.

    :ivar rate: seconds of audio transcribed in a second, with windows always waiting.
    :ivar latency: seconds until the text of a short message, on an idle pool.
    :ivar memory: MiB of all workers together; pages that they share are counted once.
    :ivar ready: seconds from the start until every worker was ready.
    """

    rate: float
    latency: float
    memory: float
    ready: float


@dataclass
class Found:
    """All that was found out.

    :ivar auto: what ``auto`` chooses.
    :ivar rounds: what each round gave.
    :ivar failed: why a split could not be measured.
    :ivar left_out: the splits for which there is not the memory.
    """

    model: str
    precision: str
    cores: int
    memory: int | None
    auto: Split
    rounds: dict[Split, list[Measured]] = field(default_factory=dict)
    failed: dict[Split, str] = field(default_factory=dict)
    left_out: list[Split] = field(default_factory=list)

    @property
    def medians(self) -> dict[Split, Measured]:
        """Of all rounds, column by column."""
        columns = ("rate", "latency", "memory", "ready")
        return {
            split: Measured(*(statistics.median(getattr(m, c) for m in rounds) for c in columns))
            for split, rounds in self.rounds.items()
            if rounds
        }

    def lines(self) -> Iterable[str]:
        """The table, and what follows from it, for people."""
        memory = "unknown" if self.memory is None else f"{self.memory / 2**20:.0f} MiB"
        yield f"model {self.model}, {self.precision}; cores: {self.cores}; memory: {memory}"
        yield f"medians of {max(map(len, self.rounds.values()), default=0)} rounds in turns"
        yield ""
        yield "workers x threads  x real time  5 s message  memory of all  all ready in"
        medians = self.medians
        for split, m in medians.items():
            yield (
                f"{split!s:>17}  {m.rate:>11.1f}  {m.latency:>9.2f} s  {m.memory:>9.0f} MiB  "
                f"{m.ready:>10.1f} s"
            )
        for split, reason in self.failed.items():
            yield f"{split!s:>17}  failed: {reason}"
        for split in self.left_out:
            yield f"{split!s:>17}  left out: there is not the memory for it"
        yield ""
        yield f"auto chooses           {self.auto}"
        if medians:
            yield f"most audio a second    {self.fastest}"
            yield f"quickest short message {min(medians, key=lambda s: medians[s].latency)}"

    @property
    def fastest(self) -> Split:
        """The split that transcribed the most audio a second."""
        medians = self.medians
        return max(medians, key=lambda split: medians[split].rate)

    def as_json(self) -> dict[str, Any]:
        """The same for programs, with what each round gave."""
        medians = self.medians
        return {
            "model": self.model,
            "precision": self.precision,
            "cores": self.cores,
            "memory": self.memory,
            "splits": [
                {**asdict(split), **asdict(m), "rounds": [asdict(r) for r in self.rounds[split]]}
                for split, m in medians.items()
            ],
            "failed": [{**asdict(s), "reason": reason} for s, reason in self.failed.items()],
            "left_out": [asdict(split) for split in self.left_out],
            "auto": asdict(self.auto),
            "fastest": asdict(self.fastest) if medians else None,
        }


def splits(cores: int, auto: Split) -> list[Split]:
    """The ways to share out `cores` that are worth a try, the most workers first.

    Those that leave no core over, or some of them where they are many, one of a single thread, and
    what ``auto`` chooses.
    """
    workers = [n for n in range(1, cores + 1) if cores % n == 0]
    if len(workers) > MOST_SPLITS:
        step = (len(workers) - 1) / (MOST_SPLITS - 1)
        workers = [workers[round(i * step)] for i in range(MOST_SPLITS)]
    found = {Split(n, cores // n) for n in workers}
    return sorted(found | {Split(1, 1), auto}, reverse=True)


def spool(audio: AudioFile, path: Path) -> SpooledAudio:
    """`audio` as workers read it, in the file `path`; repeated until it fills a window.

    That is for a stopgap: a Whisper that hears the same again doubts itself, and takes longer.
    """
    frame = audio.channels * SAMPLE_BYTES
    data = bytearray()
    for block in audio.samples():
        data += block
        if len(data) >= _USED * audio.rate * frame:
            break
    if not data:
        raise UnreadableFile(f"{audio.name}: no audio could be decoded from it")
    whole = bytes(data) * -(-WINDOW * audio.rate * frame // len(data))
    path.write_bytes(whole)
    return SpooledAudio(str(path), audio.rate, audio.channels)


def pieces(audio: SpooledAudio, language: str, seconds: int, count: int) -> list[Piece]:
    """`count` windows of `seconds`, one after the other, from the beginning again where it ends."""
    length = seconds * audio.rate
    frames = os.path.getsize(audio.path) // (audio.channels * SAMPLE_BYTES)
    starts = [i % (frames // length) * length for i in range(count)]
    return [Piece(audio, Window(0, at, at + length, at, at + length), language) for at in starts]


def children(pid: int) -> list[int]:
    """The process ids of the children of a process (Linux: proc_tid_children(5))."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def proportional_mib(pids: Iterable[int]) -> float:
    """MiB of memory of processes, pages that they share counted once (Linux: smaps_rollup)."""
    kib = 0
    for pid in pids:
        # One of them may end meanwhile.
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    kib += int(line.split()[1])
    return kib / 1024


def _workers_mib() -> float:
    return proportional_mib(children(os.getpid()))


class Bench:
    """A pool under measurement.

    :param workers: how many workers it is to have.
    :param clock: for time; a reactor.
    """

    def __init__(self, pool: IRecognizerPool, workers: int, clock: Any) -> None:
        self._pool = pool
        self._workers = workers
        self._clock = clock
        self._waiting: deque[Piece] = deque()
        pool.whenFree = self._pump

    async def start(self, patience: float | None) -> float:
        """Start the pool; how many seconds it took until all its workers were ready.

        :raises TuneFailed: when the pool has a problem, or not all are ready after `patience`.
        """
        self._pool.start()
        return await self._all_idle(patience)

    async def _all_idle(self, patience: float | None) -> float:
        begun = self._clock.seconds()
        while self._pool.idle < self._workers:
            problem = self._pool.status().problem
            if problem is not None:
                raise TuneFailed(problem)
            if patience is not None and self._clock.seconds() - begun > patience:
                raise TuneFailed("not all workers got ready")
            await deferLater(self._clock, _TICK)
        return float(self._clock.seconds() - begun)

    async def transcribe(self, pieces: Sequence[Piece]) -> float:
        """Transcribe windows, from when all workers are idle; how many seconds it took.

        :raises RecognitionFailed: when one of them fails.
        """
        await self._all_idle(LOADING)
        begun = self._clock.seconds()
        self._waiting.extend(pieces)
        self._left = len(pieces)
        self._finished: Deferred[None] = Deferred()
        self._pump()
        await self._finished
        return float(self._clock.seconds() - begun)

    def _pump(self) -> None:
        while self._waiting and self._pool.idle:
            answer = self._pool.transcribe([self._waiting.popleft()])
            answer.addCallbacks(self._done, self._failed)

    def _done(self, ignored: object) -> None:
        self._left -= 1
        if not self._left:
            self._finished.callback(None)

    def _failed(self, failure: Any) -> None:
        self._waiting.clear()
        if not self._finished.called:
            self._finished.errback(failure)


async def measure(
    pool: IRecognizerPool,
    split: Split,
    audio: SpooledAudio,
    language: str,
    clock: Any,
    memory: Callable[[], float] = _workers_mib,
) -> Measured:
    """Measure a pool that is not started yet, and stop it.

    :raises TuneFailed: when it does not get ready.
    :raises RecognitionFailed: when a window fails.
    """
    bench = Bench(pool, split.workers, clock)
    try:
        ready = await bench.start(LOADING)
        message = pieces(audio, language, MESSAGE, 1)
        # The first windows pay for what is set up lazily.
        await bench.transcribe(message * split.workers)
        latency = await bench.transcribe(message)
        count = split.workers * max(2, math.ceil(BUSY / (latency * WINDOW / MESSAGE)))
        busy = await bench.transcribe(pieces(audio, language, WINDOW, count))
        return Measured(count * WINDOW / busy, latency, memory(), ready)
    finally:
        await pool.stop()


@dataclass(frozen=True)
class Wanted:
    """What is to be measured; see the options of the daemon.

    :ivar audio: a recording of speech; None for the one that comes with the package.
    """

    model: str
    dtype: str
    language: str
    rounds: int
    audio: str | None = None


async def tune(
    wanted: Wanted,
    clock: Any,
    tell: Callable[[str], None],
    make_pool: Callable[..., IRecognizerPool] | None = None,
    memory: Callable[[], float] = _workers_mib,
    resources: Callable[[], tuple[int, int | None]] = this_machine,
) -> Found:
    """Measure all splits.

    :param tell: is told how far it is.
    :param make_pool: makes what :class:`RecognizerPool` is, from the same arguments.
    :param memory: says how many MiB the workers hold.
    :param resources: the cores, and the bytes of memory (None: unknown), that may be used.
    :raises UnreadableFile: the recording cannot be decoded.
    :raises TuneFailed: no split could be measured.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        audio = _audio(wanted.audio, Path(folder) / "audio")

        def pool(split: Split) -> IRecognizerPool:
            workers, threads = split.workers, split.threads
            return (make_pool or RecognizerPool)(
                wanted.model, folder, wanted.dtype, workers, threads, wanted.language, clock
            )

        tell(f"looking for the model {wanted.model} and loading it once")
        found = await _look(pool, *resources(), clock, tell)
        for number in range(wanted.rounds):
            for split in list(found.rounds):
                tell(f"round {number + 1} of {wanted.rounds}: {split}")
                try:
                    measured = await measure(
                        pool(split), split, audio, wanted.language, clock, memory
                    )
                except (TuneFailed, RecognitionFailed) as e:
                    tell(f"{split}: {e}")
                    found.failed[split] = str(e)
                    del found.rounds[split]
                else:
                    found.rounds[split].append(measured)
    if not found.rounds:
        raise TuneFailed("no split could be measured")
    return found


def _audio(given: str | None, path: Path) -> SpooledAudio:
    if given is not None:
        return spool(AudioFile(given), path)
    # From espeak-ng (sv+m3). The embedded Whisper is sure of its first 5 s and 20 s: what it is not
    # sure of it decodes again by drawing lots, and takes a different time each time.
    with as_file(files("transcribed").joinpath("tune.flac")) as own:
        return spool(AudioFile(str(own)), path)


async def _look(
    make_pool: Callable[[Split], IRecognizerPool],
    cores: int,
    free: int | None,
    clock: Any,
    tell: Callable[[str], None],
) -> Found:
    """What there is to be measured.

    Loading the model once also fetches, unpacks and converts what the splits are not to pay for.
    """
    pool = make_pool(Split(1, cores))
    try:
        await Bench(pool, 1, clock).start(None)
        model, precision = pool.model, pool.status().precision
    finally:
        await pool.stop()
    assert model is not None
    if model.warning is not None:
        tell(model.warning)
    auto = Split(*share_out(cores, free, model.size, model.shared, None, None, model.device))
    found = Found(model.name, precision or "?", cores, free, auto)
    fitting = fitting_workers(free, model.size, model.shared)
    for split in splits(cores, auto):
        if fitting is None or split.workers <= max(1, fitting):
            found.rounds[split] = []
        else:
            found.left_out.append(split)
    return found
