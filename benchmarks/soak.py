"""A daemon under a steady mixed load: does it keep what it should have given back?

``python -m benchmarks.soak [--minutes 8] [--warm-up 4]``. A real ``twistd`` process with the tests'
tiny checkpoint; clients on TCP over loopback. Pairs write to each other, both sides fetch and ack;
others cancel, break off uploads, send nonsense, connect anew while they wait, let messages expire;
now and then a long recording comes; monitoring looks at the metrics.

What a process takes once and keeps is no leak, so before it is watched it warms up under the same
load: the workers' allocator until the largest batches have come, in some minutes; and it finds the
names of many messages, as one that is in use has them, so that SQLite's cache of pages is soon as
large as it may be.

Every 5 s it is looked at the memory of the daemon's own process and of each worker, the open files
of the former, and the files in the spool. Anonymous memory, which is nobody else's, must be flat: a
line through the samples may not rise by more than twice its noise (or 0.1 % a minute), nor may the
last minute's median be more than 5 % above the first one's. When all clients have gone, open files
and the spool's must be as they were before they came.

The exit status is 0 when that is so, 1 when something was left over or went wrong, 2 when memory
was not flat.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.task import LoopingCall

from benchmarks.mixed import Mixed
from benchmarks.report import describe, machine, progress, save, table
from benchmarks.stage import Memory, Stage, Usage, memory
from benchmarks.trend import Trend, trend
from transcribed.admin import run
from transcribed.storage.sqlite import SQLiteStore

EVERY = 5.0
"""Seconds between two samples."""
GONE = 60.0
"""Seconds that the daemon may take to give everything back."""
_LEAST = 1.0
_STEP = 0.5
NAMES = 10_000
"""So many are kept from before: some 3 MB."""
FAILED, GROWS = 1, 2


class Sample(msgspec.Struct):
    """What was seen at a moment.

    :ivar at: seconds since the load began, the warm-up included.
    :ivar descriptors: the open files of the daemon's own process.
    :ivar files: of the spool.
    """

    at: float
    parent: Memory
    workers: dict[int, Memory]
    descriptors: int
    files: int


class Watch:
    """Looks at a daemon."""

    def __init__(self, stage: Stage) -> None:
        self.samples: list[Sample] = []
        self._stage = stage
        self._begun = stage.reactor.seconds()

    def look(self) -> None:
        """Take a sample."""
        stage = self._stage
        self.samples.append(
            Sample(
                stage.reactor.seconds() - self._begun,
                stage.memory(),
                {pid: memory(pid) for pid in stage.workers},
                sum(opened(stage).values()),
                len(spooled(stage)),
            )
        )

    def trends(self, since: float) -> dict[str, Trend]:
        """Of the anonymous memory of the daemon's own process, and of all its workers."""
        seen = [sample for sample in self.samples if sample.at >= since]
        times = [sample.at - seen[0].at for sample in seen]
        return {
            "daemon": trend(times, [sample.parent.anonymous for sample in seen]),
            "workers": trend(
                times, [sum(m.anonymous for m in sample.workers.values()) for sample in seen]
            ),
        }


def opened(stage: Stage) -> Counter[str]:
    """The files that the daemon's own process has open, and how often; sockets by kind only."""
    found: Counter[str] = Counter()
    folder = Path(f"/proc/{stage.daemon.pid}/fd")
    for name in os.listdir(folder):
        try:
            # socket:[NUMBER]; a number says nothing, and comes again for another one.
            found[os.readlink(folder / name).partition(":[")[0]] += 1
        except FileNotFoundError:
            # It was closed just now.
            continue
    return found


def spooled(stage: Stage) -> Counter[str]:
    """The files in the spool."""
    return Counter(os.listdir(stage.state / "spool"))


async def left_over(stage: Stage, before: Counter[str]) -> Counter[str]:
    """What is open, or in the spool, and was not `before`; waits for it to go."""
    waited = 0.0
    while (left := opened(stage) + spooled(stage) - before) and waited < GONE:
        await stage.pause(_STEP)
        waited += _STEP
    return left


def used(state: Path) -> None:
    """Make the database of a daemon that is in use: with the names of what was purged."""
    state.mkdir(mode=0o700, parents=True)
    path = state / "transcripts.sqlite"
    SQLiteStore.prepare(path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            """
            WITH RECURSIVE
                numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers LIMIT :count)
            INSERT INTO transcripts SELECT
                lower(hex(randomblob(16))), 'old-' || n, 'm1', 'old-' || (n + 1),
                16000, 1, 80000, lower(hex(randomblob(32))), 'sv', 'purged', :now, :now, :now + 1e7,
                1, 1, 1, 1, 'a model', NULL
            FROM numbers
            """,
            {"count": NAMES, "now": time.time()},
        )


