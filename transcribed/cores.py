"""How many workers of how many threads: what the machine lends this process, and how to share it.

:func:`share_out` is the whole table of the choice; the rest reads /proc and the control groups.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

#: What a worker needs on top of its weights: Python, torch, one window's activations. Bytes.
WORKER_OVERHEAD = 600_000_000

#: A worker's own weights are held once, and partly twice while they are loaded and converted.
WEIGHTS_FACTOR = 1.5

# cgroup v1 writes "no limit" as the largest multiple of the page size.
_V1_UNLIMITED = 1 << 60


def share_out(
    cores: int,
    memory: int | None,
    size: int,
    shared: int,
    workers: int | None,
    threads: int | None,
    device: str = "cpu",
) -> tuple[int, int]:
    """Choose ``(workers, threads per worker)``; None stands for "choose".

    One thread a worker is the most audio a second, so cores go to workers first, as far as the
    memory allows; what is left over goes to their threads. What the operator gave is obeyed, and
    the other one follows, so that ``workers * threads <= cores`` where that can be. Never less
    than 1.

    :param cores: cores that may be used.
    :param memory: bytes that may be used; None when unknown.
    :param size: bytes of weights that each worker holds for itself.
    :param shared: bytes of weights that all workers hold together.
    :param device: where the model is computed.
    """
    cores = max(1, cores)
    if workers is None and device == "cuda":
        # A second one would only take turns with the first.
        workers = 1
    if workers is None:
        fitting = fitting_workers(memory, size, shared)
        workers = cores // (threads or 1)
        workers = max(1, workers if fitting is None else min(workers, fitting))
    if threads is None:
        threads = max(1, cores // workers)
    return workers, threads


def fitting_workers(memory: int | None, size: int, shared: int) -> int | None:
    """How many workers fit into `memory`, 0 being possible; None when that is unknown.

    The parameters are those of :func:`share_out`.
    """
    if memory is None:
        return None
    # What is shared is mapped as it lies on the disk: nothing of it is held twice.
    return max(0, memory - shared) // (int(size * WEIGHTS_FACTOR) + WORKER_OVERHEAD)


def this_machine() -> tuple[int, int | None]:
    """The cores, and the bytes of memory (None: unknown), that this process may use."""
    return available_cores(), available_memory()


def available_cores(
    root: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc"), affinity: int | None = None
) -> int:
    """Cores this process may use: its affinity, bounded by the control groups' quotas (at least 1).

    A quota of one and a half cores counts as one: threads beyond it would only be throttled.

    :param affinity: how many cores the scheduler allows; None asks it.
    """
    cores = len(os.sched_getaffinity(0)) if affinity is None else affinity
    for directory in _groups("cpu", root, proc):
        quota, period = _quota(directory)
        if quota > 0 and period > 0:
            cores = min(cores, quota // period)
    return max(1, cores)


def available_memory(root: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc")) -> int | None:
    """Bytes of memory this process could still take without swapping; None when nobody says."""
    found = []
    for line in _read(proc / "meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    for directory in _groups("memory", root, proc):
        for limit_name, used_name, cache_name in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit = _number(_read(directory / limit_name))
            used = _number(_read(directory / used_name))
            if 0 <= limit < _V1_UNLIMITED and used >= 0:
                # The cache of files counts as used but is given up when asked for: right after the
                # model was downloaded it is as large as the model.
                cache = _statistic(directory / "memory.stat", cache_name)
                found.append(max(0, limit - used + cache))
    return min(found, default=None)


def _groups(controller: str, root: Path, proc: Path) -> Iterator[Path]:
    """The directories of this process' groups for `controller`, v2 and v1, innermost first.

    Limits of the outer groups hold too. In a container the path may be the host's: levels that are
    not to be seen from here are passed over when their files are read.
    """
    seen = set()
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            mounts = [root, root / "unified"]
        elif controller in controllers.split(","):
            mounts = [root / controllers, root / controller]
        else:
            continue
        inner = PurePosixPath(path.lstrip("/"))
        for level in [inner, *inner.parents]:
            for mount in mounts:
                if ".." not in level.parts and mount / level not in seen:
                    seen.add(mount / level)
                    yield mount / level


def _quota(directory: Path) -> tuple[int, int]:
    """The quota and its period in microseconds; a quota of -1 is none."""
    v2 = _read(directory / "cpu.max").split()
    if len(v2) == 2:
        return _number(v2[0]), _number(v2[1])
    return (
        _number(_read(directory / "cpu.cfs_quota_us")),
        _number(_read(directory / "cpu.cfs_period_us")),
    )


def _statistic(path: Path, name: str) -> int:
    for line in _read(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return max(0, _number(value))
    return 0


def _number(text: str) -> int:
    """The number `text` is; -1 when it is none, e.g. ``max``."""
    try:
        return int(text)
    except ValueError:
        return -1


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
