"""What a daemon answers to a well-behaved client while others load it, or mean it harm.

``python -m benchmarks.connections [--quick] [SITUATION ...]``. Real ``twistd`` processes with the
tests' tiny checkpoint, one for each situation; clients on TCP over loopback, from processes of
their own. The situations:

- ``quiet``: nobody else is there;
- ``idle``: 10,000 connections come, subscribe, and do nothing: memory, processor use;
- ``uploading``: 1,000 clients upload at the speed of speech, one message of 10 to 60 s after the
  other;
- ``stalled``: 100 clients subscribe, ask for a long text all the time, and do not read;
- ``flood-1``, ``flood-16``: so many ask for ``status`` as fast as they can, and read the answers;
- ``deaf-1``, ``deaf-16``: the same, and do not read them.

Meanwhile one client asks for ``status`` 20 times a second on its own connection, and once a second
makes an exchange on a new one: connect, hello, a message of 1 s, until it is accepted. The table
has the median and the 99th percentile of both, in milliseconds. Clients share the processors with
the daemon: what each used, as a share of one core, is in the second table; ``waited`` is the share
of the time that the daemon could have run and had no core. Memory is the daemon's own process',
anonymous.
"""

from __future__ import annotations

import argparse
import math
import shutil
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError
from twisted.internet.task import LoopingCall

from benchmarks.regular import Lap, Regular
from benchmarks.report import describe, machine, progress, save, table
from benchmarks.rig import percentile
from benchmarks.stage import Memory, Order, Report, Stage, Usage, allow_descriptors
from transcribed.admin import run

DROPPED = "does not read: dropped"
"""What the daemon writes of a client that it drops at ``--max-unsent``."""
MANY = 50
"""Of so many clients it is worth saying how much memory each takes."""
SHARES = ("daemon", "waited", "workers", "clients")
SAMPLE = 0.25
"""Seconds between two samples of the most memory."""
PATIENCE = 300.0
"""Seconds that a crowd may take to begin."""
SPARE = 1000
"""So many connections the daemon takes besides the crowd's."""


@dataclass(frozen=True)
class Scale:
    """How much of everything.

    :ivar seconds: how long each situation is measured.
    :ivar frame: seconds of audio in a frame of an upload.
    :ivar unsent: the daemon's ``--max-unsent``.
    :ivar text_seconds: the length of the recording whose text is asked for and not read.
    :ivar settle: seconds between the last client's beginning and the measurement.
    """

    seconds: float = 120.0
    idle: int = 10_000
    uploads: int = 1000
    stalled: int = 100
    frame: float = 0.25
    unsent: int = 2**24
    text_seconds: float = 600.0
    settle: float = 2.0


QUICK = Scale(
    seconds=3, idle=500, uploads=50, stalled=5, unsent=2**18, text_seconds=300, settle=0.5
)
LONG = ("flood-1", "deaf-1")
"""What a quick run leaves out, unless it is named."""


def orders(scale: Scale) -> dict[str, Order | None]:
    """The situations, and which crowd comes in each."""
    return {
        "quiet": None,
        "idle": Order("idle", scale.idle),
        "uploading": Order("uploading", scale.uploads, frame=scale.frame),
        "stalled": Order("stalled", scale.stalled, text_seconds=scale.text_seconds),
        "flood-1": Order("flooding", 1),
        "flood-16": Order("flooding", 16),
        "deaf-1": Order("flooding", 1, reading=False),
        "deaf-16": Order("flooding", 16, reading=False),
    }


def options(scale: Scale) -> tuple[str, ...]:
    """The daemon's: room for all, so that nobody is refused what another situation is about."""
    most = scale.idle + scale.uploads + SPARE
    given = {
        "workers": 1,
        "max-connections": most,
        "max-connections-per-address": most,
        "max-uploads": most,
        "max-queue": 100_000,
        "max-queue-seconds": 10**8,
        "max-unsent": scale.unsent,
    }
    return tuple(text for key, value in given.items() for text in (f"--{key}", str(value)))