async def soak(
    reactor: Any, warm_up: float, minutes: float, seed: int, file: Path | None, folder: Path
) -> tuple[list[str], bool]:
    """The soak; what is wrong, and whether memory grows."""
    models = folder / "models"
    models.mkdir()
    options = ("--max-queue", "10000")
    used(folder / "soak" / "state")
    async with Stage(reactor, folder / "soak", models, *options) as stage:
        mixed = Mixed(reactor, stage.port, seed)
        # What is opened once, and stays: threads, the database.
        await mixed.once()
        await stage.pause(_LEAST)
        before = opened(stage) + spooled(stage)
        watch = Watch(stage)
        usage = Usage(stage)
        mixed.start()
        sampling = LoopingCall(watch.look)
        sampling.clock = reactor
        sampled = sampling.start(EVERY)
        whole, rest = divmod(warm_up + minutes, 1)
        for minute in range(int(whole)):
            await stage.pause(60)
            progress(f"  minute {minute + 1}: {_state(watch)}")
        await stage.pause(60 * rest)
        sampling.stop()
        await sampled
        shares = usage.shares()
        await mixed.stop()
        left = await left_over(stage, before)
        watch.look()
        end = watch.samples.pop()
        trends = watch.trends(60 * warm_up)
        wrong = [f"left over: {count} x {name}" for name, count in sorted(left.items())]
        wrong += mixed.failures[:3]
        if len(mixed.failures) > 3:
            wrong.append(f"and {len(mixed.failures) - 3} more failures")
        wrong += [line for line in stage.daemon.log.splitlines() if "Traceback" in line]
    if file is not None:
        found = {
            "warm-up": warm_up,
            "minutes": minutes,
            "seed": seed,
            "cpu": shares,
            "counts": dict(mixed.counts),
            "trends": {name: msgspec.to_builtins(one) for name, one in trends.items()},
            "before": dict(before),
            "left": dict(left),
            "end": msgspec.to_builtins(end),
            "wrong": wrong,
            "samples": msgspec.to_builtins(watch.samples, str_keys=True),
        }
        save(file, "soak", found)
    print(
        _counted(mixed.counts, warm_up + minutes, shares),
        _trends(trends),
        _ends(watch, end),
        sep="\n\n",
    )
    return wrong, not all(one.flat for one in trends.values())


def _state(watch: Watch) -> str:
    last = watch.samples[-1]
    return (
        f"{last.parent.anonymous} kB in the daemon, "
        f"{sum(m.anonymous for m in last.workers.values())} kB in {len(last.workers)} workers, "
        f"{last.descriptors} open files, {last.files} in the spool"
    )


def _counted(counts: Counter[str], minutes: float, shares: dict[str, float]) -> str:
    done = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    used = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    return f"{minutes:g} minutes: {done}\nof a core: {used}"


def _trends(trends: dict[str, Trend]) -> str:
    return table(
        ["anonymous memory", "kB a minute", "noise", "first minute, kB", "last minute, kB", ""],
        [
            [
                name,
                f"{one.slope:+.1f}",
                f"{one.noise:.1f}",
                f"{one.first:.0f}",
                f"{one.last:.0f}",
                "flat" if one.flat else "GROWS",
            ]
            for name, one in trends.items()
        ],
    )


def _ends(watch: Watch, end: Sample) -> str:
    first = watch.samples[0]
    rows = []
    for name in ("descriptors", "files"):
        most = max(getattr(sample, name) for sample in watch.samples)
        rows.append([name, *(str(n) for n in (getattr(first, name), most, getattr(end, name)))])
    pss = [sample.parent.pss for sample in (first, end)]
    rows.append(
        ["daemon, PSS kB", str(pss[0]), str(max(s.parent.pss for s in watch.samples)), str(pss[1])]
    )
    return table(["", "before", "most", "after"], rows)


async def everything(reactor: Any, given: argparse.Namespace) -> None:
    """The soak, and its verdict; ends the program."""
    print(describe(machine()), flush=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        wrong, grows = await soak(
            reactor, given.warm_up, given.minutes, given.seed, given.json, Path(folder)
        )
    for line in wrong:
        print("WRONG: " + line)
    if wrong:
        raise SystemExit(FAILED)
    if grows:
        raise SystemExit(GROWS)


def main() -> None:
    """See the top of this file."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="how long [8; at least 1]")
    parser.add_argument(
        "--warm-up", type=float, default=4.0, metavar="MINUTES", help="of the same load before [4]"
    )
    parser.add_argument("--seed", type=int, default=1, help="of what clients do [1]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add all samples to FILE")
    given = parser.parse_args()
    if given.minutes < _LEAST or given.warm_up < 0:
        parser.error("at least a minute, and no warm-up of less than none")
    run(lambda reactor: everything(reactor, given))


if __name__ == "__main__":
    main()
