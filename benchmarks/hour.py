"""An hour of speech through the daemon: how long it takes, on how much memory, with what text."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

from twisted.internet.task import LoopingCall

from benchmarks.rig import Outcome, Rig, Row
from tests.daemonprocess import DaemonProcess
from transcribed.client import Transcript
from transcribed.cores import available_cores
from transcribed.recognition import stitch
from transcribed.tune import proportional_mib

# Seconds between two samples of memory.
_SAMPLE = 1.0


class Memory:
    """The most memory that the daemon held, in MiB, looked at now and then.

    :ivar parent: resident, of its own process.
    :ivar children: of all workers together, pages that they share counted once.
    """

    def __init__(self, daemon: DaemonProcess) -> None:
        self.parent = 0.0
        self.children = 0.0
        self._daemon = daemon

    def look(self) -> None:
        """Take a sample."""
        pages = int(Path(f"/proc/{self._daemon.pid}/statm").read_text().split()[1])
        self.parent = max(self.parent, pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
        self.children = max(self.children, proportional_mib(self._daemon.workers()))


def cpu_seconds(pids: Iterable[int]) -> float:
    """The processor time that processes have used (proc_pid_stat(5): utime and stime)."""
    ticks = 0
    for pid in pids:
        # The name, in brackets, may have blanks in it.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


async def hour(rig: Rig) -> Outcome:
    """One long recording, over a sequential run: one process, the same windows, one by one."""
    length = rig.options.seconds
    speech = rig.speech(length)
    daemon = await rig.daemon()
    client = rig.client(daemon, "anna")
    await rig.send(client, "warm", speech.audio(0, 60))
    memory = Memory(daemon)
    sampling = LoopingCall(memory.look)
    sampling.clock = rig.reactor
    rig.tell(f"hour: {length} s through the daemon")
    used, begun = cpu_seconds(daemon.workers()), time.monotonic()
    sampled = sampling.start(_SAMPLE)
    try:
        await client.submit("long", speech.audio())
        accepted = time.monotonic() - begun
        transcript = await client.fetch("long")
    finally:
        sampling.stop()
        await sampled
    wall = time.monotonic() - begun
    busy = (cpu_seconds(daemon.workers()) - used) / (wall * available_cores())
    await client.ack("long")
    assert isinstance(transcript, Transcript)

    rig.tell("hour: the same windows, one by one")
    pieces = speech.pieces(rig.model)
    engine = await rig.engine(1)
    await engine.prepare(pieces)
    seconds, results = await engine.run(range(len(pieces)))
    same = transcript.text == stitch(results).text
    rows = [
        Row(
            f"hour: {length} s, over a sequential run",
            f"{wall:.1f} s",
            f"{seconds:.1f} s",
            wall / seconds,
        ),
        Row("hour: times real time", f"{length / wall:.1f}", f"{length / seconds:.1f}"),
        Row("hour: accepted after", f"{accepted:.1f} s"),
        Row("hour: most memory of the parent", f"{memory.parent:.0f} MiB"),
        Row("hour: most memory of the workers", f"{memory.children:.0f} MiB"),
        Row("hour: share of the cores that the workers used", f"{busy:.1%}"),
        Row("hour: text as of the sequential run", "same" if same else "other", met=same),
    ]
    figures = {
        "seconds": length,
        "wall": wall,
        "sequential": seconds,
        "accepted": accepted,
        "parent_mib": memory.parent,
        "workers_mib": memory.children,
        "busy": busy,
        "same": same,
        "words": len(transcript.words),
    }
    return Outcome(rows, figures)
