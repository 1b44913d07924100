"""What workers cost: memory, shared pages counted once, and the time until they are ready."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.apart import Apart, Failed
from benchmarks.peers import PEERS, Floats, Setting

WORKERS = (1, 2, 4)


class Worker:
    """A process' engine: loaded when it is made."""

    def __init__(self, name: str, setting: Setting) -> None:
        self._engine = PEERS[name].make(setting)

    def work(self, sounds: Sequence[Floats]) -> None:
        """Hear a batch, for what is set up with the first."""
        self._engine.run(sounds)


def footprint(name: str, setting: Setting, sounds: Sequence[Floats], log: Path) -> dict[str, Any]:
    """The memory of workers of the engine `name` that each have heard `sounds`, and their starts.

    :return: ``resident`` and ``proportional`` MiB for each worker, by how many there are, and
        ``starts``: seconds from the start of each process until it had the model loaded.
    :raises Failed: when they cannot.
    """
    workers: list[Apart] = []
    starts: list[float] = []
    found: dict[str, Any] = {"resident": {}, "proportional": {}, "starts": starts}
    try:
        while len(workers) < max(WORKERS):
            started = time.perf_counter()
            workers.append(Apart(partial(Worker, name, setting), log))
            starts.append(time.perf_counter() - started)
            workers[-1].call("work", sounds)
            count = len(workers)
            if count in WORKERS:
                for what, field in (("resident", "Rss"), ("proportional", "Pss")):
                    total = sum(_mib(worker.pid, field) for worker in workers)
                    found[what][count] = total / count
    finally:
        for worker in workers:
            worker.stop()
    return found


def _mib(pid: int, field: str) -> float:
    """A process' memory, as the kernel sums it up (``Rss``, ``Pss``)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise Failed(f"the kernel does not say a process' {field}")
