"""Sharing out cores and memory; reading them from made-up control groups."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from transcribed.cores import (
    WORKER_OVERHEAD,
    available_cores,
    available_memory,
    fitting_workers,
    share_out,
)

LARGE = 1_262_000_000  # bytes of wav2vec2-large in float32
EACH = int(LARGE * 1.5) + WORKER_OVERHEAD
GB = 1_000_000_000


class ShareOutTests(SynchronousTestCase):
    def check(
        self,
        expected: tuple[int, int],
        cores: int,
        memory: int | None = None,
        workers: int | None = None,
        threads: int | None = None,
        *,
        size: int = LARGE,
        shared: int = 0,
    ) -> None:
        self.assertEqual(share_out(cores, memory, size, shared, workers, threads), expected)

    def test_workersFirst(self) -> None:
        self.check((8, 1), 8, 64 * GB)
        self.check((1, 1), 1, 64 * GB)
        self.check((8, 1), 8, None)

    def test_memoryBounds(self) -> None:
        """What memory keeps from being workers becomes threads."""
        self.check((2, 4), 8, 3 * EACH - 1)
        self.check((3, 2), 8, 3 * EACH)
        self.check((1, 8), 8, 1)
        self.check((1, 8), 8, 0)

    def test_sharedWeights(self) -> None:
        """Weights that are mapped by all count once, however many workers there are."""
        self.check((4, 2), 8, LARGE + 4 * WORKER_OVERHEAD, size=0, shared=LARGE)
        self.check((3, 2), 8, LARGE + 4 * WORKER_OVERHEAD - 1, size=0, shared=LARGE)
        self.check((2, 4), 8, GB + 2 * EACH, shared=GB)
        self.check((1, 8), 8, GB - 1, shared=GB)
        self.check((8, 1), 8, None, shared=GB)

    def test_fitting(self) -> None:
        """It may be that not even one fits."""
        self.assertEqual(fitting_workers(GB + 2 * EACH, LARGE, GB), 2)
        self.assertEqual(fitting_workers(GB + EACH - 1, LARGE, GB), 0)
        self.assertEqual(fitting_workers(GB // 2, LARGE, GB), 0)
        self.assertIsNone(fitting_workers(None, LARGE, GB))

    def test_oneGiven(self) -> None:
        self.check((3, 2), 8, 64 * GB, workers=3)
        self.check((2, 3), 8, 64 * GB, threads=3)
        self.check((1, 3), 8, 4 * GB, threads=3)

    def test_oneWhereAGPUComputes(self) -> None:
        self.assertEqual(share_out(8, None, 0, GB, None, None, "cuda"), (1, 8))
        self.assertEqual(share_out(8, None, 0, GB, 3, None, "cuda"), (3, 2))

    def test_neverLessThanOne(self) -> None:
        self.check((16, 1), 8, 64 * GB, workers=16)
        self.check((1, 16), 8, 64 * GB, threads=16)
        self.check((1, 1), 0)

    def test_obeys(self) -> None:
        """What the operator gave stands, whatever the machine is."""
        self.check((5, 7), 2, 1, workers=5, threads=7)
        self.check((5, 1), 2, 1, workers=5)

    def test_withinCores(self) -> None:
        for cores in range(1, 70):
            for memory in (None, 3 * GB, 10 * GB, 40 * GB):
                for workers, threads in [(None, None), (cores // 2 or 1, None), (None, 3)]:
                    w, t = share_out(cores, memory, LARGE, GB, workers, threads)
                    self.assertTrue(w >= 1 and t >= 1)
                    if threads is None or threads <= cores:
                        self.assertLessEqual(w * t, cores)


class MachineTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.top = Path(self.mktemp())
        self.root, self.proc = self.top / "cgroup", self.top / "proc"
        self.write("proc/self/cgroup", "0::/a.slice/b.service\n")

    def write(self, path: str, text: str) -> None:
        (self.top / path).parent.mkdir(parents=True, exist_ok=True)
        (self.top / path).write_text(text)

    def cores(self) -> int:
        return available_cores(self.root, self.proc, affinity=8)

    def memory(self) -> int | None:
        return available_memory(self.root, self.proc)

    def test_nothingKnown(self) -> None:
        self.assertEqual(self.cores(), 8)
        self.assertIsNone(self.memory())

    def test_affinity(self) -> None:
        self.assertEqual(available_cores(self.root, self.proc), len(os.sched_getaffinity(0)))

    def test_v2(self) -> None:
        """The narrowest quota of all levels holds, rounded down."""
        self.write("cgroup/cpu.max", "max 100000\n")
        self.assertEqual(self.cores(), 8)
        self.write("cgroup/a.slice/cpu.max", "350000 100000\n")
        self.assertEqual(self.cores(), 3)
        self.write("cgroup/a.slice/b.service/cpu.max", "600000 100000\n")
        self.assertEqual(self.cores(), 3)
        self.write("cgroup/a.slice/b.service/cpu.max", "50000 100000\n")
        self.assertEqual(self.cores(), 1)

    def test_v1(self) -> None:
        """As in a container: the path is the host's, the limits lie at the mount."""
        self.write("proc/self/cgroup", "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n0::/\n")
        self.write("cgroup/cpu,cpuacct/cpu.cfs_quota_us", "200000\n")
        self.write("cgroup/cpu,cpuacct/cpu.cfs_period_us", "50000\n")
        self.write("cgroup/memory/memory.limit_in_bytes", "4000000\n")
        self.write("cgroup/memory/memory.usage_in_bytes", "3000000\n")
        self.write("cgroup/memory/memory.stat", "cache 7\ntotal_inactive_file 500000\n")
        self.assertEqual(self.cores(), 4)
        self.assertEqual(self.memory(), 1_500_000)

    def test_v1Unlimited(self) -> None:
        self.write("proc/self/cgroup", "4:memory:/\n1:cpu:/\n")
        self.write("cgroup/cpu/cpu.cfs_quota_us", "-1\n")
        self.write("cgroup/cpu/cpu.cfs_period_us", "100000\n")
        self.write("cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
        self.write("cgroup/memory/memory.usage_in_bytes", "3000000\n")
        self.assertEqual(self.cores(), 8)
        self.assertIsNone(self.memory())

    def test_memory(self) -> None:
        """The least of what the machine and each group have left; cached files do not count."""
        self.write("proc/meminfo", "MemTotal: 99 kB\nMemAvailable:    8000 kB\n")
        self.assertEqual(self.memory(), 8_192_000)
        self.write("cgroup/a.slice/memory.max", "max\n")
        self.write("cgroup/a.slice/memory.current", "1\n")
        self.assertEqual(self.memory(), 8_192_000)
        self.write("cgroup/a.slice/b.service/memory.max", "5000000\n")
        self.write("cgroup/a.slice/b.service/memory.current", "3000000\n")
        self.assertEqual(self.memory(), 2_000_000)
        self.write("cgroup/a.slice/b.service/memory.stat", "anon 1\ninactive_file 1000000\n")
        self.assertEqual(self.memory(), 3_000_000)

    def test_outside(self) -> None:
        """A path that leads out of what can be seen is not followed."""
        self.write("proc/self/cgroup", "0::/../../x\n")
        self.write("cgroup/cpu.max", "200000 100000\n")
        self.write("x/cpu.max", "100000 100000\n")
        self.assertEqual(self.cores(), 2)

    def test_rubbish(self) -> None:
        self.write("cgroup/cpu.max", "a lot\n")
        self.write("cgroup/memory.max", "")
        self.write("proc/self/cgroup", "\n::\nrubbish\n0::/\n")
        self.assertEqual(self.cores(), 8)