@dataclass(frozen=True)
class Found:
    """How a situation was.

    :ivar count: how many clients there were besides the well-behaved one.
    :ivar opening: seconds until they had all begun.
    :ivar arriving: what the well-behaved client was answered until then.
    :ivar lap: what it was answered when they had.
    :ivar shares: processor time; see :meth:`benchmarks.stage.Usage.shares`.
    :ivar before: the daemon's memory before they came.
    :ivar during: the same at the end of the measurement.
    :ivar after: the same when they had gone.
    :ivar most: the most anonymous memory that the daemon had, in kB.
    :ivar dropped: how many were dropped as they did not read.
    """

    name: str
    count: int
    opening: float
    arriving: Lap
    lap: Lap
    shares: dict[str, float]
    before: Memory
    during: Memory
    after: Memory
    most: int
    report: Report
    dropped: int
    seconds: float

    @property
    def each(self) -> float:
        """kB of the daemon for each client of the crowd."""
        return (self.during.anonymous - self.before.anonymous) / max(1, self.count)

    def figures(self) -> dict[str, Any]:
        """For the file."""
        laps = {"arriving": self.arriving, "measured": self.lap}
        return {
            "clients": self.count,
            "seconds": self.seconds,
            "opening": self.opening,
            **{name: {**times(lap), "failed": lap.failed} for name, lap in laps.items()},
            "cpu": self.shares,
            "before": msgspec.to_builtins(self.before),
            "during": msgspec.to_builtins(self.during),
            "after": msgspec.to_builtins(self.after),
            "most": self.most,
            "kB_each": self.each,
            "dropped": self.dropped,
            "report": msgspec.to_builtins(self.report),
        }


def times(lap: Lap) -> dict[str, dict[str, float]]:
    """Median, 99th percentile and maximum of both kinds, in seconds."""
    return {
        kind: {
            name: percentile(values, share) if values else math.nan
            for name, share in (("median", 0.5), ("99th", 0.99), ("most", 1.0))
        }
        for kind, values in (("status", lap.status), ("exchange", lap.exchange))
    }


async def measure(
    reactor: Any, name: str, order: Order | None, scale: Scale, folder: Path, models: Path
) -> Found:
    """One situation."""
    async with Stage(reactor, folder, models, *options(scale)) as stage:
        regular = Regular(reactor, stage.endpoint)
        await regular.begin()
        await stage.pause(scale.settle)
        regular.lap()
        before = stage.memory()
        most = Most(stage)
        sampling = LoopingCall(most.look)
        sampling.clock = reactor
        sampled = sampling.start(SAMPLE)
        crowd, opening = None, 0.0
        if order is not None:
            crowd = stage.clients(order)
            begun = reactor.seconds()
            await crowd.begun.addTimeout(PATIENCE, reactor)
            opening = reactor.seconds() - begun
        arriving = await regular.settled(regular.lap())
        await stage.pause(scale.settle)
        regular.lap()
        usage = Usage(stage, crowd)
        dropped = stage.daemon.log.count(DROPPED)
        await stage.pause(scale.seconds)
        shares, during = usage.shares(), stage.memory()
        dropped = stage.daemon.log.count(DROPPED) - dropped
        lap = await regular.settled(regular.lap())
        report = Report() if crowd is None else await crowd.leave()
        regular.end()
        await stage.pause(scale.settle)
        sampling.stop()
        await sampled
        return Found(
            name,
            0 if order is None else order.count,
            opening,
            arriving,
            lap,
            shares,
            before,
            during,
            stage.memory(),
            most.kib,
            report,
            dropped,
            scale.seconds,
        )


