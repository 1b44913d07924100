"""A daemon under a steady mixed load: does it keep what it should have given back?

``python -m benchmarks.soak [--minutes 8]``. A real ``twistd`` process with the tests' tiny
checkpoint; clients on TCP over loopback. Pairs write to each other, both sides fetch and ack;
others cancel, break off uploads, send nonsense, connect anew while they wait, let messages expire;
now and then a long recording comes; monitoring looks at the metrics.

Every 5 s it is looked at the memory of the daemon's own process and of each worker, the open files
of the former, and the files in the spool. Anonymous memory, which is nobody else's, must be flat: a
line through the last two thirds of the samples may not rise by more than twice its noise (or 0.1 %
a minute), nor may the last minute's median be more than 5 % above the second one's. When all
clients have gone, open files and the spool's must be as they were before they came.

The exit status is 0 when that is so, 1 when something was left over or went wrong, 2 when memory
was not flat.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.task import LoopingCall

from benchmarks.mixed import Mixed
from benchmarks.report import describe, machine, progress, save, table
from benchmarks.stage import Memory, Stage, Usage, memory
from benchmarks.trend import Trend, trend
from transcribed.admin import run

EVERY = 5.0
"""Seconds between two samples."""
GONE = 60.0
"""Seconds that the daemon may take to give everything back."""
_LEAST = 1.0
_STEP = 0.5
FAILED, GROWS = 1, 2


class Sample(msgspec.Struct):
    """What was seen at a moment.

    :ivar at: seconds since the load began.
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

    def trends(self) -> dict[str, Trend]:
        """Of the anonymous memory of the daemon's own process, and of all its workers."""
        times = [sample.at - self.samples[0].at for sample in self.samples]
        return {
            "daemon": trend(times, [sample.parent.anonymous for sample in self.samples]),
            "workers": trend(
                times,
                [sum(m.anonymous for m in sample.workers.values()) for sample in self.samples],
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


async def soak(
    reactor: Any, minutes: float, seed: int, file: Path | None, folder: Path
) -> tuple[list[str], bool]:
    """The soak; what is wrong, and whether memory grows."""
    models = folder / "models"
    models.mkdir()
    options = ("--max-queue", "10000")
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
        for minute in range(int(minutes)):
            await stage.pause(60)
            progress(f"  minute {minute + 1}: {_state(watch)}")
        await stage.pause(60 * (minutes - int(minutes)))
        sampling.stop()
        await sampled
        shares = usage.shares()
        await mixed.stop()
        left = await left_over(stage, before)
        watch.look()
        end = watch.samples.pop()
        trends = watch.trends()
        wrong = [f"left over: {count} x {name}" for name, count in sorted(left.items())]
        wrong += mixed.failures[:3]
        if len(mixed.failures) > 3:
            wrong.append(f"and {len(mixed.failures) - 3} more failures")
        wrong += [line for line in stage.daemon.log.splitlines() if "Traceback" in line]
    if file is not None:
        found = {
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
    print(_counted(mixed.counts, minutes, shares), _trends(trends), _ends(watch, end), sep="\n\n")
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
        ["anonymous memory", "kB a minute", "noise", "2nd minute, kB", "last minute, kB", ""],
        [
            [
                name,
                f"{one.slope:+.1f}",
                f"{one.noise:.1f}",
                f"{one.second:.0f}",
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


async def everything(reactor: Any, minutes: float, seed: int, file: Path | None) -> None:
    """The soak, and its verdict; ends the program."""
    print(describe(machine()), flush=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        wrong, grows = await soak(reactor, minutes, seed, file, Path(folder))
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
    parser.add_argument("--seed", type=int, default=1, help="of what clients do [1]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add all samples to FILE")
    given = parser.parse_args()
    if given.minutes < _LEAST:
        parser.error("at least a minute")
    run(lambda reactor: everything(reactor, given.minutes, given.seed, given.json))


if __name__ == "__main__":
    main()