class Most:
    """The most anonymous memory that the daemon had.

    :ivar kib: in kB.
    """

    def __init__(self, stage: Stage) -> None:
        self.kib = 0
        self._stage = stage

    def look(self) -> None:
        """Take a sample, in a way that does not keep the daemon from its work."""
        for line in Path(f"/proc/{self._stage.daemon.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                self.kib = max(self.kib, int(line.split()[1]))


def answers(found: Sequence[Found]) -> str:
    """The table of what the well-behaved client was answered."""
    laps = []
    for one in found:
        if one.name == "idle":
            laps.append((f"{one.count} connections arrive", one.arriving))
        laps.append((title(one), one.lap))
    rows = []
    for name, lap in laps:
        took = times(lap)
        cells = [f"{1000 * took[kind][at]:.1f}" for kind in took for at in took[kind]]
        rows.append([name, *cells, str(lap.failed)])
    kinds = [f"{kind} {at}" for kind in ("status", "exchange") for at in ("median", "99th", "most")]
    return table(["ms", *kinds, "failed"], rows)


def title(found: Found) -> str:
    """A situation as it is called in tables."""
    return {
        "quiet": "nobody else",
        "idle": f"{found.count} idle connections",
        "uploading": f"{found.count} uploads",
        "stalled": f"{found.count} do not read",
        "flood-1": "1 floods",
        "flood-16": "16 flood",
        "deaf-1": "1 floods, deaf",
        "deaf-16": "16 flood, deaf",
    }[found.name]


def costs(found: Sequence[Found]) -> str:
    """The table of what the situations cost."""
    rows = []
    for one in found:
        memories = [one.before.anonymous, one.most, one.during.anonymous, one.after.anonymous]
        rows.append(
            [
                title(one),
                *(f"{one.shares.get(name, 0.0):.0%}" for name in SHARES),
                *(f"{kib / 1024:.0f}" for kib in memories),
                f"{one.each:.1f}" if one.count >= MANY else "",
                str(one.report.lost),
                str(one.dropped),
                f"{one.report.answers / one.seconds:.0f}" if one.report.answers else "",
            ]
        )
    names = [*SHARES, "MiB before", "most", "at the end", "after"]
    return table(["", *names, "kB each", "lost", "for unsent", "answers/s"], rows)


def remarks(found: Sequence[Found]) -> list[str]:
    """What no table has a column for."""
    lines = []
    for one in found:
        if one.count:
            lines.append(f"{title(one)}: all had begun after {one.opening:.1f} s")
        if accepted := one.report.accepted:
            median, late = (1000 * percentile(accepted, share) for share in (0.5, 0.99))
            lines.append(
                f"{title(one)}: {len(accepted)} messages, accepted {median:.1f} ms after their "
                f"end (median; 99th percentile {late:.1f} ms)"
            )
        if one.report.refused:
            lines.append(f"{title(one)}: refused {one.report.refused}")
    return lines


async def everything(reactor: Any, names: list[str], scale: Scale, file: Path | None) -> None:
    """Measure the situations and show what was found; ends the program."""
    print(describe(machine()), flush=True)
    found: list[Found] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        models = Path(folder) / "models"
        models.mkdir()
        for name in names:
            progress(f"  {name}")
            own = Path(folder) / name
            try:
                one = await measure(reactor, name, orders(scale)[name], scale, own, models)
            except CancelledError:
                raise
            except Exception:
                traceback.print_exc()
                failed.append(name)
                continue
            finally:
                # What was uploaded may be gigabytes.
                shutil.rmtree(own, ignore_errors=True)
            found.append(one)
            progress(answers(found[-1:]))
            if file is not None:
                save(file, f"connections {name}", one.figures())
    if found:
        print(answers(found), costs(found), *remarks(found), sep="\n\n")
    if failed:
        print("FAILED: " + ", ".join(failed))
        raise SystemExit(1)


def main() -> None:
    """See the top of this file."""
    assert __doc__ is not None
    names = [*orders(Scale())]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.connections",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("situations", nargs="*", metavar="SITUATION", help="[all]")
    parser.add_argument("--quick", action="store_true", help="little of most, 3 s each")
    parser.add_argument("--seconds", type=float, help="of each situation [120]")
    parser.add_argument("--idle", type=int, help="connections that do nothing [10000]")
    parser.add_argument("--uploads", type=int, help="clients that upload [1000]")
    parser.add_argument("--stalled", type=int, help="clients that do not read [100]")
    parser.add_argument("--frame", type=float, help="seconds of audio in a frame [0.25]")
    parser.add_argument("--unsent", type=int, help="the daemon's --max-unsent [16 MiB]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add all figures to FILE")
    given = vars(parser.parse_args())
    situations, file, quick = given.pop("situations"), given.pop("json"), given.pop("quick")
    if not situations:
        situations = [name for name in names if not (quick and name in LONG)]
    scale = QUICK if quick else Scale()
    scale = replace(scale, **{key: value for key, value in given.items() if value is not None})
    for name in situations:
        if name not in names:
            parser.error(f"there is no situation {name}: {', '.join(names)}")
    allow_descriptors()
    run(lambda reactor: everything(reactor, situations, scale, file))


if __name__ == "__main__":
    main()
